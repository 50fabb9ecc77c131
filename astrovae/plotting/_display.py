# Licensed under a 3-clause BSD style license - see LICENSE
"""From pixels to colours, and from pictures to sheets of pictures."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from astrovae._validation import check_positive_int
from astrovae.flags import Flag

# Wong 2011, Nature Methods 8, 441: told apart with any colour vision
BLUE, ORANGE, SKY = "#0072B2", "#D55E00", "#56B4E9"
PALE, MASKED, NOTE = "#C9D3DE", "#5A5F66", "#59636E"
_STRIPES = np.array([[0.30, 0.32, 0.34], [0.40, 0.42, 0.45]])

WIDTH = 9.0  # of a figure, in inches
DPI = 150
SMALL = 8  # points
_LEFT, _MARGIN, _PAD = 0.45, 0.1, 0.04  # inches

# the sky is darkened up to this percentile, the core is white from this one
_BLACK_PERCENTILE, _WHITE_PERCENTILE = 25, 99.7
# and white is at least so many times the noise, lest noise looks like a galaxy
_WHITE_OVER_NOISE = 20
# below this share of white, the stretch is linear; above, logarithmic
_SOFTENING = 0.1


def choose_rows(stack, indices, n_galaxies, preferred=None):
    """
    Choose rows to show: those asked for, or some that have pixels.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        The galaxies.
    indices : sequence of int or None
        Rows that are asked for.
    n_galaxies : int
        How many to choose, evenly spaced, if none are asked for.
    preferred : array_like of bool, optional
        Rows to choose before others.

    Returns
    -------
    rows : `~numpy.ndarray` of int
        At least one row.

    Raises
    ------
    ValueError
        If rows do not exist, or none has a valid pixel.
    """
    check_positive_int("n_galaxies", n_galaxies)
    usable = (np.asarray(stack.flags) & Flag.NO_VALID_PIXEL) == 0
    if indices is not None:
        rows = np.atleast_1d(np.asarray(indices, dtype=int))
        if ((rows < 0) | (rows >= len(stack))).any():
            msg = f"indices must be within 0 ... {len(stack) - 1}, got {indices!r}."
            raise ValueError(msg)
        rows = rows[usable[rows]]
    else:
        preferred = np.zeros_like(usable) if preferred is None else preferred
        rows = _spread(np.flatnonzero(usable & preferred), n_galaxies)
        others = np.flatnonzero(usable & ~preferred)
        rows = np.sort(np.append(rows, _spread(others, n_galaxies - len(rows))))
    if not len(rows):
        msg = "no galaxy with a valid pixel: there is nothing to show."
        raise ValueError(msg)
    return rows


def _spread(rows, n):
    """Evenly spaced elements, at most n."""
    if len(rows) <= n:
        return rows
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]


def check_rgb(rgb, n_bands):
    """The three bands to show in colour, or none for grey."""
    if rgb is None:
        return (0, 1, 2) if n_bands >= 3 else ()
    rgb = tuple(rgb)
    if len(rgb) != 3 or not set(rgb) <= set(range(n_bands)):
        msg = f"rgb must be three of the bands 0 ... {n_bands - 1}, got rgb={rgb!r}."
        raise ValueError(msg)
    return rgb


def mean_of_bands(image, mask):
    """The mean over the bands that are not masked; NaN where all are."""
    count = (~mask).sum(axis=-1)
    total = np.where(mask, 0, image).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def limits(image, mask):
    """
    Find the black level of each band and the white level of each galaxy.

    Parameters
    ----------
    image, mask : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        Images and their bad pixels.

    Returns
    -------
    black : `~numpy.ndarray`, shape (n, 1, 1, n_bands)
        What is shown as black.
    white : `~numpy.ndarray`, shape (n, 1, 1, 1)
        The mean of bands above black that is shown as white.
    """
    # bands without a pixel count as black
    empty = mask.all(axis=(1, 2), keepdims=True)
    image, mask = np.where(empty, 0, image), mask & ~empty
    pixels = np.where(mask, np.nan, image)
    black = np.nanpercentile(pixels, _BLACK_PERCENTILE, axis=(1, 2), keepdims=True)
    intensity = mean_of_bands(image - black, mask)
    percentiles = (5, _BLACK_PERCENTILE, _WHITE_PERCENTILE)
    lowest, low, high = np.nanpercentile(intensity, percentiles, axis=(1, 2))
    # from the faint quarter of the pixels, which has the least of the galaxy
    noise = (low - lowest) / 0.97
    white = np.maximum(high, _WHITE_OVER_NOISE * noise)
    return black, np.where(white > 0, white, 1.0)[:, None, None, None]


def to_colors(image, mask, levels, rgb):
    """
    Turn images into colours between 0 and 1.

    The stretch is an asinh of the mean of the shown bands, which keeps
    colours (Lupton et al. 2004, PASP 116, 133); masked pixels are striped.

    Parameters
    ----------
    image, mask : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        Images and their bad pixels.
    levels : tuple of array
        Black and white, as given by `limits`.
    rgb : tuple of int
        Three bands, or none for grey.

    Returns
    -------
    colors : `~numpy.ndarray`, shape (n, ny, nx, 3)
        Red, green and blue.
    """
    black, white = levels
    pixels = (image - black) / white
    if rgb:
        shown = np.where(mask, 0, pixels)[..., list(rgb)]
    else:
        shown = np.nan_to_num(mean_of_bands(pixels, mask))[..., None]
    intensity = np.clip(shown.mean(axis=-1, keepdims=True), 1e-6, None)
    stretched = np.arcsinh(intensity / _SOFTENING) / np.arcsinh(1 / _SOFTENING)
    colors = np.clip(shown / intensity, 0, None) * stretched
    colors = colors / np.maximum(colors.max(axis=-1, keepdims=True), 1)
    return stripe(np.broadcast_to(colors, (*mask.shape[:3], 3)), mask.all(axis=-1))


def stripe(colors, mask):
    """Paint masked pixels with diagonal stripes."""
    y, x = np.indices(mask.shape[-2:])
    return np.where(mask[..., None], _STRIPES[((x + y) // 2) % 2], colors)


def sheet(tiles, cells, shape, gap):
    """
    Put pictures into the cells of one large, transparent picture.

    Parameters
    ----------
    tiles : `~numpy.ndarray`, shape (n, ny, nx, 3)
        The pictures.
    cells : array_like of int, shape (n,)
        Where: row times the number of columns, plus column; row 0 is the
        lowest.
    shape : (int, int)
        Number of rows and columns.
    gap : float
        Space to the edge of the cell, as a share of the width of a tile.

    Returns
    -------
    picture : `~numpy.ndarray`
        Red, green, blue and opacity.
    """
    _, ny, nx, _ = tiles.shape
    gap = max(1, round(gap * nx))
    canvas = np.zeros((shape[0], ny + 2 * gap, shape[1], nx + 2 * gap, 4))
    row, column = np.divmod(cells, shape[1])
    canvas[row, gap:-gap, column, gap:-gap, :3] = tiles
    canvas[row, gap:-gap, column, gap:-gap, 3] = 1
    return canvas.reshape(shape[0] * (ny + 2 * gap), shape[1] * (nx + 2 * gap), 4)


def headed_figure(width, height, title, note=""):
    """
    Make a figure with a title, and the height that is left for axes.

    Parameters
    ----------
    width, height : float
        Size in inches, without the title.
    title, note : str
        Title, and a smaller line below it.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        The figure, higher by the title.
    """
    head = 0.55 if note else 0.36
    figure = Figure(figsize=(width, height + head), dpi=DPI)
    top = 1 - 0.08 / (height + head)
    left = _MARGIN / width
    figure.text(left, top, title, va="top", fontsize=12, fontweight="bold")
    if note:
        top -= 0.24 / (height + head)
        figure.text(left, top, note, va="top", fontsize=SMALL, color=NOTE)
    return figure


def add_axes(figure, left, bottom, width, height):
    """Axes at a place of a figure, in inches."""
    x, y = figure.get_size_inches()
    return figure.add_axes((left / x, bottom / y, width / x, height / y))


def image_grid(images, row_labels, captions, *, title, note="", scales=None):
    """
    Make a figure with a row for each kind of picture, a column per galaxy.

    Parameters
    ----------
    images : sequence of `~numpy.ndarray`, each (n, ny, nx) or (n, ny, nx, 3)
        The pictures of each row.
    row_labels : sequence of str
        What they are.
    captions : sequence of str
        What is written below each column.
    title, note : str
        As for `headed_figure`.
    scales : dict of tuple, optional
        By row: norm, colour map and label of the colour bar.

    Returns
    -------
    figure : `~matplotlib.figure.Figure`
        The figure.
    axes : `~numpy.ndarray` of `~matplotlib.axes.Axes`, shape (rows, n)
        The axes of the pictures.
    """
    scales = scales or {}
    n_rows, n = len(images), len(captions)
    bar_width = 0.8 if scales else 0.0
    size = (WIDTH - _LEFT - _MARGIN - bar_width) / n - _PAD
    # of many, the figure becomes wider, so that names and scales have room
    size = min(max(size, 0.9), 1.8)
    height = size * images[0].shape[1] / images[0].shape[2]
    bottom = 0.14 + 0.15 * (1 + captions[0].count("\n"))
    # one or two galaxies still leave room for the title
    width = max(_LEFT + n * (size + _PAD) + bar_width + _MARGIN, 0.6 * WIDTH)
    figure = headed_figure(width, bottom + n_rows * (height + _PAD), title, note)
    axes = np.empty((n_rows, n), dtype=object)
    for row, pictures in enumerate(images):
        y = bottom + (n_rows - 1 - row) * (height + _PAD)
        norm, cmap, label = scales.get(row, (None, None, None))
        for column, picture in enumerate(pictures):
            ax = add_axes(figure, _LEFT + column * (size + _PAD), y, size, height)
            shown = ax.imshow(picture, origin="lower", norm=norm, cmap=cmap)
            ax.set(xticks=[], yticks=[], aspect="auto", facecolor=MASKED)
            ax.spines[:].set_visible(False)
            axes[row, column] = ax
        axes[row, 0].set_ylabel(row_labels[row], fontsize=9)
        if row in scales:
            x = _LEFT + n * (size + _PAD) + 0.04
            cax = add_axes(figure, x, y, 0.12, height)
            style = {}
            if isinstance(norm, LogNorm):
                style = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "%g"}
            bar = figure.colorbar(shown, cax, label=label, extend="both", **style)
            bar.minorticks_off()
            cax.tick_params(labelsize=SMALL)
    longest = max(len(line) for text in captions for line in text.splitlines())
    for ax, caption in zip(axes[-1], captions):
        # 64-bit identifiers are 18 digits long
        ax.set_xlabel(caption, fontsize=min(SMALL, 110 * size / longest))
    return figure, axes


def tidy(ax):
    """Leave away the frame where there is no scale."""
    ax.spines[["top", "right"]].set_visible(False)


def add_legend(ax, **kwargs):
    """Say what the marks are, where they leave room."""
    # unless asked for it, matplotlib warns when its search for room takes a second
    ax.legend(loc="best", frameon=False, **kwargs)
