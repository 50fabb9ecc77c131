# Licensed under a 3-clause BSD style license - see LICENSE
"""
The door for images and catalogues.

Whatever form they come in, inside there are 2-D planes, one per band, and
one array of pixel positions. Nothing is copied here: planes are views, so
that an image on disk stays on disk.
"""

import dataclasses
import os

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata import (
    InverseVariance,
    NDData,
    StdDevUncertainty,
    VarianceUncertainty,
)
from astropy.table import Table
from astropy.wcs import NoConvergence
from astropy.wcs.utils import proj_plane_pixel_scales, skycoord_to_pixel

from astrovae.images._file_plane import FileSection
from astrovae.images.readers import read_image

__all__ = [
    "Plane",
    "as_columns",
    "catalog_ids",
    "catalog_positions",
    "find_sky_columns",
    "image_planes",
    "is_celestial",
    "numeric_column",
    "other_planes",
    "plain_column",
    "wcs_pixel_scale",
]

_XY_NAMES = (("x", "y"), ("x_centroid", "y_centroid"), ("xcentroid", "ycentroid"))
_SKY_NAMES = (
    ("ra", "dec"),
    ("ra_icrs", "de_icrs"),
    ("raj2000", "dej2000"),
    ("alpha_j2000", "delta_j2000"),
)
_ID_NAMES = ("id", "source_id", "objid", "object_id", "label")
# positions from a WCS are not known better than this, in pixels
_SAME_PIXEL = 1e-6
_STD_FROM = {
    StdDevUncertainty: lambda values: values,
    VarianceUncertainty: np.sqrt,
    InverseVariance: lambda values: 1 / np.sqrt(values),
}
# the power of the unit of an uncertainty that is the unit of the pixels
_STD_POWER = {StdDevUncertainty: 1, VarianceUncertainty: 0.5, InverseVariance: -0.5}


@dataclasses.dataclass
class Plane:
    """
    One 2-D plane, and how to read pixels from it.

    Attributes
    ----------
    array : `~numpy.ndarray`, shape (ny, nx)
        The stored values, in any byte order, in memory or not.
    mask : `~numpy.ndarray` of bool or None
        The mask that the array brought along.
    unit : `~astropy.units.Unit` or None
        Unit of the stored values.
    uncertainty : `Plane` or None
        The error plane that the array brought along.
    wcs : WCS or None
        The world coordinates that the array brought along.
    factor : float
        What stored values are multiplied with.
    transform : callable or None
        What stored values are passed through, before the factor.
    band_axis : int or None
        The axis of bands of the 3-D array that this is a part of.
    """

    array: np.ndarray
    mask: np.ndarray | None = None
    unit: u.UnitBase | None = None
    uncertainty: "Plane | None" = None
    wcs: object = None
    factor: float = 1.0
    transform: object = None
    band_axis: int | None = None

    def values(self, stored, out):
        """Write stored pixels as they should be into ``out``."""
        if self.transform is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                stored = self.transform(np.asarray(stored, dtype=float))
        # values beyond float32 become infinite, and are masked as such
        with np.errstate(over="ignore", invalid="ignore"):
            if self.factor == 1:
                out[...] = stored
            else:
                np.multiply(stored, self.factor, out=out, casting="unsafe")

    def full(self):
        """The whole plane in float32."""
        out = np.empty(self.array.shape, np.float32)
        self.values(self.array, out)
        return out

    def convert(self, unit):
        """Make values come out in ``unit``."""
        if unit is not None and self.unit is not None and unit != self.unit:
            self.factor *= self.unit.to(unit)
            self.unit = unit


