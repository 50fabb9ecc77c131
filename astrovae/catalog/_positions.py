# Licensed under a 3-clause BSD style license - see LICENSE
"""Where the rows of a table are on the sky, and what identifies them."""

import re
import warnings

import astropy.units as u
import numpy as np
from astropy.coordinates import Angle, SkyCoord
from erfa import ErfaWarning

__all__ = ["row_ids", "row_positions"]

_SKY_NAMES = (
    ("ra", "dec"),
    ("ra_icrs", "de_icrs"),
    ("raj2000", "dej2000"),
    ("alpha_j2000", "delta_j2000"),
)
_SEXAGESIMAL = re.compile(r"([+-]?)(\d+)[: ](\d+)[: ](\d+\.?\d*)")
_MOTION_NAMES = ("pmra", "pmdec")


def row_positions(name, table, columns, epochs=None):
    """
    Find the positions of the rows of a table.

    Parameters
    ----------
    name : str
        What to call the table in errors.
    table : `~astropy.table.Table`
        The table.
    columns : str, tuple of str or None
        The column with coordinates, or those of right ascension and
        declination; `None` finds them.
    epochs : tuple of `~astropy.time.Time`, optional
        The epoch of the positions, and the one to move them to.

    Returns
    -------
    positions : `~astropy.coordinates.SkyCoord`, shape (n,)
        In ICRS; where nothing is known, at the origin.
    known : `~numpy.ndarray` of bool, shape (n,)
        Whether the row has a position.
    moved : bool
        Whether the rows have proper motions, and were moved.

    Raises
    ------
    ValueError
        If there are no such columns, or they hold no angles.
    """
    columns = (columns,) if isinstance(columns, str) else columns
    columns = _find_columns(name, table) if columns is None else tuple(columns)
    missing = [column for column in columns if column not in table.colnames]
    if missing or len(columns) not in (1, 2):
        msg = (
            f"{name} has the columns {table.colnames}: name one with coordinates or "
            f"two with right ascension and declination, got {columns}."
        )
        raise ValueError(msg)
    motion = None
    if len(columns) == 1:
        coords = table[columns[0]]
        if not isinstance(coords, SkyCoord):
            msg = (
                f"column {columns[0]!r} of {name} is not a SkyCoord. Name the columns "
                "of right ascension and declination."
            )
            raise ValueError(msg)
        motion = _motion_of(coords)
        if motion is not None and epochs is None:
            coords = SkyCoord(coords.data.without_differentials(), frame=coords.frame)
        coords = coords.icrs
        if motion is not None:
            motion = _motion_of(coords) if epochs is not None else motion
        ra, dec = (_degrees(angle) for angle in (coords.ra, coords.dec))
    else:
        ra = _angles(name, table[columns[0]], columns[0], hours=True)
        dec = _angles(name, table[columns[1]], columns[1], hours=False)
        if epochs is not None:
            motion = _motion_columns(table)
    known = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    positions = SkyCoord(np.where(known, ra, 0), np.where(known, dec, 0), unit=u.deg)
    moved = epochs is not None and motion is not None
    if moved:
        positions = _move(positions, motion, known, epochs)
    return positions, known, moved


def _find_columns(name, table):
    """The columns with positions, by type, then by name in any case."""
    coords = [c for c in table.colnames if isinstance(table[c], SkyCoord)]
    if len(coords) == 1:
        return tuple(coords)
    if len(coords) > 1:
        msg = f"{name} has several coordinates, {coords}: name one."
        raise ValueError(msg)
    lower = {column.lower(): column for column in reversed(table.colnames)}
    lower |= {column: column for column in table.colnames if column.islower()}
    for pair in _SKY_NAMES:
        if all(column in lower for column in pair):
            return tuple(lower[column] for column in pair)
    looked = ", ".join(f"{a}/{b}" for a, b in _SKY_NAMES)
    msg = (
        f"{name} has no positions: looked for a SkyCoord and for {looked}, found the "
        f"columns {table.colnames}. Name them as sky_columns or other_sky_columns."
    )
    raise ValueError(msg)


def _angles(name, column, label, *, hours):
    """A column in degrees; NaN where it is masked."""
    unit = column.info.unit
    column = _filled_text(column) if column.dtype.kind in "OUS" else column
    if column.dtype.kind in "US":
        values = np.full(len(column), np.nan)
        texts = np.char.strip(column)
        filled = texts != ""
        bare = [text for text in texts if re.fullmatch(r"[+-]?\d+\.?\d*", text)]
        if bare:
            msg = (
                f"column {label!r} of {name} has the text {str(bare[0])!r}: hours or "
                "degrees? Convert it to numbers with a unit."
            )
            raise ValueError(msg)
        try:
            values[filled] = _sexagesimal(texts[filled], hours=hours)
        except (ValueError, u.UnitsError) as error:
            msg = (
                f"column {label!r} of {name} has text that is no sexagesimal angle "
                f"({error})."
            )
            raise ValueError(msg) from error
        return values
    values = _floats(column)
    if values is None or values.ndim != 1:
        msg = (
            f"column {label!r} of {name} must hold one number per row, got "
            f"{column.dtype} of shape {column.shape}."
        )
        raise ValueError(msg)
    unit = u.deg if unit is None or unit == u.dimensionless_unscaled else unit
    try:
        return u.Quantity(values, unit).to_value(u.deg)
    except u.UnitConversionError as error:
        msg = f"column {label!r} of {name} must be an angle, its unit is {unit}."
        raise ValueError(msg) from error


