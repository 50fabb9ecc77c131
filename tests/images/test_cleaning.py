# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of detect_sources, clean_cutouts and measure_background."""

import json
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import NDData
from astropy.stats import sigma_clipped_stats
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal
from photutils.segmentation import SourceCatalog
from scipy import ndimage

from astrovae.datasets import hubble_deep_field, make_galaxies, make_survey
from astrovae.flags import Flag
from astrovae.images import (
    CutoutStack,
    clean_cutouts,
    detect_sources,
    detection,
    make_cutouts,
    measure_background,
)
from astrovae.images._neighbors import dilate, noise_offsets


@pytest.fixture(scope="module")
def survey():
    """Return truth, image, detected sources and segmentation."""
    truth, image = make_survey(
        60, n_stars=30, shape=(400, 420), bands=("g", "r"), background=50, seed=2
    )
    return truth, image, *detect_sources(image)


@pytest.fixture(scope="module")
def stack(survey):
    """Return cutouts of all detected sources, with labels."""
    _, image, table, segments = survey
    return make_cutouts(image, table, 48, segmentation=segments)


def match(truth, table):
    """Return the nearest detection of each true source, and its distance."""
    dx = truth["x"].value[:, np.newaxis] - table["x"].value
    dy = truth["y"].value[:, np.newaxis] - table["y"].value
    distance = np.hypot(dx, dy)
    return distance.argmin(axis=1), distance.min(axis=1)


