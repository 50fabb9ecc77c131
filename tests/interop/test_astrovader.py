# Licensed under a 3-clause BSD style license - see LICENSE
"""The published weights of AstroVaDEr, against a net written in NumPy."""

import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose

from astrovae.exceptions import AstrovaeWarning, PresetError
from astrovae.interop.astrovader import load_published_weights

MIXTURE = "latentGMM_Layer"
# kernels as published: height, width, channels in, channels out
CONVOLUTIONS = {
    "Conv1": (3, 3, 1, 64),
    "Conv2": (3, 3, 64, 64),
    "Conv3": (5, 5, 64, 64),
    "Conv4": (5, 5, 64, 64),
    "Conv5": (5, 5, 64, 16),
    "Conv6": (5, 5, 16, 16),
    "Conv7": (5, 5, 16, 16),
    "Conv8": (5, 5, 16, 16),
    "Conv9": (5, 5, 16, 64),
    "Conv10": (5, 5, 64, 64),
    "Conv11": (5, 5, 64, 64),
    "Conv12": (5, 5, 64, 64),
    "Output": (3, 3, 64, 1),
}
DENSE = {"FC3": (20, 4096), "latentmean": (4096, 20), "latentlog_var": (4096, 20)}


@pytest.fixture(scope="module")
def published():
    """Arrays like those of the published file, with its faults."""
    rng = np.random.default_rng(7)
    arrays = {}
    for name, shape in {**CONVOLUTIONS, **DENSE}.items():
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        arrays[name, "kernel"] = rng.normal(0, scale, shape).astype("f4")
        arrays[name, "bias"] = rng.normal(0, 0.1, shape[-1:]).astype("f4")
    arrays[MIXTURE, "theta_p"] = rng.uniform(1.9, 2.6, 12).astype("f4")
    arrays[MIXTURE, "u_p"] = rng.normal(0, 1, (20, 12)).astype("f4")
    arrays[MIXTURE, "lambda_p"] = rng.uniform(0.3, 5, (20, 12)).astype("f4")
    return arrays


def write(path, arrays, group=None):
    """Write a file of the layout of Keras 2.3."""
    with h5py.File(path, "w") as file:
        root = file if group is None else file.create_group(group)
        root.attrs["keras_version"] = "2.3.1"
        for layer in dict.fromkeys(layer for layer, _ in arrays):
            place = root.create_group(layer)
            # the mixture was in a layer of its own, whose weights lie higher
            names = []
            for (owner, name), array in arrays.items():
                if owner == layer:
                    key = f"{name}:0" if layer == MIXTURE else f"{layer}/{name}:0"
                    place.create_dataset(key, data=array)
                    names.append(key)
            place.attrs["weight_names"] = np.array(names, "S")
        root.create_group("Pool1").attrs["weight_names"] = np.array([], "S")
    return path


def load(path):
    """Load a file whose mixture has faults."""
    with pytest.warns(AstrovaeWarning, match="was not as it should be"):
        return load_published_weights(path)


def convolve(x, kernel, bias):
    """Correlate with zeros around, in float64."""
    size = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (size, size), (size, size), (0, 0)))
    windows = sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    # channels come before the window
    weights = np.moveaxis(kernel.astype(float), 2, 0).reshape(-1, kernel.shape[3])
    flat = windows.reshape(-1, len(weights))
    return (flat @ weights).reshape(*x.shape[:3], -1) + bias


def leaky(x):
    """Fall by a tenth below zero."""
    return np.where(x > 0, x, 0.1 * x)


def double(x):
    """Interpolate at half the coordinates, as TensorFlow 1 did."""
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(2 * n) / 2
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)
    return x


