"""Tests of the mathematics, against scipy and closed forms."""

import numpy as np
import pytest
from keras.ops import convert_to_numpy, convert_to_tensor
from numpy.testing import assert_allclose
from scipy import integrate, special, stats

from astrovae import ops


def tensors(*arrays):
    """Tensors of the backend."""
    return [convert_to_tensor(array) for array in arrays]


def test_gaussian_log_prob(rng):
    """Against scipy."""
    x, mean, log_var = rng.normal(size=(3, 50)).astype("float32")
    expected = stats.norm.logpdf(x, mean, np.exp(0.5 * log_var))
    result = convert_to_numpy(ops.gaussian_log_prob(*tensors(x, mean, log_var)))
    assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_gaussian_entropy(rng):
    """Against scipy."""
    log_var = rng.normal(size=(7, 3)).astype("float32")
    expected = stats.norm.entropy(scale=np.exp(0.5 * log_var)).sum(axis=1)
    assert_allclose(
        convert_to_numpy(ops.gaussian_entropy(log_var)), expected, rtol=1e-5
    )


def test_gaussian_kl():
    """Against numerical integration, term by term."""
    q, p = stats.norm(0.3, 0.5), stats.norm(-1.0, 2.0)
    expected, _ = integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), -6, 6
    )
    arguments = np.array([0.3, 2 * np.log(0.5), -1.0, 2 * np.log(2.0)], "float32")
    result = convert_to_numpy(ops.gaussian_kl(*tensors(*arguments[:, None, None])))
    assert_allclose(result, [[expected]], rtol=1e-5)


def test_reparameterize(rng):
    """Mean plus sigma times noise."""
    mean, log_var, noise = rng.normal(size=(3, 5)).astype("float32")
    result = convert_to_numpy(ops.reparameterize(*tensors(mean, log_var, noise)))
    assert_allclose(result, mean + np.exp(log_var / 2) * noise, rtol=1e-5, atol=1e-6)


def test_log_mean_exp():
    """Against scipy, where exp alone would overflow."""
    x = np.array([[1000.0, 1001.0, 990.0], [-1000.0, -1001.0, -990.0]], "float32")
    expected = special.logsumexp(x.astype(float), axis=1) - np.log(3)
    assert_allclose(convert_to_numpy(ops.log_mean_exp(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("y", [1e-6, 0.5, 3.0, 200.0])
def test_softplus_inverse(y):
    """Softplus undoes it."""
    assert_allclose(np.logaddexp(0, ops.softplus_inverse(y)), y, rtol=1e-9)


def test_weighted_sum_ignores_what_is_invalid(rng):
    """NaN and infinity under the mask do not count."""
    terms = rng.normal(size=(2, 3, 4, 1)).astype("float32")
    valid = (rng.random(terms.shape) < 0.5).astype("float32")
    expected = np.where(valid > 0, terms, 0).sum(axis=(1, 2, 3))
    for value in (np.nan, np.inf):
        hidden = np.where(valid > 0, terms, np.float32(value))
        result = convert_to_numpy(ops.weighted_sum(hidden, valid))
        assert_allclose(result, expected, rtol=1e-5)


def test_fit_canvas():
    """Cutting undoes framing; a pixel in the middle stays there."""
    maps = np.arange(2 * 3 * 5 * 1.0).reshape(2, 3, 5, 1).astype("float32")
    framed = convert_to_numpy(ops.fit_canvas(maps, (7, 9)))
    assert framed.shape == (2, 7, 9, 1)
    assert framed.sum() == maps.sum()
    assert np.array_equal(framed[:, 2:5, 2:7], maps)
    assert np.array_equal(convert_to_numpy(ops.fit_canvas(framed, (3, 5))), maps)
    # the middle pixel of an odd map, on an even canvas and back
    mixed = convert_to_numpy(ops.fit_canvas(maps, (4, 4)))
    assert np.array_equal(mixed[:, :3], maps[:, :, 1:])


def test_arcsinh(rng):
    """Against NumPy, from the smallest to the largest pixels."""
    x = np.concatenate([rng.normal(size=50), [0.0, 1e-6, -1e-3, 300.0, -1e15]])
    x = x.astype("float32")
    result = convert_to_numpy(ops.arcsinh(convert_to_tensor(x)))
    assert_allclose(result, np.arcsinh(x), rtol=1e-6)
