# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of turning galaxies to their aligned frame and back."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy import ndimage

from astrovae.datasets import make_galaxies
from astrovae.images import measure_pose
from astrovae.layers import PoseTransform
from checks import LAYER_CASES, LayerCase, check_layer

INTERPOLATIONS = ["linear", "cubic"]
FRAMES = ["observed", "aligned"]
# x, y, angle, flip
POSES = np.array(
    [
        [0.4, -0.7, 0.6, 1.0],
        [-1.3, 0.2, 2.5, -1.0],
        [0.0, 0.5, -1.9, -1.0],
        [2.2, 1.1, 4.0, 1.0],
    ]
)


def transform(images, pose, *args, **kwargs):
    """Resample NumPy arrays."""
    return ops.convert_to_numpy(PoseTransform(*args, **kwargs)((images, pose)))


def galaxy(shape, pose, sigma=3.0, axis_ratio=0.6):
    """Draw a lopsided galaxy, brighter at +x and +y of its aligned frame."""
    x, y, angle, flip = pose
    rows, columns = np.indices(shape).astype(float)
    dx = columns - (shape[1] - 1) / 2 - x
    dy = rows - (shape[0] - 1) / 2 - y
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = flip * (np.cos(angle) * dy - np.sin(angle) * dx)
    disk = np.exp(-0.5 * (u**2 + (v / axis_ratio) ** 2) / sigma**2)
    knot = np.exp(-0.5 * ((u - 3) ** 2 + (v - 2) ** 2) / 1.8**2)
    return (disk + 0.4 * knot)[..., np.newaxis]


def galaxies(shape, poses, **kwargs):
    """Draw one galaxy per pose."""
    return np.stack([galaxy(shape, pose, **kwargs) for pose in poses])


