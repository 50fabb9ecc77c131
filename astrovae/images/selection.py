# Licensed under a 3-clause BSD style license - see LICENSE
"""Which galaxies to keep, in a way that can be repeated and explained."""

import dataclasses
import operator

import numpy as np
from astropy.table import Table

from astrovae.flags import Flag, decode_flags

__all__ = ["Cut", "Selection"]

_OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclasses.dataclass(frozen=True)
class Cut:
    """
    One condition on one column.

    Parameters
    ----------
    column : str
        Name of the column.
    condition : {"<", "<=", ">", ">=", "==", "!=", "without"}
        What rows that are kept fulfil. ``"without"`` is for columns of flags:
        none of the bits of ``value`` is set.
    value : float, str, or sequence of str
        What the column is compared with; for flags the bits, or their names.
    name : str, optional
        What to call the cut in the log.

    Raises
    ------
    ValueError
        If the condition or a flag is unknown.

    Examples
    --------
    >>> from astrovae.images import Cut
    >>> Cut("snr", ">", 10)
    Cut(column='snr', condition='>', value=10, name='snr > 10')
    """

    column: str
    condition: str
    value: object
    name: str = ""

    def __post_init__(self):
        value = self.value
        if self.condition == "without":
            value = _bits(value)
            shown = ", ".join(decode_flags(value))
        elif self.condition in _OPERATORS:
            shown = f"{value}"
        else:
            known = ", ".join([*_OPERATORS, "without"])
            msg = f"condition must be one of {known}, got {self.condition!r}."
            raise ValueError(msg)
        # the class is frozen
        object.__setattr__(self, "value", value)
        if not self.name:
            object.__setattr__(self, "name", f"{self.column} {self.condition} {shown}")

    def __call__(self, values):
        """Say which values pass; missing ones do not."""
        values = np.ma.asarray(values)
        known = ~np.ma.getmaskarray(values)
        if self.condition == "without":
            return known & ((values.data & self.value) == 0)
        if values.dtype.kind == "f":
            known &= np.isfinite(values.data)
        with np.errstate(invalid="ignore"):
            return known & _OPERATORS[self.condition](values.data, self.value)


def _bits(value):
    """Bits of flags from their names, or as they are."""
    if isinstance(value, (int, np.integer)):
        decode_flags(int(value))
        return int(value)
    names = [value] if isinstance(value, str) else list(value)
    unknown = [name for name in names if str(name).upper() not in Flag.__members__]
    if unknown:
        msg = f"there are no flags {unknown}; see astrovae.flags.Flag."
        raise ValueError(msg)
    return int(sum({Flag[str(name).upper()].value for name in names}))


@dataclasses.dataclass(frozen=True)
class Selection:
    """
    Cuts, one after the other, with a log of what each of them removed.

    Parameters
    ----------
    cuts : sequence of `Cut` or tuple
        Cuts, or the arguments of one each.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from astrovae.images import Selection
    >>> table = Table({"snr": [5.0, 30, 40], "edge_on": [0.1, 0.9, 0.2]})
    >>> selection = Selection([("snr", ">", 10.0), ("edge_on", "<", 0.5)])
    >>> keep, log = selection.apply(table)
    >>> keep
    array([False, False,  True])
    >>> print(log["name", "n_before", "n_removed"])
         name     n_before n_removed
    ------------- -------- ---------
       snr > 10.0        3         1
    edge_on < 0.5        2         1
    """

    cuts: tuple

    def __post_init__(self):
        cuts = [cut if isinstance(cut, Cut) else Cut(*cut) for cut in self.cuts]
        object.__setattr__(self, "cuts", tuple(cuts))

    @classmethod
    def from_votes(cls, edge_on, odd, *, limit=0.5):
        """
        No edge-on and no odd galaxies, as people voted.

        Parameters
        ----------
        edge_on, odd : str
            The columns with the shares of votes, such as ``Class2.1`` and
            ``Class6.1`` of the decision tree of Galaxy Zoo 2.
        limit : float, optional
            Galaxies with a larger share, or without votes, are removed.

        Returns
        -------
        selection : `Selection`
            Two cuts.
        """
        return cls(
            [(edge_on, "<=", limit, "not edge-on"), (odd, "<=", limit, "nothing odd")]
        )

    def apply(self, table):
        """
        Select rows.

        Parameters
        ----------
        table : `~astropy.table.Table`, `~pandas.DataFrame` or \
                `~astrovae.images.CutoutStack`
            With the columns. Those of a stack are its ``columns``, its flags
            as ``flags`` and its pose as ``pose_*``.

        Returns
        -------
        keep : `~numpy.ndarray` of bool, shape (n,)
            `True` for rows that pass all cuts. Rows where a value is missing do
            not pass.
        log : `~astropy.table.Table`
            For each cut its ``name``, ``n_before``, ``n_removed``, how many of
            these because the value is ``n_missing``, and ``n_left``.

        Raises
        ------
        ValueError
            If a column is missing, or not of one value per row.
        """
        columns = _columns(table)
        n = len(table)
        keep = np.ones(n, bool)
        rows = []
        for cut in self.cuts:
            if cut.column not in columns:
                msg = (
                    f"there is no column {cut.column!r} to cut on; the columns are "
                    f"{list(columns)}."
                )
                raise ValueError(msg)
            values = _values(columns[cut.column])
            if values.shape != (n,):
                msg = f"column {cut.column!r} has the shape {values.shape}, not ({n},)."
                raise ValueError(msg)
            passed = cut(values)
            missing = np.ma.getmaskarray(values)
            if values.dtype.kind == "f":
                missing = missing | ~np.isfinite(values.data)
            left = keep & passed
            counts = keep.sum(), (keep & ~passed).sum(), (keep & missing).sum()
            rows.append((cut.name, *counts, left.sum()))
            keep = left
        names = ("name", "n_before", "n_removed", "n_missing", "n_left")
        dtype = (str, int, int, int, int)
        return keep, Table(rows=rows or None, names=names, dtype=dtype)

    def to_dict(self):
        """
        Give the cuts as plain JSON types, for a record.

        Returns
        -------
        record : dict
            ``Selection(**record)`` makes the same cuts.
        """
        return {"cuts": [list(dataclasses.astuple(cut)) for cut in self.cuts]}


def _columns(table):
    """What is known of the rows, by name."""
    if hasattr(table, "pose_columns"):
        return {**table.columns, "flags": np.asarray(table.flags), **table.pose_columns}
    names = getattr(table, "colnames", None) or list(table.columns)
    return {str(name): table[name] for name in names}


def _values(column):
    """A column as a masked array without units."""
    if hasattr(column, "to_numpy"):
        values = column.to_numpy()
        if values.dtype.kind == "O":
            hidden = np.asarray(column.isna())
            values = np.ma.array(np.where(hidden, "", values).astype(str), mask=hidden)
        return np.ma.asarray(values)
    if hasattr(column, "unmasked"):
        bare = getattr(column.unmasked, "value", column.unmasked)
        return np.ma.array(bare, mask=column.mask)
    return np.ma.asarray(getattr(column, "value", column))
