# Licensed under a 3-clause BSD style license - see LICENSE
"""
Any table as one of plain columns that a file format holds exactly, and back.

What a format has no place for is written in another way, which the metadata
of the column record as ``"astrovae"``: masked values as a value that no other
row has, or as a column of their own; strings that the format would alter with
escapes; types that it lacks as wider ones. The metadata travel as the header of
ECSV, the same for all formats.
"""

import copy
import json
import re

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.table.meta import get_header_from_yaml, get_yaml_from_table
from astropy.table.serialize import (
    _construct_mixins_from_columns,
    represent_mixins_as_columns,
)
from astropy.utils.masked import Masked

from astrovae.catalog.vectors import KEY, merge_vectors, split_vectors

__all__ = [
    "HEADER",
    "apply_header",
    "as_qtable",
    "decode",
    "encode",
    "header_text",
]

#: The name that the header has in formats which have no place of their own for it.
HEADER = "ASTROVAE"

_CODE = "astrovae"
_SPLIT = "__split__"

# kinds of columns whose masks a format keeps
_MASKS = {"ecsv": "biufc", "csv": "biufc", "parquet": "biufcU"}
# types that a format lacks, and what is written instead
_CASTS = {
    "fits": {"float16": "f4", "int8": "i2"},
    "votable": {
        "float16": "f4",
        "int8": "i2",
        "uint16": "i4",
        "uint32": "i8",
        "uint64": "U",
    },
}
# characters that no format keeps for sure, and those of one format
_ODD = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|^\s|\s$"
_ODD_CHARACTERS = {"ecsv": "^#", "fits": r"[^\x20-\x7e]", "votable": r"[^\x20-\uffff]"}


def encode(table, form):
    """
    Make a table of plain columns.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Any table; it is not changed.
    form : str
        The format: "ecsv", "csv", "fits", "votable", "parquet" or "hdf5".

    Returns
    -------
    plain : `~astropy.table.Table`
        Without mixins; masked columns only as far as the format has masks.

    Raises
    ------
    ValueError
        If a column cannot be written in this format.
    """
    table = _without_mixins(table)
    for name in table.colnames:
        if 0 in table[name].shape[1:] and form not in ("ecsv", "fits"):
            msg = (
                f"column {name!r} has no elements in a row, which {form} cannot hold. "
                "Write it as .ecsv or .fits, or remove the column."
            )
            raise ValueError(msg)
    vectors = [
        name
        for name in table.colnames
        if table[name].ndim > 1 and not _keeps_vectors(form, table[name].dtype)
    ]
    if vectors:
        table = _split(table, vectors)
    result = Table(meta=table.meta)
    taken = set(table.colnames)
    for name in table.colnames:
        for column in _encode_column(table[name], form, taken):
            taken.add(column.name)
            result.add_column(column, copy=False)
    return result


def decode(table, form):
    """
    Undo `encode`.

    Parameters
    ----------
    table : `~astropy.table.Table`
        What was read, with the metadata of its columns.
    form : str
        The format.

    Returns
    -------
    table : `~astropy.table.QTable`
        What was written.

    Raises
    ------
    ValueError
        If a column that belongs to another is missing.
    """
    masks = {}
    for name in table.colnames:
        code = (table[name].info.meta or {}).get(_CODE, {})
        if isinstance(code.get("mask"), str):
            if code["mask"] not in table.colnames:
                msg = f"the column {code['mask']!r}, the mask of {name!r}, is missing."
                raise ValueError(msg)
            masks[name] = code["mask"]
    result = Table(meta=table.meta)
    for name in table.colnames:
        if name not in masks.values():
            mask = table[masks[name]] if name in masks else None
            column = _decode_column(table[name], form, mask)
            code = (table[name].info.meta or {}).get(_CODE, {})
            result.add_column(column, name=code.get("name", name), copy=False)
    if _SPLIT in result.meta:
        split = result.meta.pop(_SPLIT)
        own = result.meta.pop(KEY, None)
        result.meta[KEY] = split
        result = merge_vectors(result)
        if own is not None:
            result.meta[KEY] = own
    return as_qtable(_construct_mixins_from_columns(result))


def header_text(table):
    """The header of a plain table as ECSV has it."""
    return "\n".join(get_yaml_from_table(table))


