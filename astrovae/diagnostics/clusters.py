# Licensed under a 3-clause BSD style license - see LICENSE
"""
Whether clusters are worth their name.

What they have to do with classes, with what they should not know of, and with the
clusters of another seed. Labels and classes are columns of any kind; what is masked
or NaN is left out and counted.
"""

import itertools

import astropy.units as u
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import random_table, rankdata

from astrovae._validation import check_option, check_positive_int
from astrovae.diagnostics._counts import (
    OCCUPIED_SHARE,
    adjusted_rand,
    count_pairs,
    information_of,
    mask_of,
    number_values,
    plain_values,
    read_both,
    read_values,
    share_of,
)

__all__ = ["cluster_information", "cluster_scores", "cluster_stability"]

_SCORES = (
    "ari",
    "nmi",
    "purity",
    "completeness",
    "accuracy",
    "majority",
    "hungarian",
)
_KINDS = ("continuous", "circular", "categorical")
_NUM_BINS = 16


def cluster_scores(
    labels, classes, *, train_labels=None, train_classes=None, n_bootstrap=1000, seed=0
):
    """
    Say how well clusters agree with classes that somebody else has given.

    Parameters
    ----------
    labels : array_like, shape (n,)
        Cluster of each galaxy.
    classes : array_like, shape (n,)
        Class of each galaxy: numbers, truth values or text.
    train_labels, train_classes : array_like, shape (m,), optional
        The same of the training galaxies, to learn what class a cluster stands
        for. Without them there is no ``accuracy``.
    n_bootstrap : int, optional
        How often galaxies are drawn again for intervals; none with 0.
    seed : int, optional
        Seed of these draws.

    Returns
    -------
    scores : dict
        Each of the following, with its interval of 95 % under the same name and
        ``_low`` and ``_high``:

        ``ari``
            Adjusted Rand index: 0 by chance, 1 if all pairs agree.
        ``nmi``
            Mutual information over the mean of the two entropies.
        ``purity``
            Share of the galaxies in the largest class of their cluster.
        ``completeness``
            Mutual information over the entropy of the clusters: 1 if each class
            lies in one cluster.
        ``accuracy``
            Share of the galaxies whose class is the commonest one of the training
            galaxies of their cluster; for clusters without any, of all of them.
        ``majority``
            Share of the galaxies of the commonest class of the training galaxies
            (or else of these): what ``accuracy`` must beat.
        ``hungarian``
            Accuracy if each cluster stands for a class of its own, as is best for
            these galaxies. NaN unless there are as many clusters as classes.

        ``n_galaxies`` and ``n_train`` were used, ``n_left_out`` and
        ``n_train_left_out`` lack a label or a class; ``n_clusters`` and
        ``n_classes`` occur.

    Raises
    ------
    ValueError
        If lengths differ, only one of the training columns is given, or no
        training galaxy has both.

    Notes
    -----
    Purity grows with the number of clusters and is at least the largest class;
    compare it, as NMI, at equal numbers only. Intervals are those of the estimate,
    whose own bias they keep: NMI is above 0 by chance, by about ``(K - 1)(C - 1) /
    n / (H_K + H_C)``.

    References
    ----------
    Hubert & Arabie 1985, Journal of Classification 2, 193; Rosenberg & Hirschberg
    2007, EMNLP-CoNLL, 410; Vinh, Epps & Bailey 2010, JMLR 11, 2837.

    Examples
    --------
    >>> from astrovae.diagnostics import cluster_scores
    >>> labels = [0, 0, 0, 1, 1, 2]
    >>> classes = ["disc", "disc", "round", "round", "round", "disc"]
    >>> scores = cluster_scores(labels, classes)
    >>> round(scores["purity"], 3), round(scores["majority"], 3)
    (0.833, 0.5)
    """
    check_positive_int("n_bootstrap", n_bootstrap, minimum=0)
    given = train_labels is not None, train_classes is not None
    if given[0] != given[1]:
        names = ("train_labels", "train_classes")
        have, lack = names if given[0] else names[::-1]
        msg = f"{have} came without {lack}: give both, or neither."
        raise ValueError(msg)
    found = read_both("labels", labels, "classes", classes)
    train = [[], []]
    n_train_out = 0
    if given[0]:
        train = read_both("train_labels", train_labels, "train_classes", train_classes)
        n_train_out = len(train_labels) - len(train[0])
        if not len(train[0]):
            msg = "no training galaxy has both a label and a class."
            raise ValueError(msg)
    # clusters and classes of both, numbered alike
    n = len(found[0])
    codes, sizes = zip(*(number_values(*both) for both in zip(found, train)))
    table = count_pairs(*(code[:n] for code in codes), sizes)
    train_table = count_pairs(*(code[n:] for code in codes), sizes)
    tables = table[None]
    if n and n_bootstrap:
        rng = np.random.default_rng(seed)
        # galaxies drawn again are multinomial in the cells
        drawn = rng.multinomial(n, table.ravel() / n, size=n_bootstrap)
        tables = np.concatenate([tables, drawn.reshape(-1, *table.shape)])
    values = _score_tables(tables, train_table)
    scores = {}
    for name in _SCORES:
        value, draws = values[name][0], values[name][1:]
        low = high = np.nan
        if len(draws) and np.isfinite(value):
            # draws are biased as the estimate is, once more
            draws = draws - draws.mean()
            least = -1.0 if name == "ari" else 0.0
            ends = value + np.percentile(draws, [2.5, 97.5])
            low, high = np.clip(ends, least, 1.0)
        scores |= {name: float(value), f"{name}_low": float(low)}
        scores[f"{name}_high"] = float(high)
    return scores | {
        "n_galaxies": n,
        "n_left_out": len(labels) - n,
        "n_train": len(train[0]),
        "n_train_left_out": n_train_out,
        "n_clusters": int(table.any(axis=1).sum()),
        "n_classes": int(table.any(axis=0).sum()),
    }


