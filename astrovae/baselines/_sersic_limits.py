# Licensed under a 3-clause BSD style license - see LICENSE
"""How far the parameters of a Sersic profile are followed."""

import numpy as np

__all__ = ["INDEX_LIMITS", "LEAST_AXIS_RATIO", "shape_limits"]

INDEX_LIMITS = 0.3, 8.0
LEAST_AXIS_RATIO = 0.1
# Half-light radii, as geometric means of both axes: the smallest in pixels, the
# largest in cutouts. Centres may lie so many cutouts beyond the edges.
_LEAST_SIZE, _LARGEST_SIZE = 0.05, 2.0
_REACH = 0.5


def shape_limits(ny, nx):
    """Lowest and highest x, y, size and index in cutouts of ny x nx pixels."""
    return (
        (-_REACH * nx, (1 + _REACH) * nx),
        (-_REACH * ny, (1 + _REACH) * ny),
        (_LEAST_SIZE, _LARGEST_SIZE * np.maximum(nx, ny)),
        INDEX_LIMITS,
    )
