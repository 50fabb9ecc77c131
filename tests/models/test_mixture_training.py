# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of training with a mixture prior, and of the choice of its size."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.exceptions import AstrovaeWarning
from astrovae.layers import GaussianPrior, MixturePrior
from astrovae.models import (
    VAE,
    DenseDecoder,
    DenseEncoder,
    MixtureInitialization,
    MixtureUpkeep,
    TerminateOnDivergence,
    mixture_training,
    select_components,
)


def make_vae(stack, prior=None, learning_rate=1e-2, seed=2, **kwargs):
    """A small model, compiled."""
    keras.utils.set_random_seed(1)
    shape = stack.image_shape
    vae = VAE(
        shape,
        latent_dim=2,
        encoder=DenseEncoder((8,)),
        decoder=DenseDecoder((*shape[:2], 2 * shape[2]), (8,)),
        prior=prior or MixturePrior(3, 2, concentration=2.0, seed=1),
        seed=seed,
        **kwargs,
    )
    # compiling would take longer than these few steps do
    jit_compile = keras.config.backend() == "jax"
    vae.compile(keras.optimizers.Adam(learning_rate), jit_compile=jit_compile)
    return vae


def fit(vae, stack, callbacks, epochs, **kwargs):
    """Train silently."""
    return vae.fit(
        stack, epochs=epochs, batch_size=16, verbose=0, callbacks=callbacks, **kwargs
    ).history


class Look(keras.callbacks.Callback):
    """Keep the components at the beginning of each epoch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(self.model.prior.components())


def kl_bound(vae, stack):
    """Mean divergence of measured galaxies."""
    mean, log_var = vae.encode(stack[np.arange(len(stack)) != 3])
    return float(
        keras.ops.convert_to_numpy(vae.prior.kl_divergence(mean, log_var)).mean()
    )


def test_recipe_is_one_fit(stack):
    """One normal prior first, then a mixture, in cycles; fitted in the end."""
    vae = make_vae(stack, beta=2.0)
    look = Look()
    recipe = mixture_training(stack, 12, beta=2.0, weak_beta=0.5, num_cycles=2)
    history = fit(vae, stack, [*recipe, look], epochs=12)
    assert_allclose(history["beta"][:7], 1.0)
    # two cycles of three epochs
    assert_allclose(history["beta"][7:9], [1 + (2 / 3) ** 3, 2.0])
    assert_allclose(history["beta"][9:], history["beta"][6:9])
    for components in look.seen[:6]:
        # within one epoch of a standard normal distribution
        assert_allclose(components["weights"], 1 / 3, rtol=1e-5)
    spread = [np.ptp(c["means"], axis=0).max() for c in look.seen]
    assert max(spread[:6]) < 1e-5 < 0.1 < spread[6 + 1]
    assert np.isfinite(history["loss"]).all()
    assert vae.beta == 2.0
    assert vae.prior.duplicates() == []
    # no mixture near it suits the posteriors better
    best = kl_bound(vae, stack)
    before = vae.prior.get_weights()
    rng = np.random.default_rng(1)
    for _ in range(5):
        vae.prior.set_weights([w + rng.normal(0, 0.3, w.shape) for w in before])
        assert kl_bound(vae, stack) > best


def test_recipe_that_is_stopped_early_still_gives_clusters(stack):
    """Early stopping before the components are placed: they are placed then."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    vae = make_vae(stack, MixturePrior(3, 2, seed=1))
    history = fit(vae, stack, [Stop(), *mixture_training(stack, 20)], epochs=20)
    assert len(history["loss"]) == 3
    # no longer standard normal distributions, but those that suit the posteriors
    mean, _ = vae.encode(stack[np.arange(len(stack)) != 3])
    found = vae.prior.components()
    assert not np.allclose(found["covariances"], 1.0, atol=1e-3)
    assert_allclose(found["weights"] @ found["means"], mean.mean(axis=0), rtol=1e-3)


