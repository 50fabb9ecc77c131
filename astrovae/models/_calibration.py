# Licensed under a 3-clause BSD style license - see LICENSE
"""Uncertainties that can be checked on simulated galaxies, and corrected."""

import numpy as np
from keras import ops

from astrovae.models._predictive import best_imputation_factor, predict_pixels
from astrovae.models._schedulable import SchedulableModel
from astrovae.models._simulate import simulate_galaxies

__all__ = ["CalibratedModel"]


class CalibratedModel(SchedulableModel):
    """
    Base of models that draw galaxies and correct their uncertainties.

    A subclass has what `~astrovae.models._inference.LatentModel` asks for, and
    ``_variance_factor``, which its decoder multiplies variances by.
    """

    @property
    def latent_temperature(self):
        """
        What `encode` multiplies the sigma of each latent by, 1 at first.

        `astrovae.diagnostics.calibration` finds it; it is saved with the
        configuration. It changes neither the ELBO nor what follows from it, and
        training undoes it.
        """
        return self._plain.temperature.copy()

    @latent_temperature.setter
    def latent_temperature(self, value):
        value = np.ones(self.latent_dim) if value is None else np.asarray(value, float)
        good = value.shape in ((), (1,), (self.latent_dim,))
        if not good or not (np.isfinite(value) & (value > 0)).all():
            msg = (
                f"latent_temperature must be {self.latent_dim} positive numbers, one "
                f"per latent, got {value.tolist()!r}."
            )
            raise ValueError(msg)
        self._plain.temperature = np.broadcast_to(value, self.latent_dim).copy()

    @property
    def imputation_factor(self):
        """
        What the spread of bands that are missing is multiplied by, 1 at first.

        One number for each band; `calibrate_imputation` finds them. They are saved
        with the configuration, and training undoes them.
        """
        return self._plain.imputation_factor.copy()

    @imputation_factor.setter
    def imputation_factor(self, value):
        n_bands = self.image_shape[2]
        value = np.ones(n_bands) if value is None else np.asarray(value, float)
        good = value.shape in ((), (1,), (n_bands,))
        if not good or not (np.isfinite(value) & (value > 0)).all():
            msg = (
                f"imputation_factor must be {n_bands} positive numbers, one per band, "
                f"got {value.tolist()!r}."
            )
            raise ValueError(msg)
        self._plain.imputation_factor = np.broadcast_to(value, n_bands).copy()

    def simulate(
        self,
        inputs,
        z=None,
        *,
        noise=True,
        seed=0,
        batch_size=256,
        show_progress=False,
    ):
        """
        Draw galaxies from the model, observed as given ones were.

        Each has the pose, the PSF and the error of a given galaxy, whose pixels
        and masks do not matter. So an analysis can be tried on galaxies of which
        the truth is known.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        z : array_like, shape (n, latent_dim), optional
            Latents, by default drawn from the prior.
        noise : bool, optional
            Without noise, galaxies are what would be seen in a very long exposure:
            known errors are left out, and so is what the decoder learned about how
            badly it paints.
        seed : int, optional
            Seed of latents and noise.
        batch_size, show_progress
            As for `encode`.

        Returns
        -------
        galaxies : dict of `~numpy.ndarray`
            ``image`` ``(n, ny, nx, n_bands)``, in the unit of the pixels, and
            ``z``, the latents.

        Raises
        ------
        ValueError
            If ``z`` is not one row of latents for each galaxy.
        """
        return simulate_galaxies(
            self, inputs, z, noise, seed, batch_size, show_progress
        )

    def posterior_predictive(
        self,
        inputs,
        *,
        num_samples=64,
        aperture=None,
        seed=0,
        refine=0,
        batch_size=256,
        show_progress=False,
    ):
        """
        Predict all pixels of galaxies and their fluxes, with uncertainties.

        Masked pixels and bands that are missing are predicted like all others:
        this is how to fill them in. Train with ``band_dropout`` for it.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        num_samples : int, optional
            Latents drawn per galaxy, quasi-random as for `elbo`; best a power
            of two.
        aperture : float, optional
            Radius in pixels of the circle, around the middle of the stamp, in
            which flux is added up. By default it is that of the whole stamp.
        seed : int, optional
            Seed of the latents, which all galaxies share.
        refine, batch_size, show_progress
            As for `encode`.

        Returns
        -------
        prediction : dict of `~numpy.ndarray`
            ``mean`` and ``std``, ``(n, ny, nx, n_bands)``, of each pixel as it
            would be observed, with the pose and behind the PSF of the galaxy;
            ``flux`` and ``flux_std``, ``(n, n_bands)``, of their sum. All in the
            unit of the pixels. Galaxies without a valid pixel are
            predicted from the prior.

        Raises
        ------
        ValueError
            If ``num_samples`` or ``aperture`` is not positive.

        Notes
        -----
        A variance is that of what is painted at latents drawn from the posterior,
        with sigmas times `latent_temperature`, and, in bands of a galaxy without
        valid pixels, times `imputation_factor`; and the mean of what the decoder
        learned about how badly it paints, with its floor, for which pixels
        are as independent as the likelihood takes them to be. The known noise of an
        observation is not in it: add ``error**2`` to compare with one. Models that
        were trained without errors have learned the noise.
        """
        return predict_pixels(
            self, inputs, num_samples, aperture, seed, refine, batch_size, show_progress
        )

    def calibrate(self, inputs, *, batch_size=256, show_progress=False):
        """
        Find how much too small or large the learned variances are.

        A model knows the galaxies that it was trained on too well, and is too sure
        of the pixels of others. From now on it multiplies its variances (the
        learned part and the floor, not the known noise) by the one factor for
        which the pixels of these galaxies are likeliest, at the posterior mean.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies that the model was not trained on, nor is to be tested on.
        batch_size, show_progress
            As for `encode`.

        Returns
        -------
        factor : float
            The factor, between 1/16 and 16; also in `variance_factor`, and
            kept with the weights.

        Raises
        ------
        ValueError
            If no galaxy has a valid pixel, or the likelihood has no variance of
            its own.

        References
        ----------
        Guo et al. 2017, ICML (arXiv:1706.04599), who so scale the logits of
        classifiers.
        """
        factor = _best_variance_factor(self, inputs, batch_size, show_progress)
        self._variance_factor.assign(factor)
        return self.variance_factor

    def calibrate_imputation(
        self,
        inputs,
        *,
        aperture=None,
        num_samples=64,
        seed=0,
        batch_size=256,
        show_progress=False,
    ):
        """
        Find how much too sure the model is of bands that are missing.

        Each band of complete galaxies is hidden in turn and its flux predicted.
        From now on, `posterior_predictive` multiplies the spread of what is painted
        in missing bands by the one factor for each band with which 68.3 % of the
        fluxes that were hidden are within one sigma. So they are of other galaxies
        like these.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies that the model was not trained on, nor is to be tested on. For
            each band, those count of which it has all pixels of the aperture, and
            another band some.
        aperture, num_samples, seed : optional
            As for `posterior_predictive`.
        batch_size, show_progress
            As for `encode`.

        Returns
        -------
        factor : `~numpy.ndarray`, shape (n_bands,)
            The factors, between 1/16 and 16; also in `imputation_factor`.

        Raises
        ------
        ValueError
            If there is one band only, or a band is measured in fewer than 20
            galaxies.

        Notes
        -----
        What is measured has noise of its own, which is known and accounted for.
        Learned variances are as they are: call `calibrate` first, if at all. The
        share holds for all galaxies together, not for each kind of them, and for
        one missing band: of several, factors are only the best guess.

        References
        ----------
        Angelopoulos & Bates 2023, Foundations and Trends in Machine Learning 16,
        494 (arXiv:2107.07511), section 2.3.2, on such factors.
        """
        self.imputation_factor = best_imputation_factor(
            self, inputs, aperture, num_samples, seed, batch_size, show_progress
        )
        return self.imputation_factor


