"""Tests of eigengalaxies."""

import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from astrovae.baselines import EigenGalaxies, _ppca, eigengalaxies
from astrovae.catalog import add_baselines, add_latents
from astrovae.exceptions import FlaggedRowsWarning, PreprocessingError
from astrovae.images import CutoutStack

SHAPE = (5, 6, 2)
N_FEATURES = 60


def draw(rng, n, *, n_components=3, noise=0.3):
    """Galaxies that follow the model, in the precision of a stack."""
    lengths = 3.0 * 0.7 ** np.arange(n_components)
    basis = np.linalg.qr(rng.normal(size=(N_FEATURES, n_components)))[0]
    loadings = basis * lengths * np.sqrt(N_FEATURES / 10)
    images = rng.normal(size=N_FEATURES) + rng.normal(size=(n, n_components)) @ (
        loadings.T
    )
    images += noise * rng.normal(size=images.shape)
    return images.reshape(n, *SHAPE).astype("float32")


@pytest.fixture
def images(rng):
    """120 galaxies without missing pixels."""
    return draw(rng, 120)


@pytest.fixture
def mask(rng):
    """Bad pixels; some galaxies lack a band, one has no valid pixel."""
    mask = rng.random((120, *SHAPE)) < 0.1
    mask[:30, ..., 1] = True
    mask[30:50, ..., 0] = True
    mask[7] = True
    return mask


def flat(images):
    """Rows in float64, as scikit-learn takes them."""
    return images.reshape(len(images), -1).astype(float)


def covariance(fit):
    """The dense covariance of a fit."""
    lengths = fit.explained_variance_ - fit.noise_variance_
    matrix = (fit.components_.T * lengths) @ fit.components_
    return matrix + fit.noise_variance_ * np.eye(N_FEATURES)


def check_equal(fit, reference, images, rtol=1e-6):
    """Compare all results with those of scikit-learn."""
    rows = flat(images)
    for name in ("mean_", "explained_variance_", "explained_variance_ratio_"):
        assert_allclose(getattr(fit, name), getattr(reference, name), rtol, 1e-9)
    assert_allclose(fit.noise_variance_, reference.noise_variance_, rtol)
    signs = np.sign((fit.components_ * reference.components_).sum(axis=1))
    assert_allclose(fit.components_, signs[:, None] * reference.components_, 0, rtol)
    assert_allclose(fit.score_samples(images), reference.score_samples(rows), rtol)
    coordinates = reference.transform(rows) * signs
    assert_allclose(fit.transform(images), coordinates, 0, 1e2 * rtol)
    paint = reference.inverse_transform(coordinates * signs)
    assert_allclose(flat(fit.reconstruct(images)["mean"]), paint, 0, 1e-5)


def test_complete_galaxies_equal_scikit_learn(images):
    """The closed form is that of sklearn.decomposition.PCA."""
    fit = EigenGalaxies(4).fit(images)
    check_equal(fit, PCA(4, svd_solver="full").fit(flat(images)), images)
    assert fit.n_iter_ == 0
    assert (fit.components_.max(axis=1) == abs(fit.components_).max(axis=1)).all()
    assert fit.eigengalaxies.shape == (4, *SHAPE)


def test_iterations_reach_the_closed_form(images, monkeypatch):
    """On complete galaxies, expectation maximisation gives the same model."""
    monkeypatch.setattr(eigengalaxies, "_LARGEST_EXACT", 1)
    monkeypatch.setattr(eigengalaxies, "_CHUNK_VALUES", 17 * N_FEATURES)
    fit = EigenGalaxies(3, tol=1e-15, max_iter=5000).fit(images)
    assert fit.n_iter_ > 0
    check_equal(fit, PCA(3, svd_solver="full").fit(flat(images)), images)


def test_fewer_galaxies_than_pixels(rng):
    """The noise is the average over all remaining directions."""
    images = draw(rng, 20)
    fit = EigenGalaxies(3).fit(images)
    values = np.linalg.eigvalsh(np.cov(flat(images).T))[::-1]
    assert_allclose(fit.explained_variance_, values[:3], rtol=1e-6)
    assert_allclose(fit.noise_variance_, values[3:].mean(), rtol=1e-6)
    assert_allclose(covariance(fit).trace(), values.sum(), rtol=1e-6)


