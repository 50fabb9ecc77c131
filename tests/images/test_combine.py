# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of stacks put together, and of stacks as tables."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_array_equal

from astrovae.datasets import make_galaxies
from astrovae.flags import Flag
from astrovae.images import CutoutStack, clean_cutouts, measure_pose

PLANES = ("data", "mask", "error", "psf", "segmentation", "labels", "ids", "flags")


@pytest.fixture
def stack():
    """Return a stack with everything, pose and further columns included."""
    _, galaxies = make_galaxies(12, shape=(24, 26), bands=["g", "r"], seed=3)
    mask = np.array(galaxies.mask)
    mask[3] = True
    rng = np.random.default_rng(0)
    stack = galaxies.replace(
        mask=mask,
        unit="nJy",
        ids=2**62 + np.arange(12),
        positions=rng.random((12, 2)),
        columns={"size": rng.random(12), "tile": np.array(["a", "bcd"] * 6)},
        meta={"origin": "test"},
    )
    return measure_pose(clean_cutouts(stack))


def assert_same(first, second):
    """Both stacks hold the same."""
    for name in (*PLANES, "positions"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert_array_equal(np.asarray(a), np.asarray(b))
    assert first.preprocessing == second.preprocessing
    assert first.columns.keys() == second.columns.keys()
    for name, values in first.columns.items():
        assert_array_equal(values, second.columns[name])
    for name in first.pose.dtype.names:
        assert_array_equal(first.pose[name], second.pose[name])


class TestColumns:
    """What else is known of each cutout."""

    def test_they_follow_the_rows(self, stack, tmp_path):
        rows = [5, 2, 2]
        part = stack[rows]
        assert_array_equal(part.columns["size"], stack.columns["size"][rows])
        path = tmp_path / "stack.h5"
        stack.write(path)
        again = CutoutStack.read(path)
        assert_same(again, stack)
        assert_array_equal(again[rows].columns["tile"], ["bcd", "a", "a"])
        assert_same(stack.replace(), stack)

    def test_they_are_copies(self, rng):
        size = rng.random(3)
        stack = CutoutStack(np.ones((3, 4, 4)), columns={"size": size})
        stack.columns["size"][0] = -1
        assert size[0] >= 0

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"a": [1, 2]}, "for 3 cutouts, got int64 of shape"),
            ({"a": [None] * 3}, None),
            ({"a": np.zeros(3, complex)}, "numbers or strings"),
            ({"a/b": [1, 2, 3]}, "strings without '/'"),
        ],
    )
    def test_errors(self, columns, message):
        if message is None:
            assert CutoutStack(np.ones((3, 4, 4)), columns=columns).columns["a"][0]
            return
        with pytest.raises(ValueError, match=message):
            CutoutStack(np.ones((3, 4, 4)), columns=columns)


class TestConcatenate:
    """Several stacks as one."""

    @pytest.mark.parametrize("place", ["memory", "disk"])
    def test_parts_make_the_whole(self, stack, tmp_path, place):
        whole = stack
        if place == "disk":
            stack.write(tmp_path / "stack.h5")
            stack = CutoutStack.read(tmp_path / "stack.h5")
        parts = [stack[:5], stack[5:5], stack[5:]]
        assert_same(CutoutStack.concatenate(parts), whole)
        assert CutoutStack.concatenate(iter(parts)).meta == whole.meta

    def test_meta_and_psfs(self, rng):
        data = rng.normal(size=(2, 8, 8))
        small = CutoutStack(data, psf=np.eye(3), meta={"a": 1, "b": 2})
        large = CutoutStack(data, psf=rng.random((2, 5, 5)), meta={"a": 1, "b": 3})
        both = CutoutStack.concatenate([small, large])
        assert both.meta == {"a": 1}
        assert both.psf.shape == (4, 5, 5, 1)
        assert_array_equal(both.psf[1, ..., 0], np.pad(np.eye(3), 1))
        shared = CutoutStack.concatenate([small, small])
        assert shared.psf.shape == (1, 3, 3, 1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"bands": ["g", "i"]}, "bands is"),
            ({"unit": "mJy"}, "unit is"),
            ({"pixel_scale": 0.3}, "pixel_scale is"),
            ({"pixel_scale": None}, "pixel_scale is"),
            ({"steps": ()}, "steps is"),
            ({"error": None}, "some have error, some have not"),
            ({"pose": None}, "some have pose"),
            ({"psf": np.ones((4, 4))}, "odd and even"),
            ({"ids": list("abcdefghijkl")}, "some ids are strings"),
            ({"columns": {}}, "they have the columns"),
        ],
    )
    def test_errors(self, stack, changes, message):
        with pytest.raises(ValueError, match=message):
            CutoutStack.concatenate([stack, stack.replace(**changes)])

    def test_nothing(self):
        with pytest.raises(ValueError, match="give at least one"):
            CutoutStack.concatenate([])


class TestTable:
    """Image columns."""

    def test_round_trip(self, stack):
        table = stack.to_table()
        assert len(table) == 12
        assert table["image"].unit == u.nJy
        assert_same(CutoutStack.from_table(table), stack)
        table["image"][:] = 0
        assert stack.data.any()

    @pytest.mark.parametrize("name", ["table.fits", "table.hdf5", "table.ecsv"])
    def test_files(self, stack, tmp_path, name):
        table = stack.to_table()
        options = {"hdf5": {"path": "t", "serialize_meta": True}}
        options = options.get(name.split(".")[1], {})
        table.write(tmp_path / name, **options)
        options.pop("serialize_meta", None)
        again = Table.read(tmp_path / name, **options)
        assert_same(CutoutStack.from_table(again), stack)

    def test_shared_psf(self):
        _, galaxies = make_galaxies(4, shape=16)
        table = galaxies.to_table()
        assert len(table["psf"]) == 4
        assert CutoutStack.from_table(table).psf.shape[0] == 1
        assert len(CutoutStack.from_table(table[:0])) == 0

    def test_foreign_table(self, rng):
        """A table with images is enough; masked pixels are bad."""
        image = np.ma.array(rng.normal(size=(3, 8, 8)), mask=False)
        image[1, 2, 3] = np.ma.masked
        table = Table({"id": ["a", "b", "c"], "image": image})
        table["pose_x"], table["pose_y"], table["pose_angle"] = 3.0, 4.0, 45.0
        stack = CutoutStack.from_table(table, bands=["r"], pixel_scale=0.3)
        assert stack.bands == ("r",)
        assert_array_equal(stack.ids, ["a", "b", "c"])
        assert stack.mask.sum() == 1
        assert stack.flags[1] == Flag.NON_FINITE
        assert_array_equal(stack.pose["angle"], np.pi / 4)

    def test_errors(self, stack):
        with pytest.raises(ValueError, match="must have a column 'image'"):
            CutoutStack.from_table(Table({"a": [1]}))
        named = stack.replace(columns={"image": np.zeros(12)})
        with pytest.raises(ValueError, match="the name of one of its planes"):
            named.to_table()
