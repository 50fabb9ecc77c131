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

Before that, for images as AstroVaDEr prepares them, how well 20 latents reproduce the
pixels. Each part runs in a process of its own, and the file of numbers is written after
each: ``parts`` names those that are in it. Files, splits and labels are as for
``physics.py``. ``--weights`` names the published weights of AstroVaDEr. Settings were
chosen by the held-out ELBO, and by agreement between seeds, on training and validation
galaxies; those of the test are used once.
"""

import argparse
import json
import multiprocessing
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import physics
import regier
from _astrovader import (
    CLOCKS,
    Deadline,
    elbo_at_best_sigma,
    forward_flops,
    mean_square,
    paint,
    plain,
    train_astrovader,
)
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


# ---------------------------------------------------------------------------
# Methods
# ---------------------------------------------------------------------------


def train_ours(stack, aligned, options, seed):
    """Train on aligned galaxies, and give the model of those that are observed."""
    keras.utils.set_random_seed(seed)
    model = VAE.from_preset(
        "galaxy_eigen",
        image_shape=aligned.image_shape,
        latent_dim=LATENT_DIM,
        beta=BETA,
        seed=seed,
        likelihood=regier.make_likelihood("zip", "galaxy_eigen", 3.0),
        prior=MixturePrior(
            options.clusters,
            LATENT_DIM,
            covariance="full",
            concentration=CONCENTRATION,
            seed=seed,
        ),
    )
    model.adapt(aligned)
    begin_linear(model)
    steps = options.passes * -(-len(aligned) // regier.BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(rate))
    deadline = Deadline(60 * options.minutes, CLOCKS[options.clock])
    recipe = mixture_training(aligned, options.passes, beta=BETA, seed=seed)
    model.fit(
        aligned,
        batch_size=regier.BATCH_SIZE,
        epochs=options.passes,
        augment="mirrors",
        verbose=0,
        callbacks=[deadline, *recipe],
    )
    return model.with_pose(stack), deadline.seconds


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
    return model.responsibilities(stack, batch_size=64).argmax(axis=1)


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
# Parts of the comparison, each in a process of its own
# ---------------------------------------------------------------------------


def prepare(folder, options):
    """Write the galaxies that the other parts read, and give what scores need."""
    same_file = Path(options.train).resolve() == Path(options.test).resolve()
    train = regier.read_jpegs(options.train)["grey"]
    test = train if same_file else regier.read_jpegs(options.test)["grey"]
    train, validation, test = regier.split(train, test, same_file, options.split_seed)
    if options.validate:
        test, validation = validation, train[:200]
    parts = {"train": train, "validation": validation, "test": test}
    paths = {"train": options.train, "test": options.test}
    if options.validate:
        paths["test"] = options.train
    for name, part in parts.items():
        parts[name] = posed(part)
        parts[name].write(folder / f"{name}.h5")
    for name, path in paths.items():
        ids = parts[name].ids
        pictures = CutoutStack.from_images(path, ids=ids, preprocess="astrovader")
        measure_pose(pictures).write(folder / f"{name}_pictures.h5")
    labels, _ = physics.read_labels(options.labels)
    test, labelled = parts["test"], parts["train"][:NUM_LABELLED]
    return {
        "result": {
            **{f"n_{name}": len(part) for name, part in parts.items()},
            "held_out_of_train_file": same_file,
        },
        "classes": [tasks(labels, part.ids) for part in (test, labelled)],
        "nuisances": nuisances(test),
    }


def read(folder, *names):
    """Galaxies that `prepare` wrote, in memory."""
    return [CutoutStack.read(folder / f"{name}.h5").replace() for name in names]


def part_kmeans(folder, options):
    """Labels by k-means of principal components, for each seed."""
    train, test = read(folder, "train", "test")
    components = WhitenedComponents(align(train, shape=regier.canvas_shape(train)))
    train, *others = (components(one) for one in (train, test, train[:NUM_LABELLED]))
    runs = []
    for seed in range(options.seeds):
        kmeans = KMeans(options.clusters, n_init=10, random_state=seed).fit(train)
        runs.append(tuple(kmeans.predict(one) for one in others))
    return {"labels": runs}


def part_ours(folder, options, seed):
    """Labels and checks of one of our models."""
    train, validation, test = read(folder, "train", "validation", "test")
    aligned = align(train, shape=regier.canvas_shape(train))
    model, seconds = train_ours(train, aligned, options, seed)
    model.calibrate(validation)
    return {
        "labels": tuple(
            clusters_of(model, one) for one in (test, train[:NUM_LABELLED])
        ),
        "checks": check_mixture(model, validation, seed),
        "seconds": seconds,
        "flops": forward_flops(model),
    }


def part_astrovader(folder, options, seed):
    """Labels of AstroVaDEr's network, and how well it paints."""
    train, test = (
        plain(one) for one in read(folder, "train_pictures", "test_pictures")
    )
    model, seconds, steps = train_astrovader(train, options, seed)
    return {
        "labels": tuple(
            clusters_of(model, one) for one in (test, train[:NUM_LABELLED])
        ),
        "seconds": seconds,
        "steps": steps,
        "flops": forward_flops(model),
        "mse": mean_square(test, model.reconstruct(test, batch_size=64)["mean"]),
        "elbo": elbo_at_best_sigma(model, test),
    }


def part_published(folder, options):
    """Labels of the published model, and how well it paints."""
    from astrovae.interop.astrovader import load_published_weights

    model = load_published_weights(options.weights)
    train, test = (
        plain(one) for one in read(folder, "train_pictures", "test_pictures")
    )
    return {
        "labels": [
            tuple(clusters_of(model, one) for one in (test, train[:NUM_LABELLED]))
        ],
        "mse": mean_square(test, model.reconstruct(test, batch_size=64)["mean"]),
    }


