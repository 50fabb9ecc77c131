# Licensed under a 3-clause BSD style license - see LICENSE
"""
How far latents move when a galaxy is turned.

A model that works in the aligned frame, the same model without a pose, and the
latter with posteriors averaged over rotations, on the same galaxies. They are
turned by several angles; what is given is the change of a latent, in units of its
scatter from galaxy to galaxy, median over galaxies, latents in use and angles, for
galaxies whose axis ratio is below 0.8::

    python benchmarks/rotation.py --json rotation.json
    python benchmarks/rotation.py --images gz2_images.zip

Simulated galaxies, Sersic profiles with a knot beside the centre, are drawn by GalSim
anew at each angle, without noise; models are trained on others, with noise. Of real
images, a zip of JPEGs as for ``regier.py``, a fifth is held out; they are turned with
all their 424 pixels, by cubic splines, before the middle is cut out and
averaged, so that noise is turned, too, and smoothed a little.
"""

import argparse
import io
import json
import time
import types
import zipfile
from pathlib import Path

import galsim
import keras
import numpy as np
import regier
from PIL import Image
from scipy import ndimage

from astrovae.images import CutoutStack, align, measure_pose

SIZE = 48
NOISE = 0.02
ELONGATED = 0.8
ANGLES = (20.0, 45.0, 90.0, 135.0, 200.0, 290.0)
N_TURNED = 300


# ---------------------------------------------------------------------------
# Galaxies
# ---------------------------------------------------------------------------


def draw_parameters(n, rng):
    """Numbers of simulated galaxies."""
    return {
        "index": rng.uniform(0.8, 2.5, n),
        "size": rng.uniform(3.0, 6.0, n),
        "axis_ratio": rng.uniform(0.25, 1.0, n),
        "knot": rng.uniform(0.0, 0.2, n),
        "knot_x": rng.uniform(0.3, 1.2, n),
        "knot_y": rng.uniform(-0.4, 0.4, n),
        "peak": np.exp(rng.uniform(np.log(0.3), np.log(1.0), n)),
    }


def draw(parameters, angles):
    """Draw galaxies turned by angles, in degrees, without noise."""
    psf = galsim.Moffat(beta=3.0, fwhm=3.0)
    images = np.empty((len(angles), SIZE, SIZE), np.float32)
    columns = zip(*parameters.values(), strict=True)
    for image, angle, row in zip(images, angles, columns, strict=True):
        index, size, ratio, knot, x, y, peak = row
        disc = galsim.Sersic(round(index, 1), half_light_radius=size)
        disc = disc.shear(q=ratio, beta=0 * galsim.degrees)
        light = galsim.Gaussian(sigma=1.0).shift(x * size, y * size * ratio)
        galaxy = (1 - knot) * disc + knot * light
        galaxy = galsim.Convolve(galaxy.rotate(angle * galsim.degrees), psf)
        image[:] = galaxy.drawImage(nx=SIZE, ny=SIZE, scale=1.0).array
        image *= peak / image.max()
    return images


def simulate(n, rng):
    """A noisy stack to train on, and stacks of others at each angle."""
    images = draw(draw_parameters(n, rng), rng.uniform(0, 360, n))
    images += NOISE * rng.standard_normal(images.shape, dtype=np.float32)
    train = stack_of(images)
    parameters = draw_parameters(N_TURNED, rng)
    start = rng.uniform(0, 360, N_TURNED)
    turned = {a: stack_of(draw(parameters, start + a)) for a in (0.0, *ANGLES)}
    return train, turned


def stack_of(images):
    """Galaxies with the noise of the simulation."""
    return CutoutStack(images, error=np.full_like(images, NOISE), bands=["r"])


