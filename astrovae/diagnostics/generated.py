# Licensed under a 3-clause BSD style license - see LICENSE
"""Whether generated galaxies look like real ones."""

import numpy as np
from astropy.table import Table
from scipy.spatial import KDTree
from scipy.stats import energy_distance, ks_2samp, rankdata

from astrovae.diagnostics.galaxy_statistics import measure_galaxies

__all__ = [
    "conditional_calibration",
    "fidelity",
    "neighbor_distance_ratio",
    "two_sample_auc",
]

# Statistics of which the others tell all.
_REDUNDANT = ("id", "e1", "e2")
_Z_95 = 1.959964
_MAD_PER_SIGMA = 0.6744898
_NUM_BOOTSTRAP = 200
_MIN_GALAXIES = 20
_MIN_PART = 10


def fidelity(
    real,
    generated,
    *,
    measure="hsm",
    band=None,
    requested=None,
    parametric=None,
    training=None,
    seed=0,
):
    """
    Compare generated galaxies with real ones, statistic by statistic and jointly.

    Beside the comparison stand two others: of the real galaxies with each other, in two
    random halves, which is the best that can be reached; and, if it is given, of the
    real galaxies with a parametric generator, which has to be beaten.

    Parameters
    ----------
    real : `~astrovae.images.CutoutStack` or `~astropy.table.Table`
        Real galaxies that the generator was not trained on; or what
        `measure_galaxies` gives of them.
    generated : `~astrovae.images.CutoutStack` or `~astropy.table.Table`
        Generated galaxies of the same properties, behind the same PSFs and noise.
    measure, band : str, optional
        As for `measure_galaxies`.
    requested : `~astropy.table.Table`, optional
        What was asked of each generated galaxy, in columns named as those of
        `measure_galaxies`.
    parametric : `~astrovae.images.CutoutStack` or `~astropy.table.Table`, optional
        Galaxies of another generator, such as `parametric_galaxies`.
    training : `~astrovae.images.CutoutStack` or `~astropy.table.Table`, optional
        The galaxies of the training: generated ones should not be nearer to them
        than real ones are.
    seed : int, optional
        Seed of splits and bootstraps.

    Returns
    -------
    table : `~astropy.table.Table`
        A row per statistic:

        ``statistic``
            As named by `measure_galaxies`.
        ``ks_generated``, ``ks_parametric``, ``ks_real``
            Distance of Kolmogorov and Smirnov from the real galaxies, and ``*_p_value``
            that of galaxies from the same distribution.
        ``energy_generated``, ``energy_parametric``, ``energy_real``
            Energy distance, in standard deviations of the real galaxies.
        ``mean_shift``, ``variance_ratio``
            Mean of the generated galaxies less that of the real ones; variance over
            theirs; both with ``*_err``.
        ``slope``, ``bias``, ``scatter``
            Those of `conditional_calibration`, with ``*_low`` and ``*_high``, where
            the statistic was requested; else NaN.
        ``failed_real``, ``failed_generated``, ``failed_parametric``
            Share of galaxies of which it could not be measured.
        ``values_real``, ``values_generated``, ``values_parametric``, ``requested``
            The values themselves, for figures.

        In ``table.meta["astrovae"]["fidelity"]`` are ``auc_generated``,
        ``auc_parametric``, ``auc_real`` and ``nn_distance_ratio``, with ``*_low`` and
        ``*_high``: those of `two_sample_auc` and `neighbor_distance_ratio` on all
        statistics jointly. What was not asked for is NaN, and so are areas of less
        than 20 galaxies, and distances if no galaxy has all statistics.

    Raises
    ------
    ValueError
        If there are fewer than 20 galaxies, the tables have not the same statistics,
        or ``requested`` does not fit.

    Notes
    -----
    The distances, and the area under the curve of a classifier, are never exactly 0 and
    0.5 for finite samples: compare them with those of the real galaxies, which are
    larger because these are halved. Galaxies that cannot be measured are left out: look
    at their share.

    References
    ----------
    Lanusse et al. 2021, MNRAS 504, 5543 (arXiv:2008.03833), for moments; Szekely &
    Rizzo 2013, J. Stat. Plan. Inference 143, 1249; Lopez-Paz & Oquab 2017, ICLR
    (arXiv:1610.06545), for classifiers as tests.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import fidelity
    >>> truth, real = make_galaxies(60, shape=32, snr=(50, 100), seed=1)
    >>> truth, generated = make_galaxies(60, shape=32, snr=(50, 100), seed=2)
    >>> table = fidelity(real, generated, measure="morphology")
    >>> bool((table["ks_generated_p_value"] > 1e-3).all())
    True
    """
    tables = {"real": real, "generated": generated, "parametric": parametric}
    tables |= {"training": training}
    for name, given in tables.items():
        if given is not None and not isinstance(given, Table):
            tables[name] = measure_galaxies(given, measure=measure, band=band)
    names = [c for c in tables["real"].colnames if c not in _REDUNDANT]
    values = {
        name: _matrix(name, table, names)
        for name, table in tables.items()
        if table is not None
    }
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(values["real"])) % 2 == 0
    columns = {"statistic": np.array(names)}
    pairs = {"generated": (values["real"], values["generated"])}
    if parametric is not None:
        pairs["parametric"] = (values["real"], values["parametric"])
    pairs["real"] = (values["real"][half], values["real"][~half])
    joint = {}
    for name, pair in pairs.items():
        columns |= _distances(name, *pair)
        complete = [np.isfinite(sample).all(axis=1).sum() for sample in pair]
        enough = min(complete) >= 2 * _MIN_PART
        auc = two_sample_auc(*pair, seed=seed) if enough else (np.nan,) * 3
        joint |= _prefixed(f"auc_{name}", auc)
    columns |= _moments(values["real"], values["generated"], rng)
    asked = _requested(requested, tables["generated"], names)
    columns |= _calibrations(asked, values["generated"], seed)
    ratio = (np.nan,) * 3
    samples = [values.get(name) for name in ("generated", "real", "training")]
    if training is not None and all(
        np.isfinite(sample).all(axis=1).any() for sample in samples
    ):
        ratio = neighbor_distance_ratio(*samples, seed=seed)
    joint |= _prefixed("nn_distance_ratio", ratio)
    columns |= {
        f"failed_{name}": np.isnan(array).mean(axis=0)
        for name, array in values.items()
        if name != "training"
    }
    columns |= {
        f"values_{name}": array.T.copy()
        for name, array in values.items()
        if name != "training"
    }
    table = Table(columns | {"requested": asked.T.copy()})
    if parametric is None:
        joint |= _prefixed("auc_parametric", (np.nan,) * 3)
    table.meta["astrovae"] = {
        "fidelity": {
            **{name: float(value) for name, value in joint.items()},
            "measure": measure,
            "band": band,
            "num_real": len(values["real"]),
            "num_generated": len(values["generated"]),
            "num_training": len(values.get("training", ())),
            "seed": seed,
        }
    }
    return table


