# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies turned to a common pose, and back."""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from astrovae._validation import check_option, check_shape
from astrovae.layers._base import DensityLayer

__all__ = ["PoseTransform"]


@keras.saving.register_keras_serializable("astrovae")
class PoseTransform(DensityLayer):
    """
    Turn each galaxy to its aligned frame, or back to where it was observed.

    Where a galaxy lies and how it is turned says nothing about what it is, and
    costs latents if a model has to learn it. In the aligned frame every galaxy
    is in the middle, its major axis along +x, its brighter sides at +x and +y.
    A model encodes and paints there; only what it paints is resampled, so
    that the noise of the data never is.

    A pose is four numbers, in pixels of the array and radians:

    - ``x``, ``y``: the centre of the galaxy relative to the middle of the stamp,
      which is at ``((nx - 1) / 2, (ny - 1) / 2)``;
    - ``angle``: of the brighter end of its major axis, counterclockwise from +x
      where y points up, in any range;
    - ``flip``: -1 if, turned by ``-angle``, it must then be mirrored in y to
      have its brighter side at +y, else +1.

    The point ``q`` of the aligned frame is observed at
    ``p = (x, y) + R(angle) diag(1, flip) q``, both relative to the middle
    of their canvas. Surface brightness and flux stay as they are. Stacks give
    such poses once `~astrovae.images.measure_pose` has measured them.

    Parameters
    ----------
    target_shape : tuple of int, optional
        Shape ``(ny, nx)`` of the results, by default that of the images. Corners
        survive on an aligned canvas that is ``sqrt(2)`` times larger.
    frame : {"observed", "aligned"}, optional
        The frame of the results; the images are in the other one.
    interpolation : {"cubic", "linear"}, optional
        "cubic" is that of Keys, exact for parabolas, "linear" is bilinear.
        Both weigh pixels nearby (4 x 4 and 2 x 2); beyond the images is zero.
    **kwargs
        Arguments of `keras.layers.Layer`. Half precision is raised to
        float32.

    Raises
    ------
    ValueError
        If the images are not of shape ``(n, ny, nx, n_bands)``, or the poses
        have not four columns.

    Notes
    -----
    Input shape: a pair ``(images, pose)`` of shapes ``(n, ny, nx, n_bands)`` and
    ``(n, 4)``; further columns, such as the size of the galaxy, take no part.
    Output shape: ``(n, *target_shape, n_bands)``.

    Gradients reach the images. Poses are data: none is given for them.

    References
    ----------
    Keys 1981, IEEE Trans. ASSP 29, 1153, eq. 15.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.layers import PoseTransform
    >>> image = np.zeros((1, 3, 3, 1))
    >>> image[0, 1, 2] = 1.0  # to the right of the middle
    >>> pose = [[0.0, 0.0, np.pi / 2, 1.0]]  # turn it upwards
    >>> observed = PoseTransform()((image, np.array(pose)))
    >>> print(round(float(observed[0, 2, 1, 0]), 3))
    1.0
    """

    def __init__(
        self, target_shape=None, frame="observed", interpolation="cubic", **kwargs
    ):
        super().__init__(**kwargs)
        self.target_shape = (
            None if target_shape is None else check_shape("target_shape", target_shape)
        )
        self.frame = check_option("frame", frame, ("observed", "aligned"))
        self.interpolation = check_option("interpolation", interpolation, _KERNELS)
        self._own_gradient = True

    def build(self, input_shape):
        images, pose = map(tuple, input_shape)
        if len(images) != 4 or len(pose) != 2 or pose[1] < 4:
            msg = (
                "expected images (n, ny, nx, n_bands) and poses (n, 4) of x, y, "
                f"angle and flip, got shapes {images} and {pose}."
            )
            raise ValueError(msg)

    def call(self, inputs):
        images, pose = inputs
        _, kernel = _KERNELS[self.interpolation]
        return self._resample(images, pose, kernel)

    @contextlib.contextmanager
    def without_gradient(self):
        """
        Leave out its own gradient, which exporters cannot follow.

        Yields
        ------
        None
            Within the context, calls give the same results.
        """
        self._own_gradient = False
        try:
            yield
        finally:
            self._own_gradient = True

    def resample_variance(self, variance, pose):
        """
        Give the variance of resampled pixels.

        Parameters
        ----------
        variance : tensor, shape (n, ny, nx, n_bands)
            Variances of independent pixels.
        pose : tensor, shape (n, 4)
            Poses.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            ``sum(w**2 * variance)`` for interpolation weights ``w``. It is
            less than the variance of the pixels, and zero beyond them;
            neighbours are no longer independent.
        """
        _, kernel = _KERNELS[self.interpolation]
        return self._resample(variance, pose, lambda d: ops.square(kernel(d)))

    def resample_valid(self, valid, pose):
        """
        Give how far resampled pixels rest on valid ones.

        Parameters
        ----------
        valid : tensor, shape (n, ny, nx, n_bands)
            1 for valid pixels, 0 for masked ones; or weights between.
        pose : tensor, shape (n, 4)
            Poses.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            The share of the interpolation weights, by absolute value, that
            lies on valid pixels: 0 beyond the images and where all of them
            are masked.
        """
        half, kernel = _KERNELS[self.interpolation]

        def weight(distance):
            return ops.abs(kernel(distance))

        share = self._resample(valid, pose, weight)
        # the weights of all pixels, had the images no edges
        canvas = valid.shape[1:3]
        shape = self.target_shape or canvas
        total = 1.0
        for position in _positions(self._motion(pose), shape, canvas):
            first = ops.floor(position)
            steps = range(1 - half, half + 1)
            total = total * sum(weight(first + step - position) for step in steps)
        return share / ops.reshape(total, (-1, *shape, 1))

    def compute_output_shape(self, input_shape):
        n, ny, nx, n_bands = input_shape[0]
        return (n, *(self.target_shape or (ny, nx)), n_bands)

    def get_config(self):
        shape = self.target_shape
        return {
            **super().get_config(),
            "target_shape": None if shape is None else list(shape),
            "frame": self.frame,
            "interpolation": self.interpolation,
        }

    def _motion(self, pose):
        """Matrix and shift that take points of the results to the images."""
        x, y, angle, flip = ops.split(self.as_float(pose[:, :4]), 4, axis=1)
        # anything but a sign would change the scale
        flip = ops.where(flip < 0, -1.0, 1.0)
        cos, sin = ops.cos(angle), ops.sin(angle)
        if self.frame == "aligned":
            return (cos, -flip * sin, sin, flip * cos), (x, y)
        matrix = a, b, c, d = (cos, sin, -flip * sin, flip * cos)
        return matrix, (-a * x - b * y, -c * x - d * y)

    def _resample(self, images, pose, kernel):
        half, _ = _KERNELS[self.interpolation]
        canvas = images.shape[1:3]
        shape = self.target_shape or canvas

        def resample(images, pose):
            motion = self._motion(pose)
            x, y = _positions(motion, shape, canvas)
            result = _gather(images, x, y, half, kernel)

            def gradient(*args, upstream=None):
                # backends pass it in different ways
                upstream = args[0] if upstream is None else upstream
                x, y = _positions_back(motion, shape, canvas)
                reach = math.ceil(half * math.sqrt(2.0))
                back = _gather(upstream, x, y, reach, kernel, motion[0])
                return ops.reshape(back, ops.shape(images)), ops.zeros_like(pose)

            return ops.reshape(result, (-1, *shape, images.shape[-1])), gradient

        images, pose = self.as_float(images), self.as_float(pose)
        if not self._own_gradient:
            return resample(images, pose)[0]
        return ops.custom_gradient(resample)(images, pose)


