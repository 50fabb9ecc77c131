# Licensed under a 3-clause BSD style license - see LICENSE
"""
Latents beside physical properties, by statistics that do not mislead.

The signs and directions of latents are arbitrary, apparent size hides in all of
them, and they have errors: what is said of all latents together does not change
when they are rotated, what is said of one comes with false-discovery control, and
both are given again with nuisances held fixed.
"""

import warnings
from datetime import UTC, datetime

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn, Table
from scipy import stats

from astrovae._validation import check_option, check_positive_int
from astrovae.catalog import _statistics as st
from astrovae.catalog._checks import check_table
from astrovae.catalog._measures import Measures
from astrovae.catalog._numbers import (
    read_array,
    read_latents,
    read_nuisances,
    read_number,
    read_weights,
    unit_of,
)
from astrovae.exceptions import FlaggedRowsWarning

__all__ = ["correlate", "nuisance_audit"]

_ERROR_MODELS = ("classical", "posterior")

_OF_ALL = {
    "linear_r2": "R2 of a linear prediction from all latents, out of fold.",
    "knn_r2": "R2 of the mean of the nearest neighbours in latent space, out of fold.",
    "canonical_correlation": "Canonical correlation with all latents, corrected for "
    "their number.",
}
_PARTIAL_OF_ALL = {
    "nuisance_r2": "R2 of a linear prediction from the nuisances alone, out of fold.",
    "partial_r2": "Share of the squared residuals of the nuisances that the latents "
    "take away, by linear predictions out of fold.",
}
_OF_EACH = {
    "pearson": "Pearson correlation with each latent.",
    "spearman": "Spearman rank correlation with each latent.",
}
_PARTIAL_OF_EACH = {
    "partial_pearson": "Pearson correlation with each latent, nuisances held fixed.",
    "partial_spearman": "Spearman rank correlation with each latent, the ranks of the "
    "nuisances held fixed.",
}


