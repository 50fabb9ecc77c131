# Licensed under a 3-clause BSD style license - see LICENSE
"""
The comparison of Regier et al. 2015: a model of galaxies beside Gaussian fits.

On galaxies held out by id, how often is the reconstruction from a few latents
better than the least-squares Gaussian, with and without a constant background:
in squared error ("mse"), and in likelihood against the Gaussian at its best
sigma ("like")? Everything is measured on the original pixels of the test stamps.
Principal components stand beside, as many as latents, in the same pose::

    python benchmarks/regier.py --train gz2_images.zip --test gz2_images.zip
    python benchmarks/regier.py --train candels_gds.fits --test candels_gds.fits \
        --band F160W --band F814W --refine 80 --json regier.json

A zip holds colour JPEGs, ``<id>.jpg``: they become grey, the central 207 pixels
averaged to 69 x 69. A FITS file holds a cube ``(n, ny, nx)`` for each band, and a
table ``CATALOG`` of ``id`` and ``has_<band>``; there is one model per band. Ids that
are in both files are not trained on; if both are the same file, a fifth of the
ids is held out. Nothing is chosen on the test galaxies, which are touched once.
"""

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
from astropy.io import fits
from astropy.table import Table
from PIL import Image
from scipy import ndimage

from astrovae._progress import progress_bar
from astrovae.baselines import GaussianFit, win_rates
from astrovae.images import CutoutStack, align, measure_pose, unalign
from astrovae.models import VAE, GaussianLikelihood
from astrovae.models.networks_eigen import principal_components

SIZE = 69
LUMA = (0.2125, 0.7154, 0.0721)
HELD_OUT = 0.2
# of the training galaxies, to calibrate variances on
VALIDATION = 0.1
BATCH_SIZE = 128
# share of the side of a stamp: 6 of 30 pixels
APERTURE = 0.2
# what components miss of bright galaxies, in units of the median error
SOFTENING = 0.1
# a flux is not less than so many times its error
MIN_SNR = 3.0
BORDER = 3

# What was chosen on validation galaxies: passes over the aligned galaxies, mirrored
# at random; then the model may be fine-tuned on the observed pixels.
SETTINGS = {
    "zip": {
        "passes": 40,
        "fine_tuning": 0,
        "beta": 30.0,
        "profile": 3.0,
        "learning_rate": 1e-3,
    },
    "fits": {
        "passes": 240,
        "fine_tuning": 16,
        "beta": 1.5,
        "profile": 2.0,
        "learning_rate": 1e-3,
    },
}


# ---------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------


