# Licensed under a 3-clause BSD style license - see LICENSE
"""
Append what models and fits say about galaxies to their catalogue.

Each function takes a table and returns a new one: rows in the same order,
none lost, the columns and metadata of the input untouched. A row that
cannot be measured is masked and flagged.
"""

import copy
import itertools
import warnings
from datetime import UTC, datetime

import astropy.units as u
import numpy as np
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

from astrovae._validation import check_option
from astrovae.catalog.columns import BASELINES, COLUMNS
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag

__all__ = ["add_baselines", "add_latents", "add_pose", "add_reconstruction", "annotate"]

_STEPS = ("latents", "reconstruction", "baselines")


def add_latents(
    table, model, stack, *, prefix="", overwrite=False, show_progress=False
):
    """
    Append latent means and uncertainties.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    model : object
        Anything with ``encode(stack) -> (mean, log_var)``, e.g.
        `~astrovae.models.VAE`. ``log_var`` may be `None`.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    show_progress : bool, optional
        Show a progress bar, if the model has one.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``latent_mean``, ``latent_sigma`` (each
        ``(n, latent_dim)``) and ``latent_flags``. Rows without a valid pixel
        are masked.

    Raises
    ------
    ValueError
        If columns exist and ``overwrite`` is false, or table and stack do
        not belong together.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> truth, stack = make_galaxies(8, shape=(16, 16), seed=1)
    >>> table = add_latents(truth, VAE(stack.image_shape, latent_dim=2), stack)
    >>> table["latent_mean"].shape
    (8, 2)
    """
    _check_rows(table, stack)
    _check_new(
        table, ("latent_mean", "latent_sigma", "latent_flags"), prefix, overwrite
    )
    arguments = {"show_progress": True} if show_progress else {}
    mean, log_var = model.encode(stack, **arguments)
    mean = np.asarray(mean, dtype=np.float32)
    if len(mean) != len(table):
        msg = f"the model encoded {len(mean)} galaxies of {len(table)}."
        raise ValueError(msg)
    bad = _unmeasured(stack)
    flags = np.array(stack.flags)
    failed = ~bad & ~np.isfinite(mean).all(axis=1)
    flags[failed] |= Flag.NO_RESULT
    bad |= failed
    sigma = np.full_like(mean, np.nan)
    if log_var is not None:
        sigma = np.exp(0.5 * np.asarray(log_var, dtype=np.float32))
    values = {
        "latent_mean": np.where(bad[:, None], np.nan, mean),
        "latent_sigma": np.where(bad[:, None], np.nan, sigma),
        "latent_flags": flags,
    }
    return _append(table, values, stack, prefix, "latents", _model_record(model))


def add_pose(table, stack, *, prefix="", overwrite=False):
    """
    Append where each galaxy lies in its cutout, and how it is turned.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    stack : `~astrovae.images.CutoutStack`
        The cutouts, with a pose, e.g. from `~astrovae.images.measure_pose`.
    prefix : str, optional
        Put before every column name.
    overwrite : bool, optional
        Replace existing columns.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``pose_x``, ``pose_y``, ``pose_angle``, ``pose_flip``,
        ``pose_size`` and ``pose_axis_ratio``, all but the flip with errors,
        and ``pose_flags``. Rows whose pose could not be measured are masked.

    Raises
    ------
    ValueError
        As for `add_latents`, or if the stack has no pose.

    Examples
    --------
    >>> from astrovae.catalog import add_pose
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import measure_pose
    >>> truth, stack = make_galaxies(8, shape=(16, 16), seed=1)
    >>> table = add_pose(truth, measure_pose(stack))
    >>> table["pose_angle"].unit
    Unit("deg")
    """
    _check_rows(table, stack)
    values = stack.pose_columns
    if not values:
        msg = "the stack has no pose. Call astrovae.images.measure_pose(stack) first."
        raise ValueError(msg)
    _check_new(table, values, prefix, overwrite)
    return _append(table, values, stack, prefix, "pose", {})


def add_reconstruction(
    table, model, stack, *, prefix="", overwrite=False, show_progress=False
):
    """
    Append how well a model describes each galaxy.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    model : object
        Anything whose ``measure(stack)`` gives columns by name, e.g.
        `~astrovae.models.VAE`.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``vae_elbo``, ``vae_kl``, ``vae_mse``, ``vae_chi2`` and
        ``vae_log_like``.

    Raises
    ------
    ValueError
        As for `add_latents`.
    """
    table = _add_measured(
        table, model, stack, prefix, overwrite, show_progress, "reconstruction"
    )
    if any(f"{prefix}vae_beats_{name}_mse" in table.colnames for name in BASELINES):
        # those were of the model whose columns have just been replaced
        table = _add_wins(table, stack, prefix, overwrite=True)
    return table


