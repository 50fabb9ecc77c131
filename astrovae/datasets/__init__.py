# Licensed under a 3-clause BSD style license - see LICENSE
"""Real and simulated data to try things on, without a download."""

from astrovae.datasets.hubble import hubble_deep_field
from astrovae.datasets.simulated import draw_sources, make_galaxies, make_survey

__all__ = ["draw_sources", "hubble_deep_field", "make_galaxies", "make_survey"]
