# Licensed under a 3-clause BSD style license - see LICENSE
"""How often one model of a galaxy is better than another."""

import numpy as np
from astropy.stats import binom_conf_interval
from astropy.table import Table

__all__ = ["win_rates"]


def win_rates(table, *, rows=None, prefix="", confidence_level=0.95):
    """
    Count the galaxies that the model describes better than the Gaussian.

    Two questions, after Regier et al. 2015: is the squared error of the
    reconstruction smaller than that of the least-squares Gaussian; and is
    its likelihood larger than that of the Gaussian at its best constant
    sigma, and so at every constant sigma.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A catalogue with ``vae_*`` and ``gauss_*`` columns, as made by
        `~astrovae.catalog.add_reconstruction` and
        `~astrovae.catalog.add_baselines`.
    rows : array_like of bool, optional
        The galaxies to count, e.g. those held out of training. Galaxies
        without both measurements never count.
    prefix : str, optional
        Prefix of the columns.
    confidence_level : float, optional
        Of the Wilson intervals.

    Returns
    -------
    rates : `~astropy.table.Table`
        One row per ``quantity`` ("mse", "like"), ``background`` of the
        Gaussian, and ``band`` (its number, or -1 for all bands together),
        with ``n``, ``n_wins``, ``rate``, ``low`` and ``high``.

    Raises
    ------
    ValueError
        If the columns are missing.

    References
    ----------
    Regier et al. 2015; Wilson 1927, JASA 22, 209, for the interval.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from astrovae.baselines import win_rates
    >>> table = Table({"vae_mse": [1.0, 2.0], "gauss_mse": [1.5, 1.0]})
    >>> table["vae_log_like"] = [0.0, 1.0]
    >>> table["gauss_log_like"] = [-1.0, 0.0]
    >>> rates = win_rates(table)
    >>> rates["quantity", "n", "rate"].pformat(show_unit=False)[2:]
    ['     mse   2  0.5', '    like   2  1.0']
    """
    result = Table(
        names=("quantity", "background", "band", "n", "n_wins", "rate", "low", "high"),
        dtype=("U4", bool, int, int, int, float, float, float),
    )
    for suffix in ("", "_background"):
        for quantity, column, sign in (("mse", "mse", -1), ("like", "log_like", 1)):
            names = f"{prefix}vae_{column}", f"{prefix}gauss_{column}{suffix}"
            missing = [name for name in names if name not in table.colnames]
            if missing and not suffix:
                msg = (
                    f"the table has no {' and no '.join(missing)}; "
                    "add_baselines(table, stack, model=model) appends them."
                )
                raise ValueError(msg)
            if missing:
                continue
            ours, theirs = (_values(table[name]) for name in names)
            gain = sign * (ours - theirs)
            if rows is not None:
                gain = gain[np.asarray(rows, dtype=bool)]
            bands = {-1: gain.sum(axis=1)}
            if gain.shape[1] > 1:
                bands |= dict(enumerate(gain.T))
            for band, values in bands.items():
                measured = np.isfinite(values)
                n, n_wins = int(measured.sum()), int((values[measured] > 0).sum())
                rate, (low, high) = np.nan, (np.nan, np.nan)
                if n:
                    rate = n_wins / n
                    low, high = binom_conf_interval(
                        n_wins, n, confidence_level, interval="wilson"
                    )
                result.add_row(
                    (quantity, bool(suffix), band, n, n_wins, rate, low, high)
                )
    return result


def _values(column):
    """Values as floats of shape (n, n_bands), masked ones NaN."""
    values = getattr(column, "unmasked", column)
    data = np.array(np.ma.getdata(getattr(values, "value", values)), dtype=float)
    data[np.broadcast_to(getattr(column, "mask", False), data.shape)] = np.nan
    return data[:, np.newaxis] if data.ndim == 1 else data