def read_jpegs(path):
    """Read a zip of JPEGs: grey, the central 207 pixels averaged to 69 x 69."""
    with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist() if name.lower().endswith(".jpg")]
        names = sorted(name for name in names if not Path(name).name.startswith("."))
        if not names:
            msg = f"{path} holds no file *.jpg."
            raise ValueError(msg)
        images = np.empty((len(names), SIZE, SIZE), np.float32)
        with progress_bar("Reading", len(names), show=True) as advance:
            for image, name in zip(images, names, strict=True):
                color = np.asarray(
                    Image.open(io.BytesIO(file.read(name))).convert("RGB")
                )
                top, left = ((side - 3 * SIZE) // 2 for side in color.shape[:2])
                if min(top, left) < 0:
                    msg = (
                        f"{name} in {path} has {color.shape[:2]} pixels; at least "
                        f"{3 * SIZE} x {3 * SIZE} are needed."
                    )
                    raise ValueError(msg)
                grey = color[top : top + 3 * SIZE, left : left + 3 * SIZE] @ LUMA
                image[:] = grey.reshape(SIZE, 3, SIZE, 3).mean(axis=(1, 3)) / 255
                advance(1)
    ids = np.array([Path(name).stem for name in names])
    return {"grey": CutoutStack(images, ids=ids, bands=["grey"])}


def read_cubes(path, bands):
    """Read FITS cubes: by band, the galaxies that have it, of unit flux."""
    stacks = {}
    with fits.open(path) as file:
        catalog = Table(file["CATALOG"].data)
        for band in bands or [hdu.name for hdu in file if len(hdu.shape) == 3]:
            if band not in file:
                msg = f"{path} has no band {band!r}, but {[h.name for h in file]}."
                raise ValueError(msg)
            data = file[band].data
            has = np.ones(len(data), bool)
            if f"has_{band}" in catalog.colnames:
                has = np.asarray(catalog[f"has_{band}"], bool)
            ids = np.array([str(name) for name in catalog["id"][has]])
            stacks[band] = normalize(data[has].astype(np.float32), ids, band)
    return stacks


def normalize(images, ids, band):
    """Divide galaxies by their fluxes, and measure the noise of their skies."""
    # blank parts of a stamp are exactly zero, and more than single pixels
    blank = ndimage.binary_opening(
        np.pad(images == 0, ((0, 0), (1, 1), (1, 1)), mode="edge"),
        np.ones((1, 3, 3), bool),
    )[:, 1:-1, 1:-1]
    mask = blank | ~np.isfinite(images)
    ny, nx = images.shape[1:]
    y, x = np.indices((ny, nx))
    edge = np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) < BORDER
    border = np.ma.array(images, mask=mask)[:, edge]
    center = np.ma.median(border, axis=1, keepdims=True)
    noise = 1.4826 * np.ma.median(np.ma.abs(border - center), axis=1)
    radius = np.hypot(x - (nx - 1) / 2, y - (ny - 1) / 2)
    aperture = radius <= APERTURE * min(ny, nx)
    flux = np.where(mask, 0, images)[:, aperture].sum(axis=1, dtype=float)
    least = MIN_SNR * noise.filled(0) * np.sqrt(aperture.sum())
    flux = np.maximum(flux, least)
    usable = (flux > 0) & (noise.filled(0) > 0) & (mask.mean(axis=(1, 2)) < 0.5)
    flux, noise = flux[usable, None, None], noise.filled(0)[usable, None, None]
    images, mask = images[usable] / flux, mask[usable]
    error = np.broadcast_to(noise / flux, images.shape)
    return CutoutStack(images, mask=mask, error=error, ids=ids[usable], bands=[band])


def read(path, bands):
    """Read a stack for each band."""
    if zipfile.is_zipfile(path):
        return "zip", read_jpegs(path)
    return "fits", read_cubes(path, bands)


def split(train, test, same_file, seed):
    """Keep apart the galaxies to train on, to calibrate on and to test on."""
    if same_file:
        held_out = train.held_out(HELD_OUT, seed=seed)
        train, test = train[~held_out], train[held_out]
    else:
        train = train[~np.isin(train.ids.astype(str), test.ids.astype(str))]
    validation = train.held_out(VALIDATION, seed=seed + 1)
    return train[~validation], train[validation], test


# ---------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------


def canvas_shape(stack):
    """A frame in which a turned stamp keeps its corners."""
    return tuple(
        side + 2 * int(np.ceil((np.sqrt(2) - 1) / 2 * side))
        for side in stack.image_shape[:2]
    )


def make_likelihood(kind, preset, profile):
    """The pixel distribution: that of the paper, or ours, with the noise we know."""
    floor = 1 / 255 / np.sqrt(12) if kind == "zip" else 0.0
    if preset == "regier2015":
        return GaussianLikelihood(transform="exp", sigma_floor=floor)
    return GaussianLikelihood(sigma_floor=floor, profile=profile)


def train_model(stack, aligned, kind, options):
    """Train on aligned galaxies, and give the model of those that are observed."""
    settings = SETTINGS[kind]
    source = stack if aligned is None else aligned
    model = VAE.from_preset(
        options.preset,
        image_shape=source.image_shape,
        latent_dim=options.latent_dim,
        likelihood=make_likelihood(kind, options.preset, settings["profile"]),
        beta=1.0 if options.preset == "regier2015" else settings["beta"],
        seed=options.seed,
    )
    passes = options.passes or settings["passes"]
    augment = None if aligned is None else "mirrors"
    rate = settings["learning_rate"]
    optimise(model, source, passes, rate, "Training", augment=augment)
    if aligned is None:
        return model
    # the same networks, between the encoder's and the observed frame
    posed = model.with_pose(stack)
    if settings["fine_tuning"]:
        passes = settings["fine_tuning"]
        optimise(posed, stack, passes, rate, "Fine-tuning", augment="flips")
    return posed


