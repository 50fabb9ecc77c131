# Licensed under a 3-clause BSD style license - see LICENSE
"""Calibration finds what is wrong with posteriors, and nothing where nothing is."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binomtest, kstest, norm

from astrovae.baselines import EigenGalaxies
from astrovae.diagnostics import calibration, uniformity_test
from astrovae.images import CutoutStack


class Distorted:
    """Exact posteriors of a linear model, made wrong on purpose."""

    def __init__(self, eigen, scale=1.0, shift=0.0):
        self.eigen, self.scale, self.shift = eigen, np.asarray(scale), shift
        self.decode = eigen.decode

    def encode(self, stack):
        mean, log_var = self.eigen.encode(stack)
        mean = mean + self.shift * np.exp(0.5 * log_var)
        return mean, log_var + 2 * np.log(self.scale)


def test_temperature_is_robust():
    """Little scatter for normal residuals, and little harm from bad ones."""
    from astrovae.diagnostics.posteriors import _best_temperature

    rng = np.random.default_rng(1)
    scores = 2 * rng.normal(size=(100, 500))
    found = [_best_temperature(row) for row in scores]
    # the best unbiased estimate has a scatter of 2 / sqrt(1000)
    assert_allclose(np.mean(found), 2, atol=4 * np.std(found) / 10)
    assert np.std(found) < 1.25 * 2 / np.sqrt(1000)
    scores[:, ::50] *= 10
    assert np.mean([_best_temperature(row) for row in scores]) < 2.2
    assert np.sqrt(np.square(scores).mean()) > 3


@pytest.fixture(scope="module")
def linear():
    """A linear Gaussian model of three latents, and galaxies with bad pixels."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(600, 3))
    data = z @ rng.normal(size=(3, 100)) * 0.3 + rng.normal(size=(600, 100))
    mask = rng.random(data.shape) < 0.2
    mask[:7] = True
    data, mask = (plane.reshape(-1, 10, 10) for plane in (data, mask))
    stack = CutoutStack(data, mask=mask, error=np.ones_like(data))
    return EigenGalaxies(3).fit(stack), stack


def test_exact_posteriors_pass(linear):
    """Ranks are uniform, sigmas right, and means move as much as they should."""
    eigen, stack = linear
    table = calibration(eigen, stack)
    assert (table["p_value"] > 0.01).all()
    assert (np.abs(table["temperature"] - 1) < 4 * table["temperature_err"]).all()
    assert (table["temperature_err"] < 0.06).all()
    assert (np.abs(table["bias"]) < 4 / np.sqrt(500)).all()
    for percent in (68, 95):
        for share in table[f"coverage_{percent}"]:
            count = round(share * 500)
            assert binomtest(count, 500, percent / 100).pvalue > 0.001
    assert table["ranks"].shape == (3, 500)
    # the noise of the model is that of the pixels here
    for name in ("renoised_simulated", "renoised_real"):
        assert_allclose(table[name], 1, atol=0.12)
    record = table.meta["astrovae"]["calibration"]
    assert record["num_draws"] == 1000
    assert record["num_test"] == 500
    assert record["num_real"] == 593


@pytest.mark.parametrize("scale", [(0.5, 0.25, 0.8), (1.5, 3.0, 1.0)])
def test_temperature_is_the_known_factor(linear, scale):
    """Sigmas that are wrong by a factor are found, and right with it."""
    eigen, stack = linear
    table = calibration(Distorted(eigen, scale), stack)
    expected = 1 / np.array(scale)
    error = table["temperature_err"]
    assert (np.abs(table["temperature"] - expected) < 4 * error).all()
    assert (table["p_value"][expected != 1] < 0.01).all()
    assert (table["p_value_tempered"] > 0.01).all()
    # a normal truth within a narrow normal posterior
    for percent in (68, 95):
        limit = norm.ppf(0.5 + percent / 200) * np.array(scale)
        share = norm.cdf(limit) - norm.cdf(-limit)
        assert_allclose(table[f"coverage_{percent}"], share, atol=0.07)
        after = table[f"coverage_{percent}_tempered"]
        assert_allclose(after, percent / 100, atol=0.07)


