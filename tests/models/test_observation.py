"""Tests of what lies between galaxy and pixels, and of what the encoder sees."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy.signal import fftconvolve

from astrovae._batches import BatchDataset
from astrovae.datasets import make_galaxies
from astrovae.exceptions import FlaggedRowsWarning, PreprocessingError
from astrovae.layers import (
    FlowPrior,
    MaskedAutoregressiveFlow,
    MixturePrior,
    VampPrior,
)
from astrovae.models import VAE, DenseEncoder, FreeBits, SigmaWarmup


@pytest.fixture(scope="module")
def blurred(stack):
    """The galaxies of the other tests, each with a PSF that is not symmetric."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-3:4, -3:4][..., None]
    width = rng.uniform(0.8, 1.6, (40, 1, 1, 1))
    psf = np.exp(-0.5 * ((x - 0.3) ** 2 + (y + 0.2 * x) ** 2) / width**2)
    psf = np.repeat(psf / psf.sum((1, 2), keepdims=True), 2, axis=3)
    return stack.replace(psf=psf.astype("float32"))


def make_vae(stack, **kwargs):
    """A small model with reproducible weights."""
    keras.utils.set_random_seed(1)
    options = {"latent_dim": 2, "seed": 2, "scale": [5.0, 6.0], "noise": [1.0, 1.0]}
    encoder = DenseEncoder((16,))
    return VAE(stack.image_shape, encoder=encoder, **{**options, **kwargs})


def test_decoder_paints_before_the_psf(blurred):
    """What is reconstructed is what is painted, convolved and cut."""
    vae = make_vae(blurred, psf=True, canvas_shape=(24, 26))
    rows = blurred[:3]
    mean, _ = vae.encode(rows)
    painted, observed = vae.decode(mean), vae.reconstruct(rows)
    assert painted["mean"].shape == (3, 24, 26, 2)
    for galaxy, psf, found in zip(painted["mean"], rows.psf, observed["mean"]):
        for band in range(2):
            expected = fftconvolve(galaxy[..., band], psf[..., band], mode="same")
            assert_allclose(found[..., band], expected[4:20, 5:21], atol=2e-4)
    # how badly a galaxy is painted is a matter of the pixels
    cut = painted["log_var"][:, 4:20, 5:21]
    assert_allclose(observed["log_var"], cut, atol=1e-4)


def test_a_shared_psf_is_that_of_each_galaxy(blurred):
    """One PSF for all, and the same PSF for each."""
    vae = make_vae(blurred, psf=True)
    one = blurred.replace(psf=blurred.psf[:1])
    each = blurred.replace(psf=np.repeat(blurred.psf[:1], 40, axis=0))
    assert_allclose(vae.reconstruct(one)["mean"], vae.reconstruct(each)["mean"])


def test_pose_then_psf():
    """Galaxies are turned before they are blurred: the PSF stays as it is."""
    _, stack = make_galaxies(3, shape=(21, 21), seed=2)
    y, x = np.mgrid[-4:5, -4:5][..., None]
    psf = np.exp(-0.5 * (x**2 / 4 + y**2))[None]
    psf = np.repeat(psf / psf.sum(), 3, axis=0).astype("float32")
    pose = np.array([[0, 0, 0, 1], [0, 0, np.pi / 2, 1], [1, 2, np.pi, 1]], "float32")
    inputs = {"image": stack.data, "psf": psf, "pose": pose}
    options = {"canvas_shape": (31, 31), "scale": [1.0], "noise": [1.0]}
    vae = make_vae(stack, pose=True, psf=True, **options)
    star = np.zeros((1, 31, 31, 1), "float32")
    star[0, 15, 17] = 1.0  # two pixels along the major axis
    params = {"mean": np.repeat(star, 3, 0), "log_var": np.full((3, 31, 31, 1), -9.0)}
    params = {name: ops.convert_to_tensor(p, "float32") for name, p in params.items()}
    batch = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
    found = ops.convert_to_numpy(vae._observe(params, batch)["mean"])[..., 0]
    for image, (column, row) in zip(found, [(12, 10), (10, 12), (9, 12)]):
        expected = np.zeros((21, 21))
        expected[row - 4 : row + 5, column - 4 : column + 5] = psf[0, ..., 0]
        assert_allclose(image, expected, atol=1e-5)


