# Licensed under a 3-clause BSD style license - see LICENSE
"""The ways in which others prepare pictures of galaxies."""

import functools

import numpy as np

from astrovae._validation import check_option

__all__ = [
    "PREPROCESSES",
    "PictureColumns",
    "picture_plane",
    "preprocess_cutouts",
    "restore_cutouts",
]

PREPROCESSES = ("astrovader",)

# AstroVaDEr: luma of red, green and blue; pixels that are kept, and that are made
_LUMA = np.array([0.2125, 0.7154, 0.0721])
_KEPT, _MADE = 192, 128
# sigma of the blur before, in pixels: (192 / 128 - 1) / 2, as of scikit-image
_BLUR = 0.5 * (_KEPT / _MADE - 1)
# a picture whose levels differ by no more than this, relatively, is constant
_ROUNDING = 1e-6
_OFFSET, _RANGE = "picture_offset", "picture_range"


def preprocess_cutouts(stack, preprocess="astrovader"):
    """
    Prepare pictures as a published model was trained on.

    Do it to compare with that model; for models of your own,
    `clean_cutouts` and `measure_pose` keep what is measured.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        Pictures, of one band or of red, green and blue; they are not changed.
    preprocess : {"astrovader"}, optional
        "astrovader": grey, the central 192 x 192 pixels, interpolated to 128 x
        128, each rescaled to run from 0 to 1.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        Prepared pictures, with this step in ``steps``, and the columns
        ``picture_offset`` and ``picture_range``, with which `restore_cutouts`
        goes back to the grey levels. Pictures that are constant, or have no
        valid pixel, are masked. Errors are carried along, as if those of
        different pixels were independent.

    Raises
    ------
    ValueError
        If there is no such preparation, cutouts are too small, have another
        number of bands, or bring a PSF, a pose or a segmentation, which the
        preparation would make wrong.

    Notes
    -----
    The published scripts also rounded to 8 bits, which is left out: it could not
    be undone.

    References
    ----------
    Spindler et al. 2021, MNRAS 502, 985, section 2; and ``galaxyget.py`` at
    github.com/AshleySpindler/AstroVaDEr-Public.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.images import CutoutStack, preprocess_cutouts
    >>> pictures = np.random.default_rng(1).uniform(0, 255, (2, 200, 200, 3))
    >>> stack = preprocess_cutouts(CutoutStack(pictures))
    >>> stack.image_shape, stack.bands
    ((128, 128, 1), ('grey',))
    """
    check_option("preprocess", preprocess, PREPROCESSES)
    present = {"psf": stack.psf, "pose": stack.pose, "segmentation": stack.segmentation}
    for name, plane in present.items():
        if plane is not None:
            msg = (
                f"the stack has a {name}, which preprocess={preprocess!r} would make "
                "wrong: prepare the pictures before."
            )
            raise ValueError(msg)
    n = len(stack)
    data = np.zeros((n, _MADE, _MADE, 1), np.float32)
    mask = np.ones(data.shape, bool)
    error = None if stack.error is None else np.ones(data.shape, np.float32)
    columns = {_OFFSET: np.zeros(n), _RANGE: np.ones(n)}
    for row in range(n):
        plane, bad, noise, offset, span = picture_plane(
            stack.data[row],
            stack.mask[row],
            None if stack.error is None else stack.error[row],
        )
        data[row, ..., 0], mask[row, ..., 0] = plane, bad
        if error is not None:
            error[row, ..., 0] = noise
        columns[_OFFSET][row], columns[_RANGE][row] = offset, span
    scale = stack.pixel_scale
    return stack.replace(
        data=data,
        mask=mask,
        error=error,
        bands=["grey"],
        unit=None,
        pixel_scale=None if scale is None else scale * (_KEPT / _MADE),
        columns=stack.columns | columns,
        steps=(*stack.steps, _step(preprocess)),
    )


def _step(preprocess):
    return {"name": "preprocess_cutouts", "parameters": {"preprocess": preprocess}}


class PictureColumns:
    """
    Prepare pictures one by one, and keep what is needed to restore them.

    Parameters
    ----------
    preprocess : {"astrovader"}
        As for `preprocess_cutouts`.
    """

    def __init__(self, preprocess):
        self.preprocess = check_option("preprocess", preprocess, PREPROCESSES)
        self.found = {}

    def prepare(self, row, image):
        """Give the prepared picture, NaN where it is masked."""
        plane, bad, _, offset, span = picture_plane(image, ~np.isfinite(image))
        self.found[row] = offset, span
        return np.where(bad, np.nan, plane)[..., np.newaxis]

    def options(self, n, options):
        """Arguments of the stack of n pictures."""
        offset, span = np.zeros(n), np.ones(n)
        for row, values in self.found.items():
            offset[row], span[row] = values
        columns = dict(options.get("columns") or {})
        return {
            "columns": columns | {_OFFSET: offset, _RANGE: span},
            "steps": (*options.get("steps", ()), _step(self.preprocess)),
        }


