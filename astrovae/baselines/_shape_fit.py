# Licensed under a 3-clause BSD style license - see LICENSE
"""What fits of a profile to every galaxy have in common."""

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from astrovae._progress import progress_bar
from astrovae._sources import as_source
from astrovae._validation import check_positive_int
from astrovae.flags import Flag

__all__ = ["ShapeFit", "parameter_covariance"]

# Galaxies between two updates of the progress bar. So few results are held
# beside the columns that memory does not grow with the catalogue.
_CHUNK = 8192


class ShapeFit(BaseEstimator):
    """
    A profile fitted to every galaxy by least squares, in batches.

    A subclass has the parameters ``background``, ``n_starts``, ``max_iter``
    and ``batch_size``, and says what the profile is:

    ``_prefix``, ``_plural``, ``_shape_names``
        The prefix of the columns, what is fitted, and its parameters.
    ``_extra_planes``, ``_extra_results``, ``_block``
        What the compiled function takes and gives besides; galaxies at a time.
    ``_kernel(shapes, background)``
        The compiled function of batches whose arrays have these ``shapes``,
        and the number of parameters of its search.
    ``_profiles(shapes, batch)``
        Profiles of unit amplitude (n, ny * nx, 1 or n_bands), in float64.
    ``_describe(found, shapes, result, parts)``
        Adds the parameters and their errors to ``result``.
    ``_painted(shapes, rows)``
        The profiles of some fitted galaxies.
    ``_shapes(result)``
        The numbers of the search, from the parameters.
    """

    # galaxies at a time in float64, so that their pixels stay in the cache
    _block = 32
    _extra_planes = ()
    _extra_results = ()

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
        self : object
            With the attributes of the class, one row per galaxy.

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
        shape = self.image_shape_
        rows = np.arange(len(self.x_)) if indices is None else np.atleast_1d(indices)
        images = np.empty((len(rows), *shape), dtype=np.float32)
        result = {name: getattr(self, f"{name}_") for name in self._shape_names}
        shapes = self._shapes(result)
        for start in range(0, len(rows), self._block):
            block = rows[start : start + self._block]
            profile = self._painted(shapes[block], block)
            image = profile * self.amplitude_[block, np.newaxis]
            image += self.background_[block, np.newaxis]
            images[start : start + self._block] = image.reshape(-1, *shape)
        return images

    def _measure(self, stack, show_progress):
        """Columns of the catalogue, of the fits with and without a constant."""
        shape, (plain, constant) = self._run(stack, [False, True], show_progress)
        names = ("flux", *self._shape_names)
        names = [*names, *(f"{name}_err" for name in names), "mse", "log_like"]
        columns = {f"{self._prefix}_{name}": plain[name] for name in names}
        columns[f"{self._prefix}_background"] = constant["background"]
        for name in ("mse", "log_like"):
            columns[f"{self._prefix}_{name}_background"] = constant[name]
        columns[f"{self._prefix}_flags"] = plain["flags"]
        if shape[-1] == 1:
            columns = {
                name: values[:, 0] if values.ndim == 2 else values
                for name, values in columns.items()
            }
        return columns

    def _run(self, stack, backgrounds, show_progress):
        """Fit one model after the other; return the shape and their results."""
        check_positive_int("n_starts", self.n_starts)
        check_positive_int("max_iter", self.max_iter)
        check_positive_int("batch_size", self.batch_size)
        source = as_source(stack)
        first = source.batch(np.arange(min(len(source), 1)))
        self._check(first)
        keys = [
            key
            for key in ("image", "mask", "error", *self._extra_planes)
            if key in first
        ]
        shapes = {key: first[key].shape[1:] for key in keys}
        chunks = []
        description = f"Fitting {self._plural}"
        with progress_bar(description, len(source), show=show_progress) as bar:
            # no galaxies are one empty chunk
            for start in range(0, max(len(source), 1), _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, len(source)))
                results = []
                for background in backgrounds:
                    search = _Search(self, source, shapes, background)
                    results.append(search.measure(rows))
                if len(results) == 2:
                    search.improve(rows, *results)
                chunks.append(results)
                bar(len(rows))
        merged = [
            {
                name: np.concatenate([chunk[name] for chunk in parts])
                for name in parts[0]
            }
            for parts in zip(*chunks, strict=True)
        ]
        return shapes["image"], merged

    def _check(self, batch):
        """Refuse what cannot be fitted."""


