# Licensed under a 3-clause BSD style license - see LICENSE
"""Where a galaxy lies in its cutout, and which way it is turned."""

import astropy.units as u
import numpy as np
from numpy.lib import recfunctions
from scipy import ndimage

from astrovae._progress import progress_bar
from astrovae._validation import check_option, check_positive_int, check_shape
from astrovae.flags import Flag
from astrovae.images._moments import detection_image, measure_moments

__all__ = ["align", "as_pose", "measure_pose", "pose_columns", "unalign"]

# what a model needs, in the order of the columns that it gets
_PARAMETERS = ["x", "y", "angle", "flip", "size"]
_MEASURED = ("x", "y", "angle", "axis_ratio", "size")
_FIELDS = (*_PARAMETERS, "axis_ratio", *(f"{name}_err" for name in _MEASURED))
_DTYPE = np.dtype([(name, float) for name in _FIELDS])
_FLAGS = Flag.POSE_FAILED | Flag.POSE_UNRELIABLE | Flag.POSE_NOT_CONVERGED
# cutouts at a time: their planes stay in the cache
_CHUNK = 16
# so large a share of light from neighbours inside the isophote turns the angle
_MAX_OVERLAP = 0.02
# the splines of scipy
_ORDERS = (0, 1, 2, 3, 4, 5)
# masked pixels are filled from around before interpolation, this sigma in pixels
_FILL_SIGMA = 2.0
# rounding errors of coordinates are smaller than this, in pixels
_ROUNDING = 1e-6