def _positions(motion, shape, canvas):
    """Where on the canvas the pixels of the results lie: x and y, each (n, m)."""
    (a, b, c, d), (shift_x, shift_y) = motion
    x, y = _grid(shape, a.dtype)
    height, width = canvas
    return (
        0.5 * (width - 1) + shift_x + a * x + b * y,
        0.5 * (height - 1) + shift_y + c * x + d * y,
    )


def _positions_back(motion, shape, canvas):
    """Where among the results the pixels of the canvas lie."""
    (a, b, c, d), (shift_x, shift_y) = motion
    x, y = _grid(canvas, a.dtype)
    x, y = x - shift_x, y - shift_y
    height, width = shape
    return 0.5 * (width - 1) + a * x + c * y, 0.5 * (height - 1) + b * x + d * y


def _grid(shape, dtype):
    """Pixels relative to the middle: x and y, each (1, m)."""
    rows, columns = np.indices(shape).reshape(2, 1, -1)
    x, y = columns - 0.5 * (shape[1] - 1), rows - 0.5 * (shape[0] - 1)
    return ops.convert_to_tensor(x, dtype), ops.convert_to_tensor(y, dtype)


def _gather(images, x, y, half, kernel, turn=None):
    """
    Gather as `_gather_all` does, on a CPU galaxy by galaxy if that is compiled.

    Each galaxy then stays in the cache of the CPU, and XLA does not compute what
    paints the pixels anew for each of the sums: twice as fast in training.
    """
    if not _one_by_one():
        return _gather_all(images, x, y, half, kernel, turn)

    def gather(galaxy):
        image, x, y, *turn = (part[None] for part in galaxy)
        return _gather_all(image, x, y, half, kernel, turn or None)[0]

    n = ops.shape(images)[0]
    x, y = (ops.broadcast_to(part, (n, part.shape[1])) for part in (x, y))
    return ops.map(gather, (images, x, y, *(turn or ())))


