# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies of given properties."""

import astropy.units as u
import keras
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.datasets import make_galaxies
from astrovae.exceptions import FlaggedRowsWarning, PresetError
from astrovae.flags import Flag
from astrovae.images import CutoutStack
from astrovae.layers import PoseTransform, PSFConvolution
from astrovae.models import VAE, Condition, DenseEncoder, LatentFlow
from astrovae.models._conditions import Conditions
from astrovae.models._latent_samples import posterior_moments, scaled_noise

N = 300
PSF = np.outer([0.2, 0.6, 0.2], [0.25, 0.5, 0.25])


def make_vae(stack, **kwargs):
    """A small model that was not trained."""
    options = {"stretch": "asinh", "seed": 1, **kwargs}
    vae = VAE(stack.image_shape, 2, DenseEncoder((8,)), **options)
    vae.adapt(stack)
    # latents of order one, that are known to a tenth or so
    kernel, bias = vae.posterior_layer.get_weights()
    kernel, bias = 0.1 * kernel, np.where(np.arange(len(bias)) < 2, 0, -4)
    vae.posterior_layer.set_weights([kernel, bias])
    return vae


def make_flow(**kwargs):
    """A small flow."""
    return LatentFlow(num_blocks=2, hidden_units=(16, 16), seed=1, **kwargs)


def attach(vae, table, conditions="axis_ratio"):
    """A flow that was not trained."""
    flow = make_flow()
    flow._attach(vae, Conditions(conditions).adapt(table, np.ones(len(table), bool)))
    return flow


@pytest.fixture(scope="module")
def galaxies():
    """A table and its cutouts, in two bands."""
    table, stack = make_galaxies(N, shape=(12, 12), bands=("g", "r"), seed=1)
    table["flux_r"] = table["flux"][:, 1] * u.nJy
    table["angle"] = np.asarray(table["angle"]) * u.deg
    table["plain"] = np.random.default_rng(2).normal(size=N)
    return table, stack.replace(unit="nJy", pixel_scale=0.2)


CONDITIONS = [
    Condition("flux_r", transform="log"),
    "axis_ratio",
    Condition("angle", transform="angle", fold=2),
]


@pytest.fixture(scope="module")
def vae(galaxies):
    """A model of the images, for tests that leave it alone."""
    return make_vae(galaxies[1])


@pytest.fixture(scope="module")
def fitted(galaxies, vae):
    """A flow that was fitted for one pass."""
    table, stack = galaxies
    flow = make_flow()
    flow.fit(table, vae, stack, conditions=CONDITIONS, epochs=1, verbose=0)
    return flow


def test_latents_follow_conditions(galaxies, vae):
    """Mean and scatter of latents, given a condition, are those of regression."""
    _, stack = galaxies
    mean, log_var = vae.encode(stack)
    rng = np.random.default_rng(0)
    z = mean + np.exp(0.5 * log_var) * rng.normal(size=mean.shape)
    seen = Table({"c": mean[:, 0] + 0.1 * rng.normal(size=N) * mean[:, 0].std()})
    flow = make_flow()
    history = flow.fit(
        seen,
        vae,
        stack,
        conditions="c",
        epochs=60,
        batch_size=50,
        validation_data=(seen[:50], stack[:50]),
        verbose=0,
    )
    loss = history.history["loss"]
    assert loss[-1] < loss[0] - 0.05
    assert set(history.history) == {"loss", "val_loss"}
    # by least squares, independently
    design = np.stack([np.ones(N), seen["c"]], axis=1)
    fit, *_ = np.linalg.lstsq(design, z, rcond=None)
    scatter = (z - design @ fit).std(axis=0)
    many = np.mean([flow.sample_latents(seen, seed=i) for i in range(30)], axis=0)
    middle = np.abs(seen["c"] - np.median(seen["c"])) < np.std(seen["c"])
    offset = (many - design @ fit)[middle] / scatter
    # of which 1 / sqrt(30) is the noise of the draws
    assert (np.sqrt((offset**2).mean(axis=0)) < 0.4).all()
    one = flow.sample_latents(seen, seed=0) - many
    assert_allclose(one.std(axis=0), scatter, rtol=0.25)