def test_bias_is_no_matter_of_temperature(linear):
    """It is reported, and ranks fail with any width."""
    eigen, stack = linear
    table = calibration(Distorted(eigen, shift=0.5), stack)
    assert_allclose(table["bias"], 0.5, atol=4 / np.sqrt(500))
    assert (table["p_value"] < 0.01).all()
    assert (table["p_value_tempered"] < 0.01).all()


def test_draws_can_be_repeated(linear):
    """By seed; and neither the model nor the stack is changed."""
    eigen, stack = linear
    before = stack.data.copy()
    one, same = (calibration(eigen, stack, num_draws=100) for _ in range(2))
    other = calibration(eigen, stack, num_draws=100, seed=1)
    assert_array_equal(one["ranks"], same["ranks"])
    assert_array_equal(one["p_value"], same["p_value"])
    assert not np.array_equal(one["ranks"], other["ranks"])
    assert_array_equal(stack.data, before)


def test_noise_of_twice_the_variance(linear):
    """A model that is told of added noise gives it half the weight."""
    rng = np.random.default_rng(2)
    loadings = rng.normal(size=(100, 2)) * 0.2

    class Told:
        side_inputs = ("error",)

        def encode(self, stack):
            batch = stack.batch(np.arange(len(stack)))
            weight = 1 / batch["error"].reshape(len(stack), -1).astype(float) ** 2
            x = batch["image"].reshape(len(stack), -1)
            precision = np.eye(2) + np.einsum(
                "pi,np,pj->nij", loadings, weight, loadings
            )
            covariance = np.linalg.inv(precision)
            mean = np.einsum("nij,pj,np,np->ni", covariance, loadings, weight, x)
            return mean, np.log(np.diagonal(covariance, axis1=1, axis2=2))

        def simulate(self, stack, z=None, *, seed=0):
            rng = np.random.default_rng(seed)
            z = rng.normal(size=(len(stack), 2)) if z is None else z
            noise = rng.normal(size=stack.data.shape) * stack.error
            return {"image": (z @ loadings.T).reshape(stack.data.shape) + noise, "z": z}

    error = 10 ** rng.uniform(-0.5, 0.5, (1000, 1, 1)) * np.ones((1000, 10, 10))
    stack = CutoutStack(np.zeros_like(error), error=error)
    stack = stack.replace(data=Told().simulate(stack, seed=9)["image"])
    table = calibration(Told(), stack)
    assert (table["p_value"] > 0.01).all()
    assert_allclose(table["renoised_real"], 1, atol=0.1)
    assert_allclose(table["renoised_simulated"], 1, atol=0.1)

    # without errors, there is nothing to add
    class Flat(Told):
        def encode(self, stack):
            ones = np.ones_like(stack.data)
            return super().encode(stack.replace(error=ones))

        def simulate(self, stack, z=None, *, seed=0):
            ones = np.ones_like(stack.data)
            return super().simulate(stack.replace(error=ones), z, seed=seed)

    table = calibration(Flat(), CutoutStack(stack.data), num_draws=100)
    assert np.isnan(table["renoised_real"]).all()
    assert np.isfinite(table["renoised_simulated"]).all()


