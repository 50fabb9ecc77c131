# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies of a model in GalSim itself."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.managers import RemoteError

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose

from astrovae.exceptions import FlaggedRowsWarning
from astrovae.images import CutoutStack

galsim = pytest.importorskip("galsim")

from astrovae.interop.galsim import (  # noqa: E402
    GalaxyCatalog,
    GalaxyGenerator,
    to_galsim,
)

SCALE = 0.2
PSF = galsim.Gaussian(fwhm=0.7)


class FakeFlow:
    """Gaussian galaxies of given flux and shear, drawn by GalSim; no Keras."""

    def __init__(self, shape=(48, 48), bands=("r",), pixel_scale=SCALE):
        self.shape, self.bands, self.pixel_scale = shape, bands, pixel_scale
        self.calls = []

    def galaxy(self, row, band=0):
        return galsim.Gaussian(sigma=0.6, flux=row["flux"] * (band + 1)).shear(
            g1=row["g1"], g2=row["g2"]
        )

    def sample(self, table, *, seed=0):
        self.calls.append((len(table), seed))
        data = np.zeros((len(table), *self.shape, len(self.bands)))
        for i, row in enumerate(table):
            for band in range(len(self.bands)):
                image = self.galaxy(row, band).drawImage(
                    nx=self.shape[1],
                    ny=self.shape[0],
                    scale=self.pixel_scale or SCALE,
                    method="no_pixel",
                )
                data[i, ..., band] = image.array
        return CutoutStack(data, bands=self.bands, pixel_scale=self.pixel_scale)


@pytest.fixture
def table():
    """Properties of six galaxies."""
    return Table(
        {
            "flux": [100.0, 50.0, 10.0, 30.0, 70.0, 20.0],
            "g1": [0.3, 0.0, -0.2, 0.0, 0.1, 0.0],
            "g2": [0.0, 0.3, 0.0, -0.2, 0.1, 0.0],
        }
    )


@pytest.mark.parametrize("shape", [(48, 48), (47, 47), (48, 53), (41, 50)])
def test_drawn_as_they_are(table, shape):
    """Flux, centroid, size and the sign of both shears survive; so do odd sizes."""
    flow = FakeFlow(shape)
    galaxies = GalaxyGenerator(flow).sample(table)
    for galaxy, row in zip(galaxies, table):
        assert isinstance(galaxy, galsim.InterpolatedImage)
        assert_allclose(galaxy.flux, row["flux"], rtol=1e-3)
        drawn = galsim.Convolve(galaxy, PSF).drawImage(nx=64, ny=64, scale=0.17)
        truth = galsim.Convolve(flow.galaxy(row), PSF)
        truth = truth.drawImage(nx=64, ny=64, scale=0.17)
        assert_allclose(drawn.array, truth.array, atol=2e-3 * truth.array.max())
        found, expected = (galsim.hsm.FindAdaptiveMom(i) for i in (drawn, truth))
        assert abs(found.moments_centroid.x - expected.moments_centroid.x) < 1e-4 * 64
        assert_allclose(found.moments_centroid.x, drawn.true_center.x, atol=5e-3)
        assert_allclose(found.moments_centroid.y, drawn.true_center.y, atol=5e-3)
        assert_allclose(found.observed_shape.g1, expected.observed_shape.g1, atol=2e-3)
        assert_allclose(found.observed_shape.g2, expected.observed_shape.g2, atol=2e-3)
        assert np.sign(np.round(found.observed_shape.g2, 2)) == np.sign(row["g2"])


def test_axes_are_those_of_the_array():
    """Light at larger x and smaller y is drawn there."""
    data = np.zeros((1, 16, 20))
    data[0, 4, 15] = 1.0
    (galaxy,) = to_galsim(CutoutStack(data, pixel_scale=1.0), x_interpolant="linear")
    assert galaxy.xValue(15 - 9.5, 4 - 7.5) == pytest.approx(1.0)
    assert_allclose([galaxy.centroid.x, galaxy.centroid.y], [5.5, -3.5])


