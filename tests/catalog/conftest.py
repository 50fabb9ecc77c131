"""A catalogue in which much is wrong, and a model that needs no training."""

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from astrovae.images import make_cutouts


class Encoder:
    """Two latents by hand: total flux, and x extent."""

    preprocessing = None

    def encode(self, stack, show_progress=False):
        batch = stack.batch(np.arange(len(stack)))
        flux = batch["image"].sum(axis=(1, 2, 3))
        mean = np.stack([flux, 2 * flux], axis=1)
        return mean, np.full_like(mean, np.log(4.0))


class Meter:
    """Measures as a model does."""

    def measure(self, stack, show_progress=False):
        flux, _ = Encoder().encode(stack)
        return {
            "vae_mse": flux[:, 0].astype(float) ** 2,
            "vae_log_like": -flux[:, 0].astype(float),
        }


@pytest.fixture
def encoder():
    """An encoder."""
    return Encoder()


@pytest.fixture
def meter():
    """Something with measure."""
    return Meter()


@pytest.fixture
def image(rng):
    """Noise with one pixel that is not finite."""
    data = rng.normal(size=(60, 70))
    data[30:45, 40:55] = np.nan
    return data


@pytest.fixture
def table():
    """Masked, off-image, duplicate and NaN rows; ids beyond 2**53."""
    big = 1237648720693755918
    x = MaskedColumn([20.0, 30.2, 0, 500, 47, 20, 65], mask=[0, 0, 1, 0, 0, 0, 0])
    result = Table(
        {
            "objid": np.array([big, big + 1, big + 2, big + 3, big + 4, big, big + 5]),
            "x": x,
            "y": [20.0, 25.5, 10, 10, 37, 20, 55],
        }
    )
    result["x"].unit = "pix"
    result.meta["comments"] = ["a catalogue"]
    return result


@pytest.fixture
def stack(image, table):
    """Cutouts of every row."""
    return make_cutouts(image, table, 11, id_column="objid")
