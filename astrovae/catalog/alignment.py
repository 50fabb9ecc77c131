# Licensed under a 3-clause BSD style license - see LICENSE
"""Whether two runs found the same latents, up to a rotation."""

from dataclasses import dataclass

import numpy as np
from astropy.table import Column, Table
from scipy.optimize import linear_sum_assignment

from astrovae._validation import check_positive_int
from astrovae.catalog import _statistics as st
from astrovae.catalog._numbers import read_latents

__all__ = ["Alignment", "align"]


@dataclass(frozen=True)
class Alignment:
    """
    How the latents of two runs correspond, as given by `align`.

    Parameters
    ----------
    n : int
        Galaxies with latents in both runs.
    canonical_correlations : `~numpy.ndarray`, shape (min(dim_a, dim_b),)
        Canonical correlations, in decreasing order: 1 where both runs know the same,
        up to any linear map.
    canonical_low, canonical_high : `~numpy.ndarray`
        Their 95 % intervals.
    cka, cka_low, cka_high : float
        Linear centred kernel alignment and its 95 % interval: 1 if the latents
        differ by a rotation and a scale.
    rotation : `~numpy.ndarray`, shape (dim_a, dim_b)
        What carries the centred latents of the first run to those of the second,
        lengths unchanged (orthogonal Procrustes).
    rotation_r2, rotation_r2_low, rotation_r2_high : float
        Share of the variance of the second run that the rotated first one explains.
    matches : `~astropy.table.Table`
        For each latent of the first run (``latent_a``) the one of the second
        (``latent_b``) that it goes with best, one to one, with their correlation
        (``pearson``) and its 95 % interval.
    """

    n: int
    canonical_correlations: np.ndarray
    canonical_low: np.ndarray
    canonical_high: np.ndarray
    cka: float
    cka_low: float
    cka_high: float
    rotation: np.ndarray
    rotation_r2: float
    rotation_r2_low: float
    rotation_r2_high: float
    matches: Table


def align(a, b, stack=None, *, latents="latent_mean", n_bootstrap=1000, seed=0):
    """
    Compare the latents of two runs, whose signs and directions are arbitrary.

    Parameters
    ----------
    a, b : `~astropy.table.Table`, array_like of shape (n, dim), or object
        Catalogues with latents or the latents themselves, of the same galaxies in
        the same order; or models with ``encode(stack) -> (mean, log_var)``.
    stack : `~astrovae.images.CutoutStack`, optional
        The galaxies, for models. Those with too few valid pixels are left out, and
        those without a finite latent.
    latents : str or (str, str), optional
        The columns of the latents, if they have different names in ``a`` and ``b``.
    n_bootstrap : int, optional
        How often galaxies are drawn again for intervals.
    seed : int, optional
        Of the bootstrap.

    Returns
    -------
    alignment : `Alignment`
        Canonical correlations, kernel alignment, the best rotation, and which
        latent goes with which.

    Raises
    ------
    ValueError
        If the runs are not of the same galaxies, or a model comes without a stack,
        or latents do not vary.

    Notes
    -----
    Chance alone gives canonical correlations of about
    ``sqrt((dim_a + dim_b) / n)``.

    References
    ----------
    .. [1] Kornblith, S., et al. 2019, Proc. ICML, 97, 3519, arXiv:1905.00414
    .. [2] Schonemann, P. H. 1966, Psychometrika, 31, 1

    Examples
    --------
    A rotation is found:

    >>> import numpy as np
    >>> from astrovae.catalog import align
    >>> z = np.random.default_rng(0).normal(size=(200, 2))
    >>> rotation = np.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> found = align(z, z @ rotation)
    >>> bool(np.allclose(found.rotation, rotation))
    True
    >>> round(found.cka, 6)
    1.0
    """
    check_positive_int("n_bootstrap", n_bootstrap, minimum=40)
    names = (latents, latents) if isinstance(latents, str) else tuple(latents)
    if len(names) != 2:
        msg = f"latents must be a name, or one for a and one for b, got {latents!r}."
        raise ValueError(msg)
    x, y = (
        _latents_of(run, stack, name) for run, name in zip((a, b), names, strict=True)
    )
    if len(x) != len(y):
        msg = (
            f"a has {len(x)} galaxies and b {len(y)}; they must be the same, in the "
            "same order."
        )
        raise ValueError(msg)
    used = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    x, y = x[used], y[used]
    n, dim = len(x), x.shape[1]
    if n < dim + y.shape[1] + 2:
        msg = (
            f"{n} galaxies have latents in both runs; more than "
            f"{dim + y.shape[1] + 1} are needed."
        )
        raise ValueError(msg)
    for name, values in (("a", x), ("b", y)):
        if not np.ptp(values, axis=0).any():
            msg = f"the latents of {name} are the same for all galaxies."
            raise ValueError(msg)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    rng = np.random.default_rng(seed)
    ones = np.ones(n)
    sums = st.bootstrap_sums(st.joint_products(x, y, ones), n_bootstrap, rng)
    covariance = st.joint_covariances(sums, dim + y.shape[1])
    canonical = st.canonical_correlations(covariance, dim)
    cross = covariance[:, :dim, dim:]
    ours, theirs = covariance[:, :dim, :dim], covariance[:, dim:, dim:]
    cka = _square(cross) / np.sqrt(_square(ours) * _square(theirs))
    left, values, right = np.linalg.svd(cross, full_matrices=False)
    rotation = left @ right
    # |y - x R|^2 of the best rotation R, over |y|^2
    rotated = np.einsum("kij,kil,kjl->k", ours, rotation, rotation)
    total = np.trace(theirs, axis1=1, axis2=2)
    rotation_r2 = 1 - (total + rotated - 2 * values.sum(axis=1)) / total
    low, high = st.interval(canonical[1:])
    return Alignment(
        n=n,
        canonical_correlations=canonical[0],
        canonical_low=low,
        canonical_high=high,
        **_with_ends("cka", cka),
        rotation=rotation[0],
        **_with_ends("rotation_r2", rotation_r2),
        matches=_matches(x, y, covariance[0], dim),
    )


