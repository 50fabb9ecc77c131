"""Tests of hidden bands in training, and of what is said of missing ones."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from photutils.aperture import CircularAperture
from scipy import stats

from astrovae.models import (
    VAE,
    CorrelatedGaussianLikelihood,
    DenseDecoder,
    DenseEncoder,
    GaussianLikelihood,
)
from astrovae.models._missing import BandDropout, MissingBands
from astrovae.models._posteriors import POSTERIORS


def make_vae(stack, **kwargs):
    """A small model with reproducible weights, which is told of missing bands."""
    keras.utils.set_random_seed(1)
    options = {"latent_dim": 2, "seed": 2, "side_inputs": ("bands",)} | kwargs
    shape = getattr(stack, "image_shape", stack)
    return VAE(shape, **{"encoder": DenseEncoder((16,)), **options})


def make_colours(n, seed):
    """Round galaxies of three bands, the last one brighter than the first."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:9, :9] - 4.0
    profile = np.exp(-0.5 * (x**2 + y**2) / 2.0)
    flux = np.exp(rng.normal(3.0, 0.4, n))
    colour = rng.normal(0.0, 0.3, n)
    bands = np.exp(np.outer(colour, [-1.0, 0.0, 1.0])) * flux[:, None]
    light = profile[..., None] * bands[:, None, None]
    image = (light + rng.normal(size=light.shape)).astype("float32")
    return {"image": image, "error": np.ones_like(image)}, light.sum((1, 2))


def test_some_bands_are_hidden_and_never_all():
    """The rate is that of each band; what is missing stays missing."""
    layer = BandDropout(0.4, seed=1)
    seen = np.ones((4000, 3, 3, 4), bool)
    seen[:1000, ..., 1:] = False  # a single band
    seen[1000:1500] = False  # none at all
    left, lost = map(ops.convert_to_numpy, layer(ops.convert_to_tensor(seen)))
    assert left[:1000, ..., 0].all()
    assert not left[1000:1500].any()
    assert not (left & ~seen).any()
    # bands are hidden as a whole
    kept = left[1500:].any(axis=(1, 2))
    assert_allclose(left[1500:].all(axis=(1, 2)), kept)
    assert kept.any(axis=1).all()
    # all four of them would be hidden with probability 0.4**4, and one stays
    expected = 0.6 + 0.4**4 / 4
    assert abs(kept.mean() - expected) < 4 * (0.24 / kept.size) ** 0.5
    assert np.array_equal(lost, (left != seen).any(axis=(1, 2, 3)))


def test_random_bands_are_reproducible_and_saved(tmp_path):
    """The same seed hides the same bands; a saved state goes on."""
    galaxies, _ = make_colours(32, 1)
    seen = ops.ones((5, 2, 2, 3), "bool")
    options = {"band_dropout": 0.5, "scale": [1.0] * 3, "noise": [1.0] * 3}
    first, second = (make_vae((9, 9, 3), **options) for _ in range(2))
    for vae in (first, second):
        vae.compile()
        vae.fit(galaxies, epochs=2, batch_size=16, verbose=0)
    assert_allclose(first.encode(galaxies)[0], second.encode(galaxies)[0], atol=1e-6)
    first.save_weights(tmp_path / "model.weights.h5")
    other = make_vae((9, 9, 3), **options)
    assert np.array_equal(other.get_config()["band_dropout"], 0.5)
    other.load_weights(tmp_path / "model.weights.h5")
    drawn = [ops.convert_to_numpy(vae.hide_bands(seen)[0]) for vae in (first, other)]
    assert np.array_equal(*drawn)


def test_the_likelihood_sees_all_bands(stack):
    """Only the encoder is kept in the dark, and only in a term of its own."""
    options = {"scale": [5.0, 6.0], "noise": [1.0, 1.0]}
    terms = {}
    for rate in (0.0, 0.6):
        vae = make_vae(stack, band_dropout=rate, **options)
        vae.compile(keras.optimizers.SGD(0.0))
        history = vae.fit(stack, batch_size=40, verbose=0, shuffle=False).history
        terms[rate] = {name: values[0] for name, values in history.items()}
    assert "imputation" not in terms[0.0]
    imputation = terms[0.6].pop("imputation")
    assert imputation > 0
    # a loss is in units of the scale, and the same but for this
    assert_allclose(terms[0.6].pop("loss") - terms[0.0].pop("loss"), imputation, 1e-3)
    for name, value in terms[0.0].items():
        assert_allclose(terms[0.6][name], value, rtol=1e-5)


