# Licensed under a 3-clause BSD style license - see LICENSE
"""
The mathematics of the Keras half: stateless functions of tensors.

Everything is written with `keras.ops` and runs on TensorFlow, JAX and
PyTorch. Densities keep all their constants, and are sums over pixels or
dimensions, never means.
"""

import math

import keras
import numpy as np
from keras import ops

__all__ = [
    "arcsinh",
    "fit_canvas",
    "gaussian_cross_entropy",
    "gaussian_cross_entropy_tril",
    "gaussian_entropy",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_log_prob_tril",
    "irfft2",
    "log_mean_exp",
    "marginal_log_var",
    "marginal_variance",
    "rational_quadratic_spline",
    "reparameterize",
    "rfft2",
    "soft_clip",
    "softplus_inverse",
    "weighted_sum",
    "write_rows",
]

LOG_2PI = math.log(2.0 * math.pi)


def arcsinh(x):
    """
    Inverse hyperbolic sine, of operations that can be exported.

    Parameters
    ----------
    x : tensor
        Values.

    Returns
    -------
    tensor
        ``sign(x) * log(|x| + sqrt(1 + x**2))``, accurate near zero, too.

    Notes
    -----
    ``keras.ops.arcsinh`` is the same, but PyTorch cannot write it to ONNX, nor can
    TensorFlow 2.21 read what JAX 0.10 makes of it.

    Examples
    --------
    >>> from astrovae import ops
    >>> round(float(ops.arcsinh(1.0)), 4)
    0.8814
    """
    x = ops.convert_to_tensor(x)
    size = ops.abs(x)
    # sqrt(1 + x^2) - 1, without taking the difference of equal numbers
    excess = size * (size / (1.0 + ops.sqrt(1.0 + ops.square(size))))
    return ops.sign(x) * ops.log1p(size + excess)


def gaussian_log_prob(x, mean, log_var, variance=None):
    """
    Logarithm of the normal density, element by element.

    Parameters
    ----------
    x, mean, log_var : tensor
        Values, means and logarithms of the variances; broadcast.
    variance : tensor, optional
        The variances, if they are known, too: it saves an exponential.

    Returns
    -------
    tensor
        ``-0.5 * (log(2 pi) + log_var + (x - mean)**2 / exp(log_var))``.

    Examples
    --------
    >>> from astrovae import ops
    >>> round(float(ops.gaussian_log_prob(0.0, 0.0, 0.0)), 4)
    -0.9189
    """
    squares = ops.square(ops.subtract(x, mean))
    scaled = squares * ops.exp(-log_var) if variance is None else squares / variance
    return -0.5 * (ops.add(log_var, scaled) + LOG_2PI)


def gaussian_entropy(log_var):
    """
    Entropy of a diagonal normal distribution.

    Parameters
    ----------
    log_var : tensor, shape (..., dim)
        Logarithms of the variances.

    Returns
    -------
    tensor, shape (...,)
        ``0.5 * sum(1 + log(2 pi) + log_var)``.
    """
    return 0.5 * ops.sum(1.0 + LOG_2PI + log_var, axis=-1)


def gaussian_kl(mean, log_var, prior_mean=0.0, prior_log_var=0.0):
    """
    Kullback-Leibler divergence between diagonal normal distributions.

    Parameters
    ----------
    mean, log_var : tensor, shape (..., dim)
        Means and logarithms of the variances of the first distribution.
    prior_mean, prior_log_var : tensor or float, optional
        Those of the second, by default standard normal.

    Returns
    -------
    tensor, shape (..., dim)
        The divergence of each dimension, in nats; sum over the last axis
        for that of the whole.

    References
    ----------
    Kingma & Welling 2014, ICLR (arXiv:1312.6114), appendix B.
    """
    difference = log_var - prior_log_var
    scaled = ops.square(mean - prior_mean) * ops.exp(-prior_log_var)
    return 0.5 * (ops.exp(difference) + scaled - 1.0 - difference)


