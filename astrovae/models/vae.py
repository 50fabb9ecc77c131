# Licensed under a 3-clause BSD style license - see LICENSE
"""The variational autoencoder of galaxies."""

import keras
import numpy as np
from keras import ops

from astrovae._sources import EvenlySpaced, as_source
from astrovae._validation import check_option, check_positive_int
from astrovae.layers import GaussianPrior, GaussianSampling
from astrovae.models._adapt import adapt_networks, measure_scales
from astrovae.models._inference import LatentModel
from astrovae.models._masks import (
    count_pixels,
    hide_pixels,
    present_bands,
    seen_pixels,
)
from astrovae.models._missing import BandDropout, MissingBands
from astrovae.models._observation import Observation, with_variance
from astrovae.models._planes import SIDE_INPUTS, Planes
from astrovae.models._posed import posed_model
from astrovae.models._posteriors import POSTERIORS, choose
from astrovae.models._regularizers import REGULARIZERS, check_regularizers
from astrovae.models._stretches import as_config, as_stretch
from astrovae.models.correlated_noise import UnmaskedSource
from astrovae.models.likelihoods import GaussianLikelihood
from astrovae.models.networks import DenseDecoder, DenseEncoder
from astrovae.ops import weighted_sum

__all__ = ["VAE"]

# so many galaxies tell scales, noise and components
_MAX_GALAXIES = 4096


