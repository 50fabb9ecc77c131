# Licensed under a 3-clause BSD style license - see LICENSE
"""
What latents know about galaxies: the study of Loh on Galaxy Zoo.

A model is trained on images alone. Linear and 20-neighbour predictions of votes and
physical properties from its latents are learnt on the galaxies that it was trained
on, and scored on galaxies held out by id; principal components in the same pose,
as many as latents, stand beside. Neighbours are found in the latent space as it is,
whitened, or stretched where the property changes, whichever predicts the train galaxies
better out of fold; ``knn_r2_plain`` is that of the space as it is. Irregular galaxies
are scored by a model that was trained on regular ones::

    python benchmarks/physics.py --train gz2_images.zip --test gz2_images.zip \
        --labels gz2_galaxies.csv --json physics.json

With two latents, edge-on and odd galaxies are left out, as in that study, and two of
its claims are tested: that spirals lie apart from ellipticals, and that the latents
go up or down with the properties.

Files are read, split and trained on as by ``regier.py``. ``--labels`` is a CSV with a
column ``GalaxyID``. A property that fewer than 30 test galaxies have is scored by
5-fold cross-validation over the train galaxies instead: their latents come from a
model that saw their images, though no label of any galaxy.
"""

import argparse
import itertools
import json
import time
import types
from pathlib import Path

import keras
import numpy as np
import regier
from astropy.table import MaskedColumn, Table
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from astrovae.catalog import correlate
from astrovae.images import align, measure_pose
from astrovae.models.networks_eigen import principal_components

PROPERTIES = {
    "Class1.1": "smooth",
    "Class2.1": "edge-on",
    "Class7.1": "round",
    "u_r": "u - r",
    "log_mass": "log stellar mass",
}
SMOOTH, FEATURES, EDGE_ON, ODD = "Class1.1", "Class1.2", "Class2.1", "Class6.1"
NEIGHBORS = 20
FOLDS = 5
N_BOOTSTRAP = 1000
# more votes than for all other answers
MAJORITY = 0.5
# votes that leave no doubt of the class
CLEAR = 0.7
# a measured property further off is a failed measurement, in robust sigmas
OUTLYING = 5.0
MIN_TEST = 30
# of the side of the canvas of aligned galaxies, beyond the stamp
CORNERS = 0.15
# added to the sums of squares of the local slopes, in units of the spread
RIDGE = 5.0
# galaxies about each that give the local slopes of a property
SLOPE_NEIGHBORS = 120


# ---------------------------------------------------------------------------
# Galaxies
# ---------------------------------------------------------------------------


def read_labels(path):
    """Read a CSV, keyed by the id as text; what failed becomes missing."""
    table = Table.read(path, format="ascii.csv")
    if "GalaxyID" not in table.colnames:
        msg = f"{path} has no column GalaxyID, but {', '.join(table.colnames)}."
        raise ValueError(msg)
    keys = [str(name) for name in table["GalaxyID"]]
    labels, dropped = {}, {}
    for name in table.colnames:
        if name == "GalaxyID" or table[name].dtype.kind not in "iuf":
            continue
        values = np.ma.filled(np.ma.asarray(table[name], dtype=float), np.nan)
        values[~np.isfinite(values)] = np.nan
        known = values[np.isfinite(values)]
        if known.size and not (known.min() >= 0 and known.max() <= 1):
            low, middle, high = np.percentile(known, [25, 50, 75])
            limit = OUTLYING * (high - low) / 1.349
            outlying = np.abs(values - middle) > limit
            dropped[name] = int(outlying.sum()) if limit > 0 else 0
            values[outlying & (limit > 0)] = np.nan
        labels[name] = dict(zip(keys, values, strict=True))
    return labels, dropped


def look_up(labels, name, ids):
    """One label of galaxies, NaN where there is none."""
    found = labels.get(name, {})
    return np.array([found.get(str(key), np.nan) for key in ids], dtype=float)


def is_regular(labels, ids, *, edge_on):
    """Which galaxies are known to be neither odd nor, unless told, edge-on."""
    regular = look_up(labels, ODD, ids) < MAJORITY
    if not edge_on:
        regular &= look_up(labels, EDGE_ON, ids) < MAJORITY
    return regular


# ---------------------------------------------------------------------------
# Latents
# ---------------------------------------------------------------------------