def measure_pose(stack, *, known=None, max_iter=25, show_progress=False):
    r"""
    Measure centre, position angle, shape, size and handedness of each galaxy.

    A model that is told the pose need not learn it, and catalogues get it as
    columns (`~astrovae.catalog.add_pose`). Subtract the sky and mask
    neighbours before (`clean_cutouts`).

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        The cutouts; they are not changed. Without an error plane, the noise
        is estimated from the differences of adjacent pixels.
    known : `~astropy.table.Table`, optional
        Centres, angles and shapes that were found otherwise, e.g. those of
        `GaussianFit.pose_ <astrovae.baselines.GaussianFit>`: ``pose_x``,
        ``pose_y``, ``pose_angle``, ``pose_size`` and ``pose_axis_ratio``, as
        in `~astrovae.catalog.add_pose`. Nothing is fitted then: only which
        sides are the brighter ones is measured, and the uncertainties. A pose
        is given to all galaxies that have one within their cutout, however
        faint.
    max_iter : int, optional
        Most iterations per galaxy. About ten are usual.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        The cutouts with ``pose``, a structured array with the fields below,
        and this step in ``steps``. The flag is ``POSE_UNRELIABLE`` for galaxies too
        round for their angle to mean anything, and for those that are blends by
        the looks of it: clearly lopsided (of other galaxies one in ten, and no
        bright one that is nearly symmetric), or with a ``neighbor_overlap`` above
        0.02 (see `clean_cutouts`). It is ``POSE_NOT_CONVERGED`` for those
        that were still changing. Where nothing can be measured, the flag is
        ``POSE_FAILED``, the pose the identity and its errors NaN.

    Raises
    ------
    ValueError
        If ``max_iter`` is not a positive integer, or ``known`` lacks columns or
        rows.

    Notes
    -----
    The fields of ``stack.pose``; ``stack.batch(rows)["pose"]`` has the first
    five as float32 columns:

    ``x``, ``y``
        Offset of the galaxy's centre from the centre of the cutout,
        ``((nx - 1) / 2, (ny - 1) / 2)``, in pixels.
    ``angle``
        Angle of the major axis, in radians, in (-pi, pi], from +x towards
        +y. Of its two directions, it is the one to the brighter side.
    ``flip``
        +1 or -1. The y axis of the aligned frame is mirrored for -1, so that
        the brighter side is at +y as well.
    ``size``
        Geometric mean of the standard deviations along both axes, in pixels.
    ``axis_ratio``
        Minor over major axis.
    ``x_err``, ``y_err``, ``angle_err``, ``size_err``, ``axis_ratio_err``
        1-sigma uncertainties.

    A point ``(u, v)`` of the aligned frame, in pixels from the centre of its
    canvas, is found in the observed cutout at ::

        x + cos(angle) * u - sin(angle) * flip * v
        y + sin(angle) * u + cos(angle) * flip * v

    from the centre of the cutout. The size takes no part in this.

    Centre and shape are adaptive moments: those of the elliptical Gaussian
    that matches the galaxy best [1]_. Instead of summing moments, which no
    pixel may be missing for, the Gaussian :math:`m` is fitted by weighted
    least squares, :math:`\sum w (d - m)^2` over valid pixels; where no pixel
    is missing and the noise is uniform both are the same. The weight
    :math:`w` is the inverse variance of the pixel, but where the galaxy has
    light, that of the median pixel: else its photon noise would make size
    and shape depend on its brightness. With
    :math:`\phi = (1, x, y, x^2, xy, y^2)` in the exponent of :math:`m`, the
    uncertainties follow from :math:`H^{-1} S H^{-1}` with
    :math:`S = \sum w^2 \sigma^2 m^2 \phi \phi^T` and
    :math:`H = \sum w m (2 m - d) \phi \phi^T`, which holds also for galaxies
    that are not Gaussian. Bands share centre and shape, and each counts by
    its amplitude and noise. The PSF is not taken off: angle, size and axis
    ratio are those of the blurred galaxy.

    References
    ----------
    .. [1] Bernstein, G. M., & Jarvis, M. 2002, AJ, 123, 583
       (arXiv:astro-ph/0107431)

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import measure_pose
    >>> truth, stack = make_galaxies(4, seed=1)
    >>> stack = measure_pose(stack)
    >>> stack.pose["axis_ratio"].shape, stack.batch([0, 1])["pose"].shape
    ((4,), (2, 5))
    """
    max_iter = check_positive_int("max_iter", max_iter)
    n = len(stack)
    pose = np.full(n, np.nan, _DTYPE)
    shapes = None if known is None else _known_shapes(known, stack)
    flags = np.array(stack.flags) & ~np.int32(_FLAGS)
    with progress_bar("Measuring poses", n, show=show_progress) as advance:
        for start in range(0, n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, n))
            planes = stack.batch(np.arange(rows.start, rows.stop))
            images = detection_image(planes, max_iter)
            shape = None if shapes is None else shapes[rows]
            measured, bits = measure_moments(*images, max_iter, shape)
            for name, values in measured.items():
                pose[name][rows] = values
            flags[rows] |= bits
            advance(rows.stop - rows.start)
    overlap = stack.columns.get("neighbor_overlap", np.zeros(n))
    blended = (overlap > _MAX_OVERLAP) & ((flags & Flag.POSE_FAILED) == 0)
    flags |= np.where(blended, Flag.POSE_UNRELIABLE, 0).astype(np.int32)
    pose[(flags & Flag.POSE_FAILED) > 0] = _identity()
    parameters = {"max_iter": max_iter} if known is None else {"known": True}
    step = {"name": "measure_pose", "parameters": parameters}
    return stack.replace(pose=pose, flags=flags, steps=(*stack.steps, step))


def _known_shapes(table, stack):
    """Centres and covariances, as `measure_moments` takes them, NaN if unknown."""
    missing = {"pose_size", "pose_axis_ratio"}.difference(table.colnames)
    if missing:
        msg = f"the table of known poses lacks {', '.join(sorted(missing))}."
        raise ValueError(msg)
    if len(table) != len(stack):
        msg = f"got {len(table)} known poses for {len(stack)} cutouts."
        raise ValueError(msg)
    pose = _from_table(table, (len(stack), *stack.image_shape))
    cos, sin = np.cos(pose["angle"]), np.sin(pose["angle"])
    major = pose["size"] ** 2 / pose["axis_ratio"]
    minor = pose["size"] ** 2 * pose["axis_ratio"]
    covariance = (
        cos**2 * major + sin**2 * minor,
        cos * sin * (major - minor),
        sin**2 * major + cos**2 * minor,
    )
    return np.stack([pose["x"], pose["y"], *covariance], axis=1)


def _identity():
    """The pose that changes nothing, without errors."""
    pose = np.full((), np.nan, _DTYPE)
    for name, value in zip(_PARAMETERS, (0, 0, 0, 1, 1), strict=True):
        pose[name] = value
    return pose


