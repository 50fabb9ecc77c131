"""Tests of win rates."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from numpy.testing import assert_allclose

from astrovae.baselines import EigenGalaxies, GaussianFit, compare, metrics, win_rates
from astrovae.datasets import make_galaxies


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


def test_baselines_without_likelihoods_are_compared_by_their_errors(table):
    """Such as the components of a user, which have a squared error alone."""
    table["pca_mse"] = 2 * table["vae_mse"]
    rates = win_rates(table, baseline="pca")
    assert set(rates["quantity"]) == {"mse"}
    assert_allclose(rates["rate"], 1)
    rates = compare(table)
    against = rates[(rates["model"] == "vae") & (rates["baseline"] == "pca")]
    assert set(against["quantity"]) == {"mse"}
    assert "like" in rates["quantity"][rates["baseline"] == "gauss"]


class Meter:
    """Something with measure, which gives the columns that it was made of."""

    def __init__(self, columns):
        self.columns = columns

    def measure(self, stack):
        return dict(self.columns)


class Painter(Meter):
    """A model whose variance is at the floor in some pixels."""

    scale = np.array([2.0, 3.0])

    def __init__(self, columns, low):
        super().__init__(columns)
        self.low = low
        self.likelihood = SimpleNamespace(learn_variance=True, floor=self.floor)

    def floor(self, scale):
        return np.full(2, 0.25)

    def reconstruct(self, batch):
        low = self.low[batch["image"][:, 0, 0, 0].astype(int)]
        floor = 0.25 * self.scale**2
        return {"log_var": np.log(np.where(low, 1.5 * floor, 2.5 * floor))}


@pytest.fixture
def meters(rng):
    """Columns of a model and of three baselines for 30 galaxies in two bands."""
    names = {
        "vae": ("vae_mse", "vae_log_like"),
        "gauss": [
            f"gauss_{name}{suffix}"
            for suffix in ("", "_background")
            for name in ("mse", "log_like")
        ],
        "sersic": ("sersic_mse", "sersic_log_like"),
        "pca": ("pca_mse", "pca_log_like"),
    }
    return {
        key: Meter({name: rng.normal(size=(30, 2)) ** 2 for name in columns})
        for key, columns in names.items()
    }


def test_comparison_has_every_pair(meters):
    """Model and principal components against everything else, as win_rates has it."""
    images = np.zeros((30, 4, 5, 2))
    model, *baselines = meters.values()
    rates = compare(images, model, baselines)
    table = Table({k: v for meter in meters.values() for k, v in meter.columns.items()})
    pairs = [("vae", "gauss"), ("vae", "sersic"), ("vae", "pca")]
    pairs += [("pca", "gauss"), ("pca", "sersic")]
    assert list(dict.fromkeys(zip(rates["model"], rates["baseline"]))) == pairs
    for ours, theirs in pairs:
        some = rates[(rates["model"] == ours) & (rates["baseline"] == theirs)]
        expected = win_rates(table, model=ours, baseline=theirs)
        assert set(some["quantity"]) == ({"mse", "like"} if ours == "vae" else {"mse"})
        for name in expected.colnames:
            assert list(some[name]) == list(expected[name])
        gain = table[f"{theirs}_mse"] - table[f"{ours}_mse"]
        assert some["n_wins"][0] == (gain.sum(axis=1) > 0).sum()
    assert np.isnan(rates["floor_share"]).all()
    again = compare(table)
    assert again.colnames == rates.colnames
    assert list(again["rate"]) == list(rates["rate"])


def test_share_of_pixels_at_the_floor(meters, rng, monkeypatch):
    """Valid pixels of the galaxies that are counted, for each band."""
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    low, mask = rng.random((2, 30, 4, 5, 2)) < 0.3
    images = np.broadcast_to(np.arange(30.0)[:, None, None, None], mask.shape).copy()
    rows = np.arange(30) < 20
    mask[:, 0, 0] = False
    model = Painter(meters["vae"].columns, low)
    rates = compare(
        {"image": images, "mask": mask}, model, [meters["gauss"]], rows=rows
    )
    share = np.ma.array(low, mask=mask)[rows]
    for band, expected in ((-1, share), (0, share[..., 0]), (1, share[..., 1])):
        found = rates["floor_share"][rates["band"] == band]
        assert_allclose(found, expected.mean())
    assert set(rates["n"]) == {20}


def test_comparison_of_eigengalaxies():
    """Without a model, principal components are compared; a fit is the default."""
    _, stack = make_galaxies(40, shape=(12, 12), seed=4)
    eigen = EigenGalaxies(4).fit(stack[:30])
    rates = compare(stack[30:], eigen)
    assert set(rates["model"]) == {"pca"}
    assert list(rates["background"]) == [False, True]
    mse = eigen.measure(stack[30:])["pca_mse"]
    gauss = GaussianFit().measure(stack[30:])["gauss_mse"]
    assert rates["n_wins"][0] == (mse < gauss).sum()


def test_nothing_to_compare(table, meters):
    """It says what is missing, and what does not go together."""
    with pytest.raises(ValueError, match=r"nothing to compare.*got \['vae_mse'"):
        compare(np.zeros((30, 4, 5, 2)), meters["vae"], [])
    with pytest.raises(ValueError, match="model and baselines are for a stack"):
        compare(table, baselines=[meters["gauss"]])
    with pytest.raises(ValueError, match="baseline must be one of 'gauss', 'sersic'"):
        win_rates(table, baseline="vae")
