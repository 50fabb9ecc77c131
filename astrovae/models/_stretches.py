# Licensed under a 3-clause BSD style license - see LICENSE
"""Stretches of `astropy.visualization`, as data and on tensors."""

import math

from keras import ops

from astrovae._validation import is_number
from astrovae.ops import arcsinh

__all__ = ["Stretch", "as_config", "as_stretch"]

_NAMED = ("linear", "asinh")
# arguments of the stretches, by the name of their class in astropy
_ARGUMENTS = {
    "LinearStretch": ("slope", "intercept"),
    "AsinhStretch": ("a",),
    "LogStretch": ("a",),
    "SqrtStretch": (),
}
_DEFAULTS = {
    "LinearStretch": {"slope": 1.0, "intercept": 0.0},
    "AsinhStretch": {"a": 0.1},
    "LogStretch": {"a": 1000.0},
    "SqrtStretch": {},
}
_POSITIVE = ("a", "slope")
# those that take any pixel, and so can be undone
_INVERTIBLE = ("LinearStretch", "AsinhStretch")


class Stretch:
    """
    A stretch of pixels, with the numbers of its namesake in astropy.

    Pixels outside the interval are not clipped, but for negative ones, for
    which a logarithm or a root has no use: they count as zero.

    Parameters
    ----------
    kind : str
        The name of a class of `astropy.visualization`.
    vmin, vmax : float, optional
        The interval that becomes 0 to 1, in the unit of the pixels; by default
        from zero to the image scale of each band.
    **arguments
        Arguments of the class.
    """

    def __init__(self, kind, vmin=None, vmax=None, **arguments):
        if kind not in _ARGUMENTS:
            msg = (
                "stretch must be 'linear', 'asinh', or a stretch or ImageNormalize of "
                f"astropy.visualization with {', '.join(_ARGUMENTS)}; got {kind}."
            )
            raise ValueError(msg)
        unknown = set(arguments) - set(_ARGUMENTS[kind])
        if unknown:
            msg = f"{kind} has no argument {', '.join(sorted(unknown))}."
            raise ValueError(msg)
        limits = (vmin, vmax)
        fixed = all(map(is_number, limits)) and vmin < vmax
        if not fixed and limits != (None, None):
            msg = (
                "the interval of a stretch must be fixed: give vmin < vmax in the unit "
                "of the pixels, plain numbers, or neither; got "
                f"vmin={vmin}, vmax={vmax}."
            )
            raise ValueError(msg)
        self.kind = kind
        self.interval = (float(vmin), float(vmax)) if fixed else None
        arguments = {**_DEFAULTS[kind], **arguments}
        numbers = all(map(is_number, arguments.values()))
        if not numbers or min(arguments.get(name, 1.0) for name in _POSITIVE) <= 0:
            msg = f"{kind} needs numbers, a positive a or slope, got {arguments}."
            raise ValueError(msg)
        self.arguments = {name: float(value) for name, value in arguments.items()}

    @property
    def invertible(self):
        """Whether it takes any pixel, and so can be undone."""
        return self.kind in _INVERTIBLE

    def __call__(self, pixels, scale):
        """
        Stretch pixels.

        Parameters
        ----------
        pixels : tensor, shape (n, ny, nx, n_bands)
            Pixels, in their own unit.
        scale : tensor, shape (n_bands,)
            Image scale of each band.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            The stretched pixels.
        """
        low, width = self._interval(scale)
        x = (pixels - low) / width
        if self.kind == "LinearStretch":
            return self.arguments["slope"] * x + self.arguments["intercept"]
        if self.kind == "AsinhStretch":
            a = self.arguments["a"]
            return arcsinh(x / a) / math.asinh(1.0 / a)
        x = ops.maximum(x, 0.0)
        if self.kind == "SqrtStretch":
            # the slope of a root at zero would spoil gradients
            return ops.where(x > 0.0, ops.sqrt(ops.maximum(x, 1e-30)), 0.0)
        a = self.arguments["a"]
        return ops.log(a * x + 1.0) / math.log(a + 1.0)

    def inverse(self, values, scale):
        """Give the pixels that were stretched; arguments as for a call."""
        low, width = self._interval(scale)
        if self.kind == "LinearStretch":
            x = (values - self.arguments["intercept"]) / self.arguments["slope"]
        elif self.kind == "AsinhStretch":
            a = self.arguments["a"]
            x = a * ops.sinh(values * math.asinh(1.0 / a))
        elif self.kind == "SqrtStretch":
            x = ops.square(values)
        else:
            a = self.arguments["a"]
            x = ops.expm1(values * math.log(a + 1.0)) / a
        return x * width + low

    def log_slope(self, pixels, scale):
        """Logarithm of the derivative at pixels, for those that are invertible."""
        low, width = self._interval(scale)
        if self.kind == "LinearStretch":
            constant = ops.log(self.arguments["slope"] / width)
            return ops.zeros_like(pixels) + constant
        a = self.arguments["a"]
        x = (pixels - low) / (width * a)
        constant = ops.log(1.0 / (a * width * math.asinh(1.0 / a)))
        # large pixels have squares that overflow
        far = ops.abs(x) > 1e9
        near = ops.log1p(ops.square(ops.where(far, 0.0, x)))
        beyond = 2.0 * ops.log(ops.maximum(ops.abs(x), 1.0))
        return constant - 0.5 * ops.where(far, beyond, near)

    def _interval(self, scale):
        if self.interval is None:
            return 0.0, scale
        low, high = self.interval
        return low, high - low

    def get_config(self):
        """Give what it is made from, as data."""
        config = {"kind": self.kind, **self.arguments}
        if self.interval is not None:
            config["vmin"], config["vmax"] = self.interval
        return config


def as_stretch(stretch):
    """
    Make a `Stretch` from its data or from an object of astropy.

    Parameters
    ----------
    stretch : {"linear", "asinh"}, dict, `Stretch` or astropy object
        Names are given back as they are. Of astropy, stretches and
        `~astropy.visualization.ImageNormalize` with fixed limits.

    Returns
    -------
    stretch : str or `Stretch`
        The stretch.

    Raises
    ------
    ValueError
        If there is no such stretch, or its limits are not fixed.
    """
    if isinstance(stretch, Stretch) or stretch in _NAMED:
        return stretch
    if isinstance(stretch, dict):
        return Stretch(**{"kind": None, **stretch})
    limits = {}
    if hasattr(stretch, "stretch") and hasattr(stretch, "vmin"):
        limits = {"vmin": stretch.vmin, "vmax": stretch.vmax}
        if None in limits.values():
            msg = (
                "the interval of a stretch must be fixed: give ImageNormalize both "
                f"vmin and vmax, got {limits}."
            )
            raise ValueError(msg)
        stretch = stretch.stretch
    kind = type(stretch).__name__ if not isinstance(stretch, str) else repr(stretch)
    arguments = {name: getattr(stretch, name) for name in _ARGUMENTS.get(kind, ())}
    return Stretch(kind, **limits, **arguments)


def as_config(stretch):
    """Give a stretch as data that `as_stretch` reads."""
    return stretch.get_config() if isinstance(stretch, Stretch) else stretch
