# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies that overlap, told apart by what galaxies look like."""

import numpy as np
from keras import ops
from scipy import ndimage

from astrovae._sources import Arrays, as_source
from astrovae._validation import check_option, check_positive_int, check_preprocessing
from astrovae.models._draws import normal_draws
from astrovae.models._inference import LatentModel
from astrovae.models._laplace import NUM_SAMPLES, laplace_posteriors
from astrovae.models._observation import Observation, with_variance
from astrovae.models._posteriors import DeltaPosterior
from astrovae.models._refine import WithPosterior, refine_posteriors
from astrovae.models._shift import Shift

__all__ = ["deblend", "symmetric_cutouts"]

# Shares of the light are told apart down to this part of the usual pixel.
_FAINTEST = 1e-3
# Positions closer to the grid of pixels are on it.
_ON_GRID = 1e-3
# Small: Gauss-Newton steps come before.
_LEARNING_RATE = 0.01
# How often galaxies are painted and cut out anew before the steps begin.
_NUM_ROUNDS = 2


def deblend(
    vae,
    blends,
    positions,
    *,
    poses=None,
    method="posterior",
    refine=100,
    num_draws=16,
    batch_size=32,
    show_progress=False,
):
    """
    Tell overlapping galaxies apart, with a model of single ones as the prior.

    Every galaxy of a blend has its own latents. What the decoder paints of them is
    carried to their positions, blurred, and added up; and the latents of all
    galaxies are sought together which explain the pixels best.

    Parameters
    ----------
    vae : `VAE`
        A model of single galaxies, in the same bands, unit and pixels.
    blends : `~astrovae.images.CutoutStack`, array or dict
        Images of any shape ``(ny, nx)``, of blends, with errors, masks and PSFs as
        for `VAE.encode`.
    positions : array_like, shape (n, n_galaxies, 2)
        Centres (x, y) of the galaxies in pixels, (0, 0) being the centre of the first
        pixel. NaN where a blend has fewer galaxies than others.
    poses : array_like, shape (n, n_galaxies, 2), optional
        Angle in radians and flip of each galaxy, as in
        `~astrovae.layers.PoseTransform`; for models with ``pose=True``.
    method : {"posterior", "map"}, optional
        "posterior" finds the normal distributions that fit best; "map" the most
        probable latents, without uncertainty.
    refine : int, optional
        Number of gradient steps, of all galaxies at once, after a few Gauss-Newton
        steps towards the most probable latents. 0 leaves what the encoder says of
        each one after sharing out the light.
    num_draws : int, optional
        Latents drawn per galaxy for the errors of fluxes.
    batch_size : int, optional
        Blends at a time.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    galaxies : dict of `~numpy.ndarray`
        ``model`` ``(n, n_galaxies, ny, nx, n_bands)``, each galaxy at its posterior
        mean as it would be observed alone; ``shared``, of the same shape, the pixels
        shared out in the proportion of the models, so that they add up to the image;
        ``flux`` and ``flux_err`` ``(n, n_galaxies, n_bands)``, of what is painted
        before the PSF; ``mean`` and ``log_var`` ``(n, n_galaxies, latent_dim)``, the
        latents. Where there is no galaxy, images are 0 and the rest is NaN;
        with "map", ``flux_err`` and ``log_var`` are NaN.

    Raises
    ------
    ValueError
        If positions do not fit the images or lie outside them, or the model needs a
        plane or a pose that is missing.
    ~astrovae.exceptions.PreprocessingError
        If bands, pixel scale or unit are not those of the training.

    Notes
    -----
    The variance of the pixels is the known noise and the sum of what the decoder
    learned of each galaxy; without errors, the sky, which it has learned with every
    galaxy, counts once. Posteriors of galaxies of one blend are independent: their
    errors do not know that light may have gone from one to the other. Nor do they know
    what the decoder cannot paint: compare fluxes of isolated galaxies with their errors
    before you trust them. The start is what
    the encoder says of a cutout around each position, from which the light of the
    others was taken: at first by symmetry, then by the models.

    References
    ----------
    Regier et al. 2015 and Arcelin et al. 2021, MNRAS 500, 531 (arXiv:2005.12039), for
    such priors; Lupton 2005, "SDSS Image Processing I: The Deblender", for symmetric
    templates and for sharing out pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE, deblend
    >>> truth, stack = make_galaxies(64, shape=16, seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> vae.compile()
    >>> history = vae.fit(stack, epochs=1, verbose=0)
    >>> blend = np.pad(stack.data[0], ((4, 4), (4, 12), (0, 0)))
    >>> blend = blend + np.pad(stack.data[1], ((4, 4), (12, 4), (0, 0)))
    >>> positions = [[[11.5, 11.5], [19.5, 11.5]]]
    >>> galaxies = deblend(vae, blend[np.newaxis], positions, refine=0)
    >>> galaxies["model"].shape
    (1, 2, 24, 32, 1)
    """
    check_option("method", method, ("posterior", "map"))
    refine = check_positive_int("refine", refine, minimum=0)
    check_positive_int("num_draws", num_draws, minimum=2)
    source = as_source(blends)
    shape = _check_images(vae, source)
    positions = _check_positions(positions, len(source), shape)
    poses = _check_poses(vae, poses, positions)
    number = positions.shape[1]
    if not len(source):
        return _nothing(vae, number, shape)
    scene = _scene(vae, shape, number, method)
    blends = _Blends(source, positions, poses)
    options = {"batch_size": batch_size}
    raw = _start(vae, scene, blends, options)
    blends = WithPosterior(blends, raw)
    if refine:
        raw = laplace_posteriors(scene, blends, options)
        blends = WithPosterior(blends.source, raw)
        options["show_progress"] = show_progress
        raw = refine_posteriors(
            scene,
            blends,
            refine,
            learning_rate=_LEARNING_RATE,
            num_samples=NUM_SAMPLES,
            **options,
        )
        blends = WithPosterior(blends.source, raw)
    return _results(scene, blends, num_draws, batch_size)


