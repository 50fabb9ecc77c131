"""Tests of encoder and decoder networks."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, signal
from scipy.stats.mstats import winsorize
from sklearn.decomposition import PCA

from astrovae.datasets import make_galaxies
from astrovae.images import CutoutStack
from astrovae.models import (
    VAE,
    AstroVaDErDecoder,
    AstroVaDErEncoder,
    ConvDecoder,
    ConvEncoder,
    DenseDecoder,
    DenseEncoder,
    EigenDecoder,
    EigenEncoder,
    GaussianLikelihood,
    _adapt,
)
from astrovae.models._observation import with_variance
from astrovae.models.networks_eigen import principal_components
from checks import LayerCase, check_layer

SMALL = {"filters": (4, 6), "patch_size": 2, "linear_skip": True}
NETWORK_CASES = {
    DenseEncoder: LayerCase(
        lambda **kwargs: DenseEncoder((7,), "tanh", linear_skip=True, **kwargs),
        ((5, 6, 2),),
    ),
    DenseDecoder: LayerCase(
        lambda **kwargs: DenseDecoder((5, 6, 2), (7,), "tanh", **kwargs), ((3,),)
    ),
    ConvEncoder: LayerCase(
        lambda **kwargs: ConvEncoder(num_blocks=2, **SMALL, **kwargs), ((9, 10, 2),)
    ),
    ConvDecoder: LayerCase(
        lambda **kwargs: ConvDecoder(
            (9, 10, 2), output_activation="softplus", **SMALL, **kwargs
        ),
        ((3,),),
    ),
    EigenEncoder: LayerCase(
        lambda **kwargs: EigenEncoder(6, (7, 7), "tanh", **kwargs), ((5, 6, 2),)
    ),
    EigenDecoder: LayerCase(
        lambda **kwargs: EigenDecoder(
            (5, 6, 2), 6, 4, (7, 7), trainable_basis=True, **kwargs
        ),
        ((3,),),
    ),
    AstroVaDErEncoder: LayerCase(AstroVaDErEncoder, ((8, 9, 2),)),
    AstroVaDErDecoder: LayerCase(
        lambda **kwargs: AstroVaDErDecoder((8, 9, 2), "softplus", **kwargs), ((3,),)
    ),
}


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("cls", NETWORK_CASES)
def test_layers(cls, tmp_path):
    """Every network passes what is common to layers."""
    check_layer(NETWORK_CASES[cls], tmp_path)


def test_linear_skip_contains_linear_models(rng):
    """The last units of the encoder are the pixels; of the decoder, latents."""
    x = rng.normal(size=(3, 4, 5, 2)).astype("float32")
    features = numpy(DenseEncoder((7,), linear_skip=True)(x))
    assert features.shape == (3, 7 + 40)
    assert_allclose(features[:, 7:], x.reshape(3, -1))
    decoder = DenseDecoder((4, 5, 2), (7,), linear_skip=True)
    decoder.build((None, 3))
    kernel = rng.normal(size=(10, 40)).astype("float32")
    kernel[:7] = 0
    decoder.output_layer.set_weights([kernel, np.zeros(40)])
    z = rng.normal(size=(6, 3)).astype("float32")
    images = numpy(decoder(z)).reshape(6, -1)
    assert_allclose(images, z @ kernel[7:], rtol=1e-4, atol=1e-5)


def test_convolutional_skip_contains_linear_models(rng):
    """As for the dense networks: pixels are features, latents paint pixels."""
    x = rng.normal(size=(3, 9, 10, 2)).astype("float32")
    assert_allclose(numpy(ConvEncoder(**SMALL)(x))[:, -180:], x.reshape(3, -1))
    decoder = ConvDecoder((9, 10, 2), **SMALL)
    decoder.build((None, 3))
    decoder.output_layer.kernel.assign(np.zeros(decoder.output_layer.kernel.shape))
    z = rng.normal(size=(6, 3)).astype("float32")
    images = numpy(decoder(z)).reshape(6, -1)
    assert_allclose(images, z @ numpy(decoder.linear.kernel), rtol=1e-4, atol=1e-5)


def test_regier_network_has_the_published_size():
    """4761-128-128-16 and 8-128-128-9522, as in the paper."""
    encoder, decoder = DenseEncoder(), DenseDecoder((69, 69, 2))
    encoder.build((None, 69, 69, 1))
    decoder.build((None, 8))
    sizes = [w.shape for w in encoder.weights + decoder.weights if len(w.shape) == 2]
    assert sizes == [(4761, 128), (128, 128), (8, 128), (128, 128), (128, 9522)]


@pytest.mark.parametrize(
    "shape", [(32, 32, 1), (37, 45, 3), (7, 1, 1), (69, 69, 2), (256, 256, 5)]
)
def test_any_size(shape, rng):
    """Odd and oblong images, of any number of bands, with declared shapes."""
    encoder, decoder = ConvEncoder((4, 6, 8)), ConvDecoder(shape, (4, 6, 8))
    x = rng.normal(size=(2, *shape)).astype("float32")
    features = encoder(x)
    assert features.shape == encoder.compute_output_shape(x.shape)
    z = rng.normal(size=(2, 3)).astype("float32")
    assert decoder(z).shape == decoder.compute_output_shape((2, 3)) == (2, *shape)


def test_frame_is_symmetric():
    """A galaxy in the middle of an odd image stays in the middle."""
    x = np.zeros((1, 7, 9, 1), "float32")
    x[0, 3, 4] = 1
    encoder = ConvEncoder((1,), num_blocks=0, patch_size=3)
    encoder.build(x.shape)
    encoder.embeddings[0].kernel.assign(np.ones((9, 1)))
    found = numpy(encoder(x)).reshape(3, 3)
    assert_allclose(found, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_no_checkerboard():
    """What is flat on the coarse map begins flat on the fine one."""
    decoder = ConvDecoder((128, 128, 1), (6, 8, 10), patch_size=2)
    decoder.build((None, 2))
    width = decoder.filters[-1]
    decoder.project.set_weights([np.zeros((2, 256 * width)), np.ones(256 * width)])
    (image,) = numpy(decoder(np.zeros((1, 2))))[..., 0][:, 40:-40, 40:-40]
    assert np.ptp(image) < 1e-5 * np.abs(image).max()


def test_astrovader_is_the_published_network():
    """The shapes of the kernels, and their order, in the published file."""
    encoder, decoder = AstroVaDErEncoder(), AstroVaDErDecoder((128, 128, 1))
    encoder.build((None, 128, 128, 1))
    decoder.build((None, 20))
    layers = [
        *encoder.convolutions,
        decoder.project,
        *decoder.convolutions,
        decoder.output_layer,
    ]
    assert {layer.name: tuple(layer.kernel.shape) for layer in layers} == {
        "Conv1": (3, 3, 1, 64),
        "Conv2": (3, 3, 64, 64),
        "Conv3": (5, 5, 64, 64),
        "Conv4": (5, 5, 64, 64),
        "Conv5": (5, 5, 64, 16),
        "Conv6": (5, 5, 16, 16),
        "FC3": (20, 4096),
        "Conv7": (5, 5, 16, 16),
        "Conv8": (5, 5, 16, 16),
        "Conv9": (5, 5, 16, 64),
        "Conv10": (5, 5, 64, 64),
        "Conv11": (5, 5, 64, 64),
        "Conv12": (5, 5, 64, 64),
        "Output": (3, 3, 64, 1),
    }


def convolve(x, layer):
    """Convolution of one image as SciPy does it, with zeros outside."""
    kernel, bias = (numpy(weight).astype(float) for weight in layer.weights)
    planes = [
        sum(
            signal.correlate2d(x[..., i], kernel[..., i, j], mode="same")
            for i in range(x.shape[-1])
        )
        for j in range(kernel.shape[-1])
    ]
    return np.stack(planes, axis=-1) + bias


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def randomize(layers, rng):
    """Biases, too, that are not zero."""
    for layer in layers:
        layer.bias.assign(0.1 * rng.normal(size=layer.bias.shape))


def test_astrovader_equals_numpy(rng):
    """Encoder and decoder, written out with SciPy."""
    encoder, decoder = AstroVaDErEncoder(), AstroVaDErDecoder((16, 24, 1))
    encoder.build((None, 16, 24, 1))
    decoder.build((None, 4))
    randomize(encoder.convolutions + decoder.convolutions, rng)
    image, z = rng.normal(size=(16, 24, 1)), rng.normal(size=4)

    x = image
    for i, layer in enumerate(encoder.convolutions):
        x = leaky(convolve(x, layer))
        if i % 2:
            ny, nx, channels = x.shape
            x = x.reshape(ny // 2, 2, nx // 2, 2, channels).max(axis=(1, 3))
    found = numpy(encoder(image[None].astype("float32")))[0]
    assert_allclose(found, x.ravel(), rtol=1e-4, atol=1e-5)

    kernel, bias = (numpy(weight).astype(float) for weight in decoder.project.weights)
    x = leaky(z @ kernel + bias).reshape(2, 3, 16)
    for i, layer in enumerate(decoder.convolutions):
        x = leaky(convolve(x, layer))
        if i % 2:
            ny, nx, channels = x.shape
            # pixel (0, 0) stays where it is; beyond the last pixel, it is repeated
            y_old, x_old, c = np.mgrid[: 2 * ny, : 2 * nx, :channels] / np.array(
                [2, 2, 1]
            ).reshape(3, 1, 1, 1)
            x = ndimage.map_coordinates(x, [y_old, x_old, c], order=1, mode="nearest")
    x = np.maximum(convolve(x, decoder.output_layer), 0)
    found = numpy(decoder(z[None].astype("float32")))[0]
    assert_allclose(found, x, rtol=1e-4, atol=1e-5)
    assert (found > 0).any()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_convolutional_vae_trains(policy, stack):
    """The loss falls, also in mixed precision, on two bands with masks."""
    shape = stack.image_shape
    vae = VAE(
        shape,
        latent_dim=2,
        encoder=ConvEncoder((8, 12), dtype=policy),
        decoder=ConvDecoder((*shape[:2], 4), (8, 12), dtype=policy),
        dtype=policy,
        seed=1,
    )
    vae.compile(keras.optimizers.Adam(1e-2))
    history = vae.fit(stack, batch_size=20, epochs=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    assert vae.encode(stack)[0].dtype == np.float32


def low_rank(rng, n=60, shape=(6, 7, 2), rank=3):
    """Images that are sums of a few, of falling importance, around a mean."""
    pixels = int(np.prod(shape))
    rows = np.linalg.qr(rng.normal(size=(pixels, rank)))[0].T
    scores = rng.normal(size=(n, rank)) * 2.0 ** -np.arange(rank)
    mean = rng.normal(size=pixels)
    return (mean + scores @ rows).reshape(n, *shape).astype("float32")


def test_components_are_those_of_scikit_learn(rng):
    """Leading components, and the scatter along them, weighted or not."""
    images = rng.normal(size=(50, 6, 7, 1)) * np.linspace(1, 4, 42).reshape(6, 7, 1)
    flat = images.reshape(50, -1)
    encoder = EigenEncoder(5)
    encoder.build((None, 6, 7, 1))
    encoder.adapt(images)
    pca = PCA(5).fit(flat)
    basis = numpy(encoder.basis)
    signs = np.sign((basis.T * pca.components_).sum(axis=1))
    assert_allclose(signs[:, None] * basis.T, pca.components_, atol=2e-3)
    assert_allclose(numpy(encoder.spread), spread_of(pca, flat), rtol=1e-3)
    # a galaxy of weight two is two galaxies
    weights = rng.integers(1, 4, 50)
    encoder.adapt(images, weights=weights)
    many = np.repeat(flat, weights, axis=0)
    pca.fit(many)
    found = np.abs((numpy(encoder.basis).T * pca.components_).sum(axis=1))
    assert_allclose(found, 1, atol=1e-3)
    assert_allclose(numpy(encoder.spread), spread_of(pca, many), rtol=1e-2)


def spread_of(pca, images):
    """The scatter of scores, as of the usual ones for those of a few in a thousand."""
    scores = np.abs(pca.transform(images))
    return np.sqrt((winsorize(scores, (0, 0.0027), axis=0).data ** 2).mean(axis=0))


@pytest.mark.parametrize("n", [30, 4000])
def test_spread_is_the_standard_deviation(rng, n):
    """Of coefficients of any distribution, but of single galaxies far out."""
    classes = rng.choice([-1.0, 1.0], n) + 0.02 * rng.normal(size=n)
    scores = [classes, 0.3 * rng.uniform(-1, 1, n), 0.05 * rng.normal(size=n)]
    rows = np.linalg.qr(rng.normal(size=(84, 3)))[0].T
    images = (np.transpose(scores) @ rows).reshape(n, 6, 7, 2)
    decoder = EigenDecoder((6, 7, 2), 4, 0)
    decoder.build((None, 3))
    decoder.adapt(images)
    values = PCA(3).fit(images.reshape(n, -1)).singular_values_
    assert_allclose(numpy(decoder.spread)[:3], values / np.sqrt(n), rtol=0.01)


def test_spread_without_broken_pixels(rng):
    """A component of one galaxy has none that others could follow."""
    images = low_rank(rng, n=4000)
    decoder = EigenDecoder((6, 7, 2), 4, 0)
    decoder.build((None, 3))
    # broken pixels of one galaxy, a hundred times as bright as the others
    images[7, 0, :3] += 100.0
    decoder.adapt(images)
    broken = np.square(numpy(decoder.basis).reshape(6, 7, 2, 4)[0, :3]).sum(axis=(0, 1))
    assert broken.max() > 0.9
    assert numpy(decoder.spread)[broken.argmax()] < 0.6
    # what one galaxy in a hundred has keeps its scatter
    images[::100, 0, :3] += 100.0
    decoder.adapt(images)
    assert numpy(decoder.spread).max() > 9


def test_missing_pixels_are_filled_in(rng):
    """Components of images with holes, each elsewhere, are those of whole ones."""
    images = low_rank(rng, n=200)
    valid = (rng.random(images.shape) > 0.1).astype("float32")
    whole, holes = EigenDecoder((6, 7, 2), 3, 0), EigenDecoder((6, 7, 2), 3, 0)
    for decoder in (whole, holes):
        decoder.build((None, 3))
    whole.adapt(images)
    holes.adapt(images * valid, valid)
    overlap = np.linalg.svd(numpy(whole.basis).T @ numpy(holes.basis))[1]
    assert overlap.min() > 0.97
    wrong = EigenDecoder((6, 7, 2), 3, 0)
    wrong.build((None, 3))
    wrong.adapt(images * valid)
    assert np.linalg.svd(numpy(whole.basis).T @ numpy(wrong.basis))[1].min() < 0.9


def test_eigen_networks_begin_as_principal_components(rng):
    """The decoder paints the component sums, but for its small hidden part."""
    images = low_rank(rng)
    encoder, decoder = EigenEncoder(4), EigenDecoder((6, 7, 4), 4, 2)
    encoder.build((None, 6, 7, 2))
    decoder.build((None, 3))
    components = encoder.adapt(images)
    decoder.adapt(images, components=components)
    features = numpy(encoder(images))[:, :3]
    z = 3 * np.sinh(features / 3)
    maps = numpy(decoder(z))
    assert_allclose(maps[..., :2], images, atol=0.02 * images.std())
    # what is left of the images is what the variance maps begin with
    assert numpy(keras.ops.softplus(decoder.variance.bias)).max() < 1e-4


def test_fewer_images_than_components(rng):
    """Components that cannot be found paint nothing, and are finite."""
    images = low_rank(rng, n=5)
    encoder, decoder = EigenEncoder(64), EigenDecoder((6, 7, 4), 64)
    encoder.build((None, 6, 7, 2))
    decoder.build((None, 2))
    decoder.adapt(images, components=encoder.adapt(images))
    assert np.isfinite(numpy(encoder(images))).all()
    assert np.isfinite(numpy(decoder(np.ones((1, 2), "float32")))).all()
    assert not numpy(decoder.basis)[:, 5:].any()
    with pytest.raises(ValueError, match="expected images of 84 values, got 42"):
        encoder.adapt(images[..., :1])
    with pytest.raises(ValueError, match="even number of channels, got 3"):
        EigenDecoder((6, 7, 3))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_eigen_vae_trains(policy, stack):
    """The loss falls, with masks and the profile likelihood, in any precision."""
    shape = stack.image_shape
    vae = VAE(
        shape,
        latent_dim=2,
        encoder=EigenEncoder(16, (32, 32), dtype=policy),
        decoder=EigenDecoder((*shape[:2], 4), 16, 4, (32, 32), dtype=policy),
        likelihood=GaussianLikelihood(profile=1.0),
        dtype=policy,
        seed=1,
    )
    vae.compile(keras.optimizers.Adam(3e-3))
    history = vae.fit(stack, batch_size=20, epochs=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]


def test_units_must_be_positive():
    """Misuse is named."""
    with pytest.raises(ValueError, match="hidden_units must be a positive integer"):
        DenseEncoder((32, 0))
    with pytest.raises(ValueError, match="filters must be a positive integer"):
        ConvEncoder((32, -1))
    with pytest.raises(ValueError, match="at least one stage"):
        ConvEncoder(())
    with pytest.raises(ValueError, match="num_blocks must be an integer >= 0"):
        ConvEncoder(num_blocks=-1)
    with pytest.raises(ValueError, match="patch_size must be a positive integer"):
        ConvDecoder((8, 8, 1), patch_size=0)


@pytest.mark.parametrize("options", [{}, {"pose": True, "canvas_shape": (22, 22)}])
def test_adapted_model_begins_at_principal_components(options):
    """Before the first step it paints as well as the leading components do."""
    _, stack = make_galaxies(120, shape=(16, 16), seed=1)
    pose = np.tile(np.float32([0, 0, 0, 1]), (120, 1))
    inputs = {"image": stack.data, "pose": pose}
    canvas = options.get("canvas_shape", (16, 16))
    vae = VAE(
        (16, 16, 1),
        4,
        EigenEncoder(20, (32,)),
        EigenDecoder((*canvas, 2), 20, 4, (32,)),
        seed=1,
        **options,
    )
    vae.adapt(inputs)
    assert vae.encode(inputs)[0].shape == (120, 4)
    mse = vae.measure(inputs)["vae_mse"].mean()
    flat = stack.data.reshape(120, -1).astype(float)
    centered = flat - flat.mean(0)
    _, _, rows = np.linalg.svd(centered, full_matrices=False)
    residual = centered - centered @ rows[:4].T @ rows[:4]
    assert mse < 1.3 * np.square(residual).mean()
    # one adapted already keeps what it knows
    before = vae.decoder.get_weights()
    vae.adapt({"image": 2 * stack.data, "pose": pose})
    for old, new in zip(before, vae.decoder.get_weights(), strict=True):
        assert np.array_equal(old, new)


def test_components_of_networks_with_given_scales_and_other_ranks():
    """Each finds as many as it has, also if scales are given; and keeps them."""
    _, stack = make_galaxies(60, shape=(16, 16), seed=1)
    encoder, decoder = EigenEncoder(20, (8,)), EigenDecoder((16, 16, 2), 10, 4, (8,))
    options = {"scale": [1.0], "noise": [0.1], "seed": 1}
    vae = VAE((16, 16, 1), 3, encoder, decoder, **options)
    assert not encoder.adapted
    vae.compile()
    vae.fit(stack, verbose=0)
    assert encoder.adapted
    for network, rank in ((encoder, 20), (decoder, 10)):
        basis = np.array(network.basis)
        assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-4)
    basis = np.array(encoder.basis)
    vae.fit(stack[::-1], verbose=0)
    assert np.array_equal(basis, np.array(encoder.basis))
    copy = VAE.from_config(vae.get_config())
    copy.set_weights(vae.get_weights())
    assert copy.encoder.adapted


def test_adapting_with_side_inputs_masks_and_errors():
    """Side information is among the components of the encoder alone."""
    _, stack = make_galaxies(60, shape=(16, 16), seed=1)
    mask = stack.mask.copy()
    mask[:, :3, 4:8] = True
    mask[7] = True
    stack = stack.replace(mask=mask)
    vae = VAE(
        stack.image_shape,
        3,
        EigenEncoder(10, (16,)),
        EigenDecoder((16, 16, 2), 10, 4, (16,)),
        side_inputs=("mask", "error"),
        stretch="asinh",
        seed=1,
    )
    vae.adapt(stack)
    columns = vae.measure(stack)
    assert np.isfinite(np.delete(columns["vae_elbo"], 7)).all()
    assert np.isfinite(np.concatenate([w.ravel() for w in vae.get_weights()])).all()


def test_dropout_hides_coefficients_from_hidden_layers_in_training_alone(rng):
    images = rng.normal(size=(40, 6, 7, 1)).astype("float32")
    encoder = EigenEncoder(10, (16,), dropout=0.5, seed=3)
    encoder.build((None, 6, 7, 1))
    encoder.adapt(images)
    plain = np.asarray(ops.convert_to_numpy(encoder(images)))
    assert_array_equal(plain, ops.convert_to_numpy(encoder(images, training=False)))
    first, second = (
        ops.convert_to_numpy(encoder(images, training=True)) for _ in range(2)
    )
    # the linear part sees them all
    assert_array_equal(first[:, :10], plain[:, :10])
    assert (first[:, 10:] != plain[:, 10:]).all()
    assert (first[:, 10:] != second[:, 10:]).all()
    # the state of the random numbers is kept with the weights
    other = EigenEncoder.from_config(encoder.get_config())
    other.build((None, 6, 7, 1))
    store = {}
    encoder.save_own_variables(store)
    other.load_own_variables(store)
    for layer, hidden in zip(other.hidden, encoder.hidden, strict=True):
        layer.set_weights(hidden.get_weights())
    third, fourth = (
        ops.convert_to_numpy(network(images, training=True))
        for network in (encoder, other)
    )
    assert_array_equal(third, fourth)
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1"):
        EigenEncoder(dropout=1.0)


def test_indicators_put_the_mean_image_where_a_band_is_missing(rng):
    images = rng.normal([3.0, -2.0], size=(40, 6, 7, 2)).astype("float32")
    here = np.ones_like(images)
    encoder = EigenEncoder(10, (16,), num_indicators=2)
    encoder.build((None, 6, 7, 4))
    whole = np.concatenate([images, here], axis=-1)
    encoder.adapt(whole, np.ones_like(whole))
    plain = EigenEncoder(10, (16,))
    plain.build((None, 6, 7, 2))
    plain.adapt(images)
    for name in ("center", "basis", "mean", "spread"):
        assert_allclose(
            *(ops.convert_to_numpy(getattr(layer, name)) for layer in (encoder, plain)),
            rtol=1e-5,
            atol=1e-5,
        )
    center = ops.convert_to_numpy(encoder.center).reshape(6, 7, 2)
    filled = images.copy()
    filled[..., 1] = center[..., 1]
    missing = images.copy()
    missing[..., 1] = 0.0
    there = here.copy()
    there[..., 1] = 0.0
    found = encoder(np.concatenate([missing, there], axis=-1))
    expected = encoder(np.concatenate([filled, here], axis=-1))
    found, expected = map(ops.convert_to_numpy, (found, expected))
    assert_allclose(found[:, :10], expected[:, :10], atol=1e-4)
    # the hidden layers are told
    assert (np.abs(found[:, 10:] - expected[:, 10:]).max(axis=0) > 1e-3).any()
    assert found.shape == encoder.compute_output_shape((40, 6, 7, 4))
    with pytest.raises(ValueError, match="channels have no indicators of 3"):
        EigenEncoder(10, num_indicators=3).build((None, 6, 7, 4))


def test_vae_learns_which_band_is_missing():
    _, stack = make_galaxies(60, shape=(16, 16), bands=("g", "r"), seed=1)
    vae = VAE(
        stack.image_shape,
        3,
        EigenEncoder(10, (16,), num_indicators=2),
        EigenDecoder((16, 16, 4), 10, 4, (16,)),
        side_inputs="bands",
        band_dropout=0.3,
        seed=1,
    )
    vae.compile()
    vae.fit(stack, epochs=1, verbose=0)
    mask = stack.mask.copy()
    mask[:, :, :, 1] = True
    mean, _ = vae.encode(stack.replace(mask=mask))
    assert np.isfinite(mean).all()


def normals(xx, yy, xy, size):
    """Normal distributions of given covariances in the middle of images."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    xx, yy, xy = (np.reshape(part, (-1, 1, 1)) for part in (xx, yy, xy))
    det = xx * yy - xy**2
    chi2 = (yy * x**2 + xx * y**2 - 2 * xy * x * y) / det
    return (np.exp(-0.5 * chi2) / (2 * np.pi * np.sqrt(det)))[..., None]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"oversampling": 2},
        {"pose": True, "canvas_shape": (30, 30), "oversampling": 3},
    ],
)
def test_components_of_galaxies_before_their_psfs(options):
    """Behind its own PSF a galaxy is a sum of them, as it is not of blurred ones."""
    rng = np.random.default_rng(4)
    e1, e2 = rng.uniform(-0.4, 0.4, (2, 120))
    # long PSFs, so that it matters how they are turned
    g1, g2 = rng.normal(size=(2, 120))
    g1, g2 = 0.5 * np.array([g1, g2]) / np.hypot(g1, g2)
    seeing = rng.uniform(2, 3.5, 120)
    galaxy = np.array([2 * (1 + e1), 2 * (1 - e1), 2 * e2])
    psf = np.array([seeing * (1 + g1), seeing * (1 - g1), seeing * g2])
    images = 100 * normals(*(galaxy + psf), 24)
    images += 1e-3 * rng.normal(size=images.shape)
    angle = rng.uniform(-np.pi, np.pi, 120)
    pose = np.stack(
        [*rng.uniform(-0.5, 0.5, (2, 120)), angle, rng.choice([-1, 1], 120)], 1
    )
    inputs = {"image": images, "psf": normals(*psf, 15), "pose": pose}
    inputs["error"] = np.full(images.shape, 1e-3)
    inputs = {name: plane.astype("float32") for name, plane in inputs.items()}
    canvas = options.get("canvas_shape", (24, 24))
    canvas = tuple(options.get("oversampling", 1) * side for side in canvas)
    decoder = EigenDecoder((*canvas, 2), 20, 4, (8,))
    vae = VAE((24, 24, 1), 3, EigenEncoder(20, (8,)), decoder, psf=True, **options)
    vae.adapt(inputs)
    blurred = EigenDecoder((*canvas, 2), 20, 4, (8,))
    plain = VAE((24, 24, 1), 3, EigenEncoder(20, (8,)), blurred, **options)
    plain.adapt(inputs)

    def misfit(network):
        center, basis = map(ops.convert_to_numpy, (network.center, network.basis))
        parts = np.concatenate([center[None], basis.T]).reshape(-1, *canvas, 1)
        parts = ops.convert_to_tensor(parts)
        parts = with_variance({"mean": parts}, ops.ones_like(parts))
        found = []
        for i in range(0, 120, 30):
            batch = {k: np.repeat(v[i : i + 1], 21, axis=0) for k, v in inputs.items()}
            seen = vae.observation(
                parts,
                {name: ops.convert_to_tensor(part) for name, part in batch.items()},
                vae.likelihood,
                vae.scale,
                vae.noise,
            )["mean"]
            center, *rows = ops.convert_to_numpy(seen).reshape(21, -1)
            image = images[i].ravel() / vae.scale[0]
            at = np.linalg.lstsq(np.transpose(rows), image - center, rcond=None)[0]
            residual = image - center - at @ rows
            found.append(np.square(residual).sum() / np.square(image).sum())
        return np.sqrt(np.mean(found))

    assert misfit(decoder) < min(0.5 * misfit(blurred), 0.0055)


