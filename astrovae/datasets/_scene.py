# Licensed under a 3-clause BSD style license - see LICENSE
"""What simulated galaxies look like, and how they get onto an image."""

import astropy.units as u
import numpy as np
from astropy.table import QTable
from astropy.utils.masked import Masked
from astropy.wcs import WCS

from astrovae.datasets._profiles import draw_galaxies, draw_stars

__all__ = [
    "KINDS",
    "add_bad_columns",
    "add_cosmic_rays",
    "add_noise",
    "check_kinds",
    "check_positive",
    "check_radii",
    "check_range",
    "draw_stamp",
    "draw_truth",
    "inner_ellipse",
    "make_wcs",
    "place_sources",
    "render",
    "truth_from_table",
    "truth_table",
]

# ranges of what galaxies look like: wide enough to be told apart
_SERSIC_INDEX, _AXIS_RATIO = (0.6, 4.0), (0.2, 1.0)
_BULGE_FRACTION, _BULGE_SIZE = (0.1, 0.7), (0.2, 0.5)
# bulges are redder: from the first band to the last their share grows so much
_BULGE_COLOR = 2.0
# scatter of the colours of galaxies, in natural logarithms of flux
_COLOR_SCATTER = 0.3
# the kinds of galaxies, and those that a simulation has unless told otherwise
KINDS = ("sersic", "bulge_disc", "spiral", "clumpy_disc")
_SMOOTH_KINDS = KINDS[:2]
# contrast and pitch angle of spiral arms, in radians
_ARM_STRENGTH, _ARM_PITCH = (0.4, 0.9), (0.25, 0.6)
# how many clumps a clumpy disc has, and their share of the flux
_CLUMPS, _CLUMP_FRACTION = (3, 9), (0.1, 0.4)
# values of bad columns, and of pixels hit by cosmic rays, in units of the noise
_BAD_COLUMN, _COSMIC_RAY = -30.0, (30.0, 500.0)
# mean length of the track of a cosmic ray, in pixels
_TRACK_LENGTH = 6.0


def check_positive(name, value):
    if not (np.isfinite(value) and value > 0):
        msg = f"{name} must be a positive number, got {name}={value!r}."
        raise ValueError(msg)
    return float(value)


def check_range(name, value):
    low, high = value
    if not 0 < low <= high < np.inf:
        msg = f"{name} must be two increasing positive numbers, got {value!r}."
        raise ValueError(msg)
    return float(low), float(high)


def check_radii(half_light_radius, shape):
    if half_light_radius is None:
        return min(shape) / 32, min(shape) / 8
    return check_range("half_light_radius", half_light_radius)


