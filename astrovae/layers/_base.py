# Licensed under a 3-clause BSD style license - see LICENSE
"""What the layers that compute densities have in common."""

import keras
from keras import ops

from astrovae._validation import check_positive_int
from astrovae.layers.sampling import SeededLayer
from astrovae.ops import gaussian_log_prob, gaussian_log_prob_tril, reparameterize

__all__ = ["DensityLayer", "Prior"]


class DensityLayer(keras.layers.Layer):
    """
    Base of layers that compute log-densities.

    A log-density is a sum of many terms that nearly cancel in a KL
    divergence: it needs float32. So these layers compute in float32 also
    in a model of mixed precision, and in float64 if their policy has it.

    Parameters
    ----------
    dtype : str or `keras.dtype_policies.DTypePolicy`, optional
        The policy; half precision is raised to float32.
    **kwargs
        Arguments of `keras.layers.Layer`.
    """

    def __init__(self, dtype=None, **kwargs):
        double = keras.dtype_policies.get(dtype).variable_dtype == "float64"
        super().__init__(dtype="float64" if double else "float32", **kwargs)
        # without weights of its own, there is nothing to wait for
        self.built = type(self).build is DensityLayer.build

    def build(self, input_shape=None):
        """Make weights; by default, there are none."""

    def add_weight(self, *args, **kwargs):
        # methods such as log_prob are also called within layers that autocast
        return super().add_weight(*args, autocast=False, **kwargs)

    def as_float(self, x):
        """Cast ``x`` to the precision of this layer; None stays None."""
        return None if x is None else ops.cast(x, self.compute_dtype)


class Prior(DensityLayer, SeededLayer):
    """
    Base of the distributions that latents are drawn from.

    A subclass defines ``log_prob(z)``, of shape ``(n,)``, and
    ``sample(n, seed=None)``, of shape ``(n, latent_dim)``. The KL divergence
    is then estimated from one sample per galaxy; a subclass that knows a
    closed form overrides ``kl_divergence``.

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
    Called as a layer, a prior gives its log-density. Input shape:
    ``(n, latent_dim)``. Output shape: ``(n,)``.
    """

    def __init__(self, latent_dim, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.latent_dim = check_positive_int(
            "latent_dim", latent_dim, hint="Use 8 for the Regier 2015 model."
        )

    def call(self, z):
        return self.log_prob(z)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[:-1])

    def get_config(self):
        return {**super().get_config(), "latent_dim": self.latent_dim}

    def kl_divergence(self, mean, log_var=None, z=None, scale_tril=None):
        """
        Estimate the KL divergence of posteriors from this prior.

        Parameters
        ----------
        mean : tensor, shape (n, latent_dim)
            Means of the posteriors.
        log_var : tensor, shape (n, latent_dim), optional
            Logarithms of their variances.
        z : tensor, shape (n, latent_dim), optional
            A sample of each posterior; one is drawn by default.
        scale_tril : tensor, shape (n, latent_dim, latent_dim), optional
            Cholesky factors of full covariances, instead of ``log_var``.

        Returns
        -------
        tensor, shape (n,)
            ``log q(z) - log p(z)``: unbiased, in nats.
        """
        mean, log_var, z, scale_tril = map(
            self.as_float, (mean, log_var, z, scale_tril)
        )
        if z is None:
            noise = keras.random.normal(
                ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator
            )
            z = reparameterize(mean, log_var, noise, scale_tril)
        if scale_tril is None:
            log_q = ops.sum(gaussian_log_prob(z, mean, log_var), axis=-1)
        else:
            log_q = gaussian_log_prob_tril(z, mean, scale_tril)
        return log_q - self.log_prob(z)

    def kl_terms(self, mean, log_var=None, z=None, scale_tril=None):
        """
        Split the KL divergence into terms that may be bounded one by one.

        Parameters
        ----------
        mean, log_var, z, scale_tril : tensor
            As for `kl_divergence`.

        Returns
        -------
        tensor, shape (n, latent_dim) or (n, 1)
            One term per latent if the prior is factorised, else their sum.
        """
        return self.kl_divergence(mean, log_var, z=z, scale_tril=scale_tril)[:, None]

    def moments(self):
        """
        Mean and variance of each latent: what is known without any data.

        Returns
        -------
        mean, log_var : tensor, shape (latent_dim,)
            Of the marginal distributions; estimated from 4,096 draws where
            they have no closed form.
        """
        z = self.sample(4096, seed=0)
        return ops.mean(z, axis=0), ops.log(ops.var(z, axis=0))

    def penalty(self, num_galaxies):
        """
        Regularise the prior's own parameters.

        Parameters
        ----------
        num_galaxies : int
            Number of galaxies in the training set.

        Returns
        -------
        tensor or float
            Minus the logarithm of the hyperprior, per galaxy: to be added
            to a loss that is a mean over galaxies.
        """
        return 0.0