def _as_planes(name, image, bands, band_axis):
    """Split an image into ``{band: Plane}``; the keys are None if unnamed."""
    if isinstance(image, dict):
        missing = [band for band in bands or () if band not in image]
        if missing or not image:
            msg = f"{name} has the bands {list(image)}, and not {missing}."
            raise ValueError(msg)
        return {b: _as_plane(name, _opened(image[b])) for b in bands or image}
    image = _opened(image)
    if isinstance(image, (list, tuple)):
        image = [_opened(item) for item in image]
        if image and np.ndim(_values(image[0])) == 2:
            return {i: _as_plane(name, item) for i, item in enumerate(image)}
    if np.ndim(_values(image)) == 3:
        n_dim = 3
        if band_axis is None or not -n_dim <= band_axis < n_dim:
            msg = (
                f"{name} is 3-D, of shape {np.shape(_values(image))}: give its axis "
                f"of bands as band_axis=0, 1 or 2 (got {band_axis!r})."
            )
            raise ValueError(msg)
        n_bands = np.shape(_values(image))[band_axis]
        index = [slice(None)] * n_dim
        planes = {}
        for i in range(n_bands):
            index[band_axis] = i
            planes[i] = _as_plane(name, image, tuple(index))
            planes[i].band_axis = band_axis
        return planes
    return {0: _as_plane(name, image)}


def _opened(image):
    """An image, read if it is named by its path."""
    return read_image(image) if isinstance(image, (str, os.PathLike)) else image


def _values(image):
    """The bare numbers of an array-like, to ask for its shape."""
    return image.data if isinstance(image, NDData) else image


def _as_plane(name, image, index=...):
    """View an array-like as one plane."""
    mask = unit = uncertainty = wcs = None
    array = image
    if isinstance(image, NDData):
        array, mask, unit, wcs = image.data, image.mask, image.unit, image.wcs
        if image.uncertainty is not None:
            uncertainty = _uncertainty(image.uncertainty, index)
    if isinstance(array, u.Quantity):
        unit = array.unit
        array = array.value
    if hasattr(array, "unmasked"):
        mask = array.mask
        array = array.unmasked
    if isinstance(array, np.ma.MaskedArray):
        mask = array.mask if array.mask is not np.ma.nomask else mask
        array = array.data
    if not isinstance(array, FileSection):
        array = np.asarray(array)[index]
    elif index is not ...:
        axis = next(axis for axis, one in enumerate(index) if one != slice(None))
        array = array.hold(axis, index[axis])
    if array.ndim != 2 or array.dtype.kind not in "biuf" or array.size == 0:
        msg = (
            f"{name} must be a 2-D array of numbers, one per band, got "
            f"{array.dtype} of shape {array.shape}."
        )
        raise ValueError(msg)
    if mask is not None:
        mask = np.broadcast_to(mask, np.shape(_values(image)))[index]
    return Plane(array, mask, unit, uncertainty, wcs)


def _uncertainty(uncertainty, index):
    """The error plane of an NDData."""
    for kind, transform in _STD_FROM.items():
        if isinstance(uncertainty, kind):
            array = np.asarray(uncertainty.array)[index]
            unit = uncertainty.unit
            if unit is not None:
                unit = unit ** _STD_POWER[kind]
            return Plane(array, unit=unit, transform=transform)
    return None


def image_planes(image, *, bands=None, band_axis=None, unit=None):
    """
    View an image as one plane per band.

    Parameters
    ----------
    image, bands, band_axis, unit
        As in `astrovae.images.make_cutouts`.

    Returns
    -------
    planes : dict of str to `Plane`
        All of one shape and unit.
    unit : `~astropy.units.Unit` or None
        That unit.

    Raises
    ------
    ValueError
        If shapes, the number of bands, or units do not fit.
    """
    image = _opened(image)
    if isinstance(image, NDData) and "band_axis" in image.meta:
        # our own data sets say in meta what their third axis is
        band_axis = image.meta["band_axis"] if band_axis is None else band_axis
        bands = image.meta.get("bands") if bands is None else bands
    names = None if bands is None else (bands,) if isinstance(bands, str) else bands
    planes = _as_planes("image", image, names, band_axis)
    if names is None:
        unnamed = not isinstance(image, dict)
        names = [f"band_{key}" if unnamed else str(key) for key in planes]
    if len(names) != len(planes):
        msg = (
            f"image has {len(planes)} band{'s' * (len(planes) != 1)}, "
            f"bands names {len(names)}: {list(names)}."
        )
        raise ValueError(msg)
    shapes = {name: plane.array.shape for name, plane in zip(names, planes.values())}
    if len(set(shapes.values())) != 1:
        msg = f"the bands must share one pixel grid, got the shapes {shapes}."
        raise ValueError(msg)
    given = None if unit is None else u.Unit(unit)
    units = {name: plane.unit for name, plane in zip(names, planes.values())}
    if None in units.values() and set(units.values()) != {None}:
        msg = f"either all bands must have a unit or none, got {units}."
        raise ValueError(msg)
    for plane in planes.values():
        given = given or plane.unit
        plane.convert(given)
        if plane.uncertainty is None:
            continue
        if plane.uncertainty.unit is None:
            # an error without a unit is in that of its pixels
            plane.uncertainty.factor = plane.factor
        else:
            plane.uncertainty.convert(given)
    return dict(zip(names, planes.values(), strict=True)), given


