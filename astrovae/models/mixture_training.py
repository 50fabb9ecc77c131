# Licensed under a 3-clause BSD style license - see LICENSE
"""Training of models whose prior is a mixture."""

import keras
import numpy as np

from astrovae._sources import EvenlySpaced
from astrovae._validation import check_option, check_positive_int
from astrovae.models.callbacks import TerminateOnDivergence
from astrovae.models.schedules import CyclicalBeta

__all__ = ["MixtureInitialization", "MixtureUpkeep", "mixture_training"]

# means that differ by less were never placed
_UNITED = 1e-3


class _MixtureCallback(keras.callbacks.Callback):
    """
    Look at the posteriors of some galaxies, for the sake of the mixture.

    Parameters
    ----------
    inputs : `~astrovae.images.CutoutStack`, array or dict
        Training images.
    max_galaxies, batch_size : int
        How many of them, and how many at a time.
    """

    def __init__(self, inputs, max_galaxies, batch_size):
        super().__init__()
        self.batch_size = batch_size
        self._source = EvenlySpaced(inputs, max_galaxies)

    def on_train_begin(self, logs=None):
        if not hasattr(self.model.prior, "initialize_from_gmm"):
            msg = (
                f"{type(self).__name__} needs a model whose prior is a MixturePrior, "
                f"got {type(self.model.prior).__name__}."
            )
            raise TypeError(msg)
        # of the shape, and prepared, as those of the training
        self.model._source(self._source.source)
        found, needed = len(self._source), self.model.prior.num_components
        if found < needed:
            msg = (
                f"a mixture of {needed} components needs as many galaxies, got {found}."
            )
            raise ValueError(msg)

    def _posteriors(self):
        """Mean, log-variance and, of full posteriors, factor of what is measured."""
        model = self.model
        posterior = model._map(
            "encode", model._encode_batch, self._source, batch_size=self.batch_size
        )
        measured = posterior.pop("measured")
        found = {name: array[measured] for name, array in posterior.items()}
        if not all(np.isfinite(array).all() for array in found.values()):
            msg = (
                "the encoder gives latents that are not finite: the training has "
                "diverged. Use a smaller learning rate, or a longer SigmaWarmup."
            )
            raise ValueError(msg)
        needed = model.prior.num_components
        if len(found["mean"]) < needed:
            msg = (
                f"a mixture of {needed} components needs as many galaxies, got "
                f"{len(found['mean'])} with valid pixels."
            )
            raise ValueError(msg)
        return found


class MixtureInitialization(_MixtureCallback):
    """
    Place the components of a mixture prior where the galaxies are.

    After some epochs a mixture is fitted to the posteriors; its weights, means
    and covariances become those of the prior.

    Parameters
    ----------
    inputs : `~astrovae.images.CutoutStack`, array or dict
        Training images.
    epochs : int
        How many epochs to train before.
    method : {"gmm", "posteriors"}, optional
        "gmm": scikit-learn's mixture of the posterior means, from k-means++,
        widened by the mean variance of the posteriors. "posteriors": the
        mixture that gives the smallest KL divergence, with the uncertainty of
        each galaxy, from k-means; it differs less between seeds.
    normal_before : bool, optional
        Whether the prior is one standard normal distribution until then. If the
        training is stopped before, or goes back to such an epoch as early stopping
        does, the components are placed when it ends.
    max_galaxies : int, optional
        Use at most this many, evenly spaced.
    num_restarts : int, optional
        How often to fit, from different starts; the best fit is taken.
    seed : int, optional
        Seed of the starts.
    batch_size : int, optional
        Galaxies at a time.

    Raises
    ------
    TypeError
        When training begins, if the prior of the model is no
        `~astrovae.layers.MixturePrior`.
    ValueError
        If there are fewer galaxies than components, or latents that are not
        finite.

    See Also
    --------
    astrovae.layers.MixturePrior.initialize_from_gmm : What "gmm" calls.
    astrovae.layers.MixturePrior.fit : What "posteriors" calls.

    References
    ----------
    Jiang et al. 2017, IJCAI (arXiv:1611.05148); Cao et al. 2020
    (arXiv:2005.08047).

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE, MixtureInitialization
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior)
    >>> vae.compile()
    >>> start = MixtureInitialization(stack, epochs=1)
    >>> history = vae.fit(stack, epochs=2, verbose=0, callbacks=[start])
    """

    def __init__(
        self,
        inputs,
        epochs,
        *,
        method="gmm",
        normal_before=False,
        max_galaxies=10_000,
        num_restarts=10,
        seed=0,
        batch_size=256,
    ):
        super().__init__(inputs, max_galaxies, batch_size)
        self.epochs = check_positive_int("epochs", epochs, minimum=0)
        self.method = check_option("method", method, ("gmm", "posteriors"))
        self.normal_before = bool(normal_before)
        self.num_restarts = check_positive_int("num_restarts", num_restarts)
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        # decided by the epoch alone, so that a resumed training does the same
        if epoch < self.epochs and self.normal_before:
            self._unite()
        if epoch == self.epochs:
            self._place()

    def on_train_end(self, logs=None):
        # stopped too early, or back at an early epoch: else there were no clusters
        if self.normal_before and self._is_united():
            self._place()

    def _place(self):
        prior, found = self.model.prior, self._posteriors()
        if self.method == "posteriors":
            prior.fit(**_shape(found), num_restarts=self.num_restarts, seed=self.seed)
            return
        from sklearn.mixture import GaussianMixture

        names = {"diagonal": "diag", "tied": "tied", "full": "full"}
        mixture = GaussianMixture(
            prior.num_components,
            covariance_type=names[prior.covariance],
            init_params="k-means++",
            n_init=self.num_restarts,
            random_state=self.seed,
            max_iter=500,
        ).fit(found["mean"].astype(np.float64))
        prior.initialize_from_gmm(mixture, np.exp(found["log_var"]).mean(axis=0))

    def _unite(self):
        """Make all components the standard normal distribution."""
        prior = self.model.prior
        k, dim = prior.num_components, prior.latent_dim
        covariances = np.ones((k, dim))
        if prior.covariance != "diagonal":
            covariances = np.repeat(np.eye(dim)[None], k, axis=0)
        prior.set_components(np.ones(k), np.zeros((k, dim)), covariances)

    def _is_united(self):
        means = self.model.prior.components()["means"]
        return len(means) > 1 and np.ptp(means, axis=0).max() < _UNITED


