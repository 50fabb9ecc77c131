# Licensed under a 3-clause BSD style license - see LICENSE
"""Priors that are mixtures of normal distributions."""

import warnings

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_option, check_positive_int
from astrovae.exceptions import AstrovaeWarning
from astrovae.layers._base import Prior
from astrovae.layers._components import (
    SCALE_FLOOR,
    VARIANCE_FLOOR,
    bhattacharyya,
    expand_covariances,
    merge_components,
    raise_covariances,
)
from astrovae.ops import (
    gaussian_cross_entropy,
    gaussian_cross_entropy_tril,
    gaussian_entropy,
    marginal_log_var,
    marginal_variance,
    reparameterize,
    softplus_inverse,
)

__all__ = ["Mixture", "MixturePrior"]

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
        return ops.softmax(joint, axis=-1)

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


@keras.saving.register_keras_serializable("astrovae")
class MixturePrior(Mixture):
    r"""
    A mixture of normal distributions: latents that fall into clusters.

    Weights, means and covariances are learned with the rest of the model.
    Each galaxy then has a probability of belonging to each component.

    Parameters
    ----------
    num_components : int
        Number of components.
    latent_dim : int
        Number of latents.
    covariance : {"diagonal", "tied", "full"}, optional
        The shape of the components: axes along the latents; one covariance
        for all; or one covariance each.
    concentration : float, optional
        Parameter of a Dirichlet prior on the weights; above 1, it keeps
        components from dying out. See `penalty`.
    kl_method : {"bound", "monte_carlo"}, optional
        How `kl_divergence` is computed unless its caller says otherwise.
    seed : int, optional
        Seed of the random numbers, and of the initial means.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n,)``, the
    log-density. The density is :math:`\sum_c \pi_c N(z; m_c, \Lambda_c)`.
    With the cross-entropy :math:`e_c` of a posterior of entropy :math:`H`
    from component c, the probabilities are
    :math:`\gamma_c = softmax_c(\log\pi_c - e_c)` and the KL divergence is
    at most :math:`-\log\sum_c \exp(\log\pi_c - e_c) - H`. Variances are at
    least 1e-4.

    References
    ----------
    Jiang et al. 2017, IJCAI (arXiv:1611.05148); Dilokthanakul et al. 2016
    (arXiv:1611.02648).

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.layers import MixturePrior
    >>> prior = MixturePrior(num_components=3, latent_dim=2, seed=1)
    >>> gamma = prior.responsibilities(np.zeros((4, 2)), np.zeros((4, 2)))
    >>> gamma.shape == (4, 3)
    True
    """

    def __init__(
        self,
        num_components,
        latent_dim,
        covariance="diagonal",
        concentration=1.0,
        kl_method="bound",
        seed=None,
        **kwargs,
    ):
        super().__init__(num_components, latent_dim, kl_method, seed=seed, **kwargs)
        options = ("diagonal", "tied", "full")
        self.covariance = check_option("covariance", covariance, options)
        if concentration < 1:
            msg = f"concentration must be at least 1, got {concentration=}."
            raise ValueError(msg)
        self.concentration = float(concentration)
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        shape = (self.num_components, self.latent_dim)
        self.logits = self.add_weight(
            shape=shape[:1], initializer="zeros", name="logits"
        )
        self.means = self.add_weight(
            shape=shape,
            initializer=keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
            name="means",
        )
        if self.covariance == "diagonal":
            raw = softplus_inverse(1.0 - VARIANCE_FLOOR)
        else:
            shape = (*shape, self.latent_dim)
            raw = np.eye(self.latent_dim) * softplus_inverse(1.0 - SCALE_FLOOR)
        self.raw_scales = self.add_weight(
            shape=shape[1:] if self.covariance == "tied" else shape,
            initializer=keras.initializers.Constant(raw),
            name="raw_scales",
        )

    def get_config(self):
        return {
            **super().get_config(),
            "covariance": self.covariance,
            "concentration": self.concentration,
        }

    @property
    def log_weights(self):
        """Logarithms of the weights, tensor of shape (num_components,)."""
        return ops.log_softmax(self.logits)

    @property
    def _log_vars(self):
        return ops.log(ops.softplus(self.raw_scales) + VARIANCE_FLOOR)

    @property
    def _scale_tril(self):
        """Cholesky factors: floor and softplus on the diagonal, free below."""
        diagonal = np.eye(self.latent_dim)
        below = np.tril(np.ones_like(diagonal), -1)
        diagonal, below = self.as_float(diagonal), self.as_float(below)
        positive = ops.softplus(self.raw_scales) + SCALE_FLOOR
        return diagonal * positive + below * self.raw_scales

    def _whiteners(self):
        factors = self._scale_tril
        identity = ops.broadcast_to(
            ops.eye(self.latent_dim, dtype=self.compute_dtype), factors.shape
        )
        return ops.solve_triangular(factors, identity, lower=True)

    def _cross_entropies(self, mean, log_var, scale_tril, *, direct):
        if self.covariance == "diagonal":
            variance = marginal_variance(log_var, scale_tril)
            return gaussian_cross_entropy(
                mean, variance, self.means, self._log_vars, direct=direct
            )
        if self.covariance == "tied":
            return self._tied_cross_entropies(mean, log_var, scale_tril, direct=direct)
        covariance = None
        if scale_tril is not None:
            covariance = ops.einsum("nij,nkj->nik", scale_tril, scale_tril)
        elif log_var is not None:
            identity = ops.eye(self.latent_dim, dtype=self.compute_dtype)
            covariance = ops.exp(log_var)[:, :, None] * identity
        return gaussian_cross_entropy_tril(
            mean, covariance, self.means, self._whiteners(), direct=direct
        )

    def _tied_cross_entropies(self, mean, log_var, scale_tril, *, direct):
        # in units of the common covariance, all components are unit spheres
        whitener = self._whiteners()
        log_det = ops.sum(ops.log(ops.diagonal(whitener)))
        # and around their middle, where less is lost to rounding
        origin = ops.mean(self.means, axis=0)
        white_mean = ops.matmul(mean - origin, ops.transpose(whitener))
        centers = ops.matmul(self.means - origin, ops.transpose(whitener))
        variance = None
        if scale_tril is not None:
            white_tril = ops.einsum("ij,njk->nik", whitener, scale_tril)
            variance = marginal_variance(None, white_tril)
        elif log_var is not None:
            variance = ops.matmul(ops.exp(log_var), ops.transpose(whitener**2))
        sphere = ops.zeros_like(centers)
        return (
            gaussian_cross_entropy(white_mean, variance, centers, sphere, direct=direct)
            - log_det
        )

    def _place(self, labels, noise):
        means = ops.take(self.means, labels, axis=0)
        if self.covariance == "diagonal":
            log_vars = ops.take(self._log_vars, labels, axis=0)
            return reparameterize(means, log_vars, noise)
        factors = self._scale_tril
        if self.covariance == "tied":
            return means + ops.matmul(noise, ops.transpose(factors))
        factors = ops.take(factors, labels, axis=0)
        return means + ops.einsum("nij,nj->ni", factors, noise)

    def _marginals(self):
        if self.covariance == "diagonal":
            return ops.convert_to_tensor(self.means), ops.exp(self._log_vars)
        variances = marginal_variance(None, self._scale_tril)
        return ops.convert_to_tensor(self.means), variances

    def _arrays(self):
        log_weights, means = self.log_weights, self.means
        diagonal = self.covariance == "diagonal"
        scales = ops.exp(0.5 * self._log_vars) if diagonal else self._scale_tril
        log_weights, means, scales = (
            ops.convert_to_numpy(part).astype(np.float64)
            for part in (log_weights, means, scales)
        )
        if diagonal:
            return log_weights, means, scales**2
        covariances = scales @ np.swapaxes(scales, -1, -2)
        if self.covariance == "tied":
            covariances = np.repeat(covariances[None], len(means), axis=0)
        return log_weights, means, covariances

    def _assign(self, log_weights, means, covariances):
        """Set all parameters, from covariances at or above the floor."""
        self.logits.assign(log_weights)
        self.means.assign(means)
        if self.covariance == "diagonal":
            raw = softplus_inverse(np.maximum(covariances - VARIANCE_FLOOR, 1e-8))
        else:
            raw = np.linalg.cholesky(covariances)
            i = np.arange(self.latent_dim)
            positive = np.maximum(raw[..., i, i] - SCALE_FLOOR, 1e-6)
            raw[..., i, i] = softplus_inverse(positive)
            if self.covariance == "tied" and raw.ndim == 3:
                raw = raw[0]
        self.raw_scales.assign(raw)

    def penalty(self, num_galaxies):
        """
        Keep components alive, by a Dirichlet prior on their weights.

        Parameters
        ----------
        num_galaxies : int
            Number of galaxies in the training set.

        Returns
        -------
        tensor or float
            ``(1 - concentration) * sum(log weights) / num_galaxies``, to be
            added to a loss that is a mean over galaxies.
        """
        if self.concentration == 1.0:
            return 0.0
        log_prior = (self.concentration - 1.0) * ops.sum(self.log_weights)
        return -log_prior / num_galaxies

    def initialize_from_gmm(self, mixture, posterior_variance=None):
        """
        Start from a mixture that scikit-learn has fitted.

        Parameters
        ----------
        mixture : `sklearn.mixture.GaussianMixture`
            Fitted to the encoder's means, with as many components. Its
            ``covariance_type`` is "diag" or "spherical" for diagonal
            components, "tied" for tied ones, and any for full ones.
        posterior_variance : array_like, shape (latent_dim,), optional
            Mean variance of the posteriors, which is added to all
            covariances, since means scatter less than latents do.

        Raises
        ------
        TypeError
            If ``mixture`` is no fitted mixture.
        ValueError
            If its components are of another number, dimension or type.

        Warns
        -----
        AstrovaeWarning
            If covariances below 1e-4 are raised to it.
        """
        if not hasattr(mixture, "covariances_"):
            msg = (
                "mixture must be a fitted sklearn.mixture.GaussianMixture, got "
                f"{mixture!r}. Call its fit() first."
            )
            raise TypeError(msg)
        ours = (self.num_components, self.latent_dim)
        if mixture.means_.shape != ours:
            msg = (
                "mixture must have (num_components, latent_dim) = "
                f"{ours}, got {mixture.means_.shape}."
            )
            raise ValueError(msg)
        covariances = expand_covariances(mixture, self.covariance)
        if posterior_variance is not None:
            added = np.broadcast_to(posterior_variance, ours[1:])
            diagonal = self.covariance == "diagonal"
            covariances = covariances + (added if diagonal else np.diag(added))
        covariances, num_raised = raise_covariances(
            covariances, diagonal=self.covariance == "diagonal"
        )
        if num_raised:
            msg = (
                f"{num_raised} variances of the mixture were below "
                f"{VARIANCE_FLOOR} and were raised to it. Does it have more "
                "components than the latents have clusters?"
            )
            warnings.warn(msg, AstrovaeWarning, stacklevel=2)
        log_weights = np.log(np.maximum(mixture.weights_, 1e-12))
        self._assign(log_weights, mixture.means_, covariances)

    def merge_duplicates(self, threshold=0.95):
        """
        Merge components that are nearly the same.

        The heavier component of a pair takes the weight, and the first two
        moments, of both. The other one keeps its place with zero weight, so
        that the shapes of weights, optimizer and saved files stay the same.

        Parameters
        ----------
        threshold : float, optional
            Bhattacharyya coefficient above which a pair is merged.

        Returns
        -------
        list of tuple
            Pairs ``(kept, emptied)``, in the order of merging.
        """
        log_weights, means, covariances = self._arrays()
        merged = merge_components(
            log_weights,
            means,
            covariances,
            threshold,
            tied=self.covariance == "tied",
        )
        if merged:
            self._assign(log_weights, means, covariances)
        return merged
