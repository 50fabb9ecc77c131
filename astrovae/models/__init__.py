# Licensed under a 3-clause BSD style license - see LICENSE
"""Keras models of galaxy images, their networks, likelihoods and presets."""

from astrovae.models.callbacks import (
    CollapseMonitor,
    MixtureInitialization,
    TrainingProgress,
)
from astrovae.models.correlated_noise import CorrelatedGaussianLikelihood
from astrovae.models.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
)
from astrovae.models.networks import DenseDecoder, DenseEncoder
from astrovae.models.networks_conv import (
    AstroVaDErDecoder,
    AstroVaDErEncoder,
    ConvDecoder,
    ConvEncoder,
)
from astrovae.models.networks_eigen import EigenDecoder, EigenEncoder
from astrovae.models.presets import citation, list_presets
from astrovae.models.schedules import CyclicalBeta, FreeBits, KLWarmup, SigmaWarmup
from astrovae.models.vae import VAE

__all__ = [
    "VAE",
    "AstroVaDErDecoder",
    "AstroVaDErEncoder",
    "BernoulliLikelihood",
    "CollapseMonitor",
    "ConvDecoder",
    "ConvEncoder",
    "CorrelatedGaussianLikelihood",
    "CyclicalBeta",
    "DenseDecoder",
    "DenseEncoder",
    "EigenDecoder",
    "EigenEncoder",
    "FreeBits",
    "GaussianLikelihood",
    "KLWarmup",
    "Likelihood",
    "MixtureInitialization",
    "SigmaWarmup",
    "TrainingProgress",
    "citation",
    "list_presets",
]
