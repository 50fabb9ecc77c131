# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of the data sets."""

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling.models import Sersic2D
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import data as skimage_data

from astrovae.datasets import (
    draw_sources,
    hubble_deep_field,
    make_galaxies,
    make_survey,
)
from astrovae.datasets._profiles import draw_galaxies, draw_stars, gaussian_psf
from astrovae.images import detect_sources, make_cutouts


def test_hubble_deep_field():
    """The picture is that of scikit-image, the right way up."""
    image = hubble_deep_field()
    assert image.data.dtype == np.float32
    assert image.data.shape == (872, 1000, 3)
    assert_array_equal(image.data[::-1], skimage_data.hubble_deep_field())
    assert image.meta["bands"] == ("red", "green", "blue")
    assert image.meta["quantization_step"] == 1
    assert "eXtreme Deep Field" in image.meta["origin"]
    stack = make_cutouts(image, Table({"x": [500.0], "y": [400.0]}), 16)
    assert stack.bands == ("red", "green", "blue")
    assert stack.pixel_scale is None


@pytest.mark.parametrize("index", [0.6, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("axis_ratio", [0.3, 1.0])
def test_profile_is_that_of_astropy(index, axis_ratio):
    """Galaxies equal a finely sampled Sersic2D, blurred and averaged."""
    shape, fwhm, fine = (41, 49), 2.5, 15
    x, y, radius, angle = 23.3, 20.1, 4.0, 0.7
    image = draw_galaxies(
        *(np.array([v]) for v in (x, y, 100, radius, index, axis_ratio, angle)),
        shape=shape,
        psf_fwhm=fwhm,
    )[0]
    sub_y, sub_x = (np.indices(np.array(shape) * fine) + 0.5) / fine - 0.5
    model = Sersic2D(1, radius, index, x, y, 1 - axis_ratio, angle)(sub_x, sub_y)
    sigma = fwhm / (2 * np.sqrt(2 * np.log(2)))
    model = ndimage.gaussian_filter(model, sigma * fine, truncate=6)
    model = model.reshape(shape[0], fine, shape[1], fine).mean(axis=(1, 3))
    assert_allclose(
        image / image.sum(), model / model.sum(), atol=0.01 * image.max() / image.sum()
    )
    # light beyond the edge is not there, but it counts
    assert image.sum() < 100.5
    if index < 1.5:
        assert_allclose(image.sum(), 100, rtol=0.01)


def test_stars_and_psf():
    """Point sources are the PSF, at any position."""
    stars = draw_stars(
        np.array([15.0, 15.3]),
        np.array([15.0, 14.8]),
        np.array([1.0, 5]),
        shape=(31, 31),
        psf_fwhm=3.0,
    )
    psf = gaussian_psf(3.0)
    half = psf.shape[0] // 2
    window = slice(15 - half, 16 + half)
    assert_allclose(stars[0, window, window], psf, atol=1e-6)
    assert_allclose(psf.sum(), 1, rtol=1e-6)
    y, x = np.indices((31, 31))
    assert_allclose((stars[1] * x).sum() / stars[1].sum(), 15.3, atol=1e-4)
    assert_allclose((stars[1] * y).sum() / stars[1].sum(), 14.8, atol=1e-4)
    assert_allclose(stars.sum(axis=(1, 2)), [1, 5], rtol=1e-5)


class TestMakeGalaxies:
    """Isolated galaxies."""

    def test_form(self):
        truth, stack = make_galaxies(30, shape=(32, 40), bands=["g", "r", "i"])
        assert stack.image_shape == (32, 40, 3)
        assert stack.bands == ("g", "r", "i")
        assert stack.pixel_scale == 0.2 * u.arcsec
        assert truth["flux"].shape == truth["bulge_fraction"].shape == (30, 3)
        assert_array_equal(truth["id"], stack.ids)
        assert not stack.flags.any()
        double = truth["kind"] == "bulge_disc"
        assert 0 < double.sum() < 30
        assert_array_equal(truth["sersic_index"].mask, double)
        assert_array_equal(truth["bulge_size"].mask, ~double)
        share = truth["bulge_fraction"][double]
        assert (np.diff(share, axis=1) > 0).all()
        assert truth["angle"].unit == u.deg

    def test_noise_is_known(self):
        """The error plane states the noise, with and without photon noise."""
        options = {"shape": 24, "seed": 3, "noise": 2.0, "half_light_radius": (1, 1.5)}
        many = {"snr": (100, 100)}
        for gain in (None, 0.5):
            _, noisy = make_galaxies(200, gain=gain, **options, **many)
            _, again = make_galaxies(200, gain=gain, **options, **many)
            assert_array_equal(noisy.data, again.data)
            corner = noisy.data[:, :4, :4] / noisy.error[:, :4, :4]
            assert_allclose(corner.std(), 1, atol=0.03)
            assert_allclose(noisy.error.min(), 2, rtol=1e-3)
            assert (noisy.error.max() > 2.5) == (gain is not None)
        _, other = make_galaxies(200, **(options | {"seed": 4}))
        assert (other.data != noisy.data).all()

    def test_signal_to_noise(self):
        """The best measurement of the flux has the stated S/N."""
        truth, stack = make_galaxies(300, shape=32, snr=(50, 50), seed=1)
        _, quiet = make_galaxies(300, shape=32, snr=(5e5, 5e5), seed=1)
        profile = (
            quiet.data
            / np.sqrt((quiet.data**2).sum(axis=(1, 2, 3)))[:, None, None, None]
        )
        estimate = (profile * stack.data).sum(axis=(1, 2, 3))
        assert_allclose(estimate.mean(), 50, atol=0.3)
        assert_allclose(estimate.std(), 1, atol=0.15)
        assert_allclose(truth["snr"], 50)

    def test_fluxes(self):
        """Compact galaxies have all of their flux in the cutout."""
        truth, stack = make_galaxies(
            50, shape=64, bands="gr", half_light_radius=(1, 2), snr=(1e4, 1e4)
        )
        single = truth["kind"] == "sersic"
        steep = np.ma.filled(truth["sersic_index"], 0) > 1.5
        total = stack.data.sum(axis=(1, 2))
        rows = single & ~steep
        assert_allclose(
            total[rows], np.reshape(truth["flux"], total.shape)[rows], rtol=0.02
        )

    def test_none(self):
        truth, stack = make_galaxies(0, shape=16)
        assert len(truth) == len(stack) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": -1}, "n must be an integer"),
            ({"shape": 0}, "shape must be a positive"),
            ({"snr": (5, 2)}, "snr must be two increasing"),
            ({"psf_fwhm": 0}, "psf_fwhm must be a positive"),
            ({"noise": -1}, "noise must be a positive"),
            ({"gain": 0}, "gain must be a positive"),
            ({"half_light_radius": (0, 2)}, "half_light_radius must be two"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_galaxies(**({"n": 2, "shape": 16} | options))


class TestMakeSurvey:
    """An image with galaxies, companions and stars."""

    def test_form(self):
        truth, image = make_survey(
            30, n_stars=10, shape=(200, 230), bands=["g", "r"], seed=2, pixel_scale=0.3
        )
        assert image.data.shape == (200, 230, 2)
        assert (truth["kind"] == "star").sum() == 10
        assert (~truth["companion_of"].mask).sum() == 6
        stack = make_cutouts(image, truth, 32)
        assert stack.bands == ("g", "r")
        assert stack.psf is not None
        assert stack.error is not None
        assert_allclose(stack.pixel_scale.to_value(u.arcsec), 0.3, rtol=1e-6)
        truth["sky_x"], truth["sky_y"] = image.wcs.world_to_pixel_values(
            truth["ra"].value, truth["dec"].value
        )
        assert_allclose(truth["sky_x"], truth["x"].value, atol=1e-6)
        assert_allclose(truth["sky_y"], truth["y"].value, atol=1e-6)

    def test_companions_are_close(self):
        truth, _ = make_survey(40, n_stars=0, shape=(300, 300), companions=0.5)
        rows = np.flatnonzero(~truth["companion_of"].mask)
        hosts = np.asarray(truth["companion_of"])[rows]
        assert len(rows) == 20
        assert not set(rows) & set(hosts)
        distance = np.hypot(
            *(truth[axis][rows].value - truth[axis][hosts].value for axis in "xy")
        )
        limit = 4 * truth["half_light_radius"].unmasked[hosts].value
        assert (distance < np.maximum(limit, 4.6)).all()

    def test_kinds(self):
        """Spirals and clumpy discs have their flux, and are what they are."""
        kinds = ("sersic", "bulge_disc", "spiral", "clumpy_disc")
        truth, image = make_survey(
            40,
            n_stars=4,
            shape=(400, 400),
            kinds=kinds,
            snr=(1e5, 1e5),
            half_light_radius=(3, 6),
            companions=0,
            psf_fwhm=2.0,
            bands="gr",
            seed=3,
        )
        kind = np.asarray(truth["kind"])
        assert set(kind) == {*kinds, "star"}
        assert_array_equal(truth["arm_strength"].mask, kind != "spiral")
        assert_array_equal(truth["n_clumps"].mask, kind != "clumpy_disc")
        total = draw_sources(truth, image)
        # relative to the brightest pixel there is no noise to speak of
        assert_allclose(total, image.data, atol=1e-3 * total.max())
        xy = np.array([truth["x"].value, truth["y"].value]).T
        inside = ((xy > 60) & (xy < 340)).all(axis=1)
        for row in np.flatnonzero(inside & (kind != "sersic")):
            one = draw_sources(truth, image, row)
            assert_allclose(one.sum(axis=(0, 1)), truth["flux"][row], rtol=0.06)
        # arms are seen, and take no flux from the disc
        plain = truth[:].copy()
        plain["kind"] = np.where(kind == "spiral", "bulge_disc", kind)
        contrast = []
        for row in np.flatnonzero(inside & (kind == "spiral")):
            arms, smooth = (
                draw_sources(some, image, [row])[..., 0] for some in (truth, plain)
            )
            assert_allclose(arms.sum(), smooth.sum(), rtol=1e-2)
            contrast.append(np.abs(arms - smooth).sum() / smooth.sum())
        assert 0.05 < max(contrast) < 1
        assert min(contrast) > 0.005

    def test_neighbor_flux(self):
        """The light of others is what is left without the source's own."""
        truth, image = make_survey(
            20, n_stars=5, shape=(150, 160), companions=0.5, bands="gr", seed=2
        )
        total = draw_sources(truth, image)
        y, x = np.indices((150, 160))
        for row in (0, 12, 19, 23):
            one = truth[row]
            dx, dy = x - one["x"].value, y - one["y"].value
            if one["kind"] == "star":
                inside = np.hypot(dx, dy) <= image.meta["psf_fwhm"]
            else:
                angle = one["angle"].unmasked.to_value(u.rad)
                radius = 2 * one["half_light_radius"].unmasked.value
                along = dx * np.cos(angle) + dy * np.sin(angle)
                across = dy * np.cos(angle) - dx * np.sin(angle)
                minor = np.hypot(radius * np.ma.getdata(one["axis_ratio"]), 1.5)
                inside = (along / np.hypot(radius, 1.5)) ** 2 + (across / minor) ** 2
                inside = inside <= 1
            others = (total - draw_sources(truth, image, row))[inside].sum(axis=0)
            assert_allclose(one["neighbor_flux"], others, rtol=1e-3, atol=0.1)

    def test_flaws(self):
        """Bad columns are masked, cosmic rays are not, but known."""
        options = {"n_stars": 0, "shape": (120, 130), "bands": "gr", "seed": 6}
        _, clean = make_survey(5, **options)
        _, image = make_survey(5, bad_columns=3, cosmic_rays=4, **options)
        assert clean.mask is None
        assert image.mask.all(axis=(0, 2)).sum() == 3
        assert image.mask.any(axis=(0, 2)).sum() == 3
        hit = image.meta["cosmic_rays"]
        assert not clean.meta["cosmic_rays"].any()
        same = ~(image.mask | hit)
        assert_array_equal(image.data[same], clean.data[same])
        only = hit & ~image.mask
        assert (image.data - clean.data)[only].min() > 10
        assert 8 < hit.sum() < 300

    def test_photon_noise(self):
        """With a gain, bright pixels scatter as photons do."""
        options = {"n_stars": 30, "shape": (100, 100), "snr": (300, 300), "seed": 1}
        truth, image = make_survey(0, gain=0.5, **options)
        model = draw_sources(truth, image)
        pull = (image.data - model) / image.uncertainty.array
        bright = model > 20
        assert_allclose(image.uncertainty.array, np.sqrt(1 + model / 0.5), rtol=1e-3)
        assert_allclose(pull[bright].std(), 1, atol=0.1)
        assert_allclose(pull[~bright].std(), 1, atol=0.02)

    def test_background_and_seed(self):
        """The sky is where it is said to be; a seed gives the same image."""
        truth, image = make_survey(5, shape=(100, 100), background=7, seed=3)
        again, other = make_survey(5, shape=(100, 100), background=7, seed=3)
        assert_array_equal(image.data, other.data)
        assert_array_equal(truth["x"], again["x"])
        assert_allclose(np.median(image.data), 7, atol=0.2)
        table, _ = detect_sources(image)
        assert len(table) > 0

    def test_errors(self):
        with pytest.raises(ValueError, match="companions must be between"):
            make_survey(4, companions=0.8)
        with pytest.raises(ValueError, match="kinds must be some of"):
            make_survey(4, kinds=("elliptical",))
        with pytest.raises(ValueError, match="cosmic_rays must be an integer"):
            make_survey(4, cosmic_rays=-1)
        with pytest.raises(ValueError, match="n_stars must be"):
            make_survey(4, n_stars=-1)
