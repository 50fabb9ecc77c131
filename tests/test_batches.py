"""Tests of batches and of functions mapped over them."""

import itertools
import signal

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from astrovae._batches import (
    BatchDataset,
    KeepVariables,
    RowFunction,
    random_flips,
)
from astrovae._sources import Arrays, as_source


@pytest.fixture
def images(rng):
    """Eleven small images."""
    return rng.normal(size=(11, 4, 4, 1)).astype("float32")


def sums(batch):
    """Sum of the pixels of each galaxy."""
    return {"sum": keras.ops.sum(batch["image"], axis=(1, 2, 3))}


@pytest.mark.parametrize("batch_size", [1, 3, 11, 50])
def test_row_function_covers_every_row_once(images, batch_size):
    """Whatever the batch size; the padding of the last batch is cut off."""
    result = RowFunction(sums).map(as_source(images), batch_size=batch_size)
    assert_allclose(result["sum"], images.sum(axis=(1, 2, 3)), rtol=1e-5)


def test_row_function_of_nothing(images):
    """Zero rows give zero rows of the same kind."""
    result = RowFunction(sums).map(as_source(images[:0]))
    assert result["sum"].shape == (0,)
    assert result["sum"].dtype == np.float32


def test_order_depends_on_seed_and_epoch(images):
    """Each epoch has its own order, the same whenever it is asked for."""
    dataset = BatchDataset(as_source(images), 4, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(dataset.order.tolist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(11))
    assert len(dataset) == 3


def test_fit_uses_the_order_of_the_epoch(images):
    """Keras asks for the batches of an epoch after its order was set."""
    from astrovae.models import VAE

    seen = []

    class Spy(BatchDataset):
        def __getitem__(self, index):
            seen.append((self.epoch, index))
            return super().__getitem__(index)

    from astrovae._batches import EpochCallback

    vae = VAE((4, 4, 1), latent_dim=1)
    vae.adapt(images)
    vae.compile()
    dataset = Spy(as_source(images), 11, seed=0)
    vae.fit(dataset, epochs=3, verbose=0, callbacks=[EpochCallback(dataset)])
    epochs = [epoch for epoch, index in seen]
    assert epochs[-3:] == [0, 1, 2]


def test_random_flips_keep_planes_together(rng):
    """All planes of a galaxy are turned alike, and all eight ways occur."""
    image = rng.normal(size=(200, 5, 5, 1)).astype("float32")
    batch = {"image": image, "error": image + 7, "mask": image > 0}
    turned = random_flips(batch, rng)
    assert_allclose(turned["error"], turned["image"] + 7)
    assert np.array_equal(turned["mask"], turned["image"] > 0)
    ways = set()
    for before, after in zip(image[..., 0], turned["image"][..., 0]):
        for way in range(8):
            other = np.rot90(before[::-1] if way & 4 else before, way & 3)
            if np.array_equal(other, after):
                ways.add(way)
    assert ways == set(range(8))


def test_bad_sources(images):
    """Misuse is named."""
    with pytest.raises(TypeError, match="expected a CutoutStack"):
        as_source([1, 2])
    with pytest.raises(ValueError, match="must have the key 'image'"):
        as_source({"pixels": images})
    with pytest.raises(ValueError, match="equal length"):
        Arrays({"image": images, "mask": images[:2]})
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        BatchDataset(as_source(images), 0)


def test_random_flips_turn_poses_with_their_images(rng):
    """The aligned image of a turned galaxy is that of the galaxy."""
    from astrovae.layers import PoseTransform

    image = rng.normal(size=(40, 9, 9, 1)).astype("float32")
    pose = np.stack(
        [
            rng.uniform(-1, 1, 40),
            rng.uniform(-1, 1, 40),
            rng.uniform(-3, 3, 40),
            rng.choice([-1, 1], 40),
        ],
        axis=1,
    ).astype("float32")
    turned = random_flips({"image": image, "pose": pose}, rng)
    assert not np.array_equal(turned["pose"], pose)
    align = PoseTransform(frame="aligned")
    before, after = (
        keras.ops.convert_to_numpy(align((batch["image"], batch["pose"])))
        for batch in ({"image": image, "pose": pose}, turned)
    )
    assert_allclose(after, before, atol=1e-4)


def test_mirrors_keep_lines_horizontal(rng):
    """Four ways, each of them met, and none that turns by a right angle."""
    image = rng.normal(size=(200, 3, 5, 1))
    found = random_flips({"image": image}, rng, ways=4)["image"]
    ways = [image, image[:, ::-1], image[:, :, ::-1], image[:, ::-1, ::-1]]
    same = [(found == way).all(axis=(1, 2, 3)) for way in ways]
    assert (np.sum(same, axis=0) == 1).all()
    assert min(np.sum(same, axis=1)) > 30


def test_batches_without_masks(images):
    """Where every pixel counts, and only if it is wished."""
    image = images.copy()
    source = as_source(image)
    assert source.complete
    assert set(BatchDataset(source, 4)[0]) == {"image", "mask"}
    batch = BatchDataset(source, 4, masks=False, augment=random_flips)[0]
    assert set(batch) == {"image"}


@pytest.mark.parametrize("plane", ["image", "mask", "error"])
def test_one_pixel_makes_images_incomplete(images, plane):
    """The last of many galaxies, too."""
    arrays = {"image": images, "mask": np.zeros(images.shape, bool)}
    arrays["error"] = np.ones_like(images)
    arrays = {name: np.repeat(array, 200, axis=0) for name, array in arrays.items()}
    assert Arrays(arrays).complete
    arrays[plane][-1, 2, 3] = {"image": np.nan, "mask": True, "error": 0.0}[plane]
    assert not Arrays(arrays).complete
    assert not Arrays({"z": images[:, 0, 0]}, clean=False).complete


def test_row_function_computes_in_float32(images):
    """Images are not rounded, whatever the global policy is."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        result = RowFunction(sums).map(as_source(images))["sum"]
    finally:
        keras.config.set_dtype_policy(policy)
    assert_allclose(result, images.sum(axis=(1, 2, 3)), rtol=1e-5, atol=1e-5)


def test_unknown_psfs_and_poses_are_harmless(images):
    """A band without PSF is masked; a galaxy without pose stays as it is."""
    n = len(images)
    psf = np.full((n, 3, 3, images.shape[-1]), 1 / 9)
    psf[1, 0, 0, 0] = np.nan
    pose = np.ones((n, 5))
    pose[2, 1] = np.inf
    batch = as_source({"image": images, "psf": psf, "pose": pose}).batch(np.arange(n))
    assert batch["mask"][1, ..., 0].all()
    assert batch["mask"].sum() == images[1, ..., 0].size
    assert np.isfinite(batch["psf"]).all()
    assert batch["pose"][2].tolist() == [0, 0, 0, 1, 0]
    assert np.array_equal(batch["pose"][3], np.ones(5))
    # nothing was changed in place
    assert np.isnan(psf[1, 0, 0, 0])
    assert np.isinf(pose[2, 1])


class Unreadable:
    """A source whose rows from ``first`` on cannot be read."""

    def __init__(self, images, first):
        self.source, self.first = as_source(images), first

    def __len__(self):
        return len(self.source)

    def __getitem__(self, rows):
        return self

    def batch(self, indices):
        """Read rows, or fail."""
        if np.max(indices, initial=-1) >= self.first:
            msg = "the disk is gone"
            raise OSError(msg)
        return self.source.batch(indices)


@pytest.mark.parametrize("first", [0, 8])
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "encode"])
def test_failures_leave_the_weights(images, first, method):
    """In the first step and in a later one; the model works on afterwards."""
    from astrovae.models import VAE

    images = np.concatenate([images, images])
    vae = VAE((4, 4, 1), latent_dim=2, seed=1)
    vae.compile(keras.optimizers.SGD(0.0))
    vae.fit(images, epochs=1, verbose=0)
    before = vae.get_weights()
    quiet = {} if method == "encode" else {"verbose": 0}
    with pytest.raises(Exception, match="the disk is gone"):
        getattr(vae, method)(Unreadable(images, first), batch_size=4, **quiet)
    for old, new in zip(before, vae.get_weights(), strict=True):
        assert_allclose(new, old)
    vae.fit(images, epochs=1, verbose=0)
    assert np.isfinite(vae.encode(images)[0]).all()


@pytest.fixture
def handler():
    """What an interrupt does, also to processes that were told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["function", "iterator"])
def test_interrupts_leave_the_weights(images, monkeypatch, handler, where):
    """Even if they come before the results of a step are noted."""
    from astrovae.models import VAE

    model = VAE((4, 4, 1), latent_dim=2, seed=1)
    model.compile("sgd")
    steps = itertools.count()

    def interrupt():
        if next(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    def make_train_function(self, force=False):
        keras.Model.make_train_function(self, force=force)
        function = self.train_function

        def train(*args):
            if where == "iterator":
                interrupt()
            found = function(*args)
            if where == "function":
                interrupt()
            return found

        self.train_function = train

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "make_train_function", make_train_function)
        with pytest.raises(KeyboardInterrupt):
            model.fit(images, batch_size=2, epochs=2, verbose=0)
    assert next(steps) == 4
    assert signal.getsignal(signal.SIGINT) is handler
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    model.fit(images, batch_size=2, epochs=2, verbose=0)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="of JAX alone")
def test_a_second_interrupt_does_not_wait(handler):
    """Someone who presses twice means it."""
    with KeepVariables() as keep:
        keep.on_train_batch_begin(1)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            keep.on_train_batch_end(1)
    assert signal.getsignal(signal.SIGINT) is handler
