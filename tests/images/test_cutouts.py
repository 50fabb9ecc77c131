# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of make_cutouts and read_image."""

import hashlib

import astropy
import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    Cutout2D,
    InverseVariance,
    NDData,
    NoOverlapError,
    StdDevUncertainty,
    VarianceUncertainty,
)
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from numpy.testing import assert_allclose, assert_array_equal
from photutils.segmentation import SegmentationImage, SourceCatalog

from astrovae.flags import Flag
from astrovae.images import make_cutouts, read_image


def make_wcs(distorted=False):
    """Return a TAN (or TAN-SIP) WCS of 0.2 arcsec pixels, rotated by 30 degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [80.0, 100.0]
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * 0.2 / 3600
    if distorted:
        from astropy.wcs import Sip

        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        a = np.zeros((3, 3))
        a[2, 0] = 1e-5
        wcs.sip = Sip(a, a.T.copy(), None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def reference_cutout(image, position, shape):
    """Return what astropy cuts, NaN where there is no image."""
    try:
        cutout = Cutout2D(image, position, shape, mode="partial", fill_value=np.nan)
    except NoOverlapError:
        return np.full(shape, np.nan, np.float32)
    return cutout.data.astype(np.float32)


def digest(*arrays):
    """Return a hash of everything in some arrays and tables."""
    text = [
        repr(array) if isinstance(array, Table) else np.asarray(array).tobytes()
        for array in arrays
    ]
    text = [part.encode() if isinstance(part, str) else part for part in text]
    return hashlib.sha256(b"".join(text)).hexdigest()


@pytest.fixture
def image(rng):
    """Return a noisy image that is not square."""
    return rng.normal(10, 1, (211, 173))


@pytest.mark.parametrize("shape", [(16, 16), (15, 17), (1, 2), (7, 40), (300, 20)])
@pytest.mark.parametrize("dtype", [">f4", "<f8"])
def test_equal_to_cutout2d(rng, shape, dtype):
    """Every pixel is astropy's, or masked where astropy fills."""
    image = rng.normal(size=(211, 173)).astype(dtype)
    positions = rng.uniform((-40, -40), (213, 251), (400, 2))
    # exactly on whole and half pixels, where rounding conventions differ
    positions[::2] = np.round(positions[::2] * 2) / 2
    table = Table(positions, names=["x", "y"])
    stack = make_cutouts(image, table, shape)
    expected = np.stack([reference_cutout(image, xy, shape) for xy in positions])
    off = np.isnan(expected)
    assert_array_equal(stack.mask[..., 0], off)
    assert_array_equal(stack.data[..., 0], np.where(off, 0, expected))
    assert stack.data.dtype == np.float32
    whole, none = off.all(axis=(1, 2)), ~off.any(axis=(1, 2))
    assert_array_equal(stack.flags & Flag.NO_OVERLAP > 0, whole)
    assert_array_equal(stack.flags & Flag.PARTIAL > 0, ~whole & ~none)
    assert_array_equal(stack.flags & Flag.NO_VALID_PIXEL > 0, whole)
    assert whole.any()
    assert none.any() or shape == (300, 20)
    assert_array_equal(stack.positions, positions)


def test_nothing_is_changed(image):
    """Inputs have the same bytes before and after."""
    image = image.astype(">f4")
    image[5:9, 5:9] = np.nan
    error, mask, psf = abs(image), image > 11, np.eye(5)
    segmentation = (image > 11).astype(int)
    table = Table({"x": [3.0, np.nan, 80], "y": [2.0, 30, 90]})
    before = digest(image, error, mask, psf, segmentation, table)
    stack = make_cutouts(
        image, table, 12, error=error, mask=mask, psf=psf, segmentation=segmentation
    )
    stack.data[...] = 7
    stack.mask[...] = True
    stack.error[...] = 7
    assert digest(image, error, mask, psf, segmentation, table) == before


