# Licensed under a 3-clause BSD style license - see LICENSE
"""The generator that learned ones have to beat: Sersic profiles."""

import astropy.units as u
import numpy as np

from astrovae._optional import require
from astrovae.images import CutoutStack

__all__ = ["parametric_galaxies"]

# What GalSim can draw.
_MIN_INDEX, _MAX_INDEX = 0.3, 6.2
# GalSim tabulates each index: with so many digits, few tables do for all galaxies.
_INDEX_DIGITS = 2
_MIN_AXIS_RATIO, _MIN_RADIUS = 0.05, 0.02
# Fourier transforms of more pixels than the first, a side, are made smaller by cutting
# off light far outside the cutout; of more than the second they are not made.
_LARGE, _TOO_LARGE = 1024, 4096
_NAMES = ("flux", "half_light_radius", "sersic_index", "axis_ratio", "angle")
_SERSIC_FIT = {
    "flux": "sersic_flux",
    "half_light_radius": "sersic_r_eff",
    "sersic_index": "sersic_n",
    "axis_ratio": "sersic_axis_ratio",
    "angle": "sersic_theta",
    "x": "sersic_x",
    "y": "sersic_y",
}


def parametric_galaxies(properties, like, *, noise=None, seed=0):
    """
    Draw Sersic profiles of given properties, observed as real galaxies were.

    The baseline of learned generators: properties are met exactly, and there is
    nothing else. With the properties that `~astrovae.baselines.SersicFit` gives of real
    galaxies it is a strong one.

    Parameters
    ----------
    properties : `~astropy.table.Table`
        A row per galaxy, with columns

        ``flux``
            Total flux, ``(n,)`` or ``(n, n_bands)``; without a unit, in that of
            ``like``.
        ``half_light_radius``
            Along the major axis: a `~astropy.units.Quantity`, or in pixels.
        ``sersic_index``
            Clipped to what GalSim draws, 0.3 to 6.2.
        ``axis_ratio``, ``angle``
            Minor over major axis; position angle counter-clockwise from the x axis of
            the array, a `~astropy.units.Quantity`, or in degrees.
        ``x``, ``y``
            Optional: centre in pixels of the cutout, 0-based, by default its middle.

        The columns ``sersic_*`` of `~astrovae.catalog.add_baselines` will do, too.
    like : `~astrovae.images.CutoutStack`
        As many observed galaxies: shape, bands, PSFs (effective ones), errors and masks
        are taken from them, row by row.
    noise : float or sequence of float, optional
        1-sigma noise of each band, if ``like`` has no errors; 0 for none.
    seed : int, optional
        Seed of the noise.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        The galaxies. Where a property is not finite, or a profile too much larger than
        the cutout to be drawn behind its PSF, all pixels are masked.

    Raises
    ------
    ImportError
        If GalSim is not installed.
    ValueError
        If columns are missing, or their length is not that of ``like``; if units do
        not convert; or if the noise is not known.

    Notes
    -----
    Without a PSF, profiles are averaged over pixels.

    References
    ----------
    Rowe et al. 2015, Astronomy and Computing 10, 121 (arXiv:1407.7676), for GalSim.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import parametric_galaxies
    >>> truth, stack = make_galaxies(4, shape=32, seed=1)
    >>> truth["sersic_index"] = 1.5
    >>> parametric_galaxies(truth, stack).data.shape
    (4, 32, 32, 1)
    """
    galsim = require("galsim", extra="sim")
    n, ny, nx, n_bands = like.data.shape
    values = _properties(properties, like)
    if like.error is None and noise is None:
        msg = (
            "the noise is not known: these galaxies have no error plane. Give "
            "noise=..., a 1-sigma value for each band."
        )
        raise ValueError(msg)
    usable = np.all(
        [np.isfinite(v).reshape(n, -1).all(axis=1) for v in values.values()], axis=0
    )
    usable &= (values["half_light_radius"] > 0) & (values["axis_ratio"] > 0)
    data = np.zeros(like.data.shape)
    psfs = _Psfs(galsim, like)
    for i in np.flatnonzero(usable):
        image = None
        for band in range(n_bands):
            psf = psfs(i, band)
            # without a PSF, bands differ by their flux alone
            if psf is not None or image is None:
                image = _draw(galsim, values, i, (ny, nx), psf)
            if image is None:
                usable[i] = False
                break
            data[i, ..., band] = values["flux"][i, band] * image
    rng = np.random.default_rng(seed)
    if noise is None:
        error = np.asarray(like.error, dtype=float)
        usual = np.where(np.isfinite(error), error, 0.0)
    else:
        usual = np.broadcast_to(np.asarray(noise, dtype=float), data.shape)
    data += usual * rng.standard_normal(data.shape)
    mask = np.array(like.mask)
    mask[~usable] = True
    return CutoutStack(
        data,
        mask=mask,
        error=like.error,
        psf=like.psf,
        bands=like.bands,
        pixel_scale=like.pixel_scale,
        unit=like.unit,
        ids=like.ids,
        steps=like.steps,
    )


