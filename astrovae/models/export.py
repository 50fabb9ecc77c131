# Licensed under a 3-clause BSD style license - see LICENSE
"""Encoders that run where astrovae is not installed."""

import contextlib
import json
import logging
import warnings

import keras
import numpy as np
from keras import ops

from astrovae._files import atomic_file, atomic_folder
from astrovae._optional import require
from astrovae._validation import check_option, check_shape

__all__ = ["export_encoder"]

_FORMATS = {"tf_saved_model": ("tensorflow", "jax"), "onnx": ("torch",)}
_OUTPUTS = ("mean", "log_var")

# what every SavedModel has, and the folder in it that is for files of others
_MARKER, _EXTRA = "saved_model.pb", "assets.extra"

# What Keras 3.15 and PyTorch say of their own ways of exporting. The shapes
# that are fixed in tracing are those of images, not the number of galaxies.
_EXPECTED_WARNINGS = (
    "The `native_serialization` parameter is deprecated",
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
    "torch.as_tensor results are registered as constants",
    r"Converting a tensor to a Python (integer|boolean|float|index) might",
    "__array__ implementation doesn't accept a copy keyword",
)


class _Encoder(keras.Model):
    """The posterior of images as they come, whatever lies under their masks."""

    def __init__(self, vae):
        super().__init__(name="encoder", autocast=False)
        # only these are exported: no decoder
        self.parts = [vae.encoder, vae.posterior_layer, vae.prior]
        if vae.band_dropout:
            self.parts.append(vae.missing_bands)
        self.function = vae._encode_batch
        self.shift = (2.0 * np.log(vae.latent_temperature)).astype("float32")

    def build(self, input_shape):
        """Leave the layers as they are: they are built."""

    def call(self, inputs):
        # as clean_batch does before `VAE.encode`
        bad = ops.logical_not(ops.isfinite(inputs["image"]))
        if "mask" in inputs:
            bad = ops.logical_or(bad, inputs["mask"])
        batch = dict(inputs)
        if "error" in inputs:
            error = inputs["error"]
            good = ops.logical_and(ops.isfinite(error), error > 0.0)
            bad = ops.logical_or(bad, ops.logical_not(good))
            batch["error"] = ops.where(bad, 1.0, error)
        batch["image"] = ops.where(bad, 0.0, inputs["image"])
        posterior = self.function({**batch, "mask": bad})
        if self.shift.any():
            shift = ops.where(posterior["measured"][:, None], self.shift, 0.0)
            posterior["log_var"] = posterior["log_var"] + shift
        return {name: posterior[name] for name in _OUTPUTS}


def export_encoder(
    vae,
    path,
    *,
    format=None,  # noqa: A002
    mask=True,
    psf_shape=None,
    overwrite=False,
):
    """Write the encoder of a model; see `VAE.export_encoder`."""
    name = _check_format(vae, format)
    specs = _input_specs(vae, mask, psf_shape)
    record = json.dumps(_record(vae, specs), indent=1) + "\n"
    if name == "onnx":
        with atomic_file(path, overwrite=overwrite) as temporary:
            _export(vae, temporary, name, specs)
            _finish_onnx(temporary, record)
    else:
        with atomic_folder(path, overwrite=overwrite, marker=_MARKER) as temporary:
            _export(vae, temporary, name, specs)
            _check_saved_model(temporary, specs)
            (temporary / _EXTRA).mkdir()
            (temporary / _EXTRA / "astrovae.json").write_text(record, "utf-8")


