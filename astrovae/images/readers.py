# Licensed under a 3-clause BSD style license - see LICENSE
"""Images from files, read where they are used."""

import warnings
from pathlib import Path

import astropy.units as u
from astropy.io import fits
from astropy.nddata import NDData
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS, FITSFixedWarning

__all__ = ["read_image"]

# Compressed pixels can take far more memory than their file takes space: a
# blank image shrinks a thousandfold. Beyond both limits a header is not believed.
_MAX_EXPANSION, _MAX_EXPANDED_BYTES = 200, 4 << 30
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x1f\x9d")


def read_image(path, *, hdu=None):
    """
    Open an image in a FITS file, with its coordinates and unit.

    The pixels stay on disk and are read where they are used, unless they
    are compressed or scaled (``BZERO``, ``BSCALE``).

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
        try:
            return _read_hdu(path, hdu, memmap=True)
        except ValueError as error:
            if "memmap" not in str(error):
                raise
            # scaled pixels have to be converted, hence read
            return _read_hdu(path, hdu, memmap=False)


def _read_hdu(path, hdu, *, memmap):
    with fits.open(path, memmap=memmap) as hdus:
        found = _find_image(hdus, hdu)
        _check_size(path, found)
        data = found.data
        wcs = WCS(found.header, fobj=hdus)
        header = found.header.copy()
    while data.ndim > 2 and data.shape[0] == 1:
        data = data[0]
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


def _check_size(path, hdu):
    """Refuse an image that is larger than its file can hold."""
    claimed = abs(hdu.header["BITPIX"]) // 8
    for size in hdu.shape:
        claimed *= int(size)
    actual = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(6)
    compressed = isinstance(hdu, fits.CompImageHDU) or start.startswith(_COMPRESSED)
    if compressed:
        impossible = claimed > max(_MAX_EXPANDED_BYTES, _MAX_EXPANSION * actual)
        needed = claimed
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
