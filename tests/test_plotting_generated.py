# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of fidelity, by what is drawn."""

import numpy as np
import pytest
from astropy.table import Table

from astrovae.diagnostics import fidelity
from astrovae.plotting import plot_fidelity, plot_requested


@pytest.fixture
def samples(rng):
    """Statistics of two populations."""
    names = ("e", "log_sigma", "mag", "color_g_r")
    tables = [Table(rng.normal(size=(100, 4)), names=names) for _ in range(3)]
    tables[1]["e"][:10] = np.nan
    return tables


def texts(figure):
    """All that is written in the panels."""
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_plot_fidelity(samples, tmp_path):
    """A panel per statistic, with the distances of the table."""
    real, generated, parametric = samples
    table = fidelity(real, generated, parametric=parametric)
    figure = plot_fidelity(table, n_bins=10)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == list(table["statistic"])
    assert f"generated: KS {table['ks_generated'][0]:.3f}" in texts(figure)
    assert f"parametric: KS {table['ks_parametric'][3]:.3f}" in texts(figure)
    assert [len(ax.patches) for ax in figure.axes] == [3] * 4
    figure.savefig(tmp_path / "fidelity.png")
    alone = plot_fidelity(fidelity(real, generated))
    assert not any("parametric" in text for text in texts(alone))


def test_plot_requested(samples, tmp_path):
    """A panel per requested statistic, with its slope."""
    real, generated, _ = samples
    requested = generated["log_sigma", "e"]
    table = fidelity(real, generated, requested=requested)
    figure = plot_requested(table)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["requested e", "requested log_sigma"]
    assert "slope 1.000 ± 0.000" in texts(figure)
    assert len(figure.axes[0].collections[0].get_offsets()) == 90
    figure.savefig(tmp_path / "requested.png")


def test_misuse(samples):
    """Other tables are refused."""
    real, generated, _ = samples
    with pytest.raises(ValueError, match="not one of astrovae"):
        plot_fidelity(real)
    with pytest.raises(ValueError, match="nothing was requested"):
        plot_requested(fidelity(real, generated))
