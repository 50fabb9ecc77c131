# Licensed under a 3-clause BSD style license - see LICENSE
"""What a model learns from its training images before the first step."""

import math

import numpy as np
from keras import ops
from scipy import ndimage

from astrovae._batches import RowFunction
from astrovae.layers.pose import PoseTransform
from astrovae.layers.psf import refine_psf
from astrovae.models._masks import seen_pixels, valid_pixels
from astrovae.models._observation import pool_pixels
from astrovae.ops import fit_canvas

__all__ = ["adapt_networks", "measure_scales"]

# pixels of the aligned frame count if they rest on valid ones to this share
_RESTS_ON_VALID = 0.99
# relative to that of the usual galaxy
_LEAST_VARIANCE = 0.01
# Posteriors begin narrow, as those of galaxies that are well seen ...
_INITIAL_LOG_VAR = -4.0
# ... and near the leading components: what else the encoder knows comes later.
_SMALL = 0.01
# where their details are, galaxies have so much less power than light squared
_DETAILS = 30.0
# that of noise over that of galaxies, of the brightest
_LEAST_WIENER = 1e-4
_CHUNK = 256
# width of what is left blurred at the edges, in sides of the canvas
_EDGE = 0.125


def measure_scales(source):
    """
    Measure image scale and noise level of each band.

    Parameters
    ----------
    source : source of batches
        Training images, few enough to be read at once.

    Returns
    -------
    scale, noise : `~numpy.ndarray`, shape (n_bands,)
        Median root mean square of the images, and median error, or a tenth of
        the scale if there are no errors.

    Raises
    ------
    ValueError
        If no galaxy has a valid pixel, or all are zero.
    """
    batch = source.batch(np.arange(len(source)))
    pixels = np.ma.array(batch["image"], mask=batch["mask"], dtype=float)
    if pixels.count() == 0:
        msg = "no galaxy has a valid pixel: there is nothing to train on."
        raise ValueError(msg)
    rms = np.ma.sqrt((pixels**2).mean(axis=(1, 2)))
    scale = np.ma.median(rms, axis=0).filled(0)
    noise = np.zeros_like(scale)
    if "error" in batch:
        error = np.ma.array(batch["error"], mask=batch["mask"])
        noise = np.ma.median(error, axis=(0, 1, 2)).filled(0)
    usable = scale > 0
    if not usable.any():
        msg = "all valid pixels are zero: there is nothing to train on."
        raise ValueError(msg)
    # a band that is missing everywhere takes the scale of the others
    scale = np.where(usable, scale, scale[usable].mean())
    return scale, np.where(noise > 0, noise, 0.1 * scale)


def adapt_networks(model, source):
    """
    Let networks that begin with principal components find them.

    An encoder or decoder takes part if it has ``adapt(images, valid, weights,
    components)`` and is not yet ``adapted``, such as
    `~astrovae.models.EigenEncoder`. The latents then begin
    as the coefficients of the leading components. A decoder that paints before the
    PSF gets those of deconvolved galaxies, with ``latents=`` to tell them from.

    Parameters
    ----------
    model : `~astrovae.models.VAE`
        The model, whose scales are known.
    source : source of batches
        Training images, few enough to be kept at once.
    """
    encoder, decoder = (
        None if getattr(network, "adapted", True) else network.adapt
        for network in (model.encoder, model.decoder)
    )
    if encoder is None and decoder is None:
        return

    def prepare(batch):
        seen = valid_pixels(batch["image"], seen_pixels(batch))
        painted, valid = batch["image"] * seen / model._scale, seen
        if model.pose:
            painted = model.to_aligned((painted, batch["pose"][:, :4]))
            share = model.to_aligned.resample_valid(valid, batch["pose"][:, :4])
            valid = ops.cast(share > _RESTS_ON_VALID, "float32")
        painted = _refine(fit_canvas(painted, model.canvas_shape), model.oversampling)
        valid = _refine(fit_canvas(valid, model.canvas_shape), model.oversampling)
        planes = model._planes(batch)
        # side information counts everywhere
        side = planes.shape[3] - valid.shape[3]
        shown = fit_canvas(pool_pixels(valid, model.oversampling), planes.shape[1:3])
        ones = ops.ones_like(planes[..., :side])
        shown = ops.concatenate([shown, ones], axis=-1)
        behind_psf = _psf_and_noise(model, batch, seen) if model.psf else {}
        return {
            "planes": planes * shown,
            "shown": shown,
            "painted": painted * valid,
            "valid": valid,
            **behind_psf,
        }

    found = RowFunction(prepare, model).map(source)
    weights = _inverse_variances(model, source)
    components = None
    if encoder is not None:
        components = encoder(found["planes"], found["shown"], weights)
        _start_at_components(model)
        pixels = math.prod(found["painted"].shape[1:])
        if components[1].shape[1] != pixels or model.stretch != "linear":
            components = None
    if decoder is not None:
        components = decoder(found["painted"], found["valid"], weights, components)
        if model.psf:
            # what is blurred in its components cannot be painted sharp
            sharp, known = _before_psf(found, components, model)
            latents = None if encoder is None else _first_latents(model, source)
            decoder(sharp, known, weights, latents=latents)


