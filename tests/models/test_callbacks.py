"""Tests of the callbacks."""

import json

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.mixture import GaussianMixture

from astrovae.layers import GaussianPrior, MixturePrior
from astrovae.models import (
    VAE,
    CollapseMonitor,
    CyclicalBeta,
    DenseDecoder,
    DenseEncoder,
    FreeBits,
    KLWarmup,
    MixtureInitialization,
    SigmaWarmup,
    TrainingProgress,
)


def make_vae(stack, **kwargs):
    """A small model, compiled."""
    keras.utils.set_random_seed(1)
    shape = stack.image_shape
    vae = VAE(
        shape,
        latent_dim=2,
        encoder=DenseEncoder((8,)),
        decoder=DenseDecoder((*shape[:2], 2 * shape[2]), (8,)),
        seed=2,
        **kwargs,
    )
    vae.compile(keras.optimizers.Adam(1e-2))
    return vae


class Spy(keras.callbacks.Callback):
    """Write down an attribute of the model at every step."""

    def __init__(self, attribute):
        super().__init__()
        self.attribute = attribute
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(getattr(self.model, self.attribute))


def fit(vae, stack, *callbacks, epochs=3, **kwargs):
    """Train for two steps an epoch."""
    return vae.fit(
        stack, batch_size=20, epochs=epochs, verbose=0, callbacks=callbacks, **kwargs
    ).history


def test_progress_is_shown(stack, capsys):
    """One line, on standard error, with the loss beside it."""
    vae = VAE(stack.image_shape, latent_dim=2)
    vae.compile()
    vae.fit(stack, epochs=2, verbose=0, callbacks=[TrainingProgress("Learning")])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Learning" in captured.err
    assert "2/2" in captured.err
    assert "loss" in captured.err


@pytest.mark.parametrize(
    ("callback", "attribute", "expected"),
    [
        (KLWarmup(epochs=2, stop=0.5), "beta", [0, 0, 0.25, 0.25, 0.5, 0.5]),
        (KLWarmup(steps=4), "beta", [0, 0.25, 0.5, 0.75, 1, 1]),
        (CyclicalBeta(2, ramp=1.0, stop=3), "beta", [0, 0, 1.5, 1.5, 0, 0]),
        (FreeBits(0.25, epochs=2), "free_bits", [0.25, 0.25, 0.25, 0.25, 0, 0]),
        (SigmaWarmup(2.0, epochs=2), "extra_sigma", [2, 2, 1, 1, 0, 0]),
        (SigmaWarmup(steps=4), "extra_sigma", [1, 0.75, 0.5, 0.25, 0, 0]),
    ],
)
def test_schedules_reach_every_step(callback, attribute, expected, stack):
    """The model trains with the value of the epoch or step; the logs tell."""
    vae, spy = make_vae(stack), Spy(attribute)
    history = fit(vae, stack, callback, spy)
    assert spy.values == expected
    assert history[attribute] == expected[1::2]
    json.dumps(history)


def test_schedules_change_the_training(stack):
    """What a step does follows the value, on compiled functions too."""

    def kl(*callbacks):
        vae = make_vae(stack)
        return fit(vae, stack, *callbacks, epochs=12)["kl"][-1]

    free = kl(KLWarmup(epochs=1, start=0.0, stop=0.0))
    assert kl(KLWarmup(epochs=1, stop=300.0)) < 0.3 * free


def test_cycles():
    """Delay, power and the end of the cycles."""
    cycles = CyclicalBeta(4, ramp=1.0, power=2, start=1, stop=5, delay=2, num_cycles=1)
    values = [cycles.value(epoch) for epoch in range(8)]
    assert_allclose(values, [1, 1, 1, 1.25, 2, 3.25, 5, 5])


def loss_of(vae, terms):
    """Compute the loss of given terms, per galaxy."""
    terms = {
        name: keras.ops.convert_to_tensor(term, "float32")
        for name, term in terms.items()
    }
    return float(keras.ops.convert_to_numpy(vae.compute_loss(y_pred=terms)))