@pytest.mark.slow
def test_missing_bands_are_imputed():
    """From the colours of other galaxies, within the errors that are stated."""
    known = GaussianLikelihood(learn_variance=False)
    galaxies, _ = make_colours(3000, 1)
    networks = {
        "encoder": DenseEncoder((64, 64)),
        "decoder": DenseDecoder((9, 9, 3), (64, 64)),
    }
    vae = make_vae((9, 9, 3), band_dropout=0.4, likelihood=known, **networks)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, 60 * 30)
    vae.compile(keras.optimizers.Adam(rate))
    vae.fit(galaxies, batch_size=100, epochs=60, verbose=0)
    test, flux = make_colours(600, 2)
    mask = np.zeros(test["image"].shape, bool)
    mask[..., 2] = True
    found = vae.posterior_predictive({**test, "mask": mask})
    error = found["flux"][:, 2] - flux[:, 2]
    assert np.median(np.abs(error / flux[:, 2])) < 0.1
    inside = (np.abs(error) < found["flux_std"][:, 2]).mean()
    assert 0.55 < inside < 0.8
    # it is surer of a band that it sees
    assert (found["flux_std"][:, 2] > found["flux_std"][:, 1]).mean() > 0.9


def test_divergences_of_posteriors():
    """Those of full covariances, from the integral along random samples."""
    rng = np.random.default_rng(1)
    family, pair = POSTERIORS["full"], []
    for _ in range(2):
        raw = rng.normal(size=(1, family.num_parameters(2))).astype("float32") * 0.7
        pair.append(family.parameters(ops.convert_to_tensor(raw)))
    found = float(family.divergence(*pair)[0])
    whole, other = (
        stats.multivariate_normal(
            ops.convert_to_numpy(part["mean"])[0], np.matmul(tril, tril.T)
        )
        for part in pair
        for tril in [ops.convert_to_numpy(part["scale_tril"])[0].astype(float)]
    )
    z = whole.rvs(400_000, random_state=rng)
    terms = whole.logpdf(z) - other.logpdf(z)
    assert abs(found - terms.mean()) < 5 * terms.std() / len(z) ** 0.5
    # independent latents: both families agree
    mean, log_var = ops.ones((1, 2)), ops.convert_to_tensor([[0.3, -0.7]], "float32")
    for name in ("full", "diagonal"):
        family = POSTERIORS[name]
        one = family.parameters(ops.zeros((1, family.num_parameters(2))))
        two = family.from_moments(mean[0], log_var[0])
        two = {key: value[None] for key, value in two.items()}
        variance = np.exp([0.3, -0.7])
        expected = 0.5 * (2.0 / variance - 1.0 + np.log(variance)).sum()
        assert_allclose(float(family.divergence(one, two)[0]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"band_dropout": 1.0}, "at least 0 and less than 1"),
        ({"band_dropout": None}, "must be a number, at least 0"),
        ({"band_dropout": 0.1, "side_inputs": ()}, "the encoder must be told"),
        ({"band_dropout": 0.1, "posterior": "delta"}, "posterior='diagonal' or"),
        ({"band_dropout": 0.1, "image_shape": (8, 8, 1)}, "at least two bands"),
    ],
)
def test_bad_arguments(options, message):
    """Misuse is named."""
    shape = options.pop("image_shape", (8, 8, 2))
    with pytest.raises(ValueError, match=message):
        make_vae(shape, **options)


