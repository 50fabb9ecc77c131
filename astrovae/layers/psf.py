# Licensed under a 3-clause BSD style license - see LICENSE
"""Convolution with the point spread function."""

import numpy as np
from keras import ops, saving
from scipy.fft import next_fast_len

from astrovae._validation import check_option
from astrovae.layers._base import DensityLayer
from astrovae.ops import irfft2, rfft2

__all__ = ["PSFConvolution"]

# Measured on all backends: transforms of 64 x 64 stamps cost as much as 10 to
# 20 shifted sums, forwards and backwards, whatever the size of the kernel.
_LARGEST_DIRECT = 3
# pixels on each side that interpolate a PSF
_REACH = 4


@saving.register_keras_serializable("astrovae")
class PSFConvolution(DensityLayer):
    """
    Blur galaxies as telescope and atmosphere do.

    With this layer between decoder and likelihood, the decoder paints
    galaxies before the point spread function (PSF), and images of different
    seeing share one model. Pixels beyond the image count as zero: paint
    galaxies on a canvas that holds them. The PSF should be the effective one,
    with the pixel response in it, and sum to one: the flux of a galaxy is
    multiplied by its sum.

    Parameters
    ----------
    psf : array_like, shape (ky, kx) or (ky, kx, n_bands), optional
        One PSF for all galaxies. By default each call brings its own.
    method : {"auto", "fft", "direct"}, optional
        "fft" multiplies Fourier transforms that are padded so that nothing
        wraps around; "direct" is a sum over the pixels of the PSF, only for
        very small ones. "auto" takes "direct" up to 3 x 3 pixels.
    **kwargs
        Arguments of `keras.layers.Layer`. Half precision is raised to
        float32.

    Raises
    ------
    ValueError
        If the PSF has an even number of pixels along an axis, so that no
        pixel is its centre, or does not fit the images.

    Notes
    -----
    Input shape: a pair ``(images, psf)`` of shapes ``(n, ny, nx, n_bands)``
    and ``(n or 1, ky, kx, n_bands or 1)``; the images alone if the PSF was
    given. Output shape: that of the images.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.layers import PSFConvolution
    >>> star = np.zeros((1, 7, 7, 1))
    >>> star[0, 3, 3] = 8.0
    >>> psf = np.full((3, 3), 1 / 9)
    >>> image = PSFConvolution(psf)(star)
    >>> print(round(float(image[0, 2, 4, 0]), 3))
    0.889
    """

    def __init__(self, psf=None, method="auto", **kwargs):
        super().__init__(**kwargs)
        self.method = check_option("method", method, ("auto", "fft", "direct"))
        self.psf = None if psf is None else _check_psf(psf)

    def build(self, input_shape):
        if self.psf is None:
            images, psf = input_shape
        else:
            images, psf = input_shape, (1, *self.psf.shape)
        if len(images) != 4 or len(psf) != 4:
            msg = (
                "expected images (n, ny, nx, n_bands) and PSFs (n or 1, ky, kx, "
                f"n_bands), got shapes {tuple(images)} and {tuple(psf)}."
            )
            raise ValueError(msg)
        check_odd(psf[1:3])
        same_number = None in (images[0], psf[0]) or psf[0] in (1, images[0])
        if not same_number or psf[3] not in (1, images[3]):
            msg = (
                f"PSFs of shape {tuple(psf)} do not fit images of shape "
                f"{tuple(images)}: give one for all galaxies or one for each, "
                "and one for all bands or one for each."
            )
            raise ValueError(msg)

    def call(self, inputs):
        if self.psf is None:
            images, psf = inputs
        else:
            images, psf = inputs, self.psf[None]
        images, psf = self.as_float(images), self.as_float(psf)
        direct = max(psf.shape[1:3]) <= _LARGEST_DIRECT
        if self.method == "direct" or (self.method == "auto" and direct):
            return _convolve_direct(images, psf)
        return _convolve_fft(images, psf)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0] if self.psf is None else input_shape)

    def get_config(self):
        psf = None if self.psf is None else self.psf.tolist()
        return {**super().get_config(), "psf": psf, "method": self.method}


