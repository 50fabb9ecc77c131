# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of read_image."""

import gzip
import tracemalloc

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.testing import assert_array_equal

from astrovae.images import make_cutouts, read_image


def make_wcs():
    """Return a TAN WCS of 0.2 arcsec pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [80.0, 100.0]
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    return wcs


class TestReadImage:
    """FITS files, good and bad."""

    @pytest.mark.parametrize("form", ["plain", "compressed", "gzip", "integer", "cube"])
    def test_forms(self, tmp_path, form):
        data = np.arange(600, dtype=">f4").reshape(20, 30)
        path = tmp_path / ("image.fits.gz" if form == "gzip" else "image.fits")
        header = make_wcs().to_header()
        header["BUNIT"] = "adu"
        if form == "compressed":
            hdus = [fits.PrimaryHDU(), fits.CompImageHDU(data, header)]
        elif form == "integer":
            hdus = [fits.PrimaryHDU(data.astype("u2"), header)]
        elif form == "cube":
            hdus = [fits.PrimaryHDU(data[np.newaxis, np.newaxis], header)]
        else:
            hdus = [fits.PrimaryHDU(data, header)]
        fits.HDUList(hdus).writeto(path)
        image = read_image(path)
        assert_array_equal(image.data, data)
        assert image.unit == u.adu
        assert image.wcs.has_celestial
        stack = make_cutouts(image, Table({"ra": [150.0], "dec": [2.0]}), 4)
        assert stack.unit == u.adu

    def test_hdu(self, tmp_path):
        path = tmp_path / "image.fits"
        hdus = [
            fits.PrimaryHDU(),
            fits.ImageHDU(np.ones((4, 5)), name="SCI"),
            fits.ImageHDU(np.zeros((4, 5)), name="ERR"),
            fits.BinTableHDU(Table({"a": [1]}), name="TAB"),
        ]
        fits.HDUList(hdus).writeto(path)
        assert read_image(path).data.mean() == 1
        assert read_image(path, hdu="ERR").data.mean() == 0
        assert read_image(path, hdu=2).data.mean() == 0
        assert read_image(path).wcs is None
        assert read_image(path).unit is None
        with pytest.raises(ValueError, match="it has no HDU 'X'"):
            read_image(path, hdu="X")
        with pytest.raises(ValueError, match="'TAB' is not an image"):
            read_image(path, hdu="TAB")

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            read_image(tmp_path / "image.fits")
        with pytest.raises(FileNotFoundError, match="There is no file"):
            read_image(tmp_path)

    @pytest.mark.parametrize(
        "damage", ["empty", "random", "truncated", "table", "huge", "huge tiles"]
    )
    def test_damaged(self, tmp_path, rng, damage):
        path = tmp_path / "image.fits"
        data = rng.normal(size=(60, 70)).astype("f4")
        hdu = fits.CompImageHDU(data) if "tiles" in damage else fits.ImageHDU(data)
        if damage == "table":
            hdu = fits.BinTableHDU(Table({"a": [1]}))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        content = path.read_bytes()
        huge = b"NAXIS2  =            200000000"
        if damage == "empty":
            content = b""
        elif damage == "random":
            content = rng.bytes(4000)
        elif damage == "truncated":
            content = content[:10000]
        elif "huge" in damage:
            old = b"NAXIS2  =                   60"
            old, huge = (
                (b"Z" + v[:6] + v[7:] for v in (old, huge))
                if "tiles" in damage
                else (old, huge)
            )
            assert old in content
            content = content.replace(old, huge)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a readable FITS|cannot be read"):
            read_image(path)

    @pytest.mark.parametrize("kind", ["plain", "tiles", "scaled"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_cut_short(self, tmp_path, rng, kind, share):
        """A file that lost its end is refused, wherever it was cut."""
        path = tmp_path / "image.fits"
        data = rng.normal(size=(200, 210)).astype("f4")
        hdu = fits.CompImageHDU(data) if kind == "tiles" else fits.ImageHDU(data)
        if kind == "scaled":
            hdu = fits.ImageHDU((data * 100).astype("u2"))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"is not a readable FITS|cannot be read"):
            read_image(path)

    @pytest.mark.parametrize("kind", ["plain", "tiles"])
    def test_bits_flipped(self, tmp_path, rng, kind):
        """Damage gives a named error or other pixels, never anything else."""
        path = tmp_path / "image.fits"
        data = rng.normal(size=(90, 80)).astype("f4")
        hdu = fits.CompImageHDU(data) if kind == "tiles" else fits.ImageHDU(data)
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        table = Table({"x": [40.0], "y": [30.0]})
        outcomes, errors = [], []
        for _ in range(25):
            bad = content.copy()
            where = rng.integers(0, len(bad), 40)
            bad[where] ^= (1 << rng.integers(0, 8, 40)).astype(np.uint8)
            path.write_bytes(bad.tobytes())
            try:
                stack = make_cutouts(read_image(path), table, 60)
            except (ValueError, OSError) as error:
                errors.append(str(error))
                outcomes.append("refused")
            else:
                assert np.isfinite(stack.data).all()
                outcomes.append("read")
        assert all(str(path) in error for error in errors)
        assert "refused" in outcomes or kind == "plain"

    def test_claims_160_gigabytes(self, tmp_path):
        """A header is not believed beyond what its file can hold."""
        path = tmp_path / "image.fits"
        header = fits.PrimaryHDU(np.zeros((2, 2), "f4")).header
        header["NAXIS1"] = header["NAXIS2"] = 200_000
        path.write_bytes(header.tostring().encode() + bytes(2880))
        with pytest.raises(ValueError, match="claims 160,000"):
            read_image(path)

    def test_negative_size(self, tmp_path):
        """A header that leads back to itself is not read for ever."""
        path = tmp_path / "image.fits"
        header = fits.Header({"SIMPLE": True, "BITPIX": 8, "NAXIS": 1, "NAXIS1": -2880})
        path.write_bytes(header.tostring().encode() + bytes(2880))
        with pytest.raises(ValueError, match="claims -2,880 bytes of pixels"):
            read_image(path)

    def test_gzip_bomb(self, tmp_path):
        """A small file does not fill the memory."""
        path = tmp_path / "image.fits.gz"
        header = fits.PrimaryHDU(np.zeros((2, 2), "f4")).header
        header["NAXIS1"] = header["NAXIS2"] = 50_000
        with gzip.open(path, "wb") as file:
            file.write(header.tostring().encode())
            for _ in range(20):
                file.write(bytes(1 << 20))
        assert path.stat().st_size < 100_000
        with pytest.raises(ValueError, match="claims 10,000,"):
            read_image(path)

    @pytest.mark.parametrize("packed", [True, False])
    def test_endless_header(self, tmp_path, packed):
        """What comes after the image is not searched to its end."""
        path = tmp_path / "image.fits"
        fits.PrimaryHDU(np.ones((20, 30), "f4")).writeto(path)
        content = path.read_bytes()
        # padding is common
        (tmp_path / "padded.fits").write_bytes(content + bytes(5 * 2880))
        assert read_image(tmp_path / "padded.fits").data.shape == (20, 30)
        with (gzip.open if packed else open)(path, "wb") as file:
            file.write(content)
            for _ in range(100):
                file.write(bytes(1 << 20))
        tracemalloc.start()
        with pytest.raises(ValueError, match="a header of more than 16,777,216 bytes"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
        tracemalloc.stop()

    def test_tiles_are_read_where_they_are_cut(self, tmp_path, rng, monkeypatch):
        """Compressed and scaled images give the same cutouts as a whole or in part."""
        data = rng.integers(0, 60000, (300, 310)).astype("u2")
        table = Table({"x": [5.0, 150, 305.2], "y": [290.0, 140.7, 3]})
        for name, hdu in (
            ("tiles", fits.CompImageHDU(data)),
            ("scaled", fits.ImageHDU(data)),
        ):
            path = tmp_path / f"{name}.fits"
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
            image = read_image(path)
            assert not isinstance(image.data, np.ndarray)
            assert_array_equal(image.data[2:5, 7:9], data[2:5, 7:9])
            assert_array_equal(image.data[3], data[3])
            expected = make_cutouts(data, table, 24)
            whole = make_cutouts(image, Table({"x": [150] * 90, "y": [140.7] * 90}), 24)
            assert_array_equal(whole.data, np.repeat(expected.data[1:2], 90, axis=0))
            with monkeypatch.context() as patch:
                patch.setattr(type(image.data), "__array__", None)
                stack = make_cutouts(image, table, 24)
            assert_array_equal(stack.data, expected.data)
            assert_array_equal(stack.mask, expected.mask)
            assert_array_equal(stack.flags, expected.flags)

    def test_compressed_cube(self, tmp_path, rng):
        """Bands of a compressed cube are read one by one."""
        data = rng.integers(0, 100, (2, 40, 50)).astype("i4")
        path = tmp_path / "cube.fits"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data)]).writeto(path)
        table = Table({"x": [20.0], "y": [20.0]})
        stack = make_cutouts(path, table, 8, band_axis=0, bands=["g", "r"])
        expected = make_cutouts(data, table, 8, band_axis=0, bands=["g", "r"])
        assert_array_equal(stack.data, expected.data)

    def test_replaced_file(self, tmp_path):
        """Pixels of another file are not given out as those of this one."""
        path = tmp_path / "image.fits"
        hdu = fits.CompImageHDU(np.zeros((40, 40), "i4"))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        image = read_image(path)
        hdu = fits.CompImageHDU(np.ones((44, 44), "i4"))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)
        with pytest.raises(OSError, match="was replaced"):
            make_cutouts(image, Table({"x": [20.0], "y": [20.0]}), 8)
