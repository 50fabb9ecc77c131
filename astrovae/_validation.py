# Licensed under a 3-clause BSD style license - see LICENSE
"""
Checks at the public door, in one style.

Both halves of the package use this module, so it needs NumPy alone.
"""

import numbers

import numpy as np

from astrovae.exceptions import PreprocessingError

__all__ = [
    "check_option",
    "check_positive_int",
    "check_preprocessing",
    "check_shape",
    "clean_batch",
    "is_number",
    "known_psfs",
    "read_array",
]


def check_positive_int(name, value, *, hint="", minimum=1):
    """Return ``value`` as an int, or say what is wrong with it."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or value < minimum:
        kind = "a positive integer" if minimum == 1 else f"an integer >= {minimum}"
        msg = f"{name} must be {kind}, got {name}={value!r}.{hint and ' ' + hint}"
        raise ValueError(msg)
    return int(value)


def is_number(value):
    """Whether a value is a finite real number."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and bool(np.isfinite(value))


def check_shape(name, value):
    """Return a cutout shape as two positive ints ``(ny, nx)``."""
    sizes = tuple(value) if np.iterable(value) else (value, value)
    if len(sizes) != 2:
        msg = f"{name} must be one size or (ny, nx), got {name}={value!r}."
        raise ValueError(msg)
    return tuple(check_positive_int(name, size) for size in sizes)


def check_option(name, value, options):
    """Return ``value`` if it is one of ``options``."""
    if value not in options:
        choices = ", ".join(repr(option) for option in options)
        msg = f"{name} must be one of {choices}, got {name}={value!r}."
        raise ValueError(msg)
    return value


def known_psfs(psf):
    """Which bands have a PSF, of shape (n, n_bands): finite, and not zero."""
    return np.isfinite(psf).all(axis=(1, 2)) & np.any(psf, axis=(1, 2))


def clean_batch(batch):
    """
    Make a batch of planes safe to compute with.

    Pixels that are masked, not finite, or whose error is not finite and
    positive, become masked zeros with an error of one; so do those of bands whose
    PSF is not finite, or zero. A pose that is not finite leaves the galaxy as it is.
    All arrays become native float32 (the mask bool). A 3-D image gains a band axis.

    Parameters
    ----------
    batch : dict
        ``image`` and optionally ``mask``, ``error``, ``psf``, ``pose``.

    Returns
    -------
    clean : dict
        New arrays; ``mask`` is always there.
    """

    def plane(name):
        array = np.asarray(batch[name])
        return array[..., np.newaxis] if array.ndim == 3 else array

    image = plane("image")
    if image.dtype.kind not in "biuf":
        msg = f"images must be real numbers, got the dtype {image.dtype}."
        raise TypeError(msg)
    if image.ndim != 4:
        msg = (
            "images must have the shape (n, ny, nx, n_bands) or (n, ny, nx), "
            f"got {image.shape}."
        )
        raise ValueError(msg)
    image = image.astype(np.float32)  # a copy
    bad = np.isfinite(image)
    np.logical_not(bad, out=bad)
    psf = batch.get("psf")
    if psf is not None:
        psf = np.asarray(psf).astype(np.float32)
        unusable = ~known_psfs(psf)[:, np.newaxis, np.newaxis]
        # without its PSF, a band cannot be compared with what was painted
        bad |= unusable
        np.copyto(psf, 0, where=unusable)
    for name in ("mask", "error"):
        if batch.get(name) is None:
            continue
        array = plane(name)
        if array.shape != image.shape:
            msg = f"{name} has the shape {array.shape}, the images {image.shape}."
            raise ValueError(msg)
        if name == "mask":
            bad |= array.astype(bool)
        else:
            error = array.astype(np.float32)
            bad |= ~(np.isfinite(error) & (error > 0))
    np.copyto(image, 0, where=bad)
    clean = {"image": image, "mask": bad}
    if batch.get("error") is not None:
        np.copyto(error, 1, where=bad)
        clean["error"] = error
    if psf is not None:
        clean["psf"] = psf
    if batch.get("pose") is not None:
        clean["pose"] = _clean_pose(np.asarray(batch["pose"]).astype(np.float32))
    return clean


def _clean_pose(pose):
    """Let galaxies whose pose is not known stay as they are."""
    unknown = ~np.isfinite(pose).all(axis=1)
    pose[unknown] = 0
    pose[unknown, 3:4] = 1
    return pose


def check_preprocessing(expected, found):
    """
    Refuse images that were not prepared as a model was trained on.

    Parameters
    ----------
    expected, found : dict or None
        Records as given by `astrovae.images.CutoutStack.preprocessing`.
        `None` (bare arrays) is not compared.

    Raises
    ------
    PreprocessingError
        Naming the first thing that differs.
    """
    if expected is None or found is None:
        return
    for key, label in (
        ("shape", "cutout shape"),
        ("bands", "bands"),
        ("pixel_scale", "pixel scale"),
        ("unit", "unit"),
        ("steps", "preparation steps"),
    ):
        ours, theirs = expected.get(key), found.get(key)
        if key == "pixel_scale" and None not in (ours, theirs):
            # pixel scales come from headers: equal to a part in a thousand
            same = abs(ours - theirs) <= 1e-3 * abs(ours)
        else:
            same = ours == theirs
        if not same:
            msg = (
                f"The model was trained on images with {label} {ours!r}, "
                f"these have {theirs!r}. Prepare them in the same way "
                "(stack.prepare(model.preprocessing)), or train a model on them."
            )
            raise PreprocessingError(msg)


def read_array(table, name):
    """Values of a column as float64; masked and infinite ones are NaN."""
    if name not in table.colnames:
        msg = f"the table has no column {name!r}; it has {', '.join(table.colnames)}."
        raise ValueError(msg)
    column = table[name]
    values = getattr(column, "unmasked", column)  # a masked Quantity
    values = np.ma.getdata(getattr(values, "value", values))
    if getattr(values, "dtype", np.dtype(object)).kind not in "biuf":
        kind = getattr(values, "dtype", type(column).__name__)
        msg = (
            f"the column {name!r} must hold numbers, got {kind}. Turn classes into "
            "numbers first, e.g. table['is_spiral'] = table['class'] == 'spiral'."
        )
        raise TypeError(msg)
    data = np.array(values, dtype=np.float64)
    data[np.broadcast_to(getattr(column, "mask", False), data.shape)] = np.nan
    data[~np.isfinite(data)] = np.nan
    return data
