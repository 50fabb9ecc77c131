"""Tests of the Sersic fit."""

import numpy as np
import pytest
from astropy.modeling import Fittable2DModel, Parameter
from astropy.modeling.fitting import TRFLSQFitter
from astropy.modeling.models import Sersic2D
from astropy.table import Table
from keras import ops
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import erf, gamma, gammainc, gammaincinv
from sklearn.base import clone

from astrovae.baselines import GaussianFit, SersicFit, compare
from astrovae.baselines._sersic_profile import SersicProfile
from astrovae.catalog import add_baselines
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import decode_flags
from astrovae.images import CutoutStack

SHAPE = (23, 21)
SIGMA = 1.1  # of the Gaussian PSF, before pixels
NAMES = ("x", "y", "r_eff", "n", "axis_ratio", "theta")
# compiled once for all tests
FIT = {"batch_size": 16}


def along_axis(size, fine, sigma=SIGMA):
    """The share of light at fine points that a Gaussian blur puts into pixels."""
    edges = np.arange(size + 1) - 0.5
    return np.diff(
        0.5 * (1 + erf((edges[:, None] - fine) / (np.sqrt(2) * sigma))), 1, 0
    )


def make_psf(half=6, sigma=SIGMA):
    """The effective PSF: the blur, integrated over pixels."""
    size = 2 * half + 1
    one = along_axis(size, np.array([float(half)]), sigma)[:, 0]
    return np.outer(one, one) / one.sum() ** 2


def paint(x, y, r_eff, n, axis_ratio, theta, *, sigma=SIGMA, fine=7, shape=SHAPE):
    """A galaxy of unit flux by astropy: sampled finely, blurred exactly."""
    margin = int(np.ceil(4 * sigma))
    fine_y, fine_x = (
        (np.arange(-margin * fine, (size + margin) * fine) + 0.5) / fine - 0.5
        for size in shape
    )
    b = gammaincinv(2 * n, 0.5)
    total = 2 * np.pi * axis_ratio * r_eff**2 * n * np.exp(b) * b ** (-2 * n)
    total *= gamma(2 * n)
    light = Sersic2D(1.0, r_eff, n, x, y, 1 - axis_ratio, np.radians(theta))(
        *np.meshgrid(fine_x, fine_y)
    )
    rows = along_axis(shape[0], fine_y, sigma)
    columns = along_axis(shape[1], fine_x, sigma)
    return rows @ light @ columns.T / (total * fine**2)


def draw_truth(rng, n):
    """Parameters of galaxies that are neither points nor larger than cutouts."""
    return {
        "x": rng.uniform(9, 11, n),
        "y": rng.uniform(10, 12, n),
        "r_eff": rng.uniform(2.0, 3.5, n),
        "n": rng.uniform(0.7, 2.5, n),
        "axis_ratio": rng.uniform(0.4, 0.8, n),
        "theta": rng.uniform(-89, 89, n),
    }


@pytest.fixture
def truth(rng):
    """Parameters of twelve galaxies."""
    return draw_truth(rng, 12)


@pytest.fixture
def images(truth):
    """Their images without noise, of flux 100."""
    rows = zip(*truth.values(), strict=True)
    return 100 * np.stack([paint(*row, fine=11) for row in rows])


@pytest.fixture
def stack(images, rng):
    """Noisy cutouts with errors and one PSF."""
    noise = 0.02
    return CutoutStack(
        images + noise * rng.normal(size=images.shape),
        error=np.full(images.shape, noise),
        psf=make_psf(),
    )


def render(row, psf=None, **kwargs):
    """Our own image of a profile, with its derivatives."""
    profile = SersicProfile(SHAPE, None if psf is None else psf.shape)
    if psf is not None:
        psf = profile.transform(ops.convert_to_tensor(psf[None, :, :, None], "float32"))
    row = ops.convert_to_tensor(np.array([row], dtype="float32"))
    return ops.convert_to_numpy(profile(row, psf, **kwargs))[0, 0].astype(float)


def as_row(x, y, r_eff, n, axis_ratio, theta):
    """The parameters that are searched."""
    shear, angle = -np.log(axis_ratio), np.radians(2 * theta)
    size = r_eff * np.sqrt(axis_ratio)
    return [x, y, size, n, shear * np.cos(angle), shear * np.sin(angle)]


CASES = [
    (10.0, 11.0, 3.0, 1.0, 1.0, 0.0),
    (10.3, 10.6, 3.0, 1.0, 0.5, 30.0),
    (9.613, 11.217, 2.5, 2.5, 0.6, -70.0),
    (10.4, 11.3, 4.0, 0.5, 0.3, 80.0),
    (10.3, 10.7, 1.2, 1.5, 0.7, 10.0),
]


