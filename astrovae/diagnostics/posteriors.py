# Licensed under a 3-clause BSD style license - see LICENSE
"""
Whether what a model says of its own uncertainty is true.

Models are known by what they do: ``encode(stack)`` and ``simulate(stack)``, or
``decode(z)``.
"""

import numpy as np
from astropy.table import Table
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, ndtr
from scipy.stats import binom

from astrovae._validation import check_positive_int

__all__ = ["calibration", "uniformity_test"]

# at so many equally spaced points the ranks are compared with what is expected
_NUM_POINTS = 100
# simulations of uniform ranks: the smallest p-value is one over as many
_NUM_NULL = 9999
_NUM_BOOTSTRAP = 100
_LARGEST_TEMPERATURE = 16.0
# a latent is not used where its posterior has more than this share of the variance
# of its prior: noise does not move it
_UNUSED_SHARE = 0.99
_MAD_PER_SIGMA = 0.6744898
# of the real galaxies, so many are encoded again
_MAX_GALAXIES = 1000


def calibration(
    model,
    stack,
    *,
    num_draws=1000,
    refine=0,
    store=False,
    seed=0,
    batch_size=None,
):
    """
    Check posterior means and sigmas on galaxies of which the truth is known.

    Latents are drawn from the prior, galaxies painted, and observed with masks,
    errors, PSFs and poses of real galaxies. If the posteriors are right, the rank
    of each true latent in its posterior is uniform between 0 and 1. Half of the
    draws tell by which factor, the temperature, sigmas are too small; the other
    half tests the ranks without and with it.

    Parameters
    ----------
    model : object
        With ``encode(stack) -> (mean, log_var)`` and ``simulate(stack, z, seed)``,
        e.g. `~astrovae.models.VAE`; or, in place of the latter, ``decode(z)`` that
        gives ``mean`` and ``log_var`` of pixels, and latents whose prior is
        standard normal, e.g. `~astrovae.baselines.EigenGalaxies`.
    stack : `~astrovae.images.CutoutStack`
        Real galaxies, prepared as those of the training.
    num_draws : int, optional
        Number of simulated galaxies.
    refine : int, optional
        As for `~astrovae.models.VAE.encode`. A temperature is that of one
        ``refine``.
    store : bool, optional
        Multiply ``model.latent_temperature`` by the temperatures: from now on,
        ``encode`` gives corrected sigmas, also after saving and loading.
    seed : int, optional
        Seed of the draws.
    batch_size : int, optional
        Galaxies at a time, by default those of the model.

    Returns
    -------
    table : `~astropy.table.Table`
        A row per latent:

        ``bias``
            Mean of (posterior mean - truth) / sigma.
        ``coverage_68``, ``coverage_95``
            Share of the truths within the central 68 % and 95 % of the posterior.
        ``p_value``
            That of `uniformity_test` on the ranks.
        ``temperature``, ``temperature_err``
            The factor of sigma for which ranks are most uniform, and its
            standard deviation by bootstrap.
        ``bias_tempered``, ``coverage_68_tempered``, ``coverage_95_tempered``, \
``p_value_tempered``
            The same with the temperature.
        ``renoised_simulated``
            Real galaxies as the model paints them, with noise drawn twice:
            scatter of the two means, over what it should be.
        ``renoised_real``
            The same for real galaxies with noise added twice; NaN if the
            stack has no errors.
        ``ranks``, ``ranks_tempered``
            The ranks of the test half.

        Sigmas are those of ``encode``, with the temperature that the model has
        already. ``meta`` says how the table was made.

    Raises
    ------
    TypeError
        If the model can neither simulate nor decode.
    ValueError
        If it gives no variances, or there are too few draws or galaxies.
    ~astrovae.exceptions.PreprocessingError
        If the galaxies were prepared in another way than those of the training.

    Notes
    -----
    Marginal posteriors are normal, so the rank among infinitely many draws from
    the posterior is ``Phi((z - mean) / sigma)``; it needs no draws. Galaxies
    whose rank is too often near 0 and 1 have sigmas that are too small; too
    often near 1/2, too large; slopes show a bias. Only the width is corrected.
    The temperature is the factor for which the distance of the ranks from
    uniform ones, as measured by Anderson and Darling, is smallest; few bad galaxies
    hardly move it.

    A model can pass on its own galaxies and fail on real ones, for which there is
    no truth. What can be tested is how much the mean moves with the noise. If
    the noise were drawn again, a linear model would move by a variance ``s**2 *
    (1 - s**2 / v)`` for posterior and prior variances ``s**2`` and ``v``: the
    posterior is wider because it includes what the pixels do not say. Real
    pixels have their noise already. Adding as much doubles its variance; a
    model that is told so (by an error of sqrt(2) as much, as a plane that its
    encoder sees, or through ``refine``) gives it half the weight, and the
    difference of two means has just the variance ``s**2 * (1 - s**2 / v)``, for
    the ``s`` that the model now gives. One that is not told gives it full
    weight: twice that variance, for the ``s`` of the original galaxy. The
    scatter is the median absolute difference over the square root of its
    expectation, scaled to 1 for normal ones: above 1, sigmas are too small for
    the noise alone. Below 1 they may be right: they also cover what the model
    cannot paint, and full posteriors, whose correlations the formula leaves out,
    move less. Correlated noise is drawn by ``simulate`` as the model has it, and
    added to real pixels as if it were not correlated. A pose stays that of the
    original galaxy.

    References
    ----------
    Talts et al. 2018 (arXiv:1804.06788), for the ranks; Guo et al. 2017, ICML
    (arXiv:1706.04599), for temperatures; Anderson & Darling 1952, Annals of
    Mathematical Statistics 23, 193, for the distance.

    Examples
    --------
    >>> from astrovae.baselines import EigenGalaxies
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.diagnostics import calibration
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> eigen = EigenGalaxies(2).fit(stack)
    >>> table = calibration(eigen, stack, num_draws=400)
    >>> bool((table["p_value"] > 0.001).all())
    True
    """
    num_draws = check_positive_int("num_draws", num_draws, minimum=20)
    check_positive_int("refine", refine, minimum=0)
    if store and not hasattr(model, "latent_temperature"):
        msg = (
            f"store=True needs a model with latent_temperature, such as VAE, not "
            f"{type(model).__name__}. Multiply its sigmas by the temperatures."
        )
        raise ValueError(msg)
    usable = np.flatnonzero(stack.usable)
    if not len(usable):
        msg = "no galaxy has enough valid pixels: there is nothing to observe like."
        raise ValueError(msg)
    options = {"refine": refine} if refine else {}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    encode = _Encoder(model, options)
    rng = np.random.default_rng(seed)
    like = stack[rng.choice(usable, num_draws)]
    galaxies, truth = _simulate(model, like, encode, None, seed, batch_size)
    mean, sigma = encode(galaxies)
    scores = (truth - mean) / sigma
    half = num_draws // 2
    columns = _test_ranks(scores[:half], scores[half:], seed)
    some = stack[usable[np.linspace(0, len(usable) - 1, _MAX_GALAXIES).astype(int)]]
    some = some if len(usable) >= _MAX_GALAXIES else stack[usable]
    prior_variance = truth.var(axis=0, dtype=float)
    told = refine > 0 or "error" in getattr(model, "side_inputs", ())
    columns["renoised_simulated"] = _renoise_simulated(
        model, some, encode, prior_variance, seed, batch_size
    )
    columns["renoised_real"] = _renoise_real(some, encode, prior_variance, told, rng)
    ranks = {name: columns.pop(name) for name in ("ranks", "ranks_tempered")}
    table = Table({"latent": np.arange(truth.shape[1])} | columns | ranks)
    table.meta["astrovae"] = {
        "calibration": {
            "class": type(model).__name__,
            "num_draws": num_draws,
            "num_test": num_draws - half,
            "num_real": len(some),
            "refine": refine,
            "seed": seed,
        }
    }
    if store:
        model.latent_temperature = model.latent_temperature * columns["temperature"]
    return table