def test_p_values_are_uniform_under_the_hypothesis():
    """And say no when they should."""
    rng = np.random.default_rng(4)
    p_values = uniformity_test(rng.random((400, 300)))
    assert kstest(p_values, "uniform").pvalue > 0.01
    narrow = norm.cdf(1.3 * rng.normal(size=(200, 500)))
    wide = norm.cdf(0.75 * rng.normal(size=(200, 500)))
    for ranks in (narrow, wide):
        found = uniformity_test(ranks) < 0.01
        ks = np.array([kstest(row, "uniform").pvalue for row in ranks]) < 0.01
        assert found.mean() > max(0.8, ks.mean())
    assert uniformity_test([0.5]) > 0.5
    for bad in ([], [1.2], [np.nan]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            uniformity_test(bad)


def train(posterior):
    """A decoder whose latents are correlated in the posterior; its encoder learns."""
    import keras

    from astrovae.models import VAE, DenseDecoder, DenseEncoder, GaussianLikelihood

    rng = np.random.default_rng(3)
    shape = (6, 6, 1)
    loadings = 0.5 * np.float32([[1, 0], [0.9, 0.44]] @ rng.normal(size=(2, 36)))
    z = rng.normal(size=(8000, 2)).astype("float32")
    data = (z @ loadings + rng.normal(size=(8000, 36))).reshape(-1, *shape)
    stack = CutoutStack(data, error=np.ones_like(data))
    decoder = DenseDecoder(shape, ())
    vae = VAE(
        shape,
        2,
        DenseEncoder(()),
        decoder,
        likelihood=GaussianLikelihood(learn_variance=False),
        posterior=posterior,
        scale=[1.0],
        noise=[1.0],
        seed=1,
    )
    kernel, bias = decoder.trainable_weights
    kernel.assign(loadings)
    bias.assign(np.zeros(36))
    decoder.trainable = False
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 3200)
    vae.compile(keras.optimizers.Adam(schedule))
    vae.fit(stack, batch_size=100, epochs=40, verbose=0)
    return vae, stack, np.eye(2) + loadings @ loadings.T


@pytest.mark.slow
def test_trained_models_with_full_posteriors():
    """What can be right becomes right in training."""
    vae, stack, _ = train("full")
    table = calibration(vae, stack)
    assert (table["p_value"] > 0.01).all()
    assert_allclose(table["temperature"], 1, atol=0.15)
    assert_allclose(table["renoised_real"], 1, atol=0.15)


@pytest.mark.slow
def test_trained_models_with_independent_latents():
    """Sigmas are too small by a known factor; with the temperature they are not."""
    vae, stack, precision = train("diagonal")
    before = vae.encode(stack)[1]
    table = calibration(vae, stack, store=True)
    # Turner & Sahani 2011: the best independent posterior has the conditional
    # variances 1 / precision, the true one has the marginal ones
    expected = np.sqrt(np.diag(precision) * np.diag(np.linalg.inv(precision)))
    assert (expected > 1.3).all()
    assert_allclose(table["temperature"], expected, rtol=0.15)
    # the ranks pass with it, and not before; what it changes is reported
    assert (table["p_value"] < 0.01).all()
    assert (table["p_value_tempered"] > 0.01).all()
    assert (table["coverage_68"] < 0.62).all()
    assert_allclose(table["coverage_68_tempered"], 0.68, atol=0.08)
    # it is stored
    shift = 2 * np.log(table["temperature"])
    assert_allclose(vae.encode(stack)[1] - before, np.tile(shift, (8000, 1)), atol=1e-5)
    # then there is little left to correct
    again = calibration(vae, stack, store=True, seed=2)
    assert_allclose(again["temperature"], 1, atol=0.15)
    assert_allclose(vae.latent_temperature, table["temperature"] * again["temperature"])


def test_what_cannot_be_calibrated(linear):
    """Errors say what is missing."""
    from astrovae.models import VAE

    eigen, stack = linear

    class Points:
        def encode(self, stack):
            return np.zeros((len(stack), 2)), None

    with pytest.raises(TypeError, match=r"simulate\(stack, z, seed\), or decode"):
        calibration(Points(), stack)
    points = Points()
    points.decode = eigen.decode
    with pytest.raises(ValueError, match="this Points gives points"):
        calibration(points, stack)
    delta = VAE(stack.image_shape, 2, posterior="delta")
    with pytest.raises(ValueError, match="this VAE gives points"):
        calibration(delta, stack, num_draws=20)
    with pytest.raises(ValueError, match="num_draws must be an integer >= 20"):
        calibration(eigen, stack, num_draws=3)
    with pytest.raises(ValueError, match="latent_temperature, such as VAE"):
        calibration(eigen, stack, store=True)
    with pytest.raises(ValueError, match="no galaxy has enough valid pixels"):
        calibration(eigen, stack[:7])
