# Licensed under a 3-clause BSD style license - see LICENSE
"""What all functions that append columns share: checks, columns, provenance."""

import copy
import warnings
from datetime import UTC, datetime

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn, QTable
from astropy.utils.masked import Masked

from astrovae._validation import check_preprocessing
from astrovae.catalog._checks import check_prefix, check_table
from astrovae.catalog.columns import COLUMNS
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag

__all__ = [
    "add_columns",
    "append",
    "check_model",
    "check_rows",
    "missing_rows",
    "plain",
    "preprocessing_of",
    "unmeasured",
]

# what must not change while rows are filled one after the other
_IDENTITY = (
    "class",
    "function",
    "sha256",
    "parameters",
    "preprocessing",
    "score",
    "num_samples",
    "reference",
    "order",
    "n_rotations",
    "latent_temperature",
)


def add_columns(
    table,
    stack,
    compute,
    step,
    model=None,
    *,
    names=None,
    details=None,
    prefix="",
    overwrite=False,
    only_missing=False,
):
    """
    Append what a step computes, for all rows or for those that lack it.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    compute : callable
        ``compute(stack)`` gives arrays by the names of registered columns.
    step : str
        What the provenance calls it.
    model : object, optional
        What computes it.
    names : sequence of str, optional
        The columns, if they are known before they are computed.
    details : dict, optional
        What to add to the provenance.
    prefix, overwrite, only_missing
        As for `~astrovae.catalog.add_latents`.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with the columns.
    """
    check_rows(table, stack)
    check_prefix(prefix)
    check_model(model, stack)
    if overwrite and only_missing:
        msg = (
            "overwrite=True replaces all rows, only_missing=True none that has "
            "values: give one of them."
        )
        raise ValueError(msg)
    record = {**_model_record(model), **(details or {})}
    rows = np.ones(len(table), dtype=bool)
    if only_missing:
        names = names or _known_names(table, prefix, step, record, compute, stack)
        rows = missing_rows(table, names, prefix, stack)
        if not rows.any() and {prefix + name for name in names} <= {*table.colnames}:
            return table.copy()
        _check_same(table, prefix, step, record)
    elif names is not None:
        _check_new(table, names, prefix, overwrite)
    values = compute(stack if rows.all() else stack[rows])
    if not only_missing:
        _check_new(table, values, prefix, overwrite)
        return append(table, values, stack, prefix, step, record)
    return append(table, values, stack, prefix, step, record, rows)


def check_rows(table, stack):
    """Refuse a table and a stack that do not belong together."""
    check_table("table", table)
    if not (hasattr(stack, "meta") and hasattr(stack, "flags")):
        msg = (
            f"stack must be a CutoutStack, got {type(stack).__name__}. Make one of "
            "arrays with astrovae.images.CutoutStack(images)."
        )
        raise TypeError(msg)
    if len(table) != len(stack):
        msg = (
            f"the table has {len(table)} rows and the stack {len(stack)} cutouts; "
            "they must correspond one to one, in order."
        )
        raise ValueError(msg)
    name = stack.meta.get("id_column")
    if name not in table.colnames:
        return
    ids, expected = np.ma.getdata(table[name]), np.asarray(stack.ids)
    if ids.dtype.kind == "f" and expected.dtype.kind in "iu":
        msg = (
            f"the ids in column {name!r} are floats, which cannot hold integers beyond "
            "2**53. Read the column as int64 or text."
        )
        raise ValueError(msg)
    if ids.dtype.kind not in "iu" or expected.dtype.kind not in "iu":
        # a number that a file gave back as text is still the same galaxy
        ids, expected = np.asarray(ids).astype(str), expected.astype(str)
    different = (ids != expected) & ~np.ma.getmaskarray(table[name])
    if different.any():
        row = int(np.argmax(different))
        msg = (
            f"row {row} of the table has {name} = {ids[row]}, the stack "
            f"{expected[row]}: the rows are not in the order of the cutouts."
        )
        raise ValueError(msg)


def check_model(model, stack):
    """Refuse cutouts that were prepared for another model."""
    check_preprocessing(preprocessing_of(model), getattr(stack, "preprocessing", None))


def preprocessing_of(model):
    """Return the record of preparation that a model keeps, or None."""
    record = getattr(model, "preprocessing", None)
    return record if isinstance(record, dict) else None


