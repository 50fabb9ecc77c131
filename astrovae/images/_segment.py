# Licensed under a 3-clause BSD style license - see LICENSE
"""Sources of cutouts that come without a segmentation."""

import numpy as np
from scipy import ndimage

from astrovae.images._sky import measure_sky
from astrovae.images.detection import find_segments, inverse_variance

__all__ = ["segment_cutouts"]

# how far from the centre a source may be and still be the target, in pixels
_TARGET_RADIUS = 3
# smoothing and deblending of cutouts that come without a segmentation
_KERNEL_SIGMA, _CONTRAST, _MIN_PIXELS = 0.85, 0.005, 8
# noise that is correlated between pixels is so much larger after smoothing than white
# noise of the same errors, at most
_CORRELATION = 1.5


def segment_cutouts(data, mask, n_sigma, error=None):
    """
    Segment each cutout: one montage, so that photutils is called once.

    Parameters
    ----------
    data, mask : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        Pixels, and which are bad.
    n_sigma : float
        Threshold.
    error : `~numpy.ndarray`, shape (n, ny, nx, n_bands), optional
        1-sigma uncertainties. Where sources leave no sky, the scatter of pixels is
        not the noise: it is bounded by what errors say.

    Returns
    -------
    segmentation : `~numpy.ndarray` of int, shape (n, ny, nx)
        Source labels.
    labels : `~numpy.ndarray` of int, shape (n,)
        The label at the centre, or of the nearest source within 3 pixels;
        0 if there is none.
    """
    n, ny, nx, _ = data.shape
    snr = _smoothed_snr(data, mask, error)
    # rows of zeros keep the sources of different cutouts apart
    montage = np.pad(snr, ((0, 0), (0, 1), (0, 0))).reshape(n * (ny + 1), nx)
    segments = find_segments(montage, n_sigma, _MIN_PIXELS, contrast=_CONTRAST)
    if segments is None:
        return np.zeros((n, ny, nx), np.int32), np.zeros(n, np.int32)
    segmentation = segments.data.reshape(n, ny + 1, nx)[:, :ny].astype(np.int32)
    # number the sources of each cutout from 1, whatever the other cutouts hold
    rows = np.broadcast_to(np.arange(n)[:, np.newaxis, np.newaxis], segmentation.shape)
    some = segmentation > 0
    keys = rows[some] * np.int64(segments.max_label + 1) + segmentation[some]
    unique, inverse = np.unique(keys, return_inverse=True)
    owner = unique // (segments.max_label + 1)
    first = np.searchsorted(owner, np.arange(n))
    segmentation[some] = inverse - first[rows[some]] + 1
    return segmentation, _central_labels(segmentation)


def _smoothed_snr(data, mask, error):
    """The weighted sum of bands, smoothed, over its noise, per cutout."""
    sky = measure_sky(data, ~mask)
    level = np.nan_to_num(sky["level"])[:, np.newaxis, np.newaxis]
    rms, limit = sky["rms"], np.inf
    if error is not None:
        known = np.ma.array(error, mask=mask).reshape(len(data), -1, data.shape[-1])
        rms = np.fmin(rms, np.ma.median(known, axis=1).filled(np.inf))
        limit = _CORRELATION / (2 * np.sqrt(np.pi) * _KERNEL_SIGMA)
    rms = rms[:, np.newaxis, np.newaxis]
    weight = np.where(mask, 0, inverse_variance(rms, rms > 0))
    total = (weight * np.where(mask, 0, data - level)).sum(axis=-1)
    total /= np.sqrt(np.maximum(weight.sum(axis=-1), np.finfo(float).tiny))
    total = ndimage.gaussian_filter(total, _KERNEL_SIGMA, axes=(1, 2))
    blank = mask.all(axis=-1)
    total = total.astype(np.float32)[..., np.newaxis]
    sky = measure_sky(total, ~blank[..., np.newaxis])
    level, rms = (
        np.nan_to_num(sky[name])[:, :, np.newaxis] for name in ("level", "rms")
    )
    rms = np.minimum(rms, limit)
    snr = (total[..., 0] - level) / np.where(rms > 0, rms, np.inf)
    return np.where(blank, 0, snr)


def _central_labels(segmentation):
    """The label of the pixel with a source that is nearest to the centre."""
    n, ny, nx = segmentation.shape
    y, x = np.indices((ny, nx))
    distance = np.hypot(y - ny // 2, x - nx // 2)
    near = np.argsort(distance, axis=None, kind="stable")
    near = near[distance.ravel()[near] <= _TARGET_RADIUS]
    labels = segmentation.reshape(n, -1)[:, near]
    first = (labels > 0).argmax(axis=1)
    return labels[np.arange(n), first]