class TestDetectSources:
    """Sources of a simulated and of a real image."""

    def test_finds_sources(self, survey):
        truth, _, table, segments = survey
        _, distance = match(truth, table)
        assert (distance < 2).mean() > 0.85
        assert len(table) == segments.n_labels
        # nothing is found that is not there
        dx = truth["x"].value - table["x"].value[:, np.newaxis]
        dy = truth["y"].value - table["y"].value[:, np.newaxis]
        assert (np.hypot(dx, dy).min(axis=1) < 5).mean() > 0.97

    def test_stars_are_no_larger_than_the_blur(self, survey):
        truth, _, table, _ = survey
        row, distance = match(truth, table)
        close = np.hypot(
            truth["x"].value - truth["x"].value[:, np.newaxis],
            truth["y"].value - truth["y"].value[:, np.newaxis],
        )
        np.fill_diagonal(close, np.inf)
        alone = (close.min(axis=1) > 20) & (distance < 1)
        compact = (table["flags"][row] & Flag.NOT_LARGER_THAN_PSF) > 0
        star = truth["kind"] == "star"
        large = truth["half_light_radius"].unmasked.value > 4
        assert (star & alone).sum() > 10
        assert compact[star & alone].mean() > 0.9
        assert compact[~star & alone & large].mean() < 0.1
        # a Gaussian of 3 pixels, made wider by the pixels
        assert_allclose(table.meta["detect_sources"]["psf_fwhm"], 3.1, rtol=0.1)

    def test_moments_are_those_of_photutils(self, survey):
        _, image, _, _ = survey
        bands = image.data - 50
        snr = bands.sum(axis=-1) / np.sqrt(2)
        table, segments = detect_sources(snr, kernel_fwhm=0, n_sigma=5)
        catalog = SourceCatalog(snr, segments)
        assert_allclose(table["x"].value, catalog.x_centroid, atol=0.05)
        assert_allclose(table["y"].value, catalog.y_centroid, atol=0.05)
        bright = (table["peak_snr"] > 30) & (table["axis_ratio"] < 0.8)
        angle = table["angle"][bright] - catalog.orientation[bright]
        assert_allclose(np.sin(angle), 0, atol=0.05)
        ratio = 1 / catalog.elongation[bright].value
        assert_allclose(table["axis_ratio"][bright], ratio, rtol=0.05)
        assert_allclose(table["flux"], catalog.segment_flux, rtol=0.05, atol=20)

    def test_columns(self, survey):
        _, image, table, _ = survey
        assert table["x"].unit == table["size"].unit == u.pix
        assert table["angle"].unit == table["ra"].unit == u.deg
        assert table["flux"].shape == (len(table), 2)
        assert all(table[name].info.description for name in table.colnames)
        assert_allclose(np.median(table["background"]), 50, atol=0.3)
        assert_allclose(np.median(table["background_rms"]), 1, atol=0.1)
        back = image.wcs.world_to_pixel_values(table["ra"].value, table["dec"].value)
        assert_allclose(back[0], table["x"].value, atol=1e-6)
        one, _ = detect_sources(image.data[..., 0])
        assert one["flux"].shape == (len(one),)

    def test_units(self, survey):
        image = survey[1]
        other, _ = detect_sources(NDData(image.data[..., 0], unit="nJy"))
        assert other["flux"].unit == u.nJy
        assert other["background_rms"].unit == u.nJy

    def test_truncated(self, survey):
        _, _, table, segments = survey
        edge = np.unique(
            np.concatenate(
                [
                    segments.data[[0, -1]].ravel(),
                    segments.data[:, 0],
                    segments.data[:, -1],
                ]
            )
        )
        found = table["label"][(table["flags"] & Flag.SOURCE_TRUNCATED) > 0]
        assert_array_equal(found, edge[edge > 0])

    def test_mask_and_nan(self, survey):
        """Bad pixels belong to no source, and cut sources are flagged."""
        _, image, table, _ = survey
        row = np.argmax(table["peak_snr"])
        x, y = (int(table[name][row].value) for name in ("x", "y"))
        mask = np.zeros(image.data.shape[:2], bool)
        mask[y - 3 : y + 4, x] = True
        data = image.data.copy()
        data[mask] = np.nan
        for options in ({"mask": mask}, {"image": data}):
            source = options.pop("image", image.data)
            new, segments = detect_sources(source, band_axis=2, **options)
            assert (segments.data[mask] == 0).all()
            near = np.hypot(new["x"].value - x, new["y"].value - y) < 6
            assert (new["flags"][near] & Flag.SOURCE_TRUNCATED).all()
        assert np.isfinite(new["flux"]).all()

    def test_nothing_there(self, rng):
        """Noise gives an empty table with all columns."""
        table, segments = detect_sources(rng.normal(size=(100, 100)), n_sigma=6)
        assert len(table) == 0
        assert segments is None
        assert "flux" in table.colnames
        assert table.meta["detect_sources"]["psf_fwhm"] is None
        assert len(detect_sources(np.ones((100, 100)))[0]) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_sigma": 0}, "n_sigma must be a positive"),
            ({"n_pixels": 0}, "n_pixels must be a positive"),
            ({"kernel_fwhm": -1}, "kernel_fwhm must be a non-negative"),
            ({"box_size": 2.5}, "box_size must be"),
            ({"psf_fwhm": 0}, "psf_fwhm must be a positive"),
            ({"mask": np.ones((80, 80))}, "background cannot be measured: 100%"),
        ],
    )
    def test_errors(self, rng, options, message):
        with pytest.raises(ValueError, match=message):
            detect_sources(rng.normal(size=(80, 80)), **options)

    def test_hubble(self):
        """The real image has at least 400 galaxies, and stars are told apart."""
        table, segments = detect_sources(hubble_deep_field())
        assert (table["flags"] == 0).sum() > 400
        assert ((table["flags"] & Flag.NOT_LARGER_THAN_PSF) > 0).sum() > 400
        assert 1.2 < table.meta["detect_sources"]["psf_fwhm"] < 2.2
        assert segments.n_labels == len(table)


