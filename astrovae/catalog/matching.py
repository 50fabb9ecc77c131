# Licensed under a 3-clause BSD style license - see LICENSE
"""Find the rows of another catalogue that are the same objects."""

import copy
import functools
import warnings
from datetime import UTC, datetime

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord, angular_separation
from astropy.table import Column, MaskedColumn, QTable
from astropy.time import Time
from astropy.utils.masked import Masked

from astrovae._validation import check_option
from astrovae.catalog._checks import check_prefix, check_table
from astrovae.catalog._positions import row_ids, row_positions
from astrovae.catalog.columns import COLUMNS
from astrovae.catalog.vectors import KEY
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag

__all__ = ["crossmatch"]

_FIND = ("best", "all", "mutual")
# rows of the result, for "all" with a radius that makes no sense
_MAX_PAIRS = 50_000_000
# where positions are shifted to, in radii, and in which directions
_RINGS = (10, 20)
_N_DIRECTIONS = 4
# and how many: every second, third, ... row of a long table
_MAX_SHIFTED = 20_000


def crossmatch(
    table,
    other,
    *,
    radius=None,
    on=None,
    find="best",
    suffix="_2",
    prefix="",
    sky_columns=None,
    other_sky_columns=None,
    epoch=None,
    other_epoch=None,
):
    """
    Append the columns of another catalogue, by position or by identifier.

    No row is lost: where nothing matches, the columns of the other catalogue
    are masked.

    Parameters
    ----------
    table, other : `~astropy.table.Table`
        The catalogues.
    radius : `~astropy.units.Quantity`
        Match positions within this angle.
    on : str or (str, str)
        Match identifiers: the column, or that of ``table`` and that of
        ``other``. Both must hold integers, or both text.
    find : {"best", "all", "mutual"}, optional
        The nearest row of ``other`` for each row of ``table``; all of them, each
        in a row of its own; or the nearest, if ``table`` has none that is nearer
        to it. Of several rows with the same identifier, the first is the best.
    suffix : str, optional
        Put behind the names of columns of ``other`` that ``table`` has, too.
    prefix : str, optional
        Put before the names of the columns of the match, to keep those of
        several catalogues.
    sky_columns, other_sky_columns : str or (str, str), optional
        The column with coordinates, or those of right ascension and declination.
        By default the only `~astropy.coordinates.SkyCoord`, otherwise ``ra``
        and ``dec`` or their names in other catalogues, in any case.
    epoch, other_epoch : `~astropy.time.Time`, optional
        Epochs of the positions, if those of ``table`` are to be moved to that of
        ``other`` by their proper motions (of the coordinates, or columns
        ``pmra`` and ``pmdec``), or if ``table`` has none, the other way round.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy of ``table`` with the columns of ``other``, and

        - ``separation`` (by position only),
        - ``match_index``, the row of ``other``,
        - ``match_count``, how many rows of ``other`` match: masked in rows
          without position or identifier,
        - ``match_flags``, bits of `~astrovae.flags.Flag`: ``AMBIGUOUS_MATCH`` if
          there are several, ``NO_POSITION``.

    Raises
    ------
    TypeError
        If one of them is not an astropy table.
    ValueError
        If neither or both of ``radius`` and ``on`` are given, the radius is no
        angle, there are no positions, identifiers are floats or of different
        kinds, or columns exist.

    Notes
    -----
    Numbers without a unit are degrees. Text is sexagesimal, right ascension in
    hours. All positions are compared in ICRS. A declination beyond 90 degrees is
    no position.

    ``table.meta["astrovae"]`` records the match, and by position the rate of
    chance: the share of rows that find a match after all have been shifted by 10
    and by 20 radii in four directions each. Where the catalogues cover the same
    region, that is the share of rows without a counterpart that match
    something else. Of the metadata of ``other``, these records and those of
    `split_vectors` are kept.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import Table
    >>> from astrovae.catalog import crossmatch
    >>> table = Table({"ra": [10.0, 359.9999], "dec": [0.0, 0.0]})
    >>> other = Table({"ra": [0.0001, 50], "dec": [0.0, 0], "log_mass": [10.5, 11]})
    >>> both = crossmatch(table, other, radius=1 * u.arcsec)
    >>> both["log_mass"].tolist()
    [None, 10.5]
    """
    for name, value in (("table", table), ("other", other)):
        check_table(name, value)
    check_prefix(prefix)
    check_option("find", find, _FIND)
    if (radius is None) == (on is None):
        msg = "give either radius, to match positions, or on, to match identifiers."
        raise ValueError(msg)
    if on is None:
        radius = _check_radius(radius)
        epochs = _check_epochs(epoch, other_epoch)
        ours, theirs, known = _positions(
            table, other, sky_columns, other_sky_columns, epochs
        )
        matcher = _Sky(*ours, *theirs, radius)
        record = {"radius_arcsec": float(radius.to_value(u.arcsec))}
    else:
        matcher, known, columns = _ids(table, other, on)
        record = {"on": columns}
    rows, partners, separation = _find(matcher, known, find)
    counts = np.ma.array(matcher.counts, mask=~known, dtype=np.int64)
    flags = np.where(counts.filled(0) > 1, Flag.AMBIGUOUS_MATCH, 0)
    if on is None:
        flags[~known] |= Flag.NO_POSITION
        record |= matcher.chance(known)
    missing = np.ma.array(partners, mask=partners < 0)
    values = {
        "separation": np.ma.array(separation, mask=partners < 0),
        "match_index": missing,
        "match_count": counts[rows],
        "match_flags": flags[rows],
    }
    if on is not None:
        del values["separation"]
    result, names = _join(table, other, rows, partners, values, suffix, prefix)
    unknown = int((~known).sum())
    if unknown:
        what = "position" if on is None else "identifier"
        msg = (
            f"{unknown} of {len(table)} rows have no {what}; they match nothing, and "
            f"their {prefix}match_count is masked."
        )
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=2)
    matched = np.unique(rows[partners >= 0])
    used = partners[partners >= 0]
    record |= {
        "find": find,
        "columns": [prefix + name for name in values],
        "n_rows": len(table),
        "n_other": len(other),
        "n_matched": len(matched),
        "n_ambiguous": int((counts.filled(0) > 1).sum()),
        "n_shared": int((np.unique(used, return_counts=True)[1] > 1).sum()),
        "n_masked": unknown,
    }
    _record(result, other, names, prefix, suffix, record)
    return result


