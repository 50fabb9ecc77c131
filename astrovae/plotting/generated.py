# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of generated galaxies beside real ones."""

import numpy as np

from astrovae._validation import check_positive_int
from astrovae.plotting._display import (
    BLUE,
    NOTE,
    ORANGE,
    PALE,
    SMALL,
    WIDTH,
    add_axes,
    headed_figure,
    tidy,
)

__all__ = ["plot_fidelity", "plot_requested"]

_COLUMNS = 3
# Histograms show all but this share of the real galaxies, at either end.
_TAIL = 0.005
_SAMPLES = (
    ("generated", BLUE, "-"),
    ("parametric", ORANGE, (0, (3, 1.2))),
)


def plot_fidelity(table, *, n_bins=30):
    """
    Show how each statistic of generated galaxies is distributed, beside real ones.

    Parameters
    ----------
    table : `~astropy.table.Table`
        As given by `~astrovae.diagnostics.fidelity`.
    n_bins : int, optional
        Number of bars of each histogram.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A histogram for each statistic: real galaxies filled, generated and parametric
        ones as lines, with their distance of Kolmogorov and Smirnov. The heading says
        how well a classifier tells them apart.

    Raises
    ------
    ValueError
        If the table is not one of `~astrovae.diagnostics.fidelity`.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import fidelity
    >>> from astrovae.plotting import plot_fidelity
    >>> truth, real = make_galaxies(40, shape=32, snr=(50, 100), seed=1)
    >>> truth, other = make_galaxies(40, shape=32, snr=(50, 100), seed=2)
    >>> figure = plot_fidelity(fidelity(real, other, measure="morphology"))
    """
    check_positive_int("n_bins", n_bins, minimum=2)
    facts = _facts(table)
    figure, axes = _panels(len(table), "Statistics of generated galaxies", _note(facts))
    samples = [s for s in _SAMPLES if f"values_{s[0]}" in table.colnames]
    for ax, row in zip(axes, table):
        real = row["values_real"][np.isfinite(row["values_real"])]
        ax.set_xlabel(row["statistic"], fontsize=9)
        if not len(real):
            continue
        low, high = np.quantile(real, [_TAIL, 1 - _TAIL])
        edges = np.linspace(low, high if high > low else low + 1, n_bins + 1)
        _stairs(ax, real, edges, color=PALE, fill=True)
        for k, (name, color, style) in enumerate(samples):
            values = row[f"values_{name}"]
            options = {"color": color, "linestyle": style, "linewidth": 1.4}
            _stairs(ax, values[np.isfinite(values)], edges, **options)
            _say(ax, k, f"{name}: KS {row[f'ks_{name}']:.3f}", color)
        _say(ax, len(samples), f"real halves: KS {row['ks_real']:.3f}", NOTE)
        ax.set_ylim(0, 1.45 * ax.get_ylim()[1])
        ax.set_yticks([])
    return figure


def plot_requested(table):
    """
    Show what was measured of generated galaxies against what was asked for.

    Parameters
    ----------
    table : `~astropy.table.Table`
        As given by `~astrovae.diagnostics.fidelity` with ``requested``.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A panel for each statistic that was requested: galaxies, the line of equality,
        and the slope, bias and scatter.

    Raises
    ------
    ValueError
        If nothing was requested.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import fidelity, measure_galaxies
    >>> from astrovae.plotting import plot_requested
    >>> truth, real = make_galaxies(40, shape=32, snr=(50, 100), seed=1)
    >>> measured = measure_galaxies(real, measure="morphology")
    >>> table = fidelity(measured, measured, requested=measured["gini",])
    >>> figure = plot_requested(table)
    """
    _facts(table)
    rows = [row for row in table if np.isfinite(row["slope"])]
    if not rows:
        msg = "nothing was requested: give requested=... to fidelity."
        raise ValueError(msg)
    figure, axes = _panels(
        len(rows), "Measured and requested", "Line: equality. 95 % intervals.", 1.9
    )
    for ax, row in zip(axes, rows):
        x, y = row["requested"], row["values_generated"]
        both = np.isfinite(x) & np.isfinite(y)
        ax.scatter(x[both], y[both], s=4, color=BLUE, alpha=0.35, linewidth=0)
        limits = np.quantile(x[both], [_TAIL, 1 - _TAIL])
        ax.plot(limits, limits, color=NOTE, linewidth=0.9)
        margin = 0.15 * (limits[1] - limits[0]) or 1.0
        ax.set_xlim(limits[0] - margin, limits[1] + margin)
        ax.set_ylim(limits[0] - margin, limits[1] + 3 * margin)
        for k, name in enumerate(("slope", "bias", "scatter")):
            half = 0.5 * (row[f"{name}_high"] - row[f"{name}_low"])
            text = f"{name} {row[name]:.3f} ± {half:.3f}".replace("-", "−")
            _say(ax, k, text, NOTE)
        ax.set_xlabel(f"requested {row['statistic']}", fontsize=9)
        ax.set_ylabel("measured", fontsize=9)
    return figure


def _facts(table):
    facts = table.meta.get("astrovae", {}).get("fidelity")
    if facts is None or "values_real" not in table.colnames:
        msg = "the table is not one of astrovae.diagnostics.fidelity, which makes it."
        raise ValueError(msg)
    return facts


def _note(facts):
    """How well classifiers tell samples apart."""
    parts = [
        f"{name} {facts[f'auc_{name}']:.3f} "
        f"({facts[f'auc_{name}_low']:.3f} to {facts[f'auc_{name}_high']:.3f})"
        for name in ("generated", "parametric", "real")
        if np.isfinite(facts.get(f"auc_{name}", np.nan))
    ]
    return "Area under the curve of a classifier: " + ", ".join(parts) + "."


def _panels(n, title, note, height=1.6):
    """Axes side by side in rows."""
    columns = min(n, _COLUMNS)
    rows = -(-n // columns)
    width = (WIDTH - 0.3) / _COLUMNS
    figure = headed_figure(
        max(0.3 + columns * width, 0.75 * WIDTH),
        rows * (height + 0.6) + 0.1,
        title,
        note,
    )
    axes = []
    for i in range(n):
        row, column = divmod(i, columns)
        bottom = 0.5 + (rows - 1 - row) * (height + 0.6)
        ax = add_axes(figure, 0.6 + column * width, bottom, width - 0.7, height)
        ax.tick_params(labelsize=SMALL)
        tidy(ax)
        axes.append(ax)
    return figure, axes


def _stairs(ax, values, edges, **options):
    """A histogram whose area is the share of the values that it shows."""
    counts, _ = np.histogram(values, edges)
    ax.stairs(counts / max(len(values), 1), edges, **options)


def _say(ax, line, text, color):
    ax.text(
        0.97,
        0.97 - 0.11 * line,
        text,
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=SMALL - 1,
        color=color,
    )
