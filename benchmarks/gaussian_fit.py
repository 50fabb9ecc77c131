# Licensed under a 3-clause BSD style license - see LICENSE
"""
Gaussian fits of 69 x 69 cutouts: astrovae beside the fitters of astropy.

All fit the same pixels in turns, several times; the medians of the ratios count.
Our time is end to end, starting guesses and compiled search and measures of the
residual included. The fitters of astropy are given our first guess for nothing,
so that all descend from the same start. Simulated galaxies are used, and those
of Galaxy Zoo 2 as well if ASTROVAE_DATA names the folder of real data::

    KERAS_BACKEND=jax python benchmarks/gaussian_fit.py --json gaussian_fit.json

With ``--starts``, real images are fitted again from ten times as many starts, to
see how many fits that improves.
"""

import os

# before NumPy is loaded: the fitters of astropy are to have one core each
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import io
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
from _timing import ratio, report
from astropy.io import fits
from astropy.modeling.fitting import LevMarLSQFitter, TRFLSQFitter
from astropy.modeling.models import Gaussian2D
from astropy.utils.exceptions import AstropyUserWarning
from PIL import Image

from astrovae._batches import RowFunction
from astrovae._sources import as_source
from astrovae.baselines import GaussianFit
from astrovae.baselines._gaussian_newton import GaussianNewton
from astrovae.datasets import make_galaxies

SIZE = 69


def galaxy_zoo(folder, n, seed=0):
    """Read n images: grey, the central 207 pixels averaged to 69 x 69, 0 to 1."""
    images = np.empty((n, SIZE, SIZE), dtype=np.float32)
    with zipfile.ZipFile(folder / "gz2_images.zip") as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        chosen = np.random.default_rng(seed).choice(len(names), n, replace=False)
        for row, index in enumerate(chosen):
            color = Image.open(io.BytesIO(file.read(names[index])))
            grey = np.asarray(color) @ np.array([0.2125, 0.7154, 0.0721])
            edge = (len(grey) - 3 * SIZE) // 2
            center = grey[edge : edge + 3 * SIZE, edge : edge + 3 * SIZE]
            images[row] = center.reshape(SIZE, 3, SIZE, 3).mean(axis=(1, 3)) / 255
    return images


def candels(folder, band, n, seed=0):
    """Read n cutouts of a band, of rows that have it."""
    with fits.open(folder / "candels_gds.fits") as file:
        rows = np.flatnonzero(file["CATALOG"].data[f"has_{band}"])
        rows = np.random.default_rng(seed).choice(rows, n, replace=False)
        return file[band].data[np.sort(rows)].astype(np.float32)


def first_guesses(images, background=False):
    """Our first start for each image: (n, 5), centre and inverse covariance."""
    newton = GaussianNewton((*images.shape[1:], 1), background=background, n_starts=1)
    return RowFunction(newton.guess).map(as_source(images))["start"][:, 0]


def astropy_fits(fitter, images, starts):
    """Fit with astropy, one after the other, and return chi2."""
    y, x = np.mgrid[: images.shape[1], : images.shape[2]].astype(float)
    chi2 = []
    for image, (x0, y0, inverse, *_) in zip(images.astype(float), starts, strict=True):
        sigma = inverse**-0.5
        start = Gaussian2D(image.max(), x0, y0, sigma, sigma, 0.0)
        model = fitter(start, x, y, image)
        chi2.append(np.square(model(x, y) - image).sum())
    return np.array(chi2)


def compare(images, n_astropy, repeats, batch_size):
    """
    Time all in turns.

    Returns the seconds of each turn, and the share of images whose chi2 of
    ours is worse than the better one of astropy by more than 1e-6.
    """
    starts = first_guesses(images)
    fitters = {"LevMarLSQFitter": LevMarLSQFitter(), "TRFLSQFitter": TRFLSQFitter()}
    ours = {
        "astrovae, 1 start": GaussianFit(n_starts=1, batch_size=batch_size),
        "astrovae, 5 starts": GaussianFit(batch_size=batch_size),
    }
    for fit in ours.values():
        fit.fit(images)  # compiles
    times = {name: [] for name in (*ours, *fitters)}
    worse = []
    for turn in range(repeats):
        rows = np.arange(turn * n_astropy, (turn + 1) * n_astropy)
        chi2 = []
        for name, fit in ours.items():
            begin = time.perf_counter()
            fit.fit(images)
            times[name].append((time.perf_counter() - begin) / len(images))
        for name, fitter in fitters.items():
            begin = time.perf_counter()
            chi2.append(astropy_fits(fitter, images[rows], starts[rows]))
            times[name].append((time.perf_counter() - begin) / len(rows))
        best = np.minimum(*chi2)
        worse.append(ours["astrovae, 1 start"].chi2_[rows] > best * (1 + 1e-6))
    times = {name: np.array(seconds) for name, seconds in times.items()}
    return times, np.concatenate(worse)


def more_starts(folder, n, batch_size):
    """Compare five starts with fifty on real images, and return what that improves."""
    sets = {
        "gz2": galaxy_zoo(folder, n),
        "f160w": candels(folder, "F160W", n),
        "f814w": candels(folder, "F814W", n),
    }
    results = {}
    for name, images in sets.items():
        for background in (False, True):
            kind = f"{name}{'_background' if background else ''}"
            few, many = (
                GaussianFit(
                    background=background, n_starts=starts, batch_size=batch_size
                ).fit(images)
                for starts in (5, 50)
            )
            improved = float(np.mean(few.mse_ > 1.001 * many.mse_))
            results[f"improved_share_{kind}"] = improved
            results[f"not_converged_share_{kind}"] = float(np.mean(~few.converged_))
    return results


def main():
    """Run the comparison, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("-n", type=int, default=2000, help="images for ours")
    parser.add_argument("--astropy", type=int, default=100, help="images per turn")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=GaussianFit().batch_size)
    parser.add_argument("--starts", action="store_true", help="try ten times as many")
    options = parser.parse_args()
    warnings.simplefilter("ignore", AstropyUserWarning)
    folder = os.environ.get("ASTROVAE_DATA")
    results = {"backend": keras.config.backend()}
    if options.starts:
        if not folder:
            parser.error("--starts needs real data: set ASTROVAE_DATA to its folder")
        results |= more_starts(Path(folder), 500, options.batch_size)
        report([], results, options.json)
        return
    snr = {"snr": (50.0, 1000.0)}
    _, stack = make_galaxies(options.n, shape=SIZE, half_light_radius=(2, 9), **snr)
    sets = {"": stack.data[..., 0]}
    if folder:
        sets["gz2_"] = galaxy_zoo(Path(folder), options.n)
    rows = []
    for prefix, images in sets.items():
        times, worse = compare(
            images, options.astropy, options.repeats, options.batch_size
        )
        rows += [(prefix + name, seconds, 1) for name, seconds in times.items()]
        one, all_starts = "astrovae, 1 start", "astrovae, 5 starts"
        results |= {
            f"{prefix}vs_levmar": ratio(times, "LevMarLSQFitter", one),
            f"{prefix}vs_trf": ratio(times, "TRFLSQFitter", one),
            f"{prefix}chi2_worse_share": float(worse.mean()),
            f"{prefix}fits_per_second": float(1 / np.median(times[one])),
            f"{prefix}fits_per_second_all_starts": float(
                1 / np.median(times[all_starts])
            ),
        }
    report(rows, results, options.json)


if __name__ == "__main__":
    main()