def _score_tables(tables, train_table):
    """Scores of contingency tables, shape (m, n_clusters, n_classes)."""
    m, n_clusters, _ = tables.shape
    n = tables[0].sum()
    names = dict.fromkeys(_SCORES)
    if not n:
        return {name: np.full(m, np.nan) for name in names}
    by_cluster, by_class = tables.sum(axis=2), tables.sum(axis=1)
    information, cluster_entropy, class_entropy = information_of(tables)
    names["ari"] = adjusted_rand(tables)
    names["nmi"] = share_of(2 * information, cluster_entropy + class_entropy)
    names["completeness"] = share_of(information, cluster_entropy)
    names["purity"] = tables.max(axis=2).sum(axis=1) / n
    names["hungarian"] = names["accuracy"] = np.full(m, np.nan)
    known = train_table.sum(axis=0) if train_table.any() else by_class[0]
    commonest = known.argmax()
    names["majority"] = by_class[:, commonest] / n
    if train_table.any():
        seen = train_table.any(axis=1)
        stands_for = np.where(seen, train_table.argmax(axis=1), commonest)
        right = tables[:, np.arange(n_clusters), stands_for]
        names["accuracy"] = right.sum(axis=1) / n
    rows, columns = np.flatnonzero(by_cluster[0]), np.flatnonzero(by_class[0])
    if len(rows) == len(columns):
        best = linear_sum_assignment(tables[0][np.ix_(rows, columns)], maximize=True)
        right = tables[:, rows[best[0]], columns[best[1]]]
        names["hungarian"] = right.sum(axis=1) / n
    return names


def cluster_information(
    labels,
    nuisance,
    *,
    kind="continuous",
    n_permutations=1000,
    n_bins=_NUM_BINS,
    period=180.0 * u.deg,
    seed=0,
):
    """
    Say how much clusters know of what they should not.

    Orientation, companions and apparent size are not what kind of galaxy it is.

    Parameters
    ----------
    labels : array_like, shape (n,)
        Cluster of each galaxy.
    nuisance : array_like or `~astropy.units.Quantity`, shape (n,)
        What they should not know of. Where it means nothing, such as the position
        angle of a round galaxy, mask it.
    kind : {"continuous", "circular", "categorical"}, optional
        Numbers; angles (in degrees if they have no unit); or anything else, each
        value of which stands for itself.
    n_permutations : int, optional
        How often the nuisance is dealt out anew for the level of chance.
    n_bins : int, optional
        Numbers and angles are put into so many bins with equally many galaxies;
        each value into its own, if there are no more of them.
    period : `~astropy.units.Quantity` or float, optional
        Of angles, in degrees: 180 for those of an axis.
    seed : int, optional
        Seed of the permutations.

    Returns
    -------
    result : dict
        In nats: ``information``, that of label and bin; ``chance``, its mean over
        permutations, and ``chance_sd``, their scatter; ``excess``, the difference
        of the first two, which may be negative; ``entropy`` of the labels, the
        most there can be. Then ``p_value``, the share of permutations with as much
        information or more, counting what was found; and ``n_galaxies``, and how
        many were ``n_left_out``.

    Raises
    ------
    ValueError
        If lengths differ, or an option makes no sense.
    TypeError
        If numbers or angles are none.

    Notes
    -----
    The estimator is the plug-in one for binned values. What bins hide it does not
    see, so compare with equal ``n_bins``. Chance alone makes it positive, by about
    ``(K - 1)(n_bins - 1) / 2n`` nats; that is what permutations take off. Tables
    are drawn with the given margins, which is what permuting does.

    References
    ----------
    Miller 1955, in Information Theory in Psychology, 95; Vinh, Epps & Bailey 2010,
    JMLR 11, 2837; Phipson & Smyth 2010 (doi:10.2202/1544-6115.1585), for the
    p-value.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astrovae.diagnostics import cluster_information
    >>> angle = np.random.default_rng(1).uniform(0, 180, 2000) * u.deg
    >>> labels = angle.value // 45
    >>> result = cluster_information(labels, angle, kind="circular")
    >>> round(result["excess"], 1), round(result["entropy"], 1)
    (1.3, 1.4)
    """
    check_option("kind", kind, _KINDS)
    check_positive_int("n_permutations", n_permutations)
    check_positive_int("n_bins", n_bins, minimum=2)
    if kind == "circular":
        nuisance = _in_degrees("nuisance", nuisance)
        period = float(_in_degrees("period", period))
        if not 0 < period < np.inf:
            msg = f"period must be positive, got {period} degrees."
            raise ValueError(msg)
    found, values = read_both("labels", labels, "nuisance", nuisance)
    if kind != "categorical":
        if values.dtype.kind not in "biuf":
            msg = (
                f"a {kind} nuisance must hold numbers, got {values.dtype}. For "
                "classes, give kind='categorical'."
            )
            raise TypeError(msg)
        values = values.astype(float)
        values = _bin(np.mod(values, period) if kind == "circular" else values, n_bins)
    n = len(found)
    counts = {"n_galaxies": n, "n_left_out": len(labels) - n}
    if not n:
        names = ("information", "chance", "chance_sd", "excess", "entropy", "p_value")
        return dict.fromkeys(names, np.nan) | counts
    (rows, n_rows), (columns, n_columns) = number_values(found), number_values(values)
    table = count_pairs(rows, columns, (n_rows, n_columns))
    information, entropy, _ = information_of(table)
    drawn = np.zeros(n_permutations)
    if min(table.shape) > 1:
        margins = table.sum(axis=1), table.sum(axis=0)
        rng = np.random.default_rng(seed)
        drawn = random_table.rvs(*margins, size=n_permutations, random_state=rng)
        drawn = information_of(drawn)[0]
    as_much = int((drawn >= information - 1e-12).sum())
    result = {
        "information": information,
        "chance": drawn.mean(),
        "chance_sd": drawn.std(),
        "excess": information - drawn.mean(),
        "entropy": entropy,
        "p_value": (1 + as_much) / (1 + n_permutations),
    }
    return {name: float(value) for name, value in result.items()} | counts