def _properties(properties, like):
    """Arrays of plain numbers, in pixels and radians."""
    columns = properties.colnames
    fitted = "flux" not in columns and "sersic_flux" in columns
    names = {name: _SERSIC_FIT[name] if fitted else name for name in _SERSIC_FIT}
    missing = [names[name] for name in _NAMES if names[name] not in columns]
    if missing:
        msg = f"properties must have the columns {missing}, got {columns}."
        raise ValueError(msg)
    n, n_bands = len(like), len(like.bands)
    if len(properties) != n:
        msg = f"got {len(properties)} rows of properties for {n} galaxies."
        raise ValueError(msg)
    scale = like.pixel_scale
    units = {"angle": u.deg}
    values = {}
    for name in (*_NAMES, "x", "y"):
        if names[name] not in columns:
            continue
        column = properties[names[name]]
        value = np.ma.filled(np.ma.asarray(column, dtype=float), np.nan)
        unit = getattr(column, "unit", None)
        if name == "half_light_radius" and unit not in (None, u.pix):
            if scale is None:
                msg = (
                    f"{names[name]} is in {unit}, and the cutouts have no pixel scale."
                )
                raise ValueError(msg)
            value = value * unit.to(u.arcsec) / scale.to_value(u.arcsec)
        if name == "flux" and None not in (unit, like.unit):
            value = value * _factor(unit, like.unit)
        if name == "angle":
            value = value * (unit or units[name]).to(u.rad)
        values[name] = np.array(value, dtype=float)
    flux = values["flux"]
    values["flux"] = np.broadcast_to(flux.reshape(n, -1), (n, n_bands))
    return values


def _factor(unit, wanted):
    """What takes fluxes from one unit to another."""
    try:
        return unit.to(wanted)
    except u.UnitConversionError as error:
        msg = f"the flux is in {unit}, which is no {wanted}, the unit of the cutouts."
        raise ValueError(msg) from error


def _draw(galsim, values, i, shape, psf):
    """Draw the galaxy with flux one, or nothing where that takes too much memory."""
    ny, nx = shape
    middle = ((nx - 1) / 2, (ny - 1) / 2)
    options = {"nx": nx, "ny": ny, "scale": 1.0}
    if psf is None:
        # cusps that no PSF has smoothed would take huge Fourier transforms
        galaxy = _profile(galsim, values, i, middle)
        return galaxy.drawImage(method="real_space", **options).array.astype(float)
    side = np.inf
    for edge in (None, 0.5 * np.hypot(nx, ny) + max(psf.image.array.shape)):
        if side > _LARGE:
            galaxy = _profile(galsim, values, i, middle, edge)
            galaxy = galsim.Convolve(galaxy, psf)
            side = galaxy.getGoodImageSize(1.0)
    if side > _TOO_LARGE:
        return None
    return galaxy.drawImage(method="no_pixel", **options).array.astype(float)


def _profile(galsim, values, i, middle, edge=None):
    """The galaxy of flux one before the PSF, in pixels; cut off outside an edge."""
    index = np.round(values["sersic_index"][i], _INDEX_DIGITS)
    ratio = np.clip(values["axis_ratio"][i], _MIN_AXIS_RATIO, 1.0)
    # GalSim's shears keep the area
    radius = max(values["half_light_radius"][i] * np.sqrt(ratio), _MIN_RADIUS)
    position = [
        values[name][i] if name in values else middle[j]
        for j, name in enumerate(("x", "y"))
    ]
    shift = np.array(position) - middle
    cut = {}
    if edge is not None:
        # nowhere nearer to the middle of the cutout than that
        trunc = (edge + np.hypot(*shift)) / np.sqrt(ratio)
        cut = {"trunc": float(trunc), "flux_untruncated": True}
    galaxy = galsim.Sersic(
        float(np.clip(index, _MIN_INDEX, _MAX_INDEX)),
        half_light_radius=float(radius),
        **cut,
    )
    galaxy = galaxy.shear(q=ratio, beta=values["angle"][i] * galsim.radians)
    return galaxy.shift(*shift)


class _Psfs:
    """PSFs as GalSim objects; one for all is made once."""

    def __init__(self, galsim, like):
        self.galsim, self.psf, self.made = galsim, like.psf, {}

    def __call__(self, i, band):
        if self.psf is None:
            return None
        row = 0 if len(self.psf) == 1 else i
        if (row, band) not in self.made:
            if len(self.psf) > 1:
                self.made.clear()
            image = np.asarray(self.psf[row, ..., band], dtype=float)
            image = self.galsim.Image(image / image.sum())
            # centred on the pixel (ky // 2, kx // 2)
            psf = self.galsim.InterpolatedImage(image, scale=1.0, use_true_center=False)
            self.made[row, band] = psf
        return self.made[row, band]
