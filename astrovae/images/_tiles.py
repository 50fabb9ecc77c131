# Licensed under a 3-clause BSD style license - see LICENSE
"""Cutouts from many images that together cover the sky."""

import os
import warnings

import astropy.units as u
import numpy as np
from astropy.utils.exceptions import AstropyUserWarning

from astrovae.flags import Flag
from astrovae.images._inputs import (
    as_columns,
    catalog_ids,
    catalog_positions,
    find_sky_columns,
    image_planes,
    is_celestial,
    plain_column,
)
from astrovae.images.readers import read_image
from astrovae.images.stack import CutoutStack

__all__ = ["cut_tiles"]

# tiles of one survey whose pixel scales differ by more do not belong together
_SAME_SCALE = 1e-3


def cut_tiles(cut, image, catalog, shape, tiles, extras, options, show_progress):
    """
    Cut each row from its tile; one tile is open at a time.

    Parameters
    ----------
    cut : callable
        `~astrovae.images.make_cutouts`.
    image, catalog, shape, tiles
        Its arguments.
    extras : dict
        Its arguments that may differ between tiles.
    options : dict
        Its arguments that do not.
    show_progress : bool
        Whether to show a progress bar for each tile.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        Row ``i`` is row ``i`` of the catalogue.
    """
    names = _tile_names(image)
    catalog = as_columns(catalog)
    n = len(catalog)
    ids, _ = catalog_ids(catalog, options["id_column"])
    lost = {}
    if tiles is True:
        owner, known = _by_footprint(names, image, catalog, options, lost)
    elif isinstance(tiles, str):
        owner, known = _by_column(names, catalog, tiles)
    else:
        msg = f"tiles must be the name of a column, or True, got tiles={tiles!r}."
        raise ValueError(msg)
    pieces, places = [], []
    for number, name in enumerate(names):
        rows = np.flatnonzero(owner == number)
        if not len(rows) or number in lost:
            continue
        try:
            one = _Tile(names, number, image, extras)
        except _TILE_ERRORS as error:
            lost[number] = error
            continue
        unit = pieces[0].unit if pieces else None
        settings = options if unit is None else options | {"unit": unit}
        some = catalog[rows] if hasattr(catalog, "colnames") else catalog.iloc[rows]
        try:
            piece = cut(
                one.image,
                some,
                shape,
                **one.extras,
                **settings,
                show_progress=show_progress,
            )
        except OSError as error:
            lost[number] = error
            continue
        if pieces:
            _check_scales(names[0], name, pieces[0], piece)
        pieces.append(piece)
        places.append(rows)
    found = np.concatenate([np.array([], int), *places])
    missing = np.setdiff1d(np.arange(n), found)
    _warn(names, lost, owner, missing, known)
    if len(missing) or not pieces:
        pieces.append(_blank(pieces, len(missing), shape, options))
        places.append(missing)
    stack = CutoutStack.concatenate(_same_planes(pieces))
    stack = stack[np.argsort(np.concatenate(places), kind="stable")]
    flags = np.array(stack.flags)
    flags[missing] |= np.where(known[missing], Flag.NO_TILE, Flag.NO_POSITION)
    labels = np.array([str(name) for name in names] + [""])
    columns = stack.columns | {"tile": labels[owner]}
    return stack.replace(
        flags=flags,
        columns=columns,
        ids=np.arange(n) if ids is None else ids,
        meta=stack.meta | {"n_tiles": len(names)},
    )


def _tile_names(image):
    """The keys of tiles."""
    if isinstance(image, dict) and image:
        return list(image)
    if isinstance(image, (list, tuple)) and len(image):
        return list(range(len(image)))
    msg = (
        "with tiles, image must be a dict of images, or a sequence of them, got "
        f"{type(image).__name__}."
    )
    raise ValueError(msg)


class _MissingError(Exception):
    """Something of a tile is not there."""


# what a missing or damaged file gives
_TILE_ERRORS = (_MissingError, OSError)


def _open(thing):
    """An image, or what a path leads to; damaged files are missing ones."""
    if isinstance(thing, dict):
        return {key: _open(value) for key, value in thing.items()}
    if isinstance(thing, (str, os.PathLike)):
        try:
            return read_image(thing)
        except ValueError as error:
            raise _MissingError(str(error)) from error
    if thing is None:
        msg = "it is None"
        raise _MissingError(msg)
    return thing


class _Tile:
    """One tile, with what belongs to it."""

    def __init__(self, names, number, image, extras):
        self.image = _open(_pick(names, number, image))
        self.extras = {}
        for key, value in extras.items():
            if value is not None and self._differs(value, names):
                value = _open(_pick(names, number, value))
            self.extras[key] = value

    @staticmethod
    def _differs(value, names):
        """Whether there is one for each tile."""
        if isinstance(value, dict):
            return not set(map(str, names)).isdisjoint(map(str, value))
        return isinstance(value, (list, tuple)) and len(value) == len(names)


