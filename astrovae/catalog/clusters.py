# Licensed under a 3-clause BSD style license - see LICENSE
"""
Clusters of galaxies: the components of a mixture prior, in the catalogue.

Clusters are numbered by the weight of their component, the heaviest first. The
order follows from the parameters of the prior alone, so that it is the same
whenever the model is loaded.
"""

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import entr, softmax

from astrovae.catalog._appending import add_columns, unmeasured
from astrovae.catalog._checks import check_prefix, check_table
from astrovae.catalog._numbers import read_array, read_number
from astrovae.flags import Flag

__all__ = [
    "add_clusters",
    "cluster_order",
    "has_clusters",
    "known_order",
    "read_clusters",
]

_NAMES = (
    "cluster_label",
    "cluster_prob",
    "cluster_entropy",
    "cluster_distance",
    "cluster_flags",
)
# weights that differ by less are equal: their last digits depend on the machine
_SAME_WEIGHT = 1e-6


def has_clusters(model):
    """Whether a model has a mixture prior, and so clusters."""
    prior = getattr(model, "prior", None)
    return hasattr(prior, "components") and hasattr(model, "responsibilities")


def cluster_order(model):
    """
    Say which component of the prior each cluster is.

    Parameters
    ----------
    model : object
        A model whose ``prior`` is a mixture, with ``components()``, e.g. a
        `~astrovae.models.VAE` with a `~astrovae.layers.MixturePrior`.

    Returns
    -------
    order : `~numpy.ndarray` of int, shape (n_clusters,)
        Number of the component of each cluster. Clusters are sorted by weight, the
        heaviest first; equal weights, by their means.

    Raises
    ------
    ValueError
        If the prior is no mixture.

    Examples
    --------
    >>> from astrovae.catalog import cluster_order
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE
    >>> prior = MixturePrior(num_components=3, latent_dim=2, seed=1)
    >>> vae = VAE((16, 16, 1), latent_dim=2, prior=prior)
    >>> order = cluster_order(vae)
    >>> heaviest = vae.sample(4, component=order[0])
    """
    return _order(_components(model))


def _components(model):
    if not has_clusters(model):
        prior = type(getattr(model, "prior", None)).__name__
        msg = (
            "clusters need a model whose prior is a mixture, such as "
            "VAE(..., prior=MixturePrior(num_components, latent_dim)); the prior of "
            f"this {type(model).__name__} is {prior}."
        )
        raise ValueError(msg)
    return model.prior.components()


def _order(components):
    weights = components["weights"]
    means = np.reshape(components["means"], (len(weights), -1))
    heaviest = np.argsort(-weights)
    lighter = np.diff(weights[heaviest], prepend=weights[heaviest[:1]]) < -_SAME_WEIGHT
    place = np.empty(len(weights), int)
    place[heaviest] = np.cumsum(lighter)
    return np.lexsort((*means.T[::-1], place))