class _Encoder:
    """Posterior means and sigmas, or what is wrong with them."""

    def __init__(self, model, options):
        self.model, self.options = model, options

    def __call__(self, stack):
        mean, log_var = self.model.encode(stack, **self.options)
        if log_var is None or getattr(self.model, "posterior", None) == "delta":
            msg = (
                f"calibration needs a model that gives variances; this "
                f"{type(self.model).__name__} gives points."
            )
            raise ValueError(msg)
        return np.asarray(mean, float), np.exp(0.5 * np.asarray(log_var, float))


def _simulate(model, like, encode, z, seed, batch_size):
    """Galaxies of the model observed like others, and their latents."""
    if hasattr(model, "simulate"):
        options = {} if batch_size is None else {"batch_size": batch_size}
        drawn = model.simulate(like, z, seed=seed, **options)
        return like.replace(data=drawn["image"]), np.asarray(drawn["z"], float)
    if not hasattr(model, "decode"):
        msg = (
            "model must have simulate(stack, z, seed), or decode(z) and latents with "
            f"a standard normal prior, got {type(model).__name__}."
        )
        raise TypeError(msg)
    rng = np.random.default_rng(seed)
    if z is None:
        latent_dim = encode(like[:1])[0].shape[1]
        z = rng.normal(size=(len(like), latent_dim))
    painted = model.decode(z)
    mean, sigma = painted["mean"], np.exp(0.5 * np.asarray(painted["log_var"]))
    return like.replace(data=mean + sigma * rng.normal(size=mean.shape)), z


