# Licensed under a 3-clause BSD style license - see LICENSE
"""Least-squares Gaussian fits of whole catalogues at once."""

import functools

import numpy as np
from astropy.table import Table
from sklearn.utils.validation import check_is_fitted

from astrovae.baselines._shape_fit import ShapeFit, parameter_covariance

__all__ = ["GaussianFit"]


class GaussianFit(ShapeFit):
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
    pose_ : `~astropy.table.Table`
        The centres, angles and shapes, as `~astrovae.images.measure_pose` and
        a `~astrovae.images.CutoutStack` take them.

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

    _prefix, _plural = "gauss", "Gaussians"
    _shape_names = ("x", "y", "sigma_major", "sigma_minor", "theta")
    _extra_results = (("origin", (2,)),)

    def __init__(self, *, background=False, n_starts=5, max_iter=60, batch_size=64):
        self.background = background
        self.n_starts = n_starts
        self.max_iter = max_iter
        self.batch_size = batch_size

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
        return self._measure(stack, show_progress)

    @property
    def pose_(self):
        """Centres, angles and shapes as a table of poses."""
        check_is_fitted(self, "image_shape_")
        pose = Table({"pose_x": self.x_, "pose_y": self.y_, "pose_angle": self.theta_})
        pose["pose_angle"].unit = "deg"
        pose["pose_size"] = np.sqrt(self.sigma_major_ * self.sigma_minor_)
        pose["pose_axis_ratio"] = self.sigma_minor_ / self.sigma_major_
        return pose

    def _kernel(self, shapes, background):
        names = tuple(shapes)
        sizes = self.n_starts, self.batch_size
        return _compiled(shapes["image"], names, background, *sizes), 5

    def _profiles(self, shapes, batch):
        return _profiles(shapes, batch["image"].shape[1:3])[:, :, np.newaxis]

    def _painted(self, shapes, rows):
        return _profiles(shapes, self.image_shape_[:2])[:, :, np.newaxis]

    def _shapes(self, result):
        return np.stack([result["x"], result["y"], *_inverse_covariance(result)], 1)

    def _describe(self, found, shapes, result, parts):
        result |= _geometry(shapes)
        area = 2 * np.pi * result["sigma_major"] * result["sigma_minor"]
        result["flux"] = area[:, np.newaxis] * result["amplitude"]
        result |= self._errors(found, shapes, result, parts)

    def _errors(self, found, shapes, result, parts):
        """1-sigma errors of the parameters, from those of the search."""
        covariance = parameter_covariance(found, result, parts)
        n, n_bands = result["amplitude"].shape
        n_linear = (covariance.shape[1] - 5) // n_bands
        jacobian = np.zeros((n, 5 + n_bands, covariance.shape[1]))
        shape, growth = _shape_jacobian(shapes, found["origin"], result)
        jacobian[:, :5, :5] = shape
        jacobian[:, 5:, :5] = growth[:, np.newaxis]
        for band in range(n_bands):
            jacobian[:, 5 + band, 5 + n_linear * (band + 1) - 1] = 1.0
        variance = np.einsum("nij,njk,nik->ni", jacobian, covariance, jacobian)
        error = np.sqrt(variance)
        errors = {
            f"{name}_err": error[:, i] for i, name in enumerate(self._shape_names)
        }
        # a circle has no angle
        errors["theta_err"] = np.fmin(errors["theta_err"], 90.0)
        errors["flux_err"] = np.abs(result["flux"]) * error[:, 5:]
        return errors


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
