# Licensed under a 3-clause BSD style license - see LICENSE
"""Networks that see and paint galaxies by their principal components."""

import math

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_positive_int
from astrovae.layers.sampling import SeededLayer
from astrovae.ops import arcsinh

__all__ = ["EigenDecoder", "EigenEncoder"]

# coefficients are compressed beyond so many standard deviations
_SOFTENING = 3.0
# of pixels that never vary, in units of the squared image scale
_SMALLEST_VARIANCE = 1e-6
# initial weights that hardly matter
_SMALL = 1e-3
# components are found in a space so much larger, with so many power iterations:
# Halko et al. 2011, SIAM Rev. 53, 217, section 1.6
_OVERSAMPLING, _POWER_ITERATIONS = 16, 3
# share of the images, by weight, below which their pixels are not believed; but so
# many, of any number of images, are
_RARE, _MANY = 0.01, 30
# share of the galaxies whose coefficients are not too far out
_USUAL = 0.9973
# so often missing pixels are replaced by what the components make of them
_FILL_ITERATIONS = 3


def principal_components(images, num_components, valid=None, weights=None, seed=0):
    """
    Find the principal components of images with missing pixels.

    Parameters
    ----------
    images : `~numpy.ndarray`, shape (n, n_pixels)
        Images.
    num_components : int
        How many.
    valid : `~numpy.ndarray`, shape (n, n_pixels), optional
        1 for the pixels that count; the others are filled in by the components.
    weights : `~numpy.ndarray`, shape (n,), optional
        Weight of the squared error of each image.
    seed : int, optional
        Seed of the random projection.

    Returns
    -------
    center : `~numpy.ndarray`, shape (n_pixels,)
        The weighted mean image.
    components : `~numpy.ndarray`, shape (k, n_pixels)
        Orthonormal, the most important first; k is less than ``num_components``
        if there are fewer images or pixels.
    coefficients : `~numpy.ndarray`, shape (n, k)
        Those of the images, missing pixels filled in.
    """
    weights = np.ones(len(images)) if weights is None else np.asarray(weights, float)
    root = np.sqrt(weights / weights.sum())[:, np.newaxis].astype(np.float32)
    seen = np.ones_like(images) if valid is None else valid.astype(np.float32)
    share = root**2 * seen
    # pixels that hardly any image has would show its noise to all others
    weight, rare = share.sum(axis=0), min(_RARE, _MANY / len(images))
    center = (share * images).sum(axis=0) * weight / (weight**2 + rare**2)
    missing = (1.0 - seen) if (seen < 1).any() else None
    filled = images if missing is None else seen * images + missing * center
    for _ in range(1 if missing is None else _FILL_ITERATIONS):
        center = (root**2 * filled).sum(axis=0)
        offset = filled - center
        components = _leading_rows(root * offset, num_components, seed)
        if missing is not None:
            painted = center + (offset @ components.T) @ components
            filled = seen * images + missing * painted
    return center, components, (filled - center) @ components.T


def _spread(deviations, weights):
    """
    Standard deviations, of a few galaxies in a thousand as if they were less far out.

    A component may be that of a single galaxy with broken pixels. By its standard
    deviation, a small part of it would be painted on all others. Features that one
    galaxy in a hundred has are not concerned; nor is any of a few hundred galaxies,
    of which none is rare.
    """
    order = np.argsort(deviations, axis=0)
    weights = np.ones(len(order)) if weights is None else np.asarray(weights, float)
    below = np.cumsum(weights[order], axis=0)
    rank = (below < _USUAL * below[-1]).sum(axis=0)
    far = np.take_along_axis(deviations, order, axis=0)[rank, range(rank.size)]
    squares = np.square(np.minimum(deviations, far))
    return np.sqrt(np.average(squares, axis=0, weights=weights))


