# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of cutouts from many tiles."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import NDData, StdDevUncertainty
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.flags import Flag
from astrovae.images import make_cutouts

SIZE, STEP = 120, 100


def make_wcs(x0=0, y0=0, scale=0.2, ra=150.0):
    """Return the WCS of a part of a field that begins at a pixel."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, 2.0]
    wcs.wcs.crpix = [150.0 - x0, 150.0 - y0]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


@pytest.fixture
def field(rng, tmp_path):
    """Return a field, the paths of its overlapping tiles, and a catalogue."""
    image = rng.normal(size=(320, 320)).astype("f4")
    paths, names = {}, {}
    for j in range(3):
        for i in range(3):
            y0, x0 = j * STEP, i * STEP
            name = f"t{j}{i}"
            part = image[y0 : y0 + SIZE, x0 : x0 + SIZE]
            path = tmp_path / f"{name}.fits"
            header = make_wcs(x0, y0).to_header()
            hdu = fits.PrimaryHDU(part, header)
            if i == 1:
                hdu = fits.CompImageHDU(
                    part, header, compression_type="GZIP_2", quantize_level=0
                )
            fits.HDUList([hdu] if i != 1 else [fits.PrimaryHDU(), hdu]).writeto(path)
            paths[name], names[j, i] = path, name
    x, y = rng.uniform(12, 300, (2, 80))
    ra, dec = make_wcs().all_pix2world(x, y, 0)
    table = QTable(
        {"objid": 2**60 + np.arange(80), "ra": ra * u.deg, "dec": dec * u.deg}
    )
    table["true_x"], table["true_y"] = x, y
    table["field"] = [names[int(b // STEP), int(a // STEP)] for a, b in zip(x, y)]
    return image, paths, table


def whole(image, table, shape):
    """Return cutouts from the field in one piece."""
    return make_cutouts(image, table, shape, wcs=make_wcs())


def test_by_footprint(field):
    """Each row comes from the tile that it is farthest inside."""
    image, paths, table = field
    stack = make_cutouts(paths, table, 12, tiles=True)
    expected = whole(image, table, 12)
    assert_array_equal(stack.ids, table["objid"])
    same = ~stack.mask
    assert_array_equal(stack.data[same], expected.data[same])
    # overlaps of 20 pixels hold all of a cutout of 12, but for the outer edges
    assert_array_equal(stack.mask, expected.mask)
    assert_array_equal(stack.flags, expected.flags)
    assert set(stack.columns["tile"]) <= set(paths)
    assert_allclose(stack.pixel_scale, expected.pixel_scale, rtol=1e-4)


def test_by_column(field):
    """A column names the tile; the order of rows is that of the catalogue."""
    image, paths, table = field
    stack = make_cutouts(paths, table, 12, tiles="field")
    assert_array_equal(stack.columns["tile"], table["field"])
    expected = whole(image, table, 12)
    same = ~stack.mask
    assert_array_equal(stack.data[same], expected.data[same])
    assert same.mean() > 0.9
    numbers = {name: number for number, name in enumerate(paths)}
    table["number"] = [numbers[name] for name in table["field"]]
    listed = make_cutouts(list(paths.values()), table, 12, tiles="number")
    assert_array_equal(listed.data, stack.data)
    frame = Table(table).to_pandas()
    from_frame = make_cutouts(paths, frame, 12, tiles="field")
    assert_array_equal(from_frame.data, stack.data)


@pytest.mark.parametrize("damage", ["absent", "truncated", "no key", "none"])
@pytest.mark.parametrize("choose", ["field", True])
def test_missing_tile(field, damage, choose):
    """Rows of a missing tile are masked and flagged, once warned of; none is lost."""
    image, paths, table = field
    path = paths["t11"]
    if damage == "absent":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:4000])
    elif damage == "no key":
        del paths["t11"]
    else:
        paths["t11"] = None
    with pytest.warns(AstropyUserWarning, match="rows have no tile") as caught:
        stack = make_cutouts(paths, table, 12, tiles=choose)
    # old versions of astropy warn of themselves
    assert sum("deprecated" not in str(one.message) for one in caught) == 1
    lost = (stack.flags & Flag.NO_TILE) > 0
    assert lost.any()
    assert stack.mask[lost].all()
    assert_array_equal(
        stack.columns["tile"][lost] == "t11", choose == "field" and damage != "no key"
    )
    assert (table["field"][lost] == "t11").all()
    if choose == "field":
        assert_array_equal(lost, table["field"] == "t11")
    assert_array_equal(stack.ids, table["objid"])
    expected = whole(image, table, 12)
    same = ~stack.mask
    assert_array_equal(stack.data[same], expected.data[same])


def test_damage_in_the_pixels(field):
    """A tile whose compressed pixels are damaged is a missing one."""
    _, paths, table = field
    content = bytearray(paths["t11"].read_bytes())
    content[-20000:-3000:7] = b"\xff" * len(content[-20000:-3000:7])
    paths["t11"].write_bytes(bytes(content))
    with pytest.warns(AstropyUserWarning, match=r"1 of 9 tiles cannot be read"):
        stack = make_cutouts(paths, table, 12, tiles="field")
    assert_array_equal((stack.flags & Flag.NO_TILE) > 0, table["field"] == "t11")


def test_no_tile_at_all(field):
    """Without any tile every row is masked."""
    _, paths, table = field
    for path in paths.values():
        path.unlink()
    with pytest.warns(AstropyUserWarning, match="80 of 80 rows"):
        stack = make_cutouts(paths, table, (9, 8), tiles=True, bands=["r"])
    assert stack.data.shape == (80, 9, 8, 1)
    assert stack.mask.all()
    assert stack.bands == ("r",)


def test_bad_rows(field):
    """Rows without a position or a tile say which of both they lack."""
    _, paths, table = field
    table = Table(table[:4])
    table["ra"][1] = np.nan
    table["ra"][2] = 330.0
    with pytest.warns(AstropyUserWarning, match="1 of 4 rows"):
        stack = make_cutouts(paths, table, 12, tiles=True)
    kinds = Flag.NO_POSITION | Flag.NO_TILE
    assert_array_equal(stack.flags & kinds, [0, Flag.NO_POSITION, Flag.NO_TILE, 0])
    table["field"] = MaskedColumn(table["field"], mask=[True, False, False, False])
    with pytest.warns(AstropyUserWarning, match="1 of 4 rows"):
        stack = make_cutouts(paths, table, 12, tiles="field")
    assert_array_equal(
        stack.flags & (kinds | Flag.NO_OVERLAP),
        [Flag.NO_TILE, Flag.NO_POSITION, Flag.NO_OVERLAP, 0],
    )


def test_empty_catalog(field):
    _, paths, table = field
    assert make_cutouts(paths, table[:0], 12, tiles=True).data.shape == (0, 12, 12, 1)


def test_what_belongs_to_tiles(rng):
    """Errors, masks, PSFs and labels go with their tiles."""
    tiles, errors, labels, psfs = {}, {}, {}, {}
    for number in range(2):
        data = rng.normal(size=(60, 60))
        tiles[number] = {"g": data, "r": data + 1}
        errors[number] = np.full((60, 60), 1.0 + number)
        labels[number] = np.full((60, 60), 5 + number)
        psfs[number] = np.eye(5 + 2 * number)
    table = Table({"x": [30.0, 31, 29], "y": [20.0, 30, 30], "t": [1, 0, 1]})
    mask = np.zeros((60, 60), bool)
    mask[20] = True
    stack = make_cutouts(
        tiles,
        table,
        8,
        tiles="t",
        error=errors,
        segmentation=labels,
        psf=psfs,
        mask=mask,
    )
    assert stack.bands == ("g", "r")
    assert_array_equal(stack.error[:, 0, 0, 0], [2, 1, 2])
    assert_array_equal(stack.labels, [6, 5, 6])
    assert_array_equal(stack.psf[0, ..., 0], np.eye(7))
    assert_array_equal(stack.psf[1, ..., 0], np.pad(np.eye(5), 1))
    assert_array_equal(stack.mask.any(axis=(1, 2, 3)), [True, False, False])
    del errors[0]
    with pytest.warns(AstropyUserWarning, match="1 of 3 rows"):
        stack = make_cutouts(tiles, table, 8, tiles="t", error=errors)
    assert_array_equal((stack.flags & Flag.NO_TILE) > 0, [False, True, False])
    assert stack.error is not None


def test_units_and_resampling(field):
    """Tiles of other units are converted; sizes are angles of each tile."""
    image, _, table = field
    tiles = [
        NDData(
            image * factor,
            wcs=make_wcs(),
            unit=unit,
            uncertainty=StdDevUncertainty(np.full(image.shape, factor)),
        )
        for unit, factor in (("Jy", 1.0), ("mJy", 1000.0))
    ]
    table["t"] = np.arange(80) % 2
    stack = make_cutouts(tiles, table, 12, tiles="t", size=4 * u.arcsec)
    assert stack.unit == u.Jy
    one = make_cutouts(tiles[0], table, 12, size=4 * u.arcsec)
    assert_allclose(stack.data, one.data, atol=1e-4)
    assert_allclose(stack.error, one.error, rtol=1e-4)
    assert_allclose(stack.columns["cutout_size"], one.columns["cutout_size"])


def test_errors(rng, field):
    _, paths, table = field
    with pytest.raises(ValueError, match="tiles must be the name of a column"):
        make_cutouts(paths, table, 8, tiles=3)
    with pytest.raises(ValueError, match="image must be a dict of images"):
        make_cutouts(np.zeros((50, 50)), table, 8, tiles=True)
    with pytest.raises(ValueError, match="no column 'nothing'"):
        make_cutouts(paths, table, 8, tiles="nothing")
    bare = [rng.normal(size=(20, 20))]
    with pytest.raises(ValueError, match="its footprint is not known"):
        make_cutouts(bare, table, 8, tiles=True)
    two = [
        NDData(rng.normal(size=(320, 320)), wcs=make_wcs(scale=scale))
        for scale in (0.2, 0.3)
    ]
    table["t"] = np.arange(80) % 2
    with pytest.raises(ValueError, match="have pixels of"):
        make_cutouts(two, table, 8, tiles="t")
