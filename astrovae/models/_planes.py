# Licensed under a 3-clause BSD style license - see LICENSE
"""What the encoder sees: pixels, and side information beside them."""

import keras
from keras import ops

from astrovae._validation import is_number
from astrovae.layers import PoseTransform
from astrovae.layers.sampling import SeededLayer
from astrovae.models._masks import hide_pixels, seen_pixels, valid_pixels
from astrovae.ops import arcsinh, fit_canvas

__all__ = ["SIDE_INPUTS", "BandDropout", "Planes"]

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
            psf = self._psf_plane(batch["psf"], pose) * _present(image, seen)
            planes = ops.concatenate([planes, psf], axis=-1)
        if "bands" in self.side_inputs:
            shape = (1, *planes.shape[1:3], 1)
            present = _present(image, seen) * ops.ones(shape)
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


def _present(image, seen):
    """1 for the bands of a galaxy that have pixels, shape (n, 1, 1, n_bands)."""
    if seen is None:
        return ops.ones_like(image[:, :1, :1])
    seen = ops.any(seen, axis=(1, 2), keepdims=True)
    return ops.cast(seen, "float32")


class BandDropout(SeededLayer):
    """
    Hide bands of galaxies at random, but never all that there are.

    Parameters
    ----------
    rate : float
        The probability that a band is hidden. A galaxy of which all bands
        would be hidden keeps one of them.
    seed : int, optional
        Seed of the random numbers.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Notes
    -----
    Input shape: the pixels that count, ``(n, ny, nx, n_bands)``. Output: those
    that are left, and which galaxies have lost a band, ``(n,)``.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.rate = rate

    @staticmethod
    def check(rate, n_bands, posterior, side_inputs):
        """Return the rate, or say why a model cannot have it."""
        if not (is_number(rate) and 0 <= rate < 1):
            msg = (
                "band_dropout must be a number, at least 0 and less than 1, got "
                f"{rate!r}."
            )
            raise ValueError(msg)
        told = {"mask", "bands"} & set(side_inputs)
        if rate and (n_bands < 2 or posterior == "delta" or not told):
            msg = (
                "band_dropout hides some of several bands, for which a posterior "
                "becomes wider, and the encoder must be told: it needs images of at "
                "least two bands, posterior='diagonal' or 'full', and side_inputs with "
                f"'bands' or 'mask'. This model has {n_bands} band(s), "
                f"posterior={posterior!r} and side_inputs={tuple(side_inputs)}."
            )
            raise ValueError(msg)
        return float(rate)

    def call(self, seen):
        present = ops.any(seen, axis=(1, 2))
        shape = ops.shape(present)
        luck = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        # the luckiest of the bands that there are stays in any case
        luck = ops.where(present, luck, -1.0)
        best = luck >= ops.max(luck, axis=-1, keepdims=True)
        kept = (luck >= self.rate) | best
        lost = ops.any(present & ops.logical_not(kept), axis=-1)
        return seen & kept[:, None, None], lost
