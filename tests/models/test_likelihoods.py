"""Tests of the pixel likelihoods."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from astrovae.models import GaussianLikelihood


@pytest.fixture
def pixels(rng):
    """An image, decoder parameters and errors of plausible size."""
    shape = (3, 5, 6, 2)
    return {
        "image": rng.normal(size=shape).astype("float32"),
        "mean": rng.normal(size=shape).astype("float32"),
        "log_var": rng.normal(size=shape).astype("float32"),
        "error": rng.uniform(0.5, 2, shape).astype("float32"),
        "mask": rng.random(shape) < 0.3,
    }


def test_log_prob_equals_scipy(pixels):
    """Known and learned variance add; masked pixels do not count."""
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}
    sigma = np.sqrt(np.exp(pixels["log_var"].astype(float)) + pixels["error"] ** 2.0)
    terms = stats.norm.logpdf(pixels["image"], pixels["mean"], sigma)
    expected = np.where(pixels["mask"], 0, terms).sum(axis=(1, 2, 3))
    result = GaussianLikelihood().log_prob(
        pixels["image"], params, mask=pixels["mask"], error=pixels["error"]
    )
    assert_allclose(keras.ops.convert_to_numpy(result), expected, rtol=1e-5)


def test_masked_pixels_leave_no_trace(pixels):
    """NaN and huge values under the mask change nothing, bit for bit."""
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}
    wild = np.where(pixels["mask"], np.float32(1e30), pixels["image"])
    results = [
        keras.ops.convert_to_numpy(
            GaussianLikelihood().log_prob(image, params, mask=pixels["mask"])
        )
        for image in (pixels["image"], wild)
    ]
    assert np.array_equal(*results)


@pytest.mark.parametrize("transform", ["softplus", "exp"])
def test_parameters_have_the_floor(transform):
    """However small the learned variance, the floor stays."""
    likelihood = GaussianLikelihood(sigma_floor=0.3, transform=transform)
    maps = np.full((1, 2, 2, 4), -80.0, "float32")
    scale = np.array([1.0, 2.0], "float32")
    params = likelihood.parameters(maps, scale)
    sigma = np.exp(0.5 * keras.ops.convert_to_numpy(params["log_var"])) * scale
    assert_allclose(sigma, 0.3, rtol=1e-3)


def test_known_noise_needs_errors(pixels):
    """A likelihood without a learned variance says what is missing."""
    likelihood = GaussianLikelihood(learn_variance=False)
    params = likelihood.parameters(pixels["mean"], np.ones(2, "float32"))
    with pytest.raises(ValueError, match="takes the noise from the errors"):
        likelihood.log_prob(pixels["image"], params)
    result = likelihood.log_prob(pixels["image"], params, error=pixels["error"])
    expected = stats.norm.logpdf(
        pixels["image"], pixels["mean"], np.sqrt(pixels["error"] ** 2 + 1e-6)
    ).sum(axis=(1, 2, 3))
    assert_allclose(keras.ops.convert_to_numpy(result), expected, rtol=1e-5)


def test_objective_weights_pixels(pixels):
    """With beta_nll = 1, residuals of all pixels weigh the same."""
    likelihood = GaussianLikelihood(beta_nll=1.0)
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}
    valid = 1.0 - pixels["mask"].astype("float32")
    terms = keras.ops.convert_to_numpy(
        likelihood.objective_map(pixels["image"], params, valid)
    )
    variance = np.exp(pixels["log_var"].astype(float))
    weight = np.where(pixels["mask"], 0, variance)
    mean = weight.sum((1, 2), keepdims=True) / valid.sum((1, 2), keepdims=True)
    logpdf = stats.norm.logpdf(pixels["image"], pixels["mean"], np.sqrt(variance))
    assert_allclose(terms, weight / mean * logpdf, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_floor": -1}, "sigma_floor must not be negative"),
        ({"transform": "relu"}, "transform must be one of"),
        ({"beta_nll": 2}, "beta_nll must be between 0 and 1"),
    ],
)
def test_bad_arguments(arguments, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        GaussianLikelihood(**arguments)


def test_config_round_trip():
    """A likelihood survives serialisation with every argument."""
    likelihood = GaussianLikelihood(False, 0.2, "exp", 0.5)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(likelihood)
    )
    assert copy.get_config() == likelihood.get_config()
