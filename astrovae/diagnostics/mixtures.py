# Licensed under a 3-clause BSD style license - see LICENSE
"""Whether a mixture is what it says it is."""

import numpy as np

from astrovae._validation import check_positive_int
from astrovae.diagnostics._counts import OCCUPIED_SHARE

__all__ = ["mixture_report", "responsibility_calibration"]

# Guo et al. 2017, ICML (arXiv:1706.04599)
_CALIBRATION_BINS = 15
# galaxies painted at a time
_CHUNK = 2048


def mixture_report(model, *, threshold=0.95, min_share=OCCUPIED_SHARE):
    """
    Say whether the components of a mixture are a mixture, and are different.

    Parameters
    ----------
    model : object
        A mixture, with ``components()`` and ``bhattacharyya()`` such as
        `~astrovae.layers.MixturePrior`, or a model whose ``prior`` is one.
    threshold : float, optional
        Bhattacharyya coefficient above which a pair is a duplicate.
    min_share : float, optional
        A component counts as occupied from this weight.

    Returns
    -------
    report : dict
        ``num_components``; ``weights_sum``, which should be 1;
        ``max_bhattacharyya`` of two components, 0 without a pair; ``duplicates``,
        a list of ``(i, j, coefficient)``, most similar first; ``occupied``, the
        number of components with some weight.

    Raises
    ------
    TypeError
        If there is no mixture.

    Examples
    --------
    >>> from astrovae.diagnostics import mixture_report
    >>> from astrovae.layers import MixturePrior
    >>> report = mixture_report(MixturePrior(4, latent_dim=2, seed=1))
    >>> round(report["weights_sum"], 6), report["occupied"]
    (1.0, 4)
    """
    prior = _mixture(model)
    weights = prior.components()["weights"]
    overlaps = np.triu(prior.bhattacharyya(), 1)
    pairs = sorted(zip(*np.nonzero(overlaps > threshold)), key=lambda p: -overlaps[p])
    return {
        "num_components": len(weights),
        "weights_sum": float(weights.sum()),
        "max_bhattacharyya": float(overlaps.max()),
        "duplicates": [(int(i), int(j), float(overlaps[i, j])) for i, j in pairs],
        "occupied": int((weights >= min_share).sum()),
    }


