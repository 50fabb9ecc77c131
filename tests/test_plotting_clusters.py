# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of clusters show the galaxies, overlaps and properties that they say."""

import matplotlib as mpl
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from numpy.testing import assert_allclose, assert_array_equal
from test_plotting_latents import render, texts

from astrovae import plotting
from astrovae.catalog import cluster_summary
from astrovae.images import CutoutStack
from astrovae.plotting import clusters as module

N, SHAPE = 60, (6, 8)
# cluster 2 is empty, and the last galaxy has no label
LABELS = np.r_[np.zeros(40, int), np.ones(16, int), np.full(3, 3), 0]


class Prior:
    """Four components, not in the order of their weights."""

    def components(self):
        return {
            "weights": np.array([0.2, 0.05, 0.5, 0.25]),
            "means": np.zeros((4, 1)),
            "covariances": np.ones((4, 1)),
        }

    def bhattacharyya(self):
        return np.eye(4)


class Model:
    """Paints the number of the component, on a canvas with a margin."""

    prior = Prior()

    def __init__(self, margin=2):
        self.margin, self.asked = margin, []

    def responsibilities(self, stack):
        raise AssertionError

    def sample(self, n, component, seed):
        self.asked.append((n, component))
        shape = (n, SHAPE[0] + self.margin, SHAPE[1] + self.margin, 1)
        return {"mean": np.full(shape, float(component))}


@pytest.fixture
def table(rng):
    """Clusters with a property each."""
    mask = np.arange(N) == N - 1
    result = Table({"cluster_label": MaskedColumn(LABELS, mask=mask)})
    gamma = np.eye(4)[LABELS]
    result["cluster_prob"] = MaskedColumn(gamma, mask=np.repeat(mask[:, None], 4, 1))
    result["cluster_entropy"] = MaskedColumn(np.zeros(N), mask=mask)
    result["cluster_distance"] = MaskedColumn(rng.permutation(N) * 1.0, mask=mask)
    result["mass"] = MaskedColumn(10.0 + LABELS, unit="Msun", mask=np.arange(N) < 2)
    result["size"] = rng.normal(size=N)
    return result


@pytest.fixture
def stack(rng):
    """A galaxy for each row, with its number as the brightest pixel."""
    return CutoutStack(rng.random((N, *SHAPE, 1)) + np.arange(N)[:, None, None, None])


def test_all_can_be_drawn(table, stack):
    """In full, and the settings stay as they were; of quantities, too."""
    before = dict(mpl.rcParams)
    for kind in (Table, QTable):
        catalog = kind(table)
        summary = cluster_summary(catalog, model=Model())
        render(plotting.plot_clusters(catalog, stack, Model()))
        render(plotting.plot_cluster_overlap(summary))
        render(plotting.plot_cluster_overlap(summary, kind="shared_prob"))
        render(plotting.plot_cluster_properties(catalog, ["mass", "size"]))
    assert dict(mpl.rcParams) == before


