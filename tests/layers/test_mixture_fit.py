# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of how mixtures are fitted to posteriors, split and set."""

import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from astrovae.exceptions import AstrovaeWarning
from astrovae.layers import MixturePrior

SKLEARN = {"diagonal": "diag", "tied": "tied", "full": "full"}
KINDS = list(SKLEARN)


@pytest.fixture
def groups(rng):
    """Three groups of unequal size and shape in three dimensions, and labels."""
    mixing = rng.normal(0, 0.4, (3, 3, 3)) + np.eye(3)
    centers = np.array([[0.0, 0, 0], [5, 4, 3], [-5, 2, 4]])
    labels = np.repeat([0, 1, 2], (300, 200, 100))
    points = rng.normal(size=(600, 3))
    latents = centers[labels] + np.einsum("nij,nj->ni", mixing[labels], points)
    return latents, labels


def as_numpy(tensor):
    """Numbers of a tensor, in float64."""
    return ops.convert_to_numpy(tensor).astype(float)


def make(num_components, kind="full", **kwargs):
    """A mixture in three dimensions."""
    return MixturePrior(num_components, 3, covariance=kind, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_equals_scikit_learn(groups, kind):
    """Without uncertainty, Dirichlet prior and shrinkage, it is the usual mixture."""
    latents, _ = groups
    prior = make(3, kind)
    score = prior.fit(latents, shrinkage=0.0)
    mixture = GaussianMixture(
        3,
        covariance_type=SKLEARN[kind],
        reg_covar=0,
        n_init=10,
        random_state=0,
        tol=1e-9,
        max_iter=2000,
    ).fit(latents)
    assert_allclose(score, mixture.score(latents), atol=1e-4)
    found = prior.components()
    mine, theirs = np.argsort(found["weights"]), np.argsort(mixture.weights_)
    assert_allclose(found["weights"][mine], mixture.weights_[theirs], atol=1e-3)
    assert_allclose(found["means"][mine], mixture.means_[theirs], atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_minimises_the_divergence(groups, kind, rng):
    """The score is that of the layer, and small changes make it worse."""
    latents, _ = groups
    log_var = rng.uniform(-3, 0, latents.shape)
    prior = make(3, kind)
    score = prior.fit(latents, log_var, shrinkage=0.0)
    entropy = 0.5 * (1 + np.log(2 * np.pi) + log_var).sum(axis=1)

    def divergence():
        inputs = latents.astype("f4"), log_var.astype("f4")
        return as_numpy(prior.kl_divergence(*inputs)).mean()

    best = divergence()
    assert_allclose(-score - entropy.mean(), best, rtol=1e-4)
    for name in ("logits", "means", "raw_scales"):
        weight = getattr(prior, name)
        value = ops.convert_to_numpy(weight)
        for _ in range(3):
            change = rng.normal(0, 0.05, value.shape)
            weight.assign(value + change.astype("f4"))
            assert divergence() > best
        weight.assign(value)


def test_fit_takes_the_blur_off(rng):
    """Latents with known errors: the mixture is that of what lies below."""
    truth = rng.normal(0, [1.0, 0.3, 0.5], (4000, 3))
    sigma = rng.uniform(0.2, 1.0, truth.shape)
    # the posterior of a unit variance seen with noise
    shrunk = 1 / (1 + sigma**2)
    mean = shrunk * (truth + sigma * rng.normal(size=truth.shape))
    log_var = np.log(sigma**2 * shrunk)
    prior = make(1)
    prior.fit(mean, log_var)
    expected = np.cov(mean, rowvar=False, bias=True) + np.diag(
        np.exp(log_var).mean(axis=0)
    )
    assert_allclose(prior.components()["covariances"][0], expected, atol=1e-4)


def test_full_posteriors_count_with_their_covariances(groups, rng):
    """With one component, its covariance is that of means plus the mean one."""
    latents, _ = groups
    factors = np.tril(rng.normal(0, 0.3, (600, 3, 3))) + 0.5 * np.eye(3)
    prior = make(1)
    prior.fit(latents, scale_tril=factors)
    expected = np.cov(latents, rowvar=False, bias=True)
    expected = expected + (factors @ factors.swapaxes(1, 2)).mean(axis=0)
    assert_allclose(prior.components()["covariances"][0], expected, rtol=1e-4)


def test_dirichlet_prior_and_shrinkage(groups):
    """Weights and covariances are drawn to equality, by as much as they say."""
    latents, _ = groups
    prior = make(3, concentration=31.0)
    prior.fit(latents, shrinkage=0.0)
    weights = np.sort(prior.components()["weights"])
    assert_allclose(weights, np.array([130, 230, 330]) / 690, atol=2e-3)
    prior.fit(latents, shrinkage=1e7)
    covariances = prior.components()["covariances"]
    for covariance in covariances[1:]:
        assert_allclose(covariance, covariances[0], rtol=1e-3, atol=1e-4)


def test_fit_does_not_depend_on_seed_and_order(groups, rng):
    """Groups that are there are found from any start."""
    latents, labels = groups
    for seed in range(3):
        order = rng.permutation(len(latents))
        prior = make(3)
        prior.fit(latents[order], seed=seed)
        found = as_numpy(prior.responsibilities(latents)).argmax(axis=1)
        assert adjusted_rand_score(found, labels) > 0.97


def test_fit_goes_on_from_the_present(groups):
    """The start is kept: labels keep their numbers."""
    latents, labels = groups
    prior = make(3)
    centers = np.array([latents[labels == k].mean(axis=0) for k in (2, 0, 1)])
    prior.set_components([1, 1, 1], centers, np.repeat(np.eye(3)[None], 3, axis=0))
    prior.fit(latents, start="current")
    found = as_numpy(prior.responsibilities(latents)).argmax(axis=1)
    assert (np.array([2, 0, 1])[found] == labels).mean() > 0.99


def test_degenerate_latents(rng):
    """Identical galaxies, as many galaxies as components, one far away."""
    same = np.zeros((20, 3))
    for kind in KINDS:
        prior = make(4, kind)
        assert np.isfinite(prior.fit(same))
        parts = prior.components()
        assert all(np.isfinite(part).all() for part in parts.values())
        assert_allclose(parts["weights"].sum(), 1, rtol=1e-5)
    assert np.isfinite(make(3).fit(rng.normal(size=(3, 3))))
    far = np.concatenate([rng.normal(size=(50, 3)), [[1e6, 0, 0]]])
    assert np.isfinite(make(2).fit(far))


def test_fit_is_refused():
    """Too few galaxies, NaN rows, other shapes."""
    prior = make(4)
    with pytest.raises(ValueError, match="4 components needs as many galaxies, got 3"):
        prior.fit(np.zeros((3, 3)))
    bad = np.zeros((9, 3))
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="those of 1 of 9 are not"):
        prior.fit(bad)
    huge = np.zeros((9, 3))
    huge[[4, 5]] = 1e4
    with pytest.raises(ValueError, match="those of 2 of 9 are not"):
        prior.fit(np.zeros((9, 3)), huge)
    with pytest.raises(ValueError, match=r"log_var must have the shape \(9, 3\), got"):
        prior.fit(np.zeros((9, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"scale_tril must have the shape \(9, 3, 3"):
        prior.revive(np.zeros((9, 3)), scale_tril=np.zeros((9, 3)))
    with pytest.raises(ValueError, match=r"shape \(n, 3\), got \(9, 2\)"):
        prior.fit(np.zeros((9, 2)))
    with pytest.raises(ValueError, match="start"):
        prior.fit(np.zeros((9, 3)), start="random")


@pytest.mark.parametrize("kind", KINDS)
def test_dead_components_live_again(groups, kind):
    """One component for three groups, two far away: all three are found."""
    latents, _ = groups
    prior = make(3, kind)
    wide = np.full((3, 3), 20.0) if kind == "diagonal" else 20 * np.eye(3)[None]
    wide = wide if kind == "diagonal" else np.repeat(wide, 3, axis=0)
    means = [[0, 0, 0], [900, 0, 0], [0, 900, 0]]
    prior.set_components([1, 1, 1], means, wide)
    before = prior.fit(latents, start="current", max_iter=1)
    assert prior.revive(latents) == [1, 2]
    shares = as_numpy(prior.responsibilities(latents)).mean(axis=0)
    assert (shares > 0.1).all()
    assert prior.fit(latents, start="current") > before
    # now there is nothing to do
    assert prior.revive(latents) == []


def test_what_nobody_needs_stays_dead(rng):
    """A single group is not cut in two equal ones."""
    latents = rng.normal(size=(500, 3)).astype("f4")
    prior = make(2, "tied")
    prior.set_components(
        [1, 0], np.zeros((2, 3)), np.repeat(np.eye(3)[None], 2, axis=0)
    )
    before = prior.components()
    if not prior.revive(latents):
        for name, part in prior.components().items():
            assert_allclose(part, before[name], rtol=1e-5, atol=1e-6)
    assert prior.duplicates() == []


def test_start_from_a_mixture_of_bad_variance(groups):
    """A galaxy that was not measured would make all covariances NaN."""
    mixture = GaussianMixture(3, random_state=0).fit(groups[0])
    prior = make(3)
    before = prior.get_weights()
    for wrong in ([1.0, np.nan, 1.0], -1.0):
        with pytest.raises(ValueError, match="posterior_variance must be finite"):
            prior.initialize_from_gmm(mixture, wrong)
    for one, two in zip(before, prior.get_weights(), strict=True):
        assert_allclose(one, two)


def test_set_components(rng):
    """What is set is what is used."""
    means, weights = rng.normal(size=(2, 3)), np.array([3.0, 1.0])
    factors = rng.normal(size=(2, 3, 3))
    covariances = factors @ factors.swapaxes(1, 2) + 0.1 * np.eye(3)
    prior = make(2)
    prior.set_components(weights, means, covariances)
    z = rng.normal(size=(5, 3))
    density = sum(
        share * multivariate_normal(m, c).pdf(z)
        for share, m, c in zip([0.75, 0.25], means, covariances, strict=True)
    )
    assert_allclose(as_numpy(prior.log_prob(z.astype("f4"))), np.log(density), 1e-4)
    small = covariances * np.array([1, 1e-8])[:, None, None]
    with pytest.warns(AstrovaeWarning, match="3 variances of the mixture were below"):
        prior.set_components(weights, means, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0, 1.0, 1.0]}, r"weights must be finite numbers of shape \(2,"),
        ({"weights": [0.0, 0.0]}, "nor all zero"),
        ({"weights": [-1.0, 2.0]}, "must not be negative"),
        ({"means": np.full((2, 3), np.nan)}, "means must be finite"),
        ({"covariances": np.ones((2, 3))}, r"shape \(2, 3, 3\), got"),
        ({"covariances": np.zeros((2, 3, 3))}, "covariances must be positive"),
    ],
)
def test_bad_components_are_refused(change, message):
    """Errors name what is wrong, and nothing is changed."""
    prior = make(2)
    before = prior.get_weights()
    good = {
        "weights": [1.0, 1.0],
        "means": np.zeros((2, 3)),
        "covariances": np.repeat(np.eye(3)[None], 2, axis=0),
    }
    with pytest.raises(ValueError, match=message):
        prior.set_components(**(good | change))
    for one, two in zip(before, prior.get_weights(), strict=True):
        assert_allclose(one, two)
