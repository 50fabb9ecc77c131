# Licensed under a 3-clause BSD style license - see LICENSE
"""Least-squares Sersic profiles of whole catalogues at once."""

import functools

import numpy as np

from astrovae._sources import Arrays, as_source
from astrovae.baselines._sersic_limits import LEAST_AXIS_RATIO, shape_limits
from astrovae.baselines._shape_fit import ShapeFit, parameter_covariance

__all__ = ["SersicFit"]


class SersicFit(ShapeFit):
    """
    The best Sersic profile of every galaxy, blurred by its PSF.

    This is the stronger of the parametric baselines, and gives the numbers
    that catalogues of galaxies quote: flux, half-light radius, index and axis
    ratio. All galaxies are fitted at once, compiled by Keras on any backend,
    with masks, errors and their own PSF.

    The surface brightness is ``exp(-b_n (r / r_eff)^(1/n))`` with the
    elliptical radius ``r``, so that half of the flux is within ``r_eff``;
    plus a constant with ``background=True``. Bands share everything but flux
    and constant; each may have its own PSF.

    Parameters
    ----------
    background : bool, optional
        Whether `fit` adds a constant to each band. `measure` runs both fits.
    n_starts : int, optional
        How many starting guesses are followed for each galaxy. They come
        from moments around where a Gaussian explains most of the image, with
        indices 1 and 4 in turns; the third and fourth are around the second
        best place, and so on.
    max_iter : int, optional
        The largest number of steps from each start, rounded up to a
        multiple of 8.
    batch_size : int, optional
        Galaxies at a time.

    Attributes
    ----------
    x_, y_ : `~numpy.ndarray`, shape (n,)
        Centres, in 0-based pixels of the cutout, at most half a cutout
        beyond its edges.
    r_eff_ : `~numpy.ndarray`, shape (n,)
        Half-light radius along the major axis, in pixels, before blurring.
        The geometric mean of both axes is between 0.05 pixels and twice the
        size of the cutout.
    n_ : `~numpy.ndarray`, shape (n,)
        Sersic index, between 0.3 and 8.
    axis_ratio_ : `~numpy.ndarray`, shape (n,)
        Minor over major axis, between 0.1 and 1.
    theta_ : `~numpy.ndarray`, shape (n,)
        Position angle of the major axis in degrees, counter-clockwise from
        the x axis of the array, in (-90, 90].
    flux_, amplitude_, background_ : `~numpy.ndarray`, shape (n, n_bands)
        Flux to infinity (twice, under both names), and the constant (0
        without one).
    x_err_, y_err_, r_eff_err_, n_err_, axis_ratio_err_, theta_err_, flux_err_ : \
`~numpy.ndarray`
        1-sigma errors; see Notes.
    mse_, log_like_, chi2_, converged_, flags_ : `~numpy.ndarray`
        As those of `GaussianFit`.

    Notes
    -----
    The PSF is the effective one, pixel included, as in
    `~astrovae.images.CutoutStack`, and is scaled to a sum of one. It is
    interpolated between pixels by a sinc with a Kaiser window of 12 pixels;
    so a profile need not be smooth on the scale of a pixel. The profile is
    sampled twice per pixel along each axis, and within 2.5 pixels of the centre
    in elliptical polar coordinates that crowd towards it. For a PSF of 2.5
    pixels FWHM, pixels are right to about 1e-3 of the brightest one. Without a
    PSF the profile is averaged over each pixel: two points of Gauss and
    Legendre along each axis, and 16 x 16 in the central 5 x 5 pixels.

    Flux and constant are eliminated linearly; the other six parameters are
    found by damped Gauss-Newton steps with analytic derivatives, in float32.
    What is measured of the residual is then computed in float64.

    Errors are those that pixel noise causes, from the Fisher matrix; the noise
    is the error plane or, without one, the residual variance of each band.
    A parameter at its limit is flagged and has no error; those of the others
    hold for it being fixed.

    Rows with no more valid pixels than parameters, and constant ones, are
    NaN and flagged, as those of `GaussianFit`.

    References
    ----------
    Sersic, J. L. 1963, BAAA 6, 41; Graham, A. W. & Driver, S. P. 2005, PASA
    22, 118, for the formulae. Golub, G. H. & Pereyra, V. 1973, SIAM J. Numer.
    Anal. 10, 413, for the elimination.

    Examples
    --------
    >>> from astrovae.baselines import SersicFit
    >>> from astrovae.datasets import make_galaxies
    >>> truth, stack = make_galaxies(4, shape=(24, 24), seed=1)
    >>> fit = SersicFit().fit(stack)
    >>> fit.predict().shape
    (4, 24, 24, 1)
    """

    _prefix, _plural = "sersic", "Sersic profiles"
    _shape_names = ("x", "y", "r_eff", "n", "axis_ratio", "theta")
    _extra_planes = ("psf",)
    _block = 256

    def __init__(self, *, background=False, n_starts=2, max_iter=60, batch_size=64):
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
            of ``image`` and optionally ``mask``, ``error`` and ``psf``.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        self : `SersicFit`
            With the attributes listed above, one row per galaxy.

        Raises
        ------
        ValueError
            If a parameter of this object is not as described, or the PSF has
            an even number of pixels along an axis or values that are not
            finite.
        TypeError
            If ``stack`` is none of these.
        """
        super().fit(stack, show_progress=show_progress)
        source = as_source(stack)
        psf = getattr(source, "psf", getattr(source, "arrays", {}).get("psf"))
        self.psf_ = None if psf is None else np.asarray(psf, dtype=np.float32)
        return self

    def measure(self, stack, *, show_progress=False):
        """
        Measure the columns of the catalogue, with and without a constant.

        Both fits are run, whatever ``background`` is: where the first one is
        better, the second one starts again from there.

        Parameters
        ----------
        stack : `~astrovae.images.CutoutStack`, `~numpy.ndarray` or dict
            The galaxies, as for `fit`.
        show_progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        columns : dict of `~numpy.ndarray`
            Of the fit without a constant: ``sersic_flux``, ``sersic_x``,
            ``sersic_y``, ``sersic_r_eff`` (pixels), ``sersic_n``,
            ``sersic_axis_ratio``, ``sersic_theta`` (degrees), each also with
            ``_err``; ``sersic_mse``, ``sersic_log_like`` and
            ``sersic_flags``. Of the fit with one: ``sersic_background``,
            ``sersic_mse_background`` and ``sersic_log_like_background``. One
            row per galaxy, NaN where it could not be measured; flux,
            constant, mean squared error and likelihood have one column per
            band where there are several.

        Raises
        ------
        ValueError, TypeError
            As `fit`.
        """
        return self._measure(stack, show_progress)

    def _check(self, batch):
        psf = batch.get("psf")
        if psf is None:
            return
        if psf.ndim != 4 or psf.shape[3] not in (1, batch["image"].shape[3]):
            msg = f"psf must have the shape (n or 1, ky, kx, n_bands), got {psf.shape}."
            raise ValueError(msg)
        if 0 in (psf.shape[1] % 2, psf.shape[2] % 2):
            msg = (
                "the PSF must have an odd number of pixels along each axis, its "
                f"centre on the middle one, got {psf.shape[1:3]}. Draw it again, or "
                "shift it by half a pixel and pad it."
            )
            raise ValueError(msg)

    def _kernel(self, shapes, background):
        sizes = self.n_starts, self.batch_size
        psf_shape = shapes["psf"][:2] if "psf" in shapes else None
        names = tuple(shapes)
        return _compiled(shapes["image"], names, background, *sizes, psf_shape), 6

    def _profiles(self, shapes, batch):
        return _paint(shapes, batch["image"].shape[1:], batch.get("psf"), self._block)

    def _painted(self, shapes, rows):
        psf = self.psf_
        if psf is not None:
            psf = psf[np.zeros_like(rows) if len(psf) == 1 else rows]
        return _paint(shapes, self.image_shape_, psf, self._block)

    def _shapes(self, result):
        shear, angle = -np.log(result["axis_ratio"]), 2 * np.radians(result["theta"])
        size = result["r_eff"] * np.sqrt(result["axis_ratio"])
        shears = shear * np.cos(angle), shear * np.sin(angle)
        return np.stack([result["x"], result["y"], size, result["n"], *shears], 1)

    def _describe(self, found, shapes, result, parts):
        x, y, size, index, e1, e2 = shapes.T.copy()
        shear = np.hypot(e1, e2)
        theta = 0.5 * np.degrees(np.arctan2(e2, e1))
        result |= {
            "x": x,
            "y": y,
            "r_eff": size * np.exp(0.5 * shear),
            "n": index,
            "axis_ratio": np.exp(-shear),
            "theta": np.where(theta <= -90, 90.0, theta),
            "flux": result["amplitude"].copy(),
        }
        fixed = self._at_limit(shapes, shear, parts["image_shape"])
        parts["at_limit"] = fixed.any(axis=1)
        result |= self._errors(found, result, parts, fixed)

    def _at_limit(self, shapes, shear, image_shape):
        """Which parameters are at a limit, (n, 6); the fifth is the shear."""
        fixed = np.zeros((len(shapes), 6), dtype=bool)
        ny, nx = image_shape.T
        close = 1e-3
        for column, (low, high) in enumerate(shape_limits(ny, nx)):
            value = shapes[:, column]
            width = close * (nx if column < 2 else value)
            fixed[:, column] = (value < low + width) | (value > high - width)
        fixed[:, 4] = np.exp(-shear) < LEAST_AXIS_RATIO * (1 + close)
        return fixed

    def _errors(self, found, result, parts, fixed):
        """1-sigma errors of the parameters, from those of the search."""
        n, n_bands = result["amplitude"].shape
        shear, angle = -np.log(result["axis_ratio"]), 2 * np.radians(result["theta"])
        # the last two: along the shear, and across
        turn = np.tile(np.eye(found["fisher"].shape[2]), (n, 1, 1))
        cos, sin = np.cos(angle), np.sin(angle)
        turn[:, -2, -2], turn[:, -2, -1] = cos, -sin
        turn[:, -1, -2], turn[:, -1, -1] = sin, cos
        turn = turn[:, np.newaxis]
        fisher = np.swapaxes(turn, 2, 3) @ found["fisher"].astype(float) @ turn
        turned = found | {"fisher": fisher, "hessian": fisher}
        covariance = parameter_covariance(turned, result, parts, fixed=fixed)
        n_linear = (covariance.shape[1] - 6) // n_bands
        jacobian = np.zeros((n, 6 + n_bands, covariance.shape[1]))
        jacobian[:, 0, 0] = jacobian[:, 1, 1] = 1.0
        jacobian[:, 2, 2], jacobian[:, 2, 4] = result["r_eff"], 0.5 * result["r_eff"]
        jacobian[:, 3, 3] = result["n"]
        jacobian[:, 4, 4] = -result["axis_ratio"]
        jacobian[:, 5, 5] = np.degrees(0.5 / np.maximum(shear, 1e-6))
        for band in range(n_bands):
            jacobian[:, 6 + band, 5 + n_linear * (band + 1)] = 1.0
        variance = np.einsum("nij,njk,nik->ni", jacobian, covariance, jacobian)
        error = np.sqrt(variance)
        for column, names in ((0, [0]), (1, [1]), (2, [2]), (3, [3]), (4, [2, 4])):
            error[np.ix_(fixed[:, column], names)] = np.nan
        errors = {
            f"{name}_err": error[:, i] for i, name in enumerate(self._shape_names)
        }
        # a circle has no angle
        errors["theta_err"] = np.fmin(errors["theta_err"], 90.0)
        errors["flux_err"] = np.abs(result["flux"]) * error[:, 6:]
        return errors


@functools.lru_cache(maxsize=16)
def _compiled(shape, keys, background, n_starts, batch_size, psf_shape):
    """Compile the search once for each kind of batch."""
    from astrovae._batches import RowFunction
    from astrovae.baselines._sersic_newton import SersicNewton

    options = {"background": background, "n_starts": n_starts}
    return RowFunction(SersicNewton(shape, psf_shape=psf_shape, **options))


@functools.lru_cache(maxsize=16)
def _painter(shape, psf_shape):
    """Compile the painter once for each kind of cutout."""
    from astrovae._batches import RowFunction
    from astrovae.baselines._sersic_newton import SersicNewton

    options = {"background": False, "n_starts": 1}
    return RowFunction(SersicNewton(shape, psf_shape=psf_shape, **options).paint)


def _paint(shapes, image_shape, psf, block):
    """Paint profiles of unit flux: (n, ny * nx, n_bands or 1) in float64."""
    n = len(shapes)
    # blocks of one size are compiled once
    rows = np.pad(np.arange(n), (0, block - n), mode="edge") if n else np.arange(0)
    arrays = {"shape": shapes.astype(np.float32)[rows]}
    if psf is not None:
        arrays["psf"] = psf[rows]
    painter = _painter(tuple(image_shape), None if psf is None else psf.shape[1:3])
    source = Arrays(arrays, clean=False)
    profile = painter.map(source, batch_size=block)["profile"][:n].astype(float)
    n_planes, n_pixels = profile.shape[1], image_shape[0] * image_shape[1]
    return np.moveaxis(profile.reshape(n, n_planes, n_pixels), 1, 2)
