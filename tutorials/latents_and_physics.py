# Licensed under a 3-clause BSD style license - see LICENSE
"""
From latents to physics: matching catalogues
============================================

Latents come from images, physical properties from elsewhere. How do the two get into
one table, without a wrong match, a rounded identifier or a lost row? And what may be
said of 100 galaxies?

Prerequisites
-------------

An installed astrovae, and some knowledge of Astropy tables.
:doc:`/user_guide/catalogs` describes what is used here, :doc:`/user_guide/statistics`
the statistics.

The data lie in the folder that the environment variable ``ASTROVAE_DATA`` names.
``cosmos_hst`` has 100 galaxies of the COSMOS field that the Hubble Space Telescope
observed through F814W (Koekemoer et al. 2007, ApJS 172, 196), in GalSim's format
(Mandelbaum et al. 2012, MNRAS 420, 1518), with magnitudes from Hyper Suprime-Cam and
photometric redshifts. ``catalogues`` has tables of the Sloan Digital Sky Survey: 9,054
galaxies with photometry and redshifts, types of Galaxy Zoo 1 (Lintott et al. 2011,
MNRAS 410, 166), and gas-phase oxygen abundances (Tremonti et al. 2004, ApJ 613, 898).
Without them the first part is done with simulated galaxies, and the second is left
out. All numbers and figures are those of the run that built this page.

Context
-------

Most surveys give images and properties in different catalogues. They are matched by
position where nothing else is common, and by identifier where there is one. Both go
wrong silently: a radius that is too large finds a neighbour, and an identifier of 64
bits that passes through a float loses its last digits.

Objective
---------

Measure latents of galaxies with coordinates, append properties by position, say what
is correlated beyond apparent size; match larger catalogues by position and by
identifier; write the result and read it back whole.

Approach
--------

`~astrovae.catalog.crossmatch` appends and loses no row. `~astrovae.catalog.correlate`
says what latents know. `~astrovae.catalog.write_catalog` keeps units, masks,
descriptions and provenance.
"""

import os
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

import astrovae as av

# %%
# Read the galaxies
# -----------------
#
# The stamps differ in size. They are put, centre on centre, into cutouts of 48 x 48
# pixels. What a stamp does not reach is masked, and what is masked is ignored by
# everything that follows.

folder = Path(os.environ.get("ASTROVAE_DATA", "."))
cosmos = folder / "cosmos_hst"
rng = np.random.default_rng(1)


def read_cosmos():
    path = cosmos / "real_galaxy_catalog_26_extension_example.fits"
    stack = av.images.read_galsim_catalog(path, shape=48)
    catalog = Table.read(path)["IDENT", "RA", "DEC", "MAG"]
    catalog.rename_columns(["IDENT", "RA", "DEC", "MAG"], ["id", "ra", "dec", "mag"])
    other = Table.read(path.with_name(path.stem + "_fits.fits"))
    other["g_i"] = other["HSC_g"] - other["HSC_i"]
    other = other["IDENT", "HSC_i", "g_i", "ZPHOT"]
    other.rename_columns(["IDENT", "HSC_i", "ZPHOT"], ["true_id", "mag_i", "z_phot"])
    return catalog, stack, other, {"mag_i": "mag", "g_i": "mag", "z_phot": ""}


def simulate():
    truth, stack = av.datasets.make_galaxies(100, shape=48, snr=(20, 100), seed=1)
    catalog = Table({"id": stack.ids, "mag": 25 - 2.5 * np.log10(truth["flux"])})
    catalog["ra"] = 150 + rng.uniform(0, 4 / 60, 100)
    catalog["dec"] = 2 + rng.uniform(0, 4 / 60, 100)
    bulge = truth["bulge_fraction"].filled(0).reshape(100)
    other = Table({"true_id": stack.ids, "mag_i": catalog["mag"], "bulge": bulge})
    return catalog, stack, other, {"mag_i": "mag", "bulge": ""}


kind = "COSMOS" if cosmos.exists() else "simulated"
table, stack, other, units = read_cosmos() if cosmos.exists() else simulate()
properties = list(units)
for name, unit in units.items():
    other[name].unit = unit
    other[name].format = ".2f"
print(kind, stack)

