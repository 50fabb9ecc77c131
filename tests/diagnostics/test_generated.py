# Licensed under a 3-clause BSD style license - see LICENSE
"""Generated galaxies against real ones."""

import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from astrovae.datasets import make_galaxies
from astrovae.diagnostics import (
    conditional_calibration,
    fidelity,
    neighbor_distance_ratio,
    two_sample_auc,
)
from astrovae.diagnostics.generated import _delong, _distances


def draw(rng, n, shift=0.0):
    """Statistics of galaxies of one population, correlated with each other."""
    size = rng.normal(size=n)
    return Table(
        {
            "id": np.arange(n),
            "e": rng.beta(2, 4, n) + shift,
            "log_sigma": size,
            "mag": 20 - size + rng.normal(size=n),
        }
    )


def test_equal_populations(rng):
    """Galaxies of one population are no further apart than halves of the real ones."""
    real, generated, training, other = (draw(rng, 600) for _ in range(4))
    table = fidelity(real, generated, parametric=other, training=training)
    assert list(table["statistic"]) == ["e", "log_sigma", "mag"]
    facts = table.meta["astrovae"]["fidelity"]
    for name in ("generated", "parametric", "real"):
        assert facts[f"auc_{name}_low"] < 0.5 < facts[f"auc_{name}_high"]
        assert (table[f"ks_{name}_p_value"] > 0.01).all()
    assert facts["nn_distance_ratio_low"] < 1 < facts["nn_distance_ratio_high"]
    assert (np.abs(table["mean_shift"]) < 4 * table["mean_shift_err"]).all()
    ratio = np.abs(table["variance_ratio"] - 1)
    assert (ratio < 4 * table["variance_ratio_err"]).all()
    assert np.isnan(table["slope"]).all()


def test_other_population(rng):
    """Shifted, copied and badly conditioned galaxies are found out."""
    real, training = draw(rng, 400), draw(rng, 400)
    generated = training.copy()  # learned by heart
    generated["e"] = generated["e"] + 0.2
    generated["log_sigma"] *= 0.5
    requested = Table({"log_sigma": 2 * np.asarray(generated["log_sigma"]) + 0.3})
    table = fidelity(real, generated, requested=requested)
    table.add_index("statistic")
    facts = table.meta["astrovae"]["fidelity"]
    assert facts["auc_generated_low"] > 0.6 > facts["auc_real_low"]
    e, size = table.loc["e"], table.loc["log_sigma"]
    assert e["ks_generated_p_value"] < 1e-4 < e["ks_real_p_value"]
    assert e["energy_generated"] > 3 * e["energy_real"]
    assert_allclose(e["mean_shift"], 0.2, atol=0.05)
    assert_allclose(size["variance_ratio"], 0.25, rtol=0.3)
    assert_allclose(size["slope"], 0.5, rtol=1e-6)
    assert_allclose(size["scatter"], 0, atol=1e-6)
    assert np.isnan(e["slope"])
    assert np.isnan(facts["auc_parametric"])
    copies = fidelity(real, training.copy(), training=training)
    assert copies.meta["astrovae"]["fidelity"]["nn_distance_ratio"] == 0


def test_p_values_are_uniform(rng):
    """Galaxies of one population have Kolmogorov-Smirnov p-values of any size."""
    p_values = [
        _distances("x", *rng.normal(size=(2, 100, 1)))["ks_x_p_value"][0]
        for _ in range(100)
    ]
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_failures_are_counted(rng):
    """What was not measured is left out of every comparison, and told."""
    real, generated = draw(rng, 200), draw(rng, 200)
    generated["mag"][:50] = np.nan
    generated = Table(generated, masked=True)
    generated["e"].mask[150:] = True
    table = fidelity(real, generated)
    assert_allclose(table["failed_generated"], [0.25, 0, 0.25])
    assert_allclose(table["failed_real"], 0)
    assert np.isfinite(table["ks_generated"]).all()
    assert np.isnan(table["values_generated"][2][:50]).all()


