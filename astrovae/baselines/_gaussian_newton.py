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

__all__ = ["FIRST_DAMPING", "STEPS_PER_ROUND", "GaussianNewton"]

# Most galaxies converge within so many steps. The others go on in batches of
# their own, so that no batch waits for its slowest galaxy.
STEPS_PER_ROUND = 8
FIRST_DAMPING = 1e-2
# A Gaussian much narrower than a pixel is one pixel: it has no centre.
_LOWEST_SIGMA = 0.3
# Converged: what Newton's model still promises, relative to chi2; and relative
# to the power of the data, for galaxies without noise.
_TOLERANCE = 1e-9
_TOLERANCE_POWER = 1e-12
# How precisely sums over thousands of pixels are known in float32.
_ROUNDING = 1e-6
_MAX_DAMPING = 1e5
_TINY = 1e-30
_UNKNOWN = 1e30
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


class GaussianNewton:
    """
    The function of a batch that fits its galaxies.

    Parameters
    ----------
    shape : tuple of int
        ``(ny, nx, n_bands)`` of the cutouts.
    background : bool
        Whether the model has a constant in each band.
    n_starts : int
        How many starting guesses are followed for every galaxy.
    """

    def __init__(self, shape, *, background, n_starts):
        self.ny, self.nx, self.n_bands = shape
        self.background = background
        self.n_starts = n_starts

    def __call__(self, batch):
        """
        Take up to `STEPS_PER_ROUND` steps from every start of every galaxy.

        Parameters
        ----------
        batch : dict of tensors
            ``image``, ``mask`` and perhaps ``error``; ``start`` (n, n_starts,
            5), rows of zeros where it is to be guessed; ``damping`` (n,
            n_starts).

        Returns
        -------
        dict of tensors
            ``start`` and ``damping`` to go on from. For the best start of
            each galaxy its ``best`` shape, whether it ``converged`` and is
            ``done`` (it is of no use to go on), and the ``fisher`` and
            ``hessian`` matrices (n, n_bands, k, k) of (constant, relative
            amplitude at the ``origin``, five of ``b``), in units of ``scale``
            and ``error_scale``.
        """
        data, weight, scales = self._prepare(batch)
        given = batch["start"]
        start = ops.where(given[..., 2:3] > 0, given, self._guess(data, weight))
        state = self._descend(
            ops.reshape(start, (-1, 5)),
            ops.reshape(batch["damping"], (-1,)),
            ops.repeat(data, self.n_starts, axis=0),
            ops.repeat(weight, self.n_starts, axis=0),
        )
        state = {
            key: ops.reshape(value, (-1, self.n_starts, *value.shape[1:]))
            for key, value in state.items()
        }
        first = ops.argmin(state["chi2"], axis=1)
        results = {"start": state["shape"], "damping": state["damping"], **scales}
        for key in ("shape", "converged", "done", "fisher", "hessian"):
            value = state[key]
            index = ops.reshape(first, (-1, *(1,) * (len(value.shape) - 1)))
            name = "best" if key == "shape" else key
            results[name] = ops.take_along_axis(value, index, axis=1)[:, 0]
        results["origin"] = ops.stack(self._frame(results["best"])[:2], axis=-1)
        return results

    def guess(self, batch):
        """
        Return only the ``start`` (n, n_starts, 5) that would be guessed.

        Parameters
        ----------
        batch : dict of tensors
            ``image``, ``mask`` and perhaps ``error``.
        """
        data, weight, _ = self._prepare(batch)
        return {"start": self._guess(data, weight)}

    def _prepare(self, batch):
        """Scale data and weights to one; bands become the second axis."""
        data = ops.transpose(batch["image"], (0, 3, 1, 2))
        masked = ops.transpose(batch["mask"], (0, 3, 1, 2))
        weight = 1.0 - ops.cast(masked, "float32")
        error_scale = ops.ones_like(weight[:, 0, 0, 0])
        if "error" in batch:
            error = ops.transpose(batch["error"], (0, 3, 1, 2))
            error = ops.where(masked, np.float32(np.finfo(np.float32).max), error)
            error_scale = ops.min(error, axis=(1, 2, 3))
            relative = error_scale[:, None, None, None] / error
            weight = weight * relative * relative
        if self.background:
            # the constant takes up the mean: without it, sums stay precise
            total = ops.maximum(ops.sum(weight, axis=(2, 3), keepdims=True), _TINY)
            mean = ops.sum(weight * data, axis=(2, 3), keepdims=True) / total
            data = ops.where(masked, 0.0, data - mean)
        scale = ops.max(ops.abs(data), axis=(1, 2, 3))
        scale = ops.where(scale > 0, scale, 1.0)
        data = data / scale[:, None, None, None]
        return data, weight, {"scale": scale, "error_scale": error_scale}

    def _guess(self, data, weight):
        """
        Find circular Gaussians that explain most of each image.

        The power that a Gaussian explains is known in closed form, and for
        all centres of a grid it takes two matrix products per width. The
        best guess is taken, its neighbours in position and width are set
        aside, and so on.
        """
        factor = min(max(max(self.ny, self.nx) // _GUESSES, 1), _MAX_FACTOR)
        data, weight = _average(data, weight, factor)
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

    def _normal_equations(self, shape, data, weight, area):
        """
        Evaluate the model with its best amplitudes and constants.

        ``area`` is the sum of the weights. Returns chi2 (rows,), its halved
        gradient (rows, 5) along ``b``, and the Gauss-Newton ("Fisher") and
        exact Hessian matrices of each band.
        """
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
            fisher = _border(area, a * sums[..., :1], fisher)
        chi2 = ops.sum(weight * residual * residual, axis=(1, 2, 3))
        pull = a * pull
        gradient = -ops.sum(pull[..., 1:, 0], axis=1)
        if self.background:
            pull = ops.pad(pull, ((0, 0), (0, 0), (1, 0), (1, 0)))
        return chi2, gradient, fisher, fisher - pull

    def _eliminate(self, matrix):
        """Matrix of the five of ``b`` where the linear part follows them."""
        for _ in range(2 if self.background else 1):
            pivot = ops.maximum(matrix[..., :1, :1], _TINY)
            column = matrix[..., 1:, :1]
            product = column * ops.swapaxes(column, -1, -2)
            matrix = matrix[..., 1:, 1:] - product / pivot
        return ops.sum(matrix, axis=1)

    def _descend(self, shape, damping, data, weight):
        """Damped Newton steps; rows that have converged stand still."""
        floor = _TOLERANCE_POWER * ops.sum(weight * data * data, axis=(1, 2, 3))
        area = ops.maximum(ops.sum(weight, axis=(2, 3), keepdims=True), _TINY)
        keys = ("chi2", "gradient", "fisher", "hessian")

        def unfinished(step, state):
            return ops.any(ops.logical_not(state["done"]))

        def advance(step, state):
            values = self._normal_equations(state["trial"], data, weight, area)
            trial = dict(zip(keys, values, strict=True))
            accept, damping = _judge(state, trial["chi2"], floor)
            new = {key: _where(accept, trial[key], state[key]) for key in keys}
            shape = _where(accept, state["trial"], state["shape"])
            walls = self._walls(shape, new["gradient"])
            change, matrix = _newton_step(
                new["gradient"],
                self._eliminate(new["hessian"]) + walls,
                self._eliminate(new["fisher"]) + walls,
                damping,
            )
            moved, factor = self._move(shape, change)
            slope = -ops.sum(new["gradient"] * change, axis=-1)
            bend = ops.sum(matrix * change[:, None, :], axis=-1)
            bend = ops.sum(bend * change, axis=-1)
            converged = ops.logical_and(
                slope * (1.0 + damping) <= _TOLERANCE * new["chi2"] + floor,
                new["chi2"] < _UNKNOWN,
            )
            # the last step is too small to be tested: it is taken
            last = ops.logical_and(converged, ops.logical_not(state["done"]))
            done = ops.logical_or(last, damping > _MAX_DAMPING)
            return step + 1, new | {
                "shape": _where(last, moved, shape),
                "trial": moved,
                "damping": damping,
                "promise": factor * slope - 0.5 * factor * factor * bend,
                "converged": ops.logical_or(state["converged"], last),
                "done": ops.logical_or(state["done"], done),
            }

        zero, none = ops.zeros_like(damping), ops.zeros_like(damping, dtype="bool")
        size = 7 if self.background else 6
        square = ops.tile(zero[:, None, None, None], (1, self.n_bands, size, size))
        state = {
            "shape": shape,
            "trial": shape,
            "damping": damping,
            "chi2": zero + _UNKNOWN,
            "gradient": ops.zeros_like(shape),
            "fisher": square,
            "hessian": square,
            "promise": zero,
            "converged": none,
            "done": none,
        }
        _, state = ops.while_loop(
            unfinished, advance, (0, state), maximum_iterations=STEPS_PER_ROUND
        )
        return state

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

    def _walls(self, shape, gradient):
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
        return total

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


def _border(corner, side, matrix):
    """Put a row and a column before a symmetric matrix."""
    top = ops.concatenate([corner, ops.swapaxes(side, -1, -2)], axis=-1)
    return ops.concatenate([top, ops.concatenate([side, matrix], axis=-1)], axis=-2)


def _where(rows, new, old):
    """Choose whole rows."""
    return ops.where(ops.reshape(rows, (-1,) + (1,) * (len(new.shape) - 1)), new, old)


def _judge(state, chi2, floor):
    """Decide which trials are accepted, and how much to damp from now on."""
    gain = 0.5 * (state["chi2"] - chi2)
    # where the promise is below the rounding of chi2, Newton's model is trusted
    slight = state["promise"] < 1e-5 * state["chi2"] + floor
    harmless = ops.logical_and(slight, gain > -_ROUNDING * state["chi2"] - floor)
    accept = ops.logical_or(gain >= 0, harmless)
    accept = ops.logical_and(accept, ops.logical_not(state["done"]))
    trusted = ops.logical_or(gain > 0.5 * state["promise"], slight)
    damping = state["damping"]
    less = ops.where(trusted, 0.1 * damping, damping)
    more = ops.maximum(10.0 * damping, FIRST_DAMPING)
    changed = ops.where(accept, less, more)
    return accept, ops.where(state["done"], damping, changed)


def _newton_step(gradient, hessian, fisher, damping):
    """
    Solve for the step, with the exact Hessian where it is positive definite.

    Returns the step and the (damped) matrix that gave it.
    """
    diagonal = ops.stack([fisher[:, i, i] for i in range(5)], axis=-1)
    scale = 1.0 / ops.sqrt(ops.where(diagonal > 0, diagonal, 1.0))
    scales = scale[:, :, None] * scale[:, None, :]
    ridge = ops.eye(5, dtype="float32") * (damping + 1e-6)[:, None, None]
    matrices = ops.stack([hessian, fisher]) * scales + ridge
    vectors = ops.stack([gradient * scale] * 2)
    steps, pivots = _solve(matrices, vectors)
    definite = pivots[0] > 1e-4
    step = -_where(definite, steps[0], steps[1]) * scale
    return step, _where(definite, matrices[0], matrices[1]) / scales


def _solve(matrix, vector):
    """Solve symmetric 5 x 5 systems; return also their smallest pivots."""
    table = ops.concatenate([matrix, vector[..., None]], axis=-1)
    identity = ops.eye(5, dtype="float32")[:, :, None]
    pivots = []
    for j in range(5):
        pivot = table[..., j : j + 1, j : j + 1]
        pivot = ops.where(ops.abs(pivot) > 1e-6, pivot, 1e-6)
        pivots.append(pivot[..., 0, 0])
        column = table[..., :, j : j + 1] - identity[j]
        table = table - column * (table[..., j : j + 1, :] / pivot)
    return table[..., 5], ops.min(ops.stack(pivots), axis=0)