def add_baselines(
    table,
    stack,
    baselines=None,
    *,
    model=None,
    prefix="",
    overwrite=False,
    show_progress=False,
):
    """
    Append the fits that a model has to beat.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    baselines : sequence of objects, optional
        Each with ``measure(stack)``; by default
        `~astrovae.baselines.GaussianFit`.
    model : object, optional
        A model to compare with. Its ``measure`` columns are added if the
        table does not have them yet.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with the columns of the baselines and, if ``vae_mse`` and
        ``vae_log_like`` are known, ``vae_beats_gauss_*``, and likewise for
        the other baselines that the table has.

    Raises
    ------
    ValueError
        As for `add_latents`.
    """
    if baselines is None:
        from astrovae.baselines import GaussianFit

        baselines = [GaussianFit()]
    known = f"{prefix}vae_mse" in table.colnames
    if model is not None and (overwrite or not known):
        table = add_reconstruction(
            table,
            model,
            stack,
            prefix=prefix,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    for baseline in baselines:
        table = _add_measured(
            table, baseline, stack, prefix, overwrite, show_progress, "baselines"
        )
    return _add_wins(table, stack, prefix, overwrite)


def annotate(
    table,
    model,
    stack,
    *,
    what=_STEPS,
    baselines=None,
    prefix="",
    overwrite=False,
    show_progress=False,
):
    """
    Append everything at once, preparing the cutouts as the model needs.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    model : object
        Anything with ``encode(stack)`` and ``measure(stack)``, e.g.
        `~astrovae.models.VAE`.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    what : sequence of {"latents", "reconstruction", "baselines"}, optional
        What to append.
    baselines : sequence of objects, optional
        Each with ``measure(stack)``; by default
        `~astrovae.baselines.GaussianFit`.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with the columns.

    Raises
    ------
    ValueError
        As for `add_latents`; `~astrovae.exceptions.PreprocessingError` if the
        cutouts cannot be prepared as those that the model was trained on.
    """
    what = (what,) if isinstance(what, str) else tuple(what)
    for step in what:
        check_option("what", step, _STEPS)
    _check_rows(table, stack)
    stack = stack.prepare(getattr(model, "preprocessing", None))
    options = {
        "prefix": prefix,
        "overwrite": overwrite,
        "show_progress": show_progress,
    }
    if "latents" in what:
        table = add_latents(table, model, stack, **options)
    if "reconstruction" in what:
        table = add_reconstruction(table, model, stack, **options)
    if "baselines" in what:
        table = add_baselines(table, stack, baselines, **options)
    return table


def _add_measured(table, meter, stack, prefix, overwrite, show_progress, step):
    """Append the columns that ``meter.measure(stack)`` gives."""
    _check_rows(table, stack)
    arguments = {"show_progress": True} if show_progress else {}
    values = meter.measure(stack, **arguments)
    _check_new(table, values, prefix, overwrite)
    bad = _unmeasured(stack)
    for name, array in values.items():
        if array.dtype.kind == "f":
            values[name] = array = array.copy()
            array[bad] = np.nan
    return _append(table, values, stack, prefix, step, _model_record(meter))


def _add_wins(table, stack, prefix, overwrite):
    """Append which galaxies the model describes better than each baseline."""
    values = {}
    for baseline, suffix, (quantity, sign) in itertools.product(
        BASELINES, ("", "_background"), (("mse", -1), ("log_like", 1))
    ):
        ours = f"{prefix}vae_{quantity}"
        theirs = f"{prefix}{baseline}_{quantity}{suffix}"
        name = f"vae_beats_{baseline}_{quantity.replace('log_', '')}{suffix}"
        if ours not in table.colnames or theirs not in table.colnames:
            continue
        if prefix + name in table.colnames and not overwrite:
            continue  # neither side has changed
        gain = sign * (_plain(table[ours]) - _plain(table[theirs]))
        values[name] = np.ma.array(gain > 0, mask=np.isnan(gain))
    if not values:
        return table
    _check_new(table, values, prefix, overwrite)
    return _append(table, values, stack, prefix, "wins", {})


def _plain(column):
    """Values of a column of any kind as floats, masked ones NaN."""
    values = getattr(column, "unmasked", column)  # a masked Quantity
    data = np.array(np.ma.getdata(getattr(values, "value", values)), dtype=float)
    data[np.broadcast_to(getattr(column, "mask", False), data.shape)] = np.nan
    return data


def _unmeasured(stack):
    return (np.asarray(stack.flags) & Flag.NO_VALID_PIXEL) != 0


def _check_rows(table, stack):
    """Refuse a table and a stack that do not belong together."""
    if not isinstance(table, Table):
        msg = (
            f"table must be an astropy Table, got {type(table).__name__}. "
            "Use Table.from_pandas for a DataFrame."
        )
        raise TypeError(msg)
    if len(table) != len(stack):
        msg = (
            f"the table has {len(table)} rows and the stack {len(stack)} cutouts; "
            "they must correspond one to one, in order."
        )
        raise ValueError(msg)
    name = stack.meta.get("id_column")
    if name not in table.colnames:
        return
    ids = np.ma.getdata(table[name])
    if ids.dtype.kind == stack.ids.dtype.kind and not np.array_equal(ids, stack.ids):
        row = int(np.argmax(ids != stack.ids))
        msg = (
            f"row {row} of the table has {name} = {ids[row]}, the stack "
            f"{stack.ids[row]}: the rows are not in the order of the cutouts."
        )
        raise ValueError(msg)


def _check_new(table, names, prefix, overwrite):
    existing = [prefix + name for name in names if prefix + name in table.colnames]
    if existing and not overwrite:
        msg = (
            f"the table already has {', '.join(existing)}. Give overwrite=True to "
            "replace them, or another prefix."
        )
        raise ValueError(msg)


def _append(table, values, stack, prefix, step, record):
    """Copy the table, append documented columns and their provenance."""
    table = table.copy()
    masked_rows = np.zeros(len(table), dtype=bool)
    for name, array in values.items():
        spec = COLUMNS[name]
        column = _column(array, spec, stack.unit, isinstance(table, QTable))
        mask = np.asarray(getattr(column, "mask", False))
        if mask.ndim and len(mask):
            masked_rows |= mask.reshape(len(table), -1).all(axis=1)
        table[prefix + name] = column
        info = table[prefix + name].info
        info.description = spec.description
        info.meta = {"ucd": spec.ucd}
    n_masked = int(masked_rows.sum())
    if n_masked and step != "wins":
        msg = (
            f"{n_masked} of {len(table)} rows could not be measured ({step}); they "
            f"are masked, and the flag columns say why."
        )
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=4)
    _record(table, prefix, step, record, stack, list(values), n_masked)
    return table


