# Licensed under a 3-clause BSD style license - see LICENSE
"""
Common tests, and the tables of what goes through them.

Every public layer, prior, bijector and estimator is in a table;
test_public_api.py fails if one is missing.
"""

import json
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.baselines import EigenGalaxies, GaussianFit, SersicFit
from astrovae.layers import (
    MADE,
    ActNorm,
    Bijector,
    FlowPrior,
    GaussianPrior,
    GaussianSampling,
    MaskedAutoregressiveFlow,
    MixturePrior,
    PoseTransform,
    Prior,
    PSFConvolution,
    VampPrior,
)

# ---------------------------------------------------------------------------
# What users write on top of the base classes
# ---------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class LaplacePrior(Prior):
    """A prior that defines no more than it must."""

    def log_prob(self, z):
        return -ops.sum(ops.abs(self.as_float(z)) + np.log(2.0), axis=-1)

    def sample(self, n, seed=None):
        uniform = keras.random.uniform(
            (n, self.latent_dim), -0.5, 0.5, seed=self.random_state(seed)
        )
        return -ops.sign(uniform) * ops.log1p(-2.0 * ops.abs(uniform))


@keras.saving.register_keras_serializable("tests")
class SinhBijector(Bijector):
    """A bijector without weights."""

    def call(self, x, conditions=None, inverse=False):
        if inverse:
            y = ops.arcsinh(x)
            return y, -ops.sum(ops.log(ops.cosh(y)), axis=-1)
        return ops.sinh(x), ops.sum(ops.log(ops.cosh(x)), axis=-1)


# ---------------------------------------------------------------------------
# Factories
# ---------------------------------------------------------------------------


