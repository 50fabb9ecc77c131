# Licensed under a 3-clause BSD style license - see LICENSE
"""From an image without a catalogue to a catalogue of its sources."""

import inspect
import warnings

import astropy.units as u
import numpy as np
from astropy.stats import gaussian_fwhm_to_sigma
from astropy.table import QTable
from photutils.background import Background2D
from photutils.segmentation import SegmentationImage, deblend_sources
from photutils.segmentation import detect_sources as detect_segments
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from astrovae._optional import require
from astrovae._progress import progress_bar
from astrovae._validation import check_option, check_positive_int
from astrovae.flags import Flag
from astrovae.images._inputs import image_planes, is_celestial, other_planes

__all__ = ["detect_sources"]

# variance of a uniform distribution over one pixel
_PIXEL_VARIANCE = 1 / 12
# sources that are bright enough, relative to the threshold, to measure the blur
_BRIGHT = 8.0
_MIN_BRIGHT_SOURCES = 5
# a source that touches another rises above the saddle between both by this share
# of it and by so many sigmas
_SADDLE_SHARE, _SADDLE_SIGMA = 0.3, 3.0
# percentile of the minor axes of bright sources that stands for a point source
_COMPACT_PERCENTILE = 10.0
# room that sep has beside the pixels of sources, and parts that it splits one into
_SPARE_PIXELS, _MAX_PARTS = 10_000, 16_384
# at most this share of a box may be masked if it is to measure the background
_MAX_MASKED_PERCENT = 50.0


