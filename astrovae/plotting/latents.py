# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of latents and physics: planes, classes, traversals, neighbours."""

import astropy.units as u
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from scipy.ndimage import gaussian_filter
from scipy.stats import gaussian_kde

from astrovae._validation import check_option, check_positive_int
from astrovae.plotting._display import (
    BLUE,
    ORANGE,
    SKY,
    SMALL,
    WIDTH,
    add_axes,
    check_rgb,
    headed_figure,
    limits,
    sheet,
    tidy,
    to_colors,
)
from astrovae.plotting.catalogs import _extent, _plane, _values
from astrovae.plotting.statistics import numbers

__all__ = [
    "plot_classes",
    "plot_neighbors",
    "plot_property",
    "plot_property_traversal",
]

# Wong 2011, Nature Methods 8, 441, without its yellow, which is hard to see
_CLASS_COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", SKY, "#E69F00", "#000000")
# contours that hold these shares of the galaxies
_SHARES = (0.9, 0.5)
_NUM_CELLS = 96


def plot_property(
    table, column, *, x=None, y=None, prefix="", min_count=3, grid_size=30
):
    """
    Show a property of galaxies in the plane of their latents.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with ``latent_mean``, as made by
        `~astrovae.catalog.add_latents`.
    column : str
        The property.
    x, y : int, optional
        The latents along the axes, by default as for `plot_latents`.
    prefix : str, optional
        Prefix of the latents.
    min_count : int, optional
        Cells of fewer galaxies are left empty.
    grid_size : int, optional
        Number of cells along x.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        The median of the property in hexagonal cells, with contours around half
        and 90 % of the galaxies. Galaxies without the property or without
        latents are left out.

    Raises
    ------
    ValueError
        If there are fewer than two latents, no such latent, no galaxy that has
        latents and the property, or no cell of ``min_count`` galaxies.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_property
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> table = add_latents(truth, VAE(stack.image_shape, latent_dim=2), stack)
    >>> figure = plot_property(table, "axis_ratio", min_count=1)
    """
    check_positive_int("min_count", min_count)
    check_positive_int("grid_size", grid_size, minimum=2)
    values = numbers(table, column)
    latents, rows = _known(table, prefix, np.isfinite(values), column)
    points, labels = _plane(latents, x, y)
    values = values[rows]
    low, high = _extent(points)
    figure = headed_figure(
        WIDTH,
        5.4,
        f"{column} in the plane of the latents",
        f"Colour: median in cells of at least {min_count} of {len(rows)} galaxies; "
        "contours hold 50 and 90 % of them.",
    )
    ax = add_axes(figure, 0.75, 0.55, WIDTH - 2.1, 4.8)
    norm = Normalize(*np.percentile(values, [2, 98]))
    cells = ax.hexbin(
        *points.T,
        C=values,
        reduce_C_function=np.median,
        mincnt=min_count,
        gridsize=grid_size,
        extent=(low[0], high[0], low[1], high[1]),
        cmap="viridis",
        norm=norm,
        linewidths=0.2,
        edgecolors="face",
    )
    if not len(cells.get_array()):
        msg = (
            f"no cell has {min_count} of the {len(rows)} galaxies. Give a smaller "
            "min_count or grid_size."
        )
        raise ValueError(msg)
    _contours(ax, points, low, high, "black")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    ax.set(xlabel=labels[0], ylabel=labels[1])
    tidy(ax)
    cax = add_axes(figure, WIDTH - 1.2, 0.55, 0.18, 4.8)
    bar = figure.colorbar(cells, cax, label=_label(table, column), extend="both")
    bar.outline.set_visible(False)
    return figure