def randomize(layer, scale=0.1, seed=0):
    """Move all trainable weights away from where they start."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        noise = scale * rng.normal(size=weight.shape)
        weight.assign(ops.convert_to_numpy(weight) + noise)
    return layer


def bind_encoder(prior):
    """Give a VampPrior an encoder; leave other layers as they are."""
    if isinstance(prior, VampPrior):

        def encoder(images):
            mean = ops.reshape(images, (-1, prior.latent_dim))
            return mean, -1.0 + 0.0 * mean

        prior.bind(encoder)
    return prior


def make_vamp_prior(**kwargs):
    return bind_encoder(VampPrior(4, 2, image_shape=(1, 2, 1), seed=5, **kwargs))


def make_flow(**kwargs):
    options = {
        "latent_dim": 2,
        "num_blocks": 2,
        "hidden_units": (12, 16),
        "activation": "tanh",
        "seed": 3,
        **kwargs,
    }
    return randomize(MaskedAutoregressiveFlow(**options))


def make_made(**kwargs):
    options = {
        "latent_dim": 3,
        "condition_dim": 2,
        "hidden_units": (12, 16),
        "activation": "tanh",
        "permutation": (2, 0, 1),
        **kwargs,
    }
    return randomize(MADE(**options))


# Each makes a prior of two latents; arguments are passed on to the layer.
PRIOR_CASES = {
    Prior: lambda **kwargs: LaplacePrior(2, **kwargs),
    GaussianPrior: lambda **kwargs: GaussianPrior(2, **kwargs),
    MixturePrior: lambda **kwargs: randomize(MixturePrior(3, 2, seed=5, **kwargs)),
    VampPrior: make_vamp_prior,
    FlowPrior: lambda **kwargs: FlowPrior(make_flow(**kwargs), **kwargs),
}

# Each makes a bijector.
BIJECTOR_CASES = {
    Bijector: lambda **kwargs: SinhBijector(2, **kwargs),
    ActNorm: lambda **kwargs: randomize(ActNorm(3, **kwargs)),
    MADE: make_made,
    MaskedAutoregressiveFlow: lambda **kwargs: make_flow(condition_dim=2, **kwargs),
}


@dataclass(frozen=True)
class LayerCase:
    """
    How `check_layer` makes a layer and calls it.

    Attributes
    ----------
    make : callable
        ``make(**kwargs)`` gives a layer; kwargs are those of
        `keras.layers.Layer`.
    shapes : tuple
        Shapes of the arguments of a call without their first axis; an
        argument that is itself a tuple of tensors is a list of shapes.
    random : bool
        Whether calls with the same arguments differ.
    prepare : callable
        Called on layers that were loaded.
    """

    make: callable
    shapes: tuple
    random: bool = False
    prepare: callable = lambda layer: layer

    def arguments(self, n, seed=0):
        """Make arguments of a call, for n rows."""
        rng = np.random.default_rng(seed)

        def draw(shape):
            if isinstance(shape, list):
                return tuple(draw(item) for item in shape)
            return rng.normal(size=(n, *shape)).astype("float32")

        return tuple(draw(shape) for shape in self.shapes)


def bijector_shapes(make):
    layer = make()
    return ((layer.latent_dim,), (layer.condition_dim,))[
        : 1 + (layer.condition_dim > 0)
    ]


LAYER_CASES = {
    GaussianSampling: LayerCase(
        lambda **kwargs: GaussianSampling(seed=1, **kwargs),
        ([(2,), (2,)],),
        random=True,
    ),
    **{
        cls: LayerCase(make, ((2,),), prepare=bind_encoder)
        for cls, make in PRIOR_CASES.items()
    },
    **{
        cls: LayerCase(make, bijector_shapes(make))
        for cls, make in BIJECTOR_CASES.items()
    },
    PSFConvolution: LayerCase(PSFConvolution, ([(6, 7, 2), (5, 5, 2)],)),
    PoseTransform: LayerCase(
        lambda **kwargs: PoseTransform((8, 9), **kwargs), ([(6, 7, 2), (4,)],)
    ),
}

# Classes with a fit, each with a function that makes one.
ESTIMATOR_CASES = {cls: cls for cls in (EigenGalaxies, GaussianFit, SersicFit)}


# ---------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------


def to_numpy(tensors):
    """Convert nested tensors to a list of arrays."""
    return [ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(tensors)]


class Trainer(keras.Model):
    """Pull all outputs of a layer to one number."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs):
        return self.layer(*inputs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        outputs = keras.tree.flatten(y_pred)
        losses = [ops.mean(ops.square(output - 0.3)) for output in outputs]
        return sum(ops.cast(loss, "float32") for loss in losses)


def check_layer(case, tmp_path):
    """
    Test what all layers have in common.

    Configuration and JSON, symbolic and eager calls, two batch sizes,
    training, saving, compiled calls and mixed precision.
    """
    layer = case.make()
    check_config(layer)
    check_calls(case, layer)
    check_saving(case, layer, tmp_path)
    check_training(case)
    check_mixed_precision(case)
    if hasattr(layer, "seed"):
        check_seed(case)


def check_config(layer):
    """A configuration is complete, and JSON can hold it."""
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


def check_calls(case, layer):
    """Calls agree: symbolic and eager, of few rows and many."""
    arguments = case.arguments(5)
    symbols = keras.tree.map_structure(lambda a: keras.Input(a.shape[1:]), arguments)
    symbolic = keras.tree.flatten(layer(*symbols))
    outputs = to_numpy(layer(*arguments))
    assert [tuple(s.shape[1:]) for s in symbolic] == [o.shape[1:] for o in outputs]
    assert [s.dtype for s in symbolic] == [str(o.dtype) for o in outputs]
    assert all(np.isfinite(output).all() for output in outputs)
    if not case.random:
        few = keras.tree.map_structure(lambda array: array[:2], arguments)
        for some, every in zip(to_numpy(layer(*few)), outputs, strict=True):
            assert_allclose(some, every[:2], rtol=1e-5, atol=1e-5)


def check_saving(case, layer, tmp_path):
    """A saved model comes back, and compiled calls agree with eager ones."""
    arguments = case.arguments(4)
    symbols = keras.tree.map_structure(lambda a: keras.Input(a.shape[1:]), arguments)
    model = keras.Model(keras.tree.flatten(symbols), layer(*symbols))
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    (loaded,) = (part for part in again.layers if type(part) is type(layer))
    case.prepare(loaded)
    before, after = layer.get_weights(), loaded.get_weights()
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert_array_equal(one, other)
    if hasattr(layer, "seed"):
        assert_array_equal(draw_three(loaded), draw_three(layer))
    compiled = to_numpy(again.predict_on_batch(keras.tree.flatten(arguments)))
    for one, other in zip(to_numpy(layer(*arguments)), compiled, strict=True):
        # also of random layers: the state came back, too
        assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def check_training(case):
    """Some steps of fit move every trainable weight, and leave all finite."""
    layer = case.make()
    before = [ops.convert_to_numpy(weight) for weight in layer.trainable_weights]
    if not before:
        return
    trainer = Trainer(layer)
    trainer.compile(optimizer=keras.optimizers.Adam(0.01))
    trainer.fit(case.arguments(12), batch_size=4, verbose=0)
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        new = ops.convert_to_numpy(weight)
        assert np.isfinite(new).all(), weight.path
        assert (new != old).any(), weight.path


def check_mixed_precision(case):
    """In mixed precision, weights and results are right and finite."""
    layer = case.make(dtype="mixed_bfloat16")
    assert all(weight.dtype == "float32" for weight in layer.trainable_weights)
    for output in keras.tree.flatten(layer(*case.arguments(3))):
        array = ops.convert_to_numpy(ops.cast(output, "float32"))
        assert np.isfinite(array).all()


def draw_three(layer):
    """Draw numbers from the random state of a layer."""
    state = layer.random_state(None)
    return ops.convert_to_numpy(keras.random.normal((3,), seed=state))


def check_seed(case):
    """Random numbers follow from the seed."""
    first, second = case.make(), case.make()
    if first.seed is not None:
        assert_array_equal(draw_three(first), draw_three(second))
    assert (draw_three(first) != draw_three(first)).all()


# ---------------------------------------------------------------------------
# Bijectors
# ---------------------------------------------------------------------------


def differentiate(layer, x, conditions, *, inverse=False, step=1e-2):
    """
    Evaluate a bijector and, by central differences, its Jacobian.

    In one call, since JAX compiles for each number of rows.

    Returns
    -------
    y, log_det, jacobian : ndarray
        Shapes (n, dim), (n,) and (n, dim, dim).
    """
    n, dim = x.shape
    shifts = step * np.concatenate([np.eye(dim), -np.eye(dim), np.zeros((1, dim))])
    shifted = (x + shifts[:, None]).reshape(-1, dim).astype("float32")
    if conditions is not None:
        conditions = np.tile(conditions, (2 * dim + 1, 1))
    y, log_det = map(ops.convert_to_numpy, layer(shifted, conditions, inverse=inverse))
    assert y.shape == shifted.shape
    assert log_det.shape == shifted.shape[:1]
    up, down = y[:-n].reshape(2, dim, n, dim)
    return y[-n:], log_det[-n:], np.moveaxis((up - down) / (2 * step), 0, -1)


def check_bijector(make):
    """
    Test what all bijectors have in common.

    The inverse undoes the map; both log-determinants are those of the
    Jacobian; it is triangular where there is an order.
    """
    layer = make()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, layer.latent_dim)).astype("float32")
    conditions = None
    if layer.condition_dim:
        conditions = rng.normal(size=(6, layer.condition_dim)).astype("float32")
    y, log_det, matrix = differentiate(layer, x, conditions)
    assert_allclose(np.linalg.slogdet(matrix)[1], log_det, atol=5e-3)
    back, inverse_log_det, inverse = differentiate(layer, y, conditions, inverse=True)
    assert_allclose(np.linalg.slogdet(inverse)[1], inverse_log_det, atol=5e-3)
    assert_allclose(back, x, atol=1e-5)
    assert_allclose(inverse_log_det, -log_det, atol=1e-5)
    if hasattr(layer, "permutation"):
        order = np.array(layer.permutation)
        ordered = matrix[:, order][:, :, order]
        assert_array_equal(np.triu(ordered, 1), 0.0)


