# Licensed under a 3-clause BSD style license - see LICENSE

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.mixture import GaussianMixture

from astrovae.exceptions import AstrovaeWarning
from astrovae.layers import (
    FlowPrior,
    GaussianPrior,
    MaskedAutoregressiveFlow,
    MixturePrior,
    Prior,
    VampPrior,
)
from astrovae.ops import gaussian_cross_entropy, gaussian_cross_entropy_tril
from checks import LAYER_CASES, PRIOR_CASES, bind_encoder, check_layer, check_prior

COVARIANCES = ("diagonal", "tied", "full")
SKLEARN = {"diagonal": "diag", "tied": "tied", "full": "full"}


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def make_mixture(covariance, rng, num_components=4, dim=3, spread=2.0):
    """Make a fitted scikit-learn mixture with known parameters."""
    mixture = GaussianMixture(num_components, covariance_type=SKLEARN[covariance])
    shape = (num_components, dim)
    factors = np.tril(0.2 * rng.normal(size=(*shape, dim)), -1) + 0.6 * np.eye(dim)
    covariances = factors @ np.swapaxes(factors, 1, 2)
    mixture.weights_ = rng.dirichlet(np.full(num_components, 3.0))
    mixture.means_ = spread * rng.normal(size=shape)
    if covariance == "diagonal":
        mixture.covariances_ = rng.uniform(0.1, 2.0, size=shape)
        mixture.precisions_cholesky_ = mixture.covariances_**-0.5
    else:
        if covariance == "tied":
            covariances = covariances[0]
        mixture.covariances_ = covariances
        inverse = np.linalg.inv(np.linalg.cholesky(covariances))
        mixture.precisions_cholesky_ = np.swapaxes(inverse, -1, -2)
    return mixture


def make_prior(covariance, rng, **kwargs):
    mixture = make_mixture(covariance, rng, **kwargs)
    prior = MixturePrior(*mixture.means_.shape, covariance=covariance, seed=2)
    prior.initialize_from_gmm(mixture)
    return prior, mixture


def make_posteriors(rng, n, dim=3):
    mean = 2 * rng.normal(size=(n, dim))
    log_var = rng.normal(size=(n, dim)) - 1
    factors = np.tril(0.3 * rng.normal(size=(n, dim, dim)))
    i = np.arange(dim)
    factors[:, i, i] = np.exp(0.5 * log_var)
    return mean, log_var, factors


@pytest.mark.parametrize("cls", PRIOR_CASES)
def test_prior(cls):
    """Every prior is a density, and its KL divergence is one."""
    check_prior(PRIOR_CASES[cls])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_mixture_prior(covariance):
    """So is a mixture of each shape."""
    check_prior(lambda: PRIOR_CASES[MixturePrior](covariance=covariance))


@pytest.mark.parametrize("cls", PRIOR_CASES)
def test_layer(cls, tmp_path):
    """Every prior is a good Keras layer."""
    check_layer(LAYER_CASES[cls], tmp_path)


@pytest.mark.parametrize("covariance", COVARIANCES[1:])
def test_mixture_layer(covariance, tmp_path):
    """So is a mixture of each shape."""
    case = LAYER_CASES[MixturePrior]

    def make(**kwargs):
        return case.make(covariance=covariance, **kwargs)

    check_layer(type(case)(make, case.shapes), tmp_path)


