# Licensed under a 3-clause BSD style license - see LICENSE
"""What all mixtures of normal distributions have in common."""

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_option, check_positive_int
from astrovae.layers._base import Prior
from astrovae.layers._components import bhattacharyya
from astrovae.ops import gaussian_entropy, marginal_log_var

__all__ = ["Mixture"]

KL_METHODS = ("bound", "monte_carlo")

# Far from the seeds that users choose.
NOISE_SEED = 1 << 30


class Mixture(Prior):
    """
    Base of the mixtures.

    A subclass defines `log_weights`, its parameters in NumPy (``_arrays``),
    their means and variances in each dimension (``_marginals``), how
    distributions compare with each component (``_cross_entropies``), and how
    noise becomes samples (``_place``).

    Parameters
    ----------
    num_components : int
        Number of components.
    latent_dim : int
        Number of latents.
    kl_method : {"bound", "monte_carlo"}, optional
        How `kl_divergence` is computed unless its caller says otherwise.
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, num_components, latent_dim, kl_method="bound", seed=None, **kwargs
    ):
        super().__init__(latent_dim, seed=seed, **kwargs)
        self.num_components = check_positive_int("num_components", num_components)
        self.kl_method = check_option("kl_method", kl_method, KL_METHODS)

    def get_config(self):
        return {
            **super().get_config(),
            "num_components": self.num_components,
            "kl_method": self.kl_method,
        }

    def _log_joint(self, mean, log_var=None, scale_tril=None, *, direct):
        """Log-weight minus cross-entropy, shape (n, num_components)."""
        return self.log_weights - self._cross_entropies(
            self.as_float(mean),
            self.as_float(log_var),
            self.as_float(scale_tril),
            direct=direct,
        )

    def log_prob(self, z):
        """
        Logarithm of the density of the mixture.

        Parameters
        ----------
        z : tensor, shape (n, latent_dim)
            Latents.

        Returns
        -------
        tensor, shape (n,)
            The log-densities.
        """
        return ops.logsumexp(self._log_joint(z, direct=True), axis=-1)

    def responsibilities(self, mean, log_var=None, scale_tril=None):
        """
        Probability of each component, given a galaxy's posterior.

        It depends on the mean and the width of that posterior, but on no
        random sample and on no other galaxy.

        Parameters
        ----------
        mean : tensor, shape (n, latent_dim)
            Means of the posteriors.
        log_var : tensor, shape (n, latent_dim), optional
            Logarithms of their variances; by default, ``mean`` are latents
            that are known exactly.
        scale_tril : tensor, shape (n, latent_dim, latent_dim), optional
            Cholesky factors of full covariances, instead of ``log_var``.

        Returns
        -------
        tensor, shape (n, num_components)
            Probabilities that sum to one.
        """
        joint = self._log_joint(mean, log_var, scale_tril, direct=True)
        # not softmax, which Keras warns of if there is one component
        share = ops.exp(joint - ops.max(joint, axis=-1, keepdims=True))
        return share / ops.sum(share, axis=-1, keepdims=True)

    def kl_divergence(self, mean, log_var=None, z=None, scale_tril=None, method=None):
        """
        KL divergence of posteriors from the mixture.

        Parameters
        ----------
        mean : tensor, shape (n, latent_dim)
            Means of the posteriors.
        log_var : tensor, shape (n, latent_dim), optional
            Logarithms of their variances.
        z : tensor, shape (n, latent_dim), optional
            A sample of each posterior, for "monte_carlo".
        scale_tril : tensor, shape (n, latent_dim, latent_dim), optional
            Cholesky factors of full covariances, instead of ``log_var``.
        method : {"bound", "monte_carlo"}, optional
            "bound": an upper bound without randomness. "monte_carlo":
            unbiased, from one sample per galaxy. By default ``kl_method``.

        Returns
        -------
        tensor, shape (n,)
            The divergences, in nats.
        """
        method = check_option("method", method or self.kl_method, KL_METHODS)
        if method == "monte_carlo":
            return super().kl_divergence(mean, log_var, z=z, scale_tril=scale_tril)
        joint = self._log_joint(mean, log_var, scale_tril, direct=False)
        if scale_tril is None:
            entropy = gaussian_entropy(self.as_float(log_var))
        else:
            marginal, lost = marginal_log_var(self.as_float(scale_tril))
            entropy = gaussian_entropy(marginal) - ops.sum(lost, axis=-1)
        return -ops.logsumexp(joint, axis=-1) - entropy

    def sample(self, n, seed=None, component=None):
        """
        Draw latents.

        Parameters
        ----------
        n : int
            How many.
        seed : int, optional
            Seed of these draws; the layer's own random state by default.
        component : int, optional
            Draw from this component alone.

        Returns
        -------
        tensor, shape (n, latent_dim)
            The latents.

        Raises
        ------
        ValueError
            If there is no such component.
        """
        if component is None:
            logits = self.log_weights[None, :]
            state = self.random_state(seed)
            labels = keras.random.categorical(logits, n, seed=state)[0]
        elif 0 <= component < self.num_components:
            labels = ops.full((n,), component, dtype="int32")
        else:
            msg = (
                f"component must be from 0 to {self.num_components - 1}, got "
                f"component={component!r}."
            )
            raise ValueError(msg)
        # a seed is used once: labels and noise must be independent
        state = self.random_state(None if seed is None else seed + NOISE_SEED)
        shape = (n, self.latent_dim)
        noise = keras.random.normal(shape, dtype=self.compute_dtype, seed=state)
        return self._place(labels, noise)

    def moments(self):
        """
        Mean and variance of each latent: what is known without any data.

        Returns
        -------
        mean, log_var : tensor, shape (latent_dim,)
            Of the marginal distributions.
        """
        means, variances = self._marginals()
        weights = ops.exp(self.log_weights)[:, None]
        mean = ops.sum(weights * means, axis=0)
        variance = ops.sum(weights * (variances + ops.square(means - mean)), axis=0)
        return mean, ops.log(variance)

    def components(self):
        """
        Give the parameters of the mixture.

        Returns
        -------
        dict of `~numpy.ndarray`
            ``weights``, shape (num_components,); ``means``, shape
            (num_components, latent_dim); ``covariances``, of the same shape
            if they are diagonal, else (num_components, latent_dim,
            latent_dim). In float64.
        """
        log_weights, means, covariances = self._arrays()
        return {
            "weights": np.exp(log_weights),
            "means": means,
            "covariances": covariances,
        }

    def bhattacharyya(self):
        """
        Overlap of every pair of components.

        Returns
        -------
        `~numpy.ndarray`, shape (num_components, num_components)
            Bhattacharyya coefficients, 1 for equal components. Those with a
            component that was merged into another are 0.

        References
        ----------
        Bhattacharyya 1943, Bull. Calcutta Math. Soc. 35, 99; Kailath 1967,
        IEEE Trans. Commun. Technol. 15, 52 (normal distributions).
        """
        return bhattacharyya(*self._arrays())

    def duplicates(self, threshold=0.95):
        """
        Pairs of components that are nearly the same.

        Parameters
        ----------
        threshold : float, optional
            Bhattacharyya coefficient above which a pair is a duplicate.

        Returns
        -------
        list of tuple
            ``(i, j, coefficient)`` with ``i < j``, most similar first.
        """
        overlaps = np.triu(self.bhattacharyya(), 1)
        pairs = zip(*np.nonzero(overlaps > threshold), strict=True)
        found = [(int(i), int(j), float(overlaps[i, j])) for i, j in pairs]
        return sorted(found, key=lambda pair: -pair[2])
