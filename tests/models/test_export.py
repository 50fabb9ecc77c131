"""Tests of exported encoders."""

import json

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from astrovae.datasets import make_galaxies
from astrovae.images import measure_pose
from astrovae.layers import MixturePrior
from astrovae.models import VAE, ConvEncoder, DenseDecoder, DenseEncoder
from astrovae.models.export import export_encoder

BACKEND = keras.config.backend()
OTHER_FORMAT = "tf_saved_model" if BACKEND == "torch" else "onnx"

not_here = pytest.mark.backend_skip


def make_vae(stack, **kwargs):
    """A model with latents of order one, which biases and priors take part in."""
    shape = stack.image_shape
    options = {"latent_dim": 3, "encoder": DenseEncoder((16,)), "seed": 2} | kwargs
    options.setdefault("decoder", DenseDecoder((*shape[:2], 2 * shape[2]), (4,)))
    vae = VAE(shape, **options)
    vae.adapt(stack)
    rng = np.random.default_rng(3)
    for weight in vae.trainable_weights:
        weight.assign(weight + 0.03 * rng.normal(size=weight.shape))
    return vae


class Exported:
    """An exported encoder, read by TensorFlow or ONNX Runtime alone."""

    def __init__(self, path):
        if BACKEND == "torch":
            runtime = pytest.importorskip("onnxruntime")
            self.session = runtime.InferenceSession(path)
            self.record = self.session.get_modelmeta().custom_metadata_map["astrovae"]
        else:
            import tensorflow as tf

            self.tensor = tf.constant
            # the object owns the weights
            self.model = tf.saved_model.load(path)
            self.record = (path / "assets.extra" / "astrovae.json").read_text("utf-8")
        self.record = json.loads(self.record)

    def __call__(self, **inputs):
        if BACKEND == "torch":
            names = [output.name for output in self.session.get_outputs()]
            values = self.session.run(names, inputs)
            return dict(zip(names, values, strict=True))
        tensors = {name: self.tensor(array) for name, array in inputs.items()}
        result = self.model.signatures["serving_default"](**tensors)
        return {name: value.numpy() for name, value in result.items()}


def compare(vae, exported, batch):
    """Expect what `VAE.encode` gives, whatever the number of galaxies."""
    mean, log_var = vae.encode(batch)
    for rows in (slice(0, 1), slice(2, 9), slice(None)):
        result = exported(**{name: array[rows] for name, array in batch.items()})
        assert set(result) == {"mean", "log_var"}
        assert_allclose(result["mean"], mean[rows], rtol=1e-5, atol=1e-5)
        assert_allclose(result["log_var"], log_var[rows], rtol=1e-5, atol=1e-5)
    assert np.ptp(mean, axis=0).min() > 0.01


@pytest.fixture
def batch(stack):
    """Images with masks that hide infinities; one galaxy is not seen at all."""
    image, mask = stack.data.copy(), stack.mask.copy()
    mask[:, 4:7, 2:9] = True
    image[mask] = np.nan
    image[1::2][mask[1::2]] = 1e30
    assert mask[3].all()
    return {"image": image, "mask": mask}


@pytest.mark.parametrize("stretch", ["linear", "asinh"])
@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_export_equals_encode(stretch, prior, batch, stack, tmp_path):
    """Also for galaxies without a valid pixel, which have the prior."""
    prior = MixturePrior(4, 3, seed=1) if prior == "mixture" else None
    vae = make_vae(stack, stretch=stretch, prior=prior)
    path = tmp_path / "encoder"
    export_encoder(vae, path)
    exported = Exported(path)
    compare(vae, exported, batch)
    assert list(tmp_path.iterdir()) == [path]
    record = exported.record
    assert record["latent_dim"] == 3
    assert record["inputs"]["image"] == [None, 16, 16, 2]


def test_masked_pixels_change_nothing(batch, stack, tmp_path):
    """Not even in the last digit."""
    vae = make_vae(stack)
    export_encoder(vae, tmp_path / "encoder")
    exported = Exported(tmp_path / "encoder")
    first = exported(**batch)
    image = np.where(batch["mask"], np.float32(7.0), batch["image"])
    second = exported(image=image, mask=batch["mask"])
    for name in ("mean", "log_var"):
        assert np.array_equal(first[name], second[name])


def test_export_has_the_temperature(batch, stack, tmp_path):
    """Sigmas are the corrected ones; those of what is not seen stay the prior's."""
    vae = make_vae(stack)
    before = vae.encode(batch)[1]
    vae.latent_temperature = [2.0, 0.5, 1.0]
    export_encoder(vae, tmp_path / "encoder")
    exported = Exported(tmp_path / "encoder")
    compare(vae, exported, batch)
    change = exported(**batch)["log_var"] - before
    expected = np.tile(2 * np.log([2.0, 0.5, 1.0]), (len(before), 1))
    expected[3] = 0
    assert_allclose(change, expected, atol=1e-4)