@pytest.mark.parametrize(
    ("free", "expected"), [(0.0, 2.0 + 0.5), (1.0, 2.0 + 1.0), (3.0, 6.0)]
)
def test_free_bits_count_means_of_the_batch(free, expected, stack):
    """sum_j max(mean KL_j, threshold), over galaxies that were measured."""
    vae = make_vae(stack)
    vae.free_bits = free
    terms = np.array([[1.0, 0.5], [3.0, 0.5], [9.0, 9.0]])
    zero = np.zeros(3)
    loss = loss_of(
        vae,
        {
            "kl_terms": terms,
            "kl": terms.sum(1),
            "objective": zero,
            "elbo": zero,
            "log_like": zero,
            "mse": zero,
            "measured": [1, 1, 0],
        },
    )
    assert_allclose(loss, expected)


def test_free_bits_of_priors_that_do_not_factorise(stack):
    """There the threshold holds for all latents together."""
    vae = make_vae(stack, prior=MixturePrior(2, 2, seed=1))
    vae.free_bits = 1.0
    zero = np.zeros(2)
    others = dict.fromkeys(("elbo", "kl", "objective", "log_like", "mse"), zero)
    for kl, expected in ((1.5, 2.0), (2.5, 2.5)):
        terms = {"kl_terms": np.full((2, 1), kl), "measured": [1, 1], **others}
        assert_allclose(loss_of(vae, terms), expected)


def test_free_bits_lift_the_pressure(stack):
    """Below the threshold, a training is one without KL divergence."""
    weights = []
    for beta, callbacks in ((300.0, [FreeBits(1e5)]), (0.0, [])):
        vae = make_vae(stack, beta=beta)
        # Adam would turn rounding into steps where gradients are near zero
        vae.compile(keras.optimizers.SGD(1e-5))
        fit(vae, stack, *callbacks)
        weights.append(vae.posterior_layer.get_weights()[0])
    assert_allclose(weights[0], weights[1], rtol=1e-4, atol=1e-5)
    # what is reported knows nothing of it
    elbo = vae.elbo(stack[:2])
    vae.free_bits = 1.0
    assert_allclose(vae.elbo(stack[:2]), elbo)


def test_sigma_warmup_ends(stack):
    """Afterwards the model trains as if it had never been."""
    vae = make_vae(stack)
    fit(vae, stack, SigmaWarmup(5.0, epochs=3), epochs=2)
    assert vae.extra_sigma == 0.0
    assert vae.beta == 1.0
    first, second = vae.evaluate(stack, verbose=0), fit(vae, stack, epochs=1)
    assert np.isfinite([first[0] if isinstance(first, list) else first]).all()
    assert np.isfinite(second["loss"]).all()


def test_sigma_warmup_softens_the_loss(stack):
    """With much added noise, the first loss is that of a flat likelihood."""
    losses = []
    for callbacks in ((), [SigmaWarmup(100.0, epochs=2)]):
        vae = make_vae(stack)
        losses += fit(vae, stack, *callbacks, epochs=1)["loss"]
    num_pixels = 16 * 16 * 2
    # noise and loss are in units of the scale
    assert_allclose(losses[1] / num_pixels, np.log(100) + 0.92, rtol=0.05)
    assert losses[0] < losses[1]


def test_steps_need_a_known_number(stack):
    """A schedule by steps says what it misses."""
    warmup = KLWarmup(steps=3)
    warmup.set_params({"steps": None, "epochs": 2})
    warmup.on_train_begin()
    with pytest.raises(ValueError, match="how many steps an epoch has"):
        warmup.on_epoch_begin(0)


def test_mixture_is_placed_after_some_epochs(stack):
    """Weights, means and covariances are those of a fit to the latents."""
    prior = MixturePrior(3, 2, seed=1)
    vae = make_vae(stack, prior=prior)

    class Look(keras.callbacks.Callback):
        components = None

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.components = prior.components()
                self.posterior = self.model.encode(stack)

    before, after = Look(), Look()
    start = MixtureInitialization(stack, epochs=2, num_restarts=3, seed=4)
    fit(vae, stack, before, start, after)
    assert not np.allclose(before.components["means"], after.components["means"])
    # the fourth galaxy has no pixels
    mean, log_var = (np.delete(part, 3, axis=0) for part in before.posterior)
    mixture = GaussianMixture(
        3, covariance_type="diag", init_params="k-means++", n_init=3, random_state=4
    ).fit(mean.astype(float))
    components = after.components
    assert_allclose(components["weights"], mixture.weights_, rtol=1e-4)
    assert_allclose(components["means"], mixture.means_, rtol=1e-4, atol=1e-5)
    widened = mixture.covariances_ + np.exp(log_var).mean(axis=0)
    assert_allclose(components["covariances"], widened, rtol=1e-4)