def _best_variance_factor(model, inputs, batch_size, show_progress):
    """Give the factor of the variances; see `VAE.calibrate`."""
    likelihood = model.likelihood
    own = getattr(likelihood, "sigma_floor", 0.0) > 0.0
    if not own and not getattr(likelihood, "learn_variance", False):
        msg = (
            "calibrate needs a variance that is learned, or a sigma_floor; the "
            f"{type(likelihood).__name__} of this model has neither."
        )
        raise ValueError(msg)
    exponents = np.linspace(-4.0, 4.0, 129)
    factors = ops.convert_to_tensor(2.0**exponents, "float32")

    def likelihoods(batch):
        posterior = model._encode_batch(batch)
        params = model._decode_batch(posterior["mean"], batch)
        variance = model.likelihood.variance(params) / model._variance_factor

        def at_factor(factor):
            log_var = ops.log(variance * factor)
            scaled = {**params, "variance": variance * factor, "log_var": log_var}
            return ops.sum(model._log_like_map(batch, scaled), axis=(1, 2, 3))

        log_like = ops.transpose(ops.map(at_factor, factors))
        return {"log_like": log_like, "measured": posterior["measured"]}

    result = model._map(
        "calibrate",
        likelihoods,
        model._source(inputs),
        batch_size=batch_size,
        description="Calibrating",
        show_progress=show_progress,
    )
    log_like = result["log_like"][result["measured"]].sum(axis=0, dtype=float)
    if not result["measured"].any():
        msg = "no galaxy has a valid pixel: there is nothing to calibrate on."
        raise ValueError(msg)
    # the top of the parabola through the best of them and its neighbours
    best = int(np.clip(log_like.argmax(), 1, len(factors) - 2))
    curve = np.polyfit(exponents[best - 1 : best + 2], log_like[best - 1 : best + 2], 2)
    top = -0.5 * curve[1] / curve[0] if curve[0] < 0 else exponents[log_like.argmax()]
    return 2.0 ** np.clip(top, -4.0, 4.0)
