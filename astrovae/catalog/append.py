# Licensed under a 3-clause BSD style license - see LICENSE
"""
Append what models and fits say about galaxies to their catalogue.

Each function takes a table and returns a new one: rows in the same order,
none lost, the columns and metadata of the input untouched. A row that
cannot be measured is masked and flagged.
"""

import itertools

import numpy as np

from astrovae._validation import check_option
from astrovae.catalog._appending import (
    add_columns,
    append,
    check_rows,
    plain,
    preprocessing_of,
    unmeasured,
)
from astrovae.catalog._encoders import encode_galaxies
from astrovae.catalog._outliers import add_outlier_columns
from astrovae.catalog.clusters import add_clusters, cluster_order, has_clusters
from astrovae.catalog.columns import BASELINES
from astrovae.flags import Flag

__all__ = [
    "add_baselines",
    "add_latents",
    "add_outliers",
    "add_pose",
    "add_reconstruction",
    "annotate",
]

_DEFAULT_STEPS = ("latents", "reconstruction", "baselines")
_STEPS = ("pose", *_DEFAULT_STEPS, "clusters", "outliers")


def add_latents(
    table,
    model,
    stack,
    *,
    n_rotations=1,
    prefix="",
    overwrite=False,
    only_missing=False,
    show_progress=False,
):
    """
    Append latent means and uncertainties.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    model : object
        Anything with ``encode(stack) -> (mean, log_var)``, e.g.
        `~astrovae.models.VAE` or `~astrovae.baselines.EigenGalaxies`; or with
        ``predict(images)``, e.g. an encoder written in Keras; or a function of
        images. Images are arrays ``(n, ny, nx, n_bands)`` whose masked pixels
        are 0. Such encoders may give ``(mean, log_var)``, with or without a
        sample as a third, a dict with these keys, or an array of means alone.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    n_rotations : int, optional
        Average posteriors over so many rotations of each galaxy, if the model has
        no pose and can do it; see `~astrovae.models.VAE.encode`.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    only_missing : bool, optional
        Encode only the galaxies whose columns are absent or masked, e.g. rows
        that were added to the catalogue, and leave the others as they are.
        Rows that could not be measured are not tried again.
    show_progress : bool, optional
        Show a progress bar, if the model has one.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``latent_mean``, ``latent_sigma`` (each
        ``(n, latent_dim)``) and ``latent_flags``. Rows without a valid pixel
        are masked; so is all of ``latent_sigma`` if the model gives no
        variances. Where it gives a mean but no finite sigma, sigma is masked and
        the row flagged.

    Raises
    ------
    TypeError
        If the model can do none of these.
    ValueError
        If columns exist and neither ``overwrite`` nor ``only_missing`` is set,
        table and stack do not belong together, rows to fill and those already
        there are of different models, or the model cannot rotate galaxies.
    ~astrovae.exceptions.PreprocessingError
        If the cutouts were prepared in another way than those that the model
        was trained on.

    Examples
    --------
    >>> from astrovae.catalog import add_latents
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE
    >>> truth, stack = make_galaxies(8, shape=(16, 16), seed=1)
    >>> table = add_latents(truth, VAE(stack.image_shape, latent_dim=2), stack)
    >>> table["latent_mean"].shape
    (8, 2)

    An encoder that knows nothing of astrovae:

    >>> def encode(images):
    ...     return images.mean(axis=(1, 2))
    >>> table = add_latents(table, encode, stack, prefix="mean_")
    >>> table["mean_latent_mean"].shape
    (8, 1)
    """

    def compute(part):
        mean, log_var = encode_galaxies(
            model, part, n_rotations=n_rotations, show_progress=show_progress
        )
        bad = unmeasured(part)
        flags = np.array(part.flags)
        failed = ~np.isfinite(mean).all(axis=1)
        sigma, unknown = np.full_like(mean, np.nan), failed
        if log_var is not None:
            with np.errstate(over="ignore"):
                sigma = np.exp(0.5 * log_var)
            unknown = failed | ~np.isfinite(sigma).all(axis=1)
        flags[~bad & unknown] |= Flag.NO_RESULT
        return {
            "latent_mean": np.where((bad | failed)[:, None], np.nan, mean),
            "latent_sigma": np.where((bad | unknown)[:, None], np.nan, sigma),
            "latent_flags": flags,
        }

    details = {"n_rotations": n_rotations}
    temperature = getattr(model, "latent_temperature", None)
    if temperature is not None:
        details["latent_temperature"] = np.asarray(temperature).tolist()
    return add_columns(
        table,
        stack,
        compute,
        "latents",
        model,
        names=("latent_mean", "latent_sigma", "latent_flags"),
        details=details,
        prefix=prefix,
        overwrite=overwrite,
        only_missing=only_missing,
    )


