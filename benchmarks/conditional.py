# Licensed under a 3-clause BSD style license - see LICENSE
"""
Galaxies to order: whether generated ones are like real ones, and as asked for.

A model of galaxies in all bands, and a flow from properties to its latents, are
trained on real stamps. The properties of galaxies held out by id (ellipticity,
position angle, size, flux, colours, measured on their images) are then asked for,
noise like theirs is added, and the same is measured on what was generated.
What noise adds to them on average, as it does to ellipticities, is taken off before.
Beside it stand Sersic profiles that were fitted to the held-out galaxies themselves,
drawn by GalSim with the same noise, and real galaxies compared with each other::

    python benchmarks/conditional.py --train candels_gds.fits \
        --test candels_gds.fits --json conditional.json

A FITS file holds a cube ``(n, ny, nx)`` for each band, and a table ``CATALOG`` of
``id`` and ``has_<band>``; rows complete in all bands are taken. Ids that are in both
files are not trained on; if both are the same file, a fifth of the ids is held out.
Nothing is chosen on them: ``--validate`` compares with a tenth of the training
galaxies instead. ``--fraction`` makes all of it smaller; ``--model FOLDER`` trains
nothing, but compares what an earlier run with ``--output FOLDER`` has trained.

With ``--cosmos FOLDER`` in place of the files, galaxies are simulated, from parametric
fits to real ones with their PSFs and correlated noise, and asked for by what is true:
measured before the noise. They are held out by the galaxy that was fitted, but for
``--validate``. The folder
holds `real_galaxy_catalog_23.5_example.fits` of GalSim, what belongs to it, and its
``acs_I_unrot_sci_20_cf.fits``; and, for reconstructions,
`real_galaxy_catalog_26_extension_example.fits` with the images of real galaxies.
"""

import argparse
import json
import time
from pathlib import Path

import _candels
import keras
import numpy as np
from astropy.table import Table, vstack
from sklearn.ensemble import HistGradientBoostingRegressor

from astrovae._progress import progress_bar
from astrovae.baselines import SersicFit
from astrovae.diagnostics import fidelity, measure_galaxies, parametric_galaxies
from astrovae.images import align, measure_pose
from astrovae.models import (
    VAE,
    CorrelatedGaussianLikelihood,
    EigenDecoder,
    EigenEncoder,
    GaussianLikelihood,
    LatentFlow,
)
from astrovae.plotting import plot_reconstructions

HELD_OUT = 0.2
VALIDATION = 0.1
BAND = "F160W"
BATCH_SIZE = 128
BAND_DROPOUT = 0.2
# of galaxies before their PSFs
REGULARIZERS = {"positivity": 0.1}
# pixels, in which imputed fluxes are compared, and from which others predict them
APERTURE = 6.0
APERTURES = (1.5, 3.0, 4.5, 6.0, 8.0, 11.0)
# pixels, in which residuals of real galaxies are compared with their noise
REAL_APERTURE = 12.0
SAMPLES = 16
IMPUTED = "F814W"
MAG_BINS = 5
# of noise, each of them also with the other sign
NOISE_DRAWS = 8
# which tells the galaxies that a model was trained on
SPLIT = "split.json"


# ---------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------


def measure(stack):
    """What galaxies are asked for, and of which one flux they are divided by."""
    return filled(measure_galaxies(stack, band=reference(stack)))


def filled(table):
    """NaN where nothing could be measured."""
    table = table.copy()
    for name in table.colnames[1:]:
        table[name] = np.ma.filled(table[name].astype(float), np.nan)
    return table


def reference(stack):
    """The band whose shape is measured."""
    return BAND if BAND in stack.bands else stack.bands[0]


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
    arguments, indicators = {}, 0
    if len(stack.bands) > 1:
        arguments = {"side_inputs": "bands", "band_dropout": BAND_DROPOUT}
        indicators = len(stack.bands)
    model = VAE(
        aligned.image_shape,
        latent_dim=options.latent_dim,
        encoder=EigenEncoder(dropout=0.1, num_indicators=indicators, **size),
        decoder=EigenDecoder(shape, **size),
        likelihood=GaussianLikelihood(),
        psf=aligned.psf is not None,
        regularizers=REGULARIZERS if aligned.psf is not None else None,
        seed=options.seed,
        **arguments,
    )
    optimise(model, aligned, options.passes, "Training", augment="mirrors")
    likelihood = CorrelatedGaussianLikelihood(rho, learn_variance=True)
    posed = model.with_pose(stack, likelihood=likelihood)
    if options.fine_tuning:
        optimise(posed, stack, options.fine_tuning, "Fine-tuning", 3e-4)
    return posed