def test_beyond_the_canvas_there_is_sky():
    """Corners that no pixel of the canvas reaches are not certain to be empty."""
    _, stack = make_galaxies(2, shape=(20, 20), seed=2)
    pose = np.array([[0, 0, 0, 1], [0, 0, np.pi / 4, 1]], "float32")
    vae = make_vae(stack, pose=True, scale=[2.0], noise=[0.5])
    images = vae.reconstruct({"image": stack.data, "pose": pose})
    assert_allclose(images["mean"][1, 0, 0], 0.0, atol=1e-6)
    # no pixel is less certain than the sky, in units of the pixels
    assert_allclose(np.exp(images["log_var"][1, 0, 0]), 0.25, rtol=1e-3)
    mean, _ = vae.encode({"image": stack.data, "pose": pose})
    painted = vae.decode(mean)["log_var"]
    assert_allclose(images["log_var"][0], painted[0], atol=1e-4)


@pytest.mark.parametrize("pose", [False, True])
def test_encoder_sees_side_inputs(blurred, pose):
    """Mask, error, PSF and missing bands each change the posterior."""
    rng = np.random.default_rng(4)
    names = ("mask", "error", "psf", "bands")
    vae = make_vae(blurred, side_inputs=names, pose=pose)
    assert vae.encoder.hidden[0].kernel.shape[0] == 16 * 16 * 2 * 5
    mask = np.zeros((3, 16, 16, 2), bool)
    # pixels that are masked or zero look the same: only their mask tells
    image = blurred.data[:3].copy()
    image[:, :2] = 0
    image[..., 1] = 0
    inputs = {
        "image": image,
        "mask": mask,
        "error": np.ones_like(image),
        "psf": blurred.psf[:3],
        "pose": rng.uniform(-1, 1, (3, 4)).astype("float32"),
    }
    plain, _ = vae.encode(inputs)
    hidden, missing = mask.copy(), mask.copy()
    hidden[:, :2, :, 0] = True
    missing[..., 1] = True
    changes = {
        "mask": hidden,
        "error": np.full_like(image, 3.0),
        "psf": blurred.psf[3:6],
    }
    for name, value in [*changes.items(), ("mask", missing)]:
        changed, _ = vae.encode({**inputs, name: value})
        assert (np.abs(changed - plain) > 1e-4).any(axis=1).all(), name
    # what lies under the mask still reaches nothing
    results = []
    for value in (0.0, np.nan, 1e30):
        data = np.where(hidden, np.float32(value), image)
        error = np.where(hidden, np.float32(value), inputs["error"])
        masked = {**inputs, "image": data, "mask": hidden, "error": error}
        results.append(vae.encode(masked)[0])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_psf_plane_is_turned_with_the_galaxy():
    """In the aligned frame the PSF has the angle that it has to the galaxy."""
    _, stack = make_galaxies(1, shape=(16, 16), seed=2)
    vae = make_vae(stack, side_inputs=["psf"], pose=True, scale=[1.0], noise=[1.0])
    psf = np.zeros((1, 5, 5, 1), "float32")
    psf[0, 2, 2:] = 1.0  # a line to the right of the centre
    for angle, end in [(0.0, (9.5, 7.5)), (np.pi / 2, (7.5, 5.5))]:
        pose = np.array([[1.0, -2.0, angle, 1]], "float32")
        batch = {"image": stack.data, "psf": psf, "pose": pose}
        batch = {n: ops.convert_to_tensor(a, "float32") for n, a in batch.items()}
        plane = ops.convert_to_numpy(vae._planes(batch))[0, ..., 1]
        y, x = np.mgrid[:16, :16]
        centroid = [(x * plane).sum() / plane.sum(), (y * plane).sum() / plane.sum()]
        # the middle of the line, between the middle of the stamp and its end
        assert_allclose(centroid, (np.array([7.5, 7.5]) + end) / 2, atol=1e-3)


