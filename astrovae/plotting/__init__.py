# Licensed under a 3-clause BSD style license - see LICENSE
"""
Figures of cutouts, reconstructions, latents, clusters, errors and statistics.

Every function returns a `matplotlib.figure.Figure` and leaves pyplot and
its settings alone: ``figure.savefig("name.png")`` writes it, and a
notebook shows it. Models are known by what they do: ``reconstruct(stack)``
and ``decode(z)``.
"""

from astrovae.plotting.catalogs import (
    plot_error_histogram,
    plot_history,
    plot_latents,
    plot_win_rates,
)
from astrovae.plotting.clusters import (
    plot_cluster_overlap,
    plot_cluster_properties,
    plot_clusters,
)
from astrovae.plotting.galaxies import (
    plot_cutouts,
    plot_reconstructions,
    plot_traversals,
)
from astrovae.plotting.generated import plot_fidelity, plot_requested
from astrovae.plotting.latents import (
    plot_classes,
    plot_neighbors,
    plot_property,
    plot_property_traversal,
)
from astrovae.plotting.statistics import plot_calibration, plot_correlations

__all__ = [
    "plot_calibration",
    "plot_classes",
    "plot_cluster_overlap",
    "plot_cluster_properties",
    "plot_clusters",
    "plot_correlations",
    "plot_cutouts",
    "plot_error_histogram",
    "plot_fidelity",
    "plot_history",
    "plot_latents",
    "plot_neighbors",
    "plot_property",
    "plot_property_traversal",
    "plot_reconstructions",
    "plot_requested",
    "plot_traversals",
    "plot_win_rates",
]