def test_statistic_that_no_galaxy_has(rng):
    """Joint numbers are NaN where a band is missing in all galaxies; others stay."""
    tables = [draw(rng, 100) for _ in range(3)]
    tables[1]["mag"] = np.nan
    table = fidelity(*tables[:2], training=tables[2])
    facts = table.meta["astrovae"]["fidelity"]
    assert np.isnan([facts["auc_generated"], facts["nn_distance_ratio"]]).all()
    assert_allclose(table["failed_generated"], [0, 0, 1])
    assert np.isfinite(table["ks_generated"][:2]).all()


def test_stacks_are_measured():
    """Stacks and their measured tables give the same."""
    from astrovae.diagnostics import measure_galaxies

    _, real = make_galaxies(40, shape=32, snr=(50, 100), seed=1)
    _, other = make_galaxies(40, shape=32, snr=(50, 100), seed=2)
    one = fidelity(real, other, measure="morphology")
    measured = [
        measure_galaxies(stack, measure="morphology") for stack in (real, other)
    ]
    two = fidelity(*measured)
    assert list(one["statistic"]) == ["concentration", "asymmetry", "gini", "m20"]
    assert_allclose(one["ks_generated"], two["ks_generated"])


def test_misuse(rng):
    """Messages say what does not fit."""
    real = draw(rng, 100)
    with pytest.raises(ValueError, match=r"generated galaxies have no \['mag'\]"):
        fidelity(real, real["id", "e", "log_sigma"])
    with pytest.raises(ValueError, match="at least 20 galaxies, got 10"):
        fidelity(real, real[:10])
    with pytest.raises(ValueError, match="requested must have columns named"):
        fidelity(real, real, requested=Table({"size": np.ones(100)}))
    with pytest.raises(ValueError, match="row for each of the 100"):
        fidelity(real, real, requested=real[:50])
    _, stack = make_galaxies(2, shape=16)
    with pytest.raises(ValueError, match="measure must be one of"):
        fidelity(stack, stack, measure="size")


def test_calibration_intervals_cover(rng):
    """95 % intervals hold the truth about as often; what is NaN takes no part."""
    inside = np.zeros(3)
    for seed in range(60):
        x = rng.random(200)
        y = 0.1 + 0.8 * x + 0.1 * rng.normal(size=200)
        x[:5] = np.nan
        result = conditional_calibration(x, y, seed=seed)
        truth = {"slope": 0.8, "scatter": 0.1, "bias": 0.0}
        for i, (name, value) in enumerate(truth.items()):
            inside[i] += result[f"{name}_low"] <= value <= result[f"{name}_high"]
    assert (inside >= 50).all()
    with pytest.raises(ValueError, match="must be pairs"):
        conditional_calibration([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least 20 pairs"):
        conditional_calibration(np.ones(30), np.ones(30))


def test_delong_is_the_area_of_scikit_learn(rng):
    """Also with ties; the variance is that of repeated samples."""
    negative, positive = rng.integers(0, 20, 50), rng.integers(5, 25, 40)
    labels = np.repeat([0, 1], [50, 40])
    scores = np.concatenate([negative, positive])
    assert_allclose(_delong(negative, positive)[0], roc_auc_score(labels, scores))
    draws = rng.normal(size=(400, 150))
    found = np.array([_delong(row[:80], row[80:] + 1) for row in draws])
    assert_allclose(found[:, 1].mean(), found[:, 0].var(), rtol=0.2)


def test_auc_interval_covers(rng):
    """The interval of equal samples holds 0.5 about 95 times in a hundred."""
    inside = 0
    for seed in range(60):
        low, high = two_sample_auc(*rng.normal(size=(2, 200, 4)), seed=seed)[1:]
        inside += low <= 0.5 <= high
    assert inside >= 53


def test_auc_misuse(rng):
    """Too few galaxies are refused."""
    with pytest.raises(ValueError, match="at least 10 galaxies"):
        two_sample_auc(rng.normal(size=(19, 2)), rng.normal(size=(50, 2)))
    with pytest.raises(ValueError, match="test_fraction must be between"):
        two_sample_auc(*rng.normal(size=(2, 50, 2)), test_fraction=1)
    with pytest.raises(ValueError, match="held_out has no galaxy"):
        neighbor_distance_ratio([[0.0]], [[np.nan]], [[1.0]])
