"""Tests of sampling from posteriors."""

import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose

from astrovae.layers import GaussianSampling


@pytest.mark.parametrize("full", [False, True])
def test_draws_have_the_moments_of_the_posterior(full):
    """Means and covariances, for variances and for Cholesky factors."""
    scale_tril = np.array([[0.5, 0.0], [-0.8, 0.3]] if full else [[0.5, 0], [0, 0.3]])
    mean = np.repeat([[1.0, -2.0]], 20_000, axis=0).astype("float32")
    scale = scale_tril if full else 2 * np.log(np.diag(scale_tril))
    scale = np.broadcast_to(scale, (20_000, *scale.shape)).astype("float32")
    z = ops.convert_to_numpy(GaussianSampling(seed=1)((mean, scale)))
    assert_allclose(z.mean(0), [1, -2], atol=0.03)
    assert_allclose(np.cov(z.T), scale_tril @ scale_tril.T, atol=0.02)