def test_rows_of_the_gallery(table):
    """The closest galaxies first, others drawn from the rest, none twice."""
    shown = np.array([0, 1, 3])
    typical, at_random = module._choose(table, "", LABELS, shown, 5, 20, 0)
    distance = np.asarray(table["cluster_distance"])
    for place, c in enumerate(shown):
        own = np.flatnonzero(c == LABELS)
        closest = own[np.argsort(distance[own])][:5]
        found = [typical[1].get(place * 5 + i) for i in range(min(5, len(own)))]
        assert_array_equal(found, closest)
        rest = [row for cell, row in at_random[1].items() if cell // 20 == place]
        assert len(rest) == min(20, len(own) - len(closest))
        assert set(rest) <= set(own) - set(closest)
    again = module._choose(table, "", LABELS, shown, 5, 20, 0)
    assert again == (typical, at_random)
    assert module._choose(table, "", LABELS, shown, 5, 20, 1) != again


def test_gallery_says_what_it_shows(table, stack):
    """Sizes and shares; which clusters are empty or left out; blocks by name."""
    model = Model()
    figure = plotting.plot_clusters(table, stack, model, n_samples=3)
    words = texts(figure)
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert ticks == [
        "cluster 0\n40  (68 %)",
        "cluster 1\n16  (27 %)",
        "cluster 3\n3  (5 %)",
    ]
    assert "59 galaxies; 1 are empty." in words
    for title in ("most typical", "at random", "painted by the model"):
        assert title in words
    # cluster 0 is the heaviest component, which is the third of the prior
    assert model.asked == [(3, 2), (3, 3), (3, 1)]
    some = plotting.plot_clusters(table, stack, n_random=0, max_clusters=2)
    assert len(some.axes) == 1
    assert "1 more clusters not shown" in texts(some)


@pytest.mark.parametrize("margin", [0, 2])
def test_canvases_are_cut_to_the_stamps(margin):
    """So that galaxies and samples have one scale."""
    tiles = module._paint(Model(margin), np.array([1, 2]), 2, (*SHAPE, 1), (), 0)
    assert tiles.shape == (4, *SHAPE, 3)


def test_gallery_puts_galaxies_into_their_rows(stack):
    """The picture of a cluster is in its row, counted from the top."""
    tiles = np.ones((3, *SHAPE, 3)) * np.array([0.2, 0.5, 0.8])[:, None, None, None]
    blocks = [("a", 2, np.array([0, 2, 3]), tiles)]
    figure = module._gallery(blocks, ["one", "two"], SHAPE, "note")
    picture = figure.axes[0].images[0].get_array()
    ny, nx = picture.shape[0] // 2, picture.shape[1] // 2
    # row 0 of the picture is the lowest
    for (row, column), value in {(1, 0): 0.2, (0, 0): 0.5, (0, 1): 0.8}.items():
        middle = picture[row * ny + ny // 2, column * nx + nx // 2]
        assert_allclose(middle, [value] * 3 + [1])
    assert picture[ny + ny // 2, nx + nx // 2, 3] == 0


def test_overlap_is_written(table):
    """The numbers of the summary, if there are not too many."""
    summary = cluster_summary(table, model=Model())
    ax = plotting.plot_cluster_overlap(summary).axes[0]
    assert_allclose(ax.images[0].get_array(), np.eye(4))
    assert len(ax.texts) == 16
    shared = plotting.plot_cluster_overlap(cluster_summary(table)).axes[0]
    # nothing is known of the cluster without galaxies
    assert len(shared.texts) == 12
    assert shared.images[0].get_array().mask[2].all()
    with pytest.raises(ValueError, match="has no 'overlap'"):
        plotting.plot_cluster_overlap(cluster_summary(table), kind="overlap")


def test_properties_are_percentiles(table):
    """Boxes hold half of the galaxies, lines 90 %."""
    figure = plotting.plot_cluster_properties(table, ["size", "mass"])
    ax = figure.axes[0]
    size = np.asarray(table["size"])
    for y, c in enumerate((0, 1, 3)):
        own = size[(c == LABELS) & (np.arange(N) < N - 1)]
        box = ax.patches[y]
        expected = np.percentile(own, [25, 75])
        assert_allclose([box.get_x(), box.get_x() + box.get_width()], expected)
        (segment,) = ax.collections[y].get_segments()
        assert_allclose(segment[:, 0], np.percentile(own, [5, 95]))
        marks = [line for line in ax.lines if line.get_marker() == "|"]
        assert_allclose(marks[y].get_xdata(), np.median(own))
    assert_allclose(ax.lines[0].get_xdata(), np.median(size[: N - 1]))
    assert "mass [M☉]" in texts(figure)
    table["mass"].mask[LABELS == 3] = True
    assert "not known" in texts(plotting.plot_cluster_properties(table, "mass"))


def test_bad_input(table, stack):
    """Errors say what came and what was expected."""
    with pytest.raises(ValueError, match="60 rows and the stack 3"):
        plotting.plot_clusters(table, stack[:3])
    with pytest.raises(ValueError, match="are all zero"):
        plotting.plot_clusters(table, stack, n_typical=0, n_random=0)
    with pytest.raises(ValueError, match="no galaxy has a cluster"):
        plotting.plot_clusters(table[-1:], stack[-1:])
    with pytest.raises(ValueError, match="no column 'a_cluster_label'"):
        plotting.plot_clusters(table, stack, prefix="a_")
    narrow = table.copy()
    narrow["cluster_label"] = 0
    narrow["cluster_prob"] = np.ones((N, 1))
    with pytest.raises(ValueError, match="clusters are those of another model"):
        plotting.plot_clusters(narrow, stack, Model())
    with pytest.raises(ValueError, match="no column 'age'"):
        plotting.plot_cluster_properties(table, "age")
    with pytest.raises(ValueError, match="one number per galaxy"):
        plotting.plot_cluster_properties(table, "cluster_prob")
    table["unknown"] = np.full(N, np.nan)
    with pytest.raises(ValueError, match="no galaxy with a cluster has unknown"):
        plotting.plot_cluster_properties(table, "unknown")
    with pytest.raises(ValueError, match="at least one property"):
        plotting.plot_cluster_properties(table, [])
