# Licensed under a 3-clause BSD style license - see LICENSE
"""
Newton's method for many Gaussian fits at once, in `keras.ops`.

With ``g = exp(b . (x, y, x^2, xy, y^2))`` the model of a band is
``A g + c``. For a given ``g`` the amplitude and the constant are a linear
least-squares problem, so they are eliminated and only the five numbers of
``g`` are searched. Gradient and *exact* Hessian of what remains are moments
of ``w g^2``, ``w d g`` and ``w g`` (``d`` data, ``w`` weights) up to degree
four, that is one pair of thin matrix products per step. Moments are taken in
coordinates with the origin and the scale of each Gaussian itself, which is
why float32 suffices.

A Gaussian is kept as a row ``(x, y, pxx, pxy, pyy)``: its centre, and the
inverse of its covariance, in pixels.
"""

import numpy as np
from keras import ops

from astrovae.baselines._newton import DampedNewton, put_border

__all__ = ["GaussianNewton"]

# A Gaussian much narrower than a pixel is one pixel: it has no centre.
_LOWEST_SIGMA = 0.3
_TINY = 1e-30
# Centres may lie so many cutouts beyond the edges: only the flank of a bright
# neighbour has its centre there. Nearer to that wall than this, in sigma, a
# centre is at the wall.
_REACH = 4
_CLOSE = 1e-7
# Starting guesses are tried at so many centres along each axis, on an image in
# which up to 3 x 3 pixels are averaged as long as so many remain.
_GUESSES = 24
_MAX_FACTOR = 3
# Powers of (u, v) beside the amplitude's 1, and where the product of two of
# them stands in a flat table of moments [power of v, power of u] up to four.
_POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
_PRODUCTS = np.array(
    [5 * (a[1] + b[1]) + a[0] + b[0] for a in _POWERS for b in _POWERS]
)


