# Licensed under a 3-clause BSD style license - see LICENSE
"""Simulated galaxies whose truth is known."""

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, StdDevUncertainty
from astropy.table import QTable
from astropy.utils.masked import Masked
from astropy.wcs import WCS

from astrovae._validation import check_positive_int, check_shape
from astrovae.datasets._profiles import draw_galaxies, draw_stars, gaussian_psf
from astrovae.images import CutoutStack

__all__ = ["make_galaxies", "make_survey"]

# ranges of what galaxies look like: wide enough to be told apart
_SERSIC_INDEX, _AXIS_RATIO = (0.6, 4.0), (0.2, 1.0)
_BULGE_FRACTION, _BULGE_SIZE = (0.1, 0.7), (0.2, 0.5)
# bulges are redder: from the first band to the last their share grows so much
_BULGE_COLOR = 2.0
# scatter of the colours of galaxies, in natural logarithms of flux
_COLOR_SCATTER = 0.3


def make_galaxies(
    n,
    *,
    shape=(64, 64),
    bands=("r",),
    snr=(20.0, 200.0),
    half_light_radius=None,
    psf_fwhm=3.0,
    noise=1.0,
    gain=None,
    pixel_scale=0.2,
    seed=0,
):
    """
    Simulate isolated galaxies, one per cutout.

    Half are Sersic profiles, half are a bulge (Sersic index 4) in an
    exponential disc; blurred by a Gaussian PSF, integrated over pixels, with
    noise that the error plane states exactly.

    Parameters
    ----------
    n : int
        How many.
    shape : int or (int, int), optional
        Size ``(ny, nx)`` of a cutout in pixels.
    bands : sequence of str, optional
        Names of the bands. Bulges are redder: their share grows along the
        bands.
    snr : (float, float), optional
        Range of the signal-to-noise ratio in the first band, for the best
        possible measurement of the flux against the noise of the sky.
    half_light_radius : (float, float), optional
        Range of the half-light radius along the major axis, in pixels; by
        default from 1/32 to 1/8 of the smaller side.
    psf_fwhm : float, optional
        FWHM of the PSF in pixels.
    noise : float, optional
        1-sigma noise of the sky per pixel; it sets the scale of the flux.
    gain : float, optional
        Photons per unit of flux. If given, photon noise is added.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of a pixel; a plain number is in arcsec.
    seed : int, optional
        Seed of everything that is random.

    Returns
    -------
    truth : `~astropy.table.QTable`
        ``id``, ``kind`` (``"sersic"`` or ``"bulge_disc"``), ``x``, ``y`` in
        pixels of the cutout, ``flux`` (total, per band), ``snr``,
        ``half_light_radius``, ``sersic_index``, ``axis_ratio``, ``angle``,
        ``bulge_fraction`` (per band), ``bulge_size`` (its half-light radius
        over that of the disc). What does not apply is masked.
    stack : `~astrovae.images.CutoutStack`
        The cutouts, with ``error`` and ``psf``.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> truth, stack = make_galaxies(10, shape=32, bands=["g", "r"], seed=1)
    >>> stack
    <CutoutStack: 10 cutouts of 32 x 32 pixels, 2 bands (g, r), with error and psf>
    """
    n = check_positive_int("n", n, minimum=0)
    shape = check_shape("shape", shape)
    bands = (bands,) if isinstance(bands, str) else tuple(bands)
    rng = np.random.default_rng(seed)
    center = (np.array(shape[::-1]) - 1) / 2
    truth = _draw_truth(rng, n, len(bands), _radii(half_light_radius, shape))
    truth["x"], truth["y"] = (center + rng.uniform(-0.5, 0.5, (n, 2))).T
    unit_flux = _render(truth, shape, _check_positive("psf_fwhm", psf_fwhm))
    noise = _check_positive("noise", noise)
    low, high = _check_range("snr", snr)
    truth["snr"] = np.exp(rng.uniform(np.log(low), np.log(high), n))
    # S/N = flux / noise * sqrt(sum of the squared profile)
    norm = np.sqrt((unit_flux[..., 0] ** 2).sum(axis=(1, 2)))
    scale = truth["snr"] * noise / norm
    model = unit_flux * scale[:, np.newaxis, np.newaxis, np.newaxis]
    truth["flux"] = truth["color"] * scale[:, np.newaxis]
    data, error = _add_noise(rng, model, noise, gain)
    psf = gaussian_psf(psf_fwhm)[np.newaxis, ..., np.newaxis]
    stack = CutoutStack(
        data,
        error=error,
        psf=np.repeat(psf, len(bands), axis=-1),
        bands=bands,
        pixel_scale=pixel_scale,
    )
    return _truth_table(truth, stack.ids), stack