class MixtureUpkeep(_MixtureCallback):
    """
    Keep every component of a mixture prior of use.

    Every few epochs, components that have become the same are merged, and those
    that hold no galaxies get half of a large one. When training ends, the
    mixture is fitted once more to the posteriors as they are by then, which
    raises the ELBO, and duplicates are merged. What was done is in the logs as
    ``merged`` and ``revived``.

    Parameters
    ----------
    inputs : `~astrovae.images.CutoutStack`, array or dict
        Training images.
    start, stop : int, optional
        The first epoch to do so, and the first not to any more. Leave the last
        epochs alone, so that what was revived can settle.
    every : int, optional
        Epochs between.
    merge_above : float, optional
        Bhattacharyya coefficient of a pair that is merged.
    revive_below : float, optional
        Share of the galaxies of a component that is dead; 0 leaves it.
    refit : bool, optional
        Whether the mixture is fitted once more at the end.
    max_galaxies : int, optional
        Use at most this many, evenly spaced.
    batch_size : int, optional
        Galaxies at a time.

    Raises
    ------
    TypeError
        When training begins, if the prior of the model is no
        `~astrovae.layers.MixturePrior`.
    ValueError
        If there are fewer galaxies than components, or latents that are not
        finite.

    See Also
    --------
    mixture_training : A whole training in one call.
    astrovae.layers.MixturePrior.merge_duplicates, astrovae.layers.MixturePrior.revive

    Examples
    --------
    >>> from astrovae.models import MixtureUpkeep
    >>> from astrovae.datasets import make_galaxies
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> upkeep = MixtureUpkeep(stack, start=10, stop=40, every=5)
    """

    def __init__(
        self,
        inputs,
        *,
        start=0,
        stop=None,
        every=5,
        merge_above=0.95,
        revive_below=0.005,
        refit=True,
        max_galaxies=10_000,
        batch_size=256,
    ):
        super().__init__(inputs, max_galaxies, batch_size)
        self.start = check_positive_int("start", start, minimum=0)
        self.stop = stop
        if stop is not None:
            check_positive_int("stop", stop, minimum=0)
        self.every = check_positive_int("every", every)
        for name, value in (
            ("merge_above", merge_above),
            ("revive_below", revive_below),
        ):
            if not 0 <= value <= 1:
                msg = f"{name} must be between 0 and 1, got {value!r}."
                raise ValueError(msg)
        self.merge_above, self.revive_below = merge_above, revive_below
        self.refit = bool(refit)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._done = {"merged": 0.0, "revived": 0.0}

    def on_epoch_begin(self, epoch, logs=None):
        self._done = {"merged": 0.0, "revived": 0.0}
        before_stop = self.stop is None or epoch < self.stop
        # decided by the epoch alone, so that a resumed training does the same
        if epoch < self.start or not before_stop or (epoch - self.start) % self.every:
            return
        prior = self.model.prior
        self._done["merged"] = float(len(prior.merge_duplicates(self.merge_above)))
        if self.revive_below > 0:
            found = prior.revive(
                **_shape(self._posteriors()), threshold=self.revive_below
            )
            self._done["revived"] = float(len(found))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self._done)

    def on_train_end(self, logs=None):
        if self.refit:
            self.model.prior.fit(**_shape(self._posteriors()), start="current")
        self.model.prior.merge_duplicates(self.merge_above)


