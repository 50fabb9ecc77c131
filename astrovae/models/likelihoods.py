# Licensed under a 3-clause BSD style license - see LICENSE
"""How pixels scatter around the galaxy that a decoder paints."""

import math

import keras
from keras import ops

from astrovae._validation import check_option
from astrovae.models._stretches import as_config, as_stretch
from astrovae.ops import gaussian_log_prob, weighted_sum

__all__ = [
    "BernoulliLikelihood",
    "GaussianLikelihood",
    "Likelihood",
]

# learned variances below this share of the squared image scale are numerical
# noise: 1e-3 of the scale is far below the noise of any real image
_RELATIVE_FLOOR = 1e-6
# the published exp of Regier et al. overflows; exp(+-20) spans 17 decades
_LOG_VAR_LIMIT = 20.0
# mean squared residuals below this are rounding errors of float32, for pixels
# of order one
_SMALLEST_NOISE = 1e-12
# so that a pixel that contradicts the model has a finite likelihood: float32
# resolves 1 - p to 6e-8
_SMALLEST_PROBABILITY = 1e-6


class Likelihood:
    """
    Base of the distributions of pixels around what a decoder paints.

    A subclass defines ``parameters(maps, scale)``, which turns the output of a
    decoder into a dict with at least ``mean`` and ``log_var``, and
    ``log_prob_map(image, params, error=None, valid=None)``, which shares the
    log-likelihood out over the pixels; ``num_parameters``, how many maps per
    band it needs, if not one; and ``get_config``, if it has arguments.

    Notes
    -----
    Decoders work in units of the image scale of the model, in which pixels
    are of order one; so do likelihoods. Their terms are log-densities in that
    unit, and the model accounts for the change.

    Examples
    --------
    >>> from astrovae.models import GaussianLikelihood, Likelihood
    >>> isinstance(GaussianLikelihood(), Likelihood)
    True
    """

    num_parameters = 1
    #: Whether a band of a galaxy may have valid and masked pixels.
    allows_masks = True

    def floor(self, scale):
        """
        Give the variance below which no pixel falls.

        Parameters
        ----------
        scale : tensor, shape (n_bands,)
            Image scale of each band, in the unit of the pixels.

        Returns
        -------
        tensor, shape (n_bands,)
            The floor, in units of the squared scale.
        """
        return ops.full_like(ops.cast(scale, "float32"), _RELATIVE_FLOOR)

    def variance(self, params, error=None):
        """
        Give the total variance of each pixel.

        Parameters
        ----------
        params : dict of tensor
            As given by ``parameters``.
        error : tensor, optional
            1-sigma errors, in units of the scale.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            That of the distribution and the known noise together.
        """
        variance = params.get("variance")
        if variance is None:
            variance = ops.exp(params["log_var"])
        return variance if error is None else ops.add(variance, ops.square(error))

    def standardize(self, image, params, error=None):
        """
        Give the residuals in units of what is expected.

        Parameters
        ----------
        image : tensor, shape (n, ny, nx, n_bands)
            The pixels.
        params : dict of tensor
            As given by ``parameters``.
        error : tensor, optional
            1-sigma errors.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Uncorrelated, with mean 0 and variance 1, if the model is right.
        """
        sigma = ops.sqrt(self.variance(params, error))
        return ops.subtract(image, params["mean"]) / sigma

    def draw(self, params, noise, error=None):
        """
        Draw pixels.

        Parameters
        ----------
        params : dict of tensor
            As given by ``parameters``.
        noise : tensor, shape (n, ny, nx, n_bands)
            Standard normal deviates.
        error : tensor, optional
            1-sigma errors, in units of the scale.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Pixels in units of the scale, of which `standardize` makes the
            deviates again.
        """
        sigma = ops.sqrt(self.variance(params, error))
        return ops.add(params["mean"], ops.multiply(sigma, noise))

    def sum_variance(self, variance, weights):
        """
        Give the variance of weighted sums over the pixels.

        Parameters
        ----------
        variance : tensor, shape (n, ny, nx, n_bands)
            That of each pixel.
        weights : tensor, shape (n or 1, ny, nx, n_bands or 1)
            The weights.

        Returns
        -------
        tensor, shape (n, n_bands)
            One for each band. Pixels are independent, unless a subclass knows
            better.
        """
        return ops.sum(ops.multiply(variance, ops.square(weights)), axis=(1, 2))

    def objective_map(self, image, params, valid, error=None, terms=None):
        """
        Give what training maximises.

        Parameters
        ----------
        image, params, valid, error : tensor
            As for ``log_prob_map``.
        terms : tensor, optional
            What ``log_prob_map`` gives, if it is known.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            The log-likelihood, unless a subclass chooses otherwise.
        """
        if terms is None:
            terms = self.log_prob_map(image, params, error, valid)
        return terms

    def log_prob(self, image, params, mask=None, error=None):
        """
        Give the log-likelihood of every galaxy.

        Parameters
        ----------
        image : tensor, shape (n, ny, nx, n_bands)
            The pixels.
        params : dict of tensor
            As given by ``parameters``.
        mask : tensor, optional
            True for bad pixels, which do not count.
        error : tensor, optional
            1-sigma errors.

        Returns
        -------
        tensor, shape (n,)
            Sums over the valid pixels.
        """
        valid = None if mask is None else ops.logical_not(mask)
        return weighted_sum(self.log_prob_map(image, params, error, valid), valid)

    def get_config(self):
        """Give the arguments, for serialisation."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Make a likelihood from its arguments."""
        return cls(**config)


