# Licensed under a 3-clause BSD style license - see LICENSE
"""What posteriors of latents say about pixels and fluxes."""

import numpy as np
from keras import ops
from photutils.geometry import circular_overlap_grid

from astrovae._validation import check_positive_int, is_number
from astrovae.models._draws import normal_draws

__all__ = ["predict_pixels"]


def predict_pixels(
    model, inputs, num_samples, aperture, seed, refine, batch_size, show_progress
):
    """Predict pixels and fluxes; see `VAE.posterior_predictive`."""
    check_positive_int("num_samples", num_samples)
    share = _aperture(model.image_shape[:2], aperture)
    share = ops.convert_to_tensor(share[None, ..., None], "float32")
    noise = normal_draws(num_samples, model.latent_dim, seed=seed)
    temperature = np.asarray(model.latent_temperature, np.float32)
    noise, hotter = map(ops.convert_to_tensor, (noise, noise * temperature))

    def predict(batch):
        posterior = model._encode_batch(batch)
        first = model._decode_batch(posterior["mean"], batch)
        first_flux = _add_up(first["mean"], share)

        def add_sample(i, sums):
            draw = ops.where(posterior["measured"][:, None], hotter[i], noise[i])
            z = model.family.sample(posterior, draw)
            params = model._decode_batch(z, batch)
            variance = model.likelihood.variance(params)
            # relative to the middle of the posterior: squares have few digits
            step = params["mean"] - first["mean"]
            flux = _add_up(params["mean"], share) - first_flux
            terms = (
                step,
                ops.square(step) + variance,
                flux,
                ops.square(flux) + _add_up(variance, ops.square(share)),
            )
            return tuple(total + term for total, term in zip(sums, terms))

        pixels, fluxes = ops.zeros_like(first["mean"]), ops.zeros_like(first_flux)
        sums = ops.fori_loop(
            0, num_samples, add_sample, (pixels, pixels, fluxes, fluxes)
        )
        step, squares, flux, flux_squares = (total / num_samples for total in sums)
        return {
            "mean": (first["mean"] + step) * model._scale,
            "std": _root(squares - ops.square(step)) * model._scale,
            "flux": (first_flux + flux) * model._scale,
            "flux_std": _root(flux_squares - ops.square(flux)) * model._scale,
        }

    # the aperture is compiled into it
    usual = aperture is None and seed == 0 and (temperature == 1.0).all()
    return model._map(
        f"predict_{num_samples}" if usual else None,
        predict,
        model._posterior_source(inputs, refine, batch_size, show_progress),
        batch_size=batch_size,
        description="Predicting",
        show_progress=show_progress,
    )


def _aperture(shape, radius):
    """The share of each pixel that lies within a radius of the middle."""
    if radius is None:
        return np.ones(shape)
    if not (is_number(radius) and radius > 0):
        msg = f"aperture must be a positive radius in pixels, got {radius!r}."
        raise ValueError(msg)
    ny, nx = shape
    edges = (-0.5 * nx, 0.5 * nx, -0.5 * ny, 0.5 * ny)
    return circular_overlap_grid(*edges, nx, ny, float(radius), 1, 1)


def _add_up(maps, share):
    return ops.sum(maps * share, axis=(1, 2))


def _root(variance):
    return ops.sqrt(ops.maximum(variance, 0.0))