def _one_by_one():
    if keras.config.backend() == "torch":
        return False
    devices = keras.distribution.list_devices()
    return all(device.startswith("cpu") for device in devices)


def _gather_all(images, x, y, half, kernel, turn=None):
    """
    Add up the pixels around positions, weighted by their distances.

    This interpolates. It also is the gradient of interpolating: what reaches
    a pixel comes from the results around its position, weighted by their
    distances after turning them. So both directions read, and none has to
    scatter, which compilers make slow.

    Parameters
    ----------
    images : tensor, shape (n, ny, nx, channels)
        Images.
    x, y : tensor, shape (n, m)
        Positions.
    half : int
        Add up ``(2 half)**2`` pixels.
    kernel : callable
        Weight by the distance along an axis: even, and zero from ``half`` on.
    turn : tuple of tensor, optional
        Turn the distances by this matrix.

    Returns
    -------
    tensor, shape (n, m, channels)
        The sums.
    """
    height, width, channels = images.shape[1:]
    flat = ops.reshape(images, (-1, channels))
    # the number of each image: exporters do not follow the shape of a tensor
    starts = ops.cumsum(ops.ones_like(x[:, :1], dtype="int32"), axis=0) - 1
    rows = list(_neighbors(y, height, half))
    columns = list(_neighbors(x, width, half))
    row_weights = [kernel(d) * inside for d, inside, _ in rows]
    column_weights = [kernel(d) * inside for d, inside, _ in columns]
    total = 0.0
    for j, (dy, row_inside, row) in enumerate(rows):
        first = (starts * height + row) * width
        for i, (dx, column_inside, column) in enumerate(columns):
            if turn is None:
                weight = row_weights[j] * column_weights[i]
            else:
                a, b, c, d = turn
                weight = kernel(a * dx + b * dy) * kernel(c * dx + d * dy)
                weight = weight * (row_inside * column_inside)
            pixels = ops.take(flat, first + column, axis=0)
            total = total + weight[..., None] * pixels
    return total


def _neighbors(position, size, half):
    """Yield distance, whether it is inside, and index of each pixel nearby."""
    nearest = ops.floor(position)
    for step in range(1 - half, half + 1):
        pixel = nearest + step
        inside = ops.cast((pixel >= 0) & (pixel < size), position.dtype)
        # what is not known stays so, also where compilers simplify products
        inside = ops.where(ops.isnan(position), position, inside)
        index = ops.clip(ops.cast(pixel, "int32"), 0, size - 1)
        yield pixel - position, inside, index


def _linear(distance):
    return ops.maximum(1.0 - ops.abs(distance), 0.0)


def _cubic(distance):
    d = ops.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0
    # the distance to a position that is not known stays so
    return ops.where(d < 1.0, near, ops.where(d < 2.0, far, 0.0 * d))


# Half the number of pixels along an axis that they weigh, and the weights.
_KERNELS = {"linear": (1, _linear), "cubic": (2, _cubic)}
