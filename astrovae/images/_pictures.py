# Licensed under a 3-clause BSD style license - see LICENSE
"""Stacks from folders and zip archives with one file per galaxy."""

import contextlib
import io
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
from astropy.utils.exceptions import AstropyUserWarning

from astrovae._progress import progress_bar
from astrovae._validation import check_shape
from astrovae.flags import Flag
from astrovae.images.preparation import PictureColumns
from astrovae.images.readers import read_image

__all__ = ["center_on", "read_pictures", "warn_unreadable"]

_PICTURES = (".jpg", ".jpeg", ".png")
_ARRAYS = (".npy",)
_FITS = (".fits", ".fit", ".fits.gz", ".fits.fz")
_SUFFIXES = (*_PICTURES, *_ARRAYS, *_FITS)
# a file with more pixels than this is not opened, nor an archive's member
# that is, unpacked, larger than so many bytes
_MAX_PIXELS, _MAX_MEMBER_BYTES = 1 << 26, 1 << 29
# and no stack is made that needs more memory than this
_MAX_BYTES = 8 << 30
# names of the bands of colour pictures
_COLORS = {1: ("grey",), 3: ("red", "green", "blue")}


class _PictureError(Exception):
    """What is wrong with a file."""


def read_pictures(make, path, *, shape, ids, bands, preprocess, options, show_progress):
    """Read one file per galaxy; see `CutoutStack.from_images`."""
    prepared = None
    if preprocess is not None:
        if shape is not None or bands is not None:
            msg = f"preprocess={preprocess!r} settles shape and bands: leave them out."
            raise ValueError(msg)
        prepared = PictureColumns(preprocess)
    if shape is not None:
        shape = check_shape("shape", shape)
    with _source(path) as (names, read):
        stems = {}
        for name in sorted(names):
            stems.setdefault(_stem(name), name)
        wanted = sorted(stems) if ids is None else [str(one) for one in ids]
        if ids is None:
            ids = wanted
            if all(stem.isdecimal() and str(int(stem)) == stem for stem in wanted):
                ids = [int(stem) for stem in wanted]
                wanted = [str(one) for one in sorted(ids)]
                ids = sorted(ids)
        if not wanted:
            msg = (
                f"{path} has no images: no file ends in {', '.join(_SUFFIXES)}. "
                "Their names, without the ending, become the ids."
            )
            raise ValueError(msg)
        data = mask = None
        reasons = {}
        with progress_bar("Reading", len(wanted), show=show_progress) as advance:
            for row, stem in enumerate(wanted):
                advance()
                try:
                    if stem not in stems:
                        reasons[row] = "there is no such file"
                        continue
                    image = _decode(stems[stem], read(stems[stem]))
                    if prepared is not None:
                        image = prepared.prepare(row, image)
                except (_PictureError, OSError, ValueError) as error:
                    reasons[row] = str(error) or type(error).__name__
                    continue
                if data is None:
                    shape = image.shape[:2] if shape is None else shape
                    data, mask = _allocate(len(wanted), shape, image.shape[2])
                if image.shape[2] != data.shape[3]:
                    reasons[row] = f"it has {image.shape[2]} bands"
                    continue
                center_on(image, data[row], mask[row])
    if data is None:
        msg = f"no image in {path} can be read: {wanted[0]}: {reasons[0]}."
        raise ValueError(msg)
    flags = np.zeros(len(wanted), np.int32)
    flags[list(reasons)] |= Flag.UNREADABLE
    warn_unreadable(path, wanted, reasons)
    if bands is None:
        bands = _COLORS.get(data.shape[3])
    if prepared is not None:
        options = options | prepared.options(len(wanted), options)
    return make(data, mask=mask, flags=flags, ids=ids, bands=bands, **options)


def warn_unreadable(path, names, reasons):
    """Say once which cutouts could not be read."""
    if reasons:
        row = min(reasons)
        msg = (
            f"{len(reasons)} of {len(names)} images in {path} cannot be read: they are "
            f"masked and flagged. The first is {names[row]}: {reasons[row]}."
        )
        warnings.warn(msg, AstropyUserWarning, stacklevel=4)


def _stem(name):
    """The name of a file without folder and ending."""
    name = name.rsplit("/", 1)[-1]
    ending = max((s for s in _SUFFIXES if name.lower().endswith(s)), key=len)
    return name[: -len(ending)]


