# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures made of catalogues and of training: latents, errors, loss."""

import numpy as np
from astropy.stats import binom_conf_interval
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from astrovae._validation import check_positive_int
from astrovae.plotting._display import (
    BLUE,
    DPI,
    NOTE,
    ORANGE,
    PALE,
    SKY,
    SMALL,
    WIDTH,
    add_axes,
    add_legend,
    check_rgb,
    headed_figure,
    limits,
    sheet,
    tidy,
    to_colors,
)

__all__ = [
    "plot_error_histogram",
    "plot_history",
    "plot_latents",
    "plot_win_rates",
]


def plot_latents(table, stack, *, x=None, y=None, prefix="", n_columns=13, rgb=None):
    """
    Map galaxies by their latents.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with ``latent_mean``, as made by
        `~astrovae.catalog.add_latents`.
    stack : `~astrovae.images.CutoutStack`
        Its cutouts, in the same order.
    x, y : int, optional
        The latents along the axes. By default the first two principal
        components of the latent means, or the two latents if there are no
        more; a single latent is shown against its uncertainty.
    prefix : str, optional
        Prefix of the columns.
    n_columns : int, optional
        Number of thumbnails side by side.
    rgb : (int, int, int), optional
        As for `plot_cutouts`.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        Every galaxy is a point. Each cell of a grid shows the galaxy that is
        nearest to its centre. Masked rows are left out.

    Raises
    ------
    ValueError
        If the table has no latents or another length than the stack, or
        there is no such latent.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_latents
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> table = add_latents(truth, VAE(stack.image_shape, latent_dim=2), stack)
    >>> figure = plot_latents(table, stack)
    """
    check_positive_int("n_columns", n_columns)
    rgb = check_rgb(rgb, stack.image_shape[-1])
    latents = _values(table, f"{prefix}latent_mean")
    latents = latents.reshape(len(latents), -1)
    if len(latents) != len(stack):
        msg = f"the table has {len(latents)} rows, the stack {len(stack)} cutouts."
        raise ValueError(msg)
    rows = np.flatnonzero(np.isfinite(latents).all(axis=1))
    if not len(rows):
        msg = "no row of the table has latents: there is nothing to show."
        raise ValueError(msg)
    points, labels = _plane(latents[rows], x, y)
    if latents.shape[1] == 1:
        sigma = _values(table, f"{prefix}latent_sigma").reshape(-1)[rows]
        points, labels[1] = np.stack([points[:, 0], sigma], axis=1), "σ of latent 0"
    shape = (max(round(0.75 * n_columns), 1), n_columns)
    low, high = _extent(points)
    cells, chosen = _nearest_to_cells(points, low, high, shape)
    batch = stack.batch(rows[chosen])
    image, mask = batch["image"], batch["mask"]
    tiles = to_colors(image, mask, limits(image, mask), rgb)
    inside = ((points >= low) & (points <= high)).all(axis=1)
    outside = f" {(~inside).sum()} lie outside this range." if not inside.all() else ""
    left, bottom = 0.75, 0.55
    width = WIDTH - left - 0.15
    height = width * shape[0] / shape[1] * tiles.shape[1] / tiles.shape[2]
    figure = headed_figure(
        WIDTH,
        height + bottom,
        "Galaxies by their latents",
        f"Each point is one of {len(rows)} galaxies; pictures show the galaxy nearest "
        f"to the middle of their cell.{outside}",
    )
    ax = add_axes(figure, left, bottom, width, height)
    ax.scatter(*points[inside].T, s=6, color=BLUE, alpha=0.6, linewidths=0, zorder=1)
    ax.imshow(
        sheet(tiles, cells, shape, gap=0.16),
        extent=(low[0], high[0], low[1], high[1]),
        origin="lower",
        aspect="auto",
        zorder=2,
    )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    ax.set(xlabel=labels[0], ylabel=labels[1])
    tidy(ax)
    return figure


def _plane(latents, x, y):
    """Coordinates (n, 2) to plot, and the names of the axes."""
    n, dim = latents.shape
    for name, value in (("x", x), ("y", y)):
        if value is not None and value not in range(dim):
            msg = f"{name} must be a latent, 0 ... {dim - 1}, got {name}={value!r}."
            raise ValueError(msg)
    if x is None and y is None and dim > 2 and n > 2:
        centered = latents - latents.mean(axis=0)
        _, singular, axes = np.linalg.svd(centered, full_matrices=False)
        # the sign is free: let the largest coefficient be positive
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
        share = 100 * singular**2 / max((singular**2).sum(), np.finfo(float).tiny)
        labels = [
            f"{name} principal component of the latents ({s:.0f} % of the variance)"
            for name, s in zip(("first", "second"), share)
        ]
        return centered @ axes[:2].T, labels
    x = (1 if y == 0 and dim > 1 else 0) if x is None else x
    y = (1 if x == 0 and dim > 1 else 0) if y is None else y
    return latents[:, [x, y]], [f"latent {x}", f"latent {y}"]