def _test_ranks(first, second, seed):
    """Temperatures from the first half, and how uniform ranks of the second are."""
    rng = np.random.default_rng(seed)
    temperature = np.array([_best_temperature(scores) for scores in first.T])
    samples = rng.integers(len(first), size=(_NUM_BOOTSTRAP, len(first)))
    error = [
        np.std([_best_temperature(scores[rows]) for rows in samples], ddof=1)
        for scores in first.T
    ]
    columns = {}
    for suffix, scale in (("", 1.0), ("_tempered", temperature)):
        scores = second / scale
        ranks = ndtr(scores)
        columns[f"bias{suffix}"] = -scores.mean(axis=0)
        for percent in (68, 95):
            inside = np.abs(ranks - 0.5) < percent / 200
            columns[f"coverage_{percent}{suffix}"] = inside.mean(axis=0)
        columns[f"p_value{suffix}"] = uniformity_test(ranks.T, seed=seed)
        columns[f"ranks{suffix}"] = ranks.T.copy()
        if not suffix:
            columns |= {"temperature": temperature, "temperature_err": np.array(error)}
    return columns


def _best_temperature(scores):
    """The factor of sigma for which ranks are closest to uniform."""
    scores = np.sort(scores)
    weight = (2 * np.arange(len(scores)) + 1) / len(scores) ** 2

    def distance(log_temperature):
        scaled = scores * np.exp(-log_temperature)
        return -weight @ (log_ndtr(scaled) + log_ndtr(-scaled[::-1]))

    limit = np.log(_LARGEST_TEMPERATURE)
    return np.exp(minimize_scalar(distance, bounds=(-limit, limit)).x)


