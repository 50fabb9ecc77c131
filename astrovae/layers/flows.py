# Licensed under a 3-clause BSD style license - see LICENSE
"""Normalising flows: densities of any shape, from maps that can be inverted."""

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_positive_int
from astrovae.layers._bijectors import MADE, ActNorm, Bijector, column_moments
from astrovae.layers.sampling import SeededLayer
from astrovae.ops import gaussian_log_prob

__all__ = ["MADE", "ActNorm", "Bijector", "MaskedAutoregressiveFlow"]


# Rows that are inverted together: their activations stay in the cache of a
# processor. A GPU is filled by many more.
TILE = {"cpu": 256, "torch": 1024, "other": 65536}


def _tile_size():
    if keras.config.backend() == "torch":
        on_cpu = str(ops.zeros(()).device) == "cpu"
        return TILE["torch" if on_cpu else "other"]
    on_cpu = keras.distribution.list_devices()[0].lower().startswith("cpu")
    return TILE["cpu" if on_cpu else "other"]


def _map_tiles(function, x, conditions):
    """Apply a function of rows to tiles of equal size."""
    tile = _tile_size()
    if x.shape[0] is not None and x.shape[0] <= tile:
        return function(x, conditions)
    num_rows = ops.shape(x)[0]
    inputs = [x] if conditions is None else [x, conditions]

    def fold(array):
        padding = ops.zeros((-num_rows % tile, array.shape[1]), dtype=array.dtype)
        padded = ops.concatenate([array, padding], axis=0)
        return ops.reshape(padded, (-1, tile, array.shape[1]))

    y, log_det = ops.map(
        lambda tiles: function(tiles[0], tiles[1] if len(tiles) > 1 else None),
        [fold(array) for array in inputs],
    )
    y = ops.reshape(y, (-1, x.shape[1]))
    return y[:num_rows], ops.reshape(log_det, (-1,))[:num_rows]


