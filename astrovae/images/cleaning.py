# Licensed under a 3-clause BSD style license - see LICENSE
"""Sky, neighbours and noise of cutouts, all cutouts at once."""

import astropy.units as u
import numpy as np
from astropy.table import QTable
from scipy import ndimage

from astrovae._progress import progress_bar
from astrovae._validation import check_option, check_positive_int
from astrovae.flags import Flag
from astrovae.images.detection import find_segments, inverse_variance

__all__ = ["clean_cutouts", "measure_background"]

# cutouts at a time: their planes stay in the cache
_CHUNK = 128
# sky pixels are clipped at this many standard deviations, this many times
_CLIP_SIGMA, _CLIP_PASSES = 3.0, 5
# scatter of a Gaussian that is clipped so, over that of a whole one
_CLIPPED_SCATTER = 0.98658
# error of the mean of the middle half, over that of the mean (Gaussian)
_MIDMEAN_ERROR = 1.093
# so many normal deviates serve all cutouts
_TAPE_LENGTH = 1 << 20
# fewer sky pixels than this give no background
_MIN_SKY_PIXELS = 16
# how far from the centre a source may be and still be the target, in pixels
_TARGET_RADIUS = 3
# smoothing and deblending of cutouts that come without a segmentation
_KERNEL_SIGMA, _CONTRAST, _MIN_PIXELS = 0.85, 0.005, 8


def clean_cutouts(
    stack,
    *,
    background="local",
    neighbors="mask",
    noise="keep",
    quantization_step=None,
    grow=2,
    n_sigma=2.0,
    seed=0,
    show_progress=False,
):
    """
    Remove what does not belong to the galaxy: sky and neighbours.

    The target, the source at the centre, is kept whole. Which pixels belong
    to which source is taken from ``stack.segmentation`` if there is one
    (better: it saw the whole image), otherwise each cutout is segmented
    and deblended.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        The cutouts; they are not changed.
    background : {"local", None}, optional
        ``"local"`` subtracts the sky of each cutout and band: the
        clipped mean of its pixels without sources. Cutouts with
        fewer than 16 such pixels keep their sky.
    neighbors : {"mask", "fill", None}, optional
        ``"mask"`` masks the pixels of other sources, so that likelihoods
        ignore them (preferred). ``"fill"`` replaces them with sky and
        noise, for methods that cannot ignore pixels; such noise is not
        correlated between pixels. `None` leaves them.
    noise : {"keep", "estimate"}, optional
        ``"estimate"`` makes the error plane from the scatter of the sky
        pixels of each cutout and band. It lacks the galaxy's own photon
        noise.
    quantization_step : float, optional
        Step between the values that a pixel can have, in the unit of the
        data, e.g. 1 for 8-bit pictures. Adds its rounding variance,
        ``step**2 / 12``, to that of the error plane.
    grow : int, optional
        Neighbours are widened by this many pixels, but never into the
        target. Sky is measured as far away from all sources.
    n_sigma : float, optional
        Threshold for cutouts that come without a segmentation, on the
        smoothed sum of bands.
    seed : int, optional
        Seed of the noise of ``"fill"``. Noise depends on it and on the
        pixels of the cutout alone, not on the other rows.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        Cleaned cutouts with ``segmentation`` and ``labels``, with this step
        recorded in ``steps``. ``meta["background"]`` has the median level,
        and its median uncertainty, per band; `measure_background` gives
        them for each cutout. Rows without valid pixels are as they were.

    Raises
    ------
    ValueError
        If an option is unknown or a number is out of range.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import clean_cutouts
    >>> truth, stack = make_galaxies(4, seed=1)
    >>> clean = clean_cutouts(stack)
    >>> clean.steps[0]["name"]
    'clean_cutouts'
    """
    parameters = {
        "background": check_option("background", background, ("local", None)),
        "neighbors": check_option("neighbors", neighbors, ("mask", "fill", None)),
        "noise": check_option("noise", noise, ("keep", "estimate")),
        "quantization_step": _check_number("quantization_step", quantization_step),
        "grow": check_positive_int("grow", grow, minimum=0),
        "n_sigma": _check_number("n_sigma", n_sigma),
        "seed": check_positive_int("seed", seed, minimum=0),
    }
    n = len(stack)
    out = {
        "data": np.empty(stack.data.shape, np.float32),
        "mask": np.empty(stack.data.shape, bool),
        "segmentation": np.empty(stack.data.shape[:3], np.int32),
        "labels": np.zeros(n, np.int32),
        "flags": np.array(stack.flags),
    }
    if noise == "estimate" or stack.error is not None:
        out["error"] = np.empty(stack.data.shape, np.float32)
    skies = []
    tape = _make_tape(int(np.prod(stack.image_shape)), parameters["seed"])
    with progress_bar("Cleaning", n, show=show_progress) as advance:
        for start in range(0, n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, n))
            chunk = _Chunk(stack, rows, parameters)
            chunk.clean(tape)
            for name, values in out.items():
                values[rows] = getattr(chunk, name)
            skies.append(chunk.sky)
            advance(rows.stop - rows.start)
    meta = dict(stack.meta)
    if n and background:
        meta["background"] = {
            name: np.nan_to_num(_nanmedian([sky[name] for sky in skies])).tolist()
            for name in ("level", "level_err")
        }
    step = {"name": "clean_cutouts", "parameters": parameters}
    return stack.replace(steps=(*stack.steps, step), meta=meta, **out)


