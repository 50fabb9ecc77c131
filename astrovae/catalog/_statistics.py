# Licensed under a 3-clause BSD style license - see LICENSE
"""
The statistics of latents beside properties, for arrays without missing values.

Weights are those of a sample (inverse probabilities of being in it): errors follow
from the scatter of the galaxies, whatever the weights sum to.
"""

import numpy as np
from scipy import linalg, spatial, special, stats

__all__ = [
    "Ranks",
    "bootstrap_sums",
    "canonical_correlations",
    "correlation",
    "correlation_interval",
    "distance_correlation",
    "effective_size",
    "fold_numbers",
    "independent_columns",
    "interval",
    "joint_covariances",
    "joint_products",
    "linear_fit",
    "linear_predictions",
    "neighbor_mean",
    "neighbor_predictions",
    "r2_interval",
    "r2_of_sums",
    "rank_correlation",
    "slopes",
]

# of the interval that each estimate comes with
CONFIDENCE = 0.95
# rows beyond are summed into so many random groups before they are drawn again
MAX_GROUPS = 5_000
# elements of a block of distances
BLOCK = 4_000_000
# of the spread of a variable: what is left of one that others give
TOLERANCE = 1e-10
# of the spread of the latents, in any direction, that must not be error
MIN_RELIABILITY = 0.1


def effective_size(weights):
    """How many rows of equal weight tell as much (Kish 1965)."""
    return weights.sum() ** 2 / np.square(weights).sum()


# ---------------------------------------------------------------------------
# Correlations
# ---------------------------------------------------------------------------


class Ranks:
    """The order of one variable, ties sharing their place."""

    def __init__(self, values):
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.first = np.searchsorted(ordered, ordered, side="left")
        self.last = np.searchsorted(ordered, ordered, side="right")

    def below(self, mass):
        """Sum the mass of all that is below each element, half of what is equal."""
        total = np.concatenate([[0.0], np.cumsum(mass[self.order])])
        result = np.empty(len(mass))
        result[self.order] = 0.5 * (total[self.first] + total[self.last])
        return result


def correlation(columns, weights, ranks=None):
    """
    Correlate two variables, given others, and say how sure that is.

    The error follows from the influence of each galaxy on the estimate (the
    infinitesimal jackknife): it needs no normal distribution, nor equal errors.

    Parameters
    ----------
    columns : `~numpy.ndarray`, shape (n, 2 + n_controls)
        The two, and what to hold fixed.
    weights : `~numpy.ndarray`, shape (n,)
        Weights of the rows.
    ranks : list of `Ranks`, optional
        If the columns are ranks, what they are the ranks of.

    Returns
    -------
    estimate : float
        The (partial) correlation; NaN if it has no meaning.
    error : float
        Standard error of ``arctanh(estimate)``.
    """
    weights = weights / weights.sum()
    centered = columns - weights @ columns
    spread = np.sqrt(weights @ np.square(centered))
    if not (spread > TOLERANCE * (np.abs(columns).max(axis=0) + 1e-300)).all():
        return np.nan, np.nan
    if ranks is None:
        centered = centered / spread
    covariance = (centered * weights[:, None]).T @ centered
    if np.linalg.eigvalsh(covariance[2:, 2:]).min(initial=1.0) < TOLERANCE:
        return np.nan, np.nan
    # what is left of both when the others are held fixed
    left = covariance[:2, :2] - covariance[:2, 2:] @ np.linalg.solve(
        covariance[2:, 2:], covariance[2:, :2]
    )
    if left.diagonal().min() < TOLERANCE:
        return np.nan, np.nan
    estimate = left[0, 1] / np.sqrt(left[0, 0] * left[1, 1])
    estimate = float(np.clip(estimate, -1, 1))
    if 1 - abs(estimate) < TOLERANCE:
        return float(np.sign(estimate)), 0.0
    inverse = np.linalg.inv(covariance)
    influence = _influence(centered, inverse, weights, ranks)
    factor = effective_size(weights)
    factor = factor / max(factor - columns.shape[1] - 1, 1)
    variance = factor * np.square(weights * influence).sum()
    return estimate, float(np.sqrt(variance) / (1 - estimate**2))


def rank_correlation(ranks, weights):
    """
    As `correlation`, of the ranks of variables: Spearman's.

    Parameters
    ----------
    ranks : list of `Ranks`
        Those of the two variables, and of what to hold fixed.
    weights : `~numpy.ndarray`, shape (n,)
        Weights of the rows.

    Returns
    -------
    estimate, error : float
        As given by `correlation`.
    """
    share = weights / weights.sum()
    columns = np.stack([rank.below(share) for rank in ranks], axis=1)
    return correlation(columns, weights, ranks)


