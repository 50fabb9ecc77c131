# Licensed under a 3-clause BSD style license - see LICENSE
"""Posteriors of blends by Gauss-Newton steps, where gradient steps would be slow."""

import numpy as np
from keras import ops

from astrovae.models._refine import WithPosterior

__all__ = ["NUM_SAMPLES", "laplace_posteriors"]

# In units of the prior: far above rounding errors, far below curvatures.
_DIFFERENCE = 0.01
_MAX_STEPS = 8
# In nats: what is gained by less is left to gradient steps.
_TOLERANCE = 1e-3
# Of latents, to say which posterior is better.
NUM_SAMPLES = 64


def laplace_posteriors(scene, blends, options):
    """
    Seek the most probable latents of blends, and the normal distributions there.

    Parameters
    ----------
    scene : model of blends
        With ``number`` galaxies of ``latent_dim // number`` latents.
    blends : `~astrovae.models._refine.WithPosterior`
        The blends and the parameters of posteriors to start from.
    options : dict
        Arguments of ``scene._map``.

    Returns
    -------
    raw : `~numpy.ndarray`, shape (n, num_parameters)
        Parameters of the posteriors. Blends whose evidence lower bound did not become
        better keep theirs.

    Notes
    -----
    Steps are those of Levenberg and Marquardt, for a prior of unit variance. Galaxies
    add up, so that one difference of images per latent of a single galaxy is enough.
    The covariance of a galaxy is that at given latents of the others: of all
    independent normal distributions, it fits best.
    """
    number, source = scene.number, blends.source

    def expand(batch):
        return _expand(scene, batch)

    def expanded(z):
        raw = _raw(scene, z, start)
        return scene._map("expand", expand, WithPosterior(source, raw), **options)

    start = blends.raw
    # those that a posterior is centred on, whatever its family
    z = start.reshape(len(start), number, -1)[..., : scene.latent_dim // number]
    z = z.reshape(len(start), -1).astype(float)
    best = expanded(z)
    damping = np.zeros(len(z))
    for _ in range(_MAX_STEPS):
        step = _solve(best, damping)
        trial = expanded(z + step)
        gain = trial["log_prob"] - best["log_prob"]
        better = gain > 0
        z = np.where(better[:, None], z + step, z)
        best = {
            name: np.where(better.reshape(-1, *[1] * (old.ndim - 1)), trial[name], old)
            for name, old in best.items()
        }
        damping = np.where(better, damping / 10, np.maximum(10 * damping, 1.0))
        if (np.abs(step).max(axis=1) < _DIFFERENCE).all() or (
            better.all() and (gain < _TOLERANCE).all()
        ):
            break
    raw = _raw(scene, z, start, best["precision"].astype(float))
    elbos = [
        scene._terms(WithPosterior(source, values), NUM_SAMPLES, **options)["elbo"]
        for values in (start, raw)
    ]
    return np.where((elbos[1] > elbos[0])[:, None], raw, start)


def _expand(scene, batch):
    """Log-probability of the latents, its gradient and Gauss-Newton curvature."""
    vae, number = scene.vae, scene.number
    z = scene._encode_batch(batch)["mean"]
    params = scene._decode_batch(z, batch)
    error = batch.get("error")
    variance = vae.likelihood.variance(
        params, None if error is None else error / scene._scale
    )
    valid = ops.logical_not(batch["mask"])
    weight = ops.where(valid, 1.0 / variance, 0.0)
    residual = ops.where(valid, batch["image"] / scene._scale - params["mean"], 0.0)

    def paint(z):
        return scene._split(scene._paint_each(z, batch)["mean"], batch)

    here = paint(z)

    def difference(direction):
        moved = z + _DIFFERENCE * ops.tile(direction, (number,))
        return (paint(moved) - here) / _DIFFERENCE

    # (latent, n, galaxy, ny, nx, band) to a row of pixels for each latent
    slopes = ops.map(difference, ops.eye(vae.latent_dim))
    slopes = ops.transpose(slopes, (1, 2, 0, 3, 4, 5))
    num_pixels = int(np.prod(scene.image_shape))
    slopes = ops.reshape(slopes, (-1, scene.latent_dim, num_pixels))
    weight = ops.reshape(weight, (-1, 1, num_pixels))
    residual = ops.reshape(residual, (-1, 1, num_pixels))
    weighted = slopes * weight
    likes = scene._log_like_map(batch, params)
    log_prior = ops.reshape(vae.prior.log_prob(scene._apart(z)), (-1, number))
    log_prior = ops.sum(log_prior * batch["present"], axis=1)
    curvature = ops.matmul(weighted, ops.transpose(slopes, (0, 2, 1)))
    return {
        "log_prob": ops.sum(likes, axis=(1, 2, 3)) + log_prior,
        "gradient": ops.sum(weighted * residual, axis=2) - z,
        "precision": curvature + ops.eye(scene.latent_dim),
    }


def _solve(expansion, damping):
    """Steps towards the maximum."""
    matrix = expansion["precision"].astype(float)
    size = np.arange(matrix.shape[1])
    matrix[:, size, size] *= 1 + damping[:, None]
    gradient = expansion["gradient"].astype(float)[..., None]
    return np.linalg.solve(matrix, gradient)[..., 0]


def _raw(scene, z, start, precision=None):
    """Parameters of posteriors with these means, and these precisions if given."""
    number = scene.number
    dim = scene.latent_dim // number
    raw = np.array(start.reshape(len(start), number, -1), dtype=np.float32)
    raw[..., :dim] = z.reshape(len(z), number, dim)
    if precision is not None and scene.uncertain:
        blocks = precision.reshape(-1, number, dim, number, dim)
        blocks = np.stack([blocks[:, k, :, k] for k in range(number)], axis=1)
        if raw.shape[2] == 2 * dim:
            diagonal = np.diagonal(blocks, axis1=2, axis2=3)
            raw[..., dim:] = -np.log(diagonal)
        else:
            scale_tril = np.linalg.cholesky(np.linalg.inv(blocks))
            scale = np.diagonal(scale_tril, axis1=2, axis2=3)
            below = scale_tril / scale[..., None]
            raw[..., dim : 2 * dim] = 2 * np.log(scale)
            raw[..., 2 * dim :] = below[(..., *np.tril_indices(dim, -1))]
    return raw.reshape(len(z), -1)
