# Licensed under a 3-clause BSD style license - see LICENSE
"""Random numbers that fill space evenly."""

import numpy as np
from scipy.stats import qmc

__all__ = ["normal_draws"]


def normal_draws(num_samples, dim, *, antithetic=False, seed=0):
    """
    Standard normal deviates that fill space evenly.

    Parameters
    ----------
    num_samples, dim : int
        Shape of the result.
    antithetic : bool, optional
        Whether each comes with its opposite, so that means are exact.
    seed : int, optional
        Seed of the scrambling.

    Returns
    -------
    `~numpy.ndarray`, shape (num_samples, dim), float32
        Scrambled Sobol points, transformed.
    """
    number = -(-num_samples // 2) if antithetic else num_samples
    # such points are balanced in powers of two only
    engine = qmc.MultivariateNormalQMC(np.zeros(dim), rng=seed)
    draws = engine.random(1 << (number - 1).bit_length())[:number]
    if antithetic:
        draws = np.concatenate([draws, -draws])[:num_samples]
    return draws.astype(np.float32)
