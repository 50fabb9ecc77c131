# Licensed under a 3-clause BSD style license - see LICENSE
"""Whether what models say of galaxies is true, and what they paint looks real."""

from astrovae.diagnostics.clusters import (
    cluster_information,
    cluster_scores,
    cluster_stability,
)
from astrovae.diagnostics.galaxy_statistics import measure_galaxies
from astrovae.diagnostics.generated import (
    conditional_calibration,
    fidelity,
    neighbor_distance_ratio,
    two_sample_auc,
)
from astrovae.diagnostics.mixtures import mixture_report, responsibility_calibration
from astrovae.diagnostics.parametric import parametric_galaxies
from astrovae.diagnostics.posteriors import calibration, uniformity_test

__all__ = [
    "calibration",
    "cluster_information",
    "cluster_scores",
    "cluster_stability",
    "conditional_calibration",
    "fidelity",
    "measure_galaxies",
    "mixture_report",
    "neighbor_distance_ratio",
    "parametric_galaxies",
    "responsibility_calibration",
    "two_sample_auc",
    "uniformity_test",
]