def test_mixture_initialization_is_refused(stack):
    """Without a mixture, or with fewer galaxies than components."""
    vae = make_vae(stack, prior=GaussianPrior(2))
    with pytest.raises(TypeError, match="whose prior is a MixturePrior"):
        fit(vae, stack, MixtureInitialization(stack, epochs=0))
    vae = make_vae(stack, prior=MixturePrior(6, 2))
    with pytest.raises(ValueError, match="6 components needs as many galaxies, got 5"):
        # the fourth galaxy has no pixels
        fit(vae, stack, MixtureInitialization(stack[:6], epochs=0))


def test_monitor_writes_floats(stack):
    """All measures are in the history, once an epoch, as plain floats."""
    vae = make_vae(stack, prior=MixturePrior(2, 2, seed=1))
    history = fit(vae, stack, CollapseMonitor(stack, every=2))
    json.dumps(history)
    names = {"active_units", "sigma_floor_share", "occupied", "duplicates"}
    names |= {"kl_latent_0", "kl_latent_1", "occupancy_0", "occupancy_1"}
    assert names < set(history)
    for name in names:
        assert len(history[name]) == 3
        assert all(type(value) is float for value in history[name])
    assert_allclose(
        np.add(history["occupancy_0"], history["occupancy_1"]), 1, rtol=1e-5
    )
    # looked at in epochs 1, 2 and, since it is the last, 3
    assert history["kl_latent_0"][1] != history["kl_latent_0"][2]


def test_monitor_measures(stack):
    """Units, KL per latent and components are what they should be."""
    vae = make_vae(stack)
    monitor = CollapseMonitor(stack)
    monitor.set_model(vae)
    kernel, _ = vae.posterior_layer.get_weights()
    kernel[:, [0, 2, 3]] = 0
    vae.posterior_layer.set_weights([kernel, np.array([0.5, 0, 0, 0])])
    measures = monitor.look()
    assert measures["active_units"] == 1.0
    assert_allclose(measures["kl_latent_0"], 0.125, rtol=1e-5)
    mean, _ = vae.encode(stack)
    measured = np.arange(40) != 3
    assert_allclose(measures["kl_latent_1"], (mean[measured, 1] ** 2).mean() / 2, 1e-4)
    assert 0 <= measures["sigma_floor_share"] <= 1
    assert "occupied" not in measures


def test_monitor_sees_duplicates_and_empty_components(stack):
    """Two equal components, and one far from all galaxies."""
    prior = MixturePrior(3, 2, seed=1)
    vae = make_vae(stack, prior=prior)
    prior.means.assign([[0.0, 0.0], [0.0, 0.0], [90.0, 90.0]])
    monitor = CollapseMonitor(stack, max_galaxies=10)
    monitor.set_model(vae)
    measures = monitor.look()
    assert measures["duplicates"] == 1.0
    assert measures["occupied"] == 2.0
    assert_allclose(measures["occupancy_2"], 0, atol=1e-6)


def test_floor_share(stack):
    """All variances at the floor, and none."""
    vae = make_vae(stack)
    monitor = CollapseMonitor(stack)
    monitor.set_model(vae)
    kernel, bias = vae.decoder.output_layer.get_weights()
    for raw, expected in ((-40.0, 1.0), (0.0, 0.0)):
        maps = bias.reshape(16, 16, 4)
        maps[..., 2:] = raw
        vae.decoder.output_layer.set_weights([0 * kernel, maps.ravel()])
        assert monitor.look()["sigma_floor_share"] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (KLWarmup, "either epochs or steps"),
        (lambda: KLWarmup(3, steps=4), "either epochs or steps"),
        (lambda: KLWarmup(epochs=0), "epochs must be a positive integer"),
        (lambda: KLWarmup(steps=1, stop=-1), "stop must not be negative"),
        (lambda: SigmaWarmup(1.0), "either epochs or steps"),
        (lambda: SigmaWarmup(float("nan"), epochs=1), "start must not be negative"),
        (lambda: FreeBits(-1), "threshold must not be negative"),
        (lambda: CyclicalBeta(0), "period must be a positive integer"),
        (lambda: CyclicalBeta(4, ramp=0), "ramp must be above 0"),
        (lambda: CyclicalBeta(4, num_cycles=0), "num_cycles must be a positive"),
    ],
)
def test_misuse(make, message):
    """Arguments out of range are named."""
    with pytest.raises(ValueError, match=message):
        make()
