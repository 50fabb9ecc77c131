# Licensed under a 3-clause BSD style license - see LICENSE
"""How unusual galaxies are, compared with others of the same signal-to-noise."""

import numpy as np

from astrovae._validation import check_positive_int
from astrovae.catalog._appending import (
    add_columns,
    check_model,
    check_rows,
    missing_rows,
    unmeasured,
)

__all__ = ["add_outlier_columns", "measure_oddity", "oddity_percentile"]

# galaxies at a time
_CHUNK = 1024
# reference galaxies of similar signal-to-noise: so many tell median and spread
_PER_BIN = 100
_MAX_BINS = 20
# of a normal distribution, the standard deviation over the median deviation
_SIGMA_PER_MAD = 1.482602


def add_outlier_columns(
    table,
    model,
    stack,
    training,
    num_samples,
    *,
    measured=None,
    prefix="",
    overwrite=False,
    only_missing=False,
    show_progress=False,
):
    """
    Append outlier percentiles; see `~astrovae.catalog.add_outliers`.

    What was ``measured`` of the stack is not measured again.
    """
    num_samples = check_positive_int("num_samples", num_samples, minimum=0)
    if hasattr(model, "outlier_score"):
        num_samples, score = 0, "outlier_score"
    else:
        score = "log_evidence" if num_samples else "elbo"
    names = ["vae_outlier_percentile"] + ["vae_log_evidence"] * bool(num_samples)
    options = {"num_samples": num_samples, "show_progress": show_progress}
    if training is not None:
        check_model(model, training)
    elif only_missing and prefix + names[0] in table.colnames:
        check_rows(table, stack)
        if missing_rows(table, names, prefix, stack).any():
            msg = (
                "only_missing=True needs training=..., the galaxies to compare with: "
                "percentiles among the galaxies of the table change with every row "
                "that is added. Give them, or overwrite=True."
            )
            raise ValueError(msg)
    n_reference = None

    def compute(part):
        nonlocal n_reference
        oddity = measure_oddity(model, part, measured=measured, **options)
        oddity["score"][unmeasured(part)] = np.nan
        reference = oddity
        if training is not None:
            reference = measure_oddity(model, training, **options)
        n_reference = int(np.isfinite(reference["score"]).sum())
        if training is not None and not n_reference:
            msg = "no galaxy of training could be measured: there is none to compare."
            raise ValueError(msg)
        percentile = oddity_percentile(oddity, reference)
        values = {"vae_outlier_percentile": percentile}
        if num_samples:
            values["vae_log_evidence"] = oddity["vae_log_evidence"]
        return values

    details = {
        "score": score,
        "num_samples": num_samples,
        "reference": "the stack itself" if training is None else "training galaxies",
    }
    result = add_columns(
        table,
        stack,
        compute,
        "outliers",
        model,
        names=names,
        details=details,
        prefix=prefix,
        overwrite=overwrite,
        only_missing=only_missing,
    )
    if n_reference is not None:
        entry = result.meta["astrovae"][prefix or "default"]["outliers"]
        entry["n_reference"] = n_reference
    return result


