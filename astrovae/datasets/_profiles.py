# Licensed under a 3-clause BSD style license - see LICENSE
"""Draw many galaxies and stars, blurred and integrated over pixels."""

import numpy as np
from astropy.stats import gaussian_fwhm_to_sigma
from scipy.special import erf, gamma, gammaincinv

__all__ = ["draw_galaxies", "draw_stars", "gaussian_psf"]

# sub-pixels per pixel, along each axis
_OVERSAMPLE = 4
# the central sub-pixels, so many along each axis, are divided again by so many
_CORE, _CORE_OVERSAMPLE = 20, 6
# cusps are softened by this share of the smallest step, which comes close to
# the mean surface brightness of the central one
_SOFTENING = 0.1
# galaxies at a time: what they need stays in the cache
_CHUNK = 16


def _blur_matrix(size, sub, sigma):
    """
    The share of the light at each sub-pixel that lands in each pixel.

    Gaussian blur and integration over pixels are separable, so that both
    are one small matrix along y and one along x.
    """
    edges = np.arange(size + 1) - 0.5
    cumulative = (1 + erf((edges[:, np.newaxis] - sub) / (np.sqrt(2) * sigma))) / 2
    return np.diff(cumulative, axis=0).astype(np.float32)


def draw_galaxies(
    x,
    y,
    flux,
    half_light_radius,
    sersic_index,
    axis_ratio,
    angle,
    *,
    shape,
    psf_fwhm,
    arms=None,
):
    """
    Draw elliptical Sersic profiles, one per image.

    Parameters
    ----------
    x, y : `~numpy.ndarray`, shape (n,)
        Centres in pixels of each image.
    flux : `~numpy.ndarray`, shape (n,)
        Total flux, to infinity.
    half_light_radius : `~numpy.ndarray`, shape (n,)
        Along the major axis, in pixels.
    sersic_index, axis_ratio : `~numpy.ndarray`, shape (n,)
        Of the profiles.
    angle : `~numpy.ndarray`, shape (n,)
        From +x to the major axis towards +y, in radians.
    shape : (int, int)
        Size of each image.
    psf_fwhm : float
        FWHM of the Gaussian PSF, in pixels, before integration over pixels.
    arms : (strength, pitch, phase), optional
        Two logarithmic spiral arms, arrays of shape (n,): contrast from 0 to 1,
        pitch angle (negative winds the other way) and phase in radians. Arms
        fade inside half a half-light radius; rings keep their flux.

    Returns
    -------
    images : `~numpy.ndarray`, shape (n, ny, nx)
        Noiseless images in float32.
    """
    sigma = psf_fwhm * gaussian_fwhm_to_sigma
    margin = int(np.ceil(3 * sigma))
    step = 1 / _OVERSAMPLE
    subs = [
        np.arange(-0.5 - margin + step / 2, size - 0.5 + margin, step) for size in shape
    ]
    blur_y, blur_x = (
        _blur_matrix(size, sub, sigma) for size, sub in zip(shape, subs, strict=True)
    )
    b = gammaincinv(2 * sersic_index, 0.5)
    total = 2 * np.pi * sersic_index * axis_ratio * half_light_radius**2
    total *= np.exp(b) * b ** (-2 * sersic_index) * gamma(2 * sersic_index)
    columns = {
        "x": x,
        "y": y,
        "cos": np.cos(angle),
        "sin": np.sin(angle),
        "axis_ratio": axis_ratio,
        "radius": half_light_radius,
        "power": 0.5 / sersic_index,
        "b": b,
        "scale": flux / total * step**2,
    }
    if arms is not None:
        strength, pitch, phase = arms
        columns |= {"strength": strength, "winding": 2 / np.tan(pitch), "phase": phase}
    images = np.empty((len(x), *shape), np.float32)
    for start in range(0, len(x), _CHUNK):
        rows = {
            name: values[start : start + _CHUNK, np.newaxis, np.newaxis].astype("f4")
            for name, values in columns.items()
        }
        light = _sersic(subs[1], subs[0][:, np.newaxis], step, **rows)
        _refine_core(light, subs, step, rows)
        images[start : start + _CHUNK] = blur_y @ light @ blur_x.T
    return images