def check_kinds(kinds):
    """The kinds of galaxies as a tuple."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        msg = f"kinds must be some of {', '.join(KINDS)}, got {unknown or kinds!r}."
        raise ValueError(msg)
    return kinds


def draw_truth(rng, n, n_bands, radii, kinds=_SMOOTH_KINDS):
    """What galaxies look like; ``color`` is flux relative to the first band."""
    # what only some kinds need has random numbers of its own
    other = rng.spawn(1)[0]
    bulge = rng.random(n) < 0.5
    band = np.linspace(0, 1, n_bands) if n_bands > 1 else np.zeros(1)
    # the odds of the bulge grow along the bands
    odds = rng.uniform(*_BULGE_FRACTION, n)
    odds = (odds / (1 - odds))[:, np.newaxis] * np.exp(_BULGE_COLOR * band)
    color = rng.normal(0, _COLOR_SCATTER, n)[:, np.newaxis] * band
    kind = np.where(bulge, "bulge_disc", "sersic").astype("U11")
    if tuple(kinds) != _SMOOTH_KINDS:
        kind = other.choice(np.array(kinds, "U11"), n)
    arms = clumps = {}
    if "spiral" in kinds:
        arms = {
            "arm_strength": other.uniform(*_ARM_STRENGTH, n),
            "arm_pitch": other.uniform(*_ARM_PITCH, n) * other.choice([-1, 1], n),
            "arm_phase": other.uniform(0, 2 * np.pi, n),
        }
    if "clumpy_disc" in kinds:
        clumps = {
            "n_clumps": other.integers(*_CLUMPS, n, endpoint=True),
            "clump_fraction": other.uniform(*_CLUMP_FRACTION, n),
            "clump_seed": other.integers(0, 2**31, n),
        }
    return {
        "kind": kind,
        "color": np.exp(color),
        "half_light_radius": np.exp(rng.uniform(*np.log(radii), n)),
        "sersic_index": rng.uniform(*_SERSIC_INDEX, n),
        "axis_ratio": rng.uniform(*_AXIS_RATIO, n),
        "angle": rng.uniform(-np.pi / 2, np.pi / 2, n),
        "bulge_fraction": odds / (1 + odds),
        "bulge_size": rng.uniform(*_BULGE_SIZE, n),
        **arms,
        **clumps,
    }


def render(truth, shape, psf_fwhm):
    """Noiseless images (n, ny, nx, n_bands) with the flux ``color`` per band."""
    options = {"shape": shape, "psf_fwhm": psf_fwhm}
    x, y, kind = truth["x"], truth["y"], truth["kind"]
    one = np.ones(len(x))
    disc, bulge = (np.zeros((len(x), *shape), np.float32) for _ in range(2))
    star, clumpy = kind == "star", kind == "clumpy_disc"
    spiral = kind == "spiral"
    double = spiral | (kind == "bulge_disc")
    index = np.where(double | clumpy, 1.0, truth["sersic_index"])
    for image, rows, size, n, q in (
        (disc, ~star & ~spiral, one, index, truth["axis_ratio"]),
        (disc, spiral, one, index, truth["axis_ratio"]),
        # a bulge is rounder than the disc around it
        (bulge, double, truth["bulge_size"], 4 * one, np.sqrt(truth["axis_ratio"])),
    ):
        if not rows.any():
            continue
        arms = None
        if image is disc and spiral[rows].all():
            names = ("arm_strength", "arm_pitch", "arm_phase")
            arms = [truth[name][rows] for name in names]
        image[rows] = draw_galaxies(
            x[rows],
            y[rows],
            one[rows],
            (size * truth["half_light_radius"])[rows],
            n[rows],
            q[rows],
            truth["angle"][rows],
            arms=arms,
            **options,
        )
    for row in np.flatnonzero(clumpy):
        _add_clumps(disc[row], {k: v[row] for k, v in truth.items()}, options)
    disc[star] = draw_stars(x[star], y[star], one[star], **options)
    share = np.where(double[:, np.newaxis], truth["bulge_fraction"], 0)
    share = share[:, np.newaxis, np.newaxis]
    color = truth["color"][:, np.newaxis, np.newaxis]
    images = (1 - share) * disc[..., np.newaxis] + share * bulge[..., np.newaxis]
    return (color * images).astype(np.float32)


def _add_clumps(disc, one, options):
    """Move a share of the light of a disc into clumps, in place."""
    rng = np.random.default_rng(one["clump_seed"])
    n = int(one["n_clumps"])
    # radii of an exponential disc, in units of its scale length
    radius = rng.gamma(2, size=n) * one["half_light_radius"] / 1.678
    around = rng.uniform(0, 2 * np.pi, n)
    along, across = radius * np.cos(around), radius * np.sin(around) * one["axis_ratio"]
    cos, sin = np.cos(one["angle"]), np.sin(one["angle"])
    share = one["clump_fraction"] * rng.dirichlet(np.full(n, 3.0))
    x = one["x"] + along * cos - across * sin
    y = one["y"] + along * sin + across * cos
    disc *= 1 - one["clump_fraction"]
    disc += draw_stars(x, y, share, **options).sum(axis=0)


def add_noise(rng, model, noise, gain):
    """Draw pixels, and their exact 1-sigma errors."""
    variance = np.full(model.shape, noise**2, np.float32)
    if gain is not None:
        variance += np.maximum(model, 0) / check_positive("gain", gain)
    error = np.sqrt(variance)
    pixels = noise * rng.standard_normal(model.shape, dtype=np.float32)
    if gain is None:
        pixels += model
    else:
        pixels += rng.poisson(np.maximum(model, 0) * gain) / gain
        pixels += np.minimum(model, 0)
    return pixels.astype(np.float32), error


def add_bad_columns(rng, data, n, noise):
    """Spoil some columns of an image, in place, and say where."""
    mask = np.zeros(data.shape, bool)
    columns = rng.permutation(data.shape[1])[:n]
    mask[:, columns] = True
    data[:, columns] = _BAD_COLUMN * noise
    return mask


def add_cosmic_rays(rng, data, n, noise):
    """Add tracks of cosmic rays to each band, in place, and say where."""
    hit = np.zeros(data.shape, bool)
    ny, nx, n_bands = data.shape
    for band in range(n_bands):
        for _ in range(n):
            length = 1 + rng.exponential(_TRACK_LENGTH)
            y, x = rng.uniform(0, (ny, nx))
            angle = rng.uniform(0, np.pi)
            along = np.arange(0, length, 0.25)
            rows = np.floor(y + along * np.sin(angle)).astype(int)
            columns = np.floor(x + along * np.cos(angle)).astype(int)
            inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
            track = np.unique(np.stack([rows, columns])[:, inside], axis=1)
            height = np.exp(rng.uniform(*np.log(_COSMIC_RAY))) * noise
            height = height * rng.uniform(0.5, 1.5, track.shape[1])
            data[(*track, band)] += height.astype(np.float32)
            hit[(*track, band)] = True
    return hit


def inner_ellipse(one, shape, corner, psf_fwhm):
    """The pixels within two half-light radii of a source."""
    y, x = np.indices(shape)
    dx, dy = x + corner[1] - one["x"][0], y + corner[0] - one["y"][0]
    if one["kind"][0] == "star":
        return dx**2 + dy**2 <= psf_fwhm**2
    cos, sin = np.cos(one["angle"][0]), np.sin(one["angle"][0])
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    major = np.hypot(2 * one["half_light_radius"][0], psf_fwhm / 2)
    minor = np.hypot(
        2 * one["half_light_radius"][0] * one["axis_ratio"][0], psf_fwhm / 2
    )
    return (along / major) ** 2 + (across / minor) ** 2 <= 1


def place_sources(rng, truth, shape, companions, psf_fwhm, n_galaxies):
    """Scatter sources over the image, some galaxies next to others."""
    n = len(truth["kind"])
    truth["x"], truth["y"] = (
        rng.uniform(-0.5, size - 0.5, n) for size in (shape[1], shape[0])
    )
    truth["companion_of"] = np.full(n, -1)
    n_companions = int(companions * n_galaxies)
    if not 0 <= companions <= 0.5:
        msg = f"companions must be between 0 and 0.5, got companions={companions!r}."
        raise ValueError(msg)
    hosts = rng.permutation(n_galaxies - n_companions)[:n_companions]
    rows = np.arange(n_galaxies - n_companions, n_galaxies)[: len(hosts)]
    distance = rng.uniform(1, 4, len(rows)) * truth["half_light_radius"][hosts]
    distance = np.maximum(distance, 1.5 * psf_fwhm)
    angle = rng.uniform(0, 2 * np.pi, len(rows))
    truth["x"][rows] = truth["x"][hosts] + distance * np.cos(angle)
    truth["y"][rows] = truth["y"][hosts] + distance * np.sin(angle)
    truth["companion_of"][rows] = hosts


def draw_stamp(one, shape, psf_fwhm):
    """One source on its own pixels, and where these go on the image."""
    # a Sersic profile of index 4 has 90 percent of its light in 6 radii
    half = int(np.ceil(8 * one["half_light_radius"][0] + 4 * psf_fwhm))
    corner = [int(np.rint(one[axis][0])) - half for axis in ("y", "x")]
    size = 2 * half + 1
    local = one | {"x": one["x"] - corner[1], "y": one["y"] - corner[0]}
    stamp = render(local, (size, size), psf_fwhm)[0]
    image, cut = [], []
    for start, length in zip(corner, shape, strict=True):
        low, high = (int(np.clip(v, 0, length)) for v in (start, start + size))
        image.append(slice(low, high))
        cut.append(slice(low - start, high - start))
    return (tuple(image), tuple(cut)), stamp


def make_wcs(shape, pixel_scale, center):
    """A tangential projection, north up and east left."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = center
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = np.array([-1, 1]) * pixel_scale.to_value(u.deg)
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    wcs.array_shape = shape
    return wcs


