# Licensed under a 3-clause BSD style license - see LICENSE
"""The choice among trained models."""

import time
import warnings

import keras
import numpy as np
from astropy.table import Table

from astrovae._progress import progress_bar
from astrovae._sources import as_source
from astrovae._validation import check_positive_int
from astrovae.exceptions import AstrovaeWarning

__all__ = ["select_components"]

_OCCUPIED_SHARE = 0.02
# galaxies looked at together
_CHUNK = 1024
_COLUMNS = {
    "num_components": (int, "Components of the mixture"),
    "seed": (int, "Seed of the run"),
    "elbo": (float, "Mean held-out evidence lower bound, in nats"),
    "elbo_err": (float, "Its standard error over galaxies"),
    "occupied": (int, "Components with at least 2 % of the held-out galaxies"),
    "duplicates": (int, "Pairs that are nearly the same"),
    "seconds": (float, "Time of the training"),
    "chosen": (bool, "Whether this is the model that was returned"),
}


def select_components(
    train,
    num_components,
    *,
    training,
    validation,
    seeds=(0, 1, 2),
    num_samples=16,
    show_progress=False,
):
    """
    Choose the number of components of a mixture by held-out galaxies.

    Models are trained with each number and seed. The number whose held-out ELBO is
    the highest on average over seeds is chosen, and of its models the best one. No
    label of any galaxy takes part.

    Parameters
    ----------
    train : callable
        ``train(num_components, seed, training)`` makes a `VAE` whose prior is a
        `~astrovae.layers.MixturePrior` of so many components, trains it on the
        images, and returns it.
    num_components : sequence of int
        Numbers to try.
    training, validation : `~astrovae.images.CutoutStack`, array or dict
        Galaxies to train on, and others to choose by.
    seeds : sequence of int, optional
        Runs for each number.
    num_samples : int, optional
        Latents drawn per galaxy for the ELBO.
    show_progress : bool, optional
        Show a progress bar.

    Returns
    -------
    model : `VAE`
        The chosen model.
    runs : `~astropy.table.Table`
        One row per run: ``num_components``, ``seed``, ``elbo`` with its standard
        error ``elbo_err``, ``occupied``, ``duplicates``, ``seconds`` and
        ``chosen``. Runs that failed or diverged have masked values, and so has
        the error of a single galaxy.

    Raises
    ------
    ValueError
        If there is nothing to try, no galaxy of the validation is measured, or
        all runs failed.

    Warns
    -----
    ~astrovae.exceptions.AstrovaeWarning
        If a run failed or diverged.

    Notes
    -----
    ELBOs of two models on the same galaxies differ with much less scatter than
    either has: ``elbo_err`` is that of one alone, an upper limit for the comparison.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE, mixture_training, select_components
    >>> truth, stack = make_galaxies(96, shape=(16, 16), seed=1)
    >>> def train(num_components, seed, images):
    ...     prior = MixturePrior(num_components, latent_dim=2, seed=seed)
    ...     vae = VAE(images.image_shape, latent_dim=2, prior=prior, seed=seed)
    ...     vae.compile()
    ...     recipe = mixture_training(images, epochs=4, seed=seed)
    ...     vae.fit(images, epochs=4, verbose=0, callbacks=recipe)
    ...     return vae
    >>> vae, runs = select_components(
    ...     train, [1, 2], training=stack[:64], validation=stack[64:], seeds=[0]
    ... )
    >>> runs.colnames[:3]
    ['num_components', 'seed', 'elbo']
    """
    numbers = [check_positive_int("num_components", k) for k in num_components]
    seeds = [check_positive_int("seeds", seed, minimum=0) for seed in seeds]
    if not numbers or not seeds:
        msg = f"there is nothing to try: num_components={numbers}, seeds={seeds}."
        raise ValueError(msg)
    measured = _measured(validation)
    if not measured.any():
        msg = "no galaxy of the validation is measured: give others."
        raise ValueError(msg)
    rows, best = [], {}
    with progress_bar("Training", len(numbers) * len(seeds), show=show_progress) as go:
        for k in numbers:
            for seed in seeds:
                keras.utils.set_random_seed(seed)
                model, row = _run(
                    train, k, seed, training, validation, measured, num_samples
                )
                rows.append(row)
                if model is not None and row["elbo"] > best.get(k, (-np.inf,))[0]:
                    best[k] = row["elbo"], model, len(rows) - 1
                go(1, note=f"{k} components, ELBO {row['elbo']:.1f}")
    if not best:
        msg = "all runs failed or diverged; the warnings say why."
        raise ValueError(msg)
    means = {k: np.nanmean([r["elbo"] for r in rows if r["k"] == k]) for k in best}
    _, model, row = best[max(means, key=means.get)]
    rows[row]["chosen"] = True
    return model, _table(rows)


def _measured(inputs):
    """Which galaxies have valid pixels."""
    source = as_source(inputs)
    parts = [np.zeros(0, bool)]
    for start in range(0, len(source), _CHUNK):
        batch = source.batch(np.arange(start, min(start + _CHUNK, len(source))))
        mask = batch.get("mask", np.zeros_like(batch["image"], bool))
        parts.append(~np.asarray(mask, bool).reshape(len(mask), -1).all(axis=1))
    return np.concatenate(parts)


def _run(train, k, seed, training, validation, measured, num_samples):
    """Train one model and measure it; None if that failed."""
    row = {
        "k": k,
        "num_components": k,
        "seed": seed,
        "elbo": np.nan,
        "elbo_err": np.nan,
        "occupied": 0,
        "duplicates": 0,
        "seconds": np.nan,
        "chosen": False,
    }
    start = time.perf_counter()
    try:
        model = train(k, seed, training)
    except (ValueError, FloatingPointError) as error:
        _warn(k, seed, f"failed: {error}")
        return None, row
    row["seconds"] = time.perf_counter() - start
    if getattr(getattr(model, "prior", None), "num_components", None) != k:
        msg = (
            "train(num_components, seed, images) must return a model whose prior is "
            f"a mixture of {k} components, got {model!r}."
        )
        raise TypeError(msg)
    elbo = np.asarray(model.elbo(validation, num_samples=num_samples), dtype=float)
    elbo = elbo[measured]
    if not np.isfinite(elbo).all():
        _warn(k, seed, "diverged: its ELBO is not finite")
        return None, row
    shares = model.responsibilities(validation)[measured].mean(axis=0)
    row["elbo"] = float(elbo.mean())
    if len(elbo) > 1:
        row["elbo_err"] = float(elbo.std(ddof=1) / np.sqrt(len(elbo)))
    row["occupied"] = int((shares >= _OCCUPIED_SHARE).sum())
    row["duplicates"] = len(model.prior.duplicates())
    return model, row


def _warn(k, seed, reason):
    msg = f"The run with {k} components and seed {seed} {reason.rstrip('.')}."
    warnings.warn(msg, AstrovaeWarning, stacklevel=4)


def _table(rows):
    """Make the table of runs; what is not known is masked."""
    failed = np.array([np.isnan(row["elbo"]) for row in rows])
    table = Table(masked=True)
    for name, (kind, description) in _COLUMNS.items():
        table[name] = np.ma.array([row[name] for row in rows], dtype=kind)
        table[name].description = description
        if name not in ("num_components", "seed", "chosen"):
            table[name].mask = failed
    table["elbo_err"].mask = np.isnan([row["elbo_err"] for row in rows])
    return table
