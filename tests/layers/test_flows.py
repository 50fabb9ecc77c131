# Licensed under a 3-clause BSD style license - see LICENSE

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.layers import MADE, ActNorm, FlowPrior, MaskedAutoregressiveFlow
from astrovae.layers import flows as flows_module
from astrovae.ops import rational_quadratic_spline, soft_clip, write_rows
from checks import (
    BIJECTOR_CASES,
    LAYER_CASES,
    LayerCase,
    bijector_shapes,
    check_bijector,
    check_layer,
    grid_density,
    make_flow,
    make_made,
    randomize,
)

# Shapes of networks and options beyond those of BIJECTOR_CASES.
MADE_OPTIONS = {
    "no conditions": {"condition_dim": 0},
    "spline": {"transform": "spline", "num_bins": 5},
    "no limit": {"limit": None},
    "one latent": {"latent_dim": 1, "permutation": None},
    "one latent alone": {"latent_dim": 1, "permutation": None, "condition_dim": 0},
    "narrow": {"latent_dim": 5, "permutation": (4, 1, 0, 2, 3), "hidden_units": (3, 2)},
    "uneven": {"hidden_units": (7, 31, 5)},
    "linear": {"hidden_units": ()},
}
FLOW_OPTIONS = {
    "act_norm": {"act_norm": True},
    "spline": {"transform": "spline"},
    "random": {"latent_dim": 4, "permutations": "random"},
    "given": {"permutations": [[1, 0], [0, 1]]},
}


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def invert_by_passes(made, u, conditions):
    """Invert a MADE by a pass of its network per latent."""
    u = ops.convert_to_tensor(u)
    x = ops.zeros_like(u)
    for _ in range(made.latent_dim):
        x, _ = made._transform(u, made.parameters(x, conditions), inverse=True)
    return numpy_of(x)


def numpy_flow(flow, x, conditions):
    """Evaluate an affine flow in float64, from its weights, formula by formula."""
    conditions = (conditions - numpy_of(flow.condition_location)) / numpy_of(
        flow.condition_scale
    )
    scale = numpy_of(flow.scale).astype(float)
    x = (x - numpy_of(flow.location)) / scale
    log_det = np.full(len(x), -np.log(scale).sum())
    for made in flow.bijectors:
        dim = made.latent_dim
        kernels = [numpy_of(kernel).astype(float) for kernel in made.kernels]
        biases = [numpy_of(bias).astype(float) for bias in made.biases]
        degrees = [np.argsort(made.permutation) + 1] + [
            np.floor(np.arange(units) * dim / units) for units in made.hidden_units
        ]
        y = x.copy()
        for place, i in enumerate(made.permutation):
            h = x
            for layer, kernel in enumerate(kernels[:-1]):
                sees = degrees[layer][:, None] <= degrees[layer + 1][None]
                h = h @ np.where(sees, kernel, 0) + biases[layer]
                if layer == 0:
                    h = h + conditions @ numpy_of(made.condition_kernel)
                h = np.tanh(h)
            h = h[:, degrees[-1] <= place]
            seen = kernels[-1][degrees[-1] <= place]
            shift = h @ seen[:, i] + biases[-1][i]
            a = h @ seen[:, dim + i] + biases[-1][dim + i]
            alpha = made.limit * np.tanh(a / made.limit)
            y[:, i] = (x[:, i] - shift) * np.exp(-alpha)
            log_det -= alpha
        x = y
    return x, log_det


@pytest.mark.parametrize("cls", BIJECTOR_CASES)
def test_bijector(cls):
    """Every bijector can be inverted, and knows its determinants."""
    check_bijector(BIJECTOR_CASES[cls])


@pytest.mark.parametrize("name", MADE_OPTIONS)
def test_made_options(name):
    """So does every kind of MADE."""
    check_bijector(lambda: make_made(**MADE_OPTIONS[name]))


@pytest.mark.parametrize("name", FLOW_OPTIONS)
def test_flow_options(name):
    """So does every kind of flow."""
    options = {"condition_dim": 2, **FLOW_OPTIONS[name]}
    check_bijector(lambda: make_flow(**options))


@pytest.mark.parametrize("cls", BIJECTOR_CASES)
def test_layer(cls, tmp_path):
    """Every bijector is a good Keras layer."""
    check_layer(LAYER_CASES[cls], tmp_path)


