"""Tests of the comparison of two runs."""

import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose
from scipy import stats
from scipy.linalg import orthogonal_procrustes

from astrovae.catalog import align
from astrovae.images import CutoutStack


class Encoder:
    """A model whose latents are given."""

    def __init__(self, latents):
        self.latents = latents

    def encode(self, stack):
        return self.latents, None


def test_align_finds_a_rotation(rng):
    """Of tables, arrays and models alike; rows without latents are left out."""
    z = rng.normal(size=(400, 3)) * [2, 1, 0.5]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    other = z @ rotation
    other[:5] = np.nan
    found = align(Table({"a": z}), Table({"b": other}), latents=("a", "b"))
    assert found.n == 395
    assert_allclose(found.canonical_correlations, 1, atol=1e-8)
    assert_allclose(found.cka, 1)
    assert_allclose(found.rotation, rotation, atol=1e-8)
    assert_allclose(found.rotation_r2, 1)
    models = align(Encoder(z), Encoder(other), stack=object())
    assert_allclose(models.rotation, found.rotation)
    with pytest.raises(ValueError, match="need a stack"):
        align(Encoder(z), Encoder(other))
    with pytest.raises(ValueError, match="400 galaxies and b 10"):
        align(z, z[:10])


def test_align_against_definitions(rng):
    """Canonical correlations, kernel alignment and matches of noisy latents."""
    n = 500
    z = rng.normal(size=(n, 3))
    other = np.stack([-z[:, 2], z[:, 0], rng.normal(size=n), z[:, 1]], axis=1)
    other += 0.5 * rng.normal(size=other.shape)
    found = align(z, other, n_bootstrap=200)
    x, y = z - z.mean(axis=0), other - other.mean(axis=0)
    q, r = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    expected = np.linalg.svd(q.T @ r, compute_uv=False)
    assert_allclose(found.canonical_correlations, expected, rtol=1e-8)
    norm = np.linalg.norm
    expected = norm(x.T @ y) ** 2 / norm(x.T @ x) / norm(y.T @ y)
    assert_allclose(found.cka, expected, rtol=1e-10)
    assert found.cka_low < found.cka < found.cka_high
    assert (found.canonical_low <= found.canonical_high).all()
    assert found.matches["latent_b"].tolist() == [1, 3, 0]
    expected = [
        stats.pearsonr(z[:, i], other[:, j]).statistic
        for i, j in ((0, 1), (1, 3), (2, 0))
    ]
    assert_allclose(found.matches["pearson"], expected, rtol=1e-9)
    square = align(z, other[:, :3], n_bootstrap=50)
    expected, _ = orthogonal_procrustes(x, y[:, :3])
    assert_allclose(square.rotation, expected, atol=1e-9)
    rest = norm(y[:, :3] - x @ expected) ** 2 / norm(y[:, :3]) ** 2
    assert_allclose(square.rotation_r2, 1 - rest, rtol=1e-9)


def test_galaxies_that_are_not_seen_are_left_out(rng):
    """The prior that a model gives for them is not what it found."""
    mask = np.zeros((60, 4, 4), dtype=bool)
    mask[:20] = True
    stack = CutoutStack(rng.normal(size=mask.shape), mask=mask)

    class Model:
        def __init__(self, weights):
            self.weights = weights

        def encode(self, stack):
            batch = stack.batch(np.arange(len(stack)))
            image = np.where(batch["mask"], 0, batch["image"])
            mean = image.reshape(len(stack), -1).astype(float) @ self.weights
            return mean, np.zeros_like(mean)

    a, b = (Model(rng.normal(size=(16, 2))) for _ in range(2))
    found = align(a, b, stack, n_bootstrap=40)
    assert found.n == 40
    seen = align(a, b, stack[20:], n_bootstrap=40)
    assert_allclose(found.canonical_correlations, seen.canonical_correlations)


def test_latents_that_do_not_vary_are_refused(rng):
    """There is nothing to align."""
    with pytest.raises(ValueError, match="latents of b are the same"):
        align(rng.normal(size=(40, 2)), np.ones((40, 2)))
