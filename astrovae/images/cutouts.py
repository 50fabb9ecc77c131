# Licensed under a 3-clause BSD style license - see LICENSE
"""Cutouts of every galaxy of a catalogue, with all that belongs to them."""

import numpy as np

from astrovae._progress import progress_bar
from astrovae._validation import check_shape
from astrovae.flags import Flag
from astrovae.images._inputs import (
    Plane,
    as_columns,
    catalog_ids,
    catalog_positions,
    image_planes,
    other_planes,
    wcs_pixel_scale,
)
from astrovae.images.stack import CutoutStack

__all__ = ["make_cutouts"]

# pixels, and rows, at a time, so that they stay in the cache
_CHUNK_PIXELS = 1 << 17
_CHUNK_ROWS = 256


def make_cutouts(
    image,
    catalog,
    shape,
    *,
    wcs=None,
    error=None,
    mask=None,
    psf=None,
    segmentation=None,
    bands=None,
    band_axis=None,
    xy_columns=None,
    sky_columns=None,
    id_column=None,
    pixel_scale=None,
    unit=None,
    show_progress=False,
):
    """
    Cut a stamp around every row of a catalogue.

    Mask, errors, PSF and source labels are carried along. Pixels outside
    the image are masked and flagged, never filled as if they were sky, and
    rows that cannot be cut (no position, no overlap) stay in place, masked
    and flagged: row ``i`` of the stack is row ``i`` of the catalogue.

    Parameters
    ----------
    image : array_like, dict, sequence or `~astropy.nddata.NDData`
        A 2-D image, one 2-D image per band (a dict of band names, or a
        sequence), or a 3-D array with ``band_axis``. Quantities, masked
        arrays and ``NDData`` give their unit, mask, uncertainty and WCS.
        Images on disk (memory-mapped FITS) are read where they are cut.
    catalog : `~astropy.table.Table`, `~pandas.DataFrame`, \
            `~photutils.segmentation.SourceCatalog` or \
            `~astropy.coordinates.SkyCoord`
        The rows. Positions are taken from the first of these columns that
        exist, whatever their capitals: ``x, y`` or ``x_centroid,
        y_centroid`` (pixels, 0 is the centre of the first), a ``SkyCoord``,
        ``ra, dec`` (ICRS, in degrees unless they have a unit). Nothing
        else is needed.
    shape : int or (int, int)
        Size ``(ny, nx)`` of a cutout in pixels. Its first pixel is
        ``ceil(position - size / 2)``, as in `astropy.nddata.Cutout2D`.
    wcs : `~astropy.wcs.WCS`, optional
        World coordinates of the image, for positions on the sky.
    error : image, optional
        1-sigma uncertainty, in the forms of ``image``, or one 2-D plane for
        all bands.
    mask : image, optional
        `True` (or not zero) marks a bad pixel. Forms as for ``error``.
        Joined with the mask that the image brings along.
    psf : image or array_like, shape (n or 1, ky, kx, n_bands), optional
        The effective PSF. In the forms of ``image`` (2-D for all bands, one
        2-D per band, 3-D with ``band_axis``) it is the PSF of all rows; a
        4-D array has one PSF per row.
    segmentation : `~photutils.segmentation.SegmentationImage` or 2-D array \
            of int, optional
        Source labels of the image. The label of a target is the one in the
        column ``label`` if that occurs in its cutout, otherwise the one at
        its position.
    bands : sequence of str, optional
        Names of the bands; for a dict, which of its bands and in which order.
    band_axis : int, optional
        The axis of bands of 3-D arrays.
    xy_columns : (str, str), optional
        Names of the columns with pixel positions.
    sky_columns : str or (str, str), optional
        Names of the columns with sky positions, or of a ``SkyCoord``.
    id_column : str, optional
        Name of the column with identifiers. By default ``id``,
        ``source_id``, ``objid``, ``object_id`` or ``label`` if there is one
        with integers or strings, otherwise row numbers.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of a pixel (a number is in arcsec); by default that of
        the WCS.
    unit : str or `~astropy.units.Unit`, optional
        Unit of the pixel values; images with another unit are converted.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        One cutout per row, 0 where the image has no (finite) pixel.

    Raises
    ------
    ValueError
        If the catalogue has no positions, or sky positions and the image
        no celestial WCS; if shapes or numbers of bands do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.images import make_cutouts
    >>> image = np.arange(10000.0).reshape(100, 100)
    >>> stack = make_cutouts(image, Table({"x": [50, 2], "y": [50, 98]}), 16)
    >>> stack
    <CutoutStack: 2 cutouts of 16 x 16 pixels, 1 band (band_0)>
    >>> stack.flags
    array([ 0, 68], dtype=int32)
    """
    shape = check_shape("shape", shape)
    planes, unit = image_planes(image, bands=bands, band_axis=band_axis, unit=unit)
    errors = other_planes("error", error, planes, band_axis=band_axis, unit=unit)
    masks = [other_planes("mask", None, planes)]
    if mask is not None:
        masks.append(other_planes("mask", mask, planes, band_axis=band_axis))
    first = next(iter(planes.values()))
    psf = getattr(image, "psf", None) if psf is None else psf
    wcs = first.wcs if wcs is None else wcs
    catalog = as_columns(catalog)
    positions, known, position_columns = catalog_positions(
        catalog, wcs, xy_columns=xy_columns, sky_columns=sky_columns
    )
    ids, id_column = catalog_ids(catalog, id_column)
    geometry = _Geometry(positions, shape, first.array.shape)
    given = [plane for some in (errors, *masks) for plane in some if plane is not None]
    total = (len(planes) + len(given)) * len(positions)
    with progress_bar("Cutting", total, show=show_progress) as advance:
        data = geometry.cut(planes.values(), np.float32, advance)
        bad = geometry.outside(len(planes))
        for some in masks:
            if any(plane is not None for plane in some):
                bad |= geometry.cut(some, bool, advance)
        if any(plane is not None for plane in errors):
            errors = geometry.cut(errors, np.float32, advance)
        else:
            errors = None
    labels = None
    if segmentation is not None:
        segmentation = _segmentation_plane(segmentation, first.array.shape)
        segmentation = geometry.cut([segmentation], np.int32)[..., 0]
        labels = _target_labels(segmentation, catalog, geometry)
    flags = geometry.flags(known)
    _hide_non_finite(data, bad, flags)
    return CutoutStack(
        data,
        mask=bad,
        error=errors,
        psf=_make_psf(psf, planes, len(positions), band_axis),
        segmentation=segmentation,
        labels=labels,
        bands=list(planes),
        pixel_scale=wcs_pixel_scale(wcs) if pixel_scale is None else pixel_scale,
        unit=unit,
        ids=ids,
        positions=positions,
        flags=flags,
        meta={
            "image_shape": list(first.array.shape),
            "position_columns": list(position_columns),
            "id_column": id_column,
        },
    )


