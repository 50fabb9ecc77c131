"""Tests of what training holds against what is painted."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy.signal.windows import tukey

from astrovae.models import VAE, DenseEncoder
from astrovae.models._regularizers import REGULARIZERS

ALL = {"positivity": 0.3, "border": 0.2, "total_variation": 0.05}


def make_vae(shape, **kwargs):
    """A small model with reproducible weights."""
    keras.utils.set_random_seed(1)
    return VAE(shape, 2, encoder=DenseEncoder((16,)), seed=2, **kwargs)


def test_terms_are_those_of_numpy():
    """Each from its definition."""
    rng = np.random.default_rng(1)
    light = rng.normal(size=(3, 32, 48, 2)).astype("float32")
    found = {
        name: ops.convert_to_numpy(term(ops.convert_to_tensor(light), 1))
        for name, term in REGULARIZERS.items()
    }
    axes = (1, 2, 3)
    negative = np.where(light < 0, light, 0)
    assert_allclose(found["positivity"], (negative**2).sum(axes), rtol=1e-5)
    # two of 32 and three of 48 pixels on each side, at their centres
    window = np.outer(*(tukey(2 * size + 1, 1 / 8)[1::2] for size in (32, 48)))
    dark = (1 - window)[..., None] * light
    assert_allclose(found["border"], (dark**2).sum(axes), rtol=1e-4)
    steps = [np.abs(np.diff(light, axis=axis)).sum(axes) for axis in (1, 2)]
    assert_allclose(found["total_variation"], sum(steps), rtol=1e-5)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_terms_do_not_depend_on_oversampling(name):
    """A smooth galaxy is penalised alike, however finely it is painted."""
    values = []
    for number in (1, 2, 4):
        y, x = (np.mgrid[: 64 * number, : 64 * number] + 0.5) / number - 32
        light = 1.0 - 3 * np.exp(-0.5 * (x**2 + y**2) / 16)
        light = light.astype("float32")[None, ..., None]
        light = ops.convert_to_tensor(light)
        values.append(float(REGULARIZERS[name](light, number)[0]))
    assert_allclose(values, values[-1], rtol=0.12)


def test_loss_has_them_and_the_elbo_has_not(stack):
    """They are reported by themselves, with light in units of the noise."""
    options = {"scale": [5.0, 6.0], "noise": [0.5, 2.0], "posterior": "delta"}
    logs = {}
    for key, weights in (("with", ALL), ("without", None)):
        vae = make_vae(stack.image_shape, regularizers=weights, **options)
        vae.compile(keras.optimizers.SGD(0.0))
        history = vae.fit(stack, batch_size=40, verbose=0, shuffle=False).history
        logs[key] = {name: values[0] for name, values in history.items()}
    cost = sum(weight * logs["with"][name] for name, weight in ALL.items())
    assert_allclose(logs["with"]["loss"] - logs["without"]["loss"], cost, rtol=1e-3)
    for name in ("elbo", "kl", "log_like", "mse"):
        assert_allclose(logs["with"][name], logs["without"][name], rtol=1e-5)
    mean, _ = vae.encode(stack)
    light = vae.decode(mean)["mean"] / np.array([0.5, 2.0])
    found = np.square(np.minimum(light, 0)).sum((1, 2, 3))
    assert_allclose(logs["with"]["positivity"], np.delete(found, 3).mean(), rtol=1e-4)


def test_positivity_makes_light_positive(stack):
    """With it, a decoder paints less negative light than without."""
    darkness = {}
    for weight in (0.0, 100.0):
        vae = make_vae(stack.image_shape, regularizers={"positivity": weight})
        vae.compile(keras.optimizers.Adam(1e-2))
        vae.fit(stack, batch_size=20, epochs=20, verbose=0)
        light = vae.decode(vae.encode(stack)[0])["mean"]
        darkness[weight] = np.square(np.minimum(light, 0)).mean()
    assert darkness[100.0] < 0.1 * darkness[0.0]


def test_they_are_saved():
    """With the configuration; zero weights are still reported."""
    vae = make_vae((8, 8, 1), regularizers={"border": 0.0})
    assert VAE.from_config(vae.get_config()).regularizers == {"border": 0.0}
    assert "border" in vae.trackers


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"sparsity": 1.0}, "regularizers must be some of positivity, border"),
        (["border"], r"with a weight each, .* got \['border'\]"),
        ({"border": -1.0}, "must be a number, 0 or more, got border=-1.0"),
        ({"border": np.nan}, "must be a number, 0 or more"),
        ({"border": "0.1"}, "must be a number, 0 or more"),
    ],
)
def test_bad_arguments(weights, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        make_vae((8, 8, 1), regularizers=weights)
