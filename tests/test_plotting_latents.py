# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of latents and physics show what they say."""

import io

import astropy.units as u
import matplotlib as mpl
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from astrovae import plotting
from astrovae.images import CutoutStack
from astrovae.plotting import latents as module

N = 400


def render(figure):
    """Draw a figure in full."""
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=30)
    assert buffer.getvalue().startswith(b"\x89PNG")


def texts(figure):
    """All that is written."""
    found = [text.get_text() for text in figure.texts]
    for ax in figure.axes:
        found += [ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")]
        found += [text.get_text() for text in ax.texts]
        found += [label.get_text() for label in ax.get_xticklabels()]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return " | ".join(found)


class Painter:
    """Paints the first latent as brightness."""

    latent_dim = 3

    def decode(self, z):
        self.z = np.asarray(z)
        return {"mean": np.tile(self.z[:, :1, None, None], (1, 6, 8, 1))}


@pytest.fixture
def table(rng):
    """Latents of which properties are made."""
    z = rng.normal(size=(N, 3))
    result = Table({"latent_mean": z, "latent_sigma": np.full((N, 3), 0.1)})
    result["mass"] = MaskedColumn(10 + 2 * z[:, 0], mask=np.arange(N) < 5, unit="Msun")
    result["kind"] = np.where(z[:, 1] > 0, "spiral", "elliptical")
    return result


@pytest.fixture
def stack(rng):
    """A galaxy for each row."""
    return CutoutStack(rng.random((N, 6, 8, 3)), ids=np.arange(N) + 10**18)


@pytest.fixture
def ranks(rng):
    """What calibration returns."""
    columns = {
        "latent": [0, 1],
        "ranks": rng.beta(0.5, 0.5, size=(2, 500)),
        "ranks_tempered": rng.random((2, 500)),
        "temperature": [1.5, 2.0],
        "p_value": [1e-4, 1e-4],
        "p_value_tempered": [0.5, 0.25],
    }
    return Table(columns)


def correlations(value=0.5, dim=3):
    """What correlate returns: one certain property, one not, one unknown."""
    result = Table({"property": ["mass", "age", "nothing"]})
    for name in ("spearman", "pearson"):
        base = np.array([[value] * dim, [0.02] * dim, [np.nan] * dim])
        result[name] = MaskedColumn(base, mask=np.isnan(base))
        result[f"{name}_low"], result[f"{name}_high"] = base - 0.1, base + 0.1
    return result


def test_all_can_be_drawn(table, stack, ranks):
    """In full, and the settings stay as they were; of quantities, too."""
    before = dict(mpl.rcParams)
    for kind in (Table, QTable):
        catalog = kind(table)
        render(plotting.plot_property(catalog, "mass", min_count=1))
        render(plotting.plot_classes(catalog, "kind"))
        render(plotting.plot_neighbors(catalog, stack, [0, 7]))
        render(plotting.plot_property_traversal(Painter(), catalog, "mass"))
    render(plotting.plot_correlations(correlations()))
    render(plotting.plot_calibration(ranks))
    assert dict(mpl.rcParams) == before


def test_property_is_the_median_of_cells(table):
    """Cells hold medians, the bar the unit, and rows without it are left out."""
    figure = plotting.plot_property(table, "mass", x=0, y=2, grid_size=8)
    cells = figure.axes[0].collections[0]
    medians, centers = cells.get_array(), cells.get_offsets()
    # the property is the first latent
    cell = np.ptp(figure.axes[0].get_xlim()) / 8
    assert np.abs(medians - (10 + 2 * centers[:, 0])).max() < 2 * cell
    assert figure.axes[1].get_ylabel() == "mass [M☉]"
    words = texts(figure)
    assert f"{N - 5} galaxies" in words
    assert "latent 0" in words
    assert "latent 2" in words


def test_contours_hold_their_share(rng):
    """Of normal galaxies, half lie within the inner and 90 % within the outer."""
    from matplotlib.path import Path

    z = rng.normal(size=(20000, 2)) * [1, 3]
    table = Table({"latent_mean": z, "mass": z[:, 0]})
    ax = plotting.plot_property(table, "mass").axes[0]
    contours = ax.collections[-1]
    for path, share in zip(contours.get_paths(), (0.9, 0.5), strict=True):
        inside = np.zeros(len(z), bool)
        for polygon in path.to_polygons(closed_only=False):
            inside ^= Path(polygon).contains_points(z)
        assert_allclose(inside.mean(), share, atol=0.02)


def test_classes_are_counted(table):
    """The most frequent ones; the others and unknown ones are left out, and said."""
    kinds = np.array(table["kind"], dtype="U12")
    kinds[:3] = "odd"
    table["kind"] = MaskedColumn(kinds, mask=np.arange(N) == 9)
    counts = {name: (kinds[np.arange(N) != 9] == name).sum() for name in set(kinds)}
    words = texts(plotting.plot_classes(table, "kind"))
    for name, count in counts.items():
        assert f"{name} ({count})" in words
    words = texts(plotting.plot_classes(table, "kind", max_classes=2))
    assert "odd" not in words
    assert "3 galaxies of 1 classes left out" in words
    table["flag"] = np.arange(N) % 2 == 0
    assert f"True ({N // 2})" in texts(plotting.plot_classes(table, "flag"))


def test_correlations_are_written():
    """Each with its interval, certain ones bold; unknown ones empty."""
    figure = plotting.plot_correlations(correlations(-0.5))
    ax = figure.axes[0]
    by_row = {}
    for text in ax.texts:
        by_row.setdefault(round(text.get_position()[1]), []).append(text)
    assert [text.get_text() for text in by_row[0][:2]] == ["−0.50", "−0.60 … −0.40"]
    assert by_row[0][0].get_weight() == "bold"
    assert by_row[1][0].get_weight() == "normal"
    assert 2 not in by_row
    assert_allclose(ax.images[0].get_array()[0], -0.5)
    assert ax.images[0].get_array().mask[2].all()
    named = plotting.plot_correlations(correlations(), latent_names=["a", "b", "c"])
    assert "Spearman" in texts(named)
    assert "b" in texts(named).split(" | ")


def test_correlations_of_correlate(table):
    """The table that the catalogue makes is taken as it is."""
    from astrovae.catalog import correlate

    result = correlate(table, ["mass"], n_bootstrap=40)
    render(plotting.plot_correlations(result))
    figure = plotting.plot_correlations(result, kind="pearson")
    assert_allclose(figure.axes[0].images[0].get_array()[0, 0], 1, atol=1e-6)


def test_traversal_follows_the_property(table):
    """Along the mean latents given the property, from its values."""
    model = Painter()
    figure = plotting.plot_property_traversal(model, table, ["mass"], n_steps=5)
    known = ~table["mass"].mask
    z, mass = table["latent_mean"][known], np.asarray(table["mass"][known])
    slope = np.polyfit(mass, z, 1)[0]
    steps = mass.mean() + np.linspace(-2, 2, 5) * mass.std()
    expected = z.mean(axis=0) + np.outer(steps - mass.mean(), slope)
    assert_allclose(model.z, expected, atol=1e-8)
    words = texts(figure)
    assert "mass\n[M☉]\nR² = 1.00" in words
    assert f"{steps[0]:.1f}" in words
    table["noise"] = np.random.default_rng(1).normal(size=N)
    both = plotting.plot_property_traversal(model, table, ["mass", "noise"])
    assert "R² = 0.0" in texts(both)


def test_neighbors_are_the_nearest(table, stack, rng):
    """In whitened or plain distance; the former ignores linear changes."""
    figure = plotting.plot_neighbors(table, stack, 3, n_neighbors=4)
    words = texts(figure)
    z = np.asarray(table["latent_mean"])
    inverse = np.linalg.inv(np.cov(z.T, bias=True))
    distance = np.sqrt(np.einsum("ni,ij,nj->n", z - z[3], inverse, z - z[3]))
    order = np.argsort(distance)[1:5]
    for row in order:
        assert f"id {10**18 + row}\nd = {distance[row]:.2f}" in words
    table["latent_mean"] = z @ rng.normal(size=(3, 3))
    assert texts(plotting.plot_neighbors(table, stack, 3, n_neighbors=4)) == words
    plain = plotting.plot_neighbors(table, stack, 3, metric="euclidean")
    z = np.asarray(table["latent_mean"])
    nearest = np.sort(np.linalg.norm(z - z[3], axis=1))[1]
    assert f"d = {nearest:.2f}" in texts(plain)
    # no more neighbours than there are galaxies
    few = plotting.plot_neighbors(table[:3], stack[:3], [0], n_neighbors=8)
    assert len(few.axes) == 3


def test_rank_histograms(ranks):
    """Bars count galaxies, the band is binomial."""
    figure = plotting.plot_calibration(ranks, n_bins=10)
    ax = figure.axes[1]
    stairs = [patch for patch in ax.patches if hasattr(patch, "get_data")]
    for patch, name in zip(stairs, ("ranks", "ranks_tempered"), strict=True):
        counts, _ = np.histogram(ranks[name][1], 10, (0, 1))
        assert_array_equal(patch.get_data().values, counts)
    band = next(patch for patch in ax.patches if patch not in stairs)
    low, height = band.get_y(), band.get_height()
    # 50 galaxies in each bar, with a scatter of sqrt(45)
    assert_allclose([low, low + height], [50 - 17, 50 + 18], atol=1.5)
    words = texts(figure)
    assert "σ × 2.00: p = 0.25" in words
    assert "p ≤ 10⁻⁴" in words
    one = plotting.plot_calibration(ranks, latents=[1])
    render(one)
    assert len(one.axes) == 1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_galaxies(n, table, stack):
    """Small samples are drawn as far as they go."""
    some, cutouts = table[10 : 10 + n], stack[10 : 10 + n]
    render(plotting.plot_property(some, "mass", min_count=1))
    render(plotting.plot_classes(some, "kind"))
    if n > 1:
        render(plotting.plot_neighbors(some, cutouts, 0))


def test_whitening_ignores_unused_directions():
    """A latent that never changes has no scatter to divide by."""
    z = np.column_stack([np.arange(5.0), np.zeros(5)])
    assert module._whiten(z).shape == (5, 1)


def test_bad_input(table, stack, ranks):
    """Errors say what came and what was expected."""
    with pytest.raises(ValueError, match="no column 'age'"):
        plotting.plot_property(table, "age")
    with pytest.raises(ValueError, match="must hold numbers"):
        plotting.plot_property(table, "kind")
    with pytest.raises(ValueError, match="one number per galaxy"):
        plotting.plot_property(table, "latent_sigma")
    table["infinite"] = np.full(N, np.inf)
    with pytest.raises(ValueError, match="no row of the table has latents and inf"):
        plotting.plot_property(table, "infinite")
    with pytest.raises(ValueError, match="no cell has 3 of the 2 galaxies"):
        plotting.plot_property(table[20:22], "mass")
    flat = Table({"latent_mean": np.ones((5, 1)), "mass": np.arange(5.0)})
    with pytest.raises(ValueError, match="a plane needs two latents"):
        plotting.plot_property(flat, "mass")
    with pytest.raises(ValueError, match="Use plot_property for numbers"):
        plotting.plot_classes(table, "mass")
    with pytest.raises(ValueError, match="max_classes must be one of"):
        plotting.plot_classes(table, "kind", max_classes=0)
    table["constant"] = np.full(N, 3.0)
    with pytest.raises(ValueError, match="constant is constant"):
        plotting.plot_property_traversal(Painter(), table, "constant")
    with pytest.raises(ValueError, match="at least one property"):
        plotting.plot_property_traversal(Painter(), table, [])
    with pytest.raises(ValueError, match=r"row 4000 does not exist"):
        plotting.plot_neighbors(table, stack, 4000)
    with pytest.raises(ValueError, match="400 rows, the stack 3"):
        plotting.plot_neighbors(table, stack[:3], 0)
    with pytest.raises(ValueError, match="it has no neighbours"):
        plotting.plot_neighbors(table[:1], stack[:1], 0)
    with pytest.raises(ValueError, match="only with nuisances"):
        plotting.plot_correlations(correlations(), kind="partial_spearman")
    with pytest.raises(ValueError, match="latent_names must be 3 names, got 1"):
        plotting.plot_correlations(correlations(), latent_names=["a"])
    with pytest.raises(ValueError, match="nothing to show"):
        plotting.plot_correlations(correlations()[2:])
    with pytest.raises(ValueError, match="calibration makes it"):
        plotting.plot_calibration(table)
    with pytest.raises(ValueError, match="latents must be one of"):
        plotting.plot_calibration(ranks, latents=[2])
    assert table["mass"].unit == u.Msun
