# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures made of galaxies: cutouts, reconstructions, traversals."""

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from astrovae._validation import check_positive_int
from astrovae.flags import Flag
from astrovae.plotting._display import (
    SKY,
    WIDTH,
    add_axes,
    check_rgb,
    choose_rows,
    headed_figure,
    image_grid,
    limits,
    mean_of_bands,
    sheet,
    stripe,
    to_colors,
)

__all__ = ["plot_cutouts", "plot_reconstructions", "plot_traversals"]

_NEIGHBOR = np.array([0.835, 0.369, 0.0])
# residuals beyond so many sigma are all shown alike
_MAX_RESIDUAL = 5


def plot_cutouts(before, after, *, indices=None, n_galaxies=8, rgb=None):
    """
    Show what cleaning did to some cutouts.

    Parameters
    ----------
    before, after : `~astrovae.images.CutoutStack`
        The same galaxies before and after
        `~astrovae.images.clean_cutouts`.
    indices : sequence of int, optional
        Which galaxies; those without a valid pixel are left out. By default
        evenly spaced ones, those with neighbours before others.
    n_galaxies : int, optional
        How many to show if ``indices`` is not given.
    rgb : (int, int, int), optional
        The bands that are shown as red, green and blue; by default the first
        three. Fewer bands are shown in grey.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A column for each galaxy: the cutout, its target (outlined) and
        neighbours (tinted), and the cleaned cutout. Masked pixels are
        striped.

    Raises
    ------
    ValueError
        If the stacks do not correspond, or no galaxy can be shown.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import clean_cutouts
    >>> from astrovae.plotting import plot_cutouts
    >>> truth, stack = make_galaxies(8, seed=1)
    >>> figure = plot_cutouts(stack, clean_cutouts(stack), n_galaxies=4)
    """
    if len(before) != len(after) or before.image_shape != after.image_shape:
        msg = f"before and after are not the same galaxies: {before!r}, {after!r}."
        raise ValueError(msg)
    rgb = check_rgb(rgb, after.image_shape[-1])
    crowded = (np.asarray(after.flags) & Flag.NEIGHBOR) != 0
    rows = choose_rows(after, indices, n_galaxies, preferred=crowded)
    raw, clean = (
        (batch["image"], batch["mask"])
        for batch in (before.batch(rows), after.batch(rows))
    )
    black, white = limits(*clean)
    # the sky is still there before cleaning, and neighbours are not the scale
    raw_levels = limits(*raw)[0], white
    target, neighbors = _sources(before if after.segmentation is None else after, rows)
    middle = to_colors(*raw, raw_levels, ())
    middle = np.where(neighbors[..., None], 0.45 * middle + 0.55 * _NEIGHBOR, middle)
    middle = stripe(middle, clean[1].all(axis=-1) & ~neighbors)
    figure, axes = image_grid(
        (
            to_colors(*raw, raw_levels, rgb),
            middle,
            to_colors(*clean, (black, white), rgb),
        ),
        ("before", "target and\nneighbours", "after"),
        [f"id {name}" for name in after.ids[rows]],
        title="Cutouts before and after cleaning",
        note="Outlined: the target. Tinted: its neighbours. Striped: masked pixels.",
    )
    for ax, pixels in zip(axes[1], target):
        if pixels.any() and not pixels.all():
            ax.contour(pixels, levels=[0.5], colors=SKY, linewidths=1.2)
    return figure


def _sources(stack, rows):
    """Pixels of the target, and of all other sources."""
    if stack.segmentation is None:
        nothing = np.zeros((len(rows), *stack.image_shape[:2]), dtype=bool)
        return nothing, nothing
    segmentation = np.asarray(stack.segmentation[rows])
    is_target = segmentation == np.asarray(stack.labels)[rows][:, None, None]
    return is_target & (segmentation > 0), ~is_target & (segmentation > 0)


