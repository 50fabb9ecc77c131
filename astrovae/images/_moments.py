# Licensed under a 3-clause BSD style license - see LICENSE
"""Elliptical Gaussians matched to many galaxies at once: adaptive moments."""

import numpy as np
from scipy import ndimage

from astrovae.flags import Flag

# the search starts with a circle, its sigma this share of the smaller side
_START = 1 / 8
# sigmas of the Gaussian stay between this many pixels and sides of the cutout
_MIN_SIGMA, _MAX_SIGMA = 0.25, 1.0
# a step is no longer than this, in sigmas of the Gaussian and in the logarithm
# of its squared sigmas, and the last one is shorter than the tolerance
_MAX_STEP, _TOLERANCE = 0.7, 1e-6
# less than six pixels leave the Gaussian undetermined; nothing is measured
# if its amplitude is not so many times its error
_MIN_PIXELS, _MIN_SNR = 7, 5.0
# a minimum is at least so sharp, relative to that of a perfect Gaussian; and
# so sharp where Newton's method is to be trusted
_MIN_CURVATURE, _NEWTON_CURVATURE = 1e-3, 1e-2
# where a galaxy has light is seen after a filter of this sigma, in pixels
_KERNEL_SIGMA = 1.5
# an ellipticity of fewer standard deviations is none
_ROUND_SNR = 3.0
# what is not symmetric under a half turn is a blend, or like one, if it is
# significant (chi2 of 4 degrees of freedom, one in ten by chance) and so large a
# share of the galaxy's own signal
_LOPSIDED_CHI2, _LOPSIDED_SHARE = 7.779, 0.05
# no angle is known worse than if all were equally likely
_MAX_ANGLE_ERR = np.pi / np.sqrt(12)
# asymmetry is measured in a Gaussian so much wider: the matched one has none
_WIDE = 1.5
# powers of x and y in the exponent of a Gaussian: 1, x, y, x^2, xy, y^2
_X_POWER = np.array([0, 1, 0, 2, 1, 0])
_Y_POWER = np.array([0, 0, 1, 0, 1, 2])
_NORMAL = (
    slice(None),
    _Y_POWER[:, np.newaxis] + _Y_POWER,
    _X_POWER[:, np.newaxis] + _X_POWER,
)
# and with those of third order, which a half turn changes the sign of
_X_THIRD = np.append(_X_POWER, [3, 2, 1, 0])
_Y_THIRD = np.append(_Y_POWER, [0, 1, 2, 3])
_THIRD = (
    slice(None),
    _Y_THIRD[:, np.newaxis] + _Y_THIRD,
    _X_THIRD[:, np.newaxis] + _X_THIRD,
)


def detection_image(planes, max_iter):
    """
    Combine the bands of each galaxy into one image.

    With the amplitudes of the bands, the combination is as good for the
    common shape as all bands together.

    Returns
    -------
    image, weight, noise : `~numpy.ndarray`, shape (n, ny, nx)
        The image, the weight of its pixels, and the variance of their
        product.
    """
    data = planes["image"].astype(float)
    valid = ~planes["mask"]
    variance = planes.get("error")
    if variance is None:
        variance = _noise(data, valid)[:, np.newaxis, np.newaxis]
    variance = np.broadcast_to(np.square(variance, dtype=float), data.shape)
    weight = valid / _background_variance(data, valid, variance)
    n, ny, nx, n_bands = data.shape
    if n_bands == 1:
        data, weight, variance = data[..., 0], weight[..., 0], variance[..., 0]
        return data, weight, weight**2 * variance
    shape = _first_guess(n, ny, nx)
    image, total, _ = _add_bands(data, weight, shape)
    shape, _ = _fit(image, total, max_iter)
    image, total, amplitude = _add_bands(data, weight, shape)
    return image, total, ((weight * amplitude) ** 2 * variance).sum(axis=-1)