# ----------------------------------------------------------------------
# checks
# ----------------------------------------------------------------------


def _check_images(vae, source):
    """Check planes of blends; give their shape (ny, nx)."""
    empty = source.batch(np.arange(0))
    *shape, n_bands = empty["image"].shape[1:]
    if n_bands != vae.image_shape[2]:
        msg = (
            f"the model knows galaxies in {vae.image_shape[2]} bands, the blends have "
            f"{n_bands}."
        )
        raise ValueError(msg)
    for name in sorted(vae.needs - set(empty) - {"pose"}):
        msg = f"this model needs the {name} of the images, and these have none."
        raise ValueError(msg)
    expected, found = vae.preprocessing, getattr(source, "preprocessing", None)
    if None not in (expected, found):
        # blends have a shape of their own, and are not cleaned of their neighbours
        same = {name: expected[name] for name in ("shape", "steps")}
        check_preprocessing(expected, found | same)
    return tuple(shape)


def _check_positions(positions, n, shape):
    positions = np.array(positions, dtype=np.float32)
    if positions.ndim != 3 or positions.shape[::2] != (n, 2) or not positions.shape[1]:
        msg = (
            "positions must have the shape (n, n_galaxies, 2), x and y of the "
            f"galaxies of each of {n} blends, got {positions.shape}."
        )
        raise ValueError(msg)
    positions[~np.isfinite(positions).all(axis=2)] = np.nan
    size = np.array(shape[::-1])
    outside = (positions < -0.5) | (positions > size - 0.5)
    if outside.any():
        row, galaxy = np.argwhere(outside.any(axis=2))[0]
        msg = (
            f"galaxy {galaxy} of blend {row} lies outside the image of {shape} pixels, "
            f"at (x, y) = {tuple(positions[row, galaxy].tolist())}."
        )
        raise ValueError(msg)
    return positions


