# Licensed under a 3-clause BSD style license - see LICENSE
"""Sampling by reparameterisation, with a random state that is saved."""

import keras
from keras import ops

from astrovae.ops import reparameterize

__all__ = ["GaussianSampling", "SeededLayer"]


class SeededLayer(keras.layers.Layer):
    """
    Base of layers that draw random numbers reproducibly.

    Keras does not save the state of a `keras.random.SeedGenerator` with the
    weights, so a training that is resumed would draw other numbers than one
    that was never stopped. This layer saves it.

    Parameters
    ----------
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def random_state(self, seed):
        """Give what `keras.random` takes: the seed, or the own random state."""
        return self.seed_generator if seed is None else seed

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        own = {name: store[name] for name in store.keys() if name != "seed_state"}
        super().load_own_variables(own)
        self.seed_generator.state.assign(store["seed_state"])

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable("astrovae")
class GaussianSampling(SeededLayer):
    """
    Draw latents from a normal posterior.

    The reparameterisation trick: gradients reach all parameters. The state of
    the random numbers is saved with the weights.

    Parameters
    ----------
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: a pair ``(mean, log_var)`` of tensors of shape
    ``(n, latent_dim)``; or ``(mean, scale_tril)``, the second of shape
    ``(n, latent_dim, latent_dim)``: Cholesky factors of full covariances.
    Output shape: ``(n, latent_dim)``.

    References
    ----------
    Kingma & Welling 2014, ICLR (arXiv:1312.6114), eq. 10.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.layers import GaussianSampling
    >>> mean, log_var = np.zeros((4, 2)), np.full((4, 2), -100.0)
    >>> z = GaussianSampling(seed=1)((mean, log_var))
    >>> bool(abs(np.asarray(z)).max() < 1e-12)
    True
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        # Keras would run a model eagerly in each prediction, to build it
        self.built = True

    def call(self, inputs):
        mean, scale = inputs
        noise = keras.random.normal(
            ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator
        )
        if len(scale.shape) == 3:
            return reparameterize(mean, None, noise, scale)
        return reparameterize(mean, scale, noise)

    def compute_output_shape(self, input_shape):
        return input_shape[0]
