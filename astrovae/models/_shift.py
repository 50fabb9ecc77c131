# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies moved by parts of pixels."""

import numpy as np
from keras import ops

from astrovae.layers.pose import _KERNELS

__all__ = ["Shift"]


class Shift:
    """
    `~astrovae.layers.PoseTransform` for galaxies that are moved, but not turned.

    Each axis by itself is a product with a matrix: quick to compile, and its gradient
    is another one.

    Parameters
    ----------
    shape : tuple of int
        Shape ``(ny, nx)`` of the results.
    interpolation : {"cubic", "linear"}, optional
        As for `~astrovae.layers.PoseTransform`.
    """

    def __init__(self, shape, interpolation="cubic"):
        self.shape = shape
        _, self.kernel = _KERNELS[interpolation]

    def __call__(self, inputs):
        """Move images to where their poses, ``(n, 4)``, say; only x and y matter."""
        images, pose = inputs
        rows, columns = (
            self._weights(pose[:, i], size, canvas)
            for i, size, canvas in zip((1, 0), self.shape, images.shape[1:3])
        )
        moved = ops.einsum("nab,nbcd->nacd", rows, images)
        return ops.einsum("ncb,nabd->nacd", columns, moved)

    def _weights(self, shift, size, canvas):
        """Weight of each pixel of the canvas in each one of the result."""
        here = np.arange(size) - 0.5 * (size - 1)
        there = np.arange(canvas) - 0.5 * (canvas - 1)
        distance = (there - here[:, None]).astype("float32")
        return self.kernel(ops.convert_to_tensor(distance) + shift[:, None, None])
