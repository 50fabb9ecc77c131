# Licensed under a 3-clause BSD style license - see LICENSE
"""What a trained latent-variable model says about galaxies."""

import numpy as np
from keras import ops

from astrovae._sources import Arrays
from astrovae._validation import check_positive_int
from astrovae.models._calibration import CalibratedModel
from astrovae.models._draws import normal_draws
from astrovae.models._refine import WithPosterior, refine_posteriors
from astrovae.models._rotations import encode_rotations

__all__ = ["ACTIVE_VARIANCE", "LatentModel"]

# Burda et al. 2016, ICLR (arXiv:1509.00519): a latent whose posterior mean
# varies less from galaxy to galaxy is not used.
ACTIVE_VARIANCE = 0.01

_VERY_SMALL = -1e30


class LatentModel(CalibratedModel):
    """
    Base of models that describe a galaxy by the posterior of its latents.

    A subclass has ``latent_dim``, ``prior`` and ``likelihood``; ``family``, one
    of `~astrovae.models._posteriors.POSTERIORS`; and functions of a batch:
    ``_encode_batch(batch)``, the posterior and which galaxies are
    ``measured``; ``_decode_batch(z, batch=None)``, the distribution of the
    pixels in units of ``_scale``, as observed if there is a batch; and
    ``_log_like_map(batch, params)``.
    """

    def _posterior_source(self, inputs, refine, batch_size, show_progress):
        """Check inputs, and add refined posteriors to them, if so wished."""
        source = self._source(inputs)
        refine = check_positive_int("refine", refine, minimum=0)
        if refine == 0 or len(source) == 0:
            return source
        raw = refine_posteriors(self, source, refine, batch_size, show_progress)
        return WithPosterior(source, raw)

    def encode(
        self, inputs, *, refine=0, n_rotations=1, batch_size=256, show_progress=False
    ):
        """
        Give the posterior of the latents.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies, prepared as those of the training.
        refine : int, optional
            Improve each posterior by so many gradient steps on the galaxy's own
            evidence lower bound: what the encoder gets nearly right becomes
            right. It takes about as long as so many epochs of training.
        n_rotations : int, optional
            For models without a pose: turn each galaxy by so many angles, evenly
            spaced, and take the mean over all of them. The variance is then the mean
            of the variances plus the variance of the means. What turns out of the
            stamp is lost, and what turns in is zero.
        batch_size : int, optional
            Galaxies at a time.
        show_progress : bool, optional
            Show a progress bar.

        Returns
        -------
        mean, log_var : `~numpy.ndarray`, shape (n, latent_dim)
            Posterior means and logarithms of the posterior variances, for
            full posteriors of the marginal ones, times the squares of
            `latent_temperature`. Galaxies without a valid pixel have those of
            the prior.

        Raises
        ------
        ValueError
            If the images have another shape than those of the training, or
            lack a plane that the model needs; or if ``n_rotations`` does not go
            with a pose or with ``refine``.
        ~astrovae.exceptions.PreprocessingError
            If they were prepared in another way.

        References
        ----------
        Kim et al. 2018, ICML (arXiv:1802.02550), for ``refine``.
        """
        if check_positive_int("n_rotations", n_rotations) > 1:
            result = encode_rotations(
                self, inputs, n_rotations, refine, batch_size, show_progress
            )
        else:
            result = self._map(
                "encode",
                self._encode_batch,
                self._posterior_source(inputs, refine, batch_size, show_progress),
                batch_size=batch_size,
                description="Encoding",
                show_progress=show_progress,
            )
        shift = 2.0 * np.log(self.latent_temperature)
        shift = np.where(result["measured"][:, None], shift, 0.0).astype(np.float32)
        return result["mean"], result["log_var"] + shift

    def decode(self, z, *, batch_size=256):
        """
        Paint the galaxies of given latents.

        Parameters
        ----------
        z : array_like, shape (n, latent_dim)
            Latents.
        batch_size : int, optional
            Galaxies at a time.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            ``mean`` and ``log_var``, each ``(n, ny, nx, n_bands)``: the
            galaxies in the unit of the pixels, and the logarithm of the
            learned variance with its floor (without known noise). Of models
            with a pose, in the aligned frame; of those with a PSF, before it;
            ``(ny, nx)`` is then that of the canvas.

        Raises
        ------
        ValueError
            If ``z`` has another number of columns than the model latents.
        """
        z = np.asarray(z, dtype=np.float32)
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            msg = f"z must have the shape (n, {self.latent_dim}), got {z.shape}."
            raise ValueError(msg)

        def decode(batch):
            return self._in_pixel_units(self._decode_batch(batch["z"]))

        source = Arrays({"z": z}, clean=False)
        return self._map("decode", decode, source, batch_size=batch_size)

    def _in_pixel_units(self, params):
        return {
            "mean": params["mean"] * self._scale,
            "log_var": params["log_var"] + 2.0 * ops.log(self._scale),
        }

    def reconstruct(self, inputs, *, refine=0, batch_size=256, show_progress=False):
        """
        Paint each galaxy at its posterior mean, as it was observed.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        refine, batch_size, show_progress
            As for `encode`.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            ``mean`` and ``log_var``, as given by `decode`, but with the pose
            and behind the PSF of each galaxy, of the shape of the images.
        """

        def reconstruct(batch):
            mean = self._encode_batch(batch)["mean"]
            return self._in_pixel_units(self._decode_batch(mean, batch))

        return self._map(
            "reconstruct",
            reconstruct,
            self._posterior_source(inputs, refine, batch_size, show_progress),
            batch_size=batch_size,
            description="Painting",
            show_progress=show_progress,
        )

    def sample(self, n, *, component=None, seed=None):
        """
        Paint galaxies from the prior.

        Parameters
        ----------
        n : int
            How many.
        component : int, optional
            Draw from this component of a mixture prior alone.
        seed : int, optional
            Seed of the latents.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            As given by `decode`, and ``z``, the latents.

        Raises
        ------
        ValueError
            If the prior has no components, or not this one.
        """
        check_positive_int("n", n, minimum=0)
        options = {}
        if component is not None:
            self._check_mixture("component")
            options["component"] = component
        if n == 0:
            z = np.zeros((0, self.latent_dim), np.float32)
        else:
            z = ops.convert_to_numpy(self.prior.sample(n, seed=seed, **options))
        return {**self.decode(z), "z": z}

    def _check_mixture(self, what):
        if not hasattr(self.prior, "responsibilities"):
            msg = (
                f"{what} needs a prior with components, such as MixturePrior; the "
                f"prior of this model is a {type(self.prior).__name__}."
            )
            raise ValueError(msg)

    def responsibilities(
        self,
        inputs,
        *,
        refine=0,
        batch_size=256,
        show_progress=False,
        return_mean=False,
    ):
        """
        Give the probability of each component of a mixture prior.

        They depend on the posterior of the galaxy, its mean and its variance,
        and neither on a sample of it nor on other galaxies, nor, as the ELBO, on
        `latent_temperature`.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        refine, batch_size, show_progress
            As for `encode`.
        return_mean : bool, optional
            Give the means of the posteriors, too, which `encode` would compute anew.

        Returns
        -------
        probabilities : `~numpy.ndarray`, shape (n, num_components)
            Rows add up to 1. NaN for galaxies without a valid pixel.
        mean : `~numpy.ndarray`, shape (n, latent_dim)
            The means, only if ``return_mean``.

        Raises
        ------
        ValueError
            If the prior of the model has no components.
        """
        self._check_mixture("responsibilities")

        def responsibilities(batch):
            posterior = self._encode_batch(batch)
            shape = {"log_var": posterior["log_var"]}
            if "scale_tril" in posterior:
                shape = {"scale_tril": posterior["scale_tril"]}
            gamma = self.prior.responsibilities(posterior["mean"], **shape)
            kept = {name: posterior[name] for name in ("mean", "measured")}
            return {"gamma": gamma, **kept}

        result = self._map(
            "responsibilities",
            responsibilities,
            self._posterior_source(inputs, refine, batch_size, show_progress),
            batch_size=batch_size,
            description="Assigning",
            show_progress=show_progress,
        )
        gamma = np.where(result["measured"][:, None], result["gamma"], np.nan)
        return (gamma, result["mean"]) if return_mean else gamma

    def active_units(self, inputs, *, threshold=ACTIVE_VARIANCE, batch_size=256):
        """
        Say which latents the model uses.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        threshold : float, optional
            A latent is active if its posterior mean varies by more than this
            from galaxy to galaxy, in variance.
        batch_size : int, optional
            Galaxies at a time.

        Returns
        -------
        active : `~numpy.ndarray` of bool, shape (latent_dim,)
            Whether each latent is active; none is without two measured
            galaxies.

        References
        ----------
        Burda et al. 2016, ICLR (arXiv:1509.00519), section 5.2.
        """
        posterior = self._map(
            "encode", self._encode_batch, self._source(inputs), batch_size=batch_size
        )
        mean = posterior["mean"][posterior["measured"]]
        if len(mean) < 2:
            return np.zeros(self.latent_dim, bool)
        return mean.var(axis=0, dtype=float) > threshold

    def elbo(
        self, inputs, *, num_samples=16, refine=0, batch_size=256, show_progress=False
    ):
        """
        Give the evidence lower bound of each galaxy.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        num_samples : int, optional
            Latents drawn per galaxy. They are quasi-random and the same for
            all galaxies and calls, so the result is deterministic.
        refine, batch_size, show_progress
            As for `encode`.

        Returns
        -------
        elbo : `~numpy.ndarray`, shape (n,)
            In nats, for the pixels in their own unit, with ``beta = 1``. NaN
            for galaxies without a valid pixel.
        """
        source = self._posterior_source(inputs, refine, batch_size, show_progress)
        terms = self._terms(source, num_samples, batch_size, show_progress)
        return np.where(terms["measured"], terms["elbo"], np.nan)

    def log_evidence(
        self,
        inputs,
        *,
        num_samples=512,
        seed=0,
        refine=0,
        batch_size=256,
        show_progress=False,
    ):
        """
        Estimate the logarithm of the evidence by importance sampling.

        ``log mean p(x | z) p(z) / q(z | x)`` over latents drawn from the
        posterior ``q``: a lower bound on average, at least as tight as the
        ELBO, and exact for many samples.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        num_samples : int, optional
            Latents drawn per galaxy, quasi-random as for `elbo`; best a
            power of two.
        seed : int, optional
            Seed of the samples. All galaxies share them: average over several
            seeds to see the error of a mean over galaxies.
        refine, batch_size, show_progress
            As for `encode`. Better posteriors need fewer samples.

        Returns
        -------
        log_evidence : `~numpy.ndarray`, shape (n,)
            ``log p(x)`` in nats, for the pixels in their own unit. NaN for
            galaxies without a valid pixel.
        effective_sample_size : `~numpy.ndarray`, shape (n,)
            ``(sum w)**2 / sum w**2`` of the importance weights: between 1 and
            ``num_samples``. Where it is small, the estimate rests on few
            samples and is too low. NaN as above.

        Raises
        ------
        ValueError
            If the posterior is a point, which has no density.

        References
        ----------
        Burda et al. 2016, ICLR (arXiv:1509.00519), eq. 8; Kong 1992,
        University of Chicago technical report 348, for the effective sample
        size.
        """
        check_positive_int("num_samples", num_samples)
        if self.posterior == "delta":
            msg = (
                "log_evidence needs a posterior with a density: this model is an "
                "autoencoder, posterior='delta'."
            )
            raise ValueError(msg)
        noise = ops.convert_to_tensor(
            normal_draws(num_samples, self.latent_dim, seed=seed)
        )

        def evidence(batch):
            posterior = self._encode_batch(batch)

            def add_sample(i, sums):
                z = self.family.sample(posterior, noise[i])
                likes = self._log_like_map(batch, self._decode_batch(z, batch))
                log_weight = (
                    ops.sum(likes, axis=(1, 2, 3))
                    + self.prior.log_prob(z)
                    - self.family.log_prob(posterior, z)
                )
                # relative to the largest weight: logarithms have too few digits
                largest, first, second = sums
                unit = ops.maximum(largest, log_weight)
                shrink, weight = ops.exp(largest - unit), ops.exp(log_weight - unit)
                first = first * shrink + weight
                second = second * ops.square(shrink) + ops.square(weight)
                return unit, first, second

            zero = ops.zeros_like(posterior["mean"][:, 0])
            sums = (zero + _VERY_SMALL, zero, zero)
            largest, first, second = ops.fori_loop(0, num_samples, add_sample, sums)
            return {
                "log_evidence": largest + ops.log(first / num_samples),
                "ess": ops.square(first) / second,
                "measured": posterior["measured"],
            }

        result = self._map(
            # other seeds are compiled anew, and forgotten
            f"evidence_{num_samples}" if seed == 0 else None,
            evidence,
            self._posterior_source(inputs, refine, batch_size, show_progress),
            batch_size=batch_size,
            description="Integrating",
            show_progress=show_progress,
        )
        return tuple(
            np.where(result["measured"], result[name], np.nan)
            for name in ("log_evidence", "ess")
        )

    def measure(
        self, inputs, *, num_samples=16, refine=0, batch_size=256, show_progress=False
    ):
        """
        Measure how well the model describes each galaxy.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        num_samples : int, optional
            Latents drawn per galaxy for ELBO and KL, as for `elbo`.
        refine, batch_size, show_progress
            As for `encode`.

        Returns
        -------
        columns : dict of `~numpy.ndarray`
            ``vae_elbo`` and ``vae_kl`` ``(n,)``; ``vae_mse``, ``vae_chi2`` and
            ``vae_log_like`` at the posterior mean, ``(n,)`` for one band and
            ``(n, n_bands)`` for several; NaN for galaxies, and for bands of
            galaxies, without a valid pixel. ``vae_chi2`` is the mean over valid
            pixels.
        """
        source = self._posterior_source(inputs, refine, batch_size, show_progress)
        terms = self._terms(source, num_samples, batch_size, show_progress)
        measured = terms["measured"]
        columns = {}
        for name in ("elbo", "kl", "mse", "chi2", "log_like"):
            values = terms[name].astype(np.float64)
            if values.ndim == 2:
                values[terms["count"] == 0] = np.nan  # the band is missing
            if values.ndim == 2 and values.shape[1] == 1:
                values = values[:, 0]
            values[~measured] = np.nan
            columns[f"vae_{name}"] = values
        return columns

    def export_encoder(
        self,
        path,
        *,
        format=None,  # noqa: A002
        mask=True,
        psf_shape=None,
        overwrite=False,
    ):
        """
        Write the encoder for programs that have neither astrovae nor Keras.

        What it takes are the images as they come, under the name ``image``, in
        float32; their ``mask``; and, where the model needs them, ``pose``,
        ``error`` and ``psf``. It gives ``mean`` and ``log_var`` as `encode`
        does. Any number of galaxies at a time will do. Beside it stands a
        record of how images must be prepared.

        Parameters
        ----------
        path : path-like
            The folder (SavedModel) or file (ONNX) to make. It appears complete
            or not at all.
        format : {"tf_saved_model", "onnx"}, optional
            By default what the backend can write: a SavedModel from TensorFlow
            and JAX, ONNX from PyTorch.
        mask : bool, optional
            Whether it takes a mask; pixels that are not finite are masked in
            any case.
        psf_shape : tuple of int, optional
            The shape ``(ky, kx)`` of PSFs, for encoders that see them.
        overwrite : bool, optional
            Replace what is there.

        Raises
        ------
        FileExistsError
            If ``path`` exists and ``overwrite`` is false.
        ImportError
            If the package that writes the format is not installed.
        ValueError
            If the backend cannot write the format.
        """
        from astrovae.models.export import export_encoder

        options = {"mask": mask, "psf_shape": psf_shape, "overwrite": overwrite}
        export_encoder(self, path, format=format, **options)

    def _terms(self, source, num_samples, batch_size, show_progress=False):
        """Terms of the ELBO, and residuals at the posterior mean."""
        check_positive_int("num_samples", num_samples)
        if self.posterior == "delta":
            num_samples = 1
        noise = ops.convert_to_tensor(
            normal_draws(num_samples, self.latent_dim, antithetic=True)
        )

        def terms(batch):
            posterior = self._encode_batch(batch)

            def add_sample(i, sums):
                log_like, kl = self._elbo_terms(batch, posterior, noise[i])
                return sums[0] + log_like, sums[1] + kl

            mean = posterior["mean"]
            zero = ops.zeros_like(mean[:, 0])
            log_like, kl = ops.fori_loop(0, num_samples, add_sample, (zero, zero))
            return {
                "measured": posterior["measured"],
                "kl": kl / num_samples,
                "elbo": (log_like - kl) / num_samples,
                **self._residual_terms(batch, self._decode_batch(mean, batch)),
            }

        return self._map(
            f"terms_{num_samples}",
            terms,
            source,
            batch_size=batch_size,
            description="Measuring",
            show_progress=show_progress,
        )

    def _elbo_terms(self, batch, posterior, noise):
        """Log-likelihood and KL divergence at one sample, each (n,)."""
        z = self.family.sample(posterior, noise)
        likes = self._log_like_map(batch, self._decode_batch(z, batch))
        kl = self.family.kl_terms(self.prior, posterior, z)
        return ops.sum(likes, axis=(1, 2, 3)), ops.sum(kl, axis=-1)

    def _residual_terms(self, batch, params):
        """Give squared error, chi2 and likelihood per galaxy and band."""
        valid = ops.logical_not(batch["mask"])
        pixels = ops.sum(ops.cast(valid, "float32"), axis=(1, 2))
        count = ops.maximum(pixels, 1.0)
        residual = batch["image"] / self._scale - params["mean"]
        squares = ops.where(valid, ops.square(residual), 0.0)
        error = batch.get("error")
        if error is not None:
            error = error / self._scale
        chi2 = squares / self.likelihood.variance(params, error)
        return {
            "count": pixels,
            "mse": ops.sum(squares, axis=(1, 2)) / count * ops.square(self._scale),
            "chi2": ops.sum(chi2, axis=(1, 2)) / count,
            "log_like": ops.sum(self._log_like_map(batch, params), axis=(1, 2)),
        }
