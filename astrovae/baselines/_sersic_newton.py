# Licensed under a 3-clause BSD style license - see LICENSE
"""Damped Gauss-Newton steps for many Sersic fits at once, in `keras.ops`."""

import numpy as np
from keras import ops

from astrovae.baselines._gaussian_newton import GaussianNewton
from astrovae.baselines._newton import DampedNewton
from astrovae.baselines._sersic_limits import LEAST_AXIS_RATIO, shape_limits
from astrovae.baselines._sersic_profile import SersicProfile

__all__ = ["SersicNewton"]

# Indices of the starts, in turns, and how much larger a galaxy of that index
# seems than its Gaussian says.
_FIRST_INDICES, _FIRST_SIZES = (1.0, 4.0), (1.18, 1.5)
# How far parameters move in a step: centres in units of the size, at least of
# a pixel; the others as they are searched.
_STEPS = np.array([1.0, 1.0, 0.7, 0.7, 0.5, 0.5], dtype="float32")
# What makes a limit hard, relative to the curvature along it.
_STIFF = 1e4
_LARGEST_SHEAR = float(-np.log(LEAST_AXIS_RATIO))
_TINY = 1e-30


class SersicNewton(DampedNewton):
    """
    The function of a batch that fits Sersic profiles to its galaxies.

    Shapes are rows ``(x, y, s, n, e1, e2)``, the parameters of the search are
    those of `SersicProfile`; the amplitude is the flux.

    Parameters
    ----------
    shape : tuple of int
        ``(ny, nx, n_bands)`` of the cutouts.
    background : bool
        Whether the model has a constant in each band.
    n_starts : int
        How many starting guesses are followed for every galaxy.
    psf_shape : tuple of int or None
        ``(ky, kx)`` of the PSF.
    """

    n_parameters = 6
    # a hundredth of a sigma; and what rounding leaves after Fourier transforms
    tolerance, tolerance_power = 1e-7, 1e-10

    def __init__(self, shape, *, background, n_starts, psf_shape):
        super().__init__(shape, background=background, n_starts=n_starts)
        # of x, y, s and n
        self.limits = tuple(
            (float(low), float(high)) for low, high in shape_limits(self.ny, self.nx)
        )
        self.profile = SersicProfile(shape[:2], psf_shape)
        self.gaussian = GaussianNewton(
            shape, background=background, n_starts=-(-n_starts // len(_FIRST_INDICES))
        )

    def paint(self, batch):
        """
        Paint profiles of unit flux.

        Parameters
        ----------
        batch : dict of tensors
            ``shape`` (n, 6), and perhaps ``psf``.

        Returns
        -------
        dict of tensors
            ``profile`` (n, n_bands or 1, ny, nx).
        """
        psf = self.profile.transform(batch["psf"]) if "psf" in batch else None
        planes = self.profile(batch["shape"], psf, derivatives=False)
        return {"profile": planes[:, :, 0]}

    def _prepare(self, batch):
        fields, scales = super()._prepare(batch)
        if "psf" in batch:
            fields["psf_real"], fields["psf_imag"] = self.profile.transform(
                batch["psf"]
            )
            planes = ops.mean(batch["psf"], axis=-1)
            total = ops.maximum(ops.sum(planes, axis=(1, 2)), _TINY)
            power = ops.sum(ops.square(planes), axis=(1, 2)) / ops.square(total)
            # of a Gaussian with as much power
            fields["blur"] = 1.0 / (4.0 * np.pi * ops.maximum(power, _TINY))
        else:
            fields["blur"] = ops.zeros_like(scales["scale"]) + 1.0 / 12.0
        return fields, scales

    def _guess(self, fields):
        """
        Start from moments, weighted by the Gaussians that explain most.

        The weight is taken off, as if the galaxy were a Gaussian, and so is
        the blur.
        """
        flux = ops.sum(fields["weight"] * fields["data"], axis=1)
        covered = ops.sum(fields["weight"], axis=1)
        flux = flux * self.n_bands / ops.where(covered > 0, covered, 1.0)
        circles = self.gaussian._guess(fields)
        starts = []
        for i in range(self.n_starts):
            kind = i % len(_FIRST_INDICES)
            x, y, inverse = (circles[:, i // len(_FIRST_INDICES), k] for k in range(3))
            dx = ops.arange(self.nx, dtype="float32") - x[:, None]
            dy = ops.arange(self.ny, dtype="float32") - y[:, None]
            along_x, along_y = (
                ops.exp(-0.5 * inverse[:, None] * ops.square(step)) for step in (dx, dy)
            )
            light = flux * along_y[:, :, None] * along_x[:, None, :]
            total = ops.sum(light, axis=(1, 2))
            good = total > 0
            total = ops.where(good, total, 1.0)
            xx = ops.sum(ops.sum(light, axis=1) * dx * dx, axis=1) / total
            yy = ops.sum(ops.sum(light, axis=2) * dy * dy, axis=1) / total
            xy = ops.sum(ops.sum(light * dy[:, :, None], axis=1) * dx, axis=1) / total
            trace = ops.maximum(xx + yy, _TINY)
            strength = ops.sqrt(ops.square(xx - yy) + ops.square(2.0 * xy)) / trace
            limited = ops.minimum(strength, 0.4) / ops.maximum(strength, 1e-6)
            limited = ops.where(good, limited, 0.0)
            # a round weight of the galaxy's size halves the shear
            e1, e2 = 2.0 * limited * (xx - yy) / trace, 4.0 * limited * xy / trace
            size = ops.sqrt(ops.maximum(1.0 / inverse - fields["blur"], 0.1 / inverse))
            size = _FIRST_SIZES[kind] * size
            size = ops.clip(size, *self.limits[2])
            index = _FIRST_INDICES[kind] * ops.ones_like(size)
            starts.append(ops.stack([x, y, size, index, e1, e2], axis=-1))
        return ops.stack(starts, axis=1)

    def _evaluate(self, shape, fields):
        psf = None
        if "psf_real" in fields:
            psf = fields["psf_real"], fields["psf_imag"]
        planes = self.profile(shape, psf)
        n_pixels = self.ny * self.nx
        planes = ops.reshape(planes, (-1, planes.shape[1], 7, n_pixels))
        data, weight = (
            ops.reshape(fields[key], (-1, self.n_bands, n_pixels, 1))
            for key in ("data", "weight")
        )
        first = 0
        if self.background:
            planes = ops.concatenate([ops.ones_like(planes[:, :, :1]), planes], axis=2)
            first = 1
        columns = ops.swapaxes(planes, -1, -2) * weight
        gram = ops.matmul(planes, columns)
        cross = ops.matmul(ops.swapaxes(columns, -1, -2), data)
        norm = gram[..., first : first + 1, first : first + 1]
        flux = cross[..., first : first + 1, :]
        if self.background:
            area = ops.maximum(gram[..., :1, :1], _TINY)
            mean = gram[..., :1, 1:2] / area
            norm = ops.maximum(norm - mean * mean * area, 1e-6 * norm)
            flux = flux - mean * cross[..., :1, :]
        a = flux / ops.maximum(norm, _TINY)
        profile = planes[..., first : first + 1, :]
        residual = data - ops.swapaxes(a * profile, -1, -2)
        factors = [a] * 7
        if self.background:
            residual = residual - (cross[..., :1, :] / area - a * mean)
            factors = [ops.ones_like(a), *factors]
        factors = ops.concatenate(factors, axis=-2)
        fisher = gram * factors * ops.swapaxes(factors, -1, -2)
        pull = ops.matmul(ops.swapaxes(columns, -1, -2), residual)
        gradient = -ops.sum((a * pull[..., first + 1 :, :])[..., 0], axis=1)
        chi2 = ops.sum(weight * ops.square(residual), axis=(1, 2, 3))
        return chi2, gradient, fisher, fisher

    def _constrain(self, shape, gradient, fisher):
        """
        Hold what is at a limit and would go beyond.

        Its gradient is taken off, and its curvature made stiff, so that all
        else stays free.
        """
        held = []
        for i, (low, high) in enumerate(self.limits):
            value, push = shape[:, i], gradient[:, i]
            margin = 1e-5 * (high - low) if i < 2 else 1e-4 * low
            at_low = ops.logical_and(value <= low + margin, push > 0)
            at_high = ops.logical_and(value >= high - margin, push < 0)
            held.append(ops.logical_or(at_low, at_high))
        held = ops.cast(ops.stack(held, axis=-1), "float32")
        held = ops.pad(held, ((0, 0), (0, 2)))
        gradient = gradient * (1.0 - held)
        shear = shape[:, 4:]
        size = ops.sqrt(ops.sum(ops.square(shear), axis=1, keepdims=True))
        unit = shear / ops.maximum(size, _TINY)
        outward = ops.sum(unit * gradient[:, 4:], axis=1, keepdims=True)
        at_edge = ops.logical_and(size >= (1 - 1e-4) * _LARGEST_SHEAR, outward < 0)
        unit = unit * ops.cast(at_edge, "float32")
        unit = ops.pad(unit, ((0, 0), (4, 0)))
        gradient = gradient - outward * unit
        diagonal = ops.stack([fisher[:, i, i] for i in range(6)], axis=-1)
        stiff = _STIFF * (diagonal + _TINY)
        walls = ops.eye(6, dtype="float32") * (held * stiff)[:, None, :]
        most = _STIFF * ops.max(diagonal[:, 4:], axis=1)[:, None, None]
        return gradient, walls + most * unit[:, :, None] * unit[:, None, :]

    def _move(self, shape, change):
        """Change shapes within their limits; return also the share of the step."""
        reach = ops.ones_like(shape) * ops.convert_to_tensor(_STEPS)
        size = ops.maximum(shape[:, 2:3], 1.0)
        reach = ops.concatenate([reach[:, :2] * size, reach[:, 2:]], axis=1)
        largest = ops.max(ops.abs(change) / reach, axis=1)
        factor = 1.0 / ops.maximum(largest, 1.0)
        step = factor[:, None] * change
        x, y, s, n = (
            ops.clip(value, low, high)
            for value, (low, high) in zip(
                (
                    shape[:, 0] + step[:, 0],
                    shape[:, 1] + step[:, 1],
                    shape[:, 2] * ops.exp(step[:, 2]),
                    shape[:, 3] * ops.exp(step[:, 3]),
                ),
                self.limits,
                strict=True,
            )
        )
        shear = shape[:, 4:] + step[:, 4:]
        size = ops.sqrt(ops.sum(ops.square(shear), axis=1, keepdims=True))
        shear = shear * ops.minimum(1.0, _LARGEST_SHEAR / ops.maximum(size, _TINY))
        row = ops.stack([x, y, s, n], axis=-1)
        return ops.concatenate([row, shear], axis=-1), factor
