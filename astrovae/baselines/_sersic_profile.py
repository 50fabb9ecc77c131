# Licensed under a 3-clause BSD style license - see LICENSE
"""
Images of Sersic profiles and their derivatives, in `keras.ops`.

A profile is kept as a row ``(x, y, s, n, e1, e2)``: its centre; the geometric
mean ``s`` of the half-light semi-axes, in pixels; the Sersic index; and its
shape ``(e1, e2) = -log(q) (cos 2 theta, sin 2 theta)`` for the axis ratio
``q``, which is smooth where a galaxy is round. Fluxes are one. Derivatives are
by ``(x, y, log s, log n, e1, e2)``.

The effective PSF is known at the pixels only. Between them it is interpolated
by a windowed sinc: the profile is convolved with that kernel first, and then,
pixel by pixel, with the PSF. Without a PSF the kernel is the pixel itself.

A cusp needs points where it is. The profile is cut in two by a smooth function
of the elliptical radius. The outer part is sampled on a regular grid, the core
in elliptical polar coordinates around its own centre, with radii that crowd
towards it: whatever the position, size and index, no light is lost.
"""

import numpy as np
from keras import ops
from scipy.fft import next_fast_len
from scipy.special import gammaincinv, gammaln

from astrovae.baselines._sersic_limits import INDEX_LIMITS
from astrovae.ops import irfft2, rfft2

__all__ = ["SersicProfile"]

# Samples of the outer part per pixel, along each axis.
_SAMPLES = 2
# The core reaches so many pixels along its minor and major axis. Its points
# reach no farther than the light: up to exp(-25) of the centre.
_CORE_MINOR, _CORE_MAJOR, _FAINTEST = 2.5, 6.0, 25.0
_RADII, _ANGLES, _CROWDING = 12, 24, 4
# Kaiser's window: half its width in pixels, and its parameter. Point sources
# of 2.5 pixels FWHM come out to 1e-3 of their peak.
_HALF_WIDTH, _KAISER = 6, 7.0
# Without a PSF, pixels around the centre are divided by so many along each axis
# where the core, of this radius, is not; and the core sees pixels with edges
# that are so soft.
_WINDOW, _FINE, _SMALL_CORE, _SOFTNESS = 5, 16, 0.15, 0.1
_TINY = 1e-12


def _fit_polynomial(function, degree=14):
    """Coefficients in u = log(n) scaled to [-1, 1], from the highest power."""
    u = np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    low, high = np.log(INDEX_LIMITS)
    n = np.exp(0.5 * (low + high) + 0.5 * (high - low) * u)
    series = np.polynomial.chebyshev.Chebyshev.fit(
        u, function(n), degree, domain=[-1, 1]
    )
    return series.convert(kind=np.polynomial.Polynomial).coef[::-1]


def _log_b(n):
    return np.log(gammaincinv(2 * n, 0.5))


def _log_norm(n):
    """Log of the flux of exp(-b r^(1/n)) for s = 1."""
    return np.log(2 * np.pi * n) - 2 * n * _log_b(n) + gammaln(2 * n)


_LOG_B, _LOG_NORM = _fit_polynomial(_log_b), _fit_polynomial(_log_norm)
# I0(K sqrt(1 - z)) / I0(K), a function of z without a root
_Z = 0.5 + 0.5 * np.cos(np.pi * (np.arange(100) + 0.5) / 100)
_WINDOW_SERIES = np.polyfit(_Z, np.i0(_KAISER * np.sqrt(1 - _Z)) / np.i0(_KAISER), 9)