def _shape(posterior):
    """What `MixturePrior.fit` takes of posteriors."""
    if "scale_tril" in posterior:
        return {name: posterior[name] for name in ("mean", "scale_tril")}
    return {name: posterior[name] for name in ("mean", "log_var")}


def mixture_training(
    inputs,
    epochs,
    *,
    pretraining=0.5,
    num_cycles=2,
    beta=1.0,
    weak_beta=0.1,
    seed=0,
    max_galaxies=10_000,
):
    """
    Make the callbacks that train a model with a mixture prior.

    The recipe of s3VDC, for one call of ``fit``: the networks are trained with
    one normal prior and a weak KL divergence; the components are placed where
    the galaxies are; then, in cycles, the weight of the divergence rises to its
    value and stays there, while networks and mixture are trained together.
    Duplicates are merged and dead components revived on the way; in the end, the
    mixture is fitted once more. A training that diverges is stopped, with the
    weights of the last good epoch and a warning.

    Parameters
    ----------
    inputs : `~astrovae.images.CutoutStack`, array or dict
        Training images.
    epochs : int
        Epochs of the whole training, as given to ``fit``.
    pretraining : float, optional
        Share of the epochs before the components are placed.
    num_cycles : int, optional
        How often the weight rises afterwards.
    beta : float, optional
        Weight of the KL divergence at the end: give ``vae.beta`` unless it is 1.
    weak_beta : float, optional
        Weight of the KL divergence before, as a share of ``beta``.
    seed : int, optional
        Seed of the start of the components.
    max_galaxies : int, optional
        Place them by at most this many galaxies, evenly spaced.

    Returns
    -------
    callbacks : list of `keras.callbacks.Callback`
        To be given to ``fit``, after ``BackupAndRestore`` and ``EarlyStopping``
        if there are any. Early stopping must not begin before the cycles end:
        ``EarlyStopping(start_from_epoch=...)``.

    Raises
    ------
    ValueError
        If the epochs do not suffice for the cycles, or a share is out of range.

    References
    ----------
    Cao et al. 2020 (arXiv:2005.08047), s3VDC; Spindler et al. 2021, MNRAS 502,
    985.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.layers import MixturePrior
    >>> from astrovae.models import VAE, mixture_training
    >>> truth, stack = make_galaxies(64, shape=(16, 16), seed=1)
    >>> prior = MixturePrior(num_components=3, latent_dim=2, concentration=2.0)
    >>> vae = VAE(stack.image_shape, latent_dim=2, prior=prior, seed=1)
    >>> vae.compile()
    >>> history = vae.fit(
    ...     stack, epochs=6, verbose=0, callbacks=mixture_training(stack, epochs=6)
    ... )
    >>> [round(beta, 3) for beta in history.history["beta"]]
    [0.1, 0.1, 0.1, 0.1, 0.1, 1.0]
    """
    check_positive_int("epochs", epochs)
    check_positive_int("num_cycles", num_cycles)
    for name, value in (("pretraining", pretraining), ("weak_beta", weak_beta)):
        if not 0 <= value <= 1:
            msg = f"{name} must be between 0 and 1, got {value!r}."
            raise ValueError(msg)
    first = round(pretraining * epochs)
    period = (epochs - first) // num_cycles
    if period < 1:
        msg = (
            f"{epochs} epochs, of which {first} are pre-training, are too few for "
            f"num_cycles={num_cycles}: train longer, or with fewer cycles."
        )
        raise ValueError(msg)
    return [
        TerminateOnDivergence(),
        CyclicalBeta(
            period,
            power=3.0,
            start=weak_beta * beta,
            stop=beta,
            delay=first,
            num_cycles=num_cycles,
        ),
        MixtureInitialization(
            inputs,
            first,
            method="posteriors",
            normal_before=True,
            max_galaxies=max_galaxies,
            seed=seed,
        ),
        MixtureUpkeep(
            inputs,
            start=first + max(period // 2, 1),
            every=max(period // 2, 1),
            stop=max(epochs - period // 2, first),
            max_galaxies=max_galaxies,
        ),
    ]