def test_export_without_mask(batch, stack, tmp_path):
    """What is not finite is not seen."""
    vae = make_vae(stack)
    export_encoder(vae, tmp_path / "encoder", mask=False)
    image = np.where(batch["mask"], np.float32(np.nan), batch["image"])
    compare(vae, Exported(tmp_path / "encoder"), {"image": image})


@pytest.mark.slow
def test_export_with_pose_and_convolutions(tmp_path):
    """Galaxies are turned inside."""
    _, galaxies = make_galaxies(20, shape=(16, 16), bands=("r",), seed=1)
    galaxies = measure_pose(galaxies)
    vae = make_vae(galaxies, pose=True, encoder=ConvEncoder())
    export_encoder(vae, tmp_path / "encoder")
    exported = Exported(tmp_path / "encoder")
    batch = galaxies.batch(np.arange(20))
    batch = {name: batch[name] for name in ("image", "mask", "pose")}
    batch["pose"] = batch["pose"][:, :4]
    compare(vae, exported, batch)
    turned = batch["pose"] + np.float32([0, 0, 1, 0])
    other = exported(**{**batch, "pose": turned})
    assert np.abs(other["mean"] - exported(**batch)["mean"]).max() > 0.01


@pytest.mark.slow
def test_export_with_side_inputs(batch, stack, tmp_path):
    """Errors and PSFs are taken as `VAE.encode` takes them; bad ones are masks."""
    vae = make_vae(stack, side_inputs=("mask", "error", "psf", "bands"))
    rng = np.random.default_rng(4)
    error = rng.uniform(0.05, 0.2, batch["image"].shape).astype("float32")
    error[:, 0, :3] = [[np.nan], [0.0], [-1.0]]
    psf = rng.uniform(size=(len(error), 7, 7, 2)).astype("float32")
    export_encoder(vae, tmp_path / "encoder", psf_shape=7)
    exported = Exported(tmp_path / "encoder")
    compare(vae, exported, {**batch, "error": error, "psf": psf})
    with pytest.raises(ValueError, match="psf_shape"):
        export_encoder(vae, tmp_path / "other")


def test_export_of_a_model_in_mixed_precision(stack, tmp_path):
    """A SavedModel computes as the model does; ONNX refuses."""
    encoder = DenseEncoder((16,), dtype="mixed_bfloat16")
    vae = make_vae(stack, encoder=encoder, dtype="mixed_bfloat16")
    path = tmp_path / "encoder"
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="compute in float32"):
            export_encoder(vae, path)
        return
    export_encoder(vae, path)
    batch = stack.batch(np.arange(5))
    result = Exported(path)(image=batch["image"], mask=batch["mask"])
    # bfloat16 has 8 bits
    mean, _ = vae.encode(batch)
    assert result["mean"].dtype == np.float32
    assert_allclose(result["mean"], mean, rtol=2e-2, atol=2e-2)


def test_export_refuses_to_overwrite(stack, tmp_path):
    """And what is no export stays, whatever is said."""
    vae = make_vae(stack)
    path = tmp_path / "encoder"
    export_encoder(vae, path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_encoder(vae, path)
    export_encoder(vae, path, overwrite=True)
    assert Exported(path).record["latent_dim"] == 3
    if BACKEND != "torch":
        other = tmp_path / "thesis"
        other.mkdir()
        (other / "chapter.tex").touch()
        with pytest.raises(FileExistsError, match="something else"):
            export_encoder(vae, other, overwrite=True)
        assert (other / "chapter.tex").exists()


def test_export_leaves_nothing_behind_when_it_fails(stack, tmp_path, monkeypatch):
    """A folder or a file appears complete or not at all."""
    vae = make_vae(stack)
    finish = "_finish_onnx" if BACKEND == "torch" else "_check_saved_model"

    def fail(*args):
        raise OSError

    monkeypatch.setattr(f"astrovae.models.export.{finish}", fail)
    with pytest.raises(OSError):  # noqa: PT011
        export_encoder(vae, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


def test_errors_say_what_to_do(stack, tmp_path, monkeypatch):
    """Wrong formats and missing packages."""
    vae = make_vae(stack)
    with pytest.raises(ValueError, match="format must be one of"):
        export_encoder(vae, tmp_path / "encoder", format="pickle")
    with pytest.raises(ValueError, match=f"{BACKEND}. Use format="):
        export_encoder(vae, tmp_path / "encoder", format=OTHER_FORMAT)
    package = "onnx" if BACKEND == "torch" else "tensorflow"
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"astrovae\[export\]"):
        export_encoder(vae, tmp_path / "encoder")


@not_here("tensorflow", reason="TensorFlow reads what it writes")
@not_here("torch", reason="writes no SavedModel")
def test_versions_that_do_not_fit_are_reported(stack, tmp_path, monkeypatch):
    """A file that TensorFlow cannot run is not written."""
    import tensorflow as tf

    class Broken:
        def serve(self, inputs):
            raise tf.errors.InvalidArgumentError(None, None, "no such operation")

    vae = make_vae(stack)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: Broken())
    with pytest.raises(RuntimeError, match="cannot run what Keras on jax exported"):
        export_encoder(vae, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []
