# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures of clusters: their galaxies, their overlap, their properties."""

import numpy as np

from astrovae._validation import check_option, check_positive_int
from astrovae.catalog._appending import check_rows
from astrovae.catalog.clusters import known_order, read_clusters
from astrovae.flags import Flag
from astrovae.plotting._display import (
    BLUE,
    NOTE,
    ORANGE,
    PALE,
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
from astrovae.plotting.latents import _label
from astrovae.plotting.statistics import numbers

__all__ = ["plot_cluster_overlap", "plot_cluster_properties", "plot_clusters"]

# boxes and lines hold these percentiles of the galaxies
_BOX, _LINE = (25, 75), (5, 95)


def plot_clusters(
    table,
    stack,
    model=None,
    *,
    n_typical=5,
    n_random=5,
    n_samples=5,
    max_clusters=12,
    prefix="",
    rgb=None,
    seed=0,
):
    """
    Show what galaxies are in each cluster, and what its component paints.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with the columns of `~astrovae.catalog.add_clusters`.
    stack : `~astrovae.images.CutoutStack`
        Its cutouts, in the same order; aligned ones
        (`astrovae.images.align`) are easier to compare.
    model : object, optional
        The model of the clusters, with ``sample(n, component=..., seed=...)``.
    n_typical, n_random : int, optional
        How many of the galaxies closest to the component, and of others drawn at
        random, to show.
    n_samples : int, optional
        How many galaxies to paint of each component, if there is a model.
    max_clusters : int, optional
        Show at most so many clusters with galaxies, the first ones.
    prefix : str, optional
        Prefix of the columns.
    rgb : (int, int, int), optional
        As for `plot_cutouts`.
    seed : int, optional
        Seed of what is drawn at random.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A row per cluster, with the number of its galaxies; each picture in a
        stretch of its own.

    Raises
    ------
    ValueError
        If the table has no clusters or another length than the stack, the clusters
        are not those of the model, or there is no galaxy to show.

    Examples
    --------
    >>> from astrovae.catalog import add_clusters
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_clusters
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior)
    >>> table = add_clusters(truth, vae, stack)
    >>> figure = plot_clusters(table, stack, vae)
    """
    for name, value in (("n_typical", n_typical), ("n_random", n_random)):
        check_positive_int(name, value, minimum=0)
    check_positive_int("n_samples", n_samples, minimum=0)
    check_positive_int("max_clusters", max_clusters)
    rgb = check_rgb(rgb, stack.image_shape[-1])
    check_rows(table, stack)
    label, gamma = read_clusters(table, prefix)
    label[(np.asarray(stack.flags) & Flag.NO_VALID_PIXEL) != 0] = -1
    counts = np.bincount(label[label >= 0], minlength=gamma.shape[1])
    shown = np.flatnonzero(counts)[:max_clusters]
    if not len(shown):
        msg = "no galaxy has a cluster: there is nothing to show."
        raise ValueError(msg)
    blocks = []
    members = _choose(table, prefix, label, shown, n_typical, n_random, seed)
    for title, rows in zip(("most typical", "at random"), members):
        if rows:
            blocks.append((title, *_tiles_of(stack, rows, rgb)))
    if model is not None and n_samples:
        order = known_order(table, prefix, model, gamma.shape[1])
        tiles = _paint(model, order[shown], n_samples, stack.image_shape, rgb, seed)
        cells = np.arange(len(tiles))
        blocks.append(("painted by the model", n_samples, cells, tiles))
    if not blocks:
        msg = (
            "n_typical, n_random and n_samples are all zero: there is nothing to show."
        )
        raise ValueError(msg)
    captions = [
        f"cluster {c}\n{counts[c]}  ({_percent(counts[c], counts.sum())})"
        for c in shown
    ]
    note = f"{counts.sum()} galaxies"
    left_out = np.count_nonzero(counts) - len(shown)
    note += f"; {left_out} more clusters not shown" if left_out else ""
    note += f"; {np.sum(counts == 0)} are empty" if (counts == 0).any() else ""
    return _gallery(blocks, captions, stack.image_shape, f"{note}.")


def _choose(table, prefix, label, shown, n_typical, n_random, seed):
    """Rows of each cluster to show: the closest ones, and some at random."""
    distance = numbers(table, f"{prefix}cluster_distance")
    rng = np.random.default_rng(seed)
    typical, at_random = {}, {}
    for place, c in enumerate(shown):
        own = np.flatnonzero(label == c)
        own = own[np.argsort(distance[own], kind="stable")]
        rest = rng.permutation(own[n_typical:])
        for rows, chosen, n in (
            (typical, own, n_typical),
            (at_random, rest, n_random),
        ):
            rows.update({place * n + i: row for i, row in enumerate(chosen[:n])})
    return typical and (n_typical, typical), at_random and (n_random, at_random)


def _tiles_of(stack, rows, rgb):
    """Number of columns, cells and pictures of some rows of a stack."""
    n, place = rows
    batch = stack.batch(np.array(list(place.values())))
    image, mask = batch["image"], batch["mask"]
    return n, np.array(list(place)), to_colors(image, mask, limits(image, mask), rgb)


def _paint(model, components, n, image_shape, rgb, seed):
    """Pictures of samples of components, cut to the shape of the stamps."""
    images = [
        np.asarray(model.sample(n, component=int(c), seed=seed + int(c))["mean"])
        for c in components
    ]
    images = np.concatenate(images)
    for axis in (1, 2):
        # a canvas is larger than the stamps by an even number of pixels
        margin = max(images.shape[axis] - image_shape[axis - 1], 0) // 2
        stop = images.shape[axis] - margin
        images = images.take(np.arange(margin, stop), axis=axis)
    nothing = np.zeros(images.shape, dtype=bool)
    return to_colors(images, nothing, limits(images, nothing), rgb)


def _percent(part, whole):
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 1 else "< 1 %"


def _gallery(blocks, captions, image_shape, note):
    """Blocks of pictures side by side, a row for each cluster."""
    n_rows = len(captions)
    left, gap, head = 1.05, 0.12, 0.24
    columns = sum(n for _, n, *_ in blocks)
    room = WIDTH - left - 0.1 - gap * (len(blocks) - 1)
    size = min(room / columns, 0.9)
    height = size * image_shape[0] / image_shape[1]
    width = max(left + columns * size + gap * (len(blocks) - 1) + 0.1, 0.6 * WIDTH)
    figure = headed_figure(
        width, n_rows * height + head + 0.1, "Galaxies of each cluster", note
    )
    x = left
    for title, n, cells, tiles in blocks:
        ax = add_axes(figure, x, 0.1, n * size, n_rows * height)
        # row 0 of a sheet is the lowest
        row, column = np.divmod(cells, n)
        cells = (n_rows - 1 - row) * n + column
        picture = sheet(tiles, cells, (n_rows, n), gap=0.02)
        ax.imshow(picture, origin="lower", extent=(0, n, 0, n_rows), aspect="auto")
        ax.set(xticks=[], yticks=[], xlim=(0, n), ylim=(0, n_rows))
        ax.set_title(title, fontsize=9, loc="left", pad=3)
        ax.spines[:].set_visible(False)
        x += n * size + gap
    ax = figure.axes[0]
    ax.set_yticks(n_rows - 0.5 - np.arange(n_rows), captions)
    ax.tick_params(length=0, labelsize=min(9, 30 * height))
    return figure


def plot_cluster_overlap(summary, *, kind=None):
    """
    Show how far clusters are apart.

    Parameters
    ----------
    summary : `~astropy.table.Table`
        As given by `~astrovae.catalog.cluster_summary`.
    kind : {"overlap", "shared_prob"}, optional
        Bhattacharyya coefficients of the components, which need the summary of a
        model; or the mean probabilities of all clusters for the galaxies of each
        one. By default the first, if there is one.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A cell for each pair. Clusters without a galaxy have no ``shared_prob``.

    Raises
    ------
    ValueError
        If the summary has no such column.

    Examples
    --------
    >>> from astrovae.catalog import add_clusters, cluster_summary
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_cluster_overlap
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior)
    >>> table = add_clusters(truth, vae, stack)
    >>> figure = plot_cluster_overlap(cluster_summary(table, model=vae))
    """
    if kind is None:
        kind = "overlap" if "overlap" in summary.colnames else "shared_prob"
    check_option("kind", kind, ("overlap", "shared_prob"))
    if kind not in summary.colnames:
        msg = (
            f"the summary has no {kind!r}; it is what "
            "astrovae.catalog.cluster_summary returns, 'overlap' only with a model."
        )
        raise ValueError(msg)
    values = numbers(summary, kind)
    n = len(values)
    size = min(5.4, 0.7 * n + 0.6)
    title, note = {
        "overlap": ("Overlap of components", "Bhattacharyya coefficient"),
        "shared_prob": (
            "Probability of clusters",
            "mean over the galaxies of the cluster on the left",
        ),
    }[kind]
    width = max(size + 1.8, 0.5 * WIDTH)
    figure = headed_figure(width, size + 0.55, title, note)
    ax = add_axes(figure, 0.75, 0.45, size, size)
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(shown, vmin=0, vmax=1, cmap="Blues")
    ax.set_facecolor("#EEEEEE")
    # as many numbers as can be read
    if n <= 16:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(
                    column,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=min(9, 15 * size / n),
                    color="white" if value > 0.6 else "black",
                )
    names = [str(name) for name in summary["cluster"]]
    ax.set_xticks(range(n), names, fontsize=SMALL)
    ax.set_yticks(range(n), names, fontsize=SMALL)
    ax.set(xlabel="cluster", ylabel="cluster")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    cax = add_axes(figure, 0.75 + size + 0.15, 0.45, 0.15, size)
    figure.colorbar(image, cax, ticks=[0, 0.5, 1]).outline.set_visible(False)
    cax.tick_params(labelsize=SMALL)
    return figure


def plot_cluster_properties(table, columns, *, max_clusters=12, prefix=""):
    """
    Compare the properties of clusters.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with the columns of `~astrovae.catalog.add_clusters`.
    columns : str or sequence of str
        The properties: columns with one number per galaxy.
    max_clusters : int, optional
        Show at most so many clusters with galaxies, the first ones.
    prefix : str, optional
        Prefix of the columns of clusters.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A panel per property and a row per cluster: median, the half of the galaxies
        around it (box), and 90 % of them (line). The vertical line is the median of
        all galaxies with a cluster.

    Raises
    ------
    ValueError
        If columns do not exist or hold no numbers, or no galaxy with a cluster has
        the property.

    Examples
    --------
    >>> from astrovae.catalog import add_clusters
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_cluster_properties
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior)
    >>> table = add_clusters(truth, vae, stack)
    >>> figure = plot_cluster_properties(table, ["flux", "axis_ratio"])
    """
    check_positive_int("max_clusters", max_clusters)
    columns = [columns] if isinstance(columns, str) else list(columns)
    if not columns:
        msg = "columns must name at least one property."
        raise ValueError(msg)
    label, gamma = read_clusters(table, prefix)
    counts = np.bincount(label[label >= 0], minlength=gamma.shape[1])
    shown = np.flatnonzero(counts)[:max_clusters]
    parts = {}
    for name in columns:
        values = numbers(table, name)
        if values.ndim != 1:
            msg = f"{name} must be one number per galaxy, got {values.shape[1:]}."
            raise ValueError(msg)
        known = np.isfinite(values) & (label >= 0)
        if not known.any():
            msg = f"no galaxy with a cluster has {name}: there is nothing to show."
            raise ValueError(msg)
        parts[name] = values, known
    n, left, gap = len(columns), 1.05, 0.25
    panel = min((WIDTH - left - 0.1 - gap * (n - 1)) / n, 3.4)
    height = max(0.32 * len(shown), 0.7)
    width = max(left + n * (panel + gap), 0.6 * WIDTH)
    figure = headed_figure(
        width,
        height + 0.6,
        "Properties of clusters",
        "Median; box: half of the galaxies; line: 90 %. Dashed: median of all.",
    )
    for index, (name, (values, known)) in enumerate(parts.items()):
        ax = add_axes(figure, left + index * (panel + gap), 0.5, panel, height)
        ax.axvline(np.median(values[known]), color=ORANGE, linewidth=1, linestyle="--")
        for y, c in enumerate(shown):
            _draw_range(ax, y, values[known & (label == c)])
        ax.set(ylim=(len(shown) - 0.5, -0.5))
        ax.set_yticks(range(len(shown)), [""] * len(shown))
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=SMALL)
        ax.set_xlabel(_label(table, name), fontsize=9)
        tidy(ax)
    figure.axes[0].set_yticks(
        range(len(shown)),
        [f"cluster {c}  ({counts[c]})" for c in shown],
        fontsize=SMALL,
    )
    return figure


def _draw_range(ax, y, values):
    """Median, box and line of some values."""
    if not len(values):
        ax.text(
            0.02,
            y,
            "not known",
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=SMALL,
            color=NOTE,
        )
        return
    low, high = np.percentile(values, _LINE)
    ax.hlines(y, low, high, color=BLUE, linewidth=1)
    low, high = np.percentile(values, _BOX)
    ax.barh(y, high - low, 0.55, left=low, color=PALE, edgecolor=BLUE, linewidth=0.8)
    ax.plot(np.median(values), y, "|", color=BLUE, markersize=11, markeredgewidth=2)
