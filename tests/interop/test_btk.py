# Licensed under a 3-clause BSD style license - see LICENSE
"""Generated blends and deblending in the Blending ToolKit itself."""

import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.images import CutoutStack

btk = pytest.importorskip("btk")
galsim = pytest.importorskip("galsim")

from astrovae.interop.btk import (  # noqa: E402
    GeneratedBlends,
    GeneratedCatalog,
    VAEDeblender,
)

# the toolkit gives GalSim its seeds as arrays
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")

SCALE = 0.2
STAMP = 9.0  # arcsec


class FakeFlow:
    """Gaussian galaxies of the flux and shape that are asked for, in nJy."""

    def __init__(self, unit="nJy", bands=("g", "r", "i")):
        self.unit, self.bands, self.calls = unit, bands, []

    def sample(self, table, *, seed=0):
        self.calls.append((len(table), seed, table.colnames))
        data = np.zeros((len(table), 40, 40, len(self.bands)))
        for image, row in zip(data, table):
            flux = 10 ** (-0.4 * (row["i_ab"] - 31.4))
            galaxy = galsim.Gaussian(sigma=0.6, flux=flux).shear(g1=0.0, g2=row["e2"])
            stamp = galaxy.drawImage(nx=40, ny=40, scale=SCALE, method="no_pixel")
            image += stamp.array[..., None] * np.arange(1, 1 + len(self.bands))
        return CutoutStack(data, bands=self.bands, unit=self.unit, pixel_scale=SCALE)


@pytest.fixture
def catalog(rng):
    """Properties of galaxies."""
    table = Table({"i_ab": rng.uniform(20, 22, 50), "e2": np.full(50, 0.4)})
    return GeneratedCatalog(table)


def survey(names=("g", "r", "i"), name="LSST"):
    """A survey with some filters alone."""
    survey = btk.survey.get_surveys(name)
    survey._filters = {band: survey.get_filter(band) for band in names}
    survey.available_filters = list(names)
    return survey


def sampling(**kwargs):
    """Two or three galaxies near the middle."""
    options = {"max_number": 3, "min_number": 2, "stamp_size": STAMP, "max_shift": 1.5}
    return btk.sampling_functions.DefaultSampling(**(options | kwargs))


def test_one_painting_per_batch(catalog):
    """All galaxies of a batch are painted at once, for all surveys and bands."""
    flow = FakeFlow()
    surveys = [survey(), survey(("g", "r"), "HSC")]
    blends = GeneratedBlends(
        catalog, sampling(), surveys, flow, batch_size=4, add_noise="none"
    )
    batches = blends.blend_generator._sampler
    assert batches.batch_size == 4
    blend_cat = next(blends.blend_generator)
    assert len(flow.calls) == 1
    assert flow.calls[0][0] == sum(map(len, blend_cat))
    assert flow.calls[0][2] == ["i_ab", "e2"]
    next(blends.blend_generator)
    assert len(flow.calls) == 2
    assert flow.calls[0][1] != flow.calls[1][1]


def test_images_are_those_of_galsim(catalog):
    """Flux in electrons, place, orientation and PSF are right, band by band."""
    lsst = survey()
    blends = GeneratedBlends(
        catalog, sampling(), lsst, FakeFlow(), batch_size=3, add_noise="none"
    )
    batch = next(blends)
    size = int(STAMP / SCALE)
    assert batch.blend_images.shape == (3, 3, size, size)
    from surveycodex.utilities import mag2counts

    for i, table in enumerate(batch.catalog_list):
        assert not table["not_drawn_i"].any()
        for k, row in enumerate(table):
            for j, name in enumerate(("g", "r", "i")):
                filt = lsst.get_filter(name)
                flux = mag2counts(row["i_ab"], lsst, filt).value * (j + 1)
                truth = galsim.Gaussian(sigma=0.6, flux=flux).shear(g2=0.4)
                truth = galsim.Convolve(truth, filt.psf).shift(row["ra"], row["dec"])
                truth = truth.drawImage(nx=size, ny=size, scale=SCALE).array
                found = batch.isolated_images[i, k, j]
                assert_allclose(found, truth, atol=3e-3 * truth.max())
    total = batch.isolated_images.sum(axis=1)
    assert_allclose(batch.blend_images, total, rtol=1e-5, atol=1e-3)