def _add_bands(data, weight, shape):
    """The sum of bands, the weight, and the amplitudes that went into it."""
    g = _Gaussian(shape, *data.shape[1:3]).values[..., np.newaxis]
    norm = (weight * g**2).sum(axis=(1, 2))
    found = (weight * g * data).sum(axis=(1, 2))
    found = np.maximum(found / np.maximum(norm, np.finfo(float).tiny), 0)
    peak = found.max(axis=1, keepdims=True)
    amplitude = np.where(peak > 0, found / np.where(peak > 0, peak, 1), 1)
    amplitude = amplitude[:, np.newaxis, np.newaxis]
    total = (weight * amplitude**2).sum(axis=-1)
    image = (weight * amplitude * data).sum(axis=-1)
    return np.divide(image, total, out=image, where=total > 0), total, amplitude


def _background_variance(data, valid, variance):
    """
    Variance of pixels without the photon noise of the galaxy itself.

    A weight that followed the light would make size and shape depend on how
    bright the galaxy is. Where its light is significant, the median variance
    of the cutout counts.
    """
    if (variance == variance[:, :1, :1]).all():
        return variance
    typical = np.where(valid, variance, np.inf).reshape(len(data), -1, data.shape[-1])
    typical.sort(axis=1)
    middle = np.maximum(valid.sum(axis=(1, 2)) - 1, 0) // 2
    typical = np.take_along_axis(typical, middle[:, np.newaxis], axis=1)
    typical = np.where(np.isfinite(typical), typical, 1)[:, np.newaxis]
    inverse = valid / variance
    light, norm = (
        ndimage.gaussian_filter(plane, _KERNEL_SIGMA, axes=(1, 2), truncate=3)
        for plane in (inverse * data, inverse)
    )
    light /= np.maximum(norm, np.finfo(float).tiny)
    # white noise is so much smaller after the filter
    squared_snr = light**2 * (4 * np.pi * _KERNEL_SIGMA**2) / variance
    return typical + (variance - typical) * np.exp(-0.5 * squared_snr)