def make_survey(
    n_galaxies=100,
    *,
    n_stars=20,
    companions=0.2,
    shape=(800, 800),
    bands=("r",),
    snr=(20.0, 200.0),
    half_light_radius=(2.0, 8.0),
    psf_fwhm=3.0,
    noise=1.0,
    gain=None,
    background=0.0,
    pixel_scale=0.2,
    center=(150.0, 2.0),
    seed=0,
):
    """
    Simulate an image of the sky, with a catalogue of what is on it.

    Galaxies as in `make_galaxies` and stars at random positions; some
    galaxies have a companion close by, so that there are blends.

    Parameters
    ----------
    n_galaxies, n_stars : int, optional
        How many of each.
    companions : float, optional
        The share of the galaxies that is placed at 1 to 4 half-light radii
        (and at least 1.5 PSF widths) from another one.
    shape : int or (int, int), optional
        Size ``(ny, nx)`` of the image in pixels.
    bands : sequence of str, optional
        Names of the bands. Bulges are redder: their share grows along the
        bands.
    snr : (float, float), optional
        Range of the signal-to-noise ratio in the first band, for the best
        possible measurement of the flux against the noise of the sky.
    half_light_radius : (float, float), optional
        Range of the half-light radius along the major axis, in pixels.
    psf_fwhm : float, optional
        FWHM of the PSF in pixels.
    noise : float, optional
        1-sigma noise of the sky per pixel; it sets the scale of the flux.
    gain : float, optional
        Photons per unit of flux. If given, photon noise is added.
    background : float, optional
        A constant level of the sky, added to all bands.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of a pixel; a plain number is in arcsec.
    center : (float, float), optional
        Right ascension and declination of the centre, in degrees.
    seed : int, optional
        Seed of everything that is random.

    Returns
    -------
    truth : `~astropy.table.QTable`
        As from `make_galaxies`, with ``kind`` also ``"star"``; ``x`` and
        ``y`` in pixels of the image, ``ra`` and ``dec``, and ``companion_of``,
        the ``id`` of the galaxy that it was placed next to (else masked).
    image : `~astropy.nddata.NDData`
        ``data`` of shape (ny, nx, n_bands), with uncertainty, WCS and PSF,
        which `~astrovae.images.make_cutouts` takes as it is.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> from astrovae.datasets import make_survey
    >>> from astrovae.images import make_cutouts
    >>> truth, image = make_survey(20, n_stars=5, shape=(200, 300), seed=1)
    >>> make_cutouts(image, truth, shape=32)
    <CutoutStack: 25 cutouts of 32 x 32 pixels, 1 band (r), with error and psf>
    """
    n_galaxies = check_positive_int("n_galaxies", n_galaxies, minimum=0)
    n = n_galaxies + check_positive_int("n_stars", n_stars, minimum=0)
    shape = check_shape("shape", shape)
    bands = (bands,) if isinstance(bands, str) else tuple(bands)
    rng = np.random.default_rng(seed)
    radii = _check_range("half_light_radius", half_light_radius)
    psf_fwhm = _check_positive("psf_fwhm", psf_fwhm)
    truth = _draw_truth(rng, n, len(bands), radii)
    star = np.arange(n) >= n_galaxies
    truth["kind"][star] = "star"
    _place(rng, truth, shape, companions, psf_fwhm, n_galaxies)
    low, high = _check_range("snr", snr)
    truth["snr"] = np.exp(rng.uniform(np.log(low), np.log(high), n))
    noise = _check_positive("noise", noise)
    model = np.zeros((*shape, len(bands)))
    scale = np.zeros(n)
    for row in range(n):
        one = {name: values[row : row + 1] for name, values in truth.items()}
        window, stamp = _stamp(one, shape, psf_fwhm)
        scale[row] = one["snr"][0] * noise / np.sqrt((stamp[..., 0] ** 2).sum())
        model[window[0]] += scale[row] * stamp[window[1]]
    truth["flux"] = truth["color"] * scale[:, np.newaxis]
    data, error = _add_noise(rng, model, noise, gain)
    wcs = _make_wcs(shape, u.Quantity(pixel_scale, u.arcsec), center)
    table = _truth_table(truth, np.arange(n))
    table["ra"], table["dec"] = (
        angle * u.deg for angle in wcs.all_pix2world(truth["x"], truth["y"], 0)
    )
    image = NDData(
        data + np.float32(background),
        uncertainty=StdDevUncertainty(error),
        wcs=wcs,
        psf=gaussian_psf(psf_fwhm),
        meta={"bands": bands, "band_axis": 2, "seed": seed, "noise": noise},
    )
    return table, image