@keras.saving.register_keras_serializable("astrovae")
class GaussianLikelihood(Likelihood):
    """
    Independent normal pixels of known and learned variance.

    The variance of a pixel is ``error**2 + learned + floor``: the known
    noise, if there is an error plane; what the decoder learns about how
    badly it paints such galaxies, if ``learn_variance``; and a floor. Masked
    pixels never count.

    Parameters
    ----------
    learn_variance : bool, optional
        Whether the decoder has a second map per band for the variance.
        Without it, images must come with errors, unless ``sigma_floor`` is
        the noise of all pixels.
    sigma_floor : float, optional
        Smallest standard deviation, in the unit of the pixels. Give
        ``step / sqrt(12)`` for images that were stored in steps of ``step``
        (for 8-bit images, ``1 / sqrt(12)`` of a level): without it, constant
        pixels let the likelihood grow without limit.
    transform : {"softplus", "exp"}, optional
        How a map of real numbers becomes a variance. "exp" is what Regier
        et al. published; its argument is clipped to +-20.
    beta_nll : float, optional
        Between 0, training by likelihood, and 1, training of the mean as if
        all pixels of a galaxy had the same variance. Reported likelihoods are
        always the true ones.
    profile : float, optional
        In training, add this many times the log-likelihood that each band of
        a galaxy would have at its own best constant noise level (with known
        noise: multiple of it): ``-m / 2 * (log(2 pi MSE) + 1)`` for ``m`` valid
        pixels. So every galaxy is to be painted as well as it can be, faint
        and bright ones alike, whatever the variance says.

    stretch : astropy object, optional
        An `~astropy.visualization.AsinhStretch` or ``LinearStretch`` of the pixels in
        units of the image scale, or an `~astropy.visualization.ImageNormalize` with
        one of these and fixed limits. Then the stretched pixels are normal
        around the stretched galaxy, with the variance that follows from that of
        the pixels to first order. Likelihoods are still densities of the
        pixels as they are, with the change of variables, and so
        can be compared with those of models without a stretch.

    References
    ----------
    Regier et al. 2015, NIPS workshop "A deep generative model for astronomical
    images of galaxies"; Kendall & Gal 2017, NIPS (arXiv:1703.04977); for
    ``beta_nll`` Seitzer et al. 2022, ICLR (arXiv:2203.09168).

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import GaussianLikelihood
    >>> likelihood = GaussianLikelihood()
    >>> image = np.zeros((1, 2, 2, 1), "float32")
    >>> params = {"mean": image, "log_var": image}
    >>> round(float(likelihood.log_prob(image, params)[0]), 3)
    -3.676
    """

    def __init__(
        self,
        learn_variance=True,
        sigma_floor=0.0,
        transform="softplus",
        beta_nll=0.0,
        profile=0.0,
        stretch=None,
    ):
        if sigma_floor < 0:
            msg = f"sigma_floor must not be negative, got {sigma_floor}."
            raise ValueError(msg)
        self.learn_variance = bool(learn_variance)
        if not 0 <= beta_nll <= 1:
            msg = f"beta_nll must be between 0 and 1, got {beta_nll}."
            raise ValueError(msg)
        if not profile >= 0:
            msg = f"profile must not be negative, got {profile}."
            raise ValueError(msg)
        self.profile = float(profile)
        self.sigma_floor = float(sigma_floor)
        self.beta_nll = float(beta_nll)
        self.transform = check_option("transform", transform, ("softplus", "exp"))
        self.stretch = None if stretch is None else as_stretch(stretch)
        if self.stretch is not None and not getattr(self.stretch, "invertible", False):
            msg = (
                "the stretch of a likelihood must be one of astropy.visualization that "
                "takes any pixel: AsinhStretch, LinearStretch, or an ImageNormalize "
                f"with one of these; got {as_config(self.stretch)!r}."
            )
            raise ValueError(msg)

    @property
    def num_parameters(self):
        """The number of maps per band that a decoder must give."""
        return 2 if self.learn_variance else 1

    def floor(self, scale):
        """
        Give the variance below which no pixel falls.

        Parameters
        ----------
        scale : tensor, shape (n_bands,)
            Image scale of each band, in the unit of the pixels.

        Returns
        -------
        tensor, shape (n_bands,)
            The floor, in units of the squared scale.
        """
        scale = ops.cast(scale, "float32")
        return super().floor(scale) + ops.square(self.sigma_floor / scale)

    def parameters(self, maps, scale):
        """
        Turn decoder maps into the parameters of the pixel distribution.

        Parameters
        ----------
        maps : tensor, shape (n, ny, nx, num_parameters * n_bands)
            Output of a decoder.
        scale : tensor, shape (n_bands,)
            Image scale of each band.

        Returns
        -------
        params : dict of tensor
            ``mean``, ``variance`` and ``log_var``, its logarithm, each
            ``(n, ny, nx, n_bands)``, in units of the scale. The variance is what
            is learned and the floor, not the known noise.
        """
        maps = ops.cast(maps, "float32")
        floor = self.floor(scale)
        unit = {} if self.stretch is None else {"scale": ops.cast(scale, "float32")}
        if not self.learn_variance:
            variance = ops.broadcast_to(floor, ops.shape(maps))
            log_var = ops.log(variance)
            return {"mean": maps, "variance": variance, "log_var": log_var, **unit}
        mean, raw = ops.split(maps, 2, axis=-1)
        if self.transform == "softplus":
            learned = ops.softplus(raw)
        else:
            learned = ops.exp(ops.clip(raw, -_LOG_VAR_LIMIT, _LOG_VAR_LIMIT))
        variance = learned + floor
        log_var = ops.log(variance)
        return {"mean": mean, "variance": variance, "log_var": log_var, **unit}

    def _stretch_slopes(self, params):
        """Stretched means, and the slopes of the stretch there."""
        scale, mean = params["scale"], params["mean"] * params["scale"]
        slope = ops.exp(self.stretch.log_slope(mean, scale)) * scale
        return self.stretch(mean, scale), slope

    def standardize(self, image, params, error=None):
        """
        Give the residuals in units of what is expected.

        Parameters
        ----------
        image, params, error : tensor
            As for `Likelihood.standardize`.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Uncorrelated, with mean 0 and variance 1, if the model is right;
            those of the stretched pixels, if there is a stretch.
        """
        if self.stretch is None:
            return super().standardize(image, params, error)
        center, slope = self._stretch_slopes(params)
        scale, sigma = params["scale"], ops.sqrt(self.variance(params, error))
        return (self.stretch(ops.multiply(image, scale), scale) - center) / (
            slope * sigma
        )

    def draw(self, params, noise, error=None):
        """
        Draw pixels; see `Likelihood.draw`.

        Parameters
        ----------
        params, noise, error : tensor
            As for `Likelihood.draw`.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Pixels in units of the scale.

        Raises
        ------
        ValueError
            If the variance is neither learned nor given.
        """
        self._check_noise(error)
        if self.stretch is None:
            return super().draw(params, noise, error)
        center, slope = self._stretch_slopes(params)
        scale, sigma = params["scale"], ops.sqrt(self.variance(params, error))
        return (
            self.stretch.inverse(center + ops.multiply(slope * sigma, noise), scale)
            / scale
        )

    def log_prob_map(self, image, params, error=None, valid=None):
        """
        Give the log-likelihood of every pixel.

        Parameters
        ----------
        image : tensor, shape (n, ny, nx, n_bands)
            The pixels.
        params : dict of tensor
            As given by `parameters`.
        error : tensor, optional
            1-sigma errors.
        valid : tensor, optional
            Not used: callers leave masked pixels out of their sums.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Log-densities, all constants included.

        Raises
        ------
        ValueError
            If the variance is neither learned nor given.
        """
        self._check_noise(error)
        variance = self.variance(params, error)
        log_var = params["log_var"] if error is None else ops.log(variance)
        if self.stretch is None:
            return gaussian_log_prob(image, params["mean"], log_var, variance)
        # the change of variables at the pixel, and that of its sigma
        white, scale = self.standardize(image, params, error), params["scale"]
        there, here = (
            self.stretch.log_slope(ops.multiply(pixels, scale), scale)
            for pixels in (image, params["mean"])
        )
        return gaussian_log_prob(white, 0.0, 0.0) - 0.5 * log_var + there - here

    def objective_map(self, image, params, valid, error=None, terms=None):
        """
        Give what training maximises in place of the log-likelihood.

        With ``beta_nll`` it is the log-likelihood of each pixel times
        ``variance**beta_nll``, relative to its mean over the galaxy and
        without gradient: pixels that are painted badly then do not escape by
        calling themselves noisy. With ``profile``, the log-likelihood at the best
        noise level of the galaxy is added, shared between its valid pixels.

        Parameters
        ----------
        image, params : tensor
            As for `log_prob_map`.
        valid : tensor
            1 for the pixels that count.
        error : tensor, optional
            1-sigma errors.
        terms : tensor, optional
            What `log_prob_map` gives, if it is known.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Terms whose sum over valid pixels is maximised.
        """
        terms = super().objective_map(image, params, valid, error, terms)
        if self.beta_nll == 0.0 and self.profile == 0.0:
            return terms
        valid = ops.ones_like(image) if valid is None else ops.cast(valid, "float32")
        count = ops.maximum(ops.sum(valid, axis=(1, 2), keepdims=True), 1.0)
        if self.beta_nll > 0.0:
            variance = self.variance(params, error)
            weight = ops.multiply(valid, ops.power(variance, self.beta_nll))
            mean = ops.sum(weight, axis=(1, 2), keepdims=True) / count
            terms = terms * ops.stop_gradient(weight / ops.maximum(mean, 1e-30))
        if self.profile > 0.0:
            noise = ops.ones_like(image) if error is None else error
            residual = ops.divide(ops.subtract(image, params["mean"]), noise)
            squares = ops.where(valid > 0, ops.square(residual), 0.0)
            mean = ops.sum(squares, axis=(1, 2), keepdims=True) / count
            # a galaxy that is painted exactly has no best noise level
            mean = mean + _SMALLEST_NOISE
            level = -0.5 * (ops.log(2.0 * math.pi * mean) + 1.0) - ops.log(noise)
            terms = terms + self.profile * level
        return terms

    def _check_noise(self, error):
        if error is None and not self.learn_variance and self.sigma_floor == 0:
            msg = (
                "This model takes the noise from the errors of the images, and these "
                "have none. Give error=... to make_cutouts or CutoutStack, or a "
                "noise for all pixels as sigma_floor=... to the likelihood."
            )
            raise ValueError(msg)

    def get_config(self):
        """Give the arguments, for serialisation."""
        return {
            "learn_variance": self.learn_variance,
            "sigma_floor": self.sigma_floor,
            "transform": self.transform,
            "beta_nll": self.beta_nll,
            "profile": self.profile,
            "stretch": as_config(self.stretch),
        }


