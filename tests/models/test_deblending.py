# Licensed under a 3-clause BSD style license - see LICENSE
"""Deblending where the answer is known: linear models of galaxies."""

import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.exceptions import PreprocessingError
from astrovae.images import CutoutStack
from astrovae.layers import PoseTransform
from astrovae.models import (
    VAE,
    DenseDecoder,
    DenseEncoder,
    GaussianLikelihood,
    deblend,
)
from astrovae.models._shift import Shift

SHAPE, SCENE = (9, 9), (11, 15)
ERROR = 0.5
# pixels (x, y) of the middle of three galaxies; the second blend has two
POSITIONS = np.array(
    [[[4, 5], [9, 5], [7, 7]], [[5, 5], [8, 4], [np.nan, np.nan]]], dtype=float
)


def profiles():
    """Two round galaxies of different size: what the decoder adds up."""
    y, x = np.mgrid[:9, :9] - 4.0
    radius = np.hypot(x, y)
    images = np.stack([np.exp(-0.5 * (radius / s) ** 2) for s in (1.0, 2.0)])
    return images * (radius < 4.2)


def linear_vae(posterior="diagonal", learn_variance=False, **kwargs):
    """A galaxy is ``3 + z_0`` times one profile and ``z_1`` times another."""
    number = 1 + learn_variance
    vae = VAE(
        (*SHAPE, 1),
        latent_dim=2,
        encoder=DenseEncoder(()),
        decoder=DenseDecoder((*SHAPE, number), ()),
        likelihood=GaussianLikelihood(learn_variance=learn_variance),
        posterior=posterior,
        scale=[1.0],
        noise=[1.0],
        seed=3,
        **kwargs,
    )
    weights = np.zeros((2, *SHAPE, number))
    weights[..., 0] = profiles()
    bias = np.zeros((*SHAPE, number))
    bias[..., 0] = 3 * profiles()[0]
    if learn_variance:
        bias[..., 1] = np.log(np.expm1(ERROR**2))
    flat = weights.reshape(2, -1), bias.ravel()
    vae.decoder.output_layer.set_weights(flat)
    # the encoder guesses badly: that of a galaxy without contrast
    kernel, offset = vae.posterior_layer.get_weights()
    vae.posterior_layer.set_weights([0 * kernel, offset * 0])
    return vae


def at(image, position):
    """An image of a galaxy, placed in the scene."""
    scene = np.zeros((SCENE[0] + 20, SCENE[1] + 20))
    x, y = (int(value) + 6 for value in position)
    scene[y : y + 9, x : x + 9] = image
    return scene[10:-10, 10:-10]


@pytest.fixture
def blends(rng):
    """Two blends, their true latents and noise-free galaxies."""
    truth = rng.normal(size=(2, 3, 2))
    galaxies = np.zeros((2, 3, *SCENE, 1))
    for i, k in np.ndindex(2, 3):
        if np.isfinite(POSITIONS[i, k, 0]):
            light = 3 * profiles()[0] + np.tensordot(truth[i, k], profiles(), 1)
            galaxies[i, k, ..., 0] = at(light, POSITIONS[i, k])
    image = galaxies.sum(axis=1) + ERROR * rng.normal(size=(2, *SCENE, 1))
    error = np.full(image.shape, ERROR)
    return truth, galaxies, {"image": image, "error": error}


def closed_form(image, positions, mask=None):
    """Mean and precision of the exact posterior of all latents of a blend."""
    places = [p for p in positions if np.isfinite(p[0])]
    design = np.stack([at(w, p).ravel() for p in places for w in profiles()], axis=1)
    data = image.ravel() - sum(at(3 * profiles()[0], p).ravel() for p in places)
    weight = np.ones(len(data)) if mask is None else ~mask.ravel()
    scaled = design * (weight / ERROR**2)[:, None]
    precision = np.eye(design.shape[1]) + scaled.T @ design
    return np.linalg.solve(precision, scaled.T @ data), precision