def test_finer_sampling(table):
    """Pixels of half the size are galaxies of the same size on the sky."""
    (galaxy,) = GalaxyGenerator(FakeFlow((96, 96), pixel_scale=0.1)).sample(table[:1])
    drawn = galsim.Convolve(galaxy, PSF).drawImage(nx=64, ny=64, scale=SCALE)
    truth = galsim.Convolve(FakeFlow().galaxy(table[0]), PSF)
    truth = truth.drawImage(nx=64, ny=64, scale=SCALE)
    assert_allclose(drawn.array, truth.array, atol=1e-3 * truth.array.max())


def test_one_call_for_all(table):
    """The flow paints all galaxies at once, with the seed that was given."""
    flow = FakeFlow(bands=("g", "r"))
    generator = GalaxyGenerator(flow, band="r")
    galaxies = generator.sample(table, seed=7)
    assert flow.calls == [(6, 7)]
    bands = generator.sample_bands(table)
    assert list(bands) == ["g", "r"]
    assert len(flow.calls) == 2
    assert_allclose(bands["r"][0].flux, 2 * bands["g"][0].flux, rtol=1e-6)
    assert galaxies[0].flux == bands["r"][0].flux
    assert generator.sample(table[:0]) == []


def test_options_reach_galsim(table):
    """Interpolant, gsparams and pixel scale are those that were asked for."""
    gsparams = galsim.GSParams(folding_threshold=1e-2)
    generator = GalaxyGenerator(
        FakeFlow(pixel_scale=None),
        pixel_scale=0.2 * u.arcsec,
        x_interpolant="lanczos5",
        gsparams=gsparams,
    )
    galaxy = generator.sample(table)[0]
    assert galaxy.x_interpolant.n == 5
    assert galaxy.gsparams == gsparams
    assert galaxy.image.scale == SCALE


def test_galaxies_without_flux_are_none():
    """Galaxies that cannot be drawn are counted, not raised."""
    data = np.ones((4, 16, 16))
    data[1] = 0.0
    data[2, 3, 3] = np.nan
    with pytest.warns(FlaggedRowsWarning, match="2 of 4 galaxies"):
        galaxies = to_galsim(CutoutStack(data, pixel_scale=1.0))
    assert [galaxy is None for galaxy in galaxies] == [False, True, True, False]


def test_misuse(table):
    """Messages say what is missing."""
    with pytest.raises(TypeError, match="must have sample"):
        GalaxyGenerator("flow")
    with pytest.raises(ValueError, match="choose one with band"):
        GalaxyGenerator(FakeFlow(bands=("g", "r"))).sample(table)
    with pytest.raises(ValueError, match="band must be one of 'r'"):
        GalaxyGenerator(FakeFlow(), band="i").sample(table)
    with pytest.raises(ValueError, match="size of the pixels is not known"):
        GalaxyGenerator(FakeFlow(pixel_scale=None)).sample(table)
    with pytest.raises(ValueError, match="pixel_scale must be positive"):
        GalaxyGenerator(FakeFlow(), pixel_scale=-1).sample(table)
    with pytest.raises(ValueError, match="pixels of these galaxies are of 0"):
        GalaxyGenerator(FakeFlow(), pixel_scale=0.4).sample(table)
    with pytest.raises(IndexError, match="not within 0"):
        GalaxyCatalog(FakeFlow(), table).get_galaxy(6)


def config_of(flow, table, **options):
    """Give a configuration of one image with all galaxies side by side."""
    return {
        "input": {"astrovae_catalog": {"model": flow, "catalog": table, **options}},
        "psf": {"type": "Gaussian", "fwhm": 0.7},
        "gal": {"type": "AstroVAEGalaxy"},
        "image": {
            "type": "Tiled",
            "nx_tiles": 3,
            "ny_tiles": 2,
            "stamp_size": 40,
            "pixel_scale": SCALE,
        },
    }


def test_config_draws_the_catalogue(table):
    """A configuration without any number draws each row, a batch at a time."""
    flow = FakeFlow()
    image = galsim.config.BuildImage(config_of(flow, table, batch_size=4))
    assert [n for n, _ in flow.calls] == [4, 2]
    for i, row in enumerate(table):
        y, x = divmod(i, 3)
        stamp = image.array[40 * y : 40 * (y + 1), 40 * x : 40 * (x + 1)]
        truth = galsim.Convolve(flow.galaxy(row), PSF)
        truth = truth.drawImage(nx=40, ny=40, scale=SCALE).array
        assert_allclose(stamp, truth, atol=2e-3 * truth.max())


