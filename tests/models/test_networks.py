"""Tests of encoder and decoder networks."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from astrovae.models import DenseDecoder, DenseEncoder


def test_linear_skip_contains_linear_models(rng):
    """The last units of the encoder are the pixels; of the decoder, latents."""
    x = rng.normal(size=(3, 4, 5, 2)).astype("float32")
    features = keras.ops.convert_to_numpy(DenseEncoder((7,), linear_skip=True)(x))
    assert features.shape == (3, 7 + 40)
    assert_allclose(features[:, 7:], x.reshape(3, -1))
    decoder = DenseDecoder((4, 5, 2), (7,), linear_skip=True)
    decoder.build((None, 3))
    kernel = rng.normal(size=(10, 40)).astype("float32")
    kernel[:7] = 0
    decoder.output_layer.set_weights([kernel, np.zeros(40)])
    z = rng.normal(size=(6, 3)).astype("float32")
    images = keras.ops.convert_to_numpy(decoder(z)).reshape(6, -1)
    assert_allclose(images, z @ kernel[7:], rtol=1e-4, atol=1e-5)


def test_regier_network_has_the_published_size():
    """4761-128-128-16 and 8-128-128-9522, as in the paper."""
    encoder, decoder = DenseEncoder(), DenseDecoder((69, 69, 2))
    encoder.build((None, 69, 69, 1))
    decoder.build((None, 8))
    sizes = [w.shape for w in encoder.weights + decoder.weights if len(w.shape) == 2]
    assert sizes == [(4761, 128), (128, 128), (8, 128), (128, 128), (128, 9522)]


def test_units_must_be_positive():
    """Misuse is named."""
    with pytest.raises(ValueError, match="hidden_units must be a positive integer"):
        DenseEncoder((32, 0))