def responsibility_calibration(
    model, n=40_000, decoded=False, *, stack=None, batch_size=None, seed=0
):
    """
    Say whether components are right as often as they claim to be.

    Latents are drawn from a known component of the prior. Of those whose most
    probable component has a probability of 0.8, it should be the true one in 80 %.

    Parameters
    ----------
    model : object
        As for `mixture_report`. If ``decoded``, also with ``simulate(stack, z,
        seed)`` and ``responsibilities(stack)``, such as `~astrovae.models.VAE`.
    n : int, optional
        Number of draws.
    decoded : bool, optional
        Whether galaxies of these latents are painted, observed with noise and
        encoded again. Otherwise the latents are taken as known.
    stack : `~astrovae.images.CutoutStack`, optional
        Painted galaxies are observed with the masks, errors, PSFs and poses of
        these, drawn at random. By default they are aligned, without known errors.
    batch_size : int, optional
        Galaxies at a time, by default those of the model.
    seed : int, optional
        Seed of the draws.

    Returns
    -------
    result : dict
        ``calibration_error``, the expected calibration error in 15 bins of the
        largest probability; ``chance``, what so many draws give if all is right;
        ``accuracy``, how often the most probable component is the true one;
        ``confidence``, the mean of the largest probability; ``n``.

    Raises
    ------
    TypeError
        If there is no mixture, or the model cannot paint or encode.
    ValueError
        If the model needs planes of images that only a stack can bring, or no
        galaxy of the stack has valid pixels.

    Notes
    -----
    Bins have equal widths; the error is the mean of their absolute differences
    between accuracy and confidence, by number. With ``decoded`` it also holds
    what posteriors of the encoder do wrong.

    References
    ----------
    Guo et al. 2017, ICML (arXiv:1706.04599).

    Examples
    --------
    >>> from astrovae.diagnostics import responsibility_calibration
    >>> from astrovae.layers import MixturePrior
    >>> prior = MixturePrior(4, latent_dim=2, seed=1)
    >>> result = responsibility_calibration(prior, n=4000)
    >>> result["calibration_error"] < 0.05
    True
    """
    check_positive_int("n", n)
    prior = _mixture(model)
    rng = np.random.default_rng(seed)
    weights = prior.components()["weights"]
    counts = rng.multinomial(n, weights / weights.sum())
    truth = np.repeat(np.arange(len(weights)), counts)
    z = [
        _numpy(prior.sample(int(count), seed=seed + i, component=i))
        for i, count in enumerate(counts)
        if count
    ]
    order = rng.permutation(n)
    truth, z = truth[order], np.concatenate(z)[order]
    if decoded:
        gamma = _encode_decoded(model, z, stack, batch_size, seed, rng)
    else:
        chunks = range(0, n, 16 * _CHUNK)
        gamma = [
            _numpy(prior.responsibilities(z[start : start + 16 * _CHUNK]))
            for start in chunks
        ]
        gamma = np.concatenate(gamma)
    top, confidence = gamma.argmax(axis=1), gamma.max(axis=1).astype(float)
    right = (top == truth).astype(float)
    edges = np.arange(1, _CALIBRATION_BINS) / _CALIBRATION_BINS
    bins = np.digitize(confidence, edges)
    gaps = np.bincount(bins, right - confidence, minlength=_CALIBRATION_BINS)
    # the mean size of a normal deviate of the variance of each bin
    variance = np.bincount(bins, confidence * (1 - confidence))
    chance = np.sqrt(2 / np.pi * np.maximum(variance, 0)).sum() / n
    return {
        "calibration_error": float(np.abs(gaps).sum() / n),
        "chance": float(chance),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "n": n,
    }


def _encode_decoded(model, z, stack, batch_size, seed, rng):
    """Responsibilities of the galaxies of given latents, painted and observed."""
    for name in ("simulate", "responsibilities"):
        if not hasattr(model, name):
            msg = (
                f"decoded=True needs a model with {name}(), such as VAE, got "
                f"{type(model).__name__}."
            )
            raise TypeError(msg)
    options = {} if batch_size is None else {"batch_size": batch_size}
    usable = None
    if stack is not None:
        usable = np.flatnonzero(stack.usable)
        if not len(usable):
            msg = "no galaxy of the stack has enough valid pixels."
            raise ValueError(msg)
    gamma = []
    for number, start in enumerate(range(0, len(z), _CHUNK)):
        part = z[start : start + _CHUNK]
        if stack is None:
            like = {"image": np.zeros((len(part), *model.image_shape), np.float32)}
            if getattr(model, "pose", False):
                like["pose"] = np.tile(np.float32([0, 0, 0, 1]), (len(part), 1))
        else:
            like = stack[rng.choice(usable, len(part))]
        drawn = model.simulate(like, part, seed=seed + number, **options)["image"]
        if stack is None:
            like["image"] = drawn
        else:
            like = like.replace(data=drawn)
        gamma.append(model.responsibilities(like, **options))
    return np.concatenate(gamma)


def _mixture(model):
    """Return the mixture that is a prior, or the prior of a model."""
    prior = getattr(model, "prior", model)
    names = ("components", "bhattacharyya", "responsibilities", "sample")
    if not all(hasattr(prior, name) for name in names):
        msg = (
            "model must be a mixture, such as MixturePrior, or have one as its prior; "
            f"got {type(prior).__name__}."
        )
        raise TypeError(msg)
    return prior


def _numpy(tensor):
    """A tensor of any backend as an array."""
    from keras import ops

    return ops.convert_to_numpy(tensor)
