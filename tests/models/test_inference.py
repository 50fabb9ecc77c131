"""Tests of inference with a trained model, where the answers are known."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy import stats

from astrovae.layers import MixturePrior
from astrovae.models import VAE, DenseDecoder, DenseEncoder, GaussianLikelihood

SHAPE = (4, 5, 1)
NUM_PIXELS = 20
SIGMA = 0.7


class LinearModel:
    """
    Probabilistic PCA, written as a VAE, and its closed forms.

    Tipping & Bishop 1999: x = W z + noise has the evidence
    N(0, W W' + sigma**2) and posteriors N(G x, S), S = (1 + W'W / sigma**2)**-1
    and G = S W' / sigma**2.
    """

    def __init__(self, posterior, latent_dim=2, seed=5, **kwargs):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(latent_dim, NUM_PIXELS)) / 2
        self.vae = VAE(
            SHAPE,
            latent_dim=latent_dim,
            encoder=DenseEncoder(()),
            decoder=DenseDecoder(SHAPE, ()),
            likelihood=GaussianLikelihood(learn_variance=False),
            posterior=posterior,
            scale=[1.0],
            noise=[1.0],
            seed=3,
            **kwargs,
        )
        self.vae.decoder.output_layer.set_weights([self.weights, np.zeros(NUM_PIXELS)])
        precision = np.eye(latent_dim) + self.weights @ self.weights.T / SIGMA**2
        self.covariance = np.linalg.inv(precision)
        self.gain = self.weights.T @ self.covariance / SIGMA**2
        z = rng.normal(size=(6, latent_dim))
        x = z @ self.weights + SIGMA * rng.normal(size=(6, NUM_PIXELS))
        self.x = x
        error = np.full((6, *SHAPE), np.sqrt(SIGMA**2 - 1e-6), "float32")
        self.inputs = {"image": x.reshape(6, *SHAPE).astype("float32"), "error": error}
        total = self.weights.T @ self.weights + SIGMA**2 * np.eye(NUM_PIXELS)
        self.evidence = stats.multivariate_normal.logpdf(x, np.zeros(NUM_PIXELS), total)

    def set_posterior(self, log_scale, below=()):
        """Give the encoder the exact means, and a constant shape."""
        head = np.zeros((NUM_PIXELS, self.vae.posterior_layer.units))
        head[:, : self.gain.shape[1]] = self.gain
        bias = np.concatenate([np.zeros(self.gain.shape[1]), log_scale, below])
        self.vae.posterior_layer.set_weights([head, bias])
        return self

    def set_exact(self):
        """Give the encoder the exact posterior, which is not diagonal."""
        scale_tril = np.linalg.cholesky(self.covariance)
        scale = np.diag(scale_tril)
        rows, columns = np.tril_indices(len(scale), -1)
        below = scale_tril[rows, columns] / scale[rows]
        return self.set_posterior(2 * np.log(scale), below)


def test_full_posterior_makes_the_bound_tight():
    """With the exact posterior, ELBO and evidence are that of PPCA."""
    model = LinearModel("full", latent_dim=3).set_exact()
    vae = model.vae
    mean, log_var = vae.encode(model.inputs)
    assert_allclose(mean, model.x @ model.gain, atol=1e-5)
    assert_allclose(np.exp(log_var), np.diag(model.covariance)[None].repeat(6, 0), 1e-4)
    elbo = vae.elbo(model.inputs, num_samples=4096)
    assert_allclose(elbo, model.evidence, rtol=1e-3)
    # all importance weights are equal: one sample is enough
    evidence, size = vae.log_evidence(model.inputs, num_samples=4)
    assert_allclose(evidence, model.evidence, rtol=2e-5)
    assert_allclose(size, 4, rtol=1e-3)


def test_evidence_of_an_inexact_posterior_is_exact():
    """Importance sampling makes up for it."""
    model = LinearModel("diagonal")
    model.set_posterior(np.log(2 * np.diag(model.covariance)))
    vae = model.vae
    elbo = vae.elbo(model.inputs, num_samples=1024)
    some = [vae.log_evidence(model.inputs, num_samples=8, seed=s)[0] for s in range(6)]
    evidence, size = vae.log_evidence(model.inputs, num_samples=2048)
    assert_allclose(evidence, model.evidence, atol=5e-3)
    assert (elbo < evidence - 0.1).all()
    # on average it grows with the samples, from the ELBO on
    error = np.std(some, axis=0).max() / np.sqrt(6)
    assert (elbo < np.mean(some, axis=0)).all()
    assert (np.mean(some, axis=0) < evidence + 3 * error).all()
    # the effective size in closed form: E[w]**2 / E[w**2] of normal densities
    wide = np.diag(np.diag(model.covariance) * 2)
    both = np.linalg.inv(2 * np.linalg.inv(model.covariance) - np.linalg.inv(wide))
    ratio = np.linalg.det(both) * np.linalg.det(wide)
    share = np.linalg.det(model.covariance) / np.sqrt(ratio)
    assert_allclose(size / 2048, share, rtol=0.02)


@pytest.mark.parametrize("posterior", ["diagonal", "full", "delta"])
def test_refined_posteriors_are_the_best_of_their_family(posterior):
    """From a wrong start, to what variational inference has in closed form."""
    model = LinearModel(posterior)
    vae = model.vae
    head = np.zeros((NUM_PIXELS, vae.posterior_layer.units))
    head[:3, :2] = 0.2
    vae.posterior_layer.set_weights([head, np.zeros(head.shape[1])])
    weights = vae.get_weights()
    mean, _ = vae.encode(model.inputs, refine=400, batch_size=4)
    for before, after in zip(weights, vae.get_weights(), strict=True):
        assert np.array_equal(before, after)
    if posterior == "delta":
        best = np.linalg.lstsq(model.weights.T, model.x.T, rcond=None)[0].T
        assert_allclose(mean, best, atol=0.02)
        return
    assert_allclose(mean, model.x @ model.gain, atol=0.05)
    # the best independent latents have the variances 1 / precision[j, j]
    precision = np.linalg.inv(model.covariance)
    lost = np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]
    best = model.evidence - (0.5 * lost if posterior == "diagonal" else 0.0)
    refined = vae.elbo(model.inputs, refine=400, num_samples=1024)
    assert (refined > vae.elbo(model.inputs, num_samples=1024)).all()
    assert_allclose(refined, best, atol=0.1)


def test_refining_one_galaxy_leaves_the_others(rng):
    """Batch-mates, hidden pixels and galaxies without pixels do not matter."""
    model = LinearModel("diagonal")
    inputs = {**model.inputs, "mask": np.zeros((6, *SHAPE), bool)}
    inputs["mask"][2] = True
    inputs["image"] = inputs["image"].copy()
    inputs["image"][4, 1, 1] = np.nan
    mean, _ = model.vae.encode(inputs, refine=20)
    assert_allclose(mean[2], 0.0)
    assert np.isfinite(mean).all()
    order = [5, 4, 0]
    some = {name: array[order] for name, array in inputs.items()}
    again, _ = model.vae.encode(some, refine=20, batch_size=2)
    assert_allclose(again, mean[order], atol=1e-5)
    empty = {name: array[:0] for name, array in inputs.items()}
    assert model.vae.encode(empty, refine=20)[0].shape == (0, 2)


def test_points_have_no_evidence():
    """An autoencoder says why not."""
    model = LinearModel("delta")
    with pytest.raises(ValueError, match="posterior with a density"):
        model.vae.log_evidence(model.inputs)


def test_mixture_prior_in_a_model():
    """Responsibilities are those of the prior; samples come from a component."""
    prior = MixturePrior(3, 2, seed=1)
    model = LinearModel("diagonal", prior=prior)
    model.set_posterior(np.log(np.diag(model.covariance)))
    inputs = {**model.inputs, "mask": np.zeros((6, *SHAPE), bool)}
    inputs["mask"][2] = True
    gamma = model.vae.responsibilities(inputs)
    expected = ops.convert_to_numpy(
        prior.responsibilities(*model.vae.encode(inputs))
    ).copy()
    expected[2] = np.nan
    assert_allclose(gamma, expected, atol=1e-6)
    drawn = model.vae.sample(400, component=2, seed=1)
    component = prior.components()
    error = np.sqrt(component["covariances"][2] / 400)
    assert (np.abs(drawn["z"].mean(0) - component["means"][2]) < 5 * error).all()
    assert drawn["mean"].shape == (400, *SHAPE)
    with pytest.raises(ValueError, match="component must be from 0 to 2"):
        model.vae.sample(2, component=3)


def test_models_without_components_say_so():
    """Both doors."""
    model = LinearModel("diagonal")
    with pytest.raises(ValueError, match="needs a prior with components"):
        model.vae.responsibilities(model.inputs)
    with pytest.raises(ValueError, match="needs a prior with components"):
        model.vae.sample(1, component=0)


def test_active_units(rng):
    """A latent that the encoder ignores is not active."""
    model = LinearModel("diagonal", latent_dim=3)
    model.set_posterior(np.zeros(3))
    kernel, bias = model.vae.posterior_layer.get_weights()
    kernel[:, 1] = 0
    model.vae.posterior_layer.set_weights([kernel, bias])
    active = model.vae.active_units(model.inputs)
    assert active.tolist() == [True, False, True]
    one = {name: array[:1] for name, array in model.inputs.items()}
    assert not model.vae.active_units(one).any()


def test_full_posterior_trains(stack):
    """Every weight of a full posterior has a gradient; saved, it is the same."""
    keras.utils.set_random_seed(1)
    vae = VAE(stack.image_shape, 3, DenseEncoder((16,)), posterior="full", seed=1)
    vae.compile(keras.optimizers.Adam(1e-2))
    before = [np.array(w) for w in vae.trainable_weights]
    history = vae.fit(stack, batch_size=16, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    for old, weight in zip(before, vae.trainable_weights, strict=True):
        assert not np.array_equal(old, np.array(weight)), weight.path
    copy = VAE.from_config(vae.get_config())
    copy.set_weights(vae.get_weights())
    assert_allclose(copy.encode(stack)[1], vae.encode(stack)[1], atol=1e-6)
    mean, log_var = vae.encode(stack)
    assert_allclose(mean[3], 0)
    assert_allclose(log_var[3], 0)


def test_calibrate_finds_the_true_variance(rng):
    """With the noise known, the best factor is the mean of chi2."""
    model = LinearModel("delta", latent_dim=1)
    vae = model.vae
    vae.likelihood.learn_variance = False
    inputs = {"image": model.inputs["image"], "mask": np.zeros((6, *SHAPE), bool)}
    inputs["mask"][2] = True
    inputs["mask"][4, :2] = True
    vae.likelihood.sigma_floor = 0.9
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        vae.calibrate({name: array[2:3] for name, array in inputs.items()})
    count = (~inputs["mask"]).sum(axis=(1, 2, 3))
    before = vae.measure(inputs)
    chi2 = np.average(before["vae_chi2"][count > 0], weights=count[count > 0])
    factor = vae.calibrate(inputs)
    assert_allclose(factor, chi2, rtol=1e-3)
    assert vae.variance_factor == factor
    after = vae.measure(inputs)
    assert_allclose(after["vae_chi2"], before["vae_chi2"] / factor, rtol=1e-4)
    # doing it again changes nothing
    assert_allclose(vae.calibrate(inputs), factor, rtol=1e-4)


def test_evidence_of_many_pixels_keeps_its_digits():
    """Equal weights of 1e5 nats add up to themselves."""
    shape = (96, 96, 1)
    vae = VAE(shape, 2, DenseEncoder(()), DenseDecoder((96, 96, 2), ()), seed=1)
    for layer in (vae.posterior_layer, vae.decoder.output_layer):
        layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    x = np.full((1, *shape), 6.0, "float32")
    evidence, size = vae.log_evidence({"image": x}, num_samples=512)
    variance = np.log(2) + 1e-6
    expected = stats.norm.logpdf(6.0, 0, np.sqrt(variance)) * 96 * 96
    assert expected < -1e5
    # sums of so many pixels differ between backends, but not between samples
    assert_allclose(evidence, expected, rtol=2e-5)
    single, _ = vae.log_evidence({"image": x}, num_samples=1)
    assert_allclose(evidence, single, atol=0.05)
    assert_allclose(size, 512, rtol=1e-4)


@pytest.mark.parametrize(
    ("where", "number"), [("before", 0), ("within", 0), ("within", 2), ("after", 2)]
)
def test_an_interrupted_refinement_leaves_the_model_whole(monkeypatch, where, number):
    """Its weights are there, and what is asked next is answered."""
    from astrovae.models import _refine

    model = LinearModel("diagonal")
    vae = model.vae
    before, weights = vae.encode(model.inputs), vae.get_weights()

    def interrupt(batch, logs=None):
        if batch == number:
            raise KeyboardInterrupt

    edge = {"before": "begin", "after": "end"}.get(where)
    edges = {f"on_train_batch_{edge}": interrupt} if edge else {}
    steps = itertools.count()

    def fit(self, *args, **kwargs):
        callback = keras.callbacks.LambdaCallback(**edges)
        return keras.Model.fit(self, *args, callbacks=[callback], **kwargs)

    def make_train_function(self, force=False):
        keras.Model.make_train_function(self, force=force)
        function = self.train_function

        def train(*args):
            found = function(*args)
            # what went in is gone, and what came out is not yet kept
            interrupt(next(steps))
            return found

        self.train_function = train

    with monkeypatch.context() as patch:
        patch.setattr(_refine._Refiner, "fit", fit)
        if where == "within":
            patch.setattr(_refine._Refiner, "make_train_function", make_train_function)
        with pytest.raises(KeyboardInterrupt):
            vae.encode(model.inputs, refine=10)
    for old, new in zip(weights, vae.get_weights(), strict=True):
        assert np.array_equal(old, new)
    assert_allclose(vae.encode(model.inputs)[0], before[0], atol=1e-6)
    assert np.isfinite(vae.encode(model.inputs, refine=10)[0]).all()


def test_refinement_works_in_half_precision():
    """Whatever the global policy is, posteriors are float32."""
    model = LinearModel("diagonal")
    before = model.vae.elbo(model.inputs)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        after = model.vae.elbo(model.inputs, refine=30)
    finally:
        keras.config.set_dtype_policy(policy)
    assert (after > before).all()


def test_calibrating_nothing_is_refused():
    """Known noise alone, and cross-entropy, have no variance of their own."""
    model = LinearModel("diagonal")
    with pytest.raises(ValueError, match="learned, or a sigma_floor"):
        model.vae.calibrate(model.inputs)


def test_a_missing_band_is_not_painted_perfectly(stack):
    """Its terms are NaN, those of the galaxy are not."""
    mask = stack.mask.copy()
    mask[5, ..., 1] = True
    vae = VAE(stack.image_shape, 2, DenseEncoder((8,)), seed=1)
    vae.adapt(stack)
    columns = vae.measure(stack.replace(mask=mask))
    for name in ("vae_mse", "vae_chi2", "vae_log_like"):
        assert np.isfinite(columns[name][5, 0])
        assert np.isnan(columns[name][5, 1])
    assert np.isfinite(columns["vae_elbo"][5])