def refine_psf(psf, number, centered=False):
    """
    Draw effective PSFs for images of finer pixels.

    After convolution with the result, the value of a pixel of the PSF's own
    size that consists of ``number`` by ``number`` finer ones is that of the
    finer pixel ``number // 2`` of it. If that is not its centre, since
    ``number`` is even, the result is shifted by half a finer pixel.

    Parameters
    ----------
    psf : tensor, shape (n, ky, kx, n_bands)
        PSFs, with odd ``ky`` and ``kx``.
    number : int
        Finer pixels per pixel, along each axis.
    centered : bool, optional
        Whether the result is not shifted, its centre on its middle pixel.

    Returns
    -------
    tensor, shape (n, ly, lx, n_bands)
        PSFs on finer pixels, larger by some, with odd ``ly`` and ``lx``. They
        are interpolated by polynomials of degree 7 through the nearest eight
        pixels: flux, centroid and width are kept wherever a galaxy is painted.
    """
    check_odd(psf.shape[1:3])
    shift = 0.0 if centered else number // 2 - 0.5 * (number - 1)
    rows, columns = (_refining(size, number, shift) for size in psf.shape[1:3])
    return ops.einsum("aj,bk,njkc->nabc", rows, columns, psf)


def _refining(size, number, shift):
    """Matrix that takes the pixels of a PSF along an axis to finer ones."""
    half = size // 2
    last = number * (half + _REACH) + 1
    position = (np.arange(-last, last + 1) - shift) / number
    first = np.floor(position) - _REACH + 1
    matrix = np.zeros((len(position), size))
    steps = np.arange(2 * _REACH)
    for step in steps:
        others = steps[steps != step]
        offset = (position - first)[:, np.newaxis]
        weight = np.prod((offset - others) / (step - others), axis=1)
        pixel = (first + step).astype(int) + half
        inside = (pixel >= 0) & (pixel < size)
        matrix[np.flatnonzero(inside), pixel[inside]] = weight[inside]
    # so many of them share the flux
    return ops.convert_to_tensor(matrix / number, "float32")


def _convolve_direct(images, psf):
    """Add up shifted images, one for each pixel of the PSF."""
    (ny, nx), (ky, kx) = images.shape[1:3], psf.shape[1:3]
    psf = ops.flip(psf, axis=(1, 2))
    margins = ((0, 0), (ky // 2, ky // 2), (kx // 2, kx // 2), (0, 0))
    padded = ops.pad(images, margins)
    return sum(
        psf[:, j : j + 1, i : i + 1] * padded[:, j : j + ny, i : i + nx]
        for j in range(ky)
        for i in range(kx)
    )


def _convolve_fft(images, psf):
    """Multiply Fourier transforms, padded so that nothing wraps around."""
    (ny, nx), (ky, kx) = images.shape[1:3], psf.shape[1:3]
    shape = tuple(next_fast_len(n + k - 1, real=True) for n, k in ((ny, ky), (nx, kx)))
    planes = ops.transpose(images, (0, 3, 1, 2))
    real, imag = rfft2(planes, shape)
    psf_real, psf_imag = rfft2(ops.transpose(psf, (0, 3, 1, 2)), shape)
    product = (
        real * psf_real - imag * psf_imag,
        real * psf_imag + imag * psf_real,
    )
    # the centre of the PSF is at (ky // 2, kx // 2), not at the origin: the
    # result is shifted by as much
    result = irfft2(product, shape[1])
    result = result[:, :, ky // 2 : ky // 2 + ny, kx // 2 : kx // 2 + nx]
    return ops.transpose(result, (0, 2, 3, 1))


def _check_psf(psf):
    """Return a PSF of shape (ky, kx, n_bands or 1) that can be used."""
    psf = np.asarray(psf, dtype=np.float64)
    psf = psf[..., np.newaxis] if psf.ndim == 2 else psf
    if psf.ndim != 3:
        msg = f"psf must be of shape (ky, kx) or (ky, kx, n_bands), got {psf.shape}."
        raise ValueError(msg)
    check_odd(psf.shape[:2])
    if not np.isfinite(psf).all():
        msg = "psf has values that are not finite."
        raise ValueError(msg)
    return psf


def check_odd(sizes):
    """Refuse PSFs whose centre is no pixel."""
    if any(size is None or size % 2 == 0 for size in sizes):
        msg = (
            "the PSF must have an odd number of pixels along each axis, its centre "
            f"on the middle one, got {tuple(sizes)}. Draw it again, or shift it by "
            "half a pixel and pad it."
        )
        raise ValueError(msg)