def _check_radius(radius):
    """A positive angle."""
    angle = isinstance(radius, u.Quantity) and radius.unit.is_equivalent(u.deg)
    if not angle or not radius.isscalar or not 0 < radius.to_value(u.deg) <= 10:
        msg = (
            f"radius must be an angle up to 10 deg, with a unit, got {radius!r}. "
            "Give for example 1 * u.arcsec."
        )
        raise ValueError(msg)
    return radius


def _check_epochs(epoch, other_epoch):
    if (epoch is None) != (other_epoch is None):
        msg = "give both epoch and other_epoch, or neither."
        raise ValueError(msg)
    if epoch is None:
        return None
    try:
        return Time(epoch), Time(other_epoch)
    except ValueError as error:
        msg = (
            f"epochs must be astropy times, got {epoch!r} and {other_epoch!r}. Give "
            'for example Time("J2000").'
        )
        raise ValueError(msg) from error


def _positions(table, other, sky_columns, other_sky_columns, epochs):
    """Positions of both, at the same epoch."""
    forwards = epochs
    *ours, moved = row_positions("table", table, sky_columns, forwards)
    backwards = None if epochs is None or moved else epochs[::-1]
    *theirs, moved_back = row_positions("other", other, other_sky_columns, backwards)
    if epochs is not None and not (moved or moved_back):
        msg = (
            "epochs are given, but neither table has proper motions: no coordinates "
            "with them and no columns pmra and pmdec."
        )
        raise ValueError(msg)
    return ours, theirs, ours[1]