def scipy_transform(image, pose, shape, frame, **kwargs):
    """Resample one plane with scipy."""
    x, y, angle, flip = pose
    cos, sin = np.cos(angle), np.sin(angle)
    # of (y, x), from the aligned frame to the observed one
    matrix = np.array([[cos, sin], [-sin, cos]]) @ np.diag([flip, 1.0])
    shift = np.array([y, x])
    if frame == "observed":
        matrix, shift = matrix.T, -matrix.T @ shift
    middles = [(np.array(size) - 1) / 2 for size in (image.shape, shape)]
    offset = middles[0] + shift - matrix @ middles[1]
    return ndimage.affine_transform(
        image, matrix, offset=offset, output_shape=shape, **kwargs
    )


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("shape", [(12, 9), (20, 21)])
def test_linear_equals_scipy(frame, shape, rng):
    """Also at the edges and beyond, on smaller and larger canvases, for noise."""
    images = rng.normal(size=(4, 11, 14, 2))
    result = transform(images, POSES, shape, frame, "linear")
    assert result.shape == (4, *shape, 2)
    for i, pose in enumerate(POSES):
        for band in range(2):
            expected = scipy_transform(
                images[i, ..., band], pose, shape, frame, order=1, mode="grid-constant"
            )
            assert_allclose(result[i, ..., band], expected, atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_cubic_agrees_with_scipy_on_galaxies(frame):
    """Splines and the local cubic agree to a percent where pixels sample them."""
    images = galaxies((31, 32), POSES)
    result = transform(images, POSES, (28, 27), frame)
    for i, pose in enumerate(POSES):
        expected = scipy_transform(images[i, ..., 0], pose, (28, 27), frame, order=3)
        assert_allclose(result[i, ..., 0], expected, atol=0.01)


def test_cubic_is_exact_for_parabolas():
    """Inside, polynomials up to the second degree are kept."""
    rows, columns = np.indices((15, 15)) - 7.0
    image = 0.3 * rows**2 - 0.2 * rows * columns + 0.1 * columns**2 + rows - 2
    pose = np.array([0.3, -0.2, 0.7, -1.0])
    result = transform(image[None, ..., None], pose[None], (5, 5), "aligned")
    y, x = np.indices((5, 5)) - 2.0
    cos, sin = np.cos(0.7), np.sin(0.7)
    row, column = -0.2 + sin * x - cos * y, 0.3 + cos * x + sin * y
    expected = 0.3 * row**2 - 0.2 * row * column + 0.1 * column**2 + row - 2
    assert_allclose(result[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("frame", FRAMES)
def test_quarter_turns_are_exact(interpolation, frame, rng):
    """No pixel is mixed with others; x turns towards y in the observed frame."""
    image = rng.normal(size=(1, 9, 9, 1)).astype("float32")
    for turns in range(-2, 5):
        for flip in (1.0, -1.0):
            pose = np.array([[0.0, 0.0, turns * np.pi / 2, flip]])
            result = transform(image, pose, None, frame, interpolation)[0]
            # numpy turns y towards x
            if frame == "observed":
                flipped = image[0] if flip == 1 else image[0, ::-1]
                expected = np.rot90(flipped, -turns)
            else:
                expected = np.rot90(image[0], turns)
                expected = expected if flip == 1 else expected[::-1]
            assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_identity_and_whole_pixels_are_exact(interpolation, rng):
    """Every bit is kept; what is moved out is lost, what comes in is zero."""
    images = rng.normal(size=(2, 7, 8, 3)).astype("float32")
    pose = np.array([[0.0, 0.0, 0.0, 1.0], [2.0, -1.0, 0.0, 1.0]])
    result = transform(images, pose, interpolation=interpolation)
    assert np.array_equal(result[0], images[0])
    expected = np.zeros_like(images[1])
    expected[:-1, 2:] = images[1][1:, :-2]
    assert np.array_equal(result[1], expected)


@pytest.mark.parametrize(("interpolation", "error"), [("linear", 0.1), ("cubic", 0.02)])
def test_pose_means_what_it_says(interpolation, error):
    """The aligned galaxy is observed where and how its pose says, and back."""
    aligned = galaxies((41, 41), np.tile([0, 0, 0, 1.0], (4, 1)))
    observed = galaxies((37, 36), POSES)
    for images, frame, expected in (
        (aligned, "observed", observed),
        (observed, "aligned", aligned),
    ):
        shape = expected.shape[1:3]
        result = transform(images, POSES, shape, frame, interpolation)
        assert_allclose(result, expected, atol=error)


def test_measured_poses_align():
    """What `measure_pose` measures, aligned galaxies have no more."""
    _, stack = make_galaxies(30, shape=(40, 40), seed=3)
    stack = measure_pose(stack)
    stack = stack[(stack.pose["axis_ratio"] < 0.8) & (stack.flags == 0)]
    batch = stack.batch(np.arange(len(stack)))
    aligned = transform(batch["image"], batch["pose"], None, "aligned")
    mask = np.zeros(aligned.shape, bool)
    pose = measure_pose(stack.replace(data=aligned, mask=mask, error=None)).pose
    assert len(pose) > 10
    for name in ("x", "y", "angle"):
        assert_allclose(pose[name], 0, atol=0.02)
    assert (pose["flip"] == 1).all()


def test_round_trip():
    """A galaxy that went to its aligned frame and back is the same."""
    images = galaxies((30, 30), POSES)
    aligned = transform(images, POSES, (44, 44), "aligned")
    back = transform(aligned, POSES, (30, 30), "observed")
    assert_allclose(back, images, atol=0.025)


def test_larger_canvas_keeps_corners():
    """On a canvas sqrt(2) times larger nothing of the stamp is lost."""
    ones = np.ones((4, 30, 30, 1))
    pose = POSES * [0, 0, 1, 1]
    layer = PoseTransform((30, 30), "observed")
    small, large = (
        ops.convert_to_numpy(layer.resample_valid(np.ones((4, size, size, 1)), pose))
        for size in (30, 46)
    )
    assert small.min() < 0.01
    assert_allclose(large, ones, atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_flux_and_centroid(frame):
    """Flux is kept, and the centre goes where the pose says."""
    pose = np.array([[1.37, -0.61, 0.73, -1.0]])
    source = [[0, 0, 0, 1.0]] if frame == "observed" else pose
    image = galaxies((41, 41), source, axis_ratio=0.9)
    # without the knot: the centre of the Gaussian
    rows, columns = np.indices((41, 41)) - 20.0
    x, y = source[0][0], source[0][1]
    image = np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / 2.5**2)
    result = transform(image[None, ..., None], pose, None, frame)[0, ..., 0]
    result = result.astype(float)
    assert_allclose(result.sum(), image.sum(), rtol=1e-5)
    found = np.array([(columns * result).sum(), (rows * result).sum()]) / result.sum()
    expected = pose[0, :2] if frame == "observed" else [0, 0]
    assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_variance_is_that_of_resampled_noise(interpolation, rng):
    """Many draws of noise scatter by the variance that is predicted."""
    error = rng.uniform(0.5, 2.0, size=(8, 9))
    noise = rng.normal(size=(8, 9, 4000)) * error[..., None]
    layer = PoseTransform((9, 8), "aligned", interpolation)
    pose = POSES[:1]
    scatter = ops.convert_to_numpy(layer((noise[None], pose)))[0].var(axis=-1)
    variance = ops.convert_to_numpy(
        layer.resample_variance(error[None, ..., None] ** 2, pose)
    )[0, ..., 0]
    assert_allclose(scatter, variance, rtol=0.12, atol=1e-4)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("frame", FRAMES)
def test_masks_are_carried(interpolation, frame, rng):
    """The weights say how much of a pixel rests on masked ones or on none."""
    mask = rng.random(size=(4, 14, 13, 1)) < 0.1
    mask[:, 4:9, 4:9] = True
    layer = PoseTransform((16, 16), frame, interpolation)

    def weigh(valid):
        return ops.convert_to_numpy(layer.resample_valid(valid, POSES))

    weight, everywhere = weigh(1.0 - mask), weigh(np.ones(mask.shape))
    assert weight.min() == everywhere.min() == 0
    assert everywhere.max() <= 1 + 1e-6
    if interpolation == "linear":
        expected = ops.convert_to_numpy(layer((1.0 - mask, POSES)))
        assert_allclose(weight, expected, atol=1e-6)
    images = rng.normal(size=mask.shape)
    spoilt, hidden = np.where(mask, 1e3, images), np.where(mask, 0.0, images)
    clean, spoilt, hidden = (
        ops.convert_to_numpy(layer((planes, POSES)))
        for planes in (images, spoilt, hidden)
    )
    # all valid: masked pixels do not count
    assert (weight > 1 - 1e-6).any()
    assert_allclose(spoilt[weight > 1 - 1e-6], clean[weight > 1 - 1e-6], atol=2e-3)
    # some masked: they do
    some = (everywhere > 1 - 1e-6) & (weight < 0.9)
    assert (abs(spoilt - clean)[some] > 1).all()
    # none valid: nothing else counts
    assert_allclose(hidden[weight < 1e-7], 0, atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Painter(keras.Model):
    """Weights that are images, resampled."""

    def __init__(self, layer, images):
        super().__init__()
        self.layer = layer
        self.canvas = self.add_weight(
            shape=images.shape, initializer=lambda shape, dtype=None: images
        )

    def call(self, inputs):
        return self.layer((self.canvas, inputs["pose"]))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return ops.sum(ops.multiply(y_pred, x["upstream"]))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("frame", FRAMES)
def test_gradients_are_the_transpose(interpolation, frame, rng):
    """What a loss says of the results reaches the images, weight by weight."""
    shape, canvas = (10, 9), (7, 8)
    layer = PoseTransform(shape, frame, interpolation)
    images = rng.normal(size=(4, *canvas, 2)).astype("float32")
    upstream = rng.normal(size=(4, *shape, 2)).astype("float32")
    model = Painter(layer, images)
    compiled = keras.config.backend() != "torch"
    model.compile(keras.optimizers.SGD(1.0), jit_compile=compiled)
    pose = POSES.astype("float32")
    model.train_on_batch({"pose": pose, "upstream": upstream})
    gradient = images - ops.convert_to_numpy(model.canvas)
    # a linear map: its matrix, one column per pixel of the canvas
    pixels = np.eye(canvas[0] * canvas[1]).reshape(-1, *canvas)
    columns = np.repeat(np.moveaxis(pixels, 0, -1)[None], 4, axis=0)
    matrix = ops.convert_to_numpy(layer((columns, pose)))
    expected = np.einsum("nyxp,nyxb->npb", matrix, upstream)
    assert_allclose(gradient.reshape(expected.shape), expected, atol=1e-5)


def test_galaxies_do_not_mix(rng):
    """A pose that is not known spoils its own galaxy alone."""
    images, pose = rng.normal(size=(4, 9, 9, 1)), POSES.copy()
    before = transform(images, pose)
    pose[1] = np.nan
    pose[2] = 1e30
    after = transform(images, pose)
    assert np.isnan(after[1]).all()
    for i in (0, 3):
        assert np.array_equal(before[i], after[i])


def test_further_columns_take_no_part(rng):
    """Stacks also give the size of each galaxy."""
    images = rng.normal(size=(4, 9, 9, 1))
    wide = np.concatenate([POSES, np.full((4, 1), 7.0)], axis=1)
    assert np.array_equal(transform(images, wide), transform(images, POSES))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_layer(interpolation, tmp_path):
    """A good Keras layer, also without a shape of its own."""
    check_layer(LAYER_CASES[PoseTransform], tmp_path)

    def make(**kwargs):
        return PoseTransform(None, "aligned", interpolation, **kwargs)

    check_layer(LayerCase(make, ([(6, 7, 2), (4,)],)), tmp_path)


def test_half_precision_is_raised(rng):
    """Positions of pixels survive a policy of half precision."""
    images = rng.normal(size=(4, 9, 9, 1))
    result = transform(images, POSES, dtype="mixed_bfloat16")
    assert np.array_equal(result, transform(images, POSES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": "sky"}, "frame must be one of"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
        ({"target_shape": (0, 3)}, "target_shape must be a positive integer"),
    ],
)
def test_bad_arguments(arguments, message):
    """Misuse is named."""
    with pytest.raises(ValueError, match=message):
        PoseTransform(**arguments)


@pytest.mark.parametrize(
    ("images", "pose"), [((4, 9, 9), (4, 4)), ((4, 9, 9, 1), (4, 3))]
)
def test_bad_inputs(images, pose):
    """So are shapes that do not fit."""
    with pytest.raises(ValueError, match="expected images"):
        PoseTransform()((np.zeros(images), np.zeros(pose)))


def test_without_gradient_is_the_same(rng):
    """What is left out for exporters is the gradient alone."""
    images = rng.normal(size=(4, 9, 8, 2)).astype("float32")
    layer = PoseTransform(frame="aligned")
    inputs = (images, POSES.astype("float32"))
    with layer.without_gradient():
        result = ops.convert_to_numpy(layer(inputs))
    assert np.array_equal(result, ops.convert_to_numpy(layer(inputs)))