def as_pose(pose, shape):
    """
    Make the pose of a stack from what a user has.

    Parameters
    ----------
    pose : array_like or `~astropy.table.Table` or None
        A structured array as in `measure_pose`; an array of shape (n, 5) with
        x, y, angle, flip and size; or a table with ``pose_x``, ``pose_y`` and
        ``pose_angle``, and any other of the columns of `pose_columns`.
    shape : tuple of int
        ``(n, ny, nx, ...)`` of the cutouts.

    Returns
    -------
    pose : `~numpy.ndarray`, shape (n,), or None
        A new structured array. Rows that are masked or not finite are the
        identity.
    flags : `~numpy.ndarray` of int, shape (n,)
        ``POSE_FAILED`` for these rows.

    Raises
    ------
    ValueError
        If it is none of these, or not of the length of the stack.
    """
    if pose is None:
        return None, np.zeros(shape[0], np.int32)
    if hasattr(pose, "colnames"):
        pose = _from_table(pose, shape)
    elif getattr(pose, "dtype", None) != _DTYPE:
        pose = _from_array(pose)
    pose = np.array(pose)
    if pose.shape != shape[:1]:
        msg = f"got {pose.size} poses for {shape[0]} cutouts."
        raise ValueError(msg)
    bad = ~np.isfinite(pose_parameters(pose)).all(axis=1)
    pose[bad] = _identity()
    pose["flip"] = np.where(pose["flip"] < 0, -1, 1)
    return pose, np.where(bad, Flag.POSE_FAILED, 0).astype(np.int32)


def _from_array(values):
    array = np.ma.filled(np.ma.asarray(values), np.nan)
    if array.ndim != 2 or array.shape[1] != len(_PARAMETERS):
        msg = (
            "pose must be what measure_pose gives, a table with pose_x, pose_y and "
            f"pose_angle, or an array of {', '.join(_PARAMETERS)} of shape (n, 5); "
            f"got an array of shape {array.shape} and dtype {array.dtype}."
        )
        raise ValueError(msg)
    pose = np.full(len(array), np.nan, _DTYPE)
    for name, column in zip(_PARAMETERS, array.T, strict=True):
        pose[name] = column
    return pose


def _from_table(table, shape):
    missing = {"pose_x", "pose_y", "pose_angle"}.difference(table.colnames)
    if missing:
        msg = f"the table of poses lacks {', '.join(sorted(missing))}."
        raise ValueError(msg)
    pose = np.full(len(table), np.nan, _DTYPE)
    pose["flip"], pose["size"] = 1, 1
    for name in _FIELDS:
        if f"pose_{name}" not in table.colnames:
            continue
        column = table[f"pose_{name}"]
        values = getattr(column, "unmasked", column)  # a masked Quantity
        values = np.array(np.ma.getdata(getattr(values, "value", values)), float)
        values[np.broadcast_to(getattr(column, "mask", False), values.shape)] = np.nan
        if name in ("angle", "angle_err"):
            unit = column.unit or u.deg
            values = np.radians(u.Quantity(values, unit).to_value(u.deg))
        pose[name] = values
    ny, nx = shape[1:3]
    pose["x"] -= (nx - 1) / 2
    pose["y"] -= (ny - 1) / 2
    return pose


def pose_parameters(pose):
    """The columns x, y, angle, flip and size of poses, for a model."""
    return recfunctions.structured_to_unstructured(pose[_PARAMETERS])


def pose_columns(stack):
    """
    Columns for a catalogue.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        The cutouts.

    Returns
    -------
    columns : dict of `~numpy.ndarray`, shape (n,)
        ``pose_x`` and ``pose_y`` in pixels of the cutout, 0 at the centre of
        the first; ``pose_angle`` in degrees; ``pose_flip``, ``pose_size``,
        ``pose_axis_ratio``; ``pose_x_err`` and so on; and ``pose_flags``.
        What could not be measured is NaN. Errors or axis ratios are left out
        if a pose came without them. Empty if the stack has no pose.
    """
    if stack.pose is None:
        return {}
    flags = np.array(stack.flags)
    failed = (flags & Flag.POSE_FAILED) > 0
    columns = {}
    for name in _FIELDS:
        values = np.where(failed, np.nan, stack.pose[name])
        if failed.all() or np.isfinite(values).any():
            columns[f"pose_{name}"] = values
    ny, nx = stack.image_shape[:2]
    columns["pose_x"] += (nx - 1) / 2
    columns["pose_y"] += (ny - 1) / 2
    for name in columns.keys() & {"pose_angle", "pose_angle_err"}:
        columns[name] = np.degrees(columns[name])
    return columns | {"pose_flags": flags}


