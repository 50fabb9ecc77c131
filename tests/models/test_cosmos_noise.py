"""The noise of real images of the COSMOS field, which is correlated."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from keras import ops
from numpy.testing import assert_allclose

from astrovae.models import CorrelatedGaussianLikelihood, GaussianLikelihood

# of the correlation function, which is 81 x 81: beyond, it is below 1 percent
REACH = 7
CORNER = 20
# pixels next to the edges are neighbours of those at the opposite ones
EDGE = 2


@pytest.fixture(scope="module")
def folder(data_path):
    """Real galaxies of COSMOS in the format of GalSim."""
    return data_path / "cosmos_hst"


@pytest.fixture(scope="module")
def correlation(folder):
    """The correlation of the noise by lag, as measured on empty sky."""
    found = fits.getdata(folder / "acs_I_unrot_sci_20_cf.fits").astype(float)
    middle = found.shape[0] // 2
    lags = slice(middle - REACH, middle + REACH + 1)
    found = found[lags, lags] / found[middle, middle]
    return 0.5 * (found + found[::-1, ::-1])


def whiten(likelihood, images, sigma):
    """Standardised residuals of images of nothing, as float64."""
    images = images[..., None] / sigma.mean()
    error = np.broadcast_to(sigma[:, None, None, None] / sigma.mean(), images.shape)
    images, error = (ops.convert_to_tensor(a, "float32") for a in (images, error))
    params = likelihood.parameters(ops.zeros_like(images), np.ones(1, "float32"))
    found = likelihood.standardize(images, params, error)
    return ops.convert_to_numpy(found).astype(float)[..., 0]


def block_variance(values, size):
    """Variance of sums over blocks, 1 if pixels are independent and of variance 1."""
    n, ny, nx = values.shape
    shape = (n, ny // size, size, nx // size, size)
    return values.reshape(shape).sum(axis=(2, 4)).var() / size**2


def test_real_noise_is_whitened(folder, correlation):
    """Corners of real stamps, without light of the galaxy, and their variances."""
    catalog = Table.read(folder / "real_galaxy_catalog_26_extension_example.fits")
    corners, sigma = [], []
    with fits.open(folder / "real_galaxy_images_extension.fits") as images:
        for row in catalog:
            image = images[int(row["GAL_HDU"])].data
            if min(image.shape) < 3.3 * CORNER:
                continue
            for y in (slice(CORNER), slice(-CORNER, None)):
                for x in (slice(CORNER), slice(-CORNER, None)):
                    corners.append(image[y, x])
                    sigma.append(row["NOISE_VARIANCE"] ** 0.5)
    corners, sigma = np.array(corners, float), np.array(sigma)
    assert len(corners) >= 40
    inner = (slice(None), slice(EDGE, -EDGE), slice(EDGE, -EDGE))
    white = whiten(CorrelatedGaussianLikelihood(correlation), corners, sigma)[inner]
    plain = GaussianLikelihood(learn_variance=False)
    raw = whiten(plain, corners, sigma)[inner]
    for size in (1, 2, 4):
        assert_allclose(block_variance(white, size), 1.0, atol=0.05)
    # taken for independent, four by four pixels scatter almost twice as much
    assert block_variance(raw, 4) > 3.0
    neighbours = [(w[:, :, 1:] * w[:, :, :-1]).mean() for w in (white, raw)]
    assert abs(neighbours[0]) < 0.02
    assert neighbours[1] > 0.4


def test_noise_of_this_correlation_on_a_whole_stamp(folder, correlation):
    """Drawn by GalSim: also with the edges, where the image is taken for a torus."""
    galsim = pytest.importorskip("galsim")
    path = str(folder / "acs_I_unrot_sci_20_cf.fits")
    noise = galsim.getCOSMOSNoise(
        file_name=path, rng=galsim.BaseDeviate(1), cosmos_scale=0.03
    )
    image = galsim.Image(640, 640, scale=0.03)
    image.addNoise(noise)
    stamps = image.array.reshape(10, 64, 10, 64).swapaxes(1, 2).reshape(100, 64, 64)
    sigma = np.full(100, noise.getVariance() ** 0.5)
    white = whiten(CorrelatedGaussianLikelihood(correlation), stamps, sigma)
    raw = whiten(GaussianLikelihood(learn_variance=False), stamps, sigma)
    for size in (1, 2, 4):
        assert_allclose(block_variance(white, size), 1.0, atol=0.05)
    inner = white[:, EDGE:-EDGE, EDGE:-EDGE]
    assert_allclose(inner.var(), 1.0, atol=0.01)
    assert block_variance(raw, 4) > 3.0
