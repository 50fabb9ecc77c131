# Licensed under a 3-clause BSD style license - see LICENSE
"""Constants that callbacks change in the course of training."""

import contextlib

import numpy as np
from keras import ops

from astrovae.models._base import GalaxyModel

__all__ = ["SchedulableModel"]


class SchedulableModel(GalaxyModel):
    """
    Base of models whose loss follows a schedule.

    A subclass calls ``_make_schedulable(beta)`` when it is made.
    """

    def _constant(self, name, value, shape):
        """Make a weight that is not trained."""
        value = np.broadcast_to(1.0 if value is None else value, shape)
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(value, dtype),
            trainable=False,
            autocast=False,
            dtype="float32",
        )

    def _make_schedulable(self, beta):
        self._beta = self._constant("beta", beta, ())
        # `calibrate` sets it
        self._variance_factor = self._constant("variance_factor", 1.0, ())
        # training devices, which callbacks set
        self._free_bits = self._constant("free_bits", 0.0, ())
        self._extra_sigma = self._constant("extra_sigma", 0.0, ())
        # one over the number of galaxies, when `fit` has counted them
        self._penalty_weight = self._constant("penalty_weight", 0.0, ())
        self._plain.noisier = False

    @property
    def beta(self):
        """Weight of the KL divergence in training."""
        return float(ops.convert_to_numpy(self._beta))

    @beta.setter
    def beta(self, value):
        self._beta.assign(value)

    @property
    def free_bits(self):
        """Nats per latent that training does not penalise (see `FreeBits`)."""
        return float(ops.convert_to_numpy(self._free_bits))

    @free_bits.setter
    def free_bits(self, value):
        self._free_bits.assign(value)

    @property
    def extra_sigma(self):
        """Noise that training adds, in units of the scale (see `SigmaWarmup`)."""
        return float(ops.convert_to_numpy(self._extra_sigma))

    @extra_sigma.setter
    def extra_sigma(self, value):
        self._extra_sigma.assign(value)

    @property
    def variance_factor(self):
        """What `calibrate` multiplies learned variances by, 1 before."""
        return float(ops.convert_to_numpy(self._variance_factor))

    @contextlib.contextmanager
    def _safe_training(self):
        """Undo what callbacks have changed if training is interrupted."""
        before = self.beta, self.free_bits, self.extra_sigma, self._plain.noisier
        try:
            yield
        except BaseException:
            self.beta, self.free_bits, self.extra_sigma, noisier = before
            if self._plain.noisier != noisier:
                self._plain.noisier, self.train_function = noisier, None
            raise