def correlate(
    table,
    properties,
    *,
    latents="latent_mean",
    nuisances=(),
    errors=None,
    error_model="classical",
    weights=None,
    folds=5,
    n_neighbors=20,
    n_bootstrap=1000,
    seed=0,
):
    """
    Say what latents know about physical properties, and how sure that is.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, with latents, e.g. from `add_latents`.
    properties : str or sequence of str
        Columns with one number per galaxy. Galaxies where a property is masked
        or not finite are left out for that property.
    latents : str or sequence of str, optional
        A column of vectors, or several columns.
    nuisances : sequence of str, optional
        Columns to hold fixed in the partial statistics, such as apparent size.
        Columns in degrees or radians are directions, and enter as the cosine and
        sine of the angle and of twice the angle.
    errors : dict, optional
        By property, the column with its 1-sigma errors, or one number. The errors
        of the latents are those of the column of the same name with ``mean``
        replaced by ``sigma``, or are given here under the name of the latents.
    error_model : {"classical", "posterior"}, optional
        What ``eiv_slope`` takes the latents for; see the notes.
    weights : str or array_like, optional
        Weight of each galaxy, e.g. one over the probability that it is in the
        catalogue.
    folds : int, optional
        Parts of the cross-validation.
    n_neighbors : int, optional
        Neighbours in latent space.
    n_bootstrap : int, optional
        How often galaxies are drawn again for intervals.
    seed : int, optional
        Of folds and bootstrap.

    Returns
    -------
    result : `~astropy.table.Table`
        One row per property. Intervals (``*_low``, ``*_high``) are those of 95 %.
        Vectors have one element per latent; ``*_q`` are p-values after
        Benjamini and Hochberg, over all properties and latents.

        Unchanged by rotations of the latents: ``linear_r2``, ``knn_r2``,
        ``canonical_correlation``, ``distance_correlation`` (0 without bias for
        what is independent, with its p-value), and with nuisances
        ``nuisance_r2`` and ``partial_r2``.

        For each latent: ``pearson``, ``spearman``, and with nuisances
        ``partial_pearson`` and ``partial_spearman``; ``slope`` and ``eiv_slope``
        of the property on all latents (and nuisances) at once, in units of the
        property per unit of the latent.

        With errors, ``intrinsic_scatter`` is the scatter about the plane that
        they do not explain, and ``r2_ceiling`` the largest R2 that they allow.

        Properties that cannot be used are masked; ``notes`` says why.

    Raises
    ------
    ValueError
        If a column does not exist or is not one number per galaxy, or a number
        makes no sense.
    TypeError
        If a column does not hold numbers.

    See Also
    --------
    nuisance_audit : How much of the latents is not physics.
    add_predictions : Append properties predicted from latents.

    Notes
    -----
    R2 out of fold is that of a prediction learnt from the other folds; more galaxies
    would predict better.

    Errors of correlations follow from the influence of each galaxy, and need no
    normal distribution. Neighbours are those in the latent space as it is, without
    rescaling its axes. With more than 20,000 galaxies those of ``knn_r2``, and with
    more than 5,000 those of ``distance_correlation``, are a random sample.

    ``eiv_slope`` takes the mean covariance of the errors off that of the latents,
    if ``error_model`` is "classical": each is the truth plus an independent error
    of known variance and mean zero. Latents with errors as large as their spread
    have no slope then. Posterior means of a calibrated model are not of that kind:
    they are drawn towards the prior, and the truth scatters about *them*. Their
    slopes need no correction, and "posterior" makes none.

    The errors of the properties widen the intervals, and bend no slope.

    References
    ----------
    .. [1] Benjamini, Y. & Hochberg, Y. 1995, J. R. Stat. Soc. B, 57, 289
    .. [2] Fuller, W. A. 1987, Measurement Error Models (Wiley)
    .. [3] Szekely, G. J. & Rizzo, M. L. 2014, Ann. Stat., 42, 2382, arXiv:1310.2926
    .. [4] Shen, C., Panda, S. & Vogelstein, J. T. 2022, J. Comput. Graph. Stat.,
       31, 254, arXiv:1912.12150

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.catalog import correlate
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(500, 2))
    >>> table = Table({"latent_mean": z})
    >>> table["log_mass"] = 10 + 0.6 * z[:, 0] + 0.8 * rng.normal(size=500)
    >>> result = correlate(table, "log_mass")
    >>> bool(result["linear_r2_low"][0] < 0.36 < result["linear_r2_high"][0])
    True
    >>> result["pearson_q"][0] < 0.05
    array([ True, False])
    """
    check_table("table", table)
    properties = [properties] if isinstance(properties, str) else list(properties)
    nuisances = [nuisances] if isinstance(nuisances, str) else list(nuisances)
    if not properties:
        msg = "properties must name at least one column."
        raise ValueError(msg)
    check_option("error_model", error_model, _ERROR_MODELS)
    _check_numbers(folds, n_neighbors, n_bootstrap)
    z = read_latents(table, latents)
    controls, _ = read_nuisances(table, nuisances)
    found_errors = _read_errors(table, properties, latents, z, errors)
    setting = Measures(
        z=z,
        sigma=found_errors.pop(None),
        controls=controls,
        weights=read_weights(table, weights),
        error_model=error_model,
        folds=folds,
        n_neighbors=n_neighbors,
        n_bootstrap=n_bootstrap,
        seed=seed,
        partial=bool(nuisances),
    )
    rows = []
    for name in properties:
        values = read_number(table, name)
        row = {"property": name, "unit": str(unit_of(table[name]) or "")}
        rows.append(row | setting.measure(values, found_errors.get(name)))
    names = [row["property"] for row in rows if row["notes"]]
    if names:
        msg = (
            f"{len(names)} of {len(rows)} properties could not be used in full "
            f"({', '.join(names)}); the column notes says why."
        )
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=2)
    result = _make_table(rows, setting)
    record = {
        "latents": latents if isinstance(latents, str) else list(latents),
        "nuisances": nuisances,
        "error_model": error_model,
        "weights": weights if isinstance(weights, str) else weights is not None,
    }
    return _stamp(result, "correlate", table, record, setting)


def _check_numbers(folds, n_neighbors, n_bootstrap):
    check_positive_int("folds", folds, minimum=2)
    check_positive_int("n_neighbors", n_neighbors)
    check_positive_int("n_bootstrap", n_bootstrap, minimum=40)


def _read_errors(table, properties, latents, z, errors):
    """Errors by property, and those of the latents under `None`."""
    given = dict(errors or {})
    key = latents if isinstance(latents, str) else None
    unknown = set(given) - {*properties, key}
    if unknown:
        msg = (
            f"errors has {sorted(map(str, unknown))}, which are neither among the "
            f"properties ({', '.join(properties)}) nor the latents ({latents!r})."
        )
        raise ValueError(msg)
    found = {None: None}
    sigma = given.pop(key, None)
    if sigma is None and key is not None and "mean" in key:
        sigma = key.replace("mean", "sigma")
        sigma = sigma if sigma in table.colnames else None
    if sigma is not None:
        values = sigma if np.isscalar(sigma) and not isinstance(sigma, str) else None
        values = read_array(table, sigma) if values is None else np.full_like(z, values)
        if values.shape != z.shape and values.reshape(len(z), -1).shape != z.shape:
            msg = (
                f"the errors of the latents have the shape {values.shape}, the latents "
                f"{z.shape}."
            )
            raise ValueError(msg)
        found[None] = values.reshape(z.shape)
    for name, error in given.items():
        column = isinstance(error, str)
        values = read_number(table, error) if column else np.full(len(z), 1.0)
        unit = unit_of(table[error] if column else error)
        if not column:
            if np.shape(error):
                msg = (
                    f"the errors of {name!r} must be the name of a column or one "
                    f"number, got the shape {np.shape(error)}. Put them into the table."
                )
                raise ValueError(msg)
            values = values * float(getattr(error, "value", error))
        if name in table.colnames:
            values = values * _factor(unit, unit_of(table[name]))
        found[name] = values
    for name, values in found.items():
        if values is not None and (values < 0).any():
            msg = f"the errors of {name or latents!r} must not be negative."
            raise ValueError(msg)
    return found


