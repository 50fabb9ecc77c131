# Licensed under a 3-clause BSD style license - see LICENSE
"""
Families of posteriors of the latents.

A posterior is a dict of tensors: ``mean`` and ``log_var`` ``(n, latent_dim)``,
and for full covariances ``scale_tril`` ``(n, latent_dim, latent_dim)``, of which
``log_var`` then is the diagonal.
"""

import numpy as np
from keras import ops

from astrovae.ops import (
    gaussian_kl,
    gaussian_log_prob,
    gaussian_log_prob_tril,
    marginal_log_var,
    reparameterize,
)

__all__ = ["POSTERIORS", "choose"]

# posterior sigmas between 5e-5 and 150: wider than any use, and exp is safe
_LOG_VAR_RANGE = (-20.0, 10.0)
_MOMENTS = ("mean", "log_var")


class DiagonalPosterior:
    """Normal distributions with independent latents."""

    def num_parameters(self, latent_dim):
        """Give how many numbers describe one posterior."""
        return 2 * latent_dim

    def parameters(self, raw):
        """Make posteriors of any real numbers, shape (n, num_parameters)."""
        mean, log_var = ops.split(raw, 2, axis=-1)
        return {"mean": mean, "log_var": ops.clip(log_var, *_LOG_VAR_RANGE)}

    def from_moments(self, mean, log_var):
        """Make the posterior of given moments, each of shape (latent_dim,)."""
        return {"mean": mean, "log_var": log_var}

    def sample(self, posterior, noise):
        """Draw latents, given standard normal deviates."""
        return reparameterize(
            posterior["mean"], posterior["log_var"], noise, posterior.get("scale_tril")
        )

    def log_prob(self, posterior, z):
        """Give the logarithm of the density, shape (n,)."""
        terms = gaussian_log_prob(z, posterior["mean"], posterior["log_var"])
        return ops.sum(terms, axis=-1)

    def divergence(self, posterior, other):
        """Give the KL divergence of a posterior from another one, shape (n,)."""
        pairs = (part[name] for part in (posterior, other) for name in _MOMENTS)
        return ops.sum(gaussian_kl(*pairs), axis=-1)

    def kl_terms(self, prior, posterior, z):
        """Give the terms of the KL divergence from a prior."""
        return prior.kl_terms(
            posterior["mean"],
            posterior["log_var"],
            z=z,
            scale_tril=posterior.get("scale_tril"),
        )


class FullPosterior(DiagonalPosterior):
    """Normal distributions of any covariance, by its Cholesky factor."""

    def num_parameters(self, latent_dim):
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def parameters(self, raw):
        latent_dim = self._latent_dim(raw.shape[-1])
        mean, log_scale = raw[:, :latent_dim], raw[:, latent_dim : 2 * latent_dim]
        scale = ops.exp(0.5 * ops.clip(log_scale, *_LOG_VAR_RANGE))
        # each number below the diagonal has a place in the flat matrix
        rows, columns = np.tril_indices(latent_dim, -1)
        place = np.zeros((len(rows), latent_dim**2), "float32")
        place[np.arange(len(rows)), rows * latent_dim + columns] = 1.0
        below = ops.matmul(raw[:, 2 * latent_dim :], ops.convert_to_tensor(place))
        below = ops.reshape(below, (-1, latent_dim, latent_dim))
        # in units of the scale of its row, so that all are of order one
        scale_tril = scale[:, :, None] * (below + ops.eye(latent_dim))
        log_var, _ = marginal_log_var(scale_tril)
        return {"mean": mean, "log_var": log_var, "scale_tril": scale_tril}

    @staticmethod
    def _latent_dim(num_parameters):
        # the positive root of num_parameters = d (d + 3) / 2
        return round((np.sqrt(9 + 8 * num_parameters) - 3) / 2)

    def from_moments(self, mean, log_var):
        scale_tril = ops.exp(0.5 * log_var)[:, None] * ops.eye(log_var.shape[0])
        return {"mean": mean, "log_var": log_var, "scale_tril": scale_tril}

    def log_prob(self, posterior, z):
        return gaussian_log_prob_tril(z, posterior["mean"], posterior["scale_tril"])

    def divergence(self, posterior, other):
        mean, scale_tril = posterior["mean"], posterior["scale_tril"]
        white = ops.solve_triangular(other["scale_tril"], scale_tril, lower=True)
        spread = 0.5 * (ops.sum(ops.square(white), axis=(1, 2)) - mean.shape[1])
        there = self.log_prob(other, mean)
        return self.log_prob(posterior, mean) - there + spread


class DeltaPosterior(DiagonalPosterior):
    """Points: the posteriors of an autoencoder."""

    def num_parameters(self, latent_dim):
        return latent_dim

    def parameters(self, raw):
        return {"mean": raw, "log_var": ops.full_like(raw, _LOG_VAR_RANGE[0])}

    def sample(self, posterior, noise):
        return posterior["mean"]

    def kl_terms(self, prior, posterior, z):
        return ops.zeros_like(posterior["mean"][:, :1])


POSTERIORS = {
    "diagonal": DiagonalPosterior(),
    "full": FullPosterior(),
    "delta": DeltaPosterior(),
}


def choose(condition, one, other):
    """Choose between posteriors, galaxy by galaxy; they may broadcast."""
    return {
        name: ops.where(
            ops.reshape(condition, (-1,) + (1,) * (len(value.shape) - 1)),
            one[name],
            value,
        )
        for name, value in other.items()
    }