def start(stack, latent_dim=4):
    """A model that paints before the PSF, and has seen galaxies but not learned."""
    size = {"num_components": 20, "hidden_units": (8,)}
    *frame, bands = stack.image_shape
    decoder = EigenDecoder((*frame, 2 * bands), **size)
    encoder = EigenEncoder(**size)
    vae = VAE(stack.image_shape, latent_dim, encoder, decoder, psf=True, seed=1)
    vae.adapt(stack)
    vae.compile()
    return vae


def loss_of(vae, stack):
    return vae.evaluate(stack, verbose=0, return_dict=True)["loss"]


@pytest.mark.parametrize("seed", [3, 5, 7])
def test_noise_is_not_sharpened(monkeypatch, seed):
    """Galaxies of the usual noise are painted better than from blurred components."""
    _, stack = make_galaxies(300, shape=24, snr=(30, 100), seed=seed)
    assert stack.psf is not None
    sharp = loss_of(start(stack), stack)
    monkeypatch.setattr(_adapt, "_deconvolve", lambda images, *_: images)
    assert sharp < loss_of(start(stack), stack) - 50


def test_components_before_psfs_in_physical_units():
    """Squares of fluxes per wavelength are too small for a float."""
    _, stack = make_galaxies(100, shape=24, snr=(30, 100), seed=3)
    mask = np.zeros(stack.data.shape, bool)
    mask[::7, 3, 4] = True
    stack = stack.replace(mask=mask)
    faint = stack.replace(data=1e-20 * stack.data, error=1e-20 * stack.error)
    one, other = (start(images).decoder for images in (stack, faint))
    assert_allclose(numpy(one.spread)[:4], numpy(other.spread)[:4], rtol=1e-3)


