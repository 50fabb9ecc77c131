"""Outliers are found, whatever the noise."""

import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose
from scipy.stats import kstest, multivariate_normal, spearmanr

from astrovae.baselines import EigenGalaxies
from astrovae.catalog import add_outliers, annotate
from astrovae.catalog._outliers import measure_oddity, oddity_percentile
from astrovae.images import CutoutStack

SHAPE, DIM = (8, 8), 2
RNG = np.random.default_rng(3)
LOADINGS = RNG.normal(size=(64, DIM)) * 0.5


class LinearGaussian:
    """Galaxies of two latents under known noise; the ELBO is the evidence."""

    def measure(self, stack, show_progress=False):
        batch = stack.batch(np.arange(len(stack)))
        columns = {"vae_elbo": [], "vae_log_like": [], "vae_chi2": []}
        for row in range(len(stack)):
            valid = ~batch["mask"][row].ravel()
            if not valid.any():
                for values in columns.values():
                    values.append(np.nan)
                continue
            x = batch["image"][row].ravel()[valid].astype(float)
            sigma = batch["error"][row].ravel()[valid].astype(float)
            w = LOADINGS[valid]
            precision = np.eye(DIM) + (w.T / sigma**2) @ w
            z = np.linalg.solve(precision, (w.T / sigma**2) @ x)
            chi2 = np.square((x - w @ z) / sigma)
            covariance = w @ w.T + np.diag(sigma**2)
            evidence = multivariate_normal(cov=covariance).logpdf(x)
            columns["vae_elbo"].append(evidence)
            log_like = -0.5 * (chi2 + np.log(2 * np.pi * sigma**2)).sum()
            columns["vae_log_like"].append(log_like)
            columns["vae_chi2"].append(chi2.mean())
        return {name: np.array(values) for name, values in columns.items()}

    def log_evidence(self, stack, num_samples, show_progress=False):
        elbo = self.measure(stack)["vae_elbo"]
        return elbo, np.full(len(elbo), num_samples)


def make(n, seed, *, spread=1.0):
    """Galaxies that follow the model, at many levels of noise, some masked."""
    rng = np.random.default_rng(seed)
    sigma = 10 ** rng.uniform(-1, 1, (n, 1)) * np.ones((n, 64))
    x = spread * rng.normal(size=(n, DIM)) @ LOADINGS.T
    x = x + sigma * rng.normal(size=x.shape)
    mask = rng.random((n, 64)) < 0.1
    x, sigma, mask = (a.reshape(n, *SHAPE) for a in (x, sigma, mask))
    return CutoutStack(x, error=sigma, mask=mask)


def test_score_is_the_mahalanobis_distance():
    """For a linear model, but for the determinant of the part that it explains."""
    stack = make(20, 1)
    oddity = measure_oddity(LinearGaussian(), stack)
    batch = stack.batch(np.arange(20))
    for row in range(20):
        valid = ~batch["mask"][row].ravel()
        x = batch["image"][row].ravel()[valid]
        variance = np.square(batch["error"][row].ravel()[valid].astype(float))
        w = LOADINGS[valid]
        covariance = w @ w.T + np.diag(variance)
        distance = x @ np.linalg.solve(covariance, x)
        gain = np.linalg.slogdet(covariance)[1] - np.log(variance).sum()
        m = valid.sum()
        expected = (distance + gain - m) / np.sqrt(2 * m)
        assert_allclose(oddity["score"][row], expected, rtol=1e-4, atol=1e-4)


def test_percentiles_do_not_depend_on_noise():
    """Uniform for galaxies like those compared with, at any signal-to-noise."""
    training, stack = make(2000, 1), make(1000, 2)
    table = Table({"row": np.arange(1000)})
    result = add_outliers(table, LinearGaussian(), stack, training=training)
    percentile = np.asarray(result["vae_outlier_percentile"])
    assert kstest(percentile / 100, "uniform").pvalue > 0.01
    noise = stack.error.mean(axis=(1, 2, 3))
    assert spearmanr(percentile, noise).pvalue > 0.01
    entry = result.meta["astrovae"]["default"]["outliers"]
    assert entry["n_reference"] == 2000
    assert entry["reference"] == "training galaxies"
    assert entry["score"] == "elbo"
    # the density itself says which are noisy, and little else
    density = -LinearGaussian().measure(stack)["vae_elbo"]
    assert spearmanr(density, noise).statistic > 0.9


