# Licensed under a 3-clause BSD style license - see LICENSE
"""Latents painted as galaxies, and observed as is asked for."""

import warnings

import astropy.units as u
import numpy as np
from keras import ops

from astrovae._sources import make_stack
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag
from astrovae.layers.psf import check_odd

__all__ = ["paint_galaxies", "warn_of_rows"]

# effective PSFs are cut off, and lose some of their light
_PSF_SUM_TOLERANCE = 0.05
_ID_COLUMNS = ("id", "source_id", "objid", "object_id")


def warn_of_rows(count, what):
    """Warn once of rows that something happened to."""
    if count:
        warnings.warn(f"{count} rows {what}.", FlaggedRowsWarning, stacklevel=4)


def paint_galaxies(
    flow,
    table,
    arrays,
    usable,
    supported,
    *,
    psf,
    noise,
    pose,
    seed,
    batch_size,
    id_column,
    show_progress,
):
    """Paint what is asked for; see `LatentFlow.sample`."""
    vae, n = flow.vae, len(table)
    observed = psf is not None or noise is not None
    shape = vae.image_shape if observed else flow.image_shape
    finer = 1 if observed else vae.oversampling
    record = vae.preprocessing or {}
    unit, pixel_scale = record.get("unit"), record.get("pixel_scale")
    attributes = {
        "bands": record.get("bands"),
        "pixel_scale": None if pixel_scale is None else pixel_scale / finer,
        "unit": unit,
        "ids": _read_ids(table, id_column),
        "columns": {c.column: c.values(table) for c in flow.conditions},
        "meta": {
            "generated": {"seed": seed, "preset": flow.sha256, "observed": observed}
        },
    }
    arrays = dict(arrays)
    if vae.pose:
        pose = _pose(pose, table, seed)
        blank = make_stack(np.zeros((n, *vae.image_shape[:2], 1)), pose=pose)
        arrays["pose"] = blank.batch(np.arange(n))["pose"]
        attributes["pose"] = arrays["pose"] * np.array([finer, finer, 1, 1, finer])
    elif pose is not None:
        msg = "pose=... is for models with pose=True, and this model has none."
        raise ValueError(msg)
    if psf is not None:
        arrays["psf"] = attributes["psf"] = _check_psf(
            psf, n, shape, vae.psf_oversampling
        )
    elif vae.psf and noise is not None:
        msg = (
            "the model paints galaxies before the PSF, and noise comes after it: give "
            "psf=... together with noise=...."
        )
        raise ValueError(msg)
    learned = isinstance(noise, str)
    if learned and noise != "learned":
        msg = f'noise must be numbers or "learned", got {noise!r}.'
        raise ValueError(msg)
    if noise is not None and not learned:
        arrays["error"] = attributes["error"] = _check_noise(noise, n, shape, unit)
    paint = _painter(flow, vae, noise is not None, psf is not None)
    name = f"paint_{noise is not None}_{psf is not None}_{'error' in arrays}"
    source = _Requests(arrays, n, shape if noise is not None else None, seed)
    image = flow._map(
        name,
        paint,
        source,
        batch_size=batch_size,
        description="Painting",
        show_progress=show_progress,
    )["image"]
    flags = np.where(supported, 0, Flag.OUT_OF_SUPPORT)
    flags |= np.where(usable, 0, Flag.NO_RESULT)
    mask = None
    if not usable.all():
        image = np.where(usable[:, None, None, None], image, 0)
        mask = np.broadcast_to(~usable[:, None, None, None], image.shape)
    warn_of_rows(
        (~supported).sum(),
        "have properties unlike those of the training, or missing ones; they are "
        "flagged as out_of_support",
    )
    return make_stack(image, flags=flags, mask=mask, **attributes)


class _Requests:
    """A source of rows to be painted, with noise that depends on the row alone."""

    def __init__(self, arrays, n, noise_shape, seed):
        self.arrays, self.n, self.noise_shape = arrays, n, noise_shape
        # the deviates of the latents come from the seed itself
        self.seed = np.random.SeedSequence(seed).spawn(1)[0].generate_state(1)[0]

    def __len__(self):
        return self.n

    def batch(self, indices):
        """Read the rows ``indices``."""
        batch = {name: array[indices] for name, array in self.arrays.items()}
        if self.noise_shape is not None:
            noise = np.empty((len(indices), *self.noise_shape), np.float32)
            for plane, row in zip(noise, indices):
                rng = np.random.default_rng([self.seed, int(row)])
                rng.standard_normal(dtype=np.float32, out=plane)
            batch["pixels"] = noise
        return batch