def _check_positive(name, value):
    if not (np.isfinite(value) and value > 0):
        msg = f"{name} must be a positive number, got {name}={value!r}."
        raise ValueError(msg)
    return float(value)


def _check_range(name, value):
    low, high = value
    if not 0 < low <= high < np.inf:
        msg = f"{name} must be two increasing positive numbers, got {value!r}."
        raise ValueError(msg)
    return float(low), float(high)


def _radii(half_light_radius, shape):
    if half_light_radius is None:
        return min(shape) / 32, min(shape) / 8
    return _check_range("half_light_radius", half_light_radius)


def _draw_truth(rng, n, n_bands, radii):
    """What galaxies look like; ``color`` is flux relative to the first band."""
    bulge = rng.random(n) < 0.5
    band = np.linspace(0, 1, n_bands) if n_bands > 1 else np.zeros(1)
    # the odds of the bulge grow along the bands
    odds = rng.uniform(*_BULGE_FRACTION, n)
    odds = (odds / (1 - odds))[:, np.newaxis] * np.exp(_BULGE_COLOR * band)
    color = rng.normal(0, _COLOR_SCATTER, n)[:, np.newaxis] * band
    return {
        "kind": np.where(bulge, "bulge_disc", "sersic"),
        "color": np.exp(color),
        "half_light_radius": np.exp(rng.uniform(*np.log(radii), n)),
        "sersic_index": rng.uniform(*_SERSIC_INDEX, n),
        "axis_ratio": rng.uniform(*_AXIS_RATIO, n),
        "angle": rng.uniform(-np.pi / 2, np.pi / 2, n),
        "bulge_fraction": odds / (1 + odds),
        "bulge_size": rng.uniform(*_BULGE_SIZE, n),
    }


def _render(truth, shape, psf_fwhm):
    """Noiseless images (n, ny, nx, n_bands) with the flux ``color`` per band."""
    options = {"shape": shape, "psf_fwhm": psf_fwhm}
    x, y, kind = truth["x"], truth["y"], truth["kind"]
    one = np.ones(len(x))
    disc, bulge = (np.zeros((len(x), *shape), np.float32) for _ in range(2))
    galaxy, double, star = kind != "star", kind == "bulge_disc", kind == "star"
    index = np.where(double, 1.0, truth["sersic_index"])
    for image, rows, size, n, q in (
        (disc, galaxy, one, index, truth["axis_ratio"]),
        # a bulge is rounder than the disc around it
        (bulge, double, truth["bulge_size"], 4 * one, np.sqrt(truth["axis_ratio"])),
    ):
        image[rows] = draw_galaxies(
            x[rows],
            y[rows],
            one[rows],
            (size * truth["half_light_radius"])[rows],
            n[rows],
            q[rows],
            truth["angle"][rows],
            **options,
        )
    disc[star] = draw_stars(x[star], y[star], one[star], **options)
    share = np.where(double[:, np.newaxis], truth["bulge_fraction"], 0)
    share = share[:, np.newaxis, np.newaxis]
    color = truth["color"][:, np.newaxis, np.newaxis]
    images = (1 - share) * disc[..., np.newaxis] + share * bulge[..., np.newaxis]
    return (color * images).astype(np.float32)


