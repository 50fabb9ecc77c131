# Licensed under a 3-clause BSD style license - see LICENSE
"""Least-squares Gaussian fits of whole catalogues at once."""

import functools

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from astrovae._progress import progress_bar
from astrovae._validation import check_positive_int
from astrovae.flags import Flag

__all__ = ["GaussianFit"]

# Galaxies between two updates of the progress bar. So few results are held
# beside the columns that memory does not grow with the catalogue.
_CHUNK = 8192
# Galaxies at a time in float64, so that their pixels stay in the cache.
_BLOCK = 32

_SHAPE_NAMES = ("x", "y", "sigma_major", "sigma_minor", "theta")


class GaussianFit(BaseEstimator):
    """
    The best elliptical Gaussian of every galaxy, found by least squares.

    This is what a latent-variable model has to beat, so it is made as strong
    as a Gaussian can be: every galaxy is fitted to the optimum, from several
    starting guesses, with masks and errors. All galaxies are fitted at once,
    compiled by Keras on any backend, thousands per second.

    The model of a pixel ``p`` in one band is ``A exp(-(p - c)^T C^-1 (p - c)
    / 2)``, plus a constant with ``background=True``. Bands share the centre
    ``c`` and the covariance ``C``; each has its own amplitude and constant.

    Parameters
    ----------
    background : bool, optional
        Whether `fit` adds a constant to each band. `measure` runs both fits.
    n_starts : int, optional
        How many starting guesses are followed to their optimum for each
        galaxy. The guesses are the centres and widths at which a circular
        Gaussian explains most of the image, the best first. One suffices for
        images of single galaxies; neighbours and noise need more.
    max_iter : int, optional
        The largest number of steps from each start, rounded up to a
        multiple of 8, which is what most galaxies need.
    batch_size : int, optional
        Galaxies at a time.

    Attributes
    ----------
    x_, y_ : `~numpy.ndarray`, shape (n,)
        Centres, in 0-based pixels of the cutout.
    sigma_major_, sigma_minor_ : `~numpy.ndarray`, shape (n,)
        Standard deviations along the axes, in pixels, from 0.3 pixel to ten
        times the size of the cutout.
    theta_ : `~numpy.ndarray`, shape (n,)
        Position angle of the major axis in degrees, counter-clockwise from
        the x axis of the array, in (-90, 90].
    flux_, amplitude_, background_ : `~numpy.ndarray`, shape (n, n_bands)
        Integral of the Gaussian over the plane ``2 pi A sigma_major
        sigma_minor``, its peak, and the constant (0 without one).
    x_err_, y_err_, sigma_major_err_, sigma_minor_err_, theta_err_, flux_err_ : \
`~numpy.ndarray`
        1-sigma errors; see Notes.
    mse_ : `~numpy.ndarray`, shape (n, n_bands)
        Mean over valid pixels of the squared residual.
    log_like_ : `~numpy.ndarray`, shape (n, n_bands)
        ``-m/2 (log(2 pi mse) + 1)``: log-likelihood of the ``m`` valid
        pixels at the single noise sigma that suits the Gaussian best.
    chi2_ : `~numpy.ndarray`, shape (n,)
        What was minimised: the sum over pixels and bands of squared
        residuals, over squared errors where there are any.
    converged_ : `~numpy.ndarray` of bool, shape (n,)
        Whether the best start had reached its optimum.
    flags_ : `~numpy.ndarray` of int32, shape (n,)
        Bits of `~astrovae.flags.Flag`.

    Notes
    -----
    Amplitudes and constants are eliminated linearly; the five numbers of the
    shape are found by damped Newton steps with the exact Hessian. Sums of
    the search are float32; amplitudes, constants and all measures of the
    residual are then computed in float64 from the original valid pixels.

    Pixels weigh 1/error^2. Without errors every valid pixel of every band
    weighs the same, as the squared error of a reconstruction counts them:
    bands should then be in one unit, and if their noise differs much, errors
    should be given.

    The errors of the parameters are those that pixel noise causes,
    ``H^-1 F H^-1`` with the exact Hessian ``H`` and the Fisher matrix ``F``;
    so they hold also for a galaxy that is not a Gaussian. The noise is the
    error plane or, without one, the residual variance of each band, which
    then includes what the Gaussian does not describe.

    Rows with no more valid pixels than parameters, and constant ones, are
    NaN and flagged. Centres stay within four cutouts of the edges; those
    outside are flagged, and so are fluxes that are not positive.

    References
    ----------
    Regier, J., et al. 2015, "A deep generative model for astronomical images
    of galaxies", NIPS workshop, for the comparison that this is made for.
    Golub, G. H. & Pereyra, V. 1973, SIAM J. Numer. Anal. 10, 413, for the
    elimination. Coleman, T. F. & Li, Y. 1996, SIAM J. Optim. 6, 418, for the
    limits.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.baselines import GaussianFit
    >>> y, x = np.mgrid[:24, :24]
    >>> image = 5 * np.exp(-0.5 * ((x - 12) ** 2 / 9 + (y - 11) ** 2 / 4))
    >>> fit = GaussianFit().fit(image[np.newaxis])
    >>> print(fit.x_, fit.y_, fit.sigma_major_, fit.sigma_minor_)
    [12.] [11.] [3.] [2.]
    """

    def __init__(self, *, background=False, n_starts=5, max_iter=60, batch_size=64):
        self.background = background
        self.n_starts = n_starts
        self.max_iter = max_iter
        self.batch_size = batch_size

    def fit(self, stack, *, show_progress=False):
        """
        Fit every galaxy of a stack.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies: a stack, an array (n, ny, nx[, n_bands]), or a dict
            of ``image`` and optionally ``mask`` and ``error``.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        self : `GaussianFit`
            With the attributes listed above, one row per galaxy.

        Raises
        ------
        ValueError
            If a parameter of this object is not as described.
        TypeError
            If ``stack`` is none of these.
        """
        shape, results = self._run(stack, [bool(self.background)], show_progress)
        self.image_shape_ = shape
        for name, values in results[0].items():
            setattr(self, f"{name}_", values)
        return self

    def predict(self, indices=None):
        """
        Paint the fitted models.

        Parameters
        ----------
        indices : array_like of int, optional
            Which of the fitted galaxies; by default all.

        Returns
        -------
        images : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            Model images in float32; NaN for galaxies without a fit.
        """
        check_is_fitted(self, "image_shape_")
        ny, nx, n_bands = self.image_shape_
        rows = np.arange(len(self.x_)) if indices is None else np.atleast_1d(indices)
        images = np.empty((len(rows), ny, nx, n_bands), dtype=np.float32)
        shape = {name: getattr(self, f"{name}_") for name in _SHAPE_NAMES}
        shapes = np.stack([self.x_, self.y_, *_inverse_covariance(shape)], axis=1)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            profile = _profiles(shapes[block], (ny, nx))
            image = profile[:, :, np.newaxis] * self.amplitude_[block, np.newaxis]
            image += self.background_[block, np.newaxis]
            images[start : start + _BLOCK] = image.reshape(-1, ny, nx, n_bands)
        return images

    def measure(self, stack, *, show_progress=False):
        """
        Measure the columns of the catalogue, with and without a constant.

        Both fits are run, whatever ``background`` is: the second one starts
        also from the optimum of the first, so it is never worse.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        columns : dict of `~numpy.ndarray`
            Of the fit without a constant: ``gauss_flux``, ``gauss_x``,
            ``gauss_y``, ``gauss_sigma_major``, ``gauss_sigma_minor`` (pixels),
            ``gauss_theta`` (degrees), each also with ``_err``; ``gauss_mse``,
            ``gauss_log_like`` and ``gauss_flags``. Of the fit with one:
            ``gauss_background``, ``gauss_mse_background`` and
            ``gauss_log_like_background``. One row per galaxy, NaN where it
            could not be measured; flux, constant, mean squared error and
            likelihood have one column per band where there are several.

        Raises
        ------
        ValueError, TypeError
            As `fit`.
        """
        shape, (plain, constant) = self._run(stack, [False, True], show_progress)
        names = ("flux", *_SHAPE_NAMES)
        names = [*names, *(f"{name}_err" for name in names), "mse", "log_like"]
        columns = {f"gauss_{name}": plain[name] for name in names}
        columns["gauss_background"] = constant["background"]
        for name in ("mse", "log_like"):
            columns[f"gauss_{name}_background"] = constant[name]
        columns["gauss_flags"] = plain["flags"]
        if shape[-1] == 1:
            columns = {
                name: values[:, 0] if values.ndim == 2 else values
                for name, values in columns.items()
            }
        return columns

    def _run(self, stack, backgrounds, show_progress):
        """Fit one model after the other; return the shape and their results."""
        from astrovae._batches import as_source

        n_starts = check_positive_int("n_starts", self.n_starts)
        max_iter = check_positive_int("max_iter", self.max_iter)
        batch_size = check_positive_int("batch_size", self.batch_size)
        source = as_source(stack)
        first = source.batch(np.arange(min(len(source), 1)))
        shape = first["image"].shape[1:]
        chunks = []
        with progress_bar("Fitting Gaussians", len(source), show=show_progress) as bar:
            # no galaxies are one empty chunk
            for start in range(0, max(len(source), 1), _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, len(source)))
                results = []
                for background in backgrounds:
                    search = _Search(
                        source,
                        shape,
                        error="error" in first,
                        background=background,
                        n_starts=n_starts,
                        batch_size=batch_size,
                    )
                    results.append(search.measure(rows, max_iter))
                if len(results) == 2:
                    search.improve(rows, max_iter, *results)
                chunks.append(results)
                bar(len(rows))
        merged = [
            {
                name: np.concatenate([chunk[name] for chunk in parts])
                for name in parts[0]
            }
            for parts in zip(*chunks, strict=True)
        ]
        return shape, merged


