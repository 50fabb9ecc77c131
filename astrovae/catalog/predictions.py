# Licensed under a 3-clause BSD style license - see LICENSE
"""Properties predicted from latents, appended with honest errors."""

import copy
import warnings
from datetime import UTC, datetime

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

from astrovae._validation import check_option, check_positive_int
from astrovae.catalog import _statistics as st
from astrovae.catalog._checks import check_table
from astrovae.catalog._numbers import read_latents, read_number, unit_of
from astrovae.catalog.columns import PREDICTIONS
from astrovae.exceptions import FlaggedRowsWarning

__all__ = ["add_predictions"]

_METHODS = ("neighbors", "linear")

# share of a normal distribution within one sigma
ONE_SIGMA = 0.6826894921370859
# galaxies that say how large the errors are near one of them
ERROR_NEIGHBORS = 50
# share of the mean squared error of all galaxies in that of each
COMMON = 0.02
# fewer say nothing of the tails
MIN_ROWS = 30


def add_predictions(
    table,
    properties,
    *,
    train=None,
    latents="latent_mean",
    method="neighbors",
    n_neighbors=20,
    folds=5,
    prefix="",
    overwrite=False,
    seed=0,
):
    """
    Append properties predicted from latents, with errors.

    No galaxy is predicted from its own property: those to learn from are predicted
    out of fold, the others from all of them.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, with latents, e.g. from `add_latents`.
    properties : str or sequence of str
        Columns with one number per galaxy. Galaxies where a property is masked or
        not finite are predicted as well, and not learnt from.
    train : `~astropy.table.Table`, array_like of bool, or str, optional
        What to learn from: another catalogue of other galaxies, with the same
        columns, or which rows of this one, or the column that says so. By default
        all rows that have the property.
    latents : str or sequence of str, optional
        A column of vectors, or several columns.
    method : {"neighbors", "linear"} or object, optional
        The mean of the nearest neighbours in latent space, least squares, or a
        regressor with ``fit`` and ``predict`` as in scikit-learn.
    n_neighbors : int, optional
        Neighbours, for "neighbors".
    folds : int, optional
        Parts of the galaxies to learn from, each predicted from the others.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    seed : int, optional
        Of the folds.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``<property>_pred`` and ``<property>_pred_sigma`` in the unit of
        the property. Rows without latents are masked, and all rows where a property
        cannot be learnt.

    Raises
    ------
    ValueError
        If a column is missing, or exists and ``overwrite`` is false, or a property
        is not one number per galaxy.
    TypeError
        If a property does not hold numbers.

    Notes
    -----
    ``<property>_pred_sigma`` is the root mean square of the residuals, out of fold,
    of the 50 nearest galaxies, a fiftieth of that of all mixed in, times the factor
    that puts 68.3 % of the galaxies of the other folds within it (split conformal
    prediction [1]_). It is the scatter of the property as it was measured, errors
    included, for galaxies like those that were learnt from.

    References
    ----------
    .. [1] Lei, J., et al. 2018, J. Am. Stat. Assoc., 113, 1094, arXiv:1604.04173

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.catalog import add_predictions
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(500, 2))
    >>> table = Table({"latent_mean": z})
    >>> table["u_r"] = (2 + 0.5 * z[:, 0] + 0.1 * rng.normal(size=500)) * u.mag
    >>> table = add_predictions(table, "u_r", method="linear")
    >>> table["u_r_pred"].unit
    Unit("mag")
    >>> bool(abs(np.mean(table["u_r_pred_sigma"]) - 0.1) < 0.01)
    True
    """
    check_table("table", table)
    properties = [properties] if isinstance(properties, str) else list(properties)
    if not (hasattr(method, "fit") and hasattr(method, "predict")):
        check_option("method", method, _METHODS)
    check_positive_int("folds", folds, minimum=2)
    check_positive_int("n_neighbors", n_neighbors)
    names = {name: (f"{name}_pred", f"{name}_pred_sigma") for name in properties}
    _check_absent(table, names, prefix, overwrite)
    z = read_latents(table, latents)
    source, rows = _training_rows(table, train)
    x = z if source is table else read_latents(source, latents)
    if x.shape[1] != z.shape[1]:
        msg = f"train has {x.shape[1]} latents per galaxy, the table {z.shape[1]}."
        raise ValueError(msg)
    rows &= np.isfinite(x).all(axis=1)
    result = table.copy()
    unusable = []
    for name, columns in names.items():
        y = read_number(source, name)
        used = np.flatnonzero(rows & np.isfinite(y))
        found = np.full((2, len(z)), np.nan)
        known = np.isfinite(z).all(axis=1)
        if len(used) < max(MIN_ROWS, 2 * folds) or np.ptp(y[used]) == 0:
            unusable.append(name)
        elif known.any():
            fit = _Fit(x[used], y[used], method, n_neighbors, folds, seed)
            found[:, known] = fit.predict(z[known])
            if source is table:
                found[:, used] = fit.out_of_fold
        unit = unit_of(source[name])
        # errors of AB magnitudes are in mag
        units = unit, getattr(unit, "function_unit", unit)
        for column, values, unit, spec in zip(
            columns, found, units, PREDICTIONS.values(), strict=True
        ):
            _set_column(result, prefix + column, values, unit, spec, name)
        record = {
            "latents": latents if isinstance(latents, str) else list(latents),
            "method": method if isinstance(method, str) else type(method).__name__,
            "folds": folds,
            "seed": seed,
            "n_train": len(used),
            "columns": [prefix + column for column in columns],
            "n_masked": int(np.isnan(found[0]).sum()),
        }
        _record(result, prefix, name, record)
    _warn(unusable, len(z), int((~np.isfinite(z).all(axis=1)).sum()))
    return result


