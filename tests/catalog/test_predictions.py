"""Tests of properties predicted from latents."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from numpy.testing import assert_allclose

from astrovae.catalog import add_predictions
from astrovae.exceptions import FlaggedRowsWarning


@pytest.fixture
def table(rng):
    """Three latents, a property that follows them, and one that does not."""
    z = rng.normal(size=(300, 3))
    table = Table({"latent_mean": z})
    noise = 0.5 * rng.normal(size=300)
    table["log_mass"] = 10 + 0.5 * z[:, 0] - 0.3 * z[:, 1] + noise
    table["log_mass"].unit = u.dex(u.Msun)
    table["u_r"] = rng.normal(size=300)
    return table


@pytest.mark.parametrize("method", ["neighbors", "linear"])
def test_predictions_have_honest_errors(rng, method):
    """68 % of held-out galaxies lie within one sigma, wherever errors are large."""
    z = rng.normal(size=(6000, 2))
    scatter = np.where(z[:, 1] > 0, 0.6, 0.2)
    table = Table({"latent_mean": z})
    table["u_r"] = (2 + 0.5 * z[:, 0] + scatter * rng.normal(size=6000)) * u.mag
    truth = np.asarray(table["u_r"])
    train = np.arange(6000) < 3000
    result = add_predictions(table, "u_r", train=train, method=method)
    pull = (truth - result["u_r_pred"]) / result["u_r_pred_sigma"]
    for rows in (train, ~train):
        assert_allclose((np.abs(pull[rows]) < 1).mean(), 0.683, atol=0.025)
        for side in (z[:, 1] > 0.3, z[:, 1] < -0.3):
            assert_allclose((np.abs(pull[rows & side]) < 1).mean(), 0.683, atol=0.06)
    assert_allclose(np.median(result["u_r_pred_sigma"][z[:, 1] < -0.5]), 0.2, rtol=0.25)
    assert_allclose(np.median(result["u_r_pred_sigma"][z[:, 1] > 0.5]), 0.6, rtol=0.1)
    assert result["u_r_pred"].unit == u.mag
    assert result["u_r_pred_sigma"].unit == u.mag
    assert "u_r" in result["u_r_pred"].description


def test_predictions_are_out_of_fold(rng):
    """No galaxy is predicted from itself: noise is not predicted."""
    z = rng.normal(size=(500, 2))
    table = Table({"latent_mean": z, "noise": rng.normal(size=500)})
    result = add_predictions(table, "noise", n_neighbors=1)
    found = np.corrcoef(result["noise"], result["noise_pred"])[0, 1]
    assert abs(found) < 0.15


def test_predictions_fill_what_is_missing(table):
    """Galaxies without the property get one; those without latents are masked."""
    missing = np.arange(300) < 60
    table["log_mass"] = MaskedColumn(table["log_mass"], mask=missing)
    table["log_mass"].unit = u.dex(u.Msun)
    latents = MaskedColumn(table["latent_mean"])
    latents.mask[-10:] = True
    table["latent_mean"] = latents
    before = table.copy()
    with pytest.warns(FlaggedRowsWarning, match="10 of 300 rows have no latents"):
        result = add_predictions(table, ["log_mass", "u_r"], prefix="run1_")
    assert table.colnames == before.colnames
    assert result["run1_log_mass_pred"].mask.nonzero()[0].tolist() == [*range(290, 300)]
    entry = result.meta["astrovae"]["run1_"]["predictions:log_mass"]
    assert entry["n_train"] == 230
    assert entry["n_masked"] == 10
    assert table.meta == before.meta
    with pytest.raises(ValueError, match="already has run1_u_r_pred"):
        add_predictions(result, "u_r", prefix="run1_")
    with pytest.warns(FlaggedRowsWarning):
        add_predictions(result, "u_r", prefix="run1_", overwrite=True)


def test_predictions_from_another_catalogue(table):
    """The same as from the rows of one table; a regressor of the user's own."""
    from sklearn.linear_model import LinearRegression

    train = np.arange(300) < 200
    ours = add_predictions(table, "log_mass", train=train, method="linear")
    theirs = add_predictions(
        table[200:], "log_mass", train=table[:200], method=LinearRegression()
    )
    for name in ("log_mass_pred", "log_mass_pred_sigma"):
        assert_allclose(theirs[name], ours[name][200:], rtol=1e-6)
    quantities = add_predictions(QTable(table), "log_mass", train=train)
    assert quantities["log_mass_pred"].unit == table["log_mass"].unit


def test_errors_of_logarithmic_units(table):
    """The error of an AB magnitude is in mag, and is masked like it."""
    quantities = QTable()
    quantities["latent_mean"] = np.asarray(table["latent_mean"]).copy()
    quantities["latent_mean"][:5] = np.nan
    quantities["mag"] = u.Magnitude(np.asarray(table["u_r"]), u.mag(u.AB))
    plain = Table({"latent_mean": quantities["latent_mean"], "mag": table["u_r"]})
    plain["mag"].unit = u.mag(u.AB)
    for source in (quantities, plain):
        with pytest.warns(FlaggedRowsWarning, match="5 of 300 rows"):
            result = add_predictions(source, "mag")
        assert result["mag_pred"].unit == u.mag(u.AB)
        assert result["mag_pred_sigma"].unit == u.mag
        assert result["mag_pred"].mask.nonzero()[0].tolist() == [*range(5)]


def test_predictions_that_are_never_wrong(rng):
    """Errors are zero, and not missing."""
    z = np.repeat([[0.0], [9.0]], 100, axis=0) + 0.1 * rng.normal(size=(200, 1))
    table = Table({"latent_mean": z, "bar": np.repeat([0, 1], 100)})
    result = add_predictions(table, "bar", n_neighbors=16)
    assert_allclose(result["bar_pred"], table["bar"])
    assert_allclose(result["bar_pred_sigma"], 0)


def test_predictions_misuse(table):
    """What cannot be learnt is masked; what makes no sense is refused."""
    table["constant"] = 1.0
    table["name"] = "spiral"
    with pytest.warns(FlaggedRowsWarning, match="constant cannot be learnt"):
        result = add_predictions(table, "constant")
    assert result["constant_pred"].mask.all()
    with pytest.raises(TypeError, match="must hold numbers"):
        add_predictions(table, "name")
    with pytest.raises(ValueError, match="one bool per row"):
        add_predictions(table, "u_r", train=[True, False])
    with pytest.raises(ValueError, match="method must be one of"):
        add_predictions(table, "u_r", method="magic")
    other = Table({"latent_mean": np.zeros((50, 5)), "u_r": np.arange(50.0)})
    with pytest.raises(ValueError, match="train has 5 latents"):
        add_predictions(table, "u_r", train=other)
