"""The workflow from images to a catalogue, on real and simulated images."""

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS, FITSFixedWarning
from numpy.testing import assert_allclose

from astrovae.catalog import annotate, read_catalog, write_catalog
from astrovae.datasets import make_galaxies
from astrovae.images import clean_cutouts, make_cutouts
from astrovae.models import VAE

# encodes a stack with a preset, under whatever backend the environment names
ENCODE = """
import sys
import numpy as np
from astrovae.images import CutoutStack
from astrovae.models import VAE
vae = VAE.from_preset(sys.argv[1])
stack = CutoutStack.read(sys.argv[2])
mean, log_var = vae.encode(stack)
np.savez(sys.argv[3], mean=mean, log_var=log_var, **vae.measure(stack))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained on simulated galaxies, saved beside its stack."""
    folder = tmp_path_factory.mktemp("trained")
    keras.utils.set_random_seed(1)
    _, stack = make_galaxies(64, shape=(20, 20), seed=1)
    vae = VAE.from_preset("galaxy_small", image_shape=stack.image_shape, seed=1)
    vae.compile()
    vae.fit(stack, batch_size=32, epochs=5, verbose=0)
    vae.save_preset(folder / "preset")
    stack.write(folder / "stack.h5")
    return folder, vae, stack


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_weights_mean_the_same_on_every_backend(trained, backend, tmp_path):
    """The same preset gives the same latents and errors elsewhere."""
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    if backend == keras.config.backend():
        pytest.skip("this is the backend of the test itself")
    folder, vae, stack = trained
    arguments = [folder / "preset", folder / "stack.h5", tmp_path / "latents.npz"]
    subprocess.run(
        [sys.executable, "-c", ENCODE, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
        capture_output=True,
        timeout=300,
    )
    other = np.load(arguments[-1])
    mean, log_var = vae.encode(stack)
    assert_allclose(other["mean"], mean, atol=1e-4)
    assert_allclose(other["log_var"], log_var, atol=1e-4)
    for name, values in vae.measure(stack).items():
        assert_allclose(other[name], values, rtol=1e-4, atol=1e-4)


def test_preset_and_catalogue_carry_their_provenance(trained, tmp_path):
    """Which weights made a column is written beside it, in every format."""
    folder, _, stack = trained
    vae = VAE.from_preset(folder / "preset")
    table = QTable({"id": stack.ids})
    table = annotate(table, vae, stack, what=["latents"])
    for extension in ("ecsv", "fits", "parquet"):
        path = tmp_path / f"catalog.{extension}"
        write_catalog(table, path)
        record = read_catalog(path).meta["astrovae"]["default"]["latents"]
        metadata = json.loads((folder / "preset" / "metadata.json").read_text())
        assert record["sha256"] == metadata["sha256"]["model.weights.h5"]
        assert record["preprocessing"] == stack.preprocessing


@pytest.fixture(scope="module")
def sdss(data_path):
    """Eight SDSS galaxies: images, sigma, masks, PSFs, and RA/Dec."""
    galaxies = []
    for folder in sorted((data_path / "sdss_r_gadotti").iterdir()):
        planes = {}
        for name in ("image", "sigma", "mask", "psf"):
            with fits.open(folder / f"{name}.fit") as hdus:
                planes[name] = hdus[0].data
                if name == "image":
                    with warnings.catch_warnings():
                        # these headers still say RADECSYS
                        warnings.simplefilter("ignore", FITSFixedWarning)
                        wcs = WCS(hdus[0].header)
        ny, nx = planes["image"].shape
        position = wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2)
        galaxies.append((folder.name, planes, wcs, position))
    return galaxies


def test_sdss_from_sky_positions_to_columns(sdss):
    """Real FITS images with WCS, sigma, mask and PSF; one catalogue row each."""
    stacks, positions = [], []
    for _, planes, wcs, position in sdss:
        sky = position.icrs
        row = QTable({"ra": [sky.ra], "dec": [sky.dec]})
        stack = make_cutouts(
            {"r": planes["image"]},
            row,
            64,
            wcs=wcs,
            error=planes["sigma"],
            mask=planes["mask"],
            psf=planes["psf"],
        )
        centre = planes["image"].shape
        assert_allclose(stack.positions, [[(centre[1] - 1) / 2, (centre[0] - 1) / 2]])
        assert_allclose(stack.pixel_scale.to_value("arcsec"), 0.396, rtol=1e-3)
        stacks.append(clean_cutouts(stack, background=None))
        positions.append(position)
    batches = [stack.batch([0]) for stack in stacks]
    merged = stacks[0].replace(
        **{
            plane: np.concatenate([batch[key] for batch in batches])
            for plane, key in (("data", "image"), ("mask", "mask"), ("error", "error"))
        },
        psf=np.concatenate([batch["psf"] for batch in batches]),
        segmentation=None,
        labels=None,
        ids=[name for name, *_ in sdss],
        positions=None,
        flags=np.concatenate([stack.flags for stack in stacks]),
        meta={},
    )
    vae = VAE.from_preset("galaxy_small", image_shape=merged.image_shape, latent_dim=2)
    vae.compile()
    vae.fit(merged, batch_size=8, epochs=2, verbose=0)
    table = QTable({"id": merged.ids, "position": SkyCoord(positions)})
    result = annotate(table, vae, merged)
    assert len(result) == 8
    for name in ("latent_mean", "latent_sigma", "vae_elbo", "gauss_flux", "gauss_mse"):
        values = getattr(result[name], "unmasked", result[name])
        assert np.isfinite(np.ma.getdata(values)).all()
    assert result["vae_beats_gauss_mse"].dtype == bool
