# Licensed under a 3-clause BSD style license - see LICENSE
"""
Latent features of galaxies, with their uncertainties, in your catalogue.

The subpackages are loaded when they are first used: ``import astrovae``
loads neither Keras nor matplotlib.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("astrovae")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.1.dev0"

_SUBPACKAGES = (
    "baselines",
    "catalog",
    "datasets",
    "diagnostics",
    "exceptions",
    "flags",
    "images",
    "layers",
    "models",
    "ops",
    "plotting",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__():
    return sorted(__all__)
