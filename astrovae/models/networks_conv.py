# Licensed under a 3-clause BSD style license - see LICENSE
"""Convolutional encoder and decoder networks."""

import math

import keras
from keras import ops

from astrovae._validation import check_positive_int

__all__ = [
    "AstroVaDErDecoder",
    "AstroVaDErEncoder",
    "ConvDecoder",
    "ConvEncoder",
]

# A residual branch starts this much weaker than what it is added to, so that
# deep networks train without normalisation (compare Zhang et al. 2019, ICLR).
_BRANCH_SCALE = 0.1

# AstroVaDEr: filters and kernel sizes of its three stages, and its slope
_STAGES = ((64, 3), (64, 5), (16, 5))
_SLOPE = 0.1


def _shrink(size, factor):
    """Size of a map of which every ``factor`` pixels became one."""
    return tuple(-(-pixels // factor) for pixels in size)


def _pad(x, factor):
    """Frame a map with zeros until its sides are multiples of ``factor``."""
    extra = [-pixels % factor for pixels in x.shape[1:3]]
    if not any(extra):
        return x
    return ops.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in extra), (0, 0)])


def _crop(x, size):
    """Undo the frame of `_pad`."""
    y, x_start = ((have - want) // 2 for have, want in zip(x.shape[1:3], size))
    return x[:, y : y + size[0], x_start : x_start + size[1]]


class _Nearest(keras.initializers.Initializer):
    """
    Start the filters of all pixels of a block equal.

    Sub-pixel upsampling then begins as nearest-neighbour upsampling and has
    no checkerboard to unlearn (Aitken et al. 2017, arXiv:1707.02937).
    """

    def __init__(self, num_pixels):
        self.num_pixels = num_pixels

    def __call__(self, shape, dtype=None):
        one = (*shape[:-1], shape[-1] // self.num_pixels)
        kernel = keras.initializers.GlorotUniform()(one, dtype=dtype)
        return ops.tile(kernel, [1] * (len(shape) - 1) + [self.num_pixels])


class _ResidualBlock(keras.layers.Layer):
    """``x + pointwise(activation(convolution(x)))``, of one width."""

    def __init__(self, filters, activation, **kwargs):
        super().__init__(**kwargs)
        self.convolution = keras.layers.Conv2D(
            filters, 3, padding="same", activation=activation, dtype=self.dtype_policy
        )
        self.pointwise = keras.layers.Dense(
            filters,
            kernel_initializer=keras.initializers.VarianceScaling(_BRANCH_SCALE),
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.pointwise.build(input_shape)

    def call(self, inputs):
        return inputs + self.pointwise(self.convolution(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape


class _ConvNetwork(keras.layers.Layer):
    """Arguments and blocks that both residual networks share."""

    def __init__(
        self,
        filters=(32, 64, 128),
        num_blocks=1,
        patch_size=4,
        activation="gelu",
        linear_skip=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = tuple(check_positive_int("filters", n) for n in filters)
        if not self.filters:
            msg = "filters must name the width of at least one stage, got none."
            raise ValueError(msg)
        self.num_blocks = check_positive_int("num_blocks", num_blocks, minimum=0)
        self.patch_size = check_positive_int("patch_size", patch_size)
        self.activation = keras.activations.get(activation)
        self.linear_skip = bool(linear_skip)
        # one flat list: Keras does not save the weights of nested ones
        self.blocks = [
            _ResidualBlock(width, self.activation, dtype=self.dtype_policy)
            for width in self.filters
            for _ in range(self.num_blocks)
        ]

    def _sizes(self, size):
        """Size of the maps of every stage, from fine to coarse."""
        sizes = [_shrink(size, self.patch_size)]
        for _ in self.filters[1:]:
            sizes.append(_shrink(sizes[-1], 2))
        return sizes

    def _stage(self, stage):
        """Blocks of one stage."""
        return self.blocks[stage * self.num_blocks : (stage + 1) * self.num_blocks]

    def _build_stages(self):
        for stage, width in enumerate(self.filters):
            for block in self._stage(stage):
                block.build((None, None, None, width))

    def _run_stage(self, stage, x):
        for block in self._stage(stage):
            x = block(x)
        return x

    def get_config(self):
        return {
            **super().get_config(),
            "filters": list(self.filters),
            "num_blocks": self.num_blocks,
            "patch_size": self.patch_size,
            "activation": keras.activations.serialize(self.activation),
            "linear_skip": self.linear_skip,
        }


@keras.saving.register_keras_serializable("astrovae")
class ConvEncoder(_ConvNetwork):
    """
    Features of an image by residual convolutions: for 32 to 256 pixels.

    The image is cut into small square patches, each of which becomes one
    pixel of the first stage; every later stage has half the resolution of
    the one before. Nearly all the work is done on small maps, which makes the
    network cheap; there is no normalisation, so no galaxy depends on others
    of its batch.

    Parameters
    ----------
    filters : sequence of int, optional
        Number of channels of each stage, from fine to coarse.
    num_blocks : int, optional
        Residual blocks per stage.
    patch_size : int, optional
        Side of the patches, in pixels. Use 2 for images below 64 pixels.
    activation : str or callable, optional
        Activation within the blocks.
    linear_skip : bool, optional
        Append the pixels themselves to the features, so that what follows
        contains every linear encoder (principal components among them) as a
        special case.
    **kwargs
        Arguments of `keras.layers.Layer`.

    See Also
    --------
    ConvDecoder : The mirror of this network.

    Notes
    -----
    Input shape: ``(n, ny, nx, channels)``, of any size: where a side is no
    multiple, it is framed with zeros. Output shape: ``(n, features)``.

    References
    ----------
    He et al. 2016, CVPR (arXiv:1512.03385); patches as in Dosovitskiy et al.
    2021, ICLR (arXiv:2010.11929).

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import ConvEncoder
    >>> ConvEncoder((4, 8))(np.zeros((3, 37, 32, 2))).shape == (3, 5 * 4 * 8)
    True
    """

    def __init__(
        self,
        filters=(32, 64, 128),
        num_blocks=1,
        patch_size=4,
        activation="gelu",
        linear_skip=False,
        **kwargs,
    ):
        super().__init__(
            filters, num_blocks, patch_size, activation, linear_skip, **kwargs
        )
        self.embeddings = [
            keras.layers.Dense(width, dtype=self.dtype_policy) for width in self.filters
        ]

    def build(self, input_shape):
        channels, factor = input_shape[-1], self.patch_size
        for embedding in self.embeddings:
            embedding.build((None, None, None, channels * factor**2))
            channels, factor = embedding.units, 2
        self._build_stages()

    def call(self, inputs):
        x, factor = inputs, self.patch_size
        for stage, embedding in enumerate(self.embeddings):
            x = embedding(ops.nn.space_to_depth(_pad(x, factor), factor))
            x, factor = self._run_stage(stage, x), 2
        features = ops.reshape(x, (-1, math.prod(x.shape[1:])))
        if self.linear_skip:
            pixels = ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))
            features = ops.concatenate([features, pixels], axis=-1)
        return features

    def compute_output_shape(self, input_shape):
        ny, nx = self._sizes(input_shape[1:3])[-1]
        units = ny * nx * self.filters[-1]
        return (input_shape[0], units + self.linear_skip * math.prod(input_shape[1:]))


@keras.saving.register_keras_serializable("astrovae")
class ConvDecoder(_ConvNetwork):
    """
    Maps of an image from latents by residual convolutions.

    The mirror of `ConvEncoder`: it starts on the coarsest map and doubles
    the resolution by sub-pixel convolutions, which begin as
    nearest-neighbour upsampling and so leave no checkerboard.

    Parameters
    ----------
    target_shape : tuple of int
        The shape of the maps, ``(ny, nx, channels)``, of any size.
    filters : sequence of int, optional
        Number of channels of each stage, from fine to coarse.
    num_blocks : int, optional
        Residual blocks per stage.
    patch_size : int, optional
        Side of the patches, in pixels. Use 2 for images below 64 pixels.
    activation : str or callable, optional
        Activation within the blocks.
    linear_skip : bool, optional
        Add a linear map of the latents, so that the network contains every
        linear decoder as a special case.
    output_activation : str or callable, optional
        Activation of the maps, for instance "softplus" where nothing is
        negative. Leave it out if the maps include learned variances.
    **kwargs
        Arguments of `keras.layers.Layer`.

    See Also
    --------
    ConvEncoder : The mirror of this network.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n, *target_shape)``.

    References
    ----------
    Shi et al. 2016, CVPR (arXiv:1609.05158); Aitken et al. 2017
    (arXiv:1707.02937).

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import ConvDecoder
    >>> ConvDecoder((37, 32, 2), (4, 8))(np.zeros((3, 6))).shape == (3, 37, 32, 2)
    True
    """

    def __init__(
        self,
        target_shape,
        filters=(32, 64, 128),
        num_blocks=1,
        patch_size=4,
        activation="gelu",
        linear_skip=False,
        output_activation=None,
        **kwargs,
    ):
        super().__init__(
            filters, num_blocks, patch_size, activation, linear_skip, **kwargs
        )
        self.target_shape = tuple(target_shape)
        self.output_activation = keras.activations.get(output_activation)
        policy = self.dtype_policy
        ny, nx = self._sizes(self.target_shape[:2])[-1]
        self.project = keras.layers.Dense(
            ny * nx * self.filters[-1], activation=self.activation, dtype=policy
        )
        self.upsamplings = [
            keras.layers.Dense(4 * width, kernel_initializer=_Nearest(4), dtype=policy)
            for width in self.filters[:-1]
        ]
        num_pixels = self.patch_size**2
        self.output_layer = keras.layers.Conv2D(
            num_pixels * self.target_shape[2],
            3,
            padding="same",
            kernel_initializer=_Nearest(num_pixels),
            dtype=policy,
        )
        if self.linear_skip:
            self.linear = keras.layers.Dense(
                math.prod(self.target_shape), use_bias=False, dtype=policy
            )

    def build(self, input_shape):
        self.project.build(input_shape)
        self._build_stages()
        for layer, width in zip(self.upsamplings, self.filters[1:]):
            layer.build((None, None, None, width))
        self.output_layer.build((None, None, None, self.filters[0]))
        if self.linear_skip:
            self.linear.build(input_shape)

    def call(self, inputs):
        sizes = self._sizes(self.target_shape[:2])
        x = ops.reshape(self.project(inputs), (-1, *sizes[-1], self.filters[-1]))
        for stage in reversed(range(len(self.filters))):
            x = self._run_stage(stage, x)
            if stage:
                x = ops.nn.depth_to_space(self.upsamplings[stage - 1](x), 2)
                x = _crop(x, sizes[stage - 1])
        x = self.output_layer(self.activation(x))
        x = _crop(ops.nn.depth_to_space(x, self.patch_size), self.target_shape)
        if self.linear_skip:
            x = x + ops.reshape(self.linear(inputs), (-1, *self.target_shape))
        return self.output_activation(x)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.target_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "target_shape": list(self.target_shape),
            "output_activation": keras.activations.serialize(self.output_activation),
        }


def _double(x):
    """
    Double the resolution as the bilinear resizing of TensorFlow 1 did.

    Its grids share their first pixel, not their centre: every second pixel
    is copied, those between are means, and the last one is repeated.
    """
    for axis in (1, 2):
        shape = list(x.shape)
        last = ops.take(x, [shape[axis] - 1], axis=axis)
        rest = ops.split(x, [1], axis=axis)[1]
        middle = 0.5 * (x + ops.concatenate([rest, last], axis=axis))
        shape[0], shape[axis] = -1, 2 * shape[axis]
        x = ops.reshape(ops.stack([x, middle], axis=axis + 1), shape)
    return x


def _convolution(name, filters, size, policy):
    return keras.layers.Conv2D(filters, size, padding="same", name=name, dtype=policy)


@keras.saving.register_keras_serializable("astrovae")
class AstroVaDErEncoder(keras.layers.Layer):
    """
    The encoder of AstroVaDEr, for 128 pixels.

    Six convolutions and three poolings: 64, 64, pool, 64, 64, pool, 16, 16,
    pool; kernels of 3 pixels in the first pair, 5 in the others. Use
    `ConvEncoder` instead where the published weights are not needed: it is
    many times cheaper.

    Parameters
    ----------
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, ny, nx, channels)``. Output shape: ``(n, features)``,
    4,096 for images of 128 pixels. The layers are called ``Conv1`` to
    ``Conv6``, as in the published file. The weight decay of the published
    training is left to the optimizer.

    References
    ----------
    Spindler, Geach & Smith 2021, MNRAS 502, 985 (arXiv:2009.08470), and the
    code at github.com/AshleySpindler/AstroVaDEr-Public.

    Examples
    --------
    >>> from astrovae.models import AstroVaDErEncoder
    >>> AstroVaDErEncoder().compute_output_shape((None, 128, 128, 1))
    (None, 4096)
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        pairs = [stage for stage in _STAGES for _ in range(2)]
        self.convolutions = [
            _convolution(f"Conv{i}", filters, size, self.dtype_policy)
            for i, (filters, size) in enumerate(pairs, 1)
        ]

    def build(self, input_shape):
        channels = input_shape[-1]
        for layer in self.convolutions:
            layer.build((None, None, None, channels))
            channels = layer.filters

    def call(self, inputs):
        x = inputs
        for i, layer in enumerate(self.convolutions):
            x = ops.leaky_relu(layer(x), negative_slope=_SLOPE)
            if i % 2:
                x = ops.max_pool(x, 2, 2, padding="same", data_format="channels_last")
        return ops.reshape(x, (-1, math.prod(x.shape[1:])))

    def compute_output_shape(self, input_shape):
        ny, nx = _shrink(input_shape[1:3], 8)
        return (input_shape[0], ny * nx * _STAGES[-1][0])


@keras.saving.register_keras_serializable("astrovae")
class AstroVaDErDecoder(keras.layers.Layer):
    """
    The decoder of AstroVaDEr, for 128 pixels.

    A dense layer gives 16 maps of an eighth of the resolution; then 16, 16,
    up, 64, 64, up, 64, 64, up with kernels of 5 pixels, and an output of 3.

    Parameters
    ----------
    target_shape : tuple of int
        The shape of the maps, ``(ny, nx, channels)``.
    output_activation : str or callable, optional
        Activation of the maps: "relu" as published, since images were scaled
        from 0 to 1. It cannot hold for a map of learned variances.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: ``(n, latent_dim)``. Output shape: ``(n, *target_shape)``.
    The layers are called ``FC3``, ``Conv7`` to ``Conv12`` and ``Output``, as in
    the published file. Upsampling is the bilinear one of TensorFlow 1, in
    which the network was trained: grids share their corner, not their
    centre.

    References
    ----------
    As for `AstroVaDErEncoder`.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import AstroVaDErDecoder
    >>> decoder = AstroVaDErDecoder((16, 16, 1))
    >>> decoder(np.zeros((3, 20))).shape == (3, 16, 16, 1)
    True
    """

    def __init__(self, target_shape, output_activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.target_shape = tuple(target_shape)
        self.output_activation = keras.activations.get(output_activation)
        policy = self.dtype_policy
        ny, nx = _shrink(self.target_shape[:2], 8)
        widths = [filters for filters, _ in reversed(_STAGES) for _ in range(2)]
        self.project = keras.layers.Dense(ny * nx * widths[0], name="FC3", dtype=policy)
        self.convolutions = [
            _convolution(f"Conv{i}", filters, 5, policy)
            for i, filters in enumerate(widths, 7)
        ]
        self.output_layer = _convolution("Output", self.target_shape[2], 3, policy)

    def build(self, input_shape):
        self.project.build(input_shape)
        channels = _STAGES[-1][0]
        for layer in (*self.convolutions, self.output_layer):
            layer.build((None, None, None, channels))
            channels = layer.filters

    def call(self, inputs):
        size = _shrink(self.target_shape[:2], 8)
        x = ops.leaky_relu(self.project(inputs), negative_slope=_SLOPE)
        x = ops.reshape(x, (-1, *size, _STAGES[-1][0]))
        for i, layer in enumerate(self.convolutions):
            x = ops.leaky_relu(layer(x), negative_slope=_SLOPE)
            if i % 2:
                x = _double(x)
        x = self.output_activation(self.output_layer(x))
        return _crop(x, self.target_shape)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.target_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "target_shape": list(self.target_shape),
            "output_activation": keras.activations.serialize(self.output_activation),
        }