@contextlib.contextmanager
def _source(path):
    """The names of the images of a folder or zip, and how to read one."""
    path = Path(path)
    if path.is_dir():
        names = [item.name for item in path.iterdir() if item.is_file()]
        names = [name for name in names if name.lower().endswith(_SUFFIXES)]
        yield names, lambda name: path / name
        return
    if not path.is_file():
        msg = f"There is no folder or file {path}."
        raise FileNotFoundError(msg)
    if not zipfile.is_zipfile(path):
        msg = f"{path} is neither a folder nor a zip archive."
        raise ValueError(msg)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        msg = f"{path} is not a readable zip archive: {error}."
        raise ValueError(msg) from error
    with archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        names = [name for name in names if name.lower().endswith(_SUFFIXES)]
        yield names, lambda name: unpack(archive, name)


def unpack(archive, name):
    """The bytes of a member of a zip archive, if they are not too many."""
    try:
        with archive.open(name) as member:
            # what the directory of the archive claims is not believed
            content = member.read(_MAX_MEMBER_BYTES + 1)
    except Exception as error:
        msg = f"it is damaged ({error})"
        raise _PictureError(msg) from error
    if len(content) > _MAX_MEMBER_BYTES:
        msg = f"it has more than {_MAX_MEMBER_BYTES:,} bytes unpacked"
        raise _PictureError(msg)
    return content


def _decode(name, source):
    """An image as an array (ny, nx, n_bands)."""
    lower = name.lower()
    if lower.endswith(_PICTURES):
        array = _decode_picture(source)
    elif lower.endswith(_ARRAYS):
        array = _decode_array(source)
    else:
        array = _decode_fits(name, source)
    if array.ndim == 2:
        array = array[..., np.newaxis]
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "biuf":
        msg = f"it is an array of {array.dtype} of shape {array.shape}"
        raise _PictureError(msg)
    return array


def _check_pixels(*sizes):
    total = int(np.prod([int(size) for size in sizes], dtype=object))
    if total > _MAX_PIXELS:
        msg = f"it has {total:,} pixels, more than {_MAX_PIXELS:,}"
        raise _PictureError(msg)


def _opened(source):
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def _decode_picture(source):
    from PIL import Image

    with _opened(source) as file, warnings.catch_warnings():
        # the size is checked here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            with Image.open(file, formats=("JPEG", "PNG")) as picture:
                _check_pixels(*picture.size)
                if picture.mode in ("P", "RGBA", "CMYK", "YCbCr", "LA"):
                    picture = picture.convert("L" if picture.mode == "LA" else "RGB")
                array = np.asarray(picture)
        except (_PictureError, OSError):
            raise
        # damaged pictures give errors of many kinds
        except Exception as error:
            msg = f"it is damaged ({error})"
            raise _PictureError(msg) from error
    # the first row of an image is at its bottom
    return array[::-1]


def _decode_array(source):
    with _opened(source) as file:
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in header:
            msg = f"it is of version {version} of the format"
            raise _PictureError(msg)
        shape, _, dtype = header[version](file)
        _check_pixels(*shape)
        if dtype.hasobject:
            msg = "it holds Python objects"
            raise _PictureError(msg)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _decode_fits(name, source):
    with tempfile.TemporaryDirectory() as folder:
        path = source
        if not isinstance(source, Path):
            path = Path(folder) / Path(name).name
            path.write_bytes(source)
        image = read_image(path)
        _check_pixels(*image.data.shape)
        array = np.array(image.data)
    # bands come first in FITS
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _allocate(n, shape, n_bands):
    needed = 5 * n * shape[0] * shape[1] * n_bands
    if needed > _MAX_BYTES:
        msg = (
            f"{n} images of {shape[0]} x {shape[1]} pixels and {n_bands} bands take "
            f"{needed / 2**30:.1f} GiB. Give a smaller shape, which keeps their "
            "centres, or fewer ids."
        )
        raise ValueError(msg)
    size = (n, *shape, n_bands)
    return np.zeros(size, np.float32), np.ones(size, bool)


def center_on(image, data, mask=None):
    """
    Copy an image into another, centre on centre.

    Parameters
    ----------
    image : `~numpy.ndarray`, shape (ny, nx, n_bands)
        What to copy; cropped if it is larger.
    data : `~numpy.ndarray`, shape (my, mx, n_bands)
        Where to; changed in place. The pixel ``n // 2`` falls on ``m // 2``.
    mask : `~numpy.ndarray` of bool, optional
        Set to `False` where there is something.
    """
    source, target = [], []
    for size, room in zip(image.shape, data.shape[:2], strict=False):
        first = room // 2 - size // 2
        low, high = max(first, 0), min(first + size, room)
        target.append(slice(low, high))
        source.append(slice(low - first, high - first))
    data[tuple(target)] = image[tuple(source)]
    if mask is not None:
        mask[tuple(target)] = False
