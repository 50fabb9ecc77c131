# Licensed under a 3-clause BSD style license - see LICENSE
"""What posteriors of latents say about pixels and fluxes."""

import numpy as np
from keras import ops
from photutils.geometry import circular_overlap_grid

from astrovae._validation import check_positive_int, is_number
from astrovae.models._draws import normal_draws
from astrovae.models._masks import seen_pixels

__all__ = ["best_imputation_factor", "predict_pixels"]

# the share of a normal distribution that is within one sigma
_ONE_SIGMA = 0.6826895
_LARGEST_FACTOR = 16.0
_MIN_GALAXIES = 20


def predict_pixels(
    model, inputs, num_samples, aperture, seed, refine, batch_size, show_progress
):
    """Predict pixels and fluxes; see `VAE.posterior_predictive`."""
    predicted = _prediction(model, num_samples, aperture, seed)
    factor = ops.convert_to_tensor(model.imputation_factor, "float32")

    def predict(batch):
        posterior = model._encode_batch(batch)
        found = predicted(posterior, batch)
        wider = ops.ones_like(found["flux"])
        seen = seen_pixels(batch)
        if seen is not None:
            # galaxies without a valid pixel are as the prior has them
            missing = ops.logical_not(ops.any(seen, axis=(1, 2)))
            missing = ops.logical_and(missing, posterior["measured"][:, None])
            wider = ops.where(missing, factor, 1.0)
        square = ops.square(wider)
        spread = found["pixel_spread"] * square[:, None, None]
        return {
            "mean": found["mean"] * model._scale,
            "std": ops.sqrt(spread + found["variance"]) * model._scale,
            "flux": found["flux"] * model._scale,
            "flux_std": ops.sqrt(found["flux_spread"] * square + found["flux_variance"])
            * model._scale,
        }

    # aperture and factors are compiled into it
    usual = aperture is None and seed == 0
    usual &= (model.latent_temperature == 1.0).all()
    usual &= (model.imputation_factor == 1.0).all()
    return model._map(
        f"predict_{num_samples}" if usual else None,
        predict,
        model._posterior_source(inputs, refine, batch_size, show_progress),
        batch_size=batch_size,
        description="Predicting",
        show_progress=show_progress,
    )


def _prediction(model, num_samples, aperture, seed):
    """Make a function of posteriors and a batch, in units of the scale."""
    check_positive_int("num_samples", num_samples)
    share = ops.convert_to_tensor(_aperture(model.image_shape[:2], aperture))
    noise = normal_draws(num_samples, model.latent_dim, seed=seed)
    temperature = np.asarray(model.latent_temperature, np.float32)
    noise, hotter = map(ops.convert_to_tensor, (noise, noise * temperature))

    def predicted(posterior, batch):
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
            flux_variance = model.likelihood.sum_variance(variance, share)
            terms = step, ops.square(step), variance, flux, ops.square(flux)
            terms = (*terms, flux_variance)
            return tuple(total + term for total, term in zip(sums, terms))

        pixels, fluxes = ops.zeros_like(first["mean"]), ops.zeros_like(first_flux)
        start = (pixels,) * 3 + (fluxes,) * 3
        sums = ops.fori_loop(0, num_samples, add_sample, start)
        step, squares, variance, flux, flux_squares, flux_variance = (
            total / num_samples for total in sums
        )
        return {
            "mean": first["mean"] + step,
            "pixel_spread": ops.maximum(squares - ops.square(step), 0.0),
            "variance": variance,
            "flux": first_flux + flux,
            "flux_spread": ops.maximum(flux_squares - ops.square(flux), 0.0),
            "flux_variance": flux_variance,
        }

    return predicted


def best_imputation_factor(
    model, inputs, aperture, num_samples, seed, batch_size, show_progress
):
    """Give a factor for each band; see `VAE.calibrate_imputation`."""
    n_bands = model.image_shape[2]
    if n_bands < 2:
        msg = "calibrate_imputation needs images of at least two bands, got one."
        raise ValueError(msg)
    predicted = _prediction(model, num_samples, aperture, seed)
    share = ops.convert_to_tensor(_aperture(model.image_shape[:2], aperture))
    inside = ops.cast(share > 0.0, "bool")

    def hide_each(batch):
        image, error = model._pixels(batch)
        seen = seen_pixels(batch)
        if seen is None:
            seen = ops.ones_like(image, dtype="bool")
        measured = _add_up(image, share)
        known = ops.zeros_like(measured)
        if error is not None:
            known = model.likelihood.sum_variance(ops.square(error), share)
        whole = ops.all(ops.logical_or(seen, ops.logical_not(inside)), axis=(1, 2))
        columns = []
        for band in range(n_bands):
            others = ops.convert_to_tensor(np.arange(n_bands) != band)
            left = ops.logical_and(seen, others)
            posterior = model._encode_batch({**batch, "mask": ops.logical_not(left)})
            found = predicted(posterior, batch)
            rest = (found["flux_variance"] + known)[:, band]
            step = ops.square(found["flux"] - measured)[:, band]
            usable = ops.logical_and(whole[:, band], posterior["measured"])
            spread = found["flux_spread"][:, band]
            columns.append(ops.where(usable, (step - rest) / spread, float("nan")))
        return {"square": ops.stack(columns, axis=1)}

    squares = model._map(
        None,
        hide_each,
        model._source(inputs),
        batch_size=batch_size,
        description="Calibrating",
        show_progress=show_progress,
    )["square"]
    factors = []
    for band, column in enumerate(squares.T):
        column = column[~np.isnan(column)]
        if len(column) < _MIN_GALAXIES:
            msg = (
                f"only {len(column)} galaxies have all pixels of band {band} and some "
                f"of another band; {_MIN_GALAXIES} are needed to calibrate on."
            )
            raise ValueError(msg)
        # the factor at which a galaxy comes within one sigma; none is needed by some
        needed = np.sqrt(np.maximum(column, 0.0))
        factors.append(np.quantile(needed, _ONE_SIGMA))
    return np.clip(factors, 1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)


def _aperture(shape, radius):
    """The share of each pixel within a radius of the middle, (1, ny, nx, 1)."""
    if radius is None:
        return np.ones((1, *shape, 1), np.float32)
    if not (is_number(radius) and radius > 0):
        msg = f"aperture must be a positive radius in pixels, got {radius!r}."
        raise ValueError(msg)
    ny, nx = shape
    edges = (-0.5 * nx, 0.5 * nx, -0.5 * ny, 0.5 * ny)
    share = circular_overlap_grid(*edges, nx, ny, float(radius), 1, 1)
    return share[None, ..., None].astype(np.float32)


def _add_up(maps, share):
    return ops.sum(maps * share, axis=(1, 2))
