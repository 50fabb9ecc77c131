# Licensed under a 3-clause BSD style license - see LICENSE
"""
Clusters of galaxies, against labels that no model saw.

A model with a mixture prior is trained on posed galaxies whose companions are
masked. Beside it stand AstroVaDEr's network, trained on the same galaxies for the
same time with its authors' preparation, and k-means on whitened principal
components of the same posed galaxies. Clusters of galaxies held out by id are
compared with the votes of Galaxy Zoo, with position angles and with companions,
for several seeds, each of which changes weights, order of batches and the start of
the mixture::

    python benchmarks/clusters.py --train gz2_images.zip --test gz2_images.zip \
        --labels gz2_galaxies.csv --minutes 12 --json clusters.json

Then, for images as AstroVaDEr prepares them, how well 20 latents reproduce the
pixels. Files, splits and labels are as for ``physics.py``. ``--weights`` names the
published weights of AstroVaDEr. Settings were chosen by the held-out ELBO, and by
agreement between seeds, on training and validation galaxies; those of the test are
used once.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
import physics
import regier
from _astrovader import Deadline, compare_painting, forward_flops, train_astrovader
from sklearn.cluster import KMeans

from astrovae.diagnostics import (
    cluster_information,
    cluster_scores,
    cluster_stability,
    mixture_report,
    responsibility_calibration,
)
from astrovae.flags import Flag
from astrovae.images import CutoutStack, align, clean_cutouts, measure_pose
from astrovae.layers import MixturePrior
from astrovae.models import VAE, mixture_training
from astrovae.models.networks_eigen import principal_components

LATENT_DIM = 8
PASSES = 40
BETA = 30.0
# of the Dirichlet prior on the weights
CONCENTRATION = 2.0
PCA = 8
# galaxies that tell what class a cluster stands for, and that are drawn
NUM_LABELLED = 500
NUM_DECODED = 2000
NUM_DRAWS = 40_000
OCCUPIED = 0.02
# of their light over that of the galaxy; and pixels of the edge that show the sky
BRIGHT_COMPANIONS = 0.1
BORDER = 6
SCORES = ("ari", "nmi", "accuracy", "majority")
METHODS = ("ours", "astrovader", "kmeans_pca")


# ---------------------------------------------------------------------------
# Galaxies
# ---------------------------------------------------------------------------


def tasks(labels, ids):
    """Classes of galaxies by task; which galaxies have one."""

    def votes(*names):
        return np.stack([physics.look_up(labels, name, ids) for name in names], axis=1)

    smooth, featured, edge_on = votes("Class1.1", "Class1.2", "Class2.1").T
    shape = votes("Class7.1", "Class7.2", "Class7.3")
    five = votes("class5")[:, 0]
    has_shape = (smooth > 0.5) & np.isfinite(shape).all(axis=1)
    found = {
        "smooth": (np.isfinite(smooth), smooth > 0.5),
        "edge_on": ((featured > 0.5) & np.isfinite(edge_on), edge_on > 0.5),
        "shape": (has_shape, np.nan_to_num(shape).argmax(axis=1)),
        "class5": (np.isfinite(five), np.nan_to_num(five)),
    }
    return {
        name: (known, classes.astype(int)) for name, (known, classes) in found.items()
    }


def posed(stack):
    """Mask companions, and measure how galaxies lie and are turned."""
    return measure_pose(clean_cutouts(stack, background=None, neighbors="mask"))


def nuisances(stack):
    """Position angles, where there is one, and whether companions are bright."""
    angle = np.degrees(stack.pose["angle"])
    vague = (np.asarray(stack.flags) & (Flag.POSE_UNRELIABLE | Flag.POSE_FAILED)) != 0
    return {
        "angle": (np.where(vague, np.nan, angle), "circular"),
        "companions": (companion_light(stack) > BRIGHT_COMPANIONS, "categorical"),
    }


def companion_light(stack):
    """Light under the mask of companions over that of the galaxy itself."""
    data, mask = stack.data[..., 0], stack.mask[..., 0]
    y, x = np.indices(data.shape[1:])
    ny, nx = data.shape[1:]
    border = np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) < BORDER
    sky = np.ma.median(np.ma.array(data, mask=mask)[:, border], axis=1).filled(0)
    light = data - sky[:, None, None]
    own = np.where(mask, 0, light).sum(axis=(1, 2))
    return np.where(mask, light, 0).sum(axis=(1, 2)) / np.maximum(own, 1e-6)


def ordered(stack, ids):
    """The rows of a stack in the order of some ids."""
    rows = {str(key): row for row, key in enumerate(stack.ids)}
    return stack[[rows[str(key)] for key in ids]]


# ---------------------------------------------------------------------------
# Methods
# ---------------------------------------------------------------------------


def train_ours(stack, aligned, options, seed):
    """Train on aligned galaxies, and give the model of those that are observed."""
    keras.utils.set_random_seed(seed)
    arguments = {
        "latent_dim": LATENT_DIM,
        "beta": BETA,
        "seed": seed,
        "likelihood": regier.make_likelihood("zip", "galaxy_eigen", 3.0),
        "prior": MixturePrior(
            options.clusters,
            LATENT_DIM,
            covariance="full",
            concentration=CONCENTRATION,
            seed=seed,
        ),
    }
    model = VAE.from_preset(
        "galaxy_eigen", image_shape=aligned.image_shape, **arguments
    )
    model.adapt(aligned)
    begin_linear(model)
    steps = options.passes * -(-len(aligned) // regier.BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(rate))
    deadline = Deadline(60 * options.minutes)
    recipe = mixture_training(aligned, options.passes, beta=BETA, seed=seed)
    model.fit(
        aligned,
        batch_size=regier.BATCH_SIZE,
        epochs=options.passes,
        augment="mirrors",
        verbose=0,
        callbacks=[deadline, *recipe],
    )
    twin = VAE.from_preset(
        "galaxy_eigen",
        image_shape=stack.image_shape,
        encoder=model.encoder,
        decoder=model.decoder,
        pose=True,
        canvas_shape=aligned.image_shape[:2],
        scale=model.scale,
        noise=model.noise,
        preprocessing=stack.preprocessing,
        **arguments,
    )
    twin.posterior_layer.set_weights(model.posterior_layer.get_weights())
    return twin, deadline.seconds


def begin_linear(model, share=0.01):
    """Let latents begin as the leading principal components, nearly."""
    kernel, bias = (0.1 * part for part in model.posterior_layer.get_weights())
    dim = model.latent_dim
    kernel[:, :dim] *= share
    kernel[:dim, :dim] += np.eye(dim)
    bias[dim:] -= 2.0
    model.posterior_layer.set_weights([kernel, bias])


class WhitenedComponents:
    """The principal components of posed galaxies, of unit variance each."""

    def __init__(self, aligned):
        images, valid = regier.flat(aligned)
        self.center, self.rows = principal_components(images, PCA, valid)[:2]
        coefficients = self.project(images, valid)
        self.mean, self.spread = coefficients.mean(axis=0), coefficients.std(axis=0)

    def project(self, images, valid):
        """Least squares over the valid pixels."""
        normal = np.einsum("np,ip,jp->nij", valid, self.rows, self.rows, optimize=True)
        right = (valid * (images - self.center)) @ self.rows.T
        return np.linalg.solve(normal, right[..., None])[..., 0]

    def __call__(self, stack):
        aligned = align(stack, shape=regier.canvas_shape(stack))
        return (self.project(*regier.flat(aligned)) - self.mean) / self.spread


def clusters_of(model, stack):
    """The most probable component of each galaxy."""
    return model.responsibilities(stack).argmax(axis=1)


# ---------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------


def score_method(runs, classes, train_classes, nuisance):
    """Mean and scatter over seeds; ``runs`` are pairs of labels, test and train."""
    result = {}
    for name, (known, truth) in classes.items():
        train_known, train_truth = train_classes[name]
        found = [
            cluster_scores(
                test[known],
                truth[known],
                train_labels=train[train_known],
                train_classes=train_truth[train_known],
                n_bootstrap=0,
            )
            for test, train in runs
        ]
        result[name] = {"n_galaxies": int(known.sum())}
        for key in SCORES:
            values = [scores[key] for scores in found]
            result[name][key] = float(np.mean(values))
            result[name][f"{key}_sd"] = spread(values)
    for name, (values, kind) in nuisance.items():
        known = np.isfinite(values)
        found = [
            cluster_information(test[known], values[known], kind=kind)
            for test, _ in runs
        ]
        result[f"mi_{name}"] = float(np.mean([one["excess"] for one in found]))
        result[f"mi_{name}_sd"] = spread([one["excess"] for one in found])
        result[f"mi_{name}_p"] = [float(one["p_value"]) for one in found]
        result[f"mi_{name}_chance_sd"] = float(found[0]["chance_sd"])
    labels = [test for test, _ in runs]
    result["occupied"] = [
        int((np.unique(one, return_counts=True)[1] >= OCCUPIED * len(one)).sum())
        for one in labels
    ]
    result["seed_ari"] = None
    if len(labels) > 1:
        result["seed_ari"] = float(cluster_stability(labels)["ari"])
    return result


def spread(values):
    """Standard deviation over seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def batch_dependence(model, stack):
    """The largest change of a probability with the galaxies that come along."""
    some = stack[:97]
    whole = model.responsibilities(some)
    alone = model.responsibilities(some[::-1], batch_size=7)[::-1]
    return float(np.abs(whole - alone).max())


