# Licensed under a 3-clause BSD style license - see LICENSE
"""Real and simulated data to try things on, without a download."""

from astrovae.datasets.hubble import hubble_deep_field
from astrovae.datasets.simulated import make_galaxies, make_survey

__all__ = ["hubble_deep_field", "make_galaxies", "make_survey"]
