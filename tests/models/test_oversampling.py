"""Tests of galaxies that are painted on pixels finer than those of the images."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy.signal import fftconvolve

from astrovae.datasets import make_galaxies
from astrovae.models import VAE, DenseEncoder, EigenDecoder


def make_vae(stack, **kwargs):
    """A small model with reproducible weights."""
    keras.utils.set_random_seed(1)
    options = {"latent_dim": 2, "seed": 2, "scale": [1.0], "noise": [1.0]} | kwargs
    return VAE(stack, encoder=DenseEncoder((16,)), **options)


def gaussian(shape, x, y, sigma, step=1.0):
    """A round normal distribution around a point relative to the middle."""
    rows, columns = np.indices(shape)
    dx = (columns - 0.5 * (shape[1] - 1)) * step - x
    dy = (rows - 0.5 * (shape[0] - 1)) * step - y
    return np.exp(-0.5 * (dx**2 + dy**2) / sigma**2) / (2 * np.pi * sigma**2)


def observe(vae, light, **batch):
    """Carry what is painted to the pixels."""
    light = ops.convert_to_tensor(light, "float32")
    maps = [light, ops.full_like(light, -3.0)]
    params = vae.likelihood.parameters(ops.concatenate(maps, axis=-1), vae._scale)
    batch = {
        name: ops.convert_to_tensor(part, "float32") for name, part in batch.items()
    }
    found = vae._observe(params, batch)
    return {name: ops.convert_to_numpy(part) for name, part in found.items()}


def centroid(image):
    """Centre of light relative to the middle of the image: x and y."""
    rows, columns = np.indices(image.shape)
    x, y = columns - 0.5 * (image.shape[1] - 1), rows - 0.5 * (image.shape[0] - 1)
    return np.array([(x * image).sum(), (y * image).sum()]) / image.sum()


@pytest.mark.parametrize("number", [2, 3])
def test_fine_psfs_are_convolved_and_averaged(number):
    """As with scipy on the fine pixels, and averages of them."""
    rng = np.random.default_rng(1)
    vae = make_vae(
        (14, 15, 1),
        psf=True,
        canvas_shape=(20, 19),
        oversampling=number,
        psf_oversampling=number,
    )
    light = rng.normal(size=(2, 20 * number, 19 * number, 1))
    y, x = np.mgrid[-4:5, -5:6]
    psf = np.exp(-0.5 * ((x - 0.4) ** 2 + (y + 0.3 * x) ** 2) / 1.7**2)
    psf = psf / psf.sum()
    found = observe(vae, light, psf=psf[None, ..., None])
    assert found["mean"].shape == (2, 14, 15, 1)
    for image, fine in zip(found["mean"], light):
        blurred = fftconvolve(fine[..., 0], psf, mode="same")
        pixels = blurred.reshape(20, number, 19, number).mean(axis=(1, 3))
        assert_allclose(image[..., 0], pixels[3:17, 2:17], atol=1e-5)
    # the learned variance is that of the fine pixels, averaged
    assert_allclose(found["variance"], np.log1p(np.exp(-3.0)), rtol=1e-4)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(31, 31), (30, 32)])
def test_effective_psfs_keep_centre_flux_and_width(number, shape):
    """A normal galaxy behind a normal PSF of coarse pixels: known exactly."""
    vae = make_vae((*shape, 1), psf=True, oversampling=number)
    fine = tuple(number * size for size in shape)
    psf = gaussian((17, 17), 0.0, 0.0, 1.3)
    light = gaussian(fine, 1.3, -0.6, 1.5, step=1.0 / number)
    image = observe(vae, light[None, ..., None], psf=psf[None, ..., None])["mean"]
    image = image[0, ..., 0].astype(float)
    expected = gaussian(shape, 1.3, -0.6, np.hypot(1.3, 1.5))
    assert_allclose(image, expected, atol=5e-4 * expected.max())
    assert_allclose(image.sum(), 1.0, rtol=1e-4)
    assert_allclose(centroid(image), [1.3, -0.6], atol=1e-3)


@pytest.mark.parametrize("number", [2, 3])
def test_lopsided_effective_psfs_are_not_shifted(number):
    """The centre of light moves by that of the PSF, whatever its shape."""
    y, x = np.mgrid[-8:9, -8:9]
    psf = np.exp(-0.5 * ((x + 0.3) ** 2 + (y - 0.2 * x) ** 2) / 1.5**2)
    psf = psf * (1 + 0.4 * np.tanh(x - 0.5 * y))
    psf /= psf.sum()
    vae = make_vae((36, 36, 1), psf=True, oversampling=number)
    light = np.zeros((2, 36 * number, 36 * number, 1))
    # single fine pixels, at any place within a pixel
    light[0, 18 * number, 18 * number] = light[1, 17 * number, 18 * number + 1] = 1
    images = observe(vae, light, psf=psf[None, ..., None])["mean"][..., 0]
    for image, fine in zip(images.astype(float), light[..., 0]):
        assert_allclose(image.sum(), 1.0 / number**2, rtol=1e-4)
        expected = centroid(fine) / number + centroid(psf)
        assert_allclose(centroid(image), expected, atol=1e-3)


def test_pose_is_in_pixels_of_the_images():
    """Shifts and turns of what is painted, with and without a PSF."""
    pose = np.array([[1.5, -2.0, np.pi / 2, 1.0]])
    light = gaussian((48, 48), 2.0, 0.5, 1.2, step=0.5)[None, ..., None]
    for options in ({}, {"psf": True}):
        vae = make_vae((24, 24, 1), pose=True, oversampling=2, **options)
        batch = {"pose": pose, "error": np.ones((1, 24, 24, 1))}
        if options:
            batch["psf"] = np.ones((1, 1, 1, 1))
        image = observe(vae, light, **batch)["mean"][0, ..., 0].astype(float)
        assert_allclose(image.sum(), 1.0, rtol=1e-3)
        # (2, 0.5) turned by 90 degrees, and shifted
        assert_allclose(centroid(image), [1.0, 0.0], atol=2e-3)


def test_training_and_saving(tmp_path):
    """Decoders of finer pixels train, also those that begin with components."""
    _, stack = make_galaxies(48, shape=(12, 12), seed=1)
    psf = gaussian((5, 5), 0, 0, 1.0)[None, ..., None]
    stack = stack.replace(psf=(psf / psf.sum()).astype("float32"))
    options = {"scale": None, "noise": None, "psf": True, "oversampling": 2}
    decoder = EigenDecoder((32, 32, 2), 6, 4, (16,))
    vae = make_vae(stack.image_shape, decoder=decoder, canvas_shape=(16, 16), **options)
    vae.compile(keras.optimizers.Adam(1e-3))
    history = vae.fit(stack, batch_size=16, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    mean, _ = vae.encode(stack)
    assert vae.decode(mean)["mean"].shape == (48, 32, 32, 1)
    images = vae.reconstruct(stack)["mean"]
    assert np.square(images - stack.data).mean() < np.square(stack.data).mean()
    vae.save_preset(tmp_path / "preset")
    copy = VAE.from_preset(tmp_path / "preset")
    assert_allclose(copy.reconstruct(stack)["mean"], images, rtol=1e-4, atol=1e-4)


def test_presets_paint_finer():
    """The decoder of a preset has the right shape."""
    vae = VAE.from_preset("galaxy_small", image_shape=(8, 8, 2), oversampling=2)
    assert vae.decode(np.zeros((1, 8)))["mean"].shape == (1, 16, 16, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oversampling": 0}, "oversampling must be a positive integer"),
        ({"psf_oversampling": 2, "psf": True}, "psf_oversampling must be 1"),
        ({"psf_oversampling": 2, "oversampling": 2}, "models with psf=True"),
        ({"oversampling": 3, "psf_oversampling": 2, "psf": True}, "oversampling=3"),
    ],
)
def test_bad_arguments(options, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        make_vae((8, 8, 1), **options)