def _column(array, spec, image_unit, quantity):
    """A column of the registered type, NaN masked."""
    mask = np.ma.getmaskarray(array)
    data = np.asarray(np.ma.getdata(array), dtype=spec.dtype)
    if data.dtype.kind == "f":
        mask = mask | np.isnan(data)
    unit = _unit(spec.unit, image_unit)
    if quantity and unit:
        values = u.Quantity(data, unit)
        return Masked(values, mask=mask) if mask.any() else values
    if mask.any():
        return MaskedColumn(data, mask=mask, unit=unit)
    return Column(data, unit=unit)


def _unit(name, image_unit):
    """The unit of a registered column, given that of the pixels."""
    if name in ("image", "image2"):
        return None if image_unit is None else image_unit ** (2 if "2" in name else 1)
    return u.Unit(name) if name else None


def _model_record(model):
    """What identifies a model or baseline in the provenance."""
    record = {"class": type(model).__name__}
    for key, value in (
        ("name", getattr(model, "name", None)),
        ("sha256", getattr(model, "sha256", None)),
        ("seed", getattr(model, "seed", None)),
        ("preprocessing", getattr(model, "preprocessing", None)),
    ):
        if value is not None:
            record[key] = copy.deepcopy(value)
    if hasattr(model, "get_params"):
        record["parameters"] = model.get_params()
    return record


def _record(table, prefix, step, record, stack, columns, n_masked):
    """Write the provenance of a step into the metadata of the table."""
    from astrovae import __version__

    meta = copy.deepcopy(table.meta.get("astrovae", {}))
    preprocessing = stack.preprocessing
    entry = {
        **record,
        "astrovae": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "columns": [prefix + name for name in columns],
        "bands": preprocessing["bands"],
        "pixel_scale": preprocessing["pixel_scale"],
        "n_rows": len(table),
        "n_masked": n_masked,
    }
    step = f"{step}:{record['class']}" if step == "baselines" else step
    meta.setdefault(prefix or "default", {})[step] = entry
    table.meta["astrovae"] = meta
