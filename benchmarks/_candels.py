# Licensed under a 3-clause BSD style license - see LICENSE
"""Real galaxies in several bands, cut out of CANDELS, with the noise around them."""

import numpy as np
from astropy.io import fits
from astropy.table import Table

from astrovae.images import CutoutStack

# stamps with more blank pixels were cut off by the edge of the survey
MAX_BLANK = 0.01
BORDER = 3
# lags beyond which noise is taken to be uncorrelated
MAX_LAG = 4
# pixels further from the median, in sigma, belong to neighbours
CLIP = 3.0
PIXEL_SCALE = 0.06


def read(path):
    """Read galaxies that have all bands, with the noise of their borders."""
    with fits.open(path) as file:
        catalog = Table(file["CATALOG"].data)
        bands = [hdu.name for hdu in file if len(getattr(hdu, "shape", ())) == 3]
        complete = np.all([catalog[f"has_{band}"] for band in bands], axis=0)
        data = np.stack([file[band].data[complete] for band in bands], axis=-1)
    blank = (data == 0).mean(axis=(1, 2)).max(axis=1) > MAX_BLANK
    ids = np.array([str(name) for name in catalog["id"][complete]])
    noise = border_noise(data)
    usable = ~blank & (noise > 0).all(axis=1)
    data, noise = data[usable].astype(np.float32), noise[usable]
    return CutoutStack(
        data,
        error=np.broadcast_to(noise[:, None, None], data.shape),
        ids=ids[usable],
        bands=bands,
        pixel_scale=PIXEL_SCALE,
    )


def border(shape):
    """Which pixels are in the border of a stamp."""
    y, x = np.indices(shape)
    ny, nx = shape
    return np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) < BORDER


def border_noise(images):
    """Robust scatter of the borders, (n, n_bands)."""
    pixels = images[:, border(images.shape[1:3])]
    center = np.median(pixels, axis=1, keepdims=True)
    return 1.4826 * np.median(np.abs(pixels - center), axis=1)


def noise_correlation(stack):
    """Correlation of the noise by lag, (ky, kx, n_bands), lag zero in the middle."""
    images, edge = stack.data, border(stack.image_shape[:2])
    center = np.median(images[:, edge], axis=1)[:, None, None]
    residual = (images - center) / stack.error
    good = edge[..., None] & (np.abs(residual) < CLIP)
    size = 2 * MAX_LAG + 1
    ny, nx, n_bands = stack.image_shape
    rho = np.zeros((size, size, n_bands))
    for dy in range(-MAX_LAG, MAX_LAG + 1):
        for dx in range(-MAX_LAG, MAX_LAG + 1):
            one = np.s_[:, max(dy, 0) : ny + min(dy, 0), max(dx, 0) : nx + min(dx, 0)]
            two = np.s_[:, max(-dy, 0) : ny - max(dy, 0), max(-dx, 0) : nx - max(dx, 0)]
            both = good[one] & good[two]
            product = np.where(both, residual[one] * residual[two], 0.0)
            rho[dy + MAX_LAG, dx + MAX_LAG] = product.sum(axis=(0, 1, 2)) / both.sum(
                axis=(0, 1, 2)
            )
    rho = rho / rho[MAX_LAG, MAX_LAG]
    # cut off softly, and without negative power
    taper = np.cos(np.linspace(-0.5, 0.5, size + 2)[1:-1] * np.pi)
    return positive(rho * np.outer(taper, taper)[..., None] ** 0.5, (ny, nx))


def positive(rho, shape):
    """The nearest correlation without negative power on a stamp."""
    size = rho.shape[0]
    canvas = np.zeros((*shape, rho.shape[2]))
    canvas[:size, :size] = rho
    canvas = np.roll(canvas, (-MAX_LAG, -MAX_LAG), axis=(0, 1))
    power = np.fft.fft2(canvas, axes=(0, 1)).real
    power = np.maximum(power, 1e-3 * power.max(axis=(0, 1)))
    canvas = np.fft.ifft2(power, axes=(0, 1)).real
    canvas = canvas / canvas[0, 0]
    return np.roll(canvas, (MAX_LAG, MAX_LAG), axis=(0, 1))[:size, :size]
