"""Small galaxies for the tests of models."""

import pytest

from astrovae.datasets import make_galaxies


@pytest.fixture(scope="session")
def stack():
    """Forty galaxies in two bands, with errors; the fourth has no valid pixel."""
    _, galaxies = make_galaxies(40, shape=(16, 16), bands=("g", "r"), seed=1)
    mask = galaxies.mask.copy()
    mask[3] = True
    return galaxies.replace(mask=mask)