def _check_poses(vae, poses, positions):
    """Angles and flips; those of galaxies as they are, if the model knows no pose."""
    upright = np.zeros_like(positions) + np.array([0.0, 1.0], np.float32)
    if not vae.pose:
        if poses is not None:
            msg = "poses are for models with pose=True; this one has none."
            raise ValueError(msg)
        return upright
    if poses is None:
        msg = (
            "this model needs poses=..., angle and flip of each galaxy, e.g. those "
            "that measure_pose gives of cutouts around them."
        )
        raise ValueError(msg)
    poses = np.array(poses, dtype=np.float32)
    if poses.shape != positions.shape:
        msg = (
            f"poses must have the shape {positions.shape}, angle and flip of each "
            f"galaxy, got {poses.shape}."
        )
        raise ValueError(msg)
    unknown = ~np.isfinite(poses).all(axis=2, keepdims=True)
    return np.where(unknown, upright, poses)


def _nothing(vae, number, shape):
    """Results for no blend."""
    n_bands = vae.image_shape[2]
    images = np.zeros((0, number, *shape, n_bands), np.float32)
    fluxes = np.zeros((0, number, n_bands), np.float32)
    latents = np.zeros((0, number, vae.latent_dim), np.float32)
    return {
        "model": images,
        "shared": images,
        "flux": fluxes,
        "flux_err": fluxes,
        "mean": latents,
        "log_var": latents,
    }


# ----------------------------------------------------------------------
# the model of a blend
# ----------------------------------------------------------------------


class _MostProbable(DeltaPosterior):
    """Points whose cost is that of the prior."""

    def kl_terms(self, prior, posterior, z):
        return -prior.log_prob(z)[:, None]


class _Blends:
    """Blends with the positions of their galaxies, relative to the middle."""

    def __init__(self, source, positions, poses):
        self.source = source
        image = source.batch(np.arange(0))["image"]
        middle = (np.array(image.shape[2:0:-1]) - 1) / 2
        present = np.isfinite(positions[..., 0])
        place = np.where(present[..., None], positions - middle, 0.0)
        self.place = np.concatenate([place, poses], axis=2).astype(np.float32)
        self.present = present.astype(np.float32)

    def __len__(self):
        return len(self.source)

    def batch(self, indices):
        """Read the rows ``indices``."""
        batch = self.source.batch(indices)
        batch.pop("pose", None)
        place, present = self.place[indices], self.present[indices]
        return {**batch, "place": place, "present": present}