def apply_header(table, text):
    """Give a table as it was read the metadata that it was written with."""
    header = get_header_from_yaml(text.splitlines())
    # keywords that others added stay
    known = {str(key).upper() for key in header.get("meta", {})}
    meta = {key: v for key, v in table.meta.items() if str(key).upper() not in known}
    table.meta = {**meta, **header.get("meta", {})}
    for entry in header["datatype"]:
        if entry["name"] not in table.colnames:
            continue
        shape = re.search(r"\[[\d,]+\]$", entry.get("subtype", ""))
        if shape and table[entry["name"]].shape[1:] != (*json.loads(shape[0]),):
            # without rows, some readers do not see the shape
            column = table[entry["name"]]
            column = column.reshape((len(table), *json.loads(shape[0])))
            table.replace_column(entry["name"], column)
        info = table[entry["name"]].info
        unit = entry.get("unit")
        if unit is not None:
            # a file may have the unit in the words of its format
            info.unit = u.Unit(unit, parse_strict="silent")
        info.description = entry.get("description")
        info.format = entry.get("format")
        info.meta = dict(entry.get("meta", {}))


def as_qtable(table):
    """
    Turn numbers with units into quantities, of the same type.

    Those of `~astropy.table.QTable` make floats of integers.
    """
    result = QTable(meta=table.meta)
    for name in table.colnames:
        column = table[name]
        numeric = isinstance(column, Column) and column.dtype.kind in "iufc"
        if numeric and column.unit is not None:
            column = _as_quantity(column)
        unit = None
        if isinstance(column, Column) and column.unit is not None:
            # not a quantity, whatever its unit: it gets it back afterwards
            unit = column.unit
            column = column.copy()
            column.unit = None
        result.add_column(column, name=name, copy=False)
        if unit is not None:
            result[name].unit = unit
    return result


def _as_quantity(column):
    data = np.asarray(np.ma.getdata(column))
    try:
        quantity = u.Quantity(data, column.unit, dtype=data.dtype, subok=True)
    except (TypeError, ValueError):  # not a unit that one can calculate with
        return column
    if isinstance(column, MaskedColumn):
        quantity = Masked(quantity, mask=np.ma.getmaskarray(column))
    for name in ("name", "description", "format", "meta"):
        setattr(quantity.info, name, copy.copy(getattr(column.info, name)))
    return quantity


def _without_mixins(table):
    """Columns of numbers or strings alone; units are kept."""
    columns, mixins = {}, {}
    for name in table.colnames:
        column = table[name]
        bare = getattr(column, "unmasked", column)
        if type(bare) is u.Quantity and bare.dtype.kind in "iufc":
            mask = getattr(column, "mask", None)
            data = bare.value
            plain = Column(data) if mask is None else MaskedColumn(data, mask=mask)
            for attribute in ("name", "unit", "description", "format", "meta"):
                value = copy.deepcopy(getattr(column.info, attribute))
                setattr(plain.info, attribute, value)
            columns[name] = [plain]
        elif isinstance(column, Column):
            columns[name] = [column]
        else:
            mixin = represent_mixins_as_columns(QTable([column], names=[name]))
            columns[name] = list(mixin.itercols())
            mixins.update(mixin.meta.get("__serialized_columns__", {}))
    meta = copy.deepcopy(dict(table.meta))
    if mixins:
        meta["__serialized_columns__"] = mixins
    result = Table(meta=meta)
    for column in (column for group in columns.values() for column in group):
        result.add_column(column, copy=False)
    return result


def _keeps_vectors(form, dtype):
    """Whether a format has vectors of this type."""
    if form == "votable":
        return dtype.kind not in "USOM" and dtype.name != "uint64"
    return form != "csv" and not (form == "fits" and dtype.kind in "USOM")


def _split(table, names):
    """Split vectors; what the user split before stays split."""
    own = table.meta.pop(KEY, None)
    table = split_vectors(table, names)
    table.meta[_SPLIT] = table.meta.pop(KEY)
    if own is not None:
        table.meta[KEY] = own
    return table


