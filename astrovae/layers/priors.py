# Licensed under a 3-clause BSD style license - see LICENSE
"""Prior distributions of the latents."""

import functools
import math

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_positive_int
from astrovae.layers._base import Prior
from astrovae.layers._components import VARIANCE_FLOOR
from astrovae.layers._mixture_base import Mixture
from astrovae.layers._mixtures import MixturePrior
from astrovae.ops import (
    gaussian_cross_entropy,
    gaussian_kl,
    gaussian_log_prob,
    marginal_log_var,
    marginal_variance,
    reparameterize,
)

__all__ = ["FlowPrior", "GaussianPrior", "MixturePrior", "Prior", "VampPrior"]


@keras.saving.register_keras_serializable("astrovae")
class GaussianPrior(Prior):
    """
    The standard normal prior: the simplest, with a KL in closed form.

    Parameters
    ----------
    latent_dim : int
        Number of latents.
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n,)``, the
    log-density.

    References
    ----------
    Kingma & Welling 2014, ICLR (arXiv:1312.6114).

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.layers import GaussianPrior
    >>> prior = GaussianPrior(latent_dim=2)
    >>> kl = prior.kl_divergence(np.ones((1, 2)), np.zeros((1, 2)))
    >>> float(kl[0])
    1.0
    """

    def moments(self):
        """
        Mean and variance of each latent: 0 and 1.

        Returns
        -------
        mean, log_var : tensor, shape (latent_dim,)
            Zeros.
        """
        zero = ops.zeros((self.latent_dim,), dtype=self.compute_dtype)
        return zero, zero

    def log_prob(self, z):
        """
        Logarithm of the density.

        Parameters
        ----------
        z : tensor, shape (n, latent_dim)
            Latents.

        Returns
        -------
        tensor, shape (n,)
            The log-densities.
        """
        return ops.sum(gaussian_log_prob(self.as_float(z), 0.0, 0.0), axis=-1)

    def kl_terms(self, mean, log_var=None, z=None, scale_tril=None):
        """
        KL divergence from the prior by latent, in closed form.

        Parameters
        ----------
        mean : tensor, shape (n, latent_dim)
            Means of the posteriors.
        log_var : tensor, shape (n, latent_dim), optional
            Logarithms of their variances.
        z : tensor, optional
            Not used.
        scale_tril : tensor, shape (n, latent_dim, latent_dim), optional
            Cholesky factors of full covariances, instead of ``log_var``.

        Returns
        -------
        tensor, shape (n, latent_dim)
            The terms, in nats; their sum is the divergence.
        """
        mean, log_var, scale_tril = map(self.as_float, (mean, log_var, scale_tril))
        if scale_tril is None:
            return gaussian_kl(mean, log_var)
        marginal, lost = marginal_log_var(scale_tril)
        return gaussian_kl(mean, marginal) + lost

    def kl_divergence(self, mean, log_var=None, z=None, scale_tril=None):
        """
        KL divergence of posteriors from the prior, in closed form.

        Parameters
        ----------
        mean : tensor, shape (n, latent_dim)
            Means of the posteriors.
        log_var : tensor, shape (n, latent_dim), optional
            Logarithms of their variances.
        z : tensor, optional
            Not used.
        scale_tril : tensor, shape (n, latent_dim, latent_dim), optional
            Cholesky factors of full covariances, instead of ``log_var``.

        Returns
        -------
        tensor, shape (n,)
            The divergences, in nats.
        """
        return ops.sum(self.kl_terms(mean, log_var, scale_tril=scale_tril), axis=-1)

    def sample(self, n, seed=None):
        """
        Draw latents.

        Parameters
        ----------
        n : int
            How many.
        seed : int, optional
            Seed of these draws; the layer's own random state by default.

        Returns
        -------
        tensor, shape (n, latent_dim)
            The latents.
        """
        return keras.random.normal(
            (n, self.latent_dim), dtype=self.compute_dtype, seed=self.random_state(seed)
        )


