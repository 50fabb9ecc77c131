"""The same galaxy behind different PSFs and noise has the same latents."""

import keras
import numpy as np
import pytest

from astrovae.models import VAE, DenseDecoder, DenseEncoder, GaussianLikelihood

SIZE = 16


def make_galaxies(n, rng):
    """Covariances and fluxes of elliptical normal galaxies, before the PSF."""
    size = np.exp(rng.normal(np.log(1.8), 0.2, n))
    e1, e2 = rng.normal(0, 0.15, (2, n)).clip(-0.4, 0.4)
    flux = np.exp(rng.normal(6.5, 0.3, n))
    shape = np.array([[1 + e1, e2], [e2, 1 - e1]]) * size**2
    return np.moveaxis(shape, -1, 0), flux


def normal(covariance, size):
    """Normal distributions in the middle of an image, of unit sum."""
    y, x = np.mgrid[:size, :size] - 0.5 * (size - 1)
    points = np.stack([x, y], axis=-1)
    inverse = np.linalg.inv(covariance)
    exponent = np.einsum("yxi,nij,yxj->nyx", points, inverse, points)
    norm = 2 * np.pi * np.sqrt(np.linalg.det(covariance))[:, None, None]
    return np.exp(-0.5 * exponent) / norm


def observe(galaxies, rng):
    """Blur galaxies by lopsided PSFs, each by its own, and add noise."""
    (covariance, flux), n = galaxies, len(galaxies[1])
    sigma = rng.uniform(0.9, 1.8, n)
    g1, g2 = rng.normal(0, 0.1, (2, n)).clip(-0.3, 0.3)
    psf = np.moveaxis(np.array([[1 + g1, g2], [g2, 1 - g1]]) * sigma**2, -1, 0)
    # normal distributions behind normal PSFs are known without a convolution
    image = flux[:, None, None] * normal(covariance + psf, SIZE)
    noise = np.exp(rng.uniform(np.log(0.5), np.log(1.5), n))[:, None, None]
    image = image + noise * rng.normal(size=image.shape)
    error = noise * np.ones_like(image)
    planes = {"image": image, "error": error, "psf": normal(psf, 13)}
    return {name: plane[..., None].astype("float32") for name, plane in planes.items()}


@pytest.mark.slow
def test_latents_agree_within_their_sigmas():
    """Chi squared per latent of pairs of observations, seeing from 2 to 4 pixels."""
    rng = np.random.default_rng(1)
    train = observe(make_galaxies(16000, rng), rng)
    galaxies = make_galaxies(400, rng)
    pair = [observe(galaxies, rng) for _ in range(2)]
    keras.utils.set_random_seed(1)
    vae = VAE(
        (SIZE, SIZE, 1),
        4,
        encoder=DenseEncoder((128, 128), activation="gelu"),
        decoder=DenseDecoder((SIZE, SIZE, 1), (64, 64), activation="gelu"),
        likelihood=GaussianLikelihood(learn_variance=False),
        posterior="full",
        psf=True,
        side_inputs=("psf", "error"),
        seed=1,
    )
    # with a quarter of the galaxies it learns their noise: up to 1.4
    epochs = 60
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * 80)
    vae.compile(keras.optimizers.Adam(rate))
    vae.fit(train, batch_size=200, epochs=epochs, verbose=0)
    # the encoder alone is off by somewhat more than a sigma
    (one, log_var_one), (two, log_var_two) = (
        vae.encode(part, refine=150, batch_size=400) for part in pair
    )
    assert vae.active_units(pair[0]).all()
    variance = np.exp(log_var_one) + np.exp(log_var_two)
    chi2 = (np.square(one - two) / variance).mean(axis=0)
    assert (chi2 > 0.8).all()
    assert (chi2 < 1.25).all()
    # they tell galaxies apart, by far
    assert (np.exp(log_var_one).mean(axis=0) < 0.1 * one.var(axis=0)).all()