def test_config_options(table):
    """Index, band, flux and shear work as for other types; the file is read."""
    config = config_of(FakeFlow(bands=("g", "r")), table, band="g")
    config["gal"] |= {
        "index": 2,
        "band": "r",
        "x_interpolant": "lanczos5",
        "gsparams": {"folding_threshold": 1e-2},
        "shear": {"type": "G1G2", "g1": 0.1, "g2": 0.0},
    }
    galsim.config.ProcessInput(config)
    galaxy, safe = galsim.config.BuildGSObject(config, "gal")
    assert not safe
    assert_allclose(galaxy.flux, 20.0, rtol=1e-3)
    assert galaxy.original.x_interpolant.n == 5
    assert galaxy.original.gsparams.folding_threshold == 1e-2
    config["gal"] = {"type": "AstroVAEGalaxy", "index": 6}
    with pytest.raises(galsim.GalSimConfigError, match="not within 0"):
        galsim.config.BuildGSObject(config, "gal")


def test_galaxies_do_not_depend_on_order(table):
    """A row is the same galaxy whatever was drawn before; few batches are painted."""

    class RandomFlow(FakeFlow):
        def sample(self, table, *, seed=0):
            stack = super().sample(table, seed=seed)
            factor = np.random.default_rng(seed).uniform(1, 2, len(table))
            return stack.replace(data=stack.data * factor[:, None, None, None])

    first, second = (
        GalaxyCatalog(RandomFlow(), table, batch_size=2, seed=3) for _ in range(2)
    )
    forward = [first.get_galaxy(i).flux for i in range(6)]
    backward = [second.get_galaxy(i).flux for i in range(5, -1, -1)]
    assert forward == backward[::-1]
    assert len(second._flow.calls) == 3
    other = GalaxyCatalog(RandomFlow(), table, batch_size=2, seed=4)
    assert other.get_galaxy(0).flux != forward[0]


def test_flux_of_a_configuration(table):
    """It is in place of what the catalogue says, as for other types."""
    config = config_of(FakeFlow(), table)
    config["gal"] |= {"index": 2, "flux": 123.0}
    galsim.config.ProcessInput(config)
    galaxy, _ = galsim.config.BuildGSObject(config, "gal")
    assert_allclose(galaxy.flux, 123.0, rtol=1e-6)


def test_batches_are_kept_by_their_size(table, monkeypatch):
    """Images of large stamps and many bands are forgotten sooner."""
    monkeypatch.setattr("astrovae.interop.galsim._MAX_KEPT", 2 * 48 * 48 * 4)
    catalog = GalaxyCatalog(FakeFlow(), table, batch_size=1)
    for i in (0, 1, 2, 1, 0):
        catalog.get_galaxy(i)
        assert len(catalog._batches) <= 2
    assert len(catalog._flow.calls) == 4


def test_galaxy_without_flux_is_skipped(table):
    """GalSim goes on with the next one."""
    table["flux"][1] = 0.0
    config = config_of(FakeFlow(), table)
    image = galsim.config.BuildImage(config)
    assert (image.array[:40, 40:80] == 0).all()
    assert (image.array[:40, 80:120].max()) > 0


YAML = """
modules: [fake_flow, astrovae.interop.galsim]
input:
  astrovae_catalog: {{model: $fake_flow.flow, catalog: {table}, seed: 5, batch_size: 2}}
psf: {{type: Gaussian, fwhm: 0.7}}
gal: {{type: AstroVAEGalaxy}}
image:
  type: Tiled
  nx_tiles: 3
  ny_tiles: 2
  stamp_size: 40
  pixel_scale: 0.2
  nproc: {nproc}
output: {{dir: {folder}, file_name: image_{nproc}.fits}}
"""

