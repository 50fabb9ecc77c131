# Licensed under a 3-clause BSD style license - see LICENSE
"""Packages that only some tasks need."""

import importlib

__all__ = ["require"]


def require(name, *, extra):
    """
    Import an optional package, or say how to install it.

    Parameters
    ----------
    name : str
        The module to import.
    extra : str
        The extra of astrovae that installs it.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ImportError
        If the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = (
            f"{name} is needed for this and is not installed. Install it with: "
            f'pip install "astrovae[{extra}]"'
        )
        raise ImportError(msg) from error
