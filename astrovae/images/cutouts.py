# Licensed under a 3-clause BSD style license - see LICENSE
"""Cutouts of every galaxy of a catalogue, with all that belongs to them."""

import os

import astropy.units as u
import numpy as np

from astrovae._progress import progress_bar
from astrovae._validation import check_shape
from astrovae.flags import Flag
from astrovae.images._checks import CheckedPixels
from astrovae.images._geometry import Geometry
from astrovae.images._inputs import (
    Plane,
    as_columns,
    catalog_ids,
    catalog_positions,
    image_planes,
    other_planes,
    wcs_pixel_scale,
)
from astrovae.images._resample import Resampled, resample_psf
from astrovae.images._sizes import catalog_sizes, is_intensive, make_psf
from astrovae.images._tiles import cut_tiles
from astrovae.images.stack import CutoutStack

__all__ = ["make_cutouts"]

# pixel scales are the same if they differ by less than this share
_SAME_SCALE = 1e-6
# a cutout with more pixels is a mistake
_MAX_PIXELS = 1 << 30


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
    size=None,
    size_factor=1.0,
    recenter=False,
    tiles=None,
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
        A path names a FITS file, as for `read_image`; images on disk are read
        where they are cut, tile-compressed ones as well. With ``tiles``, a
        dict or sequence of images that together cover the sky.
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
        ``ceil(position - shape / 2)``, as in `astropy.nddata.Cutout2D`,
        unless ``size`` or ``recenter`` is given.
    wcs : `~astropy.wcs.WCS`, optional
        World coordinates of the image, for positions on the sky.
    error : image, optional
        1-sigma uncertainty, in the forms of ``image``, or one 2-D plane for
        all bands.
    mask : image, optional
        `True` (or not zero) marks a bad pixel. Forms as for ``error``.
        Joined with the mask that the image brings along.
    psf : image, callable or array_like, shape (n or 1, ky, kx, n_bands), optional
        The effective PSF. In the forms of ``image`` (2-D for all bands, one
        2-D per band, 3-D with ``band_axis``) it is the PSF of all rows; a
        4-D array has one PSF per row. ``psf(x, y)``, or a dict with one such
        function per band, gives the PSF at a position in pixels, 2-D or
        (ky, kx, n_bands).
    segmentation : `~photutils.segmentation.SegmentationImage` or 2-D array \
            of int, optional
        Source labels of the image. The label of a target is the one in the
        column ``label`` if that occurs in its cutout, otherwise the one at
        its position.
    bands : sequence of str, optional
        Names of the bands; for a dict, which of its bands and in which order.
    band_axis : int, optional
        The axis of bands of 3-D arrays. An image that says it itself, as those of
        `~astrovae.datasets.make_survey`, says it for its mask and errors as well.
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
    size : float, `~astropy.units.Quantity`, str or array_like, optional
        The width of what a cutout shows: an angle, a number of pixels of the
        image, the name of a column with either, or one value per row. The
        image is resampled to pixels that are ``size / nx`` wide, centred on the
        position: by the area that pixels have in common, so that flux is
        conserved, or surface brightness if the unit is one. Any bad pixel that
        it touches makes a pixel bad. Rows without a valid size are masked.
    size_factor : float, optional
        The size is multiplied by this, e.g. 4 to show 4 radii of a column.
    recenter : bool, optional
        Move the pixels by a fraction of a pixel, so that positions are at the
        centre, ``((nx - 1) / 2, (ny - 1) / 2)``. The interpolation conserves
        the flux and the variance of white noise, and leaves it white; it needs
        images that are sampled well enough (a PSF of 2 pixels or more). Pixels
        next to bad ones become bad.
    tiles : str or True, optional
        The image is a dict or sequence of tiles, each an image in one of
        the forms above, with its WCS, mostly a path. A name is that of the
        column with the keys (or numbers) of tiles; `True` takes for each row
        the tile with the position farthest inside. Then ``error``, ``mask``,
        ``psf`` and ``segmentation`` have the same keys (or length), or hold for
        all tiles. Rows whose tile is missing or damaged are masked and flagged.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        One cutout per row, 0 where the image has no (finite) pixel. Its
        ``columns`` have what differs between rows: ``cutout_size`` (width in
        pixels of the image) and ``pixel_scale`` (arcsec) with ``size``,
        ``shift_x`` and ``shift_y`` (pixels) with ``recenter``, and ``tile``.

    Raises
    ------
    ValueError
        If the catalogue has no positions, or sky positions and the image
        no celestial WCS; if shapes or numbers of bands do not fit, or a cutout
        has more than 2**30 pixels.
    MemoryError
        If the cutouts need more memory than the machine has; nothing is cut then.

    Warns
    -----
    ~astropy.utils.exceptions.AstropyUserWarning
        If tiles are missing: how many, and how many rows are lost.

    Notes
    -----
    Errors are those of each pixel, the root of the sum of ``(w sigma)**2`` over the
    pixels of the image, with their weights ``w``. Resampled to smaller pixels, noise is
    correlated between pixels, which errors do not say.

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
    options = {"wcs": wcs, "bands": bands, "band_axis": band_axis, "unit": unit}
    options |= {"xy_columns": xy_columns, "sky_columns": sky_columns}
    options |= {"id_column": id_column, "pixel_scale": pixel_scale}
    options |= {"size": size, "size_factor": size_factor, "recenter": recenter}
    shape = check_shape("shape", shape)
    if shape[0] * shape[1] > _MAX_PIXELS:
        msg = (
            f"shape={shape} is {shape[0] * shape[1]:,} pixels per cutout, expected at "
            f"most {_MAX_PIXELS:,}. shape is in pixels; an angle is given as size."
        )
        raise ValueError(msg)
    extras = {"error": error, "mask": mask, "psf": psf, "segmentation": segmentation}
    if tiles is not None:
        return cut_tiles(
            make_cutouts, image, catalog, shape, tiles, extras, options, show_progress
        )
    planes, unit = image_planes(image, bands=bands, band_axis=band_axis, unit=unit)
    errors = other_planes("error", error, planes, band_axis=band_axis, unit=unit)
    masks = [other_planes("mask", None, planes)]
    if mask is not None:
        masks.append(other_planes("mask", mask, planes, band_axis=band_axis))
    first = next(iter(planes.values()))
    psf = getattr(image, "psf", None) if psf is None else psf
    wcs = first.wcs if wcs is None else wcs
    scale = wcs_pixel_scale(wcs) if pixel_scale is None else pixel_scale
    catalog = as_columns(catalog)
    positions, known, position_columns = catalog_positions(
        catalog, wcs, xy_columns=xy_columns, sky_columns=sky_columns
    )
    ids, id_column = catalog_ids(catalog, id_column)
    image_shape = first.array.shape
    has_errors = any(plane is not None for plane in errors)
    n_bytes = (9 if has_errors else 5) * len(planes)
    n_bytes += 4 * (segmentation is not None)
    _check_memory(len(positions), shape, n_bytes)
    columns, step = {}, None
    if size is not None:
        columns["cutout_size"] = catalog_sizes(
            catalog, size, size_factor, scale, image_shape
        )
        step = columns["cutout_size"] / shape[1]
        if scale is not None:
            columns["pixel_scale"] = step * u.Quantity(scale, u.arcsec).value
            scale = _common_scale(columns["pixel_scale"])
    if step is None and not recenter:
        geometry = Geometry(positions, shape, image_shape)
    else:
        intensive = is_intensive(unit)
        geometry = Resampled(positions, shape, image_shape, step, intensive=intensive)
        if step is None:
            columns["shift_x"], columns["shift_y"] = geometry.shifts.T
    if segmentation is not None:
        segmentation = _segmentation_plane(segmentation, image_shape)
    given = [plane for some in (errors, *masks) for plane in some if plane is not None]
    total = (len(planes) + len(given)) * len(positions) if step is None else len(known)
    with progress_bar("Cutting", total, show=show_progress) as advance:
        cut = geometry.cut_all(
            list(planes.values()), errors, masks, segmentation, advance
        )
    labels = None
    if segmentation is not None:
        labels = _target_labels(cut["segmentation"], catalog, geometry)
    cut["flags"] = _complete_flags(cut["flags"], known, step)
    band_axis = first.band_axis if band_axis is None else band_axis
    psf = make_psf(psf, planes, positions, geometry.overlaps, band_axis)
    if psf is not None and step is not None and len(psf) in (1, len(step)):
        psf = resample_psf(psf, step)
    return CutoutStack(
        CheckedPixels(cut.pop("data"), cut.pop("mask")),
        **cut,
        psf=psf,
        labels=labels,
        bands=list(planes),
        pixel_scale=scale,
        unit=unit,
        ids=ids,
        positions=positions,
        columns=columns,
        meta={
            "image_shape": list(image_shape),
            "position_columns": list(position_columns),
            "id_column": id_column,
        },
    )


def _check_memory(n, shape, n_bytes):
    """Refuse what cannot fit, before the machine tries."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # the system does not say
        return
    needed = n * shape[0] * shape[1] * n_bytes
    if 0 < memory < needed:
        msg = (
            f"{n:,} cutouts of {shape[0]} x {shape[1]} pixels need "
            f"{needed / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f} GiB. "
            "Cut some rows of the catalogue at a time, or smaller cutouts."
        )
        raise MemoryError(msg)


def _complete_flags(flags, known, step):
    """Flags of pixels, with those of rows that lack a size or a position."""
    if step is not None:
        unknown = np.isnan(step)
        flags = np.where(unknown, Flag.NO_SIZE, flags)
    return np.where(known, flags, Flag.NO_POSITION).astype(np.int32)


def _common_scale(scales):
    """The pixel scale in arcsec if it is that of all cutouts."""
    known = scales[np.isfinite(scales)]
    if len(known) and np.ptp(known) <= _SAME_SCALE * known[0]:
        return known[0]
    return None


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
