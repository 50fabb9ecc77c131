# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of how pixels are copied: many at a time, in threads, checked on the way."""

import time

import numpy as np
import pytest
from astropy.nddata import Cutout2D
from astropy.table import Table
from numpy.testing import assert_array_equal

from astrovae.datasets import make_survey
from astrovae.flags import Flag
from astrovae.images import (
    _geometry,
    _threads,
    clean_cutouts,
    cleaning,
    detect_sources,
    make_cutouts,
)


@pytest.fixture(params=[1, 3])
def processors(request, monkeypatch):
    """Run in the main thread, and in three threads."""
    monkeypatch.setattr(_threads, "_count_cpus", lambda: request.param)
    monkeypatch.setattr(_geometry, "_COPIED_PIXELS", 2048)
    monkeypatch.setattr(cleaning, "_CHUNK", 16)


def test_order(processors):
    """Results come in the order of the pieces, exceptions come through."""
    pieces = list(range(50))
    assert list(_threads.map_in_threads(lambda k: k**2, pieces)) == [
        k**2 for k in pieces
    ]
    with pytest.raises(ZeroDivisionError):
        list(_threads.map_in_threads(lambda k: 1 / k, pieces))
    assert _threads._count_cpus() >= 1


def test_interrupt(processors):
    """What has not begun never does, once somebody has had enough."""
    done = []

    def work(piece):
        done.append(piece)
        time.sleep(0.001)

    results = _threads.map_in_threads(work, range(200))
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert len(done) < 100


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2"])
def test_many_cutouts(rng, processors, dtype):
    """Cutouts inside, over edges and outside, in any order, are those of astropy."""
    image = rng.uniform(-1000, 1000, (90, 70)).astype(dtype)
    before = image.copy()
    xy = rng.uniform(-30, 110, (200, 2))
    stack = make_cutouts(image, Table(xy, names=["x", "y"]), (9, 12))
    outside = (stack.flags & Flag.NO_OVERLAP) > 0
    partial = (stack.flags & Flag.PARTIAL) > 0
    assert min(outside.sum(), partial.sum(), (~outside & ~partial).sum()) > 20
    for row in np.flatnonzero(~outside):
        one = Cutout2D(image.astype(float), xy[row], (9, 12), mode="partial").data
        exists = ~stack.mask[row, ..., 0]
        assert_array_equal(exists, np.isfinite(one))
        assert_array_equal(stack.data[row, ..., 0][exists], one[exists].astype("f4"))
    assert stack.mask[outside].all()
    assert not stack.data[stack.mask].any()
    assert_array_equal(image, before)
    assert stack.data.dtype == np.float32
    assert stack.data.dtype.isnative


def test_not_finite(rng, processors):
    """Values that are not finite are found wherever they are; large ones are kept."""
    image = rng.normal(size=(80, 80)).astype(np.float32)
    image[40, 40], image[10, 10], image[60, 20] = np.nan, np.inf, 1e30
    y, x = np.indices((71, 71)).reshape(2, -1)[:, ::3]
    table = Table({"x": x + 5, "y": y + 5})
    stack = make_cutouts(image, table, 9)
    origin = np.stack([y, x], axis=1) + 1
    has = np.zeros(len(x), bool)
    for spot in ((40, 40), (10, 10)):
        inside = ((spot >= origin) & (spot < origin + 9)).all(axis=1)
        rows = np.flatnonzero(inside)
        place = (spot - origin[rows]).T
        assert stack.mask[rows, *place, 0].all()
        assert not stack.data[rows, *place, 0].any()
        has |= inside
    assert_array_equal((stack.flags & Flag.NON_FINITE) > 0, has)
    assert stack.mask.sum() == 2 * 81 // 3
    assert (stack.data == np.float32(1e30)).any()


def test_image_smaller_than_cutouts(rng, processors):
    image = rng.normal(size=(5, 40))
    stack = make_cutouts(image, Table({"x": [20.0, 3.0], "y": [2.0, 2.0]}), 11)
    assert_array_equal((~stack.mask).sum(axis=(1, 2, 3)), [55, 45])
    assert_array_equal(stack.data[0, 3:8, :, 0], image[:, 15:26].astype("f4"))


@pytest.mark.parametrize("neighbors", ["mask", "fill"])
def test_cleaning(processors, neighbors):
    """Each cutout is cleaned the same way with others as alone."""
    _, image = make_survey(40, shape=(300, 300), companions=0.5, seed=3)
    table, segments = detect_sources(image)
    stack = make_cutouts(image, table, 32, segmentation=segments)
    before = stack.data.copy()
    clean = clean_cutouts(stack, neighbors=neighbors, cosmic_rays=True)
    assert_array_equal(stack.data, before)
    for row in range(0, len(stack), 7):
        one = clean_cutouts(stack[row], neighbors=neighbors, cosmic_rays=True)
        assert_array_equal(one.data[0], clean.data[row])
        assert_array_equal(one.mask[0], clean.mask[row])
        assert one.flags[0] == clean.flags[row]


def test_third_axis():
    """An image that says which its axis of bands is says it for mask and error."""
    _, image = make_survey(
        15, shape=(150, 160), bands=("g", "r"), cosmic_rays=20, seed=1
    )
    hits = image.meta["cosmic_rays"]
    table = Table({"x": [70.0], "y": [80.0]})
    stack = make_cutouts(image, table, 100, mask=hits, error=hits + 1.0)
    assert_array_equal(stack.mask[0], hits[30:130, 20:120])
    assert_array_equal(stack.error[0] == 2, stack.mask[0])
    found, segments = detect_sources(image, mask=hits)
    assert len(found) > 5
    both = hits.all(axis=-1)
    assert not segments.data[both].any()
    same, _ = detect_sources(image, mask={"g": hits[..., 0], "r": hits[..., 1]})
    assert_array_equal(found["flux"], same["flux"])
