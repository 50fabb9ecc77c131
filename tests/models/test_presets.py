"""Tests of named presets and preset folders."""

import json

import keras
import numpy as np
import pytest

from astrovae.exceptions import PresetError
from astrovae.models import VAE, citation, list_presets


@pytest.fixture
def folder(stack, tmp_path):
    """A preset folder of an untrained but adapted model."""
    vae = VAE.from_preset("regier2015", image_shape=stack.image_shape, seed=1)
    vae.adapt(stack)
    vae.save_preset(tmp_path / "preset", metadata={"note": "a test"})
    return tmp_path / "preset"


@pytest.mark.parametrize("name", sorted(list_presets()))
def test_every_named_preset_works(name, stack):
    """Each builds, encodes and can be cited."""
    vae = VAE.from_preset(name, image_shape=stack.image_shape, latent_dim=3)
    assert vae.encode(stack)[0].shape == (40, 3)
    assert citation(name).startswith("@")
    assert vae.name == name


def test_regier_preset_is_the_published_model():
    """8 latents, two hidden layers of 128 each way, ReLU, exp."""
    vae = VAE.from_preset("regier2015", image_shape=(69, 69, 1))
    assert vae.latent_dim == 8
    assert vae.likelihood.transform == "exp"
    assert vae.encoder.hidden_units == vae.decoder.hidden_units == (128, 128)
    assert vae.encoder.activation is keras.activations.relu
    assert vae.decoder.target_shape == (69, 69, 2)


def test_folder_round_trip(folder, stack):
    """The same latents, the record and the hash come back."""
    first, second = VAE.from_preset(folder), VAE.from_preset(str(folder))
    assert np.array_equal(first.encode(stack)[0], second.encode(stack)[0])
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["note"] == "a test"
    assert first.sha256 == metadata["sha256"]["model.weights.h5"]
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "model.weights.h5",
        "preprocessing.json",
        "metadata.json",
    }


@pytest.mark.parametrize("part", ["encoder", "posterior_layer", None])
def test_what_is_frozen_stays_frozen(part, stack, tmp_path):
    """In presets and files of Keras, with the state of the optimizer."""
    vae = VAE.from_preset("regier2015", image_shape=stack.image_shape, seed=1)
    (getattr(vae, part) if part else vae.decoder.weights[0]).trainable = False
    vae.compile()
    vae.fit(stack, verbose=0)
    names = [weight.name for weight in vae.trainable_variables]
    assert len(names) < len(vae.weights)
    vae.save_preset(tmp_path / "preset")
    vae.save(tmp_path / "model.keras")
    for copy in (
        VAE.from_preset(tmp_path / "preset"),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert [weight.name for weight in copy.trainable_variables] == names
        assert int(copy.optimizer.iterations) == int(vae.optimizer.iterations) > 0
        frozen = part or "decoder"
        frozen = [w for w in getattr(copy, frozen).weights if not w.trainable]
        before = [keras.ops.convert_to_numpy(weight) for weight in frozen]
        copy.fit(stack, verbose=0)
        assert before
        for weight, values in zip(frozen, before, strict=True):
            assert np.array_equal(keras.ops.convert_to_numpy(weight), values)


def test_preparation_record_is_kept(stack, tmp_path):
    """A trained model remembers how its images were prepared."""
    vae = VAE.from_preset("regier2015", image_shape=stack.image_shape)
    vae.compile()
    vae.fit(stack, verbose=0)
    vae.save_preset(tmp_path / "preset")
    assert VAE.from_preset(tmp_path / "preset").preprocessing == stack.preprocessing


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessing.json", "model.weights.h5"]
)
def test_altered_files_are_refused(folder, name):
    """A changed byte or a missing file is noticed before anything is loaded."""
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PresetError, match="damaged or was altered"):
        VAE.from_preset(folder)
    path.unlink()
    with pytest.raises(PresetError, match=f"{name} is missing"):
        VAE.from_preset(folder)


def test_foreign_classes_are_refused(folder):
    """A config cannot smuggle in a Lambda or an unknown class."""
    from astrovae.models import presets

    path = folder / "config.json"
    config = json.loads(path.read_text())
    metadata = json.loads((folder / "metadata.json").read_text())
    for foreign in ("Lambda", "Evil"):
        config["config"]["encoder"] = {
            "module": "keras.layers",
            "class_name": foreign,
            "config": {"function": {"class_name": "__lambda__", "config": {}}},
        }
        path.write_text(json.dumps(config))
        metadata["sha256"]["config.json"] = presets._sha256(path)
        (folder / "metadata.json").write_text(json.dumps(metadata))
        with pytest.raises(PresetError, match="cannot be read as a preset"):
            VAE.from_preset(folder)


def test_existing_folders_are_safe(folder, stack, tmp_path):
    """Nothing is replaced without being asked, nor what is no preset."""
    vae = VAE.from_preset(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        vae.save_preset(folder)
    vae.save_preset(folder, overwrite=True)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.txt").write_text("meow")
    with pytest.raises(FileExistsError, match="is something else"):
        vae.save_preset(other, overwrite=True)
    assert (other / "cat.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "preset"]


def test_failed_save_leaves_nothing(folder, tmp_path, monkeypatch):
    """A disk that fills up leaves the old preset whole and no litter."""
    vae = VAE.from_preset(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vae, "save_weights", full)
    with pytest.raises(OSError, match="No space"):
        vae.save_preset(folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["preset"]


def test_bad_presets():
    """Names that do not exist, and folders with arguments, are named."""
    with pytest.raises(PresetError, match="no preset or preset folder 'resnet'"):
        VAE.from_preset("resnet", image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="needs image_shape"):
        VAE.from_preset("regier2015")
    with pytest.raises(PresetError, match="no preset"):
        citation("resnet")


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_files_are_no_presets(tmp_path, name):
    """Legacy files are refused, unread, and the error says what to do."""
    (tmp_path / name).write_bytes(b"\x89HDF\r\n")
    with pytest.raises(PresetError, match=r"legacy \.h5 models"):
        VAE.from_preset(tmp_path / name)


def test_a_preset_paints_on_any_canvas():
    """The decoder is made for what is painted, not for the images."""
    vae = VAE.from_preset(
        "galaxy_small", image_shape=(16, 16, 1), pose=True, canvas_shape=(22, 24)
    )
    assert vae.decode(np.zeros((1, 8)))["mean"].shape == (1, 22, 24, 1)


def test_arguments_for_a_folder_are_refused(folder):
    """A trained model cannot be given other latents."""
    with pytest.raises(ValueError, match="whose arguments are fixed"):
        VAE.from_preset(folder, latent_dim=3)