def plot_reconstructions(
    stack, model, *, indices=None, n_galaxies=6, rgb=None, band=None
):
    """
    Compare some galaxies with their reconstructions.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        The galaxies, prepared as the model expects them.
    model : object
        Anything with ``reconstruct(stack) -> {"mean", "log_var"}``, e.g.
        `~astrovae.models.VAE`.
    indices : sequence of int, optional
        Which galaxies; those without a valid pixel are left out. By default
        evenly spaced ones.
    n_galaxies : int, optional
        How many to show if ``indices`` is not given.
    rgb : (int, int, int), optional
        As for `plot_cutouts`.
    band : int, optional
        The band of residual and sigma; by default the mean of all bands.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A column for each galaxy: image and reconstruction in the same
        stretch, the residual in units of the predicted sigma, and the
        predicted sigma: learned variance and known error together. Below are
        the identifier and the mean over pixels (and bands) of the squared
        residual in units of sigma.

    Raises
    ------
    ValueError
        If no galaxy can be shown, or there is no such band.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_reconstructions
    >>> truth, stack = make_galaxies(8, shape=(16, 16), seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> figure = plot_reconstructions(stack, vae, n_galaxies=4)
    """
    n_bands = stack.image_shape[-1]
    rgb = check_rgb(rgb, n_bands)
    if band is not None and band not in range(n_bands):
        msg = f"band must be one of 0 ... {n_bands - 1}, got band={band!r}."
        raise ValueError(msg)
    rows = choose_rows(stack, indices, n_galaxies)
    batch = stack.batch(rows)
    image, mask = batch["image"], batch["mask"]
    painted = model.reconstruct(stack[rows])
    mean = np.asarray(painted["mean"])
    sigma = np.exp(0.5 * np.asarray(painted["log_var"], dtype=float))
    if "error" in batch:
        sigma = np.hypot(sigma, np.where(mask, 0, batch["error"]))
    of_what = slice(None) if band is None else slice(band, band + 1)
    ratio = ((image - mean) / sigma)[..., of_what]
    bad = mask[..., of_what]
    levels = limits(image, mask)
    note = "Image and reconstruction have the same stretch."
    if n_bands > 1:
        name = "means of the bands" if band is None else f"those of {stack.bands[band]}"
        note += f" Residual and σ are {name}."
    spread = mean_of_bands(sigma[..., of_what], bad)
    unit = "pixel value" if stack.unit is None else f"{stack.unit:unicode}"
    figure, _ = image_grid(
        (
            to_colors(image, mask, levels, rgb),
            to_colors(mean, np.zeros_like(mask), levels, rgb),
            mean_of_bands(ratio, bad),
            spread,
        ),
        ("image", "reconstruction", "residual", "predicted σ"),
        [
            f"id {name}\nχ² per pixel {np.mean(r[~b] ** 2):.2f}"
            for name, r, b in zip(stack.ids[rows], ratio, bad)
        ],
        title="Galaxies and their reconstructions",
        note=f"{note} Striped or grey: masked pixels.",
        scales={
            2: (Normalize(-_MAX_RESIDUAL, _MAX_RESIDUAL), "RdBu_r", "residual / σ"),
            3: (_norm_of_sigma(spread), "viridis", f"σ [{unit}]"),
        },
    )
    return figure


def _norm_of_sigma(sigma):
    """Logarithmic if sigma spans a factor of more than five."""
    low, high = np.nanpercentile(sigma, [0.5, 99.5])
    return LogNorm(low, high) if high > 5 * low > 0 else Normalize(low, high)