def part_painting(folder, options):
    """Squared errors from 20 latents, and from as many components."""
    return paint(*read(folder, "train_pictures", "test_pictures"), options)


def alone(function, *arguments):
    """Call a function in a new process, whose memory is free afterwards."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------


def run(options, save):
    """Train and compare, and give an object; ``save`` it after each part."""
    parts = [("painting", part_painting, ())] if options.painting else []
    if options.weights:
        parts.append(("published", part_published, ()))
    for seed in range(options.seeds):
        parts.append((f"astrovader_{seed}", part_astrovader, (seed,)))
        parts.append((f"ours_{seed}", part_ours, (seed,)))
        if seed == 0:
            parts.append(("kmeans_pca", part_kmeans, ()))
    found = {}
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        known = alone(prepare, folder, options)
        for name, function, arguments in parts:
            start = time.perf_counter()
            try:
                found[name] = alone(function, folder, options, *arguments)
            except Exception:  # whatever it is, the other parts can go on
                traceback.print_exc()
            taken = time.perf_counter() - start
            say(f"{name} {'done' if name in found else 'failed'} after {taken:.0f} s")
            save(summarize(found, known, options))
    return summarize(found, known, options)


def summarize(found, known, options):
    """One object from the parts that are done."""
    result = {
        "backend": keras.config.backend(),
        "clusters": options.clusters,
        "seeds": options.seeds,
        "minutes": options.minutes,
        "clock": options.clock,
        "parts": list(found),
        "scored_on_validation": options.validate,
        **known["result"],
    }
    ours, other = (
        [part for name, part in found.items() if name.startswith(prefix)]
        for prefix in ("ours_", "astrovader_")
    )
    groups = {
        "ours": [part["labels"] for part in ours],
        "astrovader": [part["labels"] for part in other],
        "kmeans_pca": found.get("kmeans_pca", {}).get("labels"),
        "astrovader_published": found.get("published", {}).get("labels"),
    }
    for name, runs in groups.items():
        if runs:
            result[name] = score_method(runs, *known["classes"], known["nuisances"])
    if ours:
        result["occupied"] = min(result["ours"]["occupied"])
        result["seed_ari"] = result["ours"]["seed_ari"]
        for key in ours[0]["checks"]:
            values = [part["checks"][key] for part in ours]
            ideal = float(key == "weights_sum")
            result[key] = max(values, key=lambda value: abs(value - ideal))
            result[f"{key}_seeds"] = values
    for name, parts in (("ours", ours), ("astrovader", other)):
        if parts:
            result[f"seconds_{name}"] = [part["seconds"] for part in parts]
            result[f"flops_{name}"] = parts[0]["flops"]
    result |= found.get("painting", {})
    if other:
        result["steps_astrovader"] = [part["steps"] for part in other]
        for key in ("mse", "elbo"):
            values = [part[key] for part in other]
            result[f"{key}_astrovader_trained"] = float(np.mean(values))
            result[f"{key}_astrovader_trained_sd"] = spread(values)
    if "published" in found:
        result["mse_astrovader_published"] = found["published"]["mse"]
    return result


def say(text):
    """Show how far the comparison is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def show(result):
    """Print tables."""
    print(
        f"\n{result['n_train']} galaxies to train on, {result['n_test']} to test on; "
        f"at most {result['minutes']:g} minutes per training"
    )
    methods = [name for name in (*METHODS, "astrovader_published") if name in result]
    if methods:
        print(f"{'':22}" + "".join(f"{name:>21}" for name in methods))
        rows = [
            (task, key) for task in tasks({}, []) for key in ("nmi", "ari", "accuracy")
        ]
        for task, key in rows:
            cells = [with_spread(result[name][task], key) for name in methods]
            print(f"{task + ' ' + key:22}" + "".join(f"{cell:>21}" for cell in cells))
            if key == "accuracy":
                cells = [
                    with_spread(result[name][task], "majority") for name in methods
                ]
                print(f"{task + ' majority':22}" + "".join(f"{c:>21}" for c in cells))
        for key in ("mi_angle", "mi_companions", "seed_ari"):
            cells = [with_spread(result[name], key) for name in methods]
            print(f"{key:22}" + "".join(f"{cell:>21}" for cell in cells))
        cells = [", ".join(map(str, result[name]["occupied"])) for name in methods]
        print(f"{'occupied':22}" + "".join(f"{cell:>21}" for cell in cells))
    beginnings = ("weights_sum", "max_bhatt", "batch_dep", "calibration", "flops")
    for name, value in result.items():
        if name.startswith((*beginnings, "mse", "elbo")) and isinstance(value, float):
            print(f"{name:34}{value:14.6g}")


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
    parser.add_argument("--seeds", type=int, default=3, help="0: painting alone")
    parser.add_argument("--minutes", type=float, default=12, help="per training")
    parser.add_argument("--passes", type=int, default=PASSES, help="ours, at most")
    parser.add_argument("--weights", metavar="H5", help="published by AstroVaDEr")
    parser.add_argument("--split-seed", type=int, default=0, help="of held-out ids")
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="what minutes count; of the processor, on a machine with other work",
    )
    parser.add_argument(
        "--painting",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare reconstructions from 20 latents; one more training, the first",
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="score galaxies held out of the training, and leave the test alone",
    )
    options = parser.parse_args()

    def save(result):
        if options.json is not None:
            text = json.dumps(result, indent=2) + "\n"
            Path(options.json).write_text(text, encoding="utf-8")

    show(run(options, save))


if __name__ == "__main__":
    main()
