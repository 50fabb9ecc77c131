# Licensed under a 3-clause BSD style license - see LICENSE
"""Cutouts on pixel grids of their own: other pixel sizes, sub-pixel centres."""

import numpy as np
from scipy import ndimage

from astrovae.flags import Flag
from astrovae.images._geometry import CHUNK_PIXELS, Geometry

__all__ = ["Resampled", "resample_psf"]

# pixels around a cutout that take part in moving it
_MARGIN = 8
# a pixel of a moved cutout is bad if bad ones would bring this share of its variance
_MAX_BAD_SHARE = 0.02
# and one of a resized cutout if they cover this share of it
_TOUCHED = 1e-6
# masked pixels are filled from around before the move, this sigma in pixels
_FILL_SIGMA = 1.5
# resized PSFs get no larger than this, in pixels
_MAX_PSF = 255


def _overlap(edge, step, n_out, n_in):
    """
    The share of each pixel of the image that each pixel of the cutout covers.

    Parameters
    ----------
    edge : `~numpy.ndarray`, shape (n,)
        Where the first pixel of the cutout begins, in pixels of the window.
    step : `~numpy.ndarray`, shape (n,)
        Size of a pixel of the cutout.
    n_out, n_in : int
        Length of the cutout and of the window.

    Returns
    -------
    weights : `~numpy.ndarray`, shape (n, n_out, n_in)
    """
    bounds = edge[:, np.newaxis] + step[:, np.newaxis] * np.arange(n_out + 1)
    pixel = np.arange(n_in) - 0.5
    low = np.maximum(bounds[:, :-1, np.newaxis], pixel)
    high = np.minimum(bounds[:, 1:, np.newaxis], pixel + 1)
    return np.maximum(high - low, 0)


def _sinc(first, n_out, n_in):
    """
    The weights that move a band-limited row, its length odd, periodic.

    Rows sum to one, and so do the squares of their elements: flux and the
    variance of white noise are kept, and it stays white.
    """
    at = first[:, np.newaxis] + np.arange(n_out)
    offset = at[:, :, np.newaxis] - np.arange(n_in)
    return np.sinc(offset) / np.sinc(offset / n_in)


