# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of stars and galaxies, told apart by their width beside the PSF."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.datasets import make_survey
from astrovae.flags import Flag
from astrovae.images import CutoutStack, clean_cutouts, detect_sources, make_cutouts
from astrovae.images._targets import excess_variance, measure_targets


def draw(variance, center, shape=(31, 33)):
    """Return a Gaussian of unit flux."""
    y, x = np.indices(shape)
    squared = (x - center[0]) ** 2 + (y - center[1]) ** 2
    return np.exp(-squared / (2 * variance)) / (2 * np.pi * variance)


class TestExcessVariance:
    """Gaussians, whose widths are known."""

    variance = 4.0

    def measure(self, images, bad=None, noise=1e-4, centers=None):
        images = np.asarray(images, float)[..., np.newaxis]
        n = len(images)
        bad = np.zeros(images.shape, bool) if bad is None else bad[..., np.newaxis]
        psf = draw(self.variance, (12, 12), (25, 25))[np.newaxis, ..., np.newaxis]
        centers = np.tile([16.0, 15.0], (n, 1)) if centers is None else centers
        return excess_variance(images, bad, psf, np.full((n, 1), noise), centers)

    def test_width(self):
        """A little blur has its variance, whatever the flux."""
        for added in (0, 0.05, 0.1):
            images = [flux * draw(self.variance + added, (16, 15)) for flux in (1, 1e6)]
            excess, _ = self.measure(images)
            assert_allclose(excess * self.variance, added, atol=0.01)

    def test_off_pixel(self):
        """A point source between pixels is a point source."""
        images = [draw(self.variance, (16 + d, 15 - d)) for d in (0.1, 0.3, 0.5)]
        excess, _ = self.measure(images)
        assert_allclose(excess, 0, atol=0.02)

    def test_masked(self):
        """Bad pixels do not matter, unless most of the light is lost."""
        y, x = np.indices((31, 33))
        image = draw(self.variance, (16, 15))
        hole = np.hypot(x - 17, y - 16) < 1.5
        gone = np.hypot(x - 16, y - 15) < 4
        images = [np.where(hole, 99.0, image), np.where(gone, 99.0, image)]
        excess, error = self.measure(images, np.array([hole, gone]))
        assert_allclose(excess[0], 0, atol=0.01)
        assert np.isnan([excess[1], error[1]]).all()

    def test_errors(self, rng):
        """They are those of many trials."""
        noise = 0.002
        images = draw(self.variance, (16.2, 14.9)) + noise * rng.normal(
            size=(600, 31, 33)
        )
        excess, error = self.measure(images, noise=noise)
        assert_allclose(np.std(excess), np.median(error), rtol=0.1)
        assert abs(np.mean(excess)) < 0.2 * np.median(error)

    def test_no_position(self):
        image = draw(self.variance, (16, 15))
        centers = np.array([[np.nan, np.nan], [-30.0, 15.0], [16.0, 15.0]])
        excess, _ = self.measure([image] * 3, centers=centers)
        assert_array_equal(np.isfinite(excess), [False, False, True])


@pytest.mark.parametrize(("fwhm", "brightest"), [(2.5, 3000), (4.0, 200)])
def test_stars(fwhm, brightest):
    """Stars of all magnitudes are flagged, galaxies hardly."""
    truth, image = make_survey(
        120,
        n_stars=120,
        companions=0.05,
        shape=(1700, 1700),
        snr=(15, brightest),
        kinds=("sersic", "bulge_disc", "spiral", "clumpy_disc"),
        gain=5.0,
        background=100.0,
        psf_fwhm=fwhm,
        seed=5,
    )
    _, segments = detect_sources(image, n_sigma=2.0, kernel_fwhm=fwhm)
    stack = make_cutouts(image, truth, 48, segmentation=segments)
    clean = clean_cutouts(stack)
    small = (clean.flags & Flag.NOT_LARGER_THAN_PSF) > 0
    seen = (clean.flags & (Flag.LOW_SNR | Flag.NO_SOURCE)) == 0
    star = np.asarray(truth["kind"]) == "star"
    flux = truth["flux"].value
    alone = truth["neighbor_flux"].value < 0.01 * flux
    bright = flux > np.median(flux[star])
    for some in (bright, ~bright):
        assert small[seen & star & alone & some].mean() > 0.93
    assert small[seen & star].mean() > 0.9
    assert small[seen & ~star].mean() < 0.05
    clear = clean.columns["snr"] > 20
    assert small[clear & ~star].mean() < 0.02
    bare = clean_cutouts(stack.replace(psf=None))
    assert not (bare.flags & Flag.NOT_LARGER_THAN_PSF).any()