def plot_traversals(
    model, latent_mean=None, *, n_sigma=3.0, n_steps=7, max_latents=12, rgb=None
):
    """
    Show what each latent does to a galaxy.

    Parameters
    ----------
    model : object
        Anything with ``decode(z) -> {"mean"}`` and ``latent_dim``, e.g.
        `~astrovae.models.VAE`.
    latent_mean : array_like, shape (n, latent_dim) or (latent_dim,), optional
        Latent means of a catalogue: their mean is the galaxy in the middle,
        their standard deviation is sigma, and masked rows are left out. A
        single row is the galaxy in the middle. Without a catalogue the
        middle is 0 and sigma is 1, as in a standard normal prior.
    n_sigma : float, optional
        How far to go to either side, in units of sigma.
    n_steps : int, optional
        Number of pictures per latent.
    max_latents : int, optional
        Show at most this many, the most active ones.
    rgb : (int, int, int), optional
        As for `plot_cutouts`.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        A row per latent, ordered by how much it changes the picture; all in
        the same stretch.

    Raises
    ------
    ValueError
        If ``latent_mean`` does not fit the model.

    Examples
    --------
    >>> from astrovae.models import VAE
    >>> from astrovae.plotting import plot_traversals
    >>> figure = plot_traversals(VAE((16, 16, 1), latent_dim=2))
    """
    check_positive_int("n_steps", n_steps, minimum=2)
    check_positive_int("max_latents", max_latents)
    dim = model.latent_dim
    center, sigma = _center_and_sigma(latent_mean, dim)
    steps = np.linspace(-n_sigma, n_sigma, n_steps)
    z = center + steps[:, None] * (np.eye(dim) * sigma)[:, None]
    images = np.asarray(model.decode(z.reshape(-1, dim))["mean"])
    ny, nx, n_bands = images.shape[1:]
    paths = images.reshape(dim, n_steps, -1)
    activity = np.sqrt(paths.var(axis=1).mean(axis=1))
    order = np.argsort(-activity, kind="stable")[:max_latents]
    images = paths[order].reshape(-1, ny, nx, n_bands)
    # one stretch for all: that of all pictures below each other
    column = images.reshape(1, -1, nx, n_bands)
    levels = limits(column, np.zeros(column.shape, dtype=bool))
    nothing = np.zeros(images.shape, dtype=bool)
    tiles = to_colors(images, nothing, levels, check_rgb(rgb, n_bands))
    n_rows = len(order)
    left, bottom = 0.8, 0.35
    width = WIDTH - left - 0.1
    height = width * n_rows / n_steps * ny / nx
    figure = headed_figure(
        WIDTH,
        height + bottom,
        "What each latent does to a galaxy",
        "One latent is changed at a time, the most active one in the top row.",
    )
    ax = add_axes(figure, left, bottom, width, height)
    # row 0 of a sheet is the lowest
    cells = np.arange(n_rows * n_steps).reshape(n_rows, n_steps)[::-1].ravel()
    picture = sheet(tiles, cells, (n_rows, n_steps), gap=0.02)
    ax.imshow(picture, origin="lower", extent=(0, n_steps, 0, n_rows), aspect="auto")
    ax.set_xticks(np.arange(n_steps) + 0.5, [_in_sigma(step) for step in steps])
    ax.set_yticks(
        n_rows - 0.5 - np.arange(n_rows),
        [f"latent {i}\nσ = {sigma[i]:.2f}" for i in order],
    )
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    return figure


def _in_sigma(step):
    """A step as people write it."""
    return f"{step:+.3g} σ".replace("-", "−") if abs(step) > 1e-9 else "centre"


def _center_and_sigma(latent_mean, dim):
    """Where traversals start, and how far one sigma is."""
    if latent_mean is None:
        return np.zeros(dim), np.ones(dim)
    means = np.ma.filled(np.ma.asarray(latent_mean, dtype=float), np.nan)
    if means.ndim not in (1, 2) or means.shape[-1] != dim:
        msg = f"latent_mean must have the shape (n, {dim}), got {means.shape}."
        raise ValueError(msg)
    rows = np.atleast_2d(means)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        msg = "no row of latent_mean is finite: there is no galaxy to start from."
        raise ValueError(msg)
    sigma = rows.std(axis=0) if len(rows) > 1 else np.ones(dim)
    return rows.mean(axis=0), sigma