@keras.saving.register_keras_serializable("astrovae")
class MaskedAutoregressiveFlow(Bijector, SeededLayer):
    """
    A density of any shape, also given conditions.

    A chain of `MADE`. Densities cost one pass of its networks; so do
    samples, thanks to the way in which `MADE` is inverted.

    Parameters
    ----------
    latent_dim : int
        Number of latents.
    condition_dim : int, optional
        Number of conditions.
    num_blocks : int, optional
        Number of `MADE`.
    hidden_units : tuple of int, optional
        Widths of the hidden layers of each.
    activation : str, optional
        Activation of the hidden layers.
    transform : {"affine", "spline"}, optional
        The map of each latent in a `MADE`.
    limit : float or None, optional
        The limit of these maps.
    num_bins : int, optional
        Number of bins of a spline.
    permutations : {"reverse", "random"} or sequence of sequence, optional
        The order of the latents in each `MADE`: turned around from one to
        the next, drawn at random, or as given. The configuration holds them
        as they are.
    act_norm : bool, optional
        Whether an `ActNorm` precedes each `MADE`.
    seed : int, optional
        Seed of the samples, and of random permutations.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Notes
    -----
    Input shape: ``(n, latent_dim)``, and ``(n, condition_dim)`` for the
    conditions. Output shape: ``(n, latent_dim)`` and ``(n,)``.

    Fit it to samples of the posteriors: their means scatter too little.
    Call `adapt` on these before. The layer then maps data to a standard
    normal distribution; called with ``inverse=True``, the reverse.

    References
    ----------
    Papamakarios et al. 2017, NeurIPS (arXiv:1705.07057).

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.layers import MaskedAutoregressiveFlow
    >>> flow = MaskedAutoregressiveFlow(latent_dim=2, condition_dim=1, num_blocks=2)
    >>> conditions = np.zeros((5, 1))
    >>> z = flow.sample(5, conditions)
    >>> flow.log_prob(z, conditions).shape == (5,)
    True
    """

    def __init__(
        self,
        latent_dim,
        condition_dim=0,
        num_blocks=5,
        hidden_units=(128, 128),
        activation="relu",
        transform="affine",
        limit=5.0,
        num_bins=8,
        permutations="reverse",
        act_norm=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(latent_dim, condition_dim, seed=seed, **kwargs)
        self.num_blocks = check_positive_int("num_blocks", num_blocks)
        self.permutations = self._make_permutations(permutations)
        self.act_norm = act_norm
        self.bijectors = []
        for permutation in self.permutations:
            if act_norm:
                self.bijectors.append(
                    ActNorm(latent_dim, condition_dim, dtype=self.dtype_policy)
                )
            self.bijectors.append(
                MADE(
                    latent_dim,
                    condition_dim,
                    hidden_units=hidden_units,
                    activation=activation,
                    transform=transform,
                    limit=limit,
                    num_bins=num_bins,
                    permutation=permutation,
                    dtype=self.dtype_policy,
                )
            )
        self.build()

    def _make_permutations(self, permutations):
        order = range(self.latent_dim)
        if isinstance(permutations, str):
            if permutations == "reverse":
                orders = (order, order[::-1])
                permutations = [orders[block % 2] for block in range(self.num_blocks)]
            elif permutations == "random":
                rng = np.random.default_rng(self.seed)
                permutations = [rng.permutation(order) for _ in range(self.num_blocks)]
            else:
                msg = (
                    "permutations must be 'reverse', 'random' or a list of orders, "
                    f"got permutations={permutations!r}."
                )
                raise ValueError(msg)
        if len(permutations) != self.num_blocks:
            msg = (
                f"permutations must hold num_blocks={self.num_blocks} orders, "
                f"got {len(permutations)}."
            )
            raise ValueError(msg)
        return tuple(tuple(int(i) for i in order) for order in permutations)

    def build(self, input_shape=None):
        if self.built:
            return
        for name, dim in (("", self.latent_dim), ("condition_", self.condition_dim)):
            for part, value in (("location", "zeros"), ("scale", "ones")):
                weight = self.add_weight(
                    shape=(dim,), initializer=value, trainable=False, name=name + part
                )
                setattr(self, name + part, weight)

    def get_config(self):
        made = self.bijectors[-1].get_config()
        shared = ("hidden_units", "activation", "transform", "limit", "num_bins")
        return {
            **super().get_config(),
            **{name: made[name] for name in shared},
            "num_blocks": self.num_blocks,
            "permutations": [list(order) for order in self.permutations],
            "act_norm": self.act_norm,
        }

    def adapt(self, x, conditions=None):
        """
        Standardise data and conditions, by constants kept in the layer.

        Parameters
        ----------
        x : array_like, shape (n, latent_dim)
            Samples of what is to be modelled.
        conditions : array_like, shape (n, condition_dim), optional
            Their conditions.

        Raises
        ------
        ValueError
            If a column is constant, or has values that are not finite.
        """
        self._check_conditions(None if conditions is None else np.asarray(conditions))
        parts = [("", "x", x, self.latent_dim)]
        if self.condition_dim:
            parts.append(("condition_", "conditions", conditions, self.condition_dim))
        for prefix, name, values, dim in parts:
            mean, sigma = column_moments(name, values, dim)
            getattr(self, f"{prefix}location").assign(mean)
            getattr(self, f"{prefix}scale").assign(sigma)

    def call(self, x, conditions=None, inverse=False):
        self._check_conditions(conditions)
        if conditions is not None:
            conditions = (conditions - self.condition_location) / self.condition_scale
        log_scale = ops.sum(ops.log(self.scale))
        if inverse:
            x, log_det = _map_tiles(self._invert, x, conditions)
            return x * self.scale + self.location, log_det + log_scale
        x = (x - self.location) / self.scale
        total = -log_scale
        for bijector in self.bijectors:
            x, log_det = bijector(x, conditions)
            total = total + log_det
        return x, total

    def _invert(self, x, conditions):
        total = 0.0
        for bijector in reversed(self.bijectors):
            x, log_det = bijector(x, conditions, inverse=True)
            total = total + log_det
        return x, total

    def log_prob(self, x, conditions=None):
        """
        Logarithm of the density.

        Parameters
        ----------
        x : tensor, shape (n, latent_dim)
            Latents.
        conditions : tensor, shape (n, condition_dim), optional
            Their conditions.

        Returns
        -------
        tensor, shape (n,)
            The log-densities.
        """
        u, log_det = self.call(self.as_float(x), self.as_float(conditions))
        return ops.sum(gaussian_log_prob(u, 0.0, 0.0), axis=-1) + log_det

    def sample(self, n, conditions=None, seed=None):
        """
        Draw latents; no gradient flows through them.

        Within a compiled function this is fast. On its own, each operation
        is dispatched by itself.

        Parameters
        ----------
        n : int
            How many.
        conditions : tensor, shape (n, condition_dim), optional
            The conditions of each.
        seed : int, optional
            Seed of these draws; the layer's own random state by default.

        Returns
        -------
        tensor, shape (n, latent_dim)
            The latents.
        """
        noise = keras.random.normal(
            (n, self.latent_dim), dtype=self.compute_dtype, seed=self.random_state(seed)
        )
        x, _ = self.call(noise, self.as_float(conditions), inverse=True)
        return ops.stop_gradient(x)
