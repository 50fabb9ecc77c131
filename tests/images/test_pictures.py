# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of stacks from folders and zip archives."""

import io
import zipfile

import numpy as np
import pytest
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from astrovae.flags import Flag
from astrovae.images import CutoutStack, _pictures


def encode(array, kind):
    """Return the bytes of a file."""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, array)
    elif kind == "fits":
        array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array
        fits.PrimaryHDU(array).writeto(file)
    else:
        picture = Image.fromarray(np.asarray(array)[::-1].astype(np.uint8))
        picture.save(file, "PNG" if kind == "png" else "JPEG", quality=95)
    return file.getvalue()


def store(path, members, place):
    """Write files to a folder or to a zip archive in another folder of its own."""
    if place == "folder":
        path.mkdir()
        for name, content in members.items():
            (path / name).write_bytes(content)
        return path
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"images/{name}", content)
    return path


@pytest.fixture
def images(rng):
    """Return smooth pictures, which JPEG hardly changes."""
    y, x = np.indices((20, 24))
    some = [
        np.round(100 + 50 * np.sin(x / 6 + i) + 30 * np.cos(y / 5)) for i in range(3)
    ]
    return [np.stack([one, one / 2, one / 3], -1).round() for one in some]


@pytest.mark.parametrize("place", ["folder", "zip"])
@pytest.mark.parametrize("kind", ["npy", "fits", "png", "jpg"])
def test_forms(images, tmp_path, place, kind):
    """All formats give the same stack, in the order of the numbers."""
    names = (100, 7, 23)
    members = {f"{n}.{kind}": encode(i, kind) for n, i in zip(names, images)}
    members["readme.txt"] = b"text"
    path = store(tmp_path / "set", members, place)
    stack = CutoutStack.from_images(path, pixel_scale=0.2)
    assert_array_equal(stack.ids, [7, 23, 100])
    assert stack.bands == ("red", "green", "blue")
    assert stack.pixel_scale.value == 0.2
    assert not stack.mask.any()
    atol = 4 if kind == "jpg" else 0
    assert_allclose(stack.data, [images[1], images[2], images[0]], atol=atol)
    some = CutoutStack.from_images(path, ids=[23, 7], shape=(10, 12))
    assert_array_equal(some.ids, [23, 7])
    assert_allclose(some.data[0], images[2][5:15, 6:18], atol=atol)


def test_sizes(tmp_path, rng):
    """Smaller images are masked where they have nothing, larger ones cropped."""
    sizes = {"a": (20, 20), "b": (8, 30), "c": (9, 9)}
    arrays = {name: rng.normal(size=size) for name, size in sizes.items()}
    members = {f"{name}.npy": encode(array, "npy") for name, array in arrays.items()}
    stack = CutoutStack.from_images(store(tmp_path / "set", members, "zip"), shape=12)
    assert stack.bands == ("grey",)
    assert_array_equal(stack.data[0, ..., 0], arrays["a"][4:16, 4:16].astype("f4"))
    assert_array_equal(stack.mask[1].sum(), 4 * 12)
    assert stack.data[2, 6, 6, 0] == arrays["c"][4, 4].astype("f4")
    assert_array_equal(stack.mask[2].sum(), 144 - 81)


@pytest.mark.parametrize("place", ["folder", "zip"])
def test_bad_members(images, tmp_path, place):
    """Damaged, missing and foreign files are masked rows, and one warning."""
    good = encode(images[0], "png")
    members = {
        "0.png": good,
        "1.png": good[:60],
        "2.jpg": b"",
        "3.npy": encode(np.array([{}], object), "npy"),
        "4.npy": b"\x93NUMPY\x01\x00\xff\xff",
        "5.fits": b"SIMPLE  =",
        "6.png": encode(images[0][..., 0], "png"),
        "7.jpg": bytes(bytearray(encode(images[1], "jpg"))[:300]),
        "8.png": good,
    }
    path = store(tmp_path / "set", members, place)
    ids = [*range(9), 99]
    with pytest.warns(AstropyUserWarning, match="8 of 10 images") as caught:
        stack = CutoutStack.from_images(path, ids=ids)
    assert len(caught) == 1
    bad = [False, *[True] * 7, False, True]
    assert_array_equal((stack.flags & Flag.UNREADABLE) > 0, bad)
    assert_array_equal(stack.mask.all(axis=(1, 2, 3)), bad)
    assert_array_equal(stack.data[8], images[0])
    assert_array_equal(stack.ids, ids)


def test_damaged_archive(images, tmp_path, rng):
    """A member with a wrong checksum is masked, the others are read."""
    members = {f"{i}.npy": encode(image, "npy") for i, image in enumerate(images)}
    path = store(tmp_path / "set", members, "zip")
    content = bytearray(path.read_bytes())
    content[150:160] = bytes(10)
    path.write_bytes(content)
    with pytest.warns(AstropyUserWarning, match="1 of 3 images"):
        stack = CutoutStack.from_images(path)
    assert_array_equal((stack.flags & Flag.UNREADABLE) > 0, [True, False, False])


def test_bombs(images, tmp_path, monkeypatch):
    """What claims, or has, too many pixels or bytes is not unpacked."""
    monkeypatch.setattr(_pictures, "_MAX_PIXELS", 5000)
    monkeypatch.setattr(_pictures, "_MAX_MEMBER_BYTES", 100_000)
    huge = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(huge, header)
    members = {
        "0.npy": encode(images[0], "npy"),
        "1.png": encode(np.zeros((300, 300)), "png"),
        "2.npy": huge.getvalue(),
        "3.npy": encode(np.zeros((1, 1, 20_000)), "npy"),
        "4.fits": encode(np.zeros((100, 100)), "fits"),
    }
    for place in ("zip", "folder"):
        path = store(tmp_path / "set", members, place)
        with pytest.warns(AstropyUserWarning, match="4 of 5 images"):
            stack = CutoutStack.from_images(path)
        assert_array_equal(stack.data[0], images[0])
        assert stack.mask[1:].all()


def test_memory_is_bounded(images, tmp_path, monkeypatch):
    """More images than fit are refused before they are read."""
    members = {f"{i}.npy": encode(image, "npy") for i, image in enumerate(images)}
    path = store(tmp_path / "set", members, "zip")
    monkeypatch.setattr(_pictures, "_MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="Give a smaller shape"):
        CutoutStack.from_images(path)
    assert len(CutoutStack.from_images(path, shape=10)) == 3


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder or file"):
        CutoutStack.from_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no images"):
        CutoutStack.from_images(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        CutoutStack.from_images(tmp_path / "a.txt")
    (tmp_path / "a.npy").write_text("text")
    with pytest.raises(ValueError, match="no image in"):
        CutoutStack.from_images(tmp_path)


def test_galaxy_zoo(data_path):
    """Real pictures of galaxies have their light in the middle."""
    path = data_path / "gz2_images.zip"
    stack = CutoutStack.from_images(path, ids=[100008, 100023, 100053], shape=207)
    assert stack.image_shape == (207, 207, 3)
    middle = stack.data[:, 93:114, 93:114].mean(axis=(1, 2, 3))
    assert (middle > 2 * stack.data[:, :20, :20].mean(axis=(1, 2, 3))).all()
    assert stack.ids.dtype.kind == "i"
