# Licensed under a 3-clause BSD style license - see LICENSE
"""Sky, neighbours and noise of cutouts, all cutouts at once."""

import astropy.units as u
import numpy as np
from astropy.table import QTable

from astrovae._progress import progress_bar
from astrovae._validation import check_option, check_positive_int
from astrovae.flags import Flag
from astrovae.images._artifacts import find_cosmic_rays, find_saturated
from astrovae.images._checks import CheckedPixels
from astrovae.images._neighbors import (
    dilate,
    fill,
    inpaint,
    make_tape,
    noise_offsets,
)
from astrovae.images._segment import segment_cutouts
from astrovae.images._sky import combine_skies, measure_sky
from astrovae.images._targets import MIN_SNR, excess_variance, measure_targets

__all__ = ["clean_cutouts", "measure_background"]

# cutouts at a time: their planes stay in the cache
_CHUNK = 256
# what can be done with sky and neighbours
_BACKGROUNDS = ("local", "global", None)
_NEIGHBORS = ("mask", "fill", "inpaint", None)
# sources are larger than the PSF if their variance exceeds its by this share of it,
# and by so many times the uncertainty of the excess
_MIN_EXCESS, _EXCESS_SIGMA = 0.15, 3.0


def clean_cutouts(
    stack,
    *,
    background="local",
    neighbors="mask",
    noise="keep",
    quantization_step=None,
    saturation=None,
    cosmic_rays=False,
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
    background : {"local", "global", None}, optional
        ``"local"`` subtracts the sky of each cutout and band: the
        clipped mean of its pixels without sources. Cutouts with
        fewer than 16 such pixels keep their sky. ``"global"`` subtracts one
        level per band, the mean of those of all cutouts, or of all from
        the same tile: better where galaxies fill their cutouts and the image
        has a constant sky. It depends on which cutouts are cleaned together.
    neighbors : {"mask", "fill", "inpaint", None}, optional
        ``"mask"`` masks the pixels of other sources, so that likelihoods
        ignore them (preferred). ``"fill"`` replaces them with sky and
        noise, for methods that cannot ignore pixels; such noise is not
        correlated between pixels. ``"inpaint"`` continues what is around them
        smoothly, for the eye: biharmonic functions, slow, without noise.
        `None` leaves them.
    noise : {"keep", "estimate"}, optional
        ``"estimate"`` makes the error plane from the scatter of the sky
        pixels of each cutout and band. It lacks the galaxy's own photon
        noise.
    quantization_step : float, optional
        Step between the values that a pixel can have, in the unit of the
        data, e.g. 1 for 8-bit pictures. Adds its rounding variance,
        ``step**2 / 12``, to that of the error plane.
    saturation : float or sequence of float, optional
        Pixels that are not below this level, of all bands or one for each,
        are masked with those beside them. In the unit of the data, sky
        included.
    cosmic_rays : bool, optional
        Find and mask what is sharper than a star can be. Needs a PSF of at
        least 2 pixels (FWHM).
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
        and its median uncertainty, per band. Rows without valid pixels are as
        they were.

        If the sky is subtracted, ``columns`` have ``background``,
        ``background_err`` and ``background_rms`` of shape (n, n_bands), and of
        each target inside its isophote ``snr``, ``center_distance`` (from the
        position that was cut around to the centroid, in pixels),
        ``neighbor_fraction``, the light of all neighbours over its own, and
        ``neighbor_overlap``, what of that lies inside its isophote if neighbours
        that touch it are symmetric. Flags
        are ``NEIGHBOR``, ``CROWDED`` (a fraction above 1), ``NO_SOURCE``,
        ``NO_BACKGROUND``, ``LOW_SNR`` (below 5), ``OFF_CENTER`` (more than 3
        pixels), ``NOT_LARGER_THAN_PSF`` if the stack has PSFs, ``SATURATED``
        and ``COSMIC_RAY``.

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
        "background": check_option("background", background, _BACKGROUNDS),
        "neighbors": check_option("neighbors", neighbors, _NEIGHBORS),
        "noise": check_option("noise", noise, ("keep", "estimate")),
        "quantization_step": _check_number("quantization_step", quantization_step),
        "saturation": _check_saturation(saturation, stack.data.shape[-1]),
        "cosmic_rays": bool(cosmic_rays),
        "grow": check_positive_int("grow", grow, minimum=0),
        "n_sigma": _check_number("n_sigma", n_sigma),
        "seed": check_positive_int("seed", seed, minimum=0),
    }
    n = len(stack)
    out = _room(stack, parameters)
    tape = None
    if neighbors == "fill":
        tape = make_tape(int(np.prod(stack.image_shape)), parameters["seed"])
    total = 2 * n if background == "global" else n
    with progress_bar("Cleaning", total, show=show_progress) as advance:
        shared = None
        if background == "global":
            shared = _shared_sky(stack, parameters, advance)

        def clean(rows):
            room = {name: values[rows] for name, values in out.items()}
            chunk = _Chunk(stack, rows, parameters, room)
            if shared is not None:
                chunk.shared = {name: sky[rows] for name, sky in shared.items()}
            chunk.clean(tape)
            for name, values in room.items():
                made = getattr(chunk, name)
                if made is not values:
                    values[...] = made
            return chunk.sky, chunk.columns

        skies, columns = [], []
        for rows, made in _in_chunks(clean, stack):
            skies.append(made[0])
            columns.append(made[1])
            advance(rows.stop - rows.start)
    columns = {
        name: np.concatenate([some[name] for some in columns])
        for name in (columns[0] if columns else ())
    }
    meta = dict(stack.meta)
    if n and background:
        meta["background"] = {
            name: np.nan_to_num(_nanmedian([sky[name] for sky in skies])).tolist()
            for name in ("level", "level_err")
        }
    step = {"name": "clean_cutouts", "parameters": parameters}
    return stack.replace(
        data=CheckedPixels(out.pop("data", stack.data), out.pop("mask", stack.mask)),
        mask=None,
        steps=(*stack.steps, step),
        meta=meta,
        columns=stack.columns | columns,
        **out,
    )


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
    n_bands = stack.data.shape[-1]
    with progress_bar("Measuring", len(stack), show=show_progress) as advance:
        columns = _local_skies(stack, parameters, advance)
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