class _Fit:
    """One property learnt from latents."""

    def __init__(self, x, y, method, n_neighbors, folds, seed):
        self.x, self.y, self.method, self.n_neighbors = x, y, method, n_neighbors
        self.ones = np.ones(len(x))
        fold = st.fold_numbers(len(x), folds, np.random.default_rng(seed))
        predicted, scale, sigma = np.empty((3, len(x)))
        for number in range(folds):
            test = fold == number
            predicted[test] = self.guess(~test, x[test])
        self.squares = np.square(y - predicted)
        for number in range(folds):
            test = fold == number
            scale[test] = self.spread(~test, x[test])
        # where nothing was ever wrong, any factor will do
        ratio = np.ones(len(x))
        np.divide(np.sqrt(self.squares), scale, out=ratio, where=scale > 0)
        for number in range(folds):
            test = fold == number
            sigma[test] = scale[test] * _quantile(ratio[~test])
        self.factor = _quantile(ratio)
        self.out_of_fold = np.stack([predicted, sigma])

    def predict(self, where):
        """Means and errors at latents of other galaxies."""
        every = slice(None)
        return np.stack(
            [
                self.guess(every, where),
                self.spread(every, where) * self.factor,
            ]
        )

    def guess(self, rows, where):
        """Means at latents, from some of the galaxies."""
        x, y, ones = self.x[rows], self.y[rows], self.ones[rows]
        if self.method == "neighbors":
            return st.neighbor_mean(x, y, ones, where, self.n_neighbors)
        if self.method == "linear":
            center, mean, found = st.linear_fit(x, y, ones)
            return mean + (where - center) @ found
        from sklearn.base import clone

        return np.asarray(clone(self.method).fit(x, y).predict(where), dtype=float)

    def spread(self, rows, where):
        """How large errors are near latents."""
        squares = self.squares[rows]
        near = st.neighbor_mean(
            self.x[rows], squares, self.ones[rows], where, ERROR_NEIGHBORS
        )
        return np.sqrt((1 - COMMON) * near + COMMON * squares.mean())


def _quantile(ratio):
    """What one sigma of the galaxies do not exceed, and one more galaxy."""
    share = min(ONE_SIGMA * (len(ratio) + 1) / len(ratio), 1.0)
    return np.quantile(ratio, share, method="higher")


def _training_rows(table, train):
    """The table to learn from, and which of its rows."""
    if train is None:
        return table, np.ones(len(table), dtype=bool)
    if isinstance(train, Table):
        return train, np.ones(len(train), dtype=bool)
    if isinstance(train, str):
        if train not in table.colnames:
            msg = f"the table has no column {train!r}; it has {table.colnames}."
            raise ValueError(msg)
        train = table[train]
    rows = np.ma.filled(np.ma.asarray(train), False)
    if rows.dtype != bool or rows.shape != (len(table),):
        msg = (
            f"train must be a table or one bool per row, shape ({len(table)},), got "
            f"{rows.dtype} of the shape {rows.shape}."
        )
        raise ValueError(msg)
    return table, rows.copy()


def _check_absent(table, names, prefix, overwrite):
    wanted = [prefix + name for pair in names.values() for name in pair]
    existing = [name for name in wanted if name in table.colnames]
    if existing and not overwrite:
        msg = (
            f"the table already has {', '.join(existing)}. Give overwrite=True to "
            "replace them, or another prefix."
        )
        raise ValueError(msg)


def _set_column(table, name, values, unit, spec, of):
    """A documented column in the unit of a property, NaN masked."""
    values = values.astype(spec.dtype)
    mask = np.isnan(values)
    if isinstance(table, QTable) and unit:
        values = u.Quantity(values, unit, subok=True)
        table[name] = Masked(values, mask=mask) if mask.any() else values
    elif mask.any():
        table[name] = MaskedColumn(values, mask=mask, unit=unit)
    else:
        table[name] = Column(values, unit=unit)
    info = table[name].info
    info.description = spec.description.format(property=of)
    info.meta = {"ucd": spec.ucd}


def _record(table, prefix, name, record):
    """Write where a prediction comes from into the metadata of the table."""
    from astrovae import __version__

    meta = copy.deepcopy(table.meta.get("astrovae", {}))
    meta.setdefault(prefix or "default", {})[f"predictions:{name}"] = record | {
        "astrovae": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_rows": len(table),
    }
    table.meta["astrovae"] = meta


def _warn(unusable, n_rows, n_masked):
    """Say once what is masked."""
    reasons = []
    if n_masked:
        reasons.append(f"{n_masked} of {n_rows} rows have no latents")
    if unusable:
        reasons.append(
            f"{', '.join(unusable)} cannot be learnt: constant, or known for fewer "
            f"than {MIN_ROWS} galaxies with latents"
        )
    if reasons:
        msg = f"{'; '.join(reasons)}. Their predictions are masked."
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=3)