@pytest.mark.parametrize("form", ["dict", "list", "first", "last", "nddata"])
def test_bands(image, form):
    """All forms of several bands give the same stack."""
    planes = [image, image * 2, image + 3]
    names = ("g", "r", "i")
    errors = [abs(plane) for plane in planes]
    table = Table({"x": [50.0, 2], "y": [60.0, 100]})
    expected = make_cutouts(planes, table, 9, bands=names, error=errors)
    options = {"bands": names, "error": errors}
    if form == "dict":
        forms = [dict(zip(names[::-1], p[::-1])) for p in (planes, errors)]
        options["error"] = forms[1]
        data = forms[0]
    elif form == "list":
        data = tuple(planes)
    elif form == "first":
        data, options["error"] = np.stack(planes), np.stack(errors)
        options["band_axis"] = 0
    elif form == "last":
        data, options["error"] = np.stack(planes, -1), np.stack(errors, -1)
        options["band_axis"] = -1
    else:
        data = NDData(
            np.stack(planes),
            uncertainty=StdDevUncertainty(np.stack(errors)),
            meta={"bands": names, "band_axis": 0},
        )
        options = {}
    stack = make_cutouts(data, table, 9, **options)
    assert stack.bands == names
    assert_array_equal(stack.data, expected.data)
    assert_array_equal(stack.error, expected.error)
    for i, plane in enumerate(planes):
        assert_array_equal(
            stack.data[0, ..., i], reference_cutout(plane, (50, 60), (9, 9))
        )


def test_one_mask_for_all_bands(image):
    """A 2-D mask or error holds for every band."""
    table = Table({"x": [50.0], "y": [60.0]})
    stack = make_cutouts(
        {"g": image, "r": image}, table, 8, mask=image > 10, error=image
    )
    cut = reference_cutout(image, (50, 60), (8, 8))
    for band in range(2):
        assert_array_equal(stack.mask[0, ..., band], cut > 10)
        assert_array_equal(stack.error[0, ..., band], cut)


def test_dict_bands_select(image):
    """Bands choose from a dict and order it."""
    table = Table({"x": [50.0], "y": [60.0]})
    data = {"g": image, "r": image * 2, "i": image * 3}
    stack = make_cutouts(data, table, 8, bands=["i", "g"])
    assert stack.bands == ("i", "g")
    assert_array_equal(
        stack.data[0, ..., 0], reference_cutout(image * 3, (50, 60), (8, 8))
    )


@pytest.mark.parametrize(
    ("uncertainty", "function"),
    [
        (StdDevUncertainty, lambda e: e),
        (VarianceUncertainty, np.square),
        (InverseVariance, lambda e: 1 / e**2),
    ],
)
def test_nddata(image, uncertainty, function):
    """CCDData brings mask, error, unit and WCS."""
    error = abs(image)
    ccd = CCDData(
        image,
        unit="adu",
        mask=image > 11,
        uncertainty=uncertainty(function(error)),
        wcs=make_wcs(),
    )
    table = Table({"x": [50.0], "y": [60.0]})
    stack = make_cutouts(ccd, table, 8)
    cut = reference_cutout(image, (50, 60), (8, 8))
    assert stack.unit == u.adu
    assert_allclose(stack.pixel_scale.to_value(u.arcsec), 0.2, rtol=1e-9)
    assert_array_equal(stack.mask[0, ..., 0], cut > 11)
    assert_allclose(stack.error[0, ..., 0], abs(cut), rtol=1e-6)


def test_quantity_units(image):
    """Quantities are converted to one unit, errors with them."""
    table = Table({"x": [50.0], "y": [60.0]})
    data = {"g": image * u.nJy, "r": (image / 1000) * u.uJy}
    error = {"g": image * u.nJy, "r": (image / 1000) * u.uJy}
    stack = make_cutouts(data, table, 8, error=error)
    assert stack.unit == u.nJy
    assert_allclose(stack.data[..., 1], stack.data[..., 0], rtol=1e-6)
    assert_allclose(stack.error, stack.data, rtol=1e-6)
    stack = make_cutouts(data, table, 8, unit="uJy")
    assert stack.unit == u.uJy
    assert_allclose(
        stack.data[0, ..., 0],
        reference_cutout(image, (50, 60), (8, 8)) / 1000,
        rtol=1e-6,
    )