class GaussianNewton(DampedNewton):
    """
    The function of a batch that fits Gaussians to its galaxies.

    The parameters of the search are the five of ``b``; the amplitude is
    that at the ``origin``.

    Parameters
    ----------
    shape : tuple of int
        ``(ny, nx, n_bands)`` of the cutouts.
    background : bool
        Whether the model has a constant in each band.
    n_starts : int
        How many starting guesses are followed for every galaxy.
    """

    n_parameters = 5

    def __call__(self, batch):
        results = super().__call__(batch)
        results["origin"] = ops.stack(self._frame(results["best"])[:2], axis=-1)
        return results

    def _guess(self, fields):
        """
        Find circular Gaussians that explain most of each image.

        The power that a Gaussian explains is known in closed form, and for
        all centres of a grid it takes two matrix products per width. The
        best guess is taken, its neighbours in position and width are set
        aside, and so on.
        """
        factor = min(max(max(self.ny, self.nx) // _GUESSES, 1), _MAX_FACTOR)
        data, weight = _average(fields["data"], fields["weight"], factor)
        x, y, sigma, templates = self._templates(factor)
        scores = []
        for along_y, along_x in templates:

            def project(planes, power, along_x=along_x, along_y=along_y):
                left = ops.convert_to_tensor(along_y.T**power)
                right = ops.convert_to_tensor(along_x**power)
                return ops.matmul(ops.matmul(left, planes), right)

            flux, norm = project(weight * data, 1), project(weight, 2)
            # a Gaussian that lies on masked pixels is no guess
            whole = np.outer((along_y**2).sum(axis=0), (along_x**2).sum(axis=0))
            covered = norm > ops.convert_to_tensor(0.1 * whole)
            if self.background:
                total = ops.sum(weight, axis=(2, 3), keepdims=True)
                mean = project(weight, 1) / ops.maximum(total, _TINY)
                power = norm - mean * mean * total
                covered = ops.logical_and(covered, power > 0.01 * norm)
                norm = power  # the data have mean zero
            score = flux * flux / ops.where(covered, norm, 1.0)
            score = ops.sum(ops.where(covered, score, 0.0), axis=1)
            scores.append(ops.reshape(score, (-1, len(along_x.T) * len(along_y.T))))
        score = ops.concatenate(scores, axis=1)
        starts = []
        for _ in range(self.n_starts):
            best = ops.argmax(score, axis=1)
            bx, by, bs = (ops.take(column, best)[:, None] for column in (x, y, sigma))
            inverse = 1.0 / (bs * bs)
            row = [bx, by, inverse, ops.zeros_like(inverse), inverse]
            starts.append(ops.concatenate(row, axis=1))
            reach = ops.maximum(bs, sigma)
            near = (x - bx) ** 2 + (y - by) ** 2 <= reach * reach
            alike = ops.logical_and(sigma < 2.9 * bs, sigma > bs / 2.9)
            score = ops.where(ops.logical_and(near, alike), -1.0, score)
        return ops.stack(starts, axis=1)

    def _templates(self, factor):
        """Return centres and widths of all guesses, and their profiles."""
        largest = max(self.ny, self.nx)
        narrowest = max(1.0, largest / _GUESSES / 1.5)
        count = 1 + int(np.log2(max(largest / 3 / narrowest, 1.0)))
        sigmas = narrowest * 2.0 ** np.arange(count)
        axes, pixels = [], []
        for size in (self.ny, self.nx):
            edges = np.arange(0, size, factor)
            pixels.append(0.5 * (edges + np.minimum(edges + factor, size) - 1))
            count = min(len(edges), _GUESSES)
            axes.append((np.arange(count) + 0.5) * size / count - 0.5)
        templates = [
            [
                np.exp(-0.5 * ((at[:, None] - axis) / sigma) ** 2).astype("float32")
                for at, axis in zip(pixels, axes, strict=True)
            ]
            for sigma in sigmas
        ]
        sigma, y, x = np.meshgrid(sigmas, *axes, indexing="ij")
        columns = [column.ravel().astype("float32") for column in (x, y, sigma)]
        return *(ops.convert_to_tensor(column) for column in columns), templates

    def _evaluate(self, shape, fields):
        """
        Evaluate the model with its best amplitudes and constants.

        Returns chi2 (rows,), its halved
        gradient (rows, 5) along ``b``, and the Gauss-Newton ("Fisher") and
        exact Hessian matrices of each band.
        """
        data, weight, area = fields["data"], fields["weight"], fields["area"]
        frame = self._frame(shape)
        ox, oy, scale_x, scale_y, q, rho, tx, ty = (part[:, None] for part in frame)
        u = (ops.arange(self.nx, dtype="float32") - ox) / scale_x
        v = (ops.arange(self.ny, dtype="float32") - oy) / scale_y
        along_x = q * ((tx - rho * ty) - 0.5 * u) * u
        along_y = q * ((ty - rho * tx) - 0.5 * v) * v
        across = (rho * q * u)[:, None, :] * v[:, :, None]
        g = ops.exp(along_x[:, None, :] + along_y[:, :, None] + across)[:, None]
        # one product for two planes: compilers make it twice as fast
        planes = ops.concatenate([weight * g * g, weight * data * g], axis=1)
        squares, cross = ops.split(_moments(planes, u, v), 2, axis=1)
        norm = squares[..., :1, :1]
        if self.background:
            # the data have mean zero: the constant only balances the Gaussian
            sums = _moments(weight * g, u, v)
            mean = sums[..., :1, :1] / area
            norm = ops.maximum(norm - mean * mean * area, 1e-6 * norm)
        a = cross[..., :1, :1] / ops.maximum(norm, _TINY)
        residual = data - a * g
        pull = cross - a * squares
        fisher = a * a * squares
        if self.background:
            c = -a * mean
            residual = residual - c
            pull = pull - c * sums
            fisher = put_border(area, a * sums[..., :1], fisher)
        chi2 = ops.sum(weight * residual * residual, axis=(1, 2, 3))
        pull = a * pull
        gradient = -ops.sum(pull[..., 1:, 0], axis=1)
        if self.background:
            pull = ops.pad(pull, ((0, 0), (0, 0), (1, 0), (1, 0)))
        return chi2, gradient, fisher, fisher - pull

    def _frame(self, shape):
        """
        Find coordinates in which a Gaussian and its moments are of order one.

        They are in units of the marginal sigmas, in which the inverse
        covariance is ``q [[1, -rho], [-rho, 1]]``. The origin is where in the
        image the Gaussian is largest (there it is 1): its centre, or a point
        on the edge, if the centre, at ``t``, lies beyond.
        """
        x, y, pxx, pxy, pyy = (shape[:, i] for i in range(5))
        ox, oy = ops.clip(x, 0.0, self.nx - 1.0), ops.clip(y, 0.0, self.ny - 1.0)
        for _ in range(2):
            ox = ops.clip(x - pxy / pxx * (oy - y), 0.0, self.nx - 1.0)
            oy = ops.clip(y - pxy / pyy * (ox - x), 0.0, self.ny - 1.0)
        det = pxx * pyy - pxy * pxy
        scale_x, scale_y = ops.sqrt(pyy / det), ops.sqrt(pxx / det)
        rho = -pxy / ops.sqrt(pxx * pyy)
        t = (x - ox) / scale_x, (y - oy) / scale_y
        return ox, oy, scale_x, scale_y, pxx * pyy / det, rho, *t

    def _shift(self, frame):
        """Rows that give, times the change of ``b``, the shift of the centre."""
        *_, rho, tx, ty = frame
        one = ops.ones_like(rho)
        along_x = one, rho, 2.0 * tx, ty + rho * tx, 2.0 * rho * ty
        along_y = rho, one, 2.0 * rho * tx, tx + rho * ty, 2.0 * ty
        return ops.stack(along_x, axis=-1), ops.stack(along_y, axis=-1)

    def _constrain(self, shape, gradient, fisher):
        """
        Keep centres within `_REACH` cutouts of the edges.

        Where the gradient pushes towards a wall, the Hessian along it gets
        the ratio of the push to the distance (Coleman & Li 1996), so that
        Newton's step ends before the wall and all else stays free.
        """
        frame = self._frame(shape)
        _, _, scale_x, scale_y, q, rho, _, _ = frame
        gu, gv = gradient[:, 0], gradient[:, 1]
        total = 0.0
        for position, scale, size, push, row in zip(
            (shape[:, 0], shape[:, 1]),
            (scale_x, scale_y),
            (self.nx, self.ny),
            (q * (gu - rho * gv), q * (gv - rho * gu)),
            self._shift(frame),
            strict=True,
        ):
            low, high = -_REACH * size, (1 + _REACH) * size
            room = ops.where(push < 0, high - position, position - low) / scale
            wall = ops.abs(push) / ops.maximum(room, _CLOSE)
            total = total + wall[:, None, None] * row[:, :, None] * row[:, None, :]
        return gradient, total

    def _move(self, shape, change):
        """
        Change Gaussians by ``b``; return them and the share of the step taken.

        The covariance changes by a matrix exponential, so it stays positive
        and growing is as easy as shrinking. Centres move by two sigma at
        most, axes by a factor of e.
        """
        frame = self._frame(shape)
        _, _, scale_x, scale_y, q, rho, _, _ = frame
        du, dv = (ops.sum(row * change, axis=-1) for row in self._shift(frame))
        distance = ops.sqrt(q * (du * du + dv * dv - 2.0 * rho * du * dv))
        # the inverse covariance L L^T becomes L exp(e) L^T
        root = ops.sqrt(q)
        d11, d12, d22 = -2.0 * change[:, 2], -change[:, 3], -2.0 * change[:, 4]
        exx = d11 / q
        exy = (rho * d11 + d12) / root
        eyy = rho * (rho * d11 + 2.0 * d12) + d22
        mean, half = 0.5 * (exx + eyy), 0.5 * (exx - eyy)
        radius = ops.sqrt(half * half + exy * exy)
        largest = ops.maximum(distance, ops.abs(mean) + radius)
        factor = ops.minimum(1.0, 2.0 / ops.maximum(largest, _TINY))
        mean, half, exy, radius = (factor * part for part in (mean, half, exy, radius))
        growth, shrink = ops.exp(mean + radius), ops.exp(mean - radius)
        small = radius < 1e-3
        sinh = 0.5 * (growth - shrink) / ops.where(small, 1.0, radius)
        sinh = ops.where(small, ops.exp(mean), sinh)
        cosh = 0.5 * (growth + shrink)
        fxx, fxy, fyy = cosh + sinh * half, sinh * exy, cosh - sinh * half
        pxx = q * fxx / (scale_x * scale_x)
        pxy = root * (fxy - rho * root * fxx) / (scale_x * scale_y)
        pyy = rho * root * (rho * root * fxx - 2.0 * fxy) + fyy
        pyy = pyy / (scale_y * scale_y)
        x, y = (
            ops.clip(at + factor * step, -_REACH * size, (1 + _REACH) * size)
            for at, step, size in (
                (shape[:, 0], du * scale_x, self.nx),
                (shape[:, 1], dv * scale_y, self.ny),
            )
        )
        row = (x, y, *self._clip_axes(pxx, pxy, pyy))
        return ops.stack(row, axis=-1), factor

    def _clip_axes(self, pxx, pxy, pyy):
        """Keep both sigmas between their limits."""
        narrowest, widest = _LOWEST_SIGMA, 10.0 * max(self.ny, self.nx)
        mean, half = 0.5 * (pxx + pyy), 0.5 * (pxx - pyy)
        radius = ops.sqrt(half * half + pxy * pxy)
        low, high = widest**-2, narrowest**-2
        first = ops.clip(mean + radius, low, high)
        second = ops.clip(mean - radius, low, high)
        ratio = 0.5 * (first - second) / ops.maximum(radius, _TINY)
        mean = 0.5 * (first + second)
        return mean + ratio * half, ratio * pxy, mean - ratio * half


def _average(data, weight, step):
    """Average (n, n_bands, ny, nx) over ``step x step`` pixels."""
    if step == 1:
        return data, weight
    sums = []
    for plane in (weight * data, weight):
        padding = [(0, 0), (0, 0), *((0, -size % step) for size in plane.shape[2:])]
        plane = ops.pad(plane, padding)
        offsets = [(row, column) for row in range(step) for column in range(step)]
        sums.append(sum(plane[:, :, i::step, j::step] for i, j in offsets))
    total, norm = sums
    return total / ops.where(norm > 0, norm, 1.0), norm


def _moments(planes, u, v):
    """Sum planes (rows, k, ny, nx) times products of powers: (rows, k, 6, 6)."""
    along_x, along_y = (
        ops.stack([ops.ones_like(t), t, t * t, t * t * t, (t * t) * (t * t)], axis=-1)
        for t in (u, v)
    )
    left = ops.transpose(along_y, (0, 2, 1))[:, None]
    table = ops.matmul(ops.matmul(left, planes), along_x[:, None])
    table = ops.reshape(table, (-1, planes.shape[1], 25))
    table = ops.take(table, _PRODUCTS, axis=-1)
    return ops.reshape(table, (-1, planes.shape[1], 6, 6))