def test_galaxies_without_pixels_count_for_nothing():
    """Also where no errors say so."""
    _, stack = make_galaxies(100, shape=24, snr=(30, 100), seed=3)
    stack = stack.replace(error=None)
    mask = np.zeros(stack.data.shape, bool)
    mask[::3] = True
    seen = ~mask.any(axis=(1, 2, 3))
    one, other = (start(s) for s in (stack.replace(mask=mask), stack[seen]))
    losses = [loss_of(vae, stack[seen]) for vae in (one, other)]
    assert_allclose(*losses, atol=3)


def test_missing_bands_before_psfs():
    """Galaxies without a band say nothing of how sharp others are in it."""
    rng = np.random.default_rng(1)
    size, psf = rng.uniform(2, 5, 200), rng.uniform(2, 4, 200)
    light = 100 * normals(size + psf, size + psf, 0 * size, 24)
    image = np.repeat(light, 2, axis=-1) + 0.3 * rng.normal(size=(200, 24, 24, 2))
    psf = np.repeat(normals(psf, psf, 0 * psf, 15), 2, axis=-1)
    stack = CutoutStack(image, psf=psf, error=np.full(image.shape, 0.3))
    mask = np.zeros(image.shape, bool)
    mask[::3, ..., 1] = True
    complete, incomplete = start(stack), start(stack.replace(mask=mask))
    # a nat or two for a third of the galaxies; sharpened noise costs hundreds
    assert loss_of(incomplete, stack) < loss_of(complete, stack) + 20


