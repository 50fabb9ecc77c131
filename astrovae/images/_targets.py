# Licensed under a 3-clause BSD style license - see LICENSE
"""What cleaning tells about the target of each cutout."""

import numpy as np

from astrovae.flags import Flag

__all__ = ["measure_targets", "psf_sigmas"]

# a target with less S/N than this hardly stands out of the noise
_MIN_SNR = 5.0
# its centroid is no farther than this from the centre, in pixels
_MAX_DISTANCE = 3.0
# it is larger than the blur if its variance exceeds that by this share of it, and
# by so many times the uncertainty of the excess
_MIN_EXCESS, _EXCESS_SIGMA = 0.25, 3.0


def psf_sigmas(psf):
    """
    The sigma of the Gaussian as wide at half maximum as each PSF.

    Parameters
    ----------
    psf : `~numpy.ndarray`, shape (n, ky, kx, n_bands)

    Returns
    -------
    sigma : `~numpy.ndarray`, shape (n, n_bands)
        In pixels; NaN where the PSF is not positive.
    """
    peak = psf.max(axis=(1, 2), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = psf / peak
        # whole pixels make steps of the area: count those near the level in part
        area = np.clip((level - 0.5) / 0.1 + 0.5, 0, 1).sum(axis=(1, 2))
    sigma = np.sqrt(area / np.pi / (2 * np.log(2)))
    return np.where((peak > 0)[:, 0, 0], sigma, np.nan)


def measure_targets(data, bad, segmentation, labels, rms, sigma, centers):
    """
    Measure S/N, centre, size and neighbours inside the isophotes.

    Parameters
    ----------
    data : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        Without sky.
    bad : `~numpy.ndarray` of bool, shape (n, ny, nx, n_bands)
        Pixels that were bad before neighbours were masked.
    segmentation, labels
        Of the sources and of the targets.
    rms : `~numpy.ndarray`, shape (n, n_bands)
        Scatter of the sky, NaN where unknown.
    sigma : `~numpy.ndarray`, shape (n,), or None
        Of the blur, in pixels.
    centers : `~numpy.ndarray`, shape (n, 2)
        Where targets should be, x and y in pixels of the cutout.

    Returns
    -------
    columns : dict of `~numpy.ndarray`, shape (n,)
        ``snr``, ``center_distance`` and ``neighbor_fraction``; NaN where there
        is no target.
    flags : `~numpy.ndarray` of int, shape (n,)
    """
    known = np.isfinite(rms) & (rms > 0)
    weight = np.divide(1, rms**2, out=np.zeros_like(rms), where=known)
    # the best sum of bands for a source that is equally bright in all, in units
    # of its own noise
    norm = np.sqrt(weight.sum(axis=1))
    norm = np.where(norm > 0, norm, np.inf)[:, np.newaxis, np.newaxis]
    planes = np.where(bad, 0, data) * weight[:, np.newaxis, np.newaxis]
    light = planes.sum(axis=-1) / norm
    target = (segmentation == labels[:, np.newaxis, np.newaxis]) & (segmentation > 0)
    others = (segmentation > 0) & ~target
    flux = np.where(target, light, 0).sum(axis=(1, 2))
    area = target.sum(axis=(1, 2))
    found = (area > 0) & (weight.sum(axis=1) > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = flux / np.sqrt(area)
        fraction = np.where(others, light, 0).sum(axis=(1, 2)) / flux
        moments = _moments(light, target)
    offset = moments[:, :2] - centers
    distance = np.hypot(*offset.T)
    columns = {
        "snr": np.where(found, snr, np.nan),
        "center_distance": np.where(found, distance, np.nan),
        "neighbor_fraction": np.where(found & (flux > 0), fraction, np.nan),
    }
    with np.errstate(invalid="ignore"):
        flags = np.where(found & ~(snr >= _MIN_SNR), Flag.LOW_SNR, 0)
        flags |= np.where(found & (distance > _MAX_DISTANCE), Flag.OFF_CENTER, 0)
        flags |= np.where(found & (fraction > 1), Flag.CROWDED, 0)
        if sigma is not None:
            small = _is_small(moments[:, 2], light, target, sigma)
            clear = found & (snr >= _MIN_SNR)
            flags |= np.where(clear & small, Flag.NOT_LARGER_THAN_PSF, 0)
    return columns, flags.astype(np.int32)


def _moments(light, target):
    """Centre x, y and mean variance of the light inside isophotes."""
    weight = np.where(target, np.maximum(light, 0), 0).astype(float)
    total = weight.sum(axis=(1, 2))
    y, x = np.arange(light.shape[1]), np.arange(light.shape[2])
    along_x, along_y = weight.sum(axis=1), weight.sum(axis=2)
    x_mean, y_mean = along_x @ x / total, along_y @ y / total
    variance = along_x @ x**2 / total - x_mean**2
    variance += along_y @ y**2 / total - y_mean**2
    return np.stack([x_mean, y_mean, variance / 2], axis=1)


def _is_small(variance, light, target, sigma):
    """
    Whether a source is no larger than a Gaussian blur.

    Inside the isophote at exp(-k) of its peak, a Gaussian has
    1 - k exp(-k) / (1 - exp(-k)) of its variance.
    """
    peak = np.where(target, light, -np.inf).max(axis=(1, 2))
    edge = np.where(target, light, np.inf)
    # noise makes the faintest pixel too faint: a low quantile is the isophote
    edge = np.sort(edge.reshape(len(light), -1), axis=1)
    area = target.sum(axis=(1, 2))
    edge = edge[np.arange(len(light)), area // 10]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        k = np.log(peak / np.maximum(edge, 0.1))
        k = np.maximum(k, 0.1)
        variance = variance / (1 - k / np.expm1(k))
        total = np.where(target, light, 0).sum(axis=(1, 2))
        # of a Gaussian measured against white noise
        error = 2 * sigma**2 * np.sqrt(area) / total
        excess = variance - sigma**2
    return (excess < _MIN_EXCESS * sigma**2) | (excess < _EXCESS_SIGMA * error)
