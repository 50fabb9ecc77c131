# Licensed under a 3-clause BSD style license - see LICENSE
"""
Probabilistic principal components of rows with missing values.

The model of a row is ``x = mean + loadings @ z + noise`` with ``z`` standard
normal and noise of one variance (Tipping & Bishop 1999). Rows come in chunks
``(data, valid, weight)``: float64 values with zeros where they are missing,
what is there, and how much each row counts. What is held besides a chunk
does not grow with the number of rows.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

__all__ = [
    "PPCA",
    "closed_form",
    "expectation_maximization",
    "posterior",
    "predictive_variance",
    "survey",
]

# Noise variance is at least this share of the mean variance of a column: data
# that the components describe exactly would have an infinite likelihood.
_LEAST_NOISE = 1e-12
# The start is sought in so many dimensions more than are wanted, by so many
# passes over the data (Halko, Martinsson & Tropp 2011).
_OVERSAMPLING, _POWER_PASSES = 10, 4
# Columns whose equations are solved together.
_BLOCK = 4096


class PPCA(NamedTuple):
    """
    Parameters of the model.

    Parameters
    ----------
    mean : `~numpy.ndarray`, shape (n_features,)
        Mean of the rows.
    loadings : `~numpy.ndarray`, shape (n_features, n_components)
        Orthogonal, the longest first.
    noise : float
        Variance of the noise.
    """

    mean: np.ndarray
    loadings: np.ndarray
    noise: float


class Survey(NamedTuple):
    """Weighted sums over all rows: what is known before anything is fitted."""

    n_rows: int
    complete: bool
    sum_weights: float
    sum_squared_weights: float
    column_weights: np.ndarray
    mean: np.ndarray

    @property
    def correction(self):
        """Unbiased over maximum-likelihood variance; n / (n - 1) without weights."""
        return 1 / (1 - self.sum_squared_weights / self.sum_weights**2)


def survey(chunks, n_features):
    """Count the rows that have weight, and average each column."""
    n_rows, complete, weights, squares = 0, True, 0.0, 0.0
    column_weights, sums = np.zeros((2, n_features))
    for data, valid, weight in chunks():
        rows = weight > 0
        n_rows += int(rows.sum())
        complete &= bool(valid[rows].all())
        weights += weight.sum()
        squares += np.square(weight).sum()
        column_weights += weight @ valid
        sums += weight @ data
    mean = sums / np.where(column_weights > 0, column_weights, 1.0)
    return Survey(n_rows, complete, weights, squares, column_weights, mean)


def closed_form(chunks, found, n_components):
    """Maximise the likelihood of complete rows: eigenvectors of the covariance."""
    n_features = len(found.mean)
    covariance = np.zeros((n_features, n_features))
    for data, _, weight in chunks():
        scaled = (data - found.mean) * np.sqrt(weight)[:, np.newaxis]
        covariance += scaled.T @ scaled
    covariance /= found.sum_weights
    total = np.trace(covariance)
    first = n_features - n_components
    values, vectors = eigh(
        covariance,
        subset_by_index=[first, n_features - 1],
        overwrite_a=True,
        check_finite=False,
    )
    return _from_eigen(found.mean, values[::-1], vectors[:, ::-1], total)


def _from_eigen(mean, values, vectors, total):
    """Tipping & Bishop 1999, eqs. 7 and 8."""
    n_features, n_components = vectors.shape
    noise = (total - values.sum()) / (n_features - n_components)
    noise = max(noise, _LEAST_NOISE * total / n_features, np.finfo(float).tiny)
    lengths = np.sqrt(np.maximum(values - noise, 0.0))
    return PPCA(mean, vectors * lengths, noise)


def _start(chunks, found, n_components, rng):
    """Principal components of the rows with missing values at the mean."""
    n_features = len(found.mean)
    width = min(n_components + _OVERSAMPLING, n_features)
    basis = np.linalg.qr(rng.standard_normal((n_features, width)))[0]
    for _ in range(_POWER_PASSES):
        product, total = np.zeros((n_features, width)), 0.0
        for data, valid, weight in chunks():
            centred = np.where(valid, data - found.mean, 0.0)
            squares = np.square(centred).sum(axis=1)
            total += weight @ squares
            product += centred.T @ ((centred @ basis) * weight[:, np.newaxis])
        product /= found.sum_weights
        values, turn = np.linalg.eigh(basis.T @ product)
        vectors = basis @ turn[:, ::-1][:, :n_components]
        basis = np.linalg.qr(product)[0]
    total /= found.sum_weights
    return _from_eigen(found.mean, values[::-1][:n_components], vectors, total)


def posterior(model, data, valid, *, patterns=None, index=None):
    """
    What the valid values of some rows say about their latents.

    Parameters
    ----------
    model : PPCA
        The model.
    data, valid : `~numpy.ndarray`, shape (n, n_features)
        The rows.
    patterns, index : `~numpy.ndarray`, optional
        The different rows of ``valid``, and which one each row has.

    Returns
    -------
    result : dict
        ``mean`` (n, n_components) and ``covariance`` (n_patterns,
        n_components, n_components) of the latents; ``log_like`` (n,), the
        logarithm of the density of the valid values, ``distance`` (n,), their
        squared Mahalanobis distance, and their number ``n_valid`` (n,).
    """
    if patterns is None:
        patterns, index = valid, np.arange(len(valid))
    n_components = model.loadings.shape[1]
    triangles = patterns.astype(float) @ _products(model.loadings)
    precision = _symmetric(triangles, n_components)
    precision += model.noise * np.eye(n_components)
    inverse = np.linalg.inv(precision)
    log_det = np.linalg.slogdet(precision)[1][index]
    centred = np.where(valid, data - model.mean, 0.0)
    projected = centred @ model.loadings
    mean = np.einsum("nij,nj->ni", inverse[index], projected)
    n_valid = valid.sum(axis=1)
    distance = np.square(centred).sum(axis=1) - (projected * mean).sum(axis=1)
    distance /= model.noise
    log_like = n_valid * np.log(2 * np.pi) + distance + log_det
    log_like += (n_valid - n_components) * np.log(model.noise)
    return {
        "mean": mean,
        "covariance": model.noise * inverse,
        "log_like": -0.5 * log_like,
        "distance": distance,
        "n_valid": n_valid,
    }


def predictive_variance(model, covariance):
    """Variance of each value (n, n_features), given the covariances of latents."""
    upper = np.triu_indices(covariance.shape[-1])
    triangles = covariance[:, *upper] * np.where(upper[0] == upper[1], 1.0, 2.0)
    return triangles @ _products(model.loadings).T + model.noise


def _products(loadings):
    """Products of all pairs of columns: the upper triangles of outer products."""
    upper = np.triu_indices(loadings.shape[1])
    return loadings[:, upper[0]] * loadings[:, upper[1]]


def _symmetric(triangles, size):
    """Symmetric matrices from their upper triangles, the last axis."""
    upper = np.triu_indices(size)
    matrices = np.empty((*triangles.shape[:-1], size, size))
    matrices[..., upper[0], upper[1]] = triangles
    matrices[..., upper[1], upper[0]] = triangles
    return matrices


def expectation_maximization(
    chunks, found, n_components, *, rng, tol, max_iter, advance
):
    """
    Maximise the likelihood of the valid values.

    Each step also fits the mean and covariance of the latents and then takes
    them into mean and loadings (parameter expansion, Liu, Rubin & Wu 1998),
    which saves most steps where much is missing.

    Parameters
    ----------
    chunks : callable
        Gives an iterator over the chunks.
    found : Survey
        What `survey` found.
    n_components : int
        Number of latents.
    rng : `~numpy.random.Generator`
        For the start.
    tol : float
        Stop when a step raises the mean log-likelihood of a value by less.
    max_iter : int
        Stop after so many steps.
    advance : callable
        Called after each step.

    Returns
    -------
    model : PPCA
        The model.
    n_iter : int
        Number of steps.
    converged : bool
        Whether ``tol`` was reached.
    """
    model = _start(chunks, found, n_components, rng)
    last = -np.inf
    for n_iter in range(1, max_iter + 1):
        new, log_like = _step(model, chunks, found)
        advance()
        if log_like - last < tol:
            return _canonical(model), n_iter, True
        model, last = new, log_like
    return _canonical(model), max_iter, False


def _step(model, chunks, found):
    """Return the improved model, and the mean log-likelihood of the present one."""
    n_features, n_components = model.loadings.shape
    size = n_components + 1
    upper = np.triu_indices(size)
    # regression of every column on the latents and a constant
    sides = np.zeros((n_features, size))
    matrices = np.zeros((n_features, len(upper[0])))
    moments = np.zeros((size, size))
    log_like = squares = count = 0.0
    for data, valid, weight in chunks():
        patterns, index = np.unique(
            np.packbits(valid, axis=1), axis=0, return_inverse=True
        )
        patterns = np.unpackbits(patterns, axis=1, count=n_features)
        index = index.ravel()
        state = posterior(model, data, valid, patterns=patterns, index=index)
        log_like += weight @ state["log_like"]
        count += weight @ state["n_valid"]
        z = np.concatenate([state["mean"], np.ones((len(data), 1))], axis=1)
        weighted = z * weight[:, np.newaxis]
        centred = np.where(valid, data - model.mean, 0.0)
        squares += weight @ np.square(centred).sum(axis=1)
        sides += centred.T @ weighted
        second = (weighted[:, :, np.newaxis] * z[:, np.newaxis])[:, *upper]
        totals = np.zeros((len(patterns), len(upper[0])))
        np.add.at(totals, index, second)
        share = np.bincount(index, weight, len(patterns))
        covariance = np.zeros((len(patterns), size, size))
        covariance[:, :-1, :-1] = state["covariance"] * share[:, None, None]
        totals += covariance[:, *upper]
        matrices += patterns.T.astype(float) @ totals
        moments += _symmetric(totals.sum(axis=0), size)
    seen = found.column_weights > 0
    solution = np.zeros((n_features, size))
    for start in range(0, n_features, _BLOCK):
        part = slice(start, start + _BLOCK)
        some = np.flatnonzero(seen[part]) + start
        system = _symmetric(matrices[some], size)
        solution[some] = np.linalg.solve(system, sides[some, :, np.newaxis])[..., 0]
    noise = (squares - (solution * sides).sum()) / count
    least = _LEAST_NOISE * squares / count
    moments /= found.sum_weights
    centre = moments[:-1, -1]
    spread = moments[:-1, :-1] - np.outer(centre, centre)
    loadings = solution[:, :-1]
    mean = model.mean + solution[:, -1] + loadings @ centre
    loadings = loadings @ np.linalg.cholesky(spread)
    noise = max(noise, least, np.finfo(float).tiny)
    return PPCA(mean, loadings, noise), log_like / count


def _canonical(model):
    """Turn the latents so that the loadings are orthogonal, the longest first."""
    left, lengths, _ = np.linalg.svd(model.loadings, full_matrices=False)
    return PPCA(model.mean, left * lengths, model.noise)
