# Licensed under a 3-clause BSD style license - see LICENSE
"""
Each file format: how plain columns go into it, and come back.

A writer takes a table from `astrovae.catalog._coding.encode`. A reader gives
what `astrovae.catalog._coding.decode` takes, or, from a file that is not ours,
the table as it is.
"""

import contextlib
import csv
import io
import itertools
import json
import re
import warnings

import astropy.units as u
import numpy as np
from astropy.io import fits, votable
from astropy.io.fits.verify import VerifyWarning
from astropy.io.votable.tree import Info
from astropy.io.votable.ucd import check_ucd
from astropy.table import Column, MaskedColumn, Table
from astropy.table.meta import get_header_from_yaml

from astrovae.catalog._coding import (
    HEADER,
    apply_header,
    as_qtable,
    decode,
    header_text,
)

__all__ = ["READERS", "WRITERS"]

_CSV_MARK = "# %ECSV"
# those that FITS has as they are
_FITS_INTEGERS = ("uint8", "int16", "int32", "int64")


# ---------------------------------------------------------------------------
# ECSV and CSV
# ---------------------------------------------------------------------------


def _write_ecsv(table, path):
    table.write(path, format="ascii.ecsv", overwrite=True)


def _read_ecsv(path):
    """
    Read ECSV, also without rows.

    Astropy cannot convert a vector column without rows: such a table is read
    with one row of zeros, which is then dropped.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    header = [line[2:] for line in lines if line.startswith("# ")]
    record = get_header_from_yaml(header[1:])
    if len(lines) > len(header) + 1:
        table = Table.read(text, format="ascii.ecsv")
    else:
        row = io.StringIO()
        csv.writer(row, delimiter=record.get("delimiter", " ")).writerow(
            map(_zero, record["datatype"])
        )
        rows = "\n".join([*lines, row.getvalue()])
        table = Table.read(rows, format="ascii.ecsv")[:0]
    # of angles and magnitudes, a Table reads numbers and units alone
    mixins = record.get("meta", {}).get("__serialized_columns__", {})
    plain = {name: m for name, m in mixins.items() if name in table.colnames}
    plain = {n: m for n, m in plain.items() if isinstance(table[n], Column)}
    if plain:
        table.meta["__serialized_columns__"] = plain
    return decode(table, "ecsv")


def _zero(column):
    """A value that an ECSV column can hold."""
    shape = re.search(r"\[([\d,]+)\]$", column.get("subtype", ""))
    if shape:
        kind = bool if column["subtype"].startswith("bool") else int
        if column["subtype"].startswith("string"):
            kind = str
        return json.dumps(np.zeros(json.loads(shape[0]), kind).tolist())
    return {"string": "-", "bool": "False"}.get(column["datatype"], "0")


def _write_csv(table, path):
    """Write ECSV with commas; what is masked is empty, an empty string quoted."""
    lines = [f"{_CSV_MARK} 1.0", "---", "delimiter: ','", *_header_lines(table)]
    lines = [lines[0], *(f"# {line}" for line in lines[1:])]
    lines.append(",".join(map(_quote, table.colnames)))
    columns = []
    for name in table.colnames:
        data = np.ma.getdata(table[name])
        if data.dtype.kind == "U":
            texts = list(map(_quote, data.tolist()))
        else:
            texts = data.astype(str).tolist()
        # a line of nothing would be skipped
        empty = '""' if len(table.colnames) == 1 else ""
        for row in np.flatnonzero(np.ma.getmaskarray(table[name])):
            texts[row] = empty
        columns.append(texts)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.writelines(",".join(row) + "\n" for row in zip(*columns))


def _header_lines(table):
    return header_text(table).splitlines()


def _quote(text):
    """Quote what other readers of CSV would not take for a string."""
    if text and not re.search(r'[,"#]|^[\d.+-]|^(?:nan|inf|na|null)', text, re.I):
        return text
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        header = list(itertools.takewhile(lambda line: line[:1] == "#", file))
    if not header or not header[0].startswith(_CSV_MARK):
        return as_qtable(_read_plain_csv(path, header))
    lines = [line.rstrip("\r\n")[2:] for line in header[1:]]
    record = get_header_from_yaml(lines)
    if record.get("delimiter", " ") != ",":
        return _read_ecsv(path)
    if not record["datatype"]:
        table = Table()
        apply_header(table, "\n".join(lines))
        return decode(table, "csv")
    import pandas as pd

    with open(path, encoding="utf-8", newline="") as file:
        # not skiprows: it minds quotation marks in comments
        for _ in header:
            file.readline()
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    types = {entry["name"]: entry["datatype"] for entry in record["datatype"]}
    table = Table()
    for name in frame.columns:
        if frame[name].isna().any():
            msg = f"row {int(frame[name].isna().argmax())} has too few fields"
            raise ValueError(msg)
        texts = frame[name].to_numpy(dtype=str)
        if types.get(name, "string") == "string":
            table[name] = Column(texts)
            continue
        empty = texts == ""
        if types[name] == "bool":
            values = np.char.lower(texts) == "true"
        else:
            values = np.where(empty, "0", texts).astype(types[name])
        table[name] = MaskedColumn(values, mask=empty) if empty.any() else values
    apply_header(table, "\n".join(lines))
    return decode(table, "csv")


def _read_plain_csv(path, header):
    """Read any CSV; lines of comments come before the names, if there are any."""
    options = {}
    if path.stat().st_size == 0:
        msg = "it is empty"
        raise ValueError(msg)
    if header:
        with open(path, encoding="utf-8", newline="") as file:
            first = next(itertools.islice(file, len(header), None), "")
        # a line of as many fields as the first row is one of names
        n_fields = [len(next(csv.reader([line]))) for line in (header[-1], first)]
        if n_fields[0] != n_fields[1] or n_fields[1] == 1:
            options["comment"] = "#"
    table = Table.read(path, format="ascii.csv", **options)
    for name in table.colnames:
        if name.startswith("\ufeff"):  # of spreadsheets, at the start of a file
            table.rename_column(name, name[1:].strip('"'))
    return table


# ---------------------------------------------------------------------------
# FITS
# ---------------------------------------------------------------------------


def _write_fits(table, path):
    bare = table.copy(copy_data=False)
    bare.meta = {key: v for key, v in table.meta.items() if _is_keyword(key, v)}
    for name in bare.colnames:
        # what has a keyword of its own follows
        bare[name].info.description = bare[name].info.format = None
        bare[name].info.meta = {}
    hdu = fits.table_to_hdu(bare)
    for i, name in enumerate(table.colnames, start=1):
        info = table[name].info
        null = (info.meta or {}).get("astrovae", {}).get("mask")
        if isinstance(null, dict) and table[name].dtype.name in _FITS_INTEGERS:
            hdu.header[f"TNULL{i}"] = null["null"]
        _set_ascii(hdu.header, f"TUCD{i}", (info.meta or {}).get("ucd"))
        _set_ascii(hdu.header, f"TCOMM{i}", info.description)
    hdu.header[HEADER] = json.dumps(header_text(table))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)


def _is_keyword(key, value):
    """Whether a FITS header can have this, too."""
    if not isinstance(key, str) or key.upper() == "CONTINUE":
        return False
    if key.upper() == "EXTNAME" and not isinstance(value, str):
        return False
    return (
        re.fullmatch(r"[A-Za-z0-9_-]{1,8}", key)
        and isinstance(value, (str, bool, int, float))
        and (not isinstance(value, float) or np.isfinite(value))
        and str(value).isascii()
        and str(value).isprintable()
    )


def _set_ascii(header, key, text):
    if isinstance(text, str) and text.isascii() and text.isprintable():
        header[key] = text


def _read_fits(path):
    with warnings.catch_warnings(), fits.open(path, memmap=False) as hdus:
        # names of columns that are not those of variables
        warnings.simplefilter("ignore", VerifyWarning)
        ours = [hdu for hdu in hdus if HEADER in hdu.header]
        if not ours:
            return as_qtable(_native(Table.read(path, format="fits"), hdus))
        hdu = ours[0]
        table = Table()
        for name in hdu.columns.names:
            data = np.asarray(hdu.data.field(name))
            kind = "U" if data.dtype.kind in "SU" else data.dtype.newbyteorder("=")
            table[name] = data.astype(kind)
        text = json.loads(hdu.header[HEADER])
        table.meta = _keywords(hdu.header)
    apply_header(table, text)
    return decode(table, "fits")


def _keywords(header):
    """The keywords of a header that say nothing about the structure."""
    header = header.copy(strip=True)
    drop = re.compile(
        rf"{HEADER}$|(TUCD|TCOMM|TNULL|TUNIT|TDIM)\d+$|EXTNAME$|COMMENT|HISTORY|$"
    )
    return {key: header[key] for key in header if not drop.match(key)}


def _native(table, hdus):
    """Native byte order and text; UCDs and descriptions of TOPCAT."""
    header = next((h.header for h in hdus if isinstance(h, fits.BinTableHDU)), {})
    for i, name in enumerate(table.colnames, start=1):
        column = table[name]
        dtype = getattr(column, "dtype", None)
        if not isinstance(column, Column):  # a coordinate or a time
            continue
        if dtype.kind == "S" or not dtype.isnative:
            column = column.astype(
                str if dtype.kind == "S" else dtype.newbyteorder("=")
            )
            column.info = table[name].info
            table.replace_column(name, column)
        if header.get(f"TTYPE{i}") == name:
            if f"TUCD{i}" in header:
                table[name].meta["ucd"] = header[f"TUCD{i}"]
            if f"TCOMM{i}" in header and not table[name].description:
                table[name].description = header[f"TCOMM{i}"]
    return table


# ---------------------------------------------------------------------------
# VOTable
# ---------------------------------------------------------------------------


def _write_votable(table, path):
    bare = table.copy(copy_data=False)
    bare.meta = {}
    for name in bare.colnames:
        info = bare[name].info
        meta = info.meta or {}
        info.format = None
        info.meta = {}
        if isinstance(info.unit, u.function.FunctionUnitBase):
            info.unit = None  # VOTable has no magnitudes of a zero point
        if "ucd" in meta and check_ucd(meta["ucd"]):
            info.meta["ucd"] = meta["ucd"]
        null = meta.get("astrovae", {}).get("mask")
        if isinstance(null, dict) and bare[name].dtype.kind in "iu":
            info.meta["values"] = {"null": null["null"]}
    file = votable.from_table(bare)
    resource = file.resources[0]
    for field, name in zip(resource.tables[0].fields, bare.colnames):
        if bare[name].ndim > 2:
            # in VOTable the first axis varies fastest, which astropy forgets
            field.arraysize = "x".join(map(str, bare[name].shape[:0:-1]))
    resource.infos.append(Info(name=HEADER, value=json.dumps(header_text(table))))
    file.to_xml(str(path), tabledata_format="binary2")


def _read_votable(path):
    file = votable.parse(path, verify="ignore")
    found = next(file.iter_tables(), None)
    if found is None:
        msg = "it has no table"
        raise ValueError(msg)
    table = found.to_table(use_names_over_ids=True)
    for name in table.colnames:
        if table[name].dtype.kind == "O":
            table.replace_column(name, _texts(table[name]))
    infos = itertools.chain.from_iterable(r.infos for r in file.resources)
    text = next((info.value for info in infos if info.name == HEADER), None)
    if text is None:
        return as_qtable(table)
    apply_header(table, json.loads(text))
    return decode(table, "votable")


def _texts(column):
    """Strings of any length as strings; other objects stay."""
    values = np.ma.getdata(column)
    if not all(isinstance(value, str) for value in values.flat):
        return column
    texts = MaskedColumn(values.astype(str), mask=np.ma.getmaskarray(column))
    texts.info = column.info
    return texts


# ---------------------------------------------------------------------------
# HDF5
# ---------------------------------------------------------------------------


def _write_hdf5(table, path):
    import h5py

    bare = table.copy(copy_data=False)
    bare.convert_unicode_to_bytestring()
    # in memory: on a full disk, HDF5 cannot close a file
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        data = file.create_dataset("catalog", data=bare.as_array())
        data.attrs[HEADER] = True
        # where astropy looks for it
        lines = [line.encode("utf-8") for line in header_text(table).splitlines()]
        file["catalog.__table_column_meta__"] = np.array(lines)
    path.write_bytes(buffer.getvalue())


def _read_hdf5(path):
    import h5py

    with h5py.File(path) as file:
        ours = HEADER in getattr(file.get("catalog"), "attrs", ())
        if ours:
            table = Table(np.array(file["catalog"]), copy=False)
            lines = file["catalog.__table_column_meta__"][()]
            text = b"\n".join(lines).decode("utf-8")
    if not ours:
        table = Table.read(path, format="hdf5")
    for name in table.colnames:
        if getattr(table[name], "dtype", np.dtype(float)).kind == "S":
            with contextlib.suppress(UnicodeDecodeError):
                column = Column(np.char.decode(table[name], "utf-8"))
                column.info = table[name].info
                table.replace_column(name, column)
    if not ours:
        return as_qtable(table)
    apply_header(table, text)
    return decode(table, "hdf5")


# ---------------------------------------------------------------------------
# Parquet
# ---------------------------------------------------------------------------


def _write_parquet(table, path):
    import pyarrow as pa
    from pyarrow import parquet

    arrays = [_to_arrow(pa, table[name]) for name in table.colnames]
    result = pa.table(arrays, names=table.colnames)
    result = result.replace_schema_metadata({HEADER: header_text(table)})
    parquet.write_table(result, path)


def _to_arrow(pa, column):
    """Numbers or strings with nulls; vectors as lists of fixed size."""
    data, mask = np.ma.getdata(column), np.ma.getmaskarray(column)
    values = np.asarray(data).ravel()
    array = pa.array(values, mask=mask.ravel(), from_pandas=False)
    for size in column.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _read_parquet(path):
    import pyarrow as pa
    from pyarrow import parquet

    found = parquet.read_table(path)
    metadata = found.schema.metadata or {}
    if b"table_meta_yaml" in metadata:  # written by astropy
        return as_qtable(Table.read(path, format="parquet"))
    table = Table()
    for name, array in zip(found.column_names, found.columns):
        table[name] = _from_arrow(pa, array)
    text = metadata.get(HEADER.encode())
    if text is None:
        return as_qtable(table)
    apply_header(table, text.decode("utf-8"))
    return decode(table, "parquet")


def _from_arrow(pa, array):
    """A column of numbers, strings or times; other values are objects."""
    types = pa.types
    n_rows, shape = len(array), []
    if types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    array = pa.concat_arrays(array.chunks) if array.num_chunks else array
    if isinstance(array, pa.ChunkedArray):
        array = pa.array([], type=array.type)
    original = array
    while types.is_fixed_size_list(array.type) and not array.null_count:
        shape.append(array.type.list_size)
        array = array.flatten()
    kind, shape = array.type, (n_rows, *shape)
    mask = np.asarray(array.is_null()).reshape(shape)
    if types.is_string(kind) or types.is_large_string(kind):
        data = np.array(array.fill_null("").to_pylist(), dtype=str)
    elif types.is_boolean(kind):
        data = array.fill_null(False).to_numpy(zero_copy_only=False)
    elif types.is_integer(kind) or types.is_floating(kind):
        data = array.fill_null(pa.scalar(0).cast(kind)).to_numpy()
    elif types.is_timestamp(kind) or types.is_date(kind):
        data = array.to_numpy(zero_copy_only=False)
    else:
        values = original.to_pylist()
        data = np.empty(n_rows, dtype=object)
        data[:] = values
        mask = np.array([value is None for value in values], dtype=bool)
        shape = (n_rows,)
    data = data.reshape(shape)
    return MaskedColumn(data, mask=mask) if mask.any() else Column(data)


WRITERS = {
    "ecsv": _write_ecsv,
    "csv": _write_csv,
    "fits": _write_fits,
    "votable": _write_votable,
    "parquet": _write_parquet,
    "hdf5": _write_hdf5,
}
READERS = {
    "ecsv": _read_ecsv,
    "csv": _read_csv,
    "fits": _read_fits,
    "votable": _read_votable,
    "parquet": _read_parquet,
    "hdf5": _read_hdf5,
}
