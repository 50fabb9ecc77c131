# Licensed under a 3-clause BSD style license - see LICENSE
"""Sizes and PSFs of cutouts, in the forms that users have them."""

import astropy.units as u
import numpy as np

from astrovae.images._inputs import image_planes, numeric_column

__all__ = ["catalog_sizes", "is_intensive", "make_psf"]

# no cutout shows more than so many widths of the image
_MAX_WIDTHS = 2.0


def catalog_sizes(catalog, size, factor, pixel_scale, image_shape):
    """
    The widths of cutouts, in pixels of the image.

    Parameters
    ----------
    catalog : catalogue
        With named columns.
    size, factor
        As in `astrovae.images.make_cutouts`.
    pixel_scale : `~astropy.units.Quantity`, float or None
        Of the image; a number is in arcsec.
    image_shape : (int, int)
        Of the image.

    Returns
    -------
    sizes : `~numpy.ndarray`, shape (n,)
        NaN where there is none.

    Raises
    ------
    ValueError
        If ``size`` is not of these forms, or an angle of an image without
        pixel scale.
    """
    if not (np.isscalar(factor) and np.isfinite(factor) and factor > 0):
        msg = f"size_factor must be a positive number, got size_factor={factor!r}."
        raise ValueError(msg)
    n = len(catalog)
    if isinstance(size, str):
        values, unit = numeric_column(catalog, size)
    else:
        unit = getattr(size, "unit", None)
        values = getattr(size, "value", size)
        values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
        if values.ndim == 0 and not (np.isfinite(values) and values > 0):
            msg = f"size must be positive, got size={size!r}."
            raise ValueError(msg)
        if values.shape not in ((), (n,)):
            msg = f"size must be one value, or {n} for the rows, got {values.shape}."
            raise ValueError(msg)
        values = np.array(np.broadcast_to(values, (n,)))
    unit = None if unit is None else u.Unit(unit)
    if unit not in (None, u.pix, u.dimensionless_unscaled):
        if unit.physical_type != "angle":
            msg = f"size must be in pixels or an angle, its unit is {unit}."
            raise ValueError(msg)
        if pixel_scale is None:
            msg = (
                f"size is in {unit}, but the image has no celestial WCS. Give "
                "pixel_scale, or a size in pixels."
            )
            raise ValueError(msg)
        values = values * (unit / u.Quantity(pixel_scale, u.arcsec)).to_value("")
    values = values * factor
    with np.errstate(invalid="ignore"):
        valid = (values > 0) & (values <= _MAX_WIDTHS * max(image_shape))
    return np.where(valid, values, np.nan)


def is_intensive(unit):
    """Whether values in a unit are per solid angle: a surface brightness."""
    if unit is None:
        return False
    plain = u.Unit(unit).decompose()
    powers = dict(zip(plain.bases, plain.powers, strict=True))
    return powers.get(u.rad) == -2


def make_psf(psf, planes, positions, valid, band_axis):
    """
    The PSFs in the shape of a stack.

    Parameters
    ----------
    psf
        As in `astrovae.images.make_cutouts`.
    planes : dict
        The bands.
    positions : `~numpy.ndarray`, shape (n, 2)
        In pixels.
    valid : `~numpy.ndarray` of bool, shape (n,)
        Rows that are on the image; the others get the PSF of one of them.
    band_axis : int or None
        The axis of bands of a 3-D array.

    Returns
    -------
    psf : `~numpy.ndarray`, shape (n or 1, ky, kx, n_bands), or None
    """
    if psf is None:
        return None
    functions = list(psf.values()) if isinstance(psf, dict) else [psf]
    if functions and all(callable(function) for function in functions):
        if isinstance(psf, dict):
            missing = [band for band in planes if band not in psf]
            if missing:
                msg = f"psf has the bands {list(psf)}, and not {missing}."
                raise ValueError(msg)
            functions = [psf[band] for band in planes]
        return _evaluate_psf(functions, len(planes), positions, valid)
    if np.ndim(psf) == 4:
        array = np.asarray(psf)
        return np.broadcast_to(array, (*array.shape[:3], len(planes)))
    kernels, _ = image_planes(
        psf,
        bands=list(planes) if isinstance(psf, dict) else None,
        band_axis=band_axis,
    )
    if len(kernels) not in (1, len(planes)):
        msg = f"psf has {len(kernels)} bands, the image {len(planes)}."
        raise ValueError(msg)
    kernels = np.stack([kernel.full() for kernel in kernels.values()], axis=-1)
    return np.broadcast_to(kernels, (*kernels.shape[:2], len(planes)))[np.newaxis]


def _evaluate_psf(functions, n_bands, positions, valid):
    """PSFs at the positions, one row after the other."""
    rows = np.flatnonzero(valid)
    if not len(rows):
        return None
    out = None
    for row in rows:
        x, y = (float(value) for value in positions[row])
        kernels = [np.asarray(function(x, y), np.float32) for function in functions]
        kernel = kernels[0] if len(kernels) == 1 else np.stack(kernels, axis=-1)
        if kernel.ndim == 2:
            kernel = kernel[..., np.newaxis]
        if kernel.ndim != 3 or kernel.shape[2] not in (1, n_bands):
            msg = (
                "psf(x, y) must give an array of shape (ky, kx) or "
                f"(ky, kx, {n_bands}), got {kernel.shape}."
            )
            raise ValueError(msg)
        if out is None:
            out = np.empty((len(positions), *kernel.shape[:2], n_bands), np.float32)
            out[:] = kernel
        if kernel.shape[:2] != out.shape[1:3]:
            msg = (
                f"psf(x, y) must give arrays of one size, got {out.shape[1:3]} and "
                f"{kernel.shape[:2]}. Pad them to the largest."
            )
            raise ValueError(msg)
        out[row] = kernel
    return out