def _sersic(
    at_x,
    at_y,
    step,
    *,
    x,
    y,
    cos,
    sin,
    axis_ratio,
    radius,
    power,
    b,
    scale,
    strength=None,
    winding=None,
    phase=None,
):
    """Surface brightness at points that are ``step`` apart."""
    dx, dy = at_x.astype(np.float32) - x, at_y.astype(np.float32) - y
    along, across = dx * cos + dy * sin, (dy * cos - dx * sin) / axis_ratio
    radius2 = along**2 + across**2 + np.float32((_SOFTENING * step) ** 2)
    light = np.exp(-b * ((radius2 / radius**2) ** power - 1)) * scale
    if strength is None:
        return light
    # the mean over each ring is one
    ratio2 = radius2 / radius**2
    wave = np.cos(2 * np.arctan2(across, along) - winding * np.log(ratio2) / 2 + phase)
    return light * (1 + strength * (1 - np.exp(-4 * ratio2)) * wave)


def _refine_core(light, subs, step, rows):
    """Average the central sub-pixels over a finer grid, in place."""
    index, points = [], []
    fine = (np.arange(_CORE * _CORE_OVERSAMPLE) + 0.5) / _CORE_OVERSAMPLE - 0.5
    for sub, name in zip(subs, ("y", "x"), strict=True):
        core = min(_CORE, len(sub))
        first = np.rint((rows[name][:, 0, 0] - sub[0]) / step).astype(int) - core // 2
        first = np.clip(first, 0, len(sub) - core)[:, np.newaxis]
        index.append(first + np.arange(core))
        points.append(sub[first] + fine[: core * _CORE_OVERSAMPLE] * step)
    values = _sersic(
        points[1][:, np.newaxis, :],
        points[0][:, :, np.newaxis],
        step / _CORE_OVERSAMPLE,
        **rows,
    )
    n, ny, nx = len(light), index[0].shape[1], index[1].shape[1]
    values = values.reshape(n, ny, _CORE_OVERSAMPLE, nx, _CORE_OVERSAMPLE)
    each = np.arange(n)[:, np.newaxis, np.newaxis]
    light[each, index[0][:, :, np.newaxis], index[1][:, np.newaxis, :]] = values.mean(
        axis=(2, 4)
    )


def draw_stars(x, y, flux, *, shape, psf_fwhm):
    """
    Draw point sources, one per image.

    Parameters
    ----------
    x, y, flux : `~numpy.ndarray`, shape (n,)
        Positions in pixels of each image, and total flux.
    shape : (int, int)
        Size of each image.
    psf_fwhm : float
        FWHM of the Gaussian PSF, in pixels, before integration over pixels.

    Returns
    -------
    images : `~numpy.ndarray`, shape (n, ny, nx)
        Noiseless images in float32.
    """
    sigma = psf_fwhm * gaussian_fwhm_to_sigma
    along_y, along_x = (
        _blur_matrix(size, center, sigma).T
        for size, center in zip(shape, (y, x), strict=True)
    )
    flux = np.asarray(flux, np.float32)[:, np.newaxis, np.newaxis]
    return flux * along_y[:, :, np.newaxis] * along_x[:, np.newaxis, :]


def gaussian_psf(psf_fwhm):
    """
    The effective PSF of these images: Gaussian, integrated over pixels.

    Returns
    -------
    psf : `~numpy.ndarray`, shape (k, k)
        In float32, of odd size, with a sum of one.
    """
    half = int(np.ceil(4 * psf_fwhm * gaussian_fwhm_to_sigma)) + 1
    shape = (2 * half + 1, 2 * half + 1)
    center = np.array([half])
    psf = draw_stars(center, center, np.ones(1), shape=shape, psf_fwhm=psf_fwhm)[0]
    return psf / psf.sum()