class TestCleanCutouts:
    """Sky, neighbours and noise."""

    def test_inputs_are_kept(self, stack):
        before = stack.data.tobytes(), stack.mask.tobytes(), stack.error.tobytes()
        clean_cutouts(stack, neighbors="fill", noise="estimate")
        assert (
            stack.data.tobytes(),
            stack.mask.tobytes(),
            stack.error.tobytes(),
        ) == before
        assert stack.steps == ()

    def test_target_is_whole(self, stack):
        clean = clean_cutouts(stack, grow=3)
        target = stack.segmentation == stack.labels[:, np.newaxis, np.newaxis]
        new = clean.mask & ~stack.mask
        assert not new[target].any()
        others = (stack.segmentation > 0) & ~target
        assert clean.mask[others].all()
        touched = others.any(axis=(1, 2))
        assert_array_equal((clean.flags & Flag.NEIGHBOR) > 0, touched)
        assert not (clean.flags & Flag.NO_SOURCE).any()

    def test_sky(self, stack):
        """The sky level and scatter are right to a tenth of the noise."""
        table = measure_background(stack)
        good = table["n_pixels"][:, 0] > 500
        assert good.mean() > 0.9
        residual = table["background"][good] - 50
        assert abs(np.median(residual)) < 0.05
        assert_allclose(np.median(table["background_rms"][good]), 1, atol=0.03)
        # wings of sources add to what the noise alone would do
        assert (np.abs(residual) < 5 * table["background_err"][good]).mean() > 0.9
        clean = clean_cutouts(stack)
        assert_allclose(
            clean.data[good],
            stack.data[good] - table["background"][good][:, None, None],
            atol=1e-4,
        )
        assert_allclose(clean.meta["background"]["level"], 50, atol=0.1)

    @pytest.mark.parametrize("step", [None, 1.0, 2.0])
    def test_sky_of_noise(self, rng, step):
        """Level and error are right for noise, quantised or not."""
        data = 20.3 + 1.5 * rng.normal(size=(400, 24, 24))
        data = data if step is None else np.round(data / step) * step
        table = measure_background(CutoutStack(data), n_sigma=50)
        rms = np.hypot(1.5, 0 if step is None else step / np.sqrt(12))
        assert_allclose(np.mean(table["background"]), 20.3, atol=0.02)
        assert_allclose(np.mean(table["background_rms"]), rms, rtol=0.02)
        pull = (table["background"] - 20.3) / table["background_err"]
        assert_allclose(np.std(pull), 1, atol=0.1)

    def test_sky_is_clipped(self, rng):
        """Bright pixels that no segmentation knows of do not lift the sky."""
        data = rng.normal(size=(100, 32, 32))
        data[:, :4, :8] += 20
        stack = CutoutStack(data, segmentation=np.zeros((100, 32, 32), int))
        table = measure_background(stack)
        median = [sigma_clipped_stats(one, maxiters=None)[1] for one in data]
        assert abs(np.mean(table["background"])) < 0.02
        assert_allclose(table["background"], median, atol=0.15)

    def test_fill(self, stack):
        clean = clean_cutouts(stack, neighbors="fill", seed=5)
        assert_array_equal(clean.mask, stack.mask)
        masked = clean_cutouts(stack).mask & ~stack.mask
        filled = clean.data[masked]
        assert_allclose(filled.mean(), 0, atol=0.03)
        assert_allclose(filled.std(), 1, atol=0.05)
        assert_array_equal(clean.data[~masked], clean_cutouts(stack).data[~masked])
        again = clean_cutouts(stack, neighbors="fill", seed=5)
        assert_array_equal(again.data, clean.data)
        other = clean_cutouts(stack, neighbors="fill", seed=6)
        assert (other.data[masked] != filled).mean() > 0.99

    @pytest.mark.parametrize("labelled", [True, False])
    def test_rows_do_not_depend_on_each_other(self, stack, labelled):
        if not labelled:
            stack = stack.replace(segmentation=None, labels=None)
        options = {"neighbors": "fill", "noise": "estimate"}
        clean = clean_cutouts(stack, **options)
        rows = np.random.default_rng(1).permutation(len(stack))[:20]
        part = clean_cutouts(stack[rows], **options)
        for name in ("data", "mask", "error", "flags", "segmentation", "labels"):
            assert_array_equal(getattr(part, name), getattr(clean, name)[rows])

    def test_without_segmentation(self, stack):
        """Stamps that are segmented one by one give nearly the same masks."""
        alone = clean_cutouts(stack.replace(segmentation=None, labels=None))
        assert alone.segmentation is not None
        whole = clean_cutouts(stack)
        assert (alone.mask == whole.mask).mean() > 0.93
        assert (alone.labels > 0).mean() > 0.95

    def test_no_source(self, rng):
        """A cutout of noise is flagged, and nothing else happens to it."""
        stack = CutoutStack(rng.normal(size=(3, 32, 32)))
        clean = clean_cutouts(stack, n_sigma=6)
        assert_array_equal(clean.flags, [Flag.NO_SOURCE] * 3)
        assert not clean.mask.any()

    def test_bad_rows_pass_through(self, rng):
        data = rng.normal(size=(4, 16, 16)) + 5
        data[1] = np.nan
        data[3] = 7
        stack = CutoutStack(data, mask=np.zeros((4, 16, 16)))
        clean = clean_cutouts(stack, noise="estimate", quantization_step=1)
        assert_array_equal(clean.flags[1], stack.flags[1])
        assert np.isnan(clean.data[1]).all()
        assert_array_equal(clean.data[3], 0)
        assert_allclose(clean.error[3], 1 / np.sqrt(12), rtol=1e-6)
        good = clean_cutouts(stack[[0, 2]], noise="estimate", quantization_step=1)
        assert_array_equal(clean.data[[0, 2]], good.data)

    def test_options_off(self, stack):
        clean = clean_cutouts(stack, background=None, neighbors=None)
        for name in ("data", "mask", "error", "flags"):
            assert_array_equal(getattr(clean, name), getattr(stack, name))

    def test_noise(self, stack):
        bare = stack.replace(error=None)
        assert clean_cutouts(bare).error is None
        clean = clean_cutouts(bare, noise="estimate", quantization_step=0.5)
        assert_allclose(np.median(clean.error), np.hypot(1, 0.5 / 12**0.5), rtol=0.03)
        assert (clean.error[0] == clean.error[0, 0, 0]).all()
        kept = clean_cutouts(stack, quantization_step=0.5)
        good = ~stack.mask
        expected = np.hypot(stack.error, 0.5 / np.sqrt(12))
        assert_allclose(kept.error[good], expected[good], rtol=1e-6)

    def test_steps(self, stack):
        clean = clean_cutouts(stack, grow=1)
        (step,) = clean.steps
        assert step["name"] == "clean_cutouts"
        again = clean_cutouts(stack, **json.loads(json.dumps(step["parameters"])))
        assert_array_equal(again.data, clean.data)
        assert again.preprocessing == clean.preprocessing

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"background": "median"}, "background must be one of"),
            ({"neighbors": "remove"}, "neighbors must be one of"),
            ({"noise": True}, "noise must be one of"),
            ({"grow": -1}, "grow must be an integer >= 0"),
            ({"n_sigma": 0}, "n_sigma must be a positive"),
            ({"quantization_step": -1}, "quantization_step must be a positive"),
            ({"seed": -1}, "seed must be an integer"),
        ],
    )
    def test_errors(self, stack, options, message):
        with pytest.raises(ValueError, match=message):
            clean_cutouts(stack, **options)

    def test_neighbor_flux(self, rng):
        """Masks catch nearly all of the neighbours and little of the targets."""
        # so bright that their own noise does not matter once they are faded
        _, bright = make_galaxies(
            120, shape=64, snr=(5e3, 2e4), half_light_radius=(2, 5), seed=4
        )
        light = bright.data / 100
        target, neighbor = light[:60], light[60:].copy()
        for i, (dy, dx) in enumerate(rng.choice([-18, 18], (60, 2))):
            neighbor[i] = np.roll(neighbor[i], (dy, dx), axis=(0, 1))
        data = target + neighbor + rng.normal(size=target.shape)
        mask = clean_cutouts(CutoutStack(data)).mask
        caught, lost = (
            (mask * flux).sum(axis=(1, 2, 3)) / flux.sum(axis=(1, 2, 3))
            for flux in (neighbor, target)
        )
        assert np.median(caught) > 0.9
        assert np.median(lost) < 0.02