def _sexagesimal(texts, *, hours):
    """Degrees of angles like 12:30:00.1; astropy takes a minute for a million."""
    matches = [_SEXAGESIMAL.fullmatch(text) for text in texts]
    if not all(matches):
        return Angle(texts, unit=u.hourangle if hours else u.deg).deg
    parts = np.array([match.groups() for match in matches]).reshape(-1, 4)
    sign = np.where(parts[:, 0] == "-", -1, 1)
    whole, minutes, seconds = parts[:, 1:].astype(float).T
    if (minutes >= 60).any() or (seconds > 60).any():
        msg = "minutes or seconds beyond 60"
        raise ValueError(msg)
    return sign * (whole + minutes / 60 + seconds / 3600) * (15 if hours else 1)


def _filled_text(column):
    """Text without masks."""
    data = np.where(np.ma.getmaskarray(column), "", np.ma.getdata(column))
    if data.dtype.kind == "O" and not all(isinstance(v, (str, bytes)) for v in data):
        return data
    return np.char.decode(data, "ascii") if data.dtype.kind == "S" else data.astype(str)


def _floats(column):
    """Plain numbers; masked ones NaN."""
    bare = getattr(column, "unmasked", column)
    data = np.asarray(np.ma.getdata(getattr(bare, "value", bare)))
    if data.dtype.kind not in "iuf":
        return None
    data = data.astype(float)
    data[np.broadcast_to(getattr(column, "mask", False), data.shape)] = np.nan
    return data


def _degrees(angle):
    """A coordinate in degrees; NaN where it is masked."""
    values = np.atleast_1d(np.array(getattr(angle, "unmasked", angle).deg, dtype=float))
    values[np.broadcast_to(getattr(angle, "mask", False), values.shape)] = np.nan
    return values


def _motion_of(coords):
    """Proper motions of coordinates, in mas/yr, or None."""
    if "s" not in coords.data.differentials:
        return None
    icrs = coords.icrs
    return [
        _floats(np.atleast_1d(m.to(u.mas / u.yr)))
        for m in (icrs.pm_ra_cosdec, icrs.pm_dec)
    ]


def _motion_columns(table):
    """Columns of proper motions, in mas/yr, or None."""
    lower = {column.lower(): column for column in table.colnames}
    if not all(name in lower for name in _MOTION_NAMES):
        return None
    motion = []
    for name in _MOTION_NAMES:
        column = table[lower[name]]
        unit = column.info.unit or u.mas / u.yr
        if not unit.is_equivalent(u.mas / u.yr):
            msg = f"column {lower[name]!r} must be a proper motion, its unit is {unit}."
            raise ValueError(msg)
        motion.append(u.Quantity(_floats(column), unit).to_value(u.mas / u.yr))
    return motion


def _move(positions, motion, known, epochs):
    """Positions at another epoch; those without a proper motion stay."""
    moving = known & np.isfinite(motion[0]) & np.isfinite(motion[1])
    ra, dec = positions.ra.deg.copy(), positions.dec.deg.copy()
    start = SkyCoord(
        positions[moving].ra,
        positions[moving].dec,
        pm_ra_cosdec=motion[0][moving] * u.mas / u.yr,
        pm_dec=motion[1][moving] * u.mas / u.yr,
        obstime=epochs[0],
    )
    with warnings.catch_warnings():
        # without a distance, motion along the line of sight is not known
        warnings.simplefilter("ignore", ErfaWarning)
        end = start.apply_space_motion(new_obstime=epochs[1])
    ra[moving], dec[moving] = end.ra.deg, end.dec.deg
    return SkyCoord(ra, dec, unit=u.deg)


def row_ids(name, table, column):
    """
    Identifiers of the rows, and which rows have one.

    Raises
    ------
    ValueError
        If there is no such column, or it holds neither integers nor text.
    """
    if column not in table.colnames:
        msg = f"{name} has no column {column!r}; its columns are {table.colnames}."
        raise ValueError(msg)
    values = table[column]
    mask = np.broadcast_to(getattr(values, "mask", False), values.shape)
    data = np.asarray(np.ma.getdata(getattr(values, "unmasked", values)))
    if data.dtype.kind in "OS":
        text = _filled_text(values)
        data = text if text.dtype.kind == "U" else data
    if data.dtype.kind == "f":
        msg = (
            f"the ids in column {column!r} of {name} are floats, which cannot hold "
            "integers beyond 2**53: neighbouring ids are the same number. Read the "
            "column as int64 or text."
        )
        raise ValueError(msg)
    if data.dtype.kind not in "iuU" or data.ndim != 1:
        msg = (
            f"the ids in column {column!r} of {name} must be integers or text, got "
            f"{data.dtype} of shape {data.shape}."
        )
        raise ValueError(msg)
    known = ~mask
    if data.dtype.kind == "U":
        known &= data != ""
    return data, known
