# Licensed under a 3-clause BSD style license - see LICENSE
"""Level and scatter of the sky of many cutouts."""

import numpy as np

from astrovae.images._neighbors import count_true

__all__ = ["combine_skies", "measure_sky"]

# sky pixels are clipped at this many standard deviations, this many times
_CLIP_SIGMA, _CLIP_PASSES = 3.0, 5
# scatter of a Gaussian that is clipped so, over that of a whole one
_CLIPPED_SCATTER = 0.98658
# error of the mean of the middle half, over that of the mean (Gaussian)
_MIDMEAN_ERROR = 1.093
# standard deviation of a Gaussian over its median absolute deviation
_MAD_SIGMA = 1.4826
# fewer sky pixels than this give no background
_MIN_SKY_PIXELS = 16


def measure_sky(data, usable):
    """
    Level and scatter of the usable pixels, clipped of what stands out.

    Pixels are sorted once; then what clipping keeps is a range of them, its
    quantiles are elements, and its means are sums over a range.

    Returns
    -------
    sky : dict of `~numpy.ndarray`, shape (n, n_bands)
        ``level``, ``level_err``, ``rms`` and ``n_pixels``.
    """
    n, ny, nx, n_bands = data.shape
    # beyond the last pixel there is room for the end of sums
    values = np.full((n * n_bands, ny * nx + 1), np.inf, np.float32)
    planes = values[:, :-1].reshape(n, n_bands, ny, nx)
    np.copyto(planes, np.moveaxis(data, -1, 1), where=np.moveaxis(usable, -1, 1))
    values.sort(axis=1)
    last = count_true(np.moveaxis(usable, -1, 1).reshape(-1, ny * nx))
    first = np.zeros_like(last)
    enough = last >= _MIN_SKY_PIXELS
    rows = np.arange(len(values))
    for _ in range(_CLIP_PASSES):
        before = first[rows], last[rows]
        after = _clip(values, rows, *before)
        changed = np.not_equal(before, after).any(axis=0)
        first[rows], last[rows] = after
        rows = rows[changed]
        if not len(rows):
            break
    # sums of differences from a typical value lose no digits in float32
    typical = _quantile(values, np.arange(len(values)), first, last, 0.5)
    values -= typical.astype(np.float32)[:, np.newaxis]
    level, rms = _level_and_scatter(values, first, last)
    level += typical.astype(np.float32)
    count = last - first
    rms /= _CLIPPED_SCATTER
    sky = {
        "level": np.where(enough, level, np.nan),
        "level_err": np.where(
            enough, rms * _MIDMEAN_ERROR / np.sqrt(np.maximum(count, 1)), np.nan
        ),
        "rms": np.where(enough, rms, np.nan),
        "n_pixels": np.where(enough, count, 0),
    }
    return {name: array.reshape(n, n_bands) for name, array in sky.items()}


def combine_skies(skies):
    """
    One sky for many cutouts, clipped of those where it stands out.

    The mean level is weighted by the number of sky pixels. Its uncertainty is the
    one that follows from those of the levels or, if larger, from their scatter, as
    where the sky varies. It cannot know of faint light that all cutouts have.

    Parameters
    ----------
    skies : dict of `~numpy.ndarray`, shape (n, n_bands)
        As from `measure_sky`.

    Returns
    -------
    sky : dict of `~numpy.ndarray`, shape (n_bands,)
        ``level``, ``level_err``, ``rms`` (the median) and ``n_pixels``. NaN where
        no level is known.
    """
    level, error = skies["level"], skies["level_err"]
    known = np.isfinite(level)
    middle = _median(level, known)
    scatter = _MAD_SIGMA * _median(np.abs(level - middle), known)
    reach = _CLIP_SIGMA * np.hypot(scatter, np.where(known, error, 0))
    kept = known & (np.abs(level - middle) <= reach)
    weight = np.where(kept, skies["n_pixels"], 0).astype(float)
    total = weight.sum(axis=0)
    some = total > 0
    weight /= np.where(some, total, 1)
    mean = np.where(kept, weight * level, 0).sum(axis=0)
    variance = np.where(kept, (weight * error) ** 2, 0).sum(axis=0)
    count = kept.sum(axis=0)
    spread = np.where(kept, (weight * (level - mean)) ** 2, 0).sum(axis=0)
    spread *= count / np.maximum(count - 1, 1)
    return {
        "level": np.where(some, mean, np.nan),
        "level_err": np.where(some, np.sqrt(np.maximum(variance, spread)), np.nan),
        "rms": _median(skies["rms"], known),
        "n_pixels": np.where(kept, skies["n_pixels"], 0).sum(axis=0),
    }


