# Licensed under a 3-clause BSD style license - see LICENSE
"""Read and write catalogues without losing what astrovae put into them."""

import csv
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
from astropy.table import MaskedColumn, QTable
from astropy.table.meta import get_header_from_yaml
from astropy.utils.exceptions import AstropyWarning

from astrovae._files import atomic_file

__all__ = ["read_catalog", "write_catalog"]

# what astropy calls the formats, by file extension
_FORMATS = {
    ".ecsv": "ascii.ecsv",
    ".fits": "fits",
    ".fit": "fits",
    ".parquet": "parquet",
}
# formats that only need to be read
_READ_ONLY = {".csv": "ascii.csv", ".vot": "votable", ".xml": "votable"}
_KEYWORD = "ASTROVAE"


def write_catalog(table, path, *, overwrite=False):
    """
    Write a catalogue; the extension decides the format.

    The file is complete or untouched: it is written under a temporary name
    and renamed, so that a full disk leaves an old file whole.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue.
    path : path-like
        ``*.ecsv``, ``*.fits`` or ``*.parquet``.
    overwrite : bool, optional
        Replace an existing file.

    Raises
    ------
    ValueError
        If the extension is not known.
    FileExistsError
        If the file exists and ``overwrite`` is false.

    Notes
    -----
    FITS has no place for nested metadata: the provenance goes into one
    keyword, ``ASTROVAE``, as JSON, and `read_catalog` restores it.
    """
    path = Path(path)
    form = check_format(path)
    table = table.copy(copy_data=False)
    if form == "fits":
        _fit_for_fits(table)
    with atomic_file(path, overwrite=overwrite) as temporary, warnings.catch_warnings():
        # FITS drops what has no keyword, e.g. column UCDs: said in Notes
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            table.write(temporary, format=form, overwrite=True)
        except (UnicodeError, TypeError, AttributeError) as error:
            msg = (
                f"{path.name}: a column has values that {form} cannot hold "
                f"({error}). Write it as .ecsv, or remove the column."
            )
            raise ValueError(msg) from error


def read_catalog(path):
    """
    Read a catalogue; the extension decides the format.

    Parameters
    ----------
    path : path-like
        ``*.ecsv``, ``*.fits``, ``*.parquet``, ``*.csv`` or ``*.vot``.

    Returns
    -------
    table : `~astropy.table.QTable`
        The catalogue, with provenance restored.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the format is not known or the file cannot be read.
    """
    path = Path(path)
    form = _format(path, {**_FORMATS, **_READ_ONLY})
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        if form == "ascii.ecsv":
            table = _read_ecsv(path)
        else:
            table = QTable.read(path, format=form)
    # the readers raise errors of many kinds on damaged files
    except Exception as error:
        msg = f"{path} cannot be read as {form}: {error or type(error).__name__}"
        raise ValueError(msg) from error
    if form == "fits":
        _restore_from_fits(table)
    return table


def check_format(path):
    """Name the format to write a path in, or say that there is none."""
    return _format(Path(path), _FORMATS)


def _format(path, formats):
    if path.suffix.lower() not in formats:
        msg = (
            f"the extension of {path.name!r} does not name a catalogue format; "
            f"known are {', '.join(formats)}."
        )
        raise ValueError(msg)
    return formats[path.suffix.lower()]


def _read_ecsv(path):
    """
    Read ECSV, also without rows.

    Astropy cannot convert a vector column without rows: such a table is read
    with one row of zeros, which is then dropped.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    header = [line[2:] for line in lines if line.startswith("# ")]
    if len(lines) > len(header) + 1:
        return QTable.read(text, format="ascii.ecsv")
    record = get_header_from_yaml(header[1:])
    row = io.StringIO()
    csv.writer(row, delimiter=record.get("delimiter", " ")).writerow(
        map(_zero, record["datatype"])
    )
    rows = "\n".join([*lines, row.getvalue()])
    return QTable.read(rows, format="ascii.ecsv")[:0]


def _zero(column):
    """A value that an ECSV column can hold."""
    shape = re.search(r"\[([\d,]+)\]$", column.get("subtype", ""))
    if shape:
        kind = bool if column["subtype"].startswith("bool") else int
        return json.dumps(np.zeros(json.loads(shape[0]), kind).tolist())
    return {"string": "-", "bool": "False"}.get(column["datatype"], "0")


def _fit_for_fits(table):
    """Turn what FITS has no place for into what it has."""
    if "astrovae" in table.meta:
        table.meta[_KEYWORD] = json.dumps(table.meta.pop("astrovae"))
    for name in table.colnames:
        column = table[name]
        if isinstance(column, MaskedColumn) and column.dtype.kind == "b":
            # a logical column has no null: its mask is a column of its own
            column = column.copy()
            column.info.serialize_method["fits"] = "data_mask"
            table.replace_column(name, column)


def _restore_from_fits(table):
    """Undo `_fit_for_fits`; native byte order and text for the rest."""
    if _KEYWORD in table.meta:
        table.meta["astrovae"] = json.loads(table.meta.pop(_KEYWORD))
    for name in table.colnames:
        column = table[name]
        dtype = getattr(column, "dtype", None)
        if dtype is None:  # a coordinate or a time
            continue
        if dtype.kind == "S" or not dtype.isnative:
            native = column.astype(
                str if dtype.kind == "S" else dtype.newbyteorder("=")
            )
            native.info = column.info
            table.replace_column(name, native)
