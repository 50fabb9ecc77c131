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

_OURS = """@software{astrovae,
  author = {{The astrovae developers}},
  title  = {astrovae},
  year   = {2026}
}"""

# Each preset is data: the classes of its parts and their arguments. Where a
# part is not named, it is the default of VAE.
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
        "encoder": (
            "DenseEncoder",
            {"hidden_units": [128, 128], "activation": "relu"},
        ),
        "decoder": (
            "DenseDecoder",
            {"hidden_units": [128, 128], "activation": "relu"},
        ),
        "likelihood": (
            "GaussianLikelihood",
            {"learn_variance": True, "transform": "exp"},
        ),
    },
    "lanusse2020": {
        "description": "Convolutional, 16 latents, known noise, positive light, for "
        "128 x 128 single-band images with errors. Widths, depth and latents "
        "are those of the training script, and so are the weights of its penalties "
        "on total variation and borders, at its noise of 0.03 per pixel; the blocks "
        "are our residual ones in place of separable convolutions with layer "
        "normalisation. With psf=True it paints galaxies before their PSF, as the "
        "script does.",
        "bibtex": """@article{lanusse2021deep,
  author  = {Lanusse, Fran{\\c{c}}ois and Mandelbaum, Rachel and Ravanbakhsh,
             Siamak and Li, Chun-Liang and Freeman, Peter and P{\\'o}czos,
             Barnab{\\'a}s},
  title   = {Deep generative models for galaxy image simulations},
  journal = {Monthly Notices of the Royal Astronomical Society},
  volume  = {504},
  number  = {4},
  pages   = {5543--5555},
  year    = {2021},
  eprint  = {2008.03833},
  archivePrefix = {arXiv}
}""",
        # 0.01 times the total variation and 1 times the squares at the border, both
        # in the unit of pixels whose noise is 0.03 (galaxy2galaxy, training_vae.job)
        "vae": {
            "latent_dim": 16,
            "regularizers": {"total_variation": 0.01 * 0.03, "border": 0.03**2},
        },
        "encoder": (
            "ConvEncoder",
            {
                "filters": [32, 64, 128, 256, 512, 512, 512],
                "patch_size": 2,
                "activation": "elu",
            },
        ),
        "decoder": (
            "ConvDecoder",
            {
                "filters": [32, 64, 128, 256, 512, 512, 512],
                "patch_size": 2,
                "activation": "elu",
                "output_activation": "softplus",
            },
        ),
        "likelihood": ("GaussianLikelihood", {"learn_variance": False}),
    },
    "astrovader": {
        "description": "The network of AstroVaDEr with 20 latents in a mixture of 12 "
        "components, for 128 x 128 images from 0 to 1. The published loss is the "
        "sum of squares, a noise of sqrt(1/2) per pixel, and 0.3 times the KL "
        "divergence; its weight decay of 0.01 is left to the optimizer.",
        "bibtex": """@article{spindler2021astrovader,
  author  = {Spindler, Ashley and Geach, James E. and Smith, Michael J.},
  title   = {{AstroVaDEr}: astronomical variational deep embedder for
             unsupervised morphological classification of galaxies and synthetic
             image generation},
  journal = {Monthly Notices of the Royal Astronomical Society},
  volume  = {502},
  number  = {1},
  pages   = {985--1007},
  year    = {2021},
  eprint  = {2009.08470},
  archivePrefix = {arXiv}
}""",
        "vae": {"latent_dim": 20, "beta": 0.3, "scale": [1.0], "noise": [1.0]},
        "encoder": ("AstroVaDErEncoder", {}),
        "decoder": ("AstroVaDErDecoder", {}),
        "prior": ("MixturePrior", {"num_components": 12}),
        "likelihood": (
            "GaussianLikelihood",
            {"learn_variance": False, "sigma_floor": 0.5**0.5},
        ),
    },
    "loh2022": {
        "description": "Fully connected, 2 latents, for 100 x 100 single-band images "
        "from 0 to 1, turned to a common position angle. Layers are those of the "
        "thesis' autoencoder; those of its variational one are not "
        "public, nor is the weight of its KL divergence: here one variance per "
        "pixel is learned in its place.",
        "bibtex": """@thesis{loh2022dimensionality,
  author = {Loh, Dillon},
  title  = {Dimensionality reduction methods and relevant applications to
            galactic images},
  type   = {Bachelor's thesis},
  school = {Nagoya University},
  year   = {2022},
  url    = {https://github.com/dillonloh/galaxy-pca}
}""",
        "vae": {"latent_dim": 2},
        "encoder": (
            "DenseEncoder",
            {"hidden_units": [1000, 100, 64, 32], "activation": "relu"},
        ),
        "decoder": (
            "DenseDecoder",
            {"hidden_units": [32, 64, 100, 1000], "activation": "relu"},
        ),
        "likelihood": ("GaussianLikelihood", {"learn_variance": True}),
    },
    "galaxy_small": {
        "description": "Fully connected, asinh-scaled encoder input, a decoder with "
        "a linear skip, known and learned noise: for small cutouts and samples.",
        "bibtex": _OURS,
        "vae": {"latent_dim": 8, "stretch": "asinh"},
        "encoder": (
            "DenseEncoder",
            {"hidden_units": [256, 256], "activation": "gelu"},
        ),
        "decoder": (
            "DenseDecoder",
            {"hidden_units": [256, 256], "activation": "gelu", "linear_skip": True},
        ),
        "likelihood": (
            "GaussianLikelihood",
            {"learn_variance": True, "beta_nll": 1.0},
        ),
    },
    "galaxy_eigen": {
        "description": "Dense networks between 192 principal components and 8 latents, "
        "for galaxies with a pose (pose=True, on a canvas sqrt(2) times larger), "
        "trained to paint faint and bright ones alike: for samples of thousands.",
        "bibtex": _OURS,
        "vae": {"latent_dim": 8, "beta": 30.0},
        "encoder": ("EigenEncoder", {"dropout": 0.2}),
        "decoder": ("EigenDecoder", {}),
        "likelihood": ("GaussianLikelihood", {"profile": 3.0}),
    },
    "galaxy_base": {
        "description": "Residual convolutions on patches, asinh-scaled encoder input, "
        "linear skips, 20 latents, known and learned noise: for cutouts of "
        "64 to 256 pixels and samples of thousands.",
        "bibtex": _OURS,
        "vae": {"latent_dim": 20, "stretch": "asinh"},
        "encoder": (
            "ConvEncoder",
            {"filters": [32, 64, 128], "activation": "gelu", "linear_skip": True},
        ),
        "decoder": (
            "ConvDecoder",
            {"filters": [32, 64, 128], "activation": "gelu", "linear_skip": True},
        ),
        "likelihood": (
            "GaussianLikelihood",
            {"learn_variance": True, "beta_nll": 1.0},
        ),
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
    >>> for name in list_presets():
    ...     print(name)
    regier2015
    lanusse2020
    astrovader
    loh2022
    galaxy_small
    galaxy_eigen
    galaxy_base
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


def load_preset(preset, *, kind=keras.Model, **kwargs):
    """Make a model from a name or a folder; see `VAE.from_preset`."""
    path = Path(preset)
    if path.is_dir():
        return _load_folder(path, kind, **kwargs)
    if path.is_file():
        msg = (
            f"{path} is a file; a preset is a folder made by save_preset. Models in "
            ".keras files are loaded by keras.saving.load_model; legacy .h5 models, "
            "which may hold code, are not read."
        )
        raise PresetError(msg)
    from astrovae.models.vae import VAE

    if not issubclass(VAE, kind):
        msg = (
            f"There is no preset folder {preset}; a {kind.__name__} is loaded from "
            "a folder that its save_preset has made."
        )
        raise PresetError(msg)
    return _make(str(preset), **kwargs)


def _make(name, *, image_shape=None, **kwargs):
    from astrovae.models.vae import VAE

    preset = _named(name)
    if image_shape is None:
        msg = (
            f"preset {name!r} needs image_shape=(ny, nx, n_bands), "
            "e.g. image_shape=stack.image_shape."
        )
        raise ValueError(msg)
    image_shape = tuple(image_shape)
    arguments = {**preset["vae"], "name": name, **kwargs}

    def part(key, **fitted):
        """Make a part from the data, unless the caller gives one."""
        if arguments.get(key) is None and key in preset:
            class_name, config = preset[key]
            cls = keras.saving.get_registered_object(f"astrovae>{class_name}")
            arguments[key] = cls(**fitted, **config)
        return arguments.get(key)

    likelihood = part("likelihood")
    channels = likelihood.num_parameters * image_shape[-1]
    policy = {"dtype": arguments.get("dtype")}
    part("encoder", **policy)
    canvas = arguments.get("canvas_shape") or image_shape[:2]
    painted = [size * arguments.get("oversampling", 1) for size in canvas]
    part("decoder", target_shape=(*painted, channels), **policy)
    part("prior", latent_dim=arguments["latent_dim"])
    return VAE(image_shape, **arguments)


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
        **(extra or {}),
        "astrovae": __version__,
        "keras": keras.__version__,
        "backend": keras.config.backend(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": {
            name: _sha256(folder / name) for name in (_CONFIG, _PREPROCESSING, _WEIGHTS)
        },
    }


