# Licensed under a 3-clause BSD style license - see LICENSE
"""How often one model of a galaxy is better than another."""

import numpy as np
from astropy.stats import binom_conf_interval
from astropy.table import Table, vstack

from astrovae._sources import as_source
from astrovae._validation import check_option

__all__ = ["compare", "win_rates"]

# What columns begin with: of models, and of what they have to beat.
_MODELS = ("vae", "pca")
_BASELINES = ("gauss", "sersic", "pca")
# Galaxies at a time where the variance of every pixel is looked at.
_CHUNK = 1024
# A variance below so many times the floor is at the floor.
_AT_FLOOR = 2.0


def compare(
    inputs,
    model=None,
    baselines=None,
    *,
    rows=None,
    prefix="",
    confidence_level=0.95,
    show_progress=False,
):
    """
    Measure how often a model is better than each baseline, in one call.

    Parameters
    ----------
    inputs : `~astrovae.images.CutoutStack`, `~numpy.ndarray`, dict or \
`~astropy.table.Table`
        The galaxies, which should be held out of the training of model and
        baselines; or a catalogue that has the columns already, as made by
        `~astrovae.catalog.add_baselines`.
    model : object, optional
        Anything whose ``measure(stack)`` gives ``vae_mse`` and
        ``vae_log_like``, e.g. `~astrovae.models.VAE`. Without one, or if it
        is an `EigenGalaxies`, the principal components are the model.
    baselines : sequence of objects, optional
        Each with ``measure(stack)``; by default `GaussianFit`.
    rows : array_like of bool, optional
        The galaxies to count. Galaxies without both measurements never count.
    prefix : str, optional
        Prefix of the columns of a table.
    confidence_level : float, optional
        Of the Wilson intervals.
    show_progress : bool, optional
        Show progress bars.

    Returns
    -------
    rates : `~astropy.table.Table`
        The rows of `win_rates`, for each ``model`` and ``baseline``. Principal
        components are both: their squared errors are compared with those of
        the fits as well. ``floor_share`` is the share of valid pixels whose
        predicted variance is at the floor of the model's likelihood (below
        twice the floor), where a likelihood could be made large by a trick;
        NaN if the model learns no variance, or for a table.

    Raises
    ------
    ValueError
        If a table has no such columns, or model or baselines are given
        with a table.

    Examples
    --------
    >>> from astrovae.baselines import EigenGalaxies, GaussianFit, compare
    >>> from astrovae.datasets import make_galaxies
    >>> _, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> eigen = EigenGalaxies(8).fit(stack[:48])
    >>> rates = compare(stack[48:], eigen, [GaussianFit()])
    >>> rates["model", "baseline", "quantity", "background", "n"].pformat()[2:]
    ['  pca    gauss      mse      False  16', '  pca    gauss      mse       True  16']
    """
    floor = {}
    if isinstance(inputs, Table):
        if model is not None or baselines is not None:
            msg = (
                "a table has its columns already: model and baselines are for a "
                "stack. Use add_baselines(table, stack, baselines, model=model) to "
                "append them."
            )
            raise ValueError(msg)
        table = inputs
    else:
        if baselines is None:
            from astrovae.baselines.gaussian_fit import GaussianFit

            baselines = [GaussianFit()]
        arguments = {"show_progress": True} if show_progress else {}
        table = Table()
        for meter in (*([] if model is None else [model]), *baselines):
            for name, values in meter.measure(inputs, **arguments).items():
                table[prefix + name] = values
        floor = _floor_shares(model, as_source(inputs), rows)

    def known(name):
        return f"{prefix}{name}_mse" in table.colnames

    pairs = [
        (ours, theirs)
        for ours in filter(known, _MODELS)
        for theirs in filter(known, _BASELINES)
        if ours != theirs
    ]
    if not pairs:
        msg = (
            f"there is nothing to compare: need the columns {prefix}<name>_mse of a "
            f"model ({', '.join(_MODELS)}) and of a baseline "
            f"({', '.join(_BASELINES)}), got {table.colnames}."
        )
        raise ValueError(msg)
    tables = []
    for ours, theirs in pairs:
        rates = win_rates(
            table,
            rows=rows,
            prefix=prefix,
            model=ours,
            baseline=theirs,
            confidence_level=confidence_level,
        )
        rates.add_column(ours, name="model", index=0)
        rates.add_column(theirs, name="baseline", index=1)
        rates["floor_share"] = [
            floor.get(band, np.nan) if ours == "vae" else np.nan
            for band in rates["band"]
        ]
        tables.append(rates)
    return vstack(tables)


def _floor_shares(model, source, rows):
    """Share of the valid pixels whose variance is at the floor, by band."""
    likelihood = getattr(model, "likelihood", None)
    if not getattr(likelihood, "learn_variance", False):
        return {}
    scale = np.asarray(model.scale, dtype=float)
    floor = np.asarray(likelihood.floor(model.scale), dtype=float) * scale**2
    chosen = np.arange(len(source))
    if rows is not None:
        chosen = chosen[np.asarray(rows, dtype=bool)]
    low, valid = np.zeros((2, len(scale)))
    for start in range(0, len(chosen), _CHUNK):
        some = chosen[start : start + _CHUNK]
        # all chunks of one size are compiled once
        padded = np.pad(some, (0, min(_CHUNK, len(chosen)) - len(some)), mode="edge")
        batch = source.batch(padded)
        log_var = model.reconstruct(batch)["log_var"][: len(some)]
        good = np.logical_not(batch["mask"][: len(some)])
        at_floor = np.exp(log_var, dtype=float) < _AT_FLOOR * floor
        low += (at_floor & good).sum(axis=(0, 1, 2))
        valid += good.sum(axis=(0, 1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {-1: low.sum() / valid.sum()} | dict(enumerate(low / valid))


def win_rates(
    table,
    *,
    rows=None,
    prefix="",
    model="vae",
    baseline="gauss",
    confidence_level=0.95,
):
    """
    Count the galaxies that a model describes better than a fit does.

    Two questions, after Regier et al. 2015: is the squared error of the
    reconstruction smaller than that of the least-squares Gaussian; and is
    its likelihood larger than that of the Gaussian at its best constant
    sigma, and so at every constant sigma. Other baselines may take the
    Gaussian's place.

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
    model : {"vae", "pca"}, optional
        Whose columns to compare. Of principal components only the squared
        error is compared: their likelihood is that at the best sigma, too.
    baseline : {"gauss", "sersic", "pca"}, optional
        What to compare with.
    confidence_level : float, optional
        Of the Wilson intervals.

    Returns
    -------
    rates : `~astropy.table.Table`
        One row per ``quantity`` ("mse", "like"), ``background`` of the
        baseline, and ``band`` (its number, or -1 for all bands together),
        with ``n``, ``n_wins``, ``rate``, ``low`` and ``high``.

    Raises
    ------
    ValueError
        If the columns of squared errors are missing. Without likelihoods these
        are not compared.

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
    check_option("model", model, _MODELS)
    check_option("baseline", baseline, _BASELINES)
    questions = [("mse", "mse", -1), ("like", "log_like", 1)]
    result = Table(
        names=("quantity", "background", "band", "n", "n_wins", "rate", "low", "high"),
        dtype=("U4", bool, int, int, int, float, float, float),
    )
    for suffix in ("", "_background"):
        for quantity, column, sign in questions[: 1 + (model == "vae")]:
            names = f"{prefix}{model}_{column}", f"{prefix}{baseline}_{column}{suffix}"
            missing = [name for name in names if name not in table.colnames]
            if missing and not suffix and quantity == "mse":
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