@keras.saving.register_keras_serializable("astrovae")
class BernoulliLikelihood(Likelihood):
    """
    Binary cross-entropy, to compare with models that were trained with it.

    For pixels that are zero or one it is a likelihood. For grey pixels between
    it is none: its values can be compared with each other, not with those of
    other likelihoods. Pixels are clipped to that range; errors do not enter.
    Masked pixels never count.

    References
    ----------
    Loaiza-Ganem & Cunningham 2019, NeurIPS (arXiv:1907.06845), on what is
    wrong with it.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.models import BernoulliLikelihood
    >>> likelihood = BernoulliLikelihood()
    >>> image = np.ones((1, 2, 2, 1), "float32")
    >>> params = likelihood.parameters(0 * image, np.ones(1))
    >>> round(float(likelihood.log_prob(image, params)[0]), 3)
    -2.773
    """

    def parameters(self, maps, scale):
        """
        Turn decoder maps into the parameters of the pixel distribution.

        Parameters
        ----------
        maps : tensor, shape (n, ny, nx, n_bands)
            Output of a decoder: log-odds.
        scale : tensor, shape (n_bands,)
            Image scale of each band, in the unit of the pixels.

        Returns
        -------
        params : dict of tensor
            ``mean`` and ``log_var`` in units of the scale, and the ``scale``.
        """
        scale = ops.cast(scale, "float32")
        probability = ops.sigmoid(ops.cast(maps, "float32"))
        variance = probability * (1.0 - probability) / ops.square(scale)
        return {
            "mean": probability / scale,
            "log_var": ops.log(variance + self.floor(scale)),
            "scale": scale,
        }

    def draw(self, params, noise, error=None):
        """
        Draw pixels that are zero or one.

        Parameters
        ----------
        params, noise : tensor
            As for `Likelihood.draw`.
        error : tensor, optional
            Not used.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Pixels in units of the scale.
        """
        uniform = 0.5 * (1.0 + ops.erf(noise / math.sqrt(2.0)))
        one = ops.less(uniform, params["mean"] * params["scale"])
        return ops.cast(one, "float32") / params["scale"]

    def log_prob_map(self, image, params, error=None, valid=None):
        """
        Give the negative cross-entropy of every pixel.

        Parameters
        ----------
        image : tensor, shape (n, ny, nx, n_bands)
            The pixels, in units of the scale.
        params : dict of tensor
            As given by `parameters`.
        error, valid : tensor, optional
            Not used.

        Returns
        -------
        tensor, shape (n, ny, nx, n_bands)
            Per unit of the scale, like the densities of other likelihoods.
        """
        scale = params["scale"]
        probability = ops.clip(
            params["mean"] * scale, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY
        )
        pixels = ops.clip(ops.multiply(image, scale), 0.0, 1.0)
        return (
            pixels * ops.log(probability)
            + (1.0 - pixels) * ops.log(1.0 - probability)
            + ops.log(scale)
        )