def _matrix(name, table, names):
    """Statistics as columns, NaN where they were not measured."""
    missing = [column for column in names if column not in table.colnames]
    if missing:
        msg = (
            f"the {name} galaxies have no {missing}; the real ones do. Measure all "
            "with the same bands and measure."
        )
        raise ValueError(msg)
    if len(table) < _MIN_GALAXIES:
        msg = f"{name} must be at least {_MIN_GALAXIES} galaxies, got {len(table)}."
        raise ValueError(msg)
    return np.stack([_filled(table[column]) for column in names], axis=1)


def _filled(column):
    return np.ma.filled(np.ma.masked_invalid(np.ma.asarray(column, float)), np.nan)


def _prefixed(name, triple):
    return dict(zip((name, f"{name}_low", f"{name}_high"), triple))


def _distances(name, first, second):
    """Distances between two samples of each statistic."""
    rows = []
    for one, other in zip(first.T, second.T):
        one, other = one[np.isfinite(one)], other[np.isfinite(other)]
        if len(one) < 2 or len(other) < 2:
            rows.append((np.nan, np.nan, np.nan))
            continue
        test = ks_2samp(one, other)
        scale = one.std() or 1.0
        energy = energy_distance(one / scale, other / scale)
        rows.append((test.statistic, test.pvalue, energy))
    ks, p_value, energy = np.array(rows, dtype=float).reshape(-1, 3).T
    return {
        f"ks_{name}": ks,
        f"ks_{name}_p_value": p_value,
        f"energy_{name}": energy,
    }


def _moments(real, generated, rng):
    """How mean and variance differ, with errors by bootstrap."""
    results = []
    for one, other in zip(real.T, generated.T):
        one, other = one[np.isfinite(one)], other[np.isfinite(other)]
        if len(one) < 2 or len(other) < 2:
            results.append([np.nan] * 4)
            continue
        draws = []
        for _ in range(_NUM_BOOTSTRAP):
            a = one[rng.integers(len(one), size=len(one))]
            b = other[rng.integers(len(other), size=len(other))]
            draws.append((b.mean() - a.mean(), b.var(ddof=1) / (a.var(ddof=1) or 1)))
        shift = other.mean() - one.mean()
        ratio = other.var(ddof=1) / (one.var(ddof=1) or 1)
        results.append([shift, ratio, *np.std(draws, axis=0, ddof=1)])
    shift, ratio, shift_err, ratio_err = np.array(results, dtype=float).T
    return {
        "mean_shift": shift,
        "mean_shift_err": shift_err,
        "variance_ratio": ratio,
        "variance_ratio_err": ratio_err,
    }