def measure_background(stack, *, grow=2, n_sigma=2.0, show_progress=False):
    """
    Measure the sky of each cutout.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    grow : int, optional
        Keep this many pixels away from sources.
    n_sigma : float, optional
        Threshold for cutouts that come without a segmentation.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    table : `~astropy.table.QTable`
        One row per cutout, in order: ``id``, ``background`` (the mean of
        the middle half of the pixels that 3-sigma clipping leaves),
        ``background_err`` (its uncertainty if pixels are independent),
        ``background_rms`` (scatter of a pixel), each per band, and
        ``n_pixels``, the number of pixels used. NaN where fewer than 16
        pixels are free of sources.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import measure_background
    >>> truth, stack = make_galaxies(4, seed=1)
    >>> measure_background(stack)["background_rms"].shape
    (4,)
    """
    parameters = {
        "grow": check_positive_int("grow", grow, minimum=0),
        "n_sigma": _check_number("n_sigma", n_sigma),
    }
    n, n_bands = len(stack), stack.data.shape[-1]
    columns = {
        name: np.full((n, n_bands), np.nan) for name in ("level", "level_err", "rms")
    }
    columns["n_pixels"] = np.zeros((n, n_bands), int)
    with progress_bar("Measuring", n, show=show_progress) as advance:
        for start in range(0, n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, n))
            chunk = _Chunk(stack, rows, parameters)
            chunk.measure_sky()
            for name, values in columns.items():
                values[rows] = chunk.sky[name]
            advance(rows.stop - rows.start)
    unit = stack.unit or u.dimensionless_unscaled
    table = QTable({"id": stack.ids})
    for name, key, description in (
        ("background", "level", "clipped mean of the sky pixels"),
        ("background_err", "level_err", "1-sigma uncertainty of background"),
        ("background_rms", "rms", "1-sigma scatter of the sky pixels"),
    ):
        values = columns[key][:, 0] if n_bands == 1 else columns[key]
        table[name] = values * unit if stack.unit else values
        table[name].info.description = description
    counts = columns["n_pixels"]
    table["n_pixels"] = counts[:, 0] if n_bands == 1 else counts
    table["n_pixels"].info.description = "number of sky pixels"
    return table


def _check_number(name, value):
    if value is None and name == "quantization_step":
        return None
    if not (np.isfinite(value) and value > 0):
        msg = f"{name} must be a positive number, got {name}={value!r}."
        raise ValueError(msg)
    return float(value)


def _nanmedian(arrays):
    """Median over rows, NaN where there is none."""
    values = np.ma.masked_invalid(np.concatenate(arrays))
    return np.ma.median(values, axis=0).filled(np.nan)


