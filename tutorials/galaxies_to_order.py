# Licensed under a 3-clause BSD style license - see LICENSE
"""
Galaxies to order
=================

Simulations of weak lensing and of blended galaxies need galaxies of given ellipticity,
size, brightness and colour that look like real ones. We train a model that paints
them, ask it for the galaxies of a catalogue, and measure what we get.

Prerequisites
-------------

An installed astrovae; :doc:`/user_guide/generation` explains the parts.

The images are those of CANDELS GOODS-South (Grogin et al. 2011, ApJS 197, 35; Koekemoer
et al. 2011, ApJS 197, 36) in three bands, F125W, F160W and F814W:
``candels_gds.fits`` with a cube for each band and a table ``CATALOG`` of ``id`` and
``has_<band>``, in the folder that the environment variable ``ASTROVAE_DATA`` names.
Without it the same steps are done with simulated galaxies. All numbers and figures are
those of the run that built this page; its first output says which galaxies it had.

Context
-------

Lanusse et al. (2021, MNRAS 504, 5543) drew the latents of a variational autoencoder by
a normalising flow, given the size and magnitude of a galaxy. Generators for the
Blending ToolKit followed. They share a weakness: galaxies that a decoder paints tend to
be too smooth and too round, which is bad where ellipticities are what is measured.

Objective
---------

Draw galaxies for the properties of a catalogue; compare their ellipticities with those
of real galaxies and of Sersic profiles; predict a band that is missing.

Approach
--------

The angle of a galaxy is measured and taken off, and put on again when it is painted:
no latent is spent on it. The ellipticity, however, is a condition of the flow, which
is fitted to samples of the posteriors of the latents.
"""

import os
import time
from pathlib import Path

import keras
import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from matplotlib.figure import Figure

import astrovae as av

keras.utils.set_random_seed(0)

# %%
# Read the galaxies
# -----------------
#
# For the purpose of this page, some hundreds of those that have all bands. The stamps
# have no error planes: the robust scatter of the border is the noise.

BANDS = ("F125W", "F160W", "F814W")