def _local_skies(stack, parameters, advance):
    """The sky of each cutout, as `measure_sky` gives it."""
    n, n_bands = len(stack), stack.data.shape[-1]
    skies = {
        name: np.full((n, n_bands), np.nan) for name in ("level", "level_err", "rms")
    }
    skies["n_pixels"] = np.zeros((n, n_bands), int)

    def measure(rows):
        chunk = _Chunk(stack, rows, parameters)
        chunk.find_sky()
        return chunk.sky

    for rows, sky in _in_chunks(measure, stack):
        for name, values in skies.items():
            values[rows] = sky[name]
        advance(rows.stop - rows.start)
    return skies


def _in_chunks(function, stack):
    """Yield the rows of each chunk, and what the function makes of them, in order."""
    n = len(stack)
    pieces = [slice(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
    yield from zip(pieces, map(function, pieces), strict=True)


def _shared_sky(stack, parameters, advance):
    """One sky for all cutouts, or for those of each tile, in every row."""
    skies = _local_skies(stack, parameters, advance)
    tiles = stack.columns.get("tile", np.zeros(len(stack), int))
    shared = {
        name: np.full_like(skies[name], np.nan)
        for name in ("level", "level_err", "rms")
    }
    for tile in np.unique(tiles):
        rows = tiles == tile
        one = combine_skies({name: values[rows] for name, values in skies.items()})
        for name, values in shared.items():
            values[rows] = one[name]
    return shared


def _check_number(name, value):
    if value is None and name == "quantization_step":
        return None
    if not (np.isfinite(value) and value > 0):
        msg = f"{name} must be a positive number, got {name}={value!r}."
        raise ValueError(msg)
    return float(value)


def _check_saturation(level, n_bands):
    """The level of each band as a list, or None."""
    if level is None:
        return None
    levels = np.asarray(level, dtype=float)
    if levels.shape not in ((), (n_bands,)) or not np.isfinite(levels).all():
        msg = (
            f"saturation must be one number, or one for each of {n_bands} bands, "
            f"got saturation={level!r}."
        )
        raise ValueError(msg)
    return np.broadcast_to(levels, (n_bands,)).tolist()


def _nanmedian(arrays):
    """Median over rows, NaN where there is none."""
    values = np.ma.masked_invalid(np.concatenate(arrays))
    return np.ma.median(values, axis=0).filled(np.nan)


class _Chunk:
    """Some rows of a stack, in memory, with their sources and sky."""

    def __init__(self, stack, rows, parameters, room=None):
        self.parameters, room = parameters, room or {}
        for name in ("data", "mask", "error"):
            plane = getattr(stack, name)
            if plane is not None and name in room:
                # work where the results belong
                room[name][...] = plane[rows]
                plane = room[name]
            elif plane is not None:
                dtype = bool if name == "mask" else np.float32
                plane = np.asarray(plane[rows], dtype=dtype)
            setattr(self, name, plane)
        self.flags = np.array(stack.flags[rows])
        self.valid = ~self.mask.all(axis=(1, 2, 3))
        self.columns = {}
        self.shared = None
        self.psf = None
        if stack.psf is not None:
            self.psf = stack.psf[rows] if len(stack.psf) > 1 else stack.psf[:1]
        self.centers = _centers(stack, rows)
        if parameters.get("saturation") is not None:
            saturated = find_saturated(self.data, self.mask, parameters["saturation"])
            self._hide(saturated, Flag.SATURATED)
        if parameters.get("cosmic_rays"):
            self._hide(self._cosmic_rays(), Flag.COSMIC_RAY)
        if stack.segmentation is None:
            self.segmentation, self.labels = segment_cutouts(
                self.data, self.mask, parameters["n_sigma"], self.error
            )
        else:
            self.segmentation = np.asarray(stack.segmentation[rows])
            self.labels = np.asarray(stack.labels[rows])
        self.sources = self.segmentation > 0

    def _hide(self, found, flag):
        """Mask pixels and flag their rows; what is left of a row stays valid."""
        found &= self.valid[:, np.newaxis, np.newaxis, np.newaxis]
        self.mask |= found
        hit = found.any(axis=(1, 2, 3))
        self.flags |= np.where(hit, flag, 0).astype(np.int32)

    def _cosmic_rays(self):
        """Cosmic rays of all bands."""
        noise = self.error
        if noise is None:
            rms = measure_sky(self.data, ~self.mask)["rms"]
            noise = rms[:, np.newaxis, np.newaxis]
        bands = range(self.data.shape[-1])
        hits = [
            find_cosmic_rays(self.data[..., b], self.mask[..., b], noise[..., b])
            for b in bands
        ]
        return np.stack(hits, axis=-1)

    def _measure(self):
        """What the sky and the targets are like, as columns and flags."""
        for name, key in (("", "level"), ("_err", "level_err"), ("_rms", "rms")):
            self.columns[f"background{name}"] = self.sky[key]
        unknown = np.isnan(self.sky["level"]).any(axis=1) & self.valid
        self.flags |= np.where(unknown, Flag.NO_BACKGROUND, 0).astype(np.int32)
        measured, flags, centroids = measure_targets(
            self.data,
            np.nan_to_num(self.sky["level"]),
            self.mask,
            self.segmentation,
            self.labels,
            self.sky["rms"],
            self.centers,
        )
        self.columns |= measured
        self.flags |= np.where(self.valid, flags, 0).astype(np.int32)
        if self.psf is not None:
            self._find_stars(centroids)

    def _find_stars(self, centroids):
        """Flag what is no wider than the PSF."""
        level = np.nan_to_num(self.sky["level"]).astype(np.float32)
        light = self.data - level[:, np.newaxis, np.newaxis]
        bad = self.mask | self._neighbors()[..., np.newaxis]
        excess, error = excess_variance(
            light, bad, self.psf, self.sky["rms"], centroids
        )
        with np.errstate(invalid="ignore"):
            small = excess < np.maximum(_MIN_EXCESS, _EXCESS_SIGMA * error)
            small &= (self.columns["snr"] >= MIN_SNR) & self.valid
        self.flags |= np.where(small, Flag.NOT_LARGER_THAN_PSF, 0).astype(np.int32)

    def find_sky(self):
        """Measure the sky away from all sources."""
        near = dilate(self.sources, self.parameters["grow"])
        usable = self.mask | near[..., np.newaxis]
        np.logical_not(usable, out=usable)
        self.sky = measure_sky(self.data, usable)
        if self.shared is not None:
            lost = ~self.valid[:, np.newaxis]
            own = np.isfinite(self.sky["rms"])
            for name in ("level", "level_err"):
                self.sky[name] = np.where(lost, np.nan, self.shared[name])
            rms = np.where(own, self.sky["rms"], self.shared["rms"])
            self.sky["rms"] = np.where(lost, np.nan, rms)

    def clean(self, tape):
        """Subtract the sky, deal with neighbours, set the noise."""
        options = self.parameters
        needed = options["background"], options["neighbors"], options["noise"]
        if needed[0] is None and needed[1] != "fill" and needed[2] == "keep":
            nothing = np.full((len(self.data), self.data.shape[-1]), np.nan)
            self.sky = dict.fromkeys(("level", "level_err", "rms"), nothing)
        else:
            self.find_sky()
            if needed[0]:
                self._measure()
        level, rms = (
            np.nan_to_num(self.sky[name].astype(np.float32))
            for name in ("level", "rms")
        )
        if options["neighbors"] == "fill":
            offsets = noise_offsets(self.data)
        if options["background"]:
            self.data -= level[:, np.newaxis, np.newaxis]
            level = np.zeros_like(level)
        if options["neighbors"]:
            others = self._neighbors()
            if options["neighbors"] == "mask":
                self.mask |= others[..., np.newaxis]
            elif options["neighbors"] == "inpaint":
                inpaint(self.data, others, self.mask)
            else:
                fill(self.data, others, self.mask, level, rms, tape, offsets)
            touched = others.any(axis=(1, 2)) & self.valid
            self.flags |= np.where(touched, Flag.NEIGHBOR, 0).astype(np.int32)
            lost = (self.labels == 0) & self.valid
            self.flags |= np.where(lost, Flag.NO_SOURCE, 0).astype(np.int32)
        step = options["quantization_step"] or 0.0
        if options["noise"] == "estimate":
            error = np.sqrt(rms**2 + step**2 / 12)[:, np.newaxis, np.newaxis]
            self.error = np.broadcast_to(error, self.data.shape)
        elif self.error is not None and step:
            np.hypot(self.error, np.float32(step / np.sqrt(12)), out=self.error)

    def _neighbors(self):
        """Pixels of other sources, widened, but not into the target."""
        # where there is no target, none of the labels of sources
        labels = np.where(self.labels > 0, self.labels, -1)
        target = self.segmentation == labels[:, np.newaxis, np.newaxis]
        others = dilate(self.sources ^ target, self.parameters["grow"])
        np.greater(others, target, out=others)
        others[~self.valid] = False
        return others


def _room(stack, parameters):
    """Memory for what will change; of planes that stay, what is in memory is shared."""
    shape = stack.data.shape
    kinds = {
        "mask": bool,
        "data": np.float32,
        "segmentation": np.int32,
        "labels": np.int32,
        "flags": np.int32,
    }
    kept = {"segmentation", "labels"} if stack.segmentation is not None else set()
    if parameters["background"] is None and parameters["neighbors"] in ("mask", None):
        kept.add("data")
    hiding = parameters["saturation"] is not None or parameters["cosmic_rays"]
    if parameters["neighbors"] != "mask" and not hiding:
        kept.add("mask")
    if parameters["noise"] == "estimate" or stack.error is not None:
        kinds["error"] = np.float32
        if parameters["noise"] == "keep" and not parameters["quantization_step"]:
            kept.add("error")
    room = {}
    for name, dtype in kinds.items():
        plane = getattr(stack, name)
        if name in kept and isinstance(plane, np.ndarray) and plane.dtype == dtype:
            continue
        n_axes = {"segmentation": 3, "labels": 1, "flags": 1}.get(name, 4)
        room[name] = np.empty(shape[:n_axes], dtype)
    return room


def _centers(stack, rows):
    """Where targets should be, x and y in pixels of the cutout."""
    shape = np.array(stack.image_shape[1::-1])
    n = rows.stop - rows.start
    centers = np.tile((shape - 1) / 2, (n, 1))
    moved = {"shift_x", "cutout_size"} & set(stack.columns)
    if stack.positions is not None and not moved and "image_shape" in stack.meta:
        # cut at whole pixels, as make_cutouts does
        positions = stack.positions[rows]
        centers = positions - np.ceil(positions - shape / 2)
    return np.where(np.isfinite(centers), centers, (shape - 1) / 2)