def test_missing_planes_are_named(stack):
    """The error says which plane, and how to get it."""
    bare = stack.replace(psf=None, error=None)
    for options, name in [
        ({"psf": True}, "the PSF of the images"),
        ({"side_inputs": ["psf"]}, "the PSF of the images"),
        ({"side_inputs": ["error"]}, "the error of each pixel"),
        ({"pose": True}, "the pose of each galaxy"),
    ]:
        with pytest.raises(ValueError, match=name):
            make_vae(stack, **options).encode(bare)


@pytest.mark.parametrize("options", [{"psf": True}, {"side_inputs": ["psf"]}])
@pytest.mark.parametrize("method", ["encode", "fit", "evaluate", "predict"])
def test_even_psfs_are_refused_at_the_door(stack, options, method):
    """Before anything is compiled, with what to do."""
    even = stack.replace(psf=np.ones((1, 5, 6, 2)))
    vae = make_vae(stack, **options)
    vae.compile()
    with pytest.raises(ValueError, match=r"odd ky and kx.*'n', 5, 6, 2.*pad them"):
        getattr(vae, method)(even)


def test_psfs_that_add_light_are_refused_in_training(stack):
    """Counts of a star are no PSF; one that a small stamp cuts off is."""
    vae = make_vae(stack, psf=True)
    vae.compile()
    star = np.full((len(stack), 3, 3, 2), 100 / 9)
    star[0] = np.nan
    with pytest.raises(ValueError, match="must have the sum 1, got 100: divide"):
        vae.fit(stack.replace(psf=star))
    vae.fit(stack.replace(psf=0.0095 * star[1:2]), verbose=0)