@keras.saving.register_keras_serializable("astrovae")
class VampPrior(Mixture):
    """
    A mixture of posteriors: those of images that are learned.

    Each component is what the encoder makes of a pseudo-image, so that the
    prior stays close to the posteriors of real galaxies, and its components
    can be looked at.

    Parameters
    ----------
    num_components : int
        Number of pseudo-images.
    latent_dim : int
        Number of latents.
    image_shape : tuple of int
        Shape of one image, ``(ny, nx, n_bands)``.
    kl_method : {"bound", "monte_carlo"}, optional
        How `kl_divergence` is computed unless its caller says otherwise.
    seed : int, optional
        Seed of the random numbers, and of the initial pseudo-images.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n,)``, the
    log-density. The pseudo-images are the prior's only weights. The encoder
    belongs to the model: `bind` it before use (`astrovae.models.VAE` binds
    its own); it is neither saved nor counted with the prior.

    References
    ----------
    Tomczak & Welling 2018, AISTATS (arXiv:1705.07120).

    Examples
    --------
    >>> import numpy as np
    >>> from keras import ops
    >>> from astrovae.layers import VampPrior
    >>> prior = VampPrior(num_components=5, latent_dim=2, image_shape=(1, 2, 1))
    >>> def encoder(images):
    ...     mean = ops.reshape(images, (-1, 2))
    ...     return mean, ops.zeros_like(mean)
    >>> prior.bind(encoder)
    >>> prior.log_prob(np.zeros((4, 2))).shape == (4,)
    True
    """

    def __init__(
        self,
        num_components,
        latent_dim,
        image_shape,
        kl_method="bound",
        seed=None,
        **kwargs,
    ):
        super().__init__(num_components, latent_dim, kl_method, seed=seed, **kwargs)
        self.image_shape = tuple(
            check_positive_int("image_shape", size) for size in image_shape
        )
        self._encoder = None
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        self.pseudo_images = self.add_weight(
            shape=(self.num_components, *self.image_shape),
            initializer=keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
            name="pseudo_images",
        )

    def get_config(self):
        return {**super().get_config(), "image_shape": self.image_shape}

    def bind(self, encoder):
        """
        Say how pseudo-images are encoded.

        Parameters
        ----------
        encoder : callable
            ``encoder(images) -> (mean, log_var)``, of shape
            ``(num_components, latent_dim)``.
        """
        # a partial is not tracked by Keras: the encoder stays its owner's
        self._encoder = functools.partial(encoder)

    def initialize_from_images(self, images):
        """
        Start from real galaxies.

        Parameters
        ----------
        images : array_like, shape (num_components, ny, nx, n_bands)
            As the encoder sees them.

        Raises
        ------
        ValueError
            If the shape is another.
        """
        if np.shape(images) != self.pseudo_images.shape:
            msg = (
                "images must have the shape (num_components, ny, nx, n_bands) = "
                f"{self.pseudo_images.shape}, got {np.shape(images)}."
            )
            raise ValueError(msg)
        self.pseudo_images.assign(images)

    def _encode(self):
        if self._encoder is None:
            msg = (
                "a VampPrior needs an encoder for its pseudo-images: call "
                "prior.bind(encoder), with encoder(images) -> (mean, log_var)."
            )
            raise RuntimeError(msg)
        mean, log_var = self._encoder(ops.convert_to_tensor(self.pseudo_images))
        # the floor keeps a posterior that collapses from becoming a spike
        log_var = ops.logaddexp(self.as_float(log_var), math.log(VARIANCE_FLOOR))
        return self.as_float(mean), log_var

    @property
    def log_weights(self):
        """Logarithms of the weights, all equal."""
        log_weight = -math.log(self.num_components)
        return ops.full((self.num_components,), log_weight, dtype=self.compute_dtype)

    def _cross_entropies(self, mean, log_var, scale_tril, *, direct):
        variance = marginal_variance(log_var, scale_tril)
        return gaussian_cross_entropy(mean, variance, *self._encode(), direct=direct)

    def _place(self, labels, noise):
        means, log_vars = (ops.take(part, labels, axis=0) for part in self._encode())
        return reparameterize(means, log_vars, noise)

    def _marginals(self):
        means, log_vars = self._encode()
        return means, ops.exp(log_vars)

    def _arrays(self):
        parts = (self.log_weights, *self._encode())
        log_weights, means, log_vars = (
            ops.convert_to_numpy(part).astype(np.float64) for part in parts
        )
        return log_weights, means, np.exp(log_vars)


@keras.saving.register_keras_serializable("astrovae")
class FlowPrior(Prior):
    """
    A prior of any shape: a normalising flow.

    Parameters
    ----------
    flow : `MaskedAutoregressiveFlow`
        A flow without conditions; its dimension is that of the latents.
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Raises
    ------
    TypeError
        If ``flow`` is no flow.
    ValueError
        If it has conditions.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n,)``, the
    log-density. The KL divergence is estimated from one sample per galaxy.

    References
    ----------
    Chen et al. 2017, ICLR (arXiv:1611.02731).

    Examples
    --------
    >>> import numpy as np
    >>> from keras import ops
    >>> from astrovae.layers import FlowPrior, MaskedAutoregressiveFlow
    >>> prior = FlowPrior(MaskedAutoregressiveFlow(latent_dim=2, num_blocks=2))
    >>> ops.convert_to_numpy(prior.log_prob(np.zeros((1, 2))))
    array([-1.837877], dtype=float32)
    """

    def __init__(self, flow, seed=None, **kwargs):
        if not hasattr(flow, "log_prob") or not hasattr(flow, "condition_dim"):
            msg = f"flow must be a MaskedAutoregressiveFlow, got {flow!r}."
            raise TypeError(msg)
        if flow.condition_dim:
            msg = (
                "a FlowPrior has no conditions: flow must have condition_dim=0, "
                f"got condition_dim={flow.condition_dim}."
            )
            raise ValueError(msg)
        super().__init__(flow.latent_dim, seed=seed, **kwargs)
        self.flow = flow

    def get_config(self):
        config = super().get_config()
        del config["latent_dim"]
        return {**config, "flow": keras.saving.serialize_keras_object(self.flow)}

    @classmethod
    def from_config(cls, config):
        flow = keras.saving.deserialize_keras_object(config["flow"])
        return cls(**{**config, "flow": flow})

    def log_prob(self, z):
        """
        Logarithm of the density.

        Parameters
        ----------
        z : tensor, shape (n, latent_dim)
            Latents.

        Returns
        -------
        tensor, shape (n,)
            The log-densities.
        """
        return self.flow.log_prob(self.as_float(z))

    def moments(self):
        """
        Mean and variance of each latent: what is known without any data.

        Returns
        -------
        mean, log_var : tensor, shape (latent_dim,)
            Of the marginal distributions, estimated from 512 draws.
        """
        noise = np.random.default_rng(0).normal(size=(256, self.latent_dim))
        noise = self.as_float(np.concatenate([noise, -noise]))
        z, _ = self.flow(noise, inverse=True)
        return ops.mean(z, axis=0), ops.log(ops.var(z, axis=0))

    def sample(self, n, seed=None):
        """
        Draw latents; no gradient flows through them.

        Parameters
        ----------
        n : int
            How many.
        seed : int, optional
            Seed of these draws; the layer's own random state by default.

        Returns
        -------
        tensor, shape (n, latent_dim)
            The latents.
        """
        return self.flow.sample(n, seed=self.random_state(seed))
