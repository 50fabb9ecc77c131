# Licensed under a 3-clause BSD style license - see LICENSE
"""Samples of the posteriors of latents, for a flow to be fitted to."""

import numpy as np

__all__ = ["posterior_moments", "scaled_noise"]


def posterior_moments(vae, table, stack):
    """
    Encode galaxies that belong to the rows of a table.

    Parameters
    ----------
    vae : `~astrovae.models.VAE`
        The model.
    table : `~astropy.table.Table`
        As many rows as there are galaxies.
    stack : source of batches, or array of shape (n, latent_dim)
        Galaxies; or latents, which then have no scatter.

    Returns
    -------
    moments : dict of `~numpy.ndarray`
        ``mean``; ``scale``, sigmas or Cholesky factors; and which galaxies are
        ``measured``.
    """
    latents = getattr(stack, "ndim", None) == 2
    source = stack if latents else vae._source(stack)
    if len(source) != len(table):
        msg = (
            f"the table has {len(table)} rows and there are {len(source)} "
            "galaxies; they must correspond one to one."
        )
        raise ValueError(msg)
    if latents:
        mean = np.asarray(stack, dtype=np.float32)
        if mean.shape[1] != vae.latent_dim:
            msg = f"latents must be {vae.latent_dim} numbers each, got {mean.shape}."
            raise ValueError(msg)
        measured = np.isfinite(mean).all(axis=1)
        return {"mean": mean, "scale": np.zeros_like(mean), "measured": measured}
    found = vae._map("encode", vae._encode_batch, source)
    scale = vae.latent_temperature * np.exp(0.5 * found["log_var"])
    if "scale_tril" in found:
        scale = vae.latent_temperature[:, None] * found["scale_tril"]
    if vae.posterior == "delta":
        scale = np.zeros_like(scale)
    return {
        "mean": found["mean"],
        "scale": scale.astype(np.float32),
        "measured": found["measured"],
    }


def scaled_noise(scale, noise):
    """Deviates of a posterior, of independent latents or not."""
    if scale.ndim == 3:
        return (scale @ np.broadcast_to(noise, scale.shape[:2])[..., None])[..., 0]
    return scale * noise