@pytest.mark.parametrize("case", CASES)
def test_profiles_equal_astropy(case):
    """Blurred, or only averaged over pixels, to a few thousandths of the peak."""
    blurred = paint(*case, fine=25)
    assert_allclose(
        render(as_row(*case), make_psf())[0], blurred, atol=1.5e-3 * blurred.max()
    )
    sharp = paint(*case, fine=51, sigma=1e-3)
    assert_allclose(render(as_row(*case))[0], sharp, atol=4e-3 * sharp.max())


def light_inside(x, y, r_eff, n, axis_ratio, theta):
    """The share of the light within a cutout, along rays from the centre."""
    angle = 2 * np.pi * (np.arange(20_000) + 0.5) / 20_000
    u, v = r_eff * np.cos(angle), axis_ratio * r_eff * np.sin(angle)
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    dx, dy = u * cos - v * sin, u * sin + v * cos
    ends = [
        np.where(step > 0, size - 0.5 - at, at + 0.5) / abs(step)
        for step, at, size in ((dx, x, SHAPE[1]), (dy, y, SHAPE[0]))
    ]
    b = gammaincinv(2 * n, 0.5)
    return gammainc(2 * n, b * np.minimum(*ends) ** (1 / n)).mean()


@pytest.mark.parametrize("with_psf", [False, True])
def test_cusps_keep_their_light(with_psf):
    """A steep, small profile has its flux, wherever its centre lies."""
    for x in (10.0, 10.25, 10.5):
        case = (x, 11.1, 0.8, 6.0, 0.8, 20.0)
        image = render(as_row(*case), make_psf() if with_psf else None)[0]
        assert abs(image.sum() - light_inside(*case)) < 3e-3


@pytest.mark.parametrize("with_psf", [False, True])
@pytest.mark.parametrize("case", [CASES[1], CASES[3]])
def test_derivatives(case, with_psf):
    """Analytic derivatives are those of finite differences."""
    psf = make_psf() if with_psf else None
    planes = render(as_row(*case), psf)
    # pixels without blur have edges, over which light moves in steps
    step, tolerance = (0.02, 0.02) if with_psf else (0.1, 0.05)
    for i, plane in enumerate(planes[1:]):
        shifted = []
        for change in (step, -step):
            row = np.array(as_row(*case))
            row[i] = row[i] * np.exp(change) if i in (2, 3) else row[i] + change
            shifted.append(render(row, psf, derivatives=False)[0])
        numeric = (shifted[0] - shifted[1]) / (2 * step)
        assert abs(plane - numeric).max() < tolerance * abs(numeric).max()


@pytest.mark.parametrize("background", [False, True])
def test_galaxies_are_found(truth, images, background):
    """Every parameter, in astropy's convention, and the constant."""
    stack = {"image": images + 0.5 * background, "psf": make_psf()[None, ..., None]}
    fit = SersicFit(background=background, **FIT).fit(stack)
    for name, values in truth.items():
        tolerance = {"rtol": 0.01, "atol": 0.01 if name != "theta" else 0.3}
        assert_allclose(getattr(fit, f"{name}_"), values, **tolerance)
    assert_allclose(fit.flux_[:, 0], 100.0, rtol=0.01)
    assert_allclose(fit.background_[:, 0], 0.5 * background, atol=2e-3)
    assert fit.converged_.all()
    assert not fit.flags_.any()
    assert_allclose(fit.predict()[..., 0], stack["image"], atol=0.01)


class BlurredSersic(Fittable2DModel):
    """What `paint` paints, for the fitters of astropy."""

    flux = Parameter(default=100.0)
    x_0, y_0 = Parameter(default=10.0), Parameter(default=11.0)
    r_eff = Parameter(default=3.0, bounds=(0.1, 20))
    n = Parameter(default=1.5, bounds=(0.3, 8))
    axis_ratio = Parameter(default=0.6, bounds=(0.1, 1))
    theta = Parameter(default=0.0)

    @staticmethod
    def evaluate(x, y, flux, *parameters):
        """Paint all pixels; x and y are those of the grid."""
        values = [float(np.ravel(value)[0]) for value in parameters]
        return np.ravel(flux)[0] * paint(*values, fine=7).reshape(x.shape)