def test_stars_of_two_bands(rng):
    """One PSF per row and band; a star is wide in a band with a wide PSF."""
    variances = rng.uniform(2, 5, (12, 2))
    psf = np.array(
        [[draw(v, (10, 10), (21, 21)) for v in pair] for pair in variances]
    ).transpose(0, 2, 3, 1)
    images = np.array([[300 * draw(v, (16, 15)) for v in pair] for pair in variances])
    images[6:] = np.array(
        [[300 * draw(v + 3, (16, 15)) for v in pair] for pair in variances[6:]]
    )
    data = images.transpose(0, 2, 3, 1) + rng.normal(scale=0.1, size=(12, 31, 33, 2))
    segmentation = (images.sum(axis=1) > 1).astype(int)
    stack = CutoutStack(data, psf=psf, segmentation=segmentation)
    small = (clean_cutouts(stack).flags & Flag.NOT_LARGER_THAN_PSF) > 0
    assert_array_equal(small, np.arange(12) < 6)


def test_no_sky(rng):
    """Where sources leave no sky, errors tell what the noise is."""
    y, x = np.indices((48, 48))
    radius = np.hypot(x - 24, y - 24)
    light = 60 * np.exp(-(radius**2) / (2 * 5.0**2))
    spots = [(24 + 13 * np.cos(a), 24 + 13 * np.sin(a)) for a in (0, 2, 4)]
    light += sum(
        30 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 8) for at in spots
    )
    data = light + rng.normal(size=light.shape)
    # as the footprint of a blend: nothing else is known
    mask = light < 1
    stack = CutoutStack(
        data[np.newaxis], mask=mask[np.newaxis], error=np.ones((1, 48, 48))
    )
    place = tuple(np.rint(spots).astype(int).T[::-1])
    blind = clean_cutouts(stack.replace(error=None))
    clean = clean_cutouts(stack)
    assert clean.mask[0, *place, 0].all()
    assert not blind.mask[0, *place, 0].all()
    target = clean.segmentation[0] == clean.labels[0]
    assert not clean.mask[0, target & ~mask].any()
    assert target[24, 24]


def test_no_columns_without_background(rng):
    """If the sky is not subtracted, nothing is measured, however neighbours go."""
    data = rng.normal(loc=5, size=(3, 20, 20))
    labels = np.zeros(data.shape, int)
    labels[:, 8:12, 8:12], labels[:, 2:6, 2:6] = 1, 2
    data[labels == 2] += 100
    stack = CutoutStack(data, segmentation=labels)
    for neighbors in ("mask", "fill"):
        clean = clean_cutouts(stack, background=None, neighbors=neighbors)
        assert not clean.columns
    assert np.abs(clean.data[labels == 2] - 5).max() < 5
    assert_array_equal(clean.data[labels == 1], stack.data[labels == 1])
    assert {"snr", "background"} <= clean_cutouts(stack).columns.keys()


def test_overlap_is_the_light_of_symmetric_neighbors():
    """What a neighbour has on the other side of the border, if it touches."""
    y, x = np.mgrid[:40, :61]
    widths, at = np.array([2.5, 3.0, 2.5]), np.array([20.0, 30.0, 48.0])
    parts = [
        np.exp(-0.5 * ((x - place) ** 2 + (y - 20) ** 2) / width**2)
        for place, width in zip(at, widths, strict=True)
    ]
    target, near, far = 50 * parts[0], 20 * parts[1], 20 * parts[2]
    both = target + near > 1
    segmentation = np.where(both, np.where(x < 25, 1, 2), 0)
    segmentation[far > 1] = 3
    stack = CutoutStack(
        np.array([target + near + far, target + far]),
        segmentation=[segmentation, np.where(segmentation == 2, 0, segmentation)],
        labels=[1, 1],
    )

    def overlaps(stack):
        sky, rms = np.zeros((len(stack), 1)), np.ones((len(stack), 1))
        columns, _, _ = measure_targets(
            stack.data,
            sky,
            stack.mask,
            stack.segmentation,
            stack.labels,
            rms,
            np.full((len(stack), 2), 20.0),
        )
        return columns["neighbor_overlap"]

    touched, alone = overlaps(stack)
    # as far as its own isophote reaches
    inside = segmentation == 1
    expected = near[inside & (near > 1)].sum() / stack.data[0, ..., 0][inside].sum()
    assert expected > 0.01
    assert_allclose(touched, expected, rtol=0.1)
    assert alone == 0
    assert overlaps(stack[:0]).shape == (0,)
