# Licensed under a 3-clause BSD style license - see LICENSE
"""Encoder and decoder networks."""

import math

import keras
from keras import ops

from astrovae._validation import check_positive_int

__all__ = ["DenseDecoder", "DenseEncoder"]


class _DenseNetwork(keras.layers.Layer):
    """Hidden layers that both dense networks share."""

    def __init__(self, hidden_units=(128, 128), activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.hidden_units = tuple(
            check_positive_int("hidden_units", units) for units in hidden_units
        )
        self.activation = keras.activations.get(activation)
        self.hidden = [
            keras.layers.Dense(units, activation=activation, dtype=self.dtype_policy)
            for units in self.hidden_units
        ]

    def _build_hidden(self, size):
        for layer in self.hidden:
            layer.build((None, size))
            size = layer.units
        return size

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_units": list(self.hidden_units),
            "activation": keras.activations.serialize(self.activation),
        }


@keras.saving.register_keras_serializable("astrovae")
class DenseEncoder(_DenseNetwork):
    """
    Features of an image by fully connected layers.

    Parameters
    ----------
    hidden_units : sequence of int, optional
        Width of each hidden layer.
    activation : str or callable, optional
        Activation of the hidden layers.
    linear_skip : bool, optional
        Append the pixels themselves to the features, so that what follows
        contains every linear encoder (principal components among them) as a
        special case.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, ny, nx, channels)``. Output shape: ``(n, features)``.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import DenseEncoder
    >>> tuple(DenseEncoder((32, 16))(np.zeros((3, 8, 8, 1))).shape)
    (3, 16)
    """

    def __init__(
        self, hidden_units=(128, 128), activation="relu", linear_skip=False, **kwargs
    ):
        super().__init__(hidden_units, activation, **kwargs)
        self.linear_skip = linear_skip

    def build(self, input_shape):
        self._build_hidden(math.prod(input_shape[1:]))

    def call(self, inputs):
        pixels = ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))
        features = pixels
        for layer in self.hidden:
            features = layer(features)
        if self.linear_skip:
            features = ops.concatenate([features, pixels], axis=-1)
        return features

    def compute_output_shape(self, input_shape):
        size = math.prod(input_shape[1:])
        units = self.hidden_units[-1] if self.hidden_units else size
        return (input_shape[0], units + self.linear_skip * size)

    def get_config(self):
        return {**super().get_config(), "linear_skip": self.linear_skip}


@keras.saving.register_keras_serializable("astrovae")
class DenseDecoder(_DenseNetwork):
    """
    Maps of an image from latents by fully connected layers.

    Parameters
    ----------
    target_shape : tuple of int
        The shape of the maps, ``(ny, nx, channels)``.
    hidden_units : sequence of int, optional
        Width of each hidden layer.
    activation : str or callable, optional
        Activation of the hidden layers.
    linear_skip : bool, optional
        Append the latents to the last hidden layer, so that the network
        contains every linear decoder as a special case.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n, *target_shape)``.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import DenseDecoder
    >>> tuple(DenseDecoder((8, 8, 2), (16, 32))(np.zeros((3, 4))).shape)
    (3, 8, 8, 2)
    """

    def __init__(
        self,
        target_shape,
        hidden_units=(128, 128),
        activation="relu",
        linear_skip=False,
        **kwargs,
    ):
        super().__init__(hidden_units, activation, **kwargs)
        self.target_shape = tuple(target_shape)
        self.linear_skip = linear_skip
        self.output_layer = keras.layers.Dense(
            math.prod(self.target_shape), dtype=self.dtype_policy
        )

    def build(self, input_shape):
        size = self._build_hidden(input_shape[-1])
        self.output_layer.build((None, size + self.linear_skip * input_shape[-1]))

    def call(self, inputs):
        features = inputs
        for layer in self.hidden:
            features = layer(features)
        if self.linear_skip:
            features = ops.concatenate([features, inputs], axis=-1)
        return ops.reshape(self.output_layer(features), (-1, *self.target_shape))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.target_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "target_shape": list(self.target_shape),
            "linear_skip": self.linear_skip,
        }
