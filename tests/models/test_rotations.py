"""Tests of posteriors that are averaged over rotations."""

import keras
import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose

from astrovae.catalog import add_latents, annotate
from astrovae.datasets import make_galaxies
from astrovae.images import CutoutStack, measure_pose
from astrovae.models import VAE, DenseDecoder, DenseEncoder


def make_vae(shape, **kwargs):
    """A small model with reproducible weights."""
    keras.utils.set_random_seed(1)
    options = {"scale": [1.0] * shape[2], "noise": [1.0] * shape[2], **kwargs}
    return VAE(shape, 3, encoder=DenseEncoder((16,)), seed=2, **options)


@pytest.fixture(scope="module", params=[16, 17])
def square(request):
    """Galaxies with masks, errors and lopsided PSFs."""
    _, stack = make_galaxies(6, shape=request.param, bands=("g", "r"), seed=3)
    rng = np.random.default_rng(1)
    return stack.replace(
        mask=rng.uniform(size=stack.data.shape) < 0.1,
        error=(stack.error * rng.uniform(0.5, 2.0, stack.data.shape)).astype("float32"),
        psf=rng.uniform(size=(6, 5, 5, 2)).astype("float32"),
    )


def turned(stack, times):
    """Turn all planes of a stack by right angles."""
    planes = {
        name: np.rot90(getattr(stack, name), times, axes=(1, 2))
        for name in ("data", "mask", "error", "psf")
    }
    return stack.replace(**planes)


def test_right_angles_are_averages_of_turned_galaxies(square):
    """No pixel is interpolated: the moments of the four posteriors."""
    vae = make_vae(square.image_shape, side_inputs=("mask", "error", "psf", "bands"))
    vae.latent_temperature = 1.2
    parts = [vae.encode(turned(square, times)) for times in range(4)]
    means, log_vars = (np.array(part).astype(float) for part in zip(*parts))
    mean, log_var = vae.encode(square, n_rotations=4)
    assert_allclose(mean, means.mean(axis=0), atol=1e-4)
    # the temperature is that of the whole
    variance = np.exp(log_vars).mean(axis=0) + 1.44 * means.var(axis=0)
    assert_allclose(np.exp(log_var), variance, rtol=1e-3)
    assert (means.std(axis=0) > 1e-3).any()


def test_any_angle_does_not_matter():
    """Latents of smooth galaxies at all angles are the same, if averaged."""
    y, x = np.mgrid[:32, :32] - 15.5
    images = []
    for angle in np.linspace(0.0, np.pi, 7):
        cos, sin = np.cos(angle), np.sin(angle)
        u, v = x * cos + y * sin, y * cos - x * sin
        images.append(np.exp(-0.5 * (u**2 / 16 + v**2 / 6)))
    images = np.array(images, "float32")[..., None]
    vae = make_vae((32, 32, 1))
    plain, averaged = vae.encode(images)[0], vae.encode(images, n_rotations=24)[0]
    assert averaged.std(axis=0).max() < 0.02 * plain.std(axis=0).max()


def lopsided(n, rng):
    """Numbers of elongated galaxies with a brighter end."""
    return rng.uniform([2.5, 0.3, 0.1, 0.5], [4.5, 0.75, 0.4, 2.0], (n, 4))


def drawn(numbers, angles):
    """Draw them turned by angles, without noise."""
    y, x = np.mgrid[:32, :32][..., None] - 15.5
    size, ratio, skew, flux = numbers.T
    cos, sin = np.cos(angles), np.sin(angles)
    u, v = (x * cos + y * sin) / size, (y * cos - x * sin) / (size * ratio)
    light = np.exp(-np.sqrt(u**2 + v**2 + 0.3)) * (1 + skew * np.tanh(u + 0.5 * v))
    return np.moveaxis(flux * light, -1, 0).astype("float32")[..., None]


@pytest.mark.slow
def test_latents_of_a_posed_model_do_not_turn():
    """The same galaxies, drawn anew at other angles, whose poses are measured."""
    rng = np.random.default_rng(1)
    images = drawn(lopsided(300, rng), rng.uniform(0, 2 * np.pi, 300))
    noisy = images + rng.normal(0, 0.01, images.shape).astype("float32")

    def posed(images):
        error = np.full_like(images, 0.01)
        return measure_pose(CutoutStack(images, error=error, bands=["r"]))

    numbers, start = lopsided(60, rng), rng.uniform(0, 2 * np.pi, 60)
    first = posed(drawn(numbers, start))
    turned = [posed(drawn(numbers, start + angle)) for angle in (0.5, 1.2, 3.0)]
    changes = {}
    for pose in (True, False):
        vae = VAE(
            (32, 32, 1),
            3,
            DenseEncoder((64,)),
            DenseDecoder((32, 32, 2), (64,)),
            pose=pose,
            seed=1,
        )
        vae.compile(keras.optimizers.Adam(3e-3))
        vae.fit(posed(noisy), batch_size=50, epochs=30, verbose=0)
        mean, used = vae.encode(first)[0], vae.active_units(first)
        assert used.any()
        moved = np.abs([vae.encode(stack)[0] - mean for stack in turned])
        changes[pose] = np.median((moved / mean.std(axis=0))[..., used])
    assert changes[True] < 0.05
    assert changes[False] > 0.3


def test_galaxies_without_pixels_have_the_prior(stack):
    """However they are turned; and no galaxies give none."""
    vae = make_vae(stack.image_shape)
    mean, log_var = vae.encode(stack[3:4], n_rotations=3)
    assert_allclose(mean, 0)
    assert_allclose(log_var, 0, atol=1e-6)
    assert vae.encode(stack[:0], n_rotations=3)[0].shape == (0, 3)


def test_catalogues_have_averages(square):
    """Their metadata say of how many rotations; others than VAEs are refused."""
    vae, table = make_vae(square.image_shape), Table({"a": np.arange(6)})
    mean, log_var = vae.encode(square, n_rotations=4)
    for found in (
        add_latents(table, vae, square, n_rotations=4),
        annotate(table, vae, square, what="latents", n_rotations=4),
    ):
        assert_allclose(found["latent_mean"], mean)
        assert_allclose(found["latent_sigma"], np.exp(0.5 * log_var), rtol=1e-6)
        assert found.meta["astrovae"]["default"]["latents"]["n_rotations"] == 4
    with pytest.raises(ValueError, match="n_rotations is for models whose encode"):
        add_latents(table, lambda images: images.mean((1, 2)), square, n_rotations=4)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"pose": True}, {}, "for models without a pose"),
        ({}, {"refine": 3}, "does not go with n_rotations"),
        ({}, {"n_rotations": 0}, "n_rotations must be a positive integer"),
    ],
)
def test_bad_arguments(stack, options, arguments, message):
    """Misuse is named."""
    vae = make_vae(stack.image_shape, **options)
    with pytest.raises(ValueError, match=message):
        vae.encode(stack, **{"n_rotations": 4, **arguments})