FLOW = """
import numpy as np
from astrovae.images import CutoutStack


class Flow:
    def sample(self, table, *, seed=0):
        data = np.zeros((len(table), 24, 24))
        data[:, 8:16, 8:16] = np.asarray(table["flux"])[:, None, None] / 64
        return CutoutStack(data + seed * 1e-15, pixel_scale=0.2)


flow = Flow()
"""


def test_yaml_file_and_processes(table, tmp_path):
    """GalSim reads a YAML file; several processes share one model."""
    table.write(tmp_path / "galaxies.fits")
    (tmp_path / "fake_flow.py").write_text(FLOW)
    images = []
    for nproc in (1, 2):
        file = tmp_path / f"config_{nproc}.yaml"
        text = YAML.format(
            table=tmp_path / "galaxies.fits", folder=tmp_path, nproc=nproc
        )
        file.write_text(text)
        code = (
            "import galsim\n"
            f"(config,) = galsim.config.ReadConfig({str(file)!r})\n"
            "galsim.config.Process(config)\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        images.append(galsim.fits.read(str(tmp_path / f"image_{nproc}.fits")).array)
    np.testing.assert_array_equal(images[0], images[1])
    flux = images[0].reshape(2, 40, 3, 40).sum(axis=(1, 3)).ravel()
    assert_allclose(flux, table["flux"], rtol=5e-3)


def test_batches_are_painted_one_after_the_other(table):
    """Whichever threads ask: a model on JAX cannot paint two at the same time."""
    flow, busy = FakeFlow(), threading.Lock()

    class Careful:
        def sample(self, *args, **kwargs):
            assert busy.acquire(blocking=False)
            time.sleep(0.05)
            busy.release()
            return flow.sample(*args, **kwargs)

    catalog = GalaxyCatalog(Careful(), table, batch_size=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(catalog.get_galaxy, [0, 1, 2, 0, 1, 2]))
    assert all(found)
    assert len(flow.calls) == 3


# JAX warns of what is tried at the end
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_trained_flow(tmp_path):
    """From a table through a trained flow on disk to images, by any processes."""
    from astrovae.datasets import make_galaxies
    from astrovae.models import VAE, Condition, LatentFlow

    truth, stack = make_galaxies(60, shape=16, snr=(50, 200), seed=1)
    vae = VAE(stack.image_shape, latent_dim=2, psf=True, oversampling=2, seed=1)
    vae.compile(optimizer="adam")
    vae.fit(stack, batch_size=30, epochs=2, verbose=0)
    flow = LatentFlow(num_blocks=2, hidden_units=(8,), seed=1)
    conditions = [Condition("flux", transform="log")]
    flow.fit(truth, vae, stack, conditions=conditions, epochs=1, verbose=0)
    # none at the ends of the range
    wanted = truth[["flux"]][np.argsort(truth["flux"])[20:26]]
    galaxies = GalaxyGenerator(flow).sample(wanted, seed=1)
    painted = flow.sample(wanted, seed=1)
    assert_allclose(
        [galaxy.flux for galaxy in galaxies],
        painted.data.sum(axis=(1, 2, 3), dtype=float),
        rtol=1e-5,
    )
    # painted pixels are half as large
    assert galaxies[0].image.scale == SCALE / 2
    flow.save_preset(tmp_path / "flow")
    wanted.write(tmp_path / "wanted.ecsv")
    paths = [str(tmp_path / name) for name in ("flow", "wanted.ecsv")]
    image = galsim.config.BuildImage(config_of(*paths, batch_size=4)).array
    assert image.any()
    # by processes that were forked before Keras was loaded
    config = config_of(*paths, batch_size=4)
    config["image"]["nproc"] = 2
    code = (
        "import galsim, numpy\n"
        "import astrovae.interop.galsim\n"
        f"image = galsim.config.BuildImage({config!r}).array\n"
        f"numpy.save({str(tmp_path / 'image.npy')!r}, image)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert_allclose(np.load(tmp_path / "image.npy"), image, rtol=1e-5, atol=1e-6)
    # here Keras was loaded, and its backend would wait for ever
    with pytest.raises(RemoteError, match="forked this process"):
        galsim.config.BuildImage(config)