def _load_folder(folder, kind, **kwargs):
    if kwargs:
        msg = (
            f"{folder} holds a trained model, whose arguments are fixed; "
            f"got {', '.join(kwargs)}."
        )
        raise ValueError(msg)
    metadata, config = _read_folder(folder)
    try:
        config["config"]["preprocessing"] = _read_json(folder / _PREPROCESSING)
        model = keras.saving.deserialize_keras_object(config)
        model.load_weights(folder / _WEIGHTS)
    except (TypeError, ValueError, KeyError, AttributeError, OSError) as error:
        msg = f"{folder} cannot be read as a preset: {error}"
        raise PresetError(msg) from error
    if not isinstance(model, kind):
        found = type(model).__name__
        msg = f"{folder} holds a {found}: use {found}.from_preset."
        raise PresetError(msg)
    model.sha256 = metadata["sha256"][_WEIGHTS]
    return model


def _read_folder(folder):
    """Read metadata and configuration, after all files have been checked."""
    metadata = _read_json(folder / _METADATA)
    hashes = metadata.get("sha256") if isinstance(metadata, dict) else None
    if not isinstance(hashes, dict):
        msg = f"{folder / _METADATA} cannot be read: it records no SHA-256."
        raise PresetError(msg)
    for name in (_CONFIG, _PREPROCESSING, _WEIGHTS):
        path = folder / name
        if not path.exists():
            msg = f"{folder} is not a complete preset: {name} is missing."
            raise PresetError(msg)
        if _sha256(path) != hashes.get(name):
            msg = (
                f"{path} is damaged or was altered: its SHA-256 is not the one "
                f"recorded in {_METADATA}."
            )
            raise PresetError(msg)
    return metadata, _read_json(folder / _CONFIG)


def describe_preset(folder):
    """Give lines that say what is in a preset folder."""
    folder = Path(folder)
    metadata, config = _read_folder(folder)
    config = config["config"]
    record = _read_json(folder / _PREPROCESSING)
    lines = [f"{folder}: model {config['name']}"]
    names = ("image_shape", "latent_dim", "posterior", "stretch")
    lines += [f"  {name}: {config[name]}" for name in names if name in config]
    for condition in config.get("conditions", ()):
        lines.append(f"  condition: {condition['config']}")
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
