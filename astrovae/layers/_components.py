# Licensed under a 3-clause BSD style license - see LICENSE
"""
Components of mixtures in NumPy: overlap, merging, limits.

Covariances have the shape (n_components, dim) if they are diagonal, else
(n_components, dim, dim).
"""

import math
import warnings

import numpy as np

__all__ = [
    "EMPTY_LOG_WEIGHT",
    "SCALE_FLOOR",
    "VARIANCE_FLOOR",
    "bhattacharyya",
    "expand_covariances",
    "fit_components",
    "merge_components",
    "raise_covariances",
    "split_components",
    "start_components",
]

# Narrower components would fit single galaxies.
VARIANCE_FLOOR = 1e-4
SCALE_FLOOR = math.sqrt(VARIANCE_FLOOR)

# galaxies far out are seen nearer when a fit starts, in standard deviations
_SOFTENING = 3.0

# The weight of a component that was merged into another: nothing in float32.
EMPTY_LOG_WEIGHT = -60.0


def bhattacharyya(log_weights, means, covariances, i=None):
    """Overlap of component i with all, or of all with all; 0 for empty ones."""
    if i is None:
        rows = [
            bhattacharyya(log_weights, means, covariances, i) for i in range(len(means))
        ]
        return np.stack(rows)
    difference = means - means[i]
    middle = 0.5 * (covariances + covariances[i])
    if covariances.ndim == 2:
        mahalanobis = np.sum(difference**2 / middle, axis=1)
        log_det = np.sum(np.log(middle), axis=1)
        own = np.sum(np.log(covariances), axis=1)
    else:
        solved = np.linalg.solve(middle, difference[:, :, None])[:, :, 0]
        mahalanobis = np.sum(difference * solved, axis=1)
        log_det = np.linalg.slogdet(middle)[1]
        own = np.linalg.slogdet(covariances)[1]
    overlap = np.exp(-mahalanobis / 8 - 0.5 * log_det + 0.25 * (own + own[i]))
    present = log_weights > 0.9 * EMPTY_LOG_WEIGHT
    return np.where(present & present[i], overlap, 0.0)


def merge_components(log_weights, means, covariances, threshold, *, tied):
    """
    Merge the most similar pair into its heavier member, again and again.

    Changes the arrays in place; the lighter member becomes empty. A tied
    covariance stays as it is.

    Returns
    -------
    list of tuple
        Pairs (kept, emptied).
    """
    overlaps = bhattacharyya(log_weights, means, covariances)
    np.fill_diagonal(overlaps, 0.0)
    merged = []
    while overlaps.max() > threshold:
        pair = np.unravel_index(overlaps.argmax(), overlaps.shape)
        keep, drop = both = sorted(map(int, pair), key=lambda i: -log_weights[i])
        total = np.logaddexp(*log_weights[both])
        shares = np.exp(log_weights[both] - total)
        center = shares @ means[both]
        if not tied:
            offsets = means[both] - center
            if covariances.ndim == 2:
                spread = offsets**2
            else:
                spread = offsets[:, :, None] * offsets[:, None, :]
            covariances[keep] = np.tensordot(shares, covariances[both] + spread, 1)
        means[keep] = center
        log_weights[both] = total, EMPTY_LOG_WEIGHT
        for i in both:
            overlaps[i] = bhattacharyya(log_weights, means, covariances, i)
            overlaps[i, i] = 0.0
            overlaps[:, i] = overlaps[i]
        merged.append((keep, drop))
    return merged