def test_galaxies_without_psf_have_no_latents(blurred):
    """All their pixels are masked: catalogues say so, and leave no numbers."""
    from astropy.table import Table

    from astrovae.catalog import add_latents
    from astrovae.flags import Flag

    psf = blurred.psf.copy()
    psf[3], psf[5, :, :, 0] = np.nan, np.nan
    stack = blurred.replace(psf=psf)
    vae = make_vae(stack, psf=True)
    with pytest.warns(FlaggedRowsWarning, match="1 of 40 rows"):
        table = add_latents(Table({"id": stack.ids}), vae, stack)
    lost = np.arange(len(stack)) == 3
    assert (table["latent_mean"].mask.any(axis=1) == lost).all()
    flags = table["latent_flags"]
    assert ((flags & Flag.NO_VALID_PIXEL > 0) == lost).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas_shape": (20, 20)}, "canvas_shape is for models with pose"),
        ({"canvas_shape": (19, 20), "pose": True}, "larger by an even number"),
        ({"canvas_shape": (14, 14), "psf": True}, "larger by an even number"),
        ({"side_inputs": ["seeing"]}, "side_inputs must be one of"),
    ],
)
def test_bad_arguments(stack, options, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        make_vae(stack, **options)


def test_everything_at_once_trains_and_is_saved(blurred, tmp_path):
    """PSF, canvas, side inputs, full posterior: weights move and come back."""
    vae = make_vae(
        blurred,
        psf=True,
        canvas_shape=(20, 20),
        side_inputs=("mask", "error", "psf", "bands"),
        posterior="full",
    )
    vae.compile(keras.optimizers.Adam(1e-2))
    before = [np.array(weight) for weight in vae.trainable_weights]
    history = vae.fit(blurred, batch_size=16, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    for old, weight in zip(before, vae.trainable_weights, strict=True):
        assert not np.array_equal(old, np.array(weight)), weight.path
    vae.save_preset(tmp_path / "preset")
    copy = VAE.from_preset(tmp_path / "preset")
    for name in ("psf", "canvas_shape", "side_inputs", "posterior", "scale", "noise"):
        assert copy.get_config()[name] == vae.get_config()[name]
    assert np.array_equal(copy.encode(blurred)[0], vae.encode(blurred)[0])


def test_vamp_prior_uses_the_encoder_of_the_model(stack):
    """Its components are posteriors of pseudo-images, which are learned."""
    prior = VampPrior(3, 2, image_shape=stack.image_shape, seed=1)
    vae = make_vae(stack, prior=prior)
    components = prior.components()
    images = np.array(prior.pseudo_images) * vae.scale
    assert_allclose(components["means"], vae.encode(images)[0], atol=1e-5)
    vae.compile(keras.optimizers.Adam(1e-2))
    vae.fit(stack, batch_size=20, epochs=2, verbose=0)
    assert not np.allclose(images, np.array(prior.pseudo_images) * vae.scale)
    copy = VAE.from_config(vae.get_config())
    copy.set_weights(vae.get_weights())
    expected = prior.components()["means"]
    assert_allclose(copy.prior.components()["means"], expected, atol=1e-6)


def test_flow_prior_trains_with_the_model(stack):
    """Its weights move; a galaxy without pixels has the moments of the flow."""
    flow = MaskedAutoregressiveFlow(latent_dim=2, num_blocks=2, hidden_units=(8, 8))
    prior = FlowPrior(flow, seed=1)
    vae = make_vae(stack, prior=prior)
    vae.compile(keras.optimizers.Adam(1e-2))
    before = [np.array(weight) for weight in prior.trainable_weights]
    vae.fit(stack, batch_size=20, epochs=3, verbose=0)
    for old, weight in zip(before, prior.trainable_weights, strict=True):
        assert not np.array_equal(old, np.array(weight)), weight.path
    mean, log_var = vae.encode(stack)
    expected = [ops.convert_to_numpy(part) for part in prior.moments()]
    assert_allclose(mean[3], expected[0], atol=1e-5)
    assert_allclose(log_var[3], expected[1], atol=1e-5)


def test_penalty_of_the_prior_counts_in_training_alone(stack):
    """The Dirichlet prior on mixture weights, divided by the galaxies."""
    losses = {}
    for concentration in (1.0, 5.0):
        prior = MixturePrior(3, 2, concentration=concentration, seed=1)
        vae = make_vae(stack, prior=prior)
        # no step moves anything: the loss is that of the start
        vae.compile(keras.optimizers.SGD(0.0))
        history = vae.fit(stack, batch_size=40, epochs=1, verbose=0).history
        vae.sampling.seed_generator.state.assign([1, 2])
        evaluated = vae.evaluate(stack, batch_size=40, verbose=0, return_dict=True)
        losses[concentration] = history["loss"][0], evaluated["loss"]
        expected = float(ops.convert_to_numpy(prior.penalty(40.0)))
    assert expected > 0.1
    assert_allclose(losses[5.0][0] - losses[1.0][0], expected, atol=2e-3)
    assert_allclose(losses[5.0][1], losses[1.0][1])


@pytest.mark.parametrize("options", [{}, {"posterior": "full"}])
def test_mixed_precision(options):
    """Networks compute in bfloat16; densities, latents and weights do not."""
    _, stack = make_galaxies(40, shape=(16, 16), seed=1)
    inputs = {"image": stack.data, "error": stack.error}
    results = {}
    for policy in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(1)
        vae = VAE((16, 16, 1), 2, seed=1, dtype=policy, **options)
        vae.compile(keras.optimizers.Adam(1e-3))
        history = vae.fit(inputs, batch_size=20, epochs=4, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
        assert {weight.dtype for weight in vae.trainable_weights} == {"float32"}
        mean, log_var = vae.encode(inputs)
        assert mean.dtype == log_var.dtype == np.float32
        results[policy] = vae.measure(inputs)
        assert vae.encoder.compute_dtype == policy.removeprefix("mixed_")
    for name, values in results["mixed_bfloat16"].items():
        assert np.isfinite(values).all(), name
    one, other = (results[policy]["vae_elbo"] for policy in results)
    assert_allclose(other.mean(), one.mean(), rtol=0.05)


def test_training_goes_on_with_another_survey():
    """A trained model refuses other images until it is adapted to them."""
    _, first = make_galaxies(32, shape=(16, 16), seed=1)
    vae = VAE(first.image_shape, 2, DenseEncoder((16,)), seed=1)
    vae.compile()
    vae.fit(first, verbose=0)
    other = first.replace(
        data=10 * first.data, error=10 * first.error, pixel_scale=0.5, bands=["z"]
    )
    with pytest.raises(PreprocessingError):
        vae.fit(other, verbose=0)
    before, weights = vae.scale, vae.encoder.get_weights()
    vae.adapt(other)
    assert_allclose(vae.scale, 10 * before, rtol=1e-5)
    for old, new in zip(weights, vae.encoder.get_weights(), strict=True):
        assert np.array_equal(old, new)
    vae.fit(other, verbose=0)
    assert vae.preprocessing == other.preprocessing
    with pytest.raises(PreprocessingError):
        vae.encode(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": MixturePrior(2, 3)}, "the prior is one of 3 latents"),
        ({"prior": VampPrior(2, 2, image_shape=(4, 4, 1))}, "pseudo-images of shape"),
        ({"scale": [0.0, 1.0]}, "scale must be positive"),
        ({"noise": [np.nan, 1.0]}, "noise must be positive"),
    ],
)
def test_parts_that_do_not_fit(stack, options, message):
    """Priors of other latents or images, and scales that are none."""
    with pytest.raises(ValueError, match=message):
        make_vae(stack, **options)


def test_given_scales_are_kept(stack):
    """What is given is not measured."""
    vae = make_vae(stack, scale=[123.0, 7.0], noise=None)
    vae.compile()
    vae.fit(stack, verbose=0)
    assert_allclose(vae.scale, [123.0, 7.0])
    assert_allclose(vae.noise, np.median(stack.error[~stack.mask]), rtol=0.5)


def test_an_interrupted_schedule_is_undone(stack):
    """The next training begins as if there had been none."""

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    vae = make_vae(stack)
    vae.compile()
    callbacks = [SigmaWarmup(2.0, epochs=5), FreeBits(0.5, epochs=5), Interrupt()]
    with pytest.raises(KeyboardInterrupt):
        vae.fit(stack, epochs=5, verbose=0, callbacks=callbacks)
    assert (vae.beta, vae.free_bits, vae.extra_sigma) == (1.0, 0.0, 0.0)
    history = vae.fit(stack, batch_size=40, verbose=0, callbacks=Stop()).history
    # the loss is minus the ELBO, in units of the scale
    count = (~stack.mask).sum(axis=(1, 2))
    shift = (count * np.log(vae.scale)).sum() / (count.sum(axis=1) > 0).sum()
    assert_allclose(history["loss"][0], -history["elbo"][0] - shift, rtol=1e-4)


class Stop(keras.callbacks.Callback):
    """A single callback, given as such."""


def test_keras_datasets_need_a_model_that_was_adapted(stack):
    """A dataset cannot be measured."""
    dataset = BatchDataset(stack, 10)
    vae = make_vae(stack, scale=None)
    vae.compile()
    with pytest.raises(ValueError, match="call adapt"):
        vae.fit(dataset, verbose=0)
    vae.adapt(stack)
    vae.fit(dataset, verbose=0)