def test_latents_are_drawn_anew(galaxies, fitted):
    """In each epoch, from the posteriors."""
    table, stack = galaxies
    posterior = posterior_moments(fitted.vae, table, stack)
    measured = posterior.pop("measured")
    data = fitted._dataset(table, posterior, measured, N)
    rows = data.order
    first = data[0]["z"]
    again = data[0]["z"]
    assert_array_equal(first, again)
    data.set_epoch(1)
    assert not np.isin(data[0]["z"], first).any()
    mean, log_var = fitted.vae.encode(stack)
    deviates = (first - mean[rows]) / np.exp(0.5 * log_var[rows])
    assert abs(deviates.mean()) < 4 / np.sqrt(deviates.size)
    assert abs(deviates.var() - 1) < 4 * np.sqrt(2 / deviates.size)


def test_full_posteriors(rng):
    """Deviates have the covariance of the Cholesky factor."""
    tril = np.array([[1.0, 0.0], [0.5, 2.0]])
    scale = np.broadcast_to(tril, (20000, 2, 2))
    noise = rng.normal(size=(20000, 2))
    assert_allclose(scaled_noise(scale, noise), noise @ tril.T)


@pytest.mark.parametrize("posterior", ["full", "delta"])
def test_other_posteriors(galaxies, posterior):
    """All families of posteriors can be fitted to."""
    table, stack = galaxies
    flow = make_flow()
    vae = make_vae(stack, posterior=posterior)
    flow.fit(table, vae, stack, conditions="axis_ratio", epochs=1, verbose=0)
    assert np.isfinite(flow.log_prob(table[:5], stack[:5], num_samples=2)).all()


def test_densities(galaxies, fitted):
    """They integrate to one, and are those of the layer."""
    table, stack = galaxies
    location = keras.ops.convert_to_numpy(fitted.density.location)
    scale = keras.ops.convert_to_numpy(fitted.density.scale)
    axis = np.linspace(-7, 7, 141)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    one = table[np.zeros(len(grid), int)]
    density = np.exp(fitted.log_prob(one, location + scale * grid, batch_size=4096))
    assert_allclose(density.sum() * 0.1**2 * scale.prod(), 1, atol=0.01)
    mean, _ = fitted.vae.encode(stack)
    encoded, *_ = fitted._encoded(table)
    expected = fitted.density.log_prob(mean, encoded)
    found = fitted.log_prob(table, mean)
    assert_allclose(found, keras.ops.convert_to_numpy(expected), atol=1e-4)
    # of galaxies: the mean over their posteriors
    assert_allclose(fitted.log_prob(table, stack).mean(), found.mean(), atol=1.0)
    with pytest.raises(ValueError, match=r"shape \(300, 2\), got \(300, 3\)"):
        fitted.log_prob(table, np.zeros((N, 3)))


def test_samples(galaxies, fitted):
    """Images as the decoder paints them, with all that belongs to them."""
    table, _ = galaxies
    before = table.copy()
    some = table[:20]
    made = fitted.sample(some, seed=2)
    assert isinstance(made, CutoutStack)
    assert made.image_shape == fitted.image_shape == (12, 12, 2)
    assert (made.bands, made.unit) == (("g", "r"), u.nJy)
    assert_allclose(made.pixel_scale.to_value(u.arcsec), 0.2)
    assert_array_equal(made.ids, some["id"])
    assert_array_equal(made.columns["flux_r"], some["flux_r"].value)
    z = fitted.sample_latents(some, seed=2)
    assert_allclose(made.data, fitted.vae.decode(z)["mean"], rtol=1e-4, atol=1e-4)
    again = fitted.sample(some, seed=2, batch_size=7)
    assert_allclose(made.data, again.data, rtol=1e-4, atol=1e-4)
    assert not np.allclose(fitted.sample(some, seed=3).data, made.data)
    assert len(fitted.sample(table[:0])) == 0
    assert fitted.sample_latents(table[:0]).shape == (0, 2)
    assert_array_equal(table["flux_r"], before["flux_r"])
    assert table.colnames == before.colnames