@keras.saving.register_keras_serializable("astrovae")
class VAE(LatentModel):
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
    posterior : {"diagonal", "full", "delta"}, optional
        The family of posteriors: normal with independent latents, normal with
        any covariance, or points, which make an autoencoder.
    stretch : {"linear", "asinh"} or astropy object, optional
        How the encoder sees the pixels: in units of the image scale, or as
        ``asinh(pixel / noise)``; or a stretch of `astropy.visualization`: a
        `~astropy.visualization.LinearStretch`, ``AsinhStretch``,
        ``LogStretch`` or ``SqrtStretch`` of pixels in units of the image scale,
        or an `~astropy.visualization.ImageNormalize` with one of these and
        fixed limits. The likelihood is that of the pixels as they are.
    pose : bool, optional
        Whether galaxies are encoded and painted in their aligned frame, as
        given by the pose of the stack (`~astrovae.images.measure_pose`). What
        is painted is carried to the observed frame before it is compared with
        the pixels, which are never resampled.
    psf : bool, optional
        Whether what is painted is the galaxy before the PSF of its image,
        which the stack must bring.
    canvas_shape : tuple of int, optional
        Shape ``(ny, nx)`` of what is painted, by default that of the images.
        With a pose, corners of the observed frame survive on a canvas that is
        ``sqrt(2)`` times larger; with a PSF, light from beyond the edges of the
        image needs a margin. It must be larger by an even number of pixels.
    oversampling : int, optional
        How many times finer than the images, along each axis, galaxies are
        painted. The decoder then gives ``oversampling`` times
        ``canvas_shape`` pixels of surface brightness per pixel of the images,
        of which those of the images are averages.
    psf_oversampling : int, optional
        How many times finer than the images their PSFs are: 1, for effective
        PSFs with the response of the pixels in them, or ``oversampling``, for
        PSFs before it.
    side_inputs : sequence of {"mask", "error", "psf", "bands"}, optional
        What the encoder sees beside the pixels, as further planes: which pixels
        are valid; their errors, in logarithms; the PSF; and which bands the
        galaxy has at all.
    band_dropout : float, optional
        The probability with which training hides each band of a galaxy from
        the encoder, but never all. What the encoder then says is compared with
        what it says of the whole galaxy, so that it learns how much a missing
        band leaves open; the likelihood is always that of all pixels.
    regularizers : dict of float, optional
        What training holds against the light that is painted, and with what
        weight, in nats: ``"positivity"``, the squares of negative light;
        ``"border"``, the squares of light within a sixteenth of the canvas from
        its edges, less and less further inside; ``"total_variation"``, the
        absolute differences of neighbours; each summed over the galaxy, with
        light in units of the noise of a pixel.
    beta : float, optional
        Weight of the KL divergence in training; the reported ELBO has 1.
    scale, noise : sequence of float, optional
        Image scale and noise level of each band. By default `adapt` measures
        them when training begins.
    latent_temperature : sequence of float, optional
        What `encode` multiplies the sigma of each latent by, 1 by default.
    imputation_factor : sequence of float, optional
        What `posterior_predictive` multiplies the spread of each band by where it is
        missing, 1 by default.
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
        psf=False,
        canvas_shape=None,
        oversampling=1,
        psf_oversampling=1,
        side_inputs=(),
        band_dropout=0.0,
        regularizers=None,
        beta=1.0,
        scale=None,
        noise=None,
        latent_temperature=None,
        imputation_factor=None,
        preprocessing=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(image_shape, preprocessing, seed, **kwargs)
        self.latent_dim = check_positive_int(
            "latent_dim", latent_dim, hint="Use 8 for the model of Regier et al. 2015."
        )
        self.posterior = check_option("posterior", posterior, POSTERIORS)
        self.family = POSTERIORS[posterior]
        self.stretch = as_stretch(stretch)
        self.pose, self.psf = bool(pose), bool(psf)
        if isinstance(side_inputs, str):
            side_inputs = (side_inputs,)
        self.side_inputs = tuple(
            check_option("side_inputs", name, SIDE_INPUTS)
            for name in dict.fromkeys(side_inputs)
        )
        self.observation = Observation(
            self.image_shape,
            self.pose,
            self.psf,
            canvas_shape,
            oversampling,
            psf_oversampling,
        )
        self.canvas_shape = self.observation.canvas_shape
        self.oversampling = self.observation.oversampling
        self.psf_oversampling = self.observation.psf_oversampling
        self.planes = Planes(
            self.image_shape,
            self.side_inputs,
            self.stretch,
            self.pose,
            self.canvas_shape,
        )
        self.likelihood = likelihood or GaussianLikelihood()
        self.prior = prior or GaussianPrior(self.latent_dim)
        channels = self.likelihood.num_parameters * self.image_shape[2]
        maps_shape = (*self.observation.painted_shape, channels)
        policy = self.dtype_policy
        self.encoder = encoder or DenseEncoder(dtype=policy)
        self.decoder = decoder or DenseDecoder(maps_shape, dtype=policy)
        self.posterior_layer = keras.layers.Dense(
            self.family.num_parameters(self.latent_dim), dtype="float32"
        )
        self.sampling = GaussianSampling(seed=seed, dtype="float32")
        self.band_dropout = BandDropout.check(
            band_dropout, self.image_shape[2], posterior, self.side_inputs
        )
        if self.band_dropout:
            self.hide_bands = BandDropout(self.band_dropout, seed=seed)
            self.missing_bands = MissingBands(
                self.posterior_layer.units, dtype="float32"
            )
        self.regularizers = check_regularizers(regularizers)
        self._make_scales(scale, noise)
        self._make_schedulable(beta)
        self.latent_temperature = latent_temperature
        self.imputation_factor = imputation_factor
        names = ["elbo", "log_like", "kl", "mse", *self.regularizers]
        if self.band_dropout:
            names.append("imputation")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self._build_networks(maps_shape)

    def _make_scales(self, scale, noise):
        """Keep what is given of the scales, to measure the rest."""
        self.adapted = scale is not None and noise is not None
        for name, given in (("scale", scale), ("noise", noise)):
            if given is not None and not (np.asarray(given) > 0).all():
                msg = f"{name} must be positive, got {given!r}."
                raise ValueError(msg)
        # what is given is not measured, the first time
        self._plain.given = {"scale": scale, "noise": noise}
        self._scale = self._constant("scale", scale, self.image_shape[2:])
        self._noise = self._constant("noise", noise, self.image_shape[2:])

    def _build_networks(self, maps_shape):
        """Create all weights, so that a model can load them at once."""
        images = (None, *self.planes.shape)
        latents = (None, self.latent_dim)
        for layer, shape in ((self.encoder, images), (self.decoder, latents)):
            if not layer.built:
                layer.build(shape)
        features = self.encoder.compute_output_shape(images)
        self.posterior_layer.build(features)
        if self.band_dropout:
            self.missing_bands.build((features, (None, self.image_shape[2])))
        if not self.prior.built:
            self.prior.build(latents)
        found = getattr(self.prior, "latent_dim", self.latent_dim)
        if found != self.latent_dim:
            msg = (
                f"the prior is one of {found} latents, the model has latent_dim="
                f"{self.latent_dim}: make them equal."
            )
            raise ValueError(msg)
        if tuple(getattr(self.prior, "image_shape", images[1:])) != images[1:]:
            msg = (
                f"the prior has pseudo-images of shape {self.prior.image_shape}; the "
                f"encoder sees images of shape {images[1:]} (ny, nx, planes)."
            )
            raise ValueError(msg)
        if hasattr(self.prior, "bind"):
            self.prior.bind(self._encode_pseudo_images)
        found = tuple(self.decoder.compute_output_shape(latents))[1:]
        if found != maps_shape:
            msg = (
                f"the decoder gives maps of shape {found}; images of shape "
                f"{self.image_shape} and this likelihood need {maps_shape}."
            )
            raise ValueError(msg)
        self.built = True

    @property
    def to_aligned(self):
        """The layer that turns images to the frame of the encoder."""
        return self.planes.to_aligned

    @property
    def to_observed(self):
        """The layer that turns what is painted to where it was observed."""
        return self.observation.to_observed

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

    def _encode_batch(self, batch, training=False):
        """
        Posterior of the latents, and which galaxies have pixels.

        Galaxies without pixels have no weight in training: there, their
        posterior need not be that of the prior, which may be slow to compute.
        """
        raw = batch["posterior"] if "posterior" in batch else self._raw(batch)
        seen = seen_pixels(batch)
        if seen is None:
            measured = ops.ones_like(batch["image"][:, 0, 0, 0], dtype="bool")
        else:
            measured = ops.any(seen, axis=(1, 2, 3))
        moments = [ops.zeros((self.latent_dim,))] * 2
        if not training:
            moments = [ops.stop_gradient(part) for part in self.prior.moments()]
        unknown = self.family.from_moments(*moments)
        unknown = {name: value[None] for name, value in unknown.items()}
        posterior = choose(measured, self.family.parameters(raw), unknown)
        return {**posterior, "measured": measured}

    def _raw_batch(self, batch):
        return {"raw": self._raw(batch)}

    def _raw(self, batch):
        """What the encoder says of each galaxy: parameters of its posterior."""
        features = self._features(self._planes(batch))
        raw, seen = self.posterior_layer(features), seen_pixels(batch)
        if self.band_dropout and seen is not None:
            present = present_bands(batch["image"], seen)[:, 0, 0]
            raw = raw + self.missing_bands((features, present))
        return raw

    def _features(self, planes):
        features = self.encoder(ops.cast(planes, self.compute_dtype))
        return ops.cast(features, "float32")

    def _encode_pseudo_images(self, images):
        raw = self.posterior_layer(self._features(images))
        posterior = self.family.parameters(raw)
        return posterior["mean"], posterior["log_var"]

    def _planes(self, batch):
        """What the encoder sees: pixels, and side information beside them."""
        return self.planes(batch, self._scale, self._noise)

    def _decode_batch(self, z, batch=None, training=False):
        """
        Pixel distribution in units of the image scale.

        As painted, or, if there is a batch, as its galaxies were observed.
        """
        params = self._paint(z)
        if batch is not None:
            params = self._observe(params, batch)
        if training:
            return params
        variance = self.likelihood.variance(params) * self._variance_factor
        return with_variance(params, variance)

    def _paint(self, z):
        """Pixel distribution on the canvas."""
        maps = self.decoder(ops.cast(z, self.compute_dtype))
        return self.likelihood.parameters(maps, self._scale)

    def _observe(self, params, batch):
        """Carry what was painted to where it was observed, through the PSF."""
        return self.observation(
            params, batch, self.likelihood, self._scale, self._noise
        )

    def _pixels(self, batch):
        """Image and error in units of the image scale; masked ones harmless."""
        seen, error = seen_pixels(batch), batch.get("error")
        image = hide_pixels(batch["image"], seen) / self._scale
        if error is not None:
            error = hide_pixels(error, seen, 1.0) / self._scale
        return image, error

    def _log_like_map(self, batch, params):
        """Log-likelihood of each pixel in its own unit; masked ones give 0."""
        image, error = self._pixels(batch)
        seen = seen_pixels(batch)
        terms = self.likelihood.log_prob_map(image, params, error, seen)
        return hide_pixels(terms - ops.log(self._scale), seen)

    def call(self, inputs, training=False):
        """
        Encode, draw one latent and decode: the terms of the ELBO.

        Parameters
        ----------
        inputs : dict of tensor
            ``image``, and optionally ``mask``, ``error``, ``psf`` and ``pose``.
        training : bool, optional
            Whether training devices apply; a latent is drawn in either case.

        Returns
        -------
        terms : dict of tensor
            Per galaxy: ``mean`` and ``log_var`` ``(n, latent_dim)``, for full
            posteriors ``scale_tril`` ``(n, latent_dim, latent_dim)``;
            ``kl_terms`` ``(n, latent_dim)`` or ``(n, 1)``; ``objective``,
            ``elbo``, ``log_like``, ``kl``, ``mse`` and ``measured``, ``(n,)``;
            the terms of ``regularizers``, and for models with ``band_dropout``
            the ``imputation``.
        """
        posterior = self._encode_batch(inputs, training)
        z = mean = posterior["mean"]
        if self.posterior != "delta":
            z = self.sampling((mean, posterior.get("scale_tril", posterior["log_var"])))
        painted = self._paint(z)
        params = self._observe(painted, inputs)
        seen = seen_pixels(inputs)
        image, error = self._pixels(inputs)
        terms = self.likelihood.log_prob_map(image, params, error, seen)
        log_like = weighted_sum(terms, seen)
        if training and self._plain.noisier:
            noisier = self._noisier(params)
            objective = self.likelihood.objective_map(image, noisier, seen, error)
        else:
            objective = self.likelihood.objective_map(image, params, seen, error, terms)
        # usually, they are the same
        objective = log_like if objective is terms else weighted_sum(objective, seen)
        # the change of unit of each pixel, and squares in the unit of the pixels
        count = count_pixels(image, seen)
        shift = ops.sum(count * ops.log(self._scale), axis=-1)
        residual = hide_pixels(ops.subtract(image, params["mean"]), seen)
        squares = ops.sum(ops.square(residual), axis=(1, 2)) * ops.square(self._scale)
        log_like = log_like - shift
        kl_terms = self.family.kl_terms(self.prior, posterior, z)
        kl = ops.sum(kl_terms, axis=-1)
        return {
            **posterior,
            "objective": objective,
            "log_like": log_like,
            "kl_terms": kl_terms,
            "kl": kl,
            "elbo": log_like - kl,
            "mse": ops.sum(squares, axis=-1)
            / ops.maximum(ops.sum(count, axis=-1), 1.0),
            **self._penalties(painted),
            **self._imputation(inputs, posterior),
        }

    def _penalties(self, painted):
        """Terms of the regularisers of each galaxy."""
        light = painted["mean"] * (self._scale / self._noise)
        return {
            name: REGULARIZERS[name](light, self.oversampling)
            for name in self.regularizers
        }

    def _imputation(self, batch, posterior):
        """
        What it costs that the encoder does not see all bands.

        The divergence of the posterior with all bands from that without some,
        which reacts on the latter alone: least if it is like the mixture of the
        former over all that the hidden bands may show (posterior matching,
        Strauss & Oliva 2022, arXiv:2201.12414).
        """
        if not self.band_dropout:
            return {}
        seen = seen_pixels(batch)
        if seen is None:
            seen = ops.ones_like(batch["image"], dtype="bool")
        seen, lost = self.hide_bands(seen)
        partial = self._encode_batch({**batch, "mask": ops.logical_not(seen)}, True)
        whole = {name: ops.stop_gradient(part) for name, part in posterior.items()}
        terms = self.family.divergence(whole, partial)
        return {"imputation": ops.where(lost, terms, 0.0)}

    def _noisier(self, params):
        """Pixel distribution with the noise that training adds at first."""
        extra = ops.square(self._extra_sigma) + 1e-20
        return with_variance(params, self.likelihood.variance(params) + extra)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Give the mean of ``beta * kl - objective``, and what else there is."""
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
        cost = -y_pred["objective"]
        for name, factor in self.regularizers.items():
            cost = cost + factor * y_pred[name]
        if self.band_dropout:
            cost = cost + y_pred["imputation"]
        loss = self._beta * kl + ops.sum(weight * cost) / total
        if training:
            loss = loss + self._penalty_weight * self.prior.penalty(1.0)
        return loss

    # ------------------------------------------------------------------
    # training
    # ------------------------------------------------------------------

    def _training_source(self, inputs):
        source = super()._training_source(inputs)
        return source if self.likelihood.allows_masks else UnmaskedSource(source)

    def _prepare_training(self, source):
        if self.adapted:
            adapt_networks(self, EvenlySpaced(source, _MAX_GALAXIES))
        super()._prepare_training(source)
        self._penalty_weight.assign(1.0 / max(len(source), 1))
        # training undoes a calibration
        self._variance_factor.assign(1.0)
        self.latent_temperature = self.imputation_factor = None

    @property
    def needs(self):
        """Planes that images must bring, beside their pixels."""
        names = {"psf": self.psf, "pose": self.pose}
        sides = [name for name in ("error", "psf") if name in self.side_inputs]
        return {name for name, needed in names.items() if needed} | set(sides)

    def adapt(self, inputs, max_galaxies=_MAX_GALAXIES):
        """
        Measure image scale and noise level on training images.

        The first time, networks that begin with principal components find
        them, too. `fit` does so the first time. Call it to train a model that
        was trained on one survey on another one: it then takes the preparation
        of these images for its own.

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
        some = EvenlySpaced(source, max_galaxies)
        scale, noise = measure_scales(some)
        given = {} if self.adapted else self._plain.given
        self._scale.assign(_broadcast(given.get("scale"), scale))
        self._noise.assign(_broadcast(given.get("noise"), noise))
        adapt_networks(self, some)
        self.adapted = True
        self._plain.preprocessing = getattr(source, "preprocessing", None)

    def with_pose(self, like, *, likelihood=None):
        """
        Give the model of observed galaxies from this one, of aligned galaxies.

        Training on galaxies that `~astrovae.images.align` has turned is fast, but
        interpolation has mixed their pixels. The model that comes back turns what it
        paints to where galaxies were observed, and compares it with the pixels as
        they came. It may be trained further.

        Parameters
        ----------
        like : `~astrovae.images.CutoutStack`
            Galaxies with a pose, before they were aligned: the model is for images
            of their shape and preparation.
        likelihood : `Likelihood`, optional
            Scatter of observed pixels, by default as in this model. It must read the
            maps of the decoder in the same way.

        Returns
        -------
        vae : `VAE`
            Its weights are copies of those of this model, image scale and noise level
            among them; ``beta`` and free bits are what they are now. It is neither
            compiled nor calibrated.

        Raises
        ------
        PreprocessingError
            If the galaxies were prepared in another way, but for the alignment.
        TypeError
            If ``like`` is no stack.
        ValueError
            If this model has a pose already, or met no galaxies; if the images have
            no pose, other bands, or do not fit into its frame; or if the likelihood
            has another number of maps or another transform.

        Examples
        --------
        >>> from astrovae.datasets import make_galaxies
        >>> from astrovae.images import align, measure_pose
        >>> from astrovae.models import VAE
        >>> truth, stack = make_galaxies(64, shape=16, seed=1)
        >>> stack = measure_pose(stack)
        >>> aligned = align(stack, shape=(24, 24))
        >>> model = VAE(aligned.image_shape, latent_dim=2)
        >>> model.compile()
        >>> history = model.fit(aligned, verbose=0)
        >>> vae = model.with_pose(stack)
        >>> vae.reconstruct(stack)["mean"].shape == stack.data.shape
        True
        """
        return posed_model(self, like, likelihood)

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
            "stretch": as_config(self.stretch),
            "pose": self.pose,
            "psf": self.psf,
            "canvas_shape": list(self.canvas_shape),
            "oversampling": self.oversampling,
            "psf_oversampling": self.psf_oversampling,
            "side_inputs": list(self.side_inputs),
            "band_dropout": self.band_dropout,
            "regularizers": dict(self.regularizers),
            "beta": self.beta,
            "scale": self.scale.tolist() if self.adapted else None,
            "noise": self.noise.tolist() if self.adapted else None,
            "latent_temperature": self.latent_temperature.tolist(),
            "imputation_factor": self.imputation_factor.tolist(),
            "preprocessing": self.preprocessing,
            "seed": self.seed,
            "frozen": [i for i, w in enumerate(self.weights) if not w.trainable],
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        frozen = config.pop("frozen", ())
        for name in ("encoder", "decoder", "prior", "likelihood", "dtype"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        vae = cls(**config)
        # Keras keeps this of layers alone, not of what they are made of
        for index in frozen:
            vae.weights[index].trainable = False
        return vae


def _broadcast(given, measured):
    """What was given, or what was measured."""
    return measured if given is None else np.broadcast_to(given, measured.shape)
