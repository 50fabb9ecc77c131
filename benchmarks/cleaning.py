# Licensed under a 3-clause BSD style license - see LICENSE
"""
Cleaning of real cutouts: pictures to look at, and what was removed.

For each data set a montage of cutouts before, the mask, and after, with neighbours
filled, and the share of companions that was removed. Real data is read from the
folder that ``ASTROVAE_DATA`` names::

    ASTROVAE_DATA=data python benchmarks/cleaning.py --folder montages

What counts as a companion differs: pixels of the masks that came with the SDSS
images, other peaks of the footprints of Hyper Suprime-Cam, and else what was
detected besides the target.

Then cleaning from a mosaic is timed beside photutils: one simulated image, the same
threshold, kernel, boxes and contrast. photutils measures the background, convolves,
detects and deblends; astrovae does that, merges what no valley divides, measures the
sources, cuts a stamp for each and cleans it. They take turns, and medians count.
"""

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np
from _timing import interleaved
from astropy.convolution import convolve_fft
from astropy.table import Table
from photutils.background import Background2D
from photutils.segmentation import (
    deblend_sources,
    make_2dgaussian_kernel,
)
from photutils.segmentation import detect_sources as detect_segments

from astrovae.datasets import make_survey
from astrovae.flags import Flag
from astrovae.images import (
    CutoutStack,
    clean_cutouts,
    detect_sources,
    make_cutouts,
    read_hsc_blends,
    read_image,
)

# cutouts in a montage
ROWS, COLUMNS = 8, 3


def sdss(folder):
    """Cut out the galaxies of Gadotti (2009), with the masks of their neighbours."""
    stacks, masks = [], []
    for path in sorted((folder / "sdss_r_gadotti").iterdir()):
        image, sigma, mask = (
            read_image(path / f"{name}.fit") for name in ("image", "sigma", "mask")
        )
        table, segments = detect_sources(image)
        center = [(n - 1) / 2 for n in image.data.shape[::-1]]
        distance = np.hypot(table["x"].value - center[0], table["y"].value - center[1])
        target = table[[distance.argmin()]]
        options = {"error": sigma, "segmentation": segments, "bands": ["r"]}
        stacks.append(make_cutouts(image, target, 192, **options))
        masks.append(make_cutouts(mask, target, 192).data[0, ..., 0] > 0)
    stack = CutoutStack.concatenate(stacks)
    return stack, {}, np.array(masks)


def hsc(folder):
    """Cut out the peaks of blends, with where the other peaks are."""
    stack = read_hsc_blends(folder / "hsc_blends.zip", shape=48)
    companions = np.zeros(stack.mask.shape[:3], bool)
    origin = np.ceil(stack.positions - 24)
    for row, name in enumerate(stack.columns["footprint"]):
        same = np.flatnonzero(stack.columns["footprint"] == name)
        x, y = (stack.positions[same[same != row]] - origin[row]).round().astype(int).T
        inside = (x >= 0) & (x < 48) & (y >= 0) & (y < 48)
        companions[row, y[inside], x[inside]] = True
        companions[row] &= ~stack.mask[row].all(axis=-1)
    return stack, {}, companions


def fits_samples(folder):
    """Cut out the brightest sources of images of several telescopes."""
    stacks = []
    for name in (
        "a2744_hst_f105w/abell_2744_group_of_galaxies_f105w.fits.gz",
        "a2744_hst_f105w/abell_2744_spiral_galaxy_f105w.fits.gz",
        "a2744_hst_f105w/abell_2744_dwarf_galaxy_f105w.fits.gz",
        "hsc_hst_scarlet/Cut_HST.fits",
        "hsc_hst_scarlet/Cut_HST1.fits",
        "sdss_r_pawlik/sdsslcutout_168.37-0.90_rband.fits",
        "sdss_r_pawlik/sdsslcutout_169.18-0.21_rband.fits",
        "sdss_r_pawlik/sdsslcutout_170.20+0.46_rband.fits",
    ):
        image = read_image(folder / "fits_samples" / name)
        table, segments = detect_sources(image, box_size=50)
        middle = (np.array(image.data.shape[::-1]) - 1) / 2
        near = np.hypot(table["x"].value - middle[0], table["y"].value - middle[1])
        bright = table["flux"].argsort()[::-1][:2]
        rows = np.unique([near.argmin(), *bright])
        stack = make_cutouts(image, table[rows], 96, segmentation=segments)
        stacks.append(stack.replace(pixel_scale=None, unit=None))
    return CutoutStack.concatenate(stacks), {}, None


