# Licensed under a 3-clause BSD style license - see LICENSE
"""
Clusters of galaxies that look alike
====================================

A model that sees no label sorts galaxies into twelve clusters. Do they mean anything,
would another seed find the same, and what does the model believe that each kind of
galaxy looks like?

Prerequisites
-------------

An installed astrovae; :doc:`hubble_deep_field` shows the first steps, and
:doc:`/user_guide/clusters` says what the columns and scores mean.

The images are those of Galaxy Zoo 2 (Willett et al. 2013, MNRAS 435, 2835), from the
Sloan Digital Sky Survey: ``gz2_images.zip`` with colour JPEGs, ``<id>.jpg``, and
``gz2_galaxies.csv`` with the votes, in the folder that the environment variable
``ASTROVAE_DATA`` names. Without them the same steps are done with simulated galaxies
and what is known of these. All numbers and figures are those of the run that built this
page; its first output says which galaxies it had.

Context
-------

AstroVaDEr (Spindler et al. 2021, MNRAS 502, 985) joined a convolutional network to a
mixture of twelve normal distributions, by the training of s3VDC (Cao et al. 2020,
arXiv:2005.08047), and grouped galaxies of Galaxy Zoo without labels. Whoever looks for
kinds of galaxies in this way should ask:

* Do clusters agree with what people see, beyond what k-means finds, and beyond always
  guessing the commonest class?
* Do they follow how a galaxy happens to lie, or what happens to lie beside it?
* Are they the same with another seed?

Objective
---------

Train a model with a mixture prior on posed galaxies. Put the clusters into a catalogue,
summarise and look at them, and paint new galaxies of each. Score them on held-out
galaxies.

Approach
--------

What is no property of a galaxy is taken out before: companions are masked, and
galaxies turned to a common position angle. Then the model is trained in one call of
``fit``, for five seeds.
"""

import os
import time
from pathlib import Path

import keras
import numpy as np
from astropy.table import Table
from scipy import stats
from sklearn.cluster import KMeans

import astrovae as av

N_CLUSTERS, LATENT_DIM, SEEDS = 12, 8, range(5)

# %%
# Read the galaxies
# -----------------
#
# The pictures become grey, and the central 207 pixels are averaged to 69 x 69. They
# were scaled to the size of each galaxy and stretched for the eye. 1,800 of the
# galaxies with votes are read.

LUMA = (0.2125, 0.7154, 0.0721)
VOTES = {"Class1.1": "smooth", "Class2.1": "edge_on"}


def read_galaxy_zoo(folder, n=1800):
    table = Table.read(folder / "gz2_galaxies.csv", format="ascii.csv")
    table = table["GalaxyID", *VOTES]
    table.rename_columns(list(VOTES), list(VOTES.values()))
    table = table[~table["smooth"].mask][:n]
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
# and an axis ratio below 0.3 for "edge-on".


def simulate(n=1500):
    truth, stack = av.datasets.make_galaxies(n, shape=69, snr=(100, 300))
    bulge = np.ma.filled(truth["bulge_fraction"], np.nan).astype(float).reshape(n)
    index = np.ma.filled(truth["sersic_index"], np.nan).astype(float)
    concentration = np.where(np.isfinite(bulge), bulge, (index - 0.5) / 5.5)
    table = Table({"id": truth["id"], "smooth": stats.rankdata(concentration) / n})
    table["edge_on"] = (np.asarray(truth["axis_ratio"]) < 0.3).astype(float)
    return table, stack


folder = Path(os.environ.get("ASTROVAE_DATA", "."))
if (folder / "gz2_images.zip").exists():
    kind, floor = "Galaxy Zoo 2", 1 / 255 / np.sqrt(12)
    table, stack = read_galaxy_zoo(folder)
else:
    kind, floor = "simulated", 0.0
    table, stack = simulate()
print(f"{len(stack)} galaxies, {kind}")

# %%
# Mask companions, and turn galaxies
# ----------------------------------
#
# A cluster of "galaxies with a star at the upper left" is of no use, nor is one of
# "galaxies at 45 degrees". Companions are masked: no model sees them. Position angle,
# centre and brighter side are measured, and galaxies aligned by them.

clean = av.images.clean_cutouts(stack, background=None, neighbors="mask")
posed = av.images.measure_pose(clean)
table = av.catalog.add_pose(table, posed)
aligned = av.images.align(posed, shape=69)
held_out = stack.held_out(0.3, seed=0)
train, test = ~held_out & posed.usable, held_out & posed.usable
print(f"{train.sum()} to train on, {test.sum()} to test")

# %%
# Train
# -----
#
# The preset ``galaxy_eigen`` with a mixture prior. `~astrovae.models.mixture_training`
# makes the callbacks: networks alone at first, with a weak KL divergence; then the
# components are placed by the posteriors of all galaxies; then networks and mixture are
# trained together, while the weight of the divergence rises, in two cycles. Duplicates
# are merged on the way, and dead components revived.