def check_mixture(model, stack, seed):
    """Whether one trained mixture is what a mixture should be."""
    report = mixture_report(model)
    return {
        "weights_sum": report["weights_sum"],
        "max_bhattacharyya": report["max_bhattacharyya"],
        "batch_dependence": batch_dependence(model, stack),
        "calibration_error": responsibility_calibration(model, NUM_DRAWS, seed=seed)[
            "calibration_error"
        ],
        "calibration_error_decoded": responsibility_calibration(
            model, NUM_DECODED, decoded=True, stack=stack, seed=seed
        )["calibration_error"],
    }


# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------


def run(train, test, same_file, pictures, labels, options):
    """Train and compare, and give an object."""
    train, validation, test = regier.split(train, test, same_file, options.split_seed)
    if options.validate:
        test, validation = validation, train[:200]
    train, validation, test = map(posed, (train, validation, test))
    aligned = align(train, shape=regier.canvas_shape(train))
    labelled = train[:NUM_LABELLED]
    components = WhitenedComponents(aligned)
    latents = [components(part) for part in (train, test, labelled)]
    groups = {name: [] for name in METHODS}
    seconds, checks = {"ours": [], "astrovader": []}, []
    images = {
        name: ordered(pictures, part.ids)
        for name, part in (("train", train), ("test", test), ("labelled", labelled))
    }
    for seed in range(options.seeds):
        model, taken = train_ours(train, aligned, options, seed)
        model.calibrate(validation)
        groups["ours"].append((clusters_of(model, test), clusters_of(model, labelled)))
        checks.append(check_mixture(model, validation, seed))
        seconds["ours"].append(taken)
        say(f"seed {seed}: ours after {taken:.0f} s")
        kmeans = KMeans(options.clusters, n_init=10, random_state=seed).fit(latents[0])
        groups["kmeans_pca"].append(tuple(kmeans.predict(part) for part in latents[1:]))
        other, taken = train_astrovader(
            images["train"], options.clusters, 60 * options.minutes, seed
        )
        groups["astrovader"].append(
            tuple(clusters_of(other, images[name]) for name in ("test", "labelled"))
        )
        seconds["astrovader"].append(taken)
        say(f"seed {seed}: AstroVaDEr's network after {taken:.0f} s")
    classes, train_classes = (tasks(labels, part.ids) for part in (test, labelled))
    result = {
        "backend": keras.config.backend(),
        "clusters": options.clusters,
        "seeds": options.seeds,
        "minutes": options.minutes,
        "n_train": len(train),
        "n_validation": len(validation),
        "n_test": len(test),
        "held_out_of_train_file": same_file,
        "scored_on_validation": options.validate,
        "seconds_train": seconds,
    }
    for key in checks[0]:
        values = [found[key] for found in checks]
        worst = max(values, key=lambda value: abs(value - (key == "weights_sum")))
        result[key] = worst
        result[f"{key}_seeds"] = values
    nuisance = nuisances(test)
    if options.weights:
        from astrovae.interop.astrovader import load_published_weights

        published = load_published_weights(options.weights)
        groups["astrovader_published"] = [
            tuple(clusters_of(published, images[name]) for name in ("test", "labelled"))
        ]
    for name, runs in groups.items():
        result[name] = score_method(runs, classes, train_classes, nuisance)
    result["occupied"] = min(result["ours"]["occupied"])
    result["seed_ari"] = result["ours"]["seed_ari"]
    result["flops_ours"] = forward_flops(model)
    result["flops_astrovader"] = forward_flops(other)
    if options.painting:
        result |= compare_painting(images["train"], images["test"], other, options)
    return result