def test_same_optimum_as_astropy(stack):
    """TRFLSQFitter finds the same parameters with its own derivatives."""
    fit = SersicFit(**FIT).fit(stack)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    fitter = TRFLSQFitter()
    for row in range(4):
        start = BlurredSersic(
            fit.flux_[row, 0] * 1.05,
            fit.x_[row] + 0.1,
            fit.y_[row] - 0.1,
            fit.r_eff_[row] * 1.05,
            fit.n_[row] * 0.95,
            fit.axis_ratio_[row] * 0.97,
            fit.theta_[row] + 2,
        )
        data = stack.data[row, ..., 0].astype(float)
        best = fitter(start, x, y, data, weights=np.full(SHAPE, 50.0), maxiter=200)
        chi2 = 2500 * ((best(x, y) - data) ** 2).sum()
        assert abs(fit.chi2_[row] - chi2) < 0.1
        for name, other in zip(("flux", *NAMES), best.parameters, strict=True):
            value = np.ravel(getattr(fit, f"{name}_")[row])[0]
            error = np.ravel(getattr(fit, f"{name}_err_")[row])[0]
            assert abs(value - other) < 0.25 * error


@pytest.mark.slow
def test_errors_cover_the_truth(rng):
    """1-sigma errors hold for 68 % of noisy images, within sampling error."""
    n, noise = 480, 0.05
    truth = draw_truth(rng, n)
    clean = 100 * np.stack([paint(*row) for row in zip(*truth.values(), strict=True)])
    fit = SersicFit(**FIT).fit(
        {
            "image": clean + noise * rng.normal(size=clean.shape),
            "error": np.full(clean.shape, noise),
            "psf": make_psf()[None, ..., None],
        }
    )
    good = fit.flags_ == 0
    assert good.mean() > 0.95
    pulls = [
        (getattr(fit, f"{name}_") - truth[name])[good]
        / getattr(fit, f"{name}_err_")[good]
        for name in NAMES[:-1]
    ]
    angle = (fit.theta_ - truth["theta"] + 90) % 180 - 90
    pulls.append(angle[good] / fit.theta_err_[good])
    pulls.append((fit.flux_[good, 0] - 100) / fit.flux_err_[good, 0])
    sampling = np.sqrt(0.683 * 0.317 / good.sum())
    for pull in pulls:
        assert abs((abs(pull) < 1).mean() - 0.683) < 3 * sampling


def test_masked_pixels_and_bad_neighbours_change_nothing(images, rng):
    """Bit for bit, whatever is under a mask or in another row."""
    noisy = images + rng.normal(size=images.shape) * 0.05
    mask = rng.random(images.shape) < 0.1
    results = []
    for value in (0.0, np.nan, 1e30):
        hidden = np.where(mask, value, noisy)
        hidden[5] = value
        stack = {"image": hidden, "mask": mask, "psf": make_psf()[None, ..., None]}
        results.append(SersicFit(**FIT).measure(stack))
    rows = np.arange(12) != 5
    assert np.isfinite(results[0]["sersic_n"][rows]).all()
    for other in results[1:]:
        for name, values in results[0].items():
            assert_array_equal(values[rows], other[name][rows])


def test_broken_rows_are_masked_and_flagged(images):
    """Empty, constant, masked and negative rows say what is wrong; order is kept."""
    bad = images[:7].copy()
    bad[1] = np.nan
    bad[2] = 7.0
    bad[3, 1:] = np.nan
    bad[3, 0, 5:] = np.nan
    bad[4] = 0.0
    bad[5] *= -1.0
    stack = {"image": bad, "psf": make_psf()[None, ..., None]}
    columns = SersicFit(**FIT).measure(stack)
    flags = [decode_flags(int(value)) for value in columns["sersic_flags"]]
    for row, reason in (
        (1, "no_valid_pixel"),
        (2, "constant"),
        (3, "mostly_masked"),
        (4, "constant"),
    ):
        assert np.isnan(columns["sersic_mse"][row])
        assert np.isnan(columns["sersic_r_eff_err"][row])
        assert reason in flags[row]
    assert "negative_flux" in flags[5]
    assert np.isfinite(columns["sersic_mse"][[0, 5, 6]]).all()
    assert flags[0] == flags[6] == []
    clean = SersicFit(**FIT).measure({**stack, "image": images[:7]})
    for name, values in clean.items():
        assert_array_equal(values[[0, 6]], columns[name][[0, 6]])