class _Sky:
    """Matches of positions; the tree of the other catalogue is made once."""

    def __init__(self, ours, known, theirs, their_known, radius):
        from scipy.spatial import KDTree

        self.radius = radius
        # the chord, a little too long: angles decide
        self.chord = 2 * np.sin(radius.to_value(u.rad) / 2) * (1 + 1e-9) + 1e-15
        self.lonlat = [(c.ra.rad, c.dec.rad) for c in (ours, theirs)]
        self.rows = [np.flatnonzero(k) for k in (known, their_known)]
        self.points = [
            _unit_vectors(*lonlat)[rows] for lonlat, rows in zip(self.lonlat, self.rows)
        ]
        self.tree = KDTree(self.points[1]) if len(self.points[1]) else None
        self.ours = ours

    @functools.cached_property
    def counts(self):
        """How many rows of the other catalogue are within the radius."""
        counts = np.zeros(len(self.ours), dtype=np.int64)
        if self.tree is not None and len(self.rows[0]):
            counts[self.rows[0]] = self.tree.query_ball_point(
                self.points[0], self.chord, return_length=True
            )
        return counts

    def best(self, *, reverse=False):
        """The nearest row of the other catalogue for each of ours, or -1."""
        from scipy.spatial import KDTree

        one, other = (1, 0) if reverse else (0, 1)
        partners = np.full(len(self.lonlat[one][0]), -1)
        if len(self.rows[one]) and len(self.rows[other]):
            tree = KDTree(self.points[other]) if reverse else self.tree
            _, found = tree.query(self.points[one], distance_upper_bound=self.chord)
            hit = found < len(self.rows[other])
            partners[self.rows[one][hit]] = self.rows[other][found[hit]]
        return partners

    def pairs(self):
        """Rows and partners of all pairs, nearest first."""
        total = int(self.counts.sum())
        if total > _MAX_PAIRS:
            msg = (
                f"{total:,} pairs are within {self.radius}: more than {_MAX_PAIRS:,}. "
                "Choose a smaller radius, or match parts of the table."
            )
            raise ValueError(msg)
        rows, partners = [], []
        for start in range(0, len(self.rows[0]) if self.tree else 0, 10_000):
            block = slice(start, start + 10_000)
            found = self.tree.query_ball_point(self.points[0][block], self.chord)
            lengths = [len(one) for one in found]
            rows.append(np.repeat(self.rows[0][block], lengths))
            partners.append(self.rows[1][np.concatenate([*found, []]).astype(int)])
        empty = np.zeros(0, dtype=int)
        rows, partners = (np.concatenate([empty, *parts]) for parts in (rows, partners))
        order = np.lexsort((partners, self.separation(rows, partners), rows))
        return rows[order], partners[order]

    def separation(self, rows, partners):
        """Angles of pairs in arcseconds; NaN without a partner."""
        result = np.full(len(rows), np.nan)
        matched = partners >= 0
        (lon, lat), (their_lon, their_lat) = self.lonlat
        rows, partners = rows[matched], partners[matched]
        angles = angular_separation(
            lon[rows], lat[rows], their_lon[partners], their_lat[partners]
        )
        result[matched] = u.Quantity(angles, u.rad).to_value(u.arcsec)
        return result

    def chance(self, known):
        """The share of rows that match when all positions are shifted."""
        shares = []
        rows = np.flatnonzero(known)
        positions = self.ours[rows[:: len(rows) // _MAX_SHIFTED + 1]]
        for ring in _RINGS:
            for direction in range(_N_DIRECTIONS):
                if self.tree is None or not len(positions):
                    shares.append(0.0)
                    continue
                shifted = positions.directional_offset_by(
                    direction * 360 / _N_DIRECTIONS * u.deg, ring * self.radius
                )
                points = _unit_vectors(shifted.ra.rad, shifted.dec.rad)
                distance, _ = self.tree.query(points, distance_upper_bound=self.chord)
                shares.append(float(np.isfinite(distance).mean()))
        return {"chance_match_rate": float(np.mean(shares))}


class _Identifiers:
    """Matches of identifiers; the first of several is the best."""

    def __init__(self, ours, known, theirs, their_known):
        values, codes = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
        self.codes = codes[: len(ours)], codes[len(ours) :]
        self.known = known, their_known
        self.n_codes = len(values)

    def _first(self, side):
        """The first row with each identifier, or -1."""
        first = np.full(self.n_codes, -1)
        rows = np.flatnonzero(self.known[side])[::-1]
        first[self.codes[side][rows]] = rows
        return first

    @functools.cached_property
    def counts(self):
        """How many rows of the other catalogue have the identifier."""
        theirs = self.codes[1][self.known[1]]
        counts = np.bincount(theirs, minlength=self.n_codes)
        return np.where(self.known[0], counts[self.codes[0]], 0)

    def best(self, *, reverse=False):
        """The first row of the other catalogue with the identifier, or -1."""
        one, other = (1, 0) if reverse else (0, 1)
        if not self.n_codes:
            return np.zeros(0, dtype=int)
        return np.where(self.known[one], self._first(other)[self.codes[one]], -1)

    def pairs(self):
        """Rows and partners of all pairs, in the order of the catalogues."""
        theirs = np.flatnonzero(self.known[1])
        theirs = theirs[np.argsort(self.codes[1][theirs], kind="stable")]
        codes = self.codes[1][theirs]
        counts = self.counts
        rows = np.repeat(np.arange(len(counts)), counts)
        starts = np.searchsorted(codes, self.codes[0])
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, theirs[np.repeat(starts, counts) + within]

    def separation(self, rows, partners):
        """There is none."""
        return np.full(len(rows), np.nan)


def _ids(table, other, on):
    """A matcher of identifiers, which rows have one, and the columns."""
    columns = [on, on] if isinstance(on, str) else on
    if not isinstance(columns, (tuple, list)) or len(columns) != 2:
        msg = f"on must be a column, or one of each table, got {on!r}."
        raise ValueError(msg)
    ours, known = row_ids("table", table, columns[0])
    theirs, their_known = row_ids("other", other, columns[1])
    if (ours.dtype.kind == "U") != (theirs.dtype.kind == "U"):
        msg = (
            f"the ids {columns[0]!r} of table are {ours.dtype}, {columns[1]!r} of "
            f"other {theirs.dtype}. Make both integers, column.astype(np.int64), or "
            "both text, column.astype(str)."
        )
        raise ValueError(msg)
    if np.result_type(ours, theirs).kind == "f":
        # no integer type holds both: compare their digits
        ours, theirs = ours.astype(str), theirs.astype(str)
    return _Identifiers(ours, known, theirs, their_known), known, list(columns)


def _find(matcher, known, find):
    """Rows of the result, their partners (-1 if there is none), and separations."""
    rows = np.arange(len(known))
    if find == "all":
        pairs = matcher.pairs()
        alone = np.setdiff1d(rows, pairs[0])
        rows = np.concatenate([pairs[0], alone])
        partners = np.concatenate([pairs[1], np.full(len(alone), -1)])
        order = np.argsort(rows, kind="stable")
        rows, partners = rows[order], partners[order]
    else:
        partners = matcher.best()
        if find == "mutual":
            back = matcher.best(reverse=True)
            matched = np.flatnonzero(partners >= 0)
            lost = matched[back[partners[matched]] != matched]
            partners[lost] = -1
    return rows, partners, matcher.separation(rows, partners)


def _join(table, other, rows, partners, values, suffix, prefix):
    """The rows of one table with columns of the other, and the names of these."""
    reserved = {*table.colnames, *(prefix + name for name in values)}
    names = {n: n + suffix if n in reserved else n for n in other.colnames}
    taken = [prefix + name for name in values if prefix + name in table.colnames]
    taken += [new for new in names.values() if new in reserved]
    if len(set(names.values())) < len(names):
        taken += [new for old, new in names.items() if new != old]
    if taken:
        msg = (
            f"there are already columns {', '.join(taken)}. Give another suffix for "
            "columns of the other table, or a prefix for those of the match."
        )
        raise ValueError(msg)
    result = table[rows] if len(rows) else table[:0].copy()
    result.meta = copy.deepcopy(table.meta)
    for old, new in names.items():
        result[new] = _take(other[old], partners, old)
    vectors = {
        name: entry
        for name, entry in other.meta.get(KEY, {}).items()
        if not reserved & {name, *entry["columns"]}
    }
    if vectors:
        result.meta[KEY] = {**result.meta.get(KEY, {}), **vectors}
    quantity = isinstance(result, QTable)
    for name, array in values.items():
        spec = COLUMNS[name]
        mask = np.ma.getmaskarray(array)
        data = np.where(mask, 0, np.ma.getdata(array)).astype(spec.dtype)
        column = MaskedColumn(data, mask=mask) if mask.any() else Column(data)
        if spec.unit and quantity:
            column = u.Quantity(data, spec.unit)
            column = Masked(column, mask=mask) if mask.any() else column
        elif spec.unit:
            column.unit = spec.unit
        result[prefix + name] = column
        info = result[prefix + name].info
        info.description, info.meta = spec.description, {"ucd": spec.ucd}
    return result, names


def _take(column, partners, name):
    """Rows of a column; masked where there is none."""
    lost = partners < 0
    taken = column[np.where(lost, 0, partners)] if len(column) else _blank(column, lost)
    if len(column) and not lost.any():
        return taken
    shape = (len(lost),) + (1,) * (len(taken.shape) - 1)
    mask = np.broadcast_to(lost.reshape(shape), taken.shape)
    if isinstance(taken, Column):
        masked = MaskedColumn(taken, mask=mask | np.ma.getmaskarray(taken))
    elif isinstance(taken, u.Quantity):
        bare = getattr(taken, "unmasked", taken)
        masked = Masked(bare, mask=mask | getattr(taken, "mask", False))
    else:
        masked = _mask_mixin(taken.copy(), lost, name)
    masked.info.description = column.info.description
    masked.info.format = column.info.format
    masked.info.meta = copy.deepcopy(column.info.meta)
    return masked


def _blank(column, lost):
    """A column of the same kind, with a row for each that is lost."""
    zeros = np.zeros((len(lost), *column.shape[1:]), getattr(column, "dtype", float))
    if isinstance(column, u.Quantity):
        bare = getattr(column, "unmasked", column)
        return type(bare)(zeros, column.unit, dtype=column.dtype)
    if isinstance(column, Column):
        return Column(zeros, unit=column.unit)
    if isinstance(column, SkyCoord):
        data = column.data.without_differentials()
        units = {key: getattr(data, key).unit for key in data.components}
        data = type(data)(**{key: zeros * unit for key, unit in units.items()})
        return SkyCoord(column.frame.realize_frame(data))
    return type(column).info.new_like([column], len(lost), "silent")


def _mask_mixin(column, lost, name):
    """Mask rows of times, coordinates and the like."""
    try:
        column[lost] = np.ma.masked
    except (TypeError, ValueError, NotImplementedError) as error:
        if not isinstance(column, SkyCoord):
            msg = (
                f"column {name!r} of other, a {type(column).__name__}, cannot be "
                "masked in rows that match nothing. Remove or convert it."
            )
            raise ValueError(msg) from error
        # before astropy 7, coordinates have no masks
        data = column.data.without_differentials()
        values = {key: getattr(data, key).copy() for key in data.components}
        for value in values.values():
            value[lost] = np.nan * value.unit
        data = type(data)(**values).with_differentials(column.data.differentials)
        return SkyCoord(column.frame.realize_frame(data))
    return column


def _unit_vectors(lon, lat):
    """Points on the unit sphere, shape (n, 3)."""
    cos = np.cos(lat)
    return np.stack([cos * np.cos(lon), cos * np.sin(lon), np.sin(lat)], axis=-1)


def _record(result, other, names, prefix, suffix, record):
    """Write the provenance of the match, and that of the other table."""
    from astrovae import __version__

    meta = result.meta.setdefault("astrovae", {})
    meta.setdefault(prefix or "default", {})["crossmatch"] = {
        **record,
        "astrovae": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for key, steps in copy.deepcopy(other.meta.get("astrovae", {})).items():
        ours = meta.setdefault(key, {})
        for step, entry in steps.items():
            columns = entry.get("columns", [])
            renamed = [names.get(name, name) for name in columns]
            if "columns" in entry:
                entry["columns"] = renamed
            while step in ours or renamed != columns:
                step, columns = step + (suffix or "_2"), renamed
            ours[step] = entry