def plot_classes(table, column, *, x=None, y=None, prefix="", max_classes=6):
    """
    Show where classes of galaxies lie in the plane of their latents.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with ``latent_mean``.
    column : str
        The classes: strings, bools or integers.
    x, y : int, optional
        The latents along the axes, by default as for `plot_latents`.
    prefix : str, optional
        Prefix of the latents.
    max_classes : int, optional
        Show at most this many, the most frequent ones, up to 7.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        For each class contours around half and 90 % of its galaxies, and along
        each axis its density, scaled to the same area. Classes of fewer than ten
        galaxies are drawn as points.

    Raises
    ------
    ValueError
        If the column holds numbers that are no classes, or as for
        `plot_property`.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_classes
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> table = add_latents(truth, VAE(stack.image_shape, latent_dim=2), stack)
    >>> figure = plot_classes(table, "kind")
    """
    check_option("max_classes", max_classes, range(1, len(_CLASS_COLORS) + 1))
    if column not in table.colnames:
        msg = f"the table has no column {column!r}."
        raise ValueError(msg)
    classes = np.ma.asarray(table[column])
    if classes.dtype.kind not in "USObiu" or classes.ndim != 1:
        msg = (
            f"{column} must hold classes, one string, bool or integer per galaxy, got "
            f"{classes.dtype} of shape {classes.shape}. Use plot_property for numbers."
        )
        raise ValueError(msg)
    latents, rows = _known(table, prefix, ~np.ma.getmaskarray(classes), column)
    points, labels = _plane(latents, x, y)
    classes = np.ma.getdata(classes)[rows].astype(str)
    names, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:max_classes]
    left_out = len(classes) - counts[order].sum()
    note = "Contours hold 50 and 90 % of each class; beside them, densities."
    if left_out:
        note += f" {left_out} galaxies of {len(names) - len(order)} classes left out."
    figure = headed_figure(WIDTH, 6.3, f"{column} in the plane of the latents", note)
    low, high = _extent(points)
    ax = add_axes(figure, 0.75, 0.55, 6.1, 4.7)
    top = add_axes(figure, 0.75, 5.3, 6.1, 0.85)
    side = add_axes(figure, 6.9, 0.55, 0.85, 4.7)
    handles = []
    for i, color in zip(order, _CLASS_COLORS):
        own = points[classes == names[i]]
        label = f"{names[i]} ({counts[i]})"
        handles.append(Line2D([], [], color=color, label=label))
        if len(own) < 10 or not (own.std(axis=0) > 0).all():
            ax.scatter(*own.T, s=14, color=color, linewidths=0)
            continue
        _contours(ax, own, low, high, color, fill=True)
        for k, axis in enumerate((top, side)):
            grid = np.linspace(low[k], high[k], 200)
            density = gaussian_kde(own[:, k])(grid)
            pair = (grid, density) if k == 0 else (density, grid)
            axis.plot(*pair, color=color, linewidth=1.2)
            fill = axis.fill_between if k == 0 else axis.fill_betweenx
            fill(grid, density, color=color, alpha=0.12, linewidth=0)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    ax.set(xlabel=labels[0], ylabel=labels[1])
    top.set(xlim=(low[0], high[0]), ylim=(0, None))
    side.set(ylim=(low[1], high[1]), xlim=(0, None))
    for axis in (top, side):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    tidy(ax)
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(6.95 / WIDTH, 6.15 / 6.85),
        frameon=False,
        fontsize=SMALL,
    )
    return figure


def plot_property_traversal(
    model, table, columns, *, prefix="", n_sigma=2.0, n_steps=7, rgb=None
):
    """
    Show how galaxies change along properties.

    The latents are regressed on each property, and galaxies are painted on the
    line that this gives, through the mean galaxy.

    Parameters
    ----------
    model : object
        Anything with ``decode(z) -> {"mean"}``, e.g. `~astrovae.models.VAE`.
    table : `~astropy.table.Table`
        A catalogue with ``latent_mean`` of the model.
    columns : str or sequence of str
        The properties.
    prefix : str, optional
        Prefix of the latents.
    n_sigma : float, optional
        How far to go to either side, in standard deviations of the property.
    n_steps : int, optional
        Number of pictures per property.
    rgb : (int, int, int), optional
        As for `plot_cutouts`.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A row per property with its values below, all in the same stretch; on the
        left, how much of the variance of the property the latents explain
        linearly (within this sample).

    Raises
    ------
    ValueError
        If a property is constant or not known, or as for `plot_property`.

    Notes
    -----
    The line is the mean of the latents given the property, as far as it is
    linear: the picture of a typical galaxy of that property. The direction of
    steepest change, from regression of the property on the latents, is
    another one where latents are correlated, and leads to galaxies that do not
    exist.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_property_traversal
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> table = add_latents(truth, vae, stack)
    >>> figure = plot_property_traversal(vae, table, "half_light_radius")
    """
    check_positive_int("n_steps", n_steps, minimum=2)
    columns = [columns] if isinstance(columns, str) else list(columns)
    if not columns:
        msg = "columns must name at least one property."
        raise ValueError(msg)
    steps = np.linspace(-n_sigma, n_sigma, n_steps)
    paths, marks, shares = [], [], []
    for column in columns:
        values = numbers(table, column)
        latents, rows = _known(table, prefix, np.isfinite(values), column, minimum=1)
        values = values[rows]
        spread = values.std()
        if len(rows) < 3 or not spread > 1e-12 * np.abs(values).max():
            msg = f"{column} is constant, or known of fewer than three galaxies."
            raise ValueError(msg)
        score = (values - values.mean()) / spread
        center = latents.mean(axis=0)
        direction = score @ (latents - center) / len(rows)
        paths.append(center + steps[:, None] * direction)
        marks.append(values.mean() + steps * spread)
        fitted = latents - center
        fitted = fitted @ np.linalg.lstsq(fitted, score, rcond=None)[0]
        shares.append(1 - np.square(score - fitted).mean())
    images = np.asarray(model.decode(np.concatenate(paths))["mean"])
    ny, nx, n_bands = images.shape[1:]
    column = images.reshape(1, -1, nx, n_bands)
    levels = limits(column, np.zeros(column.shape, dtype=bool))
    nothing = np.zeros(images.shape, dtype=bool)
    tiles = to_colors(images, nothing, levels, check_rgb(rgb, n_bands))
    n_rows = len(columns)
    left, gap = 1.5, 0.24
    size = (WIDTH - left - 0.1) / n_steps
    height = size * ny / nx
    figure = headed_figure(
        WIDTH,
        n_rows * (height + gap) + 0.1,
        "How galaxies change along their properties",
        "Painted at the mean latents of galaxies of that property, by linear "
        "regression; R²: share of its variance that latents explain.",
    )
    for row, name in enumerate(columns):
        bottom = 0.1 + (n_rows - 1 - row) * (height + gap) + gap
        ax = add_axes(figure, left, bottom, size * n_steps, height)
        own = tiles[row * n_steps : (row + 1) * n_steps]
        picture = sheet(own, np.arange(n_steps), (1, n_steps), gap=0.02)
        ax.imshow(picture, origin="lower", extent=(0, n_steps, 0, 1), aspect="auto")
        ax.set_xticks(np.arange(n_steps) + 0.5, _number_texts(marks[row]))
        ax.set_yticks([])
        ax.tick_params(length=0, labelsize=SMALL, pad=2)
        ax.spines[:].set_visible(False)
        text = f"{_label(table, name)}\nR² = {shares[row]:.2f}".replace(" [", "\n[")
        figure.text(
            0.1 / WIDTH,
            (bottom + height / 2) / figure.get_size_inches()[1],
            text,
            va="center",
            fontsize=min(9, 110 * 1.4 / max(map(len, text.splitlines())) / 1.2),
        )
    return figure


