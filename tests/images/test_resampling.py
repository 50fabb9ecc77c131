# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of cutouts with pixels of their own: other sizes, sub-pixel centres, PSFs."""

import hashlib

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from astropy.wcs import WCS
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import erf

from astrovae.flags import Flag
from astrovae.images import make_cutouts


def make_wcs(scale=0.2):
    """Return a TAN WCS."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [80.0, 100.0]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


def gaussian(shape, x, y, sigma, step=1.0):
    """Return a Gaussian of unit flux, integrated over pixels of a size."""

    def along(size, center):
        edges = (np.arange(size + 1) - 0.5) * step
        return np.diff(erf((edges - center) / (np.sqrt(2) * sigma))) / 2

    return along(shape[0], y)[:, np.newaxis] * along(shape[1], x)


def field(rng, n, sigma, shape=(400, 420)):
    """Return an image of Gaussians that do not touch, and their table."""
    grid = np.stack(np.meshgrid(np.arange(45, 380, 55), np.arange(45, 360, 55)), -1)
    xy = grid.reshape(-1, 2)[:n] + rng.uniform(-0.5, 0.5, (n, 2))
    flux = rng.uniform(1e3, 1e5, n)
    image = sum(f * gaussian(shape, x, y, sigma) for f, (x, y) in zip(flux, xy))
    return image, Table({"x": xy[:, 0], "y": xy[:, 1], "flux": flux})


class TestRecenter:
    """Positions at the centre, to a fraction of a pixel."""

    @pytest.mark.parametrize("shape", [(48, 48), (47, 50)])
    @pytest.mark.parametrize("sky", [0.0, 1e4])
    def test_flux_and_centre(self, rng, shape, sky):
        """Flux moves by less than a thousandth, and the image is the true one."""
        image, table = field(rng, 30, 1.3)
        stack = make_cutouts(image + sky, table, shape, recenter=True)
        light = stack.data[..., 0].astype(float) - sky
        assert not stack.mask.any()
        assert_array_equal(stack.flags, 0)
        assert_allclose(light.sum(axis=(1, 2)) / table["flux"], 1, atol=1e-3)
        center = [(n - 1) / 2 for n in shape[::-1]]
        truth = gaussian(shape, *center, 1.3) * table["flux"][:, None, None]
        peak = truth.max(axis=(1, 2))
        assert (np.abs(light - truth).max(axis=(1, 2)) < 2e-3 * peak).all()
        plain = make_cutouts(image, table, shape)
        y, x = np.indices(shape)
        before, after = (
            np.stack([(d * q).sum(axis=(1, 2)) / d.sum(axis=(1, 2)) for q in (x, y)], 1)
            for d in (plain.data[..., 0].astype(float), light)
        )
        shift = np.stack([stack.columns["shift_x"], stack.columns["shift_y"]], 1)
        assert_allclose(after - before, shift, atol=2e-3)
        assert (np.abs(shift) <= 0.5).all()
        assert (np.abs(shift) > 0.1).any()

    def test_noise_stays_white(self, rng):
        """Variance is that of the image, errors say so, neighbours are independent."""
        image = rng.normal(size=(500, 500))
        xy = rng.uniform(40, 460, (300, 2))
        stack = make_cutouts(
            image,
            Table(xy, names=["x", "y"]),
            32,
            error=np.full(image.shape, 2.0),
            recenter=True,
        )
        data = stack.data[..., 0].astype(float)
        assert_allclose(data.var(), 1, rtol=0.02)
        assert_allclose((data[:, 1:] * data[:, :-1]).mean(), 0, atol=0.01)
        assert_allclose((data[:, :, 1:] * data[:, :, :-1]).mean(), 0, atol=0.01)
        assert_allclose(stack.error, 2, rtol=1e-4)

    def test_uneven_errors(self, rng):
        """The error of a pixel is that of the weighted sum that it is."""
        error = rng.uniform(0.5, 3, (60, 60))
        table = Table({"x": [30.3], "y": [29.6]})
        stack = make_cutouts(np.zeros((60, 60)), table, 16, error=error, recenter=True)
        draws = [
            make_cutouts(rng.normal(0, error), table, 16, recenter=True).data[0, ..., 0]
            for _ in range(1500)
        ]
        ratio = np.std(draws, axis=0) / stack.error[0, ..., 0]
        assert_allclose(ratio.mean(), 1, atol=0.005)
        assert_allclose(ratio, 1, atol=0.12)

    def test_whole_pixels_are_kept(self, rng):
        """Positions that are central already leave pixels as they are."""
        image = rng.normal(size=(80, 90))
        table = Table({"x": [40.0, 50], "y": [30.0, 44]})
        stack = make_cutouts(image, table, 15, recenter=True)
        plain = make_cutouts(image, table, 15)
        assert_allclose(stack.data, plain.data, atol=1e-6)
        assert_allclose(stack.columns["shift_x"], 0, atol=1e-12)

    def test_bad_pixels(self, rng):
        """Bad pixels take those next to them along, and leave the others alone."""
        image, table = field(rng, 4, 2.0)
        mask = np.zeros(image.shape, bool)
        mask[55, :] = True
        spoiled = np.where(mask, np.nan, image)
        stack = make_cutouts(spoiled, table, 32, recenter=True)
        clean = make_cutouts(image, table, 32, recenter=True)
        per_row = stack.mask[..., 0].all(axis=2).sum(axis=1)
        assert ((per_row >= 1) & (per_row <= 6)).all()
        assert_array_equal(stack.flags, Flag.NON_FINITE)
        peak = clean.data.max(axis=(1, 2, 3), keepdims=True)
        difference = np.abs(stack.data - clean.data) / peak
        assert difference[~stack.mask].max() < 0.01
        assert_array_equal(stack.data[stack.mask], 0)

    def test_edges(self, rng):
        """Edges are masked and flagged; rows without a position stay in place."""
        image = rng.normal(100, 1, (60, 60))
        table = Table({"x": [2.3, 30, np.nan, 500, 53.4], "y": [30.4, 30, 1, 30, 40]})
        stack = make_cutouts(image, table, 12, recenter=True)
        assert_array_equal(
            stack.flags & (Flag.PARTIAL | Flag.NO_OVERLAP | Flag.NO_POSITION),
            [Flag.PARTIAL, 0, Flag.NO_POSITION, Flag.NO_OVERLAP, 0],
        )
        share = stack.mask.mean(axis=(1, 2, 3))
        assert 0.3 < share[0] < 0.75
        assert_array_equal(share[1:], [0, 1, 1, 0])
        good = stack.data[0][~stack.mask[0]]
        assert_allclose(good, 100, atol=6)
        assert np.isnan(stack.columns["shift_x"][2])


class TestSize:
    """Cutouts that show what they are told to."""

    def test_flux_is_conserved(self, rng):
        """Whatever the size of pixels, the sum is the same; so is the shape."""
        image, table = field(rng, 30, 3.0)
        table["radius"] = rng.uniform(5, 8, 30)
        stack = make_cutouts(image, table, 24, size="radius", size_factor=6)
        assert_allclose(stack.data.sum(axis=(1, 2, 3)) / table["flux"], 1, atol=1e-3)
        assert_allclose(stack.columns["cutout_size"], 6 * table["radius"])
        assert stack.pixel_scale is None
        for row in range(30):
            step = 6 * table["radius"][row] / 24
            middle = 11.5 * step
            # area weighting blurs by the pixel of the image
            truth = gaussian((24, 24), middle, middle, np.hypot(3, 12**-0.5), step)
            truth *= table["flux"][row]
            assert_allclose(stack.data[row, ..., 0], truth, atol=0.03 * truth.max())

    def test_whole_multiples(self, rng):
        """Two by two pixels are added, without any interpolation."""
        image = rng.normal(size=(101, 101))
        error = rng.uniform(1, 2, image.shape)
        table = Table({"x": [50.5], "y": [40.5]})
        stack = make_cutouts(image, table, 10, size=20, error=error)
        block = np.s_[31:51, 41:61]
        total = image[block].reshape(10, 2, 10, 2).sum(axis=(1, 3))
        noise = np.sqrt((error[block] ** 2).reshape(10, 2, 10, 2).sum(axis=(1, 3)))
        assert_allclose(stack.data[0, ..., 0], total, rtol=1e-5, atol=1e-5)
        assert_allclose(stack.error[0, ..., 0], noise, rtol=1e-5)

    def test_angles(self, rng):
        """Angles become pixels by the WCS, whatever their unit."""
        image = rng.normal(size=(200, 210))
        wcs = make_wcs()
        ra, dec = wcs.all_pix2world([100.0, 60], [90.0, 120], 0)
        table = QTable({"ra": ra * u.deg, "dec": dec * u.deg})
        table["r50"] = [4.0, 8.0] * u.arcsec
        one = make_cutouts(image, table, 16, wcs=wcs, size=8 * u.arcsec)
        assert_allclose(one.pixel_scale.to_value(u.arcsec), 0.5, rtol=1e-5)
        assert_allclose(one.columns["cutout_size"], 40, rtol=1e-5)
        same = make_cutouts(image, table, 16, wcs=wcs, size=8 / 60 * u.arcmin)
        assert_allclose(same.data, one.data, atol=1e-5)
        by_row = make_cutouts(image, table, 16, wcs=wcs, size="r50", size_factor=2)
        assert by_row.pixel_scale is None
        assert_allclose(by_row.columns["pixel_scale"], [0.5, 1.0], rtol=1e-5)
        assert_allclose(by_row.data[0], one.data[0], atol=1e-5)
        listed = make_cutouts(image, table, 16, wcs=wcs, size=[8, 16] * u.arcsec)
        assert_allclose(listed.data, by_row.data, atol=1e-5)

    def test_surface_brightness(self, rng):
        """Values per solid angle are averaged, others added."""
        image = np.full((100, 100), 3.0)
        table = Table({"x": [50.5], "y": [50.5]})
        for unit, expected in (("MJy/sr", 3.0), ("adu/arcsec2", 3.0), ("Jy", 12.0)):
            stack = make_cutouts(image * u.Unit(unit), table, 8, size=16, error=image)
            assert_allclose(stack.data, expected, rtol=1e-6)
            noise = expected / 2 if unit == "Jy" else 1.5
            assert_allclose(stack.error, noise, rtol=1e-6)

    def test_any_touched_bad_pixel(self):
        """A pixel that touches a bad one by a hundredth is bad."""
        image = np.ones((60, 60))
        mask = np.zeros(image.shape, bool)
        mask[30, 20] = True
        table = Table({"x": [30.0], "y": [30.0]})
        stack = make_cutouts(image, table, 20, size=30, mask=mask)
        edges = 30 - 15 + 1.5 * np.arange(21)
        touched = [(edges[1:] > c - 0.5) & (edges[:-1] < c + 0.5) for c in (30, 20)]
        assert_array_equal(stack.mask[0, ..., 0], np.outer(*touched))
        assert_allclose(stack.data[~stack.mask], 2.25, rtol=1e-5)

    def test_bad_sizes(self, rng):
        """Rows without a size are masked and flagged, the others unaffected."""
        image = rng.normal(size=(90, 90))
        size = MaskedColumn([20, np.nan, -3, 0, 1e9, 30, 25], mask=[0] * 5 + [1, 0])
        table = Table({"x": [45.0] * 7, "y": [45.0] * 6 + [np.nan], "a": size})
        stack = make_cutouts(image, table, 10, size="a")
        expected = [0, *[Flag.NO_SIZE] * 5, Flag.NO_POSITION]
        kinds = Flag.NO_SIZE | Flag.NO_POSITION | Flag.NO_OVERLAP
        assert_array_equal(stack.flags & kinds, expected)
        assert_array_equal(stack.mask.all(axis=(1, 2, 3)), [0, 1, 1, 1, 1, 1, 1])
        alone = make_cutouts(image, table[:1], 10, size="a")
        assert_array_equal(stack.data[0], alone.data[0])

    def test_rows_do_not_depend_on_each_other(self, rng):
        image = rng.normal(size=(300, 310))
        table = Table(rng.uniform(-10, 320, (200, 2)), names=["x", "y"])
        table["a"] = rng.uniform(1, 90, 200)
        stack = make_cutouts(image, table, (12, 14), size="a")
        rows = rng.permutation(200)[:31]
        part = make_cutouts(image, table[rows], (12, 14), size="a")
        assert_allclose(part.data, stack.data[rows], atol=1e-5)
        assert_array_equal(part.mask, stack.mask[rows])
        assert_array_equal(part.flags, stack.flags[rows])

    def test_labels(self):
        """Labels are taken from the nearest pixel."""
        image = np.zeros((80, 80))
        labels = np.zeros((80, 80), int)
        labels[30:50, 30:50] = 7
        table = Table({"x": [39.5], "y": [39.5]})
        stack = make_cutouts(image, table, 10, size=40, segmentation=labels)
        assert stack.labels[0] == 7
        expected = np.zeros((10, 10), int)
        expected[2:8, 2:8] = 7
        assert (stack.segmentation[0] == expected).mean() > 0.8
        assert stack.segmentation[0, 4:6, 4:6].all()

    def test_psf(self, rng):
        """PSFs are on the pixels of the cutouts."""
        image = rng.normal(size=(90, 90))
        table = Table({"x": [45.0] * 2, "y": [45.0] * 2, "a": [20.0, 80.0]})
        psf = gaussian((31, 31), 15, 15, 4.0)
        stack = make_cutouts(image, table, 40, size="a", psf=psf)
        assert stack.psf.shape[0] == 2
        assert_allclose(stack.psf.sum(axis=(1, 2, 3)), psf.sum(), rtol=1e-5)
        x = np.arange(stack.psf.shape[2])
        for kernel, step in zip(stack.psf[..., 0].astype(float), (0.5, 2.0)):
            total = kernel.sum()
            xc = (kernel * x).sum() / total
            assert_allclose(xc, (kernel.shape[1] - 1) / 2, atol=1e-4)
            sigma = np.sqrt((kernel * (x - xc) ** 2).sum() / total) * step
            assert_allclose(sigma, 4, rtol=0.03)

    def test_inputs_are_kept(self, rng):
        image = rng.normal(size=(90, 90)).astype(">f4")
        image[40, 40] = np.nan
        error = abs(image)
        table = Table({"x": [45.0], "y": [45.0]})
        before = hashlib.sha256(image.tobytes() + error.tobytes()).hexdigest()
        make_cutouts(image, table, 20, size=30, error=error)
        make_cutouts(image, table, 20, recenter=True, error=error)
        after = hashlib.sha256(image.tobytes() + error.tobytes()).hexdigest()
        assert after == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": -1}, "size must be positive"),
            ({"size": np.nan}, "size must be positive"),
            ({"size": [1, 2, 3]}, "one value, or 1 for the rows"),
            ({"size": 3 * u.Jy}, "in pixels or an angle, its unit is Jy"),
            ({"size": 3 * u.arcsec}, "no celestial WCS. Give pixel_scale"),
            ({"size": "nothing"}, "no column 'nothing'"),
            ({"size": 3, "size_factor": 0}, "size_factor must be a positive"),
        ],
    )
    def test_errors(self, options, message):
        table = Table({"x": [45.0], "y": [45.0]})
        with pytest.raises(ValueError, match=message):
            make_cutouts(np.zeros((90, 90)), table, 20, **options)


@pytest.mark.parametrize(
    "options", [{}, {"recenter": True}, {"size": 4 * u.arcsec}, {"size": "r"}]
)
def test_sky_positions_that_cannot_be_cut(rng, options):
    """The far side of the sky, NaN and masked coordinates are masked rows."""
    image = rng.normal(size=(90, 90))
    table = Table({"ra": [150.0, 330, np.nan, 150, 151], "dec": [2.0, -2, 2, 2, 2]})
    table["dec"] = MaskedColumn(table["dec"], mask=[0, 0, 0, 1, 0])
    table["r"] = 20.0
    wcs = make_wcs()
    wcs.wcs.crpix = [45, 45]
    stack = make_cutouts(image, table, 16, wcs=wcs, **options)
    kinds = Flag.NO_POSITION | Flag.NO_OVERLAP | Flag.NO_SIZE
    unknown, away = Flag.NO_POSITION, Flag.NO_OVERLAP
    assert_array_equal(stack.flags & kinds, [0, away, unknown, unknown, away])
    assert_array_equal(stack.mask.all(axis=(1, 2, 3)), [0, 1, 1, 1, 1])
    # the whole image on the other side of the sky
    wcs.wcs.crval = [330.0, -2.0]
    stack = make_cutouts(image, table, 16, wcs=wcs, **options)
    assert_array_equal(stack.flags & kinds, [away, 0, unknown, unknown, away])


class TestPSFFunction:
    """PSFs that depend on the position."""

    def test_values(self, rng):
        image = rng.normal(size=(100, 110))
        table = Table({"x": [20.0, 90, np.nan], "y": [30.0, 50, 2]})

        def psf(x, y):
            return gaussian((15, 15), 7, 7, 1 + x / 100 + y / 200)

        stack = make_cutouts(image, table, 16, psf=psf)
        assert_allclose(stack.psf[0, ..., 0], psf(20, 30), rtol=1e-6)
        assert_allclose(stack.psf[1, ..., 0], psf(90, 50), rtol=1e-6)
        assert np.isfinite(stack.psf).all()
        both = make_cutouts(
            {"g": image, "r": image},
            table,
            16,
            psf={"r": psf, "g": lambda x, y: psf(y, x)},
        )
        assert_allclose(both.psf[1, ..., 0], psf(50, 90), rtol=1e-6)
        assert_allclose(both.psf[1, ..., 1], psf(90, 50), rtol=1e-6)
        shared = make_cutouts({"g": image, "r": image}, table, 16, psf=psf)
        assert_array_equal(shared.psf[..., 0], shared.psf[..., 1])

    def test_no_rows(self):
        stack = make_cutouts(
            np.zeros((9, 9)), Table({"x": [], "y": []}), 4, psf=lambda x, y: np.eye(3)
        )
        assert len(stack) == 0

    def test_errors(self):
        table = Table({"x": [4.0, 5], "y": [4.0, 5]})
        image = np.zeros((9, 9))
        with pytest.raises(ValueError, match="arrays of one size"):
            make_cutouts(image, table, 4, psf=lambda x, y: np.eye(int(x)))
        with pytest.raises(ValueError, match=r"must give an array of shape"):
            make_cutouts(image, table, 4, psf=lambda x, y: np.zeros(3))
        with pytest.raises(ValueError, match="psf has the bands"):
            make_cutouts({"r": image}, table, 4, psf={"g": lambda x, y: np.eye(3)})