def expand_covariances(mixture, covariance):
    """
    Bring the covariances of a scikit-learn mixture to a shape of ours.

    Parameters
    ----------
    mixture : `sklearn.mixture.GaussianMixture`
        A fitted mixture.
    covariance : {"diagonal", "tied", "full"}
        The shape of ours.

    Raises
    ------
    ValueError
        If they do not fit into it.
    """
    allowed = {
        "diagonal": ("spherical", "diag"),
        "tied": ("tied",),
        "full": ("spherical", "diag", "tied", "full"),
    }[covariance]
    kind = mixture.covariance_type
    if kind not in allowed:
        msg = (
            f"covariance={covariance!r} cannot hold a mixture of "
            f"covariance_type={kind!r}; fit one of "
            f"{' or '.join(repr(name) for name in allowed)}."
        )
        raise ValueError(msg)
    num_components, dim = mixture.means_.shape
    covariances = mixture.covariances_
    if kind == "spherical":
        covariances = np.repeat(covariances[:, None], dim, axis=1)
    if covariance != "full":
        return covariances
    if kind in ("spherical", "diag"):
        return covariances[:, :, None] * np.eye(dim)
    return np.broadcast_to(covariances, (num_components, dim, dim))


def raise_covariances(covariances, *, diagonal):
    """Raise variances, or eigenvalues, to the floor; say how many were below."""
    if diagonal:
        low = covariances < VARIANCE_FLOOR
        return np.maximum(covariances, VARIANCE_FLOOR), int(low.sum())
    values, vectors = np.linalg.eigh(covariances)
    low = values < VARIANCE_FLOOR
    if not low.any():
        return covariances, 0
    values = np.maximum(values, VARIANCE_FLOOR)
    raised = (vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return raised, int(low.sum())


def start_components(means, num_components, *, num_restarts, seed):
    """
    Begin a mixture with k-means.

    It finds nearly the same groups from many starts, where fits of mixtures do
    not. A few galaxies far out are seen nearer: else each of them would be a
    group.

    Parameters
    ----------
    means : `~numpy.ndarray`, shape (n, dim)
        Where the galaxies are.
    num_components, num_restarts, seed : int
        Of k-means.

    Yields
    ------
    responsibilities : `~numpy.ndarray`, shape (n, num_components)
        1 for the group of each galaxy: of whitened latents, and of latents of
        unit variance each.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    centered = means - means.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered / len(means))
    white = centered @ (vectors / np.sqrt(np.maximum(values, 1e-10)))
    for latents in (white, centered / np.maximum(centered.std(axis=0), 1e-5)):
        latents = _SOFTENING * np.arcsinh(latents / _SOFTENING)
        with warnings.catch_warnings():
            # fewer distinct galaxies than groups: some components stay empty
            warnings.simplefilter("ignore", ConvergenceWarning)
            groups = KMeans(num_components, n_init=num_restarts, random_state=seed)
            labels = groups.fit_predict(latents)
        yield np.eye(num_components)[labels]


def fit_components(
    means,
    spreads,
    start,
    *,
    kind,
    concentration=1.0,
    shrinkage=0.0,
    max_iter=1000,
    tolerance=1e-6,
):
    """
    Fit a mixture to galaxies whose latents are uncertain.

    Expectation maximisation of the mean over galaxies of
    ``logsumexp(log_weight - cross_entropy)``: of all mixtures, the one found has
    the smallest bound of the KL divergence, hence the largest ELBO.

    Parameters
    ----------
    means : `~numpy.ndarray`, shape (n, dim)
        Means of the posteriors.
    spreads : `~numpy.ndarray`, shape (n, dim) or (n, dim, dim)
        Their variances, or covariances.
    start : `~numpy.ndarray`, shape (n, num_components)
        Responsibilities to begin with.
    kind : {"diagonal", "tied", "full"}
        The shape of the components.
    concentration : float
        Of the Dirichlet prior on the weights.
    shrinkage : float
        So many galaxies, scattered as those of all components do about their
        centres, are added to each component's own.
    max_iter : int
        Most iterations.
    tolerance : float
        Gain of one iteration, in nats per galaxy, at which to stop.

    Returns
    -------
    log_weights, means, covariances : `~numpy.ndarray`
        The components; covariances are diagonal if ``kind`` is.
    score : float
        What was maximised, without the Dirichlet prior.
    """
    shares, score = start, -np.inf
    for _ in range(max_iter):
        found = _maximise(
            means, spreads, shares, kind=kind, shrinkage=shrinkage, alpha=concentration
        )
        joint = log_joint(means, spreads, *found)
        top = joint.max(axis=1, keepdims=True)
        shares = np.exp(joint - top)
        total = shares.sum(axis=1, keepdims=True)
        shares /= total
        before, score = score, float(np.mean(top + np.log(total)))
        if score - before < tolerance:
            break
    log_weights, centers, covariances = found
    if kind == "diagonal":
        covariances = np.diagonal(covariances, axis1=1, axis2=2).copy()
    return (log_weights, centers, covariances), score


def _maximise(means, spreads, shares, *, kind, shrinkage, alpha):
    """Weights, means and covariances, given responsibilities."""
    n, num_components = shares.shape
    dim = means.shape[1]
    counts = shares.sum(axis=0)
    safe = np.maximum(counts, 1e-10)
    centers = (shares.T @ means) / safe[:, None]
    # of an empty component nothing is known: it is where all are
    centers[counts < 1e-8] = means.mean(axis=0)
    scatter = np.empty((num_components, dim, dim))
    for k in range(num_components):
        offsets = means - centers[k]
        scatter[k] = (shares[:, k, None] * offsets).T @ offsets
    if spreads.ndim == 2:
        scatter += (shares.T @ spreads)[:, :, None] * np.eye(dim)
    else:
        scatter += np.tensordot(shares.T, spreads, 1)
    common = scatter.sum(axis=0) / n
    if kind == "tied":
        covariances = np.repeat(common[None], num_components, axis=0)
    else:
        strength = np.maximum(counts + shrinkage, 1e-10)[:, None, None]
        covariances = (scatter + shrinkage * common) / strength
        covariances[counts + shrinkage < 1e-8] = common
    if kind == "diagonal":
        covariances = covariances * np.eye(dim)
    covariances, _ = raise_covariances(covariances, diagonal=False)
    weights = (counts + alpha - 1) / (n + num_components * (alpha - 1))
    log_weights = np.maximum(np.log(np.maximum(weights, 1e-300)), EMPTY_LOG_WEIGHT)
    return log_weights, centers, covariances


def log_joint(means, spreads, log_weights, centers, covariances):
    """Log-weight minus cross-entropy, shape (n, num_components); full covariances."""
    dim = means.shape[1]
    joint = np.empty((len(means), len(centers)))
    for k, covariance in enumerate(covariances):
        whitener = np.linalg.inv(np.linalg.cholesky(covariance))
        precision = whitener.T @ whitener
        distance = np.square((means - centers[k]) @ whitener.T).sum(axis=1)
        if spreads.ndim == 2:
            distance += spreads @ np.diag(precision)
        else:
            distance += np.tensordot(spreads, precision, 2)
        log_det = -2 * np.log(np.diag(whitener)).sum()
        entropy = 0.5 * (distance + log_det + dim * math.log(2 * math.pi))
        joint[:, k] = log_weights[k] - entropy
    return joint


def split_components(log_weights, means, covariances, dead):
    """
    Give dead components half of a living one each.

    The one that is split has the largest product of weight and variance along
    one axis; its halves lie on either side along that axis, and together have
    its moments. Changes the arrays in place; covariances are full.

    Parameters
    ----------
    log_weights, means, covariances : `~numpy.ndarray`
        The components.
    dead : sequence of int
        Which to revive.

    References
    ----------
    Ueda et al. 2000, Neural Computation 12, 2109, for splits.
    """
    for k in dead:
        values, vectors = np.linalg.eigh(covariances)
        whose = int(np.argmax(np.exp(log_weights) * values[:, -1]))
        # half of the variance along the axis is that between the halves
        offset = math.sqrt(0.5 * values[whose, -1]) * vectors[whose, :, -1]
        log_weights[[whose, k]] = log_weights[whose] - math.log(2)
        means[k] = means[whose] - offset
        means[whose] = means[whose] + offset
        covariances[whose] = covariances[whose] - np.outer(offset, offset)
        covariances[k] = covariances[whose]