class _Search:
    """
    The compiled search for the shapes of some galaxies of a source.

    It is itself a source: of the batches that the compiled function takes.
    """

    def __init__(self, source, shape, *, error, background, n_starts, batch_size):
        self.source = source
        self.shape = shape
        self.keys = ("image", "mask", "error") if error else ("image", "mask")
        self.n_starts = n_starts
        self.batch_size = batch_size
        self.background = background
        self.function = _compiled(shape, self.keys, background, n_starts, batch_size)

    def __len__(self):
        return len(self.rows)

    def batch(self, indices):
        batch = self.source.batch(self.rows[indices])
        batch = {key: batch[key] for key in self.keys}
        batch["start"] = self.start[self.local[indices]]
        batch["damping"] = self.damping[self.local[indices]]
        return batch

    def measure(self, rows, max_iter, start=None):
        """Search for the shapes of some galaxies, and measure what follows."""
        found = self.run(rows, max_iter, start)
        return _measure(self.source, rows, found, self.background)

    def improve(self, rows, max_iter, special, general):
        """Search again where a special case of the model was found to be better."""
        worse = np.flatnonzero(general["chi2"] > special["chi2"])
        start = np.stack([special["x"], special["y"], *_inverse_covariance(special)], 1)
        again = self.measure(rows[worse], max_iter, start[worse])
        for name, values in general.items():
            values[worse] = again[name]

    def run(self, rows, max_iter, start=None):
        """
        Search for shapes, from ``start`` or from guesses.

        Galaxies that have not converged after a round enter the next one.
        Batches are always full, so that what a galaxy's neighbours do never
        changes the shape, and with it the rounding, of a batch.
        """
        from astrovae.baselines._gaussian_newton import FIRST_DAMPING, STEPS_PER_ROUND

        n = len(rows)
        self.start = np.zeros((n, self.n_starts, 5), dtype=np.float32)
        if start is not None:
            self.start[:] = start[:, np.newaxis]
        self.damping = np.full((n, self.n_starts), FIRST_DAMPING, dtype=np.float32)
        size = 7 if self.background else 6
        square = (n, self.shape[-1], size, size)
        found = {
            "start": self.start,
            "damping": self.damping,
            "best": np.zeros((n, 5), dtype=np.float32),
            "origin": np.zeros((n, 2), dtype=np.float32),
            "converged": np.zeros(n, dtype=bool),
            "fisher": np.zeros(square, dtype=np.float32),
            "hessian": np.zeros(square, dtype=np.float32),
            "scale": np.ones(n, dtype=np.float32),
            "error_scale": np.ones(n, dtype=np.float32),
        }
        local = np.arange(n)
        for _ in range(-(-max_iter // STEPS_PER_ROUND)):
            if not len(local):
                break
            self.local = np.pad(local, (0, -len(local) % self.batch_size), mode="edge")
            self.rows = rows[self.local]
            result = self.function.map(self, batch_size=self.batch_size)
            for name, values in found.items():
                values[local] = result[name][: len(local)]
            local = local[~result["done"][: len(local)]]
        return found


@functools.lru_cache(maxsize=16)
def _compiled(shape, keys, background, n_starts, batch_size):
    """
    Compile the search once for each kind of batch.

    ``keys`` and ``batch_size`` belong to the kind: what is compiled for one
    must not be traced again for another.
    """
    from astrovae._batches import RowFunction
    from astrovae.baselines._gaussian_newton import GaussianNewton

    newton = GaussianNewton(shape, background=background, n_starts=n_starts)
    return RowFunction(newton)


def _inverse_covariance(result):
    """Return the entries xx, xy and yy of fitted Gaussians, each (n,)."""
    angle = np.radians(result["theta"])
    cos, sin = np.cos(angle), np.sin(angle)
    major, minor = result["sigma_major"] ** -2, result["sigma_minor"] ** -2
    pxx = cos * cos * major + sin * sin * minor
    pyy = sin * sin * major + cos * cos * minor
    return pxx, cos * sin * (major - minor), pyy


def _profiles(shapes, image_shape):
    """Paint Gaussians ``(x, y, pxx, pxy, pyy)`` of unit peak: (n, ny * nx)."""
    x0, y0, pxx, pxy, pyy = shapes.T[:, :, np.newaxis]
    x, y = np.arange(image_shape[1]) - x0, np.arange(image_shape[0]) - y0
    exponent = (2 * pxy * x)[:, np.newaxis] * y[:, :, np.newaxis]
    exponent += (pxx * x * x)[:, np.newaxis]
    exponent += (pyy * y * y)[:, :, np.newaxis]
    exponent *= -0.5
    return np.exp(exponent, out=exponent).reshape(len(shapes), x.shape[1] * y.shape[1])


def _measure(source, rows, found, background):
    """Everything that follows from the shapes, in float64, and its flags."""
    shapes = found["best"].astype(np.float64)
    blocks = [
        _linear_part(
            source.batch(rows[start : start + _BLOCK]),
            shapes[start : start + _BLOCK],
            background,
        )
        # no galaxies are one empty block
        for start in range(0, max(len(rows), 1), _BLOCK)
    ]
    parts = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    result = {key: parts[key] for key in ("amplitude", "background", "mse", "chi2")}
    n_valid = parts["n_valid"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result["log_like"] = -0.5 * n_valid * (np.log(2 * np.pi * result["mse"]) + 1)
        result |= _geometry(shapes)
        area = 2 * np.pi * result["sigma_major"] * result["sigma_minor"]
        result["flux"] = area[:, np.newaxis] * result["amplitude"]
        result |= _errors(found, shapes, result, parts)
    n_parameters = 5 + (1 + background) * (n_valid > 0).sum(axis=1)
    measured = (n_valid.sum(axis=1) > n_parameters) & ~parts["constant"]
    for values in result.values():
        values[~measured] = np.nan
        if values.ndim == 2:
            values[n_valid == 0] = np.nan
    result["converged"] = found["converged"] & measured
    result["flags"] = _flags(result, parts)
    return result


def _linear_part(batch, shapes, background):
    """Fit amplitudes and constants, and measure the residuals, of a block."""
    image, mask = batch["image"], batch["mask"]
    n, ny, nx, n_bands = image.shape
    planes = (n, ny * nx, n_bands)
    valid = np.logical_not(mask).reshape(planes).astype(np.float64)
    data = image.reshape(planes) * valid
    n_valid = valid.sum(axis=1)
    weight = valid
    if "error" in batch:
        weight = valid / np.square(batch["error"].reshape(planes), dtype=np.float64)
    profile = _profiles(shapes, (ny, nx))[:, np.newaxis]
    norm = (np.square(profile) @ weight)[:, 0]
    flux = (profile @ (weight * data))[:, 0]
    constant = np.zeros((n, n_bands))
    with np.errstate(divide="ignore", invalid="ignore"):
        if background:
            area, total = weight.sum(axis=1), (weight * data).sum(axis=1)
            mean = (profile @ weight)[:, 0] / area
            norm -= mean * mean * area
            constant = total / area
            flux -= mean * total
        amplitude = flux / norm
        if background:
            constant -= amplitude * mean
        residual = profile[:, 0, :, np.newaxis] * -amplitude[:, np.newaxis]
        residual += data
        residual -= constant[:, np.newaxis]
        np.square(residual, out=residual)
        mse = (residual * valid).sum(axis=1) / n_valid
    low = np.where(mask, np.inf, image).min(axis=(1, 2))
    high = np.where(mask, -np.inf, image).max(axis=(1, 2))
    return {
        "amplitude": amplitude,
        "background": constant,
        "mse": mse,
        # a band without pixels has no amplitude, and adds nothing
        "chi2": np.nansum((residual * weight).sum(axis=1), axis=1),
        "n_valid": n_valid,
        "n_masked": mask.sum(axis=(1, 2, 3)),
        "constant": (low >= high).all(axis=1),
        "noise_known": np.full(n, "error" in batch),
        "image_shape": np.full((n, 2), (ny, nx)),
    }


def _geometry(shapes):
    """Centres and axes of Gaussians ``(x, y, pxx, pxy, pyy)``."""
    x, y, pxx, pxy, pyy = shapes.T
    mean, half = 0.5 * (pxx + pyy), 0.5 * (pxx - pyy)
    radius = np.hypot(half, pxy)
    # the longest axis is where the inverse covariance is smallest
    theta = 0.5 * np.degrees(np.arctan2(-pxy, -half))
    return {
        "x": x.copy(),
        "y": y.copy(),
        "sigma_major": (mean - radius) ** -0.5,
        "sigma_minor": (mean + radius) ** -0.5,
        "theta": np.where(theta <= -90, 90.0, theta),
    }


def _errors(found, shapes, result, parts):
    """
    1-sigma errors, from the covariance ``H^-1 F H^-1`` of all parameters.

    The parameters are those of the search: the five of ``log g``, and for each
    band the constant, if there is one, and the relative amplitude.
    """
    fisher, hessian = (found[key].astype(np.float64) for key in ("fisher", "hessian"))
    n, n_bands = fisher.shape[:2]
    n_linear = fisher.shape[2] - 5
    noise = _noise_variance(result["mse"], parts, n_linear)
    size = 5 + n_bands * n_linear
    total_fisher, total_hessian = np.zeros((2, n, size, size))
    for band in range(n_bands):
        own = 5 + n_linear * band + np.arange(n_linear)
        index = np.ix_(range(n), [*own, *range(5)], [*own, *range(5)])
        total_fisher[index] += noise[:, band, np.newaxis, np.newaxis] * fisher[:, band]
        total_hessian[index] += hessian[:, band]
        absent = parts["n_valid"][:, band] == 0
        total_hessian[np.ix_(absent, own, own)] = np.eye(n_linear)
    singular = ~np.isfinite(total_hessian).all(axis=(1, 2))
    singular |= np.linalg.det(np.where(singular[:, None, None], 0, total_hessian)) == 0
    total_hessian[singular] = np.eye(size)
    inverse = np.linalg.inv(total_hessian)
    units = (found["error_scale"] / found["scale"].astype(np.float64)) ** 2
    covariance = inverse @ total_fisher @ inverse * units[:, np.newaxis, np.newaxis]
    covariance[singular] = np.nan

    jacobian = np.zeros((n, 5 + n_bands, size))
    jacobian[:, :5, :5], growth = _shape_jacobian(shapes, found["origin"], result)
    jacobian[:, 5:, :5] = growth[:, np.newaxis]
    for band in range(n_bands):
        jacobian[:, 5 + band, 5 + n_linear * (band + 1) - 1] = 1.0
    variance = np.einsum("nij,njk,nik->ni", jacobian, covariance, jacobian)
    error = np.sqrt(variance)
    errors = {f"{name}_err": error[:, i] for i, name in enumerate(_SHAPE_NAMES)}
    # a circle has no angle
    errors["theta_err"] = np.fmin(errors["theta_err"], 90.0)
    errors["flux_err"] = np.abs(result["flux"]) * error[:, 5:]
    return errors


def _noise_variance(mse, parts, n_linear):
    """Variance of the pixels over 1/weight, for each band."""
    if parts["noise_known"].all():
        return np.ones_like(mse)
    n_valid = parts["n_valid"]
    share = n_valid / n_valid.sum(axis=1, keepdims=True)
    freedom = n_valid - 5 * share - n_linear
    return np.where(n_valid > 0, mse * n_valid / freedom, 0.0)


def _shape_jacobian(shapes, origin, result):
    """
    Derivatives by the five parameters of ``log g``.

    Returns those of the public shape (n, 5, 5), and of the logarithm of
    the flux (n, 5) at a fixed amplitude at the origin.
    """
    x, y, pxx, pxy, pyy = shapes.T
    det = pxx * pyy - pxy * pxy
    scale_x, scale_y = np.sqrt(pyy / det), np.sqrt(pxx / det)
    rho = -pxy / np.sqrt(pxx * pyy)
    tx, ty = (x - origin[:, 0]) / scale_x, (y - origin[:, 1]) / scale_y
    one = np.ones_like(rho)
    angle = np.radians(result["theta"])
    cos, sin = np.cos(angle), np.sin(angle)
    major, minor = result["sigma_major"], result["sigma_minor"]

    def bend(ax, ay, bx, by):
        """-a^T dP b, with dP the change of the inverse covariance."""
        xx, xy, yy = ax * bx, ax * by + ay * bx, ay * by
        terms = 2 * xx / scale_x**2, xy / (scale_x * scale_y), 2 * yy / scale_y**2
        return (0 * one, 0 * one, *terms)

    jacobian = np.stack(
        [
            (one, rho, 2 * tx, ty + rho * tx, 2 * rho * ty),
            (rho, one, 2 * rho * tx, tx + rho * ty, 2 * ty),
            bend(cos, sin, cos, sin),
            bend(-sin, cos, -sin, cos),
            bend(-sin, cos, cos, sin),
        ]
    )
    turn = np.degrees(major**2 * minor**2 / (major**2 - minor**2))
    jacobian *= np.stack([scale_x, scale_y, major**3 / 2, minor**3 / 2, turn])[:, None]
    peak = np.stack([tx, ty, tx * tx, tx * ty, ty * ty])
    growth = jacobian[2] / major + jacobian[3] / minor + peak
    return np.moveaxis(jacobian, -1, 0), growth.T


def _flags(result, parts):
    """Bits of what was noticed, (n,) int32."""
    n_valid = parts["n_valid"].sum(axis=1)
    ny, nx = parts["image_shape"].T
    x, y = result["x"], result["y"]
    with np.errstate(invalid="ignore"):
        outside = (x < -0.5) | (x > nx - 0.5) | (y < -0.5) | (y > ny - 0.5)
        negative = (result["flux"] <= 0).any(axis=1)
    flags = np.zeros(len(x), dtype=np.int32)
    for flag, where in (
        (Flag.NO_VALID_PIXEL, n_valid == 0),
        (Flag.MOSTLY_MASKED, parts["n_masked"] > n_valid),
        (Flag.CONSTANT, parts["constant"] & (n_valid > 0)),
        (Flag.NOT_CONVERGED, ~result["converged"]),
        (Flag.CENTER_OUTSIDE, outside),
        (Flag.NEGATIVE_FLUX, negative),
    ):
        flags |= where * np.int32(flag)
    return flags