def detect_sources(
    image,
    *,
    n_sigma=2.5,
    n_pixels=10,
    kernel_fwhm=2.0,
    box_size=64,
    deblend=True,
    contrast=0.005,
    engine="photutils",
    psf_fwhm=None,
    mask=None,
    wcs=None,
    bands=None,
    band_axis=None,
    unit=None,
    show_progress=False,
):
    """
    Find the sources of an image and measure what a selection needs.

    Background and noise are mapped per band with photutils, the bands are
    added with inverse-variance weights and smoothed, and sources are what
    stands out of the noise measured on that smoothed sum, so that noise
    that is correlated between pixels or bands does not lower the threshold.

    Parameters
    ----------
    image : array_like, dict, sequence or `~astropy.nddata.NDData`
        The image, in the forms that `make_cutouts` takes.
    n_sigma : float, optional
        Threshold on the smoothed sum of bands, in units of its noise.
    n_pixels : int, optional
        The least number of connected pixels above the threshold.
    kernel_fwhm : float, optional
        FWHM of the Gaussian that the sum of bands is smoothed with, in
        pixels; best close to that of the PSF. 0 does not smooth.
    box_size : int, optional
        Side of the boxes in which background and noise are measured;
        larger than the largest galaxy, ideally.
    deblend : bool, optional
        Split sources that touch.
    contrast : float, optional
        The share of a source's flux that a peak needs to be split off.
    engine : {"photutils", "sep"}, optional
        What detects and splits sources. ``"sep"``, the core of SExtractor [1]_
        [2]_, is many times faster on large images, and needs the package ``sep``.
        All else is the same, but blends can be split in other places.
    psf_fwhm : float, optional
        FWHM of the PSF in pixels. By default it is estimated from the
        minor axes of the most compact bright sources, which is too large
        if there are no point sources among them. With fewer than 5 bright
        sources it is unknown, and nothing is compared with it.
    mask : image, optional
        `True` marks a bad pixel. Forms as for ``image``, or 2-D for all
        bands.
    wcs : `~astropy.wcs.WCS`, optional
        World coordinates, to add ``ra`` and ``dec``.
    bands : sequence of str, optional
        Names of the bands.
    band_axis : int, optional
        The axis of bands of a 3-D image, as in `make_cutouts`.
    unit : str or `~astropy.units.Unit`, optional
        Unit of the pixels, if the image does not bring one.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    table : `~astropy.table.QTable`
        One row per source; its columns have units and descriptions:

        - ``label``: the label in the segmentation;
        - ``x``, ``y``: centroid in pixels, 0 is the centre of the first;
        - ``size``: 1-sigma length of the semi-major axis, in pixels, PSF
          included. It is that of a Gaussian with the measured second
          moments inside the isophote, without the smoothing kernel;
        - ``axis_ratio``, and ``angle`` of the major axis, from +x to +y;
        - ``extent``: size in units of that of the blur, 1 for a point
          source, with its ``extent_err``;
        - ``peak_snr``: the highest value of the smoothed sum of bands;
        - ``area``: the number of pixels above the threshold;
        - ``flux``: isophotal flux above the background, per band, with
          ``flux_err``, the part that comes from the background's noise;
        - ``background``, ``background_rms``: at the centroid, per band;
        - ``flags``: `~astrovae.flags.Flag` bits ``SOURCE_TRUNCATED`` and
          ``NOT_LARGER_THAN_PSF``;
        - ``ra``, ``dec`` with a celestial WCS.

        ``meta["detect_sources"]`` has the parameters and ``psf_fwhm``.
    segmentation : `~photutils.segmentation.SegmentationImage` or None
        The pixels of each source; `None` if there are no sources.

    Raises
    ------
    ValueError
        If an argument is out of range, shapes do not fit, or too few pixels
        are valid to measure the background.

    Notes
    -----
    Per-band columns have the shape ``(n,)`` for one band and
    ``(n, n_bands)`` for several.

    A source counts as larger than the blur if its second moment exceeds
    that of a point source by 3 times its error and by a quarter of that of
    the PSF. For saturated or stretched images this holds only for sources
    fainter than saturation: a saturated star looks large.

    References
    ----------
    .. [1] Bertin, E., & Arnouts, S. 1996, A&AS, 117, 393
    .. [2] Barbary, K. 2016, JOSS, 1, 58

    Examples
    --------
    >>> from astrovae.datasets import make_survey
    >>> from astrovae.images import detect_sources
    >>> truth, image = make_survey(20, n_stars=5, shape=(200, 300), seed=1)
    >>> table, segmentation = detect_sources(image)
    >>> len(table) == segmentation.n_labels
    True
    """
    parameters = {
        "n_sigma": _check_positive("n_sigma", n_sigma),
        "n_pixels": check_positive_int("n_pixels", n_pixels),
        "kernel_fwhm": _check_positive("kernel_fwhm", kernel_fwhm, zero=True),
        "box_size": check_positive_int("box_size", box_size),
        "deblend": bool(deblend),
        "contrast": _check_positive("contrast", contrast, zero=True),
        "engine": check_option("engine", engine, tuple(_ENGINES)),
    }
    if psf_fwhm is not None:
        psf_fwhm = _check_positive("psf_fwhm", psf_fwhm)
    planes, unit = image_planes(image, bands=bands, band_axis=band_axis, unit=unit)
    first = next(iter(planes.values()))
    wcs = first.wcs if wcs is None else wcs
    with progress_bar("Detecting", len(planes) + 3, show=show_progress) as advance:
        field = _Field(planes, mask, band_axis, box_size, advance)
        snr = field.smoothed_snr(kernel_fwhm * gaussian_fwhm_to_sigma, box_size)
        advance()
        segments = find_segments(
            snr,
            n_sigma,
            n_pixels,
            contrast=contrast if deblend else None,
            bad=field.bad,
            engine=engine,
        )
        advance()
        labels = np.zeros(snr.shape, np.int32) if segments is None else segments.data
        shapes = _Shapes(snr, labels, n_sigma, kernel_fwhm * gaussian_fwhm_to_sigma)
        psf_fwhm = shapes.psf_fwhm() if psf_fwhm is None else psf_fwhm
        table = _source_table(shapes, field, psf_fwhm, unit)
        advance()
    if is_celestial(wcs):
        _add_sky(table, wcs)
    known = psf_fwhm if np.isfinite(psf_fwhm) else None
    parameters |= {"psf_fwhm": known, "bands": list(planes)}
    table.meta["detect_sources"] = parameters
    return table, segments


def _check_positive(name, value, *, zero=False):
    if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        msg = f"{name} must be a {'non-negative' if zero else 'positive'} number, "
        msg += f"got {name}={value!r}."
        raise ValueError(msg)
    return float(value)