def test_zero_point_bands_and_missing_galaxies(catalog):
    """Other fluxes and names of bands are told; galaxies without flux are marked."""

    class Faulty(FakeFlow):
        def sample(self, table, *, seed=0):
            stack = super().sample(table, seed=seed)
            data = np.array(stack.data)
            data[0, 3, 3] = np.nan
            return stack.replace(data=data, unit=None)

    flow = Faulty(bands=("F606W", "F814W"))
    options = {"batch_size": 2, "add_noise": "none", "seed": 3}
    bands = {"r": "F606W", "i": "F814W"}
    blends = GeneratedBlends(
        catalog,
        sampling(),
        survey(("r", "i")),
        flow,
        bands=bands,
        zero_point=31.4,
        **options,
    )
    batch = next(blends)
    assert batch.catalog_list[0]["not_drawn_r"][0] == 1
    assert (batch.isolated_images[0, 0] == 0).all()
    assert batch.catalog_list[1]["not_drawn_r"].sum() == 0
    nanojansky = GeneratedBlends(
        catalog,
        sampling(),
        survey(("r", "i")),
        FakeFlow(bands=flow.bands),
        bands=bands,
        **options,
    )
    # the same galaxies, in another unit
    assert_allclose(
        next(nanojansky).isolated_images[1],
        batch.isolated_images[1],
        rtol=1e-3,
        atol=1,
    )
    with pytest.raises(ValueError, match="is no flux density: give zero_point"):
        next(
            GeneratedBlends(catalog, sampling(), survey(("r", "i")), flow, bands=bands)
        )
    with pytest.raises(ValueError, match="band of the filter r must be one of"):
        next(GeneratedBlends(catalog, sampling(), survey(("r",)), flow))
    raw = btk.catalog.CatsimCatalog(Table({"ra": [0.0], "dec": [0.0]}))
    with pytest.raises(ValueError, match="must be a GeneratedCatalog"):
        GeneratedBlends(raw, sampling(), survey(), flow)


def test_same_in_several_processes(catalog):
    """Processes share the drawing and not the model; noise and rotation stay."""

    class Unpicklable(FakeFlow):
        def __getstate__(self):
            msg = "the model stays at home"
            raise RuntimeError(msg)

    batches = [
        next(
            GeneratedBlends(
                catalog,
                sampling(seed=1),
                survey(),
                Unpicklable(),
                batch_size=4,
                njobs=njobs,
                add_noise="none",
                augment_data=False,
                seed=5,
            )
        )
        for njobs in (1, 2)
    ]
    assert_array_equal(batches[0].blend_images, batches[1].blend_images)


def test_rotation_and_shear(catalog):
    """Rotated by the toolkit, galaxies point elsewhere."""
    blends = GeneratedBlends(
        catalog,
        sampling(min_number=1, max_number=1),
        survey(),
        FakeFlow(),
        batch_size=4,
        add_noise="none",
        augment_data=True,
    )
    batch = next(blends)
    for images, table in zip(batch.isolated_images, batch.catalog_list):
        moments = galsim.hsm.FindAdaptiveMom(galsim.Image(images[0, 2]))
        angle = 2 * np.radians(45 + table["btk_rotation"][0])
        shape = moments.observed_shape
        assert_allclose(
            [shape.g1, shape.g2],
            shape.g * np.array([np.cos(angle), np.sin(angle)]),
            atol=0.01,
        )


def test_catalog_from_file(tmp_path):
    """Files are read; positions that are there stay."""
    table = Table({"i_ab": [20.0], "ra": [1.0]})
    table.write(tmp_path / "galaxies.ecsv")
    catalog = GeneratedCatalog.from_file(str(tmp_path / "galaxies.ecsv"))
    assert catalog.table["ra"][0] == 1.0
    assert catalog.table["dec"][0] == 0.0
    assert table.colnames == ["i_ab", "ra"]


