# Licensed under a 3-clause BSD style license - see LICENSE
"""
Damped Newton steps for the shapes of many galaxies at once, in `keras.ops`.

The model of a band is ``A g + c``: an amplitude, a constant, and a profile
``g`` whose shape all bands share. For a given ``g`` the amplitude and the
constant are a linear least-squares problem, so they are eliminated and only
the few numbers of ``g`` are searched, each galaxy with its own damping.
"""

import numpy as np
from keras import ops

__all__ = ["FIRST_DAMPING", "STEPS_PER_ROUND", "DampedNewton", "put_border"]

# Most galaxies converge within so many steps. The others go on in batches of
# their own, so that no batch waits for its slowest galaxy.
STEPS_PER_ROUND = 8
FIRST_DAMPING = 1e-2
# How precisely sums over thousands of pixels are known in float32.
_ROUNDING = 1e-6
_MAX_DAMPING = 1e5
_TINY = 1e-30
_UNKNOWN = 1e30


class DampedNewton:
    """
    The function of a batch that fits its galaxies, of whatever profile.

    A subclass says what the profile is: ``_guess(fields)`` makes starts,
    ``_evaluate(shape, fields)`` gives chi2 and its derivatives,
    ``_move(shape, change)`` takes a step, and ``_constrain`` keeps it within
    limits. The third number of a shape is positive.

    Parameters
    ----------
    shape : tuple of int
        ``(ny, nx, n_bands)`` of the cutouts.
    background : bool
        Whether the model has a constant in each band.
    n_starts : int
        How many starting guesses are followed for every galaxy.
    """

    n_parameters = None
    # converged: what Newton's model still promises, relative to chi2; and relative
    # to the power of the data, for galaxies without noise
    tolerance, tolerance_power = 1e-9, 1e-12

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
            n_parameters), rows of zeros where it is to be guessed; ``damping`` (n,
            n_starts).

        Returns
        -------
        dict of tensors
            ``start`` and ``damping`` to go on from. For the best start of
            each galaxy its ``best`` shape, whether it ``converged`` and is
            ``done`` (it is of no use to go on), and the ``fisher`` and
            ``hessian`` matrices (n, n_bands, k, k) of (constant, relative
            amplitude, those of the shape), in units of ``scale`` and
            ``error_scale``.
        """
        fields, scales = self._prepare(batch)
        given = batch["start"]
        start = ops.where(given[..., 2:3] > 0, given, self._guess(fields))
        state = self._descend(
            ops.reshape(start, (-1, self.n_parameters)),
            ops.reshape(batch["damping"], (-1,)),
            {
                key: ops.repeat(value, self.n_starts, axis=0)
                for key, value in fields.items()
            },
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
        return results

    def guess(self, batch):
        """
        Return only the ``start`` (n, n_starts, n_parameters) that is guessed.

        Parameters
        ----------
        batch : dict of tensors
            ``image``, ``mask`` and perhaps ``error``.
        """
        return {"start": self._guess(self._prepare(batch)[0])}

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
        area = ops.maximum(ops.sum(weight, axis=(2, 3), keepdims=True), _TINY)
        fields = {"data": data, "weight": weight, "area": area}
        return fields, {"scale": scale, "error_scale": error_scale}

    def _eliminate(self, matrix):
        """Matrix of the shape alone, where the linear part follows it."""
        for _ in range(2 if self.background else 1):
            pivot = ops.maximum(matrix[..., :1, :1], _TINY)
            column = matrix[..., 1:, :1]
            product = column * ops.swapaxes(column, -1, -2)
            matrix = matrix[..., 1:, 1:] - product / pivot
        return ops.sum(matrix, axis=1)

    def _descend(self, shape, damping, fields):
        """Damped Newton steps; rows that have converged stand still."""
        power = fields["weight"] * fields["data"] * fields["data"]
        floor = self.tolerance_power * ops.sum(power, axis=(1, 2, 3))
        keys = ("chi2", "gradient", "fisher", "hessian")

        def unfinished(step, state):
            return ops.any(ops.logical_not(state["done"]))

        def advance(step, state):
            values = self._evaluate(state["trial"], fields)
            trial = dict(zip(keys, values, strict=True))
            accept, damping = _judge(state, trial["chi2"], floor)
            new = {key: _where(accept, trial[key], state[key]) for key in keys}
            shape = _where(accept, state["trial"], state["shape"])
            fisher = self._eliminate(new["fisher"])
            gradient, walls = self._constrain(shape, new["gradient"], fisher)
            change, matrix = _newton_step(
                gradient,
                self._eliminate(new["hessian"]) + walls,
                fisher + walls,
                damping,
            )
            moved, factor = self._move(shape, change)
            slope = -ops.sum(gradient * change, axis=-1)
            bend = ops.sum(matrix * change[:, None, :], axis=-1)
            bend = ops.sum(bend * change, axis=-1)
            converged = ops.logical_and(
                slope * (1.0 + damping) <= self.tolerance * new["chi2"] + floor,
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
        size = self.n_parameters + (2 if self.background else 1)
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


def put_border(corner, side, matrix):
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
    size = gradient.shape[-1]
    diagonal = ops.stack([fisher[:, i, i] for i in range(size)], axis=-1)
    scale = 1.0 / ops.sqrt(ops.where(diagonal > 0, diagonal, 1.0))
    scales = scale[:, :, None] * scale[:, None, :]
    ridge = ops.eye(size, dtype="float32") * (damping + 1e-6)[:, None, None]
    matrices = ops.stack([hessian, fisher]) * scales + ridge
    vectors = ops.stack([gradient * scale] * 2)
    steps, pivots = _solve(matrices, vectors)
    definite = pivots[0] > 1e-4
    step = -_where(definite, steps[0], steps[1]) * scale
    return step, _where(definite, matrices[0], matrices[1]) / scales


def _solve(matrix, vector):
    """Solve symmetric systems; return also their smallest pivots."""
    table = ops.concatenate([matrix, vector[..., None]], axis=-1)
    size = vector.shape[-1]
    identity = ops.eye(size, dtype="float32")[:, :, None]
    pivots = []
    for j in range(size):
        pivot = table[..., j : j + 1, j : j + 1]
        pivot = ops.where(ops.abs(pivot) > 1e-6, pivot, 1e-6)
        pivots.append(pivot[..., 0, 0])
        column = table[..., :, j : j + 1] - identity[j]
        table = table - column * (table[..., j : j + 1, :] / pivot)
    return table[..., size], ops.min(ops.stack(pivots), axis=0)
