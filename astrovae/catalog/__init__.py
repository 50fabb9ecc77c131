# Licensed under a 3-clause BSD style license - see LICENSE
"""The join: tables in, the same tables with documented columns out."""

from astrovae.catalog.alignment import Alignment, align
from astrovae.catalog.append import (
    add_baselines,
    add_latents,
    add_outliers,
    add_pose,
    add_reconstruction,
    annotate,
)
from astrovae.catalog.clusters import add_clusters, cluster_order
from astrovae.catalog.columns import COLUMNS, ColumnSpec
from astrovae.catalog.correlation import correlate, nuisance_audit
from astrovae.catalog.io import read_catalog, write_catalog
from astrovae.catalog.matching import crossmatch
from astrovae.catalog.predictions import add_predictions
from astrovae.catalog.summaries import cluster_summary
from astrovae.catalog.vectors import merge_vectors, split_vectors

__all__ = [
    "COLUMNS",
    "Alignment",
    "ColumnSpec",
    "add_baselines",
    "add_clusters",
    "add_latents",
    "add_outliers",
    "add_pose",
    "add_predictions",
    "add_reconstruction",
    "align",
    "annotate",
    "cluster_order",
    "cluster_summary",
    "correlate",
    "crossmatch",
    "merge_vectors",
    "nuisance_audit",
    "read_catalog",
    "split_vectors",
    "write_catalog",
]
