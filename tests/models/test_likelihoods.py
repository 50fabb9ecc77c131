"""Tests of the pixel likelihoods."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize, stats

from astrovae.models import (
    VAE,
    BernoulliLikelihood,
    CorrelatedGaussianLikelihood,
    DenseDecoder,
    GaussianLikelihood,
)

# neighbours correlated by 1/4, and a lopsided correlation
SMOOTH = np.outer([0.25, 1, 0.25], [0.25, 1, 0.25])
SLANTED = np.array([[0.0, 0.1, 0.3], [0.2, 1.0, 0.2], [0.3, 0.1, 0.0]])


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


@pytest.mark.parametrize("known", [False, True])
def test_profile_is_the_likelihood_at_the_best_noise(pixels, known):
    """For each band of a galaxy, found by a search over noise levels."""
    tensor = keras.ops.convert_to_tensor
    error = pixels["error"] if known else None
    params = {name: tensor(pixels[name]) for name in ("mean", "log_var")}
    valid = tensor(1.0 - pixels["mask"].astype("float32"))
    with_profile, without = (
        keras.ops.convert_to_numpy(
            GaussianLikelihood(profile=profile).objective_map(
                tensor(pixels["image"]), params, valid, tensor(error) if known else None
            )
        ).astype(float)
        for profile in (0.5, 0.0)
    )
    extra = np.where(pixels["mask"], 0, with_profile - without).sum(axis=(1, 2))
    residual = (pixels["image"] - pixels["mean"]).astype(float)
    sigma = error if known else np.ones_like(residual)
    for i, band in np.ndindex(extra.shape):
        good = ~pixels["mask"][i, ..., band]

        def surprise(log_level, i=i, band=band, good=good):
            scale = np.exp(log_level) * sigma[i, ..., band][good]
            return -stats.norm.logpdf(residual[i, ..., band][good], 0, scale).sum()

        best = -optimize.minimize_scalar(surprise, bounds=(-5, 5)).fun
        assert_allclose(extra[i, band], 0.5 * best, rtol=1e-4)


@pytest.mark.parametrize("profile", [0.0, 1.0])
def test_profile_of_masked_and_perfect_galaxies(pixels, profile):
    """Nothing valid, or nothing left: finite, and masked values leave no trace."""
    likelihood = GaussianLikelihood(profile=profile)
    tensor = keras.ops.convert_to_tensor
    params = {name: tensor(pixels[name]) for name in ("mean", "log_var")}
    valid = 1.0 - pixels["mask"].astype("float32")
    valid[0] = 0
    image = np.where(np.arange(3)[:, None, None, None] == 1, pixels["mean"], 0)
    wild = np.where(valid > 0, image, np.float32(1e30))
    terms = [
        keras.ops.convert_to_numpy(
            likelihood.objective_map(tensor(x), params, tensor(valid))
        )
        for x in (image.astype("float32"), wild.astype("float32"))
    ]
    assert np.isfinite(terms[0]).all()
    assert np.array_equal(*(np.where(valid > 0, x, 0) for x in terms))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": -1}, "profile must not be negative"),
        ({"sigma_floor": -1}, "sigma_floor must not be negative"),
        ({"transform": "relu"}, "transform must be one of"),
        ({"beta_nll": 2}, "beta_nll must be between 0 and 1"),
    ],
)
def test_bad_arguments(arguments, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        GaussianLikelihood(**arguments)


@pytest.mark.parametrize(
    "likelihood",
    [
        GaussianLikelihood(False, 0.2, "exp", 0.5, 2.0),
        CorrelatedGaussianLikelihood(SLANTED, True, 0.2, "exp"),
        BernoulliLikelihood(),
    ],
)
def test_config_round_trip(likelihood):
    """A likelihood survives serialisation with every argument."""
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(likelihood)
    )
    assert copy.get_config() == likelihood.get_config()


# ---------------------------------------------------------------------------
# Correlated noise
# ---------------------------------------------------------------------------


def dense_correlation(rho, ny, nx, *, wrap):
    """Write out the correlation of all pixels, of a torus or of a plane."""
    ky, kx = rho.shape
    matrix = np.zeros((ny * nx, ny * nx))
    y, x = np.indices((ny, nx)).reshape(2, -1)
    for lag_y in range(-(ky // 2), ky // 2 + 1):
        for lag_x in range(-(kx // 2), kx // 2 + 1):
            to_y, to_x = y + lag_y, x + lag_x
            inside = (to_y >= 0) & (to_y < ny) & (to_x >= 0) & (to_x < nx)
            rows = np.arange(ny * nx) if wrap else np.flatnonzero(inside)
            columns = (to_y % ny * nx + to_x % nx)[rows]
            matrix[rows, columns] += rho[lag_y + ky // 2, lag_x + kx // 2]
    return matrix


def correlated_noise(rho, shape, n, rng, *, wrap):
    """Draw noise of unit variance with a given correlation."""
    factor = np.linalg.cholesky(dense_correlation(rho, *shape, wrap=wrap))
    noise = factor @ rng.normal(size=(shape[0] * shape[1], n))
    return noise.T.reshape(n, *shape, 1)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (6, 9)])
@pytest.mark.parametrize("rho", [SMOOTH, SLANTED])
@pytest.mark.parametrize("learn_variance", [False, True])
def test_correlated_equals_dense_circulant(shape, rho, learn_variance, rng):
    """The Fourier form is the normal density of all pixels of a torus."""
    n, count = 3, shape[0] * shape[1]
    shape = (n, *shape, 2)
    image, mean, log_var = rng.normal(size=(3, *shape)).astype("float32")
    error = rng.uniform(0.5, 2, shape).astype("float32")
    likelihood = CorrelatedGaussianLikelihood(rho, learn_variance, sigma_floor=0.1)
    maps = np.concatenate([mean, log_var], axis=-1) if learn_variance else mean
    params = likelihood.parameters(maps, np.ones(2, "float32"))
    learned = np.exp(keras.ops.convert_to_numpy(params["log_var"]).astype(float))
    sigma = np.sqrt(learned + error.astype(float) ** 2)
    matrix = dense_correlation(rho, *shape[1:3], wrap=True)
    expected = np.zeros((n, 2))
    for i in range(n):
        for band in range(2):
            scale = sigma[i, ..., band].ravel()
            covariance = scale[:, None] * matrix * scale
            residual = (image[i, ..., band] - mean[i, ..., band]).ravel()
            expected[i, band] = stats.multivariate_normal.logpdf(
                residual, np.zeros(count), covariance
            )
    terms = likelihood.log_prob_map(image, params, error)
    found = keras.ops.convert_to_numpy(terms).astype(float).sum(axis=(1, 2))
    assert_allclose(found, expected, rtol=1e-5)
    total = keras.ops.convert_to_numpy(likelihood.log_prob(image, params, error=error))
    assert_allclose(total, expected.sum(axis=1), rtol=1e-5)


def test_white_noise_is_independent(pixels):
    """Without correlation it is the Gaussian likelihood."""
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}
    one, other = (
        likelihood.log_prob(pixels["image"], params, error=pixels["error"])
        for likelihood in (
            CorrelatedGaussianLikelihood([[1.0]]),
            GaussianLikelihood(),
        )
    )
    one, other = map(keras.ops.convert_to_numpy, (one, other))
    assert_allclose(one, other, rtol=1e-5)


def test_correlation_of_each_band(pixels):
    """Bands may differ in correlation, and its amplitude does not matter."""
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}

    def terms(rho):
        likelihood = CorrelatedGaussianLikelihood(rho)
        terms = likelihood.log_prob_map(pixels["image"], params, pixels["error"])
        return keras.ops.convert_to_numpy(terms)

    both = terms(np.stack([3 * SMOOTH, 7 * SLANTED], axis=-1))
    assert_allclose(both[..., 0], terms(SMOOTH)[..., 0], rtol=1e-5, atol=1e-6)
    assert_allclose(both[..., 1], terms(SLANTED)[..., 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [16, 32])
def test_wrap_around_costs_little(size):
    """
    What the torus costs in log-likelihood is far less than ignoring it.

    Means and scatter over noise are exact; the documentation quotes them.
    """
    torus, plane = (
        dense_correlation(SMOOTH, size, size, wrap=wrap) for wrap in (True, False)
    )
    white = np.eye(size**2)

    def loss(assumed):
        ratio = np.linalg.solve(assumed, plane)
        mean = 0.5 * (np.trace(ratio) - size**2 - np.linalg.slogdet(ratio)[1])
        difference = ratio - white
        return mean, np.sqrt(0.5 * np.trace(difference @ difference))

    costs = [*loss(torus), loss(white)[0]]
    expected = {16: [1.30, 1.72, 16.6], 32: [2.58, 2.41, 68.6]}
    assert_allclose(costs, expected[size], rtol=0.01)


@pytest.mark.parametrize("wrap", [True, False])
def test_standardized_residuals_are_calibrated(wrap, rng):
    """On simulated noise they have mean 0, variance 1 and no correlation."""
    shape, n = (24, 25), 300
    error = rng.uniform(0.5, 2, size=(n, *shape, 1))
    mean = rng.normal(size=(n, *shape, 1))
    noise = correlated_noise(SLANTED, shape, n, rng, wrap=wrap)
    likelihood = CorrelatedGaussianLikelihood(SLANTED)
    params = likelihood.parameters(mean.astype("float32"), np.ones(1, "float32"))
    image = (mean + error * noise).astype("float32")
    white = keras.ops.convert_to_numpy(
        likelihood.standardize(image, params, error.astype("float32"))
    ).astype(float)
    assert abs(white.mean()) < 0.02
    assert_allclose(white.var(), 1, atol=0.05 if not wrap else 0.01)
    for lag in ((0, 1), (1, 0), (1, 1), (1, -1)):
        product = white * np.roll(white, lag, axis=(1, 2))
        assert abs(product[:, 1:, 1:-1].mean()) < 0.01


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(), BernoulliLikelihood()])
def test_residuals_of_independent_pixels_are_calibrated(likelihood, rng):
    """So are those of the other likelihoods, each on its own simulations."""
    shape = (200, 12, 12, 1)
    maps = rng.normal(size=(*shape[:3], likelihood.num_parameters)).astype("float32")
    params = likelihood.parameters(maps, np.ones(1, "float32"))
    mean, log_var = (
        keras.ops.convert_to_numpy(params[name]) for name in ("mean", "log_var")
    )
    error = None
    if isinstance(likelihood, BernoulliLikelihood):
        image = rng.random(shape) < mean
    else:
        error = rng.uniform(0.5, 2, shape).astype("float32")
        image = mean + rng.normal(size=shape) * np.sqrt(np.exp(log_var) + error**2)
    residual = likelihood.standardize(image.astype("float32"), params, error)
    residual = keras.ops.convert_to_numpy(residual)
    assert abs(residual.mean()) < 0.02
    assert_allclose(residual.var(), 1, atol=0.05)


def test_correlated_noise_refuses_masks(pixels):
    """Some masked pixels give NaN, a missing band nothing, and training stops."""
    likelihood = CorrelatedGaussianLikelihood(SMOOTH)
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}
    mask = np.zeros(pixels["mask"].shape, bool)
    mask[0, 2, 2, 0] = True
    mask[1, ..., 1] = True
    arguments = (pixels["image"], params)
    total = likelihood.log_prob(*arguments, mask=mask, error=pixels["error"])
    total = keras.ops.convert_to_numpy(total)
    terms = keras.ops.convert_to_numpy(
        likelihood.log_prob_map(*arguments, pixels["error"])
    )
    assert np.isnan(total[0])
    assert_allclose(total[1], terms[1, ..., 0].sum(), rtol=1e-5)
    assert_allclose(total[2], terms[2].sum(), rtol=1e-5)


def test_vae_with_correlated_noise(stack):
    """Training, terms and ELBO; masked galaxies are refused or NaN."""
    galaxies = stack.replace(mask=np.zeros_like(stack.mask))
    vae = VAE(
        stack.image_shape,
        latent_dim=2,
        likelihood=CorrelatedGaussianLikelihood(SMOOTH),
        decoder=DenseDecoder(stack.image_shape, (16,)),
    )
    vae.compile()
    history = vae.fit(galaxies, batch_size=20, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    images = vae.reconstruct(galaxies)
    likelihood = CorrelatedGaussianLikelihood(SMOOTH)
    params = {name: images[name] for name in ("mean", "log_var")}
    terms = likelihood.log_prob_map(galaxies.data, params, galaxies.error)
    columns = vae.measure(galaxies)
    expected = keras.ops.convert_to_numpy(terms).sum(axis=(1, 2))
    assert_allclose(columns["vae_log_like"], expected, rtol=1e-4)

    mask = np.zeros_like(stack.mask)
    mask[7, 3:5, 3:5] = True
    masked = galaxies.replace(mask=mask)
    with pytest.raises(Exception, match="1 of 40 galaxies have masked pixels"):
        vae.fit(masked, batch_size=40, verbose=0)
    elbo = vae.elbo(masked)
    assert np.flatnonzero(np.isnan(elbo)).tolist() == [7]


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        (np.ones((2, 3)), "odd ky and kx"),
        (np.ones(3), "odd ky and kx"),
        (np.zeros((3, 3)), "positive at lag zero"),
        (np.full((3, 3), np.nan), "must be finite"),
        ([[0.1, 1.0, 0.2]], "same at opposite lags"),
    ],
)
def test_bad_correlations(correlation, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        CorrelatedGaussianLikelihood(correlation)


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        ([[0.6, 1.0, 0.6]], "not positive definite"),
        (np.eye(7), "images of shape .* are smaller"),
    ],
)
def test_correlations_that_do_not_fit(correlation, message, pixels):
    """So is what shows only with the images."""
    likelihood = CorrelatedGaussianLikelihood(correlation)
    params = {"mean": pixels["mean"], "log_var": pixels["log_var"]}
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob(pixels["image"], params, error=pixels["error"])


def test_correlated_noise_needs_errors(pixels):
    """The correlation says nothing about the amplitude."""
    likelihood = CorrelatedGaussianLikelihood(SMOOTH)
    params = likelihood.parameters(pixels["mean"], np.ones(2, "float32"))
    with pytest.raises(ValueError, match="takes the noise from the errors"):
        likelihood.log_prob(pixels["image"], params)


# ---------------------------------------------------------------------------
# Bernoulli
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_bernoulli_equals_scipy(pixels, scale):
    """For zeros and ones it is their probability, in whatever unit."""
    image = (pixels["image"] > 0).astype("float32")
    likelihood = BernoulliLikelihood()
    params = likelihood.parameters(pixels["mean"], np.full(2, scale, "float32"))
    terms = likelihood.log_prob_map(image / scale, params)
    # the model subtracts the logarithm of the scale for the change of unit
    terms = keras.ops.convert_to_numpy(terms) - np.log(scale)
    probability = 1 / (1 + np.exp(-pixels["mean"].astype(float)))
    assert_allclose(terms, stats.bernoulli.logpmf(image, probability), rtol=2e-5)
    painted = keras.ops.convert_to_numpy(params["mean"]) * scale
    assert_allclose(painted, probability, rtol=1e-5)
    variance = keras.ops.convert_to_numpy(likelihood.variance(params)) * scale**2
    assert_allclose(variance, probability * (1 - probability), rtol=1e-4)


def test_bernoulli_is_bounded(pixels):
    """Pixels beyond [0, 1] and certain decoders give no infinities."""
    likelihood = BernoulliLikelihood()
    maps = np.sign(pixels["mean"]) * np.float32(200)
    params = likelihood.parameters(maps, np.ones(2, "float32"))
    terms = likelihood.log_prob_map(100 * pixels["image"], params)
    terms = keras.ops.convert_to_numpy(terms)
    assert np.isfinite(terms).all()
    assert terms.max() <= 0


def test_vae_with_bernoulli(stack):
    """It trains, honours masks and gives the columns of all models."""
    peak = np.nanmax(stack.data)
    galaxies = stack.replace(data=np.clip(stack.data / peak, 0, 1), error=None)
    vae = VAE(
        stack.image_shape,
        latent_dim=2,
        likelihood=BernoulliLikelihood(),
        decoder=DenseDecoder(stack.image_shape, (16,)),
    )
    vae.compile()
    history = vae.fit(galaxies, batch_size=20, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    columns = vae.measure(galaxies)
    assert np.isnan(columns["vae_log_like"][3]).all()
    probability = vae.reconstruct(galaxies)["mean"][0].astype(float)
    pixels = galaxies.data[0]
    terms = pixels * np.log(probability) + (1 - pixels) * np.log1p(-probability)
    expected = np.where(galaxies.mask[0], 0, terms).sum(axis=(0, 1))
    assert_allclose(columns["vae_log_like"][0], expected, rtol=1e-4)