@pytest.mark.parametrize("linear", [True, False])
def test_planted_outliers_are_found(linear):
    """A ring where there is none, and latents far from the others."""
    training, stack = make(1000, 1), make(200, 2)
    data = stack.data.copy()
    bright = np.argsort(stack.error.mean(axis=(1, 2, 3)))[:10]
    data[bright[:5], ::2, ::3] += 3 * stack.error[bright[:5], ::2, ::3]
    far = 9 * RNG.normal(size=(5, DIM)) @ LOADINGS.T
    data[bright[5:]] += far.reshape(5, *SHAPE, 1)
    stack = stack.replace(data=data)
    model = LinearGaussian()
    if not linear:
        # of one noise level, as principal components assume
        keep = np.ones((1000, *SHAPE, 1))
        training = training.replace(data=training.data, error=0.1 * keep)
        rng = np.random.default_rng(5)

        def quiet(n):
            z = rng.normal(size=(n, DIM)) @ LOADINGS.T
            return (z + 0.3 * rng.normal(size=(n, 64))).reshape(n, *SHAPE, 1)

        training, data = CutoutStack(quiet(1000)), quiet(200)
        data[bright[:5], ::2, ::3] += 1
        data[bright[5:]] += far.reshape(5, *SHAPE, 1)
        stack = CutoutStack(data)
        model = EigenGalaxies(DIM).fit(training)
    table = Table({"row": np.arange(200)})
    result = add_outliers(table, model, stack, training=training)
    percentile = result["vae_outlier_percentile"]
    found = np.argsort(percentile)[::-1][:12]
    assert len(set(found) & set(bright)) >= 9
    assert np.median(percentile) < 70


def test_themselves_and_evidence():
    """Without others, the stack is the reference, and that is said."""
    stack = make(60, 4)
    mask = stack.mask.copy()
    mask[7] = True
    stack = stack.replace(mask=mask)
    table = Table({"row": np.arange(60)})
    with pytest.warns(UserWarning, match=r"1 of 60 rows .*\(outliers\)"):
        result = add_outliers(table, LinearGaussian(), stack, num_samples=8)
    percentile = result["vae_outlier_percentile"]
    assert np.flatnonzero(percentile.mask).tolist() == [7]
    # mid-ranks of 59 galaxies
    ranks = np.sort(percentile.compressed())
    assert_allclose(ranks, 100 * (np.arange(59) + 0.5) / 59)
    evidence = LinearGaussian().measure(stack)["vae_elbo"]
    good = ~result["vae_log_evidence"].mask
    assert_allclose(result["vae_log_evidence"][good], evidence[good])
    entry = result.meta["astrovae"]["default"]["outliers"]
    assert entry["reference"] == "the stack itself"
    assert entry["score"] == "log_evidence"
    assert entry["num_samples"] == 8


def test_percentile_counts():
    """Ties count half; nothing is beyond 0 and 100."""
    reference = {"score": np.array([1.0, 2, 2, 3, np.nan]), "level": np.zeros(5)}
    oddity = {"score": np.array([0.0, 2, 9, np.nan]), "level": np.zeros(4)}
    assert_allclose(oddity_percentile(oddity, reference), [0, 50, 100, np.nan])


def test_annotate_measures_once():
    """What the reconstruction columns hold is used; the result is the same."""
    calls = []

    class Counting(LinearGaussian):
        def measure(self, stack, show_progress=False):
            calls.append(len(stack))
            return super().measure(stack)

    stack, training = make(30, 1), make(150, 2)
    table = Table({"row": np.arange(30)})
    what = ("reconstruction", "outliers")
    one = annotate(table, Counting(), stack, what=what, training=training)
    assert calls == [30, 150]
    other = add_outliers(table, Counting(), stack, training=training)
    name = "vae_outlier_percentile"
    assert_allclose(one[name], other[name])


def test_wrong_models_and_references():
    """Errors say what is missing."""
    stack = make(5, 1)
    table = Table({"row": np.arange(5)})

    class Mute:
        def measure(self, stack):
            return {"vae_mse": np.ones(len(stack))}

    for model in (Mute(), object()):
        with pytest.raises(TypeError, match=r"outlier_score\(stack\), or a measure"):
            add_outliers(table, model, stack)
    nothing = stack.replace(mask=np.ones_like(stack.mask))
    with pytest.raises(ValueError, match="no galaxy of training"):
        add_outliers(table, LinearGaussian(), stack, training=nothing)
    with pytest.raises(ValueError, match="num_samples must be an integer >= 0"):
        add_outliers(table, LinearGaussian(), stack, num_samples=-1)