def train(sets, rho, options):
    """The flow, and in it the model of the images."""
    model = train_vae(sets[0][2], rho, options)
    model.calibrate(sets[1][2])
    if len(model.scale) > 1:
        model.calibrate_imputation(sets[1][2], aperture=APERTURE, num_samples=SAMPLES)
    return train_flow(model, *sets[:2], options)


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

    Without noise: what is asked for is what a galaxy has, not what noise makes of it.
    """
    rng = np.random.default_rng(seeds)
    mean, log_var = model.encode(normalized)
    tables, latents = [], []
    for _ in seeds:
        z = mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape)
        images = model.simulate(normalized, z, noise=False)["image"]
        images = images * flux_of(table)[:, None, None, None]
        painted = measure(stack.replace(data=images, mask=None))
        rows = usable(painted)
        tables.append(painted[rows])
        latents.append(z[rows])
    return vstack(tables), np.concatenate(latents)


def train_flow(model, train, validation, options):
    """From what is asked for to latents, stopped when it has learned enough."""
    if options.cosmos:
        # what is true is known
        (_, table, z), (*_, other) = train, validation
        validation = (validation[1], other)
    else:
        table, z = paint(model, *train, range(1, options.draws + 1))
        validation = paint(model, *validation, [0])
    flow = LatentFlow(num_blocks=4, hidden_units=(128, 128), seed=options.seed)
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=20, restore_best_weights=True
    )
    flow.fit(
        table,
        model,
        z,
        conditions=asked(table),
        epochs=options.flow_passes,
        batch_size=BATCH_SIZE,
        validation_data=validation,
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
    made = flow.sample(table, noise=noise, psf=like.psf, pose=pose, seed=seed)
    data = made.data * flux[..., None, None]
    return like.replace(data=data, mask=None, pose=None)


def parametric(like, rho, seed):
    """Sersic profiles fitted to the galaxies that are given, with noise like theirs."""
    fit = SersicFit().fit(like)
    properties = Table(
        {
            "flux": fit.flux_,
            "half_light_radius": fit.r_eff_,
            "sersic_index": fit.n_,
            "axis_ratio": fit.axis_ratio_,
            "angle": fit.theta_,
            "x": fit.x_,
            "y": fit.y_,
        }
    )
    drawn = parametric_galaxies(properties, like, noise=0.0)
    return drawn.replace(data=drawn.data + correlated_noise(rho, like, seed))


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


def brightness(table):
    """The bin of magnitude of each galaxy, with as many galaxies in each."""
    mag = np.asarray(table["mag"])
    edges = np.quantile(mag, np.linspace(0, 1, MAG_BINS + 1)[1:-1])
    return np.digitize(mag, edges)


def color_shifts(real, made, table):
    """Shifts of median colours in bins of magnitude, in magnitudes and sigmas."""
    number, shifts, sigmas = brightness(table), [], []
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


def within(stack, radius):
    """Pixels around the middle of the stamps."""
    ny, nx, _ = stack.image_shape
    y, x = np.indices((ny, nx))
    return np.hypot(x - (nx - 1) / 2, y - (ny - 1) / 2) <= radius


def reconstructed_colors(model, normalized):
    """By how much colours of what is painted differ from those that were measured."""
    inside = within(normalized, APERTURE)
    painted = model.reconstruct(normalized)["mean"]
    ratio = painted[:, inside].sum(axis=1) / normalized.data[:, inside].sum(axis=1)
    plane = normalized.bands.index(reference(normalized))
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = -2.5 * np.log10(ratio / ratio[:, plane, None])
    return {
        f"colour_bias_{band}": float(np.nanmedian(steps[:, index]))
        for index, band in enumerate(normalized.bands)
        if index != plane
    }


def regression(known, normalized, band):
    """Error of the flux of a band by gradient boosting of those of other bands."""
    plane, inside = normalized.bands.index(band), within(normalized, APERTURE)

    def features(stack):
        light = [stack.data[:, within(stack, r)].sum(axis=1) for r in APERTURES]
        found = np.concatenate([*light, stack.error[:, 0, 0]], axis=1)
        return np.delete(found, np.s_[plane :: len(stack.bands)], axis=1)

    def flux(stack):
        return stack.data[..., plane][:, inside].sum(axis=1)

    peer = HistGradientBoostingRegressor(loss="absolute_error", random_state=0)
    guess = peer.fit(features(known), flux(known)).predict(features(normalized))
    return float(np.median(np.abs(guess / flux(normalized) - 1)))


def imputation(model, known, normalized, rho, band):
    """Flux of a blanked band, relative to what was measured, and how sure it is."""
    plane = normalized.bands.index(band)
    mask = np.zeros(normalized.data.shape, bool)
    mask[..., plane] = True
    found = model.posterior_predictive(
        normalized.replace(mask=mask), aperture=APERTURE, num_samples=SAMPLES
    )
    ny, nx, _ = normalized.image_shape
    inside = within(normalized, APERTURE)
    measured = normalized.data[..., plane][:, inside].sum(axis=1)
    # of the measurement itself: the noise of an aperture that is correlated
    lags = np.fft.irfft2(np.abs(np.fft.rfft2(inside, (2 * ny, 2 * nx))) ** 2)
    half = rho.shape[0] // 2
    pairs = np.roll(lags, (half, half), axis=(0, 1))[: 2 * half + 1, : 2 * half + 1]
    noise = normalized.error[:, 0, 0, plane] * np.sqrt((pairs * rho[..., plane]).sum())
    step = found["flux"][:, plane] - measured
    sigma = np.hypot(found["flux_std"][:, plane], noise)
    suffix = "" if band == IMPUTED else f"_{band}"
    return {
        f"impute_flux_error{suffix}": float(np.median(np.abs(step / measured))),
        f"impute_flux_bias{suffix}": float(np.median(step / measured)),
        f"impute_noise{suffix}": float(np.median(noise / np.abs(measured))),
        f"impute_coverage{suffix}": float(np.mean(np.abs(step) < sigma)),
        f"impute_flux_error_regression{suffix}": regression(known, normalized, band),
    }


def compare(real, made, other, table, known):
    """Give a flat object of how alike galaxies are."""
    measured = {"real": real, "generated": made, "parametric": other, "training": known}
    for name, stack in measured.items():
        if not isinstance(stack, Table):
            band = reference(stack)
            measured[name] = measure_galaxies(stack, measure="both", band=band)
    # of all contestants, the same galaxies: those that can be measured
    names = ("real", "generated", "parametric")
    good = {name: usable(filled(measured[name])) for name in names}
    rows = np.logical_and.reduce(list(good.values()))
    failed = {f"failed_{name}": np.mean(~part) for name, part in good.items()}
    for name in good:
        measured[name] = measured[name][rows]
    table = table[rows]
    found = fidelity(**measured, requested=table[asked(table)], measure="both")
    joint = found.meta["astrovae"]["fidelity"]
    by_name = {row["statistic"]: row for row in found}
    row = by_name["e"]
    mean_e = np.nanmean(row["values_real"])
    result = {
        "e_variance_ratio": row["variance_ratio"],
        "e_variance_ratio_err": row["variance_ratio_err"],
        "e_mean_shift": row["mean_shift"] / mean_e,
        "e_mean_shift_err": row["mean_shift_err"] / mean_e,
        "e_mean_shift_parametric": np.nanmean(row["values_parametric"]) / mean_e - 1,
    }
    names = {"e": "e", "log_sigma": "log_size", "mag": "mag"}
    for name in asked(table):
        key = f"slope_{names.get(name, name)}"
        for end in ("", "_low", "_high"):
            result[key + end] = by_name[name][f"slope{end}"]
    if len(real.bands) > 1:
        shifts, sigmas = color_shifts(measured["real"], measured["generated"], table)
        result["colour_shift_sigma"] = np.sqrt(np.mean(sigmas**2))
        result["colour_shift_mag"] = np.abs(shifts).max()
    for name in ("auc_generated", "auc_parametric", "auc_real", "nn_distance_ratio"):
        result |= {name + end: joint[name + end] for end in ("", "_low", "_high")}
    for name, row in by_name.items():
        for kind in ("generated", "parametric", "real"):
            result[f"ks_{kind}_{name}"] = row[f"ks_{kind}"]
    result |= failed
    return {name: float(value) for name, value in result.items()}, measured


def with_noise(stack, rho, seed):
    """Measure galaxies with noise a second time, and with its negative."""
    noise = correlated_noise(rho, stack, seed)
    return [measure(stack.replace(data=stack.data + s * noise)) for s in (1, -1)]


def without_noise_bias(table, noisy):
    """
    Take off what noise adds to properties of galaxies about as bright, on average.

    It adds as much again when they get noise a second time (Cook and Stefanski
    1994, JASA 89, 1314, with a line to extrapolate by).
    """
    table, number = table.copy(), brightness(table)
    for name in asked(table):
        steps = np.array([again[name] - table[name] for again in noisy])
        for index in np.unique(number):
            table[name][number == index] -= np.nanmean(steps[:, number == index])
    table["e"] = np.maximum(table["e"], 0)
    return table


def noise_alone(noisy, table):
    """What noise does to properties of real galaxies: no generator is free of it."""
    draws = []
    for measured in noisy:
        rows = usable(measured)
        kept, wanted = measured[rows], table[rows]
        found = fidelity(kept, kept, requested=wanted[asked(table)])
        slopes = {row["statistic"]: row for row in found}
        draw = {"e_mean_shift_noise": kept["e"].mean() / wanted["e"].mean() - 1}
        for name, key in {"e": "e", "log_sigma": "log_size", "mag": "mag"}.items():
            for end in ("", "_low", "_high"):
                draw[f"slope_{key}_noise{end}"] = slopes[name][f"slope{end}"]
        draws.append(draw)
    return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}


def real_residuals(model, options):
    """Chi squared per pixel of real galaxies that were never trained on."""
    import _cosmos

    if not (options.cosmos / _cosmos.IMAGES).exists():
        return {}
    stack = _cosmos.read_real(options.cosmos)
    *_, normalized = prepare(stack, None)
    painted = model.reconstruct(normalized)["mean"]
    inside = within(normalized, REAL_APERTURE)[..., None] & ~normalized.mask
    planes = {
        "real_chi2": normalized.data - painted,
        "real_chi2_image": normalized.data,
    }
    found = {"n_real": len(normalized)}
    for key, light in planes.items():
        squares = np.where(inside, light / normalized.error, 0.0) ** 2
        chi2 = squares.sum(axis=(1, 2, 3)) / inside.sum(axis=(1, 2, 3))
        found[key] = float(np.median(chi2))
        found[f"{key}_p84"] = float(np.quantile(chi2, 0.84))
    if model.psf:
        # rings around what is sharper than the PSF
        light = model.decode(model.encode(normalized)[0])["mean"]
        share = -np.minimum(light, 0).sum(axis=(1, 2, 3)) / light.sum(axis=(1, 2, 3))
        found["real_negative"] = float(np.median(share))
        found["real_negative_p84"] = float(np.quantile(share, 0.84))
    if options.output:
        figure = plot_reconstructions(normalized, model, n_galaxies=8)
        figure.savefig(options.output / "real.png", dpi=100)
    return found


def split(options):
    """Galaxies to train on, to stop by and to test on, what is true, and the noise."""
    truth = rho = test = None
    if options.cosmos:
        import _cosmos

        number = round(options.fraction * options.number)
        stack, truth, rho = _cosmos.make(options.cosmos, number, options.seed)
    else:
        stack = _candels.read(options.train)
        if options.fraction < 1:
            stack = stack[stack.held_out(options.fraction, seed=options.seed + 2)]
        if not Path(options.train).samefile(options.test):
            test = _candels.read(options.test)
    if test is None:
        held_out = stack.held_out(HELD_OUT, seed=options.seed)
    else:
        held_out = np.isin(stack.ids, test.ids)
    stopping = stack.held_out(VALIDATION, seed=options.seed + 1)
    if truth is not None:
        # those of a few other parents would say little of when to stop
        rng = np.random.default_rng(options.seed + 1)
        stopping = rng.random(len(stack)) < VALIDATION
    stopping &= ~held_out
    last = stopping if options.validate else held_out
    parts = [~held_out & ~stopping, stopping, last]
    stacks = [stack[rows] for rows in parts]
    if test is not None and not options.validate:
        stacks[2] = test
    truths = [None if truth is None else filled(truth)[rows] for rows in parts]
    return list(zip(stacks, truths)), rho


def prepare(stack, truth):
    """Leave out what cannot be measured, and divide by the flux."""
    measured = measure(stack)
    table = measured if truth is None else truth
    rows = usable(table) & usable(measured)
    stack, table = stack[rows], table[rows]
    return stack, table, measure_pose(normalize(stack, flux_of(table)))


def split_of(options):
    """What decides which galaxies are trained on."""
    return {name: getattr(options, name) for name in ("seed", "fraction", "number")}


def check_split(options):
    """Refuse a model that was trained on what is held out now."""
    expected = json.loads((options.model / SPLIT).read_text("utf-8"))
    if expected != split_of(options):
        msg = f"the model was trained with {expected}, got {split_of(options)}."
        raise SystemExit(msg)


def without_bands(stack, options):
    """Blank a band of some galaxies, another one each time, but not the reference."""
    rng = np.random.default_rng(options.seed + 3)
    others = [i for i, band in enumerate(stack.bands) if band != reference(stack)]
    if not others:
        msg = "--incomplete needs galaxies of several bands."
        raise SystemExit(msg)
    rows = np.flatnonzero(rng.random(len(stack)) < options.incomplete)
    mask = stack.mask.copy()
    mask[rows, ..., rng.choice(others, len(rows))] = True
    return measure_pose(stack.replace(mask=mask, pose=None, steps=stack.steps[:-1]))


def run(options):
    """Train, generate and compare."""
    parts, rho = split(options)
    sets = [prepare(*part) for part in parts]
    (*_, seen), (real, table, normalized) = sets[0], sets[2]
    start = time.perf_counter()
    if options.model:
        check_split(options)
        flow = LatentFlow.from_preset(options.model / "flow")
    else:
        if options.incomplete:
            sets[0] = (*sets[0][:2], without_bands(seen, options))
        if rho is None:
            rho = _candels.noise_correlation(sets[0][0])
        start = time.perf_counter()
        flow = train(sets[:2], rho, options)
    model, seconds = flow.vae, time.perf_counter() - start
    rho = model.likelihood.correlation
    print(f"ready after {seconds:.0f} s", flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        flow.save_preset(options.output / "flow", overwrite=True)
        (options.output / SPLIT).write_text(json.dumps(split_of(options)), "utf-8")
    wanted, noisy = table, [measure(real)]
    if not options.cosmos:
        # what is asked for was measured in noise, which is added a second time
        seeds = range(options.seed, options.seed + NOISE_DRAWS)
        noisy = [again for seed in seeds for again in with_noise(real, rho, seed)]
        wanted = without_noise_bias(table, noisy)
    made = generate(flow, wanted, normalized, real, options.seed)
    other = parametric(real, rho, options.seed)
    result, measured = compare(real, made, other, table, sets[0][0])
    result |= noise_alone(noisy, table)
    if options.cosmos:
        result |= real_residuals(model, options)
    if len(real.bands) > 1:
        # not of the one whose flux the others are divided by
        for band in [b for b in real.bands if b != reference(real)]:
            result |= imputation(model, seen, normalized, rho, band)
        result |= reconstructed_colors(model, normalized)
    result |= {
        "n_train": len(seen),
        "n_test": len(real),
        "latent_dim": model.latent_dim,
        "variance_factor": model.variance_factor,
        "backend": keras.config.backend(),
    }
    if not options.model:
        result["seconds_train"] = seconds
    for band, factor in zip(real.bands, model.imputation_factor):
        result[f"imputation_factor_{band}"] = float(factor)
    if options.output:
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
    parser.add_argument("--train", help="FITS file to train on")
    parser.add_argument("--test", help="FITS file to test on")
    parser.add_argument("--cosmos", type=Path, help="folder of COSMOS, in their place")
    parser.add_argument("--number", type=int, default=4000, help="galaxies of COSMOS")
    parser.add_argument("--model", type=Path, help="folder of an earlier --output")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--output", type=Path, help="folder for model and galaxies")
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--components", type=int, default=192)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--passes", type=int, default=80)
    parser.add_argument("--fine-tuning", type=int, default=12)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--flow-passes", type=int, default=60)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument(
        "--incomplete",
        type=float,
        default=0.0,
        help="share of the training galaxies that lack a band",
    )
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.cosmos and not (options.train and options.test):
        parser.error("give --train FILE and --test FILE, or --cosmos FOLDER")
    if options.incomplete and (options.cosmos or options.model):
        parser.error("--incomplete is for training on several bands of --train FILE")
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