def unmeasured(stack):
    """Which cutouts have no valid pixel."""
    return (np.asarray(stack.flags) & Flag.NO_VALID_PIXEL) != 0


def _check_new(table, names, prefix, overwrite):
    existing = [prefix + name for name in names if prefix + name in table.colnames]
    if existing and not overwrite:
        msg = (
            f"the table already has {', '.join(existing)}. Give overwrite=True to "
            "replace them, only_missing=True to fill rows that lack them, or another "
            "prefix."
        )
        raise ValueError(msg)


def _known_names(table, prefix, step, record, compute, stack):
    """Names of the columns of a step, without measuring a galaxy if possible."""
    entry = _entry(table, prefix, step, record)
    if entry is not None:
        return [name.removeprefix(prefix) for name in dict.fromkeys(entry["columns"])]
    return list(compute(stack[:0]))


def missing_rows(table, names, prefix, stack):
    """
    Find the rows that a step has not reached.

    They are masked in all its columns, flags included. Rows without a valid
    pixel count only where flags are to say so: the others stay masked forever.
    """
    full = [prefix + name for name in names]
    if not set(full) <= set(table.colnames):
        return np.ones(len(table), dtype=bool)
    missing = np.ones(len(table), dtype=bool)
    for name in full:
        missing &= _empty_rows(*_parts(table[name]))
    if not any(name.endswith("_flags") for name in names):
        missing &= ~unmeasured(stack)
    return missing


def _check_same(table, prefix, step, record):
    """Refuse to fill rows from another model than the one of the other rows."""
    entry = _entry(table, prefix, step, record) or {}
    for key in _IDENTITY:
        if key in entry and key in record and not _repeats(entry[key], record[key]):
            msg = (
                f"the columns of {step} were made with {key} = {entry[key]!r}, this "
                f"is {record[key]!r}: values of two models would be mixed. Give "
                "overwrite=True to replace all rows, or another prefix."
            )
            raise ValueError(msg)


