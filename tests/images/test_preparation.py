# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of the preparation of pictures as others do it."""

import zipfile

import numpy as np
import pytest
from astropy.utils.exceptions import AstropyUserWarning
from numpy.testing import assert_allclose, assert_array_equal
from skimage.color import rgb2gray
from skimage.transform import resize

from astrovae.exceptions import PreprocessingError
from astrovae.flags import Flag
from astrovae.images import (
    CutoutStack,
    measure_pose,
    preprocess_cutouts,
    restore_cutouts,
)


@pytest.fixture
def pictures(rng):
    """Three colour pictures with detail at all scales."""
    return rng.integers(0, 256, (3, 230, 224, 3)).astype(np.float32)


def by_hand(picture):
    """Grey, cropped and resized by scikit-image."""
    grey = rgb2gray(picture[19:211, 16:208] / 255) * 255
    return resize(grey, (128, 128), anti_aliasing=True, preserve_range=True)


def test_pixels_equal_scikit_image(pictures):
    """Grey, the central 192 pixels, 128 of them, from 0 to 1."""
    stack = preprocess_cutouts(CutoutStack(pictures, pixel_scale=0.4, ids=[5, 7, 9]))
    assert stack.image_shape == (128, 128, 1)
    assert_array_equal(stack.ids, [5, 7, 9])
    assert_allclose(stack.pixel_scale.value, 0.6)
    assert not stack.mask.any()
    for row, picture in enumerate(pictures):
        grey = by_hand(picture)
        low, high = grey.min(), grey.max()
        assert_allclose(stack.data[row, ..., 0], (grey - low) / (high - low), atol=1e-6)
        assert_allclose(stack.columns["picture_offset"][row], low, rtol=1e-6)
        assert_allclose(stack.columns["picture_range"][row], high - low, rtol=1e-6)
        assert stack.data[row].min() == 0
        assert_allclose(stack.data[row].max(), 1, rtol=1e-6)


def test_grey_levels_come_back(pictures):
    """Also of a selection, and of painted pictures."""
    stack = preprocess_cutouts(CutoutStack(pictures))[1:]
    grey = restore_cutouts(stack.data, stack)
    for row in range(2):
        assert_allclose(grey[row, ..., 0], by_hand(pictures[row + 1]), atol=1e-4)
    assert restore_cutouts(stack.data[..., 0], stack).shape == (2, 128, 128)


def test_whole_numbers_come_back_as_floats(pictures):
    """Pictures of 0 and 1 are no reason to round grey levels."""
    stack = preprocess_cutouts(CutoutStack(pictures))[1:]
    black = np.zeros(stack.data.shape, int)
    found = restore_cutouts(black, stack)[:, 0, 0, 0]
    assert (found % 1 != 0).any()
    assert_allclose(found, stack.columns["picture_offset"], rtol=1e-6)


def test_masks_and_errors(pictures):
    """What touches a bad pixel is masked; errors are those of a weighted sum."""
    one = pictures[:, 16:208, 16:208, :1]
    mask = np.zeros(one.shape, bool)
    mask[0, 60, 90] = True
    hidden = np.where(mask, 1e30, one)
    stack = preprocess_cutouts(
        CutoutStack(hidden, mask=mask, error=np.full(one.shape, 3.0))
    )
    assert 4 <= stack.mask[0].sum() <= 9
    assert stack.mask[0, 40, 60, 0]
    assert not stack.mask[1:].any()
    good = preprocess_cutouts(CutoutStack(one))
    seen = ~stack.mask[0]
    grey = restore_cutouts(stack.data, stack)[0][seen]
    assert_allclose(grey, restore_cutouts(good.data, good)[0][seen], atol=1e-4)
    # a delta of noise through the same steps, by scikit-image
    span = stack.columns["picture_range"][1]
    found = stack.error[1, 40, 60, 0] * span
    total = 0.0
    for y in range(56, 66):
        for x in range(86, 96):
            delta = np.zeros((192, 192))
            delta[y, x] = 1.0
            total += resize(delta, (128, 128), anti_aliasing=True)[40, 60] ** 2
    assert_allclose(found, 3.0 * np.sqrt(total), rtol=1e-5)


def test_constant_pictures_are_masked(pictures):
    """There is nothing to rescale; the row is flagged, others are as before."""
    pictures[1] = 7.0
    stack = preprocess_cutouts(CutoutStack(pictures))
    assert stack.mask[1].all()
    assert stack.flags[1] & Flag.NO_VALID_PIXEL
    assert np.isfinite(stack.data).all()
    assert not stack.mask[[0, 2]].any()


def test_step_is_recorded_and_applied(pictures):
    """`prepare` takes raw pictures to where the model was trained."""
    raw = CutoutStack(pictures, bands=["red", "green", "blue"])
    stack = preprocess_cutouts(raw)
    record = stack.preprocessing
    assert record["steps"] == [
        {"name": "preprocess_cutouts", "parameters": {"preprocess": "astrovader"}}
    ]
    again = raw.prepare(record)
    assert_array_equal(again.data, stack.data)
    assert stack.prepare(record) is stack
    assert again.preprocessing == record
    with pytest.raises(PreprocessingError, match="cutout shape"):
        stack.prepare(raw.preprocessing)


def test_pictures_are_prepared_when_read(pictures, tmp_path):
    """From an archive as from a stack; small and damaged ones are flagged."""
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("3", pictures[0]), ("8", pictures[1][:100])):
            np.save(tmp_path / "one.npy", array)
            archive.write(tmp_path / "one.npy", f"{name}.npy")
    with pytest.warns(AstropyUserWarning, match="it has 100 x 224 pixels; at least"):
        stack = CutoutStack.from_images(path, preprocess="astrovader")
    expected = preprocess_cutouts(CutoutStack(pictures[:1]))
    assert_array_equal(stack.ids, [3, 8])
    assert_array_equal(stack.data[0], expected.data[0])
    assert stack.preprocessing == expected.preprocessing
    assert_allclose(
        restore_cutouts(stack.data[:1], stack[:1]),
        restore_cutouts(expected.data, expected),
    )
    assert stack.flags[1] & Flag.UNREADABLE
    with pytest.raises(ValueError, match="settles shape and bands"):
        CutoutStack.from_images(path, shape=64, preprocess="astrovader")
    with pytest.raises(ValueError, match="preprocess"):
        CutoutStack.from_images(path, preprocess="other")


def test_misuse(pictures):
    """Errors say what is wrong."""
    with pytest.raises(ValueError, match="preprocess"):
        preprocess_cutouts(CutoutStack(pictures), "loh")
    with pytest.raises(ValueError, match="at least 192 x 192 are needed"):
        preprocess_cutouts(CutoutStack(pictures[:, :100]))
    with pytest.raises(ValueError, match="2 bands"):
        preprocess_cutouts(CutoutStack(pictures[..., :2]))
    with pytest.raises(ValueError, match="has a pose"):
        preprocess_cutouts(measure_pose(CutoutStack(pictures)))
    stack = CutoutStack(pictures)
    with pytest.raises(ValueError, match="not prepared by preprocess_cutouts"):
        restore_cutouts(stack.data, stack)
    done = preprocess_cutouts(stack)
    with pytest.raises(ValueError, match="got 1 images for the 3 rows"):
        restore_cutouts(done.data[:1], done)
    empty = preprocess_cutouts(stack[:0])
    assert empty.image_shape == (128, 128, 1)
    assert len(empty) == 0