class _Chunk:
    """Some rows of a stack, in memory, with their sources and sky."""

    def __init__(self, stack, rows, parameters):
        self.parameters = parameters
        self.data = np.array(stack.data[rows], dtype=np.float32)
        self.mask = np.array(stack.mask[rows], dtype=bool)
        self.error = None
        if stack.error is not None:
            self.error = np.array(stack.error[rows], dtype=np.float32)
        self.flags = np.array(stack.flags[rows])
        self.valid = ~self.mask.all(axis=(1, 2, 3))
        if stack.segmentation is None:
            self.segmentation, self.labels = _segment(
                self.data, self.mask, parameters["n_sigma"]
            )
        else:
            self.segmentation = np.asarray(stack.segmentation[rows])
            self.labels = np.asarray(stack.labels[rows])
        self.sources = self.segmentation > 0

    def measure_sky(self):
        """Measure the sky away from all sources."""
        near = dilate(self.sources, self.parameters["grow"])
        usable = ~(self.mask | near[..., np.newaxis])
        self.sky = _measure_sky(self.data, usable)

    def clean(self, tape):
        """Subtract the sky, deal with neighbours, set the noise."""
        options = self.parameters
        needed = options["background"], options["neighbors"], options["noise"]
        if needed[0] is None and needed[1] != "fill" and needed[2] == "keep":
            nothing = np.full((len(self.data), self.data.shape[-1]), np.nan)
            self.sky = dict.fromkeys(("level", "level_err", "rms"), nothing)
        else:
            self.measure_sky()
        level, rms = (
            np.nan_to_num(self.sky[name]).astype(np.float32)[:, np.newaxis, np.newaxis]
            for name in ("level", "rms")
        )
        if options["neighbors"] == "fill":
            offsets = _noise_offsets(self.data)
        if options["background"]:
            self.data -= level
            level = np.zeros_like(level)
        if options["neighbors"]:
            others = self._neighbors()
            if options["neighbors"] == "mask":
                self.mask |= others[..., np.newaxis]
            else:
                noise = np.lib.stride_tricks.sliding_window_view(
                    tape, self.data[0].size
                )[offsets]
                noise = level + rms * noise.reshape(self.data.shape)
                fill = others[..., np.newaxis] & ~self.mask
                np.copyto(self.data, noise, where=fill, casting="same_kind")
            touched = others.any(axis=(1, 2)) & self.valid
            self.flags |= np.where(touched, Flag.NEIGHBOR, 0).astype(np.int32)
            lost = (self.labels == 0) & self.valid
            self.flags |= np.where(lost, Flag.NO_SOURCE, 0).astype(np.int32)
        step = options["quantization_step"] or 0.0
        if options["noise"] == "estimate":
            error = np.sqrt(rms**2 + step**2 / 12)
            self.error = np.broadcast_to(error, self.data.shape).astype(np.float32)
        elif self.error is not None and step:
            self.error = np.hypot(self.error, np.float32(step / np.sqrt(12)))

    def _neighbors(self):
        """Pixels of other sources, widened, but not into the target."""
        target = self.segmentation == self.labels[:, np.newaxis, np.newaxis]
        target &= self.sources
        others = dilate(self.sources & ~target, self.parameters["grow"])
        return others & ~target & self.valid[:, np.newaxis, np.newaxis]


def dilate(mask, radius):
    """
    Widen a mask by a disc.

    A disc is a pile of horizontal lines: widening along x once for each
    width, and shifting in y, is far faster than a general footprint.

    Parameters
    ----------
    mask : `~numpy.ndarray` of bool, shape (n, ny, nx)
        The mask of each cutout.
    radius : int
        Radius of the disc in pixels.

    Returns
    -------
    mask : `~numpy.ndarray` of bool, shape (n, ny, nx)
        A new mask.
    """
    out = mask.copy()
    wide = mask.copy()
    width = 0
    # from the poles of the disc to its equator lines get wider
    for dy in range(radius, -1, -1):
        target = int(np.sqrt((radius + 0.5) ** 2 - dy**2))
        while width < target:
            width += 1
            wide[:, :, width:] |= mask[:, :, :-width]
            wide[:, :, :-width] |= mask[:, :, width:]
        out[:, dy:] |= wide[:, : wide.shape[1] - dy]
        out[:, : wide.shape[1] - dy] |= wide[:, dy:]
    return out