def _extent(points):
    """The range of the map: without the outermost percent on each side."""
    low, high = np.nanpercentile(points, [1, 99], axis=0)
    margin = 0.05 * (high - low)
    margin[margin == 0] = 0.5
    return low - margin, high + margin


def _nearest_to_cells(points, low, high, shape):
    """For each cell with points: its number, and the point nearest its middle."""
    place = (points - low) / (high - low) * shape[::-1]
    cell = np.floor(place).astype(int)
    inside = ((cell >= 0) & (cell < shape[::-1])).all(axis=1)
    distance = np.hypot(*(place - cell - 0.5).T)
    order = np.flatnonzero(inside)[np.argsort(distance[inside], kind="stable")]
    number = cell[order, 1] * shape[1] + cell[order, 0]
    cells, first = np.unique(number, return_index=True)
    return cells, order[first]


def plot_error_histogram(table, *, prefix="", suffix=""):
    """
    Compare the squared errors of a model and of the Gaussian fit.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with ``vae_mse`` and ``gauss_mse``, as made by
        `~astrovae.catalog.add_baselines`. If it has a column ``held_out``
        of bool, these galaxies are shown apart, and the rates are theirs.
    prefix : str, optional
        Prefix of the columns.
    suffix : {"", "_background"}, optional
        Which Gaussian: alone, or with a constant background.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        Histograms of the ratio of errors, for all bands together and for
        each band, with the share of galaxies that the model describes better
        and its Wilson 95 % interval. Galaxies beyond the range are counted
        in the outermost bins.

    Raises
    ------
    ValueError
        If the columns do not exist or no row has both.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from astrovae.plotting import plot_error_histogram
    >>> table = Table({"vae_mse": [1.0, 2.0, 0.5], "gauss_mse": [1.5, 1.0, 2.0]})
    >>> figure = plot_error_histogram(table)
    """
    names = f"{prefix}vae_mse", f"{prefix}gauss_mse{suffix}"
    ours, theirs = (_values(table, name) for name in names)
    ours, theirs = (mse.reshape(len(table), -1) for mse in (ours, theirs))
    n_bands = ours.shape[1]
    if n_bands > 1:
        ours, theirs = (np.column_stack([a.sum(axis=1), a]) for a in (ours, theirs))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log10(ours) - np.log10(theirs)
    finite = ratio[np.isfinite(ratio)]
    if not len(finite):
        msg = f"no row has both {names[0]} and {names[1]}: there is nothing to show."
        raise ValueError(msg)
    held_out = None
    if "held_out" in table.colnames:
        held_out = np.ma.filled(np.ma.asarray(table["held_out"]), False).astype(bool)
    edges = _edges(*np.percentile(finite, [0.5, 99.5]))
    n_rows = -(-n_bands // 3) if n_bands > 1 else 0
    figure = Figure(figsize=(WIDTH, 3.6 + 2.1 * n_rows), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(1 + n_rows, 3, height_ratios=[1.5, *[1] * n_rows])
    background = " plus constant" if suffix else ""
    ax = figure.add_subplot(grid[0, :])
    of_all = ", all bands together" if n_bands > 1 else ""
    ax.set_xlabel(f"log₁₀ (MSE of the model / MSE of the Gaussian{background}){of_all}")
    _error_panel(ax, ratio[:, 0], held_out, edges, legend=True)
    bands = _band_names(table, prefix, n_bands) if n_bands > 1 else []
    for i, band in enumerate(bands):
        ax = figure.add_subplot(grid[1 + i // 3, i % 3])
        ax.set_xlabel(f"log₁₀ of the MSE ratio, {band}", fontsize=9)
        _error_panel(ax, ratio[:, 1 + i], held_out, edges)
    figure.suptitle(
        f"Squared errors of the model and of a Gaussian{background}",
        x=0.1 / WIDTH,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return figure


def _edges(low, high, n_bins=40):
    """Edges of bins; one of them is zero, where both models are equally good."""
    low, high = min(low, 0), max(high, 0)
    step = max((high - low) / n_bins, 1e-3)
    return step * np.arange(np.floor(low / step) - 1, np.ceil(high / step) + 2)


def _error_panel(ax, values, held_out, edges, *, legend=False):
    """Draw the histogram of one band, and count the galaxies left of zero."""
    groups = [("galaxies", np.isfinite(values))]
    if held_out is not None and (held_out & groups[0][1]).any():
        groups.append(("held-out galaxies", held_out & groups[0][1]))
    for (label, rows), color in zip(groups, (PALE, BLUE)):
        shown = np.clip(values[rows], edges[0], edges[-1])
        ax.hist(shown, edges, color=color, label=f"{rows.sum()} {label}")
    ax.axvline(0, color=ORANGE, linewidth=1.5)
    label, rows = groups[-1]
    n, wins = int(rows.sum()), int((values[rows] < 0).sum())
    share, interval = "no galaxy", ""
    if n:
        low, high = 100 * binom_conf_interval(wins, n, 0.95, interval="wilson")
        share, interval = f"{100 * wins / n:.1f} %", f"{low:.1f} to {high:.1f} %"
    title = f"{share} ({interval})"
    if legend:
        title = (
            f"The model is better for {share} of {n} {label} (95 % interval {interval})"
        )
        ax.set_ylabel("galaxies per bin")
        ax.set_ymargin(0.12)
        add_legend(ax, fontsize=SMALL)
        for text, side in (("model better  ", "right"), ("  Gaussian better", "left")):
            where = ax.get_xaxis_transform()
            style = {"color": ORANGE, "fontsize": SMALL}
            ax.text(0, 0.96, text, transform=where, ha=side, **style)
    ax.set_title(title, fontsize=10, loc="left")
    tidy(ax)


def plot_win_rates(rates, *, bands=None):
    """
    Show how often models are better than each baseline.

    Parameters
    ----------
    rates : `~astropy.table.Table`
        As given by `~astrovae.baselines.compare` or
        `~astrovae.baselines.win_rates`.
    bands : sequence of str, optional
        Names of the bands, by default their numbers.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A panel for the squared error and, if it was compared, one for the
        likelihood: the share of galaxies that each model describes better,
        with its interval. Beyond one half, the model is better.

    Raises
    ------
    ValueError
        If no rate is known.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from astrovae.baselines import compare
    >>> from astrovae.plotting import plot_win_rates
    >>> table = Table({"pca_mse": [1.0, 2.0, 0.5], "gauss_mse": [1.5, 1.0, 2.0]})
    >>> figure = plot_win_rates(compare(table))
    """
    known = rates[np.isfinite(rates["rate"])]
    if not len(known):
        msg = "rates has no rate: no galaxy was measured by both model and baseline."
        raise ValueError(msg)
    labels = [_win_label(row, bands) for row in known]
    order = list(dict.fromkeys(labels))
    models = list(dict.fromkeys(_cell(row, "model", "vae") for row in known))
    quantities = [name for name in ("mse", "like") if name in known["quantity"]]
    height = 1.3 + 0.28 * len(order)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    titles = {"mse": "Squared error", "like": "Likelihood"}
    for ax, quantity in zip(axes, quantities):
        for i, model in enumerate(models):
            rows = [
                (order.index(label), row)
                for label, row in zip(labels, known)
                if row["quantity"] == quantity and _cell(row, "model", "vae") == model
            ]
            _win_panel(ax, rows, model, i, len(models))
        ax.axvline(50, color=PALE, linewidth=1, zorder=0)
        ax.set(xlim=(0, 100), xlabel="galaxies that the model describes better [%]")
        ax.set_title(titles[quantity], loc="left", fontsize=10)
        tidy(ax)
    axes[0].set_yticks(range(len(order)), order, fontsize=SMALL)
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    if len(models) > 1:
        add_legend(axes[0], fontsize=SMALL)
    figure.suptitle(
        f"Win rates of {' and '.join(_MODEL_NAMES.get(m, m) for m in models)}",
        x=0.1 / WIDTH,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return figure


_MODEL_NAMES = {"vae": "the model", "pca": "principal components"}
_BASELINE_NAMES = {"gauss": "Gaussian", "sersic": "Sérsic", "pca": "PCA"}


def _cell(row, name, default):
    """A value of a row, or a default if there is no such column."""
    return str(row[name]) if name in row.colnames else default


def _win_label(row, bands):
    """What a model is compared with, and in which band."""
    name = _cell(row, "baseline", "gauss")
    label = _BASELINE_NAMES.get(name, name)
    label += " plus constant" if row["background"] else ""
    band = int(row["band"])
    if band >= 0:
        label += f", {bands[band] if bands is not None else f'band {band}'}"
    return label


def _win_panel(ax, rows, model, index, n_models):
    """Draw the rates of one model, a little apart from those of others."""
    if not rows:
        return
    shift = 0.3 * (index - 0.5 * (n_models - 1))
    place = np.array([position for position, _ in rows]) + shift
    rate, low, high = (
        100 * np.array([row[name] for _, row in rows])
        for name in ("rate", "low", "high")
    )
    color = (BLUE, ORANGE, SKY)[index % 3]
    errors = np.maximum([rate - low, high - rate], 0)
    label = _MODEL_NAMES.get(model, model)
    style = {"fmt": "o", "markersize": 4, "color": color, "elinewidth": 1.5}
    ax.errorbar(rate, place, xerr=errors, label=label, **style)
    for at, value, left, right in zip(place, rate, low, high):
        # where there is room
        beside = right < 85
        text = f" {value:.1f} " + "%"
        ax.text(
            right + 1 if beside else left - 1,
            at,
            text,
            ha="left" if beside else "right",
            va="center",
            fontsize=SMALL - 1,
            color=color,
        )


def plot_history(history):
    """
    Show how the loss fell in training.

    Parameters
    ----------
    history : `keras.callbacks.History` or dict
        What ``fit`` returned, or its ``history``.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        Training and validation loss by epoch. Epochs far above the others,
        usually the first ones, may lie above the frame; the figure says how
        many do.

    Raises
    ------
    ValueError
        If there is no loss in it.

    Examples
    --------
    >>> from astrovae.plotting import plot_history
    >>> figure = plot_history({"loss": [3.0, 2.0, 1.5], "val_loss": [3.1, 2.2, 1.9]})
    """
    losses = getattr(history, "history", history)
    curves = [
        (label, color, np.asarray(losses[name], dtype=float))
        for name, label, color in (
            ("loss", "training galaxies", BLUE),
            ("val_loss", "validation galaxies", ORANGE),
        )
        if len(losses.get(name, ()))
    ]
    if "loss" not in losses or not np.isfinite(losses["loss"]).any():
        msg = "history has no finite loss: was the model trained?"
        raise ValueError(msg)
    figure = Figure(figsize=(WIDTH, 3.4), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    n_epochs = len(losses["loss"])
    for label, color, values in curves:
        # validation may have been done in some epochs only
        epochs = np.linspace(1, n_epochs, n_epochs)[-len(values) :]
        ax.plot(epochs, values, color=color, label=label, marker="." * (n_epochs < 30))
    values = np.concatenate([values for *_, values in curves])
    _frame(ax, values[np.isfinite(values)])
    ax.set(xlabel="epoch", ylabel="loss per galaxy [nats]")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(ax)
    ax.set_title("Loss in training", loc="left", fontsize=12, fontweight="bold")
    tidy(ax)
    return figure


def _frame(ax, values):
    """Keep the few epochs far above the others from hiding them."""
    low, usual, high = *np.percentile(values, [0, 80]), values.max()
    top = min(high, usual + (usual - low))
    if top < high and usual > low:
        ax.set_ylim(low - 0.05 * (top - low), top)
        n = int((values > top).sum())
        text = f"{n} value{'s' if n > 1 else ''} above the frame"
        style = {"ha": "center", "color": NOTE, "fontsize": SMALL}
        ax.text(0.5, 0.95, text, transform=ax.transAxes, **style)


def _values(table, name):
    """Values of a column of any kind as floats, masked ones NaN."""
    if name not in table.colnames:
        msg = f"the table has no column {name!r}; astrovae.catalog.annotate appends it."
        raise ValueError(msg)
    column = table[name]
    values = getattr(column, "unmasked", column)
    values = np.array(np.ma.getdata(getattr(values, "value", values)), dtype=float)
    values[np.broadcast_to(getattr(column, "mask", False), values.shape)] = np.nan
    return values


def _band_names(table, prefix, n_bands):
    """Names of the bands from the provenance, if it has them."""
    steps = table.meta.get("astrovae", {}).get(prefix or "default", {})
    for step in steps.values():
        if len(step.get("bands", ())) == n_bands:
            return step["bands"]
    return [f"band {i}" for i in range(n_bands)]