def read_candels(path, n):
    with fits.open(path) as file:
        catalog = Table(file["CATALOG"].data)
        complete = np.all([catalog[f"has_{band}"] for band in BANDS], axis=0)
        rows = np.flatnonzero(complete)[:: complete.sum() // n][:n]
        data = np.stack([file[band].data[rows] for band in BANDS], axis=-1)
    ids = np.array(catalog["id"][rows]).astype(str)
    return av.images.CutoutStack(data, ids=ids, bands=BANDS, pixel_scale=0.06)


folder = Path(os.environ.get("ASTROVAE_DATA", "."))
if (folder / "candels_gds.fits").exists():
    kind = "CANDELS"
    stack = read_candels(folder / "candels_gds.fits", 1600)
else:
    kind = "simulated"
    _, stack = av.datasets.make_galaxies(1600, shape=30, bands=BANDS, snr=(50, 500))
y, x = np.indices(stack.image_shape[:2])
edge = np.minimum.reduce([x, y, 29 - x, 29 - y]) < 3
border = stack.data[:, edge]
center = np.median(border, axis=1, keepdims=True)
noise = 1.4826 * np.median(np.abs(border - center), axis=1)
aperture = np.hypot(x - 14.5, y - 14.5) < 6
flux = stack.data[:, aperture].sum(axis=1, dtype=float)
good = (noise > 0).all(axis=1) & (flux[:, 1] > 20 * noise[:, 1])
stack, noise, flux = stack[good], noise[good], flux[good]
print(f"{len(stack)} galaxies, {kind}")

# %%
# Noise of images that were combined from several exposures is correlated. We measure
# by how much at the borders, lag by lag; the likelihood will use it, both to judge what
# is painted and to draw noise.


def noise_correlation(residual, good, reach=3):
    lags = range(-reach, reach + 1)
    rho = np.zeros((len(lags), len(lags), residual.shape[-1]))
    for j in lags:
        for i in lags:
            other = np.roll(residual * good, (j, i), axis=(1, 2))
            both = good & np.roll(good, (j, i), axis=(1, 2))
            product = np.where(both, residual * other, 0).sum(axis=(0, 1, 2))
            rho[j + reach, i + reach] = product / both.sum(axis=(0, 1, 2))
    fade = np.cos(np.linspace(-0.4, 0.4, len(lags)) * np.pi)
    return rho / rho[reach, reach] * np.outer(fade, fade)[..., None]


residual = (stack.data - center[good][:, None]) / noise[:, None, None]
far = np.minimum.reduce([x, y, 29 - x, 29 - y]) < 6
rho = noise_correlation(residual, far[..., None] & (np.abs(residual) < 3))
print(f"neighbours: {rho[3, 4].round(2)}, sum over lags: {rho.sum((0, 1)).round(1)}")

# %%
# Properties
# ----------
#
# Galaxies are divided by their flux, which spans decades, and get it back at the end.
# Position, angle, axis ratio and size are measured on the images, in all bands
# together; fluxes in an aperture. A fifth is held out.

error = noise[:, None, None] / flux[:, 1, None, None, None] + 0 * stack.data
stack = stack.replace(data=stack.data / flux[:, 1, None, None, None], error=error)
stack = av.images.measure_pose(stack)


def properties(stack, flux):
    table = av.catalog.add_pose(Table({"id": stack.ids}), stack)
    table["mag"] = -2.5 * np.log10(flux[:, 1])
    table["j_h"] = -2.5 * np.log10(np.maximum(flux[:, 0] / flux[:, 1], 0.05))
    table["i_h"] = -2.5 * np.log10(np.maximum(flux[:, 2] / flux[:, 1], 0.005))
    return table


table = properties(stack, flux)
held_out = stack.held_out(0.2, seed=1)
train, test = stack[~held_out], stack[held_out]
print(f"{len(train)} to train on, {len(test)} to test on")

# %%
# Train the model of images
# -------------------------
#
# First on aligned galaxies, which is fast. Correlated noise hides more than its pixels
# say, so the errors are raised accordingly. Bands are hidden now and then.

canvas_shape = (42, 42)
aligned = av.images.align(train, shape=canvas_shape)
aligned = aligned.replace(error=aligned.error * np.sqrt(rho.sum((0, 1)).mean()))
maps = (*canvas_shape, 2 * len(BANDS))
start, passes, batch_size = time.perf_counter(), 60, 64
model = av.models.VAE(
    aligned.image_shape,
    encoder=av.models.EigenEncoder(
        96, hidden_units=(256, 256), dropout=0.1, num_indicators=len(BANDS)
    ),
    decoder=av.models.EigenDecoder(maps, 96, hidden_units=(256, 256)),
    latent_dim=12,
    side_inputs="bands",
    band_dropout=0.2,
    seed=0,
)
steps = passes * -(-len(aligned) // batch_size)
rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
model.compile(optimizer=keras.optimizers.Adam(rate))
model.fit(aligned, batch_size=batch_size, epochs=passes, augment="mirrors", verbose=0)
print(f"{time.perf_counter() - start:.0f} s")

# %%
# Then its networks are put between the aligned and the observed frame, with a
# likelihood that knows the correlation.

likelihood = av.models.CorrelatedGaussianLikelihood(rho, learn_variance=True)
vae = model.with_pose(train, likelihood=likelihood)
reconstructions = av.plotting.plot_reconstructions(test, vae, band=1)

# %%
# Fit the flow
# ------------
#
# What galaxies will be asked for: axis ratio, size, magnitude and two colours. Noise
# changes what is measured, and a flow that had learned from noisy properties would give
# less than is asked for. So they are measured on what the model paints, before the
# noise, at latents drawn from the posteriors.

conditions = [
    av.models.Condition("pose_axis_ratio", transform="logit"),
    av.models.Condition("pose_size", transform="log"),
    "mag",
    "j_h",
    "i_h",
]


def paint(galaxies, unit, seed):
    mean, log_var = vae.encode(galaxies)
    scatter = np.random.default_rng(seed).standard_normal(mean.shape)
    z = mean + np.exp(log_var / 2) * scatter
    images = vae.simulate(galaxies, z, noise=False)["image"]
    painted = galaxies.replace(data=images, mask=None, pose=None, steps=())
    painted_flux = images[:, aperture].sum(axis=1) * unit[:, None]
    table = properties(av.images.measure_pose(painted), painted_flux)
    shape = [np.ma.filled(table[f"pose_{c}"], np.nan) for c in ("axis_ratio", "size")]
    good = np.isfinite(shape).all(axis=0) & (painted_flux > 0).all(axis=1)
    return table[good], z[good]


validation = train.held_out(0.15, seed=2)
unit = flux[~held_out, 1]
draws = [paint(train[~validation], unit[~validation], seed) for seed in (1, 2)]
known = vstack([table for table, _ in draws], metadata_conflicts="silent")
latents = np.concatenate([z for _, z in draws])
flow = av.models.LatentFlow(num_blocks=4, hidden_units=(64, 64), seed=0)
start = time.perf_counter()
history = flow.fit(
    known,
    vae,
    latents,
    conditions=conditions,
    epochs=60,
    batch_size=64,
    validation_data=paint(train[validation], unit[validation], 3),
    callbacks=keras.callbacks.EarlyStopping(
        "val_loss", patience=8, restore_best_weights=True
    ),
    verbose=0,
)
print(f"{len(history.history['loss'])} passes, {time.perf_counter() - start:.0f} s")

# %%
# Galaxies of any axis ratio
# --------------------------
#
# A galaxy of the catalogue, asked for again and again, each time flatter: before noise,
# with its major axis along x. Each line has other latents, drawn with another seed.

size = np.ma.filled(table["pose_size"], np.nan)
usual = np.nanargmin(np.abs(size - np.nanmedian(size)))
wanted = table[np.full(7, usual)]
wanted["pose_axis_ratio"] = np.linspace(0.3, 0.9, 7)
series = Figure(figsize=(9, 4), layout="constrained")
for seed, axes in enumerate(series.subplots(3, 7)):
    painted = flow.sample(wanted, pose="aligned", seed=seed).data[..., 1]
    for ax, image, row in zip(axes, painted, wanted):
        ax.imshow(np.arcsinh(image / image.max() * 10), origin="lower", cmap="gray")
        ax.set(xticks=[], yticks=[])
        if seed == 0:
            ax.set_title(f"b/a = {row['pose_axis_ratio']:.1f}")

# %%
# The galaxies of the catalogue
# -----------------------------
#
# Now for the properties and poses of the held-out galaxies, with noise like theirs. The
# Sersic profiles were fitted to these very galaxies, and get noise of the same kind.
# Where a fit went for a neighbour instead, the galaxy is left out.

fit = av.baselines.SersicFit().fit(test)
fitted = np.hypot(fit.x_ - 14.5, fit.y_ - 14.5) < 5
print(f"{np.sum(~fitted)} of {len(test)} fits are not of the galaxy")
sersic, test, wanted = fit.predict()[fitted], test[fitted], table[held_out][fitted]
pose = test.batch(np.arange(len(test)))["pose"]
sigma = test.error[:, 0, 0]
generated = flow.sample(wanted, pose=pose, noise=sigma, seed=1)
noise_alone = flow.sample(wanted, pose=pose, noise=sigma, seed=2).data
noise_alone = noise_alone - flow.sample(wanted, pose=pose, seed=2).data
parametric = test.replace(data=sersic + noise_alone)
shown = np.linspace(0, len(test) - 1, 8).astype(int)
pairs = Figure(figsize=(9, 3.6), layout="constrained")
rows = {"real": test, "generated": generated, "Sersic": parametric}
for line, (label, galaxies) in zip(pairs.subplots(3, 8), rows.items()):
    line[0].set_ylabel(label)
    for ax, index in zip(line, shown):
        low, high = np.percentile(test.data[index, ..., 1], [1, 99.5])
        image = galaxies.data[index, ..., 1]
        ax.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
        ax.set(xticks=[], yticks=[])

# %%
# A generated galaxy is not the real one above it: it shares five properties with it.
#
# Ellipticities
# -------------
#
# The same measurement on all three.


def ellipticity(galaxies):
    plain = galaxies.replace(pose=None, steps=())
    ratio = av.images.measure_pose(plain).pose["axis_ratio"]
    return (1 - ratio**2) / (1 + ratio**2)


measured = {name: ellipticity(galaxies) for name, galaxies in rows.items()}
for name, e in measured.items():
    e = e[np.isfinite(e)]
    print(f"{name:10} mean |e| {e.mean():.3f}, standard deviation {e.std():.3f}")
distributions = Figure(figsize=(6, 3.2), layout="constrained")
ax = distributions.subplots()
bins = np.linspace(0, 1, 21)
for name, e in measured.items():
    filled = {"histtype": "stepfilled", "color": "0.8"} if name == "real" else {}
    ax.hist(e, bins, density=True, label=name, **{"histtype": "step", **filled})
ax.set(xlabel="|e|", ylabel="density")
legend = ax.legend(loc="upper right", frameon=False)

# %%
# Do generated galaxies have the ellipticity that they were asked for, one by one? The
# noise flattens the relation, for real galaxies, too.

both = np.isfinite(measured["real"]) & np.isfinite(measured["generated"])
slope = np.polyfit(measured["real"][both], measured["generated"][both], 1)[0]
print(f"slope of measured on requested |e|: {slope:.2f}")

# %%
# All properties at once: distances of distributions, and how well a classifier tells
# generated from real galaxies (0.5 if it cannot). `~astrovae.diagnostics.fidelity`
# measures concentration, asymmetry, Gini and M20 here; with GalSim installed,
# ``measure="hsm"`` takes the adaptive moments that lensing uses.

report = av.diagnostics.fidelity(
    test, generated, parametric=parametric, measure="morphology", band="F160W"
)
report["statistic", "ks_generated", "ks_parametric", "ks_real"].pprint()
joint = report.meta["astrovae"]["fidelity"]
for name in ("generated", "parametric", "real"):
    print(f"classifier, {name:10} {joint[f'auc_{name}']:.3f}")
fidelity = av.plotting.plot_fidelity(report)

# %%
# A missing band
# --------------
#
# F814W is taken away from held-out galaxies, and predicted from the other two. The
# flux of an aperture, beside what was measured; the error is that of the prediction
# and of the measurement together. Models are too sure of what they never saw: how much,
# is found by hiding bands of other galaxies that were not trained on, here one half of
# those held out.

half = np.arange(len(test)) % 2 == 0
factor = vae.calibrate_imputation(test[half], aperture=6)
print(f"the spread of F814W is multiplied by {factor[2]:.2f}")
hidden = test[~half]
mask = np.zeros(hidden.data.shape, bool)
mask[..., 2] = True
found = vae.posterior_predictive(hidden.replace(mask=mask), aperture=6)
seen = hidden.data[:, aperture, 2].sum(axis=1)
known = sigma[~half, 2] * np.sqrt(aperture.sum() * rho[..., 2].sum())
total = np.hypot(found["flux_std"][:, 2], known)
step = found["flux"][:, 2] - seen
print(f"median error {np.median(np.abs(step / seen)):.1%}, ", end="")
print(f"within one sigma {np.mean(np.abs(step) < total):.0%}")

# %%
# Into simulators
# ---------------
#
# ``flow.save_preset("folder")`` keeps the flow with its model. In GalSim,
# ``astrovae.interop.galsim.GalaxyGenerator(flow).sample(table)`` gives an object for
# each row, to be convolved with any PSF; in its configuration files, the object type
# ``AstroVAEGalaxy`` does so. The module ``astrovae.interop.btk`` has catalogues, a
# generator and a deblender for the Blending ToolKit. They take models that were trained
# with ``psf=True``, on images with PSFs; those of this page have none, and galaxies are
# as blurred as they were observed.