@pytest.mark.parametrize("name", ["act_norm", "spline"])
def test_flow_layer(name, tmp_path):
    """So is every kind of flow: every weight learns, and it is saved."""
    options = {"condition_dim": 2, **FLOW_OPTIONS[name]}

    def make(**kwargs):
        return make_flow(**options, **kwargs)

    check_layer(LayerCase(make, bijector_shapes(make)), tmp_path)


@pytest.mark.parametrize("name", ["affine", "spline"])
def test_flow_starts_as_identity(name, rng):
    """A new flow is a standard normal density."""
    flow = MaskedAutoregressiveFlow(3, 2, num_blocks=2, transform=name, act_norm=True)
    x, conditions = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    u, log_det = flow(x, conditions)
    assert_allclose(numpy_of(u), x, atol=2e-6)
    assert_allclose(numpy_of(log_det), 0.0, atol=2e-6)


@pytest.mark.parametrize("name", MADE_OPTIONS)
def test_inverse_equals_passes(name, rng):
    """The incremental inverse is that of a pass per latent."""
    made = make_made(**MADE_OPTIONS[name])
    u = rng.normal(size=(40, made.latent_dim)).astype("float32")
    conditions = None
    if made.condition_dim:
        conditions = rng.normal(size=(40, made.condition_dim)).astype("float32")
    x, _ = made(u, conditions, inverse=True)
    assert_allclose(numpy_of(x), invert_by_passes(made, u, conditions), atol=1e-5)


def test_flow_equals_numpy(rng):
    """The flow equals its formulae, written out in float64."""
    flow = make_flow(latent_dim=4, condition_dim=2, permutations="random")
    x = 3 * rng.normal(size=(50, 4)) + 1
    conditions = rng.normal(size=(50, 2)) - 2
    flow.adapt(x, conditions)
    u, log_det = flow(x, conditions)
    expected, expected_log_det = numpy_flow(flow, x, conditions)
    assert_allclose(numpy_of(u), expected, atol=1e-5)
    assert_allclose(numpy_of(log_det), expected_log_det, atol=1e-5)
    density = -0.5 * (expected**2 + np.log(2 * np.pi)).sum(axis=1) + expected_log_det
    assert_allclose(numpy_of(flow.log_prob(x, conditions)), density, atol=1e-4)


@pytest.mark.parametrize("name", FLOW_OPTIONS)
def test_density_integrates_to_one(name, rng):
    """So it does for any condition."""
    flow = make_flow(condition_dim=1, **{**FLOW_OPTIONS[name], "latent_dim": 2})
    flow.adapt(1 + 1.5 * rng.normal(size=(50, 2)), rng.normal(size=(50, 1)))
    for condition in (-1.0, 2.0):
        _, mass = grid_density(
            lambda z, c=condition: flow.log_prob(z, np.full((len(z), 1), c))
        )
        assert_allclose(mass.sum(), 1.0, rtol=2e-3)


def test_every_output_depends_on_conditions(rng):
    """So does the first one, and on each condition."""
    made = make_made()
    x = np.repeat(rng.normal(size=(1, 3)), 3, axis=0)
    conditions = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    params = numpy_of(made.parameters(x, conditions))
    for other in (1, 2):
        assert (np.abs(params[other] - params[0]) > 1e-4).all()


def test_network_is_autoregressive(rng):
    """Parameters of a latent depend on all before it and on no other."""
    made = make_made(latent_dim=5, permutation=None, hidden_units=(64, 64))
    x, conditions = rng.normal(size=(1, 5)), rng.normal(size=(1, 2))
    params = numpy_of(made.parameters(x, conditions))
    for j in range(5):
        shifted = x.copy()
        shifted[:, j] += 0.5
        changed = numpy_of(made.parameters(shifted, conditions)) != params
        assert_array_equal(changed.all(axis=1)[0], np.arange(5) > j)
        assert_array_equal(changed.any(axis=1)[0], np.arange(5) > j)


def test_permutations():
    """They are fixed, and the configuration holds them."""
    flow = MaskedAutoregressiveFlow(3, num_blocks=3)
    assert flow.get_config()["permutations"] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
    flow = MaskedAutoregressiveFlow(8, num_blocks=2, permutations="random", seed=4)
    orders = flow.get_config()["permutations"]
    again = MaskedAutoregressiveFlow.from_config(flow.get_config())
    assert [list(made.permutation) for made in again.bijectors] == orders
    assert orders[0] != orders[1]
    same = MaskedAutoregressiveFlow(8, num_blocks=2, permutations="random", seed=4)
    assert same.get_config()["permutations"] == orders


