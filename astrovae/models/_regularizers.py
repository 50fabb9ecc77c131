# Licensed under a 3-clause BSD style license - see LICENSE
"""What training may hold against the galaxies that a decoder paints."""

from collections.abc import Mapping

import numpy as np
from keras import ops

from astrovae._validation import is_number

__all__ = ["REGULARIZERS", "check_regularizers"]

# Width of the border, as a share of the canvas: 8 of 128 pixels in the training
# script of Lanusse et al. 2021 (galaxy2galaxy, output_apodization).
_BORDER_SHARE = 1 / 16


def positivity(light, number):
    """Sum of the squares of negative light."""
    return _total(ops.square(ops.minimum(light, 0.0))) / number**2


def border(light, number):
    """Sum of the squares of light near the edges, up to a sixteenth of the canvas."""
    window = np.outer(*(_edges(size) for size in light.shape[1:3]))
    weight = ops.convert_to_tensor(1.0 - window[None, ..., None], "float32")
    return _total(ops.square(weight * light)) / number**2


def total_variation(light, number):
    """Sum of the absolute differences of neighbours along x and along y."""
    rows = _total(ops.abs(light[:, 1:] - light[:, :-1]))
    columns = _total(ops.abs(light[:, :, 1:] - light[:, :, :-1]))
    return (rows + columns) / number


#: Functions of the painted light, in units of the noise of a pixel, and of the
#: painted pixels per pixel along an axis, which does not change the values.
REGULARIZERS = {
    "positivity": positivity,
    "border": border,
    "total_variation": total_variation,
}


def check_regularizers(weights):
    """Return the weights of some regularizers, or say what is wrong."""
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping) or set(weights) - set(REGULARIZERS):
        msg = (
            f"regularizers must be some of {', '.join(REGULARIZERS)}, with a "
            f"weight each, such as {{'positivity': 0.1}}, got {weights!r}."
        )
        raise ValueError(msg)
    for name, weight in weights.items():
        if not (is_number(weight) and weight >= 0):
            msg = (
                "the weight of a regularizer must be a number, 0 or more, got "
                f"{name}={weight!r}."
            )
            raise ValueError(msg)
    return {name: float(weight) for name, weight in weights.items()}


def _total(terms):
    return ops.sum(terms, axis=(1, 2, 3))


def _edges(size):
    """Tukey's window: 0 at the edges, and 1 further inside than the border."""
    depth = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    depth = np.minimum(depth / (_BORDER_SHARE * size), 1.0)
    return 0.5 - 0.5 * np.cos(np.pi * depth)