def _pick(names, number, things):
    """What belongs to a tile, by key or by number."""
    if not isinstance(things, dict):
        return things[number]
    for key, value in things.items():
        if str(key) == str(names[number]):
            return value
    msg = "it is not among them"
    raise _MissingError(msg)


def _by_column(names, catalog, column):
    """The number of the tile that a column names, -1 where it is none."""
    found = getattr(catalog, "colnames", None) or list(catalog.columns)
    if column not in found:
        msg = f"catalog has no column {column!r}; its columns are {found}."
        raise ValueError(msg)
    values = np.ma.asarray(plain_column(catalog[column]))
    numbers = {str(name): number for number, name in enumerate(names)}
    owner = [
        -1 if hidden else numbers.get(_key(value), -1)
        for value, hidden in zip(
            values.data.tolist(), np.ma.getmaskarray(values), strict=True
        )
    ]
    return np.array(owner, int), np.ones(len(owner), bool)


def _key(value):
    """The key of a tile as text, however the table stores it."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _by_footprint(names, image, catalog, options, lost):
    """The number of the tile that a position is farthest inside, else -1."""
    best = np.zeros(len(catalog))
    owner = np.full(len(catalog), -1)
    known = np.ones(len(catalog), bool)
    for number in range(len(names)):
        try:
            tile = _open(_pick(names, number, image))
        except _TILE_ERRORS as error:
            lost[number] = error
            continue
        planes, _ = image_planes(
            tile, bands=options["bands"], band_axis=options["band_axis"]
        )
        first = next(iter(planes.values()))
        if not is_celestial(first.wcs):
            msg = (
                f"tile {names[number]!r} has no celestial WCS: its footprint is not "
                "known. Name a column with the keys of tiles."
            )
            raise ValueError(msg)
        positions, known, _ = catalog_positions(
            catalog,
            first.wcs,
            xy_columns=None,
            sky_columns=options["sky_columns"] or find_sky_columns(catalog),
        )
        size = np.array(first.array.shape[::-1])
        depth = np.minimum(positions + 0.5, size - 0.5 - positions).min(axis=1)
        deeper = np.nan_to_num(depth, nan=-1.0) > best
        best[deeper], owner[deeper] = depth[deeper], number
    return owner, known


def _check_scales(first_name, name, first, piece):
    """Refuse tiles whose pixels are not of one size."""
    a, b = first.pixel_scale, piece.pixel_scale
    if a is not None and b is not None and abs(a - b) > _SAME_SCALE * a:
        msg = (
            f"tiles {first_name!r} and {name!r} have pixels of {a:.4g} and {b:.4g}. "
            "Give size as an angle to resample both."
        )
        raise ValueError(msg)


def _same_planes(pieces):
    """Make pieces alike in what they may lack: pixel scales and meta."""
    scale = pieces[0].pixel_scale
    return [piece.replace(pixel_scale=scale) for piece in pieces]


def _blank(pieces, n, shape, options):
    """Rows without a pixel, in the form of the others."""
    if pieces:
        first = pieces[0]
        planes = {"error": None, "segmentation": None, "psf": None}
        size = (n, *first.image_shape)
        if first.error is not None:
            planes["error"] = np.zeros(size, np.float32)
        if first.segmentation is not None:
            planes["segmentation"] = np.zeros(size[:3], np.int32)
        if first.psf is not None:
            # rows without pixels have no PSF: that of another row does no harm
            planes["psf"] = np.asarray(first.psf[:1])
        columns = {
            name: np.full((n, *values.shape[1:]), np.nan)
            for name, values in first.columns.items()
        }
        shared = {name: getattr(first, name) for name in ("bands", "unit", "meta")}
        ids = np.zeros(n, first.ids.dtype)
    else:
        bands = options["bands"]
        bands = ("band_0",) if bands is None else bands
        bands = (bands,) if isinstance(bands, str) else tuple(bands)
        size, planes, columns, ids = (n, *shape, len(bands)), {}, {}, None
        unit = options["unit"]
        shared = {"bands": bands, "unit": None if unit is None else u.Unit(unit)}
    return CutoutStack(
        np.zeros(size, np.float32),
        mask=np.ones(size, bool),
        positions=np.full((n, 2), np.nan),
        columns=columns,
        ids=ids,
        **planes,
        **shared,
    )


def _warn(names, lost, owner, missing, known):
    """Say once what is missing."""
    count = int(known[missing].sum())
    if not (lost or count):
        return
    reasons = [f"{names[number]!r} ({reason})" for number, reason in lost.items()]
    msg = f"{count} of {len(owner)} rows have no tile: they are masked and flagged."
    if reasons:
        msg += f" {len(lost)} of {len(names)} tiles cannot be read: {reasons[0]}"
        msg += " ..." if len(reasons) > 1 else ""
    warnings.warn(msg, AstropyUserWarning, stacklevel=4)