def _requested(requested, generated, names):
    """What was asked for, in the order of the statistics; NaN where nothing was."""
    asked = np.full((len(generated), len(names)), np.nan)
    if requested is None:
        return asked
    known = [name for name in requested.colnames if name in names]
    if not known:
        msg = (
            f"requested must have columns named as the statistics {names}, got "
            f"{requested.colnames}."
        )
        raise ValueError(msg)
    if len(requested) != len(generated):
        msg = (
            f"requested must have a row for each of the {len(generated)} generated "
            f"galaxies, got {len(requested)}."
        )
        raise ValueError(msg)
    for name in known:
        asked[:, names.index(name)] = _filled(requested[name])
    return asked


def _calibrations(asked, found, seed):
    """Columns of conditional calibration; NaN where nothing was asked for."""
    keys = [
        f"{name}{suffix}"
        for name in ("slope", "bias", "scatter")
        for suffix in ("", "_low", "_high")
    ]
    rows = []
    for wanted, measured in zip(asked.T, found.T):
        both = np.isfinite(wanted) & np.isfinite(measured)
        if np.count_nonzero(both) < _MIN_GALAXIES or np.ptp(wanted[both]) == 0:
            rows.append(dict.fromkeys(keys, np.nan))
            continue
        rows.append(conditional_calibration(wanted, measured, seed=seed))
    return {key: np.array([row[key] for row in rows]) for key in keys}


def conditional_calibration(requested, measured, *, seed=0):
    """
    Say how what was measured follows what was asked for.

    Parameters
    ----------
    requested, measured : array_like, shape (n,)
        A property of each galaxy, as requested of a generator and as measured. Pairs
        that are not finite are left out.
    seed : int, optional
        Seed of the bootstrap.

    Returns
    -------
    calibration : dict of float
        ``slope`` of the straight line through the measured values, over the requested
        ones; ``bias``, the median of measured less requested; ``scatter`` about the
        line, a robust standard deviation; each with ``*_low`` and ``*_high``, a 95 %
        interval by bootstrap.

    Raises
    ------
    ValueError
        If shapes differ, or fewer than 20 pairs or only one requested value are left.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.diagnostics import conditional_calibration
    >>> rng = np.random.default_rng(2)
    >>> requested = rng.random(500)
    >>> measured = 0.1 + 0.8 * requested + 0.1 * rng.normal(size=500)
    >>> result = conditional_calibration(requested, measured)
    >>> result["slope_low"] < 0.8 < result["slope_high"]
    True
    """
    x, y = (
        np.ma.filled(np.ma.asarray(v, float), np.nan) for v in (requested, measured)
    )
    if x.shape != y.shape or x.ndim != 1:
        msg = f"requested and measured must be pairs, got shapes {x.shape}, {y.shape}."
        raise ValueError(msg)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) < _MIN_GALAXIES or np.ptp(x) == 0:
        msg = (
            f"at least {_MIN_GALAXIES} pairs of finite values and two requested values "
            f"are needed, got {len(x)} pairs."
        )
        raise ValueError(msg)

    def describe(x, y):
        deviation = x - x.mean()
        variance = deviation @ deviation
        slope = (deviation @ y) / variance if variance > 0 else np.nan
        residual = y - y.mean() - slope * deviation
        scatter = np.median(np.abs(residual - np.median(residual))) / _MAD_PER_SIGMA
        return slope, np.median(y - x), scatter

    rng = np.random.default_rng(seed)
    rows = rng.integers(len(x), size=(_NUM_BOOTSTRAP, len(x)))
    draws = np.array([describe(x[row], y[row]) for row in rows])
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    result = {}
    for i, name in enumerate(("slope", "bias", "scatter")):
        triple = (describe(x, y)[i], low[i], high[i])
        result |= {key: float(value) for key, value in _prefixed(name, triple).items()}
    return result