class _Field:
    """Bands without their background, and the noise of each."""

    def __init__(self, planes, mask, band_axis, box_size, advance):
        masks = other_planes("mask", None, planes)
        extra = [None] * len(planes)
        if mask is not None:
            extra = other_planes("mask", mask, planes, band_axis=band_axis)
        self.pixels, self.background, self.rms = [], [], []
        bad_bands = []
        for plane, *some in zip(planes.values(), masks, extra, strict=True):
            values = plane.full()
            bad = ~np.isfinite(values)
            for other in some:
                if other is not None:
                    bad |= other.array.astype(bool)
            background, rms = _map_background(values, bad, box_size)
            self.pixels.append(np.where(bad, 0, values - background))
            self.background.append(background)
            self.rms.append(rms)
            bad_bands.append(bad)
            advance()
        self.bad_bands = bad_bands
        self.bad = np.logical_and.reduce(bad_bands)

    def smoothed_snr(self, sigma, box_size):
        """The weighted sum of bands, smoothed, in units of its own noise."""
        total = np.zeros_like(self.pixels[0])
        weights = np.zeros_like(total)
        for pixels, rms, bad in zip(self.pixels, self.rms, self.bad_bands, strict=True):
            # a band without noise is constant: it has nothing to say
            weight = inverse_variance(rms, ~bad & (rms > 0))
            total += weight * pixels
            weights += weight
        total /= np.sqrt(np.maximum(weights, np.finfo(np.float32).tiny))
        if sigma > 0:
            ndimage.gaussian_filter(total, sigma, output=total, mode="nearest")
        background, rms = _map_background(total, self.bad, box_size)
        rms = np.where(rms > 0, rms, np.inf)
        return np.where(self.bad, 0, (total - background) / rms)


def inverse_variance(rms, where):
    """One over the variance, 0 elsewhere."""
    weight = np.zeros_like(rms)
    return np.divide(1, rms**2, out=weight, where=where)


def _map_background(values, bad, box_size):
    """Background and noise maps in float32."""
    try:
        maps = Background2D(
            values,
            box_size,
            mask=bad,
            filter_size=3,
            exclude_percentile=_MAX_MASKED_PERCENT,
        )
        return (
            np.asarray(maps.background, np.float32),
            np.asarray(maps.background_rms, np.float32),
        )
    except ValueError as error:
        msg = (
            "the background cannot be measured: "
            f"{bad.mean():.0%} of the pixels are masked or not finite, and no box of "
            f"box_size={box_size} pixels is at least half valid."
        )
        raise ValueError(msg) from error


def find_segments(
    snr, n_sigma, n_pixels, *, contrast=None, bad=None, engine="photutils"
):
    """
    Label connected pixels above a threshold, and split blends.

    Parameters
    ----------
    snr : `~numpy.ndarray`, shape (ny, nx)
        A smoothed image in units of its noise.
    n_sigma, n_pixels, contrast
        As in `detect_sources`; a contrast of `None` does not split.
    bad : `~numpy.ndarray` of bool, shape (ny, nx), optional
        Pixels that belong to no source.
    engine : {"photutils", "sep"}, optional
        What does it.

    Returns
    -------
    segments : `~photutils.segmentation.SegmentationImage` or None
        `None` if there are no sources.
    """
    segments = _ENGINES[engine](snr, n_sigma, n_pixels, contrast, bad)
    if segments is not None and contrast is not None:
        segments = _merge_shallow(snr, segments)
    return segments


def _photutils_segments(snr, n_sigma, n_pixels, contrast, bad):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)
        # photutils tells of sources that it deblends with linear levels
        warnings.filterwarnings("ignore", message="The deblending mode")
        segments = detect_segments(snr, n_sigma, n_pixels, mask=bad)
        if segments is not None and contrast is not None:
            options = {"contrast": contrast} | _without_progress(deblend_sources)
            segments = deblend_sources(snr, segments, n_pixels, **options)
    return segments


def _sep_segments(snr, n_sigma, n_pixels, contrast, bad):
    sep = require("sep", extra="images")
    snr = np.ascontiguousarray(snr, np.float32)
    kept = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    # crowded images need more than the buffers that sep begins with
    sep.set_extract_pixstack(max(kept[0], int((snr > n_sigma).sum()) + _SPARE_PIXELS))
    sep.set_sub_object_limit(max(kept[1], _MAX_PARTS))
    try:
        _, labels = sep.extract(
            snr,
            n_sigma,
            mask=bad,
            minarea=n_pixels,
            filter_kernel=None,
            # 1 does not split
            deblend_cont=1.0 if contrast is None else contrast,
            clean=False,
            segmentation_map=True,
        )
    finally:
        sep.set_extract_pixstack(kept[0])
        sep.set_sub_object_limit(kept[1])
    if not labels.any():
        return None
    segments = SegmentationImage(labels)
    segments.relabel_consecutive()
    return segments