def _influence(centered, inverse, weights, ranks):
    """Change of a partial correlation with the weight of each row."""
    both = centered @ inverse[:, :2]

    def change(i, j):
        """Of element (i, j) of the inverse of the covariance."""
        products = both[:, i] * both[:, j]
        if ranks is None:
            return inverse[i, j] - products
        # a row shifts the ranks of all that are above it
        shift = sum(
            rank.below(weights * (row[i] * both[:, j] + row[j] * both[:, i]))
            for rank, row in zip(ranks, inverse, strict=True)
        )
        return 3 * inverse[i, j] - products + shift

    scale = 1 / np.sqrt(inverse[0, 0] * inverse[1, 1])
    estimate = -inverse[0, 1] * scale
    return -change(0, 1) * scale - 0.5 * estimate * (
        change(0, 0) / inverse[0, 0] + change(1, 1) / inverse[1, 1]
    )


def correlation_interval(estimate, error, size):
    """
    Interval and p-value of a correlation, by Student's t on Fisher's z.

    Parameters
    ----------
    estimate, error : float
        As given by `correlation`.
    size : float
        Effective number of rows, less that of the variables.

    Returns
    -------
    low, high, p : float
        The 95 % interval, and the two-sided p-value of no correlation.
    """
    if not np.isfinite(estimate):
        return np.nan, np.nan, np.nan
    if abs(estimate) == 1:
        return estimate, estimate, 0.0
    size = max(size, 1)
    z = np.arctanh(estimate)
    half = special.stdtrit(size, 0.5 + CONFIDENCE / 2) * error
    p = 2 * special.stdtr(size, -abs(z) / error) if error > 0 else 0.0
    return float(np.tanh(z - half)), float(np.tanh(z + half)), float(p)


def independent_columns(columns, weights):
    """Choose columns of which none is constant or given by the others."""
    n_columns = columns.shape[1]
    if n_columns == 0:
        return np.zeros(0, dtype=int)
    weights = weights / weights.sum()
    centered = columns - weights @ columns
    spread = np.sqrt(weights @ np.square(centered))
    varies = spread > TOLERANCE * (np.abs(columns).max(axis=0) + 1e-300)
    scaled = centered * np.sqrt(weights)[:, None] / np.where(varies, spread, np.inf)
    _, triangle, pivots = linalg.qr(scaled, mode="economic", pivoting=True)
    left = np.abs(triangle.diagonal()) > np.sqrt(TOLERANCE)
    return np.sort(pivots[: len(left)][left])


