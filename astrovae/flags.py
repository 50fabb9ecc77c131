# Licensed under a 3-clause BSD style license - see LICENSE
"""
The one registry of flag bits, and how to read them.

Every ``*_flags`` column and ``CutoutStack.flags`` use the
same bits, so that one row tells everything that happened to a galaxy on
its way from the image to the catalogue.
"""

import enum

import numpy as np

__all__ = ["Flag", "decode_flags"]


class Flag(enum.IntFlag):
    """
    The bits of the flag columns.

    Each member has a ``description``. Zero means that nothing was
    noticed.

    Examples
    --------
    >>> from astrovae.flags import Flag
    >>> Flag.PARTIAL.description
    'the cutout reaches beyond the edge of the image'
    """

    def __new__(cls, value, description=""):
        member = int.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    # FITS and most tables hold these as 32 bits with a sign: bit 30 is the last one
    NO_POSITION = 1 << 0, "the position is masked or not finite"
    NO_OVERLAP = 1 << 1, "the cutout lies wholly outside the image"
    PARTIAL = 1 << 2, "the cutout reaches beyond the edge of the image"
    NON_FINITE = 1 << 3, "pixels that are not finite were masked"
    BAD_ERROR = 1 << 4, "pixels whose error is not finite and positive were masked"
    NO_VALID_PIXEL = 1 << 5, "no pixel is valid: nothing can be measured"
    MOSTLY_MASKED = 1 << 6, "more than half of the pixels are masked"
    NEIGHBOR = 1 << 7, "pixels of neighbouring sources were masked or replaced"
    NO_SOURCE = 1 << 8, "no source was found at the centre of the cutout"
    NOT_LARGER_THAN_PSF = 1 << 9, "the source is no larger than the blur: a star?"
    SOURCE_TRUNCATED = 1 << 10, "the source touches the edge of the image"
    CONSTANT = 1 << 11, "all valid pixels have the same value"
    NOT_CONVERGED = 1 << 12, "the fit had not converged when it was stopped"
    CENTER_OUTSIDE = 1 << 13, "the fitted centre lies outside the cutout"
    NEGATIVE_FLUX = 1 << 14, "the fitted flux is not positive"
    NO_RESULT = 1 << 15, "the model gave no finite value"
    POSE_FAILED = 1 << 16, "no pose could be measured"
    POSE_UNRELIABLE = (
        1 << 17,
        "too round for its angle to mean anything, or so lopsided as blends are",
    )
    POSE_NOT_CONVERGED = 1 << 18, "the pose was still changing when it was stopped"
    AT_LIMIT = 1 << 19, "a fitted parameter is at its limit, and has no error"
    NO_TILE = 1 << 20, "the tile of the image is missing or cannot be read"
    NO_SIZE = 1 << 21, "the size to cut is masked, not positive, or too large"
    UNREADABLE = 1 << 22, "the file of the cutout is damaged or too large"
    NO_BACKGROUND = 1 << 23, "too few pixels are free of sources to measure the sky"
    SATURATED = 1 << 24, "saturated pixels were masked"
    COSMIC_RAY = 1 << 25, "pixels that were hit by cosmic rays were masked"
    OFF_CENTER = 1 << 26, "the source lies away from the centre of the cutout"
    LOW_SNR = 1 << 27, "the source hardly stands out of the noise"
    CROWDED = 1 << 28, "neighbouring sources have more light than the target"
    AMBIGUOUS_MATCH = 1 << 29, "several rows of the other catalogue match"
    OUT_OF_SUPPORT = 1 << 30, "what was asked for is unlike anything trained on"


def decode_flags(flags):
    """
    Spell out the bits of flag values.

    Parameters
    ----------
    flags : int or array_like of int
        Values of a ``*_flags`` column. Masked elements give an empty list.

    Returns
    -------
    names : list of str, or list of list of str
        The lower-case names of the bits that are set; for an array, one
        list per element.

    Raises
    ------
    ValueError
        If a value is negative, not an integer, or has a bit that is not
        in the registry.

    Examples
    --------
    >>> from astrovae.flags import decode_flags
    >>> decode_flags(5)
    ['no_position', 'partial']
    >>> decode_flags([0, 128])
    [[], ['neighbor']]
    """
    values = np.ma.filled(np.ma.asarray(flags), 0)
    if values.size and values.dtype.kind not in "iu":
        msg = f"flags must be integers, got an array of dtype {values.dtype}."
        raise ValueError(msg)
    known = sum(Flag)
    for value in np.unique(values):
        if value < 0 or int(value) & ~known:
            msg = (
                f"flags has the value {int(value)}, with a bit that astrovae "
                f"does not know; the known bits sum to {known}."
            )
            raise ValueError(msg)
    if values.ndim == 0:
        return [flag.name.lower() for flag in Flag if int(values) & flag]
    return [decode_flags(value) for value in values]
