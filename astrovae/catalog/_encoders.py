# Licensed under a 3-clause BSD style license - see LICENSE
"""Latents of anything that can encode galaxies, known by what it can do."""

import inspect

import numpy as np

from astrovae._validation import check_positive_int

__all__ = ["encode_galaxies"]

# galaxies at a time, for encoders that take arrays of images
_CHUNK = 1024


def encode_galaxies(model, stack, *, n_rotations=1, show_progress=False):
    """
    Give the latents of galaxies.

    Parameters
    ----------
    model : object
        With ``encode(stack)``; or with ``predict(images)``, as models of Keras
        and scikit-learn; or a function of images.
    stack : `~astrovae.images.CutoutStack`
        The cutouts.
    n_rotations : int, optional
        Average posteriors over so many rotations, if ``encode`` can.
    show_progress : bool, optional
        Show a progress bar, if the model has one.

    Returns
    -------
    mean : `~numpy.ndarray`, shape (n, latent_dim)
        In float32.
    log_var : `~numpy.ndarray`, shape (n, latent_dim), or None
        Logarithms of the variances, if the model gives any.

    Raises
    ------
    TypeError
        If the model can do none of these.
    ValueError
        If what it gives are not latents of these galaxies, or it does not take
        ``n_rotations``.
    """
    rotations = {}
    if check_positive_int("n_rotations", n_rotations) > 1:
        rotations["n_rotations"] = n_rotations
        if not _takes(getattr(model, "encode", None), "n_rotations"):
            msg = (
                "n_rotations is for models whose encode takes it, such as VAE; "
                f"{type(model).__name__} does not. Use n_rotations=1."
            )
            raise ValueError(msg)
    if hasattr(model, "encode"):
        options = {"show_progress": True} if show_progress else {}
        parts = [_moments(model.encode(stack, **rotations, **options))]
    else:
        parts = _encode_images(model, stack, show_progress)
    means, log_vars = zip(*parts)
    mean = _join(means)
    if len(mean) != len(stack):
        msg = f"the model encoded {len(mean)} galaxies of {len(stack)}."
        raise ValueError(msg)
    if any(log_var is None for log_var in log_vars):
        return mean, None
    log_var = _join(log_vars)
    if log_var.shape != mean.shape:
        msg = (
            f"the model gave log_var of the shape {log_var.shape} with means of the "
            f"shape {mean.shape}: there is one variance for each latent."
        )
        raise ValueError(msg)
    return mean, log_var


def _join(arrays):
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _encode_images(model, stack, show_progress):
    """Latents of an encoder that takes arrays of images, part by part."""
    function = getattr(model, "predict", model)
    if not callable(function):
        msg = (
            "model must have encode(stack) or predict(images), or be a function of "
            f"images, got {type(model).__name__}."
        )
        raise TypeError(msg)
    options = {}
    if _takes(function, "verbose"):
        options["verbose"] = int(show_progress)
    if len(stack) == 0:
        # encoders need not take no galaxies, but these have latents, too
        images = np.zeros((1, *stack.image_shape), np.float32)
        mean, log_var = _moments(function(images, **options))
        return [(mean[:0], None if log_var is None else log_var[:0])]
    parts = []
    for start in range(0, len(stack), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(stack)))
        images = stack.batch(rows)["image"]
        parts.append(_moments(function(images, **options)))
        if len(parts[-1][0]) != len(rows):
            msg = f"the model encoded {len(parts[-1][0])} galaxies of {len(rows)}."
            raise ValueError(msg)
    return parts


def _takes(function, name):
    """Whether a function has an argument of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it does not say
        return False


def _moments(result):
    """Means and, if there are any, log variances of what an encoder gave."""
    log_var = None
    if isinstance(result, dict):
        if "mean" not in result:
            msg = f"the model gave a dict without 'mean': {sorted(result)}."
            raise ValueError(msg)
        mean, log_var = result["mean"], result.get("log_var")
    elif isinstance(result, (tuple, list)):
        # a third one, as some encoders have, is a sample
        mean, log_var, *_ = (*result, None)
    else:
        mean = result
    mean = _as_latents(mean)
    return mean, None if log_var is None else _as_latents(log_var)


def _as_latents(values):
    array = np.asarray(values, dtype=np.float32)
    array = array[:, np.newaxis] if array.ndim == 1 else array
    if array.ndim != 2:
        msg = (
            "the model must give (mean, log_var), or the means alone, each of the "
            f"shape (n, latent_dim); got an array of the shape {array.shape}."
        )
        raise ValueError(msg)
    return array