def add_clusters(
    table,
    model,
    stack=None,
    *,
    prefix="",
    overwrite=False,
    only_missing=False,
    show_progress=False,
):
    """
    Append which cluster each galaxy belongs to, and how surely.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue.
    model : object
        A model whose ``prior`` is a mixture, with
        ``responsibilities(stack, return_mean=True)``, e.g. a
        `~astrovae.models.VAE` with a `~astrovae.layers.MixturePrior`.
    stack : `~astrovae.images.CutoutStack`, optional
        The cutouts, one per row, in the order of the table. Without them, the
        columns ``latent_mean`` and ``latent_sigma`` of the same model are used,
        which takes no time.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    only_missing : bool, optional
        Fill only rows whose columns are absent or masked, as in `add_latents`.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``cluster_label``, the number of the most probable cluster;
        ``cluster_prob`` ``(n, n_clusters)``; ``cluster_entropy`` of these
        probabilities, in nats; ``cluster_distance``, the Mahalanobis distance of the
        latent mean from the component of the label; and ``cluster_flags``. Rows that
        could not be measured are masked.

    Raises
    ------
    ValueError
        If the prior is no mixture; as for `add_latents`; if only some of the
        columns exist and ``only_missing`` is set; or, without a stack, if the latents
        are absent, of another model, or do not suffice.
    ~astrovae.exceptions.PreprocessingError
        If the cutouts were prepared in another way than those of the training.

    See Also
    --------
    cluster_summary : What kind of galaxies each cluster has.
    cluster_order : Which component of the prior each cluster is.

    Notes
    -----
    Cluster 0 is the heaviest component, whatever the place of the component in the
    prior; ``table.meta`` records the order. Probabilities follow from the mean and
    the width of the posterior of a galaxy, and depend on no random number and on no
    other galaxy. As the ELBO, they do not depend on ``latent_temperature``: it is
    taken off sigmas of the table. The distance is ``sqrt((m - c)^T S^-1 (m - c))`` for
    the covariance ``S`` of the component alone, without the variance of the posterior;
    about ``sqrt(latent_dim)`` is usual.

    Examples
    --------
    >>> from astrovae.catalog import add_clusters
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE
    >>> truth, stack = make_galaxies(8, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior)
    >>> table = add_clusters(truth, vae, stack)
    >>> table["cluster_prob"].shape
    (8, 3)
    """
    check_table("table", table)
    check_prefix(prefix)
    components = _components(model)
    order = _order(components)
    components = {name: array[order] for name, array in components.items()}
    details = {
        "order": order.tolist(),
        "weights": components["weights"].tolist(),
        "from": "images",
    }
    if stack is None:
        stack = _TableLatents(table, model, prefix)
        details["from"] = "latents"
        assign = _assign_latents
    else:
        options = {"show_progress": True} if show_progress else {}

        def assign(part, components):
            gamma, mean = model.responsibilities(part, return_mean=True, **options)
            return np.asarray(mean, float), np.asarray(gamma, float)[:, order]

    found = [prefix + name for name in _NAMES if prefix + name in table.colnames]
    if only_missing and 0 < len(found) < len(_NAMES):
        msg = (
            f"the table has {', '.join(found)}, but not all columns of the clusters: "
            "numbers of two clusterings would be mixed. Give overwrite=True or "
            "another prefix."
        )
        raise ValueError(msg)

    def compute(part):
        mean, gamma = assign(part, components)
        bad = unmeasured(part)
        failed = ~(np.isfinite(mean).all(axis=1) & np.isfinite(gamma).all(axis=1))
        flags = np.array(part.flags)
        flags[~bad & failed] |= Flag.NO_RESULT
        lost = bad | failed
        gamma = np.where(lost[:, None], np.nan, gamma)
        label = np.where(lost, 0, np.nan_to_num(gamma).argmax(axis=1))
        squares, _ = _compare(np.where(lost[:, None], 0, mean), components)
        distance = np.sqrt(squares[np.arange(len(label)), label])
        return {
            "cluster_label": np.ma.array(label, mask=lost),
            "cluster_prob": gamma,
            "cluster_entropy": entr(gamma).sum(axis=1),
            "cluster_distance": np.where(lost, np.nan, distance),
            "cluster_flags": np.ma.array(flags, mask=getattr(part, "unreached", False)),
        }

    return add_columns(
        table,
        stack,
        compute,
        "clusters",
        model,
        names=_NAMES,
        details=details,
        prefix=prefix,
        overwrite=overwrite,
        only_missing=only_missing,
    )


def _compare(mean, components):
    """
    Compare points with every component.

    Returns
    -------
    squares : `~numpy.ndarray`, shape (n, n_clusters)
        Squared Mahalanobis distances.
    precisions : list of tuple
        Of each component, the diagonal of its inverse covariance, and the logarithm
        of the determinant of its covariance.
    """
    squares = np.empty((len(mean), len(components["weights"])))
    precisions = []
    for c, (center, covariance) in enumerate(
        zip(components["means"], components["covariances"])
    ):
        if covariance.ndim == 1:
            squares[:, c] = np.square(mean - center) @ (1 / covariance)
            precisions.append((1 / covariance, np.log(covariance).sum()))
            continue
        factor = np.linalg.cholesky(covariance)
        whitener = solve_triangular(factor, np.eye(len(factor)), lower=True)
        squares[:, c] = np.square((mean - center) @ whitener.T).sum(axis=1)
        log_det = 2 * np.log(np.diagonal(factor)).sum()
        precisions.append((np.square(whitener).sum(axis=0), log_det))
    return squares, precisions


def _assign_latents(latents, components):
    """Means, and the probability of each cluster, from posteriors in a table."""
    mean, variance = latents.mean, latents.variance
    squares, precisions = _compare(mean, components)
    log_weights = np.log(np.maximum(components["weights"], np.finfo(float).tiny))
    for c, (precision, log_det) in enumerate(precisions):
        squares[:, c] += variance @ precision + log_det
    known = np.isfinite(squares).all(axis=1)
    gamma = np.full(squares.shape, np.nan)
    gamma[known] = softmax(log_weights - 0.5 * squares[known], axis=1)
    return mean, gamma