class Resampled:
    """
    Cutouts whose pixels are not those of the image.

    Parameters
    ----------
    positions : `~numpy.ndarray`, shape (n, 2)
        Centres (x, y).
    shape, image_shape : (int, int)
        Of a cutout and of the image.
    step : `~numpy.ndarray`, shape (n,), or None
        Pixels of the image per pixel of the cutout, NaN where unknown. `None`
        keeps the size of pixels and moves the position to the centre.
    intensive : bool
        Whether pixel values are per solid angle, not per pixel.
    """

    def __init__(self, positions, shape, image_shape, step=None, *, intensive=False):
        self.shape, self.image_shape = shape, image_shape
        self.n, self.intensive = len(positions), intensive
        self.moves = step is None
        self.positions = positions
        self.step = np.ones(self.n) if self.moves else step
        known = np.isfinite(positions).all(axis=1) & np.isfinite(self.step)
        half = self.step[:, np.newaxis] * np.array(shape[::-1]) / 2
        with np.errstate(invalid="ignore"):
            overlaps = (positions + half > -0.5) & (
                positions - half < np.array(image_shape[::-1]) - 0.5
            )
        self.overlaps = known & overlaps.all(axis=1)
        self.center = np.tile(np.array(shape) // 2, (self.n, 1))

    @property
    def shifts(self):
        """How far cutouts were moved (x, y), so that positions are central."""
        plain = Geometry(self.positions, self.shape, self.image_shape)
        middle = (np.array(self.shape[::-1]) - 1) / 2
        return middle - (self.positions - plain.origin[:, ::-1])

    def _chunks(self):
        """Row numbers and the size of the window that they need."""
        rows = np.flatnonzero(self.overlaps)
        rows = rows[np.argsort(self.step[rows], kind="stable")]
        while len(rows):
            if self.moves:
                # an odd length has no lone highest frequency
                window = [size + 2 * _MARGIN + (size + 1) % 2 for size in self.shape]
                count = len(rows)
            else:
                window = self._window(self.step[rows[0]])
                limit = 1.25 * self.step[rows[0]] + 1 / max(self.shape)
                count = np.searchsorted(self.step[rows], limit, side="right")
                window = self._window(self.step[rows[count - 1]])
            count = min(count, max(1, CHUNK_PIXELS // (window[0] * window[1])))
            yield rows[:count], tuple(window)
            rows = rows[count:]

    def _window(self, step):
        """The pixels of the image that a cutout touches at most."""
        return [int(np.ceil(step * size)) + 3 for size in self.shape]

    def _weights(self, rows, geometry):
        """The weights along y and along x."""
        weights = []
        for axis, n_out in enumerate(self.shape):
            place = self.positions[rows, 1 - axis] - geometry.origin[:, axis]
            n_in = geometry.shape[axis]
            if self.moves:
                one = _sinc(place - (n_out - 1) / 2, n_out, n_in)
            else:
                step = self.step[rows]
                one = _overlap(place - step * n_out / 2, step, n_out, n_in)
            weights.append(one)
        return weights

    def _touched(self, weights, bad, step):
        """Which pixels bad ones have too large a part in."""
        if not bad.any():
            return np.zeros((len(bad), *self.shape), bool)
        share = _apply(weights, bad.astype(np.float32))
        limit = _MAX_BAD_SHARE if self.moves else _TOUCHED * step**2
        return share > np.reshape(limit, (-1, 1, 1))

    def cut_all(self, planes, errors, masks, segmentation, advance):
        """Cut an image and what comes with it, as `Geometry.cut_all` does."""
        size = (self.n, *self.shape, len(planes))
        out = {
            "data": np.zeros(size, np.float32),
            "mask": np.ones(size, bool),
            "error": None,
            "segmentation": None,
            "flags": np.where(self.overlaps, 0, Flag.NO_OVERLAP).astype(np.int32),
        }
        if any(plane is not None for plane in errors):
            out["error"] = np.zeros(size, np.float32)
        if segmentation is not None:
            out["segmentation"] = np.zeros(size[:3], np.int32)
        advance(int((~self.overlaps).sum()))
        for rows, window in self._chunks():
            geometry = Geometry(self.positions[rows], window, self.image_shape)
            cut = geometry.cut_all(
                planes, errors, masks, segmentation, lambda n=1: None
            )
            self._resample(rows, geometry, cut, out)
            advance(len(rows))
        return out

    def _resample(self, rows, geometry, cut, out):
        """Write some cutouts, given what was cut from the image."""
        weights = self._weights(rows, geometry)
        step = self.step[rows]
        squares = [one**2 for one in weights]
        light = [one.astype(np.float32) for one in weights]
        area = (step**2 if self.intensive else np.ones(len(rows)))[:, None, None]
        outside = self._touched(
            squares if self.moves else weights, geometry.outside(1)[..., 0], step
        )
        partial = np.where(outside.any(axis=(1, 2)), Flag.PARTIAL, 0)
        for band in range(cut["data"].shape[-1]):
            data, bad = cut["data"][..., band], cut["mask"][..., band]
            if out["error"] is not None:
                variance = cut["error"][..., band].astype(float) ** 2
                bad = bad | ~(np.isfinite(variance) & (variance > 0))
                variance = _median_fill(variance, bad)
                noise = np.sqrt(_apply(squares, variance)) / area
                out["error"][rows, ..., band] = noise
            lost = self._touched(squares if self.moves else weights, bad, step)
            level = 0.0
            if self.moves:
                level = _level(data, bad)
                data = _smooth_fill(data - level, bad)
            elif bad.any():
                data = np.where(bad, 0, data)
            new = (_apply(light, data) + level) / area
            out["data"][rows, ..., band] = np.where(lost, 0, new)
            out["mask"][rows, ..., band] = lost
        # what is not finite may lie in the margin alone
        flags = cut["flags"] & Flag.NON_FINITE
        flags = np.where(out["mask"][rows].any(axis=(1, 2, 3)), flags, 0)
        out["flags"][rows] |= (flags | partial).astype(np.int32)
        if out["segmentation"] is not None:
            out["segmentation"][rows] = self._labels(rows, geometry, cut)

    def _labels(self, rows, geometry, cut):
        """The label at the centre of each pixel."""
        index = []
        for axis, n_out in enumerate(self.shape):
            place = self.positions[rows, 1 - axis] - geometry.origin[:, axis]
            grid = np.arange(n_out) - (n_out - 1) / 2
            at = place[:, np.newaxis] + self.step[rows, np.newaxis] * grid
            at = np.floor(at + 0.5).astype(int)
            index.append(np.clip(at, 0, geometry.shape[axis] - 1))
        each = np.arange(len(rows))[:, np.newaxis, np.newaxis]
        labels = cut["segmentation"]
        return labels[each, index[0][:, :, np.newaxis], index[1][:, np.newaxis]]


def _apply(weights, planes):
    """Weights along y and x, applied to planes of shape (n, ny, nx)."""
    return weights[0] @ planes @ weights[1].transpose(0, 2, 1)


def _level(data, bad):
    """A typical value of each plane, so that its edges do not ring."""
    values = np.where(bad, np.inf, data).reshape(len(data), -1)
    good = np.maximum((~bad).sum(axis=(1, 2)) - 1, 0) // 2
    values = np.sort(values, axis=1)[np.arange(len(data)), good]
    return np.where(np.isfinite(values), values, 0)[:, np.newaxis, np.newaxis]


def _smooth_fill(data, bad):
    """Bad pixels from what is around them, 0 where there is nothing."""
    data = np.where(bad, 0, data).astype(np.float32)
    some = np.flatnonzero(bad.any(axis=(1, 2)))
    if len(some):
        light, weight = (
            ndimage.gaussian_filter(plane, _FILL_SIGMA, axes=(1, 2))
            for plane in (data[some], (~bad[some]).astype(np.float32))
        )
        around = np.divide(light, weight, out=light, where=weight > 1e-3)
        data[some] = np.where(bad[some] & (weight > 1e-3), around, data[some])
    return data


def _median_fill(variance, bad):
    """Bad pixels with the median of the others."""
    if not bad.any():
        return variance
    return np.where(bad, _level(variance, bad), variance)


def resample_psf(psf, step):
    """
    PSFs on pixels of other sizes.

    Parameters
    ----------
    psf : `~numpy.ndarray`, shape (n or 1, ky, kx, n_bands)
        On the pixels of the image.
    step : `~numpy.ndarray`, shape (n,)
        Pixels of the image per pixel of the cutout, NaN where unknown.

    Returns
    -------
    psf : `~numpy.ndarray`, shape (n, k, k, n_bands)
        Of odd size, with the sums of the given ones.
    """
    step = np.where(np.isfinite(step), step, 1.0)
    smallest = step.min() if len(step) else 1.0
    shape = psf.shape[1:3]
    size = [2 * int(np.ceil((n / smallest - 1) / 2)) + 1 for n in shape]
    size = [min(n, _MAX_PSF) for n in size]
    out = np.empty((len(step), *size, psf.shape[3]), np.float32)
    for row, one in enumerate(step):
        kernel = psf[row if len(psf) > 1 else 0]
        weights = [
            _overlap(np.array([(n - 1) / 2 - one * k / 2]), np.array([one]), k, n)[0]
            for n, k in zip(shape, size, strict=True)
        ]
        for band in range(psf.shape[3]):
            new = weights[0] @ kernel[..., band] @ weights[1].T
            out[row, ..., band] = new * (kernel[..., band].sum() / new.sum())
    return out