def test_units(galaxies, fitted):
    """Other units of the same kind are the same; others are refused."""
    table, _ = galaxies
    other = QTable(table[:5])
    other["flux_r"] = other["flux_r"].to(u.uJy)
    other["angle"] = other["angle"].to(u.rad)
    expected = fitted.sample_latents(table[:5], seed=1)
    assert_allclose(fitted.sample_latents(other, seed=1), expected, atol=1e-4)
    plain = Table(table[:5], copy=True)
    plain["flux_r"] = np.ones(5)
    with pytest.raises(ValueError, match="'flux_r' has no unit; 'nJy'"):
        fitted.sample(plain)
    plain["flux_r"].unit = "m"
    with pytest.raises(ValueError, match="in 'm', which does not convert to 'nJy'"):
        fitted.sample(plain)
    plain = Table(table[:5], copy=True)
    plain["axis_ratio"].unit = "deg"
    with pytest.raises(ValueError, match="does not convert to no unit"):
        fitted.sample(plain)
    assert fitted.conditions[0].unit == u.nJy
    assert repr(fitted.conditions[0]) == (
        "Condition('flux_r', transform='log', unit='nJy')"
    )


def test_transforms():
    """Each is its formula; what it does not take is missing."""
    table = Table({"x": [0.25, -1.0, 4.0]})
    table["angle"] = [0, 90, 180] * u.deg

    def features(name, **kwargs):
        return Condition(name, **kwargs).resolve(table).features(table)

    assert_array_equal(features("x"), [[0.25], [-1], [4]])
    assert_allclose(
        features("x", transform="log")[:, 0], [np.log(0.25), np.nan, np.log(4)]
    )
    asinh = features("x", transform="asinh", softening=2.0)
    assert_allclose(asinh[:, 0], np.arcsinh([0.125, -0.5, 2]))
    # the median of what is not zero
    assert Condition("x", transform="asinh").resolve(table).softening == 1.0
    logit = features("x", transform="logit")[:, 0]
    assert_allclose(logit, [np.log(1 / 3), np.nan, np.nan])
    axis = features("angle", transform="angle", fold=2)
    assert_allclose(axis, [[1, 0], [-1, 0], [1, 0]], atol=1e-12)
    assert_allclose(features("angle", transform="angle")[1], [0, 1], atol=1e-12)
    edges = Table({"x": [0.0, 1.0]})
    assert np.isfinite(Condition("x", transform="logit").features(edges)).all()


def test_missing_values(galaxies, vae):
    """What was missing in the training may be missing; what was not, may not."""
    table, stack = galaxies
    mask = np.arange(N) % 3 == 0
    some = Table({"id": table["id"], "a": table["axis_ratio"]})
    some["b"] = MaskedColumn(table["plain"], mask=mask)
    flow = attach(vae, some, ["a", "b"])
    made = flow.sample(some[:9], seed=1)
    assert not made.mask.any()
    assert not (made.flags & Flag.NO_RESULT).any()
    some["a"][2] = np.nan
    with pytest.warns(FlaggedRowsWarning, match="1 rows have properties unlike"):
        made = flow.sample(some[:9], seed=1)
    assert_array_equal(made.ids, some["id"][:9])
    assert_array_equal(made.mask.all(axis=(1, 2, 3)), np.arange(9) == 2)
    bits = Flag.NO_RESULT | Flag.OUT_OF_SUPPORT
    assert_array_equal(made.flags & bits > 0, np.arange(9) == 2)
    assert made.flags[2] & bits == bits
    z = flow.sample_latents(some[:9], seed=1)
    assert_array_equal(np.isnan(z).all(axis=1), np.arange(9) == 2)
    assert_array_equal(np.isnan(flow.log_prob(some[:9], stack[:9])), np.arange(9) == 2)