def test_bands_without_psf_say_nothing_of_sharp_galaxies():
    """Galaxies that lack a PSF there do not blur the components of the others."""
    rng = np.random.default_rng(1)
    size, psf = rng.uniform(2, 3, 80), rng.uniform(2, 4, 80)
    image = 100 * normals(size + psf, size + psf, 0 * size, 24)
    psf = normals(psf, psf, 0 * psf, 15)
    psf, image = (np.repeat(part, 2, axis=-1) for part in (psf, image))
    psf[::2, ..., 1] = np.nan
    stack = CutoutStack(image, psf=psf, error=np.full(image.shape, 1e-3))
    sizes = {"num_components": 6, "hidden_units": (8,)}
    decoder = EigenDecoder((24, 24, 4), **sizes)
    vae = VAE((24, 24, 2), 2, EigenEncoder(**sizes), decoder, psf=True, seed=1)
    vae.adapt(stack)
    center = ops.convert_to_numpy(decoder.center).reshape(24, 24, 2)
    y = np.arange(24) - 11.5
    inner = np.abs(y) < 8
    widths = [
        (center[inner, :, k] * y[inner, None] ** 2).sum() / center[inner, :, k].sum()
        for k in range(2)
    ]
    assert_allclose(widths[1], widths[0], rtol=0.05)
    assert widths[0] < 3.2


def test_noise_of_few_images_is_not_painted_for_all():
    """Where one of many images has pixels, the centre is that of none."""
    rng = np.random.default_rng(1)
    images = 1.0 + 0.1 * rng.normal(size=(400, 8, 8, 1))
    valid = np.ones_like(images)
    valid[1:, 0] = 0.0
    images[0, 0] = 50.0
    encoder = EigenEncoder(4, (8,))
    encoder.build((None, 8, 8, 1))
    center, _, _ = encoder.adapt(images * valid, valid)
    center = center.reshape(8, 8)
    assert_allclose(center[1:], images[:, 1:, :, 0].mean(0), rtol=2e-3)
    assert (np.abs(center[0]) < 5).all()


def test_pixels_of_many_galaxies_among_more():
    """A hundred galaxies say what their mean is, whatever others lack."""
    rng = np.random.default_rng(1)
    images = 5.0 + 0.1 * rng.normal(size=(10000, 12))
    valid = np.ones_like(images)
    valid[100:, :6] = 0.0
    center, *_ = principal_components(images * valid, 2, valid)
    assert_allclose(center[:6], 5, rtol=0.1)
    assert_allclose(center[6:], 5, rtol=1e-3)
