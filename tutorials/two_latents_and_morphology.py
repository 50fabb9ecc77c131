# Licensed under a 3-clause BSD style license - see LICENSE
"""
Two latents and the morphology of galaxies
==========================================

A model sees images and nothing else. It may keep two numbers of each galaxy. What do
they know of morphology, colour and mass, and how sure is that?

Prerequisites
-------------

An installed astrovae; :doc:`hubble_deep_field` shows the first steps, and
:doc:`/user_guide/statistics` says what the statistics mean.

The images are those of Galaxy Zoo 2 (Willett et al. 2013, MNRAS 435, 2835), from the
Sloan Digital Sky Survey: ``gz2_images.zip`` with colour JPEGs, ``<id>.jpg``, and
``gz2_galaxies.csv`` with the votes, ``u_r`` and ``log_mass``, in the folder that the
environment variable ``ASTROVAE_DATA`` names. Without them the same steps are done with
simulated galaxies and what is known of these. All numbers and figures are those of the
run that built this page; its first output says which galaxies it had.

Context
-------

Loh (2022, Bachelor's thesis, Nagoya University) trained a variational autoencoder with
two latents on galaxies, without edge-on and odd ones, and looked at the plane: spirals
seemed to lie apart from ellipticals, and properties to go up or down along the latents.
That is easily seen in a figure, and as easily imagined. Three questions belong to it:

* Is it there in galaxies that the model has not seen, beyond chance?
* Is it more than apparent size and axis ratio, which every latent knows?
* Is it more than two principal components know?

Objective
---------

Train two latents on regular galaxies. Test each claim on held-out galaxies, with an
interval and a p-value. Find irregular galaxies. Compare everything with two principal
components of the same images.

Approach
--------

Galaxies are selected by cuts that leave a log, and aligned by their measured pose.
Whatever is learnt, latents and predictions alike, is learnt from train galaxies;
whatever is judged is judged on held-out ones.
"""

import os
import time
from pathlib import Path

import keras
import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure
from scipy import stats
from sklearn.metrics import roc_auc_score

import astrovae as av

keras.utils.set_random_seed(0)

# %%
# Read the galaxies
# -----------------
#
# The pictures become grey, and the central 207 pixels are averaged to 69 x 69. They
# were scaled to the size of each galaxy and stretched for the eye: how large and how
# bright it is, in arcsec and magnitudes, is gone. Only galaxies with votes are read.

LUMA = (0.2125, 0.7154, 0.0721)
VOTES = {
    "Class1.1": "smooth",
    "Class1.2": "features",
    "Class2.1": "edge_on",
    "Class6.1": "odd",
}


