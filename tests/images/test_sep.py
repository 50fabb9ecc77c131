# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of detection with sep."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.datasets import make_survey
from astrovae.images import clean_cutouts, detect_sources, make_cutouts


@pytest.fixture
def sep():
    """Return the package, or skip the test."""
    return pytest.importorskip("sep")


@pytest.fixture(scope="module")
def survey():
    """Return truth and image."""
    return make_survey(60, n_stars=20, shape=(400, 420), companions=0.1, seed=2)


@pytest.mark.parametrize("deblend", [True, False])
def test_same_sources(sep, survey, deblend):
    """Both engines find the same pixels; blends are split alike, mostly."""
    _, image = survey
    (one, one_segments), (other, segments) = (
        detect_sources(image, engine=name, deblend=deblend)
        for name in ("photutils", "sep")
    )
    assert one.colnames == other.colnames
    assert other.meta["detect_sources"]["engine"] == "sep"
    assert abs(len(other) / len(one) - 1) < 0.05
    assert len(other) == segments.n_labels == segments.max_label
    same = (one_segments.data > 0) == (segments.data > 0)
    assert same.mean() > 0.999
    distance = np.hypot(
        one["x"].value[:, np.newaxis] - other["x"].value,
        one["y"].value[:, np.newaxis] - other["y"].value,
    )
    row = distance.argmin(axis=1)
    found = distance.min(axis=1) < (1 if deblend else 1e-3)
    assert found.mean() > (0.9 if deblend else 0.99)
    flux = other["flux"][row][found]
    assert np.median(np.abs(flux / one["flux"][found] - 1)) < 1e-4
    # stamps can be cut and cleaned with it
    clean = clean_cutouts(make_cutouts(image, other, 32, segmentation=segments))
    assert (clean.labels == other["label"]).all()


def test_input(sep, survey):
    """Big-endian, masked and not finite pixels; nothing is changed."""
    _, image = survey
    expected, _ = detect_sources(image.data[..., 0], engine="sep")
    big = image.data[..., 0].astype(">f4")
    before = big.copy()
    table, _ = detect_sources(big, engine="sep")
    assert_allclose(table["x"].value, expected["x"].value)
    assert_array_equal(big, before)
    big[100:140, 100:140] = np.nan
    mask = np.zeros(big.shape, bool)
    mask[200:250, 300:350] = True
    kept = mask.copy()
    _, segments = detect_sources(big, mask=mask, engine="sep")
    assert not segments.data[100:140, 100:140].any()
    assert not segments.data[mask].any()
    assert_array_equal(mask, kept)
    whole, _ = detect_sources(image, engine="sep", deblend=False)
    assert len(whole) < len(expected)


def test_nothing_there(sep, rng):
    table, segments = detect_sources(
        rng.normal(size=(100, 100)), n_sigma=6, engine="sep"
    )
    assert len(table) == 0
    assert segments is None


def test_crowded(sep, survey):
    """Images with more pixels of sources than sep's buffer holds."""
    _, image = survey
    expected, _ = detect_sources(image, engine="sep")
    size, parts = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_extract_pixstack(100)
    sep.set_sub_object_limit(2)
    try:
        table, _ = detect_sources(image, engine="sep")
        assert sep.get_extract_pixstack() == 100
        assert sep.get_sub_object_limit() == 2
    finally:
        sep.set_extract_pixstack(size)
        sep.set_sub_object_limit(parts)
    assert_array_equal(table["x"], expected["x"])


def test_errors(survey, monkeypatch):
    with pytest.raises(ValueError, match="engine must be one of"):
        detect_sources(survey[1], engine="sextractor")
    monkeypatch.setitem(sys.modules, "sep", None)
    with pytest.raises(ImportError, match=r"astrovae\[images\]"):
        detect_sources(survey[1], engine="sep")