class _Search:
    """
    The compiled search for the shapes of some galaxies of a source.

    It is itself a source: of the batches that the compiled function takes.
    """

    def __init__(self, fit, source, shapes, background):
        self.fit = fit
        self.source = source
        self.keys = tuple(shapes)
        self.n_bands = shapes["image"][-1]
        self.background = background
        self.kernel, self.n_parameters = fit._kernel(shapes, background)

    def __len__(self):
        return len(self.rows)

    def batch(self, indices):
        batch = self.source.batch(self.rows[indices])
        batch = {key: batch[key] for key in self.keys}
        batch["start"] = self.start[self.local[indices]]
        batch["damping"] = self.damping[self.local[indices]]
        return batch

    def measure(self, rows, start=None):
        """Search for the shapes of some galaxies, and measure what follows."""
        found = self.run(rows, start)
        shapes = found["best"].astype(np.float64)
        blocks = []
        # no galaxies are one empty block
        for first in range(0, max(len(rows), 1), self.fit._block):
            some = slice(first, first + self.fit._block)
            batch = self.source.batch(rows[some])
            profile = self.fit._profiles(shapes[some], batch)
            blocks.append(_linear_part(batch, profile, self.background))
        parts = {
            key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]
        }
        result = {key: parts[key] for key in ("amplitude", "background", "mse", "chi2")}
        n_valid = parts["n_valid"]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            result["log_like"] = (
                -0.5 * n_valid * (np.log(2 * np.pi * result["mse"]) + 1)
            )
            self.fit._describe(found, shapes, result, parts)
        n_linear = (1 + self.background) * (n_valid > 0).sum(axis=1)
        enough = n_valid.sum(axis=1) > self.n_parameters + n_linear
        measured = enough & ~parts["constant"]
        for values in result.values():
            values[~measured] = np.nan
            if values.ndim == 2:
                values[n_valid == 0] = np.nan
        parts["unmeasured"] = ~measured
        result["converged"] = found["converged"] & measured
        result["flags"] = _flags(result, parts)
        return result

    def improve(self, rows, special, general):
        """Search again where a special case of the model was found to be better."""
        worse = np.flatnonzero(general["chi2"] > special["chi2"])
        start = self.fit._shapes(special)
        again = self.measure(rows[worse], start[worse])
        for name, values in general.items():
            values[worse] = again[name]

    def run(self, rows, start=None):
        """
        Search for shapes, from ``start`` or from guesses.

        Galaxies that have not converged after a round enter the next one.
        Batches are always full, so that what a galaxy's neighbours do never
        changes the shape, and with it the rounding, of a batch.
        """
        from astrovae.baselines._newton import FIRST_DAMPING, STEPS_PER_ROUND

        n, size, fit = len(rows), self.n_parameters, self.fit
        self.start = np.zeros((n, fit.n_starts, size), dtype=np.float32)
        if start is not None:
            self.start[:] = start[:, np.newaxis]
        self.damping = np.full((n, fit.n_starts), FIRST_DAMPING, dtype=np.float32)
        square = (n, self.n_bands, *[size + 1 + self.background] * 2)
        found = {
            "start": self.start,
            "damping": self.damping,
            "best": np.zeros((n, size), dtype=np.float32),
            "converged": np.zeros(n, dtype=bool),
            "fisher": np.zeros(square, dtype=np.float32),
            "hessian": np.zeros(square, dtype=np.float32),
            "scale": np.ones(n, dtype=np.float32),
            "error_scale": np.ones(n, dtype=np.float32),
        }
        for name, extra in fit._extra_results:
            found[name] = np.zeros((n, *extra), dtype=np.float32)
        local = np.arange(n)
        for _ in range(-(-fit.max_iter // STEPS_PER_ROUND)):
            if not len(local):
                break
            self.local = np.pad(local, (0, -len(local) % fit.batch_size), mode="edge")
            self.rows = rows[self.local]
            result = self.kernel.map(self, batch_size=fit.batch_size)
            for name, values in found.items():
                values[local] = result[name][: len(local)]
            local = local[~result["done"][: len(local)]]
        return found


def _linear_part(batch, profile, background):
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

    def total(image, plane):
        """Weighted sums over the pixels of each band."""
        if image.shape[2] == 1:
            return (np.swapaxes(image, 1, 2) @ plane)[:, 0]
        return np.einsum("npb,npb->nb", image, plane)

    norm = total(np.square(profile), weight)
    flux = total(profile, weight * data)
    constant = np.zeros((n, n_bands))
    with np.errstate(divide="ignore", invalid="ignore"):
        if background:
            area, light = weight.sum(axis=1), (weight * data).sum(axis=1)
            mean = total(profile, weight) / area
            norm -= mean * mean * area
            constant = light / area
            flux -= mean * light
        amplitude = flux / norm
        if background:
            constant -= amplitude * mean
        residual = profile * -amplitude[:, np.newaxis]
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


def parameter_covariance(found, result, parts, *, fixed=None):
    """
    Covariance ``H^-1 F H^-1`` of all parameters of the search.

    Parameters
    ----------
    found : dict
        Of the search: the matrices of the constant, if there is one, the
        relative amplitude and the shape of each band.
    result, parts : dict
        Of the linear part.
    fixed : `~numpy.ndarray` of bool, shape (n, n_parameters), optional
        Parameters of the shape that are not free.

    Returns
    -------
    covariance : `~numpy.ndarray`, shape (n, k, k)
        First the shape, then constant and relative amplitude of each band.
    """
    fisher, hessian = (found[key].astype(np.float64) for key in ("fisher", "hessian"))
    n, n_bands = fisher.shape[:2]
    n_shape = found["best"].shape[1]
    n_linear = fisher.shape[2] - n_shape
    noise = _noise_variance(result["mse"], parts, n_shape, n_linear)
    size = n_shape + n_bands * n_linear
    total_fisher, total_hessian = np.zeros((2, n, size, size))
    for band in range(n_bands):
        own = n_shape + n_linear * band + np.arange(n_linear)
        order = [*own, *range(n_shape)]
        index = np.ix_(range(n), order, order)
        total_fisher[index] += noise[:, band, np.newaxis, np.newaxis] * fisher[:, band]
        total_hessian[index] += hessian[:, band]
        absent = parts["n_valid"][:, band] == 0
        total_hessian[np.ix_(absent, own, own)] = np.eye(n_linear)
    if fixed is not None:
        for row, column in zip(*np.nonzero(fixed), strict=True):
            for matrix in (total_fisher[row], total_hessian[row]):
                matrix[column] = matrix[:, column] = 0.0
            total_hessian[row, column, column] = 1.0
    singular = ~np.isfinite(total_hessian).all(axis=(1, 2))
    singular |= np.linalg.det(np.where(singular[:, None, None], 0, total_hessian)) == 0
    total_hessian[singular] = np.eye(size)
    inverse = np.linalg.inv(total_hessian)
    units = (found["error_scale"] / found["scale"].astype(np.float64)) ** 2
    covariance = inverse @ total_fisher @ inverse * units[:, np.newaxis, np.newaxis]
    covariance[singular] = np.nan
    return covariance


def _noise_variance(mse, parts, n_shape, n_linear):
    """Variance of the pixels over 1/weight, for each band."""
    if parts["noise_known"].all():
        return np.ones_like(mse)
    n_valid = parts["n_valid"]
    share = n_valid / n_valid.sum(axis=1, keepdims=True)
    freedom = n_valid - n_shape * share - n_linear
    return np.where(n_valid > 0, mse * n_valid / freedom, 0.0)


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
        (Flag.AT_LIMIT, parts.get("at_limit", False) & ~parts["unmeasured"]),
    ):
        flags |= where * np.int32(flag)
    return flags
