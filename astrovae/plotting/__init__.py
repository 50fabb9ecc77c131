# Licensed under a 3-clause BSD style license - see LICENSE
"""
Figures of cutouts, reconstructions, latents, errors and statistics.

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
from astrovae.plotting.galaxies import (
    plot_cutouts,
    plot_reconstructions,
    plot_traversals,
)
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
    "plot_correlations",
    "plot_cutouts",
    "plot_error_histogram",
    "plot_history",
    "plot_latents",
    "plot_neighbors",
    "plot_property",
    "plot_property_traversal",
    "plot_reconstructions",
    "plot_traversals",
    "plot_win_rates",
]