def say(text):
    """Show how far the comparison is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def show(result):
    """Print tables."""
    print(
        f"\n{result['n_train']} galaxies to train on, {result['n_test']} to test on; "
        f"{result['seeds']} seeds, at most {result['minutes']:g} minutes each"
    )
    methods = [name for name in (*METHODS, "astrovader_published") if name in result]
    print(f"{'':22}" + "".join(f"{name:>21}" for name in methods))
    rows = [(task, key) for task in tasks({}, []) for key in ("nmi", "ari", "accuracy")]
    for task, key in rows:
        cells = [with_spread(result[name][task], key) for name in methods]
        print(f"{task + ' ' + key:22}" + "".join(f"{cell:>21}" for cell in cells))
        if key == "accuracy":
            cells = [with_spread(result[name][task], "majority") for name in methods]
            print(f"{task + ' majority':22}" + "".join(f"{c:>21}" for c in cells))
    for key in ("mi_angle", "mi_companions", "seed_ari"):
        cells = [with_spread(result[name], key) for name in methods]
        print(f"{key:22}" + "".join(f"{cell:>21}" for cell in cells))
    cells = [", ".join(map(str, result[name]["occupied"])) for name in methods]
    print(f"{'occupied':22}" + "".join(f"{cell:>21}" for cell in cells))
    names = ("weights_sum", "max_bhattacharyya", "batch_dependence")
    names += ("calibration_error", "calibration_error_decoded")
    names += ("flops_ours", "flops_astrovader")
    for name in (*names, *(key for key in result if key.startswith(("mse", "elbo_")))):
        print(f"{name:34}{result[name]:14.6g}")


def with_spread(scores, key):
    """One number, and its scatter if there are several seeds."""
    if scores.get(key) is None:
        return "-"
    scatter = scores.get(f"{key}_sd")
    return f"{scores[key]:.3f}" + (f" ± {scatter:.3f}" if scatter is not None else "")


def main():
    """Run the comparison, print tables and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train", required=True, help="zip of JPEGs")
    parser.add_argument("--test", required=True, help="the same kind of file")
    parser.add_argument("--labels", required=True, help="CSV with a column GalaxyID")
    parser.add_argument("--clusters", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=12, help="per training")
    parser.add_argument("--passes", type=int, default=PASSES, help="ours, at most")
    parser.add_argument("--weights", metavar="H5", help="published by AstroVaDEr")
    parser.add_argument("--split-seed", type=int, default=0, help="of held-out ids")
    parser.add_argument(
        "--painting",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare reconstructions from 20 latents; takes one more training",
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="score galaxies held out of the training, and leave the test alone",
    )
    options = parser.parse_args()
    labels, _ = physics.read_labels(options.labels)
    same_file = Path(options.train).resolve() == Path(options.test).resolve()
    train = regier.read_jpegs(options.train)["grey"]
    test = train if same_file else regier.read_jpegs(options.test)["grey"]
    paths = [options.train] if same_file else [options.train, options.test]
    pictures = [CutoutStack.from_images(p, preprocess="astrovader") for p in paths]
    if not same_file:
        new = ~np.isin(pictures[0].ids.astype(str), test.ids.astype(str))
        pictures[0] = pictures[0][new]
    pictures = CutoutStack.concatenate(pictures)
    result = run(train, test, same_file, pictures, labels, options)
    show(result)
    if options.json is not None:
        text = json.dumps(result, indent=2) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