def test_header_is_not_taken_for_bands(image):
    """A header may have a keyword BANDS; that is not ours."""
    header = fits.Header({"BANDS": "grz"})
    ccd = CCDData(np.stack([image] * 3), unit="adu", meta=header)
    stack = make_cutouts(ccd, Table({"x": [50.0], "y": [60.0]}), 8, band_axis=0)
    assert stack.bands == ("band_0", "band_1", "band_2")


class OtherWCS:
    """A WCS that follows APE 14 and is not of FITS."""

    def __init__(self, wcs):
        self.world_axis_physical_types = wcs.world_axis_physical_types
        self.world_to_pixel = wcs.world_to_pixel


def test_other_wcs(image):
    """Any WCS with astropy's shared interface will do."""
    wcs = make_wcs()
    catalog = Table({"ra": [150.0, 150.001], "dec": [2.0, 2.001]})
    stack = make_cutouts(image, catalog, 8, wcs=OtherWCS(wcs))
    expected = make_cutouts(image, catalog, 8, wcs=wcs)
    assert_allclose(stack.positions, expected.positions, atol=1e-8)
    assert stack.pixel_scale is None


@pytest.mark.parametrize("kind", ["numpy", "astropy"])
def test_masked_image(image, kind):
    """The mask of a masked array is kept."""
    mask = image > 10
    masked = np.ma.array(image, mask=mask) if kind == "numpy" else Masked(image, mask)
    stack = make_cutouts(masked, Table({"x": [50.0], "y": [60.0]}), 8)
    assert_array_equal(
        stack.mask[0, ..., 0], reference_cutout(image, (50, 60), (8, 8)) > 10
    )


def test_non_finite_pixels(image):
    """Pixels that are not finite are masked, zero and flagged."""
    image[60, 50], image[61, 50] = np.nan, 1e300
    stack = make_cutouts(image, Table({"x": [50.0, 150], "y": [60.0, 60]}), 8)
    assert_array_equal(stack.flags, [Flag.NON_FINITE, 0])
    assert stack.mask[0].sum() == 2
    assert_array_equal(stack.data[stack.mask], 0)


@pytest.mark.parametrize(
    "make",
    [
        Table,
        QTable,
        pd.DataFrame,
        lambda c: Table({k.upper(): v for k, v in c.items()}),
        lambda c: Table({f"{k}_centroid": v for k, v in c.items()}),
        lambda c: QTable({k: v * u.pix for k, v in c.items()}),
        lambda c: pd.DataFrame(c, index=[7, 7]),
        lambda c: pd.DataFrame(c).astype("Float64"),
        lambda c: Table(c, masked=True),
        lambda c: Table(np.array(list(zip(c["x"], c["y"])), "f8,f8"), names=["x", "y"]),
    ],
)
def test_pixel_catalogs(image, make):
    """Tables and data frames, under all usual names, give one position."""
    catalog = make({"x": np.array([50.0, 3]), "y": np.array([60.0, 4])})
    stack = make_cutouts(image, catalog, 8)
    assert_array_equal(stack.positions, [[50, 60], [3, 4]])


