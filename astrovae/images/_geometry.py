# Licensed under a 3-clause BSD style license - see LICENSE
"""Where cutouts lie on an image, and their pixels."""

import numpy as np

from astrovae.flags import Flag
from astrovae.images._file_plane import FileSection

__all__ = ["Geometry", "hide_non_finite"]

# pixels, and rows, at a time, so that they stay in the cache
CHUNK_PIXELS = 1 << 17
_CHUNK_ROWS = 256
# an image on disk is read at once if this share of it is cut anyway
_DENSE = 0.25


def hide_non_finite(data, mask, flags):
    """Mask pixels that are not finite, flag their rows, and set them to 0."""
    for start in range(0, len(data), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        # one value that is not finite spoils the sum: the common case is fast
        with np.errstate(over="ignore", invalid="ignore"):
            total = data[rows].sum(dtype=np.float32)
        if not np.isfinite(total):
            bad = ~np.isfinite(data[rows])
            flags[rows] |= np.where(bad.any(axis=(1, 2, 3)), Flag.NON_FINITE, 0)
            mask[rows] |= bad
            data[rows][bad] = 0


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

    @staticmethod
    def _index(rows):
        """Increasing row numbers as a slice where they are without a gap."""
        if rows[-1] - rows[0] + 1 == len(rows):
            return slice(rows[0], rows[-1] + 1)
        return rows

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
        out[~self.overlaps] = 0
        for band, plane in enumerate(planes):
            if plane is None:
                out[..., band] = 0
                continue
            if isinstance(plane.array, FileSection):
                self._cut_section(plane, out, band, advance)
            else:
                self._cut_array(plane, plane.array, out, band, advance)
            advance(int((~self.overlaps).sum()))
        return out

    def _cut_array(self, plane, array, out, band, advance):
        """Cut a plane whose pixels are in memory, or mapped to it."""
        whole = self._chunks(self.inside)
        if whole:
            windows = np.lib.stride_tricks.sliding_window_view(array, self.shape)
        for rows in whole:
            y, x = self.origin[rows].T
            self._store(plane, windows[y, x], out, rows, band)
            advance(len(rows))
        for rows in self._chunks(self.overlaps & ~self.inside):
            (y, x), exists = self._edge_indices(rows)
            stored = array[y[:, :, np.newaxis], x[:, np.newaxis, :]]
            self._store(plane, np.where(exists, stored, 0), out, rows, band)
            out[rows, ..., band][~exists] = 0
            advance(len(rows))

    def _cut_section(self, plane, out, band, advance):
        """Cut a plane that has to be decompressed or scaled."""
        rows = np.flatnonzero(self.overlaps)
        wanted = len(rows) * self.shape[0] * self.shape[1]
        if wanted >= _DENSE * np.prod(self.image_shape):
            self._cut_array(plane, np.asarray(plane.array), out, band, advance)
            return
        end = self.origin + self.shape
        with plane.array.open() as read:
            # neighbours on the image share tiles, which astropy does not keep
            for row in rows[np.lexsort(self.origin[rows].T[::-1])]:
                low = np.maximum(self.origin[row], 0)
                high = np.minimum(end[row], self.image_shape)
                stored = read(tuple(map(slice, low, high)))
                (y0, x0), (y1, x1) = low - self.origin[row], high - self.origin[row]
                out[row, ..., band] = 0
                self._fill(plane, stored, out[row, y0:y1, x0:x1, band])
                advance()

    @staticmethod
    def _store(plane, stored, out, rows, band):
        """Write stored pixels to their rows of the output."""
        rows = Geometry._index(rows)
        if isinstance(rows, slice):
            Geometry._fill(plane, stored, out[rows, ..., band])
        elif out.dtype.kind != "f":
            out[rows, ..., band] = stored
        else:
            values = np.empty(stored.shape, out.dtype)
            plane.values(stored, values)
            out[rows, ..., band] = values

    @staticmethod
    def _fill(plane, stored, out):
        """Write stored pixels to where they belong."""
        if out.dtype.kind == "f":
            plane.values(stored, out)
        else:
            out[...] = stored

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
        data = self.cut(planes, np.float32, advance)
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
        hide_non_finite(data, bad, flags)
        return {
            "data": data,
            "mask": bad,
            "error": error,
            "segmentation": labels,
            "flags": flags,
        }
