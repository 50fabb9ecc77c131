# Licensed under a 3-clause BSD style license - see LICENSE
"""Scores of clusters equal those of others, and find what was put in."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn
from astropy.utils.masked import Masked
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics.cluster import expected_mutual_information

from astrovae.diagnostics import (
    cluster_information,
    cluster_scores,
    cluster_stability,
    mixture_report,
    responsibility_calibration,
)


def draw(n, rng, noise=0.4, n_classes=3, n_clusters=5):
    """Classes, and clusters that know a part of them."""
    classes = rng.integers(n_classes, size=n)
    labels = np.where(rng.random(n) < noise, rng.integers(n_clusters, size=n), classes)
    return labels, classes


@pytest.mark.parametrize("n", [1, 2, 3, 10, 500])
def test_scores_are_those_of_scikit_learn(n):
    """For few galaxies and many, text and numbers."""
    rng = np.random.default_rng(n)
    labels, classes = draw(n, rng)
    names = np.array(["disc", "merger", "round"])[classes]
    scores = cluster_scores(labels, names, n_bootstrap=0)
    expected = {
        "ari": metrics.adjusted_rand_score(classes, labels),
        "nmi": metrics.normalized_mutual_info_score(classes, labels),
        "completeness": metrics.completeness_score(classes, labels),
        "purity": metrics.cluster.contingency_matrix(classes, labels).max(0).sum() / n,
        "majority": np.bincount(classes).max() / n,
    }
    for name, value in expected.items():
        assert_allclose(scores[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
        assert np.isnan(scores[f"{name}_low"])
    assert np.isnan(scores["accuracy"])
    assert scores["n_galaxies"] == n
    assert scores["n_train"] == 0


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([0, 0, 0], [1, 1, 1]), ([0, 1, 2], [1, 1, 1]), ([1, 1, 1], [0, 1, 2])],
)
def test_one_cluster_or_one_class(labels, classes):
    """Nothing to know is known in full, as scikit-learn has it."""
    scores = cluster_scores(labels, classes)
    for name, function in (
        ("ari", metrics.adjusted_rand_score),
        ("nmi", metrics.normalized_mutual_info_score),
        ("completeness", metrics.completeness_score),
    ):
        assert_allclose(scores[name], function(classes, labels), atol=1e-12)


def test_accuracy_is_learnt_from_the_training():
    """What a cluster stands for is not read from the galaxies that are scored."""
    scores = cluster_scores(
        [0, 0, 1, 1, 2, 2],
        ["a", "b", "b", "b", "b", "a"],
        train_labels=[0, 0, 0, 1, 1, 3],
        train_classes=["a", "a", "b", "b", "a", "a"],
    )
    # 0 stands for a; 1 has one of each, and a comes first; 2 is not in the training
    assert_allclose(scores["accuracy"], 2 / 6)
    assert_allclose(scores["majority"], 2 / 6)
    assert_allclose(scores["purity"], 4 / 6)
    assert scores["n_train"] == 6
    assert scores["n_clusters"] == 3
    # a cluster that would be right by the galaxies themselves is wrong
    scores = cluster_scores(
        [0, 1], ["a", "b"], train_labels=[0, 1], train_classes=["b", "a"]
    )
    assert scores["accuracy"] == 0
    assert scores["hungarian"] == 1


def test_hungarian_accuracy():
    """Only where there are as many clusters as classes; as in the definition."""
    rng = np.random.default_rng(0)
    labels, classes = draw(300, rng, n_clusters=3)
    from itertools import permutations

    best = max(
        np.mean(np.array(order)[labels] == classes) for order in permutations(range(3))
    )
    scores = cluster_scores(labels, classes)
    assert_allclose(scores["hungarian"], best)
    assert scores["hungarian_low"] < best < scores["hungarian_high"]
    more, _ = draw(300, rng, n_clusters=4)
    assert np.isnan(cluster_scores(more, classes)["hungarian"])


def test_what_is_masked_is_left_out_and_counted():
    """Whatever kind of column it is in."""
    labels = MaskedColumn([0, 0, 1, 1, 5], mask=[0, 0, 0, 0, 1])
    classes = np.array([0.0, 1.0, 1.0, np.nan, 1.0])
    scores = cluster_scores(labels, classes)
    plain = cluster_scores([0, 0, 1], [0, 1, 1])
    assert scores["n_left_out"] == 2
    assert plain["n_left_out"] == 0
    for name, value in plain.items():
        if name != "n_left_out":
            assert_allclose(scores[name], value, err_msg=name)
    objects = np.array(["a", None, "b", "b", "a"], dtype=object)
    assert cluster_scores(labels, objects)["n_left_out"] == 2
    import pandas as pd

    series = cluster_scores(pd.Series([0, 0, 1]), pd.Series(["a", "b", None]))
    assert series["n_galaxies"] == 2
    empty = cluster_scores([], [])
    assert empty["n_galaxies"] == 0
    assert np.isnan(empty["ari"])
    assert np.isnan(empty["nmi_high"])


def test_intervals_hold_the_truth():
    """In about 95 of 100 samples, of statistics whose limits are known."""
    rng = np.random.default_rng(5)
    joint = np.array([[0.3, 0.05, 0.05], [0.05, 0.2, 0.02], [0.02, 0.02, 0.29]])
    joint /= joint.sum()
    cells = np.arange(9)
    big = rng.choice(cells, size=2_000_000, p=joint.ravel())
    limits = cluster_scores(big // 3, big % 3, n_bootstrap=0)
    names = ("ari", "nmi", "purity", "majority")
    inside = dict.fromkeys(names, 0)
    for seed in range(200):
        drawn = rng.choice(cells, size=600, p=joint.ravel())
        scores = cluster_scores(drawn // 3, drawn % 3, n_bootstrap=200, seed=seed)
        for name in names:
            low, high = scores[f"{name}_low"], scores[f"{name}_high"]
            inside[name] += low <= limits[name] <= high
    for name, count in inside.items():
        # 95 % and four standard deviations
        assert 178 <= count <= 200, name


def test_scores_can_be_repeated_and_inputs_stay():
    """By seed."""
    labels, classes = draw(100, np.random.default_rng(1))
    before = labels.copy(), classes.copy()
    one = cluster_scores(labels, classes, seed=3)
    assert_array_equal((labels, classes), before)
    assert_array_equal(
        list(one.values()), list(cluster_scores(labels, classes, seed=3).values())
    )
    assert one["ari_low"] != cluster_scores(labels, classes, seed=4)["ari_low"]


def test_labels_of_several_types():
    """Are equal if Python says so, to the last digit; text is no number."""
    labels = np.array([0, 1, 1], dtype=object)
    options = {"train_labels": np.array([0.0, 1.0]), "train_classes": [1, 2]}
    assert cluster_scores(labels, [1, 2, 2], **options)["accuracy"] == 1
    ids = 2**60 + np.array([0, 1, 1])
    options = {"train_labels": [0, 1], "train_classes": ids[:2].astype(np.uint64)}
    scores = cluster_scores([0, 1, 1], ids, **options)
    assert (scores["accuracy"], scores["n_classes"]) == (1, 2)
    options = {"train_labels": [0, 1], "train_classes": ["b", "a"]}
    scores = cluster_scores([0, 1, 1], np.array([b"b", b"a", b"a"]), **options)
    assert scores["accuracy"] == 1
    with pytest.raises(TypeError, match="text here and numbers there: got <U1 and int"):
        cluster_scores([0, 1], [1, 2], **options)
    known = np.array([True, None, "a", 3], dtype=object)
    assert cluster_scores([0, 1, 1, 1], known)["n_classes"] == 3


def test_chance_is_that_of_vinh():
    """The mean over permutations has a closed form, and scikit-learn knows it."""
    rng = np.random.default_rng(2)
    labels, classes = draw(400, rng)
    result = cluster_information(labels, classes, kind="categorical")
    table = metrics.cluster.contingency_matrix(labels, classes)
    expected = expected_mutual_information(table.astype(np.int64), 400)
    error = result["chance_sd"] / np.sqrt(1000)
    assert abs(result["chance"] - expected) < 4 * error
    assert_allclose(
        result["information"], metrics.mutual_info_score(labels, classes), rtol=1e-9
    )
    assert_allclose(
        result["excess"], result["information"] - result["chance"], rtol=1e-9
    )
    assert result["p_value"] == 1 / 1001


def test_information_of_angles():
    """The integral over a known probability, whatever the origin of the angles."""
    rng = np.random.default_rng(3)
    angle = rng.uniform(0, 180, 20_000)
    probability = 0.5 + 0.4 * np.cos(np.deg2rad(2 * angle))
    labels = (rng.random(20_000) < probability).astype(int)
    grid = 0.5 + 0.4 * np.cos(np.linspace(0, 2 * np.pi, 10_001)[:-1])
    entropy = -grid * np.log(grid) - (1 - grid) * np.log(1 - grid)
    expected = np.log(2) - entropy.mean()
    found = [
        cluster_information(labels, values, kind="circular", n_permutations=100)
        for values in (
            angle,
            angle * u.deg,
            np.deg2rad(angle) * u.rad,
            angle + 180.0 * rng.integers(-3, 3, 20_000) + 50.0,
        )
    ]
    for result in found:
        assert_allclose(result["excess"], expected, atol=0.012)
    assert_allclose(found[1]["excess"], found[0]["excess"], rtol=1e-6)
    # over the full circle, halves are the same
    other = cluster_information(
        labels, angle, kind="circular", period=360 * u.deg, n_permutations=10
    )
    assert_allclose(other["excess"], expected, atol=0.012)


def test_information_of_numbers():
    """As another estimator, of nearest neighbours, finds it; and with ties."""
    rng = np.random.default_rng(4)
    labels = rng.integers(3, size=5000)
    size = labels + rng.normal(size=5000)
    result = cluster_information(labels, size)
    neighbors = mutual_info_classif(size[:, None], labels, random_state=0)[0]
    assert_allclose(result["excess"], neighbors, atol=0.03)
    # any monotonic change leaves it as it is
    same = cluster_information(labels, np.exp(size) * u.arcsec)
    assert_allclose(same["excess"], result["excess"], rtol=1e-9)
    # counts have few values, and most are zero
    companions = rng.poisson(0.2 + 0.8 * (labels == 2))
    counts = cluster_information(labels, companions)
    assert_allclose(
        counts["information"], metrics.mutual_info_score(labels, companions), rtol=1e-9
    )
    many = cluster_information(labels, companions, n_bins=2)
    assert 0 < many["excess"] < counts["excess"]


def test_p_values_are_uniform_without_information():
    """And excesses scatter about zero, as much as is said."""
    rng = np.random.default_rng(6)
    results = [
        cluster_information(
            rng.integers(6, size=300), rng.normal(size=300), n_permutations=199, seed=i
        )
        for i in range(200)
    ]
    excess = np.array([result["excess"] for result in results])
    scatter = np.array([result["chance_sd"] for result in results])
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(200)
    assert_allclose(excess.std(), scatter.mean(), rtol=0.25)
    p_values = np.array([result["p_value"] for result in results])
    from scipy.stats import kstest

    assert kstest(p_values, "uniform").pvalue > 0.001


def test_nuisances_with_gaps():
    """Masked and NaN are left out; nothing left gives NaN."""
    labels = np.ma.array([0, 0, 1, 1, 0, 1], mask=[0, 0, 0, 0, 1, 0])
    angle = Masked([10, 20, 100, 110, 30, 40] * u.deg, mask=[0, 0, 0, 0, 0, 1])
    result = cluster_information(labels, angle, kind="circular")
    assert result["n_galaxies"] == 4
    assert result["n_left_out"] == 2
    assert_allclose(result["information"], np.log(2))
    for values in ([np.nan] * 6, np.ma.masked_all(6)):
        result = cluster_information(labels, values)
        assert result["n_galaxies"] == 0
        assert np.isnan(result["excess"])
    same = cluster_information(labels, np.ones(6))
    assert_allclose(same["excess"], 0, atol=1e-12)
    assert same["p_value"] == 1


def test_stability():
    """As scikit-learn finds it, pair by pair, whatever the numbers of clusters."""
    rng = np.random.default_rng(7)
    one, other = draw(200, rng)
    third = np.array([4, 2, 0, 1, 3])[one]
    result = cluster_stability([one, other, third])
    expected = metrics.adjusted_rand_score(one, other)
    assert_allclose(result["ari_matrix"][0, 1], expected)
    assert_allclose(result["ari_matrix"][0, 2], 1)
    assert_allclose(np.diagonal(result["ari_matrix"]), 1)
    assert_allclose(result["ari"], (1 + 2 * expected) / 3)
    assert_allclose(result["ari_min"], expected)
    assert result["occupied"] == [5, 3, 5]
    # of 100 galaxies, two per cent are two
    few = cluster_stability([[0] * 97 + [1, 1, 2]])
    assert few["occupied"] == [2]
    assert np.isnan(few["ari"])
    masked = np.ma.array(other, mask=np.arange(200) < 50)
    result = cluster_stability([one, masked])
    expected = metrics.adjusted_rand_score(one[50:], other[50:])
    assert_allclose(result["ari"], expected)
    assert result["n_galaxies"] == [200, 150]


def test_mixture_report():
    """A mixture of known weights, with a pair that is nearly the same."""
    from astrovae.layers import GaussianPrior, MixturePrior

    prior = MixturePrior(4, latent_dim=2, seed=1)
    prior._assign(
        np.log([0.5, 0.3, 0.19, 0.01]),
        np.array([[0, 0], [0.2, 0], [9, 0], [0, 9]]),
        np.ones((4, 2)),
    )
    report = mixture_report(prior)
    assert_allclose(report["weights_sum"], 1, atol=1e-6)
    # equal normal distributions at a distance d: exp(-d**2 / 8)
    assert_allclose(report["max_bhattacharyya"], np.exp(-0.04 / 8), rtol=1e-5)
    assert [pair[:2] for pair in report["duplicates"]] == [(0, 1)]
    assert report["occupied"] == 3
    prior.merge_duplicates()
    report = mixture_report(prior)
    assert report["duplicates"] == []
    assert report["occupied"] == 2
    alone = mixture_report(MixturePrior(1, latent_dim=2))
    assert alone["max_bhattacharyya"] == 0
    assert alone["occupied"] == 1
    with pytest.raises(TypeError, match="must be a mixture, such as MixturePrior"):
        mixture_report(GaussianPrior(2))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_responsibilities_of_draws_are_calibrated(covariance):
    """The mixture knows its own components, as well as can be known."""
    from astrovae.layers import MixturePrior

    prior = MixturePrior(5, latent_dim=3, covariance=covariance, seed=2)
    result = responsibility_calibration(prior, n=40_000)
    assert result["calibration_error"] < 0.01
    assert 0.002 < result["chance"] < 0.01
    assert result["calibration_error"] < 3 * result["chance"]
    assert_allclose(result["accuracy"], result["confidence"], atol=0.01)
    again = responsibility_calibration(prior, n=1000, seed=1)
    assert again == responsibility_calibration(prior, n=1000, seed=1)
    assert again != responsibility_calibration(prior, n=1000, seed=2)


def test_wrong_responsibilities_are_found():
    """Those of a mixture other than the one that was drawn from."""
    from astrovae.layers import MixturePrior

    prior = MixturePrior(5, latent_dim=2, seed=2)

    class Overconfident:
        components, bhattacharyya = prior.components, prior.bhattacharyya
        sample = prior.sample

        def responsibilities(self, z):
            gamma = np.asarray(prior.responsibilities(z)) ** 4
            return gamma / gamma.sum(axis=1, keepdims=True)

    if hasattr(prior.responsibilities(np.zeros((1, 2))), "detach"):
        Overconfident.responsibilities = _torch_power(prior)
    result = responsibility_calibration(Overconfident(), n=10_000)
    assert result["calibration_error"] > 0.1
    assert result["confidence"] > result["accuracy"] + 0.1


def _torch_power(prior):
    def responsibilities(self, z):
        gamma = prior.responsibilities(z).detach().numpy() ** 4
        return gamma / gamma.sum(axis=1, keepdims=True)

    return responsibilities


@pytest.fixture(scope="module")
def linear():
    """A model whose posteriors are exact: one pixel is one latent with noise."""
    from astrovae.layers import MixturePrior
    from astrovae.models import VAE, DenseDecoder, DenseEncoder, GaussianLikelihood

    shape = (1, 2, 1)
    prior = MixturePrior(3, latent_dim=2)
    prior._assign(
        np.log([0.5, 0.3, 0.2]),
        np.array([[0, 0], [2.5, 0], [0, 3.0]]),
        np.ones((3, 2)),
    )
    decoder = DenseDecoder(shape, ())
    vae = VAE(
        shape,
        2,
        DenseEncoder(()),
        decoder,
        prior=prior,
        likelihood=GaussianLikelihood(learn_variance=False, sigma_floor=0.01),
        scale=[1.0],
        noise=[1.0],
    )
    vae.encode(np.zeros((1, *shape), np.float32))
    vae.decode(np.zeros((1, 2)))
    kernel, bias = decoder.weights
    kernel.assign(np.eye(2))
    bias.assign(np.zeros(2))
    return vae


def set_encoder(vae, log_var):
    """Let the mean be the pixels, and the variance what is given."""
    kernel, bias = vae.posterior_layer.weights
    kernel.assign(np.eye(2, 4))
    bias.assign([0, 0, log_var, log_var])


def test_calibration_of_decoded_draws(linear):
    """Nearly exact for little noise; sure of the wrong ones for much."""
    from astrovae.images import CutoutStack

    set_encoder(linear, np.log(1e-4))
    stacks = [
        CutoutStack(np.zeros((50, 1, 2)), error=np.full((50, 1, 2), error))
        for error in (0.01, 3.0)
    ]
    good, bad = (
        responsibility_calibration(linear, 5000, True, stack=stack) for stack in stacks
    )
    known = responsibility_calibration(linear, 5000)
    assert good["calibration_error"] < 3 * good["chance"]
    assert_allclose(good["accuracy"], known["accuracy"], atol=0.01)
    assert bad["calibration_error"] > 0.1
    assert bad["accuracy"] < known["accuracy"] - 0.1
    # without a stack, there is the noise of the likelihood alone
    alone = responsibility_calibration(linear, 3000, decoded=True)
    assert alone["calibration_error"] < 0.03
    masked = CutoutStack(np.zeros((2, 1, 2)), mask=np.ones((2, 1, 2), bool))
    with pytest.raises(ValueError, match="no galaxy of the stack has enough"):
        responsibility_calibration(linear, 10, True, stack=masked)
    with pytest.raises(TypeError, match=r"needs a model with simulate\(\)"):
        responsibility_calibration(linear.prior, 10, decoded=True)


def test_misuse_is_explained():
    """Errors say what came and what was expected."""
    with pytest.raises(ValueError, match="of the same galaxies, got 2 and 3"):
        cluster_scores([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="came without train_classes"):
        cluster_scores([0], [0], train_labels=[0])
    with pytest.raises(ValueError, match="no training galaxy has both"):
        cluster_scores([0], [0], train_labels=[0], train_classes=[np.nan])
    with pytest.raises(ValueError, match=r"labels must have the shape \(n,\)"):
        cluster_scores(np.zeros((2, 2)), [0, 1])
    with pytest.raises(ValueError, match="kind must be one of"):
        cluster_information([0], [0], kind="angle")
    with pytest.raises(ValueError, match="must be an angle, got the unit Jy"):
        cluster_information([0], [1] * u.Jy, kind="circular")
    with pytest.raises(ValueError, match="period must be positive"):
        cluster_information([0], [1], kind="circular", period=0)
    with pytest.raises(TypeError, match="must hold numbers"):
        cluster_information([0], ["a"])
    with pytest.raises(ValueError, match="n_bins must be an integer >= 2"):
        cluster_information([0], [0], n_bins=1)
    with pytest.raises(ValueError, match=r"got the lengths \[1, 2\]"):
        cluster_stability([[0], [0, 1]])
    with pytest.raises(ValueError, match=r"got the lengths \[\]"):
        cluster_stability([])