# %%
# Principal components as latents
# -------------------------------
#
# A hundred galaxies train no network, but they do give a few principal components.
# `~astrovae.baselines.EigenGalaxies` has the methods of a model: where we write
# ``eigen``, a `~astrovae.models.VAE` that was trained on more galaxies fits as well.
#
# Flux is known already, so images are divided by it; and orientation is measured, so
# they are aligned. Left are size and shape. The components are those of the same 100
# galaxies. They have seen the images, and none of the properties.

posed = av.images.measure_pose(stack)
table = av.catalog.add_pose(table, posed)
flux = 10 ** (-0.4 * (np.asarray(table["mag"]) - 25))[:, None, None, None]
error = np.broadcast_to(posed.error / flux, posed.data.shape)
scaled = posed.replace(data=posed.data / flux, error=error)
aligned = av.images.align(scaled, shape=32)
eigen = av.baselines.EigenGalaxies(4, tol=1e-5).fit(aligned)
table = av.catalog.add_latents(table, eigen, aligned)
print(np.round(eigen.explained_variance_ratio_, 3))

# %%
# What a galaxy looks like is not all that the latents follow. Three nuisances are kept
# beside them: apparent size, axis ratio, and the signal-to-noise ratio of the pixels.

table["log_size"] = np.log10(table["pose_size"])
signal = np.where(stack.mask, 0, stack.data / stack.error)
table["log_snr"] = 0.5 * np.log10(np.square(signal).mean(axis=(1, 2, 3)))

# %%

plane = av.plotting.plot_latents(table, scaled, x=0, y=1)

# %%
# Another catalogue
# -----------------
#
# The magnitudes and redshifts come from another survey. Here they are listed under the
# same numbers, so that we know the truth. We make it as hard as it usually is: a tenth
# of the rows is missing, the order is another one, and positions scatter by 0.1 arcsec
# in each direction. ``true_id`` will only be used to count wrong matches.

