# Licensed under a 3-clause BSD style license - see LICENSE
"""Principal components of galaxy images, with missing pixels and bands."""

import warnings

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from astrovae._progress import progress_bar
from astrovae._sources import as_source
from astrovae._validation import (
    check_option,
    check_positive_int,
    check_preprocessing,
)
from astrovae.baselines._ppca import (
    PPCA,
    closed_form,
    expectation_maximization,
    posterior,
    predictive_variance,
    survey,
)

__all__ = ["EigenGalaxies"]

# Values of a chunk of galaxies: 32 MB in float64.
_CHUNK_VALUES = 1 << 22
# So many values per galaxy have a covariance matrix that fits into memory.
_LARGEST_EXACT = 5000


class EigenGalaxies(TransformerMixin, BaseEstimator):
    """
    Galaxies as weighted sums of eigengalaxies, with a probability for each.

    Principal component analysis is the linear model that a latent-variable
    model has to beat at the same number of latents. Its probabilistic form
    gives every galaxy a likelihood, and every latent, missing pixel and
    missing band an uncertainty. Fit it to training galaxies, never to those
    that it is to be compared on.

    Parameters
    ----------
    n_components : int, optional
        Number of eigengalaxies; 12 after Uzeirbegovic et al. 2020.
    weighting : {"flux", "equal"}, optional
        How much galaxies count in `fit`: their squared residuals as they
        are, so that the bright ones decide; or over their own mean square,
        so that all galaxies count the same.
    tol : float, optional
        Where pixels are missing, iterations stop when one raises the mean
        log-likelihood of a pixel by less.
    max_iter : int, optional
        The largest number of iterations.
    rng : int or `~numpy.random.Generator`, optional
        Random numbers for the start of the iterations.

    Attributes
    ----------
    components_ : `~numpy.ndarray`, shape (n_components, n_features)
        Orthonormal eigengalaxies, the one of largest variance first. The
        ``n_features`` are the flattened ``(ny, nx, n_bands)``; `eigengalaxies`
        has them as images.
    mean_ : `~numpy.ndarray`, shape (n_features,)
        The mean galaxy; NaN where no training galaxy has a valid pixel.
    explained_variance_, explained_variance_ratio_ : `~numpy.ndarray`, \
shape (n_components,)
        Variance along each eigengalaxy, noise included, and its share of the
        variance of all pixels.
    noise_variance_ : float
        Variance of a pixel around the eigengalaxies.
    n_iter_ : int
        Number of iterations; 0 where the closed form was used.
    image_shape_ : tuple of int
        ``(ny, nx, n_bands)``.
    n_samples_, n_features_in_ : int
        Number of galaxies with weight, and of values per galaxy.

    Notes
    -----
    The model is ``x = mean + W z + noise`` with standard normal latents
    ``z`` and one noise variance. If no pixel is missing and a galaxy has at
    most 5000 values, its maximum-likelihood parameters are eigenvectors and
    eigenvalues of the covariance; otherwise they are found by expectation
    maximisation over the valid pixels, as if the others were missing at random.
    Either way galaxies are read in chunks, and variances are unbiased: as
    `sklearn.decomposition.PCA`, they divide by ``n - 1`` (and by the
    corresponding number if galaxies are weighted). For fewer galaxies than
    values the noise variance is averaged over all ``n_features -
    n_components`` remaining directions, not only over those in the sample.

    Errors of pixels are not used, but pixels without a valid one are masked.

    `transform` gives the coordinates of the galaxy along the eigengalaxies, in
    the unit of the pixels; `encode` the latents ``z``. Coordinates of a galaxy
    with missing pixels are those of its expected complete image.

    References
    ----------
    Tipping, M. E. & Bishop, C. M. 1999, J. R. Stat. Soc. B 61, 611.
    Uzeirbegovic, E., Geach, J. E. & Kaviraj, S. 2020, MNRAS 498, 4021
    (arXiv:2004.06734). Liu, C., Rubin, D. B. & Wu, Y. N. 1998, Biometrika 85,
    755, for the acceleration of the iterations.

    Examples
    --------
    >>> from astrovae.baselines import EigenGalaxies
    >>> from astrovae.datasets import make_galaxies
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> eigen = EigenGalaxies(4).fit(stack)
    >>> eigen.transform(stack).shape
    (64, 4)
    >>> columns = eigen.measure(stack)
    """

    def __init__(
        self, n_components=12, *, weighting="flux", tol=1e-7, max_iter=1000, rng=0
    ):
        self.n_components = n_components
        self.weighting = weighting
        self.tol = tol
        self.max_iter = max_iter
        self.rng = rng

    @property
    def preprocessing(self):
        """The record of how the training galaxies were prepared, or `None`."""
        return getattr(self, "preprocessing_", None)

    @property
    def eigengalaxies(self):
        """The components as images, shape (n_components, ny, nx, n_bands)."""
        check_is_fitted(self, "components_")
        return self.components_.reshape(-1, *self.image_shape_)

    def fit(self, stack, y=None, *, sample_weight=None, show_progress=False):
        """
        Find the eigengalaxies of training galaxies.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies: a stack, an array (n, ny, nx[, n_bands]), or a dict
            of ``image`` and optionally ``mask`` and ``error``.
        y : None, optional
            Ignored.
        sample_weight : array_like, shape (n,), optional
            How much each galaxy counts, besides ``weighting``.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        self : `EigenGalaxies`
            With the attributes listed above.

        Raises
        ------
        ValueError
            If a parameter is not as described, or there are not more
            galaxies and values per galaxy than components.
        TypeError
            If ``stack`` is none of these.
        """
        n_components = check_positive_int("n_components", self.n_components)
        check_option("weighting", self.weighting, ("flux", "equal"))
        max_iter = check_positive_int("max_iter", self.max_iter)
        source = as_source(stack)
        weights = _check_weights(sample_weight, len(source))
        shape = source.batch(np.arange(0))["image"].shape[1:]
        n_features = int(np.prod(shape))

        def chunks():
            for rows, data, valid in _chunks(source):
                weight = weights[rows] * valid.any(axis=1)
                if self.weighting == "equal":
                    power = np.square(data).sum(axis=1)
                    power /= np.maximum(valid.sum(axis=1), 1)
                    weight *= power > 0
                    weight /= np.where(power > 0, power, 1.0)
                yield data, valid, weight

        found = survey(chunks, n_features)
        if n_components >= min(found.n_rows, n_features):
            msg = (
                f"n_components={n_components} needs more than that many galaxies, "
                f"and values per galaxy: got {found.n_rows} galaxies with valid "
                f"pixels and weight, of {n_features} values. Give more galaxies, or "
                f"ask for fewer components."
            )
            raise ValueError(msg)
        self.n_iter_ = 0
        if found.complete and n_features <= _LARGEST_EXACT:
            model = closed_form(chunks, found, n_components)
        else:
            with progress_bar(
                "Fitting components", max_iter, show=show_progress
            ) as bar:
                model, self.n_iter_, converged = expectation_maximization(
                    chunks,
                    found,
                    n_components,
                    rng=np.random.default_rng(self.rng),
                    tol=self.tol,
                    max_iter=max_iter,
                    advance=bar,
                )
            if not converged:
                msg = (
                    f"the components were still changing after {max_iter} "
                    "iterations. Raise max_iter or tol."
                )
                warnings.warn(msg, ConvergenceWarning, stacklevel=2)
        self._keep(model, found)
        self.image_shape_ = shape
        self.preprocessing_ = getattr(source, "preprocessing", None)
        return self

    def _keep(self, model, found):
        """Set the fitted attributes."""
        lengths = np.linalg.norm(model.loadings, axis=0)
        components = (model.loadings / np.where(lengths > 0, lengths, 1.0)).T
        # the sign is free: let the largest value of each be positive
        largest = np.abs(components).argmax(axis=1)
        signs = np.sign(components[np.arange(len(components)), largest])
        components *= np.where(signs == 0, 1.0, signs)[:, np.newaxis]
        noise = found.correction * model.noise
        variances = found.correction * lengths**2
        seen = found.column_weights > 0
        self.components_ = components
        self.mean_ = np.where(seen, model.mean, np.nan)
        self.noise_variance_ = float(noise)
        self.explained_variance_ = variances + noise
        total = variances.sum() + seen.sum() * noise
        self.explained_variance_ratio_ = self.explained_variance_ / total
        self.n_samples_, self.n_features_in_ = found.n_rows, len(model.mean)

    def transform(self, stack):
        """
        Give the coordinates of galaxies along the eigengalaxies.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.

        Returns
        -------
        coordinates : `~numpy.ndarray`, shape (n, n_components)
            In the unit of the pixels; 0, which is the mean galaxy, where no
            pixel is valid.

        Raises
        ------
        ValueError
            If the images have another shape than those of the training.
        ~astrovae.exceptions.PreprocessingError
            If they were prepared in another way.
        """

        def project(data, valid, state):
            filled = np.where(valid, data - self._model.mean, self._expected(state))
            return {"coordinates": filled @ self.components_.T}

        return self._map(project, stack)["coordinates"]

    def inverse_transform(self, coordinates):
        """
        Paint galaxies of given coordinates.

        Parameters
        ----------
        coordinates : array_like, shape (n, n_components)
            As given by `transform`.

        Returns
        -------
        images : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            In float32.

        Raises
        ------
        ValueError
            If ``coordinates`` have another number of columns.
        """
        check_is_fitted(self, "components_")
        coordinates = _check_columns("coordinates", coordinates, len(self.components_))
        images = np.empty((len(coordinates), self.n_features_in_), dtype=np.float32)
        size = _chunk_size(self.n_features_in_)
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            images[rows] = coordinates[rows] @ self.components_ + self.mean_
        return images.reshape(-1, *self.image_shape_)

    def score_samples(self, stack):
        """
        Give the log-likelihood of each galaxy.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.

        Returns
        -------
        log_like : `~numpy.ndarray`, shape (n,)
            Logarithm of the density of the valid pixels, in nats; NaN where
            there are none.
        """

        def log_like(data, valid, state):
            measured = state["n_valid"] > 0
            return {"log_like": np.where(measured, state["log_like"], np.nan)}

        return self._map(log_like, stack)["log_like"]

    def score(self, stack, y=None):
        """
        Give the mean log-likelihood of the galaxies.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.
        y : None, optional
            Ignored.

        Returns
        -------
        log_like : float
            Mean of `score_samples` over galaxies with a valid pixel.
        """
        values = self.score_samples(stack)
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else np.nan

    def outlier_score(self, stack):
        """
        Say how unusual each galaxy is.

        Galaxies of low probability are candidates for outliers. Without
        missing pixels they are ranked as by `score_samples`; with them, this
        score still compares galaxies that have different pixels.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.

        Returns
        -------
        score : `~numpy.ndarray`, shape (n,)
            ``(d^2 - m) / sqrt(2 m)``, where ``d`` is the Mahalanobis distance
            of the ``m`` valid pixels from the mean: of mean 0 and variance 1
            for galaxies that follow the model. NaN where no pixel is valid.
        """

        def score(data, valid, state):
            n_valid = np.where(state["n_valid"] > 0, state["n_valid"], np.nan)
            return {"score": (state["distance"] - n_valid) / np.sqrt(2 * n_valid)}

        return self._map(score, stack)["score"]

    def encode(self, stack, *, show_progress=False):
        """
        Give the posterior of the latents, as models do.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        mean, log_var : `~numpy.ndarray`, shape (n, n_components)
            Posterior means and logarithms of the marginal posterior variances
            of the latents ``z``, whose prior is standard normal. Galaxies
            without a valid pixel have those of the prior.
        """

        def encode(data, valid, state):
            variance = np.diagonal(state["covariance"], axis1=1, axis2=2)
            return {"mean": state["mean"], "log_var": np.log(variance)}

        found = self._map(encode, stack, show_progress)
        return found["mean"], found["log_var"]

    def decode(self, z):
        """
        Paint the galaxies of given latents, as models do.

        Parameters
        ----------
        z : array_like, shape (n, n_components)
            Latents, as given by `encode`.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            ``mean`` and ``log_var``, the logarithm of the noise variance, each
            of shape (n, ny, nx, n_bands).
        """
        check_is_fitted(self, "components_")
        z = _check_columns("z", z, len(self.components_))
        return self._with_noise(self.inverse_transform(z * self._lengths))

    def reconstruct(self, stack):
        """
        Project each galaxy onto the eigengalaxies.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.

        Returns
        -------
        images : dict of `~numpy.ndarray`
            As given by `decode`, at the coordinates of `transform`: of all
            galaxies that the eigengalaxies can make, the nearest.
        """
        return self._with_noise(self.inverse_transform(self.transform(stack)))

    def _with_noise(self, images):
        log_var = np.full_like(images, np.log(self.noise_variance_))
        return {"mean": images, "log_var": log_var}

    def impute(self, stack):
        """
        Predict missing pixels and bands.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`. A missing band is a masked one.

        Returns
        -------
        image : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            Valid pixels as they are, the others at their expectation given the
            valid ones; NaN where no training galaxy had a valid pixel.
        sigma : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
            Standard deviation of what was predicted, the noise of the pixel
            included; 0 for valid pixels.
        """

        def impute(data, valid, state):
            model = self._model
            mean = self.mean_ + self._expected(state)
            variance = predictive_variance(model, state["covariance"])
            sigma = np.where(np.isnan(self.mean_), np.nan, np.sqrt(variance))
            return {
                "image": np.where(valid, data, mean).astype(np.float32),
                "sigma": np.where(valid, 0.0, sigma).astype(np.float32),
            }

        found = self._map(impute, stack)
        return tuple(found[key].reshape(-1, *self.image_shape_) for key in found)

    def measure(self, stack, *, show_progress=False):
        """
        Measure the columns of the catalogue.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        columns : dict of `~numpy.ndarray`
            ``pca_mse``, the mean squared residual of `reconstruct` over valid
            pixels, and ``pca_log_like``, the log-likelihood of the pixels at
            the single noise sigma that suits the galaxy best, as that of
            `GaussianFit`; ``(n,)`` for one band and ``(n, n_bands)`` for
            several; NaN where no pixel is valid.
        """
        n_bands = self.image_shape_[-1]

        def residual(data, valid, state):
            centred = np.where(valid, data - self._model.mean, 0.0)
            filled = np.where(valid, centred, self._expected(state))
            projected = (filled @ self.components_.T) @ self.components_
            squares = np.where(valid, np.square(centred - projected), 0.0)
            planes = (len(data), self.n_features_in_ // n_bands, n_bands)
            sums = squares.reshape(planes).sum(axis=1)
            n_valid = valid.reshape(planes).sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                mse = sums / n_valid
                log_like = -0.5 * n_valid * (np.log(2 * np.pi * mse) + 1)
            return {"pca_mse": mse, "pca_log_like": log_like}

        columns = self._map(residual, stack, show_progress)
        if n_bands == 1:
            columns = {name: values[:, 0] for name, values in columns.items()}
        return columns

    @property
    def _lengths(self):
        """Standard deviation of the galaxies along each eigengalaxy."""
        return np.sqrt(np.maximum(self.explained_variance_ - self.noise_variance_, 0))

    @property
    def _model(self):
        """The fitted parameters, 0 where nothing is known."""
        loadings = self.components_.T * self._lengths
        return PPCA(np.nan_to_num(self.mean_), loadings, self.noise_variance_)

    def _expected(self, state):
        """Expected pixels given the valid ones, less the mean."""
        return state["mean"] @ self._model.loadings.T

    def _map(self, function, stack, show_progress=False):
        """Apply ``function(data, valid, posterior)`` to all galaxies, in chunks."""
        source = self._source(stack)
        model, known = self._model, np.isfinite(self.mean_)
        results = []
        with progress_bar("Projecting", len(source), show=show_progress) as bar:
            for rows, data, valid in _chunks(source):
                valid &= known
                state = posterior(model, data, valid)
                results.append(function(data, valid, state))
                bar(len(rows))
        return {
            name: np.concatenate([result[name] for result in results])
            for name in results[0]
        }

    def _source(self, stack):
        """Check galaxies at the door."""
        check_is_fitted(self, "components_")
        source = as_source(stack)
        shape = source.batch(np.arange(0))["image"].shape[1:]
        if shape != self.image_shape_:
            msg = (
                f"the eigengalaxies have the shape {self.image_shape_} "
                f"(ny, nx, n_bands), these images {shape}."
            )
            raise ValueError(msg)
        check_preprocessing(self.preprocessing, getattr(source, "preprocessing", None))
        return source


def _chunk_size(n_features):
    return max(_CHUNK_VALUES // n_features, 1)


def _chunks(source):
    """Yield row numbers, values in float64 (0 if missing), and what is valid."""
    n_features = int(np.prod(source.batch(np.arange(0))["image"].shape[1:]))
    size = _chunk_size(n_features)
    # no galaxies are one empty chunk
    for start in range(0, max(len(source), 1), size):
        rows = np.arange(start, min(start + size, len(source)))
        batch = source.batch(rows)
        data = batch["image"].reshape(len(rows), n_features).astype(np.float64)
        yield rows, data, np.logical_not(batch["mask"]).reshape(data.shape)


def _check_weights(sample_weight, n):
    """Return a weight for each galaxy."""
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, dtype=float)
    if weights.shape != (n,) or not (np.isfinite(weights) & (weights >= 0)).all():
        msg = (
            f"sample_weight must be {n} finite numbers that are not negative, one "
            f"per galaxy, got {weights.shape} from {weights.min(initial=np.inf)} to "
            f"{weights.max(initial=-np.inf)}."
        )
        raise ValueError(msg)
    return weights


def _check_columns(name, values, n_components):
    """Return an array with one column for each eigengalaxy."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or array.shape[1] != n_components:
        msg = f"{name} must have the shape (n, {n_components}), got {array.shape}."
        raise ValueError(msg)
    return array