# ---------------------------------------------------------------------------
# Priors
# ---------------------------------------------------------------------------


def grid_density(log_prob, extent=9.0, size=181):
    """Evaluate a 2-D density on a grid: points, densities times cell area."""
    axis = np.linspace(-extent, extent, size)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(ops.convert_to_numpy(log_prob(points)).astype(float))
    return points, density * (axis[1] - axis[0]) ** 2


def check_prior(make):
    """
    Test what all priors have in common.

    The density integrates to one, samples follow it, and the KL divergence
    is, or bounds, what many samples give.
    """
    prior = make()
    points, mass = grid_density(prior.log_prob)
    assert_allclose(mass.sum(), 1.0, rtol=3e-3)

    draws = ops.convert_to_numpy(prior.sample(20_000, seed=3)).astype(float)
    center = mass @ points
    covariance = (points - center).T @ ((points - center) * mass[:, None])
    error = np.sqrt(np.diag(covariance) / len(draws))
    assert (np.abs(draws.mean(axis=0) - center) < 5 * error).all()
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert_allclose(np.cov(draws.T) / scale, covariance / scale, atol=0.06)
    # cells are cut where the density is flat: compare its mean along the draws
    expected = np.sum(mass * ops.convert_to_numpy(prior.log_prob(points)))
    found = ops.convert_to_numpy(prior.log_prob(draws)).mean()
    assert_allclose(found, expected, atol=0.04)

    mean, log_var = map(ops.convert_to_numpy, prior.moments())
    variance = np.diag(covariance)
    assert_allclose(mean, center, atol=0.1)
    assert_allclose(np.exp(log_var), variance, rtol=0.15)

    check_kl_divergence(prior)