def align(stack, *, shape=None, order=3, show_progress=False):
    """
    Turn galaxies so that their major axes lie along x and brighter sides at +x, +y.

    For galleries, principal components, and to train a `~astrovae.models.VAE` fast,
    which `~astrovae.models.VAE.with_pose` then puts before the galaxies as they were
    observed. One with a pose needs no aligned images: it leaves the pixels and
    their noise alone.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        Cutouts with a pose; they are not changed.
    shape : int or (int, int), optional
        Size ``(ny, nx)`` of the aligned cutouts; by default that of the
        given ones.
    order : int, optional
        Order of the spline that interpolates the pixels, 0 to 5.
    show_progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        Aligned cutouts, without pose; a PSF is turned with its galaxy. Pixels
        that need a masked one, or one beyond the edge, are masked. Errors are
        interpolated as well; that noise is correlated between pixels now, they
        do not say.

    Raises
    ------
    ValueError
        If the stack has no pose, or the order is none of these.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import align, measure_pose
    >>> truth, stack = make_galaxies(4, seed=1)
    >>> align(measure_pose(stack), shape=48).image_shape
    (48, 48, 1)
    """
    if stack.pose is None:
        msg = "the stack has no pose. Call measure_pose(stack) first."
        raise ValueError(msg)
    shape = stack.image_shape[:2] if shape is None else check_shape("shape", shape)
    order = check_option("order", order, _ORDERS)
    n, n_bands = len(stack), stack.image_shape[2]
    out = {
        "data": np.zeros((n, *shape, n_bands), np.float32),
        "mask": np.ones((n, *shape, n_bands), bool),
    }
    if stack.error is not None:
        out["error"] = np.ones((n, *shape, n_bands), np.float32)
    if stack.segmentation is not None:
        out["segmentation"] = np.zeros((n, *shape), np.int32)
    with progress_bar("Aligning", n, show=show_progress) as advance:
        for row in range(n):
            frame = _Frame(stack.pose[row], shape, stack.image_shape[:2])
            planes = {k: v[0] for k, v in stack.batch([row]).items()}
            for band in range(n_bands):
                bad = planes["mask"][..., band]
                image = _fill(planes["image"][..., band], bad)
                lost = frame.mask(bad)
                out["mask"][row, ..., band] = lost
                out["data"][row, ..., band] = np.where(
                    lost, 0, frame.resample(image, order)
                )
                if stack.error is not None:
                    error = frame.resample(planes["error"][..., band], 1)
                    out["error"][row, ..., band] = np.where(lost, 1, error)
            if stack.segmentation is not None:
                labels = frame.resample(np.asarray(stack.segmentation[[row]])[0], 0)
                out["segmentation"][row] = np.where(frame.outside, 0, labels)
            advance(1)
    step = {"name": "align", "parameters": {"shape": list(shape), "order": order}}
    out["psf"] = _turned_psf(stack, order)
    return stack.replace(pose=None, steps=(*stack.steps, step), **out)


def _turned_psf(stack, order):
    """PSFs as in the aligned frame, about their middle and of the same sum."""
    if stack.psf is None or not len(stack):
        return stack.psf
    size = stack.psf.shape[1:3]
    psf = np.zeros((len(stack), *stack.psf.shape[1:]), np.float32)
    turn = stack.pose.copy()
    turn["x"] = turn["y"] = 0
    for row, pose in enumerate(turn):
        frame = _Frame(pose, size, size)
        original = stack.psf[row if len(stack.psf) > 1 else 0]
        for band, plane in enumerate(np.moveaxis(original, -1, 0)):
            if not np.isfinite(plane).all():
                psf[row, ..., band] = np.nan
                continue
            turned = np.where(frame.outside, 0, frame.resample(plane, order))
            total = turned.sum()
            factor = plane.sum() / total if total else 1
            psf[row, ..., band] = factor * turned
    return psf