def test_samples_have_the_density(rng):
    """Samples given conditions follow the density given these."""
    flow = make_flow(condition_dim=1)
    flow.adapt(rng.normal(size=(50, 2)), rng.normal(size=(50, 1)))
    conditions = np.full((5000, 1), 0.7)
    points, mass = grid_density(
        lambda z: flow.log_prob(z, np.full((len(z), 1), 0.7)), size=101
    )
    draws = numpy_of(flow.sample(5000, conditions, seed=1))
    assert_allclose(draws.mean(axis=0), mass @ points, atol=0.08)
    expected = mass @ points**2
    assert_allclose((draws**2).mean(axis=0), expected, rtol=0.08)
    assert_array_equal(draws, numpy_of(flow.sample(5000, conditions, seed=1)))


def test_large_batches_are_tiled(monkeypatch, rng):
    """Tiles give what one batch gives, also when the last one is not full."""
    flow = make_flow(condition_dim=2)
    u, conditions = rng.normal(size=(37, 2)), rng.normal(size=(37, 2))
    x, log_det = map(numpy_of, flow(u, conditions, inverse=True))
    monkeypatch.setattr(flows_module, "_tile_size", lambda: 8)
    tiled, tiled_log_det = map(numpy_of, flow(u, conditions, inverse=True))
    assert_allclose(tiled, x, atol=1e-6)
    assert_allclose(tiled_log_det, log_det, atol=1e-6)
    prior = FlowPrior(make_flow())
    assert prior.sample(37).shape == (37, 2)


def test_compiled_inverse_of_any_batch_size(monkeypatch, rng):
    """A compiled inverse takes batches of unknown size."""
    monkeypatch.setattr(flows_module, "_tile_size", lambda: 8)
    flow = make_flow(condition_dim=2)

    class Inverse(keras.Model):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def call(self, inputs):
            return self.flow(*inputs, inverse=True)[0]

    model = Inverse()
    model.compile(jit_compile=keras.config.backend() != "torch")
    u, conditions = (rng.normal(size=(19, 2)).astype("float32") for _ in range(2))
    expected = numpy_of(flow(u, conditions, inverse=True)[0])
    found = model.predict((u, conditions), batch_size=11, verbose=0)
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.backend_skip("tensorflow", reason="has no gradient of writes in place")
def test_gradients_flow_through_the_inverse(rng):
    """An inverse flow can be trained, too."""
    flow = make_flow()
    before = [numpy_of(weight) for weight in flow.trainable_weights]

    class Generator(keras.Model):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def call(self, noise):
            return self.flow(noise, inverse=True)[0]

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return ops.mean(ops.square(y_pred - 1.0))

    model = Generator()
    model.compile(optimizer="adam")
    model.fit(rng.normal(size=(8, 2)), verbose=0)
    for weight, old in zip(flow.trainable_weights, before, strict=True):
        assert np.isfinite(numpy_of(weight)).all()
        assert (numpy_of(weight) != old).any()


