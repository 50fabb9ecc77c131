"""Tests of models of aligned galaxies that are put before observed ones."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose

from astrovae.datasets import make_galaxies
from astrovae.exceptions import PreprocessingError
from astrovae.images import CutoutStack, align, measure_pose
from astrovae.layers import MixturePrior
from astrovae.models import (
    VAE,
    CorrelatedGaussianLikelihood,
    DenseDecoder,
    DenseEncoder,
    EigenDecoder,
    EigenEncoder,
    GaussianLikelihood,
)


@pytest.fixture(scope="module")
def trained(stack):
    """Galaxies with a pose, and a model of the same, aligned."""
    posed = measure_pose(stack)
    aligned = align(posed, shape=(24, 22))
    model = VAE(
        aligned.image_shape,
        latent_dim=3,
        encoder=DenseEncoder((16,)),
        decoder=DenseDecoder((24, 22, 4), (16,)),
        prior=MixturePrior(2, 3, seed=1),
        side_inputs="bands",
        band_dropout=0.3,
        seed=1,
    )
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(aligned, epochs=2, batch_size=20, verbose=0)
    return posed, model


def test_networks_are_the_same(trained):
    """It says of galaxies what the other says of the same ones, aligned."""
    posed, model = trained
    vae = model.with_pose(posed)
    assert vae.pose
    assert vae.canvas_shape == (24, 22)
    assert vae.image_shape == posed.image_shape
    assert vae.preprocessing == posed.preprocessing
    seen = posed[~posed.mask.all(axis=(1, 2, 3))]
    batch = seen.batch(np.arange(len(seen)))
    turned = vae.to_aligned((batch["image"], batch["pose"][:, :4]))
    expected = model.encode(ops.convert_to_numpy(turned))
    assert_allclose(vae.encode(seen), expected, atol=1e-3)
    z = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    assert_allclose(vae.decode(z)["mean"], model.decode(z)["mean"], atol=1e-5)
    one, other = (
        ops.convert_to_numpy(part.prior.log_prob(ops.convert_to_tensor(z)))
        for part in (model, vae)
    )
    assert_allclose(one, other, atol=1e-6)


def test_weights_are_copies_and_calibrations_stay(trained):
    """Training it changes nothing of the model that it came from."""
    posed, model = trained
    before = [np.array(w) for w in model.get_weights()]
    likelihood = CorrelatedGaussianLikelihood(np.ones((1, 1)), learn_variance=True)
    model.latent_temperature = 2.0
    vae = model.with_pose(posed, likelihood=likelihood)
    assert vae.likelihood is likelihood
    assert model.likelihood is not likelihood
    assert (vae.latent_temperature == 1.0).all()
    assert (model.latent_temperature == 2.0).all()
    model.latent_temperature = None
    vae.compile(keras.optimizers.Adam(1e-2))
    scale = vae.scale
    vae.fit(posed, epochs=1, batch_size=20, verbose=0)
    assert_allclose(vae.scale, scale)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_components_and_frozen_weights(trained):
    """Components are not looked for again; what is frozen stays so."""
    posed, _ = trained
    aligned = align(posed, shape=(24, 22))
    size = {"num_components": 6, "hidden_units": (8,)}
    model = VAE(
        aligned.image_shape,
        latent_dim=2,
        encoder=EigenEncoder(**size),
        decoder=EigenDecoder((24, 22, 4), **size),
        seed=1,
    )
    model.adapt(aligned)
    model.encoder.trainable = False
    vae = model.with_pose(posed)
    z = np.eye(2, dtype="float32")
    assert_allclose(vae.decode(z)["mean"], model.decode(z)["mean"], atol=1e-6)
    before = [np.array(w) for w in vae.encoder.get_weights()]
    basis = np.array(vae.decoder.basis)
    vae.compile()
    vae.fit(posed, verbose=0)
    np.testing.assert_array_equal(np.array(vae.decoder.basis), basis)
    for one, other in zip(before, vae.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_misuse(trained, stack):
    """What would silently be another model is refused."""
    posed, model = trained
    with pytest.raises(ValueError, match="has pose=True already"):
        model.with_pose(posed).with_pose(posed)
    with pytest.raises(TypeError, match="needs a CutoutStack, got ndarray"):
        model.with_pose(posed.data)
    with pytest.raises(ValueError, match="have no pose: call stack = measure_pose"):
        model.with_pose(stack)
    single = measure_pose(CutoutStack(posed.data[..., :1], bands=["g"]))
    with pytest.raises(ValueError, match="of 2 bands, and the galaxies have 1"):
        model.with_pose(single)
    for change in (
        {"bands": ("r", "g")},
        {"pixel_scale": 99.0},
        {"steps": posed.steps + posed.steps},
    ):
        with pytest.raises(PreprocessingError):
            model.with_pose(posed.replace(**change))
    with pytest.raises(ValueError, match="'transform': 'softplus'}, now"):
        model.with_pose(posed, likelihood=GaussianLikelihood(transform="exp"))
    large = make_galaxies(3, shape=40, bands=("g", "r"), seed=1)[1]
    with pytest.raises(ValueError, match="canvas_shape"):
        model.with_pose(measure_pose(large))


def test_models_without_a_frame_for_a_pose(stack):
    """Those that nobody has trained, and those that paint beyond the edges."""
    posed = measure_pose(stack)
    with pytest.raises(ValueError, match="met no galaxies yet: call fit or adapt"):
        VAE((24, 24, 2)).with_pose(posed)
    beyond = VAE((16, 16, 2), psf=True, canvas_shape=(20, 20))
    with pytest.raises(ValueError, match="pixels behind a PSF for images"):
        beyond.with_pose(posed)


def test_psfs_turn_with_galaxies():
    """What is blurred in the aligned frame is what is blurred where it was observed."""
    _, stack = make_galaxies(60, shape=24, snr=(50, 100), seed=3)
    x, y = np.meshgrid(np.arange(13) - 6, np.arange(13) - 6)
    # long, and brighter on one side
    psf = np.exp(-0.5 * ((x + y) ** 2 / 12 + (x - y) ** 2 / 3))
    psf += 0.5 * np.exp(-0.5 * ((x - 2) ** 2 + (y - 1) ** 2) / 2)
    posed = measure_pose(stack.replace(psf=psf / psf.sum()))
    aligned = align(posed, shape=34)
    sizes = {"num_components": 12, "hidden_units": (16,)}
    model = VAE(
        aligned.image_shape,
        latent_dim=4,
        encoder=EigenEncoder(**sizes),
        decoder=EigenDecoder((34, 34, 2), **sizes),
        psf=True,
        seed=1,
    )
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(aligned, epochs=3, batch_size=20, verbose=0)
    vae = model.with_pose(posed)
    assert vae.psf
    z = np.random.default_rng(1).normal(size=(60, 4)).astype("float32")
    observed = vae.simulate(posed, z, noise=False)["image"]
    expected = model.simulate(aligned, z, noise=False)["image"]
    turned = align(posed.replace(data=observed, mask=None), shape=34)
    seen = ~turned.mask
    peak = expected.max()
    assert_allclose(turned.data[seen], expected[seen], atol=0.02 * peak)
    # it is the turn of the PSF that does it
    still = aligned.replace(psf=posed.psf)
    other = model.simulate(still, z, noise=False)["image"]
    assert np.abs(other - expected)[seen].max() > 0.1 * peak
