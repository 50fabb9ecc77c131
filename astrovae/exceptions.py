# Licensed under a 3-clause BSD style license - see LICENSE
"""Warnings and errors of astrovae."""

from astropy.utils.exceptions import AstropyUserWarning

__all__ = [
    "AstrovaeWarning",
    "FlaggedRowsWarning",
    "PreprocessingError",
    "PresetError",
]


class AstrovaeWarning(AstropyUserWarning):
    """Base class of the warnings that astrovae gives."""


class FlaggedRowsWarning(AstrovaeWarning):
    """Some rows could not be measured; they are masked and flagged."""


class PreprocessingError(ValueError):
    """Images were not prepared the way that a model was trained on."""


class PresetError(ValueError):
    """A preset is unknown, incomplete, unreadable or has been altered."""