def test_flow_learns_a_curved_density(rng):
    """A short training lowers the loss by far, and the inverse stays exact."""
    conditions = rng.normal(size=(512, 1))
    x = rng.normal(size=(512, 2))
    x[:, 0] = conditions[:, 0] + 0.2 * x[:, 0]
    x[:, 1] = x[:, 0] ** 2 + 0.3 * x[:, 1]
    flow = make_flow(condition_dim=1, hidden_units=(32, 32))
    flow.adapt(x, conditions)

    class Density(keras.Model):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def call(self, inputs):
            return self.flow.log_prob(*inputs)

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return -ops.mean(y_pred)

    model = Density()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    history = model.fit((x, conditions), batch_size=64, epochs=8, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < losses[0] - 1.0
    noise = rng.normal(size=(200, 2))
    z, log_det = flow(noise, conditions[:200], inverse=True)
    back, back_log_det = flow(z, conditions[:200])
    assert_allclose(numpy_of(back), noise, atol=1e-5)
    assert_allclose(numpy_of(log_det), -numpy_of(back_log_det), atol=1e-5)


def test_adapt(rng):
    """Data and conditions are standardised by constants kept in the layer."""
    x = 100 + 5 * rng.normal(size=(200, 2))
    conditions = 1e4 + rng.normal(size=(200, 1))
    flow = MaskedAutoregressiveFlow(2, condition_dim=1, num_blocks=1)
    flow.adapt(x, conditions)
    u, log_det = flow(x, conditions)
    assert_allclose(numpy_of(u).std(axis=0), 1.0, atol=1e-3)
    assert_allclose(numpy_of(log_det), -np.log(x.std(axis=0)).sum(), rtol=1e-5)
    assert not any(weight is flow.location for weight in flow.trainable_weights)
    layer = ActNorm(2)
    layer.adapt(x)
    y, _ = layer(x)
    assert_allclose(numpy_of(y).mean(axis=0), 0.0, atol=1e-4)
    assert_allclose(numpy_of(y).std(axis=0), 1.0, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "conditions", "match"),
    [
        (np.ones((5, 2)), np.eye(5)[:, :1], "columns of x must be finite and vary"),
        (np.eye(5)[:, :2], np.full((5, 1), np.nan), "columns of conditions must be"),
        (np.eye(5)[:, :3], np.eye(5)[:, :1], r"shape \(n, 2\), n > 1, got \(5, 3\)"),
        (np.eye(5)[:, :2], None, "condition_dim=1, but got no conditions"),
    ],
)
def test_adapt_refuses(x, conditions, match):
    """Data that cannot be standardised are refused."""
    flow = MaskedAutoregressiveFlow(2, condition_dim=1, num_blocks=1)
    with pytest.raises(ValueError, match=match):
        flow.adapt(x, conditions)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MADE(0), "latent_dim must be a positive integer"),
        (lambda: MADE(2, condition_dim=-1), "condition_dim must be an integer >= 0"),
        (lambda: MADE(2, hidden_units=(0,)), "hidden_units must be a positive"),
        (lambda: MADE(2, permutation=(0, 0)), "each of 0 to 1 once"),
        (lambda: MADE(2, transform="cubic"), "transform must be one of"),
        (lambda: MADE(2, limit=0.0), "limit must be a positive number"),
        (lambda: MADE(2, transform="spline", limit=None), "limit must be a positive"),
        (lambda: MADE(2, transform="spline", num_bins=1), "an integer >= 2"),
        (lambda: MADE(2, transform="spline", num_bins=1000), "less than 1000"),
        (lambda: make_flow(permutations="none"), "'reverse', 'random' or a list"),
        (lambda: make_flow(permutations=[[0, 1]]), "num_blocks=2 orders, got 1"),
        (lambda: MADE(2)(np.ones((1, 2)), np.ones((1, 3))), "but got 3 conditions"),
    ],
)
def test_bad_arguments(make, match):
    """Errors say what came and what was expected."""
    with pytest.raises(ValueError, match=match):
        make()


def test_soft_clip():
    """Small values stay as they are, large ones at the limit."""
    x = np.array([-1e9, -0.01, 0.0, 0.01, 1e9], dtype="float32")
    assert_allclose(numpy_of(soft_clip(x, 3.0)), [-3, -0.01, 0, 0.01, 3], rtol=1e-4)
    assert soft_clip(x, None) is x


def test_spline_at_knots():
    """The spline passes its knots with its slopes, and beyond them is straight."""
    rng = np.random.default_rng(2)
    params = rng.normal(size=(1, 11, 1)).astype("float32")
    x = np.linspace(-3.5, 3.5, 4001).reshape(-1, 1).astype("float32")
    params = np.repeat(params, len(x), axis=0)
    y, log_det = map(numpy_of, rational_quadratic_spline(x, params, 3.0))
    outside = np.abs(x) >= 3.0
    assert_array_equal(y[outside], x[outside])
    assert_array_equal(log_det[outside], 0.0)
    assert (np.diff(y[:, 0]) > 0).all()
    slope = np.gradient(y[:, 0].astype(float), x[:, 0].astype(float))
    smooth = np.abs(np.abs(x[:, 0]) - 3.0) > 0.01
    assert_allclose(np.exp(log_det[smooth, 0]), slope[smooth], rtol=0.02)
    share = np.exp(params[0, :4, 0]) / np.exp(params[0, :4, 0]).sum()
    height = np.exp(params[0, 4:8, 0]) / np.exp(params[0, 4:8, 0]).sum()
    floor = 1e-3
    knots = 6 * np.cumsum(floor + (1 - 4 * floor) * share)[:-1] - 3
    values = 6 * np.cumsum(floor + (1 - 4 * floor) * height)[:-1] - 3
    assert_allclose(np.interp(knots, x[:, 0], y[:, 0]), values, atol=1e-4)
    back, _ = rational_quadratic_spline(y, params, 3.0, inverse=True)
    assert_allclose(numpy_of(back), x, atol=1e-5)