def measure_oddity(model, stack, *, num_samples=0, measured=None, show_progress=False):
    """
    Say how badly a model explains each galaxy, in units of what it expects.

    Parameters
    ----------
    model : object
        With ``outlier_score(stack)``, or with ``measure(stack)`` that gives
        ``vae_elbo``, ``vae_log_like`` and ``vae_chi2``.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    num_samples : int, optional
        Latents per galaxy to integrate over; with 0 the ELBO stands in for the
        evidence.
    measured : dict of `~numpy.ndarray`, optional
        What ``measure`` gives, if it is known.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    oddity : dict of `~numpy.ndarray`, shape (n,)
        ``score``; ``level``, the decadic logarithm of the signal-to-noise ratio of a
        pixel; and ``vae_log_evidence`` if it was asked for.
    """
    options = {"show_progress": True} if show_progress else {}
    n_valid, level = _pixel_statistics(stack)
    if hasattr(model, "outlier_score"):
        return {"score": np.asarray(model.outlier_score(stack)), "level": level}
    names = ("vae_elbo", "vae_log_like", "vae_chi2")
    if measured is None:
        if not hasattr(model, "measure"):
            measured = {}
        else:
            measured = model.measure(stack, **options)
    if not set(names) <= set(measured):
        msg = (
            "model must have outlier_score(stack), or a measure(stack) that gives "
            f"{', '.join(names)}; got {type(model).__name__}."
        )
        raise TypeError(msg)
    evidence, log_like, chi2 = (np.asarray(measured[name], float) for name in names)
    oddity = {"level": level}
    if num_samples:
        evidence, _ = model.log_evidence(stack, num_samples=num_samples, **options)
        oddity["vae_log_evidence"] = evidence = np.asarray(evidence, float)
    chi2 = n_valid * chi2.reshape(n_valid.shape)
    # what the level of the noise contributes to the density is left out
    distance = 2 * np.nansum(log_like.reshape(n_valid.shape), axis=1)
    distance += np.nansum(chi2, axis=1) - 2 * evidence
    total = n_valid.sum(axis=1).astype(float)
    total[total == 0] = np.nan
    return oddity | {"score": (distance - total) / np.sqrt(2 * total)}


def _pixel_statistics(stack):
    """Valid pixels by galaxy and band, and log signal-to-noise of a pixel."""
    n_valid = np.zeros((len(stack), stack.image_shape[2]), int)
    level = np.full(len(stack), np.nan)
    for start in range(0, len(stack), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(stack)))
        batch = stack.batch(rows)
        valid = ~batch["mask"]
        image = batch["image"].astype(float)
        if "error" in batch:
            image /= batch["error"]
        n_valid[rows] = valid.sum(axis=(1, 2))
        count = np.maximum(n_valid[rows], 1)
        mean = np.where(valid, image, 0).sum(axis=(1, 2)) / count
        squares = np.square(np.where(valid, image - mean[:, None, None], 0))
        total = np.maximum(n_valid[rows].sum(axis=1), 1)
        power = squares.sum(axis=(1, 2, 3)) / total
        level[rows] = 0.5 * np.log10(np.maximum(power, np.finfo(float).tiny))
    return n_valid, level


def oddity_percentile(oddity, reference):
    """
    Compare galaxies with reference galaxies of the same signal-to-noise.

    Parameters
    ----------
    oddity, reference : dict of `~numpy.ndarray`
        ``score`` and ``level``, as given by `measure_oddity`.

    Returns
    -------
    percentile : `~numpy.ndarray`, shape (n,)
        Share of the reference galaxies that are less unusual, in percent,
        those as unusual counted half. NaN where there is no score.
    """
    known = np.isfinite(reference["score"]) & np.isfinite(reference["level"])
    score, level = reference["score"][known], reference["level"][known]
    percentile = np.full(len(oddity["score"]), np.nan)
    if not len(score):
        return percentile
    n_bins = int(np.clip(len(score) // _PER_BIN, 1, _MAX_BINS))
    bins = np.array_split(np.argsort(level, kind="stable"), n_bins)
    centers = [np.median(level[rows]) for rows in bins]
    medians = [np.median(score[rows]) for rows in bins]
    widths = [
        _SIGMA_PER_MAD * np.median(np.abs(score[rows] - median))
        for rows, median in zip(bins, medians)
    ]
    widths = np.where(np.array(widths) > 0, widths, 1.0)

    def relative(score, level):
        middle = np.interp(level, centers, medians)
        return (score - middle) / np.interp(level, centers, widths)

    order = np.sort(relative(score, level))
    found = relative(oddity["score"], oddity["level"])
    below, up_to = (np.searchsorted(order, found, side) for side in ("left", "right"))
    rows = np.isfinite(found)
    percentile[rows] = 50 * (below + up_to)[rows] / len(order)
    return percentile