def check_kl_divergence(prior, num_draws=20_000):
    """Compare the KL divergence with averages over many samples."""
    rng = np.random.default_rng(2)
    mean = rng.normal(size=(2, 2))
    scale_tril = np.array([[[0.5, 0.0], [0.3, 0.4]], [[0.9, 0.0], [-0.6, 0.5]]])
    log_var = np.log(np.array([[0.3, 0.8], [0.1, 1.2]]))
    diagonal = np.exp(0.5 * log_var)[:, :, None] * np.eye(2)
    noise = rng.normal(size=(num_draws, 2))
    for factors, arguments in (
        (diagonal, {"log_var": log_var}),
        (scale_tril, {"scale_tril": scale_tril}),
    ):
        kl = ops.convert_to_numpy(prior.kl_divergence(mean, **arguments))
        terms = ops.convert_to_numpy(prior.kl_terms(mean, **arguments))
        assert kl.shape == (2,)
        assert terms.shape in ((2, 1), (2, prior.latent_dim))
        for row in range(2):
            z = mean[row] + noise @ factors[row].T
            log_det = np.log(np.diag(factors[row])).sum()
            log_q = -0.5 * (noise**2).sum(axis=1) - log_det - np.log(2 * np.pi)
            draws = log_q - ops.convert_to_numpy(prior.log_prob(z))
            average, error = draws.mean(), draws.std() / np.sqrt(num_draws)
            many = {
                name: np.repeat(value[row : row + 1], num_draws, axis=0)
                for name, value in {"mean": mean, **arguments}.items()
            }
            estimates = Prior.kl_divergence(prior, **many, z=z)
            assert_allclose(ops.convert_to_numpy(estimates), draws, atol=2e-3)
            if hasattr(prior, "kl_method"):
                assert kl[row] > average - 5 * error
            elif type(prior).kl_divergence is not Prior.kl_divergence:
                assert_allclose(kl[row], average, atol=5 * error + 1e-5)
                assert_allclose(terms[row].sum(), kl[row], rtol=1e-5)
