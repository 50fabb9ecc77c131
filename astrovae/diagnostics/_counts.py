# Licensed under a 3-clause BSD style license - see LICENSE
"""Tables of counts from two columns of any kind, and what follows from them."""

import numpy as np
from scipy.special import xlogy

__all__ = [
    "OCCUPIED_SHARE",
    "adjusted_rand",
    "count_pairs",
    "information_of",
    "mask_of",
    "number_values",
    "plain_values",
    "read_both",
    "read_values",
    "share_of",
]

# a component with a smaller share of the galaxies is as good as empty
OCCUPIED_SHARE = 0.02


def plain_values(values):
    """Values of a column of any kind, without mask and unit."""
    values = getattr(values, "unmasked", values)  # a masked Quantity
    return np.asarray(np.ma.getdata(getattr(values, "value", values)))


def mask_of(values):
    """Mask of a column of any kind, or False."""
    mask = getattr(values, "mask", False)
    return False if callable(mask) else mask  # a method of pandas


def read_values(name, values):
    """Values and which of them are known, each of shape (n,)."""
    data = plain_values(values)
    if data.ndim != 1:
        msg = f"{name} must have the shape (n,), got {data.shape}."
        raise ValueError(msg)
    known = ~np.broadcast_to(np.asarray(mask_of(values), dtype=bool), data.shape)
    if data.dtype.kind == "f":
        known &= np.isfinite(data)
    elif data.dtype.kind == "O":
        # None, and NaN, which is no equal of itself
        known &= np.array([x is not None and x == x for x in data], dtype=bool)
    return data, known


def read_both(name, values, other_name, others):
    """Values of the rows in which both are known."""
    (one, known), (other, other_known) = (
        read_values(name, values),
        read_values(other_name, others),
    )
    if len(one) != len(other):
        msg = (
            f"{name} and {other_name} must be those of the same galaxies, got "
            f"{len(one)} and {len(other)}."
        )
        raise ValueError(msg)
    both = known & other_known
    return one[both], other[both]


def number_values(*parts):
    """Numbers from 0 for the values of all parts, one after the other, and how many."""
    parts = [np.asarray(part) for part in parts if len(part)]
    if not parts:
        return np.zeros(0, int), 0
    parts = [part.astype(str) if part.dtype.kind == "S" else part for part in parts]
    kinds = {part.dtype.kind for part in parts}
    if "U" in kinds and len(kinds - {"O"}) > 1:
        found = " and ".join(sorted({str(part.dtype) for part in parts}))
        msg = f"labels or classes are text here and numbers there: got {found}."
        raise TypeError(msg)
    if len(kinds) == 1 and "O" not in kinds:
        distinct, codes = np.unique(np.concatenate(parts), return_inverse=True)
        return codes, len(distinct)
    # of several types: Python compares them without loss of digits
    values = [value for part in parts for value in part.tolist()]
    numbers = dict.fromkeys(values)
    try:
        numbers = sorted(numbers)
    except TypeError:  # not of one kind
        numbers = list(numbers)
    numbers = {value: number for number, value in enumerate(numbers)}
    return np.array([numbers[value] for value in values]), len(numbers)


def count_pairs(rows, columns, shape):
    """How many galaxies there are in each cell."""
    cells = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return cells.reshape(shape)


def information_of(tables):
    """Mutual information and the two entropies in nats, of tables (..., K, C)."""
    shares = tables / tables.sum(axis=(-2, -1), keepdims=True)
    entropies = [
        -xlogy(part, part).sum(axis=-1)
        for part in (shares.sum(axis=-1), shares.sum(axis=-2))
    ]
    joint = -xlogy(shares, shares).sum(axis=(-2, -1))
    return np.maximum(sum(entropies) - joint, 0.0), *entropies


def share_of(part, whole):
    """Part of a whole; all of it, if there is nothing to know."""
    return np.where(whole > 1e-12, part / np.where(whole > 1e-12, whole, 1.0), 1.0)


def adjusted_rand(tables):
    """Adjusted Rand index of contingency tables, shape (..., K, C)."""
    tables = tables.astype(float)

    def pairs(counts, axis):
        return (counts * (counts - 1.0)).sum(axis=axis) / 2.0

    together = pairs(tables, (-2, -1))
    in_cluster, in_class = (pairs(tables.sum(axis=axis), -1) for axis in (-1, -2))
    every = pairs(tables.sum(axis=(-2, -1))[..., None], -1)
    expected = in_cluster * in_class / np.maximum(every, 1.0)
    most = 0.5 * (in_cluster + in_class)
    gain = most > expected
    spread = np.where(gain, most - expected, 1.0)
    return np.where(gain, (together - expected) / spread, 1.0)