@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize("form", ["degrees", "unit", "coord", "only", "galactic"])
def test_sky_positions(image, form, distorted):
    """Sky positions are exactly those of Cutout2D."""
    wcs = make_wcs(distorted)
    sky = wcs.pixel_to_world([50.1, 20.3, -30], [60.25, 100, 40])
    if form == "degrees":
        catalog = Table({"RA": sky.ra.deg, "Dec": sky.dec.deg})
        sky = SkyCoord(catalog["RA"], catalog["Dec"], unit=u.deg)
    elif form == "unit":
        catalog = QTable({"ra": sky.ra.to(u.hourangle), "dec": sky.dec.to(u.arcmin)})
        sky = SkyCoord(catalog["ra"], catalog["dec"])
    elif form == "coord":
        catalog = QTable({"name": ["a", "b", "c"], "position": sky})
    elif form == "only":
        catalog = sky
    else:
        sky = sky.galactic
        catalog = QTable({"position": sky})
    stack = make_cutouts(image, catalog, 9, wcs=wcs)
    for i in range(3):
        try:
            cutout = Cutout2D(image, sky[i], (9, 9), wcs=wcs, mode="partial")
        except NoOverlapError:
            assert stack.flags[i] & Flag.NO_OVERLAP
            continue
        assert_allclose(
            stack.positions[i], cutout.input_position_original, rtol=0, atol=1e-6
        )
        assert_array_equal(stack.data[i, ..., 0], cutout.data.astype(np.float32))
    assert_allclose(stack.pixel_scale.to_value(u.arcsec), 0.2, rtol=1e-6)


@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize(("shape", "fraction"), [(8, 0.0), (9, 0.5)])
def test_sky_positions_between_two_windows(image, distorted, shape, fraction):
    """The last digits of the WCS do not decide which pixels a cutout has."""
    wcs = make_wcs(distorted)
    x, y = np.indices((30, 30)).reshape(2, -1) * 3 + 20 + fraction
    sky = wcs.pixel_to_world(x, y)
    noisy = np.transpose(wcs.world_to_pixel(sky))
    assert (np.ceil(noisy[:, 0] - shape / 2) != np.ceil(x - shape / 2)).any()
    found = make_cutouts(image, sky, shape, wcs=wcs)
    expected = make_cutouts(image, Table({"x": x, "y": y}), shape)
    assert_array_equal(found.data, expected.data)
    assert_array_equal(found.positions, expected.positions)


@pytest.mark.parametrize("distorted", [False, True])
def test_bad_sky_positions(image, distorted):
    """Impossible coordinates and the far side of the sky are flagged rows."""
    table = Table(
        {
            "ra": MaskedColumn(
                [150, 150, 150, np.nan, 330, 150], mask=[0, 1, 0, 0, 0, 0]
            ),
            "dec": [2.0, 2, -999, 2, -2, np.inf],
        }
    )
    stack = make_cutouts(image, table, 8, wcs=make_wcs(distorted))
    lost = Flag.NO_VALID_PIXEL | Flag.MOSTLY_MASKED
    no_position = Flag.NO_POSITION | lost
    assert_array_equal(
        stack.flags,
        [0, no_position, no_position, no_position, Flag.NO_OVERLAP | lost, no_position],
    )
    assert stack.mask[1:].all()
    assert_array_equal(stack.data[1:], 0)
    assert np.isnan(stack.positions[1:]).all()


@pytest.mark.skipif(
    int(astropy.__version__.split(".")[0]) < 7,
    reason="older versions of astropy drop the mask of coordinates",
)
def test_masked_skycoord(image):
    """Masked elements of a SkyCoord have no position."""
    ra = Masked([150.0, 150.0] * u.deg, mask=[False, True])
    stack = make_cutouts(image, SkyCoord(ra, [2.0, 2] * u.deg), 8, wcs=make_wcs())
    assert_array_equal(stack.flags & Flag.NO_POSITION > 0, [False, True])
    assert_allclose(stack.positions[0], [79, 99], atol=1e-6)


def test_row_safety(image):
    """Bad rows change nothing in the others, and all rows come back in order."""
    big = 2**60 + np.arange(6)
    big[3] = big[2]
    x = MaskedColumn([50.0, 60, 1e300, 20, 70, np.inf], mask=[0, 0, 0, 0, 1, 0])
    table = Table({"objid": big, "x": x, "y": [60.0, 70, 10, 20, 30, 40]})
    stack = make_cutouts(image, table, 8)
    assert_array_equal(stack.ids, big)
    assert stack.ids.dtype == big.dtype
    assert_array_equal(stack.flags & Flag.NO_POSITION > 0, [0, 0, 0, 0, 1, 1])
    assert_array_equal(stack.flags & Flag.NO_OVERLAP > 0, [0, 0, 1, 0, 0, 0])
    good = [0, 1, 3]
    alone = make_cutouts(image, table[good], 8)
    assert_array_equal(stack.data[good], alone.data)
    assert_array_equal(stack.mask[good], alone.mask)