def test_hidden_values(galaxies, vae):
    """With drop_rate, any condition may be missing later."""
    table, stack = galaxies
    flow = make_flow()
    options = {"conditions": ["axis_ratio", "plain"], "drop_rate": 0.3}
    flow.fit(table, vae, stack, epochs=1, verbose=0, **options)
    posterior = posterior_moments(flow.vae, table, stack)
    measured = posterior.pop("measured")
    seen = flow._dataset(table, posterior, measured, N, 0.3)[0]["conditions"]
    hidden = seen[:, 2:] == 1
    assert 0.2 < hidden.mean() < 0.4
    assert (seen[:, :2][hidden] == 0).all()
    assert (seen[:, :2][~hidden] != 0).mean() > 0.99
    request = Table({"axis_ratio": [0.5], "plain": [np.nan]})
    assert not flow.sample(request).mask.any()


def test_support(galaxies, fitted):
    """Few of the training rows are out of it; what is far is."""
    table, _ = galaxies
    _, usable, supported = fitted._encoded(table)
    assert usable.all()
    assert supported.mean() > 0.98
    far = QTable(table[:4])
    far["flux_r"][1] *= 1e4
    far["axis_ratio"][2] = -3
    far["flux_r"][3] *= -1
    _, usable, supported = fitted._encoded(far)
    assert_array_equal(supported, [True, False, False, False])
    assert_array_equal(usable, [True, True, True, False])


def test_joint_support(vae, rng):
    """A combination that does not occur is out, though each value occurs."""
    x = rng.normal(size=N)
    some = Table({"x": x, "y": x + 0.05 * rng.normal(size=N)})
    flow = attach(vae, some, ["x", "y"])
    odd = Table({"x": [1.0, 1.0, np.nan], "y": [1.0, -1.0, 1.0]})
    _, _, supported = flow._encoded(odd)
    assert_array_equal(supported, [True, False, False])


def test_psf_and_noise(galaxies):
    """Galaxies before the PSF, behind it, and with noise."""
    table, stack = galaxies
    stack = stack.replace(psf=PSF)
    vae = make_vae(stack, psf=True, canvas_shape=(16, 16))
    flow = attach(vae, table, CONDITIONS)
    some = table[flow._encoded(table)[2]][:100]
    sharp = flow.sample(some, seed=1)
    assert sharp.image_shape == flow.image_shape == (16, 16, 2)
    blurred = flow.sample(some, psf=PSF, seed=1)
    assert blurred.image_shape == (12, 12, 2)
    assert blurred.psf.shape[1:] == (3, 3, 2)
    expected = PSFConvolution(PSF)(sharp.data)[:, 2:-2, 2:-2]
    scale = np.abs(sharp.data).max()
    assert_allclose(blurred.data, expected, atol=1e-4 * scale)
    sigma = np.array([2.0, 3.0], np.float32) * scale
    noisy = flow.sample(some, psf=PSF, noise=sigma * u.nJy, seed=1)
    assert_allclose(noisy.error, np.broadcast_to(sigma, noisy.data.shape))
    z = flow.sample_latents(some, seed=1)
    learned = np.exp(vae.decode(z)["log_var"])[:, 2:-2, 2:-2]
    residual = (noisy.data - blurred.data) / sigma
    assert abs(residual.mean()) < 4 / np.sqrt(residual.size)
    assert abs(residual.var() - 1) < 4 * np.sqrt(2 / residual.size)
    again = flow.sample(some, psf=PSF, noise=sigma, seed=1, batch_size=33)
    assert_allclose(again.data, noisy.data, atol=1e-3 * scale)
    alone = flow.sample(some, psf=PSF, noise="learned", seed=1)
    assert alone.error is None
    residual = (alone.data - blurred.data) / np.sqrt(learned)
    assert abs(residual.var() - 1) < 4 * np.sqrt(2 / residual.size)


