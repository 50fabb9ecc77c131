# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of the convolution with the PSF."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.signal import fftconvolve

from astrovae.layers import PSFConvolution
from checks import LAYER_CASES, LayerCase, check_layer

METHODS = ["fft", "direct"]


def convolve(images, psf, **kwargs):
    """Convolve NumPy arrays."""
    return keras.ops.convert_to_numpy(PSFConvolution(**kwargs)((images, psf)))


def scipy_convolve(images, psf):
    """Convolve each band of each galaxy by itself, in float64."""
    n, bands = images.shape[0], images.shape[-1]
    psf = np.broadcast_to(psf, (n, *psf.shape[1:3], bands))
    planes = [
        [
            fftconvolve(images[i, ..., b], psf[i, ..., b], mode="same")
            for b in range(bands)
        ]
        for i in range(n)
    ]
    return np.moveaxis(np.array(planes), 1, -1)


def moffat(size, fwhm=2.5, beta=3.0, shear=0.3):
    """Draw an elliptical, lopsided PSF of unit sum."""
    y, x = np.indices((size, size)) - size // 2
    radius = np.hypot(x + shear * y, y) / fwhm
    psf = (1 + radius**2) ** -beta * (1 + 0.3 * np.tanh(x + 2 * y))
    return psf / psf.sum()


def gaussian(shape, x, y, sigma):
    """Draw a round galaxy at (x, y), in pixels from the first one."""
    rows, columns = np.indices(shape)
    return np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)


def centroid(image):
    """Give x, y and the flux, in float64."""
    image = image.astype(float)
    y, x = np.indices(image.shape)
    flux = image.sum()
    return np.array([(x * image).sum() / flux, (y * image).sum() / flux]), flux


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(16, 16), (11, 14), (5, 8)])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("bands", [1, 2])
def test_equals_scipy(method, shape, number, bands, rng):
    """Shared or own PSFs, of odd and even images, also smaller than the PSF."""
    images = rng.normal(size=(3, *shape, 2))
    psf = rng.random(size=(number, 5, 9, bands))
    psf /= psf.sum(axis=(1, 2), keepdims=True)
    result = convolve(images, psf, method=method)
    assert result.dtype == np.float32
    assert_allclose(result, scipy_convolve(images, psf), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_delta_returns_the_psf(method):
    """A star is the PSF: not turned, not mirrored, not shifted."""
    star = np.zeros((1, 12, 13, 1))
    star[0, 6, 5] = 1
    result = convolve(star, moffat(7)[None, ..., None], method=method)[0, ..., 0]
    assert_allclose(result[3:10, 2:9], moffat(7), atol=1e-7)
    result[3:10, 2:9] = 0
    assert_allclose(result, 0, atol=1e-7)
    # the test would not see much if the PSF were symmetric
    turns = (np.rot90(moffat(7), 2), moffat(7).T, moffat(7)[::-1])
    assert all(abs(turned - moffat(7)).max() > 0.01 for turned in turns)


@pytest.mark.parametrize("method", METHODS)
def test_flux_and_centroid(method):
    """Flux is multiplied by the sum of the PSF; centroids add up."""
    psf = moffat(11)
    galaxy = gaussian((50, 51), 25.3, 23.6, 2.0)
    result = convolve(galaxy[None, ..., None], psf[None, ..., None], method=method)
    before, flux_before = centroid(galaxy)
    of_psf, _ = centroid(psf)
    after, flux = centroid(result[0, ..., 0])
    assert_allclose(flux, flux_before, rtol=1e-5)
    assert_allclose(after, before + of_psf - 5, atol=1e-4)


def test_nothing_wraps_around():
    """Light at one edge does not come in at the other."""
    image = np.zeros((1, 16, 16, 1))
    image[0, 0, 0] = 1e4
    result = convolve(image, moffat(15)[None, ..., None], method="fft")[0, ..., 0]
    assert_allclose(result[8:], 0, atol=1e-2 * moffat(15).max())


@pytest.mark.parametrize(("size", "method"), [(3, "direct"), (5, "fft")])
def test_auto(size, method, rng):
    """Very small kernels are added up, others transformed."""
    images, psf = rng.normal(size=(2, 9, 9, 1)), rng.random(size=(2, size, size, 1))
    assert np.array_equal(convolve(images, psf), convolve(images, psf, method=method))


def test_fixed_psf(rng):
    """A PSF that all galaxies share can be part of the layer."""
    images, psf = rng.normal(size=(2, 9, 10, 2)), rng.random(size=(5, 5, 2))
    layer = PSFConvolution(psf)
    copy = PSFConvolution.from_config(layer.get_config())
    expected = convolve(images, psf[None])
    for each in (layer, copy):
        assert np.array_equal(keras.ops.convert_to_numpy(each(images)), expected)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method, rng):
    """A decoder before the PSF learns what the galaxy is, not its image."""
    psf = moffat(5)[None, ..., None]
    truth = gaussian((12, 12), 5.6, 6.1, 1.5)[None, ..., None]
    target = scipy_convolve(truth, psf)
    painter = keras.layers.Dense(144, use_bias=False)
    inputs, kernels = keras.Input((1,)), keras.Input((5, 5, 1))
    image = keras.layers.Reshape((12, 12, 1))(painter(inputs))
    outputs = PSFConvolution(method=method)((image, kernels))
    model = keras.Model([inputs, kernels], outputs)
    model.compile(keras.optimizers.Adam(0.03), loss="mse")
    batch = [np.ones((1, 1)), psf]
    losses = [model.train_on_batch(batch, target) for _ in range(100)]
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize("method", [*METHODS, "fixed"])
def test_layer(method, tmp_path):
    """A good Keras layer, in every mode."""
    case = LAYER_CASES[PSFConvolution]
    if method == "fixed":
        case = LayerCase(
            lambda **kwargs: PSFConvolution(moffat(5), **kwargs), case.shapes[0][:1]
        )
    elif method == "direct":
        case = LayerCase(
            lambda **kwargs: PSFConvolution(method="direct", **kwargs), case.shapes
        )
    check_layer(case, tmp_path)


def test_half_precision_is_raised(rng):
    """Fluxes and centroids survive a policy of half precision."""
    images = rng.normal(size=(2, 9, 9, 1))
    psf = rng.random(size=(1, 5, 5, 1))
    result = convolve(images, psf, dtype="mixed_bfloat16")
    assert np.array_equal(result, convolve(images, psf))


@pytest.mark.parametrize(
    ("images", "psf", "message"),
    [
        ((2, 9, 9, 1), (2, 4, 5, 1), "odd number of pixels"),
        ((2, 9, 9, 1), (3, 5, 5, 1), "do not fit"),
        ((2, 9, 9, 2), (2, 5, 5, 3), "do not fit"),
        ((9, 9, 1), (2, 5, 5, 1), "expected images"),
    ],
)
def test_bad_inputs(images, psf, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        PSFConvolution()((np.zeros(images), np.zeros(psf)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "slow"}, "method must be one of"),
        ({"psf": np.ones((4, 4))}, "odd number of pixels"),
        ({"psf": np.ones(5)}, "must be of shape"),
        ({"psf": np.full((3, 3), np.nan)}, "not finite"),
    ],
)
def test_bad_arguments(arguments, message):
    """So is a PSF that cannot be used."""
    with pytest.raises(ValueError, match=message):
        PSFConvolution(**arguments)
