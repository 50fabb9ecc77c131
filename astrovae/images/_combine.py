# Licensed under a 3-clause BSD style license - see LICENSE
"""Several stacks as one, and stacks as tables."""

import json

import astropy.units as u
import numpy as np
from astropy.table import Table

__all__ = ["concatenate", "from_table", "to_table"]

_PLANES = ("data", "mask", "error", "segmentation")
_ROWS = (*_PLANES, "labels", "ids", "positions", "pose", "flags")
# pixel scales of images of one survey differ by less than this share
_SAME_SCALE = 1e-3
# a keyword of FITS
_META_KEY = "AVSTACK"


def concatenate(make, stacks):
    """
    Put stacks one after the other.

    Parameters
    ----------
    make : callable
        Makes a stack.
    stacks : iterable of `~astrovae.images.CutoutStack`
        At least one.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        In memory.

    Raises
    ------
    ValueError
        If there is none, or they do not fit together.
    """
    stacks = list(stacks)
    if not stacks:
        msg = "there is no stack to concatenate: give at least one."
        raise ValueError(msg)
    first = stacks[0]
    for stack in stacks[1:]:
        _check_alike(first, stack)
    joined = {}
    for name in _ROWS:
        values = [getattr(stack, name) for stack in stacks]
        if values[0] is not None:
            joined[name] = np.concatenate([np.asarray(value) for value in values])
    for name in first.columns:
        values = [stack.columns[name] for stack in stacks]
        joined.setdefault("columns", {})[name] = np.concatenate(values)
    joined["psf"] = _join_psfs(stacks)
    shared = {
        key: value
        for key, value in first.meta.items()
        if all(stack.meta.get(key) == value for stack in stacks)
    }
    return make(
        **joined,
        bands=first.bands,
        pixel_scale=first.pixel_scale,
        unit=first.unit,
        steps=first.steps,
        meta=shared,
    )


def _check_alike(first, other):
    """Refuse stacks that cannot be one."""
    for name in ("image_shape", "bands", "unit", "steps"):
        a, b = getattr(first, name), getattr(other, name)
        if a != b:
            msg = f"stacks cannot be concatenated: {name} is {a} and {b}."
            raise ValueError(msg)
    a, b = first.pixel_scale, other.pixel_scale
    alike = (a is None) == (b is None)
    if not alike or (a is not None and abs(a - b) > _SAME_SCALE * a):
        msg = f"stacks cannot be concatenated: pixel_scale is {a} and {b}."
        raise ValueError(msg)
    for name in (*_ROWS, "psf"):
        if (getattr(first, name) is None) != (getattr(other, name) is None):
            msg = (
                f"stacks cannot be concatenated: some have {name}, some have not. "
                f"Drop it with stack.replace({name}=None)."
            )
            raise ValueError(msg)
    if first.ids.dtype.kind != other.ids.dtype.kind and "U" in (
        first.ids.dtype.kind,
        other.ids.dtype.kind,
    ):
        msg = "stacks cannot be concatenated: some ids are strings, some integers."
        raise ValueError(msg)
    if set(first.columns) != set(other.columns):
        msg = (
            f"stacks cannot be concatenated: they have the columns "
            f"{sorted(first.columns)} and {sorted(other.columns)}."
        )
        raise ValueError(msg)


def _join_psfs(stacks):
    """PSFs of all cutouts, small ones with zeros around, or the one of all."""
    psfs = [stack.psf for stack in stacks]
    if psfs[0] is None:
        return None
    psfs = [np.asarray(psf) for psf in psfs]
    if all(len(psf) == 1 and np.array_equal(psf, psfs[0]) for psf in psfs):
        return psfs[0]
    sizes = {tuple(psf.shape[1:3]) for psf in psfs}
    if len({size % 2 for pair in sizes for size in pair}) > 1:
        msg = f"PSFs of odd and even sizes, {sorted(sizes)}, have no common centre."
        raise ValueError(msg)
    largest = np.max(list(sizes), axis=0)
    out = []
    for psf, stack in zip(psfs, stacks, strict=True):
        around = [(int(n) // 2,) * 2 for n in largest - psf.shape[1:3]]
        wide = np.pad(psf, [(0, 0), *around, (0, 0)])
        out.append(np.broadcast_to(wide, (len(stack), *wide.shape[1:])))
    return np.concatenate(out)


def to_table(stack):
    """The stack as a table with image columns; see `CutoutStack.to_table`."""
    table = Table()
    names = ("ids", *_PLANES, "labels", "flags", "positions", "pose")
    for name in names:
        value = getattr(stack, name)
        if value is None:
            continue
        value = np.asarray(value)
        column = {"ids": "id", "data": "image"}.get(name, name)
        if name == "pose":
            for field in value.dtype.names:
                table[f"stack_pose_{field}"] = value[field]
            continue
        table[column] = value.copy()
        if name in ("data", "error") and stack.unit is not None:
            table[column].unit = stack.unit
    record = stack.preprocessing | {"meta": stack.meta, "columns": []}
    if stack.psf is not None:
        # a table has as many PSFs as rows
        psf = np.asarray(stack.psf)
        record["shared_psf"] = len(psf) == 1
        table["psf"] = np.broadcast_to(psf, (len(stack), *psf.shape[1:])).copy()
    for name, values in stack.columns.items():
        if name in table.colnames:
            msg = f"the column {name!r} of the stack has the name of one of its planes."
            raise ValueError(msg)
        table[name] = values.copy()
        record["columns"].append(name)
    table.meta[_META_KEY] = json.dumps(record)
    return table


def from_table(make, table, options):
    """A stack from a table; see `CutoutStack.from_table`."""
    if "image" not in table.colnames:
        msg = (
            "the table must have a column 'image' of shape (n, ny, nx) or "
            f"(n, ny, nx, n_bands); its columns are {table.colnames}."
        )
        raise ValueError(msg)
    record = json.loads(table.meta.get(_META_KEY, "{}"))
    values = {}
    for name in (*_ROWS, "psf"):
        column = {"ids": "id", "data": "image"}.get(name, name)
        if column in table.colnames:
            values[name] = _plain(table[column])
    if record.get("shared_psf") and len(table):
        values["psf"] = values["psf"][:1]
    poses = [name for name in table.colnames if name.startswith("stack_pose_")]
    if poses:
        pose = np.zeros(len(table), [(name[11:], float) for name in poses])
        for name in poses:
            pose[name[11:]] = _plain(table[name])
        values["pose"] = pose
    elif {"pose_x", "pose_y", "pose_angle"} <= set(table.colnames):
        values["pose"] = table
    values["columns"] = {
        name: _plain(table[name]) for name in record.get("columns", ())
    }
    for name in ("bands", "pixel_scale", "unit", "steps", "meta"):
        if name in record:
            values[name] = record[name]
    unit = table["image"].unit
    if unit is not None:
        values["unit"] = u.Unit(unit)
    return make(**(values | options))


def _plain(column):
    """The values of a column; masked ones as NaN, if they can be."""
    if hasattr(column, "unmasked"):
        column = np.ma.array(
            getattr(column.unmasked, "value", column.unmasked), mask=column.mask
        )
    values = np.ma.asarray(getattr(column, "value", column))
    if np.ma.is_masked(values) and values.dtype.kind == "f":
        return values.filled(np.nan)
    return np.array(values.data)
