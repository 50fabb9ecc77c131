# Licensed under a 3-clause BSD style license - see LICENSE
"""
Sersic fits of simulated cutouts: astrovae beside a fitter of astropy.

Both fit the same noisy galaxies, blurred by the same PSF, in turns. Our time is
end to end, from pixels to errors, with both starts. The fitter of astropy is given
the truth as its start for nothing; its model is `Sersic2D` on three points per
pixel along each axis, convolved with the PSF, and its derivatives are numeric::

    KERAS_BACKEND=jax python benchmarks/sersic_fit.py --json sersic_fit.json
"""

import os

# before NumPy is loaded: the fitter of astropy is to have one core
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import time
import warnings

import keras
import numpy as np
from _timing import ratio, report
from astropy.modeling import Fittable2DModel, Parameter
from astropy.modeling.fitting import TRFLSQFitter
from astropy.modeling.models import Sersic2D
from astropy.utils.exceptions import AstropyUserWarning
from scipy.signal import fftconvolve

from astrovae.baselines import SersicFit
from astrovae.datasets import make_galaxies

SIZE, FINE = 33, 3
NAMES = ("x", "y", "half_light_radius", "sersic_index", "axis_ratio", "angle")


def plain(column):
    """Values of a column without unit and mask."""
    values = getattr(column, "unmasked", column)
    return np.array(np.ma.getdata(getattr(values, "value", values)), dtype=float)


def blurred_sersic(psf):
    """Make a model for the fitters of astropy, with a given PSF."""
    half = len(psf) // 2
    fine = (np.arange((SIZE + 2 * half) * FINE) + 0.5) / FINE - 0.5 - half
    grid = np.meshgrid(fine, fine)

    class Blurred(Fittable2DModel):
        amplitude = Parameter(default=1.0)
        x_0, y_0 = Parameter(default=16.0), Parameter(default=16.0)
        r_eff = Parameter(default=3.0, bounds=(0.05, 66))
        n = Parameter(default=1.5, bounds=(0.3, 8))
        axis_ratio = Parameter(default=0.6, bounds=(0.1, 1))
        theta = Parameter(default=0.0)

        @staticmethod
        def evaluate(x, y, *parameters):
            values = [float(np.ravel(value)[0]) for value in parameters]
            a, x_0, y_0, r_eff, n, axis_ratio, theta = values
            light = Sersic2D(a, r_eff, n, x_0, y_0, 1 - axis_ratio, theta)(*grid)
            size = len(fine) // FINE
            light = light.reshape(size, FINE, size, FINE).mean(axis=(1, 3))
            return fftconvolve(light, psf, mode="valid").reshape(x.shape)

    return Blurred


def main():
    """Run the comparison, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("-n", type=int, default=256, help="images for ours")
    parser.add_argument("--astropy", type=int, default=5, help="images per turn")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", AstropyUserWarning)
    radii, snr = (1.5, 4.0), (50.0, 500.0)
    truth, stack = make_galaxies(
        2 * options.n, shape=SIZE, half_light_radius=radii, snr=snr, seed=5
    )
    single = np.flatnonzero(np.asarray(truth["kind"]) == "sersic")[: options.n]
    truth, stack = truth[single], stack[single]
    starts = np.stack([plain(truth[name]) for name in NAMES], axis=1)
    starts[:, -1] = np.radians(starts[:, -1])
    model = blurred_sersic(np.asarray(stack.psf)[0, ..., 0].astype(float))
    fitter, fit = TRFLSQFitter(), SersicFit()
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    fit.fit(stack)  # compiles
    times, worse = {"astrovae": [], "TRFLSQFitter": []}, []
    for turn in range(options.repeats):
        begin = time.perf_counter()
        fit.fit(stack)
        times["astrovae"].append((time.perf_counter() - begin) / len(stack))
        rows = np.arange(turn * options.astropy, (turn + 1) * options.astropy)
        begin = time.perf_counter()
        for row in rows % len(stack):
            data = stack.data[row, ..., 0].astype(float)
            weights = 1 / stack.error[row, ..., 0].astype(float)
            first = model(data.max(), *starts[row])
            best = fitter(first, x, y, data, weights=weights, maxiter=200)
            chi2 = np.square(weights * (best(x, y) - data)).sum()
            # their pixels are not quite ours: both are known to about 1e-3
            worse.append(fit.chi2_[row] - chi2)
        times["TRFLSQFitter"].append((time.perf_counter() - begin) / len(rows))
    times = {name: np.array(seconds) for name, seconds in times.items()}
    pulls = {}
    for name, ours in (("half_light_radius", "r_eff"), ("sersic_index", "n")):
        pull = getattr(fit, f"{ours}_") - plain(truth[name])
        pull /= getattr(fit, f"{ours}_err_")
        pulls[f"coverage_{ours}"] = float((abs(pull) < 1).mean())
    results = {
        "backend": keras.config.backend(),
        "vs_trf": ratio(times, "TRFLSQFitter", "astrovae"),
        "fits_per_second": float(1 / np.median(times["astrovae"])),
        "converged_share": float(fit.converged_.mean()),
        "median_chi2_difference": float(np.median(worse)),
        "largest_chi2_difference": float(np.max(worse)),
        **pulls,
    }
    report([(name, s, 1) for name, s in times.items()], results, options.json)


if __name__ == "__main__":
    main()