def uniformity_test(ranks, *, seed=0):
    """
    Say how likely ranks as uneven as these are, if they are uniform.

    Parameters
    ----------
    ranks : array_like, shape (n,) or (m, n)
        Numbers between 0 and 1; several samples are tested one by one.
    seed : int, optional
        Seed of the simulations under the hypothesis.

    Returns
    -------
    p_value : float or `~numpy.ndarray`, shape (m,)
        At least 1e-4, at most 1.

    Raises
    ------
    ValueError
        If ranks are not between 0 and 1, or there are none.

    Notes
    -----
    The number of ranks below each of 99 equally spaced points is binomial. The
    statistic is the smallest of their two-sided tail probabilities; its
    distribution is found by simulation. Unlike the test of Kolmogorov and
    Smirnov, it is as sensitive near 0 and 1, where ranks go if sigmas are too
    small, as in the middle.

    References
    ----------
    Saeilynoja, Buerkner & Vehtari 2022, Statistics and Computing 32, 32
    (arXiv:2103.10522), eq. 6.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.diagnostics import uniformity_test
    >>> uniform = np.random.default_rng(1).random(500)
    >>> uniformity_test(uniform) > 0.05
    True
    >>> uniformity_test(uniform**2)
    0.0001
    """
    ranks = np.asarray(ranks, dtype=float)
    samples = np.atleast_2d(ranks)
    n = samples.shape[-1]
    if not n or not ((samples >= 0) & (samples <= 1)).all():
        msg = "ranks must be numbers between 0 and 1, at least one."
        raise ValueError(msg)
    points = np.arange(1, _NUM_POINTS) / _NUM_POINTS
    counts = np.arange(n + 1)[:, np.newaxis]
    tails = np.minimum(binom.cdf(counts, n, points), binom.sf(counts - 1, n, points))

    def statistic(histograms):
        below = np.cumsum(histograms, axis=1)[:, :-1]
        return tails[below, np.arange(_NUM_POINTS - 1)].min(axis=1)

    rng = np.random.default_rng(seed)
    even = np.full(_NUM_POINTS, 1 / _NUM_POINTS)
    null = np.sort(statistic(rng.multinomial(n, even, size=_NUM_NULL)))
    edges = np.append(0.0, [*points, 1.0])
    found = statistic(np.array([np.histogram(row, edges)[0] for row in samples]))
    as_uneven = np.searchsorted(null, found * (1 + 1e-12), side="right")
    p_value = (1 + as_uneven) / (1 + _NUM_NULL)
    return p_value if ranks.ndim == 2 else float(p_value[0])


def _renoise_simulated(model, stack, encode, prior_variance, seed, batch_size):
    """Scatter of the means of painted galaxies with two draws of noise."""
    center, _ = encode(stack)
    pair = [
        encode(_simulate(model, stack, encode, center, seed + i, batch_size)[0])
        for i in (1, 2)
    ]
    variance = 0.5 * (pair[0][1] ** 2 + pair[1][1] ** 2)
    return _scatter(pair[0][0] - pair[1][0], variance, prior_variance, 2.0)


def _renoise_real(stack, encode, prior_variance, told, rng):
    """Scatter of the means of real galaxies with noise added twice."""
    if stack.error is None:
        return np.full(len(prior_variance), np.nan)
    data, error = np.asarray(stack.data), np.asarray(stack.error)
    pair = [
        encode(
            stack.replace(
                data=data + error * rng.standard_normal(data.shape, np.float32),
                error=np.float32(np.sqrt(2)) * error,
            )
        )
        for _ in range(2)
    ]
    if told:
        variance = 0.5 * (pair[0][1] ** 2 + pair[1][1] ** 2)
    else:
        variance = encode(stack)[1] ** 2
    difference = pair[0][0] - pair[1][0]
    return _scatter(difference, variance, prior_variance, 1.0 if told else 2.0)


def _scatter(difference, variance, prior_variance, factor):
    """Robust scatter of differences, in units of what it should be."""
    expected = factor * variance * (1.0 - variance / prior_variance)
    used = variance < _UNUSED_SHARE * prior_variance
    ratio = np.abs(difference) / np.sqrt(np.where(used, expected, np.nan))
    scatter = np.full(len(prior_variance), np.nan)
    for j in np.flatnonzero(used.any(axis=0)):
        scatter[j] = np.nanmedian(ratio[:, j]) / _MAD_PER_SIGMA
    return scatter