def _noise(data, valid):
    """Noise of each galaxy and band from the differences of adjacent pixels."""
    differences = []
    for axis in (1, 2):
        size = data.shape[axis]
        pairs = np.diff(data, axis=axis)
        both = np.take(valid, range(1, size), axis) & np.take(
            valid, range(size - 1), axis
        )
        pairs = np.where(both, np.abs(pairs), np.inf)
        differences.append(pairs.reshape(len(data), -1, data.shape[-1]))
    differences = np.sort(np.concatenate(differences, axis=1), axis=1)
    finite = np.isfinite(differences)
    count = finite.sum(axis=1, keepdims=True)
    if not differences.shape[1]:
        return np.ones((len(data), data.shape[-1]))
    # the median difference of two normal deviates is 0.6745 * sqrt(2) sigma
    median = np.take_along_axis(differences, np.maximum(count - 1, 0) // 2, axis=1)
    noise = median[:, 0] / 0.6744898 / np.sqrt(2)
    squares = np.where(finite, differences, 0) ** 2
    rms = np.sqrt(squares.sum(axis=1) / np.maximum(2 * count[:, 0], 1))
    # more than half of the pixels of some pictures are equal
    noise = np.where((noise > 0) & np.isfinite(noise), noise, rms)
    return np.where(noise > 0, noise, 1.0)


def _first_guess(n, ny, nx):
    """A circle at the centre of each cutout."""
    variance = (_START * min(ny, nx)) ** 2
    variance = max(variance, _MIN_SIGMA**2)
    return np.tile([0.0, 0.0, variance, 0.0, variance], (n, 1))


class _Gaussian:
    """
    Elliptical Gaussians of unit amplitude on the pixels of cutouts.

    Parameters
    ----------
    shape : `~numpy.ndarray`, shape (n, 5)
        Centre x, y from that of the cutout; xx, xy and yy of the covariance.
    ny, nx : int
        Size of the cutouts.
    """

    def __init__(self, shape, ny, nx):
        x, y, xx, xy, yy = shape.T
        # coordinates from the centre, in units of the size: no sum of powers
        # of them loses digits
        self.scale = (xx * yy - xy**2) ** 0.25
        self.x = np.arange(nx) - (nx - 1) / 2 - x[:, np.newaxis]
        self.y = np.arange(ny) - (ny - 1) / 2 - y[:, np.newaxis]
        self.x /= self.scale[:, np.newaxis]
        self.y /= self.scale[:, np.newaxis]
        covariance = np.stack([xx, xy, xy, yy], axis=1).reshape(-1, 2, 2)
        self.covariance = covariance / self.scale[:, np.newaxis, np.newaxis] ** 2
        # the determinant is 1
        xx, xy, yy = self.covariance.reshape(-1, 4)[:, [0, 1, 3]].T[..., np.newaxis]
        exponent = (xy * self.y)[:, :, np.newaxis] * self.x[:, np.newaxis]
        exponent -= (0.5 * yy * self.x**2)[:, np.newaxis]
        exponent -= (0.5 * xx * self.y**2)[:, :, np.newaxis]
        self.values = np.exp(exponent, out=exponent)

    def sums(self, *planes, highest=4):
        """Sums over pixels of planes times powers of y and x from 0 to the highest."""
        powers = np.arange(highest + 1)
        x = self.x[..., np.newaxis] ** powers
        y = self.y[:, np.newaxis] ** powers[:, np.newaxis]
        return [y @ plane @ x for plane in planes]


def _normal_equations(gaussian, weighted, weight):
    """
    What a least-squares step needs, for Gaussians of the best amplitude.

    Returns
    -------
    amplitude : `~numpy.ndarray`, shape (n,)
        NaN if there is none.
    fisher, hessian : `~numpy.ndarray`, shape (n, 6, 6)
    gradient : `~numpy.ndarray`, shape (n, 6)
        These over the squared amplitude.
    """
    g = gaussian.values
    model, data = gaussian.sums(weight * g**2, weighted * g)
    with np.errstate(divide="ignore", invalid="ignore"):
        amplitude = data[:, 0, 0] / model[:, 0, 0]
        data /= amplitude[:, np.newaxis, np.newaxis]
    fisher = model[_NORMAL]
    hessian = 2 * fisher - data[_NORMAL]
    gradient = (data - model)[:, _Y_POWER, _X_POWER]
    return amplitude, fisher, hessian, gradient


def _fit(image, weight, max_iter):
    """
    Fit Gaussians to images.

    Returns
    -------
    shape : `~numpy.ndarray`, shape (n, 5)
        As for `_Gaussian`.
    converged : `~numpy.ndarray` of bool, shape (n,)
        Whether the last step was shorter than the tolerance.
    """
    n, ny, nx = image.shape
    shape = _first_guess(n, ny, nx)
    converged = np.zeros(n, bool)
    rows = np.arange(n)
    weighted = weight * image
    for _ in range(max_iter):
        gaussian = _Gaussian(shape[rows], ny, nx)
        shape[rows], done = _improve(shape[rows], gaussian, weighted, weight)
        converged[rows] = done
        if done.any():
            rows, weighted, weight = rows[~done], weighted[~done], weight[~done]
        if not len(rows):
            break
    return shape, converged


def _improve(shape, gaussian, weighted, weight):
    """One step towards the best Gaussians, and which of them are there."""
    ny, nx = weight.shape[1:]
    amplitude, fisher, hessian, gradient = _normal_equations(gaussian, weighted, weight)
    usable = amplitude > 0
    fisher[~usable] = hessian[~usable] = np.eye(6)
    gradient[~usable] = 0
    # Newton where there is a minimum, Gauss-Newton elsewhere
    curvature, scale = _curvature(fisher, hessian, _NEWTON_CURVATURE)
    step = np.linalg.solve(curvature, (gradient / scale)[..., np.newaxis])
    step /= scale[..., np.newaxis]
    move = gaussian.covariance @ step[:, 1:3]
    length = np.sqrt((step[:, 1:3] * move).sum(axis=(1, 2)))
    move = move[..., 0] * _shorten(length)[:, np.newaxis]
    covariance, growth = _stretch(gaussian.covariance, step[:, 3:, 0])
    new = np.empty_like(shape)
    new[:, :2] = shape[:, :2] + move * gaussian.scale[:, np.newaxis]
    covariance *= gaussian.scale[:, np.newaxis, np.newaxis] ** 2
    # no light under the Gaussian: look farther
    covariance[~usable] *= 2
    new[:, 2:] = _bounded(covariance, max(ny, nx))
    new[:, 0] = np.clip(new[:, 0], -nx / 2, nx / 2)
    new[:, 1] = np.clip(new[:, 1], -ny / 2, ny / 2)
    return new, usable & (np.hypot(length, growth) < _TOLERANCE)


def _shorten(length):
    """The factor that makes a step not longer than the longest."""
    return _MAX_STEP / np.maximum(length, _MAX_STEP)


def _stretch(covariance, step):
    """
    Change covariances of determinant 1 by a step in the exponent.

    With ``R`` the root of a covariance and ``S`` the change of its inverse
    seen from there, the new one is ``R exp(-S) R``, which is positive.
    """
    root = covariance + np.eye(2)
    root /= np.sqrt(np.trace(root, axis1=1, axis2=2))[:, np.newaxis, np.newaxis]
    xx, xy, yy = -2 * step[:, 0], -step[:, 1], -2 * step[:, 2]
    change = root @ np.stack([xx, xy, xy, yy], axis=1).reshape(-1, 2, 2) @ root
    length = np.sqrt((change**2).sum(axis=(1, 2)))
    change *= _shorten(length)[:, np.newaxis, np.newaxis]
    mean = np.trace(change, axis1=1, axis2=2)[:, np.newaxis, np.newaxis] / 2
    change -= mean * np.eye(2)
    shear = np.sqrt((change**2).sum(axis=(1, 2)) / 2)[:, np.newaxis, np.newaxis]
    ratio = np.sinh(shear) / np.where(shear > 0, shear, 1)
    exponential = np.exp(-mean) * (np.cosh(shear) * np.eye(2) - ratio * change)
    return root @ exponential @ root, length


def _axes(shape):
    """Variances along the major and minor axis, and the angle of the former."""
    xx, xy, yy = shape[:, 2:].T
    mean, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return mean + half, mean - half, 0.5 * np.arctan2(2 * xy, xx - yy)


def _bounded(covariance, side):
    """Covariances xx, xy, yy whose axes are neither too short nor too long."""
    xx, xy, yy = covariance.reshape(-1, 4)[:, [0, 1, 3]].T
    mean, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    limits = _MIN_SIGMA**2, (_MAX_SIGMA * side) ** 2
    major, minor = np.clip(mean + half, *limits), np.clip(mean - half, *limits)
    ratio = (major - minor) / np.where(half > 0, 2 * half, 1)
    center = (major + minor) / 2
    part = ratio * (xx - yy) / 2
    return np.stack([center + part, ratio * xy, center - part], axis=1)


def measure_moments(image, weight, noise, max_iter, shape=None):
    """
    Measure the pose of galaxies.

    Parameters
    ----------
    image, weight, noise : `~numpy.ndarray`, shape (n, ny, nx)
        What `detection_image` returns.
    max_iter : int
        Most iterations.
    shape : `~numpy.ndarray`, shape (n, 5), optional
        As for `_Gaussian`, NaN where unknown: it is not fitted then.

    Returns
    -------
    pose : dict of `~numpy.ndarray`, shape (n,)
        ``x``, ``y``, ``angle``, ``flip``, ``size`` and ``axis_ratio``, and
        but for the flip their errors; see `~astrovae.images.measure_pose`.
    flags : `~numpy.ndarray` of int, shape (n,)
        Bits that begin with ``POSE``.
    """
    ny, nx = image.shape[1:]
    known = None if shape is None else np.isfinite(shape).all(axis=1)
    if shape is None:
        shape, converged = _fit(image, weight, max_iter)
    else:
        converged = known
        guess = _first_guess(len(shape), ny, nx)
        shape = np.where(known[:, np.newaxis], shape, guess)
    gaussian = _Gaussian(shape, ny, nx)
    weighted = weight * image
    amplitude, fisher, hessian, _ = _normal_equations(gaussian, weighted, weight)
    scatter = gaussian.sums(noise * gaussian.values**2)[0][_NORMAL]
    major, minor, angle = _axes(shape)
    good = (weight > 0).sum(axis=(1, 2)) >= _MIN_PIXELS
    good &= (np.abs(shape[:, 0]) < nx / 2) & (np.abs(shape[:, 1]) < ny / 2)
    if known is None:
        limit = (_MAX_SIGMA * max(ny, nx)) ** 2
        good &= (minor > _MIN_SIGMA**2 * (1 + 1e-9)) & (major < limit * (1 - 1e-9))
        with np.errstate(invalid="ignore"):
            least = _MIN_SNR * np.sqrt(scatter[:, 0, 0])
            good &= amplitude * fisher[:, 0, 0] > least
    else:
        good &= known & np.isfinite(amplitude) & (amplitude != 0)
    scatter[~good] = fisher[~good] = hessian[~good] = np.eye(6)
    amplitude[~good] = 1
    amplitude = amplitude[:, np.newaxis, np.newaxis]
    covariance = _sandwich(scatter, fisher, hessian) / amplitude**2
    pose = {"x": shape[:, 0], "y": shape[:, 1]}
    pose |= {"size": (major * minor) ** 0.25, "axis_ratio": np.sqrt(minor / major)}
    significance = _errors(pose, gaussian, covariance, angle)
    residual = image - amplitude * gaussian.values
    paired = _paired(weight, gaussian)
    along, across = _asymmetry(residual * weight, paired, gaussian, angle)
    lopsided = _is_lopsided(
        gaussian, weighted * paired, weight * paired, noise * paired, amplitude[:, 0, 0]
    )
    # turned by pi, both axes point the other way
    turn = along < 0
    pose["angle"] = angle + turn * np.where(angle > 0, -np.pi, np.pi)
    pose["flip"] = np.where(np.where(turn, -across, across) < 0, -1, 1)
    flags = np.where(good & ~converged, Flag.POSE_NOT_CONVERGED, 0)
    unreliable = (significance < _ROUND_SNR) | lopsided
    flags |= np.where(good & unreliable, Flag.POSE_UNRELIABLE, 0)
    flags |= np.where(good, 0, Flag.POSE_FAILED)
    return pose, flags.astype(np.int32)


def _curvature(fisher, hessian, least):
    """
    The Hessian, or the Fisher matrix where a curvature is less than ``least``.

    Both are scaled, so that the Fisher matrix has ones on its diagonal; and
    kept regular where few pixels are valid.
    """
    diagonal = np.einsum("nii->ni", fisher)
    scale = np.sqrt(np.maximum(diagonal, np.finfo(float).tiny))
    both = scale[:, :, np.newaxis] * scale[:, np.newaxis]
    fisher, hessian = fisher / both, hessian / both
    no_minimum = np.linalg.eigvalsh(hessian)[:, 0] < least
    hessian[no_minimum] = fisher[no_minimum]
    return hessian + 1e-9 * np.eye(hessian.shape[-1]), scale


def _sandwich(scatter, fisher, hessian):
    """Covariance of the parameters, given that of the gradient."""
    curvature, scale = _curvature(fisher, hessian, _MIN_CURVATURE)
    inverse = np.linalg.inv(curvature) / scale[:, np.newaxis]
    inverse /= scale[..., np.newaxis]
    return inverse @ scatter @ inverse


def _errors(pose, gaussian, covariance, angle):
    """
    Fill in the errors, and say how many of them the galaxy is from round.

    Seen along its axes, a change ``q`` of the exponent moves the centre by
    ``C q[1:3]`` and changes the covariance ``C`` by ``C Q C``, where ``Q`` is
    ``[[2 q3, q4], [q4, 2 q5]]``.
    """
    n = len(angle)
    ratio = pose["axis_ratio"]
    cos, sin = np.cos(angle), np.sin(angle)
    # squared sigmas along the axes, in units of the size
    major, minor = 1 / ratio, ratio
    jacobian = np.zeros((n, 5, 6))
    jacobian[:, :2, 1:3] = (
        gaussian.covariance * gaussian.scale[:, np.newaxis, np.newaxis]
    )
    # u^2, v^2 and 2 u v of directions, as they multiply q3, q4 and q5
    along = np.stack([cos**2, cos * sin, sin**2], axis=1)
    across = np.stack([sin**2, -cos * sin, cos**2], axis=1)
    mixed = np.stack([-2 * cos * sin, cos**2 - sin**2, 2 * cos * sin], axis=1)
    # relative changes of both sigmas, and the change of the mixed moment
    log_major = along * major[:, np.newaxis]
    log_minor = across * minor[:, np.newaxis]
    jacobian[:, 2, 3:] = mixed
    jacobian[:, 3, 3:] = (log_major + log_minor) / 2
    jacobian[:, 4, 3:] = log_minor - log_major
    total = jacobian @ covariance @ jacobian.transpose(0, 2, 1)
    variance = np.einsum("nii->ni", total)
    pose["x_err"], pose["y_err"], mixed, size, log_ratio = np.sqrt(variance).T
    pose["size_err"] = size * pose["size"]
    pose["axis_ratio_err"] = log_ratio * ratio
    flattening = major - minor
    with np.errstate(divide="ignore"):
        pose["angle_err"] = np.minimum(mixed / flattening, _MAX_ANGLE_ERR)
        return flattening / (2 * np.maximum(mixed, log_ratio))


def _is_lopsided(gaussian, weighted, weight, noise, amplitude):
    """
    Whether a half turn about its centre makes another galaxy of a galaxy.

    Blends that no segmentation resolves do that. The third moments of what the
    Gaussian leaves are compared with their noise, after a step that makes the first
    six zero: in the fit, pixels counted whose opposite ones are masked.
    """
    g = gaussian.values
    sums = gaussian.sums(weighted * g, weight * g**2, noise * g**2, highest=6)
    data, model, scatter = sums
    amplitude = amplitude[:, np.newaxis]
    score = data[:, _Y_THIRD, _X_THIRD] - amplitude * model[:, _Y_THIRD, _X_THIRD]
    fisher = model[_THIRD]
    hessian = 2 * fisher - data[_THIRD] / amplitude[..., np.newaxis]
    fitted, third = slice(0, 6), slice(6, 10)
    curvature, scale = _curvature(
        fisher[:, fitted, fitted], hessian[:, fitted, fitted], _MIN_CURVATURE
    )
    step = hessian[:, third, fitted] / scale[:, np.newaxis]
    step = np.linalg.solve(curvature, step.transpose(0, 2, 1)).transpose(0, 2, 1)
    step /= scale[:, np.newaxis]
    left = np.concatenate([-step, np.tile(np.eye(4), (len(g), 1, 1))], axis=2)
    rest = left @ score[..., np.newaxis]
    covariance = left @ scatter[_THIRD] @ left.transpose(0, 2, 1)
    covariance, scale = _curvature(covariance, covariance, 0.0)
    rest /= scale[..., np.newaxis]
    chi2 = (rest * np.linalg.solve(covariance, rest)).sum(axis=(1, 2))
    signal = amplitude[:, 0] ** 2 * model[:, 0, 0] ** 2
    large = chi2 * scatter[:, 0, 0] > _LOPSIDED_SHARE**2 * signal
    return (chi2 > _LOPSIDED_CHI2) & large


def _paired(weight, gaussian):
    """Which pixels are valid together with those opposite the centre."""
    n, ny, nx = weight.shape
    x, y = gaussian.x, gaussian.y
    opposite = []
    for axis, size in ((y, ny), (x, nx)):
        # on the pixel grid the coordinate is -axis[0] beyond the first pixel
        step = axis[:, 1:2] - axis[:, :1] if size > 1 else 1.0
        opposite.append(np.rint((-axis - axis[:, :1]) / step).astype(int))
    inside = [
        (index >= 0) & (index < size)
        for index, size in zip(opposite, (ny, nx), strict=True)
    ]
    rows, columns = (
        np.clip(index, 0, size - 1)
        for index, size in zip(opposite, (ny, nx), strict=True)
    )
    each = np.arange(n)[:, np.newaxis, np.newaxis]
    paired = weight[each, rows[:, :, np.newaxis], columns[:, np.newaxis]] > 0
    paired &= inside[0][:, :, np.newaxis] & inside[1][:, np.newaxis]
    return paired & (weight > 0)


def _asymmetry(residual, paired, gaussian, angle):
    """
    Excess of light along the major axis and at right angles to it.

    A pixel counts only if the one opposite the centre is valid too, so that
    no mask makes one side look brighter.
    """
    wide = gaussian.values ** (1 / _WIDE**2)
    sums = gaussian.sums(np.where(paired, residual * wide, 0))[0]
    cos, sin = np.cos(angle), np.sin(angle)
    dx, dy = sums[:, 0, 1], sums[:, 1, 0]
    return cos * dx + sin * dy, cos * dy - sin * dx