# what detects and splits sources
_ENGINES = {"photutils": _photutils_segments, "sep": _sep_segments}


def _merge_shallow(snr, segments):
    """
    Put parts together again that no valley divides.

    Deblending asks how much light a part has. Arms and rings have enough, but
    their peaks hardly rise above the saddle to the rest of their galaxy.
    """
    labels = segments.data
    n = int(labels.max())
    peak = np.zeros(n + 1)
    some = labels > 0
    np.maximum.at(peak, labels[some], snr[some])
    ny, nx = labels.shape
    keys, heights = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first = np.s_[: ny - dy, max(0, -dx) : nx - max(0, dx)]
        second = np.s_[dy:, max(0, dx) : nx + min(0, dx)]
        a, b = labels[first], labels[second]
        border = (a != b) & (a > 0) & (b > 0)
        a, b = a[border].astype(np.int64), b[border]
        keys.append(np.minimum(a, b) * (n + 1) + np.maximum(a, b))
        heights.append(np.minimum(snr[first][border], snr[second][border]))
    keys, index = np.unique(np.concatenate(keys), return_inverse=True)
    if not len(keys):
        return segments
    saddle = np.full(len(keys), -np.inf)
    np.maximum.at(saddle, index, np.concatenate(heights))
    root = np.arange(n + 1)

    def find(label):
        while root[label] != label:
            label = root[label]
        return label

    # from the highest saddle down, as when water falls
    for pair in np.argsort(-saddle, kind="stable"):
        a, b = (find(int(label)) for label in divmod(keys[pair], n + 1))
        low, high = (a, b) if peak[a] <= peak[b] else (b, a)
        limit = (1 + _SADDLE_SHARE) * saddle[pair] + _SADDLE_SIGMA
        if low != high and peak[low] < limit:
            root[low] = high
    mapping = np.array([find(label) for label in range(n + 1)])
    if (mapping == np.arange(n + 1)).all():
        return segments
    merged = SegmentationImage(mapping[labels].astype(labels.dtype))
    merged.relabel_consecutive()
    return merged


def _without_progress(function):
    """
    What keeps photutils from showing a progress bar.

    From version 3.1 on it shows none unless asked, and the argument is deprecated.
    """
    argument = inspect.signature(function).parameters.get("progress_bar")
    shown = argument is not None and argument.default is True
    return {"progress_bar": False} if shown else {}


class _Shapes:
    """
    Moments of all sources at once.

    Measured on the smoothed image, inside the isophote, then corrected for
    both as if sources were Gaussians: inside the isophote at exp(-k) of its
    peak, a Gaussian has 1 - k exp(-k) / (1 - exp(-k)) of its variance.
    """

    def __init__(self, snr, labels, threshold, kernel_sigma):
        self.n = int(labels.max())
        self.threshold, self.kernel_variance = threshold, kernel_sigma**2
        self.image_shape = labels.shape
        self.pixels = np.flatnonzero(labels)
        self.labels = labels.ravel()[self.pixels] - 1
        self.y, self.x = np.unravel_index(self.pixels, labels.shape)
        weight = np.maximum(snr.ravel()[self.pixels], 0).astype(float)
        self.area = self.sum(np.ones_like(weight))
        total = self.sum(weight)
        self.x_mean = self.sum(weight * self.x) / total
        self.y_mean = self.sum(weight * self.y) / total
        dx = self.x - self.x_mean[self.labels]
        dy = self.y - self.y_mean[self.labels]
        self.peak = np.zeros(self.n)
        np.maximum.at(self.peak, self.labels, weight)
        k = np.maximum(np.log(self.peak / threshold), 0.1)
        kept = 1 - k / np.expm1(k)
        self.xx, self.yy, self.xy = (
            self.sum(weight * q) / total / kept for q in (dx * dx, dy * dy, dx * dy)
        )
        self.variance = (self.xx + self.yy) / 2
        # noise of the smoothed image is correlated over about 4 pi sigma^2 pixels
        correlated = max(1.0, 4 * np.pi * self.kernel_variance)
        spread = (dx * dx + dy * dy) / 2 / kept[self.labels]
        spread = self.sum((spread - self.variance[self.labels]) ** 2)
        self.variance_err = np.sqrt(correlated * spread) / total

    def sum(self, values):
        """Sum per source."""
        return np.bincount(self.labels, weights=values, minlength=self.n)

    def axes(self):
        """Semi-major and semi-minor variance, kernel removed, and the angle."""
        mean = self.variance - self.kernel_variance
        half = np.hypot((self.xx - self.yy) / 2, self.xy)
        angle = np.arctan2(2 * self.xy, self.xx - self.yy) / 2
        major, minor = mean + half, mean - half
        return (
            np.maximum(major, _PIXEL_VARIANCE),
            np.maximum(minor, _PIXEL_VARIANCE),
            angle,
        )

    def psf_fwhm(self):
        """Estimate the blur from compact bright sources; NaN if there are none."""
        bright = self.peak > _BRIGHT * self.threshold
        if bright.sum() < _MIN_BRIGHT_SOURCES:
            return np.nan
        minor = self.axes()[1][bright]
        variance = np.percentile(minor, _COMPACT_PERCENTILE)
        return float(np.sqrt(variance) / gaussian_fwhm_to_sigma)

    def truncated(self, bad):
        """Whether a source touches the edge of the image or bad pixels."""
        edge = np.ones(self.image_shape, dtype=bool)
        edge[1:-1, 1:-1] = False
        if bad.any():
            edge |= ndimage.binary_dilation(bad, np.ones((3, 3)))
        return self.sum(edge.ravel()[self.pixels].astype(float)) > 0


