# Licensed under a 3-clause BSD style license - see LICENSE
"""Priors that are mixtures of normal distributions."""

import warnings

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_option, check_positive_int
from astrovae.exceptions import AstrovaeWarning
from astrovae.layers._components import (
    EMPTY_LOG_WEIGHT,
    SCALE_FLOOR,
    VARIANCE_FLOOR,
    expand_covariances,
    fit_components,
    log_joint,
    merge_components,
    raise_covariances,
    split_components,
    start_components,
)
from astrovae.layers._mixture_base import Mixture
from astrovae.ops import (
    gaussian_cross_entropy,
    gaussian_cross_entropy_tril,
    marginal_variance,
    reparameterize,
    softplus_inverse,
)

__all__ = ["MixturePrior"]

# how strongly covariances are drawn towards the common one, in units of the
# galaxies per component: less, and each seed finds others
_SHRINKAGE = 0.2


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
            If its components are of another number, dimension or type, or the
            variance is not finite.

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
            added = np.broadcast_to(np.asarray(posterior_variance, float), ours[1:])
            if not (np.isfinite(added).all() and (added >= 0).all()):
                msg = f"posterior_variance must be finite and positive, got {added}."
                raise ValueError(msg)
            diagonal = self.covariance == "diagonal"
            covariances = covariances + (added if diagonal else np.diag(added))
        log_weights = np.log(np.maximum(mixture.weights_, 1e-12))
        self._raise_and_assign(log_weights, mixture.means_, covariances)

    def set_components(self, weights, means, covariances):
        """
        Set the parameters of the mixture.

        Parameters
        ----------
        weights : array_like, shape (num_components,)
            Positive, or zero; they are divided by their sum.
        means : array_like, shape (num_components, latent_dim)
            The centres.
        covariances : array_like
            Variances of shape (num_components, latent_dim) if the components are
            diagonal, else (num_components, latent_dim, latent_dim), which
            `components` also gives; of tied ones, the first counts.

        Raises
        ------
        ValueError
            If a shape is another, a number not finite, or a variance not
            positive.

        Warns
        -----
        AstrovaeWarning
            If covariances below 1e-4 are raised to it.
        """
        weights, means, covariances = (
            np.array(part, dtype=float) for part in (weights, means, covariances)
        )
        shape = (self.num_components, self.latent_dim)
        diagonal = self.covariance == "diagonal"
        expected = {
            "weights": (weights, shape[:1]),
            "means": (means, shape),
            "covariances": (covariances, shape if diagonal else (*shape, shape[1])),
        }
        for name, (array, wanted) in expected.items():
            if array.shape != wanted or not np.isfinite(array).all():
                msg = (
                    f"{name} must be finite numbers of shape {wanted}, got an array of "
                    f"shape {array.shape}."
                )
                raise ValueError(msg)
        if (weights < 0).any() or not weights.sum() > 0:
            msg = f"weights must not be negative, nor all zero, got {weights}."
            raise ValueError(msg)
        smallest = covariances if diagonal else np.linalg.eigvalsh(covariances)
        if not (smallest > 0).all():
            msg = f"covariances must be positive, got one of {smallest.min():.3g}."
            raise ValueError(msg)
        with np.errstate(divide="ignore"):
            log_weights = np.log(weights / weights.sum())
        self._raise_and_assign(log_weights, means, covariances)

    def _raise_and_assign(self, log_weights, means, covariances):
        covariances, num_raised = raise_covariances(
            covariances, diagonal=self.covariance == "diagonal"
        )
        if num_raised:
            msg = (
                f"{num_raised} variances of the mixture were below "
                f"{VARIANCE_FLOOR} and were raised to it. Does it have more "
                "components than the latents have clusters?"
            )
            warnings.warn(msg, AstrovaeWarning, stacklevel=3)
        self._assign(np.maximum(log_weights, EMPTY_LOG_WEIGHT), means, covariances)

    def fit(
        self,
        mean,
        log_var=None,
        scale_tril=None,
        *,
        start="k-means",
        shrinkage=None,
        num_restarts=20,
        max_iter=1000,
        seed=0,
    ):
        """
        Find the mixture that suits the posteriors of galaxies best.

        By expectation maximisation: of all mixtures near the start, it gives the
        smallest `kl_divergence`, hence the largest ELBO of a model whose networks
        stay as they are. Unlike a mixture of points it knows how uncertain
        each galaxy is.

        Parameters
        ----------
        mean : array_like, shape (n, latent_dim)
            Means of the posteriors.
        log_var : array_like, shape (n, latent_dim), optional
            Logarithms of their variances.
        scale_tril : array_like, shape (n, latent_dim, latent_dim), optional
            Cholesky factors of full covariances, instead of ``log_var``.
        start : {"k-means", "current"}, optional
            Begin with k-means of the means, whitened or not, whichever ends better:
            it finds nearly the same groups from any seed. Or go on from the
            present components.
        shrinkage : float, optional
            How many galaxies' worth each component's covariance is drawn
            towards that of all, unless it is tied. By default a fifth of the
            galaxies per component.
        num_restarts : int, optional
            Starts of k-means.
        max_iter : int, optional
            Most iterations.
        seed : int, optional
            Seed of k-means.

        Returns
        -------
        score : float
            Mean over galaxies of ``logsumexp(log weight - cross-entropy)``, in
            nats; the bound of the KL divergence is the negative of it, minus
            the entropy of the posteriors.

        Raises
        ------
        ValueError
            If there are fewer galaxies than components, shapes differ, or values
            are not finite.
        """
        check_option("start", start, ("k-means", "current"))
        check_positive_int("num_restarts", num_restarts)
        check_positive_int("max_iter", max_iter)
        means, spreads = self._posteriors(mean, log_var, scale_tril)
        if len(means) < self.num_components:
            msg = (
                f"a mixture of {self.num_components} components needs as many "
                f"galaxies, got {len(means)}."
            )
            raise ValueError(msg)
        if shrinkage is None:
            shrinkage = _SHRINKAGE * len(means) / self.num_components
        if start == "k-means":
            starts = start_components(
                means, self.num_components, num_restarts=num_restarts, seed=seed
            )
        else:
            starts = [self._shares(means, spreads)]
        fits = [
            fit_components(
                means,
                spreads,
                shares,
                kind=self.covariance,
                concentration=self.concentration,
                shrinkage=shrinkage,
                max_iter=max_iter,
            )
            for shares in starts
        ]
        found, score = max(fits, key=lambda fit: fit[1])
        self._assign(*found)
        return score

    def _posteriors(self, mean, log_var, scale_tril):
        """Means and variances, or covariances, in float64."""
        means = np.asarray(mean, dtype=float)
        if means.ndim != 2 or means.shape[1] != self.latent_dim:
            msg = f"mean must have the shape (n, {self.latent_dim}), got {means.shape}."
            raise ValueError(msg)
        name, given = "log_var", log_var
        wanted = means.shape
        if scale_tril is not None:
            name, given = "scale_tril", scale_tril
            wanted = (*wanted, self.latent_dim)
        spreads = np.zeros_like(means)
        if given is not None:
            given = np.asarray(given, dtype=float)
            if given.shape != wanted:
                msg = f"{name} must have the shape {wanted}, got {given.shape}."
                raise ValueError(msg)
            with np.errstate(over="ignore", invalid="ignore"):
                factors = np.swapaxes(given, 1, -1)
                spreads = np.exp(given) if given.ndim == 2 else given @ factors
        both = np.hstack([means, spreads.reshape(len(means), -1)])
        bad = ~np.isfinite(both).all(axis=1)
        if bad.any():
            msg = (
                f"latents must be finite; those of {bad.sum()} of {len(means)} are "
                "not. Leave out galaxies that were not measured."
            )
            raise ValueError(msg)
        return means, spreads

    def _full(self):
        """Log-weights, means and full covariances."""
        log_weights, means, covariances = self._arrays()
        if self.covariance == "diagonal":
            covariances = covariances[:, :, None] * np.eye(self.latent_dim)
        return log_weights, means, covariances

    def _shares(self, means, spreads):
        joint = log_joint(means, spreads, *self._full())
        shares = np.exp(joint - joint.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def revive(self, mean, log_var=None, scale_tril=None, *, threshold=0.005):
        """
        Give components that hold no galaxies a place where there are many.

        Each takes half of the heaviest and widest component, and the mixture is
        fitted again from there. What then comes out as a duplicate stays dead:
        the galaxies have no use for it.

        Parameters
        ----------
        mean, log_var, scale_tril : array_like
            As for `fit`.
        threshold : float, optional
            Share of the galaxies below which a component is dead.

        Returns
        -------
        list of int
            The components that live again.
        """
        means, spreads = self._posteriors(mean, log_var, scale_tril)
        dead = np.flatnonzero(
            self._shares(means, spreads).mean(axis=0) < threshold
        ).tolist()
        if not dead or len(dead) == self.num_components:
            return []
        before = self._arrays()
        log_weights, centers, covariances = self._full()
        log_weights[dead] = EMPTY_LOG_WEIGHT
        split_components(log_weights, centers, covariances, dead)
        joint = log_joint(means, spreads, log_weights, centers, covariances)
        shares = np.exp(joint - joint.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        found, _ = fit_components(
            means,
            spreads,
            shares,
            kind=self.covariance,
            concentration=self.concentration,
            shrinkage=_SHRINKAGE * len(means) / self.num_components,
            max_iter=100,
        )
        self._assign(*found)
        self.merge_duplicates()
        alive = self._shares(means, spreads).mean(axis=0) >= threshold
        revived = [k for k in dead if alive[k]]
        if not revived:
            self._assign(*before)
        return revived

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
