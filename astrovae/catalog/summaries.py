# Licensed under a 3-clause BSD style license - see LICENSE
"""What kind of galaxies each cluster has."""

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn, QTable
from astropy.utils.masked import Masked

from astrovae._validation import check_option, check_positive_int
from astrovae.catalog._appending import check_rows, unmeasured
from astrovae.catalog._checks import check_table
from astrovae.catalog._numbers import read_number, unit_of
from astrovae.catalog.clusters import known_order, read_clusters

__all__ = ["cluster_summary"]

# so many members of a cluster are enough for its image
_MAX_IMAGES = 1000


def cluster_summary(
    table,
    columns=None,
    *,
    model=None,
    stack=None,
    statistic="median",
    n_prototypes=5,
    prefix="",
):
    """
    Say what kind of galaxies each cluster has.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with the columns of `add_clusters`.
    columns : sequence of str, optional
        Properties: columns with one number per galaxy. By default all that hold
        floats, are no angles, and were not written by astrovae. An angle has no
        median; give its sine and cosine.
    model : object, optional
        The model of the clusters, for the overlap of its components.
    stack : `~astrovae.images.CutoutStack`, optional
        The cutouts of the rows, for an image of each cluster; best those from
        `astrovae.images.align`, or orientations blur it.
    statistic : {"median", "mean"}, optional
        How images are made of the valid pixels of up to 1,000 members.
    n_prototypes : int, optional
        Number of typical members to name.
    prefix : str, optional
        The prefix of the columns.

    Returns
    -------
    summary : `~astropy.table.QTable`
        A row per cluster, also for those without a galaxy, whose medians are
        masked:

        ``cluster``, ``component``
            Its number, and that in the prior, if it is known: the one that
            ``VAE.sample(component=...)`` takes.
        ``n_galaxies``, ``share``
            Galaxies with this label, and their share of all that have one.
        ``mean_prob``
            Mean probability of the cluster over all of these.
        ``entropy``, ``distance``
            Means of ``cluster_entropy`` and ``cluster_distance`` of its galaxies.
        ``prototypes``
            Rows of the galaxies closest to the component, the closest first.
        ``<property>_median``, ``<property>_mad``
            Median and median absolute deviation, in the unit of the property, of the
            galaxies for which it is known.
        ``shared_prob``
            Mean probability of every cluster for the galaxies of this one: 1 for
            itself if clusters are apart.
        ``overlap``
            With a model: Bhattacharyya coefficients with every component.
        ``image``
            With a stack: the image; NaN where no member has a valid pixel.

    Raises
    ------
    ValueError
        If columns are missing or hold no numbers one by one, or table, model and
        stack do not belong together.

    Examples
    --------
    >>> from astrovae.catalog import add_clusters, cluster_summary
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE
    >>> truth, stack = make_galaxies(50, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior)
    >>> table = add_clusters(truth, vae, stack)
    >>> summary = cluster_summary(table, ["flux"], model=vae, stack=stack)
    >>> int(summary["n_galaxies"].sum()), summary["image"].shape
    (50, (3, 16, 16, 1))
    """
    check_table("table", table)
    check_option("statistic", statistic, ("median", "mean"))
    check_positive_int("n_prototypes", n_prototypes)
    label, gamma = read_clusters(table, prefix)
    n_clusters = gamma.shape[1]
    if stack is not None:
        check_rows(table, stack)
    members = [np.flatnonzero(label == c) for c in range(n_clusters)]
    counts = np.array([len(rows) for rows in members])
    total = counts.sum()
    summary = QTable({"cluster": np.arange(n_clusters)})
    order = known_order(table, prefix, model, n_clusters)
    if order is not None:
        summary["component"] = order
    summary["n_galaxies"] = counts
    summary["share"] = _masked(counts / max(total, 1), np.full(n_clusters, total == 0))
    summary["mean_prob"] = _means(gamma[label >= 0], axis=0, n=n_clusters)
    distance = read_number(table, f"{prefix}cluster_distance")
    entropy = read_number(table, f"{prefix}cluster_entropy")
    for name, values in (("entropy", entropy), ("distance", distance)):
        summary[name] = _with_unit(_by_cluster(np.mean, values, members), None)
    summary["prototypes"] = _prototypes(distance, members, n_prototypes)
    for name in _default_columns(table) if columns is None else _names(columns):
        values, unit = read_number(table, name), unit_of(table[name])
        for kind, function in (("median", np.median), ("mad", _mad)):
            of_cluster = _by_cluster(function, values, members)
            summary[f"{name}_{kind}"] = _with_unit(of_cluster, unit, kind)
    shared = np.stack([_means(gamma[rows], axis=0, n=n_clusters) for rows in members])
    summary["shared_prob"] = _masked(shared, np.isnan(shared))
    if model is not None:
        summary["overlap"] = model.prior.bhattacharyya()[np.ix_(order, order)]
    if stack is not None:
        images = [_image(stack, rows, statistic) for rows in members]
        summary["image"] = np.stack(images)
    for name, text in _SUMMARY.items():
        if name in summary.colnames:
            summary[name].info.description = text
    n_out = int((label < 0).sum())
    summary.meta["astrovae"] = {
        "cluster_summary": {"n_galaxies": int(total), "n_left_out": n_out}
    }
    return summary