def _leading_rows(matrix, rank, seed):
    """Leading right singular vectors, by random projection."""
    rank = min(rank, *matrix.shape)
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    rng = np.random.default_rng(seed)
    basis = matrix.T @ rng.standard_normal((len(matrix), width), dtype=np.float32)
    for _ in range(_POWER_ITERATIONS):
        basis = matrix.T @ (matrix @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    _, _, rows = np.linalg.svd(matrix @ basis, full_matrices=False)
    return (rows[:rank] @ basis.T).astype(np.float32)


class _EigenNetwork(keras.layers.Layer):
    """Hidden layers with residuals between images and components."""

    def __init__(
        self,
        num_components=192,
        hidden_units=(512, 512),
        activation="gelu",
        trainable_basis=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_components = check_positive_int("num_components", num_components)
        self.hidden_units = tuple(
            check_positive_int("hidden_units", units) for units in hidden_units
        )
        self.activation = keras.activations.get(activation)
        self.trainable_basis = bool(trainable_basis)
        self.hidden = [
            keras.layers.Dense(units, activation=activation, dtype=self.dtype_policy)
            for units in self.hidden_units
        ]

    def _build(self, image_shape, input_size):
        """Create constants of the images, and hidden layers."""
        pixels = math.prod(image_shape)
        rank = min(self.num_components, pixels)
        self.center = self._constant("center", (pixels,), "zeros")
        # until `adapt` finds better ones, some orthonormal images
        self.basis = self._constant(
            "basis",
            (pixels, rank),
            keras.initializers.Orthogonal(seed=0),
            trainable=self.trainable_basis,
        )
        self._adapted = self._constant("adapted", (), "zeros")
        self.mean = self._constant("mean", (rank,), "zeros")
        self.spread = self._constant("spread", (rank,), "ones")
        for layer in self.hidden:
            layer.build((None, input_size or rank))
            input_size = layer.units
        return rank

    def _constant(self, name, shape, initializer, trainable=False):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=trainable,
            # sums over thousands of pixels need all their digits
            dtype="float32",
            autocast=False,
        )

    def _features(self, inputs):
        features = ops.cast(inputs, self.compute_dtype)
        for layer in self.hidden:
            before, features = features, layer(features)
            if before.shape[-1] == features.shape[-1]:
                features = features + before
        return features

    def adapt(self, images, valid=None, weights=None, components=None):
        """
        Find the components of training images, and how they scatter.

        Parameters
        ----------
        images : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            Images as the network meets them in training.
        valid : `~numpy.ndarray`, shape (n, ny, nx, n_bands), optional
            1 for the pixels that count. The others must be zero in the images,
            as they are when the network is used.
        weights : `~numpy.ndarray`, shape (n,), optional
            Weight of the squared error of each image, e.g. its inverse
            variance.
        components : tuple, optional
            What this method gave to another network for the same images: it
            saves the search.

        Returns
        -------
        components : tuple of `~numpy.ndarray`
            Mean image, components and coefficients.
        """
        images, present = self._split(np.asarray(images, np.float32))
        pixels, rank = self.basis.shape
        if images.shape[1] != pixels:
            msg = f"expected images of {pixels} values, got {images.shape[1]}."
            raise ValueError(msg)
        if components is None or len(components[1]) != min(rank, len(images)):
            # another network may have fewer of them
            valid = None if valid is None else self._split(np.asarray(valid))[0]
            components = principal_components(images, rank, valid, weights)
        center, rows, _ = components
        coefficients = self._coefficients(images, present, components)
        mean = np.average(coefficients, axis=0, weights=weights)
        spread = _spread(np.abs(coefficients - mean), weights)
        spread = np.where(spread > 0, spread, 1.0)
        # fewer images than components: those that are left paint nothing
        missing = (0, rank - len(rows))
        self.center.assign(center)
        self.basis.assign(np.pad(rows.T, ((0, 0), missing)))
        self.mean.assign(np.pad(mean, missing))
        self.spread.assign(np.pad(spread, missing, constant_values=1.0))
        self._adapted.assign(1.0)
        return components

    def _split(self, images):
        """Pixels, (n, pixels), and which of them belong to bands that are there."""
        return images.reshape(len(images), -1), 1.0

    @property
    def adapted(self):
        """Whether the components are those of some training images."""
        return bool(ops.convert_to_numpy(self._adapted) > 0)

    def get_config(self):
        return {
            **super().get_config(),
            "num_components": self.num_components,
            "hidden_units": list(self.hidden_units),
            "activation": keras.activations.serialize(self.activation),
            "trainable_basis": self.trainable_basis,
        }


@keras.saving.register_keras_serializable("astrovae")
class EigenEncoder(_EigenNetwork, SeededLayer):
    """
    Features of an image from its principal components.

    A galaxy in its aligned frame is told by some two hundred numbers, the
    coefficients of its principal components. Hidden layers with residuals see
    these, each divided by its scatter; and they are features themselves,
    so that what follows contains every linear encoder of the components as a
    special case. Components are found by `adapt`, when a
    `VAE` meets its training images; until then they are random images.

    Parameters
    ----------
    num_components : int, optional
        Number of principal components.
    hidden_units : sequence of int, optional
        Width of each hidden layer. Layers as wide as the one before
        add to it.
    activation : str or callable, optional
        Activation of the hidden layers.
    trainable_basis : bool, optional
        Whether training changes the components.
    dropout : float, optional
        The share of the coefficients that the hidden layers do not see in a
        step of training, another one each time.
    num_indicators : int, optional
        How many of the last channels say which bands a galaxy has at all, as
        ``side_inputs="bands"`` of a `VAE` with so many bands appends them. They
        are numbers beside the coefficients, and where they say that a band is
        missing, the mean image takes its place.
    seed : int, optional
        Seed of the dropout.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, ny, nx, channels)``. Output shape: ``(n, features)``.

    Coefficients ``w`` enter as ``3 arcsinh(w / 3)``, for a few galaxies are far
    out. In mixed precision they are still computed in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import EigenEncoder
    >>> tuple(EigenEncoder(6, (32, 32))(np.zeros((3, 8, 8, 1))).shape)
    (3, 38)
    """

    def __init__(
        self,
        num_components=192,
        hidden_units=(512, 512),
        activation="gelu",
        trainable_basis=False,
        dropout=0.0,
        num_indicators=0,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            num_components,
            hidden_units,
            activation,
            trainable_basis,
            seed=seed,
            **kwargs,
        )
        if not 0 <= dropout < 1:
            msg = f"dropout must be at least 0 and less than 1, got {dropout}."
            raise ValueError(msg)
        self.dropout = float(dropout)
        self.num_indicators = check_positive_int(
            "num_indicators", num_indicators, minimum=0
        )

    def build(self, input_shape):
        *frame, channels = input_shape[1:]
        pixels = channels - self.num_indicators
        if pixels < 1 or (self.num_indicators and pixels % self.num_indicators):
            msg = (
                f"images of {channels} channels have no indicators of "
                f"{self.num_indicators} bands: these, and all before them, are a "
                "channel for each band."
            )
            raise ValueError(msg)
        rank = min(self.num_components, math.prod(frame) * pixels)
        self._build((*frame, pixels), rank + self.num_indicators)

    def _split(self, images):
        number = self.num_indicators
        if not number:
            return super()._split(images)
        pixels = images[..., :-number].reshape(len(images), -1)
        present = np.tile(images[:, 0, 0, -number:], pixels.shape[1] // number)
        return pixels, present

    def _coefficients(self, images, present, components):
        # as `call` meets them: missing pixels are zero
        center, rows, _ = components
        return (present * (images - center)) @ rows.T

    def call(self, inputs, training=False):
        inputs, number = ops.cast(inputs, "float32"), self.num_indicators
        planes = inputs[..., :-number] if number else inputs
        offset = ops.reshape(planes, (-1, self.basis.shape[0])) - self.center
        present = inputs[:, 0, 0, inputs.shape[3] - number :]
        if number:
            repeats = offset.shape[1] // number
            offset = offset * ops.tile(present, (1, repeats))
        whitened = (ops.matmul(offset, self.basis) - self.mean) / self.spread
        # linear for most galaxies; a few are far out, and are seen nearer
        whitened = _SOFTENING * arcsinh(whitened / _SOFTENING)
        whitened = ops.cast(whitened, self.compute_dtype)
        seen = whitened
        if training and self.dropout:
            seen = keras.random.dropout(
                whitened, self.dropout, seed=self.seed_generator
            )
        if number:
            present = ops.cast(present, self.compute_dtype)
            seen = ops.concatenate([seen, present], axis=-1)
        return ops.concatenate([whitened, self._features(seen)], axis=-1)

    def compute_output_shape(self, input_shape):
        *frame, channels = input_shape[1:]
        pixels = math.prod(frame) * (channels - self.num_indicators)
        rank = min(self.num_components, pixels)
        units = (self.hidden_units or (rank + self.num_indicators,))[-1]
        return (input_shape[0], rank + units)

    def get_config(self):
        config = super().get_config()
        config |= {"dropout": self.dropout, "num_indicators": self.num_indicators}
        return config


@keras.saving.register_keras_serializable("astrovae")
class EigenDecoder(_EigenNetwork):
    """
    Maps of an image as sums of principal components.

    The mirror of `EigenEncoder`: hidden layers with residuals, and a linear
    map beside them, give the coefficients of the principal components, which
    paint the mean. In a `VAE` with ``psf=True`` these are components of galaxies
    before their PSFs. Maps of the variance are sums of a few images that training
    finds.

    Parameters
    ----------
    target_shape : tuple of int
        The shape of the maps, ``(ny, nx, channels)``. With variance maps, the
        first half of the channels are means.
    num_components : int, optional
        Number of principal components.
    variance_rank : int, optional
        Number of images that make up the variance maps. 0 is for decoders
        without such maps.
    hidden_units : sequence of int, optional
        Width of each hidden layer. Layers as wide as the one before
        add to it.
    activation : str or callable, optional
        Activation of the hidden layers.
    trainable_basis : bool, optional
        Whether training changes the components.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n, *target_shape)``.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import EigenDecoder
    >>> tuple(EigenDecoder((8, 8, 2), 6, 4, (32, 32))(np.zeros((3, 5))).shape)
    (3, 8, 8, 2)
    """

    def __init__(
        self,
        target_shape,
        num_components=192,
        variance_rank=24,
        hidden_units=(512, 512),
        activation="gelu",
        trainable_basis=False,
        **kwargs,
    ):
        super().__init__(
            num_components, hidden_units, activation, trainable_basis, **kwargs
        )
        self.target_shape = tuple(target_shape)
        self.variance_rank = check_positive_int(
            "variance_rank", variance_rank, minimum=0
        )
        ny, nx, channels = self.target_shape
        if self.variance_rank and channels % 2:
            msg = f"variance maps need an even number of channels, got {channels}."
            raise ValueError(msg)
        self.image_shape = (ny, nx, channels // 2 if self.variance_rank else channels)
        rank = min(self.num_components, math.prod(self.image_shape))
        # training begins near the principal components themselves
        self.coefficients = keras.layers.Dense(
            rank,
            kernel_initializer=keras.initializers.RandomNormal(stddev=_SMALL, seed=1),
            dtype=self.dtype_policy,
        )
        self.linear = keras.layers.Dense(
            rank,
            use_bias=False,
            kernel_initializer="identity",
            dtype=self.dtype_policy,
        )
        if self.variance_rank:
            self.levels = keras.layers.Dense(
                self.variance_rank, dtype=self.dtype_policy
            )
            self.variance = keras.layers.Dense(
                math.prod(self.image_shape), dtype=self.dtype_policy
            )

    def _coefficients(self, images, present, components):
        return components[2]

    def adapt(self, images, valid=None, weights=None, components=None, latents=None):
        """
        Find the components of training images, and how they scatter.

        Parameters
        ----------
        images : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            Images as they are to be painted.
        valid : `~numpy.ndarray`, shape (n, ny, nx, n_bands), optional
            1 for the pixels that count. The others must be zero in the images.
        weights : `~numpy.ndarray`, shape (n,), optional
            Weight of the squared error of each image, e.g. its inverse
            variance.
        components : tuple, optional
            What this method gave to another network for the same images: it
            saves the search.
        latents : `~numpy.ndarray`, shape (n, latent_dim), optional
            Those of the images when training begins, from which coefficients
            then follow by least squares. By default they are the leading
            coefficients themselves.

        Returns
        -------
        components : tuple of `~numpy.ndarray`
            Mean image, components and coefficients.
        """
        components = super().adapt(images, valid, weights, components)
        center, rows, coefficients = components
        if latents is None:
            leading = self.linear.kernel.shape[0]
            painted = center + coefficients[:, :leading] @ rows[:leading]
        else:
            painted = center + self._begin_at(latents, coefficients, weights) @ rows
        if self.variance_rank:
            self._adapt_variance(images, valid, weights, painted)
        return components

    def _begin_at(self, latents, coefficients, weights):
        """Let the linear map give coefficients for latents, and give these."""
        rank = coefficients.shape[1]
        mean, spread = (
            ops.convert_to_numpy(part)[:rank] for part in (self.mean, self.spread)
        )
        whitened = (coefficients - mean) / spread
        # a few galaxies are far out
        whitened = _SOFTENING * np.arcsinh(whitened / _SOFTENING)
        root = 1.0 if weights is None else np.sqrt(weights)[:, np.newaxis]
        kernel = np.linalg.lstsq(root * latents, root * whitened)[0]
        missing = self.linear.kernel.shape[1] - rank
        self.linear.kernel.assign(np.pad(kernel, ((0, 0), (0, missing))))
        return mean + spread * (latents @ kernel)

    def _adapt_variance(self, images, valid, weights, painted):
        """Begin with the mean squared error of what is painted at first, by pixel."""
        squares = np.square(np.reshape(images, painted.shape) - painted)
        weight = np.ones(len(squares)) if weights is None else np.asarray(weights)
        weight = (weight / weight.mean())[:, np.newaxis]
        if valid is not None:
            weight = weight * np.reshape(valid, painted.shape)
        total = np.maximum((weight * np.ones_like(squares)).sum(axis=0), 1.0)
        variance = (weight * squares).sum(axis=0) / total
        self.variance.bias.assign(_softplus_inverse(variance))

    def build(self, input_shape):
        latent_dim = input_shape[-1]
        self._build(self.image_shape, latent_dim)
        size = self.hidden_units[-1] if self.hidden_units else latent_dim
        self.coefficients.build((None, size))
        self.linear.build((None, latent_dim))
        if self.variance_rank:
            self.levels.build((None, size))
            self.variance.build((None, self.variance_rank))

    def call(self, inputs):
        features = self._features(inputs)
        whitened = self.coefficients(features) + self.linear(inputs)
        whitened = ops.cast(whitened, "float32") * self.spread + self.mean
        mean = self.center + ops.matmul(whitened, ops.transpose(self.basis))
        mean = ops.reshape(mean, (-1, *self.image_shape))
        if not self.variance_rank:
            return mean
        variance = ops.cast(self.variance(self.levels(features)), "float32")
        variance = ops.reshape(variance, (-1, *self.image_shape))
        return ops.concatenate([mean, variance], axis=-1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.target_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "target_shape": list(self.target_shape),
            "variance_rank": self.variance_rank,
        }


def _softplus_inverse(values):
    """Where softplus has positive values."""
    values = np.maximum(values, _SMALLEST_VARIANCE)
    return values + np.log(-np.expm1(-values))