def other_planes(name, image, planes, *, band_axis=None, unit=None):
    """
    View an error or mask image as one plane per band of the image.

    Parameters
    ----------
    name : str
        What to call it in errors.
    image : image or None
        In the forms of the image, or one 2-D plane for all bands. `None`
        takes what the image brought along.
    planes : dict of str to `Plane`
        The bands of the image.
    band_axis : int, optional
        The axis of bands if ``image`` is 3-D; by default that of the bands.
    unit : `~astropy.units.Unit`, optional
        Convert to this unit.

    Returns
    -------
    others : list of (`Plane` or None)
        One per band.
    """
    if image is None:
        if name == "mask":
            return [
                p.mask if p.mask is None else Plane(p.mask) for p in planes.values()
            ]
        return [plane.uncertainty for plane in planes.values()]
    if band_axis is None:
        band_axis = next(iter(planes.values())).band_axis
    named = isinstance(image, dict)
    others = list(
        _as_planes(name, image, list(planes) if named else None, band_axis).values()
    )
    if len(others) == 1:
        others *= len(planes)
    if len(others) != len(planes):
        msg = f"{name} has {len(others)} bands, the image {len(planes)}."
        raise ValueError(msg)
    shape = next(iter(planes.values())).array.shape
    for other in others:
        if other.array.shape != shape:
            msg = f"{name} has the shape {other.array.shape}, the image {shape}."
            raise ValueError(msg)
        other.convert(unit)
    return others


def _names(catalog):
    """The column names of a table, a data frame or photutils' catalogue."""
    if hasattr(catalog, "colnames"):
        return list(catalog.colnames)
    if hasattr(catalog, "columns"):
        return [str(name) for name in catalog.columns]
    msg = (
        "catalog must be an astropy Table, a pandas DataFrame, a photutils "
        f"SourceCatalog or a SkyCoord, got {type(catalog).__name__}."
    )
    raise TypeError(msg)


def as_columns(catalog):
    """Reduce any catalogue to something with named columns."""
    if isinstance(catalog, SkyCoord):
        return Table({"coord": np.atleast_1d(catalog)})
    if hasattr(catalog, "x_centroid") and hasattr(catalog, "label"):
        # photutils' SourceCatalog measures what it is asked for: ask for little
        return Table(
            {
                name: np.atleast_1d(getattr(catalog, name))
                for name in ("label", "x_centroid", "y_centroid")
            }
        )
    _names(catalog)
    return catalog


def _find(names, wanted):
    """The first of the ``wanted`` groups of names that is there in any case."""
    lower = {}
    for name in names:
        # an exact name wins over one that differs in capitals
        if name.lower() not in lower or name == name.lower():
            lower[name.lower()] = name
    for group in wanted:
        if all(name in lower for name in group):
            return tuple(lower[name] for name in group)
    return None