def test_bands_share_the_shape(truth, images):
    """One shape through two PSFs, and a flux for each band."""
    rows = list(zip(*truth.values(), strict=True))
    sharp = np.stack([paint(*row, sigma=0.8, fine=11) for row in rows[:6]])
    both = np.stack([images[:6], 300 * sharp], axis=-1)
    psf = np.stack([make_psf(), make_psf(sigma=0.8)], axis=-1)
    columns = SersicFit(**FIT).measure({"image": both, "psf": psf[None]})
    assert columns["sersic_flux"].shape == (6, 2)
    assert_allclose(columns["sersic_flux"], [[100.0, 300.0]] * 6, rtol=0.02)
    assert_allclose(columns["sersic_r_eff"], truth["r_eff"][:6], rtol=0.02)
    assert_allclose(columns["sersic_n"], truth["n"][:6], rtol=0.04)


def test_psf_of_every_galaxy(truth, images):
    """Galaxies seen through different PSFs have the sizes that they have."""
    rows = list(zip(*truth.values(), strict=True))
    sharp = 100 * np.stack([paint(*row, sigma=0.8, fine=11) for row in rows[:6]])
    mixed = np.concatenate([images[:6], sharp])
    psf = np.stack([make_psf()] * 6 + [make_psf(sigma=0.8)] * 6)[..., None]
    fit = SersicFit(**FIT).fit(CutoutStack(mixed, psf=psf))
    assert_allclose(fit.r_eff_, np.tile(truth["r_eff"][:6], 2), rtol=0.02)
    assert_allclose(fit.predict([11])[0, ..., 0], mixed[11], atol=0.02)


def test_points_are_at_the_limit(rng):
    """A star has no half-light radius: it is flagged, and errors are masked."""
    psf = make_psf()
    star = 100 * np.pad(psf[1:-1, 1:-1], ((6, 6), (5, 5)))
    star = star + 0.05 * rng.normal(size=(3, *SHAPE))
    fit = SersicFit(**FIT).fit({"image": star, "psf": psf[None, ..., None]})
    for row in range(3):
        limited = "at_limit" in decode_flags(int(fit.flags_[row]))
        assert limited == np.isnan([fit.r_eff_err_[row], fit.n_err_[row]]).any()
        assert limited or fit.r_eff_[row] < 4 * fit.r_eff_err_[row]
    assert_allclose(fit.flux_[:, 0], 100.0, rtol=0.02)
    assert_allclose(fit.x_, 10.0, atol=0.02)


def test_better_than_a_gaussian(stack):
    """What it is made for; and the columns go into a catalogue."""
    table = Table({"id": np.arange(12)})
    table = add_baselines(table, stack, [GaussianFit(n_starts=1), SersicFit(**FIT)])
    assert (table["sersic_mse"] < table["gauss_mse"]).mean() > 0.9
    assert (table["sersic_mse_background"] <= table["sersic_mse"] * (1 + 1e-6)).all()
    assert table["sersic_r_eff"].unit == "pix"
    table["vae_mse"] = 0.5 * table["sersic_mse"]
    table["vae_log_like"] = table["sersic_log_like_background"] + 1
    rates = compare(table)
    assert set(rates["baseline"]) == {"gauss", "sersic"}
    assert (rates["rate"][rates["baseline"] == "sersic"] == 1).all()


def test_broken_rows_of_a_catalogue(images):
    """A row that cannot be fitted is masked."""
    bad = images[:4].copy()
    bad[1] = np.nan
    stack = CutoutStack(bad, psf=make_psf())
    with pytest.warns(FlaggedRowsWarning, match="1 of 4"):
        table = add_baselines(Table({"id": range(4)}), stack, [SersicFit(**FIT)])
    assert list(table["sersic_n"].mask) == [False, True, False, False]


def test_no_galaxies():
    """Zero rows give zero rows of the right type."""
    empty = {"image": np.zeros((0, *SHAPE)), "psf": np.zeros((0, 13, 13, 1))}
    columns = SersicFit(**FIT).measure(empty)
    assert all(len(values) == 0 for values in columns.values())
    assert columns["sersic_flags"].dtype == np.int32


def test_misuse(images):
    """Errors say what came and what to do."""
    with pytest.raises(ValueError, match=r"odd number of pixels.*got \(12, 13\)"):
        SersicFit().fit({"image": images, "psf": np.ones((1, 12, 13, 1))})
    with pytest.raises(ValueError, match="n_starts must be a positive integer"):
        SersicFit(n_starts=0).fit(images)


def test_scikit_learn_contract():
    """Arguments are kept as they are, and fit returns the estimator."""
    fit = SersicFit(background=True, n_starts=3)
    assert clone(fit).get_params() == fit.get_params()
    fit = SersicFit(**FIT)
    assert (
        fit.fit({"image": np.zeros((1, *SHAPE)), "psf": make_psf()[None, ..., None]})
        is fit
    )
