# Licensed under a 3-clause BSD style license - see LICENSE
"""The published weights of AstroVaDEr."""

import warnings
from pathlib import Path

import h5py
import numpy as np

from astrovae.exceptions import AstrovaeWarning, PresetError

__all__ = ["load_published_weights"]

_SIZE, _LATENT_DIM, _NUM_COMPONENTS = 128, 20, 12
_MIXTURE = "latentGMM_Layer"
# a weight below this share of all is as good as none
_SMALLEST_WEIGHT = 1e-12
# as of MixturePrior
_SMALLEST_VARIANCE = 1e-4
_DUPLICATE = 0.95


def load_published_weights(path):
    r"""
    Read the weights that were published with AstroVaDEr.

    They come as a file of Keras 2.3, ``saved_weights.h5``, which is read as plain
    arrays: nothing in it is executed, and no old version of Keras is needed.
    Prepare pictures as its authors did, with
    ``CutoutStack.from_images(path, preprocess="astrovader")`` or
    `~astrovae.images.preprocess_cutouts`.

    Parameters
    ----------
    path : path-like
        The HDF5 file.

    Returns
    -------
    vae : `~astrovae.models.VAE`
        The model of the preset ``"astrovader"`` for images of 128 x 128
        pixels from 0 to 1, with 20 latents and 12 components, in the order
        of the file. It can be used at once, or trained further after
        ``compile``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ~astrovae.exceptions.PresetError
        If it is truncated or not HDF5, lacks a layer, or if an array has
        another shape or is not finite.

    Warns
    -----
    ~astrovae.exceptions.AstrovaeWarning
        If the mixture in the file is not one of probabilities, as that of the
        published file is not, or holds components twice. It says what was
        wrong.

    Notes
    -----
    The weights :math:`\pi_c` of the mixture are those of the file,
    ``theta_p``, over their sum. Means ``u_p`` and variances ``lambda_p`` are
    taken as they are. Probabilities of components are those of
    `MixturePrior.responsibilities <astrovae.layers.MixturePrior>`, not the
    published ones, which were rescaled by the extremes of the batch.

    References
    ----------
    Spindler, Geach & Smith 2021, MNRAS 502, 985 (arXiv:2009.08470); file
    ``data/saved_weights.h5`` at github.com/AshleySpindler/AstroVaDEr-Public.

    Examples
    --------
    >>> from astrovae.interop.astrovader import load_published_weights
    >>> vae = load_published_weights("saved_weights.h5")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    arrays = _read(path)
    from astrovae.models import VAE

    vae = VAE.from_preset("astrovader", image_shape=(_SIZE, _SIZE, 1))
    decoder = vae.decoder
    for layer in (
        *vae.encoder.convolutions,
        decoder.project,
        *decoder.convolutions,
        decoder.output_layer,
    ):
        layer.set_weights([arrays[layer.name, "kernel"], arrays[layer.name, "bias"]])
    vae.posterior_layer.set_weights(
        [
            np.concatenate(
                [arrays["latentmean", part], arrays["latentlog_var", part]], axis=-1
            )
            for part in ("kernel", "bias")
        ]
    )
    _set_mixture(path, vae.prior, arrays)
    return vae


def _expected_shapes():
    """Shapes of all arrays of the file, by layer and name."""
    filters = [1, 64, 64, 64, 64, 16, 16]
    sizes = [3, 3, 5, 5, 5, 5]
    kernels = {
        f"Conv{i}": (size, size, filters[i - 1], filters[i])
        for i, size in enumerate(sizes, 1)
    }
    filters = [16, 16, 16, 64, 64, 64, 64]
    kernels |= {f"Conv{6 + i}": (5, 5, filters[i - 1], filters[i]) for i in range(1, 7)}
    kernels["Output"] = (3, 3, 64, 1)
    features = (_SIZE // 8) ** 2 * 16
    kernels["FC3"] = (_LATENT_DIM, features)
    kernels["latentmean"] = kernels["latentlog_var"] = (features, _LATENT_DIM)
    shapes = {}
    for layer, shape in kernels.items():
        shapes[layer, "kernel"] = shape
        shapes[layer, "bias"] = shape[-1:]
    shapes[_MIXTURE, "theta_p"] = (_NUM_COMPONENTS,)
    shapes[_MIXTURE, "u_p"] = (_LATENT_DIM, _NUM_COMPONENTS)
    shapes[_MIXTURE, "lambda_p"] = (_LATENT_DIM, _NUM_COMPONENTS)
    return shapes


def _read(path):
    """Read all arrays, after their shapes have been checked."""
    try:
        with h5py.File(path, "r") as file:
            # whole models keep their weights in a group
            found = _datasets(file.get("model_weights", file))
            return {
                key: _array(found, key, shape)
                for key, shape in _expected_shapes().items()
            }
    except PresetError as error:
        msg = f"{path} is no file of AstroVaDEr's weights: {error}."
        raise PresetError(msg) from None
    # h5py raises errors of many kinds on damaged files
    except Exception as error:
        msg = f"{path} cannot be read: it is truncated, or not HDF5 ({error})."
        raise PresetError(msg) from error


def _datasets(group):
    """Arrays by layer and name; links to other places are not followed."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            parts = name.split("/")
            found[parts[0], parts[-1].split(":")[0]] = item

    group.visititems(visit)
    return found


def _array(found, key, shape):
    name = "/".join(key)
    if key not in found:
        msg = f"it has no {name}"
        raise PresetError(msg)
    if found[key].shape != shape or found[key].dtype.kind != "f":
        msg = (
            f"{name} must be floating-point numbers of shape {shape}, got "
            f"{found[key].dtype} of shape {found[key].shape}"
        )
        raise PresetError(msg)
    with np.errstate(over="ignore"):
        array = found[key][()].astype(np.float32)
    if not np.isfinite(array).all():
        msg = f"{name} holds values that are not finite"
        raise PresetError(msg)
    return array


def _set_mixture(path, prior, arrays):
    """Make the mixture one of probabilities, and say what was wrong with it."""
    weights, means, variances = (
        arrays[_MIXTURE, name].astype(float) for name in ("theta_p", "u_p", "lambda_p")
    )
    total = weights[weights > 0].sum()
    if not total > 0:
        msg = f"{path} is no file of AstroVaDEr's weights: no component has weight."
        raise PresetError(msg)
    wrong = []
    if abs(weights.sum() - 1) > 1e-5:
        wrong.append(f"its weights sum to {weights.sum():.4g} and were divided by it")
    if (weights <= 0).any():
        wrong.append(
            f"{(weights <= 0).sum()} weights are not positive and were set to zero"
        )
    low = variances < _SMALLEST_VARIANCE
    if low.any():
        wrong.append(f"{low.sum()} variances are below 1e-4 and were raised to it")
    weights = np.maximum(weights / total, _SMALLEST_WEIGHT)
    prior.set_components(weights, means.T, np.maximum(variances.T, _SMALLEST_VARIANCE))
    wrong += [
        f"components {i} and {j} are nearly the same (Bhattacharyya coefficient "
        f"{value:.3f}; prior.merge_duplicates() merges them)"
        for i, j, value in prior.duplicates(_DUPLICATE)
    ]
    if wrong:
        msg = f"The mixture in {path} was not as it should be: {'; '.join(wrong)}."
        warnings.warn(msg, AstrovaeWarning, stacklevel=3)