def optimise(model, source, passes, learning_rate, description, **kwargs):
    """Train with a learning rate that falls to zero."""
    steps = passes * -(-len(source) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate))
    with progress_bar(description, passes, show=True) as advance:
        bar = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: advance(1, f"loss {logs['loss']:.0f}")
        )
        model.fit(
            source,
            batch_size=BATCH_SIZE,
            epochs=passes,
            verbose=0,
            callbacks=[bar],
            **kwargs,
        )


def find_pose(stack, kind):
    """
    Measure how galaxies lie and are turned.

    Some of the stamps of a survey show neighbours or noise where the galaxy should
    be: there the Gaussian that fits best tells what is to be painted.
    """
    if kind == "zip":
        return measure_pose(stack)
    fit = GaussianFit().fit(stack, show_progress=True)
    return measure_pose(stack, known=fit.pose_)


class PrincipalComponents:
    """As many components as latents, in the same frame as the model."""

    def __init__(self, stack, n_components):
        images, valid = flat(stack)
        self.fits = {"pca": principal_components(images, n_components, valid)[:2]}
        if stack.error is None:
            residual = (images - self.paint("pca", images, valid)) * valid
            variance = np.square(residual).sum(axis=1) / valid.sum(axis=1)
        else:
            known = np.ma.array(stack.error, mask=stack.mask)
            variance = np.ma.median(known, axis=(1, 2, 3)).filled(1) ** 2
            # else the few brightest galaxies alone would count
            variance = variance + SOFTENING**2 * np.median(variance)
        found = principal_components(images, n_components, valid, 1 / variance)
        self.fits["pca_weighted"] = found[:2]

    def paint(self, name, images, valid):
        """Least squares over the valid pixels."""
        center, rows = self.fits[name]
        normal = np.einsum("np,ip,jp->nij", valid, rows, rows, optimize=True)
        right = (valid * (images - center)) @ rows.T
        return center + np.linalg.solve(normal, right[..., None])[..., 0] @ rows

    def measure(self, stack, aligned):
        """Squared errors on the original pixels, by name of the fit."""
        frame = stack if aligned is None else aligned
        images, valid = flat(frame)
        result = {}
        for name in self.fits:
            painted = self.paint(name, images, valid)
            painted = painted.reshape(-1, *frame.image_shape)
            if aligned is not None:
                painted = unalign(painted, stack.pose, shape=stack.image_shape[:2])
            result[name] = masked_mse(stack, painted)
        return result


def flat(stack):
    """Images with zeros for masked pixels, and the valid ones, (n, n_pixels)."""
    planes = stack.batch(np.arange(len(stack)))
    n = len(stack)
    return planes["image"].reshape(n, -1), 1.0 - planes["mask"].reshape(n, -1)


def masked_mse(stack, painted):
    """Mean squared error over the valid pixels of each galaxy."""
    valid = ~stack.mask
    squares = np.where(valid, np.square(stack.data - painted, dtype=float), 0)
    return squares.sum(axis=(1, 2, 3)) / valid.sum(axis=(1, 2, 3))


# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------


def run(train, test, same_file, kind, options):
    """Train and compare for one band, and give a flat object."""
    train, validation, test = split(train, test, same_file, options.seed)
    if options.validate:
        test = validation
    start = time.perf_counter()
    aligned = None
    if options.pose:
        train, validation = (find_pose(stack, kind) for stack in (train, validation))
        aligned = align(train, shape=canvas_shape(train), show_progress=True)
    model = train_model(train, aligned, kind, options)
    factor = model.calibrate(validation)
    seconds = time.perf_counter() - start
    result = {
        "backend": keras.config.backend(),
        "preset": options.preset,
        "n_train": len(train),
        "n_validation": len(validation),
        "n_test": len(test),
        "held_out_of_train_file": same_file,
        "latent_dim": options.latent_dim,
        "pose": options.pose,
        "per_galaxy_parameters": (["x", "y", "angle", "flip"] if options.pose else [])
        + (["flux"] if kind == "fits" else []),
        "variance_factor": factor,
        "seconds_train": seconds,
    }
    components = PrincipalComponents(
        train if aligned is None else aligned, options.latent_dim
    )
    if options.pose:
        test = find_pose(test, kind)
        aligned = align(test, shape=canvas_shape(test))
    gauss = GaussianFit().measure(test, show_progress=True)
    tables = {"": model_table(model, test, 0)}
    for name, mse in components.measure(test, aligned).items():
        tables[f"{name}_"] = Table({"pca_mse": mse})
    if options.refine:
        tables["_refined"] = model_table(model, test, options.refine)
    for key, table in tables.items():
        for name in ("mse", "log_like"):
            for suffix in ("", "_background"):
                column = f"gauss_{name}{suffix}"
                table[column] = gauss[column]
        result |= rates_of(table, key)
    result["floor_share"] = floor_share(model, test)
    return result