def plot_neighbors(
    table, stack, indices, *, n_neighbors=8, prefix="", metric="whitened", rgb=None
):
    """
    Show galaxies and their nearest neighbours in latent space.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with ``latent_mean``.
    stack : `~astrovae.images.CutoutStack`
        Its cutouts, in the same order.
    indices : int or sequence of int
        Rows of the galaxies whose neighbours to show.
    n_neighbors : int, optional
        How many neighbours of each.
    prefix : str, optional
        Prefix of the latents.
    metric : {"whitened", "euclidean"}, optional
        Distance in units of the scatter of galaxies in each direction, which any
        linear change of the latents leaves as it is; or as the latents are.
    rgb : (int, int, int), optional
        As for `plot_cutouts`.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A row per galaxy, it first, its neighbours in the order of their distance,
        which is below, with their identifiers; each in a stretch of its own.

    Raises
    ------
    ValueError
        If the table has another length than the stack, a row does not exist or
        has no latents, or there is no other galaxy.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_neighbors
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> table = add_latents(truth, VAE(stack.image_shape, latent_dim=2), stack)
    >>> figure = plot_neighbors(table, stack, [0, 5], n_neighbors=4)
    """
    check_positive_int("n_neighbors", n_neighbors)
    check_option("metric", metric, ("whitened", "euclidean"))
    rgb = check_rgb(rgb, stack.image_shape[-1])
    if len(table) != len(stack):
        msg = f"the table has {len(table)} rows, the stack {len(stack)} cutouts."
        raise ValueError(msg)
    all_rows = np.ones(len(table), dtype=bool)
    latents, rows = _known(table, prefix, all_rows, "latents", minimum=1)
    chosen = np.atleast_1d(np.asarray(indices, dtype=int))
    for index in chosen:
        if index not in rows:
            msg = f"row {index} does not exist or has no latents; indices={indices!r}."
            raise ValueError(msg)
    if len(rows) < 2:
        msg = "there is one galaxy with latents: it has no neighbours."
        raise ValueError(msg)
    points = _whiten(latents) if metric == "whitened" else latents
    n_shown = min(n_neighbors, len(rows) - 1)
    found, distances = [], []
    for index in chosen:
        distance = np.linalg.norm(points - points[rows == index], axis=1)
        order = np.argsort(distance, kind="stable")
        order = order[rows[order] != index][:n_shown]
        found.append([index, *rows[order]])
        distances.append([0.0, *distance[order]])
    batch = stack.batch(np.concatenate(found))
    image, mask = batch["image"], batch["mask"]
    tiles = to_colors(image, mask, limits(image, mask), rgb)
    size = min((WIDTH - 0.2) / (n_shown + 1), 1.8)
    height = size * tiles.shape[1] / tiles.shape[2]
    pad, caption, extra = 0.04, 0.36, 0.12
    unit = "scatter of all galaxies" if metric == "whitened" else "latents"
    figure = headed_figure(
        max(0.2 + (n_shown + 1) * size + extra, 0.6 * WIDTH),
        len(chosen) * (height + caption),
        "Galaxies and their nearest neighbours in latent space",
        f"Left: the galaxy. d: distance in units of the {unit}.",
    )
    for row in range(len(chosen)):
        bottom = (len(chosen) - 1 - row) * (height + caption) + caption
        for i in range(n_shown + 1):
            left = 0.1 + i * size + (extra if i else 0)
            ax = add_axes(figure, left, bottom, size - pad, height - pad)
            ax.imshow(tiles[row * (n_shown + 1) + i], origin="lower", aspect="auto")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=not i, color=ORANGE, linewidth=2)
            name = f"id {stack.ids[found[row][i]]}"
            below = f"d = {distances[row][i]:.2f}" if i else ""
            ax.set_xlabel(
                f"{name}\n{below}",
                fontsize=min(SMALL, 110 * size / len(name)),
                labelpad=2,
            )
    return figure


