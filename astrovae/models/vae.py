# Licensed under a 3-clause BSD style license - see LICENSE
"""The variational autoencoder of galaxies."""

import keras
import numpy as np
from keras import ops
from scipy.stats import qmc

from astrovae._batches import Arrays, as_source
from astrovae._validation import check_option, check_positive_int
from astrovae.layers import GaussianPrior, GaussianSampling, PoseTransform
from astrovae.models._base import GalaxyModel
from astrovae.models.correlated_noise import UnmaskedSource
from astrovae.models.likelihoods import GaussianLikelihood
from astrovae.models.networks import DenseDecoder, DenseEncoder
from astrovae.ops import weighted_sum

__all__ = ["VAE"]

# posterior sigmas between 5e-5 and 150: wider than any use, and exp is safe
_LOG_VAR_RANGE = (-20.0, 10.0)


@keras.saving.register_keras_serializable("astrovae")
class VAE(GalaxyModel):
    """
    A generative model of galaxy images with a few latent variables.

    An encoder gives the posterior of the latents of each galaxy, a decoder
    paints the galaxy and its pixel variance. Training maximises the evidence
    lower bound under the noise, masks and errors of the images. Everything
    public takes a `~astrovae.images.CutoutStack` or NumPy arrays and returns
    NumPy arrays.

    Parameters
    ----------
    image_shape : tuple of int
        The shape of an image, ``(ny, nx, n_bands)``.
    latent_dim : int, optional
        The number of latents.
    encoder : `keras.layers.Layer`, optional
        From images (asinh- or linearly scaled) to features, by default
        `DenseEncoder`.
    decoder : `keras.layers.Layer`, optional
        From latents to ``likelihood.num_parameters * n_bands`` maps, by
        default `DenseDecoder`.
    prior : `~astrovae.layers.Prior`, optional
        Prior of the latents, by default standard normal.
    likelihood : `GaussianLikelihood`, optional
        Scatter of the pixels, by default with learned variance.
    posterior : {"diagonal", "delta"}, optional
        The family of posteriors; "delta" makes an autoencoder.
    stretch : {"linear", "asinh"}, optional
        How the encoder sees the pixels: in units of the image scale, or as
        ``asinh(pixel / noise)``. The likelihood is always that of the pixels
        as they are.
    pose : bool, optional
        Whether galaxies are encoded and painted in their aligned frame, as
        given by the pose of the stack (`~astrovae.images.measure_pose`). What
        is painted is carried to the observed frame before it is compared with
        the pixels, which are never resampled.
    beta : float, optional
        Weight of the KL divergence in training; the reported ELBO has 1.
    scale, noise : sequence of float, optional
        Image scale and noise level of each band. By default `adapt` measures
        them when training begins.
    preprocessing : dict, optional
        The record of how the training images were prepared; `fit` sets it.
    seed : int, optional
        Seed of the latent samples and of the order of batches.
    **kwargs
        Arguments of `keras.Model`.

    Raises
    ------
    ValueError
        If shapes do not fit together or an argument is out of range.

    References
    ----------
    Kingma & Welling 2014, ICLR (arXiv:1312.6114); Regier et al. 2015.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> vae.compile(optimizer="adam")
    >>> history = vae.fit(stack, batch_size=32, epochs=1, verbose=0)
    >>> mean, log_var = vae.encode(stack)
    >>> mean.shape
    (64, 2)
    """

    def __init__(
        self,
        image_shape,
        latent_dim=8,
        encoder=None,
        decoder=None,
        prior=None,
        likelihood=None,
        posterior="diagonal",
        stretch="linear",
        pose=False,
        beta=1.0,
        scale=None,
        noise=None,
        preprocessing=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(image_shape, preprocessing, seed, **kwargs)
        self.latent_dim = check_positive_int(
            "latent_dim", latent_dim, hint="Use 8 for the model of Regier et al. 2015."
        )
        self.posterior = check_option("posterior", posterior, ("diagonal", "delta"))
        self.stretch = check_option("stretch", stretch, ("linear", "asinh"))
        self.pose = bool(pose)
        canvas = self.image_shape[:2]
        self.to_aligned = PoseTransform(canvas, "aligned")
        self.to_observed = PoseTransform(canvas, "observed")
        n_bands = self.image_shape[2]
        self.likelihood = likelihood or GaussianLikelihood()
        self.prior = prior or GaussianPrior(self.latent_dim)
        maps_shape = (*self.image_shape[:2], self.likelihood.num_parameters * n_bands)
        self.encoder = encoder or DenseEncoder()
        self.decoder = decoder or DenseDecoder(maps_shape)
        self.posterior_layer = keras.layers.Dense(
            self.latent_dim * (2 if posterior == "diagonal" else 1), dtype="float32"
        )
        self.sampling = GaussianSampling(seed=seed, dtype="float32")
        self.adapted = scale is not None and noise is not None
        self._scale = self._constant("scale", scale, (n_bands,))
        self._noise = self._constant("noise", noise, (n_bands,))
        self._beta = self._constant("beta", beta, ())
        # training devices, which callbacks set
        self._free_bits = self._constant("free_bits", 0.0, ())
        self._extra_sigma = self._constant("extra_sigma", 0.0, ())
        self._plain.noisier = False
        self.trackers = {
            name: keras.metrics.Mean(name=name) for name in ("log_like", "kl", "mse")
        }
        self._build_networks(maps_shape)

    def _constant(self, name, value, shape):
        value = np.broadcast_to(1.0 if value is None else value, shape)
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(value, dtype),
            trainable=False,
            autocast=False,
            dtype="float32",
        )

    def _build_networks(self, maps_shape):
        """Create all weights, so that a model can load them at once."""
        images = (None, *self.image_shape)
        latents = (None, self.latent_dim)
        for layer, shape in ((self.encoder, images), (self.decoder, latents)):
            if not layer.built:
                layer.build(shape)
        features = self.encoder.compute_output_shape(images)
        self.posterior_layer.build(features)
        if not self.prior.built:
            self.prior.build(latents)
        found = tuple(self.decoder.compute_output_shape(latents))[1:]
        if found != maps_shape:
            msg = (
                f"the decoder gives maps of shape {found}; images of shape "
                f"{self.image_shape} and this likelihood need {maps_shape}."
            )
            raise ValueError(msg)
        self.built = True

    @property
    def beta(self):
        """Weight of the KL divergence in training."""
        return float(ops.convert_to_numpy(self._beta))

    @beta.setter
    def beta(self, value):
        self._beta.assign(value)

    @property
    def free_bits(self):
        """Nats per latent that training does not penalise (see `FreeBits`)."""
        return float(ops.convert_to_numpy(self._free_bits))

    @free_bits.setter
    def free_bits(self, value):
        self._free_bits.assign(value)

    @property
    def extra_sigma(self):
        """Noise that training adds, in units of the scale (see `SigmaWarmup`)."""
        return float(ops.convert_to_numpy(self._extra_sigma))

    @extra_sigma.setter
    def extra_sigma(self, value):
        self._extra_sigma.assign(value)

    @property
    def scale(self):
        """Image scale of each band, in the unit of the pixels."""
        return ops.convert_to_numpy(self._scale)

    @property
    def noise(self):
        """Noise level of each band, in the unit of the pixels."""
        return ops.convert_to_numpy(self._noise)

    # ------------------------------------------------------------------
    # tensors: one batch in, one batch out
    # ------------------------------------------------------------------

    def _encode_batch(self, batch):
        """Posterior mean and log-variance, and which galaxies have pixels."""
        image, valid = batch["image"], _valid(batch)
        image = ops.where(valid > 0, image, 0.0)
        if self.stretch == "asinh":
            pixels = ops.arcsinh(image / self._noise)
        else:
            pixels = image / self._scale
        if self.pose:
            pixels = self.to_aligned((pixels, batch["pose"][:, :4]))
        features = self.encoder(ops.cast(pixels, self.compute_dtype))
        output = self.posterior_layer(ops.cast(features, "float32"))
        if self.posterior == "delta":
            mean = output
            log_var = ops.full_like(mean, _LOG_VAR_RANGE[0])
        else:
            mean, log_var = ops.split(output, 2, axis=-1)
            log_var = ops.clip(log_var, *_LOG_VAR_RANGE)
        measured = ops.any(valid > 0, axis=(1, 2, 3))
        prior_mean, prior_log_var = self.prior.moments()
        unmeasured = ops.logical_not(measured)[:, None]
        mean = ops.where(unmeasured, prior_mean, mean)
        log_var = ops.where(unmeasured, prior_log_var, log_var)
        return {"mean": mean, "log_var": log_var, "measured": measured}

    def _decode_batch(self, z, batch=None):
        """
        Pixel distribution in units of the image scale.

        In the observed frame of the batch, if galaxies have a pose.
        """
        maps = self.decoder(ops.cast(z, self.compute_dtype))
        params = self.likelihood.parameters(maps, self._scale)
        if batch is None or not self.pose:
            return params
        floor = self.likelihood.floor(self._scale)
        learned = ops.relu(ops.exp(params["log_var"]) - floor)
        maps = ops.concatenate([params["mean"], learned], axis=-1)
        mean, learned = ops.split(
            self.to_observed((maps, batch["pose"][:, :4])), 2, axis=-1
        )
        # cubic weights may be negative: a variance must not be
        log_var = ops.log(ops.relu(learned) + floor)
        return {**params, "mean": mean, "log_var": log_var}

    def _pixels(self, batch):
        """Image and error in units of the image scale; masked ones harmless."""
        valid, error = _valid(batch) > 0, batch.get("error")
        image = ops.where(valid, batch["image"], 0.0) / self._scale
        if error is not None:
            error = ops.where(valid, error, 1.0) / self._scale
        return image, error

    def _log_like_map(self, batch, params):
        """Log-likelihood of each pixel in its own unit; masked ones give 0."""
        image, error = self._pixels(batch)
        valid = _valid(batch)
        terms = self.likelihood.log_prob_map(image, params, error, valid)
        return ops.where(valid > 0, terms - ops.log(self._scale), 0.0)

    def _kl_terms(self, mean, log_var, z):
        """KL divergence by latent, if the prior is factorised, or as a whole."""
        if self.posterior == "delta":
            return ops.zeros_like(mean[:, :1])
        return self.prior.kl_terms(mean, log_var, z)

    def _kl(self, mean, log_var, z):
        return ops.sum(self._kl_terms(mean, log_var, z), axis=-1)

    def call(self, inputs, training=False):
        """
        Encode, draw one latent and decode: the terms of the ELBO.

        Parameters
        ----------
        inputs : dict of tensor
            ``image``, and optionally ``mask`` and ``error``.
        training : bool, optional
            Whether training devices apply; a latent is drawn in either case.

        Returns
        -------
        terms : dict of tensor
            Per galaxy: ``mean`` and ``log_var`` ``(n, latent_dim)``;
            ``kl_terms`` ``(n, latent_dim)`` or ``(n, 1)``; ``objective``,
            ``log_like``, ``kl``, ``mse`` and ``measured``, ``(n,)``.
        """
        posterior = self._encode_batch(inputs)
        mean, log_var = posterior["mean"], posterior["log_var"]
        z = mean if self.posterior == "delta" else self.sampling((mean, log_var))
        params = self._decode_batch(z, inputs)
        valid = _valid(inputs)
        image, error = self._pixels(inputs)
        scatter = params
        if training and self._plain.noisier:
            extra = 2.0 * ops.log(self._extra_sigma + 1e-10)
            scatter = {**params, "log_var": ops.logaddexp(params["log_var"], extra)}
        objective = self.likelihood.objective_map(image, scatter, valid, error)
        kl_terms = self._kl_terms(mean, log_var, z)
        residual = inputs["image"] - params["mean"] * self._scale
        squares = weighted_sum(ops.square(residual), valid)
        return {
            **posterior,
            "objective": weighted_sum(objective, valid),
            "log_like": ops.sum(self._log_like_map(inputs, params), axis=(1, 2, 3)),
            "kl_terms": kl_terms,
            "kl": ops.sum(kl_terms, axis=-1),
            "mse": squares / ops.maximum(ops.sum(valid, axis=(1, 2, 3)), 1.0),
        }

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        """Give the mean of ``beta * kl - objective`` over measured galaxies."""
        weight = ops.cast(y_pred["measured"], "float32")
        if sample_weight is not None:
            weight = weight * ops.cast(sample_weight, "float32")
        total = ops.maximum(ops.sum(weight), 1e-6)
        for name, tracker in self.trackers.items():
            tracker.update_state(y_pred[name], sample_weight=weight)
        kl_terms = ops.matmul(weight[None], y_pred["kl_terms"])[0] / total
        # the threshold of terms that hold several latents is that of them all
        free = self._free_bits * (self.latent_dim / kl_terms.shape[0])
        kl = ops.sum(ops.where(free > 0.0, ops.maximum(kl_terms, free), kl_terms))
        return self._beta * kl - ops.sum(weight * y_pred["objective"]) / total

    # ------------------------------------------------------------------
    # training
    # ------------------------------------------------------------------

    def _training_source(self, inputs):
        source = super()._training_source(inputs)
        return source if self.likelihood.allows_masks else UnmaskedSource(source)

    def adapt(self, inputs, max_galaxies=4096):
        """
        Measure image scale and noise level on training images.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Training images.
        max_galaxies : int, optional
            Use at most this many, evenly spaced.

        Raises
        ------
        ValueError
            If no galaxy has a valid pixel.
        """
        source = as_source(inputs)
        rows = np.unique(
            np.linspace(0, max(len(source) - 1, 0), max_galaxies).astype(int)
        )
        batch = source.batch(rows[: len(source)])
        pixels = np.ma.array(batch["image"], mask=batch["mask"], dtype=float)
        if pixels.count() == 0:
            msg = "no galaxy has a valid pixel: there is nothing to train on."
            raise ValueError(msg)
        rms = np.ma.sqrt((pixels**2).mean(axis=(1, 2)))
        scale = np.ma.median(rms, axis=0).filled(0)
        if "error" in batch:
            noise = np.ma.median(
                np.ma.array(batch["error"], mask=batch["mask"]), axis=(0, 1, 2)
            ).filled(0)
        else:
            noise = 0.1 * scale
        usable = scale > 0
        if not usable.any():
            msg = "all valid pixels are zero: there is nothing to train on."
            raise ValueError(msg)
        # a band that is missing everywhere takes the scale of the others
        scale = np.where(usable, scale, scale[usable].mean())
        self._scale.assign(scale)
        self._noise.assign(np.where(noise > 0, noise, 0.1 * scale))
        self.adapted = True

    # ------------------------------------------------------------------
    # science
    # ------------------------------------------------------------------

    def encode(self, inputs, *, batch_size=256, show_progress=False):
        """
        Give the posterior of the latents.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies, prepared as those of the training.
        batch_size : int, optional
            Galaxies at a time.
        show_progress : bool, optional
            Show a progress bar.

        Returns
        -------
        mean, log_var : `~numpy.ndarray`, shape (n, latent_dim)
            Posterior means and logarithms of the posterior variances.
            Galaxies without a valid pixel have those of the prior.

        Raises
        ------
        ValueError
            If the images have another shape than those of the training.
        ~astrovae.exceptions.PreprocessingError
            If they were prepared in another way.
        """
        result = self._map(
            "encode",
            self._encode_batch,
            self._source(inputs),
            batch_size=batch_size,
            description="Encoding",
            show_progress=show_progress,
        )
        return result["mean"], result["log_var"]

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
            learned variance with its floor (without known noise).

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

    def reconstruct(self, inputs, *, batch_size=256):
        """
        Paint each galaxy at its posterior mean, as it was observed.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        batch_size : int, optional
            Galaxies at a time.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            As given by `decode`.
        """

        def reconstruct(batch):
            mean = self._encode_batch(batch)["mean"]
            return self._in_pixel_units(self._decode_batch(mean, batch))

        return self._map(
            "reconstruct", reconstruct, self._source(inputs), batch_size=batch_size
        )

    def sample(self, n, *, seed=None):
        """
        Paint galaxies from the prior.

        Parameters
        ----------
        n : int
            How many.
        seed : int, optional
            Seed of the latents.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            As given by `decode`, and ``z``, the latents.
        """
        z = ops.convert_to_numpy(self.prior.sample(n, seed=seed))
        return {**self.decode(z), "z": z}

    def elbo(self, inputs, *, num_samples=16, batch_size=256, show_progress=False):
        """
        Give the evidence lower bound of each galaxy.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        num_samples : int, optional
            Latents drawn per galaxy. They are quasi-random and the same for
            all galaxies and calls, so the result is deterministic.
        batch_size : int, optional
            Galaxies at a time.
        show_progress : bool, optional
            Show a progress bar.

        Returns
        -------
        elbo : `~numpy.ndarray`, shape (n,)
            In nats, for the pixels in their own unit, with ``beta = 1``. NaN
            for galaxies without a valid pixel.
        """
        terms = self._terms(inputs, num_samples, batch_size, show_progress)
        return np.where(terms["measured"], terms["elbo"], np.nan)

    def measure(self, inputs, *, num_samples=16, batch_size=256, show_progress=False):
        """
        Measure how well the model describes each galaxy.

        Parameters
        ----------
        inputs : `~astrovae.images.CutoutStack`, array or dict
            Galaxies.
        num_samples : int, optional
            Latents drawn per galaxy for ELBO and KL, as for `elbo`.
        batch_size : int, optional
            Galaxies at a time.
        show_progress : bool, optional
            Show a progress bar.

        Returns
        -------
        columns : dict of `~numpy.ndarray`
            ``vae_elbo`` and ``vae_kl`` ``(n,)``; ``vae_mse``, ``vae_chi2`` and
            ``vae_log_like`` at the posterior mean, ``(n,)`` for one band and
            ``(n, n_bands)`` for several; NaN for galaxies without a valid
            pixel. ``vae_chi2`` is the mean over valid pixels.
        """
        terms = self._terms(inputs, num_samples, batch_size, show_progress)
        measured = terms["measured"]
        columns = {}
        for name in ("elbo", "kl", "mse", "chi2", "log_like"):
            values = terms[name].astype(np.float64)
            if values.ndim == 2 and values.shape[1] == 1:
                values = values[:, 0]
            values[~measured] = np.nan
            columns[f"vae_{name}"] = values
        return columns

    def _terms(self, inputs, num_samples, batch_size, show_progress):
        check_positive_int("num_samples", num_samples)
        if self.posterior == "delta":
            num_samples = 1
        # 2^m points, antithetic: the mean of each dimension is exactly zero
        draws = qmc.MultivariateNormalQMC(np.zeros(self.latent_dim), rng=0)
        half = draws.random(-(-num_samples // 2))
        noise = np.concatenate([half, -half])[:num_samples]
        noise = ops.convert_to_tensor(noise, "float32")

        def terms(batch):
            posterior = self._encode_batch(batch)
            mean, log_var = posterior["mean"], posterior["log_var"]

            def add_sample(i, sums):
                z = mean + ops.exp(0.5 * log_var) * noise[i]
                likes = self._log_like_map(batch, self._decode_batch(z, batch))
                kl = self._kl(mean, log_var, z)
                return sums[0] + ops.sum(likes, axis=(1, 2, 3)), sums[1] + kl

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
            self._source(inputs),
            batch_size=batch_size,
            description="Measuring",
            show_progress=show_progress,
        )

    def _residual_terms(self, batch, params):
        """Give squared error, chi2 and likelihood per galaxy and band."""
        valid = _valid(batch)
        count = ops.maximum(ops.sum(valid, axis=(1, 2)), 1.0)
        residual = batch["image"] / self._scale - params["mean"]
        squares = ops.where(valid > 0, ops.square(residual), 0.0)
        error = batch.get("error")
        if error is not None:
            error = error / self._scale
        chi2 = squares / self.likelihood.variance(params, error)
        return {
            "mse": ops.sum(squares, axis=(1, 2)) / count * ops.square(self._scale),
            "chi2": ops.sum(chi2, axis=(1, 2)) / count,
            "log_like": ops.sum(self._log_like_map(batch, params), axis=(1, 2)),
        }

    # ------------------------------------------------------------------
    # saving
    # ------------------------------------------------------------------

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "image_shape": list(self.image_shape),
            "latent_dim": self.latent_dim,
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "prior": serialize(self.prior),
            "likelihood": serialize(self.likelihood),
            "posterior": self.posterior,
            "stretch": self.stretch,
            "pose": self.pose,
            "beta": self.beta,
            "scale": self.scale.tolist() if self.adapted else None,
            "noise": self.noise.tolist() if self.adapted else None,
            "preprocessing": self.preprocessing,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("encoder", "decoder", "prior", "likelihood", "dtype"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _valid(batch):
    """1 for the pixels that count, 0 for masked ones."""
    if batch.get("mask") is None:
        return ops.ones_like(batch["image"])
    return 1.0 - ops.cast(batch["mask"], "float32")
