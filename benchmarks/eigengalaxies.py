# Licensed under a 3-clause BSD style license - see LICENSE
"""
Eigengalaxies of HST CANDELS, beside what Uzeirbegovic et al. 2020 published.

They describe 10,243 galaxies by 12 eigengalaxies that keep 96 percent of the
variance (arXiv:2004.06734). Variance is dominated by the few brightest
sources, so the share is also given without the brightest percent, and with
each galaxy counting the same. Then all galaxies are fitted, of which some lack
bands, and a band that was hidden in held-out galaxies is predicted from the
others. ASTROVAE_DATA must name the folder of real data::

    ASTROVAE_DATA=... python benchmarks/eigengalaxies.py --json eigengalaxies.json
"""

import os

# before NumPy is loaded
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import time
from pathlib import Path

import numpy as np
from _timing import report
from astropy.io import fits

from astrovae.baselines import EigenGalaxies

BANDS = ("F814W", "F125W", "F160W")
PUBLISHED = 0.96


def candels(folder):
    """Read all galaxies in three bands, and which bands they have."""
    with fits.open(folder / "candels_gds.fits") as file:
        has = np.stack([file["CATALOG"].data[f"has_{band}"] for band in BANDS], 1)
        images = np.stack([file[band].data for band in BANDS], axis=-1)
    return images.astype(np.float32), has.astype(bool)


def shares(images, n_components):
    """Explained variance of galaxies that have all bands."""
    power = np.square(images, dtype=float).mean(axis=(1, 2, 3))
    faint = images[power < np.quantile(power, 0.99)]
    return {
        "explained": explained(images, n_components, "flux"),
        "explained_without_brightest_percent": explained(faint, n_components, "flux"),
        "explained_equal": explained(images, n_components, "equal"),
    }


def explained(images, n_components, weighting):
    """The share of the variance that the components keep."""
    fit = EigenGalaxies(n_components, weighting=weighting).fit(images)
    return float(fit.explained_variance_ratio_.sum())


def hide_band(images, has, n_components, seed=0):
    """Predict the last band of held-out galaxies from the others."""
    rng = np.random.default_rng(seed)
    held_out = (rng.random(len(images)) < 0.2) & has.all(axis=1)
    mask = np.broadcast_to(~has[:, None, None], images.shape)
    begin = time.perf_counter()
    # as they are, the brightest sources decide what noise is
    fit = EigenGalaxies(n_components, weighting="equal")
    fit.fit({"image": images[~held_out], "mask": mask[~held_out]})
    seconds = time.perf_counter() - begin
    truth = images[held_out][..., -1]
    hidden = np.zeros((len(truth), *images.shape[1:]), dtype=bool)
    hidden[..., -1] = True
    image, _ = fit.impute({"image": images[held_out], "mask": hidden})
    error = np.square(image[..., -1] - truth, dtype=float).mean(axis=(1, 2))
    mean = fit.mean_.reshape(images.shape[1:])[..., -1]
    blind = np.square(mean - truth, dtype=float).mean(axis=(1, 2))
    other = np.square(images[held_out][..., -2] - truth, dtype=float).mean(axis=(1, 2))
    return {
        "n_galaxies_all": len(images),
        "share_with_missing_bands": float(1 - has.all(axis=1).mean()),
        "n_iter": fit.n_iter_,
        "seconds_fit": seconds,
        # medians, since the brightest sources have almost all of the error
        "hidden_band_rms": float(np.sqrt(np.median(error))),
        "hidden_band_rms_of_mean_galaxy": float(np.sqrt(np.median(blind))),
        "hidden_band_rms_of_next_band": float(np.sqrt(np.median(other))),
    }


def main():
    """Run the comparison, print the numbers and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--components", type=int, default=12)
    options = parser.parse_args()
    folder = os.environ.get("ASTROVAE_DATA")
    if not folder:
        parser.error("set ASTROVAE_DATA to the folder of real data")
    images, has = candels(Path(folder))
    results = {"n_components": options.components, "explained_published": PUBLISHED}
    complete = images[has.all(axis=1)]
    results["n_galaxies"] = len(complete)
    results |= shares(complete, options.components)
    results |= hide_band(images, has, options.components)
    report([], results, options.json)


if __name__ == "__main__":
    main()
