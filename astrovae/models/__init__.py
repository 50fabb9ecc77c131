# Licensed under a 3-clause BSD style license - see LICENSE
"""Keras models of galaxy images, their networks, likelihoods and presets."""

from astrovae.models.callbacks import TrainingProgress
from astrovae.models.likelihoods import GaussianLikelihood
from astrovae.models.networks import DenseDecoder, DenseEncoder
from astrovae.models.presets import citation, list_presets
from astrovae.models.vae import VAE

__all__ = [
    "VAE",
    "DenseDecoder",
    "DenseEncoder",
    "GaussianLikelihood",
    "TrainingProgress",
    "citation",
    "list_presets",
]