def test_progress_bars_of_photutils(monkeypatch):
    """Neither the old argument nor its deprecation is heard of."""
    original = detection.deblend_sources
    seen = []

    def newer(data, segments, n_pixels, *, contrast=0.001, progress_bar=None):
        if progress_bar is not None:
            warnings.warn("deprecated", DeprecationWarning, stacklevel=2)
        seen.append("newer")
        return original(data, segments, n_pixels, contrast=contrast, progress_bar=False)

    def newest(data, segments, n_pixels, *, contrast=0.001):
        seen.append("newest")
        return original(data, segments, n_pixels, contrast=contrast, progress_bar=False)

    _, image = make_survey(8, n_stars=2, shape=(120, 120), seed=1)
    expected = detect_sources(image)[1].data
    for function in (newer, newest):
        monkeypatch.setattr(detection, "deblend_sources", function)
        assert_array_equal(detect_sources(image)[1].data, expected)
    assert seen == ["newer", "newest"]


class TestFlaws:
    """Saturation, cosmic rays, and what is told of targets."""

    def test_saturation(self, rng):
        data = rng.normal(size=(3, 20, 20, 2)) + 10
        data[1, 10, 12, 0] = 300
        stack = CutoutStack(data)
        clean = clean_cutouts(stack, saturation=255, neighbors=None)
        expected = np.zeros(stack.mask.shape, bool)
        expected[1, 9:12, 11:14, 0] = True
        assert_array_equal(clean.mask, expected)
        assert_array_equal((clean.flags & Flag.SATURATED) > 0, [0, 1, 0])
        other = clean_cutouts(stack, saturation=[1e4, 255], neighbors=None)
        assert not other.mask.any()
        again = clean_cutouts(stack, **clean.steps[0]["parameters"])
        assert_array_equal(again.mask, clean.mask)

    @pytest.mark.parametrize("with_error", [True, False])
    def test_cosmic_rays(self, with_error):
        """Tracks are found, and stars and galaxies left alone."""
        truth, image = make_survey(
            12, n_stars=12, shape=(256, 256), snr=(50, 500), cosmic_rays=30, seed=4
        )
        if not with_error:
            image.uncertainty = None
        table = Table({"x": [63.5, 191.5] * 2, "y": [63.5, 63.5, 191.5, 191.5]})
        stack = make_cutouts(image, table, 128)
        clean = clean_cutouts(stack, neighbors=None, cosmic_rays=True)
        hit = make_cutouts(image.meta["cosmic_rays"][..., 0] * 1.0, table, 128).data > 0
        new = clean.mask & ~stack.mask
        assert new[hit].mean() > 0.95
        assert new[~hit].mean() < 1e-3
        assert (clean.flags & Flag.COSMIC_RAY).all()
        assert len(truth) == 24

    def test_columns(self, survey, stack):
        """S/N, sky, distance and neighbours are those of the catalogue."""
        _, _, table, _ = survey
        clean = clean_cutouts(stack)
        n = len(stack)
        for name in ("background", "background_err", "background_rms"):
            assert clean.columns[name].shape == (n, 2)
        levels = measure_background(stack)["background"]
        assert_array_equal(clean.columns["background"], levels)
        flux = table["flux"] / np.sqrt(table["area"].value)[:, np.newaxis]
        snr = np.sqrt(0.5) * flux.sum(axis=1)
        inside = (clean.flags & Flag.PARTIAL) == 0
        assert_allclose(clean.columns["snr"][inside], snr[inside], rtol=0.15)
        assert np.median(clean.columns["center_distance"]) < 0.3
        alone = (clean.flags & Flag.NEIGHBOR) == 0
        assert_array_equal(clean.columns["neighbor_fraction"][alone & inside], 0)
        crowded = (clean.flags & Flag.CROWDED) > 0
        fraction = np.nan_to_num(clean.columns["neighbor_fraction"])
        assert_array_equal(crowded, fraction > 1)
        assert 0 < crowded.sum() < n

    def test_low_snr_and_off_center(self, rng):
        data = rng.normal(size=(3, 40, 40))
        y, x = np.indices((40, 40))
        blob = np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 18)
        segmentation = np.zeros(data.shape, int)
        segmentation[:, np.hypot(x - 20, y - 20) < 7] = 1
        data[0] += 0.1 * blob
        data[1] += 20 * blob
        segmentation[2] = np.roll(segmentation[2], 6, axis=1)
        data[2] += np.roll(20 * blob, 6, axis=1)
        stack = CutoutStack(data, segmentation=segmentation, labels=[1, 1, 1])
        flags = clean_cutouts(stack).flags
        assert_array_equal((flags & Flag.LOW_SNR) > 0, [1, 0, 0])
        assert_array_equal((flags & Flag.OFF_CENTER)[1:] > 0, [0, 1])

    def test_no_background(self, rng):
        data = rng.normal(size=(2, 20, 20))
        full = np.ones(data.shape, int)
        full[1] = 0
        full[1, 8:12, 8:12] = 1
        clean = clean_cutouts(CutoutStack(data, segmentation=full))
        assert_array_equal((clean.flags & Flag.NO_BACKGROUND) > 0, [True, False])
        assert np.isnan(clean.columns["background"][0]).all()

    def test_global_background(self, survey, stack):
        """One level for all; it is the sky, and so is its uncertainty."""
        local = clean_cutouts(stack)
        clean = clean_cutouts(stack, background="global")
        columns = clean.columns
        for name in ("background", "background_err"):
            assert columns[name].shape == (len(stack), 2)
            assert (columns[name] == columns[name][0]).all()
        level, error = columns["background"][0], columns["background_err"][0]
        assert (error > 0).all()
        assert (error < np.median(local.columns["background_err"], axis=0)).all()
        # light below the threshold, and 0.1 sigma of the sky at most
        assert_allclose(level, 50, atol=0.1)
        assert_array_equal(columns["background_rms"], local.columns["background_rms"])
        assert_array_equal(clean.mask, local.mask)
        offset = (stack.data - clean.data)[~stack.mask.any(axis=(1, 2, 3))]
        assert_allclose(offset, np.broadcast_to(level, offset.shape), atol=2e-5)
        assert_allclose(clean.meta["background"]["level"], level)
        again = clean_cutouts(stack, **clean.steps[0]["parameters"])
        assert_array_equal(again.data, clean.data)
        # a model prepares new cutouts in the same way
        prepared = stack.prepare(clean.preprocessing)
        assert_array_equal(prepared.data, clean.data)

    def test_global_background_error(self, rng):
        """The uncertainty is the scatter over many stacks, varying sky or not."""
        for ripple in (0, 0.5):
            levels, errors = [], []
            for _ in range(60):
                data = rng.normal(size=(30, 16, 16)).astype(np.float32)
                data += ripple * rng.normal(size=(30, 1, 1))
                empty = np.zeros(data.shape, int)
                clean = clean_cutouts(
                    CutoutStack(data, segmentation=empty), background="global"
                )
                levels.append(clean.columns["background"][0, 0])
                errors.append(clean.columns["background_err"][0, 0])
            assert_allclose(np.mean(errors), np.std(levels), rtol=0.25)

    def test_global_background_of_tiles(self, rng):
        """Tiles have each their own sky; rows without sky pixels get it, too."""
        data = rng.normal(size=(9, 20, 20)).astype(np.float32)
        data[4:] += 7
        full = np.zeros(data.shape, int)
        full[[0, 4]] = 1
        mask = np.zeros(data.shape, bool)
        mask[8] = True
        stack = CutoutStack(
            data, segmentation=full, mask=mask, columns={"tile": ["a"] * 4 + ["b"] * 5}
        )
        clean = clean_cutouts(stack, background="global", noise="estimate")
        levels = clean.columns["background"][:, 0]
        assert_allclose(levels[:8], [0] * 4 + [7] * 4, atol=0.2)
        assert len(np.unique(levels[:8])) == 2
        assert_allclose(clean.columns["background_rms"][:8], 1, atol=0.15)
        assert not (clean.flags & (Flag.NO_BACKGROUND | Flag.BAD_ERROR))[:8].any()
        # without pixels there is nothing to measure
        assert np.isnan(levels[8])
        assert_array_equal(clean.data[8], stack.data[8])
        # nor without any sky
        lost = clean_cutouts(stack[[0, 4]], background="global")
        assert (lost.flags & Flag.NO_BACKGROUND).all()
        assert_array_equal(lost.data, stack.data[[0, 4]])
        assert len(clean_cutouts(stack[:0], background="global")) == 0

    def test_inpaint(self, stack):
        """Neighbours are continued smoothly, bad pixels and the target kept."""
        some = stack[:6]
        clean = clean_cutouts(some, neighbors="inpaint")
        masked = clean_cutouts(some)
        assert_array_equal(clean.mask, some.mask)
        new = masked.mask & ~some.mask
        assert_array_equal(clean.data[~new], masked.data[~new])
        plain = clean_cutouts(some, neighbors=None)
        assert clean.data[new].std() < 0.5 * plain.data[new].std()

    def test_errors(self, stack):
        with pytest.raises(ValueError, match="one for each of 2 bands"):
            clean_cutouts(stack, saturation=[1, 2, 3])


