# Licensed under a 3-clause BSD style license - see LICENSE
"""Statistics of galaxies against GalSim, statmorph and closed forms."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from astrovae.datasets import make_galaxies
from astrovae.diagnostics import measure_galaxies, parametric_galaxies
from astrovae.images import CutoutStack


def gaussian(
    shape=(48, 48), sigma=(5.0, 3.0), angle=0.5, center=(23.8, 23.1), flux=1.0
):
    """Give an elliptical Gaussian, sampled at the middle of pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array(center[::-1])[:, None, None]
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    image = np.exp(-0.5 * ((u / sigma[0]) ** 2 + (v / sigma[1]) ** 2))
    return flux * image / (2 * np.pi * sigma[0] * sigma[1])


def test_moments_of_a_gaussian():
    """Ellipticity, its direction, size, fourth moment, magnitude and colour."""
    pytest.importorskip("galsim")
    data = np.stack([gaussian(flux=10.0), gaussian(flux=25.0)], axis=-1)[None]
    stack = CutoutStack(data, bands=["g", "r"], pixel_scale=0.2)
    (row,) = measure_galaxies(stack)
    e = (25 - 9) / (25 + 9)
    assert_allclose(row["e"], e, rtol=1e-4)
    assert_allclose(
        [row["e1"], row["e2"]], e * np.array([np.cos(1), np.sin(1)]), rtol=1e-4
    )
    assert_allclose(row["log_sigma"], np.log10(0.2 * np.sqrt(15)), atol=1e-4)
    assert_allclose(row["rho4"], 2, rtol=1e-3)
    assert_allclose(row["mag"], -2.5, atol=1e-3)
    assert_allclose(row["color_g_r"], 2.5 * np.log10(2.5), atol=1e-4)
    (red,) = measure_galaxies(stack, band="r")
    assert_allclose(red["mag"], -2.5 * np.log10(25), atol=1e-3)


def test_masked_pixels_and_bands_do_not_count():
    """A cosmic ray under the mask changes nothing; a missing band has no colour."""
    pytest.importorskip("galsim")
    data = np.repeat(gaussian(flux=10.0)[None, ..., None], 3, axis=0)
    data = np.repeat(data, 2, axis=-1)
    mask = np.zeros(data.shape, bool)
    data[1, 20, 20] = 1e4
    mask[1, 20, 20] = True
    mask[2, ..., 1] = True
    stack = CutoutStack(data, mask=mask)
    table = measure_galaxies(stack)
    assert_allclose(table["e"][1], table["e"][0], rtol=1e-3)
    assert_allclose(table["mag"][1], table["mag"][0], atol=1e-3)
    assert list(table["color_band_0_band_1"].mask) == [False, False, True]
    assert not table["mag"].mask.any()
    red = measure_galaxies(stack, band="band_1")
    assert list(red["e"].mask) == [False, False, True]


def test_what_is_no_galaxy_is_masked():
    """Empty and noisy cutouts have no numbers, and stop nothing."""
    pytest.importorskip("galsim")
    data = np.zeros((3, 32, 32))
    data[2] = gaussian((32, 32), center=(15.5, 15.5), sigma=(2, 2))
    data[1] = -data[2]
    table = measure_galaxies(CutoutStack(data), measure="both")
    for name in ("e", "mag", "gini", "asymmetry"):
        assert list(table[name].mask) == [True, True, False], name
    assert len(measure_galaxies(CutoutStack(data[:0]), measure="both")) == 0


def test_concentration_of_known_profiles():
    """Gaussians have closed-form radii of 20 and 80 per cent."""
    data = gaussian((96, 96), sigma=(7, 7), center=(47.3, 47.9))[None]
    table = measure_galaxies(CutoutStack(data), measure="morphology")
    # of the flux within 1.5 Petrosian radii: eta = s exp(-s) / (1 - exp(-s)) is 0.2
    from scipy.optimize import brentq

    square = brentq(lambda s: s * np.exp(-s) / (1 - np.exp(-s)) - 0.2, 0.1, 10)
    total = 1 - np.exp(-square * 1.5**2)
    r20, r80 = (np.sqrt(-np.log(1 - share * total)) for share in (0.2, 0.8))
    assert_allclose(table["concentration"], 5 * np.log10(r80 / r20), rtol=5e-3)
    assert_allclose(table["asymmetry"], 0, atol=2e-3)


