"""Tests of stretches of astropy in models."""

import json

import astropy.units as u
import keras
import numpy as np
import pytest
from astropy.visualization import (
    AsinhStretch,
    HistEqStretch,
    ImageNormalize,
    LinearStretch,
    LogStretch,
    ManualInterval,
    PowerStretch,
    SqrtStretch,
)
from keras import ops
from numpy.testing import assert_allclose
from scipy import integrate, stats

from astrovae.models import VAE, DenseEncoder, GaussianLikelihood
from astrovae.models._stretches import as_config, as_stretch

STRETCHES = [
    LinearStretch(2.0, 0.1),
    AsinhStretch(),
    AsinhStretch(0.02),
    LogStretch(),
    LogStretch(50.0),
    SqrtStretch(),
]
INVERTIBLE = [
    AsinhStretch(0.3),
    LinearStretch(2.0, 0.1),
    ImageNormalize(vmin=-2.0, vmax=8.0, stretch=AsinhStretch(0.2), clip=False),
]


def apply(function, values, scale=1.0):
    """Call a function of pixels and scale."""
    arrays = np.reshape(values, (1, -1, 1, 1)), np.full(1, scale)
    found = function(*(ops.convert_to_tensor(a, "float32") for a in arrays))
    return ops.convert_to_numpy(found).astype(float).reshape(np.shape(values))


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("interval", [None, (-5.0, 20.0)])
def test_numbers_are_those_of_astropy(stretch, interval):
    """Also above white, where astropy would clip by default."""
    x = np.linspace(0.0, 1.5, 40)
    if interval is None:
        ours, scale, pixels = as_stretch(stretch), 3.0, 3.0 * x
    else:
        low, high = interval
        ours = as_stretch(ImageNormalize(vmin=low, vmax=high, stretch=stretch))
        scale, pixels = 3.0, low + x * (high - low)
    expected = stretch(x, clip=False)
    assert_allclose(apply(ours, pixels, scale), expected, atol=2e-6)
    assert_allclose(apply(ours.inverse, expected, scale), pixels, atol=1e-4)


def test_negative_pixels_have_no_root_and_no_logarithm():
    """They count as zero, and spoil nothing."""
    for stretch in (LogStretch(), SqrtStretch()):
        assert_allclose(apply(as_stretch(stretch), [-1.0, -1e-3, 0.0]), 0)
    assert_allclose(
        apply(as_stretch(AsinhStretch()), [-0.5]), AsinhStretch()([-0.5], clip=False)
    )


@pytest.mark.parametrize("stretch", STRETCHES[:3])
def test_slopes_are_derivatives(stretch):
    """Against differences."""
    ours, x = as_stretch(stretch), np.linspace(-2.0, 2.0, 21)
    slope = (stretch(x + 1e-5, clip=False) - stretch(x - 1e-5, clip=False)) / 2e-5
    # in units of a scale of 4
    found = np.exp(apply(ours.log_slope, 4.0 * x, 4.0))
    assert_allclose(found, slope / 4.0, rtol=1e-4)
    assert np.isfinite(apply(ours.log_slope, [1e30, -1e30])).all()


@pytest.mark.parametrize("stretch", STRETCHES)
def test_they_are_data(stretch):
    """A model keeps them in its configuration, which is JSON."""
    norm = ImageNormalize(interval=ManualInterval(-1.0, 9.0), stretch=stretch)
    norm.vmin, norm.vmax = -1.0, 9.0
    for given in (stretch, norm):
        vae = VAE((4, 4, 1), 2, stretch=given)
        config = json.loads(json.dumps(vae.get_config()["stretch"]))
        assert config == as_config(as_stretch(given))
        assert as_config(as_stretch(config)) == config
        copy = VAE.from_config(vae.get_config())
        assert copy.get_config()["stretch"] == config


def test_the_encoder_sees_stretched_pixels(stack, tmp_path):
    """Masked ones are zero pixels; the model trains and is saved."""
    norm = ImageNormalize(vmin=-5.0, vmax=200.0, stretch=AsinhStretch(0.05))
    keras.utils.set_random_seed(1)
    vae = VAE(stack.image_shape, 2, encoder=DenseEncoder((8,)), stretch=norm, seed=1)
    vae.compile()
    vae.fit(stack, batch_size=20, verbose=0)
    batch = stack[:4].batch(np.arange(4))
    planes = vae._planes({n: ops.convert_to_tensor(p) for n, p in batch.items()})
    pixels = np.where(batch["mask"], 0, batch["image"])
    expected = AsinhStretch(0.05)((pixels + 5.0) / 205.0, clip=False)
    assert_allclose(ops.convert_to_numpy(planes), expected, atol=1e-6)
    vae.save_preset(tmp_path / "preset")
    copy = VAE.from_preset(tmp_path / "preset")
    assert_allclose(copy.encode(stack)[0], vae.encode(stack)[0], atol=1e-6)


@pytest.mark.parametrize("stretch", INVERTIBLE)
def test_stretched_likelihoods_are_densities_of_pixels(stretch):
    """They integrate to one over the pixels, whatever the stretch."""
    likelihood = GaussianLikelihood(learn_variance=False, stretch=stretch)
    scale = np.full(1, 2.0, "float32")
    pixels = np.linspace(-60.0, 120.0, 40_001)[:, None, None, None].astype("float32")
    maps = np.full_like(pixels, 1.5)
    params = likelihood.parameters(ops.convert_to_tensor(maps), scale)
    error = ops.full_like(params["mean"], 0.7)
    terms = likelihood.log_prob(ops.convert_to_tensor(pixels / 2), params, error=error)
    # densities are in units of the scale
    density = np.exp(ops.convert_to_numpy(terms).astype(float)) / 2.0
    total = integrate.trapezoid(density, pixels[:, 0, 0, 0])
    assert_allclose(total, 1.0, rtol=2e-4)