def read_galaxy_zoo(folder):
    table = Table.read(folder / "gz2_galaxies.csv", format="ascii.csv")
    table = table["GalaxyID", *VOTES, "u_r", "log_mass"]
    table.rename_columns(list(VOTES), list(VOTES.values()))
    table = table[~table["smooth"].mask]
    # one colour of 26.9 is no colour
    table["u_r"].mask |= table["u_r"] > 5
    stacks = []
    for ids in np.array_split(table["GalaxyID"], len(table) // 250 + 1):
        color = av.images.CutoutStack.from_images(
            folder / "gz2_images.zip", shape=207, ids=ids.tolist()
        )
        grey = (color.data @ LUMA).reshape(-1, 69, 3, 69, 3).mean(axis=(2, 4)) / 255
        stacks.append(av.images.CutoutStack(grey, ids=color.ids, bands=["grey"]))
    return table, av.images.CutoutStack.concatenate(stacks)


# %%
# Simulated galaxies have no votes. The rank of their concentration stands for "smooth",
# an axis ratio below 0.3 for "edge-on", and a galaxy with another one on it is odd.


def simulate(n):
    truth, stack = av.datasets.make_galaxies(n, shape=69, snr=(100, 300))
    bulge = np.ma.filled(truth["bulge_fraction"], np.nan).astype(float).reshape(n)
    index = np.ma.filled(truth["sersic_index"], np.nan).astype(float)
    concentration = np.where(np.isfinite(bulge), bulge, (index - 0.5) / 5.5)
    smooth = stats.rankdata(concentration) / n
    odd = np.arange(n) % 10 == 0
    partner = np.roll(odd, 1)
    data, error = stack.data.copy(), stack.error.copy()
    data[odd] += np.roll(data[partner], (9, 7), axis=(1, 2))
    error[odd] = np.hypot(error[odd], error[partner])
    table = Table({"id": truth["id"], "smooth": smooth, "features": 1 - smooth})
    table["edge_on"] = (np.asarray(truth["axis_ratio"]) < 0.3).astype(float)
    table["odd"] = odd.astype(float)
    return table, stack.replace(data=data, error=error)


folder = Path(os.environ.get("ASTROVAE_DATA", "."))
if (folder / "gz2_images.zip").exists():
    kind, floor = "Galaxy Zoo 2", 1 / 255 / np.sqrt(12)
    table, stack = read_galaxy_zoo(folder)
    properties = ["smooth", "u_r", "log_mass"]
else:
    kind, floor = "simulated", 0.0
    table, stack = simulate(1500)
    properties = ["smooth"]
print(f"{len(stack)} galaxies, {kind}")

# %%
# Measure how they lie
# --------------------
#
# Centre, position angle and the brighter sides are measured from the pixels, so that no
# latent is spent on them. They go into the catalogue.

posed = av.images.measure_pose(stack)
table = av.catalog.add_pose(table, posed)

# %%
# Select them
# -----------
#
# No edge-on and no odd galaxies, by the majority of the votes, and none whose pose
# could not be measured. The selection is an object: it gives a log, and goes into the
# catalogue as plain text, so that others can repeat it.

votes = av.images.Selection.from_votes("edge_on", "odd", limit=0.5)
selection = av.images.Selection(
    [*votes.cuts, ("pose_flags", "without", "POSE_FAILED", "pose measured")]
)
regular, log = selection.apply(table)
table.meta["selection"] = selection.to_dict()
print(log)

# %%
# Three tenths of the galaxies are held out by id. Whether a galaxy is held out depends
# on its id alone: not on the order of the rows, nor on the others. Irregular galaxies
# are held out, too, to be found later.

held_out = stack.held_out(0.3, seed=0)
train, test = regular & ~held_out, regular & held_out
print(f"{train.sum()} to train on, {test.sum()} to test")
for name in properties:
    known = ~np.ma.getmaskarray(table[name])
    print(f"{name:9} known for {(known & test).sum()} of these")

# %%
# Aligned galaxies have their major axis along x. Corners that a turned image does not
# reach are masked.

aligned = av.images.align(posed, shape=69)

# %%
# Two latents
# -----------
#
# The preset ``galaxy_eigen``, with two latents instead of eight, and 15 passes, which
# take about half a minute; the benchmarks take 40. A second model, of which only the
# seed is another, will say what is luck.


def train_model(seed, passes=15, batch_size=128):
    images = aligned[train]
    keras.utils.set_random_seed(seed)
    model = av.models.VAE.from_preset(
        "galaxy_eigen",
        image_shape=images.image_shape,
        latent_dim=2,
        likelihood=av.models.GaussianLikelihood(sigma_floor=floor, profile=3.0),
        seed=seed,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        1e-3, passes * -(-len(images) // batch_size)
    )
    model.compile(optimizer=keras.optimizers.Adam(rate))
    model.fit(
        images, batch_size=batch_size, epochs=passes, augment="mirrors", verbose=0
    )
    return model


start = time.perf_counter()
vae, other = train_model(seed=0), train_model(seed=1)
print(f"two models in {time.perf_counter() - start:.0f} s")

# %%
# Beside them, two principal components of the same aligned images. Each galaxy counts
# by the inverse of its squared error in a first fit; else the few galaxies that are
# painted worst would decide.

pca = av.baselines.EigenGalaxies(2, tol=1e-4).fit(aligned[train])
pca.fit(aligned[train], sample_weight=1 / pca.measure(aligned[train])["pca_mse"])
print(f"{pca.explained_variance_ratio_.sum():.0%} of the variance")

# %%
# Latents of both go into the catalogue, and how well each galaxy is painted.

table = av.catalog.add_latents(table, vae, aligned)
table = av.catalog.add_latents(table, other, aligned, prefix="other_")
table = av.catalog.add_latents(table, pca, aligned, prefix="pca_")
table = av.catalog.add_reconstruction(table, vae, aligned)
table["log_size"] = np.log10(table["pose_size"])
table["log_mse"] = np.log10(table["vae_mse"])
learnt, judged = table[train], table[test]
cutouts = aligned[test]

# %%
# The plane
# ---------
#
# From here on, galaxies are held-out ones. The nearest to each cell of a grid:

plane = av.plotting.plot_latents(judged, cutouts, x=0, y=1)

# %%
# The plane, coloured by the properties, in cells of at least three galaxies:

by_smooth = av.plotting.plot_property(judged, "smooth", grid_size=20)

# %%

if "u_r" in properties:
    by_color = av.plotting.plot_property(judged, "u_r", grid_size=10)
    by_mass = av.plotting.plot_property(judged, "log_mass", grid_size=10)
else:
    print("simulated galaxies have neither colour nor mass")

# %%
# What the model paints along each latent, and along each property:

traversals = av.plotting.plot_traversals(vae, judged["latent_mean"])

# %%

along = av.plotting.plot_property_traversal(vae, judged, properties)

# %%
# Neighbours in the plane should look alike. Two numbers cannot hold the details:

neighbors = av.plotting.plot_neighbors(judged, cutouts, [0, 40, 80], n_neighbors=7)

# %%
# What the latents know
# ---------------------
#
# The table of `~astrovae.catalog.correlate`, once without and once with nuisances held
# fixed: apparent size and axis ratio, which the pose has measured anyway, and the
# squared error of the reconstruction. ``linear_r2`` is of both latents together, and
# does not change when they are rotated.

nuisances = ["log_size", "pose_axis_ratio", "log_mse"]
result = av.catalog.correlate(judged, properties, nuisances=nuisances)
for row in result:
    print(
        f"{row['property']:9} n {row['n']:4}  R2 linear {row['linear_r2']:.2f} "
        f"({row['linear_r2_low']:.2f} to {row['linear_r2_high']:.2f}), "
        f"neighbours {row['knn_r2']:.2f}; nuisances alone {row['nuisance_r2']:.2f}, "
        f"latents beyond them {row['partial_r2']:.2f} "
        f"({row['partial_r2_low']:.2f} to {row['partial_r2_high']:.2f})"
    )

# %%
# One latent at a time, beside the components, as they are and with the nuisances held
# fixed. The figures have the intervals; the p-values of all cells together are adjusted
# after Benjamini and Hochberg (``q``).

both = av.catalog.correlate(
    judged,
    properties,
    latents=["latent_mean", "pca_latent_mean"],
    nuisances=nuisances,
)
labels = ["latent 0", "latent 1", "component 0", "component 1"]
for name in ("spearman", "partial_spearman"):
    q = both[f"{name}_q"]
    print(f"{name:17} {np.sum(q < 0.05)} of {q.size} have q < 0.05")
correlations = av.plotting.plot_correlations(both, latent_names=labels)

# %%

partial = av.plotting.plot_correlations(
    both, kind="partial_spearman", latent_names=labels
)

# %%
# The other way round: how much of each latent is told by the nuisances? What they tell
# was known without a model.

audit = av.catalog.nuisance_audit(judged, nuisances)
for row in audit[audit["nuisance"] == "all"]:
    print(
        f"latent {row['latent']:3} R2 {row['knn_r2']:.2f} "
        f"({row['knn_r2_low']:.2f} to {row['knn_r2_high']:.2f})"
    )

# %%
# First claim: spirals lie apart from ellipticals
# -----------------------------------------------
#
# Ellipticals are the galaxies that more than 70 % call smooth, spirals those in which
# more than 70 % see features or a disc. The others are left out.

smooth, features = (np.asarray(judged[name]) for name in ("smooth", "features"))
judged["class"] = np.select(
    [smooth > 0.7, features > 0.7], ["elliptical", "spiral"], "in between"
)
clear = np.asarray(judged["class"] != "in between")
classes = av.plotting.plot_classes(judged[clear], "class")

# %%
# The best direction in the plane is found from train galaxies: the vote is predicted
# linearly from the latents. On held-out galaxies, how often has a spiral a lower value
# than an elliptical? That is the area under the curve (AUC), 0.5 by chance. The p-value
# is that of Mann and Whitney; the interval is that of galaxies drawn again.

names = {
    "": "latents",
    "other_": "latents, other seed",
    "pca_": "components",
    "shape_": "size and axis ratio",
}
for prefix in names:
    latents = f"{prefix}latent_mean"
    if prefix == "shape_":
        latents = ["log_size", "pose_axis_ratio"]
    for method in ("linear", "neighbors"):
        judged = av.catalog.add_predictions(
            judged,
            properties,
            train=learnt,
            latents=latents,
            method=method,
            prefix=f"{prefix}{method}_",
        )


def draws(n, n_draws=500):
    rng = np.random.default_rng(0)
    return [rng.integers(n, size=n) for _ in range(n_draws)]


def auc(positive, score, name):
    found = roc_auc_score(positive, score)
    again = [
        roc_auc_score(positive[rows], score[rows])
        for rows in draws(len(score))
        if 0 < positive[rows].sum() < len(rows)
    ]
    low, high = np.percentile(again, [2.5, 97.5])
    p = stats.mannwhitneyu(score[positive], score[~positive]).pvalue
    print(f"{name:28} AUC {found:.3f} ({low:.3f} to {high:.3f}), p {p:.0e}")
    return found, low, p


spiral = np.asarray(judged["class"] == "spiral")[clear]
print(f"{spiral.sum()} spirals, {(~spiral).sum()} ellipticals")
scores = {
    prefix: -np.asarray(judged[f"{prefix}linear_smooth_pred"])[clear]
    for prefix in names
}
verdict = {prefix: auc(spiral, scores[prefix], names[prefix]) for prefix in names}
_, low, p = verdict[""]
print(f"spirals lie apart: {'true' if low > 0.5 and p < 0.01 else 'not shown'}")

# %%
# Apart does not mean separate: an AUC of 1 would be needed for that. And does the
# network get the credit? The difference to two principal components, and to the size
# and the axis ratio that the pose has measured, with the same galaxies drawn again for
# both:

for prefix in ("pca_", "shape_"):
    pair = scores[""], scores[prefix]
    again = [
        np.subtract(*(roc_auc_score(spiral[rows], score[rows]) for score in pair))
        for rows in draws(len(spiral))
    ]
    low, high = np.percentile(again, [2.5, 97.5])
    gain = verdict[""][0] - verdict[prefix][0]
    print(f"AUC of latents - {names[prefix]} {gain:+.3f} ({low:+.3f} to {high:+.3f})")

# %%
# Second claim: properties go up or down along the latents
# --------------------------------------------------------
#
# Signs and directions of latents are arbitrary. So we look along the direction of each
# property that train galaxies give, as above. Two things make a relation monotonic. The
# rank correlation is not zero; and in five bins along the direction, no step goes back.
# The second p-value is that of the largest step back, times the number of steps: if it
# is small, the relation is *not* monotonic.


def monotonic(name, prefix):
    known = ~np.ma.getmaskarray(judged[name])
    x = np.asarray(judged[f"{prefix}linear_{name}_pred"])[known]
    y = np.asarray(judged[name], dtype=float)[known]
    rho, p = stats.spearmanr(x, y)
    again = [stats.spearmanr(x[rows], y[rows]).statistic for rows in draws(len(y))]
    low, high = np.percentile(again, [2.5, 97.5])
    bins = np.array_split(y[np.argsort(x)], 5)
    means = np.array([part.mean() for part in bins])
    errors = np.array([part.std(ddof=1) / np.sqrt(len(part)) for part in bins])
    back = -np.diff(means) / np.hypot(errors[1:], errors[:-1])
    p_back = min(1.0, 4 * stats.norm.sf(back.max()))
    true = low > 0 and p < 0.01 and p_back > 0.05
    print(
        f"{name:9}{names[prefix]:20} Spearman {rho:.2f} ({low:.2f} to {high:.2f}), "
        f"p {p:.0e}; steps back p {p_back:.2f}: {'true' if true else 'not shown'}"
    )
    return means, errors


steps = Figure(figsize=(9, 3), layout="constrained")
axes = steps.subplots(1, len(properties), squeeze=False)[0]
for ax, name in zip(axes, properties):
    for prefix, color in (("", "#0072B2"), ("pca_", "#D55E00")):
        means, errors = monotonic(name, prefix)
        shift = 0.06 if prefix else -0.06
        ax.errorbar(np.arange(1, 6) + shift, means, errors, fmt="o", color=color, ms=4)
        ax.plot([], [], "o", color=color, ms=4, label=names[prefix])
    ax.set(xlabel="fifth of the galaxies", ylabel=f"mean {name}", xticks=range(1, 6))
legend = axes[0].legend(loc="best", frameon=False)

# %%
# Latents against principal components
# ------------------------------------
#
# R2 of the properties of held-out galaxies, predicted by what train galaxies have
# taught. The last column is what matters: the difference, for the same galaxies drawn
# again.


def r2(y, predicted):
    return 1 - np.square(y - predicted).sum() / np.square(y - y.mean()).sum()


gains = {}
for name in properties:
    known = ~np.ma.getmaskarray(judged[name])
    y = np.asarray(judged[name], dtype=float)[known]
    for method in ("linear", "neighbors"):
        ours, theirs = (
            np.asarray(judged[f"{prefix}{method}_{name}_pred"])[known]
            for prefix in ("", "pca_")
        )
        again = [r2(y[k], ours[k]) - r2(y[k], theirs[k]) for k in draws(len(y))]
        low, high = np.percentile(again, [2.5, 97.5])
        gains[name, method] = low, high
        print(
            f"{name:9}{method:10} latents {r2(y, ours):6.3f}  components "
            f"{r2(y, theirs):6.3f}  difference {r2(y, ours) - r2(y, theirs):+.3f} "
            f"({low:+.3f} to {high:+.3f})"
        )
better = sum(low > 0 for low, _ in gains.values())
worse = sum(high < 0 for _, high in gains.values())
print(f"of {len(gains)}: latents surely better {better}, surely worse {worse}")

# %%
# Where the interval of a difference holds zero, the network is not shown to know more
# than the components. That is no surprise. A model that is trained to paint pixels
# keeps what paints them, and so do the first principal components; labels are not part
# of its task. Its decoder is not linear, so that a straight direction may serve better
# in its plane, as the AUC above may show. Neighbours follow any curve, and say how much
# there is to know. Who wants labels should predict them from more than two latents.
#
# How sure are predictions of a single galaxy? `~astrovae.catalog.add_predictions` gave
# a sigma, too. It should hold the truth for 68.3 % of the galaxies:

for name in properties:
    known = ~np.ma.getmaskarray(judged[name])
    error = np.abs(judged[name] - judged[f"neighbors_{name}_pred"])[known]
    inside = np.mean(error < judged[f"neighbors_{name}_pred_sigma"][known])
    spread = np.median(judged[f"neighbors_{name}_pred_sigma"])
    print(f"{name:9} median sigma {spread:.2f}, holds {inside:.1%} of {known.sum()}")

# %%
# Irregular galaxies
# ------------------
#
# The model has learnt from regular galaxies alone. What it cannot explain is unusual.
# `~astrovae.catalog.add_outliers` compares each galaxy with train galaxies of the same
# signal-to-noise. Held-out galaxies take part: those called odd, and the regular ones.

everyone = held_out & (regular | np.asarray(table["odd"] > 0.5))
some = aligned[everyone]
found = av.catalog.add_outliers(table[everyone], vae, some, training=aligned[train])
found = av.catalog.add_outliers(
    found, pca, some, training=aligned[train], prefix="pca_"
)
odd = np.asarray(found["odd"] > 0.5)
print(f"{odd.sum()} odd galaxies, {(~odd).sum()} regular ones")
for prefix in ("", "pca_"):
    score = np.asarray(found[f"{prefix}vae_outlier_percentile"])
    auc(odd, score, f"percentile, {names[prefix]}")
auc(odd, np.asarray(found["vae_mse"]), "squared error, latents")
auc(odd, pca.measure(some)["pca_mse"], "squared error, components")

# %%
# The most unusual galaxies. Those that people called odd have an orange frame. Many of
# the others have a bright neighbour, which the model cannot explain either.

order = np.argsort(-np.asarray(found["vae_outlier_percentile"]))[:24]
gallery = Figure(figsize=(9, 3.5), layout="constrained")
for ax, i in zip(gallery.subplots(3, 8).flat, order):
    ax.imshow(posed[everyone].data[i, ..., 0], origin="lower", cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color="#D55E00" if odd[i] else "white", linewidth=3)

# %%
# Two runs, the same latents?
# ---------------------------
#
# Latents of two runs differ by a rotation at least. `~astrovae.catalog.align` finds it,
# and says how much of the one run the other knows.

for name, prefix in (("other seed", "other_"), ("components", "pca_")):
    latents = ("latent_mean", f"{prefix}latent_mean")
    same = av.catalog.align(judged, judged, latents=latents)
    canonical = ", ".join(f"{value:.2f}" for value in same.canonical_correlations)
    print(
        f"{name:11} canonical correlations {canonical}; R2 after rotation "
        f"{same.rotation_r2:.2f} ({same.rotation_r2_low:.2f} to "
        f"{same.rotation_r2_high:.2f})"
    )

# %%
# Keep in mind
# ------------
#
# * Held-out galaxies are of the same survey. On another one, all of this has to be
#   measured again.
# * The images were scaled by the size of each galaxy. Colours and fluxes, which tell
#   more than shapes, were taken away before the model saw anything.
# * Votes have errors, and fewer votes see features in faint and small galaxies.
# * That a correlation survives the nuisances does not make it physics. That it does not
#   survive them is a warning.