def _before_psf(found, components, model):
    """Galaxies as sharp as they were before their PSFs, and where they are known."""
    center, rows, coefficients = components
    seen = np.reshape(center + coefficients @ rows, found["painted"].shape)
    # edges would ring
    inner = _inner_pixels(found["valid"])
    sharp = _deconvolve(inner * seen, found["psf"], found["wiener"], model)
    known = (found["psf"].sum(axis=(1, 2)) > 0) & found["valid"].any(axis=(1, 2))
    known = known[:, None, None]
    valid = None if known.all() else np.ones_like(sharp) * known
    return known * (sharp + (1.0 - inner) * seen), valid


def _first_latents(model, source):
    """What the encoder says of galaxies before it has learned."""

    def encode(batch):
        return {"latents": model._raw(batch)[:, : model.latent_dim]}

    return RowFunction(encode, model).map(source)["latents"]


def _psf_and_noise(model, batch, seen):
    """PSFs in painted pixels, turned as the galaxies are, and noise over signal."""
    psf = batch["psf"] * ops.ones((1, 1, 1, seen.shape[3]))
    if model.psf_oversampling != model.oversampling:
        psf = refine_psf(psf, model.oversampling, centered=True)
    if model.pose:
        # about the middle
        pose = batch["pose"][:, :4] * ops.array([0.0, 0.0, 1.0, 1.0])
        psf = PoseTransform(frame="aligned")((psf, pose))
    # squares of fluxes in physical units may be too small for a float
    noise = seen * batch.get("error", model._noise) / model._scale
    noise = ops.sum(ops.square(noise), axis=(1, 2))
    flux = ops.relu(ops.sum(seen * batch["image"] / model._scale, axis=(1, 2)))
    ratio = _DETAILS * noise / (ops.square(flux) + 1e-6 * noise + 1e-30)
    return {"psf": psf, "wiener": ops.clip(ratio, _LEAST_WIENER, 1.0)}


def _inner_pixels(valid):
    """1 where most galaxies have pixels, smoothly to 0 at the edges of that region."""
    share = valid.mean(axis=0)
    inside = share > 0.5 * share.max(axis=(0, 1))
    inside = np.pad(inside, [(1, 1), (1, 1), (0, 0)])
    depth = np.stack([ndimage.distance_transform_edt(b) for b in inside.T]).T[
        1:-1, 1:-1
    ]
    depth = depth / (_EDGE * max(share.shape[:2]))
    return np.sin(0.5 * np.pi * np.clip(depth, 0.0, 1.0)).astype(np.float32) ** 2


def _deconvolve(images, psf, wiener, model):
    """
    Galaxies before their PSFs, by Wiener's filter for white light.

    Parameters
    ----------
    images : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        Images in painted pixels, with little noise.
    psf : `~numpy.ndarray`, shape (n, ky, kx, n_bands)
        PSFs in painted pixels, of any sum.
    wiener : `~numpy.ndarray`, shape (n, n_bands)
        Power of the noise over that of the galaxy before the PSF.
    model : `~astrovae.models.VAE`
        The model, for its oversampling.

    Returns
    -------
    sharp : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        The galaxies.
    """
    shape = [size + kernel for size, kernel in zip(images.shape, psf.shape)][1:3]
    waves = [np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])]
    middle = [size // 2 for size in psf.shape[1:3]]
    response = np.exp(2j * np.pi * sum(k * at for k, at in zip(waves, middle)))
    # pixels that were repeated, and, if not in the PSF, that were averages
    number = model.oversampling
    pixel = math.prod(np.sinc(number * k) / np.sinc(k) for k in waves)
    response *= pixel if model.psf_oversampling < number else pixel**2
    response *= math.prod(np.abs(k) < 0.5 / number for k in waves)
    sharp = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        total = psf[rows].sum(axis=(1, 2), keepdims=True)
        kernel = psf[rows] / np.where(total > 0, total, 1)
        kernel = np.fft.rfft2(kernel, shape, axes=(1, 2)) * response[..., None]
        noise = wiener[rows, None, None]
        kernel = (1 + noise) * kernel.conj() / (np.abs(kernel) ** 2 + noise)
        found = np.fft.rfft2(images[rows], shape, axes=(1, 2)) * kernel
        found = np.fft.irfft2(found, shape, axes=(1, 2))
        sharp[rows] = found[:, : images.shape[1], : images.shape[2]]
    return sharp


def _refine(maps, number):
    """Repeat pixels."""
    return ops.repeat(ops.repeat(maps, number, axis=1), number, axis=2)


def _inverse_variances(model, source):
    """One over the mean known variance of each galaxy; None if all are the same."""
    batch = source.batch(np.arange(len(source)))
    valid = ~batch["mask"]
    if "error" not in batch:
        some = valid.any(axis=(1, 2, 3))
        return None if some.all() else some.astype(float)
    squares = np.square(np.where(valid, batch["error"], 0.0) / model.scale)
    count = valid.sum(axis=(1, 2, 3))
    variance = squares.sum(axis=(1, 2, 3)) / np.maximum(count, 1)
    # galaxies without pixels say nothing, and the brightest not everything
    least = _LEAST_VARIANCE * np.median(variance[count > 0]) if count.any() else 1.0
    return np.divide(1.0, variance + least, out=np.zeros(len(count)), where=count > 0)


def _start_at_components(model):
    """Let the first features, the leading components, be the posterior means."""
    layer, latent_dim = model.posterior_layer, model.latent_dim
    kernel = _SMALL * ops.convert_to_numpy(layer.kernel)
    kernel[:latent_dim, :latent_dim] = np.eye(*kernel[:latent_dim, :latent_dim].shape)
    bias = np.zeros(layer.units)
    bias[latent_dim : 2 * latent_dim] = _INITIAL_LOG_VAR
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