def test_weights_are_those_of_numpy(images, rng):
    """A weighted covariance; integer weights repeat galaxies, but for n - 1."""
    weights = rng.uniform(0.1, 2.0, len(images))
    fit = EigenGalaxies(3).fit(images, sample_weight=weights)
    values = np.linalg.eigvalsh(np.cov(flat(images).T, aweights=weights))[::-1]
    assert_allclose(fit.explained_variance_, values[:3], rtol=1e-6)
    assert_allclose(fit.noise_variance_, values[3:].mean(), rtol=1e-6)
    counts = rng.integers(0, 3, len(images))
    some = EigenGalaxies(3).fit(images, sample_weight=counts)
    many = EigenGalaxies(3).fit(np.repeat(images, counts, axis=0))
    assert some.n_samples_ == (counts > 0).sum()
    assert_allclose(some.components_, many.components_, atol=1e-9)
    assert_allclose(some.mean_, many.mean_, atol=1e-9)


def test_equal_weighting(images):
    """Each galaxy counts as much, however bright; a blank one does not count."""
    scaled = images * np.geomspace(1, 100, len(images))[:, None, None, None]
    power = np.square(flat(scaled)).mean(axis=1)
    fit = EigenGalaxies(3, weighting="equal").fit(scaled)
    same = EigenGalaxies(3).fit(scaled, sample_weight=1 / power)
    assert_allclose(fit.components_, same.components_, atol=1e-9)
    assert_allclose(fit.explained_variance_ratio_, same.explained_variance_ratio_)
    blank = np.concatenate([scaled, np.zeros((2, *SHAPE), "float32")])
    assert EigenGalaxies(3, weighting="equal").fit(blank).n_samples_ == len(images)


def test_missing_pixels_equal_the_dense_normal(images, mask):
    """Likelihood, latents and imputation are conditionals of one normal density."""
    stack = {"image": images, "mask": mask}
    fit = EigenGalaxies(3).fit(images)
    dense, rows = covariance(fit), flat(images)
    log_like, score = fit.score_samples(stack), fit.outlier_score(stack)
    filled, sigma = map(flat, fit.impute(stack))
    mean, log_var = fit.encode(stack)
    lengths = np.sqrt(fit.explained_variance_ - fit.noise_variance_)
    loadings = fit.components_.T * lengths
    coordinates = fit.transform(stack)
    for row in (0, 35, 60, 119):
        bad = mask[row].ravel()
        ours, theirs = fit.mean_[~bad], dense[np.ix_(~bad, ~bad)]
        data = rows[row, ~bad]
        expected = multivariate_normal(ours, theirs).logpdf(data)
        assert_allclose(log_like[row], expected, rtol=1e-9)
        distance = (data - ours) @ np.linalg.solve(theirs, data - ours)
        expected = (distance - len(data)) / np.sqrt(2 * len(data))
        assert_allclose(score[row], expected, rtol=1e-6)
        gain = np.linalg.solve(theirs, dense[~bad][:, bad]).T
        missing = fit.mean_[bad] + gain @ (data - ours)
        spread = dense[np.ix_(bad, bad)] - gain @ dense[~bad][:, bad]
        assert_allclose(filled[row, bad], missing, rtol=1e-5, atol=1e-5)
        assert_allclose(sigma[row, bad], np.sqrt(np.diag(spread)), rtol=1e-5)
        assert_array_equal(filled[row, ~bad], data)
        assert_array_equal(sigma[row, ~bad], 0.0)
        gain = np.linalg.solve(theirs, loadings[~bad]).T
        assert_allclose(mean[row], gain @ (data - ours), rtol=1e-6, atol=1e-9)
        variance = np.diag(np.eye(3) - gain @ loadings[~bad])
        assert_allclose(np.exp(log_var[row]), variance, rtol=1e-6)
        whole = rows[row].copy()
        whole[bad] = missing
        expected = fit.components_ @ (whole - fit.mean_)
        assert_allclose(coordinates[row], expected, rtol=1e-6, atol=1e-6)


