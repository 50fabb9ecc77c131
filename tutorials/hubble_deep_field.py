# Licensed under a 3-clause BSD style license - see LICENSE
"""
From the Hubble Deep Field to a catalogue with latents
======================================================

Start with an image and end with a catalogue that says, for each galaxy, where it
stands among the others and how sure that is.

Prerequisites
-------------

An installed astrovae; the image comes with scikit-image. Some knowledge of Astropy
tables helps.

Context
-------

A catalogue describes a galaxy by a few numbers that somebody chose: a flux, a size,
an axis ratio. A variational autoencoder finds numbers of its own, the *latents*, from
which the picture of the galaxy can be painted again. They are measured with an
uncertainty, and the noise of the pixels is taken into account.

The image is the colour picture of the Hubble eXtreme Deep Field that was made for the
public. It has 8 bits per pixel and was stretched for the eye, so that pixel values are
not proportional to flux. That is enough to learn how galaxies look, and not enough for
photometry.

Objective
---------

Detect the galaxies of the image, train a model on most of them, and append latents,
reconstruction metrics and a Gaussian fit to the rows of all of them.

Approach
--------

Detection and cutouts are done by photutils through `astrovae.images`; the model is
`~astrovae.models.VAE`; `astrovae.catalog` appends the columns.
"""

import tempfile
from pathlib import Path

import keras

import astrovae as av

keras.utils.set_random_seed(1)

# %%
# Find the galaxies
# -----------------
#
# The image has three bands. Sources are detected on their sum and split where they
# touch.

image = av.datasets.hubble_deep_field()
table, segmentation = av.images.detect_sources(image)
table["label", "x", "y", "size", "axis_ratio", "extent", "flags"][:5]

# %%
# The flags of each row say what should be known about it, for example that it may be
# a star.

names = av.flags.decode_flags(table["flags"])
for name in sorted({name for row in names for name in row}):
    print(f"{name}: {sum(name in row for row in names)} of {len(table)}")

# %%
# Cut them out
# ------------
#
# One cutout for each row, in the order of the catalogue. Cleaning subtracts the local
# background and masks neighbours; masked pixels are ignored by everything that
# follows. The image has no error map, so the noise is estimated from the sky, and the
# rounding to 8 bits is added to it.

stack = av.images.make_cutouts(image, table, shape=32, segmentation=segmentation)
clean = av.images.clean_cutouts(stack, noise="estimate", quantization_step=1)
figure = av.plotting.plot_cutouts(stack, clean)

# %%
# Train a model
# -------------
#
# It learns from galaxies that are larger than the blur of the image, cover at least 30
# pixels and lie wholly inside. A fifth of them is held out: what the model says of
# these, it says of galaxies that it has never seen.

Flag = av.flags.Flag
unfit = Flag.NOT_LARGER_THAN_PSF | Flag.SOURCE_TRUNCATED | Flag.PARTIAL | Flag.NO_SOURCE
flags = table["flags"] | clean.flags
selected = clean.usable & ((flags & unfit) == 0) & (table["area"].value >= 30)
table["held_out"] = selected & clean.held_out(0.2, seed=1)
train = selected & ~table["held_out"]
print(f"{train.sum()} galaxies to train on, {table['held_out'].sum()} held out")

vae = av.models.VAE.from_preset("galaxy_small", image_shape=clean.image_shape, seed=1)
vae.compile(optimizer=keras.optimizers.Adam(1e-3))
history = vae.fit(
    clean[train],
    validation_data=clean[table["held_out"]],
    batch_size=64,
    epochs=40,
    augment="flips",
    verbose=0,
)
learning = av.plotting.plot_history(history)

# %%
# Append the columns
# ------------------
#
# Every row of the catalogue gets its columns, also the stars and the galaxies at the
# edge. What could not be measured is masked, and a warning counts such rows.

table = av.catalog.add_latents(table, vae, clean)
table = av.catalog.add_reconstruction(table, vae, clean)
table = av.catalog.add_baselines(table, clean)
table["label", "latent_mean", "latent_sigma", "latent_flags"][:3]

# %%
# Columns come with units and descriptions, and the table remembers how they were
# made.

print(table["latent_sigma"].description)
print(list(table.meta["astrovae"]))

# %%
# Look at it
# ----------
#
# How well are held-out galaxies painted? The residuals are in units of the sigma
# that the model predicts for each pixel.

reconstructions = av.plotting.plot_reconstructions(clean[table["held_out"]], vae)

# %%
# Galaxies that look alike are neighbours in the latents:

latents = av.plotting.plot_latents(table[selected], clean[selected])

# %%
# What each latent means, from -3 to +3 sigma:

traversals = av.plotting.plot_traversals(vae, table["latent_mean"][selected])

# %%
# Is it any better than a Gaussian? That one is fitted to the pixels of each galaxy by
# itself, also of the held-out ones, which the model has never seen. The squared error
# of both, over the pixels that are not masked:

errors = av.plotting.plot_error_histogram(table[selected])

# %%
# For nearly all galaxies, it is not. Galaxies of a few pixels are hard to tell from
# Gaussians, whose five numbers, and a flux for each band, are fitted to minimise this
# very error; the model had some hundreds of galaxies to learn from, with all positions
# and angles. :doc:`beat_the_gaussian_fit` shows what it takes: aligned galaxies, many
# of them, and the preset ``galaxy_eigen``.

# %%
# Keep it
# -------
#
# The catalogue is written in any format of Astropy tables; the model goes into a
# folder, from which `~astrovae.models.VAE.from_preset` reads it again.

folder = Path(tempfile.mkdtemp())
av.catalog.write_catalog(table, folder / "catalog.fits")
vae.save_preset(folder / "model")
print(sorted(path.name for path in folder.iterdir()))
