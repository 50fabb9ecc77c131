# Licensed under a 3-clause BSD style license - see LICENSE
"""Images from files, read where they are used."""

import bz2
import gzip
import lzma
import math
import warnings
from pathlib import Path

import astropy.units as u
from astropy.io import fits
from astropy.nddata import NDData
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS, FITSFixedWarning

from astrovae.images._file_plane import FileSection

__all__ = ["read_image"]

# Compressed pixels can take far more memory than their file takes space: a
# blank image shrinks a thousandfold. Beyond both limits a header is not believed.
_MAX_EXPANSION, _MAX_EXPANDED_BYTES = 200, 4 << 30
_SCALED = {"BSCALE", "BZERO", "BLANK"}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x1f\x9d")
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# FITS files are made of blocks of so many bytes; no header is longer than this
_BLOCK, _MAX_HEADER_BYTES = 2880, 1 << 24


def read_image(path, *, hdu=None):
    """
    Open an image in a FITS file, with its coordinates and unit.

    The pixels stay on disk and are read where they are used, unless the
    whole file is compressed. Tiles are decompressed, and stored values scaled
    (``BZERO``, ``BSCALE``), where they are used.

    Parameters
    ----------
    path : path-like
        A FITS file, which may be tile-compressed or gzipped.
    hdu : int or str, optional
        Number or name of the HDU. By default the first with an image.

    Returns
    -------
    image : `~astropy.nddata.NDData`
        ``data`` (2-D, or 3-D; leading axes of length one are dropped), ``wcs`` if
        it is celestial, ``unit`` if ``BUNIT`` is one that astropy knows,
        and the header in ``meta["header"]``. `make_cutouts` and
        `detect_sources` take it as it is.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not FITS, is damaged or truncated, has no such
        image, or claims more pixels than it can hold.

    Examples
    --------
    >>> from astrovae.images import read_image
    >>> image = read_image("mosaic.fits")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        return _read(path, hdu)
    except _ImageError as error:
        msg = f"{path} cannot be read: {error}."
        raise ValueError(msg) from error
    # astropy raises errors of many kinds on damaged files
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        msg = f"{path} is not a readable FITS image: {reason[0].rstrip('.')}."
        raise ValueError(msg) from error


class _ImageError(Exception):
    """What is wrong with an image, in a clause."""


def _read(path, hdu):
    with warnings.catch_warnings():
        # astropy opens truncated files with a warning: the size check decides
        warnings.simplefilter("ignore", AstropyUserWarning)
        warnings.simplefilter("ignore", FITSFixedWarning)
        # sections of scaled images cannot be read from a mapped file
        _check_headers(path)
        with fits.open(path, memmap=False) as hdus:
            found = _find_image(hdus, hdu)
            _check_size(path, found)
            scaled = not _SCALED.isdisjoint(found.header)
            packed = _is_packed(path)
            in_parts = isinstance(found, fits.CompImageHDU) or (scaled and not packed)
            if in_parts or packed:
                return _read_hdu(path, hdus, found, in_parts=in_parts)
        with fits.open(path, memmap=True) as hdus:
            return _read_hdu(path, hdus, _find_image(hdus, hdu), in_parts=False)


def _read_hdu(path, hdus, hdu, *, in_parts):
    if in_parts:
        number = next(i for i, one in enumerate(hdus) if one is hdu)
        first = hdu.section[(slice(0, 1),) * len(hdu.shape)]
        data = FileSection(path, number, hdu.shape, first.dtype)
    else:
        data = hdu.data
    wcs = WCS(hdu.header, fobj=hdus)
    header = hdu.header.copy()
    while data.ndim > 2 and data.shape[0] == 1:
        data = data.hold(0, 0) if in_parts else data[0]
    if data.ndim not in (2, 3):
        msg = (
            f"its image has {data.ndim} axes, of lengths {data.shape}; expected 2 or 3"
        )
        raise _ImageError(msg)
    return NDData(
        data,
        unit=_unit(header),
        wcs=wcs.celestial if wcs.has_celestial else None,
        meta={"header": header, "path": str(path)},
    )


def _find_image(hdus, hdu):
    """The HDU that was asked for, or the first image."""
    if hdu is not None:
        try:
            found = hdus[hdu]
        except (KeyError, IndexError) as error:
            msg = f"it has no HDU {hdu!r}; it has {[h.name or 'PRIMARY' for h in hdus]}"
            raise _ImageError(msg) from error
        if not found.is_image or len(found.shape) < 2:
            msg = f"its HDU {hdu!r} is not an image"
            raise _ImageError(msg)
        return found
    for found in hdus:
        if found.is_image and len(found.shape) >= 2:
            return found
    msg = "it has no image"
    raise _ImageError(msg)


def _is_packed(path):
    """Whether a file is compressed as a whole."""
    with path.open("rb") as file:
        return file.read(6).startswith(_COMPRESSED)


def _check_headers(path):
    """
    Refuse files with a header that does not end.

    Astropy looks for the end in the whole file, in memory: gigabytes, if what comes
    after the last image is a bomb of zeros.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    limit = max(_MAX_EXPANDED_BYTES, _MAX_EXPANSION * path.stat().st_size)
    openers = [one for key, one in _OPENERS.items() if magic.startswith(key)]
    with (openers[0] if openers else open)(path, "rb") as file:
        while header := _read_header(file):
            try:
                header = fits.Header.fromstring(header)
                sizes = [header[f"NAXIS{i + 1}"] for i in range(header["NAXIS"])]
                count = math.prod(sizes) if sizes else 0
                count = header.get("GCOUNT", 1) * (header.get("PCOUNT", 0) + count)
                size = count * abs(header["BITPIX"]) // 8
            except Exception:  # astropy says what is wrong with it
                return
            if size < 0:
                # going back, one would read the same header for ever
                msg = f"it has a header that claims {size:,} bytes of pixels"
                raise _ImageError(msg)
            if size > limit:
                return  # and is not believed, later on
            file.seek(-(-size // _BLOCK) * _BLOCK, 1)


def _read_header(file):
    """The next header; empty at the end of the file."""
    blocks = []
    while block := file.read(_BLOCK):
        blocks.append(block)
        cards = (block[start : start + 80] for start in range(0, _BLOCK, 80))
        if any(card.rstrip() == b"END" for card in cards):
            return b"".join(blocks)
        if len(blocks) * _BLOCK > _MAX_HEADER_BYTES:
            msg = f"it has a header of more than {_MAX_HEADER_BYTES:,} bytes"
            raise _ImageError(msg)
    return b""


def _tiles_end(path, hdu):
    """Where the table of compressed tiles ends in the file."""
    start = hdu.fileinfo()["datLoc"]
    with fits.open(path, disable_image_compression=True) as hdus:
        table = next(one for one in hdus if one.fileinfo()["datLoc"] == start).header
    return start + table["NAXIS1"] * table["NAXIS2"] + table["PCOUNT"]


def _check_size(path, hdu):
    """Refuse an image that is larger than its file can hold."""
    claimed = abs(hdu.header["BITPIX"]) // 8
    for size in hdu.shape:
        claimed *= int(size)
    actual = path.stat().st_size
    tiled = isinstance(hdu, fits.CompImageHDU)
    if _is_packed(path) or tiled:
        impossible = claimed > max(_MAX_EXPANDED_BYTES, _MAX_EXPANSION * actual)
        needed = claimed
        if tiled and not _is_packed(path):
            needed = _tiles_end(path, hdu)
            impossible |= needed > actual
    else:
        needed = hdu.fileinfo()["datLoc"] + claimed
        impossible = needed > actual
    if impossible or 0 in hdu.shape:
        msg = (
            f"its header claims {needed:,} bytes and the file has {actual:,}: it is "
            "truncated or damaged"
        )
        raise _ImageError(msg)


def _unit(header):
    """The unit of the pixels, if astropy knows it."""
    try:
        return u.Unit(header["BUNIT"], format="fits")
    except (KeyError, TypeError, ValueError):
        return None