def reparameterize(mean, log_var, noise, scale_tril=None):
    """
    Draw from a normal distribution such that gradients flow.

    Parameters
    ----------
    mean, log_var : tensor, shape (n, dim)
        Means and logarithms of the variances.
    noise : tensor, shape (n, dim) or (dim,)
        Standard normal deviates.
    scale_tril : tensor, shape (n, dim, dim), optional
        Cholesky factors of full covariances, instead of ``log_var``.

    Returns
    -------
    tensor, shape (n, dim)
        ``mean + exp(log_var / 2) * noise``, or ``mean + scale_tril @ noise``.

    References
    ----------
    Kingma & Welling 2014, ICLR (arXiv:1312.6114), eq. 10.
    """
    if scale_tril is not None:
        return mean + ops.sum(scale_tril * noise[..., None, :], axis=-1)
    return mean + ops.exp(0.5 * log_var) * noise


def log_mean_exp(x, axis=-1):
    """
    Logarithm of the mean of exponentials, without overflow.

    Parameters
    ----------
    x : tensor
        Logarithms.
    axis : int, optional
        The axis to average over.

    Returns
    -------
    tensor
        ``log(mean(exp(x)))``.
    """
    return ops.logsumexp(x, axis=axis) - math.log(x.shape[axis])


def softplus_inverse(y):
    """
    Find ``x`` with ``softplus(x) = y``.

    Parameters
    ----------
    y : float or array
        Positive numbers.

    Returns
    -------
    float or array
        ``log(exp(y) - 1)``, also for large ``y``.
    """
    return y + np.log(-np.expm1(-y))


def weighted_sum(terms, valid):
    """
    Sum the terms of valid pixels, galaxy by galaxy.

    Invalid terms never count, whatever they are, and give no gradient.

    Parameters
    ----------
    terms : tensor, shape (n, ny, nx, n_bands)
        A term per pixel.
    valid : tensor, same shape, or None
        Which pixels are valid, as bool or as 1 and 0; None if all are.

    Returns
    -------
    tensor, shape (n,)
        The sums.
    """
    if valid is not None:
        terms = ops.where(ops.cast(valid, "bool"), terms, 0.0)
    return ops.sum(terms, axis=(1, 2, 3))


