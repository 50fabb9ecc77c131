# Licensed under a 3-clause BSD style license - see LICENSE
"""
Galaxies to order: whether generated ones are like real ones, and as asked for.

A model of galaxies in all bands, and a flow from properties to its latents, are
trained on real stamps. The properties of galaxies held out by id (ellipticity,
position angle, size, flux, colours, measured on their images) are then asked for,
noise like theirs is added, and the same is measured on what was generated.
Beside it stand Sersic profiles that were fitted to the held-out galaxies themselves,
with the same noise, and real galaxies compared with each other::

    python benchmarks/conditional.py --train candels_gds.fits \
        --test candels_gds.fits --json conditional.json

A FITS file holds a cube ``(n, ny, nx)`` for each band, and a table ``CATALOG`` of
``id`` and ``has_<band>``; rows complete in all bands are taken. Ids that are in both
files are not trained on; if both are the same file, a fifth of the ids is held out.
Nothing is chosen on them: ``--validate`` compares with a tenth of the training
galaxies instead. ``--fraction`` makes all of it smaller.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from astrovae._progress import progress_bar
from astrovae.baselines import SersicFit
from astrovae.diagnostics import fidelity, measure_galaxies
from astrovae.images import CutoutStack, align, measure_pose
from astrovae.models import (
    VAE,
    CorrelatedGaussianLikelihood,
    EigenDecoder,
    EigenEncoder,
    GaussianLikelihood,
    LatentFlow,
)

HELD_OUT = 0.2
VALIDATION = 0.1
# stamps with more blank pixels were cut off by the edge of the survey
MAX_BLANK = 0.01
BORDER = 3
# lags beyond which noise is taken to be uncorrelated
MAX_LAG = 4
# pixels further from the median, in sigma, belong to neighbours
CLIP = 3.0
BAND = "F160W"
PIXEL_SCALE = 0.06
BATCH_SIZE = 128
BAND_DROPOUT = 0.2
# pixels, in which imputed fluxes are compared
APERTURE = 6.0
IMPUTED = "F814W"
MAG_BINS = 5


# ---------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------


def read(path):
    """Read galaxies that have all bands, with the noise of their borders."""
    with fits.open(path) as file:
        catalog = Table(file["CATALOG"].data)
        bands = [hdu.name for hdu in file if len(getattr(hdu, "shape", ())) == 3]
        complete = np.all([catalog[f"has_{band}"] for band in bands], axis=0)
        data = np.stack([file[band].data[complete] for band in bands], axis=-1)
    blank = (data == 0).mean(axis=(1, 2)).max(axis=1) > MAX_BLANK
    ids = np.array([str(name) for name in catalog["id"][complete]])
    noise = border_noise(data)
    usable = ~blank & (noise > 0).all(axis=1)
    data, noise = data[usable].astype(np.float32), noise[usable]
    return CutoutStack(
        data,
        error=np.broadcast_to(noise[:, None, None], data.shape),
        ids=ids[usable],
        bands=bands,
        pixel_scale=PIXEL_SCALE,
    )


def border(shape):
    """Which pixels are in the border of a stamp."""
    y, x = np.indices(shape)
    ny, nx = shape
    return np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) < BORDER


def border_noise(images):
    """Robust scatter of the borders, (n, n_bands)."""
    pixels = images[:, border(images.shape[1:3])]
    center = np.median(pixels, axis=1, keepdims=True)
    return 1.4826 * np.median(np.abs(pixels - center), axis=1)


def noise_correlation(stack):
    """Correlation of the noise by lag, (ky, kx, n_bands), lag zero in the middle."""
    images, edge = stack.data, border(stack.image_shape[:2])
    center = np.median(images[:, edge], axis=1)[:, None, None]
    residual = (images - center) / stack.error
    good = edge[..., None] & (np.abs(residual) < CLIP)
    size = 2 * MAX_LAG + 1
    ny, nx, n_bands = stack.image_shape
    rho = np.zeros((size, size, n_bands))
    for dy in range(-MAX_LAG, MAX_LAG + 1):
        for dx in range(-MAX_LAG, MAX_LAG + 1):
            one = np.s_[:, max(dy, 0) : ny + min(dy, 0), max(dx, 0) : nx + min(dx, 0)]
            two = np.s_[:, max(-dy, 0) : ny - max(dy, 0), max(-dx, 0) : nx - max(dx, 0)]
            both = good[one] & good[two]
            product = np.where(both, residual[one] * residual[two], 0.0)
            rho[dy + MAX_LAG, dx + MAX_LAG] = product.sum(axis=(0, 1, 2)) / both.sum(
                axis=(0, 1, 2)
            )
    rho = rho / rho[MAX_LAG, MAX_LAG]
    # cut off softly, and without negative power
    taper = np.cos(np.linspace(-0.5, 0.5, size + 2)[1:-1] * np.pi)
    return positive(rho * np.outer(taper, taper)[..., None] ** 0.5, (ny, nx))


def positive(rho, shape):
    """The nearest correlation without negative power on a stamp."""
    size = rho.shape[0]
    canvas = np.zeros((*shape, rho.shape[2]))
    canvas[:size, :size] = rho
    canvas = np.roll(canvas, (-MAX_LAG, -MAX_LAG), axis=(0, 1))
    power = np.fft.fft2(canvas, axes=(0, 1)).real
    power = np.maximum(power, 1e-3 * power.max(axis=(0, 1)))
    canvas = np.fft.ifft2(power, axes=(0, 1)).real
    canvas = canvas / canvas[0, 0]
    return np.roll(canvas, (MAX_LAG, MAX_LAG), axis=(0, 1))[:size, :size]


# ---------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------


def measure(stack):
    """What galaxies are asked for, and of which one flux they are divided by."""
    table = measure_galaxies(stack, band=BAND)
    for name in table.colnames[1:]:
        table[name] = np.ma.filled(table[name].astype(float), np.nan)
    return table


def asked(table):
    """The columns that are conditions."""
    colors = [name for name in table.colnames if name.startswith("color_")]
    return ["e", "log_sigma", "mag", *colors]


def normalize(stack, flux):
    """Divide galaxies and errors by a flux each."""
    factor = 1 / flux[:, None, None, None]
    return stack.replace(data=stack.data * factor, error=stack.error * factor)


def flux_of(table):
    """Flux of which a table has the magnitude."""
    return 10 ** (-0.4 * np.asarray(table["mag"]))


def usable(table):
    """Galaxies of which everything that is asked for could be measured."""
    return np.all([np.isfinite(table[name]) for name in asked(table)], axis=0)


# ---------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------


def canvas_shape(stack):
    """A frame in which a turned stamp keeps its corners."""
    return tuple(
        side + 2 * int(np.ceil((np.sqrt(2) - 1) / 2 * side))
        for side in stack.image_shape[:2]
    )


def train_vae(stack, rho, options):
    """Train on aligned galaxies, then on the observed pixels with their noise."""
    aligned = align(stack, shape=canvas_shape(stack))
    # noise that is correlated hides more of a galaxy than its pixels say
    extent = np.sqrt(rho.sum(axis=(0, 1)).mean())
    aligned = aligned.replace(error=extent * aligned.error)
    shape = (*aligned.image_shape[:2], 2 * aligned.image_shape[2])
    size = {
        "num_components": options.components,
        "hidden_units": (options.units, options.units),
    }
    arguments = {
        "latent_dim": options.latent_dim,
        "seed": options.seed,
        "side_inputs": "bands",
        "band_dropout": BAND_DROPOUT,
    }
    model = VAE(
        aligned.image_shape,
        encoder=EigenEncoder(dropout=0.1, num_indicators=len(stack.bands), **size),
        decoder=EigenDecoder(shape, **size),
        likelihood=GaussianLikelihood(),
        **arguments,
    )
    optimise(model, aligned, options.passes, "Training", augment="mirrors")
    posed = VAE(
        stack.image_shape,
        encoder=model.encoder,
        decoder=model.decoder,
        likelihood=CorrelatedGaussianLikelihood(rho, learn_variance=True),
        pose=True,
        canvas_shape=aligned.image_shape[:2],
        scale=model.scale,
        noise=model.noise,
        preprocessing=stack.preprocessing,
        **arguments,
    )
    posed.posterior_layer.set_weights(model.posterior_layer.get_weights())
    if options.fine_tuning:
        optimise(posed, stack, options.fine_tuning, "Fine-tuning", 3e-4)
    return posed


def optimise(model, source, passes, description, learning_rate=1e-3, **kwargs):
    """Train with a learning rate that falls to zero."""
    steps = passes * -(-len(source) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1e4))
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


def paint(model, stack, table, normalized, seeds):
    """
    Latents from the posteriors, and what is measured on galaxies that they paint.

    What is asked for then is defined as what is measured, noise included.
    """
    rng = np.random.default_rng(seeds)
    mean, log_var = model.encode(normalized)
    tables, latents = [], []
    for seed in seeds:
        z = mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape)
        images = model.simulate(normalized, z, seed=seed)["image"]
        images = images * flux_of(table)[:, None, None, None]
        painted = measure(stack.replace(data=images, mask=None))
        rows = usable(painted)
        tables.append(painted[rows])
        latents.append(z[rows])
    return vstack(tables), np.concatenate(latents)


def train_flow(model, train, validation, options):
    """From what is asked for to latents, stopped when it has learned enough."""
    table, z = paint(model, *train, range(1, options.draws + 1))
    flow = LatentFlow(num_blocks=4, hidden_units=(128, 128), seed=options.seed)
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=10, restore_best_weights=True
    )
    flow.fit(
        table,
        model,
        z,
        conditions=asked(table),
        epochs=options.flow_passes,
        batch_size=BATCH_SIZE,
        validation_data=paint(model, *validation, [0]),
        callbacks=stop,
        verbose=0,
    )
    return flow


# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------


def generate(flow, table, normalized, like, seed):
    """Galaxies with the properties, poses and noise of those that are given."""
    flux = flux_of(table)[:, None]
    noise = like.error[:, 0, 0] / flux
    pose = normalized.batch(np.arange(len(like)))["pose"]
    made = flow.sample(table, noise=noise, pose=pose, seed=seed)
    data = made.data * flux[..., None, None]
    return like.replace(data=data, mask=None, pose=None)


def parametric(like, rho, seed):
    """Sersic profiles fitted to the galaxies that are given, with noise like theirs."""
    painted = SersicFit().fit(like).predict()
    return like.replace(data=painted + correlated_noise(rho, like, seed), mask=None)


def correlated_noise(rho, like, seed):
    """Noise of the correlation and amplitude of the galaxies that are given."""
    ny, nx, n_bands = like.image_shape
    canvas = np.zeros((ny, nx, n_bands))
    size = rho.shape[0]
    canvas[:size, :size] = rho
    canvas = np.roll(canvas, (-(size // 2), -(size // 2)), axis=(0, 1))
    power = np.maximum(np.fft.rfft2(canvas, axes=(0, 1)).real, 0)
    white = np.random.default_rng(seed).standard_normal(like.data.shape)
    waves = np.fft.rfft2(white, axes=(1, 2)) * np.sqrt(power)
    return np.fft.irfft2(waves, (ny, nx), axes=(1, 2)) * like.error


def color_shifts(real, made, table):
    """Shifts of median colours in bins of magnitude, in magnitudes and sigmas."""
    mag = np.asarray(table["mag"])
    edges = np.quantile(mag, np.linspace(0, 1, MAG_BINS + 1)[1:-1])
    number = np.digitize(mag, edges)
    shifts, sigmas = [], []
    for name in asked(table)[3:]:
        for index in range(MAG_BINS):
            pair = [
                values[np.isfinite(values)]
                for values in (
                    np.ma.filled(t[name][number == index], np.nan) for t in (real, made)
                )
            ]
            errors = [
                1.2533 * 0.5 * np.ptp(np.quantile(v, (0.1587, 0.8413))) / len(v) ** 0.5
                for v in pair
            ]
            shifts.append(np.median(pair[1]) - np.median(pair[0]))
            sigmas.append(shifts[-1] / np.hypot(*errors))
    return np.array(shifts), np.array(sigmas)


def imputation(model, normalized, rho):
    """Flux of a blanked band, relative to what was measured, and how sure it is."""
    plane = normalized.bands.index(IMPUTED)
    mask = np.zeros(normalized.data.shape, bool)
    mask[..., plane] = True
    found = model.posterior_predictive(normalized.replace(mask=mask), aperture=APERTURE)
    ny, nx, _ = normalized.image_shape
    y, x = np.indices((ny, nx))
    inside = np.hypot(x - (nx - 1) / 2, y - (ny - 1) / 2) <= APERTURE
    measured = normalized.data[..., plane][:, inside].sum(axis=1)
    # of the measurement itself: the noise of an aperture that is correlated
    lags = np.fft.irfft2(np.abs(np.fft.rfft2(inside, (2 * ny, 2 * nx))) ** 2)
    half = rho.shape[0] // 2
    pairs = np.roll(lags, (half, half), axis=(0, 1))[: 2 * half + 1, : 2 * half + 1]
    known = normalized.error[:, 0, 0, plane] * np.sqrt((pairs * rho[..., plane]).sum())
    step = found["flux"][:, plane] - measured
    sigma = np.hypot(found["flux_std"][:, plane], known)
    return {
        "impute_flux_error": float(np.median(np.abs(step) / np.abs(measured))),
        "impute_flux_bias": float(np.median(step / measured)),
        "impute_noise": float(np.median(known / np.abs(measured))),
        "impute_coverage": float(np.mean(np.abs(step) < sigma)),
    }


def compare(real, made, other, table, train):
    """Give a flat object of how alike galaxies are."""
    tables = {"real": real, "generated": made, "parametric": other, "training": train}
    measured = {
        name: measure_galaxies(stack, measure="both", band=BAND)
        for name, stack in tables.items()
    }
    found = fidelity(**measured, requested=table[asked(table)], measure="both")
    joint = found.meta["astrovae"]["fidelity"]
    rows = {row["statistic"]: row for row in found}
    mean_e = np.nanmean(rows["e"]["values_real"])
    shifts, sigmas = color_shifts(measured["real"], measured["generated"], table)
    result = {
        "e_variance_ratio": rows["e"]["variance_ratio"],
        "e_variance_ratio_err": rows["e"]["variance_ratio_err"],
        "e_mean_shift": rows["e"]["mean_shift"] / mean_e,
        "e_mean_shift_err": rows["e"]["mean_shift_err"] / mean_e,
        "e_mean_shift_parametric": np.nanmean(rows["e"]["values_parametric"]) / mean_e
        - 1,
        "slope_e": rows["e"]["slope"],
        "slope_log_size": rows["log_sigma"]["slope"],
        "slope_mag": rows["mag"]["slope"],
        "colour_shift_sigma": np.sqrt(np.mean(sigmas**2)),
        "colour_shift_mag": np.abs(shifts).max(),
    }
    result |= {
        name: joint[name]
        for name in ("auc_generated", "auc_parametric", "auc_real", "nn_distance_ratio")
    }
    for name, row in rows.items():
        for kind in ("generated", "parametric", "real"):
            result[f"ks_{kind}_{name}"] = row[f"ks_{kind}"]
    return {name: float(value) for name, value in result.items()}, measured


def run(options):
    """Train, generate and compare."""
    stack = read(options.train)
    same = Path(options.train).samefile(options.test)
    test = stack if same else read(options.test)
    if options.fraction < 1:
        stack = stack[stack.held_out(options.fraction, seed=options.seed + 2)]
        test = stack if same else test
    held_out = np.isin(stack.ids, test.ids)
    if same:
        held_out = stack.held_out(HELD_OUT, seed=options.seed)
        test = stack[held_out]
    train = stack[~held_out]
    validation = train.held_out(VALIDATION, seed=options.seed + 1)
    train, validation = train[~validation], train[validation]
    if options.validate:
        test = validation
    sets = []
    for galaxies in (train, validation, test):
        table = measure(galaxies)
        rows = usable(table)
        galaxies, table = galaxies[rows], table[rows]
        normalized = measure_pose(normalize(galaxies, flux_of(table)))
        sets.append((galaxies, table, normalized))
    start = time.perf_counter()
    rho = noise_correlation(sets[0][0])
    model = train_vae(sets[0][2], rho, options)
    factor = model.calibrate(sets[1][2])
    flow = train_flow(model, *sets[:2], options)
    seconds = time.perf_counter() - start
    print(f"trained in {seconds:.0f} s", flush=True)
    real, table, normalized = sets[2]
    made = generate(flow, table, normalized, real, options.seed)
    other = parametric(real, rho, options.seed)
    result, measured = compare(real, made, other, table, sets[0][0])
    result |= imputation(model, normalized, rho)
    result |= {
        "n_train": len(sets[0][0]),
        "n_test": len(real),
        "latent_dim": options.latent_dim,
        "variance_factor": factor,
        "seconds_train": seconds,
        "backend": keras.config.backend(),
    }
    if options.output:
        options.output.mkdir(exist_ok=True)
        flow.save_preset(options.output / "flow", overwrite=True)
        made.write(options.output / "generated.h5", overwrite=True)
        other.write(options.output / "parametric.h5", overwrite=True)
        real.write(options.output / "real.h5", overwrite=True)
        for name, values in measured.items():
            values.write(options.output / f"{name}.ecsv", overwrite=True)
    return result


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="FITS file to train on")
    parser.add_argument("--test", required=True, help="FITS file to test on")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--output", type=Path, help="folder for model and galaxies")
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--components", type=int, default=192)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--passes", type=int, default=80)
    parser.add_argument("--fine-tuning", type=int, default=12)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--flow-passes", type=int, default=60)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    result = run(options)
    for name, value in result.items():
        print(
            f"{name:28} {value:.4g}"
            if isinstance(value, float)
            else f"{name:28} {value}"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