def _measure_sky(data, usable):
    """
    Level and scatter of the usable pixels, clipped of what stands out.

    Pixels are sorted once; then what clipping keeps is a range of them, its
    quantiles are elements, and its means are sums over a range.

    Returns
    -------
    sky : dict of `~numpy.ndarray`, shape (n, n_bands)
        ``level``, ``level_err``, ``rms`` and ``n_pixels``.
    """
    n, ny, nx, n_bands = data.shape
    values = np.where(usable, data, np.float32(np.inf))
    values = np.moveaxis(values, -1, 1).reshape(n * n_bands, ny * nx)
    values = np.sort(values, axis=1)
    last = np.moveaxis(usable, -1, 1).reshape(len(values), -1).view(np.uint8)
    # several times faster than the sum of a bool array
    last = last.sum(axis=1, dtype=np.uint32).astype(np.intp)
    first = np.zeros_like(last)
    enough = last >= _MIN_SKY_PIXELS
    for _ in range(_CLIP_PASSES):
        low, middle, high = (
            _quantile(values, first, last, q) for q in (0.158655, 0.5, 0.841345)
        )
        reach = _CLIP_SIGMA * (high - low) / 2
        before = first, last
        beyond = np.nextafter(middle + reach, np.inf)
        limits = np.stack([middle - reach, beyond])
        low, high = _count_below(values, limits)
        first, last = np.maximum(first, low), np.minimum(last, high)
        if np.array_equal(before, (first, last)):
            break
    count = last - first
    quarter = count // 4
    # the mean of the middle half: as robust as the median to what clipping
    # leaves, but it does not stick to the steps of quantised pixels
    level = _range_mean(values, first + quarter, last - quarter)
    values -= level.astype(np.float32)[:, np.newaxis]
    rms = np.sqrt(_range_mean(np.square(values, out=values), first, last))
    rms /= _CLIPPED_SCATTER
    sky = {
        "level": np.where(enough, level, np.nan),
        "level_err": np.where(
            enough, rms * _MIDMEAN_ERROR / np.sqrt(np.maximum(count, 1)), np.nan
        ),
        "rms": np.where(enough, rms, np.nan),
        "n_pixels": np.where(enough, count, 0),
    }
    return {name: array.reshape(n, n_bands) for name, array in sky.items()}


def _range_mean(values, first, last):
    """Mean of the elements first ... last-1 of rows, in float64; 0 of none."""
    starts = np.arange(len(values)) * values.shape[1]
    # reduceat needs an element per range, and one beyond the last range
    flat = np.append(values.ravel(), np.float32(0))
    bounds = np.stack([starts + first, starts + last], axis=1).ravel()
    sums = np.add.reduceat(flat, bounds, dtype=float)[::2]
    return np.where(last > first, sums, 0) / np.maximum(last - first, 1)


def _quantile(values, first, last, q):
    """Quantile of the elements first ... last-1 of sorted rows."""
    position = first + q * np.maximum(last - first - 1, 0)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, np.maximum(last - 1, low))
    rows = np.arange(len(values))
    low = np.minimum(low, values.shape[1] - 1)
    high = np.minimum(high, values.shape[1] - 1)
    a, b = values[rows, low].astype(float), values[rows, high].astype(float)
    a, b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
    return a + (position - low) * (b - a)


def _count_below(values, limits):
    """
    How many elements of sorted rows are below each limit: bisection.

    Parameters
    ----------
    values : `~numpy.ndarray`, shape (n, n_values)
        Each row in increasing order.
    limits : `~numpy.ndarray`, shape (m, n)
        Limits for each row.

    Returns
    -------
    counts : `~numpy.ndarray` of int, shape (m, n)
        For each limit.
    """
    rows = np.arange(len(values))
    counts = np.zeros(limits.shape, np.intp)
    step = 1 << int(values.shape[1]).bit_length()
    while step := step // 2:
        last = counts + (step - 1)
        exists = last < values.shape[1]
        below = values[rows, np.where(exists, last, 0)] < limits
        counts += np.where(exists & below, step, 0)
    return counts