@pytest.mark.parametrize("make", [Table, pd.DataFrame])
def test_ids(image, make):
    """Identifiers are found by name, or given; others are row numbers."""
    columns = {"x": [1.0, 2], "y": [1.0, 2]}
    assert_array_equal(make_cutouts(image, make(columns), 4).ids, [0, 1])
    columns["label"] = [5, 6]
    assert_array_equal(make_cutouts(image, make(columns), 4).ids, [5, 6])
    columns["Source_ID"] = ["a", "b"]
    stack = make_cutouts(image, make(columns), 4)
    assert_array_equal(stack.ids, ["a", "b"])
    assert stack.meta["id_column"] == "Source_ID"
    stack = make_cutouts(image, make(columns), 4, id_column="label")
    assert_array_equal(stack.ids, [5, 6])
    columns["id"] = [0.5, 1]
    with pytest.raises(ValueError, match="cannot be used as identifiers"):
        make_cutouts(image, make(columns), 4, id_column="id")
    assert_array_equal(make_cutouts(image, make(columns), 4).ids, ["a", "b"])


def test_masked_ids_are_not_guessed(image):
    """A column with missing identifiers is not taken by itself."""
    table = Table({"x": [1.0, 2], "y": [1.0, 2]})
    table["id"] = MaskedColumn([7, 8], mask=[False, True])
    assert_array_equal(make_cutouts(image, table, 4).ids, [0, 1])


def test_source_catalog_and_segmentation(image):
    """The catalogue of photutils works as it is; labels are carried along."""
    segmentation = np.zeros(image.shape, int)
    segmentation[50:60, 40:50] = 3
    segmentation[100:104, 100:106] = 8
    segments = SegmentationImage(segmentation)
    catalog = SourceCatalog(image, segments)
    for rows in (catalog, catalog.to_table()):
        stack = make_cutouts(image, rows, 20, segmentation=segments)
        assert_array_equal(stack.labels, [3, 8])
        assert_array_equal(stack.ids, [3, 8])
        assert_allclose(stack.positions[:, 0], catalog.x_centroid)
        assert (stack.segmentation[0] == 3).sum() == 100
        assert_array_equal(
            stack.segmentation[0],
            np.nan_to_num(
                reference_cutout(segmentation * 1.0, stack.positions[0], (20, 20))
            ),
        )
    scalar = make_cutouts(image, catalog[0], 20, segmentation=segments)
    assert_array_equal(scalar.labels, [3])


def test_labels_at_positions(image):
    """Without a fitting label column, the label at the position counts."""
    segmentation = np.zeros(image.shape, np.uint8)
    segmentation[50:60, 40:50] = 3
    # the last pixel of the source, and the first beyond it
    table = Table({"x": [49.49, 49.51, 45, np.nan, 999], "y": [55.0, 55, 55, 5, 5]})
    stack = make_cutouts(image, table, 20, segmentation=segmentation)
    assert_array_equal(stack.labels, [3, 0, 3, 0, 0])
    # classes are no labels: none of them occurs in these cutouts
    table["label"] = [1, 1, 2, 1, 1]
    stack = make_cutouts(image, table, 20, segmentation=segmentation)
    assert_array_equal(stack.labels, [3, 0, 3, 0, 0])