def train_model(seed, passes=20, batch_size=128):
    images = aligned[train]
    keras.utils.set_random_seed(seed)
    model = av.models.VAE.from_preset(
        "galaxy_eigen",
        image_shape=images.image_shape,
        latent_dim=LATENT_DIM,
        prior=av.layers.MixturePrior(
            N_CLUSTERS, LATENT_DIM, covariance="full", concentration=2.0, seed=seed
        ),
        likelihood=av.models.GaussianLikelihood(sigma_floor=floor, profile=3.0),
        seed=seed,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        1e-3, passes * -(-len(images) // batch_size)
    )
    model.compile(optimizer=keras.optimizers.Adam(rate))
    recipe = av.models.mixture_training(images, passes, beta=model.beta, seed=seed)
    model.fit(
        images,
        batch_size=batch_size,
        epochs=passes,
        augment="mirrors",
        callbacks=recipe,
        verbose=0,
    )
    return model


start = time.perf_counter()
models = [train_model(seed) for seed in SEEDS]
vae = models[0]
print(f"{len(models)} models in {time.perf_counter() - start:.0f} s")

# %%
# Is it a mixture? Weights sum to one, no two components are the same, and components
# are right as often as they say:

report = av.diagnostics.mixture_report(vae)
calibration = av.diagnostics.responsibility_calibration(vae.prior)
print(
    f"weights sum to {report['weights_sum']:.6f}, "
    f"largest overlap of two components {report['max_bhattacharyya']:.2f}, "
    f"{report['occupied']} of {report['num_components']} have 2 % or more, "
    f"calibration error {calibration['calibration_error']:.4f}"
)

# %%
# The clusters in the catalogue
# -----------------------------
#
# Cluster 0 is the heaviest. The label comes with the probabilities of all clusters,
# their entropy, and how far the galaxy is from the middle of its component.

table = av.catalog.add_clusters(table, vae, aligned)
print(table["cluster_label", "cluster_entropy", "cluster_distance"][:5])

# %%
# What kind of galaxies each has, by the medians of properties that the model never saw:

columns = ["smooth", "edge_on", "pose_axis_ratio", "pose_size"]
summary = av.catalog.cluster_summary(table[test], columns, model=vae)
for row in summary:
    print(
        f"cluster {row['cluster']:2}: {row['n_galaxies']:3} galaxies, smooth "
        f"{row['smooth_median']:.2f}, axis ratio {row['pose_axis_ratio_median']:.2f}"
    )

# %%

properties = av.plotting.plot_cluster_properties(table[test], columns[:1] + columns[2:])

# %%
# Look at them
# ------------
#
# Galaxies that are typical of each cluster, some that are not, and new ones, which the
# model paints from the component alone. Held-out galaxies, all of them.

gallery = av.plotting.plot_clusters(
    table[test], aligned[test], vae, n_typical=5, n_random=4, n_samples=4
)

# %%
# Do they agree with people?
# --------------------------
#
# Held-out galaxies, and two questions of Galaxy Zoo: is the galaxy smooth, and, if it
# is not, is it seen edge-on? Each cluster stands for the class that is the commonest
# among its *training* galaxies. Accuracy means little unless it is above that of the
# majority; normalised mutual information (NMI) is 0 without relation and 1 if both
# agree. Beside the model stands k-means on eight principal components of the same
# aligned galaxies, of unit variance each.

pca = av.baselines.EigenGalaxies(LATENT_DIM, tol=1e-4).fit(aligned[train])
with_pca = av.catalog.add_latents(table, pca, aligned, prefix="pca_")
components = np.ma.filled(with_pca["pca_latent_mean"], 0.0)
spread = components[train].std(axis=0)
labels = {"model": [model.responsibilities(aligned).argmax(axis=1) for model in models]}
labels["k-means"] = [
    KMeans(N_CLUSTERS, n_init=10, random_state=seed)
    .fit(components[train] / spread)
    .predict(components / spread)
    for seed in SEEDS
]
smooth = np.ma.filled(table["smooth"], 0) > 0.5
tasks = {"smooth": (smooth, np.ones(len(table), bool))}
tasks["edge_on"] = (np.ma.filled(table["edge_on"], 0) > 0.5, ~smooth)
for task, (classes, asked) in tasks.items():
    for name, runs in labels.items():
        scores = [
            av.diagnostics.cluster_scores(
                run[test & asked],
                classes[test & asked],
                train_labels=run[train & asked],
                train_classes=classes[train & asked],
                n_bootstrap=0,
            )
            for run in runs
        ]
        nmi = [score["nmi"] for score in scores]
        accuracy = [score["accuracy"] for score in scores]
        print(
            f"{task:8} {name:8} NMI {np.mean(nmi):.3f} ± {np.std(nmi, ddof=1):.3f}, "
            f"accuracy {np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=1):.3f} "
            f"(majority {scores[0]['majority']:.3f})"
        )

# %%
# Do they follow what they should not?
# ------------------------------------
#
# Mutual information of cluster and position angle, in nats, minus what chance gives.
# Round galaxies have no position angle and are left out.

vague = (np.asarray(posed.flags) & av.flags.Flag.POSE_UNRELIABLE) != 0
known = test & ~vague
angle = np.degrees(posed.pose["angle"])
for name, runs in labels.items():
    found = av.diagnostics.cluster_information(
        runs[0][known], angle[known], kind="circular"
    )
    print(
        f"{name:8} {found['excess']:.3f} nats with the position angle, of "
        f"{found['entropy']:.2f}; p = {found['p_value']:.2f}"
    )

# %%
# Would another seed find the same?
# ---------------------------------
#
# The adjusted Rand index of two clusterings is 1 if all pairs of galaxies agree, and 0
# by chance. Here a seed changes the weights of the networks, the order of the batches,
# and the start of the mixture.

for name, runs in labels.items():
    found = av.diagnostics.cluster_stability([run[test] for run in runs])
    print(f"{name:8} {found['ari']:.2f} ± {found['ari_sd']:.2f}, of held-out galaxies")

# %%
# What to take home
# -----------------
#
# Clusters are a way to look at many galaxies at once, not classes of nature: the
# mixture draws borders through a continuum, and where it draws them is in part luck.
# Use the probabilities rather than the labels, compare with k-means before you are
# impressed, and show the scatter between seeds. How many clusters there should be is a
# question to held-out galaxies: `~astrovae.models.select_components`.