def test_fit_with_missing_pixels_is_the_maximum(images, mask):
    """No change of any parameter raises the dense likelihood of what is there."""
    n = 80
    images, mask = images[:n, :3, :2], mask[:n, :3, :2].copy()
    fit = EigenGalaxies(2, tol=1e-14, max_iter=5000)
    fit.fit({"image": images, "mask": mask})
    shrink = (fit.n_samples_ - 1) / fit.n_samples_
    lengths = np.sqrt(shrink * (fit.explained_variance_ - fit.noise_variance_))
    size = fit.n_features_in_
    best = np.concatenate(
        [
            fit.mean_,
            (fit.components_.T * lengths).ravel(),
            [np.log(shrink * fit.noise_variance_)],
        ]
    )
    rows, valid = flat(images), ~mask.reshape(n, -1)

    def log_like(parameters):
        mean, loadings = parameters[:size], parameters[size:-1].reshape(size, 2)
        matrix = loadings @ loadings.T + np.exp(parameters[-1]) * np.eye(size)
        return sum(
            multivariate_normal(mean[good], matrix[np.ix_(good, good)]).logpdf(
                row[good]
            )
            for row, good in zip(rows, valid, strict=True)
            if good.any()
        )

    # the matrix of second derivatives is of the order of n / noise
    step = 1e-4
    for direction in np.eye(len(best))[:: max(len(best) // 12, 1)]:
        up, down = log_like(best + step * direction), log_like(best - step * direction)
        assert abs(up - down) / (2 * step) < 0.02
    assert log_like(best) > log_like(1.01 * best)


def test_imputation_is_calibrated(rng):
    """Planted galaxies come back, within the errors that are given."""
    images = draw(rng, 1500)
    mask = rng.random(images.shape) < 0.2
    mask[:500, ..., 1] = True
    stack = {"image": images, "mask": mask}
    fit = EigenGalaxies(3).fit(stack)
    assert_allclose(fit.noise_variance_, 0.09, rtol=0.02)
    filled, sigma = fit.impute(stack)
    pull = ((filled - images) / np.where(mask, sigma, 1.0))[mask]
    assert abs(pull.mean()) < 0.02
    assert abs(pull.std() - 1) < 0.02
    assert abs((abs(pull) < 1).mean() - 0.683) < 0.01
    # far better than the mean galaxy
    assert np.square(filled - images)[mask].mean() < 0.05 * images[mask].var()


def test_equal_parameters_from_chunks(images, mask, monkeypatch):
    """Neither chunks nor seeds change what is found."""
    stack = {"image": images, "mask": mask}
    fits = [EigenGalaxies(3, tol=1e-13, rng=seed).fit(stack) for seed in (0, 1)]
    again = EigenGalaxies(3, tol=1e-13).fit(stack)
    assert_array_equal(again.components_, fits[0].components_)
    monkeypatch.setattr(eigengalaxies, "_CHUNK_VALUES", 13 * N_FEATURES)
    fits.append(EigenGalaxies(3, tol=1e-13).fit(stack))
    for fit in fits[1:]:
        assert_allclose(fit.components_, fits[0].components_, atol=1e-4)
        assert_allclose(fit.noise_variance_, fits[0].noise_variance_, rtol=1e-6)
        assert_allclose(fit.score(stack), fits[0].score(stack), rtol=1e-6)


def test_masked_values_change_nothing(images, mask):
    """Bit for bit, whatever is under the mask."""
    results = []
    for value in (0.0, np.nan, 1e30, -np.inf):
        stack = {"image": np.where(mask, value, images), "mask": mask}
        fit = EigenGalaxies(3).fit(stack)
        results.append(
            [
                fit.components_,
                fit.transform(stack),
                fit.score_samples(stack),
                *fit.encode(stack),
                *fit.impute(stack),
                *fit.measure(stack).values(),
            ]
        )
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert_array_equal(one, same)


def test_galaxies_without_pixels(images, mask):
    """They have the latents of the prior, and nothing measured."""
    stack = {"image": images, "mask": mask}
    fit = EigenGalaxies(3).fit(images)
    mean, log_var = fit.encode(stack)
    assert_array_equal(mean[7], 0.0)
    assert_array_equal(log_var[7], 0.0)
    assert_array_equal(fit.transform(stack)[7], 0.0)
    assert np.isnan([fit.score_samples(stack)[7], fit.outlier_score(stack)[7]]).all()
    columns = fit.measure(stack)
    assert np.isnan(columns["pca_mse"][7]).all()
    assert np.isnan(columns["pca_mse"][:30, 1]).all()
    assert np.isfinite(columns["pca_mse"][50:]).all()
    filled, sigma = fit.impute(stack)
    assert_allclose(filled[7].ravel(), fit.mean_, rtol=1e-6)
    assert_allclose(sigma[7].ravel() ** 2, np.diag(covariance(fit)), rtol=1e-5)


def test_pixels_that_no_galaxy_has(images):
    """Nothing is claimed about them, and nothing else changes."""
    mask = np.zeros(images.shape, bool)
    mask[:, 2, 3] = True
    stack = {"image": images, "mask": mask}
    fit = EigenGalaxies(3, tol=1e-13).fit(stack)
    hidden = mask[0].ravel()
    rest = EigenGalaxies(3).fit(flat(images)[:, None, ~hidden])
    assert_array_equal(np.isnan(fit.mean_), hidden)
    assert_allclose(fit.explained_variance_, rest.explained_variance_, rtol=1e-5)
    assert_allclose(fit.explained_variance_ratio_, rest.explained_variance_ratio_)
    likelihood = rest.score_samples(flat(images)[:, None, ~hidden])
    # pixels that are known only now are no evidence
    assert_allclose(fit.score_samples(images), likelihood, rtol=1e-4)
    filled, sigma = fit.impute(stack)
    assert np.isnan(filled[:, 2, 3]).all()
    assert np.isnan(sigma[:, 2, 3]).all()


def test_measures_equal_the_reconstruction(images, mask):
    """Mean squared residuals of each band, and the likelihood at the best sigma."""
    fit = EigenGalaxies(3).fit(images)
    columns = fit.measure({"image": images, "mask": mask})
    paint = fit.reconstruct({"image": images, "mask": mask})["mean"]
    squares = np.ma.array((images - paint) ** 2, mask=mask)
    assert_allclose(columns["pca_mse"][60:], squares.mean(axis=(1, 2))[60:], rtol=1e-4)
    n_valid = (~mask).sum(axis=(1, 2))[60:]
    expected = -n_valid / 2 * (np.log(2 * np.pi * columns["pca_mse"][60:]) + 1)
    assert_allclose(columns["pca_log_like"][60:], expected)
    one = EigenGalaxies(3).fit(images[..., 0]).measure(images[..., 0])
    assert one["pca_mse"].shape == (120,)


def test_decoding_the_latents(images):
    """Posterior means are paint of almost the nearest galaxy."""
    fit = EigenGalaxies(3).fit(images)
    mean, log_var = fit.encode(images)
    shrunk = fit.transform(images) * (1 - fit.noise_variance_ / fit.explained_variance_)
    expected = fit.inverse_transform(shrunk)
    painted = fit.decode(mean)
    assert_allclose(painted["mean"], expected, atol=1e-4)
    assert_allclose(painted["log_var"], np.log(fit.noise_variance_), rtol=1e-6)
    assert_allclose(mean.std(axis=0), 1.0, rtol=0.02)
    assert_allclose(
        np.exp(log_var), fit.noise_variance_ / fit.explained_variance_ + 0 * log_var
    )


def test_columns_of_the_catalogue(images, mask):
    """Latents and errors go into a table, as those of any model."""
    stack = CutoutStack(images, mask=mask, bands=["r", "i"], unit="nJy")
    fit = EigenGalaxies(3).fit(stack)
    table = Table({"id": np.arange(len(stack))})
    with pytest.warns(FlaggedRowsWarning, match="1 of 120"):
        table = add_latents(table, fit, stack)
    with pytest.warns(FlaggedRowsWarning, match="1 of 120"):
        table = add_baselines(table, stack, [fit])
    assert table["latent_mean"].shape == (120, 3)
    assert table["pca_mse"].shape == (120, 2)
    assert table["pca_mse"].unit == stack.unit**2
    assert table["pca_mse"].mask[7].all()
    with pytest.raises(PreprocessingError, match="bands"):
        fit.transform(CutoutStack(images, bands=["g", "i"], unit="nJy"))


def test_no_galaxies(images):
    """Zero rows give zero rows."""
    fit = EigenGalaxies(3).fit(images)
    empty = images[:0]
    assert fit.transform(empty).shape == (0, 3)
    assert fit.impute(empty)[0].shape == empty.shape
    assert fit.measure(empty)["pca_mse"].shape == (0, 2)
    assert np.isnan(fit.score(empty))


def test_misuse(images):
    """Errors say what came and what to do."""
    with pytest.raises(ValueError, match=r"n_components=8.* got 8 galaxies"):
        EigenGalaxies(8).fit(images[:8])
    with pytest.raises(ValueError, match=r"got 0 galaxies"):
        EigenGalaxies(2).fit(np.full((5, 4, 4), np.nan))
    with pytest.raises(ValueError, match="weighting must be one of 'flux', 'equal'"):
        EigenGalaxies(2, weighting="S/N").fit(images)
    with pytest.raises(ValueError, match="120 finite numbers"):
        EigenGalaxies(2).fit(images, sample_weight=[1.0, 2.0])
    fit = EigenGalaxies(2).fit(images)
    with pytest.raises(
        ValueError, match=r"shape \(5, 6, 2\).*these images \(5, 6, 1\)"
    ):
        fit.transform(images[..., :1])
    with pytest.raises(ValueError, match=r"z must have the shape \(n, 2\)"):
        fit.decode(np.zeros((4, 3)))


def test_too_few_iterations(images, mask):
    """A fit that has not converged says so."""
    with pytest.warns(ConvergenceWarning, match="after 2 iterations"):
        EigenGalaxies(3, max_iter=2).fit({"image": images, "mask": mask})


def test_exact_galaxies(rng):
    """Galaxies without noise keep finite likelihoods."""
    images = draw(rng, 50, noise=0.0)
    for hidden in (np.zeros(images.shape, bool), rng.random(images.shape) < 0.1):
        stack = {"image": images, "mask": hidden}
        fit = EigenGalaxies(3).fit(stack)
        assert np.isfinite(fit.score_samples(stack)).all()
        assert_allclose(fit.impute(stack)[0], images, atol=1e-3)


def test_scikit_learn_contract(images):
    """Arguments are kept as they are; fit returns the estimator."""
    fit = EigenGalaxies(3, weighting="equal", rng=5)
    assert clone(fit).get_params() == fit.get_params()
    assert fit.fit(images) is fit
    assert_array_equal(clone(fit).fit_transform(images), fit.transform(images))


def test_keras_is_not_loaded():
    """Principal components are NumPy."""
    code = (
        "import sys, numpy as np\n"
        "from astrovae.baselines import EigenGalaxies\n"
        "images = np.random.default_rng(0).normal(size=(20, 4, 4))\n"
        "EigenGalaxies(2).fit(images).measure(images)\n"
        "print('keras' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert result.stdout == "False\n"


def test_blocks_of_columns(images, mask, monkeypatch):
    """Equations of many columns are solved in parts."""
    stack = {"image": images, "mask": mask}
    whole = EigenGalaxies(2).fit(stack)
    monkeypatch.setattr(_ppca, "_BLOCK", 7)
    assert_allclose(EigenGalaxies(2).fit(stack).mean_, whole.mean_, rtol=1e-9)


@pytest.mark.slow
def test_twelve_components_describe_candels(data_path):
    """At least the 96 percent of the variance of Uzeirbegovic et al. 2020."""
    with fits.open(data_path / "candels_gds.fits") as file:
        bands = ("F814W", "F125W", "F160W")
        rows = np.all([file["CATALOG"].data[f"has_{band}"] for band in bands], axis=0)
        images = np.stack([file[band].data[rows] for band in bands], axis=-1)
    published = EigenGalaxies(12).fit(images).explained_variance_ratio_.sum()
    assert published > 0.96
    # a few sources have it all: without the brightest percent it is theirs
    power = np.square(images).mean(axis=(1, 2, 3))
    faint = images[power < np.quantile(power, 0.99)]
    share = EigenGalaxies(12).fit(faint).explained_variance_ratio_.sum()
    assert abs(share - 0.96) < 0.02
    # and where each galaxy counts the same, faint galaxies and noise do
    equal = EigenGalaxies(12, weighting="equal").fit(images)
    assert 0.6 < equal.explained_variance_ratio_.sum() < 0.8
