# Licensed under a 3-clause BSD style license - see LICENSE
"""
Cutouts from a large FITS image: astrovae beside astropy and photutils.

All contestants cut the same 64 x 64 stamps around the same coordinates from the
same memory-mapped file, in turns, several times; the medians count. Each must
give pixels in memory: views are copied.

What each does differs. ``make_cutouts`` is given coordinates on the sky; it makes one
array in the byte order of the machine, finds pixels that are not finite, and makes
the mask, in as many threads as there are processors, up to four. ``Cutout2D`` gets
pixel positions, or coordinates, and gives each stamp its WCS. ``extract_array`` gets
pixel positions and leaves pixels in the byte order of the file; "to the same stack"
has it do what ``make_cutouts`` does, but for coordinates. For one processor, begin
with ``taskset -c 0``. Cleaning is given the labels of sources, which cover an eighth
of the pixels; filling measures the sky of each stamp, whose noise it needs. By
default it takes about a minute::

    python benchmarks/cutouts.py --json cutouts.json
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D, extract_array
from astropy.table import Table
from astropy.wcs import WCS

from astrovae.images import clean_cutouts, make_cutouts, read_image

SHAPE = (64, 64)


def make_image(path, size, rng):
    """Write a FITS image of noise with a WCS, a few rows at a time."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150, 2]
    wcs.wcs.crpix = [size / 2, size / 2]
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    header = fits.PrimaryHDU(header=wcs.to_header()).header
    header.update({"BITPIX": -32, "NAXIS": 2})
    header.set("NAXIS1", size, after="NAXIS")
    header.set("NAXIS2", size, after="NAXIS1")
    stream = fits.StreamingHDU(path, header)
    block = rng.standard_normal((500, size), dtype=np.float32).astype(">f4")
    for start in range(0, size, 500):
        stream.write(block[: size - start])
    stream.close()


def contestants(image, table):
    """Return the functions that are compared; each takes a number of rows."""
    data, wcs = image.data, image.wcs
    sky = SkyCoord(table["ra"], table["dec"], unit=u.deg)
    x, y = wcs.world_to_pixel(sky)

    def astrovae(n):
        return make_cutouts(image, table[:n], SHAPE).data

    def cutout2d_wcs(n):
        positions = zip(x[:n], y[:n], strict=True)
        return [
            Cutout2D(data, xy, SHAPE, wcs=wcs, mode="partial", copy=True).data
            for xy in positions
        ]

    def cutout2d_skycoord(n):
        return [
            Cutout2D(data, one, SHAPE, wcs=wcs, mode="partial", copy=True).data
            for one in sky[:n]
        ]

    def extract(n):
        positions = zip(y[:n], x[:n], strict=True)
        return [extract_array(data, SHAPE, yx).copy() for yx in positions]

    def extract_stack(n):
        out = np.empty((n, *SHAPE), np.float32)
        for row, yx in enumerate(zip(y[:n], x[:n], strict=True)):
            out[row] = extract_array(data, SHAPE, yx, fill_value=0)
        return out, ~np.isfinite(out)

    return {
        "astrovae": (astrovae, 1.0),
        "Cutout2D with WCS": (cutout2d_wcs, 0.1),
        "Cutout2D with SkyCoord": (cutout2d_skycoord, 0.02),
        "extract_array": (extract, 0.5),
        "extract_array to the same stack": (extract_stack, 0.5),
    }


def measure(functions, n, repeats):
    """Run everything in turns and return the median rates, in stamps/s."""
    rates = {name: [] for name in functions}
    for _ in range(repeats):
        for name, (function, share) in functions.items():
            rows = max(10, int(n * share))
            start = time.perf_counter()
            function(rows)
            rates[name].append(rows / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def measure_cleaning(n, repeats, rng):
    """Rate of masking and filling neighbours, given labels."""
    size, n_sources = 1000, 1500
    y, x = rng.uniform(40, size - 40, (2, n))
    labels = np.zeros((size, size), np.int32)
    for label in range(1, n_sources + 1):
        radius = rng.integers(2, 9)
        row, column = rng.integers(radius, size - radius, 2)
        across = np.arange(-radius, radius + 1)
        disc = across[:, np.newaxis] ** 2 + across**2 <= radius**2
        part = labels[
            row - radius : row + radius + 1, column - radius : column + radius + 1
        ]
        part[disc] = label
    stack = make_cutouts(
        rng.standard_normal((size, size), dtype=np.float32),
        Table({"x": x, "y": y}),
        SHAPE,
        segmentation=labels,
    )
    functions = {
        f"neighbours {kind}": (
            # all rows: choosing some would copy their pixels
            lambda rows, kind=kind: clean_cutouts(
                stack, background=None, neighbors=kind
            ),
            1.0,
        )
        for kind in ("mask", "fill")
    }
    return measure(functions, n, repeats)


def main():
    """Run the comparison, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--size", type=int, default=10_000, help="pixels per side")
    parser.add_argument("-n", type=int, default=10_000, help="stamps")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mosaic.fits"
        make_image(path, options.size, rng)
        image = read_image(path)
        x, y = rng.uniform(64, options.size - 64, (2, options.n))
        sky = image.wcs.pixel_to_world(x, y)
        table = Table({"ra": sky.ra.deg, "dec": sky.dec.deg})
        functions = contestants(image, table)
        rates = measure(functions, options.n, options.repeats)
    rates |= measure_cleaning(options.n, options.repeats, rng)
    results = {f"{name} [stamps/s]": rate for name, rate in rates.items()}
    for name in functions:
        if name != "astrovae":
            results[f"astrovae over {name}"] = rates["astrovae"] / rates[name]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    results |= {
        "processors": cpus or os.cpu_count(),
        "stamps": options.n,
        "image side": options.size,
        "peak MiB": peak,
    }
    for name, value in results.items():
        print(f"{name:<42}{value:>14,.1f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