def test_predictions_are_those_of_many_samples(stack):
    """Mean and scatter of what is painted at draws from the posterior."""
    vae = make_vae(stack, scale=[5.0, 6.0], noise=[1.0, 1.0], posterior="full")
    vae.latent_temperature = 1.5
    rows = stack[:3]
    found = vae.posterior_predictive(rows, num_samples=256, aperture=5.0)
    inputs = tensors(rows)
    posterior = vae._encode_batch(inputs)
    mean = ops.convert_to_numpy(posterior["mean"])
    tril = ops.convert_to_numpy(posterior["scale_tril"])
    noise = np.random.default_rng(1).normal(size=(4000, 1, 2))
    z = mean[None] + 1.5 * np.einsum("nij,snj->sni", tril, noise * np.ones((1, 3, 1)))
    images = vae.decode(z.reshape(-1, 2))
    painted = images["mean"].reshape(4000, 3, 16, 16, 2).astype(float)
    variance = np.exp(images["log_var"]).reshape(painted.shape).mean(axis=0)
    sigma = np.sqrt(painted.var(axis=0) + variance)
    assert_allclose(found["mean"], painted.mean(axis=0), atol=0.1 * sigma.mean())
    assert_allclose(found["std"], sigma, rtol=0.05)
    aperture = CircularAperture((7.5, 7.5), 5.0)
    share = aperture.to_mask().to_image((16, 16))[..., None]
    fluxes = (painted * share).sum((2, 3))
    total = np.sqrt(fluxes.var(axis=0) + (variance * share**2).sum((1, 2)))
    assert_allclose(found["flux_std"], total, rtol=0.05)
    assert_allclose(found["flux"], fluxes.mean(axis=0), atol=0.05 * total.max())
    assert np.array_equal(
        vae.posterior_predictive(rows, num_samples=256, aperture=5.0)["flux"],
        found["flux"],
    )


def tensors(stack):
    """A batch of tensors."""
    batch = stack.batch(np.arange(len(stack)))
    return {name: ops.convert_to_tensor(plane) for name, plane in batch.items()}


def test_predictions_of_nothing(stack):
    """No galaxies, galaxies without pixels, points, and misuse."""
    vae = make_vae(stack, scale=[5.0, 6.0], noise=[1.0, 1.0])
    assert vae.posterior_predictive(stack[:0])["flux"].shape == (0, 2)
    one, other = (
        vae.posterior_predictive(stack[3:4], num_samples=n) for n in (64, 512)
    )
    assert_allclose(one["flux_std"], other["flux_std"], rtol=0.1)
    points = make_vae(stack, posterior="delta", decoder=DenseDecoder((16, 16, 4)))
    found = points.posterior_predictive(stack[:2], num_samples=8)
    expected = points.reconstruct(stack[:2])
    assert_allclose(found["mean"], expected["mean"], atol=1e-4)
    assert_allclose(found["std"], np.exp(0.5 * expected["log_var"]), rtol=1e-3)
    for bad in (0.0, np.nan, [3.0], "3"):
        with pytest.raises(ValueError, match="aperture must be a positive radius"):
            vae.posterior_predictive(stack, aperture=bad)


def make_linear(likelihood):
    """Each latent is the flux of a band; the encoder says the same of all galaxies."""
    decoder = DenseDecoder((6, 6, 2), hidden_units=())
    options = {"scale": [1.0, 1.0], "noise": [1.0, 1.0], "likelihood": likelihood}
    vae = make_vae((6, 6, 2), decoder=decoder, **options)
    kernel, bias = decoder.get_weights()
    kernel = np.zeros((2, 36, 2), "float32")
    kernel[0, :, 0], kernel[1, :, 1] = 0.25, 0.1
    decoder.set_weights([kernel.reshape(2, -1), np.zeros_like(bias)])
    kernel, bias = vae.posterior_layer.get_weights()
    sigma = np.array([0.4, 2.0])
    bias = np.append(np.zeros(2), 2 * np.log(sigma)).astype("float32")
    vae.posterior_layer.set_weights([np.zeros_like(kernel), bias])
    return vae, sigma


RHO = np.outer([0.25, 1.0, 0.25], [0.25, 1.0, 0.25])


@pytest.mark.parametrize(
    "likelihood",
    [
        GaussianLikelihood(learn_variance=False),
        CorrelatedGaussianLikelihood(RHO),
    ],
)
def test_uncertainty_of_missing_bands_is_corrected(likelihood, tmp_path):
    """A linear model, whose sigmas are known to be wrong by known factors."""
    vae, sigma = make_linear(likelihood)
    blank = {"image": np.zeros((6000, 6, 6, 2), "float32")}
    blank["error"] = np.full_like(blank["image"], 0.3)
    drawn = vae.simulate(blank, seed=3)["image"]
    half = [{"image": i, "error": blank["error"][:3000]} for i in np.split(drawn, 2)]
    factor = vae.calibrate_imputation(half[0])
    assert_allclose(factor, 1.0 / sigma, rtol=0.08)
    # of other galaxies, 68 % are within one sigma of prediction and noise
    for band, noise in enumerate(flux_noise(half[1]["error"], likelihood)):
        mask = np.zeros(drawn[:3000].shape, bool)
        mask[..., band] = True
        flux = half[1]["image"][..., band].sum((1, 2))
        found = vae.posterior_predictive({**half[1], "mask": mask})
        step = np.abs(found["flux"][:, band] - flux)
        inside = step < np.hypot(found["flux_std"][:, band], noise)
        assert abs(inside.mean() - 0.6827) < 0.03
        few = {name: plane[:8] for name, plane in half[1].items()}
        seen = vae.posterior_predictive(few)
        ratio = found["flux_std"][:8] / seen["flux_std"]
        assert_allclose(ratio[:, band], factor[band], rtol=1e-4)
        assert_allclose(ratio[:, 1 - band], 1.0, rtol=1e-4)
        ratio = found["std"][:8] / seen["std"]
        assert_allclose(ratio[..., band], factor[band], rtol=1e-2)
    vae.save(tmp_path / "vae.keras")
    other = keras.saving.load_model(tmp_path / "vae.keras")
    assert_allclose(other.imputation_factor, factor)
    vae.compile()
    vae.fit(half[0], verbose=0)
    assert (vae.imputation_factor == 1.0).all()