def distance_correlation(x, y, weights, rng, max_rows):
    """
    Bias-corrected distance correlation, and the p-value of independence.

    No more than ``max_rows`` rows are used, drawn at random; with weights, a row
    is kept with a probability that is proportional to its weight.

    Parameters
    ----------
    x : `~numpy.ndarray`, shape (n, dim)
        Vectors.
    y : `~numpy.ndarray`, shape (n,)
        Numbers.
    weights : `~numpy.ndarray`, shape (n,)
        Weights of the rows.
    rng : `~numpy.random.Generator`
        Draws the rows.
    max_rows : int
        The most rows that are used.

    Returns
    -------
    estimate : float
        Square root of the bias-corrected squared distance correlation
        (Szekely & Rizzo 2014), 0 where that is negative.
    p : float
        By the chi-square test of Shen, Panda & Vogelstein (2022), which is
        conservative.
    """
    keep = np.arange(len(y))
    if np.ptp(weights):
        keep = keep[rng.random(len(y)) < weights / weights.max()]
    if len(keep) > max_rows:
        keep = np.sort(rng.choice(keep, max_rows, replace=False))
    n = len(keep)
    if n < 4:
        return np.nan, np.nan
    x = x[keep] - x[keep].mean(axis=0)
    y = y[keep, None]
    sums = np.zeros((n, 2))
    products = np.zeros((2, 2))
    squares = np.square(x).sum(axis=1)
    step = max(BLOCK // n, 1)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        far = squares[rows, None] + squares - 2 * x[rows] @ x.T
        # the distance of a row from itself is rounded to more than 0
        far[np.arange(len(far)), np.arange(start, start + len(far))] = 0
        pair = np.sqrt(np.maximum(far, 0)), np.abs(y[rows] - y.T)
        for i in range(2):
            sums[rows, i] = pair[i].sum(axis=1)
            for j in range(2):
                products[i, j] += np.vdot(pair[i], pair[j])
    total = sums.sum(axis=0)
    products += np.outer(total, total) / ((n - 1) * (n - 2))
    products -= 2 / (n - 2) * sums.T @ sums
    if min(products[0, 0], products[1, 1]) <= 0:
        return np.nan, np.nan
    squared = products[0, 1] / np.sqrt(products[0, 0] * products[1, 1])
    return float(np.sqrt(max(squared, 0))), float(stats.chi2.sf(n * squared + 1, 1))


# ---------------------------------------------------------------------------
# Predictions out of fold
# ---------------------------------------------------------------------------


def fold_numbers(n, folds, rng):
    """Number the folds at random, each as large as the others."""
    return rng.permutation(np.arange(n) % folds)


def linear_fit(x, y, weights):
    """Weighted least squares with a constant: ``(center, mean, slopes)``."""
    weights = weights / weights.sum()
    center, mean = weights @ x, weights @ y
    left = x - center
    # whatever their units, all of them count
    spread = np.sqrt(weights @ np.square(left))
    scale = np.where(spread > TOLERANCE * np.abs(x).max(axis=0), spread, np.inf)
    root = np.sqrt(weights)[:, None]
    found = np.linalg.lstsq(
        root * (left / scale), root * (y - mean).reshape(len(x), -1), rcond=None
    )[0]
    found = found / scale[:, None]
    return center, mean, found.reshape(x.shape[1], *y.shape[1:])


def linear_predictions(x, y, weights, fold):
    """Predict each fold by least squares on the others."""
    predicted = np.empty_like(y)
    for number in np.unique(fold):
        test = fold == number
        center, mean, found = linear_fit(x[~test], y[~test], weights[~test])
        predicted[test] = mean + (x[test] - center) @ found
    return predicted


def neighbor_predictions(x, y, weights, fold, n_neighbors):
    """Predict each fold by the mean of the nearest neighbours in the others."""
    predicted = np.empty_like(y)
    for number in np.unique(fold):
        test = fold == number
        predicted[test] = neighbor_mean(
            x[~test], y[~test], weights[~test], x[test], n_neighbors
        )
    return predicted


def neighbor_mean(x, y, weights, where, n_neighbors):
    """Weighted mean of ``y`` of the nearest neighbours in ``x`` of other points."""
    used = weights > 0
    x, y, weights = x[used], y[used], weights[used]
    n_neighbors = min(n_neighbors, len(x))
    _, index = spatial.KDTree(x).query(where, k=np.arange(1, n_neighbors + 1))
    share = weights[index] / weights[index].sum(axis=1, keepdims=True)
    return np.einsum("nk,nk...->n...", share, y[index])


# ---------------------------------------------------------------------------
# The bootstrap
# ---------------------------------------------------------------------------


def bootstrap_sums(values, n_bootstrap, rng):
    """
    Sum values over galaxies that are drawn again, with replacement.

    Of more than 5,000 rows, the sums of as many random groups are drawn instead:
    what follows from sums has the same variance, in bounded memory.

    Parameters
    ----------
    values : `~numpy.ndarray`, shape (n, m)
        What to sum.
    n_bootstrap : int
        How many times.
    rng : `~numpy.random.Generator`
        Draws the galaxies.

    Returns
    -------
    sums : `~numpy.ndarray`, shape (1 + n_bootstrap, m)
        Those of the galaxies themselves come first.
    """
    n = len(values)
    if n > MAX_GROUPS:
        order = rng.permutation(n)
        starts = np.linspace(0, n, MAX_GROUPS, endpoint=False).astype(int)
        values = np.add.reduceat(values[order], starts, axis=0)
        n = MAX_GROUPS
    sums = np.empty((1 + n_bootstrap, values.shape[1]))
    sums[0] = values.sum(axis=0)
    for row in sums[1:]:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n) @ values
    return sums


def r2_of_sums(residual, weight, first, second):
    """R2 from sums of weighted squared residuals, weights, values and squares."""
    spread = second - np.square(first) / weight
    return 1 - residual / np.where(spread > 0, spread, np.nan)


def interval(draws, axis=0):
    """The 95 % interval of what was drawn again."""
    tail = 50 * (1 - CONFIDENCE)
    return np.percentile(draws, [tail, 100 - tail], axis=axis)


def r2_interval(draws):
    """
    The 95 % interval of R2, symmetric in the logarithm of what is not explained.

    Percentiles would be too narrow: R2 is drawn again about what chance made of it.
    """
    rest = np.log(np.maximum(1 - draws, TOLERANCE))
    half = special.ndtri(0.5 + CONFIDENCE / 2) * rest[1:].std(axis=0)
    return 1 - np.exp(rest[0] + half), 1 - np.exp(rest[0] - half)