def truth_table(truth, ids):
    """The truth as a table; what does not apply to a kind is masked."""
    kind = truth["kind"]
    star, spiral = kind == "star", kind == "spiral"
    clumpy = kind == "clumpy_disc"
    double = spiral | (kind == "bulge_disc")
    table = QTable({"id": ids, "kind": kind})
    for name, unit, hidden, description in (
        ("x", u.pix, None, "centre, 0 is the centre of the first pixel"),
        ("y", u.pix, None, "centre, 0 is the centre of the first pixel"),
        ("flux", None, None, "total flux, to infinity"),
        ("snr", None, None, "signal-to-noise of the flux in the first band"),
        ("half_light_radius", u.pix, star, "of Sersic profile or disc, major axis"),
        ("sersic_index", None, star | double | clumpy, "Sersic index"),
        ("axis_ratio", None, star, "minor over major axis of Sersic profile or disc"),
        ("angle", u.deg, star, "of the major axis, from +x to +y"),
        ("bulge_fraction", None, ~double, "the bulge's share of the flux"),
        ("bulge_size", None, ~double, "half-light radius of the bulge over the disc's"),
        ("arm_strength", None, ~spiral, "contrast of the spiral arms"),
        ("arm_pitch", u.deg, ~spiral, "pitch angle of the spiral arms"),
        ("arm_phase", u.deg, ~spiral, "phase of the spiral arms"),
        ("n_clumps", None, ~clumpy, "number of clumps"),
        ("clump_fraction", None, ~clumpy, "the clumps' share of the flux"),
        ("clump_seed", None, ~clumpy, "seed of the places of the clumps"),
        ("neighbor_flux", None, None, "light of others within 2 half-light radii"),
        ("companion_of", None, None, "id of the galaxy that it was placed next to"),
    ):
        if name not in truth:
            continue
        values = np.degrees(truth[name]) if unit == u.deg else truth[name]
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if name == "companion_of":
            hidden = values < 0
        if hidden is not None:
            full = np.broadcast_to(
                hidden.reshape(-1, *[1] * (values.ndim - 1)), values.shape
            )
            values = np.ma.array(values, mask=full)
        table[name] = values if unit is None else _with_unit(values, unit)
        table[name].info.description = description
    return table


def _with_unit(values, unit):
    if np.ma.isMaskedArray(values):
        return Masked(values.data, mask=values.mask) * unit
    return values * unit


def truth_from_table(table, rows):
    """Rows of a table of the truth, as they were before they became one."""
    truth = {}
    for name in table.colnames:
        values = table[name][rows]
        values = getattr(values, "unmasked", values)
        if getattr(values, "unit", None) == u.deg:
            values = values.to(u.rad)
        truth[name] = np.ma.getdata(np.ma.asarray(getattr(values, "value", values)))
    flux = truth["flux"]
    truth["color"] = flux[:, np.newaxis] if flux.ndim == 1 else flux
    fraction = truth["bulge_fraction"]
    truth["bulge_fraction"] = fraction.reshape(len(fraction), -1)
    return truth