def two_sample_auc(first, second, *, test_fraction=0.5, seed=0):
    """
    Say how well a classifier tells two samples apart.

    Parameters
    ----------
    first, second : array_like, shape (n, n_features) and (m, n_features)
        Features of each galaxy. Rows that are not finite are left out.
    test_fraction : float, optional
        Share of the galaxies on which the classifier is judged; it learns from the
        others.
    seed : int, optional
        Seed of split and classifier.

    Returns
    -------
    auc, low, high : float
        Area under the receiver operating characteristic: the probability that the
        classifier tells which of two galaxies is of the second sample. 0.5 if they
        cannot be told apart, 1 if always. And its 95 % interval.

    Raises
    ------
    ValueError
        If fewer than ten galaxies of a sample are left to learn from, or to judge.

    Notes
    -----
    The classifier is gradient boosting of small trees. The interval is that of DeLong
    et al., for this classifier and other galaxies. It would not hold for the mean of a
    cross-validation, whose parts depend on each other: of equal samples, its interval
    misses 0.5 in one of six cases. More galaxies make a better classifier: compare
    areas for samples of equal size.

    References
    ----------
    Lopez-Paz & Oquab 2017, ICLR (arXiv:1610.06545); DeLong, DeLong & Clarke-Pearson
    1988, Biometrics 44, 837.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.diagnostics import two_sample_auc
    >>> rng = np.random.default_rng(1)
    >>> first, second = rng.normal(size=(2, 200, 3))
    >>> auc, low, high = two_sample_auc(first, second + 3)
    >>> auc > 0.95
    True
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    if not 0 < test_fraction < 1:
        msg = f"test_fraction must be between 0 and 1, got {test_fraction!r}."
        raise ValueError(msg)
    samples = [np.asarray(sample, dtype=float) for sample in (first, second)]
    samples = [sample[np.isfinite(sample).all(axis=1)] for sample in samples]
    rng = np.random.default_rng(seed)
    parts = []
    for sample in samples:
        n_test = round(test_fraction * len(sample))
        if min(n_test, len(sample) - n_test) < _MIN_PART:
            msg = (
                f"at least {_MIN_PART} galaxies of each sample with all features are "
                f"needed to learn from and as many to judge, got {len(samples[0])} and "
                f"{len(samples[1])} with test_fraction={test_fraction}."
            )
            raise ValueError(msg)
        order = rng.permutation(len(sample))
        parts.append((sample[order[n_test:]], sample[order[:n_test]]))
    (train_0, test_0), (train_1, test_1) = parts
    classifier = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        early_stopping=False,
        random_state=seed,
    )
    labels = np.repeat([0, 1], [len(train_0), len(train_1)])
    classifier.fit(np.concatenate([train_0, train_1]), labels)
    auc, variance = _delong(*map(classifier.decision_function, (test_0, test_1)))
    reach = _Z_95 * np.sqrt(variance)
    low, high = np.clip([auc - reach, auc + reach], 0, 1)
    return float(auc), float(low), float(high)


def _delong(negative, positive):
    """Area under the curve and its variance."""
    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    # the share of the other sample that each one exceeds
    above = (ranks[:m] - rankdata(positive)) / n
    below = 1 - (ranks[m:] - rankdata(negative)) / m
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    return above.mean(), variance


def neighbor_distance_ratio(generated, held_out, training, *, seed=0):
    """
    Say whether generated galaxies are copies of those of the training.

    Parameters
    ----------
    generated, held_out, training : array_like, shape (n, n_features)
        Features of generated galaxies, of real ones that were not trained on, and of
        those of the training: statistics, or latents. Rows that are not finite are left
        out.
    seed : int, optional
        Seed of the bootstrap.

    Returns
    -------
    ratio, low, high : float
        Median distance of generated galaxies to the nearest galaxy of the training,
        over that of the held-out ones; and its 95 % interval by bootstrap. 1 is as it
        should be; much less is a generator that has learned its galaxies by heart.

    Raises
    ------
    ValueError
        If a sample has no galaxy with all features.

    Notes
    -----
    Distances are Euclidean, each feature in units of its robust standard deviation in
    the training. Galaxies that crowd more than real ones lower the ratio, too.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.diagnostics import neighbor_distance_ratio
    >>> rng = np.random.default_rng(1)
    >>> held_out, training, other = rng.normal(size=(3, 300, 4))
    >>> 0.8 < neighbor_distance_ratio(other, held_out, training)[0] < 1.2
    True
    >>> neighbor_distance_ratio(training, held_out, training)[0]
    0.0
    """
    samples = []
    for name, sample in (
        ("generated", generated),
        ("held_out", held_out),
        ("training", training),
    ):
        sample = np.asarray(sample, dtype=float)
        sample = sample[np.isfinite(sample).all(axis=1)]
        if not len(sample):
            msg = f"{name} has no galaxy whose features are all finite."
            raise ValueError(msg)
        samples.append(sample)
    generated, held_out, training = samples
    center = np.median(training, axis=0)
    scale = np.median(np.abs(training - center), axis=0) / _MAD_PER_SIGMA
    scale = np.where(scale > 0, scale, 1.0)
    tree = KDTree(training / scale)
    near, usual = (tree.query(sample / scale)[0] for sample in (generated, held_out))

    def ratio(near, usual):
        usual = np.median(usual)
        return np.median(near) / usual if usual > 0 else np.nan

    rng = np.random.default_rng(seed)
    draws = [
        ratio(rng.choice(near, len(near)), rng.choice(usual, len(usual)))
        for _ in range(_NUM_BOOTSTRAP)
    ]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(ratio(near, usual)), float(low), float(high)
