# Licensed under a 3-clause BSD style license - see LICENSE
"""The variational autoencoder of galaxies."""

import contextlib

import keras
import numpy as np
from keras import ops

from astrovae._sources import EvenlySpaced, as_source
from astrovae._validation import check_option, check_positive_int, check_shape
from astrovae.layers import (
    GaussianPrior,
    GaussianSampling,
    PoseTransform,
    PSFConvolution,
)
from astrovae.models._adapt import adapt_networks, measure_scales
from astrovae.models._inference import LatentModel
from astrovae.models._masks import (
    count_pixels,
    hide_pixels,
    seen_pixels,
    valid_pixels,
)
from astrovae.models._posteriors import POSTERIORS, choose
from astrovae.models.correlated_noise import UnmaskedSource
from astrovae.models.likelihoods import GaussianLikelihood
from astrovae.models.networks import DenseDecoder, DenseEncoder
from astrovae.ops import arcsinh, fit_canvas, weighted_sum

__all__ = ["VAE"]

# so many galaxies tell scales, noise and components
_MAX_GALAXIES = 4096
_SIDE_INPUTS = ("mask", "error", "psf", "bands")
# errors far from the usual noise are as good as none, or as certain ones
_LOG_ERROR_LIMIT = 5.0


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
    stretch : {"linear", "asinh"}, optional
        How the encoder sees the pixels: in units of the image scale, or as
        ``asinh(pixel / noise)``. The likelihood is always that of the pixels
        as they are.
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
    side_inputs : sequence of {"mask", "error", "psf", "bands"}, optional
        What the encoder sees beside the pixels, as further planes: which pixels
        are valid; their errors, in logarithms; the PSF; and which bands the
        galaxy has at all.
    beta : float, optional
        Weight of the KL divergence in training; the reported ELBO has 1.
    scale, noise : sequence of float, optional
        Image scale and noise level of each band. By default `adapt` measures
        them when training begins.
    latent_temperature : sequence of float, optional
        What `encode` multiplies the sigma of each latent by, 1 by default.
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
        side_inputs=(),
        beta=1.0,
        scale=None,
        noise=None,
        latent_temperature=None,
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
        self.stretch = check_option("stretch", stretch, ("linear", "asinh"))
        self.pose, self.psf = bool(pose), bool(psf)
        if isinstance(side_inputs, str):
            side_inputs = (side_inputs,)
        self.side_inputs = tuple(
            check_option("side_inputs", name, _SIDE_INPUTS)
            for name in dict.fromkeys(side_inputs)
        )
        self.canvas_shape = self._check_canvas(canvas_shape)
        # behind a PSF there is light from beyond the edges of the stamp
        frame = self.canvas_shape if self.psf else self.image_shape[:2]
        self.to_aligned = PoseTransform(self.canvas_shape, "aligned")
        self.to_observed = PoseTransform(frame, "observed")
        self.variance_to_observed = PoseTransform(frame, "observed", "linear")
        self.blur = PSFConvolution()
        n_bands = self.image_shape[2]
        self.likelihood = likelihood or GaussianLikelihood()
        self.prior = prior or GaussianPrior(self.latent_dim)
        maps_shape = (*self.canvas_shape, self.likelihood.num_parameters * n_bands)
        policy = self.dtype_policy
        self.encoder = encoder or DenseEncoder(dtype=policy)
        self.decoder = decoder or DenseDecoder(maps_shape, dtype=policy)
        self.posterior_layer = keras.layers.Dense(
            self.family.num_parameters(self.latent_dim), dtype="float32"
        )
        self.sampling = GaussianSampling(seed=seed, dtype="float32")
        self.adapted = scale is not None and noise is not None
        for name, given in (("scale", scale), ("noise", noise)):
            if given is not None and not (np.asarray(given) > 0).all():
                msg = f"{name} must be positive, got {given!r}."
                raise ValueError(msg)
        # what is given is not measured, the first time
        self._plain.given = {"scale": scale, "noise": noise}
        self._scale = self._constant("scale", scale, (n_bands,))
        self._noise = self._constant("noise", noise, (n_bands,))
        self._beta = self._constant("beta", beta, ())
        # `calibrate` sets it
        self._variance_factor = self._constant("variance_factor", 1.0, ())
        # training devices, which callbacks set
        self._free_bits = self._constant("free_bits", 0.0, ())
        self._extra_sigma = self._constant("extra_sigma", 0.0, ())
        # one over the number of galaxies, when `fit` has counted them
        self._penalty_weight = self._constant("penalty_weight", 0.0, ())
        self._plain.noisier = False
        self.latent_temperature = latent_temperature
        self.trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("elbo", "log_like", "kl", "mse")
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

    def _check_canvas(self, canvas_shape):
        """Give the shape of what is painted."""
        stamp = self.image_shape[:2]
        if canvas_shape is None:
            return stamp
        canvas = check_shape("canvas_shape", canvas_shape)
        if not self.pose and not self.psf and canvas != stamp:
            msg = (
                "canvas_shape is for models with pose=True or psf=True; others paint "
                f"images of {stamp} pixels, got canvas_shape={canvas_shape!r}."
            )
            raise ValueError(msg)
        if any((big - small) % 2 or big < small for big, small in zip(canvas, stamp)):
            msg = (
                "canvas_shape must be that of the images or larger by an even number "
                f"of pixels, got {canvas} for images of {stamp}."
            )
            raise ValueError(msg)
        return canvas

    def _build_networks(self, maps_shape):
        """Create all weights, so that a model can load them at once."""
        canvas = self.canvas_shape if self.pose else self.image_shape[:2]
        planes = self.image_shape[2] * (1 + len(self.side_inputs))
        images = (None, *canvas, planes)
        latents = (None, self.latent_dim)
        for layer, shape in ((self.encoder, images), (self.decoder, latents)):
            if not layer.built:
                layer.build(shape)
        features = self.encoder.compute_output_shape(images)
        self.posterior_layer.build(features)
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
    def variance_factor(self):
        """What `calibrate` multiplies learned variances by, 1 before."""
        return float(ops.convert_to_numpy(self._variance_factor))

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
        return self._encode_planes(self._planes(batch))

    def _encode_planes(self, planes):
        features = self.encoder(ops.cast(planes, self.compute_dtype))
        return self.posterior_layer(ops.cast(features, "float32"))

    def _encode_pseudo_images(self, images):
        posterior = self.family.parameters(self._encode_planes(images))
        return posterior["mean"], posterior["log_var"]

    def _planes(self, batch):
        """What the encoder sees: pixels, and side information beside them."""
        seen = seen_pixels(batch)
        image = hide_pixels(batch["image"], seen)
        if self.stretch == "asinh":
            planes = [arcsinh(image / self._noise)]
        else:
            planes = [image / self._scale]
        if "mask" in self.side_inputs:
            planes.append(valid_pixels(image, seen))
        if "error" in self.side_inputs:
            error = hide_pixels(batch["error"], seen, 1.0)
            log_error = ops.log(error / self._noise)
            log_error = ops.clip(log_error, -_LOG_ERROR_LIMIT, _LOG_ERROR_LIMIT)
            planes.append(hide_pixels(log_error, seen))
        planes = ops.concatenate(planes, axis=-1) if planes[1:] else planes[0]
        if self.pose:
            planes = self.to_aligned((planes, batch["pose"][:, :4]))
        if "psf" in self.side_inputs:
            planes = ops.concatenate([planes, self._psf_plane(batch)], axis=-1)
        if "bands" in self.side_inputs:
            present = ops.max(valid_pixels(image, seen), axis=(1, 2), keepdims=True)
            shape = (*planes.shape[1:3], present.shape[-1])
            present = present * ops.ones((1, *shape))
            planes = ops.concatenate([planes, present], axis=-1)
        return planes

    def _psf_plane(self, batch):
        """PSF of each galaxy as an image of peak 1, turned as the galaxy is."""
        psf, (ny, nx, n_bands) = batch["psf"], self.image_shape
        peak = ops.max(psf, axis=(1, 2), keepdims=True)
        psf = fit_canvas(psf / ops.maximum(peak, 1e-10), (ny, nx))
        psf = psf * ops.ones((1, 1, 1, n_bands))
        if not self.pose:
            return psf
        # its middle pixel, in stamps of even size, is beside their middle
        pose = batch["pose"]
        x, y = 0.5 * (nx % 2 - 1), 0.5 * (ny % 2 - 1)
        turn = ops.stack(
            [x + 0.0 * pose[:, 0], y + 0.0 * pose[:, 1], pose[:, 2], pose[:, 3]], axis=1
        )
        return self.to_aligned((psf, turn))

    def _decode_batch(self, z, batch=None, training=False):
        """
        Pixel distribution in units of the image scale.

        As painted, or, if there is a batch, as its galaxies were observed.
        """
        maps = self.decoder(ops.cast(z, self.compute_dtype))
        params = self.likelihood.parameters(maps, self._scale)
        if batch is not None:
            params = self._observe(params, batch)
        if training:
            return params
        variance = self.likelihood.variance(params) * self._variance_factor
        return _with_variance(params, variance)

    def _observe(self, params, batch):
        """Carry what was painted to where it was observed, through the PSF."""
        if not self.pose and not self.psf:
            return params
        mean = params["mean"]
        floor = self.likelihood.floor(self._scale)
        learned = ops.relu(self.likelihood.variance(params) - floor)
        if self.pose:
            pose = batch["pose"][:, :4]
            mean = self.to_observed((mean, pose))
            # a variance must not be negative, as cubic weights may make it
            inside = ops.ones_like(learned[..., :1])
            maps = ops.concatenate([learned, inside], axis=-1)
            maps = self.variance_to_observed((maps, pose))
            learned, inside = maps[..., :-1], maps[..., -1:]
            # nothing is known of what lies beyond the canvas: there is sky
            if batch.get("error") is None:
                sky = ops.square(self._noise / self._scale)
                learned = learned + ops.relu(1.0 - inside) * sky
        if self.psf:
            mean = self.blur((mean, batch["psf"]))
        shape = self.image_shape[:2]
        mean, learned = fit_canvas(mean, shape), fit_canvas(learned, shape)
        return _with_variance({**params, "mean": mean}, learned + floor)

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
            ``elbo``, ``log_like``, ``kl``, ``mse`` and ``measured``, ``(n,)``.
        """
        posterior = self._encode_batch(inputs, training)
        z = mean = posterior["mean"]
        if self.posterior != "delta":
            z = self.sampling((mean, posterior.get("scale_tril", posterior["log_var"])))
        params = self._decode_batch(z, inputs, training)
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
        }

    def _noisier(self, params):
        """Pixel distribution with the noise that training adds at first."""
        extra = ops.square(self._extra_sigma) + 1e-20
        return _with_variance(params, self.likelihood.variance(params) + extra)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
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
        loss = self._beta * kl - ops.sum(weight * y_pred["objective"]) / total
        if training:
            loss = loss + self._penalty_weight * self.prior.penalty(1.0)
        return loss

    # ------------------------------------------------------------------
    # training
    # ------------------------------------------------------------------

    def _training_source(self, inputs):
        source = super()._training_source(inputs)
        return source if self.likelihood.allows_masks else UnmaskedSource(source)

    @contextlib.contextmanager
    def _safe_training(self):
        """Undo what callbacks have changed if training is interrupted."""
        before = self.beta, self.free_bits, self.extra_sigma, self._plain.noisier
        try:
            yield
        except BaseException:
            self.beta, self.free_bits, self.extra_sigma, noisier = before
            if self._plain.noisier != noisier:
                self._plain.noisier, self.train_function = noisier, None
            raise

    def _prepare_training(self, source):
        if self.adapted:
            adapt_networks(self, EvenlySpaced(source, _MAX_GALAXIES))
        super()._prepare_training(source)
        self._penalty_weight.assign(1.0 / max(len(source), 1))
        # training undoes a calibration
        self._variance_factor.assign(1.0)
        self.latent_temperature = None

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
            "psf": self.psf,
            "canvas_shape": list(self.canvas_shape),
            "side_inputs": list(self.side_inputs),
            "beta": self.beta,
            "scale": self.scale.tolist() if self.adapted else None,
            "noise": self.noise.tolist() if self.adapted else None,
            "latent_temperature": self.latent_temperature.tolist(),
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


def _with_variance(params, variance):
    """Change the variance of pixel distributions."""
    return {**params, "variance": variance, "log_var": ops.log(variance)}