def test_stretched_likelihoods_equal_scipy():
    """The density of the stretched pixel, times the slope at the pixel."""
    stretch = AsinhStretch(0.3)
    likelihood = GaussianLikelihood(learn_variance=False, stretch=stretch)
    plain = GaussianLikelihood(learn_variance=False)
    rng = np.random.default_rng(1)
    image, maps = rng.normal(size=(2, 4, 3, 3, 1)).astype("float32")
    scale, error = np.full(1, 2.0, "float32"), np.full_like(image, 0.4)
    found = []
    for one in (likelihood, plain):
        params = one.parameters(ops.convert_to_tensor(maps), scale)
        found.append(ops.convert_to_numpy(one.log_prob(image, params, error=error)))
    x, m = (stretch(a.astype(float), clip=False) for a in (image, maps))
    slope_x, slope_m = (
        (stretch(a + 1e-5, clip=False) - stretch(a - 1e-5, clip=False)) / 2e-5
        for a in (image.astype(float), maps.astype(float))
    )
    sigma = np.sqrt(0.16 + 1e-6) * slope_m
    terms = stats.norm.logpdf(x, m, sigma) + np.log(slope_x)
    assert_allclose(found[0], terms.sum((1, 2, 3)), rtol=1e-3)
    terms = stats.norm.logpdf(image, maps, np.sqrt(0.16 + 1e-6))
    assert_allclose(found[1], terms.sum((1, 2, 3)), rtol=1e-4)
    # a linear stretch changes nothing
    linear = GaussianLikelihood(learn_variance=False, stretch=LinearStretch(3.0, 1.0))
    params = linear.parameters(ops.convert_to_tensor(maps), scale)
    terms = ops.convert_to_numpy(linear.log_prob(image, params, error=error))
    assert_allclose(terms, found[1], rtol=1e-4)


def test_stretched_pixels_are_drawn_and_standardised():
    """Deviates go in and come out; drawn pixels have the density."""
    likelihood = GaussianLikelihood(learn_variance=False, stretch=AsinhStretch(0.3))
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, 40, 40, 1)).astype("float32")
    params = likelihood.parameters(ops.full((2, 40, 40, 1), 0.5), np.ones(1, "float32"))
    error = ops.full((2, 40, 40, 1), 0.3)
    drawn = likelihood.draw(params, noise, error)
    back = likelihood.standardize(drawn, params, error)
    assert_allclose(ops.convert_to_numpy(back), noise, atol=1e-4)
    terms = ops.convert_to_numpy(likelihood.log_prob(drawn, params, error=error))
    plain = GaussianLikelihood(learn_variance=False)
    others = ops.convert_to_numpy(plain.log_prob(drawn, params, error=error))
    # the truth is more likely, on average
    assert (terms > others).all()


def test_a_model_with_a_stretched_likelihood(stack, tmp_path):
    """It trains, is saved, and gives images in the unit of the pixels."""
    likelihood = GaussianLikelihood(stretch=AsinhStretch(1.0))
    keras.utils.set_random_seed(1)
    vae = VAE(stack.image_shape, 2, encoder=DenseEncoder((8,)), likelihood=likelihood)
    vae.compile(keras.optimizers.Adam(3e-3))
    history = vae.fit(stack, batch_size=20, epochs=20, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    images = vae.simulate(stack[:3])["image"]
    assert np.isfinite(images).all()
    vae.save_preset(tmp_path / "preset")
    copy = VAE.from_preset(tmp_path / "preset")
    assert copy.likelihood.get_config() == likelihood.get_config()
    assert_allclose(copy.elbo(stack), vae.elbo(stack), rtol=1e-5)


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        ("sinh", "stretch must be 'linear', 'asinh', or a stretch"),
        (PowerStretch(2.0), "got PowerStretch"),
        (HistEqStretch(np.arange(9.0)), "got HistEqStretch"),
        (ImageNormalize(stretch=SqrtStretch()), "interval of a stretch must be fixed"),
        ({"kind": "AsinhStretch", "b": 1.0}, "has no argument b"),
        ({}, "got None"),
        ({"kind": "AsinhStretch", "a": 0.0}, "a positive a"),
        ({"kind": "AsinhStretch", "a": np.inf}, "needs numbers"),
        ({"kind": "LinearStretch", "intercept": np.nan}, "needs numbers"),
        ({"kind": "AsinhStretch", "vmin": -np.inf, "vmax": 1.0}, "vmin < vmax"),
        (
            ImageNormalize(vmin=0 * u.nJy, vmax=9 * u.nJy, stretch=AsinhStretch()),
            "plain numbers",
        ),
        ({"kind": "SqrtStretch", "vmin": 3.0, "vmax": 1.0}, "vmin < vmax"),
    ],
)
def test_bad_arguments(stretch, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        VAE((4, 4, 1), 2, stretch=stretch)


@pytest.mark.parametrize("stretch", [SqrtStretch(), LogStretch(), "asinh"])
def test_likelihoods_need_a_stretch_of_any_pixel(stretch):
    """A root of negative noise has no density."""
    with pytest.raises(ValueError, match="takes any pixel"):
        GaussianLikelihood(stretch=stretch)