@pytest.mark.parametrize("radius", [*range(6), 40])
@pytest.mark.parametrize("shape", [(20, 31), (6, 64), (31, 150)])
def test_dilate(rng, radius, shape):
    """Widening by a disc is what scipy does, also across words and edges."""
    mask = rng.random((5, *shape)) < (0.01 if radius < 9 else 3e-4)
    y, x = np.indices((2 * radius + 1,) * 2) - radius
    disc = np.hypot(y, x) <= radius + 0.5
    expected = ndimage.binary_dilation(mask, disc[np.newaxis])
    before = mask.copy()
    assert_array_equal(dilate(mask, radius), expected)
    assert_array_equal(mask, before)


def test_dilate_nothing():
    """No cutouts are widened to none."""
    assert dilate(np.zeros((0, 5, 7), bool), 2).shape == (0, 5, 7)


def test_pictures_get_different_noise(rng):
    """Whole numbers have few digits; their checksums differ all the same."""
    data = rng.integers(0, 256, (500, 32, 32, 1)).astype(np.float32)
    assert len(np.unique(noise_offsets(data))) > 490


def test_planes_that_stay_are_shared(rng):
    """Masking neighbours copies no pixels, and changes none of the input."""
    labels = np.zeros((3, 20, 20), np.int32)
    labels[:, 8:12, 8:12], labels[:, 2:5, 2:5] = 1, 2
    stack = CutoutStack(rng.normal(size=(3, 20, 20)), segmentation=labels)
    before = stack.mask.copy()
    clean = clean_cutouts(stack, background=None)
    assert np.shares_memory(clean.data, stack.data)
    assert_array_equal(stack.mask, before)
    assert clean.mask[:, 2:5, 2:5].all()
    assert not np.shares_memory(clean_cutouts(stack).data, stack.data)
    # a constant image has no scatter: errors of zero mask it, and only the new stack
    flat = stack.replace(data=np.ones((3, 20, 20)))
    filled = clean_cutouts(flat, neighbors="fill", noise="estimate")
    assert filled.mask.all()
    assert not flat.mask.any()
    assert np.shares_memory(clean_cutouts(flat, neighbors="fill").mask, flat.mask)