n = len(other)
cos = np.cos(np.radians(table["dec"]))
other["ra"] = table["ra"] + rng.normal(scale=0.1 / 3600, size=n) / cos
other["dec"] = table["dec"] + rng.normal(scale=0.1 / 3600, size=n)
other = other[rng.permutation(n)[: n - n // 10]]

# %%
# Choose the radius
# -----------------
#
# A small radius loses counterparts, a large one finds neighbours. The record of each
# match in ``table.meta`` says how many rows are matched, how many have several
# candidates, and how many galaxies would find something by chance: all positions are
# shifted by 10 and 20 radii, and matched again. We know the wrong matches, too.

for arcsec in (0.1, 0.25, 0.5, 1, 2, 4):
    trial = av.catalog.crossmatch(table, other, radius=arcsec * u.arcsec)
    record = trial.meta["astrovae"]["default"]["crossmatch"]
    wrong = np.ma.filled(trial["true_id"] != trial["id"], False).sum()
    print(
        f"{arcsec:4} arcsec: matched {record['n_matched']:3}, ambiguous "
        f"{record['n_ambiguous']:3}, chance {record['chance_match_rate']:.3f}, "
        f"wrong {wrong}"
    )

# %%
# Half an arcsecond is five sigma. No row is lost: galaxies without a counterpart have
# masked properties.

matched = av.catalog.crossmatch(table, other, radius=0.5 * u.arcsec, find="mutual")
matched["separation"].format = ".2f"
print(f"{len(table)} rows before, {len(matched)} after")
matched["id", *properties, "separation", "match_count"][:5]

# %%
# The separations tell whether the radius was right. True pairs follow a Rayleigh
# distribution of the scatter; chance pairs would grow with the radius, up to the edge.

separation = matched["separation"].compressed()
separations = Figure(figsize=(5, 3), layout="constrained")
ax = separations.subplots()
ax.hist(separation, np.linspace(0, 0.5, 21), color="#9AA5B1")
r = np.linspace(0, 0.5, 200)
rayleigh = len(separation) * 0.025 * r / 0.01 * np.exp(-0.5 * r**2 / 0.01)
ax.plot(r, rayleigh, color="#D55E00", label="scatter of 0.1 arcsec")
ax.set(xlabel="separation / arcsec", ylabel="galaxies", xlim=(0, 0.5))
legend = ax.legend(loc="upper right", frameon=False)

# %%
# What the latents know
# ---------------------
#
# Rank correlations with each latent, first as they are, then with the nuisances held
# fixed. Intervals are those of 95 %. With 90 galaxies they are wide: a correlation of
# 0.3 has an interval of about 0.1 to 0.5. ``q`` takes into account how many were looked
# at. The signal-to-noise ratio follows the magnitude, of which it leaves little.

nuisances = ["log_size", "pose_axis_ratio", "log_snr"]
result = av.catalog.correlate(matched, properties, nuisances=nuisances)
for row in result:
    print(f"{row['property']}: n {row['n']}")
    for name, text in (
        ("linear_r2", "latents"),
        ("nuisance_r2", "nuisances"),
        ("partial_r2", "latents beyond nuisances"),
    ):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        print(f"    R2 {text:25}{row[name]:6.2f} ({low:.2f} to {high:.2f})")
for name in ("spearman", "partial_spearman"):
    q = result[f"{name}_q"]
    print(f"{name:17} {np.sum(q < 0.05)} of {q.size} have q < 0.05")

# %%

correlations = av.plotting.plot_correlations(result)

# %%

partial = av.plotting.plot_correlations(result, kind="partial_spearman")

# %%
# Every galaxy, where one property is the colour. With 90 of them, points say more than
# contours.

known = ~np.ma.getmaskarray(matched[properties[1]])
scatter = Figure(figsize=(6, 4.2), layout="constrained")
ax = scatter.subplots()
values = np.asarray(matched[properties[1]])[known]
points = ax.scatter(
    *matched["latent_mean"][known, :2].T,
    c=values,
    vmin=np.percentile(values, 5),
    vmax=np.percentile(values, 95),
    s=14,
)
ax.set(xlabel="latent 0", ylabel="latent 1")
bar = scatter.colorbar(points, label=properties[1], extend="both")

# %%
# An R2 out of fold that is not above zero is no better than the mean of all galaxies.
# What does not survive the nuisances is size and noise until shown otherwise. What
# survives in so small a sample is a reason to look at more galaxies.
#
# Larger catalogues
# -----------------
#
# 9,054 galaxies and 50,131 types have positions, one in degrees, the other in text like
# ``00:00:02.41``, which is read as hours. They are matched by position first. What
# ``n_masked`` counts are rows without a position; rows without a counterpart are masked
# in the columns of the other catalogue.

catalogs = folder / "catalogues"
big = None
if catalogs.exists():
    big = Table.read(catalogs / "galaxynet_sdss_gz2_9054.csv", format="ascii.csv")
    types = Table.read(catalogs / "gz1_radec_type_50131.csv", format="ascii.csv")
    start = time.perf_counter()
    big = av.catalog.crossmatch(
        big, types, radius=1 * u.arcsec, prefix="zoo_", suffix="_zoo"
    )
    record = big.meta["astrovae"]["zoo_"]["crossmatch"]
    print(f"{time.perf_counter() - start:.1f} s")
    print("\n".join(f"{key:18} {value}" for key, value in record.items()))
    print(f"{np.ma.getmaskarray(big['TYPE']).sum()} of {len(big)} rows have no type")
else:
    print("ASTROVAE_DATA is not set: larger catalogues are left out")

# %%
# Both have an identifier of the same data release as well. So the position can be
# checked: is it the same object?

if big is not None:
    hit = ~np.ma.getmaskarray(big["OBJID"])
    same = np.asarray(big["gz2_objid"])[hit] == np.asarray(big["OBJID"])[hit]
    print(f"{same.sum()} of {hit.sum()} have the same identifier")
    print(f"largest separation {big['zoo_separation'].max():.2f} arcsec")

# %%
# By identifier
# -------------
#
# Abundances have no positions, but the identifiers of a later data release. These have
# 64 bits. A float has 53 for the digits: neighbours in the catalogue become the same
# number. `~astrovae.catalog.crossmatch` refuses them.

if big is not None:
    abundances = Table.read(catalogs / "sdss_oh_p50_20466.csv", format="ascii.csv")
    objid = np.asarray(big["objid"])
    print(
        f"{(objid.astype(float).astype(np.int64) != objid).mean():.0%} change as floats"
    )
    rounded = big.copy()
    rounded["objid"] = objid.astype(float)
    try:
        av.catalog.crossmatch(rounded, abundances, on=("objid", "objID"))
    except ValueError as error:
        print(error)

# %%

if big is not None:
    start = time.perf_counter()
    big = av.catalog.crossmatch(
        big, abundances, on=("objid", "objID"), prefix="oh_", suffix="_oh"
    )
    record = big.meta["astrovae"]["oh_"]["crossmatch"]
    print(f"{time.perf_counter() - start:.1f} s")
    print("\n".join(f"{key:12} {value}" for key, value in record.items()))
    print(f"{np.ma.getmaskarray(big['oh_p50']).sum()} rows have no abundance")

# %%
# Any columns can stand for the latents. Four colours are what latents of images should
# be compared with: what do colours know of abundance and morphology, beyond redshift
# and apparent size? Intervals are narrow where thousands of galaxies have the property,
# and wide where few do.

if big is not None:
    for blue, red in ("ug", "gr", "ri", "iz"):
        big[f"{blue}_{red}"] = big[blue] - big[red]
    big["log_r50"] = np.log10(big["petroR50_r"])
    big["smooth"] = big["t01_smooth_or_features_a01_smooth_fraction"]
    colors = av.catalog.correlate(
        big,
        ["oh_p50", "smooth"],
        latents=["u_g", "g_r", "r_i", "i_z"],
        nuisances=["redshift", "log_r50"],
    )
    for row in colors:
        print(
            f"{row['property']:7} n {row['n']:5}  R2 linear {row['linear_r2']:.2f} "
            f"({row['linear_r2_low']:.2f} to {row['linear_r2_high']:.2f}), beyond "
            f"nuisances {row['partial_r2']:.2f} ({row['partial_r2_low']:.2f} to "
            f"{row['partial_r2_high']:.2f})"
        )

# %%

if big is not None:
    of_colors = av.plotting.plot_correlations(
        colors,
        kind="partial_spearman",
        latent_names=["u - g", "g - r", "r - i", "i - z"],
    )

# %%
# Write it, and read it back
# --------------------------
#
# The extension decides the format. Whatever a format has no place for is in a header,
# so that vectors, masks, units, descriptions and provenance come back from each.

target = Path(tempfile.mkdtemp())
for ending in ("ecsv", "fits", "parquet"):
    path = target / f"catalog.{ending}"
    av.catalog.write_catalog(matched, path)
    back = av.catalog.read_catalog(path)
    for name in matched.colnames:
        hidden = np.ma.getmaskarray(np.ma.asarray(matched[name]))
        again = np.broadcast_to(getattr(back[name], "mask", False), hidden.shape)
        assert (hidden == again).all()
        values = np.asarray(getattr(back[name], "unmasked", back[name]))
        np.testing.assert_array_equal(
            values[~hidden], np.asarray(matched[name])[~hidden]
        )
    assert back.meta["astrovae"] == matched.meta["astrovae"]
    size = path.stat().st_size / 1024
    print(f"{path.name:16} {size:4.0f} kB  latent_mean {back['latent_mean'].shape}")

# %%
# Provenance says where columns come from:

for step, entry in back.meta["astrovae"]["default"].items():
    print(f"{step}: {', '.join(f'{k} {v}' for k, v in entry.items() if k[:2] == 'n_')}")

# %%
# Identifiers of 64 bits survive, too:

if big is not None:
    for ending in ("ecsv", "fits", "parquet"):
        path = target / f"big.{ending}"
        start = time.perf_counter()
        av.catalog.write_catalog(big, path)
        back = av.catalog.read_catalog(path)
        exact = (np.asarray(back["objid"]) == objid).all()
        print(f"{path.name:12} {time.perf_counter() - start:.1f} s, ids exact: {exact}")

# %%
# Some programs, TOPCAT among them for plots, want one number per column.
# `~astrovae.catalog.split_vectors` makes them, and
# `~astrovae.catalog.merge_vectors` puts them together again.

flat = av.catalog.split_vectors(matched)
print([name for name in flat.colnames if name.startswith("latent")])
av.catalog.write_catalog(flat, target / "topcat.csv")
whole = av.catalog.merge_vectors(av.catalog.read_catalog(target / "topcat.csv"))
np.testing.assert_array_equal(whole["latent_mean"], matched["latent_mean"])
print(whole["latent_mean"].shape)

# %%
# Keep in mind
# ------------
#
# * Look at the separations, the chance rate and the ambiguous rows of every match.
# * Never let an identifier pass through a float, nor through a program that makes one.
# * A match that is missing is not missing at random: faint and crowded galaxies are.
#   What is said of the matched ones holds for these.
# * Say how many galaxies and how many correlations were looked at.