def _encode_column(column, form, taken):
    """A plain column, and its mask where that needs a column."""
    data = np.asarray(np.ma.getdata(column))
    mask = np.ma.getmaskarray(column)
    if data.dtype.kind == "T":  # strings of NumPy 2
        data = data.astype(str)
    if data.dtype.kind == "O":
        if form == "ecsv" and not all(isinstance(v, str) for v in data.flat):
            return [column]  # it writes lists and dictionaries, too
        data = _strings(data, mask, column.name, form)
    if data.dtype.kind == "V" or (form == "parquet" and data.dtype.kind == "c"):
        raise _refusal(column.name, data.dtype, form)
    code, own_name = {}, column.name
    plain_name = own_name.isascii() and own_name == own_name.strip()
    if not own_name.isprintable() or (form == "fits" and not plain_name):
        code["name"], own_name = own_name, _escape(own_name)
    if data.dtype.kind == "S":
        code["dtype"] = "bytes"
        data = np.char.decode(data, "latin-1")
    elif data.dtype.kind in "Mm" or data.dtype.name in _CASTS.get(form, {}):
        code["dtype"] = data.dtype.newbyteorder("=").str
        cast = _CASTS.get(form, {}).get(data.dtype.name, "U")
        data = data.astype("i8" if data.dtype.kind == "m" else cast)
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if data.dtype.kind == "U":
        data = np.where(mask, "", data)
        pattern = "|".join(filter(None, (_ODD, _ODD_CHARACTERS.get(form))))
        if any(map(re.compile(pattern).search, data.ravel())):
            code["escape"] = True
            data = _each(_escape, data)
    new = []
    native = data.dtype.kind in _MASKS.get(form, "")
    if native and mask.any():
        plain = MaskedColumn(np.where(mask, np.zeros((), data.dtype), data), mask=mask)
    else:
        if data.dtype.kind == "U" and form == "ecsv":
            code.setdefault("mask", None)  # an empty string is no masked one
        if mask.any():
            null, free = _null(data[~mask], data.dtype)
            data = np.where(mask, null, data)
            code["mask"] = {"null": null}
            if not free:
                code["mask"] = _free_name(f"{own_name}.mask", taken)
                new.append(Column(mask, name=code["mask"]))
        plain = Column(data)
    _copy_info(plain, column, code)
    plain.name = own_name
    plain.info.meta = copy.deepcopy(dict(column.info.meta or {}))
    if code:
        plain.info.meta[_CODE] = code
    return [plain, *new]


def _decode_column(column, form, mask):
    """Undo `_encode_column`."""
    meta = dict(column.info.meta or {})
    code = meta.pop(_CODE, None)
    if form == "ecsv" and code is None:
        return column
    code = code or {}
    data = np.ma.getdata(column)
    native = np.ma.getmaskarray(column)
    if data.dtype.kind == "U" and native.any():
        data = np.where(native, "", data)
    data = np.asarray(data)
    if mask is not None:
        mask = np.asarray(np.ma.getdata(mask)).astype(bool).reshape(data.shape)
    elif isinstance(code.get("mask"), dict):
        null = code["mask"]["null"]
        mask = data == null if null == null else np.isnan(data)
    elif data.dtype.kind in _MASKS.get(form, "") and native.any():
        mask = native
    if code.get("escape"):
        data = _each(_unescape, data)
    if code.get("dtype") == "bytes":
        data = np.char.encode(data, "latin-1")
    elif "dtype" in code:
        dtype = np.dtype(code["dtype"])
        if mask is not None and data.dtype.kind == "U":
            data = np.where(mask, "NaT" if dtype.kind == "M" else "0", data)
        data = data.astype(dtype)
    plain = Column(data) if mask is None else MaskedColumn(data, mask=mask)
    _copy_info(plain, column)
    if "format" in code:
        plain.info.format = code["format"]
    plain.info.meta = meta
    return plain


def _copy_info(plain, column, code=None):
    """Unit, description and format, if it suits the values that are written."""
    plain.info.unit = column.info.unit
    plain.info.description = column.info.description
    if code and "dtype" in code and column.info.format is not None:
        code["format"] = column.info.format
    else:
        plain.info.format = column.info.format


def _null(values, dtype):
    """A value for masked elements, and whether no other element has it."""
    kind = dtype.kind
    if kind in "fc":
        return float("nan"), not np.isnan(values).any()
    if kind == "U":
        return "", not (values == "").any()
    if kind in "iu":
        limits = np.iinfo(dtype)
        null = limits.min if kind == "i" else limits.max
        return int(null), not (values == null).any()
    return False, False


def _free_name(name, taken):
    while name in taken:
        name += "_"
    return name


def _strings(data, mask, name, form):
    """Objects that are all strings as strings."""
    data = np.where(mask, "", data)
    if not all(isinstance(value, str) for value in data.flat):
        raise _refusal(name, "object", form)
    return data.astype(str)


def _refusal(name, dtype, form):
    msg = (
        f"column {name!r} has values of type {dtype}, that {form} cannot hold. "
        "Write it as .ecsv, or remove the column."
    )
    return ValueError(msg)


def _each(function, data):
    """Apply a function to each string."""
    values = [function(value) for value in data.ravel().tolist()]
    return np.array(values, dtype=str).reshape(data.shape)


def _escape(value):
    """Printable ASCII alone, without a space at either end."""
    text = value.encode("unicode_escape").decode("ascii").replace("#", r"\x23")
    if text.startswith(" "):
        text = r"\x20" + text[1:]
    return text[:-1] + r"\x20" if text.endswith(" ") else text


def _unescape(value):
    return value.encode("ascii").decode("unicode_escape")
