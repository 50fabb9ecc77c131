# Licensed under a 3-clause BSD style license - see LICENSE
"""Size, shape and morphology of each galaxy, in one number each."""

import numpy as np
from astropy.table import MaskedColumn, Table
from photutils.geometry import circular_overlap_grid
from scipy import ndimage
from scipy.ndimage import gaussian_filter, spline_filter
from scipy.optimize import minimize

from astrovae._optional import require
from astrovae._validation import check_option

__all__ = ["measure_galaxies"]

_MEASURES = ("hsm", "morphology", "both")
# Petrosian radius, apertures and segmentation of Lotz et al. 2004, section 2.
_ETA, _APERTURES = 0.2, 1.5
_SMOOTHING = 0.2  # of the Petrosian radius
_BRIGHTEST = 0.2
# The concentration compares radii with these shares of the flux.
_INNER, _OUTER = 0.2, 0.8
# Masked pixels are filled so many times, or until they change less.
_MAX_FILLINGS, _FILLING_TOLERANCE = 30, 1e-5
# Radii of the curve of growth, in pixels.
_RADIUS_STEP = 0.5
# The centre of symmetry is not so many pixels from the centroid.
_MAX_SHIFT = 3.0
# The mean of the absolute difference of two normal deviates.
_NOISE_DIFFERENCE = 2.0 / np.sqrt(np.pi)
_MAD_PER_SIGMA = 0.6744898


def measure_galaxies(stack, *, measure="hsm", band=None):
    """
    Measure what galaxies look like, in one number each.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        Galaxies as they were observed, in linear flux.
    measure : {"hsm", "morphology", "both"}, optional
        Adaptive moments, which need GalSim; concentration, asymmetry, Gini and M20;
        or both.
    band : str, optional
        The band whose shape is measured, by default the first.

    Returns
    -------
    table : `~astropy.table.Table`
        A row per galaxy; what cannot be measured is masked.

        ``id``
            Identifier.
        ``e``, ``e1``, ``e2``
            Ellipticity ``(a**2 - b**2) / (a**2 + b**2)`` of the adaptive moments
            and its components, along the axes of the array and its diagonals.
        ``log_sigma``
            log10 of the size ``det(M)**(1/4)`` of the adaptive moments, in arcsec;
            without a pixel scale in pixels.
        ``rho4``
            Fourth moment within the matched Gaussian; 2 for a Gaussian.
        ``mag``
            ``-2.5 log10`` of the flux that a Gaussian of the matched shape takes
            from the band, in the unit of the stack.
        ``color_<a>_<b>``
            Difference of such magnitudes in bands that follow each other, all with
            the Gaussian of the band whose shape is measured.
        ``concentration``, ``asymmetry``, ``gini``, ``m20``
            As defined by Conselice 2003 and Lotz et al. 2004; see Notes.

    Raises
    ------
    ImportError
        If adaptive moments are asked for and GalSim is not installed.
    ValueError
        If there is no such band or measure.

    Notes
    -----
    Nothing is corrected for the PSF: compare galaxies with the same one. For moments,
    masked pixels are filled with the matched Gaussian, until it stays; galaxies with
    masked pixels within their aperture have no morphology.

    For the morphology, the centre is the one of symmetry. The Petrosian radius is where
    the brightness on a circle is 0.2 of the mean within. The aperture reaches to 1.5
    times as far, or to the edge of the cutout. ``concentration`` is ``5 log10(r80 /
    r20)`` of the flux within it; ``asymmetry`` the sum of ``|I - I180|`` over that of
    ``|I|``, less what the noise alone gives. ``gini`` and ``m20`` are those of the
    pixels that, after smoothing by a fifth of the Petrosian radius, are brighter than
    the Petrosian circle. The noise is the error plane or, without one, the robust
    scatter of the border. Apertures are circles also for flat galaxies.

    References
    ----------
    Hirata & Seljak 2003, MNRAS 343, 459 (arXiv:astro-ph/0301054), and Mandelbaum et
    al. 2005, MNRAS 361, 1287 (arXiv:astro-ph/0501201), for adaptive moments;
    Conselice 2003, ApJS 147, 1; Lotz, Primack & Madau 2004, AJ 128, 163.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import measure_galaxies
    >>> truth, stack = make_galaxies(20, shape=48, snr=(100, 200), seed=1)
    >>> table = measure_galaxies(stack, measure="morphology")
    >>> table.colnames
    ['id', 'concentration', 'asymmetry', 'gini', 'm20']
    """
    check_option("measure", measure, _MEASURES)
    bands = tuple(stack.bands)
    plane = 0 if band is None else bands.index(check_option("band", band, bands))
    columns = {}
    if measure in ("hsm", "both"):
        columns |= _measure_moments(stack, plane)
    if measure in ("morphology", "both"):
        columns |= _measure_morphology(stack, plane)
    table = Table({"id": stack.ids})
    for name, values in columns.items():
        table[name] = MaskedColumn(values, mask=~np.isfinite(values))
    return table