def _noise_offsets(data):
    """
    Where on the tape of noise each cutout starts: a checksum of its pixels.

    So that its noise depends neither on its row nor on the other rows.
    """
    words = np.ascontiguousarray(data).reshape(len(data), -1).view(np.uint32)
    weights = np.arange(words.shape[1], dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return (words * weights).sum(axis=1, dtype=np.uint32) % np.uint32(_TAPE_LENGTH)


def _make_tape(n_pixels, seed):
    """Normal deviates that all cutouts read from, each from its own place."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(_TAPE_LENGTH + n_pixels, dtype=np.float32)


def _segment(data, mask, n_sigma):
    """
    Segment each cutout: one montage, so that photutils is called once.

    Returns
    -------
    segmentation : `~numpy.ndarray` of int, shape (n, ny, nx)
        Source labels.
    labels : `~numpy.ndarray` of int, shape (n,)
        The label at the centre, or of the nearest source within 3 pixels;
        0 if there is none.
    """
    n, ny, nx, _ = data.shape
    snr = _smoothed_snr(data, mask)
    # rows of zeros keep the sources of different cutouts apart
    montage = np.pad(snr, ((0, 0), (0, 1), (0, 0))).reshape(n * (ny + 1), nx)
    segments = find_segments(montage, n_sigma, _MIN_PIXELS, contrast=_CONTRAST)
    if segments is None:
        return np.zeros((n, ny, nx), np.int32), np.zeros(n, np.int32)
    segmentation = segments.data.reshape(n, ny + 1, nx)[:, :ny].astype(np.int32)
    # number the sources of each cutout from 1, whatever the other cutouts hold
    rows = np.broadcast_to(np.arange(n)[:, np.newaxis, np.newaxis], segmentation.shape)
    some = segmentation > 0
    keys = rows[some] * np.int64(segments.max_label + 1) + segmentation[some]
    unique, inverse = np.unique(keys, return_inverse=True)
    owner = unique // (segments.max_label + 1)
    first = np.searchsorted(owner, np.arange(n))
    segmentation[some] = inverse - first[rows[some]] + 1
    return segmentation, _central_labels(segmentation)


def _smoothed_snr(data, mask):
    """The weighted sum of bands, smoothed, over its noise, per cutout."""
    sky = _measure_sky(data, ~mask)
    level = np.nan_to_num(sky["level"])[:, np.newaxis, np.newaxis]
    rms = sky["rms"][:, np.newaxis, np.newaxis]
    weight = np.where(mask, 0, inverse_variance(rms, rms > 0))
    total = (weight * np.where(mask, 0, data - level)).sum(axis=-1)
    total /= np.sqrt(np.maximum(weight.sum(axis=-1), np.finfo(float).tiny))
    total = ndimage.gaussian_filter(total, _KERNEL_SIGMA, axes=(1, 2))
    blank = mask.all(axis=-1)
    total = total.astype(np.float32)[..., np.newaxis]
    sky = _measure_sky(total, ~blank[..., np.newaxis])
    level, rms = (
        np.nan_to_num(sky[name])[:, :, np.newaxis] for name in ("level", "rms")
    )
    snr = (total[..., 0] - level) / np.where(rms > 0, rms, np.inf)
    return np.where(blank, 0, snr)


def _central_labels(segmentation):
    """The label of the pixel with a source that is nearest to the centre."""
    n, ny, nx = segmentation.shape
    y, x = np.indices((ny, nx))
    distance = np.hypot(y - ny // 2, x - nx // 2)
    near = np.argsort(distance, axis=None, kind="stable")
    near = near[distance.ravel()[near] <= _TARGET_RADIUS]
    labels = segmentation.reshape(n, -1)[:, near]
    first = (labels > 0).argmax(axis=1)
    return labels[np.arange(n), first]