def test_write_rows():
    """Rows are replaced; the others stay."""
    buffer = ops.zeros((4, 3))
    found = write_rows(buffer, 1, ops.ones((2, 3)))
    assert_array_equal(numpy_of(found).sum(axis=1), [0, 3, 3, 0])


def test_network_equals_zuko(rng):
    """The masked network equals that of zuko with the same weights."""
    torch = pytest.importorskip("torch")
    zuko = pytest.importorskip("zuko")
    units = (12, 20)
    theirs = zuko.flows.MaskedAutoregressiveTransform(4, 3, hidden_features=units)
    linear = [part for part in theirs.hyper if hasattr(part, "mask")]
    made = MADE(4, 3, hidden_units=units)
    # theirs cycle through the degrees, ours are sorted; their outputs come
    # latent by latent, ours parameter by parameter
    orders = [np.argsort(np.arange(count) % 4, kind="stable") for count in units]
    orders.append(np.arange(8).reshape(4, 2).T.ravel())
    before = np.arange(4)
    for layer, (part, order) in enumerate(zip(linear, orders, strict=True)):
        weight = part.weight.detach().numpy().T[:, order]
        if layer == 0:
            made.condition_kernel.assign(weight[4:])
        made.kernels[layer].assign(weight[before])
        made.biases[layer].assign(part.bias.detach().numpy()[order])
        before = order
    x, conditions = rng.normal(size=(2, 30, 4)).astype("float32")
    conditions = conditions[:, :3]
    with torch.no_grad():
        expected = theirs.hyper(torch.as_tensor(np.hstack([x, conditions]))).numpy()
    found = numpy_of(made.parameters(x, conditions))
    assert_allclose(found, expected.reshape(30, 4, 2).swapaxes(1, 2), atol=1e-5)


def test_flow_equals_flowjax(rng):
    """Without the clip, a MADE equals one of flowjax."""
    pytest.importorskip("flowjax")
    import equinox
    import jax
    import paramax
    from flowjax import bijections

    pair = [bijections.Loc(jax.numpy.zeros(())), bijections.Scale(jax.numpy.ones(()))]
    exponential = paramax.Parameterize(jax.numpy.exp, jax.numpy.zeros(()))
    pair[1] = equinox.tree_at(lambda part: part.scale, pair[1], exponential)
    theirs = bijections.MaskedAutoregressive(
        jax.random.key(0),
        transformer=bijections.Chain(pair),
        dim=4,
        cond_dim=3,
        nn_width=20,
        nn_depth=2,
    )
    made = randomize(MADE(4, 3, hidden_units=(20, 20), limit=None))
    # theirs: y = (x + loc) exp(log_scale), latent by latent, degrees in turn
    degrees = np.argsort(np.arange(20) % 4, kind="stable")
    inverse = np.argsort(degrees)
    kernels = [numpy_of(kernel).T for kernel in made.kernels]
    biases = [numpy_of(bias) for bias in made.biases]
    outputs = np.arange(8).reshape(2, 4).T.ravel()
    condition_kernel = numpy_of(made.condition_kernel).T
    weights = [
        np.hstack([kernels[0], condition_kernel])[inverse],
        kernels[1][inverse][:, inverse],
        -kernels[2][outputs][:, inverse],
    ]
    biases = [biases[0][inverse], biases[1][inverse], -biases[2][outputs]]
    layers = list(theirs.masked_autoregressive_mlp.layers)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        layers[i] = equinox.tree_at(
            lambda part: (part.weight.args[1], part.bias),
            layers[i],
            (jax.numpy.asarray(weight), jax.numpy.asarray(bias)),
        )
    theirs = equinox.tree_at(
        lambda part: part.masked_autoregressive_mlp.layers, theirs, tuple(layers)
    )
    theirs = paramax.unwrap(theirs)
    x, conditions = rng.normal(size=(2, 30, 4)).astype("float32")
    conditions = conditions[:, :3]
    expected, log_det = jax.vmap(theirs.transform_and_log_det)(x, conditions)
    y, found = made(x, conditions)
    assert_allclose(numpy_of(y), np.asarray(expected), atol=1e-4)
    assert_allclose(numpy_of(found), np.asarray(log_det), atol=1e-4)
