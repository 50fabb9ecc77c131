# Licensed under a 3-clause BSD style license - see LICENSE
"""Keras layers: sampling, priors, flows, PSF and pose."""

from astrovae.layers.flows import MADE, ActNorm, Bijector, MaskedAutoregressiveFlow
from astrovae.layers.pose import PoseTransform
from astrovae.layers.priors import (
    FlowPrior,
    GaussianPrior,
    MixturePrior,
    Prior,
    VampPrior,
)
from astrovae.layers.psf import PSFConvolution
from astrovae.layers.sampling import GaussianSampling

__all__ = [
    "MADE",
    "ActNorm",
    "Bijector",
    "FlowPrior",
    "GaussianPrior",
    "GaussianSampling",
    "MaskedAutoregressiveFlow",
    "MixturePrior",
    "PSFConvolution",
    "PoseTransform",
    "Prior",
    "VampPrior",
]
