# Licensed under a 3-clause BSD style license - see LICENSE
"""Checks of the arguments that all functions of catalogues have."""

from astropy.table import Table

__all__ = ["check_prefix", "check_table"]


def check_table(name, table):
    """Refuse what is not an astropy table."""
    if not isinstance(table, Table):
        msg = (
            f"{name} must be an astropy Table, got {type(table).__name__}. "
            "Use Table.from_pandas for a DataFrame."
        )
        raise TypeError(msg)


def check_prefix(prefix):
    """Refuse what cannot go before names; "default" is no prefix in provenance."""
    if not isinstance(prefix, str) or prefix == "default":
        msg = f'prefix must be text other than "default", got {prefix!r}.'
        raise ValueError(msg)