class _Scene(LatentModel):
    """A model of several galaxies of another one, in one image."""

    def __init__(self, vae, shape, number, method):
        super().__init__((*shape, vae.image_shape[2]))
        self.vae, self.number = vae, number
        self.single = vae.family if method == "posterior" else _MostProbable()
        self.posterior = vae.posterior if method == "posterior" else "delta"
        self.uncertain = self.posterior != "delta"
        self.latent_dim = number * vae.latent_dim
        units = self.single.num_parameters(vae.latent_dim)
        self.posterior_layer = _Units(number * units)
        self.latent_temperature = self.imputation_factor = None
        finer = vae.observation
        # what a galaxy has beyond its stamp is painted, too
        reach = [max(a, b) for a, b in zip(shape, finer.canvas_shape)]
        canvas = [r + (r - size) % 2 for r, size in zip(reach, shape)]
        self.observation = Observation(
            self.image_shape,
            True,
            vae.psf,
            canvas if vae.psf else shape,
            finer.oversampling,
            finer.psf_oversampling,
        )
        if not vae.pose:
            frame = self.observation.to_observed.target_shape
            self.observation.to_observed = Shift(frame)
            self.observation.variance_to_observed = Shift(frame, "linear")
        self.built = True

    @property
    def likelihood(self):
        return self.vae.likelihood

    @property
    def _scale(self):
        return self.vae._scale

    def _pixels(self, batch):
        return self.vae._pixels(batch)

    def _log_like_map(self, batch, params):
        return self.vae._log_like_map(batch, params)

    def _raw_batch(self, batch):
        return {"raw": batch["posterior"]}

    def _apart(self, values):
        """One row per galaxy, not per blend."""
        return ops.reshape(values, (-1, values.shape[-1] // self.number))

    def _together(self, values):
        return ops.reshape(values, (-1, self.number * values.shape[-1]))

    def _encode_batch(self, batch, training=False):
        raw = ops.convert_to_tensor(batch["posterior"])
        single = self.single.parameters(self._apart(raw))
        return {
            "mean": self._together(single["mean"]),
            "log_var": self._together(single["log_var"]),
            "raw": raw,
            "present": ops.convert_to_tensor(batch["present"]),
            "measured": ops.any(ops.logical_not(batch["mask"]), axis=(1, 2, 3)),
        }

    def _sample(self, posterior, noise):
        """Draw latents of all galaxies, one row per blend."""
        single = self.single.parameters(self._apart(posterior["raw"]))
        noise = ops.zeros_like(posterior["mean"]) + noise
        return self._together(self.single.sample(single, self._apart(noise)))

    def _elbo_terms(self, batch, posterior, noise):
        z = self._sample(posterior, noise)
        likes = self._log_like_map(batch, self._decode_batch(z, batch))
        single = self.single.parameters(self._apart(posterior["raw"]))
        kl = self.single.kl_terms(self.vae.prior, single, self._apart(z))
        kl = self._together(ops.sum(kl, axis=-1, keepdims=True))
        kl = ops.sum(kl * posterior["present"], axis=-1)
        return ops.sum(likes, axis=(1, 2, 3)), kl

    def _paint_each(self, z, batch):
        """Pixel distribution of each galaxy observed alone, a row for each."""
        seen = {"pose": ops.reshape(batch["place"], (-1, 4))}
        if "psf" in batch:
            seen["psf"] = ops.repeat(batch["psf"], self.number, axis=0)
        if batch.get("error") is not None:
            seen["error"] = batch["error"]  # that there is one is all that matters
        vae = self.vae
        painted = vae._paint(self._apart(z))
        return self.observation(painted, seen, vae.likelihood, vae._scale, vae._noise)

    def _split(self, maps, batch):
        """Give maps of each galaxy, ``(n, number, ny, nx, n_bands)``."""
        maps = ops.reshape(maps, (-1, self.number, *maps.shape[1:]))
        return maps * batch["present"][:, :, None, None, None]

    def _decode_batch(self, z, batch=None, training=False):
        vae = self.vae
        floor = vae.likelihood.floor(vae._scale)
        # without errors, each galaxy was learned with its sky, which counts once
        sky = ops.square(vae._noise / vae._scale)
        if batch.get("error") is not None:
            sky = 0.0 * sky
        params = self._paint_each(z, batch)
        learned = ops.relu(vae.likelihood.variance(params) - floor)
        learned = self._split(learned, batch)
        excess = ops.sum(learned - self._split_sky(sky, batch), axis=1) + sky
        variance = ops.maximum(excess, ops.max(learned, axis=1)) + floor
        if not training:
            variance = variance * vae._variance_factor
        mean = ops.sum(self._split(params["mean"], batch), axis=1)
        return with_variance({"mean": mean}, variance)

    @staticmethod
    def _split_sky(sky, batch):
        return sky * batch["present"][:, :, None, None, None]


class _Units:
    """The number of parameters of all posteriors of a blend."""

    def __init__(self, units):
        self.units = units


def _scene(vae, shape, number, method):
    """The model of such blends, made and compiled once."""
    functions, key = vae._plain.functions, ("deblend", shape, number, method)
    if key not in functions:
        functions[key] = _Scene(vae, shape, number, method)
    return functions[key]


# ----------------------------------------------------------------------
# start and results
# ----------------------------------------------------------------------


def _start(vae, scene, blends, options):
    """What the encoder says of each galaxy after sharing out the light."""
    batch = blends.batch(np.arange(len(blends)))
    image = np.where(batch["mask"], 0.0, batch["image"])
    place = blends.place.astype(float)
    shares = _symmetric_shares(image, place, blends.present)
    for turn in range(_NUM_ROUNDS):
        source = Arrays(_stamps(vae, batch, shares, place, blends.present))
        raw = vae._map("raw", vae._raw_batch, source, **options)["raw"]
        if not scene.uncertain:
            raw = raw[:, : vae.latent_dim]
        raw = raw.reshape(len(blends), -1)
        if turn + 1 < _NUM_ROUNDS:
            shares = _shares(_paint(scene, WithPosterior(blends, raw), options))
    return raw


def symmetric_cutouts(vae, planes, positions):
    """
    Cut out each galaxy of blends, with its share of the light by symmetry.

    Parameters
    ----------
    vae : `VAE`
        The model whose image shape the cutouts get.
    planes : dict of `~numpy.ndarray`
        The blends, as for `deblend`.
    positions : array_like, shape (n, n_galaxies, 2)
        As for `deblend`.

    Returns
    -------
    cutouts : dict of `~numpy.ndarray`
        ``image`` and ``mask`` ``(n * n_galaxies, ny, nx, n_bands)``; where there is no
        galaxy, all is masked.
    """
    source = as_source(planes)
    shape = _check_images(vae, source)
    positions = _check_positions(positions, len(source), shape)
    upright = np.zeros_like(positions) + np.array([0.0, 1.0], np.float32)
    blends = _Blends(source, positions, upright)
    batch = blends.batch(np.arange(len(blends)))
    place = blends.place.astype(float)
    image = np.where(batch["mask"], 0.0, batch["image"])
    shares = _symmetric_shares(image, place, blends.present)
    cutouts = _stamps(vae, batch, shares, place, blends.present)
    return {name: cutouts[name] for name in ("image", "mask")}


def _symmetric_shares(image, place, present):
    """Share of each galaxy in the light, by what is symmetric about it."""
    n, ny, nx, n_bands = image.shape
    number = place.shape[1]
    templates = np.zeros((n, number, ny, nx, n_bands))
    y, x = np.arange(ny), np.arange(nx)
    for i in range(n):
        for k in np.flatnonzero(present[i]):
            # partners of pixels lie on the grid if centres are on half of it
            twice = np.round(2 * place[i, k, 1::-1]).astype(int)
            rows, columns = twice[0] + ny - 1 - y, twice[1] + nx - 1 - x
            inside = ((rows >= 0) & (rows < ny))[:, None] & (
                (columns >= 0) & (columns < nx)
            )
            partner = image[i][np.ix_(rows % ny, columns % nx)]
            partner = np.where(inside[..., None], partner, image[i])
            templates[i, k] = np.clip(np.minimum(image[i], partner), 0, None)
    return _shares(templates, present)


def _shares(models, present=None):
    """Shares of each galaxy in each pixel; they add up to 1."""
    models = np.clip(models, 0, None)
    if present is None:
        present = models.any(axis=(2, 3, 4))
    usual = np.abs(models).mean(axis=(1, 2, 3, 4), keepdims=True) + 1e-30
    models = models + _FAINTEST * usual
    models = models * present[:, :, None, None, None]
    total = models.sum(axis=1, keepdims=True)
    return models / np.where(total > 0, total, 1.0)


def _stamps(vae, batch, shares, place, present):
    """Cutouts around each galaxy, in the frame that the encoder knows."""
    n, number = present.shape
    *shape, n_bands = vae.image_shape
    stamps = {"image": np.zeros((n * number, *shape, n_bands), np.float32)}
    stamps["mask"] = np.ones(stamps["image"].shape, bool)
    if "error" in batch:
        stamps["error"] = np.ones_like(stamps["image"])
    pose = np.zeros((n * number, 5), np.float32)
    shape, size = np.array(shape), np.array(batch["image"].shape[1:3])
    for row, (i, k) in enumerate(np.ndindex(n, number)):
        if not present[i, k]:
            continue
        # the first pixel of the stamp, in those of the blend
        first = place[i, k, 1::-1] + (size - shape) / 2
        corner = np.round(first).astype(int)
        rest = first - corner
        low, high = np.maximum(corner, 0), np.minimum(corner + shape, size)
        there = tuple(slice(a, b) for a, b in zip(low, high))
        here = tuple(slice(a, b) for a, b in zip(low - corner, high - corner))
        if any(s.start >= s.stop for s in there):
            continue
        light = shares[i, k] * np.where(batch["mask"][i], 0.0, batch["image"][i])
        stamps["image"][row][here] = light[there]
        stamps["mask"][row][here] = batch["mask"][i][there]
        if "error" in batch:
            stamps["error"][row][here] = batch["error"][i][there]
        if vae.pose:
            pose[row] = (*rest[::-1], *place[i, k, 2:], 0.0)
        elif np.abs(rest).max() > _ON_GRID:
            image = stamps["image"][row]
            image[:] = ndimage.shift(image, (*-rest, 0), order=3, mode="nearest")
    if vae.pose:
        stamps["pose"] = pose
    if "psf" in batch:
        stamps["psf"] = np.repeat(batch["psf"], number, axis=0)
    return stamps


def _paint(scene, blends, options):
    """Each galaxy at its posterior mean, as it would be observed alone."""

    def paint(batch):
        mean = scene._encode_batch(batch)["mean"]
        images = scene._paint_each(mean, batch)["mean"] * scene._scale
        return {"model": scene._split(images, batch)}

    return scene._map("paint", paint, blends, **options)["model"]


def _results(scene, blends, num_draws, batch_size):
    vae, number = scene.vae, scene.number
    draws = normal_draws(num_draws, scene.latent_dim, antithetic=True)
    noise = ops.convert_to_tensor(draws)
    area = float(vae.observation.oversampling**2)

    def flux(z):
        images = vae._paint(scene._apart(z))["mean"] * vae._scale
        values = ops.sum(images, axis=(1, 2)) / area
        return ops.reshape(values, (-1, number, values.shape[-1]))

    def measure(batch):
        posterior = scene._encode_batch(batch)
        center = flux(posterior["mean"])

        def add_draw(i, sums):
            values = flux(scene._sample(posterior, noise[i])) - center
            return sums[0] + values, sums[1] + ops.square(values)

        zero = ops.zeros_like(center)
        first, second = ops.fori_loop(0, num_draws, add_draw, (zero, zero))
        variance = second / num_draws - ops.square(first / num_draws)
        shape = (-1, number, vae.latent_dim)
        return {
            "flux": center,
            "flux_err": ops.sqrt(ops.relu(variance)),
            "mean": ops.reshape(posterior["mean"], shape),
            "log_var": ops.reshape(posterior["log_var"], shape),
        }

    options = {"batch_size": batch_size}
    models = _paint(scene, blends, options)
    values = scene._map(f"measure_{num_draws}", measure, blends, **options)
    batch = blends.batch(np.arange(len(blends)))
    present = batch["present"] > 0
    image = batch["image"][:, np.newaxis]
    shared = _shares(models, batch["present"]) * image
    shared = np.where(batch["mask"][:, np.newaxis], models, shared)
    for name in values:
        known = present[..., np.newaxis]
        if not scene.uncertain and name in ("flux_err", "log_var"):
            known = np.zeros_like(known)
        values[name] = np.where(known, values[name], np.nan).astype(np.float32)
    return {"model": models, "shared": shared.astype(np.float32), **values}
