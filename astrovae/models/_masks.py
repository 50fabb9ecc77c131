# Licensed under a 3-clause BSD style license - see LICENSE
"""
Pixels that count, and those that do not.

Where no pixel is masked, ``seen`` is None and nothing is computed.
"""

from keras import ops

__all__ = [
    "count_pixels",
    "hide_pixels",
    "present_bands",
    "seen_pixels",
    "valid_pixels",
]


def seen_pixels(batch):
    """Which pixels count, or None if all do."""
    mask = batch.get("mask")
    return None if mask is None else ops.logical_not(mask)


def hide_pixels(plane, seen, value=0.0):
    """Replace what does not count."""
    return plane if seen is None else ops.where(seen, plane, value)


def count_pixels(image, seen):
    """How many pixels count, by galaxy and band, or by band if all do."""
    if seen is None:
        ny, nx, n_bands = image.shape[1:]
        return ops.full((1, n_bands), float(ny * nx))
    return ops.sum(ops.cast(seen, "float32"), axis=(1, 2))


def valid_pixels(image, seen):
    """1 for the pixels that count, 0 for masked ones."""
    return ops.ones_like(image) if seen is None else ops.cast(seen, "float32")


def present_bands(image, seen):
    """1 for the bands of a galaxy that have pixels, shape (n, 1, 1, n_bands)."""
    if seen is None:
        return ops.ones_like(image[:, :1, :1])
    seen = ops.any(seen, axis=(1, 2), keepdims=True)
    return ops.cast(seen, "float32")
