# Licensed under a 3-clause BSD style license - see LICENSE
"""Read columns of any kind as plain floats, what is missing being NaN."""

import astropy.units as u
import numpy as np

from astrovae._validation import read_array

__all__ = [
    "read_latents",
    "read_nuisances",
    "read_number",
    "read_weights",
    "unit_of",
]


def unit_of(column):
    """The unit of a column of any kind, or None."""
    return getattr(column, "unit", None)


def read_number(table, name):
    """A column with one number per row, shape (n,)."""
    data = read_array(table, name)
    if data.ndim != 1:
        msg = (
            f"the column {name!r} must have one number per row, got the shape "
            f"{data.shape[1:]}. Take its elements apart with "
            "astrovae.catalog.split_vectors."
        )
        raise ValueError(msg)
    return data


def read_latents(table, latents):
    """A vector column, or several columns side by side, shape (n, latent_dim)."""
    names = [latents] if isinstance(latents, str) else list(latents)
    if not names:
        msg = "latents must name a column of vectors, or columns; got none."
        raise ValueError(msg)
    if names == ["latent_mean"] and "latent_mean" not in table.colnames:
        msg = (
            "the table has no column 'latent_mean'. Append it with "
            "astrovae.catalog.add_latents, or say which columns are the latents."
        )
        raise ValueError(msg)
    arrays = [read_array(table, name) for name in names]
    return np.concatenate(
        [
            array.reshape(len(table), np.prod(array.shape[1:], dtype=int))
            for array in arrays
        ],
        axis=1,
    )


def read_nuisances(table, names):
    """
    Columns of numbers; a direction becomes its cosine and sine, and those of twice it.

    Returns
    -------
    values : `~numpy.ndarray`, shape (n, n_columns)
        The columns side by side.
    owner : `~numpy.ndarray` of int, shape (n_columns,)
        Which of the names a column belongs to.
    """
    columns, owner = [], []
    for index, name in enumerate(names):
        values = read_number(table, name)
        unit = unit_of(table[name])
        if unit in (u.deg, u.rad):
            angle = values * unit.to(u.rad)
            parts = [f(k * angle) for k in (1, 2) for f in (np.cos, np.sin)]
        else:
            parts = [values]
        columns += parts
        owner += len(parts) * [index]
    values = np.stack(columns, axis=1) if columns else np.empty((len(table), 0))
    return values, np.array(owner, dtype=int)


def read_weights(table, weights):
    """Weights of the rows, 0 for those that do not count."""
    if weights is None:
        return np.ones(len(table))
    if isinstance(weights, str):
        values = read_number(table, weights)
    else:
        values = getattr(weights, "unmasked", weights)  # a masked Quantity
        values = np.array(np.ma.getdata(values), dtype=np.float64)
        if values.shape != (len(table),):
            msg = (
                f"weights must be a column or have the shape ({len(table)},), got "
                f"{values.shape}."
            )
            raise ValueError(msg)
        values[np.broadcast_to(getattr(weights, "mask", False), values.shape)] = np.nan
    if (values < 0).any():
        msg = f"weights must not be negative, got {np.nanmin(values)}."
        raise ValueError(msg)
    return np.where(np.isfinite(values), values, 0.0)