_SUMMARY = {
    "cluster": "Number of the cluster.",
    "component": "Number of its component in the prior.",
    "n_galaxies": "Galaxies with this label.",
    "share": "Share of the galaxies with a label.",
    "mean_prob": "Mean probability of the cluster over all galaxies.",
    "entropy": "Mean entropy of the probabilities of its galaxies, in nats.",
    "distance": "Mean Mahalanobis distance of its galaxies from the component.",
    "prototypes": "Rows of the galaxies closest to the component.",
    "shared_prob": "Mean probability of every cluster for the galaxies of this one.",
    "overlap": "Bhattacharyya coefficients with the components of all clusters.",
    "image": "Image made of the valid pixels of its galaxies.",
}


def _names(columns):
    return [columns] if isinstance(columns, str) else list(columns)


def _default_columns(table):
    """Columns with one float per row that are no angles and not ours."""
    written = {
        name
        for steps in table.meta.get("astrovae", {}).values()
        for entry in steps.values()
        if isinstance(entry, dict)
        for name in entry.get("columns", ())
    }
    return [
        name
        for name in table.colnames
        if name not in written
        and getattr(getattr(table[name], "dtype", None), "kind", None) == "f"
        and table[name].ndim == 1
        and unit_of(table[name]) not in (u.deg, u.rad)
    ]


def _mad(values):
    return np.median(np.abs(values - np.median(values)))


def _by_cluster(function, values, members):
    """A statistic of the known values of each cluster; NaN if there is none."""
    parts = (values[rows][np.isfinite(values[rows])] for rows in members)
    return np.array([function(part) if len(part) else np.nan for part in parts])


def _means(values, axis, n):
    values = values[np.isfinite(values).all(axis=1)]
    return values.mean(axis=axis) if len(values) else np.full(n, np.nan)


def _masked(values, mask):
    return MaskedColumn(values, mask=mask) if np.any(mask) else Column(values)


def _with_unit(values, unit, kind="median"):
    """A column of numbers with their unit; those that are NaN are masked."""
    bad = np.isnan(values)
    if unit is None or unit == u.dimensionless_unscaled:
        return _masked(values, bad)
    if isinstance(unit, u.function.FunctionUnitBase):
        # magnitudes and the like; differences of them have no zero point
        return values << (unit if kind == "median" else unit.function_unit)
    quantity = u.Quantity(values, unit)
    return Masked(quantity, mask=bad) if bad.any() else quantity


def _prototypes(distance, members, n_prototypes):
    """Rows of the closest members, masked where there are too few."""
    rows = np.zeros((len(members), n_prototypes), int)
    mask = np.ones(rows.shape, bool)
    for c, own in enumerate(members):
        own = own[np.isfinite(distance[own])]
        closest = own[np.argsort(distance[own], kind="stable")][:n_prototypes]
        rows[c, : len(closest)], mask[c, : len(closest)] = closest, False
    return _masked(rows, mask)


def _image(stack, rows, statistic):
    """Median or mean of the valid pixels of some rows."""
    rows = rows[~unmeasured(stack)[rows]]
    if not len(rows):
        return np.full(stack.image_shape, np.nan, np.float32)
    if len(rows) > _MAX_IMAGES:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_IMAGES).astype(int)]
    batch = stack.batch(rows)
    pixels = np.ma.array(batch["image"], mask=batch["mask"])
    image = np.ma.median(pixels, axis=0) if statistic == "median" else pixels.mean(0)
    return np.ma.filled(image.astype(np.float32), np.nan)