class _TableLatents:
    """Latents of a table in place of the cutouts that they were made of."""

    unit, meta = None, {}

    def __init__(self, table, model, prefix):
        name = f"{prefix}latent_mean"
        if name not in table.colnames:
            msg = (
                f"the table has no column {name!r}: give the cutouts, "
                "add_clusters(table, model, stack), or append the latents first, with "
                "add_latents."
            )
            raise ValueError(msg)
        steps = table.meta.get("astrovae", {}).get(prefix or "default", {})
        entry = steps.get("latents", {})
        for key, found in (
            ("class", type(model).__name__),
            ("sha256", getattr(model, "sha256", None)),
        ):
            if entry.get(key) is not None and None is not found != entry[key]:
                msg = (
                    f"{name} was made with {key} = {entry[key]!r}, this model has "
                    f"{found!r}: the latents are those of another model. Give the "
                    "cutouts, or the prefix of the latents of this one."
                )
                raise ValueError(msg)
        self.mean = read_array(table, name)
        dim = np.shape(model.prior.components()["means"])[1]
        if self.mean.shape != (len(table), dim):
            msg = (
                f"{name} has rows of the shape {self.mean.shape[1:]}, the components "
                f"of the prior have ({dim},): the latents are those of another model."
            )
            raise ValueError(msg)
        if getattr(model, "posterior", None) == "full" and (
            getattr(model.prior, "covariance", "diagonal") != "diagonal"
        ):
            msg = (
                "the posteriors of this model have correlations, which the table does "
                "not hold: give the cutouts, add_clusters(table, model, stack)."
            )
            raise ValueError(msg)
        self.variance = np.zeros_like(self.mean)
        name = f"{prefix}latent_sigma"
        if name in table.colnames:
            sigma = read_array(table, name)
            if sigma.shape != self.mean.shape:
                msg = (
                    f"{name} has rows of the shape {sigma.shape[1:]}, the means have "
                    f"({dim},): they are not those of the same latents."
                )
                raise ValueError(msg)
            # of a model without variances, all are masked
            if np.isfinite(sigma).any():
                self.variance = np.square(sigma / _temperature(model, entry, dim))
        self.flags = np.zeros(len(table), np.int32)
        self.unreached = np.zeros(len(table), bool)
        name = f"{prefix}latent_flags"
        if name in table.colnames:
            flags = read_number(table, name)
            # rows that were added since have no flags either, and get theirs later
            self.unreached = np.isnan(flags)
            self.flags = np.nan_to_num(flags).astype(np.int32)
        record = getattr(model, "preprocessing", None)
        self.preprocessing = {"bands": None, "pixel_scale": None, **entry}
        if isinstance(record, dict):
            self.preprocessing = record

    def __len__(self):
        return len(self.mean)

    def __getitem__(self, rows):
        part = object.__new__(type(self))
        part.__dict__ |= self.__dict__
        for name in ("mean", "variance", "flags", "unreached"):
            setattr(part, name, getattr(self, name)[rows])
        return part


def _temperature(model, entry, dim):
    """What the sigmas of a table were multiplied by."""
    recorded = entry.get("latent_temperature")
    if recorded is None:
        return np.asarray(getattr(model, "latent_temperature", 1.0))
    # `vstack` chains the lists of several tables
    parts = np.reshape(recorded, (-1, dim))
    if not np.allclose(parts, parts[0]):
        msg = (
            "latent_sigma of some rows are of another latent_temperature than those "
            "of others. Append all anew with add_latents(..., overwrite=True)."
        )
        raise ValueError(msg)
    return parts[0]


def known_order(table, prefix, model, n_clusters):
    """
    Which component each cluster of a table is, or None.

    Raises
    ------
    ValueError
        If the clusters are not those of the model.
    """
    steps = table.meta.get("astrovae", {}).get(prefix or "default", {})
    recorded = steps.get("clusters", {}).get("order")
    if model is None:
        return None if recorded is None else np.array(recorded[:n_clusters], dtype=int)
    order = cluster_order(model)
    recorded = order if recorded is None else recorded[: len(order)]
    if len(order) != n_clusters or list(recorded) != list(order):
        msg = (
            f"the table has {n_clusters} clusters, which are the components "
            f"{list(map(int, recorded))} of their model; in this one the order is "
            f"{order.tolist()}: the clusters are those of another model."
        )
        raise ValueError(msg)
    return order


def read_clusters(table, prefix):
    """
    Labels, -1 for rows without one, and probabilities of a table.

    Raises
    ------
    ValueError
        If the table has none.
    """
    names = [f"{prefix}{name}" for name in _NAMES[:2]]
    for name in names:
        if name not in table.colnames:
            msg = (
                f"the table has no column {name!r}. Append it with "
                "astrovae.catalog.add_clusters(table, model, stack)."
            )
            raise ValueError(msg)
    gamma = read_array(table, names[1])
    if gamma.ndim != 2:
        msg = f"{names[1]} must hold vectors, got rows of {gamma.shape[1:]}."
        raise ValueError(msg)
    label = np.nan_to_num(read_number(table, names[0]), nan=-1)
    if (label % 1).any():
        msg = f"{names[0]} must hold whole numbers, got {label[label % 1 != 0][0]}."
        raise ValueError(msg)
    label = label.astype(int)
    if len(label) and not -1 <= label.min() <= label.max() < gamma.shape[1]:
        msg = (
            f"{names[0]} must be from 0 to {gamma.shape[1] - 1}, as many as {names[1]} "
            f"has, got {label.min()} to {label.max()}."
        )
        raise ValueError(msg)
    return label, gamma