def galaxy_zoo(folder):
    """Read pictures of galaxies, the central half of them."""
    path = folder / "gz2_images.zip"
    table = Table.read(folder / "gz2_galaxies.csv", format="csv")
    ids = table["GalaxyID"][:300].tolist()
    stack = CutoutStack.from_images(path, ids=ids, shape=207)
    # blocks of three by three pixels, whose noise is no longer correlated
    data = stack.data.reshape(len(stack), 69, 3, 69, 3, 3).mean(axis=(2, 4))
    options = {"quantization_step": 1.0, "noise": "estimate"}
    return CutoutStack(data, ids=stack.ids, bands=stack.bands), options, None


SETS = {
    "sdss_r_gadotti": sdss,
    "hsc_blends": hsc,
    "fits_samples": fits_samples,
    "gz2_images": galaxy_zoo,
}


def measure(name, stack, options, companions):
    """Clean a stack, and say what that did."""
    clean_cutouts(stack[:4], **options)
    start = time.perf_counter()
    clean = clean_cutouts(stack, **options)
    seconds = time.perf_counter() - start
    # a neighbour is gone if all bands are masked
    new = (clean.mask & ~stack.mask).any(axis=-1)
    sky = np.nan_to_num(clean.columns["background"])[:, np.newaxis, np.newaxis]
    light = np.where(stack.mask, 0, stack.data - sky).sum(axis=-1)
    target = clean.segmentation == clean.labels[:, np.newaxis, np.newaxis]
    target &= clean.segmentation > 0
    others = (clean.segmentation > 0) & ~target
    if companions is None:
        companions = others
        kind = "light of detected companions"
    else:
        kind = "companions" if name == "hsc_blends" else "light of known companions"
    weight = companions * (1.0 if name == "hsc_blends" else np.maximum(light, 0))
    known = weight.sum()
    flags = np.array(clean.flags)
    results = {
        f"{kind}, share removed": (weight * new).sum() / known,
        f"{kind}, share inside targets": (weight * target).sum() / known,
        "cutouts": len(stack),
        "cutouts with neighbours": ((flags & Flag.NEIGHBOR) > 0).mean(),
        "cutouts without a source": ((flags & Flag.NO_SOURCE) > 0).mean(),
        "pixels masked": new.mean(),
        "cutouts/s": len(stack) / seconds,
    }
    return clean, {f"{name}: {key}": float(value) for key, value in results.items()}


