# Licensed under a 3-clause BSD style license - see LICENSE
"""
Components of mixtures in NumPy: overlap, merging, limits.

Covariances have the shape (n_components, dim) if they are diagonal, else
(n_components, dim, dim).
"""

import math

import numpy as np

__all__ = [
    "EMPTY_LOG_WEIGHT",
    "SCALE_FLOOR",
    "VARIANCE_FLOOR",
    "bhattacharyya",
    "expand_covariances",
    "merge_components",
    "raise_covariances",
]

# Narrower components would fit single galaxies.
VARIANCE_FLOOR = 1e-4
SCALE_FLOOR = math.sqrt(VARIANCE_FLOOR)

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
