# Licensed under a 3-clause BSD style license - see LICENSE
"""What the encoder sees: pixels, and side information beside them."""

from keras import ops

from astrovae.layers import PoseTransform
from astrovae.models._masks import (
    hide_pixels,
    present_bands,
    seen_pixels,
    valid_pixels,
)
from astrovae.ops import arcsinh, fit_canvas

__all__ = ["SIDE_INPUTS", "Planes"]

SIDE_INPUTS = ("mask", "error", "psf", "bands")
# errors far from the usual noise are as good as none, or as certain ones
_LOG_ERROR_LIMIT = 5.0


class Planes:
    """
    What the encoder sees of galaxies.

    Parameters
    ----------
    image_shape : tuple of int
        The shape of an image, ``(ny, nx, n_bands)``.
    side_inputs : tuple of str
        Some of `SIDE_INPUTS`.
    stretch : str or `~astrovae.models.Stretch`
        How it sees the pixels.
    pose : bool
        Whether galaxies are turned to their aligned frame.
    canvas_shape : tuple of int
        Shape ``(ny, nx)`` of the aligned frame.
    """

    def __init__(self, image_shape, side_inputs, stretch, pose, canvas_shape):
        self.image_shape = image_shape
        self.side_inputs = side_inputs
        self.stretch = stretch
        self.pose = pose
        frame = canvas_shape if pose else image_shape[:2]
        self.to_aligned = PoseTransform(frame, "aligned")

    @property
    def shape(self):
        """The shape ``(ny, nx, channels)`` of the planes of a galaxy."""
        channels = self.image_shape[2] * (1 + len(self.side_inputs))
        return (*self.to_aligned.target_shape, channels)

    def __call__(self, batch, scale, noise):
        """
        Give the planes of galaxies.

        Parameters
        ----------
        batch : dict of tensor
            Galaxies. Those with a ``turn``, shape ``(n, 1)`` in radians, are
            turned by so much clockwise if the model has no pose.
        scale, noise : tensor, shape (n_bands,)
            Image scale and noise level of each band.

        Returns
        -------
        planes : tensor, shape (n, ny, nx, channels)
            Pixels, and for each side input a plane per band.
        """
        seen = seen_pixels(batch)
        image = hide_pixels(batch["image"], seen)
        planes = [self._stretched(image, scale, noise)]
        if "mask" in self.side_inputs:
            planes.append(valid_pixels(image, seen))
        if "error" in self.side_inputs:
            error = hide_pixels(batch["error"], seen, 1.0)
            log_error = ops.log(error / noise)
            log_error = ops.clip(log_error, -_LOG_ERROR_LIMIT, _LOG_ERROR_LIMIT)
            planes.append(hide_pixels(log_error, seen))
        planes = ops.concatenate(planes, axis=-1) if planes[1:] else planes[0]
        pose = self._pose(batch)
        if pose is not None:
            planes = self.to_aligned((planes, pose))
        if "psf" in self.side_inputs:
            # that of a missing band says nothing of the galaxy
            psf = self._psf_plane(batch["psf"], pose) * present_bands(image, seen)
            planes = ops.concatenate([planes, psf], axis=-1)
        if "bands" in self.side_inputs:
            shape = (1, *planes.shape[1:3], 1)
            present = present_bands(image, seen) * ops.ones(shape)
            planes = ops.concatenate([planes, present], axis=-1)
        return planes

    def _stretched(self, image, scale, noise):
        if self.stretch == "asinh":
            return arcsinh(image / noise)
        if self.stretch == "linear":
            return image / scale
        return self.stretch(image, scale)

    def _pose(self, batch):
        """How galaxies are turned before they are seen, or None."""
        if self.pose:
            return batch["pose"][:, :4]
        if "turn" not in batch:
            return None
        angle = batch["turn"]
        zero = ops.zeros_like(angle)
        return ops.concatenate([zero, zero, angle, zero + 1.0], axis=1)

    def _psf_plane(self, psf, pose):
        """PSF of each galaxy as an image of peak 1, turned as the galaxy is."""
        ny, nx, n_bands = self.image_shape
        peak = ops.max(psf, axis=(1, 2), keepdims=True)
        psf = fit_canvas(psf / ops.maximum(peak, 1e-10), (ny, nx))
        psf = psf * ops.ones((1, 1, 1, n_bands))
        if pose is None:
            return psf
        # its middle pixel, in stamps of even size, is beside their middle
        x, y = 0.5 * (nx % 2 - 1), 0.5 * (ny % 2 - 1)
        if not self.pose:  # where the encoder expects it
            cos, sin = ops.cos(pose[:, 2]), ops.sin(pose[:, 2])
            x, y = x - (x * cos - y * sin), y - (x * sin + y * cos)
        turn = ops.stack(
            [x + 0.0 * pose[:, 0], y + 0.0 * pose[:, 1], pose[:, 2], pose[:, 3]], axis=1
        )
        return self.to_aligned((psf, turn))
