"""Tests of the least-squares Gaussian."""

import numpy as np
import pytest
from astropy.modeling.fitting import TRFLSQFitter
from astropy.modeling.models import Gaussian2D
from numpy.testing import assert_allclose
from sklearn.base import clone

from astrovae.baselines import GaussianFit
from astrovae.datasets import make_galaxies
from astrovae.flags import decode_flags
from astrovae.images import measure_pose

Y, X = np.mgrid[:24, :26]


def gaussian(amplitude, x, y, major, minor, theta):
    """An image by astropy; theta in degrees."""
    return Gaussian2D(amplitude, x, y, major, minor, np.deg2rad(theta))(X, Y)


@pytest.fixture
def truth(rng):
    """Parameters of twelve Gaussians."""
    n = 12
    major = rng.uniform(2.5, 4.5, n)
    return {
        "x": rng.uniform(9, 16, n),
        "y": rng.uniform(9, 15, n),
        "sigma_major": major,
        "sigma_minor": major * rng.uniform(0.4, 0.8, n),
        "theta": rng.uniform(-89, 89, n),
    }


@pytest.fixture
def images(truth):
    """Their noiseless images, of amplitude 5."""
    rows = zip(*truth.values(), strict=True)
    return np.stack([gaussian(5.0, *row) for row in rows])


@pytest.mark.parametrize("background", [False, True])
def test_noiseless_gaussians_are_found(truth, images, background):
    """Position, size, angle in astropy's convention, flux and constant."""
    fit = GaussianFit(background=background).fit(images + 2.0 * background)
    for name, values in truth.items():
        assert_allclose(getattr(fit, f"{name}_"), values, rtol=2e-3, atol=2e-3)
    flux = 2 * np.pi * 5 * truth["sigma_major"] * truth["sigma_minor"]
    assert_allclose(np.ravel(fit.flux_), flux, rtol=2e-3)
    assert_allclose(np.ravel(fit.background_), 2.0 * background, atol=1e-3)
    assert fit.converged_.all()
    assert not fit.flags_.any()


def test_no_worse_than_astropy():
    """From our optimum, astropy's fitter finds nothing better."""
    _, stack = make_galaxies(6, shape=(24, 26), seed=3)
    fit = GaussianFit().fit(stack.data)
    fitter = TRFLSQFitter()
    for row, image in enumerate(stack.data[..., 0].astype(float)):
        start = Gaussian2D(
            fit.amplitude_[row, 0],
            fit.x_[row],
            fit.y_[row],
            fit.sigma_major_[row],
            fit.sigma_minor_[row],
            np.deg2rad(fit.theta_[row]),
        )
        best = fitter(start, X, Y, image, maxiter=1000)
        chi2 = ((best(X, Y) - image) ** 2).sum()
        assert fit.chi2_[row] <= chi2 * (1 + 1e-6)


def test_likelihood_is_that_at_the_best_sigma(images):
    """-m/2 (log(2 pi mse) + 1), from the mean squared residual."""
    columns = GaussianFit().measure(images + np.sin(X) * 0.1)
    m, mse = X.size, columns["gauss_mse"]
    expected = -m / 2 * (np.log(2 * np.pi * mse) + 1)
    assert_allclose(columns["gauss_log_like"], expected, rtol=1e-6)
    assert (columns["gauss_mse_background"] <= mse * (1 + 1e-6)).all()


def test_masked_pixels_and_bad_neighbours_change_nothing(images, rng):
    """Bit for bit, whatever is under a mask or in another row."""
    noisy = images + rng.normal(size=images.shape) * 0.1
    mask = rng.random(images.shape) < 0.1
    results = []
    for value in (0.0, np.nan, 1e30):
        hidden = np.where(mask, value, noisy)
        hidden[5] = value
        results.append(GaussianFit().measure({"image": hidden, "mask": mask}))
    rows = np.arange(12) != 5
    for other in results[1:]:
        for name, values in results[0].items():
            assert np.array_equal(values[rows], other[name][rows], equal_nan=True)


def test_errors_weigh_pixels(images, rng):
    """A ruined region with huge errors does not move the fit."""
    error = np.full(images.shape, 0.1)
    ruined = images.copy()
    ruined[:, :4], error[:, :4] = 50.0, 1e6
    fit = GaussianFit().fit({"image": ruined, "error": error})
    clean = GaussianFit().fit({"image": images, "error": error})
    assert_allclose(fit.x_, clean.x_, atol=1e-3)
    assert_allclose(fit.sigma_major_, clean.sigma_major_, rtol=1e-3)


def test_bands_share_the_shape(images):
    """One shape, a flux for each band."""
    columns = GaussianFit().measure(np.stack([images, 3 * images], axis=-1))
    assert columns["gauss_x"].shape == (12,)
    assert columns["gauss_flux"].shape == (12, 2)
    assert_allclose(columns["gauss_flux"][:, 1], 3 * columns["gauss_flux"][:, 0])


@pytest.mark.slow
def test_errors_cover_the_truth(rng):
    """1-sigma errors hold for 68 % of noisy images."""
    n = 2000
    image = gaussian(5.0, 12.3, 11.6, 3.5, 2.2, 30.0)
    noisy = image + rng.normal(size=(n, *image.shape)) * 0.2
    fit = GaussianFit(n_starts=1).fit(
        {"image": noisy, "error": np.full(noisy.shape, 0.2)}
    )
    for name, value in (("x", 12.3), ("y", 11.6), ("sigma_major", 3.5)):
        pull = (getattr(fit, f"{name}_") - value) / getattr(fit, f"{name}_err_")
        assert abs((abs(pull) < 1).mean() - 0.683) < 0.03


def test_broken_rows_are_masked_and_flagged(images):
    """Empty, constant and masked rows are NaN with the reason; order is kept."""
    bad = images[:5].copy()
    bad[1] = np.nan
    bad[2] = 7.0
    bad[3, 1:] = np.nan
    bad[3, 0, 5:] = np.nan
    columns = GaussianFit().measure(bad)
    for row, reason in ((1, "no_valid_pixel"), (2, "constant"), (3, "mostly_masked")):
        assert np.isnan(columns["gauss_mse"][row])
        assert np.isnan(columns["gauss_flux_err"][row])
        assert reason in decode_flags(int(columns["gauss_flags"][row]))
    assert np.isfinite(columns["gauss_mse"][[0, 4]]).all()


def test_no_galaxies():
    """Zero rows give zero rows of the right type."""
    columns = GaussianFit().measure(np.zeros((0, 9, 9)))
    assert all(len(values) == 0 for values in columns.values())
    assert columns["gauss_flags"].dtype == np.int32


def test_scikit_learn_contract():
    """Arguments are kept as they are, and fit returns the estimator."""
    fit = GaussianFit(background=True, n_starts=2)
    assert clone(fit).get_params() == fit.get_params()
    assert fit.fit(np.zeros((1, 9, 9))) is fit


def test_poses_of_fits_are_those_of_adaptive_moments():
    _, stack = make_galaxies(20, shape=(32, 32), seed=3)
    fit = GaussianFit().fit(stack)
    found, expected = (
        measure_pose(stack, known=fit.pose_).pose,
        measure_pose(stack).pose,
    )
    for name in ("x", "y", "size", "axis_ratio"):
        assert_allclose(found[name], expected[name], rtol=0.02, atol=0.02)
    elongated = expected["axis_ratio"] < 0.8
    turn = (found["angle"] - expected["angle"] + np.pi / 2) % np.pi - np.pi / 2
    assert_allclose(turn[elongated], 0, atol=0.02)
