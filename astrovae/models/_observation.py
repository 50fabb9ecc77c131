# Licensed under a 3-clause BSD style license - see LICENSE
"""What lies between a galaxy as it is painted and its pixels."""

from keras import ops

from astrovae._validation import check_positive_int, check_shape
from astrovae.layers import PoseTransform, PSFConvolution
from astrovae.layers.psf import refine_psf
from astrovae.ops import fit_canvas

__all__ = ["Observation", "pool_pixels", "with_variance"]


class Observation:
    """
    The way from the aligned galaxy before the PSF to the pixels.

    Parameters
    ----------
    image_shape : tuple of int
        The shape of an image, ``(ny, nx, n_bands)``.
    pose, psf : bool
        Whether galaxies are turned, and blurred.
    canvas_shape : tuple of int or None
        Shape of what is painted, in pixels of the images.
    oversampling : int
        Painted pixels per pixel of the images, along each axis.
    psf_oversampling : int
        Pixels of the PSF per pixel of the images, along each axis.
    """

    def __init__(
        self, image_shape, pose, psf, canvas_shape, oversampling, psf_oversampling
    ):
        self.stamp = image_shape[:2]
        self.pose, self.psf = pose, psf
        self.canvas_shape = self._check_canvas(canvas_shape)
        self.oversampling = check_positive_int("oversampling", oversampling)
        self.psf_oversampling = self._check_psf(psf_oversampling)
        # behind a PSF there is light from beyond the edges of the stamp
        frame = self.finer(self.canvas_shape if psf else self.stamp)
        self.to_observed = PoseTransform(frame, "observed")
        self.variance_to_observed = PoseTransform(frame, "observed", "linear")
        self.blur = PSFConvolution()

    @property
    def painted_shape(self):
        """Shape ``(ny, nx)`` of what is painted, in painted pixels."""
        return self.finer(self.canvas_shape)

    def finer(self, shape):
        """Give a shape in painted pixels."""
        return tuple(self.oversampling * size for size in shape)

    def _check_canvas(self, canvas_shape):
        """Give the shape of the canvas."""
        if canvas_shape is None:
            return self.stamp
        canvas = check_shape("canvas_shape", canvas_shape)
        if not self.pose and not self.psf and canvas != self.stamp:
            msg = (
                "canvas_shape is for models with pose=True or psf=True; others paint "
                f"images of {self.stamp} pixels, got canvas_shape={canvas_shape!r}."
            )
            raise ValueError(msg)
        pairs = zip(canvas, self.stamp)
        if any((big - small) % 2 or big < small for big, small in pairs):
            msg = (
                "canvas_shape must be that of the images or larger by an even number "
                f"of pixels, got {canvas} for images of {self.stamp}."
            )
            raise ValueError(msg)
        return canvas

    def _check_psf(self, psf_oversampling):
        """Give the sampling of the PSF."""
        number = check_positive_int("psf_oversampling", psf_oversampling)
        if number not in (1, self.oversampling) or (number > 1 and not self.psf):
            msg = (
                "psf_oversampling must be 1, for PSFs in pixels of the images, or, for "
                "models with psf=True, that of what is painted, oversampling="
                f"{self.oversampling}; got {number}."
            )
            raise ValueError(msg)
        return number

    def __call__(self, params, batch, likelihood, scale, noise):
        """
        Carry a pixel distribution to where it was observed, through the PSF.

        Parameters
        ----------
        params : dict of tensor
            The distribution as it is painted.
        batch : dict of tensor
            The galaxies, with ``pose`` and ``psf`` if they are needed.
        likelihood : `~astrovae.models.Likelihood`
            What gives variances.
        scale, noise : tensor, shape (n_bands,)
            Image scale and noise level of each band.

        Returns
        -------
        params : dict of tensor
            The distribution of the pixels of the images.
        """
        if not self.pose and not self.psf and self.oversampling == 1:
            return params
        mean = params["mean"]
        floor = likelihood.floor(scale)
        learned = ops.relu(likelihood.variance(params) - floor)
        if self.pose:
            pose = self._pose(batch)
            mean = self.to_observed((mean, pose))
            # a variance must not be negative, as cubic weights may make it
            inside = ops.ones_like(learned[..., :1])
            maps = ops.concatenate([learned, inside], axis=-1)
            maps = self.variance_to_observed((maps, pose))
            learned, inside = maps[..., :-1], maps[..., -1:]
            # nothing is known of what lies beyond the canvas: there is sky
            if batch.get("error") is None:
                sky = ops.square(noise / scale)
                learned = learned + ops.relu(1.0 - inside) * sky
        if self.psf:
            mean = self._blur(mean, batch)
        else:
            mean = pool_pixels(mean, self.oversampling)
        learned = pool_pixels(learned, self.oversampling)
        mean, learned = fit_canvas(mean, self.stamp), fit_canvas(learned, self.stamp)
        return with_variance({**params, "mean": mean}, learned + floor)

    def _pose(self, batch):
        """Poses in painted pixels."""
        pose, number = batch["pose"][:, :4], float(self.oversampling)
        return pose if number == 1.0 else pose * ops.array([[number, number, 1.0, 1.0]])

    def _blur(self, mean, batch):
        """
        Convolve with the PSF and sample by pixels.

        A PSF in pixels of the images has their response in it: the result is
        read off at their centres. A finer one has not: it is averaged over
        them.
        """
        number, psf = self.oversampling, batch["psf"]
        if self.psf_oversampling == number:
            return pool_pixels(self.blur((mean, psf)), number)
        blurred = self.blur((mean, refine_psf(psf, number)))
        middle = number // 2
        return blurred[:, middle::number, middle::number]


def pool_pixels(maps, number):
    """Average blocks of pixels: surface brightness, and so flux, is kept."""
    if number == 1:
        return maps
    ny, nx, channels = maps.shape[1:]
    blocks = (-1, ny // number, number, nx // number, number, channels)
    return ops.mean(ops.reshape(maps, blocks), axis=(2, 4))


def with_variance(params, variance):
    """Change the variance of pixel distributions."""
    return {**params, "variance": variance, "log_var": ops.log(variance)}