def _factor(unit, wanted):
    """What carries errors to the unit of their property, if both have one."""
    plain = isinstance(unit, u.UnitBase) and isinstance(wanted, u.UnitBase)
    return unit.to(wanted) if plain else 1.0


def nuisance_audit(
    table,
    nuisances,
    *,
    latents="latent_mean",
    weights=None,
    folds=5,
    n_neighbors=20,
    n_bootstrap=1000,
    seed=0,
):
    """
    Say how much of each latent is not physics.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, with latents, e.g. from `add_latents`.
    nuisances : str or sequence of str
        Columns with what should not matter: apparent size, flux, position angle,
        width of the PSF, signal-to-noise ratio, neighbours. Columns in degrees or
        radians are directions, as for `correlate`.
    latents : str or sequence of str, optional
        A column of vectors, or several columns.
    weights : str or array_like, optional
        Weight of each galaxy.
    folds : int, optional
        Parts of the cross-validation.
    n_neighbors : int, optional
        Neighbours, in the space of the nuisances.
    n_bootstrap : int, optional
        How often galaxies are drawn again for intervals.
    seed : int, optional
        Of folds and bootstrap.

    Returns
    -------
    audit : `~astropy.table.Table`
        A row for each latent ("0", "1", ...) and nuisance: ``linear_r2`` and
        ``knn_r2``, the share of the variance of the latent that the nuisance
        predicts out of fold, by least squares and by the mean of the nearest
        neighbours in rank, with 95 % intervals. The nuisance "all" stands for all of
        them, the latent "all" for the total variance of the latents, which no
        rotation changes. Rows of nuisances that are constant or missing are masked.

    Raises
    ------
    ValueError, TypeError
        As for `correlate`.

    Notes
    -----
    What a nuisance predicts need not be its fault: large galaxies differ from small
    ones. At most 20,000 galaxies are used, drawn at random.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.catalog import nuisance_audit
    >>> rng = np.random.default_rng(0)
    >>> size = rng.normal(size=400)
    >>> noise = rng.normal(size=(400, 2))
    >>> latents = np.stack([size + 0.1 * noise[:, 0], noise[:, 1]], axis=1)
    >>> table = Table({"latent_mean": latents, "log_size": size})
    >>> audit = nuisance_audit(table, "log_size")
    >>> audit["linear_r2"][audit["latent"] == "0"] > 0.9
    array([ True,  True])
    """
    check_table("table", table)
    nuisances = [nuisances] if isinstance(nuisances, str) else list(nuisances)
    if not nuisances:
        msg = "nuisances must name at least one column."
        raise ValueError(msg)
    _check_numbers(folds, n_neighbors, n_bootstrap)
    setting = Measures(
        z=read_latents(table, latents),
        weights=read_weights(table, weights),
        folds=folds,
        n_neighbors=n_neighbors,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    values, owner = read_nuisances(table, nuisances)
    rows, unusable = [], []
    for index, name in enumerate([*nuisances, "all"]):
        columns = values[:, owner == index] if index < len(nuisances) else values
        found = setting.audit(columns)
        if found is None:
            unusable.append(name)
        for latent in range(setting.dim + 1):
            label = "all" if latent == setting.dim else str(latent)
            row = {"latent": label, "nuisance": name}
            rows.append(row | ({"n": 0} if found is None else found[latent]))
    if unusable:
        msg = (
            f"{len(unusable)} of {len(nuisances) + 1} sets of nuisances are constant "
            f"or known for too few galaxies ({', '.join(unusable)}); they are masked."
        )
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=2)
    result = Table()
    for name, text in (
        ("latent", "Element of the latents, or all of them."),
        ("nuisance", "Name of the nuisance, or all of them."),
        ("n", "Galaxies with latents and nuisance."),
    ):
        result[name] = Column([row[name] for row in rows], description=text)
    for name, text in (
        ("linear_r2", "Share of the variance that least squares predict, out of fold."),
        ("knn_r2", "Share of the variance that neighbours predict, out of fold."),
    ):
        _add_with_ends(result, rows, name, text)
    record = {
        "latents": latents if isinstance(latents, str) else list(latents),
        "nuisances": nuisances,
        "weights": weights if isinstance(weights, str) else weights is not None,
    }
    return _stamp(result, "nuisance_audit", table, record, setting)


