# Licensed under a 3-clause BSD style license - see LICENSE
"""
Monotonic maps of one number, whose parameters a network gives.

Values have the shape (..., m) and their parameters (..., num_params, m).
Parameters of zero give the identity.
"""

from keras import ops

from astrovae._validation import check_option, check_positive_int
from astrovae.ops import MIN_BIN, rational_quadratic_spline, soft_clip

__all__ = ["make_transform"]


class Affine:
    """``u = (x - m) exp(-a)``, with ``a`` within ``limit``."""

    num_params = 2

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, x, params, *, inverse=False):
        shift = params[..., 0, :]
        log_scale = soft_clip(params[..., 1, :], self.limit)
        if inverse:
            return x * ops.exp(log_scale) + shift, log_scale
        return (x - shift) * ops.exp(-log_scale), -log_scale


class Spline:
    """Rational-quadratic splines on the box within ``limit``."""

    def __init__(self, limit, num_bins):
        self.limit = limit
        self.num_params = 3 * num_bins - 1

    def __call__(self, x, params, *, inverse=False):
        return rational_quadratic_spline(x, params, self.limit, inverse=inverse)


def make_transform(name, limit, num_bins):
    """
    Make a transform.

    Parameters
    ----------
    name : {"affine", "spline"}
        Which.
    limit : float or None
        Its limit.
    num_bins : int
        Bins of a spline.

    Raises
    ------
    ValueError
        If the name is unknown, the limit is not positive (a spline needs
        one), or there are not 2 to 999 bins.
    """
    check_option("transform", name, ("affine", "spline"))
    check_positive_int("num_bins", num_bins, minimum=2)
    if not (limit is None or limit > 0) or (limit is None and name == "spline"):
        msg = (
            f"limit must be a positive number, got {limit=}. "
            'For transform="affine" it may be None.'
        )
        raise ValueError(msg)
    if num_bins * MIN_BIN >= 1:
        msg = f"num_bins must be less than {round(1 / MIN_BIN)}, got {num_bins=}."
        raise ValueError(msg)
    return Affine(limit) if name == "affine" else Spline(limit, num_bins)