def test_gaussian_kl_with_full_covariance(rng):
    """The KL divergence is the closed form, and its terms are not negative."""
    mean, _, factors = make_posteriors(rng, 20)
    prior = GaussianPrior(3)
    covariance = factors @ np.swapaxes(factors, 1, 2)
    trace = np.trace(covariance, axis1=1, axis2=2)
    log_det = np.linalg.slogdet(covariance)[1]
    expected = 0.5 * (trace + (mean**2).sum(axis=1) - 3 - log_det)
    assert_allclose(
        numpy_of(prior.kl_divergence(mean, scale_tril=factors)), expected, 1e-5
    )
    terms = numpy_of(prior.kl_terms(mean, scale_tril=factors))
    assert terms.shape == mean.shape
    assert (terms >= 0).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_prob_equals_sklearn(covariance, rng):
    """Densities are those of scikit-learn in float64."""
    prior, mixture = make_prior(covariance, rng)
    z = (3 * rng.normal(size=(500, 3))).astype("float32")
    expected = mixture.score_samples(z.astype(float))
    assert_allclose(numpy_of(prior.log_prob(z)), expected, rtol=1e-5, atol=1e-5)
    assert_allclose(
        numpy_of(prior.responsibilities(z)), mixture.predict_proba(z), atol=1e-5
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_products_equal_direct_form(covariance, rng):
    """The two matrix products of training are right to 1e-3."""
    prior, mixture = make_prior(covariance, rng)
    z = (3 * rng.normal(size=(500, 3))).astype("float32")
    joint = numpy_of(prior._log_joint(z, direct=False))
    density = np.logaddexp.reduce(joint, axis=1)
    assert_allclose(density, mixture.score_samples(z.astype(float)), atol=1e-3)


def test_cross_entropies_are_closed_forms(rng):
    """Both forms equal the formula in float64, for points and distributions."""
    mean, log_var, factors = make_posteriors(rng, 6)
    centers, log_vars, shapes = make_posteriors(rng, 4)
    covariance = factors @ np.swapaxes(factors, 1, 2)
    components = shapes @ np.swapaxes(shapes, 1, 2)
    difference = mean[:, None] - centers
    constant = 3 * np.log(2 * np.pi)
    second = np.exp(log_var)[:, None] + difference**2
    diagonal = constant + np.sum(log_vars + second / np.exp(log_vars), axis=-1)
    precision = np.linalg.inv(components)
    full = (
        constant
        + np.linalg.slogdet(components)[1]
        + np.einsum(
            "nkij,kij->nk",
            covariance[:, None] + difference[..., None] * difference[..., None, :],
            precision,
        )
    )
    as_float = [
        ops.cast(a, "float32") for a in (mean, np.exp(log_var), centers, log_vars)
    ]
    whiteners = ops.cast(np.linalg.inv(shapes), "float32")
    for direct in (True, False):
        found = gaussian_cross_entropy(*as_float, direct=direct)
        assert_allclose(numpy_of(found), 0.5 * diagonal, rtol=1e-4)
        found = gaussian_cross_entropy_tril(
            as_float[0],
            ops.cast(covariance, "float32"),
            as_float[2],
            whiteners,
            direct=direct,
        )
        assert_allclose(numpy_of(found), 0.5 * full, rtol=1e-4)
        points = gaussian_cross_entropy(as_float[0], None, *as_float[2:], direct=direct)
        tiny = gaussian_cross_entropy(
            as_float[0], 0 * as_float[1], *as_float[2:], direct=direct
        )
        assert_allclose(numpy_of(points), numpy_of(tiny), rtol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_component_is_closed_form(covariance, rng):
    """With K = 1 the bound is the Gaussian KL divergence."""
    mean, log_var, factors = make_posteriors(rng, 50)
    prior = MixturePrior(1, 3, covariance=covariance)
    prior.means.assign(np.zeros((1, 3)))
    gaussian = GaussianPrior(3)
    for arguments in ({"log_var": log_var}, {"scale_tril": factors}):
        found = numpy_of(prior.kl_divergence(mean, **arguments))
        expected = numpy_of(gaussian.kl_divergence(mean, **arguments))
        assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_bound_is_above_monte_carlo(covariance, rng):
    """The bound is never below the KL divergence."""
    prior, _ = make_prior(covariance, rng, spread=1.0)
    mean, log_var, factors = make_posteriors(rng, 8)
    rows = np.repeat(np.arange(8), 2000)
    for name, value in (("log_var", log_var), ("scale_tril", factors)):
        bound = numpy_of(prior.kl_divergence(mean, **{name: value}))
        draws = prior.kl_divergence(
            mean[rows], **{name: value[rows]}, method="monte_carlo"
        )
        draws = numpy_of(draws).reshape(8, 2000)
        error = draws.std(axis=1) / np.sqrt(2000)
        assert (bound > draws.mean(axis=1) - 4 * error).all()


def test_kl_method_is_a_setting(rng):
    """The prior's own method is used unless another is asked for."""
    prior = MixturePrior(3, 2, kl_method="monte_carlo", seed=1)
    mean, log_var, z = (rng.normal(size=(4, 2)) for _ in range(3))
    found = numpy_of(prior.kl_divergence(mean, log_var, z=z))
    same = numpy_of(prior.kl_divergence(mean, log_var, z=z, method="monte_carlo"))
    bound = numpy_of(prior.kl_divergence(mean, log_var, z=z, method="bound"))
    assert_array_equal(found, same)
    assert not np.allclose(found, bound)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_far_components_give_no_nan(covariance, rng):
    """Gaps of 1e4 between log-densities leave results and gradients finite."""
    prior = MixturePrior(3, 2, covariance=covariance, seed=1)
    prior.means.assign([[0.0, 0.0], [150.0, 0.0], [0.0, -150.0]])
    prior.logits.assign([0.0, 80.0, -80.0])
    mean, log_var = 0.1 * rng.normal(size=(6, 2)), np.full((6, 2), -3.0)

    class Train(keras.Model):
        def __init__(self):
            super().__init__()
            self.prior = prior

        def call(self, inputs):
            return self.prior.kl_divergence(*inputs)

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return ops.mean(y_pred)

    gamma = numpy_of(prior.responsibilities(mean, log_var))
    assert_allclose(gamma, [[1.0, 0.0, 0.0]] * 6, atol=1e-6)
    model = Train()
    model.compile(optimizer="sgd")
    history = model.fit((mean, log_var), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in prior.get_weights())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_responsibilities_do_not_depend_on_the_batch(covariance, rng):
    """They are the same in any batch, in any order, and sum to one."""
    prior, _ = make_prior(covariance, rng)
    mean, log_var, factors = make_posteriors(rng, 40)
    gamma = numpy_of(prior.responsibilities(mean, log_var))
    assert_allclose(gamma.sum(axis=1), 1.0, rtol=1e-6)
    order = rng.permutation(40)
    shuffled = numpy_of(prior.responsibilities(mean[order], log_var[order]))
    assert_allclose(shuffled, gamma[order], atol=1e-6)
    single = [
        numpy_of(prior.responsibilities(mean[i : i + 1], log_var[i : i + 1]))[0]
        for i in range(5)
    ]
    assert_allclose(single, gamma[:5], atol=1e-6)
    gamma = numpy_of(prior.responsibilities(mean, scale_tril=factors))
    some = numpy_of(prior.responsibilities(mean[7:9], scale_tril=factors[7:9]))
    assert_allclose(some, gamma[7:9], atol=1e-6)


def test_width_of_the_posterior_counts(rng):
    """A wide posterior prefers the wide one of two concentric components."""
    mixture = make_mixture("diagonal", rng, num_components=2, dim=2)
    mixture.weights_, mixture.means_ = np.array([0.5, 0.5]), np.zeros((2, 2))
    mixture.covariances_ = np.array([[0.1, 0.1], [4.0, 4.0]])
    prior = MixturePrior(2, 2)
    prior.initialize_from_gmm(mixture)
    narrow, wide = numpy_of(
        prior.responsibilities(np.zeros((2, 2)), np.log([[0.01] * 2, [3.0] * 2]))
    )
    assert narrow[0] > 0.9
    assert wide[1] > 0.9


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_responsibilities_are_calibrated(covariance, rng):
    """Of draws given a probability p of a component, a share p are from it."""
    prior, _ = make_prior(covariance, rng, spread=1.0)
    counts = rng.multinomial(40_000, prior.components()["weights"])
    draws = [
        prior.sample(int(count), seed=k, component=k) for k, count in enumerate(counts)
    ]
    labels = np.repeat(np.arange(len(counts)), counts)
    gamma = numpy_of(prior.responsibilities(ops.concatenate(draws)))
    top, right = gamma.max(axis=1), gamma.argmax(axis=1) == labels
    bins = np.minimum((top * 10).astype(int), 9)
    gaps = [(top - right)[bins == b].sum() for b in range(10)]
    assert np.abs(gaps).sum() / len(top) < 0.01


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_initialize_from_gmm(covariance, rng):
    """Weights, means and covariances become those of the fitted mixture."""
    prior, mixture = make_prior(covariance, rng)
    parts = prior.components()
    assert_allclose(parts["weights"], mixture.weights_, rtol=1e-5)
    assert_allclose(parts["means"], mixture.means_, rtol=1e-6)
    expected = np.broadcast_to(mixture.covariances_, parts["covariances"].shape)
    assert_allclose(parts["covariances"], expected, rtol=1e-5, atol=1e-6)
    added = np.array([0.1, 0.2, 0.3])
    prior.initialize_from_gmm(mixture, posterior_variance=added)
    added = added if covariance == "diagonal" else np.diag(added)
    found = prior.components()["covariances"]
    assert_allclose(found, expected + added, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["spherical", "diag", "tied", "full"])
def test_full_covariances_hold_all(kind, rng):
    """A prior of full covariances takes any fitted mixture."""
    data = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 4])
    mixture = GaussianMixture(2, covariance_type=kind, random_state=0).fit(data)
    prior = MixturePrior(2, 2, covariance="full")
    prior.initialize_from_gmm(mixture)
    expected = mixture.score_samples(data)
    assert_allclose(numpy_of(prior.log_prob(data)), expected, atol=1e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_thin_components_are_raised(covariance, rng):
    """Covariances below the floor are raised, with a warning."""
    mixture = make_mixture(covariance, rng)
    if covariance == "diagonal":
        mixture.covariances_[0, 1] = 1e-7
    else:
        mixture.covariances_[...] = np.diag([1.0, 1e-7, 2.0])
    prior = MixturePrior(4, 3, covariance=covariance)
    with pytest.warns(AstrovaeWarning, match="below 0.0001 and were raised"):
        prior.initialize_from_gmm(mixture)
    covariances = prior.components()["covariances"]
    if covariance == "diagonal":
        assert_allclose(covariances[0, 1], 1e-4, rtol=1e-3)
    else:
        assert_allclose(covariances[0, 1, 1], 1e-4, rtol=1e-3)


def test_initialize_refuses_other_mixtures(rng):
    """Errors say what was expected."""
    prior = MixturePrior(4, 3)
    with pytest.raises(TypeError, match="Call its fit"):
        prior.initialize_from_gmm(GaussianMixture(4))
    with pytest.raises(ValueError, match=r"\(4, 3\), got \(2, 3\)"):
        prior.initialize_from_gmm(make_mixture("diagonal", rng, num_components=2))
    with pytest.raises(ValueError, match="fit one of 'spherical' or 'diag'"):
        prior.initialize_from_gmm(make_mixture("full", rng))


def test_bhattacharyya(rng):
    """Coefficients equal the integral of the geometric mean."""
    for covariance in ("diagonal", "full"):
        prior, _ = make_prior(covariance, rng, num_components=3, dim=1, spread=1.0)
        parts = prior.components()
        x = np.linspace(-15, 15, 4001)
        variances = parts["covariances"].reshape(3, 1)
        densities = np.exp(-0.5 * (x - parts["means"]) ** 2 / variances)
        densities /= np.sqrt(2 * np.pi * variances)
        roots = np.sqrt(densities)
        expected = roots @ roots.T * (x[1] - x[0])
        assert_allclose(prior.bhattacharyya(), expected, atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_merge_duplicates(covariance, rng):
    """Near copies are found and merged; the density hardly changes."""
    mixture = make_mixture(covariance, rng, num_components=4, spread=4.0)
    mixture.means_[2] = mixture.means_[0] + 0.01
    if covariance != "tied":
        mixture.covariances_[2] = 1.02 * mixture.covariances_[0]
    prior = MixturePrior(4, 3, covariance=covariance)
    prior.initialize_from_gmm(mixture)
    ((i, j, coefficient),) = prior.duplicates()
    assert (i, j) == (0, 2)
    assert coefficient > 0.99
    draws = numpy_of(prior.sample(500, seed=1))
    before = numpy_of(prior.log_prob(draws))
    ((kept, emptied),) = prior.merge_duplicates()
    assert {kept, emptied} == {0, 2}
    assert_allclose(numpy_of(prior.log_prob(draws)), before, atol=0.02)
    weights = prior.components()["weights"]
    assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    assert weights[emptied] < 1e-20
    assert_allclose(weights[kept], mixture.weights_[[0, 2]].sum(), rtol=1e-5)
    assert_array_equal(prior.bhattacharyya()[emptied], 0.0)
    assert numpy_of(prior.responsibilities(draws))[:, emptied].max() < 1e-12
    assert prior.duplicates() == []
    assert prior.merge_duplicates() == []


def test_merging_keeps_moments():
    """The merged component has the mean and covariance of both."""
    prior = MixturePrior(2, 2, covariance="full")
    prior.means.assign([[0.0, 0.0], [0.4, 0.2]])
    prior.merge_duplicates(threshold=0.5)
    parts = prior.components()
    kept = parts["weights"].argmax()
    assert_allclose(parts["means"][kept], [0.2, 0.1], atol=1e-6)
    offset = np.array([0.2, 0.1])
    expected = np.eye(2) + np.outer(offset, offset)
    assert_allclose(parts["covariances"][kept], expected, atol=1e-5)


def test_penalty_keeps_components_alive():
    """Its gradient lifts the lightest weight."""
    prior = MixturePrior(3, 2, concentration=1.5)
    prior.logits.assign([0.0, 0.0, -5.0])
    log_weights = numpy_of(prior.log_weights)
    expected = -0.5 * log_weights.sum() / 100
    assert_allclose(float(numpy_of(prior.penalty(100))), expected, rtol=1e-6)
    prior.logits.assign([0.0, 0.0, -4.0])
    assert float(numpy_of(prior.penalty(100))) < expected
    assert MixturePrior(3, 2).penalty(100) == 0.0


def test_densities_are_float32_in_mixed_precision(rng):
    """A KL divergence does not lose digits to bfloat16."""
    mean, log_var = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    for cls, make in PRIOR_CASES.items():
        if cls is Prior:
            continue
        keras.utils.set_random_seed(1)
        expected = make().kl_divergence(mean, log_var, z=mean)
        keras.utils.set_random_seed(1)
        prior = make(dtype="mixed_bfloat16")

        class Model(keras.Model):
            def call(self, inputs, prior=prior):
                return prior.kl_divergence(*inputs, z=inputs[0])

        inputs = (ops.cast(mean, "float32"), ops.cast(log_var, "float32"))
        model = Model(dtype="mixed_bfloat16")
        model.autocast = False
        found = model(inputs)
        assert str(numpy_of(found).dtype) == "float32"
        assert_allclose(numpy_of(found), numpy_of(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", PRIOR_CASES)
def test_methods_compile(cls, rng):
    """What a model needs of a prior can be compiled."""
    prior = PRIOR_CASES[cls]()
    mean, log_var, z = rng.normal(size=(3, 4, 2)).astype("float32")

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.prior = prior

        def call(self, inputs):
            mean, log_var, z = inputs
            prior_mean, prior_log_var = self.prior.moments()
            return {
                "kl": self.prior.kl_divergence(mean, log_var, z),
                "terms": self.prior.kl_terms(mean, log_var, z),
                "shifted": (mean - prior_mean) * ops.exp(-prior_log_var),
            }

    model = Model()
    model.compile(jit_compile=keras.config.backend() != "torch")
    found = model.predict_on_batch((mean, log_var, z))
    expected = model((mean, log_var, z))
    for name, value in expected.items():
        # moments from draws: compiled, TensorFlow draws other numbers
        drawn = name == "shifted" and cls is Prior
        atol = 0.2 if drawn else 1e-5
        assert_allclose(found[name], numpy_of(value), rtol=1e-4, atol=atol)


def test_vamp_prior_is_the_mean_of_posteriors(rng):
    """Its density is that of the encoded pseudo-images."""
    prior = PRIOR_CASES[VampPrior]()
    images = rng.normal(size=(4, 1, 2, 1))
    prior.initialize_from_images(images)
    z = rng.normal(size=(20, 2))
    variance = np.exp(-1.0) + 1e-4
    square = ((z[:, None] - images.reshape(4, 2)) ** 2).sum(axis=-1)
    densities = np.exp(-0.5 * square / variance) / (2 * np.pi * variance)
    expected = np.log(densities.mean(axis=1))
    assert_allclose(numpy_of(prior.log_prob(z)), expected, rtol=1e-5)
    parts = prior.components()
    assert_allclose(parts["means"], images.reshape(4, 2), rtol=1e-6)
    assert_allclose(parts["covariances"], variance, rtol=1e-5)


def test_vamp_prior_leaves_the_encoder_alone():
    """The encoder is not a part of the prior."""
    prior = VampPrior(2, 3, image_shape=(4, 4, 1))
    with pytest.raises(RuntimeError, match=r"prior.bind\(encoder\)"):
        prior.log_prob(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 1\), got \(2, 4, 4\)"):
        prior.initialize_from_images(np.zeros((2, 4, 4)))
    inputs = keras.Input((4, 4, 1))
    flat = keras.layers.Flatten()(inputs)
    outputs = [keras.layers.Dense(3)(flat) for _ in range(2)]
    prior.bind(keras.Model(inputs, outputs))
    assert [weight.name for weight in prior.weights] == ["pseudo_images"]
    assert prior.log_prob(np.zeros((5, 3))).shape == (5,)


def test_flow_prior_refuses(rng):
    """A flow with conditions, or no flow, is refused."""
    with pytest.raises(ValueError, match="condition_dim=0, got condition_dim=1"):
        FlowPrior(MaskedAutoregressiveFlow(2, condition_dim=1, num_blocks=1))
    with pytest.raises(TypeError, match="must be a MaskedAutoregressiveFlow"):
        FlowPrior(GaussianPrior(2))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaussianPrior(0), "latent_dim must be a positive integer, got"),
        (lambda: MixturePrior(0, 2), "num_components must be a positive integer"),
        (lambda: MixturePrior(3, 2, covariance="round"), "covariance must be one of"),
        (lambda: MixturePrior(3, 2, concentration=0.5), "at least 1, got"),
        (lambda: MixturePrior(3, 2, kl_method="exact"), "kl_method must be one of"),
        (lambda: MixturePrior(3, 2).sample(5, component=3), "from 0 to 2, got"),
    ],
)
def test_bad_arguments(make, match):
    """Errors say what came and what was expected."""
    with pytest.raises(ValueError, match=match):
        make()


def test_samples_of_one_component(rng):
    """All draws are from the component that is asked for."""
    prior, _mixture = make_prior("full", rng, spread=50.0)
    draws = numpy_of(prior.sample(200, seed=4, component=2))
    assert (numpy_of(prior.responsibilities(draws)).argmax(axis=1) == 2).all()
    assert_array_equal(draws, numpy_of(prior.sample(200, seed=4, component=2)))


def test_prior_with_bound_encoder_reloads(tmp_path, rng):
    """A reloaded VampPrior gives the same densities once it is bound."""
    prior = PRIOR_CASES[VampPrior]()
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(prior)
    )
    again.set_weights(prior.get_weights())
    z = rng.normal(size=(3, 2))
    assert_array_equal(
        numpy_of(bind_encoder(again).log_prob(z)), numpy_of(prior.log_prob(z))
    )