def fit_canvas(maps, shape):
    """
    Cut maps to their middle, or frame them with zeros.

    Parameters
    ----------
    maps : tensor, shape (n, ny, nx, channels)
        Maps.
    shape : tuple of int
        The shape ``(ny, nx)`` to give them. Where the difference is odd, the
        smaller margin comes first.

    Returns
    -------
    tensor, shape (n, ny, nx, channels)
        The maps on their new canvas.
    """
    extra = [want - have for want, have in zip(shape, maps.shape[1:3])]
    before = [size // 2 for size in extra]
    if any(size > 0 for size in extra):
        pads = [(max(b, 0), max(e - b, 0)) for b, e in zip(before, extra)]
        maps = ops.pad(maps, [(0, 0), *pads, (0, 0)])
    y, x = (max(-b, 0) for b in before)
    return maps[:, y : y + shape[0], x : x + shape[1]]


# ---------------------------------------------------------------------------
# Full covariances, given by their Cholesky factors
# ---------------------------------------------------------------------------


def gaussian_log_prob_tril(x, mean, scale_tril):
    """
    Logarithm of a normal density with a full covariance.

    Parameters
    ----------
    x, mean : tensor, shape (n, dim)
        Values and means.
    scale_tril : tensor, shape (n, dim, dim)
        Cholesky factors of the covariances, with a positive diagonal.

    Returns
    -------
    tensor, shape (n,)
        The log-densities.
    """
    white = ops.solve_triangular(scale_tril, (x - mean)[..., None], lower=True)
    log_scale = ops.log(ops.diagonal(scale_tril, axis1=-2, axis2=-1))
    return ops.sum(gaussian_log_prob(white[..., 0], 0.0, 0.0) - log_scale, axis=-1)


def marginal_log_var(scale_tril):
    """
    Variances of each dimension of a full covariance, and what they leave out.

    Parameters
    ----------
    scale_tril : tensor, shape (n, dim, dim)
        Cholesky factors of the covariances, with a positive diagonal.

    Returns
    -------
    log_var : tensor, shape (n, dim)
        Logarithms of the diagonals of the covariances.
    lost : tensor, shape (n, dim)
        How much entropy each dimension loses to those before it: the
        entropy is that of ``log_var`` minus the sum of these.
    """
    log_var = ops.log(marginal_variance(None, scale_tril))
    log_scale = ops.log(ops.diagonal(scale_tril, axis1=-2, axis2=-1))
    return log_var, 0.5 * log_var - log_scale


def marginal_variance(log_var, scale_tril):
    """
    Variances of each dimension of a normal distribution.

    Parameters
    ----------
    log_var : tensor, shape (n, dim), or None
        Logarithms of the variances.
    scale_tril : tensor, shape (n, dim, dim), or None
        Cholesky factors of full covariances, which take precedence.

    Returns
    -------
    tensor, shape (n, dim), or None
        The variances; `None` if neither is given.
    """
    if scale_tril is not None:
        return ops.sum(ops.square(scale_tril), axis=-1)
    return None if log_var is None else ops.exp(log_var)


# ---------------------------------------------------------------------------
# Mixtures: every distribution against every component
# ---------------------------------------------------------------------------


def gaussian_cross_entropy(mean, variance, centers, log_vars, *, direct=False):
    """
    Cross-entropies of normal distributions with diagonal components.

    Parameters
    ----------
    mean : tensor, shape (n, dim)
        Means of the distributions.
    variance : tensor, shape (n, dim), or None
        Their variances along each dimension. `None` stands for points: the
        result is then minus the log-density of the components.
    centers, log_vars : tensor, shape (num_components, dim)
        Means and logarithms of the variances of the components.
    direct : bool, optional
        By default the squares are expanded into two matrix products: fast,
        and for latents of order one right to 1e-3, which is enough for
        training. The direct form is exact to float32.

    Returns
    -------
    tensor, shape (n, num_components)
        ``0.5 sum(log(2 pi v) + (variance + (mean - center)**2) / v)``, with
        ``v = exp(log_vars)``.
    """
    precisions = ops.exp(-log_vars)
    if direct:
        log_probs = gaussian_log_prob(mean[:, None, :], centers, log_vars)
        result = -ops.sum(log_probs, axis=-1)
        if variance is not None:
            result = result + 0.5 * ops.matmul(variance, ops.transpose(precisions))
        return result
    # less cancels when the components surround the origin
    origin = ops.mean(centers, axis=0)
    mean, centers = mean - origin, centers - origin
    second = ops.square(mean)
    if variance is not None:
        second = second + variance
    products = ops.matmul(second, ops.transpose(precisions)) - 2.0 * ops.matmul(
        mean, ops.transpose(centers * precisions)
    )
    constants = ops.sum(LOG_2PI + log_vars + ops.square(centers) * precisions, axis=-1)
    return 0.5 * (products + constants)


def gaussian_cross_entropy_tril(mean, covariance, centers, whiteners, *, direct=False):
    """
    Cross-entropies of normal distributions with components of any shape.

    Parameters
    ----------
    mean : tensor, shape (n, dim)
        Means of the distributions.
    covariance : tensor, shape (n, dim, dim), or None
        Their covariances; `None` stands for points.
    centers : tensor, shape (num_components, dim)
        Means of the components.
    whiteners : tensor, shape (num_components, dim, dim)
        Inverse Cholesky factors of their covariances.
    direct : bool, optional
        As for `gaussian_cross_entropy`.

    Returns
    -------
    tensor, shape (n, num_components)
        The cross-entropies.
    """
    num_components, dim = centers.shape
    precisions = ops.einsum("kji,kjl->kil", whiteners, whiteners)
    flat = ops.transpose(ops.reshape(precisions, (num_components, dim * dim)))
    log_det = ops.sum(ops.log(ops.diagonal(whiteners, axis1=1, axis2=2)), axis=-1)
    if direct:
        white = ops.einsum("kij,nkj->nki", whiteners, mean[:, None, :] - centers)
        result = -ops.sum(gaussian_log_prob(white, 0.0, 0.0), axis=-1) - log_det
        if covariance is not None:
            traces = ops.matmul(ops.reshape(covariance, (-1, dim * dim)), flat)
            result = result + 0.5 * traces
        return result
    origin = ops.mean(centers, axis=0)
    mean, centers = mean - origin, centers - origin
    second = mean[:, :, None] * mean[:, None, :]
    if covariance is not None:
        second = second + covariance
    pulls = ops.einsum("kij,kj->ki", precisions, centers)
    products = ops.matmul(ops.reshape(second, (-1, dim * dim)), flat) - 2.0 * (
        ops.matmul(mean, ops.transpose(pulls))
    )
    constants = dim * LOG_2PI - 2.0 * log_det + ops.sum(pulls * centers, axis=-1)
    return 0.5 * (products + constants)


# ---------------------------------------------------------------------------
# Flows
# ---------------------------------------------------------------------------

# No bin of a spline is narrower, or lower, than this share of the box, and no
# slope at a knot is smaller.
MIN_BIN = 1e-3
MIN_SLOPE = 1e-3


def soft_clip(x, limit):
    """
    Keep values within limits, smoothly.

    Parameters
    ----------
    x : tensor
        Values.
    limit : float or None
        The largest absolute value; `None` leaves ``x`` as it is.

    Returns
    -------
    tensor
        ``limit * tanh(x / limit)``.
    """
    return x if limit is None else limit * ops.tanh(x / limit)


def rational_quadratic_spline(x, params, bound, *, inverse=False):
    """
    Map a box onto itself by monotonic splines; beyond it, by the identity.

    Parameters
    ----------
    x : tensor, shape (..., m)
        Values.
    params : tensor, shape (..., 3 * num_bins - 1, m)
        Widths, heights and slopes of each value's spline, before they are
        normalised. Zeros give the identity.
    bound : float
        The box is from ``-bound`` to ``bound``.
    inverse : bool, optional
        Whether to apply the inverse of the map.

    Returns
    -------
    y : tensor, shape (..., m)
        The images.
    log_det : tensor, shape (..., m)
        Logarithm of ``dy / dx``.

    References
    ----------
    Durkan et al. 2019, NeurIPS (arXiv:1906.04032), eqs. 4-8.
    """
    num_bins = (params.shape[-2] + 1) // 3
    x_knots, widths = _spline_knots(params[..., :num_bins, :], bound)
    y_knots, heights = _spline_knots(params[..., num_bins : 2 * num_bins, :], bound)
    slopes = MIN_SLOPE + ops.softplus(
        params[..., 2 * num_bins :, :] + float(softplus_inverse(1.0 - MIN_SLOPE))
    )
    ones = ops.ones_like(slopes[..., :1, :])
    slopes = ops.concatenate([ones, slopes, ones], axis=-2)

    inside = ops.abs(x) < bound
    position = ops.where(inside, x, 0.0)[..., None, :]
    knots = y_knots if inverse else x_knots
    above = ops.cast(position >= knots[..., 1:-1, :], x.dtype)
    edge = ops.ones_like(position)
    chosen = ops.concatenate([edge, above], axis=-2) - ops.concatenate(
        [above, ops.zeros_like(edge)], axis=-2
    )

    def pick(values):
        return ops.sum(chosen * values, axis=-2)

    x_left, width = pick(x_knots[..., :-1, :]), pick(widths)
    y_left, height = pick(y_knots[..., :-1, :]), pick(heights)
    left, right = pick(slopes[..., :-1, :]), pick(slopes[..., 1:, :])
    middle = height / width
    bend = left + right - 2.0 * middle
    position = position[..., 0, :]
    if inverse:
        rise = position - y_left
        a = height * (middle - left) + rise * bend
        b = height * left - rise * bend
        c = -middle * rise
        root = ops.sqrt(ops.maximum(b * b - 4.0 * a * c, 0.0))
        share = 2.0 * c / (-b - root)
    else:
        share = (position - x_left) / width
    rest = share * (1.0 - share)
    below = middle + bend * rest
    log_det = (
        2.0 * ops.log(middle)
        + ops.log(
            right * share**2 + 2.0 * middle * rest + left * ops.square(1.0 - share)
        )
        - 2.0 * ops.log(below)
    )
    if inverse:
        y, log_det = x_left + share * width, -log_det
    else:
        y = y_left + height * (middle * share**2 + left * rest) / below
    return ops.where(inside, y, x), ops.where(inside, log_det, 0.0)


def _spline_knots(raw, bound):
    """Positions of the knots of a spline, and the sizes of its bins."""
    num_bins = raw.shape[-2]
    sizes = MIN_BIN + (1.0 - MIN_BIN * num_bins) * ops.softmax(raw, axis=-2)
    inner = bound * (2.0 * ops.cumsum(sizes[..., :-1, :], axis=-2) - 1.0)
    edge = bound * ops.ones_like(sizes[..., :1, :])
    knots = ops.concatenate([-edge, inner, edge], axis=-2)
    return knots, knots[..., 1:, :] - knots[..., :-1, :]


def write_rows(buffer, start, rows):
    """
    Overwrite rows of a matrix that is not used again.

    Compilers turn this into a write in place. PyTorch has no compiler here,
    and copying the matrix at each write would cost more than all else: it
    writes in place, unless gradients need the old matrix. TensorFlow knows
    no gradient of it.

    Parameters
    ----------
    buffer : tensor, shape (num_rows, n)
        The matrix.
    start : int or tensor
        Where to begin.
    rows : tensor, shape (m, n)
        The new rows.

    Returns
    -------
    tensor, shape (num_rows, n)
        The matrix with its new rows.
    """
    if keras.config.backend() == "torch" and not rows.requires_grad:
        buffer[start : start + rows.shape[0]] = rows
        return buffer
    return ops.slice_update(buffer, (start, 0), rows)


# ---------------------------------------------------------------------------
# Fourier transforms of real images, from those of rows that Keras has
# ---------------------------------------------------------------------------


def rfft2(images, shape=None):
    """
    Transform real images.

    Parameters
    ----------
    images : tensor, shape (..., ny, nx)
        Images.
    shape : tuple of int, optional
        Pad with zeros, behind the last pixels, to this shape.

    Returns
    -------
    real, imag : tensor, shape (..., nx // 2 + 1, ny)
        Non-negative frequencies of x and all frequencies of y: those of
        `numpy.fft.rfft2` with the last axes swapped, which saves swapping
        them back for `irfft2`.
    """
    height, width = images.shape[-2:] if shape is None else shape
    real, imag = ops.rfft(images, fft_length=width)
    extra = [(0, 0)] * (len(images.shape) - 1) + [(0, height - images.shape[-2])]
    return ops.fft(
        tuple(ops.pad(ops.swapaxes(part, -1, -2), extra) for part in (real, imag))
    )


def irfft2(spectrum, width):
    """
    Transform back what `rfft2` gave.

    Parameters
    ----------
    spectrum : tuple of tensor, shape (..., width // 2 + 1, ny)
        Real and imaginary parts.
    width : int
        Number of pixels along x.

    Returns
    -------
    tensor, shape (..., ny, width)
        Real images.
    """
    real, imag = spectrum
    height = real.shape[-1]
    # the inverse transform is the conjugate of that of the conjugate
    real, imag = ops.fft((real, -imag))
    real, imag = (ops.swapaxes(part, -1, -2) / height for part in (real, -imag))
    return ops.irfft((real, imag), fft_length=width)
