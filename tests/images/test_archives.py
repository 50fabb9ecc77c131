# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of cutouts as surveys and simulators give them out."""

import io
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.flags import Flag
from astrovae.images import (
    read_galsim_catalog,
    read_hsc_blends,
    read_multimodal_universe,
)


class TestMultimodalUniverse:
    """The image schema, in its forms."""

    @pytest.fixture
    def columns(self, rng):
        """Return the columns of five images of three bands."""
        n, size = 5, (3, 10, 12)
        ivar = rng.uniform(1, 4, (n, *size))
        ivar[1, :, 2] = 0
        return {
            "flux": rng.normal(size=(n, *size)).astype("f4"),
            "ivar": ivar,
            "mask": ivar > 0,
            "band": ["DES-G", "DES-R", "DES-Z"],
            "psf_fwhm": rng.uniform(0.8, 1.5, (n, 3)),
            "scale": np.full((n, 3), 0.262),
        }

    def rows(self, columns, form):
        """Return rows as a library would give them."""
        rows = []
        for i in range(5):
            image = {k: v if k == "band" else v[i] for k, v in columns.items()}
            if form == "bands":
                image = [{k: v[j] for k, v in image.items()} for j in range(3)]
            elif form == "lists":
                image = {k: np.asarray(v).tolist() for k, v in image.items()}
            rows.append({"image": image, "object_id": f"id{i}"})
        return rows

    @pytest.mark.parametrize("form", ["arrays", "bands", "lists", "mapping", "file"])
    def test_forms(self, columns, form, tmp_path):
        if form == "file":
            source = tmp_path / "001.hdf5"
            with h5py.File(source, "w") as file:
                for name, values in columns.items():
                    key = "image_" + {"flux": "array"}.get(name, name)
                    if name == "band":
                        values = np.tile(np.array(values, "S"), (5, 1))
                    file[key] = values
                file["object_id"] = np.array([f"id{i}" for i in range(5)], "S")
        else:
            source = self.rows(columns, form)
            if form == "mapping":
                source = {k: [row[k] for row in source] for k in source[0]}
        stack = read_multimodal_universe(source)
        assert_array_equal(stack.data, np.moveaxis(columns["flux"], 1, -1))
        assert stack.bands == ("DES-G", "DES-R", "DES-Z")
        assert_array_equal(stack.ids, [f"id{i}" for i in range(5)])
        assert_allclose(stack.pixel_scale.value, 0.262)
        assert_array_equal(stack.mask.any(axis=(1, 2, 3)), [0, 1, 0, 0, 0])
        good = ~stack.mask
        ivar = np.moveaxis(columns["ivar"], 1, -1)
        assert_allclose(stack.error[good], ivar[good] ** -0.5, rtol=1e-6)
        assert_allclose(stack.columns["psf_fwhm"], columns["psf_fwhm"])

    @pytest.mark.parametrize("good", [True, False])
    def test_both_senses_of_masks(self, columns, good):
        columns["mask"] = (columns["ivar"] > 0) == good
        stack = read_multimodal_universe(self.rows(columns, "arrays"))
        assert stack.mask.sum() == 3 * 12
        wrong = read_multimodal_universe(
            self.rows(columns, "arrays"), good_mask=not good
        )
        assert wrong.mask.mean() > 0.9

    def test_only_what_is_needed(self, columns):
        bare = {name: columns[name] for name in ("flux", "band")}
        stack = read_multimodal_universe(self.rows(bare, "arrays"))
        assert stack.error is None
        assert not stack.mask.any()
        assert stack.pixel_scale is None

    def test_errors(self, columns, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            read_multimodal_universe(tmp_path / "none.hdf5")
        (tmp_path / "bad.hdf5").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="not a readable HDF5"):
            read_multimodal_universe(tmp_path / "bad.hdf5")
        with h5py.File(tmp_path / "other.hdf5", "w") as file:
            file["a"] = [1]
        with pytest.raises(ValueError, match="another schema"):
            read_multimodal_universe(tmp_path / "other.hdf5")
        with pytest.raises(ValueError, match="at least one"):
            read_multimodal_universe([])
        with pytest.raises(ValueError, match="must have 'band' and 'flux'"):
            read_multimodal_universe([{"image": {"band": ["g"]}}])
        rows = self.rows(columns, "arrays")
        rows[2]["image"]["band"] = ["g", "r", "z"]
        with pytest.raises(ValueError, match="row 2 has the bands"):
            read_multimodal_universe(rows)
        rows = self.rows(columns, "arrays")
        rows[1]["image"]["flux"] = np.zeros((3, 4, 4))
        with pytest.raises(ValueError, match="differ in the shape of 'flux'"):
            read_multimodal_universe(rows)
        columns["scale"][2] = 0.5
        with pytest.raises(ValueError, match="differ in pixel scale"):
            read_multimodal_universe(self.rows(columns, "arrays"))


