# Licensed under a 3-clause BSD style license - see LICENSE
"""Simulated galaxies whose truth is known."""

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, StdDevUncertainty

from astrovae._validation import check_positive_int, check_shape
from astrovae.datasets._profiles import gaussian_psf
from astrovae.datasets._scene import (
    add_bad_columns,
    add_cosmic_rays,
    add_noise,
    check_kinds,
    check_positive,
    check_radii,
    check_range,
    draw_stamp,
    draw_truth,
    inner_ellipse,
    make_wcs,
    place_sources,
    render,
    truth_from_table,
    truth_table,
)
from astrovae.images import CutoutStack

__all__ = ["draw_sources", "make_galaxies", "make_survey"]


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
        1-sigma noise of sky and read-out per pixel; it sets the scale of the flux.
    gain : float, optional
        Photons per unit of flux. If given, the photon noise of the sources is added.
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
    truth = draw_truth(rng, n, len(bands), check_radii(half_light_radius, shape))
    truth["x"], truth["y"] = (center + rng.uniform(-0.5, 0.5, (n, 2))).T
    unit_flux = render(truth, shape, check_positive("psf_fwhm", psf_fwhm))
    noise = check_positive("noise", noise)
    low, high = check_range("snr", snr)
    truth["snr"] = np.exp(rng.uniform(np.log(low), np.log(high), n))
    # S/N = flux / noise * sqrt(sum of the squared profile)
    norm = np.sqrt((unit_flux[..., 0] ** 2).sum(axis=(1, 2)))
    scale = truth["snr"] * noise / norm
    model = unit_flux * scale[:, np.newaxis, np.newaxis, np.newaxis]
    truth["flux"] = truth["color"] * scale[:, np.newaxis]
    data, error = add_noise(rng, model, noise, gain)
    psf = gaussian_psf(psf_fwhm)[np.newaxis, ..., np.newaxis]
    stack = CutoutStack(
        data,
        error=error,
        psf=np.repeat(psf, len(bands), axis=-1),
        bands=bands,
        pixel_scale=pixel_scale,
    )
    return truth_table(truth, stack.ids), stack


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
    kinds=("sersic", "bulge_disc"),
    bad_columns=0,
    cosmic_rays=0,
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
        1-sigma noise of sky and read-out per pixel; it sets the scale of the flux.
    gain : float, optional
        Photons per unit of flux. If given, the photon noise of the sources is added.
    background : float, optional
        A constant level of the sky, added to all bands.
    kinds : sequence of str, optional
        The kinds of galaxies, equally often: ``"sersic"``, ``"bulge_disc"``,
        ``"spiral"`` (a bulge in a disc with two arms) and ``"clumpy_disc"``
        (with knots at random places, so that its light has another centre).
    bad_columns : int, optional
        How many columns of pixels are bad, in all bands, and masked.
    cosmic_rays : int, optional
        How many tracks of cosmic rays each band has; they are not masked.
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
        ``y`` in pixels of the image, ``ra`` and ``dec``; ``neighbor_flux``, the
        flux of all other sources within the ellipse of two half-light radii
        (within one FWHM of a star), per band; and ``companion_of``,
        the ``id`` of the galaxy that it was placed next to (else masked).
        Spirals and clumpy discs have further columns. `draw_sources` draws
        any of the rows.
    image : `~astropy.nddata.NDData`
        ``data`` of shape (ny, nx, n_bands), with uncertainty, WCS and PSF,
        and the mask of bad columns if there are any,
        which `~astrovae.images.make_cutouts` takes as it is.
        ``meta["cosmic_rays"]`` is `True` where there are some.

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
    radii = check_range("half_light_radius", half_light_radius)
    psf_fwhm = check_positive("psf_fwhm", psf_fwhm)
    truth = draw_truth(rng, n, len(bands), radii, check_kinds(kinds))
    star = np.arange(n) >= n_galaxies
    truth["kind"][star] = "star"
    place_sources(rng, truth, shape, companions, psf_fwhm, n_galaxies)
    low, high = check_range("snr", snr)
    truth["snr"] = np.exp(rng.uniform(np.log(low), np.log(high), n))
    noise = check_positive("noise", noise)
    model = np.zeros((*shape, len(bands)))
    scale, inner = np.zeros(n), []
    truth["neighbor_flux"] = np.zeros((n, len(bands)))
    for row in range(n):
        one = {name: values[row : row + 1] for name, values in truth.items()}
        window, stamp = draw_stamp(one, shape, psf_fwhm)
        scale[row] = one["snr"][0] * noise / np.sqrt((stamp[..., 0] ** 2).sum())
        own = scale[row] * stamp[window[1]]
        model[window[0]] += own
        corner = [part.start for part in window[0]]
        ellipse = inner_ellipse(one, own.shape[:2], corner, psf_fwhm)
        inner.append((window[0], ellipse))
        truth["neighbor_flux"][row] = -own[ellipse].sum(axis=0)
    for row, (window, ellipse) in enumerate(inner):
        truth["neighbor_flux"][row] += model[window][ellipse].sum(axis=0)
    truth["flux"] = truth["color"] * scale[:, np.newaxis]
    data, error = add_noise(rng, model, noise, gain)
    data += np.float32(background)
    flaws = rng.spawn(1)[0]
    hit = add_cosmic_rays(
        flaws, data, check_positive_int("cosmic_rays", cosmic_rays, minimum=0), noise
    )
    mask = add_bad_columns(
        flaws, data, check_positive_int("bad_columns", bad_columns, minimum=0), noise
    )
    wcs = make_wcs(shape, u.Quantity(pixel_scale, u.arcsec), center)
    table = truth_table(truth, np.arange(n))
    table["ra"], table["dec"] = (
        angle * u.deg for angle in wcs.all_pix2world(truth["x"], truth["y"], 0)
    )
    meta = {"bands": bands, "band_axis": 2, "seed": seed, "noise": noise}
    meta |= {"psf_fwhm": psf_fwhm, "cosmic_rays": hit}
    image = NDData(
        data,
        mask=mask if bad_columns else None,
        uncertainty=StdDevUncertainty(error),
        wcs=wcs,
        psf=gaussian_psf(psf_fwhm),
        meta=meta,
    )
    return table, image


def draw_sources(truth, image, rows=None):
    """
    Draw sources of a simulated image alone, without noise.

    To know which light belongs to which source, and what a measurement gives
    where there is no noise.

    Parameters
    ----------
    truth : `~astropy.table.QTable`
        The truth, as `make_survey` gave it.
    image : `~astropy.nddata.NDData`
        The image that came with it.
    rows : int or array_like of int, optional
        Which rows of the truth to draw; by default all.

    Returns
    -------
    pixels : `~numpy.ndarray`, shape (ny, nx, n_bands)
        Noiseless light of these sources.

    Examples
    --------
    >>> from astrovae.datasets import draw_sources, make_survey
    >>> truth, image = make_survey(3, n_stars=1, shape=(90, 100), seed=1)
    >>> draw_sources(truth, image, rows=2).shape
    (90, 100, 1)
    """
    rows = np.arange(len(truth))[slice(None) if rows is None else rows]
    shape = image.data.shape
    pixels = np.zeros(shape)
    one_by_one = truth_from_table(truth, np.atleast_1d(rows))
    for row in range(np.size(rows)):
        one = {name: values[row : row + 1] for name, values in one_by_one.items()}
        window, stamp = draw_stamp(one, shape[:2], image.meta["psf_fwhm"])
        pixels[window[0]] += stamp[window[1]]
    return pixels
