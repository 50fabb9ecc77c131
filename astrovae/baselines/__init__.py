# Licensed under a 3-clause BSD style license - see LICENSE
"""Reference models of galaxies, which a latent-variable model has to beat."""

from astrovae.baselines.eigengalaxies import EigenGalaxies
from astrovae.baselines.gaussian_fit import GaussianFit
from astrovae.baselines.metrics import compare, win_rates
from astrovae.baselines.sersic_fit import SersicFit

__all__ = ["EigenGalaxies", "GaussianFit", "SersicFit", "compare", "win_rates"]