def restore_cutouts(images, stack):
    """
    Bring prepared or painted pictures back to their grey levels.

    What cannot come back is colour, what was cut off, and detail finer than the
    prepared pixels.

    Parameters
    ----------
    images : array_like, shape (n, ny, nx) or (n, ny, nx, n_bands)
        Pictures from 0 to 1, e.g. reconstructions of those in the stack.
    stack : `~astrovae.images.CutoutStack`
        The prepared stack, whose rows they are.

    Returns
    -------
    images : `~numpy.ndarray`
        In the unit of the pictures before `preprocess_cutouts`.

    Raises
    ------
    ValueError
        If the stack was not prepared, or has another number of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.images import CutoutStack, preprocess_cutouts, restore_cutouts
    >>> pictures = np.random.default_rng(1).uniform(10, 20, (2, 192, 192))
    >>> stack = preprocess_cutouts(CutoutStack(pictures))
    >>> grey = restore_cutouts(stack.data, stack)
    >>> bool(10 < grey.min() < 11)
    True
    """
    images = np.asarray(images)
    if images.dtype.kind != "f":
        images = images.astype(np.float32)
    if _OFFSET not in stack.columns or _RANGE not in stack.columns:
        msg = (
            f"the stack has no columns {_OFFSET} and {_RANGE}: it was not prepared by "
            "preprocess_cutouts."
        )
        raise ValueError(msg)
    if len(images) != len(stack):
        msg = f"got {len(images)} images for the {len(stack)} rows of the stack."
        raise ValueError(msg)
    shape = (-1,) + (1,) * (images.ndim - 1)
    offset, span = (
        np.asarray(stack.columns[name], images.dtype).reshape(shape)
        for name in (_OFFSET, _RANGE)
    )
    return offset + span * images


def picture_plane(image, mask=None, error=None):
    """
    Prepare one picture as AstroVaDEr does.

    Parameters
    ----------
    image : `~numpy.ndarray`, shape (ny, nx, n_bands)
        The pixels.
    mask : `~numpy.ndarray` of bool, optional
        `True` for bad pixels; what they touch is masked.
    error : `~numpy.ndarray`, optional
        1-sigma errors.

    Returns
    -------
    plane, bad, noise : `~numpy.ndarray`, shape (128, 128)
        Pixels from 0 to 1, which are masked, and their errors or `None`.
    offset, span : float
        What 0 was, and the difference from 0 to 1.

    Raises
    ------
    ValueError
        If the picture is too small, or has neither one band nor three.
    """
    ny, nx, n_bands = image.shape
    if min(ny, nx) < _KEPT:
        msg = f"it has {ny} x {nx} pixels; at least {_KEPT} x {_KEPT} are needed"
        raise ValueError(msg)
    if n_bands not in (1, 3):
        msg = f"it has {n_bands} bands; 1, or red, green and blue, are needed"
        raise ValueError(msg)
    window = tuple(
        slice(size // 2 - _KEPT // 2, size // 2 + _KEPT // 2) for size in (ny, nx)
    )
    luma = _LUMA if n_bands == 3 else np.ones(1)
    matrix = _shrink()
    bad = np.zeros((_MADE, _MADE), bool)
    image = np.asarray(image[window], float)
    if mask is not None:
        hidden = mask[window].any(axis=-1)
        image = np.where(mask[window], 0.0, image)
        if hidden.any():
            bad = matrix @ hidden @ matrix.T > 0
    plane = matrix @ (image @ luma) @ matrix.T
    noise = None
    if error is not None:
        known = np.square(error[window], dtype=float)
        known = known if mask is None else np.where(mask[window], 0.0, known)
        noise = np.sqrt(matrix**2 @ (known @ luma**2) @ matrix.T**2)
    valid = plane[~bad]
    offset = valid.min() if valid.size else 0.0
    span = np.ptp(valid) if valid.size else 0.0
    if not span > _ROUNDING * np.abs(valid).max(initial=0.0):
        # nothing to see: a constant picture
        return np.zeros_like(plane), np.ones_like(bad), noise, offset, 1.0
    return (
        np.where(bad, 0.0, (plane - offset) / span),
        bad,
        None if noise is None else np.where(bad, 1.0, noise / span),
        float(offset),
        float(span),
    )


@functools.cache
def _shrink():
    """
    Make the matrix that blurs and interpolates 192 pixels to 128.

    Linear interpolation between pixel centres, after a Gaussian blur with mirrored
    edges, as scikit-image resizes.
    """
    at = (np.arange(_MADE) + 0.5) * (_KEPT / _MADE) - 0.5
    low = np.floor(at).astype(int)
    rows = np.arange(_MADE)
    interpolate = np.zeros((_MADE, _KEPT))
    interpolate[rows, low] += 1 - (at - low)
    interpolate[rows, low + 1] += at - low
    radius = int(4 * _BLUR + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / _BLUR) ** 2)
    kernel /= kernel.sum()
    blur = np.zeros((_KEPT, _KEPT))
    for offset, weight in zip(offsets, kernel, strict=True):
        near = np.arange(_KEPT) + offset
        near = np.where(near < 0, -near, near)
        near = np.where(near >= _KEPT, 2 * (_KEPT - 1) - near, near)
        blur[np.arange(_KEPT), near] += weight
    return interpolate @ blur
