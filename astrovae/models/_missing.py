# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies that lack bands: to hide bands in training, and to encode without them."""

import keras
from keras import ops

from astrovae._validation import is_number
from astrovae.layers.sampling import SeededLayer

__all__ = ["BandDropout", "MissingBands"]

# of the hidden layers, at least and at most
_UNITS = (32, 512)


class BandDropout(SeededLayer):
    """
    Hide bands of galaxies at random, but never all that there are.

    Parameters
    ----------
    rate : float
        The probability that a band is hidden. A galaxy of which all bands
        would be hidden keeps one of them.
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: the pixels that count, ``(n, ny, nx, n_bands)``. Output: those
    that are left, and which galaxies have lost a band, ``(n,)``.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.rate = rate

    @staticmethod
    def check(rate, n_bands, posterior, side_inputs):
        """Return the rate, or say why a model cannot have it."""
        if not (is_number(rate) and 0 <= rate < 1):
            msg = (
                "band_dropout must be a number, at least 0 and less than 1, got "
                f"{rate!r}."
            )
            raise ValueError(msg)
        told = {"mask", "bands"} & set(side_inputs)
        if rate and (n_bands < 2 or posterior == "delta" or not told):
            msg = (
                "band_dropout hides some of several bands, for which a posterior "
                "becomes wider, and the encoder must be told: it needs images of at "
                "least two bands, posterior='diagonal' or 'full', and side_inputs with "
                f"'bands' or 'mask'. This model has {n_bands} band(s), "
                f"posterior={posterior!r} and side_inputs={tuple(side_inputs)}."
            )
            raise ValueError(msg)
        return float(rate)

    def call(self, seen):
        present = ops.any(seen, axis=(1, 2))
        shape = ops.shape(present)
        luck = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        # the luckiest of the bands that there are stays in any case
        luck = ops.where(present, luck, -1.0)
        best = luck >= ops.max(luck, axis=-1, keepdims=True)
        kept = (luck >= self.rate) | best
        lost = ops.any(present & ops.logical_not(kept), axis=-1)
        return seen & kept[:, None, None], lost


class MissingBands(keras.layers.Layer):
    """
    What to add to the parameters of a posterior where bands are missing.

    Two hidden layers, which see the features of the encoder and which bands there
    are. They are for this alone: weights that served complete galaxies, too, would
    follow the likelihood of their thousands of pixels, and hardly what little depends
    on a missing band.

    Parameters
    ----------
    units : int
        Number of parameters.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input: features ``(n, features)``, and 1 for bands with pixels, else 0,
    ``(n, n_bands)``. Output: ``(n, units)``, zero for galaxies with all bands, and at
    first for all.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.last = keras.layers.Dense(
            units, kernel_initializer="zeros", dtype=self.dtype_policy
        )

    def build(self, input_shape):
        features, bands = (shape[-1] for shape in input_shape)
        width = min(max(features, _UNITS[0]), _UNITS[1])
        self.hidden = [
            keras.layers.Dense(width, "gelu", dtype=self.dtype_policy) for _ in range(2)
        ]
        for layer, size in zip(self.hidden, (features + bands, width)):
            layer.build((None, size))
        self.last.build((None, width))

    def call(self, inputs):
        features, present = inputs
        lost = ops.any(present < 0.5, axis=-1, keepdims=True)
        known = ops.concatenate([features, present], axis=-1)
        for layer in self.hidden:
            known = layer(known)
        return ops.where(lost, self.last(known), 0.0)

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.units)
