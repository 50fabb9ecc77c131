# Licensed under a 3-clause BSD style license - see LICENSE
"""Checks of what a stack of cutouts is made from."""

from typing import NamedTuple

import astropy.units as u
import numpy as np

from astrovae._validation import known_psfs
from astrovae.flags import Flag
from astrovae.images._neighbors import count_true

__all__ = [
    "CheckedPixels",
    "as_column",
    "as_plane",
    "check_bands",
    "check_columns",
    "check_ids",
    "check_labels",
    "check_pixel_scale",
    "check_psf",
    "float_plane",
    "in_unit",
    "mask_flags",
    "psf_flags",
    "where_any",
]


class CheckedPixels(NamedTuple):
    """
    New arrays of float32 and bool that need no second look.

    All pixels are finite, and flags tell of those that were not.
    """

    data: np.ndarray
    mask: np.ndarray


def in_unit(plane, unit):
    """Numbers of a plane in a unit; plain numbers are taken to be in it."""
    if not isinstance(plane, u.Quantity):
        return plane
    return plane.to_value(unit or u.dimensionless_unscaled)


def float_plane(name, data):
    array = np.ma.filled(np.ma.asarray(data, dtype=np.float32), np.nan)
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4:
        msg = (
            f"{name} must have the shape (n, ny, nx, n_bands) or (n, ny, nx), "
            f"got {array.shape}."
        )
        raise ValueError(msg)
    if 0 in array.shape[1:]:
        msg = f"{name} has no pixels: its shape is {array.shape}."
        raise ValueError(msg)
    return array


def as_plane(name, plane, shape):
    """A plane with the shape of the data."""
    array = np.asanyarray(plane)
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.shape == shape:
        return array
    if array.shape != (*shape[:3], 1):
        msg = f"{name} has the shape {array.shape}, the data {shape}."
        raise ValueError(msg)
    return np.broadcast_to(array, shape, subok=True)


def where_any(mask, flag):
    return mask.any(axis=(1, 2, 3)).astype(np.int32) * np.int32(flag)


def mask_flags(mask):
    share = count_true(mask) / max(mask[:1].size, 1)
    none = (share == 1).astype(np.int32) * np.int32(Flag.NO_VALID_PIXEL)
    return none | (share > 0.5).astype(np.int32) * np.int32(Flag.MOSTLY_MASKED)


def as_column(name, values, n, dtype, default):
    if values is None:
        return np.full(n, default, dtype=dtype)
    array = np.array(values, dtype=dtype)
    if array.shape != (n,):
        msg = f"{name} has the shape {array.shape}, expected ({n},)."
        raise ValueError(msg)
    return array


def check_columns(columns, n):
    """Copies of further columns: numbers or strings, one row per cutout."""
    checked = {}
    for name, values in (columns or {}).items():
        array = np.array(values)
        array = array.astype(str) if array.dtype.kind in "OS" else array
        if array.dtype.kind not in "biufU" or array.shape[:1] != (n,):
            msg = (
                f"columns[{name!r}] must hold numbers or strings for {n} cutouts, "
                f"got {array.dtype} of shape {array.shape}."
            )
            raise ValueError(msg)
        if not isinstance(name, str) or not name or "/" in name:
            msg = f"names of columns must be strings without '/', got {name!r}."
            raise ValueError(msg)
        checked[name] = array
    return checked


def check_ids(ids, n):
    array = np.asarray(ids)
    if array.dtype.kind in "OS":
        array = array.astype(str)
    if array.dtype.kind not in "iuU":
        msg = (
            f"ids must be integers or strings, got dtype {array.dtype}. Identifiers "
            "of 64 bits do not survive as floats: read them as integers."
        )
        raise ValueError(msg)
    if array.shape != (n,):
        msg = f"got {array.size} ids for {n} cutouts."
        raise ValueError(msg)
    return array.copy()


def check_bands(bands, n_bands):
    if bands is None:
        return tuple(f"band_{i}" for i in range(n_bands))
    names = (bands,) if isinstance(bands, str) else tuple(str(b) for b in bands)
    if len(names) != n_bands or len(set(names)) != n_bands:
        msg = f"bands must be {n_bands} different names, got {names}."
        raise ValueError(msg)
    return names


def check_pixel_scale(pixel_scale):
    if pixel_scale is None:
        return None
    scale = u.Quantity(pixel_scale, u.arcsec)
    if not (scale.isscalar and np.isfinite(scale) and scale > 0):
        msg = f"pixel_scale must be one positive angle, got {pixel_scale!r}."
        raise ValueError(msg)
    return scale


def check_psf(psf, shape):
    array = np.asarray(psf, dtype=np.float32)
    if array.ndim == 2:
        array = array[np.newaxis, ..., np.newaxis]
    elif array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[0] not in (1, shape[0]):
        msg = (
            f"psf must have the shape ({shape[0]} or 1, ky, kx, {shape[3]}), "
            f"got {np.shape(psf)}."
        )
        raise ValueError(msg)
    if array.shape[3] not in (1, shape[3]):
        msg = f"psf has {array.shape[3]} bands, the data {shape[3]}."
        raise ValueError(msg)
    return np.broadcast_to(array, (*array.shape[:3], shape[3]))


def psf_flags(psf):
    """Flag rows that no band has a PSF for: models mask bands without one."""
    known = known_psfs(psf).any(axis=1)
    return np.where(known, 0, Flag.NO_VALID_PIXEL).astype(np.int32)


def check_labels(segmentation, labels, shape):
    if segmentation is None:
        return None, None
    array = np.asarray(segmentation)
    if array.shape != shape[:3] or array.dtype.kind not in "iu":
        msg = (
            f"segmentation must be integers of shape {shape[:3]}, got "
            f"{array.dtype} of shape {array.shape}."
        )
        raise ValueError(msg)
    array = array.astype(np.int32, copy=False)
    if labels is None:
        labels = array[:, shape[1] // 2, shape[2] // 2]
    return array, as_column("labels", labels, shape[0], np.int32, 0)