def read_turned(path, ids):
    """Read JPEGs at each angle: turned, cut and averaged as ``regier.py`` does."""
    stacks = {}
    with zipfile.ZipFile(path) as file:
        names = {Path(name).stem: name for name in file.namelist()}
        greys = [
            np.asarray(Image.open(io.BytesIO(file.read(names[key]))).convert("RGB"))
            @ regier.LUMA
            for key in ids
        ]
    side = 3 * regier.SIZE
    for angle in (0.0, *ANGLES):
        images = np.empty((len(ids), regier.SIZE, regier.SIZE), np.float32)
        for image, grey in zip(images, greys, strict=True):
            # in arrays, y points down where scipy turns counterclockwise
            whole = ndimage.rotate(grey, -angle, reshape=False, mode="nearest")
            top, left = ((size - side) // 2 for size in whole.shape)
            middle = whole[top : top + side, left : left + side]
            blocks = middle.reshape(regier.SIZE, 3, regier.SIZE, 3)
            image[:] = blocks.mean(axis=(1, 3)) / 255
        stacks[angle] = CutoutStack(images, ids=np.array(ids), bands=["grey"])
    return stacks


# ---------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------


def train_models(train, options):
    """The same preset in the aligned frame, and as galaxies were observed."""
    settings = types.SimpleNamespace(
        preset="galaxy_eigen",
        latent_dim=options.latent_dim,
        passes=options.passes,
        seed=options.seed,
    )
    aligned = align(train, shape=regier.canvas_shape(train))
    posed = regier.train_model(train, aligned, "zip", settings)
    plain = regier.train_model(train, None, "zip", settings)
    return posed, plain


def changes(encode, stacks, used, chosen):
    """Changes of latents in units of their scatter, (angles, galaxies, latents)."""
    means = {angle: encode(stack)[0][:, used] for angle, stack in stacks.items()}
    first = means.pop(0.0)
    spread = first.std(axis=0)
    return np.stack([np.abs(m - first)[chosen] / spread for m in means.values()])


def compare(train, turned, options):
    """Give a flat object of medians for each model."""
    train = measure_pose(train)
    turned = {angle: measure_pose(stack) for angle, stack in turned.items()}
    start = time.perf_counter()
    posed, plain = train_models(train, options)
    ratio = np.ma.filled(turned[0.0].pose_columns["pose_axis_ratio"], np.nan)
    chosen = np.asarray(ratio) < ELONGATED
    encoders = {
        "posed": (posed, posed.encode),
        "plain": (plain, plain.encode),
        "averaged": (
            plain,
            lambda stack: plain.encode(stack, n_rotations=options.rotations),
        ),
    }
    result = {
        "n_train": len(train),
        "n_turned": int(chosen.sum()),
        "seconds": time.perf_counter() - start,
    }
    for name, (model, encode) in encoders.items():
        used = model.active_units(turned[0.0])
        found = changes(encode, turned, used, chosen)
        result[f"{name}_change"] = float(np.median(found))
        result[f"{name}_change_90"] = float(np.quantile(found, 0.9))
        result[f"{name}_worst_latent"] = float(np.median(found, axis=(0, 1)).max())
        result[f"{name}_active"] = int(used.sum())
    return result


def show(label, result):
    """Print a table."""
    print(f"\n{label}: {result['n_train']} galaxies to train on, ", end="")
    print(f"{result['n_turned']} turned by {len(ANGLES)} angles")
    print(f"{'change of latents (% of scatter)':34}{'median':>9}{'90%':>9}{'worst':>9}")
    for name in ("posed", "plain", "averaged"):
        cells = (f"{name}_change", f"{name}_change_90", f"{name}_worst_latent")
        print(f"{name:34}" + "".join(f"{100 * result[c]:9.1f}" for c in cells))


def main():
    """Run, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--images", help="zip of JPEGs, instead of simulations")
    parser.add_argument("--train", type=int, default=3000, help="simulated galaxies")
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--passes", type=int, help="over the training galaxies")
    parser.add_argument("--rotations", type=int, default=12, help="to average over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    if options.images:
        train, _, test = regier.split(
            *[regier.read_jpegs(options.images)["grey"]] * 2, True, options.seed
        )
        ids = [str(name) for name in test.ids[:N_TURNED]]
        label, turned = "real", read_turned(options.images, ids)
    else:
        rng = np.random.default_rng(options.seed)
        label, (train, turned) = "simulated", simulate(options.train, rng)
    result = compare(train, turned, options)
    show(label, result)
    if options.json:
        flat = {"galaxies": label, "backend": keras.config.backend(), **result}
        Path(options.json).write_text(json.dumps(flat, indent=1) + "\n")


if __name__ == "__main__":
    main()