def _painter(flow, vae, noisy, blurred):
    """The function of a batch that paints."""
    blur = vae.observation.blur

    def paint(batch):
        z = flow._latents(batch)
        if not noisy and not blurred:
            mean = vae._decode_batch(z)["mean"]
            if vae.pose:
                mean = vae.to_observed((mean, vae.observation._pose(batch)))
            # from surface brightness to the flux of a painted pixel
            return {"image": mean * vae._scale / vae.oversampling**2}
        params = vae._decode_batch(z, batch)
        if blurred and not vae.psf:
            params = {**params, "mean": blur((params["mean"], batch["psf"]))}
        image = params["mean"]
        if noisy:
            error = None
            if "error" in batch:
                # that noise alone, as ``error`` of the stack will say
                error = batch["error"] / vae._scale
                params = {**params, "variance": ops.zeros_like(image)}
            image = vae.likelihood.draw(params, batch["pixels"], error)
        return {"image": image * vae._scale}

    return paint


def _read_ids(table, id_column):
    names = [id_column] if id_column else table.colnames
    if id_column and id_column not in table.colnames:
        msg = f"the table has no column {id_column!r}; it has {table.colnames}."
        raise ValueError(msg)
    for name in names:
        if id_column or name.lower() in _ID_COLUMNS:
            return np.asarray(table[name])
    return None


def _pose(pose, table, seed):
    """What is given, what the table says, or any."""
    n = len(table)
    if isinstance(pose, str):
        if pose != "aligned":
            msg = f'pose must be a pose, a table or "aligned", got {pose!r}.'
            raise ValueError(msg)
        return np.tile([0.0, 0.0, 0.0, 1.0, 1.0], (n, 1))
    if pose is not None:
        return pose
    if "pose_angle" in table.colnames:
        return table
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    angle, side = rng.uniform(-np.pi, np.pi, n), rng.choice([-1.0, 1.0], n)
    return np.stack([0 * angle, 0 * angle, angle, side, 0 * angle + 1], axis=1)


def _check_psf(psf, n, shape, psf_oversampling):
    """PSFs of shape (n, ky, kx, n_bands)."""
    array = np.asarray(psf, dtype=np.float32)
    if array.ndim in (2, 3):
        array = array.reshape(1, *array.shape[:2], -1)
    bands = shape[2]
    if (
        array.ndim != 4
        or array.shape[0] not in (1, n)
        or array.shape[3] not in (1, bands)
    ):
        msg = (
            f"psf must have the shape ({n} or 1, ky, kx, {bands} or 1), (ky, kx) or "
            f"(ky, kx, {bands}), got {np.shape(psf)}."
        )
        raise ValueError(msg)
    check_odd(array.shape[1:3])
    if not np.isfinite(array).all():
        msg = "PSFs must be finite, got NaN or inf."
        raise ValueError(msg)
    shape = tuple(psf_oversampling * size for size in shape[:2])
    if any(k > size for k, size in zip(array.shape[1:3], shape)):
        msg = (
            f"the PSF has {array.shape[1:3]} pixels and the images {shape}: cut it, "
            "and let its sum be 1."
        )
        raise ValueError(msg)
    total = array.sum(axis=(1, 2), dtype=float)
    if not (np.abs(total - 1) < _PSF_SUM_TOLERANCE).all():
        worst = total.flat[np.argmax(np.abs(total - 1))]
        msg = f"PSFs must have the sum 1, got {worst:.4g}: divide them by their sums."
        raise ValueError(msg)
    return np.broadcast_to(array, (n, *array.shape[1:3], bands))


def _check_noise(noise, n, shape, unit):
    """Sigma of each pixel, shape (n, ny, nx, n_bands)."""
    if isinstance(noise, u.Quantity):
        noise = noise.to_value(unit or u.dimensionless_unscaled)
    array = np.asarray(noise, dtype=np.float32)
    if not (np.isfinite(array) & (array > 0)).all():
        msg = "the sigma of the noise must be positive and finite; use None for none."
        raise ValueError(msg)
    if array.ndim == 2:
        array = array[:, None, None, :]
    try:
        return np.broadcast_to(array, (n, *shape))
    except ValueError as error:
        msg = (
            f"noise must be one number, one for each of {shape[2]} bands, or of shape "
            f"({n}, {shape[2]}) or {(n, *shape)}, got {array.shape}."
        )
        raise ValueError(msg) from error
