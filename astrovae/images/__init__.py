# Licensed under a 3-clause BSD style license - see LICENSE
"""From images and catalogues to clean stacks of cutouts."""

from astrovae.images.archives import (
    read_galsim_catalog,
    read_hsc_blends,
    read_multimodal_universe,
)
from astrovae.images.cleaning import clean_cutouts, measure_background
from astrovae.images.cutouts import make_cutouts
from astrovae.images.detection import detect_sources
from astrovae.images.pose import align, measure_pose, unalign
from astrovae.images.preparation import preprocess_cutouts, restore_cutouts
from astrovae.images.readers import read_image
from astrovae.images.selection import Cut, Selection
from astrovae.images.stack import CutoutStack

__all__ = [
    "Cut",
    "CutoutStack",
    "Selection",
    "align",
    "clean_cutouts",
    "detect_sources",
    "make_cutouts",
    "measure_background",
    "measure_pose",
    "preprocess_cutouts",
    "read_galsim_catalog",
    "read_hsc_blends",
    "read_image",
    "read_multimodal_universe",
    "restore_cutouts",
    "unalign",
]