def _median(values, known):
    """Median of what is known in each column, NaN if nothing is."""
    values = np.ma.array(values, mask=~known)
    return np.ma.filled(np.ma.median(values, axis=0).astype(float), np.nan)


def _clip(values, rows, first, last):
    """Which elements of sorted rows stay if those that stand out are left out."""
    quantiles = np.array([[0.158655], [0.5], [0.841345]])
    low, middle, high = _quantile(values, rows, first, last, quantiles)
    reach = _CLIP_SIGMA * (high - low) / 2
    limits = np.stack([middle - reach, np.nextafter(middle + reach, np.inf)])
    low, high = _count_below(values, rows, limits)
    return np.maximum(first, low), np.minimum(last, high)


def _level_and_scatter(values, first, last):
    """
    The mean of the middle half of the elements first ... last-1, and their scatter.

    This mean is as robust as the median to what clipping leaves, but it does not
    stick to the steps of quantised pixels. The scatter is about it. 0 without elements.
    """
    count = np.maximum(last - first, 0)
    some, quarter = count > 0, count // 4
    places = [first, first + quarter, last - quarter, last]
    low, inner, high = _sum_between(values, places)
    with np.errstate(over="ignore"):
        np.multiply(values, values, out=values)
    (squares,) = _sum_between(values, [first, last])
    level, mean, square = np.zeros((3, len(values)))
    np.divide(inner, count - 2 * quarter, out=level, where=some)
    np.divide(low + inner + high, count, out=mean, where=some)
    np.divide(squares, count, out=square, where=some)
    # the values are near 0, so that no digits are lost
    variance = square + level * (level - 2 * mean)
    return level, np.sqrt(np.maximum(variance, 0))


def _sum_between(values, places):
    """
    Sums of elements of each row, from each place to the one before the next.

    Parameters
    ----------
    values : `~numpy.ndarray`, shape (n, n_values)
    places : list of `~numpy.ndarray` of int, shape (n,)
        None before the one before it, and all less than ``n_values``.

    Returns
    -------
    sums : list of `~numpy.ndarray`, shape (n,)
        One for each place but the last.
    """
    if not len(values):
        return [np.zeros(0) for _ in places[1:]]
    bounds = np.stack(places, axis=1)
    empty = np.diff(bounds, axis=1).T <= 0
    bounds += np.arange(len(values))[:, np.newaxis] * values.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        # what lies between the last place of a row and the first of the next, too
        sums = np.add.reduceat(values.ravel(), bounds.ravel())
    step = len(places)
    return [
        np.where(nothing, 0, sums[i::step]).astype(float)
        for i, nothing in enumerate(empty)
    ]


def _quantile(values, rows, first, last, q):
    """Quantiles of the elements first ... last-1 of some sorted rows."""
    position = first + q * np.maximum(last - first - 1, 0)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, np.maximum(last - 1, low))
    low = np.minimum(low, values.shape[1] - 1)
    high = np.minimum(high, values.shape[1] - 1)
    a, b = values[rows, low].astype(float), values[rows, high].astype(float)
    a, b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
    return a + (position - low) * (b - a)


def _count_below(values, rows, limits):
    """
    How many elements of some sorted rows are below each limit: bisection.

    Parameters
    ----------
    values : `~numpy.ndarray`, shape (n, n_values)
        Each row in increasing order.
    rows : `~numpy.ndarray` of int, shape (n_rows,)
        Which rows.
    limits : `~numpy.ndarray`, shape (m, n_rows)
        Limits for each of them.

    Returns
    -------
    counts : `~numpy.ndarray` of int, shape (m, n_rows)
        For each limit.
    """
    counts = np.zeros(limits.shape, np.intp)
    step = 1 << int(values.shape[1]).bit_length()
    while step := step // 2:
        last = counts + (step - 1)
        exists = last < values.shape[1]
        below = values[rows, np.where(exists, last, 0)] < limits
        counts += np.where(exists & below, step, 0)
    return counts