def _latents_of(run, stack, name):
    """Latents of a catalogue, a model or an array."""
    if isinstance(run, Table):
        return read_latents(run, name)
    if hasattr(run, "encode"):
        if stack is None:
            msg = "models need a stack of galaxies to encode: align(a, b, stack)."
            raise ValueError(msg)
        mean = np.array(run.encode(stack)[0], dtype=np.float64)
        # what a model says of a galaxy that it does not see is its prior
        mean[~getattr(stack, "usable", np.ones(len(mean), dtype=bool))] = np.nan
        return mean
    values = np.array(np.ma.filled(np.ma.asarray(run, dtype=float), np.nan))
    if values.ndim != 2:
        msg = f"latents must have the shape (n, dim), got {values.shape}."
        raise ValueError(msg)
    return values


def _square(matrices):
    """Squared Frobenius norms."""
    return np.square(matrices).sum(axis=(1, 2))


def _with_ends(name, draws):
    low, high = st.interval(draws[1:])
    return {
        name: float(draws[0]),
        f"{name}_low": float(low),
        f"{name}_high": float(high),
    }


def _matches(x, y, covariance, dim):
    """Pairs of latents, one to one, whose correlations are largest together."""
    spread = np.sqrt(covariance.diagonal())
    scale = np.where(spread > 0, spread, np.inf)
    pearson = covariance[:dim, dim:] / scale[:dim, None] / scale[dim:]
    ours, theirs = linear_sum_assignment(-np.abs(pearson))
    ones = np.ones(len(x))
    found = []
    for i, j in zip(ours, theirs, strict=True):
        estimate, error = st.correlation(np.stack([x[:, i], y[:, j]], axis=1), ones)
        interval = st.correlation_interval(estimate, error, len(x) - 2)
        found.append((estimate, *interval[:2]))
    table = Table()
    table["latent_a"] = Column(ours, description="Element of the latents of a.")
    table["latent_b"] = Column(theirs, description="Element of the latents of b.")
    for values, name, text in zip(
        np.transpose(found),
        ("pearson", "pearson_low", "pearson_high"),
        ("Correlation of the two.", "Its lower end, 95 %.", "Its upper end, 95 %."),
        strict=True,
    ):
        table[name] = Column(values, description=text)
    return table