def encode(images, arrays):
    """Mean and log-variance of the latents."""
    x = images.astype(float)
    for i in range(1, 7):
        x = leaky(convolve(x, arrays[f"Conv{i}", "kernel"], arrays[f"Conv{i}", "bias"]))
        if i % 2 == 0:
            n, ny, nx, channels = x.shape
            x = x.reshape(n, ny // 2, 2, nx // 2, 2, channels).max(axis=(2, 4))
    x = x.reshape(len(x), -1)
    return tuple(
        x @ arrays[name, "kernel"].astype(float) + arrays[name, "bias"]
        for name in ("latentmean", "latentlog_var")
    )


def decode(z, arrays):
    """Paint galaxies."""
    x = leaky(z @ arrays["FC3", "kernel"].astype(float) + arrays["FC3", "bias"])
    x = x.reshape(-1, 16, 16, 16)
    for i in range(7, 13):
        x = leaky(convolve(x, arrays[f"Conv{i}", "kernel"], arrays[f"Conv{i}", "bias"]))
        if i % 2 == 0:
            x = double(x)
    return np.maximum(
        convolve(x, arrays["Output", "kernel"], arrays["Output", "bias"]), 0
    )


@pytest.mark.slow
def test_networks_are_those_of_the_file(published, tmp_path):
    """Means, log-variances and painted galaxies equal those of NumPy."""
    vae = load(write(tmp_path / "weights.h5", published))
    rng = np.random.default_rng(3)
    images = rng.uniform(0, 1, (2, 128, 128, 1)).astype("f4")
    mean, log_var = vae.encode(images)
    expected_mean, expected_log_var = encode(images, published)
    assert_allclose(mean, expected_mean, atol=1e-4)
    assert_allclose(log_var, expected_log_var, atol=1e-4)
    z = rng.normal(0, 1, (2, 20)).astype("f4")
    painted = vae.decode(z)["mean"]
    expected = decode(z, published)
    assert expected.std() > 0.1
    assert_allclose(painted, expected, atol=1e-4)


def test_mixture_becomes_one_of_probabilities(published, tmp_path):
    """Weights over their sum; means and variances as they are; a warning."""
    arrays = dict(published)
    means, variances = arrays[MIXTURE, "u_p"].copy(), arrays[MIXTURE, "lambda_p"].copy()
    means[:, 10], variances[:, 10] = means[:, 2], variances[:, 2]
    variances[3, 5] = 1e-6
    arrays |= {(MIXTURE, "u_p"): means, (MIXTURE, "lambda_p"): variances}
    path = write(tmp_path / "weights.h5", arrays, group="model_weights")
    with pytest.warns(AstrovaeWarning) as caught:
        vae = load_published_weights(path)
    (text,) = [str(w.message) for w in caught if w.category is AstrovaeWarning]
    weights = arrays[MIXTURE, "theta_p"].astype(float)
    assert f"weights sum to {weights.sum():.4g}" in text
    assert "components 2 and 10 are nearly the same" in text
    assert "1 variances are below 1e-4" in text
    found = vae.prior.components()
    assert_allclose(found["weights"], weights / weights.sum(), rtol=1e-5)
    assert_allclose(found["weights"].sum(), 1, rtol=1e-6)
    assert_allclose(found["means"], means.T, rtol=1e-6)
    assert_allclose(found["covariances"], np.maximum(variances.T, 1e-4), rtol=2e-4)


def test_good_mixture_gives_no_warning(published, tmp_path):
    """Where nothing is wrong, nothing is said."""
    weights = published[MIXTURE, "theta_p"].astype(float)
    arrays = {**published, (MIXTURE, "theta_p"): weights / weights.sum()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", AstrovaeWarning)
        vae = load_published_weights(write(tmp_path / "weights.h5", arrays))
    assert_allclose(vae.prior.components()["weights"], weights / weights.sum(), 1e-5)


def change(name, value):
    """Make a function that changes one array of the file."""
    return lambda arrays: arrays | {name: value}


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (
            change(("Conv3", "kernel"), np.zeros((3, 3, 64, 64), "f4")),
            r"Conv3/kernel must be .* shape \(5, 5, 64, 64\), got .* \(3, 3, 64, 64\)",
        ),
        (
            change((MIXTURE, "u_p"), np.zeros((20, 128), "f4")),
            r"latentGMM_Layer/u_p must be .* shape \(20, 12\)",
        ),
        (
            change(("Output", "bias"), np.zeros(1, int)),
            "Output/bias must be floating-point numbers",
        ),
        (
            lambda arrays: {k: v for k, v in arrays.items() if k[0] != "FC3"},
            "it has no FC3/kernel",
        ),
        (
            change(("FC3", "bias"), np.full(4096, np.nan, "f4")),
            "FC3/bias holds values that are not finite",
        ),
        (
            change((MIXTURE, "theta_p"), np.zeros(12, "f4")),
            "no component has weight",
        ),
    ],
)
def test_other_files_are_refused(published, tmp_path, alter, message):
    """Other shapes, missing layers and broken numbers are named."""
    path = write(tmp_path / "weights.h5", alter(published))
    with pytest.raises(PresetError, match=message):
        load_published_weights(path)


def test_damaged_files_are_refused(published, tmp_path):
    """Truncated, empty and missing files, and links to other files."""
    path = write(tmp_path / "weights.h5", published)
    content = path.read_bytes()
    for size in (0, 100, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(PresetError, match="truncated, or not HDF5"):
            load_published_weights(path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_published_weights(tmp_path / "none.h5")
    path.write_bytes(content)
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["Conv1"] = h5py.ExternalLink(str(path), "Conv1")
    with pytest.raises(PresetError, match="it has no Conv1/kernel"):
        load_published_weights(tmp_path / "linked.h5")


def test_import_needs_no_keras():
    """Keras is loaded when weights are."""
    code = (
        "import sys, astrovae.interop.astrovader\n"
        "assert 'keras' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