def numeric_column(catalog, name):
    """A column as a plain masked float array, and its unit."""
    if name not in _names(catalog):
        msg = f"catalog has no column {name!r}; its columns are {_names(catalog)}."
        raise ValueError(msg)
    column = catalog[name]
    unit = getattr(column, "unit", None)
    try:
        if hasattr(column, "to_numpy"):
            column = column.to_numpy(dtype=float, na_value=np.nan)
        if hasattr(column, "unmasked"):
            column = np.ma.array(u.Quantity(column.unmasked).value, mask=column.mask)
        column = getattr(column, "value", column)
        values = np.ma.asarray(column).astype(float)
    except (TypeError, ValueError) as error:
        msg = f"column {name!r} must hold numbers, got dtype {column.dtype}."
        raise ValueError(msg) from error
    if values.ndim != 1:
        msg = f"column {name!r} must hold one number per row, got {values.shape}."
        raise ValueError(msg)
    return values.filled(np.nan), unit


def catalog_positions(catalog, wcs, *, xy_columns=None, sky_columns=None):
    """
    Find the positions of a catalogue, in pixels.

    Parameters
    ----------
    catalog, wcs, xy_columns, sky_columns
        As in `astrovae.images.make_cutouts`.

    Returns
    -------
    positions : `~numpy.ndarray`, shape (n, 2)
        Pixel positions (x, y); NaN where the catalogue has none.
    known : `~numpy.ndarray` of bool, shape (n,)
        Whether the catalogue has a position. Known positions can be NaN in
        pixels: on the far side of the sky.
    names : tuple of str
        The columns that were used.

    Raises
    ------
    ValueError
        If there are no positions, or sky positions and no celestial WCS.
    """
    names = _names(catalog)
    if xy_columns is not None and sky_columns is not None:
        msg = "give either xy_columns or sky_columns, not both."
        raise ValueError(msg)
    if xy_columns is None and sky_columns is None:
        xy_columns = _find(names, _XY_NAMES)
        if xy_columns is None:
            sky_columns = find_sky_columns(catalog, names)
    if xy_columns is not None:
        xy_columns = _pair("xy_columns", xy_columns)
        xy = [_pixels(name, *numeric_column(catalog, name)) for name in xy_columns]
        positions = np.stack(xy, axis=-1)
        known = np.isfinite(positions).all(axis=1)
        positions[~known] = np.nan
        return positions, known, tuple(xy_columns)
    if isinstance(sky_columns, str):
        sky_columns = (sky_columns,)
    coords, known = _sky_coords(catalog, sky_columns)
    positions = np.full((len(known), 2), np.nan)
    if not is_celestial(wcs):
        msg = (
            f"the positions are on the sky (columns {', '.join(sky_columns)}), but "
            "the image has no celestial WCS. Give one as wcs, or positions in pixels."
        )
        raise ValueError(msg)
    if known.any():
        positions[known] = _snap(_to_pixels(coords[known], wcs))
    return positions, known, tuple(sky_columns)


def _snap(positions):
    """
    Put what is nearly in the middle or at the edge of a pixel exactly there.

    Otherwise the last digits of the WCS decide which pixels such a cutout has.
    """
    halves = np.round(2 * positions) / 2
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(positions - halves) < _SAME_PIXEL, halves, positions)


def _pair(name, columns):
    if isinstance(columns, str) or len(columns) != 2:
        msg = f"{name} must be two column names, got {columns!r}."
        raise ValueError(msg)
    return tuple(columns)


def _pixels(name, values, unit):
    if unit is not None and u.Unit(unit) not in (u.pix, u.dimensionless_unscaled):
        msg = f"column {name!r} must be in pixels, its unit is {unit}."
        raise ValueError(msg)
    return values


def find_sky_columns(catalog, names=None):
    """The columns with sky positions, found by type, then by name."""
    names = _names(catalog) if names is None else names
    coords = [name for name in names if isinstance(catalog[name], SkyCoord)]
    if len(coords) > 1:
        msg = f"catalog has several coordinates, {coords}: name one as sky_columns."
        raise ValueError(msg)
    found = (coords[0],) if coords else _find(names, _SKY_NAMES)
    if found is None:
        looked = ", ".join(f"{a}/{b}" for a, b in (*_XY_NAMES, *_SKY_NAMES))
        msg = (
            f"catalog has no positions: looked for {looked} and for a SkyCoord, "
            f"found the columns {names}. Name them as xy_columns or sky_columns."
        )
        raise ValueError(msg)
    return found