def time_mosaic(side, repeats):
    """Time cleaning from a mosaic beside the detection and deblending of photutils."""
    n = side**2 // 8000
    _, image = make_survey(n, n_stars=n // 4, shape=(side, side), background=50, seed=1)
    pixels = image.data[..., 0]
    kernel = make_2dgaussian_kernel(3.0, size=9)
    n_segments = {}

    def photutils():
        maps = Background2D(pixels, 64, filter_size=3)
        smooth = convolve_fft(pixels - maps.background, kernel)
        limit = 2.0 / np.sqrt(4 * np.pi * (3.0 / 2.3548) ** 2) * maps.background_rms
        segments = detect_segments(smooth, limit, 10)
        segments = deblend_sources(
            smooth, segments, 10, contrast=0.005, progress_bar=False
        )
        n_segments["photutils alone"] = segments.n_labels

    def astrovae(engine="photutils"):
        table, segments = detect_sources(
            image, n_sigma=2.0, kernel_fwhm=3.0, engine=engine
        )
        clean_cutouts(make_cutouts(image, table, 64, segmentation=segments))
        n_segments[f"astrovae with {engine}"] = len(table)

    functions = {"photutils": photutils, "astrovae": astrovae}
    if importlib.util.find_spec("sep"):
        functions["astrovae with sep"] = lambda: astrovae("sep")
    times = interleaved(functions, repeats=repeats)
    results = {f"mosaic: {name} [s]": np.median(t) for name, t in times.items()}
    for name in list(times)[1:]:
        ratio = np.median(times[name] / times["photutils"])
        results[f"mosaic: {name} over photutils' time"] = ratio
    for name, count in n_segments.items():
        results[f"mosaic: sources, {name}"] = count
    return {name: float(value) for name, value in results.items()}


def montage(path, name, stack, options, clean):
    """Draw cutouts before, the mask, and after."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from astropy.visualization import AsinhStretch, ImageNormalize

    filled = clean_cutouts(stack, **(options | {"neighbors": "fill"}))
    # those with most to remove first, then some at random
    new = (clean.mask & ~stack.mask).any(axis=-1).mean(axis=(1, 2))
    order = np.argsort(-new, kind="stable")
    n = ROWS * COLUMNS
    rest = np.random.default_rng(0).permutation(order[n // 3 :])
    rows = np.concatenate([order[: n // 3], rest])[:n]
    n_rows = -(-len(rows) // COLUMNS)
    size = (3.6 * COLUMNS, 1.25 * n_rows + 0.4)
    figure, axes = plt.subplots(n_rows, 3 * COLUMNS, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, row in enumerate(rows):
        y, x = divmod(place, COLUMNS)
        planes = []
        sky = np.nan_to_num(clean.columns["background"][row])
        before = np.where(stack.mask[row], np.nan, stack.data[row] - sky).mean(axis=-1)
        after = np.where(stack.mask[row], np.nan, filled.data[row]).mean(axis=-1)
        rms = np.nanmean(clean.columns["background_rms"][row]) or 1.0
        rms = rms if np.isfinite(rms) else np.nanstd(before)
        top = max(np.nanpercentile(before, 99.5), 10 * rms)
        norm = ImageNormalize(
            vmin=-2 * rms, vmax=top, stretch=AsinhStretch(3 * rms / top)
        )
        planes = [before, before, after]
        for number, plane in enumerate(planes):
            axis = axes[y, 3 * x + number]
            axis.imshow(plane, origin="lower", norm=norm, cmap="gray")
        axis = axes[y, 3 * x + 1]
        shade = np.zeros((*before.shape, 4))
        shade[(clean.mask[row] & ~stack.mask[row]).any(axis=-1)] = (1, 0.2, 0.1, 0.6)
        axis.imshow(shade, origin="lower")
        if clean.labels[row]:
            target = clean.segmentation[row] == clean.labels[row]
            axis.contour(target, levels=[0.5], colors="lime", linewidths=0.6)
        axes[y, 3 * x].set_title(f"{stack.ids[row]}", fontsize=5, pad=1)
    figure.suptitle(f"{name}: before, mask (target outlined), after", fontsize=8)
    top = 1 - 0.5 / size[1]
    figure.subplots_adjust(0.005, 0.005, 0.995, top, 0.02, 0.1)
    figure.savefig(path / f"{name}.png", dpi=110)
    plt.close(figure)


def main():
    """Clean all sets, draw their montages, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--folder", type=Path, help="where montages are saved")
    parser.add_argument("--side", type=int, default=1500, help="of the mosaic")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    options = parser.parse_args()
    if options.sets and "ASTROVAE_DATA" not in os.environ:
        parser.error("set ASTROVAE_DATA to the folder of the real data")
    folder = Path(os.environ.get("ASTROVAE_DATA", "."))
    results = time_mosaic(options.side, options.repeats)
    for key, value in results.items():
        print(f"{key:<64}{value:>10,.3f}", flush=True)
    for name in options.sets:
        stack, parameters, companions = SETS[name](folder)
        clean, numbers = measure(name, stack, parameters, companions)
        results |= numbers
        for key, value in numbers.items():
            print(f"{key:<64}{value:>10,.3f}", flush=True)
        if options.folder:
            options.folder.mkdir(parents=True, exist_ok=True)
            montage(options.folder, name, stack, parameters, clean)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