def _hide_non_finite(data, mask, flags):
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


class _Geometry:
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

    def flags(self, known):
        """The flag bits of where the cutouts lie."""
        flags = np.where(known & ~self.overlaps, Flag.NO_OVERLAP, 0)
        flags |= np.where(known, 0, Flag.NO_POSITION)
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
        size = max(1, _CHUNK_PIXELS // (self.shape[0] * self.shape[1]))
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
            whole = self._chunks(self.inside)
            if whole:
                windows = np.lib.stride_tricks.sliding_window_view(
                    plane.array, self.shape
                )
            for rows in whole:
                y, x = self.origin[rows].T
                self._store(plane, windows[y, x], out, rows, band)
                advance(len(rows))
            for rows in self._chunks(self.overlaps & ~self.inside):
                (y, x), exists = self._edge_indices(rows)
                stored = plane.array[y[:, :, np.newaxis], x[:, np.newaxis, :]]
                self._store(plane, np.where(exists, stored, 0), out, rows, band)
                out[rows, ..., band][~exists] = 0
                advance(len(rows))
            advance(int((~self.overlaps).sum()))
        return out

    @staticmethod
    def _store(plane, stored, out, rows, band):
        """Write stored pixels to their rows of the output."""
        rows = _Geometry._index(rows)
        if out.dtype.kind != "f":
            out[rows, ..., band] = stored
        elif isinstance(rows, slice):
            plane.values(stored, out[rows, ..., band])
        else:
            values = np.empty(stored.shape, out.dtype)
            plane.values(stored, values)
            out[rows, ..., band] = values


def _segmentation_plane(segmentation, image_shape):
    array = np.asarray(getattr(segmentation, "data", segmentation))
    if array.shape != image_shape or array.dtype.kind not in "iu":
        msg = (
            f"segmentation must be integers of shape {image_shape}, got "
            f"{array.dtype} of shape {array.shape}."
        )
        raise ValueError(msg)
    return Plane(array)


def _target_labels(segmentation, catalog, geometry):
    """The label of each target: from the catalogue, or at its position."""
    rows = np.arange(len(segmentation))
    center = geometry.center
    within = ((center >= 0) & (center < geometry.shape)).all(axis=1)
    y, x = np.where(within[:, np.newaxis], center, 0).T
    labels = np.where(within, segmentation[rows, y, x], 0)
    names = getattr(catalog, "colnames", getattr(catalog, "columns", ()))
    if "label" in names:
        column, _ = catalog_ids(catalog, "label")
        if column.dtype.kind in "iu":
            occurs = segmentation == column[:, np.newaxis, np.newaxis]
            occurs = occurs.any(axis=(1, 2)) & (column > 0)
            labels = np.where(occurs, column, labels)
    return labels


def _make_psf(psf, planes, n, band_axis):
    """The PSFs in the shape of a stack: (n or 1, ky, kx, n_bands)."""
    if psf is None or np.ndim(psf) == 4:
        return psf
    kernels, _ = image_planes(
        psf,
        bands=list(planes) if isinstance(psf, dict) else None,
        band_axis=band_axis,
    )
    if len(kernels) not in (1, len(planes)):
        msg = f"psf has {len(kernels)} bands, the image {len(planes)}."
        raise ValueError(msg)
    return np.stack([kernel.full() for kernel in kernels.values()], axis=-1)[np.newaxis]