def train_model(train, validation, kind, options):
    """Train on galaxies with a pose, and say how long it took."""
    start = time.perf_counter()
    aligned = align(train, shape=regier.canvas_shape(train))
    arguments = {"preset": "galaxy_eigen", "latent_dim": options.latent_dim}
    arguments |= {"seed": options.seed, "passes": options.passes, "pose": True}
    keras.utils.set_random_seed(options.seed)
    settings = types.SimpleNamespace(**arguments)
    model = regier.train_model(train, aligned, kind, settings)
    if len(validation):
        model.calibrate(validation)
    return model, aligned, time.perf_counter() - start


class Components:
    """As many principal components as latents, in the same pose."""

    def __init__(self, aligned, n_components):
        images, valid = regier.flat(aligned)
        self.center, self.rows = principal_components(images, n_components, valid)[:2]

    def encode(self, stack):
        """Least squares over the valid pixels."""
        images, valid = regier.flat(align(stack, shape=regier.canvas_shape(stack)))
        normal = np.einsum("np,ip,jp->nij", valid, self.rows, self.rows, optimize=True)
        right = (valid * (images - self.center)) @ self.rows.T
        return np.linalg.solve(normal, right[..., None])[..., 0]


def encode(model, components, stack, refine):
    """Latents, components, and the columns that the catalogue has anyway."""
    pose = stack.pose_columns
    measured = model.measure(stack, num_samples=1)
    columns = np.stack(
        [
            np.log(np.ma.filled(values, np.nan))
            for values in (
                pose["pose_size"],
                measured["vae_mse"],
                pose["pose_axis_ratio"],
                pose["pose_size_err"],
            )
        ],
        axis=1,
    )
    return {
        "ids": stack.ids.astype(str),
        "latents": np.asarray(model.encode(stack, refine=refine)[0], dtype=float),
        "pca": components.encode(stack),
        "columns": columns,
        "mse": measured["vae_mse"],
    }


def with_columns(found, name, reference):
    """Latents beside columns; an unknown pose is that of the median galaxy."""
    median = np.nanmedian(reference["columns"], axis=0)
    columns = found["columns"]
    return np.hstack([found[name], np.where(np.isfinite(columns), columns, median)])


# ---------------------------------------------------------------------------
# Predictions
# ---------------------------------------------------------------------------


def fit_linear(x, y):
    """Least squares with a constant."""
    center = x.mean(axis=0)
    slopes = np.linalg.lstsq(x - center, y - y.mean(), rcond=None)[0]
    return lambda where: y.mean() + (where - center) @ slopes


def fit_neighbors(scale):
    """The mean of the 20 nearest galaxies, in a space scaled by a rule."""

    def fit(x, y):
        matrix = scale(x, y)
        nearest = NearestNeighbors(n_neighbors=NEIGHBORS).fit(x @ matrix)

        def predict(where):
            index = nearest.kneighbors(where @ matrix, return_distance=False)
            return y[index].mean(axis=1)

        return predict

    return fit


def as_it_is(x, y):
    """The latent space itself."""
    return np.eye(x.shape[1])


def whitened(x, y):
    """Unit variance in every direction."""
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    return vectors / np.sqrt(values)