def flux_noise(error, likelihood):
    """Sigma of the sum over all pixels, by summing over all pairs of them."""
    shape = error.shape[1:3]
    y, x = (index.ravel() for index in np.indices(shape))
    covariance = np.eye(len(x))
    if hasattr(likelihood, "correlation"):
        # pixels at opposite edges are neighbours
        dy, dx = (
            (i[:, None] - i + side // 2) % side - side // 2
            for i, side in ((y, shape[0]), (x, shape[1]))
        )
        near = (abs(dy) <= 1) & (abs(dx) <= 1)
        covariance = np.where(near, 0.25 ** (abs(dy) + abs(dx)), 0.0)
    return [error[0, 0, 0, band] * covariance.sum() ** 0.5 for band in range(2)]


def test_what_missing_bands_cannot_be_calibrated_on():
    """One band, too few galaxies, and factors that are none."""
    vae, _ = make_linear(GaussianLikelihood(learn_variance=False))
    few = {"image": np.zeros((30, 6, 6, 2), "float32")}
    few["error"] = np.ones_like(few["image"])
    few["mask"] = np.zeros(few["image"].shape, bool)
    few["mask"][:15, 0, 0, 1] = True
    with pytest.raises(ValueError, match="only 15 galaxies have all pixels of band 1"):
        vae.calibrate_imputation(few)
    # the pixel is out of the aperture
    assert vae.calibrate_imputation(few, aperture=2.0).shape == (2,)
    with pytest.raises(ValueError, match="must be 2 positive numbers, one per band"):
        vae.imputation_factor = [1.0, 0.0]
    single = make_vae((8, 8, 1))
    with pytest.raises(ValueError, match="at least two bands, got one"):
        single.calibrate_imputation(np.zeros((4, 8, 8, 1)))
    # nothing is known of galaxies without a valid pixel: the prior is right
    few["mask"][:] = True
    before = vae.posterior_predictive(few)["flux_std"]
    vae.imputation_factor = 3.0
    assert_allclose(vae.posterior_predictive(few)["flux_std"], before)


def test_complete_galaxies_get_nothing_added():
    """What is known of missing bands is for galaxies that lack one."""
    rng = np.random.default_rng(1)
    layer = MissingBands(3)
    features = rng.normal(size=(6, 4)).astype("float32")
    present = np.ones((6, 2), "float32")
    present[3:, 1] = 0.0
    inputs = [ops.convert_to_tensor(part) for part in (features, present)]
    assert not ops.convert_to_numpy(layer(inputs)).any()
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    added = ops.convert_to_numpy(layer(inputs))
    assert added.shape == layer.compute_output_shape((features.shape, (6, 2)))
    assert not added[:3].any()
    assert added[3:].all()


def test_saved_with_what_is_known_of_missing_bands(tmp_path):
    """A saved model says the same of galaxies that lack a band."""
    galaxies, _ = make_colours(64, 1)
    vae = make_vae((9, 9, 3), band_dropout=0.5)
    vae.compile(keras.optimizers.Adam(1e-2))
    vae.fit(galaxies, epochs=2, batch_size=16, verbose=0)
    galaxies["mask"] = np.zeros(galaxies["image"].shape, bool)
    galaxies["mask"][..., 1] = True
    vae.save_preset(tmp_path / "model")
    other = VAE.from_preset(tmp_path / "model")
    assert_allclose(other.encode(galaxies), vae.encode(galaxies), atol=1e-6)