def _make_table(rows, setting):
    """Documented columns, masked where nothing was found."""
    of_all, of_each = dict(_OF_ALL), dict(_OF_EACH)
    if setting.partial:
        of_all |= _PARTIAL_OF_ALL
        of_each |= _PARTIAL_OF_EACH
    table = Table()
    for name, text in (
        ("property", "Name of the property."),
        ("unit", "Unit of the property; slopes are in it, per unit of the latent."),
        ("n", "Galaxies with latents and property."),
        ("n_dropped", "Galaxies without one of them."),
    ):
        kind = str if name in ("property", "unit") else np.int64
        values = [row[name] for row in rows]
        table[name] = Column(np.array(values, dtype=kind), description=text)
    if setting.partial:
        values = np.array([row.get("n_partial", 0) for row in rows], dtype=np.int64)
        text = "Galaxies that have the nuisances, too."
        table["n_partial"] = Column(values, description=text)
    for name, text in of_all.items():
        _add_with_ends(table, rows, name, text)
    _add(
        table,
        rows,
        "distance_correlation",
        "Distance correlation with all latents, bias-corrected, 0 if negative.",
    )
    text = "p-value of independence of all latents, by distance correlation."
    _add(table, rows, "distance_correlation_p", text)
    for name, text in of_each.items():
        _add_with_ends(table, rows, name, text, setting.dim)
        text = f"Two-sided p-values of {name}."
        _add(table, rows, f"{name}_p", text, setting.dim)
        text = f"p-values of {name} after Benjamini and Hochberg, over the table."
        values = _adjusted(table[f"{name}_p"])
        table[f"{name}_q"] = _column(values, text)
    text = "Slopes on all latents at once, by least squares."
    _add(table, rows, "slope", text, setting.dim)
    _add(table, rows, "slope_err", "1-sigma errors of slope.", setting.dim)
    if setting.sigma is not None:
        text = f"As slope, with the errors of the latents ({setting.error_model})."
        _add(table, rows, "eiv_slope", text, setting.dim)
        text = "1-sigma errors of eiv_slope."
        _add(table, rows, "eiv_slope_err", text, setting.dim)
    text = "Scatter about the plane of the slopes that the errors do not explain."
    _add(table, rows, "intrinsic_scatter", text)
    text = "The largest R2 that the errors of the property allow."
    _add(table, rows, "r2_ceiling", text)
    notes = np.array([row["notes"] for row in rows], dtype=str)
    table["notes"] = Column(notes, description="Why a property could not be used.")
    return table


def _add(table, rows, name, text, dim=None):
    """A column of what was found under a name."""
    empty = np.nan if dim is None else np.full(dim, np.nan)
    values = [row.get(name, empty) for row in rows]
    shape = (len(rows),) if dim is None else (len(rows), dim)
    table[name] = _column(np.array(values, dtype=float).reshape(shape), text)


def _add_with_ends(table, rows, name, text, dim=None):
    """Columns of an estimate and the ends of its interval."""
    _add(table, rows, name, text, dim)
    for end, which in (("low", "Lower"), ("high", "Upper")):
        text = f"{which} end of the 95 % interval of {name}."
        _add(table, rows, f"{name}_{end}", text, dim)


def _column(values, text):
    mask = np.isnan(values)
    if mask.any():
        return MaskedColumn(values, mask=mask, description=text)
    return Column(values, description=text)


def _adjusted(p):
    """Benjamini-Hochberg over all elements that there are."""
    values = np.ma.filled(np.ma.asarray(p, dtype=float), np.nan)
    known = np.isfinite(values)
    result = np.full(values.shape, np.nan)
    if known.any():
        result[known] = stats.false_discovery_control(values[known])
    return result


def _stamp(result, step, table, record, setting):
    """Say where the numbers come from."""
    from astrovae import __version__

    source = table.meta.get("astrovae")
    entry = record | {
        "astrovae": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_rows": len(table),
        "folds": setting.folds,
        "n_neighbors": setting.n_neighbors,
        "n_bootstrap": setting.n_bootstrap,
        "seed": setting.seed,
        "confidence": st.CONFIDENCE,
    }
    result.meta["astrovae"] = {"default": {step: entry}}
    if source:
        result.meta["astrovae"]["source"] = {
            key: sorted(steps) for key, steps in source.items()
        }
    return result