def test_psf_forms(image):
    """A PSF is for all, per band in the forms of the image, or per row."""
    table = Table({"x": [50.0, 60, 70], "y": [60.0, 70, 80]})
    data = {"g": image, "r": image}
    kernel = np.outer([1.0, 2, 1], [1.0, 2, 1]) / 16
    assert make_cutouts(data, table, 8, psf=kernel).psf.shape == (1, 3, 3, 2)
    per_band = make_cutouts(data, table, 8, psf={"r": kernel * 2, "g": kernel}).psf
    assert_allclose(per_band[0, ..., 1], 2 * per_band[0, ..., 0])
    stacked = make_cutouts(
        np.stack([image, image]),
        table,
        8,
        psf=np.stack([kernel, kernel * 2]),
        band_axis=0,
    )
    assert_array_equal(stacked.psf, per_band)
    per_row = np.broadcast_to(kernel[..., np.newaxis], (3, 3, 3, 2))
    assert make_cutouts(data, table, 8, psf=per_row).psf.shape == (3, 3, 3, 2)
    with pytest.raises(ValueError, match="psf has 3 bands, the image 2"):
        make_cutouts(data, table, 8, psf=[kernel] * 3)
    with pytest.raises(ValueError, match="psf must have the shape"):
        make_cutouts(data, table, 8, psf=per_row[:2])


def test_empty_catalog(image):
    """No rows give an empty stack."""
    stack = make_cutouts(image, Table({"x": np.zeros(0), "y": np.zeros(0)}), 8)
    assert stack.data.shape == (0, 8, 8, 1)
    stack = make_cutouts(
        image, Table({"ra": np.zeros(0), "dec": np.zeros(0)}), 8, wcs=make_wcs()
    )
    assert len(stack) == 0


@pytest.mark.parametrize(
    ("catalog", "options", "message"),
    [
        ({"ra": [1.0], "dec": [1.0]}, {}, "no celestial WCS"),
        ({"ra": [1.0], "dec": [1.0]}, {"wcs": WCS(naxis=2)}, "no celestial WCS"),
        ({"a": [1.0]}, {}, r"looked for x/y.*found the columns \['a'\]"),
        ({"x": [1.0], "y": [1.0]}, {"xy_columns": ("u", "v")}, "no column 'u'"),
        ({"x": [1.0], "y": [1.0]}, {"xy_columns": "x"}, "two column names"),
        ({"x": [1.0], "y": [1.0]}, {"id_column": "z"}, "no column 'z'"),
        ({"x": ["1"], "y": ["a"]}, {}, "must hold numbers"),
        ({"x": [[1.0]], "y": [[1.0]]}, {}, "one number per row"),
        ({"x": [1.0], "y": [1.0]}, {"shape": (0, 0)}, "shape must be a positive"),
        ({"x": [1.0], "y": [1.0]}, {"shape": (4, 4, 4)}, "shape must be one size"),
        ({"x": [1.0], "y": [1.0]}, {"shape": 4.5}, "shape must be"),
        ({"x": [1.0], "y": [1.0]}, {"shape": 200_000}, "40,000,000,000 pixels per cut"),
        ({"x": [1.0], "y": [1.0]}, {"bands": ["g", "r"]}, "1 band, bands names 2"),
        ({"x": [1.0], "y": [1.0]}, {"error": np.ones((3, 3))}, "error has the shape"),
        ({"x": [1.0], "y": [1.0]}, {"mask": np.ones((3, 3))}, "mask has the shape"),
        (
            {"x": [1.0], "y": [1.0]},
            {"segmentation": np.ones((3, 3), int)},
            "segmentation must be integers",
        ),
        (
            {"x": [1.0], "y": [1.0]},
            {"image": np.ones((2, 9, 9))},
            "give its axis of bands",
        ),
        (
            {"x": [1.0], "y": [1.0]},
            {"image": [np.ones((9, 9)), np.ones((9, 8))]},
            "share one pixel grid",
        ),
        ({"x": [1.0], "y": [1.0]}, {"image": np.ones(9)}, "2-D array of numbers"),
        ({"x": [1.0], "y": [1.0]}, {"image": {}}, "image has the bands"),
        (
            {"x": [1.0], "y": [1.0]},
            {"image": {"g": np.ones((9, 9))}, "bands": ["r"]},
            r"image has the bands \['g'\], and not \['r'\]",
        ),
        (
            {"x": [1.0], "y": [1.0]},
            {"image": [np.ones((9, 9))] * 3, "error": [np.ones((9, 9))] * 2},
            "error has 2 bands, the image 3",
        ),
        ({"x": [1.0], "y": [1.0]}, {"pixel_scale": -1}, "pixel_scale must be"),
    ],
)
def test_errors(image, catalog, options, message):
    """Misuse is one clear sentence."""
    options = {"image": image, "shape": 8} | options
    data, shape = options.pop("image"), options.pop("shape")
    with pytest.raises(ValueError, match=message):
        make_cutouts(data, Table(catalog), shape, **options)


