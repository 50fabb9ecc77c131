# Licensed under a 3-clause BSD style license - see LICENSE
"""Pixels that did not record the sky: cosmic rays and saturation."""

import numpy as np
from scipy import ndimage

__all__ = ["find_cosmic_rays", "find_saturated"]

# a cosmic ray is so many sigmas sharper than the noise, and its neighbours
# so large a share of that
_SHARPNESS, _NEIGHBOR_SHARE = 5.0, 0.3
# and so many times sharper than what the optics could make of a star
_CONTRAST = 3.0
# passes: long tracks are found from their ends
_PASSES = 3
_LAPLACIAN = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32) / 4


def find_cosmic_rays(data, bad, noise):
    """
    Find pixels that are sharper than any image of the sky.

    The method of van Dokkum: the Laplacian of the image on half pixels, and the
    comparison with the fine structure that stars have.

    Parameters
    ----------
    data : `~numpy.ndarray`, shape (n, ny, nx)
        Images of one band.
    bad : `~numpy.ndarray` of bool, shape (n, ny, nx)
        Pixels that do not count.
    noise : `~numpy.ndarray`, shape (n, ny, nx) or (n, 1, 1)
        1-sigma noise of a pixel.

    Returns
    -------
    hit : `~numpy.ndarray` of bool, shape (n, ny, nx)

    References
    ----------
    van Dokkum, P. G. 2001, PASP, 113, 1420 (arXiv:astro-ph/0108003)
    """
    hit = np.zeros(data.shape, bool)
    usable = np.isfinite(noise) & (noise > 0)
    noise = np.where(usable, noise, np.inf).astype(np.float32)
    noise = np.broadcast_to(noise, data.shape)
    rows = np.arange(len(data))
    for _ in range(_PASSES):
        hidden = bad[rows] | hit[rows]
        light = _median_where(data[rows].astype(np.float32), hidden)
        sharp = _sharpness(light) / noise[rows]
        # most images have nothing that sharp, and filters are slow
        some = ((sharp > _SHARPNESS) & ~hidden).any(axis=(1, 2))
        rows, hidden = rows[some], hidden[some]
        if not len(rows):
            break
        new = _are_hit(light[some], sharp[some], noise[rows], hidden, hit[rows])
        hit[rows] |= new
        rows = rows[new.any(axis=(1, 2))]
    return hit


def _are_hit(light, sharp, noise, hidden, hit):
    """Which pixels are sharper than the fine structure of the sky."""
    sharp = sharp - ndimage.median_filter(sharp, (1, 5, 5))
    fine = ndimage.median_filter(light, (1, 3, 3))
    fine -= ndimage.median_filter(fine, (1, 7, 7))
    fine = np.maximum(fine / noise, 0.1)
    new = (sharp > _SHARPNESS) & (sharp > _CONTRAST * fine)
    near = ndimage.binary_dilation(new | hit, np.ones((1, 3, 3)))
    new |= near & (sharp > _NEIGHBOR_SHARE * _SHARPNESS) & (sharp > fine)
    return new & ~hidden


def _sharpness(light):
    """Positive part of the Laplacian on half pixels, per pixel."""
    double = light.repeat(2, axis=1).repeat(2, axis=2)
    laplacian = ndimage.convolve(double, _LAPLACIAN[np.newaxis], mode="nearest")
    laplacian = np.maximum(laplacian, 0)
    n, ny, nx = light.shape
    # of the noise of a pixel, half is left on average
    return 2 * laplacian.reshape(n, ny, 2, nx, 2).mean(axis=(2, 4))


def _median_where(image, bad):
    """Images with a local median in place of bad pixels."""
    bad = bad | ~np.isfinite(image)
    rows = np.flatnonzero(bad.any(axis=(1, 2)))
    if not len(rows):
        return image
    values = np.where(bad[rows], np.inf, image[rows]).reshape(len(rows), -1)
    middle = np.maximum((~bad[rows]).sum(axis=(1, 2)) - 1, 0) // 2
    level = np.sort(values, axis=1)[np.arange(len(rows)), middle]
    level = np.where(np.isfinite(level), level, 0)[:, np.newaxis, np.newaxis]
    start = np.where(bad[rows], level, image[rows])
    around = ndimage.median_filter(start, (1, 5, 5))
    out = np.array(image)
    out[rows] = np.where(bad[rows], around, image[rows])
    return out


def find_saturated(data, bad, level):
    """
    Find pixels at or above saturation, and those beside them.

    Parameters
    ----------
    data : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        The images.
    bad : `~numpy.ndarray` of bool, shape (n, ny, nx, n_bands)
        Pixels that do not count.
    level : float or `~numpy.ndarray`, shape (n_bands,)
        Where the detector, or the format, ends.

    Returns
    -------
    saturated : `~numpy.ndarray` of bool, shape (n, ny, nx, n_bands)
    """
    with np.errstate(invalid="ignore"):
        saturated = (data >= level) & ~bad
    if not saturated.any():
        return saturated
    return ndimage.binary_dilation(saturated, np.ones((1, 3, 3, 1)))