def _source_table(shapes, field, psf_fwhm, unit):
    """The table of sources."""
    psf_variance = (psf_fwhm * gaussian_fwhm_to_sigma) ** 2
    excess = shapes.variance - shapes.kernel_variance - psf_variance
    extent = np.sqrt(np.maximum(1 + excess / psf_variance, _PIXEL_VARIANCE))
    extent_err = shapes.variance_err / psf_variance / (2 * extent)
    compact = (excess < 3 * shapes.variance_err) | (excess < psf_variance / 4)
    flags = np.where(compact, Flag.NOT_LARGER_THAN_PSF, 0)
    flags |= np.where(shapes.truncated(field.bad), Flag.SOURCE_TRUNCATED, 0)
    major, minor, angle = shapes.axes()
    at = tuple(np.rint([shapes.y_mean, shapes.x_mean]).astype(int))

    def per_band(function, planes):
        columns = [function(plane) for plane in planes]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=-1)

    def isophote(plane):
        return shapes.sum(plane.ravel()[shapes.pixels].astype(float))

    flux = per_band(isophote, field.pixels)
    flux_err = np.sqrt(per_band(isophote, [rms**2 for rms in field.rms]))
    background = per_band(lambda plane: plane[at], field.background)
    rms = per_band(lambda plane: plane[at], field.rms)
    center = "centroid, 0 is the centre of the first pixel"
    table = QTable()
    for name, values, column_unit, description in (
        ("label", np.arange(1, shapes.n + 1), None, "label in the segmentation"),
        ("x", shapes.x_mean, u.pix, center),
        ("y", shapes.y_mean, u.pix, center),
        ("size", np.sqrt(major), u.pix, "1-sigma semi-major axis, PSF included"),
        ("axis_ratio", np.sqrt(minor / major), None, "minor over major axis"),
        ("angle", np.degrees(angle), u.deg, "of the major axis, from +x to +y"),
        ("extent", extent, None, "size over that of the blur: 1 for a point source"),
        ("extent_err", extent_err, None, "1-sigma uncertainty of extent"),
        ("peak_snr", shapes.peak, None, "highest S/N of the smoothed sum of bands"),
        ("area", shapes.area, u.pix**2, "pixels above the threshold"),
        ("flux", flux, unit, "isophotal flux above the background"),
        ("flux_err", flux_err, unit, "uncertainty from the background's noise"),
        ("background", background, unit, "background at the centroid"),
        ("background_rms", rms, unit, "noise of the background at the centroid"),
        ("flags", flags.astype(np.int32), None, "bits of astrovae.flags.Flag"),
    ):
        table[name] = values if column_unit is None else values * column_unit
        table[name].info.description = description
    return table


def _add_sky(table, wcs):
    """Add the sky positions of the centroids."""
    wcs = getattr(wcs, "celestial", wcs)
    sky = wcs.pixel_to_world(table["x"].value, table["y"].value).icrs
    for name, angle, axis in (
        ("ra", sky.ra, "right ascension"),
        ("dec", sky.dec, "declination"),
    ):
        table[name] = u.Quantity(angle.deg, u.deg)
        table[name].info.description = f"{axis} (ICRS) of the centroid"