def test_bad_psf_and_noise(galaxies, fitted):
    """What cannot be, and what makes no sense."""
    table, stack = galaxies
    some = table[:3]
    with pytest.raises(ValueError, match=r"sum 1, got 9: divide"):
        fitted.sample(some, psf=np.ones((3, 3)))
    with pytest.raises(ValueError, match="PSFs must be finite"):
        fitted.sample(some, psf=np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match=r"the PSF has \(13, 13\) pixels"):
        fitted.sample(some, psf=np.full((13, 13), 1 / 169))
    with pytest.raises(ValueError, match="psf must have the shape"):
        fitted.sample(some, psf=np.ones((2, 3, 3, 1)) / 9)
    with pytest.raises(ValueError, match="odd number of pixels"):
        fitted.sample(some, psf=np.full((4, 4), 1 / 16))
    for noise in (0.0, [-1, 1], np.nan):
        with pytest.raises(ValueError, match="must be positive and finite"):
            fitted.sample(some, noise=noise)
    with pytest.raises(ValueError, match="one for each of 2 bands"):
        fitted.sample(some, noise=[1.0, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match='numbers or "learned"'):
        fitted.sample(some, noise="much")
    with pytest.raises(ValueError, match=r"pose=\.\.\. is for models with pose=True"):
        fitted.sample(some, pose="aligned")
    with pytest.raises(u.UnitConversionError):
        fitted.sample(some, noise=1 * u.m)
    flow = attach(make_vae(stack.replace(psf=PSF), psf=True), table)
    with pytest.raises(ValueError, match="noise comes after it"):
        flow.sample(some, noise=1.0)


def test_finer_pixels(galaxies):
    """Galaxies that are painted finer keep their flux, and say their scale."""
    table, stack = galaxies
    stack = stack.replace(psf=PSF, pose=np.tile([1.0, 0, 0.3, 1, 2], (N, 1)))
    vae = make_vae(stack, psf=True, pose=True, canvas_shape=(16, 16), oversampling=2)
    flow = attach(vae, table)
    table = Table({"axis_ratio": table["axis_ratio"][:5]})
    pose = np.tile([0.5, -1.0, 0.3, 1, 2], (5, 1))
    sharp = flow.sample(table, seed=1, pose=pose)
    assert sharp.image_shape == flow.image_shape == (32, 32, 2)
    assert_allclose(sharp.pixel_scale.to_value(u.arcsec), 0.1)
    parameters = sharp.batch(range(5))["pose"]
    assert_allclose(parameters, np.tile([1, -2, 0.3, 1, 4], (5, 1)), rtol=1e-6)
    painted = vae.decode(flow.sample_latents(table, seed=1))["mean"]
    turned = PoseTransform((32, 32))((painted, parameters.astype("float32")))
    assert_allclose(4 * sharp.data, turned, atol=1e-4 * np.abs(painted).max())
    # through a delta, the sums of blocks
    delta = np.zeros((3, 3))
    delta[1, 1] = 1
    assert flow.sample(table, psf=delta, pose=pose).image_shape == (12, 12, 2)


def test_poses(galaxies):
    """As given, as the table says, or any."""
    table, stack = galaxies
    stack = stack.replace(pose=np.tile([0, 0, 0, 1.0, 2], (N, 1)))
    vae = make_vae(stack, pose=True, canvas_shape=(16, 16))
    flow = attach(vae, table)
    some = Table({"axis_ratio": table["axis_ratio"][:6]})
    upright = flow.sample(some, pose="aligned", seed=1)
    z = flow.sample_latents(some, seed=1)
    painted = vae.decode(z)["mean"][:, 2:-2, 2:-2]
    scale = np.abs(painted).max()
    assert_allclose(upright.data, painted, atol=1e-4 * scale)
    some["pose_x"] = some["pose_y"] = np.full(6, 5.5)
    some["pose_angle"] = np.full(6, 90.0) * u.deg
    turned = flow.sample(some, seed=1)
    # a quarter turn counterclockwise: rows become columns
    expected = np.rot90(painted, -1, axes=(1, 2))
    assert_allclose(turned.data, expected, atol=1e-4 * scale)
    given = flow.sample(some, seed=1, pose=np.tile([0, 0, np.pi / 2, 1, 1], (6, 1)))
    assert_allclose(given.data, turned.data, atol=1e-4 * scale)
    free = flow.sample(some["axis_ratio",], seed=1)
    assert len(np.unique(free.pose["angle"])) == 6
    assert_array_equal(free.data, flow.sample(some["axis_ratio",], seed=1).data)
    with pytest.raises(ValueError, match="got 2 poses for 6 cutouts"):
        flow.sample(some, pose=np.zeros((2, 5)))
    with pytest.raises(ValueError, match='or "aligned", got'):
        flow.sample(some, pose="upright")


def test_presets(galaxies, fitted, tmp_path):
    """A folder holds flow, model and record; what was altered is refused."""
    table, stack = galaxies
    folder = tmp_path / "flow"
    fitted.save_preset(folder, metadata={"note": 1})
    copy = LatentFlow.from_preset(folder)
    assert len(copy.sha256) == 64
    assert copy.preprocessing == fitted.preprocessing
    assert [c.get_config() for c in copy.conditions] == [
        c.get_config() for c in fitted.conditions
    ]
    expected = fitted.sample(table[:5], seed=1)
    made = copy.sample(table[:5], seed=1)
    assert_allclose(made.data, expected.data, rtol=1e-5, atol=1e-5)
    assert made.meta["generated"]["preset"] == copy.sha256
    assert_allclose(
        copy.log_prob(table, stack), fitted.log_prob(table, stack), rtol=1e-4
    )
    with pytest.raises(PresetError, match=r"holds a LatentFlow: use LatentFlow\.from"):
        VAE.from_preset(folder)
    fitted.vae.save_preset(tmp_path / "vae")
    with pytest.raises(PresetError, match=r"holds a VAE: use VAE\.from_preset"):
        LatentFlow.from_preset(tmp_path / "vae")
    with pytest.raises(PresetError, match="There is no preset folder galaxy_small"):
        LatentFlow.from_preset("galaxy_small")
    weights = folder / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(PresetError, match="damaged or was altered"):
        LatentFlow.from_preset(folder)


def test_keras_files(galaxies, fitted, tmp_path):
    """Fitted or not, a flow goes through a file and its configuration."""
    table, _ = galaxies
    fitted.save(tmp_path / "flow.keras")
    copy = keras.saving.load_model(tmp_path / "flow.keras")
    expected = fitted.sample(table[:5], seed=1).data
    assert_allclose(copy.sample(table[:5], seed=1).data, expected, rtol=1e-5, atol=1e-5)
    new = LatentFlow.from_config(make_flow(transform="spline").get_config())
    assert (new.transform, new.hidden_units, new.vae) == ("spline", (16, 16), None)
    assert (new.conditions, new.image_shape, new.latent_dim) == ((), None, None)


def test_fit_to_latents(galaxies, vae, rng):
    """Latents may be given in place of galaxies, and are taken as they are."""
    table, _ = galaxies
    z = rng.normal(size=(N, 2)) * [1, 3] + [0, 5]
    z[0] = np.nan
    flow = make_flow()
    options = {"conditions": "axis_ratio", "epochs": 1, "verbose": 0}
    with pytest.warns(FlaggedRowsWarning, match="1 rows have no valid pixel"):
        flow.fit(table, vae, z, **options)
    location = keras.ops.convert_to_numpy(flow.density.location)
    scale = keras.ops.convert_to_numpy(flow.density.scale)
    assert_allclose(location, z[1:].mean(axis=0), rtol=1e-5)
    assert_allclose(scale, z[1:].std(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"must be 2 numbers each, got \(300, 3\)"):
        make_flow().fit(table, vae, np.zeros((N, 3)), **options)


def test_further_training(galaxies, vae):
    """A flow can be trained further, and leaves the model of the images alone."""
    _, stack = galaxies
    mean, _ = vae.encode(stack)
    table = Table({"c": mean[:, 0], "plain": mean[:, 1]})
    before = [keras.ops.convert_to_numpy(w).copy() for w in vae.weights]
    flow = make_flow()
    flow.compile(keras.optimizers.Adam(3e-3))
    flow.fit(table, vae, stack, conditions="c", epochs=1, verbose=0)
    assert float(flow.optimizer.learning_rate) == pytest.approx(3e-3)
    first = flow.log_prob(table, stack).mean()
    stop = keras.callbacks.EarlyStopping("loss", patience=5)
    flow.fit(table, stack=stack, epochs=20, batch_size=100, callbacks=stop, verbose=0)
    assert flow.log_prob(table, stack).mean() > first
    assert flow.vae is vae
    for weight, old in zip(vae.weights, before, strict=True):
        assert_array_equal(keras.ops.convert_to_numpy(weight), old)
    with pytest.raises(ValueError, match="fitted already"):
        flow.fit(table, vae, stack, conditions="plain")


def test_rows_without_pixels(galaxies, vae):
    """They are left out of the training, with a warning, and have no density."""
    table, stack = galaxies
    mask = stack.mask.copy()
    mask[:3] = True
    stack = stack.replace(mask=mask)
    flow = make_flow()
    options = {"conditions": "axis_ratio", "epochs": 1, "verbose": 0}
    with pytest.warns(FlaggedRowsWarning, match="3 rows have no valid pixel"):
        flow.fit(table, vae, stack, **options)
    assert_array_equal(np.isnan(flow.log_prob(table, stack)), np.arange(N) < 3)
    with pytest.raises(ValueError, match="no galaxy has a valid pixel"):
        make_flow().fit(table[:3], vae, stack[:3], **options)


@pytest.mark.parametrize(
    ("conditions", "error", "match"),
    [
        ("nonsense", ValueError, "has no column 'nonsense'"),
        ("kind", TypeError, "'kind' must hold numbers"),
        ("flux", ValueError, "must have one number per row"),
        ("constant", ValueError, "'constant' does not vary"),
        ("empty", ValueError, "'empty' has no usable value"),
        ([], ValueError, "one or more different columns"),
        (["axis_ratio", "axis_ratio"], ValueError, "one or more different columns"),
        ([Condition("plain", transform="angle")], ValueError, "'plain' has no unit"),
        ([Condition("plain", unit="mJy")], ValueError, "'plain' has no unit; 'mJy'"),
    ],
)
def test_bad_conditions(galaxies, vae, conditions, error, match):
    """What cannot be a condition is refused."""
    table, stack = galaxies
    table = Table(table, copy=True)
    table["constant"], table["empty"] = 1.0, np.nan
    with pytest.raises(error, match=match):
        make_flow().fit(table, vae, stack, conditions=conditions)


def test_bad_calls(galaxies, fitted):
    """Misuse says what to do."""
    table, stack = galaxies
    vae = fitted.vae
    with pytest.raises(ValueError, match="not fitted yet: call fit"):
        make_flow().sample(table)
    with pytest.raises(ValueError, match=r"needs vae=\.\.\. and conditions"):
        make_flow().fit(table, vae, stack)
    with pytest.raises(ValueError, match="has 5 rows and there are 300 galaxies"):
        make_flow().fit(table[:5], vae, stack, conditions="axis_ratio")
    with pytest.raises(TypeError, match="of an astropy Table, got dict"):
        fitted.sample({"axis_ratio": [1.0]})
    with pytest.raises(ValueError, match="drop_rate must be between 0 and 1"):
        make_flow().fit(table, vae, stack, conditions="axis_ratio", drop_rate=1)
    with pytest.raises(ValueError, match="no column 'name'"):
        fitted.sample(table[:3], id_column="name")
    with pytest.raises(ValueError, match="softening must be positive"):
        Condition("x", softening=0)
    with pytest.raises(ValueError, match="transform must be one of"):
        Condition("x", transform="cubic")
    with pytest.raises(ValueError, match="must have the unit of one"):
        Condition("flux_r", transform="angle").resolve(table)