def test_more_cutouts_than_the_memory_holds(image):
    """Are refused before they are cut; the image is not what counts."""
    n = 10_000_000
    catalog = Table({"x": np.full(n, 50.0), "y": np.full(n, 50.0)})
    with pytest.raises(MemoryError, match="10,000,000 cutouts of 5000 x 5000 pixels"):
        make_cutouts(image, catalog, 5000)
    huge = np.broadcast_to(np.float32(1), (10_000_000, 10_000_000))
    assert make_cutouts(huge, catalog[:2], 8).data.all()


def test_wrong_units_and_types(image):
    """Positions in the wrong unit, and things that are no catalogue."""
    with pytest.raises(ValueError, match="must hold numbers"):
        make_cutouts(image, pd.DataFrame({"x": ["a"], "y": ["b"]}), 8)
    with pytest.raises(ValueError, match="must be in pixels"):
        make_cutouts(image, QTable({"x": [1] * u.m, "y": [1] * u.m}), 8)
    with pytest.raises(TypeError, match="catalog must be an astropy Table"):
        make_cutouts(image, 5, 8)
    two = QTable({"a": SkyCoord([1] * u.deg, [1] * u.deg)})
    two["b"] = two["a"]
    with pytest.raises(ValueError, match="several coordinates"):
        make_cutouts(image, two, 8, wcs=make_wcs())


def test_memory_mapped(tmp_path, image):
    """An image on disk is not read as a whole."""
    path = tmp_path / "image.fits"
    fits.PrimaryHDU(image).writeto(path)
    opened = read_image(path)
    base = opened.data
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert base is not None
    stack = make_cutouts(opened, Table({"x": [50.0], "y": [60.0]}), (8, 9))
    assert_array_equal(stack.data[0, ..., 0], reference_cutout(image, (50, 60), (8, 9)))


def test_sdss(data_path):
    """Real SDSS images, positions in RA and Dec, with sigma, mask and PSF."""
    for folder in sorted((data_path / "sdss_r_gadotti").iterdir()):
        image, sigma, mask, psf = (
            read_image(folder / f"{name}.fit")
            for name in ("image", "sigma", "mask", "psf")
        )
        center = image.wcs.pixel_to_world([128.3, 60.4, 5.2], [128.3, 60.4, 250.2]).icrs
        table = Table({"ra": center.ra.deg, "dec": center.dec.deg})
        stack = make_cutouts(
            image, table, (64, 64), error=sigma, mask=mask, psf=psf, bands=["r"]
        )
        assert_allclose(stack.pixel_scale.to_value(u.arcsec), 0.396, rtol=1e-2)
        assert_allclose(
            stack.positions, [[128.3, 128.3], [60.4, 60.4], [5.2, 250.2]], atol=1e-5
        )
        assert_array_equal(stack.flags[:2] & Flag.PARTIAL, 0)
        assert stack.flags[2] & Flag.PARTIAL
        assert stack.psf.shape == (1, 31, 31, 1)
        expected = Cutout2D(image.data, center[1], (64, 64), wcs=image.wcs).data
        assert_array_equal(stack.data[1, ..., 0], expected)
        assert (stack.error[~stack.mask] > 0).all()
