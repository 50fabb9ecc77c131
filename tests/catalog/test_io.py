"""Tests of catalogues on disk."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable
from astropy.utils.masked import Masked

from astrovae.catalog import read_catalog, write_catalog

MASK = np.array([False, True, False, False, True])
EXTENSIONS = [".ecsv", ".fits", ".parquet"]


@pytest.fixture
def table():
    """Every kind of column that astrovae writes, with masks, and provenance."""
    n = len(MASK)
    vector = np.arange(2.0 * n).reshape(n, 2)
    pair = np.stack([MASK, MASK], axis=1)
    result = QTable()
    result["objid"] = 1237648720693755918 + np.arange(n)
    result["name"] = ["a", "bb", "c", "d", "e"]
    result["flux"] = Masked(np.arange(n) * u.nJy, mask=MASK)
    result["fluxes"] = Masked(vector * u.nJy, mask=pair)
    result["latent_mean"] = MaskedColumn(vector.astype("f4"), mask=pair)
    result["flags"] = np.arange(n, dtype="i4")
    result["win"] = MaskedColumn(np.ones(n, bool), mask=MASK)
    result["wins"] = MaskedColumn(np.ones((n, 2), bool), mask=pair)
    result["flux"].info.description = "a flux"
    result["flux"].info.meta = {"ucd": "phot.flux"}
    result.meta["astrovae"] = {"default": {"latents": {"seed": 3, "list": [1, None]}}}
    return result


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_round_trip(table, tmp_path, extension):
    """Values, masks, units, descriptions and provenance come back."""
    path = tmp_path / f"catalog{extension}"
    write_catalog(table, path)
    result = read_catalog(path)
    assert result.colnames == table.colnames
    for name in table.colnames:
        old, new = table[name], result[name]
        mask = np.asarray(getattr(old, "mask", np.zeros(old.shape, bool)))
        assert np.array_equal(np.asarray(getattr(new, "mask", ~mask & mask)), mask)
        assert new.dtype.kind == old.dtype.kind
        assert new.dtype.isnative
        assert new.unit == old.unit
        values = (np.ma.getdata(getattr(c, "unmasked", c))[~mask] for c in (old, new))
        assert np.array_equal(*(np.asarray(v) for v in values))
    assert result["flux"].info.description == "a flux"
    assert result["flux"].info.meta["ucd"] == "phot.flux"
    assert result.meta["astrovae"] == table.meta["astrovae"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_empty_round_trip(table, tmp_path, extension):
    """No rows is a catalogue too."""
    path = tmp_path / f"catalog{extension}"
    write_catalog(table[:0], path)
    result = read_catalog(path)
    assert len(result) == 0
    assert result["latent_mean"].shape == (0, 2)
    assert result.meta["astrovae"] == table.meta["astrovae"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_failed_write_leaves_the_old_file(table, tmp_path, extension, monkeypatch):
    """An error on the way leaves the old file whole, and no litter."""
    path = tmp_path / f"catalog{extension}"
    write_catalog(table, path)
    before = path.read_bytes()

    def fail(self, filename, **kwargs):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(QTable, "write", fail)
    with pytest.raises(OSError, match="No space"):
        write_catalog(table, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_input_is_not_changed(table, tmp_path):
    """Writing leaves table and metadata as they were."""
    meta = dict(table.meta)
    write_catalog(table, tmp_path / "catalog.fits")
    assert table.meta == meta


def test_bad_paths(table, tmp_path):
    """Each is named."""
    with pytest.raises(ValueError, match="does not name a catalogue format"):
        write_catalog(table, tmp_path / "catalog.docx")
    write_catalog(table, tmp_path / "catalog.ecsv")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_catalog(table, tmp_path / "catalog.ecsv")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        write_catalog(table, tmp_path / "none" / "catalog.ecsv")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_catalog(tmp_path / "none.fits")
    (tmp_path / "bad.fits").write_text("not FITS")
    with pytest.raises(ValueError, match="cannot be read as fits"):
        read_catalog(tmp_path / "bad.fits")
