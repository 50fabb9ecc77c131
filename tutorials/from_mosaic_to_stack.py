# Licensed under a 3-clause BSD style license - see LICENSE
"""
From images and coordinates to a clean stack
============================================

Take FITS images of the sky and a catalogue with coordinates, and make of them what a
model is trained on: cutouts with their errors, masks and PSFs, without sky and
neighbours, and a catalogue that says what happened to each galaxy.

Prerequisites
-------------

An installed astrovae; :doc:`/user_guide/images` says what the functions do in general.

The images are eight fields of the Sloan Digital Sky Survey in r (from the sample of
Gadotti 2009, MNRAS 393, 1531): folders with ``image.fit``, ``sigma.fit`` and
``psf.fit`` below ``sdss_r_gadotti``, in the folder that the environment variable
``ASTROVAE_DATA`` names. Without them the same files are simulated. The first output
says which fields the run that built this page had.

Context
-------

A survey comes in many images, and a catalogue says ``ra`` and ``dec``. Between both and
a model lies work that is seldom described and easily done wrong: a position that falls
on another image, a neighbour that is learned as part of the galaxy, an error plane that
was not cut along, a row lost on the way so that from there on all rows are shifted.

Objective
---------

From the files to a stack, row for row that of the catalogue, and back to the catalogue
with poses, fits and flags.

Approach
--------

`~astrovae.images.detect_sources` finds what is there,
`~astrovae.images.make_cutouts` cuts each row from the image that it lies on,
`~astrovae.images.clean_cutouts` removes sky and neighbours,
`~astrovae.images.measure_pose` finds out how galaxies are turned.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import vstack
from astropy.visualization import AsinhStretch, ImageNormalize
from matplotlib.figure import Figure

import astrovae as av
from astrovae.flags import Flag

work = Path(tempfile.mkdtemp())


def simulate_fields(folder, n_fields=4):
    """Write fields as the survey has them: an image, its errors, its PSF."""
    for number in range(n_fields):
        _, image = av.datasets.make_survey(
            5,
            n_stars=4,
            companions=0.2,
            shape=(256, 256),
            snr=(60, 600),
            half_light_radius=(4, 10),
            kinds=("spiral", "bulge_disc"),
            gain=2.0,
            background=0.5,
            pixel_scale=0.396,
            center=(150.0 + number, 2.0),
            seed=number,
        )
        field = folder / f"field_{number}"
        field.mkdir(parents=True)
        header = image.wcs.to_header()
        for name, plane in (
            ("image", image.data[..., 0]),
            ("sigma", image.uncertainty.array[..., 0]),
            ("psf", np.squeeze(image.psf)),
        ):
            fits.writeto(field / f"{name}.fit", plane, header)
    return folder


# %%
# The files
# ---------
#
# A dict of paths for each kind of file, with the same keys. Nothing is read yet.

survey = Path(os.environ.get("ASTROVAE_DATA", "")) / "sdss_r_gadotti"
if "ASTROVAE_DATA" not in os.environ or not survey.is_dir():
    survey = simulate_fields(work / "simulated")
fields = sorted(path for path in survey.iterdir() if path.is_dir())
images, errors, psfs = (
    {field.name: field / f"{kind}.fit" for field in fields}
    for kind in ("image", "sigma", "psf")
)
print(f"{len(fields)} fields of {survey.name}, the first is {fields[0].name}")

# %%
# What is there
# -------------
#
# Sources are found on each image as a whole, and split where they touch: this is the
# best place to decide which pixel belongs to which source. The labels are kept for
# later.

tables, segmentations = [], {}
for name, path in images.items():
    found, segmentations[name] = av.images.detect_sources(av.images.read_image(path))
    found["field"] = name
    tables.append(found)
sources = vstack(tables, metadata_conflicts="silent")
print(f"{len(sources)} sources")

# %%
# A selection is a list of cuts. It says what each of them removed, and so can be
# described in a paper. Here: galaxies that are well seen, larger than the PSF, and
# wholly on their image.

selection = av.images.Selection(
    [
        ("peak_snr", ">", 15.0),
        ("area", ">", 200.0),
        ("flags", "without", "not_larger_than_psf"),
        ("flags", "without", "source_truncated"),
    ]
)
keep, log = selection.apply(sources)
print(log["name", "n_removed", "n_left"])

# %%
# The catalogue
# -------------
#
# What a catalogue usually has: a name and a position on the sky. One more row is in a
# part of the sky that none of the images shows; surveys have such rows, and we want to
# see what becomes of it.

catalog = sources["ra", "dec", "label", "size"][keep]
catalog.add_row(catalog[-1])
catalog["dec"][-1] += 5 * catalog["dec"].unit
catalog["id"] = np.arange(1, len(catalog) + 1)
catalog["id", "ra", "dec", "size"][:5]

# %%
# Cut
# ---
#
# ``tiles=True`` finds for each row the image on which it lies farthest inside, by the
# world coordinates of the images. Errors, PSFs and labels have the keys of the images,
# and are carried along.

stack = av.images.make_cutouts(
    images,
    catalog,
    shape=96,
    bands=["r"],
    error=errors,
    psf=psfs,
    segmentation=segmentations,
    tiles=True,
)
print(stack)

# %%
# There is a cutout for every row. The one that lies nowhere is masked and flagged, and
# a warning has counted it.

names = av.flags.decode_flags(stack.flags)
for name in sorted({name for row in names for name in row}):
    print(f"{name}: {sum(name in row for row in names)} of {len(stack)}")
print(f"row {len(stack)}: {names[-1]}, {(~stack.mask[-1]).sum()} valid pixels")

# %%
# Clean
# -----
#
# The sky of each cutout is subtracted. Pixels of neighbours are masked, so that
# likelihoods and fits ignore them; nothing is painted over them. Look at such a figure
# before you trust a mask: the outer arm of a galaxy, with faint sky between both,
# passes for a neighbour.

clean = av.images.clean_cutouts(stack)
cleaning = av.plotting.plot_cutouts(stack, clean)

# %%
# What was found is in columns: the sky with its uncertainty, the signal-to-noise ratio
# of the target, and how much light the neighbours have relative to it. The last row
# has no pixels, so nothing is known of it.

for name in ("background", "background_err", "snr", "neighbor_fraction"):
    print(f"{name:>18}:", np.round(clean.columns[name][[0, 1, 2, -1]].ravel(), 4))

# %%
# The sky of a camera is smooth. Where a galaxy fills its cutout, the faint light around
# it passes for sky and is subtracted with it; ``background="global"`` takes one level
# for all cutouts of an image instead. Both are the same where an image has one galaxy.
# The difference, in units of the noise of a pixel:

shared = av.images.clean_cutouts(stack, background="global")
difference = clean.columns["background"] - shared.columns["background"]
difference = (difference / clean.columns["background_rms"])[:-1, 0]
print(f"local - global: median {np.median(difference):.3f} sigma")
print(f"                largest {np.max(np.abs(difference)):.3f} sigma")

# %%
# Pose
# ----
#
# Where does each galaxy lie, and how is it turned? A model that is told this need not
# spend latents on it. Centre, angle and axis ratio have uncertainties; galaxies that
# are too round for an angle are flagged.

posed = av.images.measure_pose(clean)

# %%
# The size is one of adaptive moments, which hardly see the faint wings of a PSF. Those
# of a bright star are above the threshold of detection, and make it look larger than
# the PSF there. So compare with the PSFs, measured in the same way: near 1 is a star.

psf_size = av.images.measure_pose(av.images.CutoutStack(posed.psf)).pose["size"]
extent = np.where(posed.flags & Flag.POSE_FAILED, np.nan, posed.pose["size"] / psf_size)
posed = posed.replace(columns=posed.columns | {"extent": extent})
print("extent of all rows:", np.round(np.sort(extent), 2))
unfit = (posed.flags & (Flag.PARTIAL | Flag.CROWDED)) != 0
galaxies = np.flatnonzero((extent > 1.2) & ~unfit)
order = np.argsort(-posed.columns["snr"][galaxies], kind="stable")
brightest = galaxies[order[:8]]

# %%
# From the file to the aligned galaxy: before, with the mask (orange) and the target
# outlined, after, and turned. A model with ``pose=True`` takes ``posed``, not the last
# row: it turns what it paints, and leaves the pixels and their noise alone. The last
# row shows the central 64 pixels.

aligned = av.images.align(posed[brightest], shape=64)
gallery = Figure(figsize=(9.6, 5.2), layout="constrained")
axes = gallery.subplots(4, len(brightest), squeeze=False)
rows = ("before", "mask", "after", "aligned")
for column, row in enumerate(brightest):
    level = clean.columns["background"][row, 0]
    noise = clean.columns["background_rms"][row, 0]
    target = clean.segmentation[row] == clean.labels[row]
    hidden = clean.mask[row, ..., 0]
    peak = np.percentile(clean.data[row, ..., 0][target], 98)
    norm = ImageNormalize(vmin=-2 * noise, vmax=peak, stretch=AsinhStretch(0.05))
    before = stack.data[row, ..., 0] - level
    pictures = (
        before,
        before,
        np.where(hidden, np.nan, clean.data[row, ..., 0]),
        np.where(aligned.mask[column, ..., 0], np.nan, aligned.data[column, ..., 0]),
    )
    for ax, picture in zip(axes[:, column], pictures, strict=True):
        ax.imshow(picture, origin="lower", cmap="gray", norm=norm)
        ax.set(xticks=[], yticks=[], facecolor="tab:blue")
    shade = np.zeros((*hidden.shape, 4))
    shade[hidden] = 1.0, 0.55, 0.0, 0.75
    axes[1, column].imshow(shade, origin="lower")
    axes[1, column].contour(target, levels=[0.5], colors="tab:cyan", linewidths=1)
    axes[0, column].set_title(f"id {clean.ids[row]}", fontsize=9)
for ax, name in zip(axes[:, 0], rows, strict=True):
    ax.set_ylabel(name)

# %%
# One size for all
# ----------------
#
# Galaxies differ in size. A model that should learn their form, not their distance,
# gets cutouts as wide as, say, 12 times the size column. Pixels are averaged by the
# area that they have in common with the new ones, so that no flux is lost; what a
# pixel is on the sky becomes a column.

framed = av.images.make_cutouts(
    images,
    catalog,
    shape=48,
    size="size",
    size_factor=12,
    bands=["r"],
    error=errors,
    psf=psfs,
    segmentation=segmentations,
    tiles=True,
)
scales = framed.columns["pixel_scale"][:-1]
print(f"pixels of {scales.min():.2f} to {scales.max():.2f} arcsec")

# %%
# Back to the catalogue
# ---------------------
#
# Row ``i`` of the stack is row ``i`` of the catalogue, so columns can be appended. The
# row that lies nowhere is masked in them, and its flags say why.

table = av.catalog.add_pose(catalog, posed)
table = av.catalog.add_baselines(table, clean)
table["id", "pose_angle", "pose_angle_err", "gauss_flux", "gauss_flags"][[0, 1, -1]]

# %%
# Two ways to the same number: the angle from moments, weighted by the errors, and that
# of the Gaussian fit, for galaxies that are not round.

pose = posed.pose
flat = (pose["axis_ratio"] < 0.8) & (extent > 1.2)
offset = np.degrees(pose["angle"]) - np.asarray(table["gauss_theta"])
offset = np.abs((offset[flat] + 90) % 180 - 90)
print(f"{flat.sum()} galaxies, median difference {np.median(offset):.1f} deg")

# %%
# What cleaning found out goes along as well, and all of it into files: the stack into
# HDF5, from which batches are read when they are needed, and the catalogue into any
# format.

for name in ("snr", "extent"):
    table[name] = np.ma.masked_invalid(posed.columns[name])
table["image_flags"] = posed.flags
posed.write(work / "stack.h5")
av.catalog.write_catalog(table, work / "catalog.fits")
again = av.images.CutoutStack.read(work / "stack.h5")
print(len(again), [step["name"] for step in again.steps])
print(len(av.catalog.read_catalog(work / "catalog.fits").colnames), "columns")

# %%
# Only now are rows chosen to train on; the catalogue keeps all of them.

usable, log = av.images.Selection(
    [
        ("flags", "without", ["no_valid_pixel", "no_source"], "seen at all"),
        ("flags", "without", ["mostly_masked", "crowded"], "enough of it"),
        ("snr", ">", 10.0),
        ("extent", ">", 1.2, "larger than a star"),
    ]
).apply(posed)
print(log["name", "n_removed", "n_missing", "n_left"])
