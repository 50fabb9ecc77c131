# Licensed under a 3-clause BSD style license - see LICENSE
"""The join: tables in, the same tables with documented columns out."""

from astrovae.catalog.append import (
    add_baselines,
    add_latents,
    add_pose,
    add_reconstruction,
    annotate,
)
from astrovae.catalog.columns import COLUMNS, ColumnSpec
from astrovae.catalog.io import read_catalog, write_catalog

__all__ = [
    "COLUMNS",
    "ColumnSpec",
    "add_baselines",
    "add_latents",
    "add_pose",
    "add_reconstruction",
    "annotate",
    "read_catalog",
    "write_catalog",
]