def by_slope(x, y):
    """
    Directions in which the property changes count more.

    By the mean outer product of its local slopes (Trivedi et al. 2014, UAI): columns of
    unlike kinds have no other scale in common.
    """
    spread = x.std(axis=0)
    x = x / spread
    n_near = min(SLOPE_NEIGHBORS, len(x) // 4)
    nearest = NearestNeighbors(n_neighbors=n_near).fit(x)
    index = nearest.kneighbors(x, return_distance=False)
    near = x[index] - x[index].mean(axis=1, keepdims=True)
    change = y[index] - y[index].mean(axis=1, keepdims=True)
    turned = near.transpose(0, 2, 1)
    normal = turned @ near + RIDGE * np.eye(x.shape[1])
    slopes = np.linalg.solve(normal, turned @ change[..., None])[..., 0]
    values, vectors = np.linalg.eigh(slopes.T @ slopes / len(x))
    values = np.maximum(values / values.max(), 1e-4)
    return (vectors * values**0.25) / spread[:, None]


PLAIN = {"as it is": as_it_is}
METRICS = {"as it is": as_it_is, "whitened": whitened, "by slope": by_slope}
METRICS_OF_COLUMNS = {"whitened": whitened, "by slope": by_slope}


def cross_predict(fit, x, y, seed):
    """Predict each of five parts from the others."""
    fold = np.random.default_rng(seed).permutation(np.arange(len(y)) % FOLDS)
    predicted = np.empty(len(y))
    for number in range(FOLDS):
        test = fold == number
        predicted[test] = fit(x[~test], y[~test])(x[test])
    return predicted


def r2(y, predicted):
    """Share of the variance that is predicted."""
    return 1 - np.square(y - predicted).sum() / np.square(y - y.mean()).sum()


def score(y, predicted, seed):
    """R2 with the interval of galaxies that are drawn again."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(y), size=len(y)) for _ in range(N_BOOTSTRAP))
    found = [r2(y[rows], predicted[rows]) for rows in draws]
    return [float(r2(y, predicted)), *map(float, np.percentile(found, [2.5, 97.5]))]


def predict(x, y, x_test, metrics, seed):
    """Linear and neighbours' predictions; without test galaxies, out of fold."""
    trials = {name: fit_neighbors(scale) for name, scale in metrics.items()}
    # the metric is chosen among the train galaxies
    quality = {
        name: r2(y, cross_predict(fit, x, y, seed + 1)) if len(trials) > 1 else 1.0
        for name, fit in trials.items()
    }
    chosen = max(quality, key=quality.get)
    fits = {"linear_r2": fit_linear, "knn_r2": trials[chosen]}
    if x_test is None:
        found = {name: cross_predict(fit, x, y, seed) for name, fit in fits.items()}
    else:
        found = {name: fit(x, y)(x_test) for name, fit in fits.items()}
    return found, chosen


def probe(train, test, labels, options):
    """R2 of all properties, and what is said of them."""
    result = {"n_labels_train": {}, "n_labels_test": {}, "cross_validated": []}
    result["knn_metric"] = {}
    for name in PROPERTIES:
        y, y_test = (look_up(labels, name, part["ids"]) for part in (train, test))
        known, known_test = np.isfinite(y), np.isfinite(y_test)
        if known.sum() < MIN_TEST or np.ptp(y[known]) == 0:
            continue
        result["n_labels_train"][name] = int(known.sum())
        result["n_labels_test"][name] = int(known_test.sum())
        cross = known_test.sum() < MIN_TEST or np.ptp(y_test[known_test]) == 0
        if cross:
            result["cross_validated"].append(name)
        target = y[known] if cross else y_test[known_test]
        for (source, prefix), (ending, metrics) in itertools.product(
            (("latents", ""), ("pca", "pca_")),
            (("", METRICS), ("_plain", PLAIN), ("_with_catalog", METRICS_OF_COLUMNS)),
        ):
            x, x_test = (
                with_columns(part, source, train)
                if metrics is METRICS_OF_COLUMNS
                else part[source]
                for part in (train, test)
            )
            x_test = None if cross else x_test[known_test]
            found, metric = predict(x[known], y[known], x_test, metrics, options.seed)
            if metrics is PLAIN:
                del found["linear_r2"]  # it has no metric
            for kind, predicted in found.items():
                key = f"{prefix}{kind}{ending}"
                scored = score(target, predicted, options.seed)
                for end, value in zip(("", "_low", "_high"), scored, strict=True):
                    result.setdefault(key + end, {})[name] = value
            chosen = result["knn_metric"].setdefault(f"{prefix}knn_r2{ending}", {})
            chosen[name] = metric
    return result


# ---------------------------------------------------------------------------
# Irregular galaxies, and the claims for two latents
# ---------------------------------------------------------------------------


def odd_scores(mse, ids, labels, seed):
    """How well the squared error tells odd galaxies from others."""
    votes = look_up(labels, ODD, ids)
    known = np.isfinite(votes) & np.isfinite(mse)
    odd, values = votes[known] > MAJORITY, mse[known]
    result = {"n_odd": int(odd.sum())}
    result |= auc_with_interval(odd, values, "odd_auc", seed)
    return result


def auc_with_interval(positive, values, name, seed):
    """Area under the curve, and the interval of galaxies that are drawn again."""
    if positive.all() or not positive.any():
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    rng = np.random.default_rng(seed)
    draws = []
    while len(draws) < N_BOOTSTRAP:
        rows = rng.integers(len(values), size=len(values))
        if positive[rows].any() and not positive[rows].all():
            draws.append(roc_auc_score(positive[rows], values[rows]))
    low, high = np.percentile(draws, [2.5, 97.5])
    value = roc_auc_score(positive, values)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def test_claims(train, test, labels, seed):
    """Spirals apart from ellipticals, and monotonic relations, on test galaxies."""

    def classes(part):
        smooth, features = (
            look_up(labels, name, part["ids"]) for name in (SMOOTH, FEATURES)
        )
        known = (smooth > CLEAR) | (features > CLEAR)
        return part["latents"][known], features[known] > CLEAR

    (x, spiral), (x_test, spiral_test) = classes(train), classes(test)
    if min(spiral_test.sum(), (~spiral_test).sum(), len(spiral)) < 5:
        return {}
    direction = fit_linear(x, spiral.astype(float))(x_test)
    result = {
        "n_spirals": int(spiral_test.sum()),
        "n_ellipticals": int((~spiral_test).sum()),
        "spirals_ks": None,
    }
    result |= auc_with_interval(spiral_test, direction, "spirals_auc", seed)
    found = stats.ks_2samp(direction[spiral_test], direction[~spiral_test])
    result |= {"spirals_ks": float(found.statistic), "spirals_p": float(found.pvalue)}
    for axis, latent in enumerate(x_test.T):
        found = stats.ks_2samp(latent[spiral_test], latent[~spiral_test])
        result[f"spirals_ks_latent{axis}"] = float(found.statistic)
        result[f"spirals_p_latent{axis}"] = float(found.pvalue)
    table = Table({"latent_mean": test["latents"]})
    names = []
    for name in PROPERTIES:
        values = look_up(labels, name, test["ids"])
        if np.isfinite(values).sum() >= MIN_TEST:
            table[name] = MaskedColumn(values, mask=np.isnan(values))
            names.append(name)
    for row in correlate(table, names, seed=seed) if names else ():
        result.setdefault("spearman", {})[row["property"]] = {
            end: [float(value) for value in row[f"spearman{tail}"]]
            for end, tail in (("value", ""), ("low", "_low"), ("high", "_high"))
        } | {"q": [float(value) for value in row["spearman_q"]]}
    return result


def grid(model, side=7):
    """Images of a grid over the plane of two latents, at quantiles of the prior."""
    ticks = stats.norm.ppf((np.arange(side) + 0.5) / side)
    z = np.stack(np.meshgrid(ticks, ticks[::-1]), axis=-1).reshape(-1, 2)
    return model.decode(z.astype(np.float32))["mean"]


def save_grid(model, path, side=7):
    """Draw the grid."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    images = np.asarray(grid(model, side))[..., 0]
    # the corners of the canvas are never seen
    cut = [int(CORNERS * size) for size in images.shape[1:]]
    images = images[:, cut[0] : -cut[0], cut[1] : -cut[1]]
    ny, nx = images.shape[1:]
    image = images.reshape(side, side, ny, nx).transpose(0, 2, 1, 3)
    image = np.arcsinh(10 * image.reshape(side * ny, side * nx))
    plt.imsave(path, image, cmap="gray")


# ---------------------------------------------------------------------------
# The study
# ---------------------------------------------------------------------------


def run(train, test, same_file, kind, labels, options):
    """Train, encode and score, and give an object."""
    train, validation, test = regier.split(train, test, same_file, options.seed)
    if options.validate:
        test, validation = validation, validation[:0]
    everything = measure_pose(test)
    cuts = options.latent_dim == 2
    if cuts:
        train, validation, test = (
            part[is_regular(labels, part.ids, edge_on=False)]
            for part in (train, validation, everything)
        )
    else:
        test = everything
    for name, part in (("train", train), ("test", test)):
        if len(part) == 0:
            msg = f"no galaxy is left in --{name}: are its ids those of --labels?"
            raise ValueError(msg)
    train, validation = map(measure_pose, (train, validation))
    model, aligned, seconds = train_model(train, validation, kind, options)
    components = Components(aligned, options.latent_dim)
    parts = [
        encode(model, components, part, options.refine)
        for part in (train, validation, test)
        if len(part)
    ]
    learnt, scored = parts[:-1], parts[-1]
    learnt = {key: np.concatenate([p[key] for p in learnt]) for key in learnt[0]}
    result = {
        "backend": keras.config.backend(),
        "latent_dim": options.latent_dim,
        "cuts": cuts,
        "n_train": len(train),
        "n_validation": len(validation),
        "n_test": len(test),
        "held_out_of_train_file": same_file,
        "seconds_train": seconds,
    }
    result |= probe(learnt, scored, labels, options)
    if cuts:
        result |= test_claims(learnt, scored, labels, options.seed)
        if options.grid:
            save_grid(model, options.grid)
    result["odd_auc"] = None
    regular = is_regular(labels, train.ids, edge_on=True)
    if options.odd and regular.any():
        if not regular.all():
            few = validation[is_regular(labels, validation.ids, edge_on=True)]
            model, _, seconds = train_model(train[regular], few, kind, options)
            result["seconds_train_regular"] = seconds
        mse = model.measure(everything, num_samples=1)["vae_mse"]
        ids = everything.ids.astype(str)
        result |= odd_scores(mse, ids, labels, options.seed)
    return result


def show(result):
    """Print tables."""
    print(
        f"\n{result['n_train']} galaxies to train on, {result['n_test']} to test on, "
        f"{result['latent_dim']} latents, {result['seconds_train']:.0f} s of training"
    )
    if result["cuts"]:
        print("without galaxies that most call edge-on or odd, and those not voted on")
    for name, n in result["labels_dropped"].items():
        if n:
            print(f"{n} values of {name} beyond {OUTLYING:g} sigma are left out")
    keys = ["linear_r2", "knn_r2", "pca_linear_r2", "pca_knn_r2"]
    print("neighbours are found as suits the train galaxies best; see knn_metric")
    for ending, title in (
        ("", "latents alone"),
        (
            "_with_catalog",
            "with log size, its error, log axis ratio, log squared error",
        ),
    ):
        print(f"\nR2, {title}")
        print(f"{'':18}{'n':>6}" + "".join(f"{key:>21}" for key in keys))
        for name, text in PROPERTIES.items():
            if name not in result["n_labels_test"]:
                continue
            cross = name in result["cross_validated"]
            n = result[f"n_labels_{'train' if cross else 'test'}"][name]
            cells = []
            for key in keys:
                value, low, high = (
                    result[key + ending + end][name] for end in ("", "_low", "_high")
                )
                cells.append(f"{value:6.3f} ({low:.2f}-{high:.2f})")
            label = text + (" *" if cross else "")
            print(f"{label:18}{n:6}" + "".join(f"{cell:>21}" for cell in cells))
    if result["cross_validated"]:
        print("* the test galaxies lack it: 5-fold cross-validation over the train")
        print("  galaxies, with latents of a model that saw their images, not labels")
    if "spirals_auc" in result:
        show_claims(result)
    if result["odd_auc"] is not None:
        print(
            f"\nodd galaxies ({result['n_odd']}) by the squared error of a model of "
            f"regular ones: AUC {result['odd_auc']:.3f} "
            f"({result['odd_auc_low']:.3f}-{result['odd_auc_high']:.3f})"
        )


def show_claims(result):
    """Print the tests of what was claimed for two latents."""
    print(
        f"\nspirals ({result['n_spirals']}) apart from ellipticals "
        f"({result['n_ellipticals']}): AUC {result['spirals_auc']:.3f} "
        f"({result['spirals_auc_low']:.3f}-{result['spirals_auc_high']:.3f}), "
        f"Kolmogorov-Smirnov {result['spirals_ks']:.3f}, p {result['spirals_p']:.1e}"
    )
    print("\nmonotonic relations: Spearman's rank correlation, interval, q-value")
    for name, row in result.get("spearman", {}).items():
        cells = [
            f"{value:6.3f} ({low:.2f} to {high:.2f}) q {q:.1e}"
            for value, low, high, q in zip(*row.values(), strict=True)
        ]
        print(f"{PROPERTIES[name]:18}" + "   ".join(cells))


def main():
    """Run the study, print tables and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train", required=True, help="zip of JPEGs, or FITS cubes")
    parser.add_argument("--test", required=True, help="the same kind of file")
    parser.add_argument("--labels", required=True, help="CSV with a column GalaxyID")
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--band", help="of FITS cubes; the first one unless told")
    parser.add_argument("--passes", type=int, help="over the training galaxies")
    parser.add_argument("--refine", type=int, default=0, metavar="N", help="steps")
    parser.add_argument(
        "--odd",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="score irregular galaxies; takes another training unless cuts are made",
    )
    parser.add_argument("--grid", metavar="PNG", help="draw the plane of two latents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="score galaxies held out of the training, and leave the test alone",
    )
    options = parser.parse_args()
    bands = [options.band] if options.band else None
    labels, dropped = read_labels(options.labels)
    kind, train = regier.read(options.train, bands)
    same_file = Path(options.train).resolve() == Path(options.test).resolve()
    other, test = (kind, train) if same_file else regier.read(options.test, bands)
    if kind != other:
        parser.error("--train and --test must be files of the same kind")
    band = next(iter(train))
    if band not in test:
        parser.error(f"{options.test} has no band {band}")
    result = run(train[band], test[band], same_file, kind, labels, options)
    result["labels_dropped"] = dropped
    show(result)
    if options.json is not None:
        text = json.dumps(result, indent=2) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
