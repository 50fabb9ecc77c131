# Licensed under a 3-clause BSD style license - see LICENSE
"""Maps that can be inverted: the parts of flows."""

import functools
import itertools

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_positive_int
from astrovae.layers._base import DensityLayer
from astrovae.layers._transforms import make_transform
from astrovae.ops import write_rows

__all__ = ["MADE", "ActNorm", "Bijector", "column_moments"]


class Bijector(DensityLayer):
    """
    Base of the maps that can be inverted.

    A subclass defines ``call(x, conditions=None, inverse=False)``, which
    returns ``(y, log_det)``. Forward is from data to a standard normal
    base, the direction in which a density is computed.

    Parameters
    ----------
    latent_dim : int
        Number of latents.
    condition_dim : int, optional
        Number of conditions; 0 for a map without any.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``, and ``(n, condition_dim)`` for the
    conditions. Output shape: ``(n, latent_dim)`` and, for the logarithm of
    the absolute determinant of the Jacobian of the direction taken,
    ``(n,)``.
    """

    def __init__(self, latent_dim, condition_dim=0, **kwargs):
        super().__init__(**kwargs)
        self.latent_dim = check_positive_int("latent_dim", latent_dim)
        self.condition_dim = check_positive_int(
            "condition_dim", condition_dim, minimum=0
        )

    def compute_output_shape(self, input_shape):
        return tuple(input_shape), tuple(input_shape[:1])

    def get_config(self):
        return {
            **super().get_config(),
            "latent_dim": self.latent_dim,
            "condition_dim": self.condition_dim,
        }

    def _check_conditions(self, conditions):
        """Refuse conditions that are missing, or that nothing depends on."""
        found = 0 if conditions is None else conditions.shape[-1]
        if found != self.condition_dim:
            msg = (
                f"{self.name} was made with condition_dim={self.condition_dim}, "
                f"but got {'no' if conditions is None else found} conditions."
            )
            raise ValueError(msg)