def _known(table, prefix, known, column, minimum=2):
    """Latents of the rows that have them and the property, and these rows."""
    latents = _values(table, f"{prefix}latent_mean")
    latents = latents.reshape(len(table), -1)
    if known.ndim != 1:
        msg = f"{column} must be one number per galaxy, got rows of {known.shape[1:]}."
        raise ValueError(msg)
    if latents.shape[1] < minimum:
        msg = "a plane needs two latents, and the table has one."
        raise ValueError(msg)
    rows = np.flatnonzero(np.isfinite(latents).all(axis=1) & known)
    if not len(rows):
        msg = f"no row of the table has latents and {column}: there is nothing to show."
        raise ValueError(msg)
    return latents[rows], rows


def _label(table, column):
    """The name of a column with its unit."""
    unit = getattr(table[column], "unit", None)
    if unit is None or unit == u.dimensionless_unscaled:
        return column
    return f"{column} [{unit:unicode}]"


def _number_texts(values):
    """Numbers with as many digits as tell them apart."""
    step = abs(values[1] - values[0])
    if not 1e-4 < step < 1e5:
        return [f"{value:.3g}".replace("-", "−") for value in values]
    digits = int(np.clip(1 - np.floor(np.log10(step)), 0, 5))
    return [f"{value:.{digits}f}".replace("-", "−") for value in values]


def _contours(ax, points, low, high, color, *, fill=False):
    """Draw contours that hold given shares of the points."""
    if len(points) < 10:
        return
    # beyond the frame, too, so that contours close
    margin = 0.5 * (high - low)
    edges = [
        np.linspace(a - m, b + m, 2 * _NUM_CELLS + 1)
        for a, b, m in zip(low, high, margin)
    ]
    counts, *_ = np.histogram2d(*points.T, bins=edges)
    # half of what the rule of Scott says for two dimensions, in cells: latents are
    # not normal, and wide kernels hide it
    robust = np.subtract(*np.percentile(points, [84, 16], axis=0)) / 2
    cell = [edge[1] - edge[0] for edge in edges]
    width = np.maximum(0.75 * robust * len(points) ** (-1 / 6) / cell, 1.0)
    density = gaussian_filter(counts, width, mode="constant")
    order = np.sort(density.ravel())[::-1]
    held = np.cumsum(order) / max(order.sum(), 1e-30)
    levels = [order[np.searchsorted(held, share)] for share in _SHARES]
    if not 0 < levels[0] < levels[1]:
        return
    middles = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
    if fill:
        top = [*levels, max(density.max(), levels[1] * 1.01)]
        ax.contourf(*middles, density.T, top, colors=[color], alpha=0.13)
    ax.contour(
        *middles,
        density.T,
        levels,
        colors=[color],
        linewidths=(0.9, 1.5),
        alpha=0.9,
    )


def _whiten(latents):
    """Latents in units of the scatter of galaxies in each direction."""
    centered = latents - latents.mean(axis=0)
    _, singular, axes = np.linalg.svd(centered, full_matrices=False)
    scatter = singular / np.sqrt(len(latents))
    used = scatter > 1e-9 * max(scatter.max(), 1e-30)
    return centered @ axes[used].T / scatter[used]