def test_asymmetry_of_a_planted_companion():
    """A companion is counted once at its place and once opposite; noise is not."""
    image = gaussian((96, 96), sigma=(6, 6), center=(47.5, 47.5), flux=100.0)
    companion = gaussian((96, 96), sigma=(1.5, 1.5), center=(55.0, 47.5), flux=4.0)
    rng = np.random.default_rng(1)
    noise = 0.004
    noisy = image + companion + noise * rng.normal(size=(8, 96, 96))
    stack = CutoutStack(
        np.concatenate([(image + companion)[None], noisy]),
        error=np.full((9, 96, 96), noise),
    )
    clean = CutoutStack(stack.data[:1])
    (truth,) = measure_galaxies(clean, measure="morphology")["asymmetry"]
    # twice the share of the companion, about the centre of the galaxy
    assert_allclose(truth, 2 * 4 / 104, atol=0.01)
    found = measure_galaxies(stack[1:], measure="morphology")["asymmetry"]
    assert_allclose(found.mean(), truth, atol=0.015)


def test_morphology_of_statmorph():
    """Round and bright galaxies have the values that statmorph gives them."""
    statmorph = pytest.importorskip("statmorph")
    from scipy.ndimage import gaussian_filter, label

    truth, stack = make_galaxies(
        60, shape=96, snr=(500, 1000), half_light_radius=(6, 8), seed=1
    )
    stack = stack[np.asarray(truth["axis_ratio"]) > 0.7][:10]
    table = measure_galaxies(stack, measure="morphology")
    for image, error, row in zip(stack.data[..., 0], stack.error[..., 0], table):
        labels, _ = label(gaussian_filter(image, 2) > 0.5)
        segment = (labels == labels[48, 48]).astype(int)
        peer = statmorph.SourceMorphology(
            image.astype(float), segment, 1, weightmap=error.astype(float)
        )
        assert_allclose(row["concentration"], peer.concentration, atol=0.02)
        assert_allclose(row["gini"], peer.gini, atol=0.04)
        assert_allclose(row["m20"], peer.m20, atol=0.2)
        assert_allclose(row["asymmetry"], peer.asymmetry, atol=0.05)


def test_parametric_galaxies_are_those_of_the_simulation():
    """GalSim and the package's own renderer draw the same Sersic profiles."""
    pytest.importorskip("galsim")
    truth, stack = make_galaxies(
        30, shape=(48, 52), bands=("g", "r"), snr=(100, 300), seed=3
    )
    single = np.asarray(truth["kind"]) == "sersic"
    truth, stack = truth[single], stack[single]
    drawn = parametric_galaxies(truth, stack, noise=0.0)
    residual = (drawn.data - stack.data) / stack.error
    assert_allclose(np.square(residual).mean(), 1, atol=0.02)
    assert drawn.bands == stack.bands
    assert drawn.pixel_scale == stack.pixel_scale
    noisy = parametric_galaxies(truth, stack, seed=5)
    noise = (noisy.data - drawn.data) / stack.error
    assert_allclose(noise.std(), 1, atol=0.02)
    again = parametric_galaxies(truth, stack, seed=5)
    np.testing.assert_array_equal(noisy.data, again.data)


@pytest.mark.parametrize(("index", "radius"), [(1.0, 3.0), (4.0, 2.0), (6.0, 0.1)])
def test_profiles_without_psf(index, radius):
    """Averages over pixels, also of cusps, whose Fourier transforms are too large."""
    pytest.importorskip("galsim")
    from astropy.table import Table
    from scipy.special import gamma, gammaincinv

    row = {"half_light_radius": radius, "sersic_index": index, "axis_ratio": 0.5}
    table = Table([{**row, "angle": 0.0}])
    table["flux"] = [[1.0, -3.0]]
    blank = CutoutStack(np.zeros((1, 15, 15, 2)))
    drawn = parametric_galaxies(table, blank, noise=0.0).data[0]
    b = gammaincinv(2 * index, 0.5)
    center = b ** (2 * index) / (np.pi * index * radius**2 * gamma(2 * index))
    side = np.arange(15 * 40) / 40 - 7.5 + 0.0125
    r = np.hypot(side, side[:, None] / 0.5) / radius
    # of unit flux: 2 pi n q R^2 b^(-2n) Gamma(2n) times the central brightness
    light = center * np.exp(-b * r ** (1 / index))
    expected = light.reshape(15, 40, 15, 40).mean(axis=(1, 3))
    away = np.hypot(*np.mgrid[-7:8, -7:8]) > 1.5
    assert_allclose(drawn[away, 0], expected[away], rtol=0.01, atol=1e-6)
    assert_allclose(drawn[..., 1], -3 * drawn[..., 0], rtol=1e-5)


