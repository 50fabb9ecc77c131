# Licensed under a 3-clause BSD style license - see LICENSE
"""
How fast galaxies are generated: from properties to images before the PSF.

`galaxy_small` on 64 x 64 pixels and a flow of five blocks, against GalSim drawing the
real galaxies of a catalogue in its own format, deconvolved and convolved anew, on as
many pixels. Weights are as they were made: they do not matter for the time. Both take
turns::

    python benchmarks/generation.py --json generation.json
    ASTROVAE_DATA=folder python benchmarks/generation.py

Real galaxies are those of ``cosmos_hst/real_galaxy_catalog_26_extension_example.fits``
in the folder that ``ASTROVAE_DATA`` names; without it, only our own are timed.
"""

import argparse
import os
from pathlib import Path

import keras
import numpy as np
from _timing import interleaved, ratio, report
from astropy.table import Table

from astrovae.datasets import make_galaxies
from astrovae.models import VAE, Condition, LatentFlow

CATALOG = "real_galaxy_catalog_26_extension_example.fits"
SHAPE = (64, 64)


def make_flow():
    """A flow that was fitted for one pass to small simulations."""
    table, stack = make_galaxies(256, shape=SHAPE, seed=1)
    vae = VAE.from_preset("galaxy_small", image_shape=stack.image_shape)
    vae.adapt(stack)
    flow = LatentFlow(num_blocks=5, hidden_units=(256, 256), seed=1)
    names = ("flux", "half_light_radius", "axis_ratio")
    table = Table({name: np.asarray(table[name], float) for name in names})
    conditions = [Condition("flux", transform="log"), *names[1:]]
    flow.fit(table, vae, stack, conditions=conditions, epochs=1, verbose=0)
    return flow, table


def real_galaxies(folder, number):
    """GalSim's drawing of real galaxies, as a function without arguments."""
    import galsim

    catalog = galsim.RealGalaxyCatalog(CATALOG, dir=str(folder / "cosmos_hst"))
    psf = galsim.Gaussian(fwhm=0.1)
    images = np.empty((number, *SHAPE))

    def draw():
        for i in range(number):
            index = i % catalog.nobjects
            galaxy = galsim.RealGalaxy(catalog, index=index, noise_pad_size=0)
            observed = galsim.Convolve(galaxy, psf)
            image = observed.drawImage(nx=SHAPE[1], ny=SHAPE[0], scale=0.03)
            images[i] = image.array

    return draw


def main():
    """Time both, and say how many galaxies a second are made."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 2)[1])
    parser.add_argument("--json", help="where to write the numbers")
    parser.add_argument("--galaxies", type=int, default=8192)
    parser.add_argument("--real", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    flow, table = make_flow()
    rows = np.random.default_rng(0).integers(len(table), size=options.galaxies)
    # a hundredth of the rows or so are out of the support, and would be warned of
    rows = rows[flow._encoded(table[rows])[2]]
    wanted = table[rows]
    functions = {
        "LatentFlow.sample": lambda: flow.sample(wanted, seed=1, batch_size=1024)
    }
    items = {"LatentFlow.sample": len(wanted)}
    folder = Path(os.environ.get("ASTROVAE_DATA", "."))
    if (folder / "cosmos_hst" / CATALOG).exists():
        functions["galsim.RealGalaxy"] = real_galaxies(folder, options.real)
        items["galsim.RealGalaxy"] = options.real
    times = interleaved(functions, repeats=options.repeats)
    seconds = {name: times[name] / items[name] for name in times}
    results = {
        "backend": keras.config.backend(),
        "galaxies": len(wanted),
        "galaxies_per_second": float(1 / np.median(seconds["LatentFlow.sample"])),
        "ratio_real_galaxy": ratio(seconds, "galsim.RealGalaxy", "LatentFlow.sample"),
    }
    rows = [(name, times[name], items[name]) for name in times]
    report(rows, results, options.json)


if __name__ == "__main__":
    main()
