# Licensed under a 3-clause BSD style license - see LICENSE
"""Vector columns as columns of numbers, and back."""

import copy
import itertools

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn
from astropy.utils.masked import Masked

from astrovae.catalog._checks import check_table

__all__ = ["merge_vectors", "split_vectors"]

# where the metadata of a table says what was split
KEY = "astrovae_vectors"


def split_vectors(table, names=None):
    """
    Split vector columns into columns of one number per row.

    For programs that know no vectors. ``latent_mean`` of shape ``(n, 2)``
    becomes ``latent_mean_0`` and ``latent_mean_1``, in its place; a column of
    shape ``(n, 2, 3)`` becomes six, from ``_0_0`` to ``_1_2``. Each has the
    type, unit, description and UCD of the vector, and its own mask.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue.
    names : str or sequence of str, optional
        The columns to split; by default all with more than one number per row.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy. ``meta["astrovae_vectors"]`` records what was split;
        `write_catalog` and `read_catalog` keep it.

    Raises
    ------
    TypeError
        If ``table`` is not an astropy table.
    ValueError
        If a new name is taken, or a column cannot be split: a vector without
        elements, or one of coordinates or times.

    See Also
    --------
    merge_vectors : The inverse.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.catalog import split_vectors
    >>> split_vectors(Table({"id": [1], "latent_mean": np.zeros((1, 2))})).colnames
    ['id', 'latent_mean_0', 'latent_mean_1']
    """
    check_table("table", table)
    if names is None:
        names = [name for name in table.colnames if len(table[name].shape) > 1]
    names = [names] if isinstance(names, str) else list(names)
    record = copy.deepcopy(table.meta.get(KEY, {}))
    pieces, taken = {}, set(table.colnames) - set(names)
    for name in names:
        if name not in table.colnames:
            msg = f"the table has no column {name!r}; its columns are {table.colnames}."
            raise ValueError(msg)
        shape = table[name].shape[1:]
        if not shape:
            msg = f"column {name!r} has one number per row: there is nothing to split."
            raise ValueError(msg)
        pieces[name] = _split(name, table[name])
        clashes = [new for new in pieces[name] if new in taken]
        if clashes:
            msg = (
                f"{name} cannot be split: the table already has "
                f"{', '.join(clashes)}. Rename or remove them."
            )
            raise ValueError(msg)
        taken.update(pieces[name])
        record[name] = {"columns": list(pieces[name]), "shape": list(shape)}
    columns = {}
    for name in table.colnames:
        columns.update(pieces.get(name, {name: table[name]}))
    result = _rebuild(table, columns)
    if record:
        result.meta[KEY] = record
    return result


def merge_vectors(table):
    """
    Put together what `split_vectors` took apart.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue that was split; rows and other columns may have changed
        since.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with the vectors, each in the place of its first element. A
        vector none of whose columns are left is forgotten.

    Raises
    ------
    TypeError
        If ``table`` is not an astropy table.
    ValueError
        If some of the columns of a vector are missing, or its name is taken.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from astrovae.catalog import merge_vectors, split_vectors
    >>> table = Table({"latent_mean": np.zeros((1, 2))})
    >>> merge_vectors(split_vectors(table)).colnames
    ['latent_mean']
    """
    check_table("table", table)
    vectors, gone = {}, set()
    for name, entry in table.meta.get(KEY, {}).items():
        left = [piece for piece in entry["columns"] if piece in table.colnames]
        if not left:
            continue
        if len(left) < len(entry["columns"]):
            missing = [piece for piece in entry["columns"] if piece not in left]
            msg = (
                f"{name} cannot be merged: {', '.join(missing)} missing. Remove "
                f"{', '.join(left)}, too, or del table.meta[{KEY!r}][{name!r}]."
            )
            raise ValueError(msg)
        if name in table.colnames:
            msg = f"{name} cannot be merged: the table already has such a column."
            raise ValueError(msg)
        vectors[left[0]] = name, _merge([table[piece] for piece in left], entry)
        gone.update(left)
    columns = {}
    for name in table.colnames:
        if name in vectors:
            new, column = vectors[name]
            columns[new] = column
        elif name not in gone:
            columns[name] = table[name]
    result = _rebuild(table, columns)
    result.meta.pop(KEY, None)
    return result


def _rebuild(table, columns):
    """A table of the same class with copies of these columns."""
    result = type(table)(meta=copy.deepcopy(table.meta))
    for name, column in columns.items():
        result.add_column(column, name=name, copy=True)
    return result


def _split(name, column):
    """The elements of a vector by name."""
    if 0 in column.shape[1:] or not isinstance(column, (Column, u.Quantity)):
        msg = (
            f"column {name!r}, a {type(column).__name__} of shape {column.shape}, "
            "cannot be split: only vectors of numbers or strings can."
        )
        raise ValueError(msg)
    pieces = {}
    for index in itertools.product(*map(range, column.shape[1:])):
        piece = column[(slice(None), *index)].copy()
        _copy_info(piece, column)
        pieces["_".join(map(str, (name, *index)))] = piece
    return pieces


def _merge(pieces, entry):
    """A vector from its elements."""
    first = pieces[0]
    shape = (len(first), *entry["shape"])
    quantity = isinstance(first, u.Quantity)
    if quantity:
        pieces = [p if p.unit == first.unit else p.to(first.unit) for p in pieces]
    bare = [getattr(piece, "unmasked", piece) for piece in pieces]
    data = np.stack([np.asarray(np.ma.getdata(b)) for b in bare], axis=1)
    data = data.reshape(shape)
    masks = [getattr(piece, "mask", None) for piece in pieces]
    mask = None
    if any(m is not None for m in masks):
        full = [np.broadcast_to(False if m is None else m, shape[:1]) for m in masks]
        mask = np.stack(full, axis=1).reshape(shape)
    if quantity:
        column = type(bare[0])(data, first.unit, dtype=data.dtype)
        column = column if mask is None else Masked(column, mask=mask)
    else:
        column = Column(data) if mask is None else MaskedColumn(data, mask=mask)
    _copy_info(column, first)
    return column


def _copy_info(column, source):
    """Give a column unit, description, format and metadata of another."""
    if not isinstance(column, u.Quantity):
        column.info.unit = source.info.unit
    column.info.description = source.info.description
    column.info.format = source.info.format
    column.info.meta = copy.deepcopy(source.info.meta)
