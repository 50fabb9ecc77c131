# Licensed under a 3-clause BSD style license - see LICENSE
"""Whether what models say of galaxies is true."""

from astrovae.diagnostics.posteriors import calibration, uniformity_test

__all__ = ["calibration", "uniformity_test"]
