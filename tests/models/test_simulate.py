"""Galaxies drawn from models, and sigmas that are corrected."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.datasets import make_galaxies
from astrovae.images import measure_pose
from astrovae.models import (
    VAE,
    BernoulliLikelihood,
    CorrelatedGaussianLikelihood,
    DenseDecoder,
    DenseEncoder,
    GaussianLikelihood,
)


def make_vae(stack, **kwargs):
    """A small model that was not trained."""
    vae = VAE(stack.image_shape, 2, DenseEncoder((8,)), seed=1, **kwargs)
    vae.adapt(stack)
    return vae


RHO = np.outer([0.25, 1, 0.25], [0.25, 1, 0.25])
LIKELIHOODS = {
    "learned": GaussianLikelihood(),
    "known": GaussianLikelihood(learn_variance=False),
    "correlated": CorrelatedGaussianLikelihood(RHO),
    "correlated, learned": CorrelatedGaussianLikelihood(RHO, learn_variance=True),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(6, 7), (7, 6)])
def test_draws_are_standardized_to_their_noise(name, shape, rng):
    """Drawing and standardizing are inverse to each other."""
    likelihood = LIKELIHOODS[name]
    maps = rng.normal(size=(5, *shape, 2 * likelihood.num_parameters))
    params = likelihood.parameters(maps.astype("float32"), np.ones(2, "float32"))
    error = rng.uniform(0.5, 2, (5, *shape, 2)).astype("float32")
    noise = rng.normal(size=error.shape).astype("float32")
    image = likelihood.draw(params, noise, error)
    back = likelihood.standardize(image, params, error)
    assert_allclose(keras.ops.convert_to_numpy(back), noise, atol=1e-4)


def test_bernoulli_draws_bits(rng):
    """Zero or one, with the probability of the pixel."""
    likelihood = BernoulliLikelihood()
    maps = np.broadcast_to(np.float32([-1.0, 2.0]), (1000, 4, 4, 2))
    params = likelihood.parameters(maps, np.float32([1.0, 4.0]))
    noise = rng.normal(size=maps.shape).astype("float32")
    image = keras.ops.convert_to_numpy(likelihood.draw(params, noise))
    image = image * np.array([1.0, 4.0])
    assert set(np.unique(image)) == {0.0, 1.0}
    assert_allclose(image.mean(axis=(0, 1, 2)), 1 / (1 + np.exp([1, -2])), atol=0.01)


def test_simulated_galaxies_are_those_of_the_model(stack):
    """Mean and scatter of many draws are those that are reconstructed."""
    vae = make_vae(stack)
    z = np.tile(np.float32([[0.5, -1.0]]), (40, 1))
    draws = np.array([vae.simulate(stack, z, seed=i)["image"] for i in range(50)])
    painted = vae.decode(z[:1])
    variance = np.exp(painted["log_var"]) + stack.error**2
    good = np.setdiff1d(np.arange(40), [3])
    residual = (draws - painted["mean"]) / np.sqrt(variance)
    residual = residual[:, good]
    n = residual.size
    assert abs(residual.mean()) < 4 / np.sqrt(n)
    assert abs(residual.var() - 1) < 4 * np.sqrt(2 / n)
    # each galaxy and each draw has noise of its own
    rows = residual.reshape(50 * 39, -1)[:200]
    correlation = np.corrcoef(rows)[np.triu_indices(200, 1)]
    assert np.abs(correlation).max() < 6 / np.sqrt(rows.shape[1])


def test_simulations_can_be_repeated(stack):
    """By seed, whatever the size of a batch; z comes from the prior."""
    vae = make_vae(stack)
    one, two = vae.simulate(stack, seed=3), vae.simulate(stack, seed=3, batch_size=7)
    assert_array_equal(one["z"], two["z"])
    assert_allclose(one["image"], two["image"], atol=1e-4)
    other = vae.simulate(stack, seed=4)
    assert not np.array_equal(one["z"], other["z"])
    assert one["image"].shape == stack.data.shape
    clean = vae.simulate(stack, one["z"], noise=False)["image"]
    assert_allclose(clean, vae.decode(one["z"])["mean"], rtol=1e-5, atol=1e-6)
    assert vae.simulate(stack[:0])["image"].shape == (0, *stack.image_shape)
    with pytest.raises(ValueError, match=r"shape \(40, 2\), a row for each galaxy"):
        vae.simulate(stack, np.zeros((3, 2)))


def test_simulations_have_pose_and_psf():
    """They are observed as the galaxies that are given."""
    _, stack = make_galaxies(20, shape=(16, 16), seed=1)
    stack = measure_pose(stack)
    vae = make_vae(
        stack,
        pose=True,
        psf=True,
        likelihood=GaussianLikelihood(learn_variance=False),
        decoder=DenseDecoder(stack.image_shape, (8,)),
    )
    mean, _ = vae.encode(stack)
    quiet = stack.replace(error=np.full_like(stack.error, 1e-6))
    image = vae.simulate(quiet, mean)["image"]
    noise = 6e-3 * vae.scale.max()
    assert_allclose(image, vae.reconstruct(stack)["mean"], atol=noise)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_temperature_scales_sigma(stack, posterior, tmp_path):
    """Of what is measured; means and ELBO stay, and training undoes it."""
    vae = make_vae(stack, posterior=posterior)
    assert_array_equal(vae.latent_temperature, [1, 1])
    mean, log_var = vae.encode(stack)
    elbo = vae.elbo(stack)
    vae.latent_temperature = [2.0, 0.5]
    warm_mean, warm = vae.encode(stack)
    assert_array_equal(warm_mean, mean)
    expected = np.tile(2 * np.log([2.0, 0.5]), (40, 1))
    expected[3] = 0  # no valid pixel: the prior
    assert_allclose(warm - log_var, expected, atol=1e-5)
    assert_array_equal(vae.elbo(stack), elbo)
    copy = VAE.from_config(vae.get_config())
    assert_array_equal(copy.latent_temperature, [2.0, 0.5])
    vae.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert_allclose(copy.encode(stack)[1], warm, atol=1e-5)
    vae.save_preset(tmp_path / "preset")
    copy = VAE.from_preset(tmp_path / "preset")
    assert_array_equal(copy.latent_temperature, [2.0, 0.5])
    assert_allclose(copy.encode(stack)[1], warm, atol=1e-5)
    vae.compile()
    vae.fit(stack, epochs=1, verbose=0)
    assert_array_equal(vae.latent_temperature, [1, 1])


@pytest.mark.parametrize("value", [0.0, [1, 2, 3], [1, np.nan], [[1, 1]], -1])
def test_bad_temperatures(stack, value):
    """One positive number per latent."""
    vae = make_vae(stack)
    with pytest.raises(ValueError, match="must be 2 positive numbers"):
        vae.latent_temperature = value
