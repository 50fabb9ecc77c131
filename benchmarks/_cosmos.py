# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies of which the truth is known, with PSFs and noise of the COSMOS field."""

import galsim
import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.random import default_rng
from scipy import ndimage

from astrovae._progress import progress_bar
from astrovae.diagnostics import measure_galaxies
from astrovae.images import CutoutStack, read_galsim_catalog

# of 100 galaxies there are parametric fits, which GalSim draws
CATALOG = "real_galaxy_catalog_23.5_example.fits"
NOISE = "acs_I_unrot_sci_20_cf.fits"
# of others there are images
IMAGES = "real_galaxy_catalog_26_extension_example.fits"
BAND = "F814W"
PIXEL_SCALE = 0.03
SHAPE = (64, 64)
PSF_SIZE = 39
# half-light radii beyond fill the stamp, in arcsec
MAX_RADIUS = 0.6
# scatter of the size, in natural logarithms, and of the shear
SIZE_JITTER, SHEAR_JITTER = 0.1, 0.1
# galaxies get up to so many magnitudes fainter
DIMMING = 3.0
# of the correlation of the noise: beyond, it is below 1 percent
REACH = 7
# what a stamp needs: faster than for the last digit, of 1e-3 of the peak
PRECISION = {"folding_threshold": 0.01, "maxk_threshold": 3e-3}


def make(folder, number, seed):
    """
    Draw galaxies, and measure them before the noise.

    Each is a parametric fit to a real galaxy, with its identifier: turned at
    random, sheared a little, of about the size of another one, and fainter; behind the
    PSF of that galaxy and in noise of the amplitude and correlation of its
    surroundings.
    """
    rng = default_rng(seed)
    catalog = galsim.COSMOSCatalog(
        CATALOG, dir=str(folder), use_real=False, exclusion_level="none"
    )
    table = Table.read(folder / CATALOG)
    psfs = read_psfs(folder, table)
    radius = np.array([float(row["hlr"][0]) for row in catalog.param_cat])
    parent = rng.integers(len(radius), size=number)
    factor = rng.choice(radius[radius < MAX_RADIUS], number) / radius[parent]
    factor *= np.exp(SIZE_JITTER * rng.standard_normal(number))
    sigma = np.asarray(table["NOISE_VARIANCE"], dtype=float)[parent] ** 0.5
    clean = np.empty((number, *SHAPE, 1), np.float32)
    with progress_bar("Drawing", number, show=True) as advance:
        for image, index, dilation in zip(clean, parent, factor):
            galaxy = catalog.makeGalaxy(index, gal_type="parametric").dilate(dilation)
            draw(image[..., 0], galaxy, psfs[index], rng)
            advance(1)
    rho = noise_correlation(folder)
    waves = np.fft.rfft2(rng.standard_normal(clean.shape), axes=(1, 2))
    waves *= np.sqrt(noise_power(rho))[..., None]
    noise = np.fft.irfft2(waves, SHAPE, axes=(1, 2)) * sigma[:, None, None, None]
    stack = CutoutStack(
        clean + noise.astype(np.float32),
        error=np.broadcast_to(sigma[:, None, None, None], clean.shape),
        psf=psfs[parent][..., None],
        ids=np.array([str(name) for name in table["IDENT"]])[parent],
        bands=[BAND],
        pixel_scale=PIXEL_SCALE,
    )
    return stack, measure_galaxies(stack.replace(data=clean)), rho[..., None]


def read_real(folder):
    """Images of real galaxies, none of which is among those that `make` draws from."""
    stack = read_galsim_catalog(folder / IMAGES, shape=SHAPE)
    psfs = np.stack([centered(image) for image in stack.psf[..., 0]])
    return stack.replace(psf=psfs[..., None])


def read_psfs(folder, table):
    """PSFs of sum one, on as many pixels, their light about the middle."""
    with fits.open(folder / table["PSF_FILENAME"][0].strip()) as file:
        return np.stack([centered(file[int(hdu)].data) for hdu in table["PSF_HDU"]])


def centered(psf):
    """Move a PSF to the middle of a stamp, by its adaptive moments, and norm it."""
    psf = psf.astype(float)
    found = galsim.hsm.FindAdaptiveMom(galsim.Image(psf)).moments_centroid
    # GalSim counts pixels from one
    middle = (PSF_SIZE - 1) / 2
    offset = (found.y - 1 - middle, found.x - 1 - middle)
    shape = (PSF_SIZE, PSF_SIZE)
    moved = ndimage.affine_transform(psf, np.eye(2), offset, shape, order=3)
    return (moved / moved.sum()).astype(np.float32)


def draw(image, galaxy, psf, rng):
    """Draw one galaxy, turned, sheared and dimmed at random."""
    galaxy = galaxy.rotate(rng.uniform(0, 180) * galsim.degrees)
    shear = np.clip(SHEAR_JITTER * rng.standard_normal(2), -0.4, 0.4)
    galaxy = galaxy.shear(g1=shear[0], g2=shear[1])
    galaxy = galaxy * 10 ** (-0.4 * rng.uniform(0, DIMMING))
    options = {"gsparams": galsim.GSParams(**PRECISION)}
    psf = galsim.InterpolatedImage(
        galsim.Image(psf.astype(float)), scale=PIXEL_SCALE, flux=1.0, **options
    )
    observed = galsim.Convolve(galaxy.withGSParams(**PRECISION), psf, **options)
    ny, nx = SHAPE
    drawn = observed.drawImage(nx=nx, ny=ny, scale=PIXEL_SCALE, method="no_pixel")
    image[:] = drawn.array


def noise_correlation(folder):
    """Correlation of the noise by lag, lag zero in the middle."""
    found = fits.getdata(folder / NOISE).astype(float)
    middle = found.shape[0] // 2
    lags = slice(middle - REACH, middle + REACH + 1)
    found = found[lags, lags] / found[middle, middle]
    return 0.5 * (found + found[::-1, ::-1])


def noise_power(rho):
    """Power spectrum of the noise of a stamp."""
    canvas = np.zeros(SHAPE)
    canvas[: rho.shape[0], : rho.shape[1]] = rho
    canvas = np.roll(canvas, (-REACH, -REACH), axis=(0, 1))
    return np.maximum(np.fft.rfft2(canvas).real, 0.0)