def test_galaxies_without_neighbors():
    """An isolated galaxy loses next to nothing."""
    _, stack = make_galaxies(50, shape=48, seed=3)
    clean = clean_cutouts(stack)
    target = clean.segmentation == clean.labels[:, np.newaxis, np.newaxis]
    lost = (clean.mask & ~stack.mask).mean(axis=(1, 2, 3))
    assert (clean.labels > 0).all()
    assert np.median(lost) < 0.01
    assert target.any(axis=(1, 2)).all()


def test_sdss(data_path):
    """Real SDSS galaxies keep their light; the sky is zero within its noise."""
    from astrovae.images import read_image

    for folder in sorted((data_path / "sdss_r_gadotti").iterdir())[:3]:
        image, sigma, mask = (
            read_image(folder / f"{name}.fit") for name in ("image", "sigma", "mask")
        )
        table, segments = detect_sources(image, mask=mask.data > 0)
        center = np.hypot(table["x"].value - 128, table["y"].value - 128)
        stack = make_cutouts(
            image, table[[center.argmin()]], 128, error=sigma, segmentation=segments
        )
        clean = clean_cutouts(stack)
        assert clean.labels[0] == table["label"][center.argmin()]
        target = clean.segmentation[0] == clean.labels[0]
        assert not (clean.mask[0, ..., 0] & ~stack.mask[0, ..., 0])[target].any()
        assert len(Table(table)) > 3
