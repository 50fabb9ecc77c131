# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of statistics: correlations, and whether uncertainties are true."""

import numpy as np
from matplotlib.colors import Normalize
from scipy.stats import binom

from astrovae._validation import check_option, check_positive_int
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
from astrovae.plotting.catalogs import _values

__all__ = ["numbers", "plot_calibration", "plot_correlations"]

# the expected band of a histogram holds this share of its bars
_BAND = 0.99


def plot_correlations(result, *, kind="spearman", latent_names=None):
    """
    Show how latents and properties are correlated.

    Parameters
    ----------
    result : `~astropy.table.Table`
        As given by `~astrovae.catalog.correlate`.
    kind : {"spearman", "pearson", "partial_spearman", "partial_pearson"}, optional
        Which correlation.
    latent_names : sequence of str, optional
        What the latents are called, by default their numbers.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A cell for each property and latent, with the correlation, and below it
        its 95 % interval. Where the interval holds zero, the number is pale.

    Raises
    ------
    ValueError
        If the result has no such correlation, or no value of it.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.catalog import correlate
    >>> from astrovae.plotting import plot_correlations
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(200, 2))
    >>> table = Table({"latent_mean": z, "mass": z[:, 0] + rng.normal(size=200)})
    >>> figure = plot_correlations(correlate(table, "mass"))
    """
    kinds = ("spearman", "pearson", "partial_spearman", "partial_pearson")
    check_option("kind", kind, kinds)
    if kind not in result.colnames:
        msg = (
            f"the result has no {kind!r}; it is what astrovae.catalog.correlate "
            "returns, partial correlations only with nuisances."
        )
        raise ValueError(msg)
    value, low, high = (
        numbers(result, name).reshape(len(result), -1)
        for name in (kind, f"{kind}_low", f"{kind}_high")
    )
    if not np.isfinite(value).any():
        msg = f"no property has a value of {kind}: there is nothing to show."
        raise ValueError(msg)
    n, dim = value.shape
    names = (
        [f"latent {i}" for i in range(dim)] if latent_names is None else latent_names
    )
    if len(names) != dim:
        msg = f"latent_names must be {dim} names, got {len(names)}."
        raise ValueError(msg)
    properties = [str(name) for name in result["property"]]
    left = 0.3 + 0.075 * max(len(name) for name in properties)
    cell = min((WIDTH - left - 1.0) / dim, 1.1)
    height = 0.42 * n
    words = kind.replace("_", " ").replace("pearson", "Pearson")
    words = words.replace("spearman", "Spearman")
    width = max(left + cell * dim + 1.0, 6.0)
    figure = headed_figure(
        width,
        height + 0.35,
        f"{words[0].upper()}{words[1:]} correlations of properties and latents",
        "Below: 95 % interval. Pale: the interval holds zero.",
    )
    ax = add_axes(figure, left, 0.3, cell * dim, height)
    shown = np.ma.masked_invalid(value)
    norm = Normalize(-1, 1)
    image = ax.imshow(shown, cmap="RdBu_r", norm=norm, aspect="auto")
    ax.set_facecolor("#EEEEEE")
    for row, column in np.ndindex(value.shape):
        rho, a, b = value[row, column], low[row, column], high[row, column]
        if not np.isfinite(rho):
            continue
        certain = a > 0 or b < 0
        color = "white" if abs(rho) > 0.6 else "black" if certain else NOTE
        options = {"ha": "center", "color": color}
        text = f"{rho:+.2f}".replace("-", "−")
        weight = "bold" if certain else "normal"
        ax.text(
            column, row - 0.02, text, va="bottom", fontsize=9, weight=weight, **options
        )
        text = f"{a:+.2f} … {b:+.2f}".replace("-", "−")
        size = min(SMALL - 1, 7.6 * cell)
        ax.text(column, row + 0.05, text, va="top", fontsize=size, **options)
    ax.set_xticks(range(dim), names, fontsize=9)
    ax.set_yticks(range(n), properties, fontsize=9)
    ax.set_xticks(np.arange(1, dim) - 0.5, minor=True)
    ax.set_yticks(np.arange(1, n) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    cax = add_axes(figure, left + cell * dim + 0.12, 0.3, 0.14, height)
    bar = figure.colorbar(image, cax, ticks=[-1, 0, 1])
    bar.outline.set_visible(False)
    return figure


def plot_calibration(table, *, latents=None, n_bins=20):
    """
    Show whether the truth is as often in each part of the posterior as it should be.

    Parameters
    ----------
    table : `~astropy.table.Table`
        As given by `~astrovae.diagnostics.calibration`.
    latents : sequence of int, optional
        Which latents, by default the first twelve.
    n_bins : int, optional
        Number of bars of each histogram.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        For each latent a histogram of the ranks of the truth in the posterior,
        without and with temperature, and the band in which 99 % of the bars lie if
        all is well. U-shaped histograms are of sigmas that are too small.

    Raises
    ------
    ValueError
        If the table has no ranks, or there is no such latent.

    Examples
    --------
    >>> from astrovae.baselines import EigenGalaxies
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import calibration
    >>> from astrovae.plotting import plot_calibration
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> eigen = EigenGalaxies(2).fit(stack)
    >>> figure = plot_calibration(calibration(eigen, stack, num_draws=400))
    """
    check_positive_int("n_bins", n_bins, minimum=2)
    if not {"ranks", "ranks_tempered", "temperature"} <= set(table.colnames):
        msg = "the table has no ranks; astrovae.diagnostics.calibration makes it."
        raise ValueError(msg)
    chosen = range(min(len(table), 12)) if latents is None else list(latents)
    for latent in chosen:
        check_option("latents", latent, range(len(table)))
    n = len(chosen)
    n_columns = min(n, 4)
    n_rows = -(-n // n_columns)
    width, height = (WIDTH - 0.75) / max(n_columns, 2), 1.9
    figure = headed_figure(
        0.75 + n_columns * width if n_columns > 1 else WIDTH * 0.6,
        n_rows * (height + 0.35) + 0.2,
        "Ranks of the true latents in their posteriors",
        f"Band: {100 * _BAND:.0f} % of the bars of right posteriors; "
        "p: that ranks are uniform.",
    )
    n_draws = table["ranks"].shape[1]
    edges = np.linspace(0, 1, n_bins + 1)
    band = binom.interval(_BAND, n_draws, 1 / n_bins)
    for i, latent in enumerate(chosen):
        row, column = divmod(i, n_columns)
        bottom = 0.5 + (n_rows - 1 - row) * (height + 0.35)
        ax = add_axes(
            figure, 0.65 + column * width, bottom, width - 0.45, height - 0.25
        )
        ax.axhspan(*band, color=PALE, alpha=0.7, linewidth=0)
        ax.axhline(n_draws / n_bins, color=NOTE, linewidth=0.6)
        entry = table[latent]
        for name, color, style in (
            ("ranks", ORANGE, (0, (3, 1.2))),
            ("ranks_tempered", BLUE, "-"),
        ):
            counts, _ = np.histogram(entry[name], edges)
            ax.stairs(counts, edges, color=color, linewidth=1.4, linestyle=style)
        ax.set(xlim=(0, 1), ylim=(0, None))
        ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        ax.tick_params(labelsize=SMALL)
        for k, (suffix, color) in enumerate((("", ORANGE), ("_tempered", BLUE))):
            factor = 1.0 if not suffix else entry["temperature"]
            p_value = entry[f"p_value{suffix}"]
            said = f"p = {p_value:.2g}" if p_value > 1e-4 else "p ≤ 10⁻⁴"
            ax.text(
                0.5,
                0.97 - 0.12 * k,
                f"σ × {factor:.2f}: {said}",
                transform=ax.transAxes,
                ha="center",
                va="top",
                fontsize=SMALL,
                color=color,
            )
        # room for the words
        ax.set_ylim(0, 1.3 * ax.get_ylim()[1])
        ax.set_title(f"latent {latent}", loc="left", fontsize=10)
        if row == n_rows - 1 or i + n_columns >= n:
            ax.set_xlabel("rank in the posterior", fontsize=9)
        if column == 0:
            ax.set_ylabel("galaxies", fontsize=9)
        tidy(ax)
    return figure


def numbers(table, column):
    """Values of a column as floats, masked and infinite ones NaN."""
    if column not in table.colnames:
        msg = f"the table has no column {column!r}."
        raise ValueError(msg)
    kind = getattr(getattr(table[column], "dtype", None), "kind", "")
    if kind not in "biuf" or not kind:
        msg = f"{column} must hold numbers, got {table[column].dtype}."
        raise ValueError(msg)
    values = _values(table, column)
    return np.where(np.isfinite(values), values, np.nan)