def model_table(model, stack, refine):
    """Squared errors and likelihoods at the posterior mean."""
    columns = model.measure(stack, num_samples=1, refine=refine, show_progress=True)
    return Table({name: columns[name] for name in ("vae_mse", "vae_log_like")})


def rates_of(table, key):
    """Flat entries of win rates; ``key`` is a prefix ("pca_") or a suffix."""
    prefix, suffix = (key, "") if key.endswith("_") else ("", key)
    model = "pca" if "pca_mse" in table.colnames else "vae"
    result = {}
    for row in win_rates(table, model=model):
        name = f"{prefix}win_{row['quantity']}_gauss"
        name += ("_background" if row["background"] else "") + suffix
        result[name] = float(row["rate"])
        result[f"{name}_low"] = float(row["low"])
        result[f"{name}_high"] = float(row["high"])
    return result


def floor_share(model, stack):
    """The share of valid pixels whose variance is below twice the floor."""
    scale = float(model.scale[0])
    floor = float(np.ravel(model.likelihood.floor(model.scale))[0]) * scale**2
    variance = np.exp(model.reconstruct(stack)["log_var"])
    if stack.error is not None:
        variance += np.square(stack.error)
    return float(((variance < 2 * floor) & ~stack.mask).sum() / (~stack.mask).sum())


def show(band, result):
    """Print a table."""
    print(f"\n{band}: {result['n_train']} galaxies to train on, ", end="")
    print(f"{result['n_validation']} to calibrate on, {result['n_test']} to test on")
    if result["held_out_of_train_file"]:
        print("(one file: a fifth of its ids is held out for the test)")
    print(f"{'wins against least squares (%)':34}{'plain':>22}{'with background':>22}")
    rows = [
        ("model, squared error", "win_mse_gauss", ""),
        ("model, likelihood", "win_like_gauss", ""),
        ("refined, squared error", "win_mse_gauss", "_refined"),
        ("refined, likelihood", "win_like_gauss", "_refined"),
        ("components, squared error", "pca_win_mse_gauss", ""),
        ("weighted, squared error", "pca_weighted_win_mse_gauss", ""),
    ]
    for label, name, suffix in rows:
        cells = []
        for background in ("", "_background"):
            key = f"{name}{background}{suffix}"
            if key in result:
                rate, low, high = (
                    100 * result[key + end] for end in ("", "_low", "_high")
                )
                cells.append(f"{rate:6.2f} ({low:.2f}-{high:.2f})")
        if cells:
            print(f"{label:34}" + "".join(f"{cell:>22}" for cell in cells))
    for name in ("floor_share", "variance_factor", "seconds_train"):
        print(f"{name:34}{result[name]:22.4g}")
    print(f"{'per_galaxy_parameters':34}{', '.join(result['per_galaxy_parameters'])}")


def main():
    """Run the comparison, print tables and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train", required=True, help="zip of JPEGs, or FITS cubes")
    parser.add_argument("--test", required=True, help="the same kind of file")
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--pose", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--refine", type=int, default=0, metavar="N", help="steps")
    parser.add_argument("--preset", default="galaxy_eigen")
    parser.add_argument("--band", action="append", help="of FITS cubes; may repeat")
    parser.add_argument("--passes", type=int, help="over the training galaxies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="score the galaxies of the calibration, and leave the test alone",
    )
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    kind, train = read(options.train, options.band)
    same_file = Path(options.train).resolve() == Path(options.test).resolve()
    other, test = (kind, train) if same_file else read(options.test, options.band)
    if kind != other:
        parser.error("--train and --test must be files of the same kind")
    results = {}
    for band in train:
        if band not in test:
            parser.error(f"{options.test} has no band {band}")
        results[band] = run(train[band], test[band], same_file, kind, options)
        show(band, results[band])
    if options.json is not None:
        flat_results = next(iter(results.values())) if len(results) == 1 else results
        text = json.dumps(flat_results, indent=2) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
