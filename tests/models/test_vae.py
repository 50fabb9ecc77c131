"""Tests of the VAE."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from astrovae.exceptions import PreprocessingError
from astrovae.models import VAE, DenseDecoder, DenseEncoder, GaussianLikelihood


def make_vae(stack, **kwargs):
    """A small model with reproducible weights."""
    keras.utils.set_random_seed(1)
    options = {"latent_dim": 3, "seed": 2, "encoder": DenseEncoder((16,))} | kwargs
    shape = getattr(stack, "image_shape", stack)
    channels = 2 * shape[2]
    options.setdefault("decoder", DenseDecoder((*shape[:2], channels), (16,)))
    return VAE(shape, **options)


@pytest.fixture(scope="module")
def trained(stack):
    """A model that was trained for some steps."""
    vae = make_vae(stack)
    vae.compile(keras.optimizers.Adam(1e-2))
    vae.fit(stack, batch_size=16, epochs=8, verbose=0)
    return vae


def test_fit_lowers_the_loss_and_moves_every_weight(stack):
    """Training works on every backend and leaves no weight behind."""
    vae = make_vae(stack)
    vae.compile(keras.optimizers.Adam(1e-2))
    before = [np.array(w) for w in vae.get_weights()]
    trainable = [w.path for w in vae.trainable_weights]
    history = vae.fit(stack, batch_size=16, epochs=10, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    difference = np.subtract(history["log_like"], history["kl"])
    assert_allclose(history["elbo"], difference, rtol=1e-5)
    assert set(history) == {"loss", "elbo", "kl", "log_like", "mse"}
    moved = {
        w.path: not np.array_equal(old, new)
        for w, old, new in zip(vae.weights, before, vae.get_weights(), strict=True)
    }
    assert all(moved[path] for path in trainable)


def test_encode_is_deterministic_and_independent_of_batches(trained, stack):
    """Order, batch size and batch-mates do not matter."""
    mean, log_var = trained.encode(stack)
    assert mean.shape == log_var.shape == (40, 3)
    again, _ = trained.encode(stack[::-1], batch_size=7)
    assert_allclose(again[::-1], mean, atol=1e-6)


def test_galaxy_without_pixels_has_the_prior(trained, stack):
    """Nothing is known about it but the prior, and no term is finite."""
    mean, log_var = trained.encode(stack)
    assert_allclose(mean[3], 0)
    assert_allclose(log_var[3], 0)
    columns = trained.measure(stack)
    assert all(np.isnan(values[3]).all() for values in columns.values())
    assert all(np.isfinite(values[4]).all() for values in columns.values())


def test_hidden_pixels_change_nothing(trained, stack):
    """What lies under the mask reaches neither latents, terms nor loss."""
    mask = stack.mask.copy()
    mask[:, 2:5, 3:9] = True
    results = []
    for value in (0.0, np.nan, 1e30):
        data = np.where(mask, np.float32(value), stack.data)
        hidden = stack.replace(data=data, mask=mask)
        columns = trained.measure(hidden)
        loss = trained.evaluate(hidden, verbose=0, return_dict=True)["mse"]
        results.append([*trained.encode(hidden), *columns.values(), loss])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            if np.ndim(first):
                assert np.array_equal(first, second, equal_nan=True)


def test_elbo_of_a_linear_model_is_exact(rng):
    """With one latent and a linear decoder, the ELBO has a closed form."""
    ny, nx, sigma = 4, 5, 0.7
    weights = rng.normal(size=(1, ny * nx))
    x = rng.normal(size=(6, ny, nx, 1)).astype("float32")
    vae = VAE(
        (ny, nx, 1),
        latent_dim=1,
        encoder=DenseEncoder(()),
        decoder=DenseDecoder((ny, nx, 1), ()),
        likelihood=GaussianLikelihood(learn_variance=False),
        scale=[1.0],
        noise=[1.0],
    )
    vae.decoder.output_layer.set_weights([weights, np.zeros(ny * nx)])
    # the exact posterior of this model: factor analysis with known noise
    precision = 1 + (weights**2).sum() / sigma**2
    gain = weights.T / sigma**2 / precision
    head = np.concatenate([gain, np.zeros((ny * nx, 1))], axis=1)
    vae.posterior_layer.set_weights([head, np.array([0, -np.log(precision)])])
    covariance = sigma**2 * np.eye(ny * nx) + weights.T @ weights
    evidence = stats.multivariate_normal.logpdf(
        x.reshape(6, -1), np.zeros(ny * nx), covariance
    )
    inputs = {"image": x, "error": np.full_like(x, np.sqrt(sigma**2 - 1e-6))}
    # at the exact posterior the bound is tight
    assert_allclose(vae.elbo(inputs, num_samples=4096), evidence, rtol=2e-4)


def test_log_like_is_in_the_unit_of_the_pixels(stack):
    """Multiplying images by a constant shifts it by the logarithm."""
    vae = make_vae(stack, scale=[2.0, 3.0], noise=[1.0, 1.0])
    thousand = make_vae(stack, scale=[2000.0, 3000.0], noise=[1e3, 1e3])
    bright = stack.replace(data=stack.data * 1e3, error=stack.error * 1e3)
    one = vae.measure(stack[:3])["vae_log_like"]
    two = thousand.measure(bright[:3])["vae_log_like"]
    count = 16 * 16
    assert_allclose(one - two, count * np.log(1e3), rtol=1e-4)


def test_measure_equals_numpy(trained, stack):
    """Squared error, chi2 and likelihood, from reconstructions and errors."""
    rows = stack[:3]
    images = trained.reconstruct(rows)
    columns = trained.measure(rows)
    residual = rows.data.astype(float) - images["mean"]
    variance = np.exp(images["log_var"].astype(float)) + rows.error**2.0
    assert_allclose(columns["vae_mse"], (residual**2).mean((1, 2)), rtol=1e-4)
    chi2 = (residual**2 / variance).mean((1, 2))
    assert_allclose(columns["vae_chi2"], chi2, rtol=1e-4)
    terms = stats.norm.logpdf(residual, 0, np.sqrt(variance)).sum((1, 2))
    assert_allclose(columns["vae_log_like"], terms, rtol=1e-4)


def test_empty_and_tiny_inputs(trained, stack):
    """Zero galaxies give zero rows of the right shape; one gives one."""
    mean, log_var = trained.encode(stack[:0])
    assert mean.shape == log_var.shape == (0, 3)
    assert trained.measure(stack[:0])["vae_mse"].shape == (0, 2)
    assert trained.decode(np.zeros((0, 3)))["mean"].shape == (0, 16, 16, 2)
    assert trained.encode(stack[5])[0].shape == (1, 3)


def test_delta_posterior_is_an_autoencoder(stack):
    """No KL, no noise: two evaluations agree."""
    vae = make_vae(stack, posterior="delta")
    vae.compile()
    vae.fit(stack, batch_size=20, epochs=2, verbose=0)
    terms = vae.predict(stack, verbose=0)
    assert_allclose(terms["kl"], 0)
    assert np.array_equal(vae.predict(stack, verbose=0)["mse"], terms["mse"])


def test_order_of_batches_is_a_function_of_seed_and_epoch(stack):
    """Two trainings with one seed end at the same weights."""
    results = []
    for _ in range(2):
        vae = make_vae(stack)
        vae.compile()
        vae.fit(stack, batch_size=16, epochs=3, verbose=0, augment="flips")
        results.append(vae.encode(stack)[0])
    assert_allclose(results[0], results[1], atol=1e-6)


def test_keras_round_trip(trained, stack, tmp_path):
    """A .keras file gives the same model, compiled."""
    trained.save(tmp_path / "vae.keras")
    copy = keras.saving.load_model(tmp_path / "vae.keras")
    assert np.array_equal(copy.encode(stack)[0], trained.encode(stack)[0])
    assert copy.preprocessing == trained.preprocessing
    assert copy.compiled


def test_sample_is_reproducible(trained):
    """The same seed gives the same galaxies."""
    first, second = (trained.sample(4, seed=3) for _ in range(2))
    assert first["mean"].shape == (4, 16, 16, 2)
    assert np.array_equal(first["z"], second["z"])


def test_inputs_are_not_changed(trained, stack):
    """Encoding leaves the stack as it was."""
    data, mask = stack.data.copy(), stack.mask.copy()
    trained.encode(stack)
    assert np.array_equal(data, stack.data, equal_nan=True)
    assert np.array_equal(mask, stack.mask)


def test_other_preparation_is_refused(trained, stack):
    """Bands, pixel scale and shape must be those of the training."""
    with pytest.raises(PreprocessingError, match="bands"):
        trained.encode(stack.replace(bands=("r", "g")))
    with pytest.raises(PreprocessingError, match="pixel scale"):
        trained.encode(stack.replace(pixel_scale=0.7))
    with pytest.raises(ValueError, match="takes images of shape"):
        trained.encode(np.zeros((2, 16, 17, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a positive integer"),
        ({"image_shape": (8, 8)}, "image_shape must be"),
        ({"posterior": "wide"}, "posterior must be one of"),
        ({"decoder": DenseDecoder((8, 8, 5))}, "the decoder gives maps"),
    ],
)
def test_bad_arguments(arguments, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        VAE(**({"image_shape": (8, 8, 1)} | arguments))


def test_bad_inputs(trained, stack):
    """So is giving it something else than galaxies."""
    with pytest.raises(ValueError, match="z must have the shape"):
        trained.decode(np.zeros((2, 4)))
    with pytest.raises(TypeError, match="expected a CutoutStack"):
        trained.encode("galaxies.fits")
    for dtype in (complex, "U4", object):
        with pytest.raises(TypeError, match="must be real numbers"):
            trained.encode(np.zeros((2, 16, 16, 2)).astype(dtype))
    with pytest.raises(ValueError, match="equal length"):
        trained.encode({"image": stack.data, "mask": stack.mask[:3]})
    vae = make_vae(stack)
    vae.compile()
    for nothing in (stack[:0], stack[3]):
        with pytest.raises(ValueError, match="nothing to train on"):
            vae.fit(nothing, verbose=0)


def test_constant_images_do_not_blow_up():
    """Images without any noise train to finite numbers: the floor holds."""
    data = np.zeros((8, 6, 6, 1))
    data[:, 2:4, 2:4] = 1
    vae = VAE((6, 6, 1), latent_dim=2, likelihood=GaussianLikelihood(sigma_floor=0.01))
    vae.compile(keras.optimizers.Adam(1e-2))
    history = vae.fit(data, epochs=20, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.fixture
def posed(rng):
    """Galaxies off centre and at all angles, with their poses."""
    y, x = np.mgrid[:20, :20] - 9.5
    pose = np.stack(
        [
            rng.uniform(-2, 2, 24),
            rng.uniform(-2, 2, 24),
            rng.uniform(-3, 3, 24),
            rng.choice([-1, 1], 24),
        ],
        axis=1,
    ).astype("float32")
    dx, dy = x - pose[:, 0, None, None], y - pose[:, 1, None, None]
    cos, sin = np.cos(pose[:, 2, None, None]), np.sin(pose[:, 2, None, None])
    u, v = cos * dx + sin * dy, (cos * dy - sin * dx) * pose[:, 3, None, None]
    data = np.exp(-0.5 * (u**2 / 9 + v**2 / 4)) * (1 + 0.3 * np.tanh(u + v))
    return {"image": data[..., None].astype("float32"), "pose": pose}


@pytest.mark.slow
def test_pose_lives_inside_the_model(posed):
    """Turned galaxies have the latents of unturned ones; painted as observed."""
    likelihood = GaussianLikelihood(beta_nll=1.0)
    vae = make_vae((20, 20, 1), pose=True, latent_dim=1, likelihood=likelihood)
    vae.compile(keras.optimizers.Adam(1e-2))
    vae.fit(posed, batch_size=24, epochs=150, verbose=0)
    mean, _ = vae.encode(posed)
    assert mean.std() < 0.05
    images = vae.reconstruct(posed)["mean"]
    error = np.square(images - posed["image"]).mean()
    assert error < 0.02 * np.square(posed["image"]).mean()
    # without the pose, the mean galaxy is all that one could paint
    assert error < 0.2 * posed["image"].var(axis=0).mean()


def test_posed_model_needs_poses(posed):
    """It says what is missing."""
    vae = make_vae((20, 20, 1), pose=True)
    with pytest.raises(ValueError, match="these images have none"):
        vae.encode({"image": posed["image"]})
