# Licensed under a 3-clause BSD style license - see LICENSE
"""Reference models of galaxies, which a latent-variable model has to beat."""

from astrovae.baselines.gaussian_fit import GaussianFit
from astrovae.baselines.metrics import win_rates

__all__ = ["GaussianFit", "win_rates"]
