"""Tests of win rates."""

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from numpy.testing import assert_allclose

from astrovae.baselines import win_rates


@pytest.fixture
def table(rng):
    """Errors and likelihoods of 50 galaxies in two bands; two unmeasured."""
    n, result = 50, Table()
    for name in ("mse", "log_like"):
        for model in ("vae", "gauss"):
            values = rng.normal(size=(n, 2)) ** 2
            mask = np.zeros((n, 2), bool)
            mask[[3, 7] if model == "vae" else [7]] = True
            result[f"{model}_{name}"] = MaskedColumn(values, mask=mask)
    return result


def test_rates_are_those_of_numpy(table):
    """All bands together and each alone; unmeasured galaxies never count."""
    rates = win_rates(table)
    good = np.setdiff1d(np.arange(50), [3, 7])
    gain = np.ma.getdata(table["gauss_mse"] - table["vae_mse"])[good]
    like = np.ma.getdata(table["vae_log_like"] - table["gauss_log_like"])[good]
    for quantity, values in (("mse", gain), ("like", like)):
        for band, total in ((-1, values.sum(1)), (0, values[:, 0]), (1, values[:, 1])):
            row = rates[(rates["quantity"] == quantity) & (rates["band"] == band)][0]
            assert row["n"] == 48
            assert row["n_wins"] == (total > 0).sum()
            assert_allclose(row["rate"], (total > 0).mean())


def test_interval_is_that_of_wilson(table):
    """Against the closed form of Wilson 1927."""
    row = win_rates(table)[0]
    n, p, z = row["n"], row["rate"], 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert_allclose([row["low"], row["high"]], [middle - half, middle + half])


def test_rows_are_chosen(table):
    """Only the rows that are asked for count; none gives NaN, not an error."""
    rows = np.arange(50) < 10
    assert win_rates(table, rows=rows)["n"][0] == 8
    empty = win_rates(table, rows=np.zeros(50, bool))
    assert empty["n"][0] == 0
    assert np.isnan(empty["rate"][0])
    assert len(win_rates(table[:0])) == len(empty)


def test_missing_columns_are_named():
    """It says how to get them."""
    with pytest.raises(ValueError, match=r"no vae_mse and no gauss_mse; add_baselines"):
        win_rates(Table({"id": [1]}))