def flux_errors(inputs, positions=POSITIONS):
    """Errors of fluxes at given latents of the other galaxies."""
    sums = profiles().sum(axis=(1, 2))
    errors = np.full(positions.shape[:2], np.nan)
    for i, places in enumerate(positions):
        _, precision = closed_form(inputs["image"][i], places)
        for k in range(len(precision) // 2):
            own = slice(2 * k, 2 * k + 2)
            errors[i, k] = np.sqrt(sums @ np.linalg.solve(precision[own, own], sums))
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("method", ["map", "posterior"])
def test_exact_posterior(blends, method):
    """Of linear galaxies, the mean is that of linear algebra; so is the variance."""
    _, _, inputs = blends
    found = deblend(linear_vae(), inputs, POSITIONS, method=method)
    for i in range(2):
        mean, precision = closed_form(inputs["image"][i], POSITIONS[i])
        n = len(mean) // 2
        assert_allclose(found["mean"][i, :n].ravel(), mean, atol=0.02)
        if method == "posterior":
            # the best independent normal distributions; samples leave some noise
            expected = -np.log(np.diag(precision))
            assert_allclose(found["log_var"][i, :n].ravel(), expected, atol=0.1)
    assert np.isnan(found["mean"][1, 2]).all()
    assert np.isnan(found["flux"][1, 2]).all()
    assert (found["model"][1, 2] == 0).all()
    if method == "map":
        assert np.isnan(found["log_var"]).all()
        assert np.isnan(found["flux_err"]).all()


@pytest.mark.slow
def test_images_and_fluxes(blends):
    """Models are the galaxies, shares add up to the image, fluxes have errors."""
    _, galaxies, inputs = blends
    vae = linear_vae("full")
    found = deblend(vae, inputs, POSITIONS, refine=10, num_draws=64)
    # of the peak, 6
    assert_allclose(found["model"], galaxies, atol=1.2)
    assert np.abs(found["model"] - galaxies).mean() < 0.06
    assert_allclose(found["shared"].sum(axis=1), inputs["image"], atol=1e-4)
    assert (np.sign(found["shared"]) * np.sign(inputs["image"][:, None]) >= 0).all()
    present = np.isfinite(POSITIONS[..., 0])
    painted = vae.decode(found["mean"][present])["mean"].sum(axis=(1, 2))
    assert_allclose(found["flux"][present], painted, rtol=1e-4)
    # the flux is a linear function of the latents, others being given
    assert_allclose(found["flux_err"][present, 0], flux_errors(inputs)[present], 0.2)
    assert found["model"].dtype == found["shared"].dtype == np.float32


@pytest.mark.parametrize("learn_variance", [False, True])
def test_one_galaxy_is_reconstructed(rng, learn_variance):
    """Of an isolated galaxy in the middle, it is what the model says of it."""
    vae = linear_vae(learn_variance=learn_variance)
    kernel, offset = vae.posterior_layer.get_weights()
    vae.posterior_layer.set_weights([rng.normal(0, 0.1, kernel.shape), offset])
    image = rng.normal(size=(3, *SHAPE, 1)) + 3 * profiles()[0][..., None]
    inputs = {"image": image}
    if not learn_variance:
        inputs["error"] = np.full(image.shape, ERROR)
    middle = np.full((3, 1, 2), 4.0)
    found = deblend(vae, inputs, middle, refine=0)
    single = vae.reconstruct(inputs)["mean"]
    assert_allclose(found["model"][:, 0], single, atol=2e-3)
    mean, log_var = vae.encode(inputs)
    assert_allclose(found["mean"][:, 0], mean, atol=2e-3)
    assert_allclose(found["log_var"][:, 0], log_var, atol=2e-3)
    assert_allclose(found["shared"][:, 0], image, atol=1e-5)
    found = deblend(vae, inputs, middle, refine=10)
    design = profiles().reshape(2, -1)
    precision = np.eye(2) + design @ design.T / ERROR**2
    data = (image[..., 0] - 3 * profiles()[0]).reshape(3, -1)
    mean = np.linalg.solve(precision, design @ data.T / ERROR**2).T
    assert_allclose(found["mean"][:, 0], mean, atol=0.03)
    expected = np.broadcast_to(-np.log(np.diag(precision)), (3, 2))
    assert_allclose(found["log_var"][:, 0], expected, atol=0.1)


@pytest.mark.slow
def test_pulls(rng):
    """Errors of fluxes are right for galaxies alone; for blends a known part lacks."""
    n = 400
    positions = np.tile([[4.0, 5.0], [6.0, 5.0]], (n, 1, 1))
    positions[: n // 2, 1] = np.nan
    truth = rng.normal(size=(n, 2, 2))
    images = ERROR * rng.normal(size=(n, *SCENE, 1))
    for i, k in np.argwhere(np.isfinite(positions[..., 0])):
        light = 3 * profiles()[0] + np.tensordot(truth[i, k], profiles(), 1)
        images[i, ..., 0] += at(light, positions[i, k])
    inputs = {"image": images, "error": np.full(images.shape, ERROR)}
    found = deblend(
        linear_vae("full"), inputs, positions, refine=1, num_draws=64, batch_size=n
    )
    sums = profiles().sum(axis=(1, 2))
    flux = 3 * profiles()[0].sum() + truth @ sums
    pulls = (found["flux"][..., 0] - flux) / found["flux_err"][..., 0]
    assert_allclose(pulls[: n // 2, 0].std(), 1, atol=0.15)
    # light that went from one galaxy to the other is in no error
    blend = {"image": images[n // 2 :][:1]}
    _, precision = closed_form(blend["image"][0], positions[-1])
    full = np.sqrt(sums @ np.linalg.inv(precision)[:2, :2] @ sums)
    lacking = full / flux_errors(blend, positions[-1:])[0, 0]
    assert lacking > 1.2
    assert_allclose(pulls[n // 2 :].std() / lacking, 1, atol=0.15)


def test_shift_is_the_pose_transform(rng):
    """Of galaxies that are moved only, sizes even and odd, beyond the edges too."""
    images = rng.normal(size=(3, 7, 10, 2)).astype("float32")
    pose = np.array([[0.3, -1.7, 0, 1], [5, 0, 0, 1], [-8.4, 2.5, 0, 1]], "float32")
    for shape in ((9, 13), (7, 10), (4, 5)):
        for interpolation in ("cubic", "linear"):
            inputs = ops.convert_to_tensor(images), ops.convert_to_tensor(pose)
            moved = Shift(shape, interpolation)(inputs)
            turned = PoseTransform(shape, interpolation=interpolation)(inputs)
            assert_allclose(
                ops.convert_to_numpy(moved), ops.convert_to_numpy(turned), atol=1e-5
            )


@pytest.mark.slow
def test_masked_pixels_do_not_count(blends):
    """What lies under the mask changes nothing; models fill it."""
    _, _, inputs = blends
    mask = np.zeros(inputs["image"].shape, bool)
    mask[0, 5, 4:7] = True
    dirty = np.where(mask, np.nan, inputs["image"])
    options = {"refine": 10, "method": "map"}
    found = deblend(linear_vae(), {**inputs, "image": dirty}, POSITIONS, **options)
    mean, _ = closed_form(inputs["image"][0], POSITIONS[0], mask[0])
    assert_allclose(found["mean"][0].ravel(), mean, atol=0.03)
    there = np.broadcast_to(mask[:, None], found["model"].shape)
    assert_array_equal(found["shared"][there], found["model"][there])


@pytest.mark.slow
def test_sky_of_all_galaxies_counts_once(blends):
    """Without errors, two galaxies have not twice the noise that each was seen in."""
    _, _, inputs = blends
    vae = linear_vae(learn_variance=True, psf=False)
    vae._noise.assign([ERROR])
    found = deblend(vae, inputs["image"], POSITIONS, refine=10, method="map")
    mean, _ = closed_form(inputs["image"][0], POSITIONS[0])
    assert_allclose(found["mean"][0].ravel(), mean, atol=0.03)


@pytest.mark.slow
def test_psf_and_subpixel_positions(rng):
    """Galaxies are painted before the PSF, at places between the pixels."""
    vae = linear_vae(psf=True, canvas_shape=SHAPE)
    y, x = np.mgrid[:31, :33]
    places = np.array([[[12.3, 14.6], [18.1, 15.2]]])
    psf_y, psf_x = np.mgrid[-4:5, -4:5]
    psf = np.exp(-0.5 * (psf_x**2 + psf_y**2) / 1.2**2)
    psf /= psf.sum()
    image = np.zeros((31, 33))
    flux = []
    for px, py in places[0]:
        # a Gaussian of sigma 1 behind one of 1.2 is one of sigma sqrt(2.44)
        square = (x - px) ** 2 + (y - py) ** 2
        image += 3.5 / 2.44 * np.exp(-0.5 * square / 2.44)
        flux.append(3.5 * 2 * np.pi)
    inputs = {
        "image": image[None, ..., None],
        "error": np.full((1, 31, 33, 1), 0.01),
        "psf": psf[None, ..., None],
    }
    found = deblend(vae, inputs, places, refine=10, method="map")
    assert_allclose(found["flux"][0, :, 0], flux, rtol=0.03)
    assert_allclose(found["mean"][0], [[0.5, 0], [0.5, 0]], atol=0.1)
    residual = found["model"][0].sum(axis=0)[..., 0] - image
    assert np.abs(residual).max() < 0.03 * image.max()


def test_poses(rng):
    """Galaxies of models with a pose are turned as they are said to be."""
    vae = linear_vae(pose=True)
    weights, _ = vae.decoder.output_layer.get_weights()
    y, x = np.mgrid[:9, :9] - 4.0
    flat = np.exp(-0.5 * ((x / 2) ** 2 + y**2)).ravel()
    vae.decoder.output_layer.set_weights([0 * weights, 5 * flat])
    places = np.array([[[6.0, 7.0], [14.0, 7.0]]])
    image = np.zeros((1, 15, 21, 1))
    poses = np.array([[[0.0, 1.0], [np.pi / 2, 1.0]]])
    inputs = {"image": image, "error": np.ones(image.shape)}
    model = deblend(vae, inputs, places, poses=poses, refine=0)["model"][0, ..., 0]
    assert_allclose(model[0][3:12, 2:11], 5 * flat.reshape(9, 9), atol=1e-5)
    assert_allclose(model[1][3:12, 10:19], 5 * flat.reshape(9, 9).T, atol=1e-4)
    with pytest.raises(ValueError, match="this model needs poses"):
        deblend(vae, inputs, places)
    with pytest.raises(ValueError, match="poses must have the shape"):
        deblend(vae, inputs, places, poses=np.zeros((1, 2, 5)))
    with pytest.raises(ValueError, match="poses are for models with pose"):
        deblend(linear_vae(), inputs, places, poses=poses)


def test_misuse(blends):
    """Messages say what does not fit."""
    _, _, inputs = blends
    vae = linear_vae()
    with pytest.raises(ValueError, match="positions must have the shape"):
        deblend(vae, inputs, POSITIONS[0])
    with pytest.raises(ValueError, match="galaxy 1 of blend 0 lies outside"):
        deblend(vae, inputs, np.add(POSITIONS, [[[0, 0], [20, 0], [0, 0]]]))
    with pytest.raises(ValueError, match="knows galaxies in 1 bands, the blends have"):
        deblend(vae, np.zeros((2, *SCENE, 3)), POSITIONS)
    with pytest.raises(ValueError, match="needs the psf of the images"):
        deblend(linear_vae(psf=True), inputs, POSITIONS)
    with pytest.raises(ValueError, match="method must be one of"):
        deblend(vae, inputs, POSITIONS, method="fast")
    nothing = deblend(vae, {k: v[:0] for k, v in inputs.items()}, POSITIONS[:0])
    assert nothing["model"].shape == (0, 3, *SCENE, 1)
    record = CutoutStack(np.zeros((1, *SHAPE, 1)), bands=["r"]).preprocessing
    vae = linear_vae(preprocessing=record)
    stack = CutoutStack(inputs["image"], error=inputs["error"], bands=["i"])
    with pytest.raises(PreprocessingError, match="bands"):
        deblend(vae, stack, POSITIONS)
    stack = CutoutStack(inputs["image"], error=inputs["error"], bands=["r"])
    assert deblend(vae, stack, POSITIONS, refine=0)["flux"].shape == (2, 3, 1)
