# Licensed under a 3-clause BSD style license - see LICENSE
"""
Blends by the second: generated galaxies against the toolkit's own parametric ones.

Both draw as many galaxies for the same survey, in interleaved runs. It needs an
environment with blending-toolkit (and so with astropy 6)::

    python benchmarks/blends.py --json blends.json
"""

import argparse
import json
import time
from pathlib import Path

import btk
import numpy as np
from astropy.table import Table
from keras.utils import set_random_seed

from astrovae.images import CutoutStack
from astrovae.interop.btk import GeneratedBlends, GeneratedCatalog
from astrovae.models import VAE

SHAPE, SCALE = 64, 0.2
BANDS = ("u", "g", "r", "i", "z", "y")


class Flow:
    """The decoder of `galaxy_small` at latents of its prior: what painting costs."""

    def __init__(self):
        shape = (SHAPE, SHAPE, len(BANDS))
        self.vae = VAE.from_preset("galaxy_small", image_shape=shape, pose=False)

    def sample(self, table, *, seed=0):
        light = np.abs(self.vae.sample(len(table), seed=seed)["mean"])
        return CutoutStack(light, bands=BANDS, pixel_scale=SCALE)


def catalog(n, rng):
    """Galaxies of the toolkit: discs, half of them with a bulge."""
    bulge = rng.random(n) < 0.5
    table = Table({f"{band}_ab": rng.uniform(20, 24, n) for band in BANDS})
    table["fluxnorm_disk"] = 1.0
    table["fluxnorm_bulge"] = np.where(bulge, 0.3, 0.0)
    table["fluxnorm_agn"] = 0.0
    for part, size in (("d", 0.8), ("b", 0.4)):
        table[f"a_{part}"] = size * rng.uniform(0.5, 1.5, n)
        table[f"b_{part}"] = table[f"a_{part}"] * rng.uniform(0.3, 1, n)
    table["pa_disk"] = table["pa_bulge"] = rng.uniform(0, 180, n)
    table["ra"] = table["dec"] = 0.0
    return table


def main():
    """Time both generators."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    set_random_seed(1)
    table = catalog(500, np.random.default_rng(1))
    survey = btk.survey.get_surveys("LSST")

    def sampling():
        return btk.sampling_functions.DefaultSampling(
            max_number=3, min_number=3, stamp_size=15, max_mag=30, seed=1
        )

    options = {"batch_size": arguments.batch_size}
    generators = {
        "astrovae": GeneratedBlends(
            GeneratedCatalog(table),
            sampling(),
            survey,
            Flow(),
            zero_point=30,
            **options,
        ),
        "catsim": btk.draw_blends.CatsimGenerator(
            btk.catalog.CatsimCatalog(table), sampling(), survey, **options
        ),
    }
    seconds = {name: [] for name in generators}
    for turn in range(arguments.repeats + 1):
        for name, generator in generators.items():
            start = time.perf_counter()
            next(generator)
            if turn:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    number = 3 * arguments.batch_size * len(BANDS)
    rates = {name: number / np.median(times) for name, times in seconds.items()}
    ratios = np.divide(seconds["catsim"], seconds["astrovae"])
    results = {f"{name}_galaxy_bands_per_second": rate for name, rate in rates.items()}
    results |= {"ratio": float(np.median(ratios)), "batch_size": arguments.batch_size}
    for name, value in results.items():
        print(f"{name:36}{value:10.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