def unalign(images, pose, *, shape=None, order=3):
    """
    Turn images from the aligned frame back to that of the cutouts.

    Parameters
    ----------
    images : `~numpy.ndarray`, shape (n, ny, nx) or (n, ny, nx, n_bands)
        Images in the aligned frame.
    pose : `~numpy.ndarray`, shape (n,) or (n, 5)
        ``stack.pose``, or x, y, angle, flip and size.
    shape : int or (int, int), optional
        Size of the cutouts; by default that of the images.
    order : int, optional
        Order of the spline that interpolates, 0 to 5.

    Returns
    -------
    images : `~numpy.ndarray`, shape (n, ny, nx) or (n, ny, nx, n_bands)
        In float32; 0 where the aligned images do not reach.

    Raises
    ------
    ValueError
        If there are not as many poses as images, or the order is unknown.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.images import align, measure_pose, unalign
    >>> truth, stack = make_galaxies(4, seed=1)
    >>> stack = measure_pose(stack)
    >>> unalign(align(stack).data, stack.pose).shape
    (4, 64, 64, 1)
    """
    images = np.asarray(images)
    size = images.shape[1:3]
    shape = size if shape is None else check_shape("shape", shape)
    order = check_option("order", order, _ORDERS)
    pose, _ = as_pose(pose, (len(images), *shape))
    out = np.zeros((len(images), *shape, *images.shape[3:]), np.float32)
    for row, one in enumerate(pose):
        frame = _Frame(one, size, shape).inverse()
        for index in np.ndindex(images.shape[3:]):
            plane = frame.resample(images[(row, ..., *index)], order)
            out[(row, ..., *index)] = np.where(frame.outside, 0, plane)
    return out


class _Frame:
    """
    The map from the pixels of a canvas to those of an image.

    Parameters
    ----------
    pose : `~numpy.void`
        The pose of one galaxy.
    canvas : (int, int)
        Size ``(ny, nx)`` of the aligned frame.
    image : (int, int)
        Size ``(ny, nx)`` of the cutout.
    """

    def __init__(self, pose, canvas, image):
        cos, sin = np.cos(pose["angle"]), np.sin(pose["angle"])
        flip = pose["flip"]
        self.matrix = np.array([[cos * flip, sin], [-sin * flip, cos]])
        center = (np.array(canvas) - 1) / 2
        self.offset = (np.array(image) - 1) / 2 - self.matrix @ center
        self.offset += [pose["y"], pose["x"]]
        self.canvas, self.image = tuple(canvas), tuple(image)

    def inverse(self):
        """The map from the cutout to the canvas."""
        new = object.__new__(_Frame)
        # a rotation, with a reflection or without
        new.matrix = self.matrix.T
        new.offset = -new.matrix @ self.offset
        new.canvas, new.image = self.image, self.canvas
        return new

    @property
    def outside(self):
        """Pixels of the canvas that lie beyond the image."""
        grid = np.indices(self.canvas).reshape(2, -1)
        place = self.matrix @ grid + self.offset[:, np.newaxis]
        limit = np.array(self.image)[:, np.newaxis] - 1
        out = (place < -_ROUNDING) | (place > limit + _ROUNDING)
        return out.any(axis=0).reshape(self.canvas)

    def resample(self, plane, order):
        """Interpolate an image at the pixels of the canvas."""
        return ndimage.affine_transform(
            plane,
            self.matrix,
            self.offset,
            output_shape=self.canvas,
            order=order,
            mode="nearest",
        )

    def mask(self, bad):
        """Pixels of the canvas that touch a bad one, or lie outside."""
        if not bad.any():
            return self.outside
        return self.outside | (self.resample(bad.astype(float), 1) > _ROUNDING)


def _fill(image, bad):
    """Replace bad pixels with what is around, so that splines do not ring."""
    if not bad.any():
        return image
    light, weight = (
        ndimage.gaussian_filter(plane, _FILL_SIGMA)
        for plane in (np.where(bad, 0, image), (~bad).astype(image.dtype))
    )
    around = light / np.maximum(weight, np.finfo(np.float32).tiny)
    return np.where(bad, np.where(weight > _ROUNDING, around, 0), image)