def test_recipe_that_goes_back_still_gives_clusters(stack):
    """Early stopping that restores an epoch before the components were placed."""

    class GoBack(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.kept = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.model.set_weights(self.kept)

    vae = make_vae(stack, MixturePrior(3, 2, seed=1))
    recipe = mixture_training(stack, 6, num_cycles=1)
    fit(vae, stack, [GoBack(), *recipe], epochs=6)
    means = vae.prior.components()["means"]
    assert np.ptp(means, axis=0).max() > 0.01
    # what was trained is not placed anew by a call that trains no more
    before = vae.get_weights()
    fit(vae, stack, recipe[2:3], epochs=6, initial_epoch=6)
    for one, two in zip(before, vae.get_weights(), strict=True):
        assert_array_equal(one, two)


def test_upkeep_merges_and_revives(stack):
    """Equal components become one, dead ones live, and the logs say so."""
    vae = make_vae(stack)
    fit(vae, stack, [MixtureInitialization(stack, 0)], epochs=3)
    means = vae.prior.components()["means"]
    parts = [1, 1, 0], means[[0, 0, 1]], np.full((3, 2), 1.0)
    vae.prior.set_components(*parts)
    history = fit(vae, stack, [MixtureUpkeep(stack, every=1, stop=1)], epochs=2)
    assert history["merged"] == [1.0, 0.0]
    assert history["revived"][0] >= 1.0
    assert history["revived"][1] == 0.0
    assert vae.prior.duplicates() == []
    shares = np.nanmean(vae.responsibilities(stack), axis=0)
    assert (shares > 0.005).sum() >= 2


def test_upkeep_may_leave_things_alone(stack):
    """Without a refit and beyond its epochs it merges what is equal, no more."""
    vae = make_vae(stack, learning_rate=0.0)
    before = vae.prior.get_weights()
    upkeep = MixtureUpkeep(stack, start=5, merge_above=1.0, refit=False)
    fit(vae, stack, [upkeep], epochs=2)
    for one, two in zip(before, vae.prior.get_weights(), strict=True):
        assert_array_equal(one, two)


def test_initialization_by_posteriors(stack):
    """The components are those of the fit of the layer."""
    vae, look = make_vae(stack), Look()
    start = MixtureInitialization(stack, 1, method="posteriors", seed=3)
    posteriors = []

    class Encode(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            posteriors.append(self.model.encode(stack))

    fit(vae, stack, [Encode(), start, look], epochs=2)
    mean, log_var = (np.delete(part, 3, axis=0) for part in posteriors[1])
    prior = MixturePrior(3, 2, concentration=2.0)
    prior.fit(mean, log_var, num_restarts=10, seed=3)
    for name, part in prior.components().items():
        assert_allclose(look.seen[1][name], part, rtol=1e-3, atol=1e-4)


def test_full_posteriors(stack):
    """The recipe takes posteriors with covariances."""
    vae = make_vae(stack, prior=MixturePrior(2, 2, covariance="tied"), posterior="full")
    history = fit(vae, stack, mixture_training(stack, 4, num_cycles=1), epochs=4)
    assert np.isfinite(history["loss"]).all()


def test_misuse(stack):
    """Errors say what is wrong."""
    with pytest.raises(TypeError, match="MixtureUpkeep needs a model whose prior is"):
        fit(make_vae(stack, GaussianPrior(2)), stack, [MixtureUpkeep(stack)], 1)
    few = MixturePrior(6, 2)
    for callbacks in ([MixtureUpkeep(stack[:5])], mixture_training(stack[:5], 4)):
        with pytest.raises(ValueError, match="6 components needs as many galaxies"):
            fit(make_vae(stack, few), stack[:5], callbacks, 4)
    other = np.zeros((20, 8, 8, 2), "f4")
    with pytest.raises(ValueError, match=r"takes images of shape \(16, 16, 2\)"):
        fit(make_vae(stack), stack, [MixtureUpkeep(other)], 1)
    with pytest.raises(ValueError, match="are too few for num_cycles=4"):
        mixture_training(stack, 6, num_cycles=4)
    with pytest.raises(ValueError, match="pretraining must be between 0 and 1"):
        mixture_training(stack, 6, pretraining=2)
    with pytest.raises(ValueError, match="merge_above must be between 0 and 1"):
        MixtureUpkeep(stack, merge_above=1.5)
    with pytest.raises(ValueError, match="method"):
        MixtureInitialization(stack, 1, method="dbscan")


def test_one_component_and_identical_galaxies(stack):
    """K = 1 is a normal prior; identical images give no NaN."""
    vae = make_vae(stack, MixturePrior(1, 2))
    history = fit(vae, stack, mixture_training(stack, 4, num_cycles=1), epochs=4)
    assert np.isfinite(history["loss"]).all()
    assert_allclose(vae.responsibilities(stack[:3]), 1)
    same = stack[np.zeros(20, int)]
    vae = make_vae(same)
    history = fit(vae, same, mixture_training(same, 4, num_cycles=1), epochs=4)
    assert np.isfinite(history["loss"]).all()
    assert_allclose(vae.responsibilities(same).sum(axis=1), 1, rtol=1e-5)


class Break(keras.callbacks.Callback):
    """Make the weights of an epoch meaningless."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.good = None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.good = self.model.get_weights()
            bias = self.model.decoder.trainable_variables[-1]
            bias.assign(np.full(bias.shape, np.nan))


def test_divergence_is_not_silent(stack):
    """A warning, an end, and the weights of the last good epoch."""
    vae, breaking, guard = make_vae(stack), Break(2), TerminateOnDivergence()
    with pytest.warns(AstrovaeWarning, match="diverged in epoch 3: its loss is nan"):
        history = fit(vae, stack, [breaking, guard], epochs=9)
    assert len(history["loss"]) == 3
    assert guard.stopped_epoch == 2
    for one, two in zip(vae.get_weights(), breaking.good, strict=True):
        assert np.isfinite(one).all()
        if one.shape != ():
            assert_array_equal(one, two)
    # a model that can be used, and a recipe that notices, too
    assert np.isfinite(vae.elbo(stack[:3])).all()
    with pytest.warns(AstrovaeWarning, match="diverged in epoch 1"):
        fit(vae, stack, [Break(0), *mixture_training(stack, 6)], epochs=6)
    assert np.isfinite(vae.elbo(stack[:3])).all()
    good = TerminateOnDivergence()
    fit(vae, stack, [good], epochs=1)
    assert good.stopped_epoch is None


def test_latents_that_are_not_finite_are_an_error(stack):
    """Without the guard, the mixture says that the training has diverged."""

    class BreakEncoder(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            kernel, bias = self.model.posterior_layer.get_weights()
            self.model.posterior_layer.set_weights([kernel * np.nan, bias])

    vae = make_vae(stack)
    with pytest.raises(ValueError, match="latents that are not finite"):
        fit(vae, stack, [BreakEncoder(), MixtureInitialization(stack, 0)], epochs=1)


# ---------------------------------------------------------------------------
# The number of components
# ---------------------------------------------------------------------------


class FakeModel:
    """Stands for a trained model, with an ELBO that is given."""

    def __init__(self, num_components, elbo):
        self.prior = MixturePrior(num_components, 2, seed=0)
        self.value = elbo

    def elbo(self, inputs, num_samples):
        values = self.value + np.arange(len(inputs), dtype=float)
        return np.where(np.arange(len(inputs)) == 3, np.nan, values)

    def responsibilities(self, inputs):
        gamma = np.zeros((len(inputs), self.prior.num_components))
        gamma[:, 0] = 1.0 if np.isfinite(self.value) else np.nan
        return gamma


def test_choice_is_by_the_mean_over_seeds(stack):
    """A lucky run does not decide; of the chosen number, the best run is given."""
    values = {(2, 0): 50.0, (2, 1): 10.0, (3, 0): 40.0, (3, 1): 41.0}

    def train(k, seed, images):
        assert images is stack
        return FakeModel(k, values[k, seed])

    model, runs = select_components(
        train, (2, 3), training=stack, validation=stack, seeds=(0, 1)
    )
    assert (model.prior.num_components, model.value) == (3, 41.0)
    assert_array_equal(runs["num_components"], [2, 2, 3, 3])
    assert_array_equal(runs["seed"], [0, 1, 0, 1])
    assert_array_equal(runs["chosen"], [False, False, False, True])
    others = np.delete(np.arange(40.0), 3)
    assert_allclose(runs["elbo"], others.mean() + np.array([50, 10, 40, 41]))
    assert_allclose(runs["elbo_err"], others.std(ddof=1) / np.sqrt(39))
    assert_array_equal(runs["occupied"], 1)
    assert (runs["seconds"] >= 0).all()


def test_runs_that_fail_are_masked(stack):
    """They are in the table and in a warning; the choice is among the others."""

    def train(k, seed, images):
        if seed == 0:
            msg = "too few galaxies."
            raise ValueError(msg)
        return FakeModel(k, np.nan if k == 3 else 5.0)

    with pytest.warns(AstrovaeWarning) as caught:
        model, runs = select_components(
            train, (2, 3), training=stack, validation=stack, seeds=(0, 1)
        )
    assert model.prior.num_components == 2
    assert_array_equal(runs["elbo"].mask, [True, False, True, True])
    texts = [str(w.message) for w in caught if w.category is AstrovaeWarning]
    assert texts[0].endswith("2 components and seed 0 failed: too few galaxies.")
    assert "3 components and seed 1 diverged" in texts[2]
    with (
        pytest.warns(AstrovaeWarning),
        pytest.raises(ValueError, match="all runs failed"),
    ):
        select_components(train, [2], training=stack, validation=stack, seeds=[0])


def test_choice_with_real_models(stack):
    """Trained models, whose ELBO the table gives again."""

    def train(k, seed, images):
        vae = make_vae(images, MixturePrior(k, 2, seed=seed), seed=seed)
        fit(vae, images, mixture_training(images, 4, num_cycles=1, seed=seed), 4)
        return vae

    model, runs = select_components(
        train, [1, 2], training=stack, validation=stack, seeds=[0]
    )
    chosen = runs[runs["chosen"]]
    assert chosen["num_components"][0] == model.prior.num_components
    assert_allclose(chosen["elbo"][0], np.nanmean(model.elbo(stack)), rtol=1e-6)
    assert chosen["elbo"][0] == runs["elbo"].max()


def test_nothing_to_choose_from(stack):
    """Errors say what is missing."""
    with pytest.raises(ValueError, match="nothing to try"):
        select_components(print, [], training=stack, validation=stack)
    with pytest.raises(ValueError, match="num_components must be a positive"):
        select_components(print, [0], training=stack, validation=stack)

    def wrong(k, seed, images):
        return FakeModel(k + 1, 0.0)

    with pytest.raises(TypeError, match="mixture of 2 components"):
        select_components(wrong, [2], training=stack, validation=stack)

    def train(k, seed, images):
        return FakeModel(k, 0.0)

    with pytest.raises(ValueError, match="no galaxy of the validation is measured"):
        select_components(train, [2], training=stack, validation=stack[3:3])
    # before hours of training
    with pytest.raises(ValueError, match="no galaxy of the validation is measured"):
        select_components(print, [2], training=stack, validation=stack[3:4])


def test_choice_by_one_galaxy_and_by_some_that_fail(stack):
    """One galaxy has no standard error; one that turns NaN is not left out."""

    def train(k, seed, images):
        return FakeModel(k, 1.0)

    _, runs = select_components(
        train, [2], training=stack, validation=stack[:1], seeds=[0]
    )
    assert runs["elbo"][0] == 1.0
    assert runs["elbo_err"].mask.all()
    # the fourth of these is measured, and its ELBO is NaN
    with (
        pytest.warns(AstrovaeWarning, match="its ELBO is not finite"),
        pytest.raises(ValueError, match="all runs failed"),
    ):
        select_components(train, [2], training=stack, validation=stack[4:12], seeds=[0])