def _repeats(found, expected):
    """Whether a record is the expected one; `vstack` chains the lists of several."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            _repeats(found[key], expected[key]) for key in found
        )
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        times = max(len(found) // max(len(expected), 1), 1)
        return [*found] == [*expected] * times
    return found == expected


def append(table, values, stack, prefix, step, record, rows=None):
    """
    Copy the table, append documented columns and their provenance.

    With ``rows``, the values are those of these rows, and go only where there
    is none.
    """
    table = table.copy()
    masked = {}
    for name, array in values.items():
        spec, full = COLUMNS[name], prefix + name
        old = table[full] if rows is not None and full in table.colnames else None
        dtype = spec.dtype
        if rows is not None:
            array, dtype = _fill(old, array, rows, spec, stack.unit, full)
        column = _column(array, dtype, spec.unit, stack.unit, isinstance(table, QTable))
        if not name.endswith("_flags"):
            mask = np.broadcast_to(getattr(column, "mask", False), array.shape)
            masked[name] = _empty_rows(array, mask)
        described = None if old is None else (old.info.description, old.info.meta)
        table[full] = column
        info = table[full].info
        info.description, info.meta = described or (spec.description, {"ucd": spec.ucd})
    masked_rows = _masked_rows(masked.values(), len(table))
    tried = np.ones(len(table), dtype=bool) if rows is None else rows
    n_failed, n_tried = int((masked_rows & tried).sum()), int(tried.sum())
    if n_failed and step != "wins":
        msg = (
            f"{n_failed} of {n_tried} rows could not be measured ({step}); they "
            f"are masked, and the flag columns say why."
        )
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=4)
    n_masked = int(masked_rows.sum())
    n_filled = None if rows is None else n_tried
    _record(table, prefix, step, record, stack, list(values), n_masked, n_filled)
    return table


def _fill(old, array, rows, spec, image_unit, name):
    """Put values of some rows beside those of the others."""
    array = np.ma.asarray(array)
    if old is None:
        data = np.zeros((len(rows), *array.shape[1:]), spec.dtype)
        mask = np.ones(data.shape, dtype=bool)
        target = rows
    else:
        data, mask = _parts(old)
        found, wanted = old.unit, _unit(spec.unit, image_unit)
        none = u.dimensionless_unscaled
        if data.shape[1:] != array.shape[1:] or (found or none) != (wanted or none):
            msg = (
                f"{name} has rows of the shape {data.shape[1:]} in [{found or ''}], "
                f"the new ones have {array.shape[1:]} in [{wanted or ''}]: values of "
                "two models would be mixed. Give overwrite=True or another prefix."
            )
            raise ValueError(msg)
        target = rows & _empty_rows(data, mask)
    chosen = target[rows]
    data[target] = np.ma.getdata(array)[chosen]
    mask[target] = np.ma.getmaskarray(array)[chosen]
    return np.ma.array(data, mask=mask), data.dtype


def _parts(column):
    """Values and mask of a column of any kind, copied; NaN is masked."""
    values = getattr(column, "unmasked", column)  # a masked Quantity
    data = np.array(np.ma.getdata(getattr(values, "value", values)))
    mask = np.array(np.broadcast_to(getattr(column, "mask", False), data.shape))
    if data.dtype.kind == "f":
        mask |= np.isnan(data)
    return data, mask


def _empty_rows(data, mask):
    axes = tuple(range(1, data.ndim))
    return mask.all(axis=axes) if axes else mask


def _masked_rows(masks, n):
    """Rows that a column lacks, unless it lacks them all and others do not."""
    some = [mask for mask in masks if not mask.all()] or list(masks)
    return np.logical_or.reduce([np.zeros(n, dtype=bool), *some])


def plain(column):
    """Values of a column of any kind as floats, masked ones NaN."""
    data, mask = _parts(column)
    return np.where(mask, np.nan, data.astype(float))


def _column(array, dtype, unit, image_unit, quantity):
    """A column of the registered type, NaN masked."""
    mask = np.ma.getmaskarray(array)
    data = np.asarray(np.ma.getdata(array), dtype=dtype)
    if data.dtype.kind == "f":
        mask = mask | np.isnan(data)
    unit = _unit(unit, image_unit)
    if quantity and unit:
        values = u.Quantity(data, unit)
        return Masked(values, mask=mask) if mask.any() else values
    if mask.any():
        return MaskedColumn(data, mask=mask, unit=unit)
    return Column(data, unit=unit)


def _unit(name, image_unit):
    """The unit of a registered column, given that of the pixels."""
    if name in ("image", "image2"):
        return None if image_unit is None else image_unit ** (2 if "2" in name else 1)
    return u.Unit(name) if name else None


def _model_record(model):
    """What identifies a model or baseline in the provenance."""
    if model is None:
        return {}
    record = {"class": type(model).__name__}
    for key, value in (
        ("name", getattr(model, "name", None)),
        ("function", getattr(model, "__qualname__", None)),
        ("sha256", getattr(model, "sha256", None)),
        ("seed", getattr(model, "seed", None)),
        ("preprocessing", preprocessing_of(model)),
    ):
        if value is not None:
            record[key] = copy.deepcopy(value)
    if hasattr(model, "get_params"):
        record["parameters"] = model.get_params()
    return record


def _step_name(step, record):
    return f"{step}:{record['class']}" if step == "baselines" else step


def _entry(table, prefix, step, record):
    """Return what the provenance says of a step, or None."""
    steps = table.meta.get("astrovae", {}).get(prefix or "default", {})
    return steps.get(_step_name(step, record))


def _record(table, prefix, step, record, stack, columns, n_masked, n_filled):
    """Write the provenance of a step into the metadata of the table."""
    from astrovae import __version__

    meta = copy.deepcopy(table.meta.get("astrovae", {}))
    preprocessing = stack.preprocessing
    date = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {
        **record,
        "astrovae": __version__,
        "date": date,
        "columns": [prefix + name for name in columns],
        "bands": preprocessing["bands"],
        "pixel_scale": preprocessing["pixel_scale"],
        "n_rows": len(table),
        "n_masked": n_masked,
    }
    if n_filled is not None:
        # the rows that were there keep their record
        fill = {"date": date, "astrovae": __version__, "n_filled": n_filled}
        before = {
            key: entry[key] if key in entry and _repeats(value, entry[key]) else value
            for key, value in (_entry(table, prefix, step, record) or {}).items()
        }
        fills = [*before.get("fills", ()), fill]
        counts = {"n_rows": len(table), "n_masked": n_masked, "fills": fills}
        entry = {**entry, **before, **counts}
    meta.setdefault(prefix or "default", {})[_step_name(step, record)] = entry
    table.meta["astrovae"] = meta