class TestGalSim:
    """Catalogues of real galaxies."""

    @pytest.fixture
    def catalog(self, tmp_path, rng):
        """Return the path of a small catalogue, its stamps and PSFs."""
        stamps = [rng.normal(size=size) for size in ((20, 24), (11, 9), (31, 30))]
        psfs = [rng.random((9, 7)) for _ in stamps]
        for name, arrays in (("images", stamps), ("psfs", psfs)):
            hdus = [fits.PrimaryHDU(), *map(fits.ImageHDU, arrays)]
            fits.HDUList(hdus).writeto(tmp_path / f"{name}.fits")
        table = Table({"IDENT": [5, 3, 9], "MAG": [20.0, 21, 22]})
        table["BAND"] = ["F814W"] * 3
        table["GAL_FILENAME"], table["PSF_FILENAME"] = "images.fits", "psfs.fits"
        table["GAL_HDU"] = table["PSF_HDU"] = [1, 2, 3]
        table["PIXEL_SCALE"], table["NOISE_VARIANCE"] = 0.03, [1e-4, 4e-4, 9e-4]
        table.write(tmp_path / "catalog.fits")
        return tmp_path / "catalog.fits", stamps, psfs

    def test_values(self, catalog):
        path, stamps, psfs = catalog
        stack = read_galsim_catalog(path)
        assert stack.image_shape == (31, 30, 1)
        assert stack.bands == ("F814W",)
        assert_array_equal(stack.ids, [5, 3, 9])
        assert_array_equal(stack.data[2, ..., 0], stamps[2].astype("f4"))
        assert stack.data[1, 15, 15, 0] == stamps[1][5, 4].astype("f4")
        assert_array_equal((~stack.mask).sum(axis=(1, 2, 3)), [480, 99, 930])
        assert_allclose(stack.error[:, 0, 0, 0], [0.01, 0.02, 0.03], rtol=1e-6)
        assert_array_equal(stack.psf[..., 0], np.array(psfs, "f4"))
        assert_array_equal(stack.columns["mag"], [20, 21, 22])
        small = read_galsim_catalog(path, shape=10)
        assert_array_equal(small.data[0, ..., 0], stamps[0][5:15, 7:17].astype("f4"))

    def test_bad_rows(self, catalog):
        path, _, _ = catalog
        table = Table.read(path)
        table["GAL_HDU"][1] = 77
        table["PSF_FILENAME"] = ["psfs.fits", "psfs.fits", "away.fits"]
        table.write(path, overwrite=True)
        with pytest.warns(AstropyUserWarning, match="2 of 3 images"):
            stack = read_galsim_catalog(path)
        bad = [False, True, True]
        assert_array_equal((stack.flags & Flag.UNREADABLE) > 0, bad)
        assert stack.mask[1:].all()
        assert np.isfinite(stack.psf).all()

    def test_errors(self, catalog, tmp_path):
        path, _, _ = catalog
        with pytest.raises(FileNotFoundError, match="There is no file"):
            read_galsim_catalog(tmp_path / "none.fits")
        (tmp_path / "bad.fits").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="not a readable catalogue"):
            read_galsim_catalog(tmp_path / "bad.fits")
        Table({"a": [1]}).write(tmp_path / "other.fits")
        with pytest.raises(ValueError, match="no RealGalaxyCatalog: it lacks GAL_"):
            read_galsim_catalog(tmp_path / "other.fits")
        (tmp_path / "images.fits").unlink()
        with pytest.raises(ValueError, match=r"no image of .* can be read"):
            read_galsim_catalog(path)

    def test_real(self, data_path):
        folder = data_path / "cosmos_hst"
        stack = read_galsim_catalog(
            folder / "real_galaxy_catalog_26_extension_example.fits", shape=64
        )
        assert len(stack) == 100
        assert stack.pixel_scale.value == 0.03
        assert_allclose(stack.psf.sum(axis=(1, 2, 3)), 1, rtol=0.05)
        middle = stack.data[:, 28:36, 28:36].mean(axis=(1, 2, 3))
        assert (middle > 0).all()


class TestHSC:
    """Footprints with several peaks."""

    def member(self, rng, n=3, shape=(5, 30, 26)):
        """Return the bytes and the arrays of a footprint."""
        arrays = {
            "images": rng.normal(size=shape).astype("f4"),
            "weights": rng.uniform(0, 2, shape) * (rng.random(shape) < 0.8),
            "peaks": rng.uniform(5, 20, (n, 2)).round(),
            "psfs": rng.random((5, 7, 7)),
        }
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue(), arrays

    def test_values(self, rng, tmp_path):
        first, arrays = self.member(rng)
        second, _ = self.member(rng, 2)
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("b/12.npz", first)
            archive.writestr("b/13.npz", second)
            archive.writestr("b/14.npz", second[:200])
        with pytest.warns(AstropyUserWarning, match="1 of 3 images"):
            stack = read_hsc_blends(path, shape=9)
        assert_array_equal(stack.ids, ["12_0", "12_1", "12_2", "13_0", "13_1"])
        assert_array_equal(stack.columns["peak"], [0, 1, 2, 0, 1])
        assert stack.bands == tuple("grizy")
        x, y = arrays["peaks"][1].astype(int)
        assert_array_equal(stack.data[1, 4, 4], arrays["images"][:, y, x])
        weights = arrays["weights"][:, y, x]
        assert_array_equal(stack.mask[1, 4, 4], weights == 0)
        good = weights > 0
        assert_allclose(stack.error[1, 4, 4][good], weights[good] ** -0.5, rtol=1e-6)
        assert stack.psf.shape == (5, 7, 7, 5)
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "12.npz").write_bytes(first)
        assert_array_equal(read_hsc_blends(folder, shape=9).data, stack.data[:3])

    def test_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            read_hsc_blends(tmp_path / "none.zip")
        (tmp_path / "bad.zip").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="not a readable zip"):
            read_hsc_blends(tmp_path / "bad.zip")
        shutil.make_archive(str(tmp_path / "empty"), "zip", tmp_path, "bad.zip")
        with pytest.raises(ValueError, match=r"there is no \.npz file"):
            read_hsc_blends(tmp_path / "empty.zip")

    def test_real(self, data_path):
        stack = read_hsc_blends(data_path / "hsc_blends.zip", shape=32)
        assert len(set(stack.columns["footprint"].tolist())) == 73
        assert stack.image_shape == (32, 32, 5)
        assert 0.1 < stack.mask.mean() < 0.7
        assert_allclose(stack.psf.sum(axis=(1, 2)), 1, atol=0.05)