def _check_format(vae, name):
    """Give the format, if it can be written here."""
    backend = keras.config.backend()
    (supported,) = (key for key, value in _FORMATS.items() if backend in value)
    name = check_option("format", supported if name is None else name, (*_FORMATS,))
    if name != supported:
        others = " or ".join(_FORMATS[name])
        msg = (
            f"format={name!r} is written by Keras on {others}, and this is {backend}. "
            f"Use format={supported!r}; or save the model with save_preset, and load "
            f"and export it with KERAS_BACKEND={_FORMATS[name][0]}."
        )
        raise ValueError(msg)
    if name == "onnx" and vae.compute_dtype != "float32":
        msg = (
            "ONNX takes models that compute in float32, and this one has the dtype "
            f"policy {vae.dtype_policy.name!r}. Make it with dtype='float32' and give "
            "it the weights of this one."
        )
        raise ValueError(msg)
    require("onnx" if name == "onnx" else "tensorflow", extra="export")
    return name


def _input_specs(vae, mask, psf_shape):
    """Names, shapes and types of what the encoder takes, for any batch size."""
    image_shape = (None, *vae.image_shape)
    inputs = {"image": image_shape}
    if mask:
        inputs["mask"] = image_shape
    if vae.pose:
        inputs["pose"] = (None, 4)
    if "error" in vae.side_inputs:
        inputs["error"] = image_shape
    if "psf" in vae.side_inputs:
        if psf_shape is None:
            msg = "this encoder takes PSFs: give their psf_shape=(ky, kx)."
            raise ValueError(msg)
        kernel = check_shape("psf_shape", psf_shape)
        inputs["psf"] = (None, *kernel, vae.image_shape[2])
    return {
        name: keras.InputSpec(
            shape=shape, dtype="bool" if name == "mask" else "float32", name=name
        )
        for name, shape in inputs.items()
    }


def _record(vae, specs):
    """What the user of an exported encoder should know."""
    from astrovae import __version__

    return {
        "astrovae": __version__,
        "keras": keras.__version__,
        "inputs": {name: list(spec.shape) for name, spec in specs.items()},
        "latent_dim": vae.latent_dim,
        "preprocessing": vae.preprocessing,
        "sha256": vae.sha256,
    }


@contextlib.contextmanager
def _quietly():
    """Hide what is known and harmless of Keras and its backends."""
    logger = logging.getLogger("absl")
    level = logger.level
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        # TensorFlow warns that nobody can train the result
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _export(vae, path, name, specs):
    encoder, options = _Encoder(vae), {}
    encoder.build({key: spec.shape for key, spec in specs.items()})
    if keras.config.backend() == "jax":
        # a model that was exported on one kind of device runs on the others
        platforms = ("cpu", "cuda", "tpu")
        options["jax2tf_kwargs"] = {"native_serialization_platforms": platforms}
    with _quietly(), vae.to_aligned.without_gradient():
        encoder.export(
            path, format=name, input_signature=[specs], verbose=False, **options
        )


def _check_saved_model(path, specs):
    """Refuse what the TensorFlow at hand cannot run."""
    tensorflow = require("tensorflow", extra="export")
    zeros = {
        name: np.zeros((1, *spec.shape[1:]), spec.dtype) for name, spec in specs.items()
    }
    try:
        with _quietly():
            model = tensorflow.saved_model.load(str(path))
            model.serve(zeros)
    except tensorflow.errors.OpError as error:
        msg = (
            f"TensorFlow {tensorflow.__version__} cannot run what Keras on "
            f"{keras.config.backend()} exported. Use versions of the same date, or "
            "save the model with save_preset, and load and export it with "
            "KERAS_BACKEND=tensorflow."
        )
        raise RuntimeError(msg) from error


def _finish_onnx(path, record):
    """Name the outputs, which Keras leaves to PyTorch, and add the record."""
    onnx = require("onnx", extra="export")
    model = onnx.load(path)
    graph = model.graph
    found = [output.name for output in graph.output]
    names = dict(zip(found, _OUTPUTS, strict=True))
    for output in graph.output:
        output.name = names[output.name]
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(end, end) for end in ends]
    onnx.helper.set_model_props(model, {"astrovae": record})
    onnx.checker.check_model(model)
    onnx.save(model, path)