# ----------------------------------------------------------------------
# adaptive moments
# ----------------------------------------------------------------------


def _measure_moments(stack, plane):
    """Adaptive moments in one band, and fluxes in all with the same weight."""
    galsim = require("galsim", extra="sim")
    n, ny, nx, n_bands = stack.data.shape
    names = ("e1", "e2", "sigma", "rho4")
    columns = {name: np.full(n, np.nan) for name in names}
    flux = np.full((n, n_bands), np.nan)
    y, x = np.mgrid[:ny, :nx]
    for i in range(n):
        valid = ~np.asarray(stack.mask[i])
        data = np.where(valid, np.asarray(stack.data[i], dtype=float), 0.0)
        found = _adaptive_moments(galsim, data[..., plane], valid[..., plane], x, y)
        if found is None:
            continue
        moments, weight = found
        sigma = moments.moments_sigma
        columns["e1"][i] = moments.observed_shape.e1
        columns["e2"][i] = moments.observed_shape.e2
        columns["sigma"][i], columns["rho4"][i] = sigma, moments.moments_rho4
        weight = weight[..., np.newaxis] * valid
        total = np.square(weight).sum(axis=(0, 1))
        amplitude = np.divide(
            (weight * data).sum(axis=(0, 1)),
            total,
            out=np.full(n_bands, np.nan),
            # a band has to show half of the Gaussian, of which pi sigma^2 is the square
            where=total > 0.5 * np.pi * sigma**2,
        )
        flux[i] = 2 * np.pi * sigma**2 * amplitude
    scale = 1.0 if stack.pixel_scale is None else stack.pixel_scale.to_value("arcsec")
    mag = -2.5 * np.log10(np.where(flux > 0, flux, np.nan))
    columns = {
        "e": np.hypot(columns["e1"], columns["e2"]),
        "e1": columns["e1"],
        "e2": columns["e2"],
        "log_sigma": np.log10(columns["sigma"] * scale),
        "rho4": columns["rho4"],
        "mag": mag[:, plane],
    }
    for j, (blue, red) in enumerate(zip(stack.bands, stack.bands[1:])):
        columns[f"color_{blue}_{red}"] = mag[:, j] - mag[:, j + 1]
    return columns


def _adaptive_moments(galsim, image, valid, x, y):
    """Moments of one image and their Gaussian, of peak 1; None if there are none."""
    if not valid.any():
        return None
    # Without it, the search begins with 5 pixels, too many for small cutouts.
    options = {"guess_sig": min(image.shape) / 8, "strict": False}
    for _ in range(1 if valid.all() else _MAX_FILLINGS):
        moments = galsim.hsm.FindAdaptiveMom(
            galsim.Image(image, xmin=0, ymin=0), **options
        )
        e1, e2 = moments.observed_shape.e1, moments.observed_shape.e2
        sigma, center = moments.moments_sigma, moments.moments_centroid
        if (
            moments.error_message
            or moments.moments_status != 0
            or not moments.moments_amp > 0
        ):
            return None
        # M = sigma^2 / sqrt(1 - e^2) [[1 + e1, e2], [e2, 1 - e1]], inverted
        u, v = x - center.x, y - center.y
        square = (1 - e1) * u**2 - 2 * e2 * u * v + (1 + e1) * v**2
        weight = np.exp(-0.5 * square / sigma**2 / np.sqrt(1 - e1**2 - e2**2))
        # masked pixels get what the others let expect
        seen = np.square(weight[valid]).sum()
        amplitude = (weight[valid] * image[valid]).sum() / seen if seen > 0 else 0.0
        filled = np.where(valid, image, amplitude * weight)
        if np.abs(filled - image).max() <= _FILLING_TOLERANCE * np.abs(image).max():
            break
        image = filled
    return moments, weight


# ----------------------------------------------------------------------
# morphology
# ----------------------------------------------------------------------


def _measure_morphology(stack, plane):
    """Concentration, asymmetry, Gini and M20 in one band."""
    names = ("concentration", "asymmetry", "gini", "m20")
    values = np.full((len(stack), len(names)), np.nan)
    for i in range(len(stack)):
        valid = ~np.asarray(stack.mask[i, ..., plane])
        image = np.where(valid, np.asarray(stack.data[i, ..., plane], dtype=float), 0)
        if not (image * valid > 0).any():
            continue
        if stack.error is None:
            noise = _border_noise(image, valid)
        else:
            error = np.asarray(stack.error[i, ..., plane], dtype=float)
            noise = np.median(error[valid])
        values[i] = _morphology(image, valid, noise)
    return dict(zip(names, values.T))


def _border_noise(image, valid):
    """Robust scatter of the pixels along the border."""
    border = np.ones_like(valid)
    border[2:-2, 2:-2] = False
    pixels = image[border & valid]
    if not len(pixels):
        return 0.0
    return np.median(np.abs(pixels - np.median(pixels))) / _MAD_PER_SIGMA


def _morphology(image, valid, noise):
    """Morphology of one galaxy; NaN if it has none."""
    missing = (np.nan,) * 4
    center = _centroid(image)
    # the aperture needs a centre, the centre an aperture
    for turn in range(2):
        profile = _Profile(image, center)
        radius = profile.petrosian_radius()
        if radius is None:
            return missing
        aperture = min(_APERTURES * radius, profile.radii[-1])
        if turn == 0:
            asymmetry, center = _asymmetry(image, center, aperture, noise)
    inside = profile.distance <= aperture
    if not valid[inside].all():
        return missing
    smooth = gaussian_filter(image, _SMOOTHING * radius, mode="constant")
    bright = inside & (smooth > profile.brightness_at(radius))
    return (
        profile.concentration(aperture),
        asymmetry,
        _gini(image[bright]),
        _m20(image, bright),
    )


def _centroid(image):
    """Centroid (x, y) of a Gaussian window that follows it."""
    ny, nx = image.shape
    y, x = np.arange(ny), np.arange(nx)
    center = np.array([nx - 1, ny - 1]) / 2
    sigma = min(ny, nx) / 8
    for _ in range(10):
        weight = (
            np.exp(-0.5 * ((y - center[1]) / sigma) ** 2)[:, np.newaxis]
            * np.exp(-0.5 * ((x - center[0]) / sigma) ** 2)
            * image
        )
        total = weight.sum()
        if total <= 0:
            break
        # the window moves the centroid half of the way for a galaxy of its size
        shift = np.array(
            [(weight.sum(axis=0) * x).sum(), (weight.sum(axis=1) * y).sum()]
        )
        center = np.clip(shift / total, 2, [nx - 3, ny - 3])
    return center


class _Profile:
    """Flux within circles."""

    def __init__(self, image, center):
        ny, nx = image.shape
        x, y = center
        self.distance = np.hypot(np.arange(nx) - x, (np.arange(ny) - y)[:, np.newaxis])
        edge = min(x, nx - 1 - x, y, ny - 1 - y) + 0.5
        self.radii = np.arange(_RADIUS_STEP, edge + 1e-9, _RADIUS_STEP)
        box = (-0.5 - x, nx - 0.5 - x, -0.5 - y, ny - 0.5 - y, nx, ny)
        self.flux = np.array(
            [(circular_overlap_grid(*box, r, 1, 1) * image).sum() for r in self.radii]
        )

    def brightness_at(self, radius):
        """Mean brightness of the annulus around a circle, a pixel wide."""
        inner, outer = radius - _RADIUS_STEP, radius + _RADIUS_STEP
        flux = np.interp([inner, outer], self.radii, self.flux)
        return (flux[1] - flux[0]) / (np.pi * (outer**2 - inner**2))

    def petrosian_radius(self):
        """Where the brightness is 0.2 of the mean within; None if nowhere."""
        radii = self.radii[2:-1]
        if not len(radii):
            return None
        mean = self.flux[2:-1] / (np.pi * radii**2)
        if (mean[:1] <= 0).any():
            return None
        local = np.array([self.brightness_at(radius) for radius in radii])
        eta = np.where(mean > 0, local / np.where(mean > 0, mean, 1.0), 0.0)
        below = np.flatnonzero(eta < _ETA)
        if not len(below):
            return None
        first = below[0]
        if first == 0:
            return radii[0]
        pair = slice(first - 1, first + 1)
        return np.interp(-_ETA, -eta[pair], radii[pair])

    def concentration(self, aperture):
        """Compare the radii with 20 % and 80 % of the flux."""
        radii, flux = np.append(0.0, self.radii), np.append(0.0, self.flux)
        total = np.interp(aperture, radii, flux)
        if total <= 0:
            return np.nan
        # where the curve first reaches them: noise makes it fall again
        inner, outer = (
            np.interp(share * total, *_first_rise(flux, radii))
            for share in (_INNER, _OUTER)
        )
        return 5 * np.log10(outer / inner)