class RoundFlow:
    """Galaxies that are round, of a total flux."""

    def __init__(self, flux):
        self.flux = flux

    def sample(self, table, *, seed=0):
        galaxy = galsim.Gaussian(sigma=0.5, flux=self.flux)
        stamp = galaxy.drawImage(nx=24, ny=24, scale=SCALE, method="no_pixel").array
        data = np.repeat(stamp[None, ..., None], len(table), axis=0)
        data = np.repeat(data, 2, axis=-1)
        return CutoutStack(data, bands=("r", "i"), pixel_scale=SCALE)


@pytest.fixture(scope="module")
def vae():
    """A model of round galaxies before the PSF, all alike."""
    from astrovae.models import VAE, DenseDecoder, DenseEncoder, GaussianLikelihood

    shape = (24, 24, 2)
    vae = VAE(
        shape,
        latent_dim=1,
        encoder=DenseEncoder(()),
        decoder=DenseDecoder(shape, ()),
        likelihood=GaussianLikelihood(learn_variance=False),
        psf=True,
        scale=[1.0, 1.0],
        noise=[1.0, 1.0],
    )
    light = RoundFlow(2.0).sample([0]).data[0]
    vae.decoder.output_layer.set_weights([0.1 * light.reshape(1, -1), light.ravel()])
    return vae


def test_deblender(catalog, vae):
    """Shares add up to the blend and follow the true galaxies."""
    lsst = survey(("r", "i"))
    where = sampling(min_number=2, max_number=2, max_shift=1.5, stamp_size=7, seed=8)
    options = {"batch_size": 4, "zero_point": 25.0, "seed": 2}
    batch = next(GeneratedBlends(catalog, where, lsst, RoundFlow(2.0), **options))
    deblender = VAEDeblender(2, vae, zero_point=25.0, refine=0)
    deblended = deblender(batch)
    found, size = deblended.deblended_images, batch.image_size
    assert found.shape == (4, 2, 2, size, size)
    assert_allclose(found.sum(axis=1), batch.blend_images, rtol=1e-3, atol=1.0)
    # of each galaxy, more than of its neighbour
    true = batch.isolated_images
    own = np.abs(found - true).sum(axis=(2, 3, 4))
    other = np.abs(found - true[:, ::-1]).sum(axis=(2, 3, 4))
    assert (own < other).all()
    extra = deblended.extra_data[0]
    assert extra["flux"].shape == extra["flux_err"].shape == (2, 2)
    assert_allclose(
        deblended.catalog_list[0]["x_peak"], batch.catalog_list[0]["x_peak"]
    )
    # one blend alone is as it is in its batch
    alone = deblender.deblend(1, batch).deblended_images
    assert_allclose(alone, found[1], atol=0.02 * found[1].max())


def test_deblender_with_detector(catalog, vae):
    """Positions may be those that another deblender finds; too many are refused."""
    lsst = survey(("r", "i"))
    flow = RoundFlow(50.0)
    options = {"batch_size": 2, "zero_point": 25.0}
    where = sampling(min_number=1, max_number=1, seed=8)
    batch = next(GeneratedBlends(catalog, where, lsst, flow, **options))
    detector = btk.deblend.PeakLocalMax(2, sky_level=1e4, use_band=1, min_distance=5)
    deblender = VAEDeblender(2, vae, detector=detector, share=False, refine=0)
    deblended = deblender(batch)
    for found, true in zip(deblended.catalog_list, batch.catalog_list):
        assert_allclose(found["x_peak"][0], true["x_peak"][0], atol=1.5)
    assert (deblended.deblended_images[:, 1][len(found) == 1] == 0).all()
    batch = next(GeneratedBlends(catalog, sampling(), lsst, flow, **options))
    with pytest.raises(ValueError, match="more than max_n_sources=1"):
        VAEDeblender(1, vae)(batch)
