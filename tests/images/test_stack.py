# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of CutoutStack."""

import json

import astropy.units as u
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from astrovae.exceptions import PreprocessingError
from astrovae.flags import Flag
from astrovae.images import CutoutStack, clean_cutouts

PLANES = (
    "data",
    "mask",
    "error",
    "segmentation",
    "labels",
    "ids",
    "flags",
    "positions",
)


@pytest.fixture
def stack(rng):
    """Return a stack that has everything."""
    n = 10
    data = rng.normal(size=(n, 12, 14, 2)).astype(np.float32)
    segmentation = np.zeros((n, 12, 14), int)
    segmentation[:, 4:8, 5:9] = np.arange(1, n + 1)[:, np.newaxis, np.newaxis]
    return CutoutStack(
        data,
        mask=rng.random(data.shape) < 0.05,
        error=np.ones_like(data),
        psf=rng.random((n, 5, 5, 2)),
        segmentation=segmentation,
        bands=["g", "r"],
        pixel_scale=0.2,
        unit="nJy",
        ids=2**62 + np.arange(n),
        positions=rng.random((n, 2)),
        meta={"origin": "test"},
    )


def assert_same(first, second):
    """Both stacks hold the same."""
    for name in (*PLANES, "psf"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert_array_equal(np.asarray(a), np.asarray(b))
            assert np.asarray(a).dtype == np.asarray(b).dtype
    assert first.preprocessing == second.preprocessing
    assert first.meta == second.meta
    assert first.unit == second.unit


@pytest.mark.parametrize(
    "index",
    [
        slice(2, 5),
        slice(None, None, -1),
        slice(0, 0),
        [3, 1, 1, 7],
        np.array([9, 0, 9]),
        np.arange(10) % 3 == 0,
        np.zeros(10, bool),
        np.zeros(0, int),
    ],
)
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_slicing(stack, tmp_path, index, place):
    """Any index gives those rows of everything, in that order."""
    source = stack
    if place == "disk":
        stack.write(tmp_path / "stack.h5")
        source = CutoutStack.read(tmp_path / "stack.h5")
    rows = np.arange(10)[index]
    part = source[index]
    assert len(part) == len(rows)
    for name in (*PLANES, "psf"):
        assert_array_equal(getattr(part, name), np.asarray(getattr(stack, name))[rows])
    assert part.bands == stack.bands
    batch = source.batch(rows)
    assert_array_equal(batch["mask"], stack.mask[rows])
    assert_array_equal(batch["image"], np.where(stack.mask, 0, stack.data)[rows])
    assert_array_equal(batch["psf"], stack.psf[rows])
    assert batch["image"].dtype == np.float32


def test_integer_index(stack):
    """An integer gives a stack of one, from either end."""
    assert_array_equal(stack[-1].ids, stack.ids[-1:])
    assert stack[3].image_shape == (12, 14, 2)
    with pytest.raises(IndexError):
        stack[10]


def test_round_trip(stack, tmp_path):
    """A file gives back everything, and is read where it is asked for."""
    path = tmp_path / "stack.h5"
    cleaned = clean_cutouts(stack)
    cleaned.write(path)
    back = CutoutStack.read(path)
    assert not isinstance(back.data, np.ndarray)
    assert back.data.shape == stack.data.shape
    assert str(path) in repr(back)
    assert_same(cleaned, back)
    assert_same(cleaned, back.replace())
    assert back.steps[0]["parameters"] == cleaned.steps[0]["parameters"]


@pytest.mark.parametrize(
    "ids", [["a", "bc", "käse"], [2**63 - 1, -5, 0], np.array([2**64 - 1, 0, 1], "u8")]
)
def test_ids_survive(tmp_path, ids):
    """Strings and 64-bit integers are exact after a round trip."""
    stack = CutoutStack(np.ones((3, 4, 4)), ids=ids)
    stack.write(tmp_path / "stack.h5")
    back = CutoutStack.read(tmp_path / "stack.h5")
    assert_array_equal(back.ids, ids)
    assert_array_equal(back[[2, 0]].ids, np.asarray(ids)[[2, 0]])


def test_shared_psf(tmp_path):
    """One PSF serves all rows."""
    stack = CutoutStack(np.ones((5, 8, 8)), psf=np.ones((3, 3)) / 9)
    assert stack.psf.shape == (1, 3, 3, 1)
    assert stack[1:3].psf.shape == (1, 3, 3, 1)
    stack.write(tmp_path / "stack.h5")
    batch = CutoutStack.read(tmp_path / "stack.h5").batch([4, 0])
    assert batch["psf"].shape == (2, 3, 3, 1)


def test_unknown_psfs_are_flagged():
    """Rows whose bands all lack a PSF: of these, batches mask every pixel."""
    psf = np.ones((5, 3, 3, 2))
    psf[1], psf[2, 0, 0, 0] = np.nan, np.inf
    # what tables have where a PSF is not known
    psf[3, ..., 1], psf[4] = 0, 0
    stack = CutoutStack(np.ones((5, 8, 8, 2)), psf=psf)
    lost = Flag.NO_VALID_PIXEL
    assert stack.flags.tolist() == [0, lost, 0, 0, lost]
    mask = stack.batch(np.arange(5))["mask"]
    assert mask.all(axis=(1, 2)).tolist() == [
        [False, False],
        [True, True],
        [True, False],
        [False, True],
        [True, True],
    ]


def test_flags_follow_from_pixels():
    """Bad pixels, bad errors and empty cutouts are flagged."""
    data, error = np.ones((5, 4, 4)), np.ones((5, 4, 4))
    data[0, 0, 0] = np.nan
    error[1, 0, 0] = 0
    error[2, 0, 0] = np.nan
    mask = np.zeros((5, 4, 4), bool)
    mask[3] = True
    mask[4, :3] = True
    stack = CutoutStack(data, error=error, mask=mask, flags=[0, 0, 0, 0, Flag.PARTIAL])
    expected = [
        Flag.NON_FINITE,
        Flag.BAD_ERROR,
        Flag.BAD_ERROR,
        Flag.NO_VALID_PIXEL | Flag.MOSTLY_MASKED,
        Flag.PARTIAL | Flag.MOSTLY_MASKED,
    ]
    assert_array_equal(stack.flags, expected)
    batch = stack.batch([0, 1, 2])
    assert_array_equal(batch["image"][0, 0, 0], 0)
    assert_array_equal(batch["error"][1:, 0, 0], 1)
    assert not mask[:3].any()


def test_forms(rng):
    """Masked arrays, big-endian and 3-D arrays are taken at the door."""
    data = rng.normal(size=(3, 4, 5))
    masked = np.ma.array(data, mask=data > 1)
    stack = CutoutStack(masked.astype(">f8"), pixel_scale=0.1 * u.arcmin)
    assert stack.data.dtype == np.dtype("f4")
    assert stack.data.dtype.isnative
    assert_array_equal(stack.mask[..., 0], data > 1)
    assert stack.pixel_scale.unit == u.arcsec
    assert stack.bands == ("band_0",)
    assert stack.image_shape == (4, 5, 1)


def test_inputs_are_not_changed(stack):
    """Neither slicing, nor batches, nor cleaning writes into a stack."""
    before = {name: getattr(stack, name).tobytes() for name in PLANES}
    stack[:3].data[...] = 5
    stack.batch([0, 1])["image"][...] = 5
    clean_cutouts(stack)
    replaced = stack.replace(meta={"other": 1})
    replaced.meta["origin"] = "changed"
    assert {name: getattr(stack, name).tobytes() for name in PLANES} == before
    assert stack.meta == {"origin": "test"}


def test_prepare(stack):
    """A stack goes through the steps that a model was trained on."""
    cleaned = clean_cutouts(stack, neighbors="fill", seed=3, grow=1)
    record = json.loads(json.dumps(cleaned.preprocessing))
    assert_same(stack.prepare(record), cleaned)
    assert cleaned.prepare(record) is cleaned
    assert stack.prepare(None) is stack
    part = stack[[4, 2]].prepare(record)
    assert_array_equal(part.data, cleaned.data[[4, 2]])
    other = clean_cutouts(stack, grow=3)
    with pytest.raises(PreprocessingError, match="preparation steps"):
        other.prepare(record)
    with pytest.raises(PreprocessingError, match="bands"):
        stack.replace(bands=["a", "b"]).prepare(record)
    with pytest.raises(PreprocessingError, match="pixel scale"):
        stack.replace(pixel_scale=0.3).prepare(record)
    with pytest.raises(PreprocessingError, match="pixel scale"):
        stack.replace(pixel_scale=None).prepare(record)
    with pytest.raises(PreprocessingError, match="unit"):
        stack.replace(unit=None).prepare(record)


def test_write_is_atomic(stack, tmp_path, monkeypatch):
    """An existing file is kept unless it is to be replaced, and if that fails."""
    path = tmp_path / "stack.h5"
    stack.write(path)
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        stack.write(path)

    def fail(self, file):
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(CutoutStack, "_write_hdf5", fail)
    with pytest.raises(OSError, match="disk full"):
        stack.write(path, overwrite=True)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["stack.h5"]


def test_read_errors(tmp_path, rng):
    """Files that are missing or are no stacks are told apart in one sentence."""
    with pytest.raises(FileNotFoundError, match="There is no file"):
        CutoutStack.read(tmp_path / "none.h5")
    path = tmp_path / "bad.h5"
    path.write_bytes(rng.bytes(1000))
    with pytest.raises(ValueError, match="not a readable stack"):
        CutoutStack.read(path)


def test_empty(tmp_path):
    """A stack of no cutouts can be written, read and cleaned."""
    stack = CutoutStack(np.zeros((0, 4, 4)))
    stack.write(tmp_path / "stack.h5")
    back = CutoutStack.read(tmp_path / "stack.h5")
    assert len(back) == 0
    assert len(clean_cutouts(back)) == 0
    assert back.batch(np.arange(0))["image"].shape == (0, 4, 4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.ones((4, 4))}, "data must have the shape"),
        ({"data": np.ones((2, 0, 4))}, "no pixels"),
        ({"mask": np.ones((2, 3, 4))}, "mask has the shape"),
        ({"error": np.ones((1, 4, 4))}, "error has the shape"),
        ({"psf": np.ones((3, 3, 3, 1))}, "psf must have the shape"),
        ({"psf": np.ones((1, 3, 3, 2))}, "psf has 2 bands"),
        ({"segmentation": np.ones((2, 4, 4))}, "segmentation must be integers"),
        ({"bands": ["g", "r"]}, "bands must be 1 different"),
        ({"pixel_scale": 0}, "pixel_scale must be"),
        ({"ids": [1.5, 2]}, "ids must be integers or strings"),
        ({"ids": [1]}, "1 ids for 2"),
        ({"positions": [[1, 2]]}, "1 positions for 2"),
        ({"flags": [1]}, "flags has the shape"),
    ],
)
def test_errors(options, message):
    """Shapes that do not fit are one clear sentence."""
    options = {"data": np.ones((2, 4, 4))} | options
    with pytest.raises(ValueError, match=message):
        CutoutStack(options.pop("data"), **options)