def column_moments(name, values, dim):
    """Mean and standard deviation of columns, which must be finite and vary."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != dim or len(values) < 2:
        msg = f"{name} must have the shape (n, {dim}), n > 1, got {values.shape}."
        raise ValueError(msg)
    mean, sigma = values.mean(axis=0), values.std(axis=0)
    # in float32, less than a millionth of the mean is rounding
    if not (sigma > 1e-6 * np.abs(mean)).all():
        msg = f"the columns of {name} must be finite and vary."
        raise ValueError(msg)
    return mean, sigma


@keras.saving.register_keras_serializable("astrovae")
class ActNorm(Bijector):
    """
    Shift and scale each latent, by learned amounts.

    Parameters
    ----------
    latent_dim : int
        Number of latents.
    condition_dim : int, optional
        Number of conditions, which are not used.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n, latent_dim)`` and
    ``(n,)``. The map is ``(x - shift) * exp(-log_scale)``; it starts as the
    identity, or from the data with `adapt`.

    References
    ----------
    Kingma & Dhariwal 2018, NeurIPS (arXiv:1807.03039).

    Examples
    --------
    >>> import numpy as np
    >>> from keras import ops
    >>> from astrovae.layers import ActNorm
    >>> layer = ActNorm(latent_dim=2)
    >>> layer.adapt(np.array([[1.0, 5.0], [3.0, 9.0]]))
    >>> y, log_det = layer(np.array([[3.0, 9.0]]))
    >>> ops.convert_to_numpy(y)
    array([[1., 1.]], dtype=float32)
    """

    def __init__(self, latent_dim, condition_dim=0, **kwargs):
        super().__init__(latent_dim, condition_dim, **kwargs)
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        shape = (self.latent_dim,)
        self.shift = self.add_weight(shape=shape, initializer="zeros", name="shift")
        self.log_scale = self.add_weight(
            shape=shape, initializer="zeros", name="log_scale"
        )

    def adapt(self, x):
        """
        Give the outputs zero mean and unit variance on data.

        Parameters
        ----------
        x : array_like, shape (n, latent_dim)
            The data.
        """
        mean, sigma = column_moments("x", x, self.latent_dim)
        self.shift.assign(mean)
        self.log_scale.assign(np.log(sigma))

    def call(self, x, conditions=None, inverse=False):
        log_det = ops.sum(self.log_scale) * ops.ones_like(x[:, 0])
        if inverse:
            return x * ops.exp(self.log_scale) + self.shift, log_det
        return (x - self.shift) * ops.exp(-self.log_scale), -log_det


@keras.saving.register_keras_serializable("astrovae")
class MADE(Bijector):
    """
    A masked autoencoder: each latent is mapped given those before it.

    One pass of a masked network gives the parameters of all maps, so that
    the density costs one pass. The inverse is sequential, but each hidden
    unit depends on the first few latents only, is computed once, when these
    are known, and kept: the inverse costs about one pass, too.

    Parameters
    ----------
    latent_dim : int
        Number of latents.
    condition_dim : int, optional
        Number of conditions, on which all latents depend.
    hidden_units : tuple of int, optional
        Widths of the hidden layers.
    activation : str, optional
        Activation of the hidden layers.
    transform : {"affine", "spline"}, optional
        The map of each latent: ``(x - m) exp(-a)``, or a monotonic
        rational-quadratic spline.
    limit : float or None, optional
        For "affine", the largest absolute value of ``a``; `None` for none.
        For "spline", beyond it the map is the identity.
    num_bins : int, optional
        Number of bins of a spline.
    permutation : sequence of int, optional
        The order of the latents; by default as they come.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        If an argument is out of its range, or the permutation is none.

    Notes
    -----
    Input shape: ``(n, latent_dim)``, and ``(n, condition_dim)`` for the
    conditions. Output shape: ``(n, latent_dim)`` and ``(n,)``. The last
    layer starts at zero, hence the map as the identity. Gradients flow
    through the inverse with JAX and PyTorch, but not with TensorFlow.

    References
    ----------
    Germain et al. 2015, ICML (arXiv:1502.03509); Papamakarios et al. 2017,
    NeurIPS (arXiv:1705.07057); Durkan et al. 2019, NeurIPS
    (arXiv:1906.04032) for splines.

    Examples
    --------
    >>> import numpy as np
    >>> from keras import ops
    >>> from astrovae.layers import MADE
    >>> layer = MADE(latent_dim=3, condition_dim=2)
    >>> x, conditions = np.ones((4, 3)), np.ones((4, 2))
    >>> y, log_det = layer(x, conditions)
    >>> bool((ops.convert_to_numpy(y) == x).all())
    True
    """

    def __init__(
        self,
        latent_dim,
        condition_dim=0,
        hidden_units=(128, 128),
        activation="relu",
        transform="affine",
        limit=5.0,
        num_bins=8,
        permutation=None,
        **kwargs,
    ):
        super().__init__(latent_dim, condition_dim, **kwargs)
        self.hidden_units = tuple(
            check_positive_int("hidden_units", units) for units in hidden_units
        )
        self.activation = keras.activations.get(activation)
        self.transform = transform
        self.limit = limit
        self.num_bins = num_bins
        self._transform = make_transform(transform, limit, num_bins)
        if permutation is None:
            permutation = range(self.latent_dim)
        self.permutation = tuple(int(i) for i in permutation)
        if sorted(self.permutation) != list(range(self.latent_dim)):
            msg = (
                f"permutation must hold each of 0 to {self.latent_dim - 1} once, "
                f"got permutation={self.permutation}."
            )
            raise ValueError(msg)
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        num_params = self._transform.num_params
        sizes = (self.latent_dim, *self.hidden_units, num_params * self.latent_dim)
        self.kernels, self.biases = [], []
        for layer, shape in enumerate(itertools.pairwise(sizes)):
            last = layer == len(self.hidden_units)
            self.kernels.append(
                self.add_weight(
                    shape=shape,
                    initializer="zeros" if last else "glorot_uniform",
                    name=f"kernel_{layer}",
                )
            )
            self.biases.append(
                self.add_weight(
                    shape=shape[1:], initializer="zeros", name=f"bias_{layer}"
                )
            )
        if self.condition_dim:
            self.condition_kernel = self.add_weight(
                shape=(self.condition_dim, sizes[1]),
                initializer="glorot_uniform" if self.hidden_units else "zeros",
                name="condition_kernel",
            )

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_units": list(self.hidden_units),
            "activation": keras.activations.serialize(self.activation),
            "transform": self.transform,
            "limit": self.limit,
            "num_bins": self.num_bins,
            "permutation": list(self.permutation),
        }

    def _degrees(self):
        """
        On how many latents the units of each hidden layer depend, ascending.

        Units of degree zero see conditions alone: the first latent depends
        on these. Without conditions, there are none. Before these degrees
        come the positions of the latents in their order, from one.
        """
        lowest = 0 if self.condition_dim or self.latent_dim == 1 else 1
        hidden = [
            lowest + np.arange(units) * (self.latent_dim - lowest) // units
            for units in self.hidden_units
        ]
        return [np.argsort(self.permutation) + 1, *hidden]

    def _masked_kernels(self):
        """Kernels with zeros where a unit must not see another."""
        degrees = self._degrees()
        masks = [
            before[:, None] <= after for before, after in itertools.pairwise(degrees)
        ]
        # the output for a latent sees what depends on those before it
        last = degrees[-1][:, None] < degrees[0]
        masks.append(np.tile(last, (1, self._transform.num_params)))
        return [
            kernel * ops.convert_to_tensor(mask, dtype=self.compute_dtype)
            for kernel, mask in zip(self.kernels, masks, strict=True)
        ]

    def parameters(self, x, conditions=None):
        """
        Evaluate the masked network.

        Parameters
        ----------
        x : tensor, shape (n, latent_dim)
            Latents.
        conditions : tensor, shape (n, condition_dim), optional
            The conditions.

        Returns
        -------
        tensor, shape (n, num_params, latent_dim)
            Parameters of the map of each latent: for "affine" ``m`` and,
            before clipping, ``a``.
        """
        x, conditions = self.as_float(x), self.as_float(conditions)
        self._check_conditions(conditions)
        kernels = self._masked_kernels()
        for layer, (kernel, bias) in enumerate(zip(kernels, self.biases, strict=True)):
            x = ops.matmul(x, kernel) + bias
            if layer == 0 and conditions is not None:
                x = x + ops.matmul(conditions, self.condition_kernel)
            if layer < len(self.hidden_units):
                x = self.activation(x)
        return ops.reshape(x, (-1, self._transform.num_params, self.latent_dim))

    def call(self, x, conditions=None, inverse=False):
        if inverse:
            return self._invert(x, conditions)
        y, log_det = self._transform(x, self.parameters(x, conditions))
        return y, ops.sum(log_det, axis=-1)

    def _invert(self, u, conditions):
        """
        Invert the map, one latent after the other.

        Activations are kept as (units, n), where those of one degree are
        adjacent. Step i knows the first i latents, computes the units of
        degree i, and from all units so far the parameters of latent i. The
        rows of units of higher degree, if any are computed with them, are
        overwritten later, and masked until then.
        """
        self._check_conditions(conditions)
        order = np.array(self.permutation)
        u = ops.take(ops.transpose(u), order, axis=0)
        inputs = ops.zeros_like(u)
        if conditions is not None:
            inputs = ops.concatenate([inputs, ops.transpose(conditions)], axis=0)
        num_rows = ops.shape(u)[1]
        buffers = [
            ops.zeros((units, num_rows), dtype=self.compute_dtype)
            for units in self.hidden_units
        ]
        state = (inputs, *buffers, ops.zeros_like(u[0]))
        weights, starts, ends = self._step_weights()

        def step(i, state, known):
            *values, log_det = state
            for layer, ((kernel, bias), count) in enumerate(
                zip(weights, known, strict=True)
            ):
                rows = kernel[i][:, :count] @ values[layer][:count] + bias[i]
                if layer < len(starts):
                    rows = self.activation(rows)
                    start = starts[layer][i]
                    values[layer + 1] = write_rows(values[layer + 1], start, rows)
            latent, change = self._transform(u[i], rows, inverse=True)
            values[0] = write_rows(values[0], i, latent[None, :])
            return (*values, log_det + change)

        for first, last in itertools.pairwise(_loops(self.latent_dim)):
            known = [None, *(end[last - 1] for end in ends)]
            body = functools.partial(step, known=known)
            state = ops.fori_loop(first, last, body, state)
        inputs, *_, log_det = state
        x = ops.take(inputs, np.argsort(order), axis=0)
        return ops.transpose(x), log_det

    def _step_weights(self):
        """
        Sort the weights by the steps of the inverse.

        Returns
        -------
        weights : list of (kernel, bias)
            For each layer, shapes (latent_dim, rows, units before) and
            (latent_dim, rows, 1).
        starts, ends : list
            For each hidden layer, the first row that a step computes, and
            how many rows are known after it.
        """
        order = np.array(self.permutation)
        kernels = [ops.transpose(kernel) for kernel in self._masked_kernels()]
        kernels[0] = ops.take(kernels[0], order, axis=1)
        if self.condition_dim:
            conditions = ops.transpose(self.condition_kernel)
            kernels[0] = ops.concatenate([kernels[0], conditions], axis=1)
        rows, starts, ends = [], [], []
        for degrees in self._degrees()[1:]:
            counts = np.bincount(degrees, minlength=self.latent_dim)
            end = np.cumsum(counts)
            start = np.minimum(end - counts, len(degrees) - counts.max())
            rows.append(start[:, None] + np.arange(counts.max()))
            starts.append(start.astype("int32"))
            ends.append(end)
        params = np.arange(self._transform.num_params)
        rows.append(order[:, None] + self.latent_dim * params)
        weights = [
            (ops.take(kernel, index, axis=0), ops.take(bias, index, axis=0)[..., None])
            for kernel, bias, index in zip(kernels, self.biases, rows, strict=True)
        ]
        if keras.config.backend() == "torch":
            starts = [start.tolist() for start in starts]
        else:
            starts = [ops.convert_to_tensor(start) for start in starts]
        return weights, starts, ends


def _loops(num_steps):
    """
    Bounds of the loops of an inverse.

    All steps of a compiled loop read as many rows as its last one, of which
    those that are not known yet count for nothing: more loops would do less,
    but run no faster. PyTorch compiles none: each step is its own.
    """
    if keras.config.backend() == "torch":
        return range(num_steps + 1)
    return 0, num_steps
