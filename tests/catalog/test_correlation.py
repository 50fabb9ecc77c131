"""Tests of latents beside physical properties."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from numpy.testing import assert_allclose
from scipy import stats
from scipy.spatial.distance import cdist

from astrovae.catalog import _statistics as st
from astrovae.catalog import correlate, nuisance_audit
from astrovae.catalog._measures import Measures
from astrovae.exceptions import FlaggedRowsWarning

TOGETHER = (
    "linear_r2",
    "knn_r2",
    "canonical_correlation",
    "nuisance_r2",
    "partial_r2",
)


def make_table(rng, n=300, dim=3, sigma=0.0):
    """Three latents; a nuisance in the first one and in the property."""
    z = rng.normal(size=(n, dim))
    size = rng.normal(size=n)
    z[:, 0] += size
    table = Table({"latent_mean": z + sigma * rng.normal(size=z.shape)})
    table["latent_sigma"] = np.full(z.shape, sigma)
    noise = rng.normal(size=n)
    table["log_mass"] = 10 + 0.5 * z[:, 0] - 0.3 * z[:, 1] + size + 0.5 * noise
    table["u_r"] = rng.normal(size=n)
    table["size"] = size
    table["log_mass"].unit = u.dex(u.Msun)
    return table


def residuals(y, x):
    """What least squares with a constant leave."""
    design = np.column_stack([np.ones(len(y)), x])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


# ---------------------------------------------------------------------------
# Correlations
# ---------------------------------------------------------------------------


def test_correlations_are_those_of_scipy(rng):
    """Pearson, Spearman with ties, their q-values, and n."""
    table = make_table(rng)
    table["u_r"] = np.round(table["u_r"], 1)
    names = ["log_mass", "u_r"]
    result = correlate(table, names)
    for row in result:
        assert row["n"] == 300
        assert row["n_dropped"] == 0
        for name, function in (
            ("pearson", stats.pearsonr),
            ("spearman", stats.spearmanr),
        ):
            for j, latent in enumerate(table["latent_mean"].T):
                expected = function(latent, table[row["property"]]).statistic
                assert_allclose(row[name][j], expected, rtol=1e-10)
                assert row[f"{name}_low"][j] < expected < row[f"{name}_high"][j]
    for name in ("pearson", "spearman"):
        p = np.asarray(result[f"{name}_p"])
        expected = stats.false_discovery_control(p.ravel()).reshape(p.shape)
        assert_allclose(result[f"{name}_q"], expected, rtol=1e-12)
    # for normal variables the error is the one that Fisher found
    low, high = stats.pearsonr(
        table["latent_mean"][:, 1], table["log_mass"]
    ).confidence_interval()
    assert_allclose(result["pearson_low"][0, 1], low, atol=0.03)
    assert_allclose(result["pearson_high"][0, 1], high, atol=0.03)


def test_partial_correlations_are_those_of_residuals(rng):
    """By least squares, of values and of ranks; a constant nuisance does nothing."""
    table = make_table(rng)
    table["psf"] = rng.normal(size=300)
    table["constant"] = 3.0
    table["cube"] = table["size"] ** 3  # of the same ranks
    result = correlate(table, "log_mass", nuisances=["size", "psf", "constant"])
    cube = correlate(table, "log_mass", nuisances=["size", "psf", "cube"])
    assert_allclose(cube["partial_spearman"], result["partial_spearman"])
    controls = np.stack([table["size"], table["psf"]], axis=1)
    y = np.asarray(table["log_mass"])
    for j, latent in enumerate(table["latent_mean"].T):
        for name, convert in (("pearson", np.asarray), ("spearman", stats.rankdata)):
            z = np.apply_along_axis(convert, 0, controls)
            expected = stats.pearsonr(
                residuals(convert(latent), z), residuals(convert(y), z)
            ).statistic
            assert_allclose(result[f"partial_{name}"][0, j], expected, rtol=1e-9)
    # without the size, the rest of the first latent is worth less
    assert result["partial_pearson"][0, 0] < result["pearson"][0, 0]
    assert result["n_partial"][0] == 300


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_influence(name):
    """That of a row is the change of the estimate with its weight, ties included."""
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4))
    columns[:, 1] = np.round(columns[:, 1])
    weights = rng.uniform(0.5, 1.5, size=40)
    share = weights / weights.sum()
    estimate, error = correlation(name, columns, weights)
    influence = np.empty(40)
    for row in range(40):
        changed = share * (1 - 1e-6)
        changed[row] += 1e-6
        influence[row] = (correlation(name, columns, changed)[0] - estimate) / 1e-6
    size = st.effective_size(weights)
    expected = np.sqrt(size / (size - 5) * np.square(share * influence).sum())
    assert_allclose(error, expected / (1 - estimate**2), rtol=1e-3)


def correlation(name, columns, weights):
    """The first two columns, given the others."""
    if name == "spearman":
        return st.rank_correlation([st.Ranks(c) for c in columns.T], weights)
    return st.correlation(columns, weights)


def population(rho, controls):
    """Correlations of normal variables, of which the others drive the first two."""
    matrix = np.eye(2 + controls)
    matrix[0, 1] = matrix[1, 0] = rho
    matrix[:2, :2] += 0.49 * controls
    matrix[:2, 2:] = matrix[2:, :2] = 0
    matrix[:2, 2:] += 0.7
    matrix[2:, :2] += 0.7
    return matrix


def partial_of(matrix):
    """Partial correlation of the first two variables."""
    inverse = np.linalg.inv(matrix)
    return -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])


@pytest.mark.parametrize("controls", [0, 2])
@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_intervals_cover(rho, controls):
    """95 % intervals of planted relations cover them in 93 to 97 % of 1,000."""
    rng = np.random.default_rng(int(10 * rho) + controls)
    n, repeats, size = 120, 1000, 2 + controls
    matrix = population(rho, controls)
    scale = np.sqrt(matrix.diagonal())
    ranked = 6 / np.pi * np.arcsin(matrix / np.outer(scale, scale) / 2)
    truth = {"pearson": partial_of(matrix), "spearman": partial_of(ranked)}
    root = np.linalg.cholesky(matrix)
    hits = dict.fromkeys(truth, 0)
    low_p = dict.fromkeys(truth, 0)
    for _ in range(repeats):
        columns = rng.normal(size=(n, size)) @ root.T
        for name, value in truth.items():
            estimate, error = correlation(name, columns, np.ones(n))
            low, high, p = st.correlation_interval(estimate, error, n - size)
            hits[name] += low <= value <= high
            low_p[name] += p < 0.05
    for name, count in hits.items():
        assert 0.93 <= count / repeats <= 0.97, name
        if abs(truth[name]) < 1e-12:
            assert 0.03 <= low_p[name] / repeats <= 0.07, name


def test_intervals_cover_without_normality():
    """Unequal errors and weights change what the interval must be."""
    rng = np.random.default_rng(5)
    n, repeats, hits, naive = 300, 1000, 0, 0
    for _ in range(repeats):
        x = rng.normal(size=n)
        y = np.abs(x) * rng.normal(size=n)
        columns = np.stack([x, y], axis=1)
        estimate, error = st.correlation(columns, np.ones(n))
        low, high, _ = st.correlation_interval(estimate, error, n - 2)
        hits += low <= 0 <= high
        naive += abs(np.arctanh(estimate)) < 1.96 / np.sqrt(n - 3)
    assert 0.93 <= hits / repeats <= 0.97
    assert naive / repeats < 0.85


def test_weights_undo_a_selection():
    """Galaxies that are rare in the sample count as often as they occur."""
    rng = np.random.default_rng(6)
    repeats, hits = 1000, {"pearson": 0, "spearman": 0}
    truth = {"pearson": 0.6, "spearman": 6 / np.pi * np.arcsin(0.3)}
    for _ in range(repeats):
        x = rng.normal(size=800)
        y = 0.6 * x + 0.8 * rng.normal(size=800)
        chance = np.where(x + y > 0, 0.6, 0.2)
        kept = rng.random(800) < chance
        columns, weights = np.stack([x, y], axis=1)[kept], 1 / chance[kept]
        size = st.effective_size(weights) - 2
        for name, value in truth.items():
            estimate, error = correlation(name, columns, weights)
            low, high, _ = st.correlation_interval(estimate, error, size)
            hits[name] += low <= value <= high
    for name, count in hits.items():
        assert 0.93 <= count / repeats <= 0.97, name


# ---------------------------------------------------------------------------
# All latents together
# ---------------------------------------------------------------------------


def test_together_covers():
    """Intervals of R2 and of the canonical correlation, 1,000 times."""
    rng = np.random.default_rng(7)
    n, dim, repeats = 400, 3, 1000
    slopes = np.array([0.5, -0.3, 0.2])
    truth = slopes @ slopes / (slopes @ slopes + 1)
    # what four fifths of the galaxies can learn of it
    learnt = 1 - (1 - truth) * (1 + (dim + 1) / (0.8 * n))
    hits = np.zeros(2)
    ones = np.ones(n)
    for _ in range(repeats):
        z = rng.normal(size=(n, dim))
        y = z @ slopes + rng.normal(size=n)
        fold = st.fold_numbers(n, 5, rng)
        residual = np.square(y - st.linear_predictions(z, y, ones, fold))
        products = st.joint_products(z, y[:, None], ones)
        sums = st.bootstrap_sums(np.column_stack([residual, products]), 200, rng)
        r2 = st.r2_of_sums(sums[:, 0], sums[:, 1], sums[:, 2 + dim], sums[:, -1])
        canonical = Measures(z=z, weights=ones).canonical(sums[:, 1:], n)
        low, high = st.r2_interval(r2)
        hits[0] += low <= learnt <= high
        low, high = (canonical[f"canonical_correlation_{e}"] for e in ("low", "high"))
        hits[1] += low <= np.sqrt(truth) <= high
    assert (hits / repeats >= 0.93).all(), hits
    assert (hits / repeats <= 0.97).all(), hits


def test_rotations_change_nothing(rng):
    """What is said of all latents is the same to 1e-6 when they are rotated."""
    table = make_table(rng)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    flipped, rotated = table.copy(), table.copy()
    flipped["latent_mean"] = table["latent_mean"] * [1, -1, -1]
    rotated["latent_mean"] = np.asarray(table["latent_mean"]) @ rotation
    results = [
        correlate(t, ["log_mass", "u_r"], nuisances="size")
        for t in (table, flipped, rotated)
    ]
    ends = [name + end for name in TOGETHER for end in ("", "_low", "_high")]
    for name in [*ends, "distance_correlation", "distance_correlation_p"]:
        for other in results[1:]:
            assert_allclose(other[name], results[0][name], rtol=1e-6, atol=1e-6)
    assert_allclose(results[1]["pearson"], results[0]["pearson"] * [1, -1, -1])
    audits = [nuisance_audit(t, "size") for t in (table, rotated)]
    for name in ("linear_r2", "knn_r2", "linear_r2_low", "knn_r2_high"):
        first, other = (audit[audit["latent"] == "all"][name] for audit in audits)
        assert_allclose(other, first, atol=1e-6)


def test_r2_of_planted_relations(rng):
    """Linear where it is, by neighbours where it is not, and none by chance."""
    z = rng.normal(size=(4000, 2))
    table = Table({"latent_mean": z})
    table["line"] = z @ [3, 4] + 5 * rng.normal(size=4000)
    table["ring"] = np.hypot(*z.T)
    table["noise"] = rng.normal(size=4000)
    result = correlate(table, ["line", "ring", "noise"], n_bootstrap=200)
    assert_allclose(result["linear_r2"], [0.5, 0, 0], atol=0.04)
    assert_allclose(result["canonical_correlation"][0], np.sqrt(0.5), atol=0.03)
    assert result["knn_r2"][1] > 0.9
    assert result["distance_correlation_p"][1] < 1e-6
    assert result["distance_correlation_p"][2] > 0.01
    assert (result["linear_r2_low"] < result["linear_r2"]).all()
    assert result["canonical_correlation"][2] < 0.05


def test_distance_correlation_closed_form(rng):
    """The definition, by double centring; the value for normal variables."""
    x, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    y = y + x[:, 0]
    estimate, _ = st.distance_correlation(x, y, np.ones(60), rng, 100)

    def centered(a):
        n = len(a)
        rows, columns = a.sum(axis=0) / (n - 2), a.sum(axis=1) / (n - 2)
        a = a - rows - columns[:, None] + a.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(a, 0)
        return a

    a, b = centered(cdist(x, x)), centered(cdist(y[:, None], y[:, None]))
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert_allclose(estimate**2, expected, rtol=1e-9)
    # Szekely, Rizzo & Bakirov 2007, theorem 7
    rho, n = 0.6, 3000
    x = rng.normal(size=(n, 1))
    y = rho * x[:, 0] + np.sqrt(1 - rho**2) * rng.normal(size=n)
    estimate, _ = st.distance_correlation(x, y, np.ones(n), rng, n)
    root = rho * np.arcsin(rho) + np.sqrt(1 - rho**2)
    root -= rho * np.arcsin(rho / 2) + np.sqrt(4 - rho**2) - 1
    expected = np.sqrt(root / (1 + np.pi / 3 - np.sqrt(3)))
    assert_allclose(estimate, expected, atol=0.04)


def test_distance_correlation_keeps_its_level(rng):
    """Independent variables are called dependent no more often than promised."""
    ones, calls = np.ones(60), 0
    for _ in range(600):
        x, y = rng.normal(size=(60, 2)), rng.normal(size=60)
        calls += st.distance_correlation(x, y, ones, rng, 100)[1] < 0.05
    assert calls / 600 < 0.07


def test_many_rows_use_bounded_memory(rng, monkeypatch):
    """Groups of rows are drawn again; the interval is the same."""
    values = np.stack([np.ones(20_000), rng.normal(size=20_000)], axis=1)
    grouped = st.bootstrap_sums(values, 1000, rng)
    monkeypatch.setattr(st, "MAX_GROUPS", 20_000)
    plain = st.bootstrap_sums(values, 1000, rng)
    assert_allclose(grouped[0], plain[0], rtol=1e-9)
    spread = [np.std(s[1:, 1] / s[1:, 0]) for s in (grouped, plain)]
    assert_allclose(spread, 1 / np.sqrt(20_000), rtol=0.1)


# ---------------------------------------------------------------------------
# Slopes
# ---------------------------------------------------------------------------


def test_errors_in_variables():
    """Slopes are unbiased where those of least squares are not, and cover."""
    rng = np.random.default_rng(8)
    n, repeats, truth = 400, 1000, np.array([1.0, -0.5])
    mix = np.array([[1.0, 0.5], [0.0, 0.8]])
    found, plain, hits = [], [], np.zeros(2)
    for _ in range(repeats):
        z = rng.normal(size=(n, 2)) @ mix
        y = z @ truth + 0.5 * rng.normal(size=n)
        sigma = rng.uniform(0.3, 0.7, size=(n, 2))
        x = z + sigma * rng.normal(size=z.shape)
        plain.append(st.slopes(x, y, np.ones(n))[0])
        slope, error, _ = st.slopes(x, y, np.ones(n), np.square(sigma))
        found.append(slope)
        hits += np.abs(slope - truth) < 1.96 * error
    assert_allclose(np.mean(found, axis=0), truth, atol=0.02)
    assert abs(np.mean(plain, axis=0)[0] - 1) > 0.15
    assert (hits / repeats >= 0.93).all(), hits
    assert (hits / repeats <= 0.97).all(), hits


def test_slopes_of_a_table(rng):
    """Least squares, with nuisances, errors of latents and of the property."""
    table = make_table(rng, n=2000, sigma=0.4)
    table["log_mass"] += 0.3 * rng.normal(size=2000)
    result = correlate(
        table, "log_mass", nuisances="size", errors={"log_mass": 0.3}, n_bootstrap=50
    )
    design = np.column_stack([np.ones(2000), table["latent_mean"], table["size"]])
    expected = np.linalg.lstsq(design, table["log_mass"], rcond=None)[0]
    assert_allclose(result["slope"][0], expected[1:4], rtol=1e-8)
    truth = np.array([0.5, -0.3, 0])
    assert_allclose(result["eiv_slope"][0], truth, atol=0.07)
    assert result["slope"][0, 0] < 0.45
    assert_allclose(result["intrinsic_scatter"][0], 0.5, atol=0.03)
    spread = np.var(table["log_mass"])
    assert_allclose(result["r2_ceiling"][0], 1 - 0.09 / spread, atol=1e-3)
    assert result["unit"][0] == "dex(solMass)"
    table["u_r"].unit = u.mag
    table["error"] = np.full(2000, 100) * u.mmag
    of_column = correlate(table, "u_r", errors={"u_r": "error"}, n_bootstrap=50)
    of_number = correlate(table, "u_r", errors={"u_r": 0.1 * u.mag}, n_bootstrap=50)
    assert_allclose(of_column["r2_ceiling"], 1 - 0.01 / np.var(table["u_r"]), rtol=1e-3)
    assert_allclose(of_number["r2_ceiling"], of_column["r2_ceiling"])
    # posterior means need no correction
    posterior = correlate(
        table, "log_mass", nuisances="size", error_model="posterior", n_bootstrap=50
    )
    assert_allclose(posterior["eiv_slope"], result["slope"])


def test_posterior_means_need_no_correction(rng):
    """Shrunk towards the prior, as by a calibrated model, they give the slope."""
    n, sigma = 6_000, 0.8
    z = rng.normal(size=(n, 1))
    shrink = 1 / (1 + sigma**2)
    mean = shrink * (z + sigma * rng.normal(size=z.shape))
    table = Table({"latent_mean": mean})
    table["latent_sigma"] = np.full((n, 1), np.sqrt(shrink * sigma**2))
    table["u_r"] = z[:, 0] + 0.1 * rng.normal(size=n)
    for model, expected in (("posterior", 1), ("classical", shrink)):
        result = correlate(table, "u_r", error_model=model, n_bootstrap=50)
        slope = result["eiv_slope"][0, 0]
        if model == "posterior":
            assert_allclose(slope, expected, atol=0.06)
        else:  # the other way round it is wrong
            assert slope > 1.2


def test_latents_that_are_all_error(rng):
    """They get no slope, and the others keep theirs."""
    table = make_table(rng, n=2000, sigma=0.2)
    sigma = np.array(table["latent_sigma"])
    sigma[:, 2] = 1.5
    table["latent_sigma"] = sigma
    result = correlate(table, "log_mass", nuisances="size", n_bootstrap=50)
    assert result["eiv_slope"].mask[0].tolist() == [False, False, True]
    assert_allclose(result["eiv_slope"][0, :2], [0.5, -0.3], atol=0.06)


# ---------------------------------------------------------------------------
# What is missing, and what is wrong
# ---------------------------------------------------------------------------


def test_missing_rows_are_left_out(rng):
    """Masked, NaN and infinite values count as missing, for that property alone."""
    table = make_table(rng)
    clean = correlate(table[50:], "log_mass")
    values = MaskedColumn(table["log_mass"].data.copy(), mask=np.arange(300) < 20)
    values[20:40] = np.nan
    values[40:50] = np.inf
    table["log_mass"] = values
    latents = MaskedColumn(table["latent_mean"])
    before = table.copy()
    result = correlate(table, ["log_mass", "u_r"])
    assert result["n"].tolist() == [250, 300]
    assert result["n_dropped"].tolist() == [50, 0]
    for name in ("linear_r2", "knn_r2", "pearson", "spearman_low", "slope"):
        assert_allclose(result[name][0], clean[name][0], rtol=1e-9)
    assert all(
        np.array_equal(table[c], before[c]) or c == "log_mass" for c in table.colnames
    )
    latents.mask[:30] = True
    table["latent_mean"] = latents
    assert correlate(table, "u_r")["n"][0] == 270


def test_quantities_are_read(rng):
    """A QTable, masked quantities, and units."""
    table = make_table(rng)
    plain = correlate(table, "u_r", nuisances="size")
    quantities = QTable(table)
    mask = np.zeros(300, dtype=bool)
    quantities["u_r"] = Masked(np.asarray(table["u_r"]) * u.mag, mask=mask)
    quantities["size"] = np.asarray(table["size"]) * u.arcsec
    result = correlate(quantities, "u_r", nuisances="size")
    assert result["unit"][0] == "mag"
    for name in ("linear_r2", "partial_pearson", "eiv_slope"):
        assert_allclose(result[name], plain[name], rtol=1e-9)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (np.full(300, 2.5), "constant"),
        (np.full(300, np.nan), "no galaxy has it"),
        (np.where(np.arange(300) < 9, np.arange(300.0), np.inf), "too few"),
    ],
)
def test_unusable_properties(rng, values, note):
    """They are masked, with a note and one warning, and do not touch the others."""
    table = make_table(rng)
    table["bad"] = values
    with pytest.warns(FlaggedRowsWarning, match=r"1 of 2 properties .*bad"):
        result = correlate(table, ["bad", "log_mass"], nuisances="size")
    alone = correlate(table, "log_mass", nuisances="size")
    assert note in result["notes"][0]
    for name in ("linear_r2", "knn_r2_low", "pearson", "partial_spearman", "slope"):
        assert np.all(result[name].mask[0])
        assert_allclose(result[name][1], alone[name][0])
    assert_allclose(result["pearson_q"][1], alone["pearson_q"][0])


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_units_of_nuisances_do_not_matter(rng, factor):
    """A flux in SI units counts as much as a magnitude."""
    table = make_table(rng)
    table["flux"] = table["size"] * factor
    table["color"] = rng.normal(size=300)
    plain = correlate(table, "log_mass", nuisances=["size", "color"])
    scaled = correlate(table, "log_mass", nuisances=["flux", "color"])
    for name in ("nuisance_r2", "partial_r2", "partial_r2_low", "partial_pearson"):
        assert_allclose(scaled[name], plain[name], rtol=1e-6)
    plain, scaled = (nuisance_audit(table, name) for name in ("size", "flux"))
    assert_allclose(scaled["linear_r2"], plain["linear_r2"], rtol=1e-6)


def test_one_galaxy_with_all_the_weight(rng):
    """It is one galaxy, and nothing is said of it."""
    table = make_table(rng)
    weights = np.ones(300)
    weights[0] = 1e6
    with pytest.warns(FlaggedRowsWarning, match="1 of 1"):
        result = correlate(table, "u_r", weights=weights)
    assert "300 galaxies, by their weights as good as 1.0" in result["notes"][0]
    assert result["canonical_correlation"].mask[0]
    with pytest.warns(FlaggedRowsWarning, match="known for too few"):
        audit = nuisance_audit(table, "size", weights=weights)
    assert audit["linear_r2"].mask.all()
    with pytest.warns(FlaggedRowsWarning, match="1 of 1"):
        result = correlate(table, "u_r", weights=np.zeros(300))
    assert "a weight" in result["notes"][0]


def test_masked_weights(rng):
    """Masked galaxies do not count, whatever the type of the weights."""
    table = make_table(rng)
    mask = np.arange(300) < 20
    expected = correlate(table, "u_r", weights=np.where(mask, 0.0, 2.0))
    for weights in (
        np.ma.array(np.full(300, 2), mask=mask),
        MaskedColumn(np.full(300, 2.0), mask=mask),
        Masked(np.full(300, 2.0) * u.one, mask=mask),
    ):
        result = correlate(table, "u_r", weights=weights)
        assert result["n"][0] == 280
        assert_allclose(result["pearson"], expected["pearson"])


def test_empty_table():
    """Nothing can be said, and that is said."""
    table = Table({"latent_mean": np.empty((0, 2)), "u_r": np.empty(0)})
    with pytest.warns(FlaggedRowsWarning):
        result = correlate(table, "u_r")
    assert result["n"][0] == 0
    assert result["pearson"].shape == (1, 2)
    assert result["linear_r2"].mask[0]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"properties": []}, ValueError, "at least one"),
        ({"properties": "name"}, TypeError, "must hold numbers"),
        ({"properties": "vector"}, ValueError, "one number per row"),
        ({"properties": "absent"}, ValueError, "no column 'absent'"),
        ({"latents": "absent"}, ValueError, "no column 'absent'"),
        ({"nuisances": ["name"]}, TypeError, "must hold numbers"),
        ({"errors": {"absent": 1.0}}, ValueError, "neither among"),
        ({"errors": {"u_r": -1.0}}, ValueError, "must not be negative"),
        ({"errors": {"u_r": np.ones(300)}}, ValueError, r"one number, got .*300"),
        ({"errors": {"u_r": "absent"}}, ValueError, "no column 'absent'"),
        ({"error_model": "none"}, ValueError, "error_model must be one of"),
        ({"weights": np.ones(3)}, ValueError, "weights must be"),
        ({"weights": -np.ones(300)}, ValueError, "must not be negative"),
        ({"folds": 1}, ValueError, "folds must be"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be"),
    ],
)
def test_misuse(rng, change, error, match):
    """Each misuse is named."""
    table = make_table(rng)
    table["name"] = "spiral"
    table["vector"] = np.zeros((300, 2))
    arguments = {"properties": "u_r"} | change
    with pytest.raises(error, match=match):
        correlate(table, arguments.pop("properties"), **arguments)


def test_no_latents_and_no_table(rng):
    """The way to the latents is told."""
    with pytest.raises(ValueError, match="add_latents"):
        correlate(Table({"u_r": [1.0]}), "u_r")
    with pytest.raises(TypeError, match="astropy Table"):
        correlate({"u_r": [1.0]}, "u_r")


def test_same_seed_same_result(rng):
    """Nothing is random but by the seed, and the table says which."""
    table = make_table(rng)
    table.meta["astrovae"] = {"default": {"latents": {"class": "VAE"}}}
    first, second, other = (correlate(table, "log_mass", seed=s) for s in (1, 1, 2))
    for name in first.colnames:
        assert np.ma.allequal(first[name], second[name])
        assert first[name].info.description
    assert first["linear_r2"][0] != other["linear_r2"][0]
    entry = first.meta["astrovae"]["default"]["correlate"]
    assert entry["seed"] == 1
    assert first.meta["astrovae"]["source"] == {"default": ["latents"]}


# ---------------------------------------------------------------------------
# Nuisances
# ---------------------------------------------------------------------------


def test_audit_finds_what_was_planted(rng):
    """Size by a line, an angle by its double, a bend by neighbours alone."""
    n = 1000
    angle = rng.uniform(-180, 180, size=n)
    size = rng.normal(size=n)
    noise = 0.3 * rng.normal(size=(n, 3))
    latents = noise + np.stack(
        [size, np.cos(2 * np.radians(angle)), np.square(size)], axis=1
    )
    table = Table({"latent_mean": latents, "size": size})
    table["angle"] = angle * u.deg
    table["psf"] = rng.normal(size=n)
    audit = nuisance_audit(table, ["size", "angle", "psf"])
    assert len(audit) == 4 * 4

    def value(latent, nuisance, name="linear_r2"):
        row = (audit["latent"] == latent) & (audit["nuisance"] == nuisance)
        return audit[name][row].item()

    assert value("0", "size") > 0.9
    assert value("1", "angle") > 0.8
    assert value("1", "size") < 0.02
    assert value("2", "size") < 0.1
    assert value("2", "size", "knn_r2") > 0.85
    assert value("0", "psf") < 0.02
    assert value("0", "all") > 0.9
    assert value("0", "size", "linear_r2_low") < value("0", "size")
    table["constant"] = 1.0
    with pytest.warns(FlaggedRowsWarning, match="1 of 3 sets .*constant"):
        audit = nuisance_audit(table, ["constant", "size"])
    assert np.array_equal(audit["linear_r2"].mask, audit["nuisance"] == "constant")