def test_profiles_far_larger_than_cutouts():
    """Light is left out where none of it is in the cutout, and absurd fits, too."""
    galsim = pytest.importorskip("galsim")
    from astropy.table import Table

    _, stack = make_galaxies(3, shape=32, seed=1)
    table = Table({"flux": [1e4] * 3, "half_light_radius": [20.0, 3e4, 3e4]})
    table["sersic_index"] = [6.2, 6.2, 0.5]
    table["axis_ratio"], table["angle"], table["x"], table["y"] = 0.3, 40.0, 14.0, 19.0
    drawn = parametric_galaxies(table, stack, noise=0)
    assert list(drawn.mask.all(axis=(1, 2, 3))) == [False, False, True]
    assert np.isfinite(drawn.data).all()
    # in one piece
    galaxy = galsim.Sersic(6.2, half_light_radius=20.0 * 0.3**0.5, flux=1e4)
    galaxy = galaxy.shear(q=0.3, beta=40 * galsim.degrees).shift(-1.5, 3.5)
    psf = galsim.Image(stack.psf[0, ..., 0].astype(float))
    psf = galsim.InterpolatedImage(psf, scale=1.0, flux=1.0, use_true_center=False)
    whole = galsim.Convolve(galaxy, psf)
    whole = whole.drawImage(nx=32, ny=32, scale=1.0, method="no_pixel").array
    assert_allclose(drawn.data[0, ..., 0], whole, atol=1e-4 * whole.max())


def test_parametric_columns_and_units():
    """Fitted columns, angles on the sky and missing values are understood."""
    pytest.importorskip("galsim")
    import astropy.units as u
    from astropy.table import MaskedColumn, QTable, Table

    _, stack = make_galaxies(3, shape=32, seed=1)
    plain = Table(
        {
            "flux": [100.0, 100.0, 100.0],
            "half_light_radius": [3.0, 3.0, 3.0],
            "sersic_index": [1.0, 1.0, 9.0],
            "axis_ratio": [0.5, 0.5, 0.5],
            "angle": MaskedColumn([30.0, 30.0, 30.0], mask=[False, True, False]),
        }
    )
    drawn = parametric_galaxies(plain, stack, noise=0)
    assert list(drawn.mask.all(axis=(1, 2, 3))) == [False, True, False]
    sky = QTable(plain[:1])
    sky["angle"] = [np.pi / 6] * u.rad
    sky["half_light_radius"] = [3.0 * stack.pixel_scale.to_value("arcmin")] * u.arcmin
    other = parametric_galaxies(sky, stack[:1], noise=0)
    assert_allclose(other.data, drawn.data[:1], atol=1e-5)
    fitted = plain.copy()
    names = {"flux": "sersic_flux", "half_light_radius": "sersic_r_eff"}
    names |= {"sersic_index": "sersic_n", "axis_ratio": "sersic_axis_ratio"}
    names |= {"angle": "sersic_theta"}
    fitted.rename_columns(list(names), list(names.values()))
    np.testing.assert_array_equal(
        parametric_galaxies(fitted, stack, noise=0).data, drawn.data
    )


def test_parametric_flux_unit():
    """Fluxes are converted to the unit of the cutouts, or refused."""
    pytest.importorskip("galsim")
    import astropy.units as u
    from astropy.table import QTable

    truth, stack = make_galaxies(2, shape=32, seed=1)
    stack = stack.replace(unit="nJy")
    truth = QTable(truth)
    truth["sersic_index"] = 1.0
    drawn = parametric_galaxies(truth, stack, noise=0)
    truth["flux"] = u.Quantity(truth["flux"].value * 1e-6, u.mJy)
    other = parametric_galaxies(truth, stack, noise=0)
    assert_allclose(other.data, drawn.data, rtol=1e-5, atol=1e-6)
    truth["flux"] = truth["flux"].value * u.m
    with pytest.raises(ValueError, match="the flux is in m, which is no nJy"):
        parametric_galaxies(truth, stack, noise=0)


def test_parametric_misuse():
    """Messages say what is missing."""
    pytest.importorskip("galsim")
    truth, stack = make_galaxies(3, shape=32, seed=1)
    truth["sersic_index"] = 1.0
    del truth["flux"]
    with pytest.raises(ValueError, match=r"must have the columns \['flux'\]"):
        parametric_galaxies(truth, stack)
    truth["flux"] = 1.0
    with pytest.raises(ValueError, match="got 2 rows of properties for 3"):
        parametric_galaxies(truth[:2], stack)
    with pytest.raises(ValueError, match="noise is not known"):
        parametric_galaxies(truth, stack.replace(error=None))
