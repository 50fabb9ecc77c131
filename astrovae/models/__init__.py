# Licensed under a 3-clause BSD style license - see LICENSE
"""Keras models of galaxy images, their networks, likelihoods and presets."""

from astrovae.models._conditions import Condition
from astrovae.models.callbacks import (
    CollapseMonitor,
    TerminateOnDivergence,
    TrainingProgress,
)
from astrovae.models.correlated_noise import CorrelatedGaussianLikelihood
from astrovae.models.deblending import deblend
from astrovae.models.latent_flow import LatentFlow
from astrovae.models.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
)
from astrovae.models.mixture_training import (
    MixtureInitialization,
    MixtureUpkeep,
    mixture_training,
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
from astrovae.models.selection import select_components
from astrovae.models.vae import VAE

__all__ = [
    "VAE",
    "AstroVaDErDecoder",
    "AstroVaDErEncoder",
    "BernoulliLikelihood",
    "CollapseMonitor",
    "Condition",
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
    "LatentFlow",
    "Likelihood",
    "MixtureInitialization",
    "MixtureUpkeep",
    "SigmaWarmup",
    "TerminateOnDivergence",
    "TrainingProgress",
    "citation",
    "deblend",
    "list_presets",
    "mixture_training",
    "select_components",
]
