# Licensed under a 3-clause BSD style license - see LICENSE
"""Where cutouts lie on an image, and their pixels."""

import numpy as np

from astrovae.flags import Flag
from astrovae.images._file_plane import FileSection
from astrovae.images._threads import map_in_threads

__all__ = ["Geometry", "hide_non_finite"]

# pixels at a time, so that they stay in the cache
CHUNK_PIXELS = 1 << 17
# and those that a thread copies at a time
_COPIED_PIXELS = 1 << 20
# an image on disk is read at once if this share of it is cut anyway
_DENSE = 0.25


def hide_non_finite(data, mask, flags, rows):
    """Mask pixels that are not finite, flag their rows, and set them to 0."""
    for row in np.flatnonzero(rows):
        bad = ~np.isfinite(data[row])
        if bad.any():
            flags[row] |= Flag.NON_FINITE
            mask[row] |= bad
            data[row][bad] = 0


def _all_finite(array):
    """Whether all is finite, mostly: some large numbers are taken for infinite."""
    flat = array.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        # one value that is not finite spoils the sum, in a pass over the cache
        return bool(np.isfinite(np.dot(flat, flat)))


class Geometry:
    """Where the cutouts lie on the image."""

    def __init__(self, positions, shape, image_shape):
        self.shape, self.image_shape = shape, image_shape
        self.n = len(positions)
        yx = positions[:, ::-1]
        # the convention of astropy.nddata; far positions must fit an integer
        origin = np.ceil(yx - np.array(shape) / 2.0)
        far = np.add(shape, image_shape)
        origin = np.where(np.isnan(origin), -far, np.clip(origin, -far, far))
        self.origin = origin.astype(np.intp)
        end = self.origin + shape
        self.overlaps = ((end > 0) & (self.origin < image_shape)).all(axis=1)
        self.inside = ((self.origin >= 0) & (end <= image_shape)).all(axis=1)
        center = np.where(np.isfinite(yx), np.floor(yx + 0.5), -far)
        self.center = np.clip(center, -far, far).astype(np.intp) - self.origin
        # cutouts of floats that may have values which are not finite
        self.suspect = np.zeros(self.n, bool)

    def flags(self):
        """The flag bits of where the cutouts lie."""
        flags = np.where(self.overlaps, 0, Flag.NO_OVERLAP)
        flags |= np.where(self.overlaps & ~self.inside, Flag.PARTIAL, 0)
        return flags.astype(np.int32)

    def _edge_indices(self, rows):
        """Pixel indices of cutouts that reach over an edge, and which exist."""
        index, exists = [], []
        for axis in (0, 1):
            pixels = self.origin[rows, axis, np.newaxis] + np.arange(self.shape[axis])
            last = self.image_shape[axis] - 1
            exists.append((pixels >= 0) & (pixels <= last))
            index.append(np.clip(pixels, 0, last))
        return index, exists[0][:, :, np.newaxis] & exists[1][:, np.newaxis, :]

    def outside(self, n_bands):
        """Mask of the pixels that are not on the image."""
        mask = np.zeros((self.n, *self.shape, n_bands), dtype=bool)
        mask[~self.overlaps] = True
        for rows in self._chunks(self.overlaps & ~self.inside):
            mask[rows] = ~self._edge_indices(rows)[1][..., np.newaxis]
        return mask

    def _chunks(self, which):
        """Row numbers, in pieces that bound the memory in use."""
        rows = np.flatnonzero(which)
        size = max(1, CHUNK_PIXELS // (self.shape[0] * self.shape[1]))
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def cut(self, planes, dtype, advance=lambda n=1: None):
        """
        Cut all planes.

        Parameters
        ----------
        planes : iterable of (`Plane` or None)
            One per band; `None` gives zeros.
        dtype : dtype
            Of the result.
        advance : callable, optional
            Told how many cutouts are done.

        Returns
        -------
        cutouts : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            0 outside the image.
        """
        planes = list(planes)
        # fresh zeroed memory is much slower to fill: zero only what is not cut
        out = np.empty((self.n, *self.shape, len(planes)), dtype)
        for band, plane in enumerate(planes):
            if plane is None:
                out[..., band] = 0
            elif isinstance(plane.array, FileSection):
                self._cut_section(plane, out, band, advance)
            else:
                self._cut_array(plane, plane.array, out, band, advance)
        out[~self.overlaps] = 0
        return out

    def _cut_array(self, plane, array, out, band, advance):
        """Cut a plane whose pixels are in memory, or mapped to it."""
        if self.inside.any():
            self._cut_windows(plane, array, out[..., band], advance)
        else:
            advance(self.n)
        for rows in self._chunks(self.overlaps & ~self.inside):
            (y, x), exists = self._edge_indices(rows)
            stored = array[y[:, :, np.newaxis], x[:, np.newaxis, :]]
            values = np.empty(stored.shape, out.dtype)
            self._fill(plane, np.where(exists, stored, 0), values, rows)
            values[~exists] = 0
            out[rows, ..., band] = values

    def _cut_windows(self, plane, array, out, advance):
        """
        Cut all rows, those over an edge or outside from wherever there are pixels.

        So rows need not be picked: they are written without gaps.
        """
        windows = np.lib.stride_tricks.sliding_window_view(array, self.shape)
        last = np.subtract(self.image_shape, self.shape)
        y, x = np.clip(self.origin, 0, last).T

        # from the top to the bottom of the image: what is near is in the cache
        order = np.argsort(y, kind="stable")

        def copy(rows):
            stored = windows[y[rows], x[rows]]
            values = np.empty(stored.shape, out.dtype)
            self._fill(plane, stored, values, rows)
            out[rows] = values
            return len(rows)

        size = max(1, _COPIED_PIXELS // (self.shape[0] * self.shape[1]))
        pieces = [order[start : start + size] for start in range(0, self.n, size)]
        for count in map_in_threads(copy, pieces):
            advance(count)

    def _cut_section(self, plane, out, band, advance):
        """Cut a plane that has to be decompressed or scaled."""
        rows = np.flatnonzero(self.overlaps)
        wanted = len(rows) * self.shape[0] * self.shape[1]
        if wanted >= _DENSE * np.prod(self.image_shape):
            self._cut_array(plane, np.asarray(plane.array), out, band, advance)
            return
        end = self.origin + self.shape
        advance(self.n - len(rows))
        with plane.array.open() as read:
            # neighbours on the image share tiles, which astropy does not keep
            for row in rows[np.lexsort(self.origin[rows].T[::-1])]:
                low = np.maximum(self.origin[row], 0)
                high = np.minimum(end[row], self.image_shape)
                stored = read(tuple(map(slice, low, high)))
                (y0, x0), (y1, x1) = low - self.origin[row], high - self.origin[row]
                out[row, ..., band] = 0
                self._fill(plane, stored, out[row, y0:y1, x0:x1, band], row)
                advance()

    def _fill(self, plane, stored, out, rows):
        """Write stored pixels to where they belong."""
        if out.dtype.kind != "f":
            out[...] = stored
            return
        plane.values(stored, out)
        if not _all_finite(out):
            self.suspect[rows] = True

    def cut_all(self, planes, errors, masks, segmentation, advance):
        """
        Cut an image and what comes with it.

        Parameters
        ----------
        planes : list of `Plane`
            The bands.
        errors : list of (`Plane` or None)
            Their errors.
        masks : list of list of (`Plane` or None)
            Several masks, to be joined.
        segmentation : `Plane` or None
            The source labels.
        advance : callable
            Told how many cutouts are done.

        Returns
        -------
        cut : dict
            ``data``, ``mask``, ``error``, ``segmentation`` and ``flags``,
            without those of rows that have no position.
        """
        self.suspect[:] = False
        data = self.cut(planes, np.float32, advance)
        suspect = self.suspect.copy()
        bad = self.outside(len(planes))
        for some in masks:
            if any(plane is not None for plane in some):
                bad |= self.cut(some, bool, advance)
        error = labels = None
        if any(plane is not None for plane in errors):
            error = self.cut(errors, np.float32, advance)
        if segmentation is not None:
            labels = self.cut([segmentation], np.int32)[..., 0]
        flags = self.flags()
        hide_non_finite(data, bad, flags, suspect)
        return {
            "data": data,
            "mask": bad,
            "error": error,
            "segmentation": labels,
            "flags": flags,
        }