def _add_noise(rng, model, noise, gain):
    """Draw pixels, and their exact 1-sigma errors."""
    variance = np.full(model.shape, noise**2, np.float32)
    if gain is not None:
        variance += np.maximum(model, 0) / _check_positive("gain", gain)
    error = np.sqrt(variance)
    draws = rng.standard_normal(model.shape, dtype=np.float32)
    return (model + error * draws).astype(np.float32), error


def _place(rng, truth, shape, companions, psf_fwhm, n_galaxies):
    """Scatter sources over the image, some galaxies next to others."""
    n = len(truth["kind"])
    truth["x"], truth["y"] = (
        rng.uniform(-0.5, size - 0.5, n) for size in (shape[1], shape[0])
    )
    truth["companion_of"] = np.full(n, -1)
    n_companions = int(companions * n_galaxies)
    if not 0 <= companions <= 0.5:
        msg = f"companions must be between 0 and 0.5, got companions={companions!r}."
        raise ValueError(msg)
    hosts = rng.permutation(n_galaxies - n_companions)[:n_companions]
    rows = np.arange(n_galaxies - n_companions, n_galaxies)[: len(hosts)]
    distance = rng.uniform(1, 4, len(rows)) * truth["half_light_radius"][hosts]
    distance = np.maximum(distance, 1.5 * psf_fwhm)
    angle = rng.uniform(0, 2 * np.pi, len(rows))
    truth["x"][rows] = truth["x"][hosts] + distance * np.cos(angle)
    truth["y"][rows] = truth["y"][hosts] + distance * np.sin(angle)
    truth["companion_of"][rows] = hosts


def _stamp(one, shape, psf_fwhm):
    """One source on its own pixels, and where these go on the image."""
    # a Sersic profile of index 4 has 90 percent of its light in 6 radii
    half = int(np.ceil(8 * one["half_light_radius"][0] + 4 * psf_fwhm))
    corner = [int(np.rint(one[axis][0])) - half for axis in ("y", "x")]
    size = 2 * half + 1
    local = one | {"x": one["x"] - corner[1], "y": one["y"] - corner[0]}
    stamp = _render(local, (size, size), psf_fwhm)[0]
    image, cut = [], []
    for start, length in zip(corner, shape, strict=True):
        low, high = (int(np.clip(v, 0, length)) for v in (start, start + size))
        image.append(slice(low, high))
        cut.append(slice(low - start, high - start))
    return (tuple(image), tuple(cut)), stamp


def _make_wcs(shape, pixel_scale, center):
    """A tangential projection, north up and east left."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = center
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = np.array([-1, 1]) * pixel_scale.to_value(u.deg)
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    wcs.array_shape = shape
    return wcs


def _truth_table(truth, ids):
    """The truth as a table; what does not apply to a kind is masked."""
    kind = truth["kind"]
    star, double = kind == "star", kind == "bulge_disc"
    table = QTable({"id": ids, "kind": kind})
    for name, unit, hidden, description in (
        ("x", u.pix, None, "centre, 0 is the centre of the first pixel"),
        ("y", u.pix, None, "centre, 0 is the centre of the first pixel"),
        ("flux", None, None, "total flux, to infinity"),
        ("snr", None, None, "signal-to-noise of the flux in the first band"),
        ("half_light_radius", u.pix, star, "of Sersic profile or disc, major axis"),
        ("sersic_index", None, star | double, "Sersic index"),
        ("axis_ratio", None, star, "minor over major axis of Sersic profile or disc"),
        ("angle", u.deg, star, "of the major axis, from +x to +y"),
        ("bulge_fraction", None, ~double, "the bulge's share of the flux"),
        ("bulge_size", None, ~double, "half-light radius of the bulge over the disc's"),
        ("companion_of", None, None, "id of the galaxy that it was placed next to"),
    ):
        if name not in truth:
            continue
        values = np.degrees(truth[name]) if name == "angle" else truth[name]
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if name == "companion_of":
            hidden = values < 0
        if hidden is not None:
            full = np.broadcast_to(
                hidden.reshape(-1, *[1] * (values.ndim - 1)), values.shape
            )
            values = np.ma.array(values, mask=full)
        table[name] = values if unit is None else _with_unit(values, unit)
        table[name].info.description = description
    return table


def _with_unit(values, unit):
    if np.ma.isMaskedArray(values):
        return Masked(values.data, mask=values.mask) * unit
    return values * unit