def _in_degrees(name, angle):
    """Angles in degrees, masks kept."""
    unit = getattr(angle, "unit", None)
    if unit is None:
        return angle
    try:
        factor = unit.to(u.deg)
    except u.UnitConversionError:
        msg = f"{name} must be an angle, got the unit {unit}."
        raise ValueError(msg) from None
    values = np.ma.array(plain_values(angle), mask=mask_of(angle))
    return values * factor if values.ndim else values.item() * factor


def _bin(values, n_bins):
    """Numbers of bins with equally many values, equal values together."""
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= n_bins:
        return codes
    middle = (rankdata(values) - 0.5) / len(values)
    return (n_bins * middle).astype(int)


def cluster_stability(list_of_labels, *, min_share=OCCUPIED_SHARE):
    """
    Say how far clusterings of the same galaxies agree, e.g. those of several seeds.

    Parameters
    ----------
    list_of_labels : sequence of array_like, each of shape (n,)
        Cluster of each galaxy, in the same order; numbers of clusters need not
        correspond.
    min_share : float, optional
        A cluster counts as occupied from this share of the galaxies.

    Returns
    -------
    result : dict
        ``ari``, the mean of the adjusted Rand indices of all pairs, with
        ``ari_sd``, ``ari_min`` and, of shape (m, m), ``ari_matrix``; each is that
        of the galaxies with a label in both. ``occupied``, the number of occupied
        clusters in each, and ``n_galaxies``, how many have a label in each.

    Raises
    ------
    ValueError
        If there are none, or lengths differ.

    References
    ----------
    Hubert & Arabie 1985, Journal of Classification 2, 193.

    Examples
    --------
    >>> from astrovae.diagnostics import cluster_stability
    >>> cluster_stability([[0, 0, 1, 1], [1, 1, 0, 0]])["ari"]
    1.0
    """
    read = [
        read_values(f"list_of_labels[{i}]", x) for i, x in enumerate(list_of_labels)
    ]
    lengths = {len(values) for values, _ in read}
    if len(lengths) != 1:
        msg = (
            "list_of_labels must hold clusterings of the same galaxies, got the "
            f"lengths {[len(values) for values, _ in read]}."
        )
        raise ValueError(msg)
    matrix = np.eye(len(read))
    for i, j in itertools.combinations(range(len(read)), 2):
        both = read[i][1] & read[j][1]
        (one, n_one), (other, n_other) = (
            number_values(read[k][0][both]) for k in (i, j)
        )
        table = count_pairs(one, other, (n_one, n_other))
        value = float(adjusted_rand(table)) if both.any() else np.nan
        matrix[i, j] = matrix[j, i] = value
    pairs = matrix[np.triu_indices(len(read), 1)]
    some = len(pairs) > 0
    occupied, n_galaxies = [], []
    for values, known in read:
        codes, size = number_values(values[known])
        counts = np.bincount(codes, minlength=size)
        occupied.append(int((counts >= min_share * known.sum()).sum()))
        n_galaxies.append(int(known.sum()))
    return {
        "ari": float(pairs.mean()) if some else np.nan,
        "ari_sd": float(pairs.std(ddof=1)) if len(pairs) > 1 else np.nan,
        "ari_min": float(pairs.min()) if some else np.nan,
        "ari_matrix": matrix,
        "occupied": occupied,
        "n_galaxies": n_galaxies,
    }