def add_pose(table, stack, *, prefix="", overwrite=False, only_missing=False):
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
    only_missing : bool, optional
        Fill only rows whose columns are absent or masked, as in `add_latents`.

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
    check_rows(table, stack)
    names = tuple(stack.pose_columns)
    if not names:
        msg = "the stack has no pose. Call astrovae.images.measure_pose(stack) first."
        raise ValueError(msg)
    return add_columns(
        table,
        stack,
        lambda part: part.pose_columns,
        "pose",
        names=names,
        prefix=prefix,
        overwrite=overwrite,
        only_missing=only_missing,
    )


def add_reconstruction(
    table,
    model,
    stack,
    *,
    prefix="",
    overwrite=False,
    only_missing=False,
    show_progress=False,
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
    only_missing : bool, optional
        Fill only rows whose columns are absent or masked, as in `add_latents`.
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
    result = _add_measured(
        table,
        model,
        stack,
        "reconstruction",
        prefix=prefix,
        overwrite=overwrite,
        only_missing=only_missing,
        show_progress=show_progress,
    )
    won = any(f"{prefix}vae_beats_{name}_mse" in table.colnames for name in BASELINES)
    if won and (not only_missing or _changed(table, result)):
        # those were of the columns that have just been replaced
        result = _add_wins(result, stack, prefix, overwrite=True)
    return result


def add_baselines(
    table,
    stack,
    baselines=None,
    *,
    model=None,
    prefix="",
    overwrite=False,
    only_missing=False,
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
    only_missing : bool, optional
        Fill only rows whose columns are absent or masked, as in `add_latents`.
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
    TypeError
        If ``baselines`` is not a sequence.
    ValueError
        As for `add_latents`.
    """
    if baselines is None:
        from astrovae.baselines import GaussianFit

        baselines = [GaussianFit()]
    if hasattr(baselines, "measure"):
        msg = "baselines must be a sequence: put the one that there is into a list."
        raise TypeError(msg)
    options = {
        "prefix": prefix,
        "overwrite": overwrite,
        "only_missing": only_missing,
        "show_progress": show_progress,
    }
    check_rows(table, stack)
    result = table.copy()
    known = f"{prefix}vae_mse" in table.colnames
    if model is not None and (overwrite or only_missing or not known):
        result = add_reconstruction(result, model, stack, **options)
    for baseline in baselines:
        result = _add_measured(result, baseline, stack, "baselines", **options)
    renew = overwrite or (only_missing and _changed(table, result))
    return _add_wins(result, stack, prefix, renew)


def add_outliers(
    table,
    model,
    stack,
    *,
    training=None,
    num_samples=0,
    prefix="",
    overwrite=False,
    only_missing=False,
    show_progress=False,
):
    """
    Append how unusual each galaxy is in the eyes of a model.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue, one row per cutout, in the order of the stack.
    model : object
        Anything with ``outlier_score(stack)``, e.g.
        `~astrovae.baselines.EigenGalaxies`; or whose ``measure(stack)`` gives
        ``vae_elbo``, ``vae_log_like`` and ``vae_chi2``, e.g.
        `~astrovae.models.VAE`.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    training : `~astrovae.images.CutoutStack`, optional
        The galaxies to compare with, best those that the model was trained on,
        or others like them that it was not. Without them, the galaxies of the
        stack are compared with each other.
    num_samples : int, optional
        Latents per galaxy to integrate the evidence over, with
        ``model.log_evidence``. With 0 the ELBO stands in for it, which takes a
        fraction of the time.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    only_missing : bool, optional
        Fill only rows whose columns are absent or masked, as in `add_latents`.
        It needs ``training``: percentiles among the galaxies of a table change
        with every row that is added.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    table : `~astropy.table.Table`
        A copy with ``vae_outlier_percentile``, from 0 to 100 for the most
        unusual galaxies, and ``vae_log_evidence`` if ``num_samples`` is not 0.

    Raises
    ------
    TypeError
        If the model can do neither.
    ValueError
        As for `add_latents`; or if no galaxy of ``training`` can be measured.
    ~astrovae.exceptions.PreprocessingError
        As for `add_latents`; also for the ``training`` galaxies.

    Notes
    -----
    The density of a galaxy depends on its noise before all else. Here the
    part that does is left out: the score is ``(D - m) / sqrt(2 m)`` for ``m``
    valid pixels, where ``D = -2 log p(x) - sum log(2 pi sigma_i**2)`` is, for
    normal pixels, the squared distance from the mean galaxy in units of what
    model and noise allow: the squared residuals of the reconstruction, and how
    far its latents are from their prior. For principal components, it is
    exactly the squared Mahalanobis distance of the valid pixels.

    No model is perfect, and what is wrong shows in bright galaxies first. So
    scores are compared at equal signal-to-noise: the median of the scores of the
    galaxies to compare with is taken off and their median absolute deviation
    divided by, both as functions of the root mean square over the valid pixels
    of ``pixel / error`` (of the pixels alone where there are no errors), in up
    to 20 bins of at least 100 galaxies. The column is the percentile of the
    result. What was compared with is written in the provenance.

    Examples
    --------
    >>> from astrovae.baselines import EigenGalaxies
    >>> from astrovae.catalog import add_outliers
    >>> from astrovae.datasets import make_galaxies
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> eigen = EigenGalaxies(4).fit(stack[:32])
    >>> table = add_outliers(truth[32:], eigen, stack[32:], training=stack[:32])
    >>> table["vae_outlier_percentile"].shape
    (32,)
    """
    return add_outlier_columns(
        table,
        model,
        stack,
        training,
        num_samples,
        prefix=prefix,
        overwrite=overwrite,
        only_missing=only_missing,
        show_progress=show_progress,
    )


def annotate(
    table,
    model,
    stack,
    *,
    what=None,
    baselines=None,
    training=None,
    n_rotations=1,
    prefix="",
    overwrite=False,
    only_missing=False,
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
    what : str or sequence of str, optional
        What to append, of "pose", "latents", "clusters", "reconstruction",
        "baselines" and "outliers". By default latents, reconstruction and baselines,
        and clusters if the prior of the model is a mixture.
    baselines : sequence of objects, optional
        Each with ``measure(stack)``; by default
        `~astrovae.baselines.GaussianFit`.
    training : `~astrovae.images.CutoutStack`, optional
        The galaxies to compare outliers with, as for `add_outliers`; they are
        prepared, too.
    n_rotations : int, optional
        Average the latents over rotations, as for `add_latents`.
    prefix : str, optional
        Put before every column name, to keep several models side by side.
    overwrite : bool, optional
        Replace existing columns.
    only_missing : bool, optional
        Fill only rows whose columns are absent or masked, as in `add_latents`.
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
    if what is None:
        what = (*_DEFAULT_STEPS, *["clusters"] * has_clusters(model))
    what = (what,) if isinstance(what, str) else tuple(what)
    for step in what:
        check_option("what", step, _STEPS)
    if "clusters" in what:
        cluster_order(model)  # better said at once than after the latents
    check_rows(table, stack)
    table = table.copy()
    preprocessing = preprocessing_of(model)
    stack = stack.prepare(preprocessing)
    options = {
        "prefix": prefix,
        "overwrite": overwrite,
        "only_missing": only_missing,
    }
    if "pose" in what:
        table = add_pose(table, stack, **options)
    options["show_progress"] = show_progress
    if "latents" in what:
        table = add_latents(table, model, stack, n_rotations=n_rotations, **options)
    if "clusters" in what:
        table = add_clusters(table, model, stack, **options)
    measured = None
    if "reconstruction" in what:
        table = add_reconstruction(table, model, stack, **options)
        if not only_missing:
            names = ("vae_elbo", "vae_log_like", "vae_chi2")
            measured = {
                name: plain(table[prefix + name])
                for name in names
                if prefix + name in table.colnames
            }
    if "baselines" in what:
        table = add_baselines(table, stack, baselines, **options)
    if "outliers" in what:
        if training is not None:
            training = training.prepare(preprocessing)
        table = add_outlier_columns(
            table, model, stack, training, 0, measured=measured, **options
        )
    return table


def _add_measured(table, meter, stack, step, *, show_progress, **options):
    """Append the columns that ``meter.measure(stack)`` gives."""
    arguments = {"show_progress": True} if show_progress else {}

    def compute(part):
        values = dict(meter.measure(part, **arguments))
        bad = unmeasured(part)
        for name, array in values.items():
            if array.dtype.kind == "f":
                values[name] = array = array.copy()
                array[bad] = np.nan
        return values

    return add_columns(table, stack, compute, step, meter, **options)


def _changed(table, result):
    """Whether a step has written anything."""
    return table.meta.get("astrovae") != result.meta.get("astrovae")


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
        gain = sign * (plain(table[ours]) - plain(table[theirs]))
        values[name] = np.ma.array(gain > 0, mask=np.isnan(gain))
    if not values:
        return table
    return append(table, values, stack, prefix, "wins", {})