def _first_rise(flux, radii):
    """Points of a curve at which it is higher than ever before."""
    rises = np.append(True, flux[1:] > np.maximum.accumulate(flux)[:-1])
    return flux[rises], radii[rises]


def _asymmetry(image, center, aperture, noise):
    """Smallest asymmetry about a point near the centre, and that point."""
    ny, nx = image.shape
    start = np.asarray(center)
    # what is turned lies within so many pixels, wherever the point
    reach = int(np.ceil(aperture)) + 2
    x0, y0 = (max(int(c) - reach, 0) for c in start)
    part = image[y0 : int(start[1]) + reach + 2, x0 : int(start[0]) + reach + 2]
    turned = spline_filter(part[::-1, ::-1], mode="grid-constant")
    y, x = (np.arange(size, dtype=float) for size in part.shape)
    sizes = np.array(part.shape)

    def asymmetry(shift):
        point = start - (x0, y0) + shift
        motion = 2 * point[::-1] - (sizes - 1)
        other = ndimage.shift(turned, motion, prefilter=False, mode="grid-constant")
        inside = (y[:, np.newaxis] - point[1]) ** 2 + (x - point[0]) ** 2
        inside = inside <= aperture**2
        total = np.abs(part[inside]).sum()
        if not total > 0:
            return np.inf
        # interpolation takes noise away
        noise_here = noise * np.sqrt((1 + _noise_left(motion)) / 2)
        difference = np.abs(part - other)[inside].sum()
        difference -= _NOISE_DIFFERENCE * noise_here * np.count_nonzero(inside)
        return difference / total

    simplex = [[0.0, 0.0], [0.2, 0.0], [0.0, 0.2]]
    options = {"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-4}
    best = minimize(asymmetry, [0.0, 0.0], method="Nelder-Mead", options=options)
    found = start + best.x
    if not np.isfinite(best.fun) or not (np.abs(best.x) < _MAX_SHIFT).all():
        return np.nan, center
    return best.fun, np.clip(found, 2, [nx - 3, ny - 3])


def _noise_left(motion):
    """Variance of white noise after a cubic spline has moved it."""
    left = 1.0
    for shift in motion:
        left = left * np.interp(abs(shift - np.round(shift)), *_SPLINE_VARIANCE)
    return left


def _spline_variance():
    """Sum of the squared weights of a cubic spline, by fraction of a pixel."""
    impulse = np.zeros(65)
    impulse[32] = 1.0
    fractions = np.linspace(0.0, 0.5, 11)
    return fractions, np.array(
        [np.square(ndimage.shift(impulse, f)).sum() for f in fractions]
    )


_SPLINE_VARIANCE = _spline_variance()


def _gini(pixels):
    """How unevenly the light is shared between pixels."""
    n = len(pixels)
    if n < 2:
        return np.nan
    values = np.sort(np.abs(pixels))
    rank = 2 * np.arange(1, n + 1) - n - 1
    return (rank * values).sum() / (values.mean() * n * (n - 1))


def _m20(image, bright):
    """Second moment of the brightest 20 % of the light over that of all of it."""
    y, x = np.nonzero(bright)
    flux = image[bright]
    total = flux.sum()
    if len(flux) < 2 or total <= 0:
        return np.nan
    x, y = x - (x * flux).sum() / total, y - (y * flux).sum() / total
    order = np.argsort(flux)[::-1]
    moment = (flux * (x**2 + y**2))[order]
    first = np.cumsum(flux[order]) <= _BRIGHTEST * total
    if not first.any() or moment.sum() <= 0:
        return np.nan
    return np.log10(moment[first].sum() / moment.sum())