def _sky_coords(catalog, columns):
    """Sky coordinates, and which of them are known."""
    if len(columns) == 1 and columns[0] in _names(catalog):
        coords = catalog[columns[0]]
        if isinstance(coords, SkyCoord):
            mask = np.broadcast_to(getattr(coords, "mask", False), coords.shape)
            lonlat = [
                np.asarray(getattr(angle, "unmasked", angle).value)
                for angle in (coords.spherical.lon, coords.spherical.lat)
            ]
            return coords, ~mask & np.isfinite(lonlat).all(axis=0)
        msg = f"column {columns[0]!r} is not a SkyCoord; name the two columns."
        raise ValueError(msg)
    angles = []
    for name in _pair("sky_columns", columns):
        values, unit = numeric_column(catalog, name)
        angles.append(u.Quantity(values, unit or u.deg).to_value(u.deg))
    lon, lat = angles
    known = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
    zero = np.where(known, 0, np.nan)
    return SkyCoord(lon + zero, np.where(known, lat, np.nan), unit=u.deg), known


def _to_pixels(coords, wcs):
    """All coordinates in one call; NaN where the WCS cannot say."""
    if not hasattr(wcs, "wcs"):
        return np.stack(wcs.world_to_pixel(coords), axis=-1)
    try:
        xy = skycoord_to_pixel(coords, wcs, mode="all")
    except NoConvergence as error:
        # a distorted WCS has no solution far outside of its image
        solution = error.best_solution.copy()
        for bad in (error.divergent, error.slow_conv):
            if bad is not None:
                solution[bad] = np.nan
        return solution
    return np.stack([np.asarray(getattr(v, "unmasked", v)) for v in xy], axis=-1)


def catalog_ids(catalog, id_column=None):
    """
    Find the identifiers of a catalogue.

    Returns
    -------
    ids : `~numpy.ndarray` or None
        Integers or strings; `None` means row numbers.
    name : str or None
        The column that they are from.
    """
    names = _names(catalog)
    wanted = [id_column] if id_column else []
    if not wanted:
        found = (_find(names, [(name,)]) for name in _ID_NAMES)
        wanted = [name[0] for name in found if name]
    elif id_column not in names:
        msg = f"catalog has no column {id_column!r}; its columns are {names}."
        raise ValueError(msg)
    for name in wanted:
        ids = np.ma.asarray(plain_column(catalog[name]))
        if ids.dtype.kind == "O" and all(isinstance(value, str) for value in ids):
            ids = ids.astype(str)
        usable = ids.ndim == 1 and ids.dtype.kind in "iuUS"
        if name.lower() == "label" and not id_column:
            # labels of classes are no identifiers, those of sources are
            usable = usable and len(np.unique(ids)) == len(ids)
        if usable and not np.ma.is_masked(ids):
            return ids.data, name
        if id_column:
            msg = (
                f"column {name!r} cannot be used as identifiers: it must hold "
                "integers or strings, none of them missing."
            )
            raise ValueError(msg)
    return None, None


def plain_column(column):
    """The values of a column, without units, masked where they are missing."""
    if hasattr(column, "to_numpy"):
        return column.to_numpy()
    if hasattr(column, "unmasked"):
        return np.ma.array(column.unmasked, mask=column.mask)
    return getattr(column, "value", column)


def is_celestial(wcs):
    """Whether a WCS (of FITS, or any that follows APE 14) knows the sky."""
    if wcs is None or hasattr(wcs, "has_celestial"):
        return wcs is not None and wcs.has_celestial
    return any(str(kind).startswith("pos.") for kind in wcs.world_axis_physical_types)


def wcs_pixel_scale(wcs):
    """The angular size of a pixel, or None if the WCS does not say."""
    if not is_celestial(wcs) or not hasattr(wcs, "celestial"):
        return None
    celestial = wcs.celestial
    scales = proj_plane_pixel_scales(celestial)
    sides = [scale * u.Unit(unit) for scale, unit in zip(scales, celestial.wcs.cunit)]
    return np.sqrt(sides[0] * sides[1]).to(u.arcsec)