def _horner(coefficients, u):
    total = 0.0 * u + float(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * u + float(coefficient)
    return total


def _with_slope(coefficients, n):
    """A polynomial in log n, and its derivative by log n."""
    low, high = np.log(INDEX_LIMITS)
    scale = 2 / (high - low)
    u = scale * (ops.log(n) - 0.5 * (low + high))
    slope = scale * np.polyder(coefficients)
    return _horner(coefficients, u), _horner(slope, u)


def _sinc(x):
    """The windowed sinc at distances x, in pixels."""
    z = ops.square(x) / _HALF_WIDTH**2
    small = ops.abs(x) < 1e-3
    angle = np.pi * ops.where(small, 1.0, x)
    sinc = ops.where(small, 1.0, ops.sin(angle) / angle)
    return ops.where(z < 1.0, sinc * _horner(_WINDOW_SERIES, z), 0.0)


def _pixel(x):
    """The share of light at distance x that falls into the pixel, along an axis."""
    return ops.clip((0.5 + 0.5 * _SOFTNESS - ops.abs(x)) / _SOFTNESS, 0.0, 1.0)


class SersicProfile:
    """
    Paint profiles, blurred by the PSF if there is one.

    Parameters
    ----------
    shape : tuple of int
        ``(ny, nx)`` of the images.
    psf_shape : tuple of int, optional
        ``(ky, kx)`` of the PSF.
    """

    def __init__(self, shape, psf_shape=None):
        self.shape = tuple(shape)
        self.psf_shape = psf_shape
        self.margins = (0, 0) if psf_shape is None else tuple(k // 2 for k in psf_shape)
        self.canvas = tuple(n + 2 * m for n, m in zip(shape, self.margins, strict=True))
        self.fft_shape = tuple(next_fast_len(n, real=True) for n in self.canvas)
        self.pixels, self.samples, self.averages = zip(
            *(
                self._axis(size, margin)
                for size, margin in zip(self.canvas, self.margins, strict=True)
            ),
            strict=True,
        )
        t, weight = np.polynomial.legendre.leggauss(_RADII)
        t, weight = 0.5 * (1 + t), 0.5 * weight
        # radii in units of the farthest, and 2 pi r dr over the number of angles
        self.radii = (t**_CROWDING).astype("float32")
        area = _CROWDING * t ** (2 * _CROWDING - 1) * weight * 2 * np.pi / _ANGLES
        self.areas = area.astype("float32")
        angles = 2 * np.pi * (np.arange(_ANGLES) + 0.5) / _ANGLES
        self.circle = np.stack([np.cos(angles), np.sin(angles)]).astype("float32")

    def _axis(self, size, margin):
        """Pixels of the canvas, samples, and how these add up to pixels."""
        pixels = np.arange(size) - margin
        if self.psf_shape is None:
            # two points of Gauss and Legendre are exact for cubics
            offsets = np.polynomial.legendre.leggauss(_SAMPLES)[0] / 2
            samples = (pixels[:, np.newaxis] + offsets).ravel()
            distance = np.abs(pixels[:, np.newaxis] - samples)
            matrix = (distance < 0.5) / _SAMPLES
        else:
            offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES - 0.5
            grid = np.arange(-_HALF_WIDTH, size + _HALF_WIDTH) - margin
            samples = (grid[:, np.newaxis] + offsets).ravel()
            x = pixels[:, np.newaxis] - samples
            z = (x / _HALF_WIDTH) ** 2
            window = np.i0(_KAISER * np.sqrt(np.maximum(1 - z, 0))) / np.i0(_KAISER)
            matrix = np.where(z < 1, np.sinc(x) * window, 0.0) / _SAMPLES
        return tuple(part.astype("float32") for part in (pixels, samples, matrix))

    def transform(self, psf):
        """Fourier transform of PSFs (n, ky, kx, n_bands), scaled to a sum of one."""
        planes = ops.transpose(psf, (0, 3, 1, 2))
        total = ops.sum(planes, axis=(2, 3), keepdims=True)
        planes = planes / ops.where(total > 0, total, 1.0)
        return rfft2(planes, self.fft_shape)

    def __call__(self, shape, psf=None, *, derivatives=True):
        """
        Paint profiles.

        Parameters
        ----------
        shape : tensor, shape (n, 6)
            Rows ``(x, y, s, n, e1, e2)``.
        psf : tuple of tensor, optional
            As given by `transform`.
        derivatives : bool, optional
            Whether to give them.

        Returns
        -------
        planes : tensor, shape (n, n_bands or 1, 7 or 1, ny, nx)
            The profile, and its derivatives.
        """
        terms = self._terms(shape)
        planes = self._outer(terms, derivatives)
        if self.psf_shape is None:
            planes = self._refine(planes, terms, derivatives)
        planes = planes + self._core(terms, derivatives)
        if psf is None:
            return planes[:, None]
        real, imag = rfft2(planes[:, None], self.fft_shape)
        psf_real, psf_imag = (part[:, :, None] for part in psf)
        product = (
            real * psf_real - imag * psf_imag,
            real * psf_imag + imag * psf_real,
        )
        planes = irfft2(product, self.fft_shape[1])
        (ny, nx), (ky, kx) = self.shape, self.psf_shape
        # what would wrap around ends before the first pixel of the image
        return planes[..., ky - 1 : ky - 1 + ny, kx - 1 : kx - 1 + nx]

    def _terms(self, shape):
        """What depends on the parameters alone, each (n, 1, 1)."""
        x, y, s, n, e1, e2 = (shape[:, i, None, None] for i in range(6))
        square = e1 * e1 + e2 * e2
        eta = ops.sqrt(square + 1e-12)
        log_b, slope_b = _with_slope(_LOG_B, n)
        log_norm, slope_norm = _with_slope(_LOG_NORM, n)
        b = ops.exp(log_b)
        cosh, sinh = ops.cosh(eta), ops.sinh(eta)
        series = 1.0 / 3.0 + square / 30.0
        bend = ops.where(eta < 0.1, series, (eta * cosh - sinh) / eta**3)
        # where the light ends
        end = ops.exp(n * (ops.log(_FAINTEST) - log_b))
        minor, major = s * ops.exp(-0.5 * eta), s * ops.exp(0.5 * eta)
        limits = (_CORE_MINOR, _CORE_MAJOR)
        if self.psf_shape is None:
            limits = (_SMALL_CORE, _SMALL_CORE)
        core = ops.minimum(limits[0] / minor, limits[1] / major)
        return {
            "x": x,
            "y": y,
            "s": s,
            "e1": e1,
            "e2": e2,
            "cosh": cosh,
            "sinhc": sinh / eta,
            "bend": bend,
            "half": (ops.cosh(0.5 * eta), ops.sinh(0.5 * eta) / eta),
            "power": 0.5 / n,
            "b": b,
            "slope_b": b * slope_b,
            "log_norm": log_norm + 2.0 * ops.log(s),
            "slope_norm": slope_norm,
            "core": core,
            "reach": ops.minimum(core, end),
        }

    def _light(self, dx, dy, q, weight, terms, derivatives):
        """
        Surface brightness and its derivatives at points, times a weight.

        ``q`` is the squared elliptical radius. The planes become axis 1.
        """
        b, power = terms["b"], terms["power"]
        log_q = ops.log(ops.maximum(q, _TINY))
        t = ops.exp(ops.minimum(power * log_q, 10.0))
        t = ops.minimum(t, 80.0 / b)
        light = weight * ops.exp(-b * t - terms["log_norm"])
        if not derivatives:
            return light[:, None]
        fall = light * b * t
        # derivative by q, over the square of s
        pull = -fall * power / (ops.maximum(q, _TINY) * ops.square(terms["s"]))
        cosh, sinhc, e1, e2 = (terms[key] for key in ("cosh", "sinhc", "e1", "e2"))
        square, u1, u2 = dx * dx + dy * dy, dx * dx - dy * dy, 2.0 * dx * dy
        along = terms["bend"] * (e1 * u1 + e2 * u2)
        planes = [
            light,
            pull * 2.0 * (sinhc * (e1 * dx + e2 * dy) - cosh * dx),
            pull * 2.0 * (sinhc * (e2 * dx - e1 * dy) - cosh * dy),
            2.0 * (power * fall - light),
            fall * power * log_q - light * (terms["slope_b"] * t + terms["slope_norm"]),
            pull * (sinhc * (e1 * square - u1) - e1 * along),
            pull * (sinhc * (e2 * square - u2) - e2 * along),
        ]
        return ops.stack(planes, axis=1)

    def _radius(self, dx, dy, terms):
        """Squared elliptical radius."""
        shear = terms["e1"] * (dx * dx - dy * dy) + terms["e2"] * 2.0 * dx * dy
        square = terms["cosh"] * (dx * dx + dy * dy) - terms["sinhc"] * shear
        return ops.relu(square) / ops.square(terms["s"])

    def _sampled(self, at_x, at_y, terms, derivatives):
        """The outer part at the points of a grid."""
        dx, dy = at_x - terms["x"], at_y - terms["y"]
        q = self._radius(dx, dy, terms)
        weight = 1.0 - self._cut(q, terms)
        return self._light(dx, dy, q, weight, terms, derivatives)

    def _cut(self, q, terms):
        """The share of the light that belongs to the core."""
        return ops.square(ops.square(ops.relu(1.0 - q / ops.square(terms["core"]))))

    def _outer(self, terms, derivatives):
        at_y, at_x = map(ops.convert_to_tensor, self.samples)
        planes = self._sampled(
            at_x[None, None], at_y[None, :, None], terms, derivatives
        )
        rows, columns = (ops.convert_to_tensor(matrix) for matrix in self.averages)
        return ops.matmul(ops.matmul(rows, planes), ops.transpose(columns))

    def _core(self, terms, derivatives):
        """The core, in elliptical polar coordinates."""
        (cosh, sinh), s, e1, e2 = (terms[key] for key in ("half", "s", "e1", "e2"))
        radii, areas, circle = map(
            ops.convert_to_tensor, (self.radii, self.areas, self.circle)
        )
        radius = terms["reach"] * radii[None, :, None]
        u, v = radius * circle[0], radius * circle[1]
        dx = s * ((cosh + sinh * e1) * u + sinh * e2 * v)
        dy = s * (sinh * e2 * u + (cosh - sinh * e1) * v)
        q = ops.square(radius) * ops.ones_like(u)
        weight = self._cut(q, terms) * areas[None, :, None]
        weight = weight * ops.square(terms["reach"] * s)
        light = self._light(dx, dy, q, weight, terms, derivatives)
        n_nodes = _RADII * _ANGLES
        light = ops.reshape(light, (-1, light.shape[1], 1, n_nodes))
        kernel = _pixel if self.psf_shape is None else _sinc
        along_y, along_x = (
            kernel(
                ops.convert_to_tensor(pixels)[None, :, None]
                - ops.reshape(center + step, (-1, 1, n_nodes))
            )
            for pixels, center, step in zip(
                self.pixels, (terms["y"], terms["x"]), (dy, dx), strict=True
            )
        )
        right = ops.transpose(along_x, (0, 2, 1))[:, None]
        return ops.matmul(light * along_y[:, None], right)

    def _refine(self, planes, terms, derivatives):
        """Divide the pixels around the centre, without a PSF to smooth them."""
        offsets = (ops.arange(_FINE, dtype="float32") + 0.5) / _FINE - 0.5
        chosen, points = [], []
        for size, center in zip(self.shape, (terms["y"], terms["x"]), strict=True):
            count = min(_WINDOW, size)
            first = ops.round(center[:, 0]) - count // 2
            first = ops.clip(first, 0.0, float(size - count))
            window = first + ops.arange(count, dtype="float32")
            points.append(
                ops.reshape(window[:, :, None] + offsets, (-1, count * _FINE))
            )
            pixels = ops.arange(size, dtype="float32")
            chosen.append(ops.cast(pixels[None, :, None] == window[:, None], "float32"))
        fine = self._sampled(
            points[1][:, None], points[0][:, :, None], terms, derivatives
        )
        ny, nx = (count.shape[-1] for count in chosen)
        fine = ops.reshape(fine, (-1, fine.shape[1], ny, _FINE, nx, _FINE))
        fine = ops.mean(fine, axis=(3, 5))
        rows, columns = (part[:, None] for part in chosen)
        inside = (
            ops.sum(rows, axis=-1)[..., None] * ops.sum(columns, axis=-1)[:, :, None]
        )
        placed = ops.matmul(ops.matmul(rows, fine), ops.swapaxes(columns, -1, -2))
        return planes * (1.0 - inside) + placed