def joint_products(x, y, weights):
    """What covariances of vectors are made of, to be summed over galaxies."""
    both = np.concatenate([np.ones((len(x), 1)), x, y], axis=1)
    upper = np.triu_indices(both.shape[1])
    return weights[:, None] * both[:, upper[0]] * both[:, upper[1]]


def joint_covariances(sums, n_columns):
    """Covariance matrices, (..., n_columns, n_columns), from sums of products."""
    upper = np.triu_indices(1 + n_columns)
    full = np.empty((*sums.shape[:-1], 1 + n_columns, 1 + n_columns))
    full[..., upper[0], upper[1]] = sums
    full[..., upper[1], upper[0]] = sums
    full = full / full[..., :1, :1]
    mean = full[..., 0, 1:]
    return full[..., 1:, 1:] - mean[..., :, None] * mean[..., None, :]


def canonical_correlations(covariance, dim):
    """
    Canonical correlations of the first ``dim`` variables with the others.

    Parameters
    ----------
    covariance : `~numpy.ndarray`, shape (..., dim + other, dim + other)
        Covariance matrices.
    dim : int
        How many variables there are on one side.

    Returns
    -------
    correlations : `~numpy.ndarray`, shape (..., min(dim, other))
        In decreasing order.
    """

    def whitening(matrix):
        scale = np.sqrt(np.einsum("...ii->...i", matrix))
        scale = np.where(scale > 0, scale, 1)
        value, vector = np.linalg.eigh(matrix / scale[..., None] / scale[..., None, :])
        used = value > TOLERANCE
        root = np.where(used, 1 / np.sqrt(np.where(used, value, 1)), 0)
        return vector * root[..., None, :] / scale[..., None]

    ours = whitening(covariance[..., :dim, :dim])
    theirs = whitening(covariance[..., dim:, dim:])
    cross = np.swapaxes(ours, -1, -2) @ covariance[..., :dim, dim:] @ theirs
    return np.clip(np.linalg.svd(cross, compute_uv=False), 0, 1)


# ---------------------------------------------------------------------------
# Slopes
# ---------------------------------------------------------------------------


def slopes(x, y, weights, error_variance=None):
    """
    Fit a plane, whatever is known of the errors of its variables.

    The mean covariance of their errors is taken off that of the variables (Fuller
    1987, section 2.2). The standard errors are those of the sandwich.

    Parameters
    ----------
    x : `~numpy.ndarray`, shape (n, dim)
        Variables.
    y : `~numpy.ndarray`, shape (n,)
        What depends on them.
    weights : `~numpy.ndarray`, shape (n,)
        Weights of the rows.
    error_variance : `~numpy.ndarray`, shape (n, dim), optional
        Variances of the independent errors of the variables.

    Returns
    -------
    slopes, errors : `~numpy.ndarray`, shape (dim,)
        NaN for variables that are nearly all error, and for all of them if some
        direction is, or if they are not independent.
    scatter : float
        Variance of ``y`` about the plane.
    """
    weights = weights / weights.sum()
    centered, left = x - weights @ x, y - weights @ y
    variance = weights @ np.square(centered)
    noise = np.zeros_like(x) if error_variance is None else error_variance
    found, errors = np.full((2, x.shape[1]), np.nan)
    # a variable that is nearly all error says nothing of the others
    used = weights @ noise < (1 - MIN_RELIABILITY) * variance
    dim = used.sum()
    if dim == 0:
        return found, errors, np.nan
    spread = np.sqrt(variance[used])
    centered, noise = centered[:, used] / spread, noise[:, used] / spread**2
    covariance = (centered * weights[:, None]).T @ centered
    true = covariance - np.diag(weights @ noise)
    # how much of the spread is not error, in the worst direction
    worst = linalg.eigvalsh(true, covariance + TOLERANCE * np.eye(dim)).min()
    if worst < MIN_RELIABILITY:
        return found, errors, np.nan
    fitted = np.linalg.solve(true, (centered * weights[:, None]).T @ left)
    residual = left - centered @ fitted
    score = weights[:, None] * (centered * residual[:, None] + noise * fitted)
    bread = np.linalg.inv(true)
    size = effective_size(weights)
    sandwich = bread @ (score.T @ score) @ bread * size / max(size - dim - 1, 1)
    found[used] = fitted / spread
    errors[used] = np.sqrt(sandwich.diagonal()) / spread
    scatter = weights @ np.square(residual) - fitted @ (weights @ noise * fitted)
    return found, errors, float(scatter)
