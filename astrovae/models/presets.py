# Licensed under a 3-clause BSD style license - see LICENSE
"""Presets: architectures of the literature by name, trained models by folder."""

import copy
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import keras

from astrovae._files import atomic_folder
from astrovae.exceptions import PresetError

__all__ = [
    "citation",
    "describe_preset",
    "list_presets",
    "load_preset",
    "save_preset",
]

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_PREPROCESSING = "preprocessing.json"
_METADATA = "metadata.json"

# Each preset is data: arguments of VAE, of its networks and its likelihood.
_PRESETS = {
    "regier2015": {
        "description": "Fully connected, 8 latents, learned mean and variance of "
        "each pixel, as published for 69 x 69 single-band images.",
        "bibtex": """@inproceedings{regier2015deep,
  author    = {Regier, Jeffrey and McAuliffe, Jon and Prabhat},
  title     = {A deep generative model for astronomical images of galaxies},
  booktitle = {NIPS Workshop on Advances in Approximate Bayesian Inference},
  year      = {2015}
}""",
        "vae": {"latent_dim": 8},
        "encoder": {"hidden_units": [128, 128], "activation": "relu"},
        "decoder": {"hidden_units": [128, 128], "activation": "relu"},
        "likelihood": {"learn_variance": True, "transform": "exp"},
    },
    "galaxy_small": {
        "description": "Fully connected, asinh-scaled encoder input, a decoder with "
        "a linear skip, known and learned noise: for small cutouts and samples.",
        "bibtex": """@software{astrovae,
  author = {{The astrovae developers}},
  title  = {astrovae},
  year   = {2026}
}""",
        "vae": {"latent_dim": 8, "stretch": "asinh"},
        "encoder": {"hidden_units": [256, 256], "activation": "gelu"},
        "decoder": {
            "hidden_units": [256, 256],
            "activation": "gelu",
            "linear_skip": True,
        },
        "likelihood": {"learn_variance": True, "beta_nll": 1.0},
    },
}


def list_presets():
    """
    List the named presets.

    Returns
    -------
    presets : dict of str
        A sentence about each, by name.

    Examples
    --------
    >>> from astrovae.models import list_presets
    >>> sorted(list_presets())
    ['galaxy_small', 'regier2015']
    """
    return {name: preset["description"] for name, preset in _PRESETS.items()}


def _named(name):
    if name not in _PRESETS:
        msg = (
            f"There is no preset or preset folder {name!r}. Named presets are "
            f"{', '.join(sorted(_PRESETS))}; a folder is made by save_preset."
        )
        raise PresetError(msg)
    return copy.deepcopy(_PRESETS[name])


def citation(preset):
    """
    Give the BibTeX entry of a named preset.

    Parameters
    ----------
    preset : str
        The name.

    Returns
    -------
    bibtex : str
        The entry.

    Raises
    ------
    ~astrovae.exceptions.PresetError
        If there is no such preset.

    Examples
    --------
    >>> from astrovae.models import citation
    >>> print(citation("regier2015").splitlines()[0])
    @inproceedings{regier2015deep,
    """
    return _named(preset)["bibtex"]


def load_preset(preset, **kwargs):
    """Make a `VAE` from a name or a folder; see `VAE.from_preset`."""
    if Path(preset).is_dir():
        return _load_folder(Path(preset), **kwargs)
    return _make(str(preset), **kwargs)


def _make(name, *, image_shape=None, **kwargs):
    from astrovae.models.likelihoods import GaussianLikelihood
    from astrovae.models.networks import DenseDecoder, DenseEncoder
    from astrovae.models.vae import VAE

    preset = _named(name)
    if image_shape is None:
        msg = (
            f"preset {name!r} needs image_shape=(ny, nx, n_bands), "
            "e.g. image_shape=stack.image_shape."
        )
        raise ValueError(msg)
    image_shape = tuple(image_shape)
    likelihood = kwargs.pop("likelihood", None) or GaussianLikelihood(
        **preset["likelihood"]
    )
    channels = likelihood.num_parameters * image_shape[-1]
    networks = {
        "encoder": lambda config: DenseEncoder(**config),
        "decoder": lambda config: DenseDecoder((*image_shape[:2], channels), **config),
    }
    for key, make in networks.items():
        if kwargs.get(key) is None:
            kwargs[key] = make(preset[key])
    arguments = {**preset["vae"], "name": name, **kwargs}
    return VAE(image_shape, likelihood=likelihood, **arguments)


def save_preset(model, folder, *, overwrite=False, metadata=None):
    """Write a model to a preset folder; see `VAE.save_preset`."""
    folder = Path(folder)
    with atomic_folder(folder, overwrite=overwrite, marker=_CONFIG) as temporary:
        config = keras.saving.serialize_keras_object(model)
        preprocessing = config["config"].pop("preprocessing")
        _write_json(temporary / _CONFIG, config)
        _write_json(temporary / _PREPROCESSING, preprocessing)
        model.save_weights(temporary / _WEIGHTS)
        _write_json(temporary / _METADATA, _metadata(temporary, metadata))


def _metadata(folder, extra):
    from astrovae import __version__

    return {
        "astrovae": __version__,
        "keras": keras.__version__,
        "backend": keras.config.backend(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": {
            name: _sha256(folder / name) for name in (_CONFIG, _PREPROCESSING, _WEIGHTS)
        },
        **(extra or {}),
    }


def _load_folder(folder, **kwargs):
    if kwargs:
        msg = (
            f"{folder} holds a trained model, whose arguments are fixed; "
            f"got {', '.join(kwargs)}."
        )
        raise ValueError(msg)
    metadata = _read_json(folder / _METADATA)
    for name, expected in metadata["sha256"].items():
        path = folder / name
        if not path.exists():
            msg = f"{folder} is not a complete preset: {name} is missing."
            raise PresetError(msg)
        if _sha256(path) != expected:
            msg = (
                f"{path} is damaged or was altered: its SHA-256 is not the one "
                f"recorded in {_METADATA}."
            )
            raise PresetError(msg)
    config = _read_json(folder / _CONFIG)
    try:
        config["config"]["preprocessing"] = _read_json(folder / _PREPROCESSING)
        model = keras.saving.deserialize_keras_object(config)
        model.load_weights(folder / _WEIGHTS)
    except (TypeError, ValueError, KeyError, OSError) as error:
        msg = f"{folder} cannot be read as a preset: {error}"
        raise PresetError(msg) from error
    model.sha256 = metadata["sha256"][_WEIGHTS]
    return model


def describe_preset(folder):
    """Give lines that say what is in a preset folder."""
    folder = Path(folder)
    metadata = _read_json(folder / _METADATA)
    config = _read_json(folder / _CONFIG)["config"]
    record = _read_json(folder / _PREPROCESSING)
    lines = [f"{folder}: model {config['name']}"]
    names = ("image_shape", "latent_dim", "posterior", "stretch")
    lines += [f"  {name}: {config[name]}" for name in names]
    for label, values in (("prepared", record or {}), ("made", metadata)):
        lines += [f"  {label}: {key} = {value}" for key, value in values.items()]
    return lines


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_json(path):
    if not path.exists():
        msg = f"{path.parent} is not a complete preset: {path.name} is missing."
        raise PresetError(msg)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        msg = f"{path} cannot be read: {error}"
        raise PresetError(msg) from error


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
