# Licensed under a 3-clause BSD style license - see LICENSE
"""What happens while a model is trained."""

import functools
import math
import warnings

import keras
import numpy as np
from keras import ops

from astrovae._progress import progress_bar
from astrovae._sources import EvenlySpaced
from astrovae._validation import check_positive_int
from astrovae.exceptions import AstrovaeWarning
from astrovae.models._inference import ACTIVE_VARIANCE
from astrovae.ops import gaussian_kl

__all__ = [
    "CollapseMonitor",
    "TerminateOnDivergence",
    "TrainingProgress",
]

# A component with a smaller share of the galaxies is as good as empty.
_OCCUPIED_SHARE = 0.02


class TrainingProgress(keras.callbacks.Callback):
    """
    One line that shows how far the training is, in place of many.

    Use it with ``verbose=0``. It also writes the validation loss, if there
    is one, beside the bar.

    Parameters
    ----------
    description : str, optional
        What to write before the bar.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE, TrainingProgress
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> vae.compile()
    >>> history = vae.fit(stack, verbose=0, callbacks=[TrainingProgress()])
    """

    def __init__(self, description="Training"):
        super().__init__()
        self.description = description

    def on_train_begin(self, logs=None):
        self._bar = progress_bar(self.description, self.params["epochs"], show=True)
        self._advance = self._bar.__enter__()

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        loss = logs.get("val_loss", logs.get("loss"))
        self._advance(1, note=f"loss {loss:.1f}")

    def on_train_end(self, logs=None):
        self._bar.__exit__(None, None, None)


class TerminateOnDivergence(keras.callbacks.Callback):
    """
    Stop a training that diverges, and go back to its last good epoch.

    Where the loss of an epoch or a weight is not finite, the model gets the
    weights that it had after the epoch before, training stops, and a warning
    says so. ``stopped_epoch`` is that epoch; `None` if all went well. Unlike
    Keras' ``TerminateOnNaN``, it leaves a model that can be used.

    Warns
    -----
    ~astrovae.exceptions.AstrovaeWarning
        If the training diverged.

    Examples
    --------
    >>> from astrovae.models import TerminateOnDivergence
    >>> guard = TerminateOnDivergence()
    """

    def __init__(self):
        super().__init__()
        self.stopped_epoch = None

    def on_train_begin(self, logs=None):
        self.stopped_epoch = None
        self._good = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        weights = self.model.get_weights()
        loss = (logs or {}).get("loss", 0.0)
        if math.isfinite(loss) and all(np.isfinite(part).all() for part in weights):
            self._good = weights
            return
        self.model.set_weights(self._good)
        for variable in self.model.optimizer.variables:
            # else the next training would begin with what broke this one
            value = ops.convert_to_numpy(variable)
            if not np.isfinite(value).all():
                variable.assign(np.zeros_like(value))
        self.model.stop_training = True
        self.stopped_epoch = epoch
        msg = (
            f"The training diverged in epoch {epoch + 1}: its loss is {loss}. The "
            "model has the weights of the epoch before. Use a smaller learning "
            "rate, a SigmaWarmup, or clipnorm in the optimizer, and check the "
            "errors of the pixels."
        )
        warnings.warn(msg, AstrovaeWarning, stacklevel=2)

    def on_train_end(self, logs=None):
        self._good = None


class CollapseMonitor(keras.callbacks.Callback):
    """
    Watch for latents, variances and components that are lost.

    At the end of an epoch it adds to the logs, and so to ``history``:

    ``active_units``
        Latents whose posterior mean varies by more than 0.01 in variance.
    ``kl_latent_<j>``
        KL divergence of latent ``j`` in nats, averaged over galaxies, from a
        normal prior of the moments of the model's.
    ``sigma_floor_share``
        Share of the pixels whose learned variance has sunk to the floor.
    ``occupancy_<c>``, ``occupied``, ``duplicates``
        For mixture priors: share of the galaxies of component ``c``; the
        number of components above 2 %; and of pairs that are the same
        (Bhattacharyya coefficient above 0.95).

    Parameters
    ----------
    inputs : `~astrovae.images.CutoutStack`, array or dict
        Galaxies to watch, preferably those of the validation.
    every : int, optional
        Look every so many epochs, and after the last one. The values between
        are those of the last look.
    max_galaxies : int, optional
        Look at most at this many, evenly spaced.
    batch_size : int, optional
        Galaxies at a time.

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE, CollapseMonitor
    >>> truth, stack = make_galaxies(32, shape=(16, 16), seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> vae.compile()
    >>> monitor = CollapseMonitor(stack)
    >>> history = vae.fit(stack, verbose=0, callbacks=[monitor])
    >>> len(history.history["active_units"])
    1
    """

    def __init__(self, inputs, *, every=1, max_galaxies=2_000, batch_size=256):
        super().__init__()
        self.every = check_positive_int("every", every)
        self.batch_size = batch_size
        self._source = EvenlySpaced(inputs, max_galaxies)
        self._last = {}

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params["epochs"]
        if last or not self._last or (epoch + 1) % self.every == 0:
            self._last = self.look()
        if logs is not None:
            logs.update(self._last)

    def look(self):
        """
        Measure now.

        Returns
        -------
        measures : dict of float
            What the logs receive.
        """
        model = self.model
        terms = model._map(
            "collapse",
            functools.partial(_collapse_terms, model),
            self._source,
            batch_size=self.batch_size,
        )
        terms = {name: array[terms["measured"]] for name, array in terms.items()}
        active = terms["mean"].var(axis=0, dtype=float) > ACTIVE_VARIANCE
        measures = {"active_units": float(active.sum())}
        measures |= _numbered("kl_latent", terms["kl"])
        if "at_floor" in terms:
            measures["sigma_floor_share"] = float(terms["at_floor"].mean(dtype=float))
        if "responsibilities" in terms:
            measures |= _numbered("occupancy", terms["responsibilities"])
            shares = terms["responsibilities"].mean(axis=0, dtype=float)
            measures["occupied"] = float((shares >= _OCCUPIED_SHARE).sum())
            if hasattr(model.prior, "duplicates"):
                measures["duplicates"] = float(len(model.prior.duplicates()))
        return measures


def _collapse_terms(model, batch):
    """What `CollapseMonitor` needs to know of each galaxy."""
    posterior = model._encode_batch(batch)
    mean, log_var = posterior["mean"], posterior["log_var"]
    terms = {"mean": mean, "measured": posterior["measured"]}
    terms["kl"] = gaussian_kl(mean, log_var, *model.prior.moments())
    if getattr(model.likelihood, "learn_variance", False):
        floor = model.likelihood.floor(model._scale)
        variance = ops.exp(model._decode_batch(mean)["log_var"])
        at_floor = ops.cast(variance < 2.0 * floor, "float32")
        terms["at_floor"] = ops.mean(at_floor, axis=(1, 2, 3))
    if hasattr(model.prior, "responsibilities"):
        shape = {"log_var": log_var}
        if "scale_tril" in posterior:
            shape = {"scale_tril": posterior["scale_tril"]}
        terms["responsibilities"] = model.prior.responsibilities(mean, **shape)
    return terms


def _numbered(name, columns):
    """Means of the columns, each under the name and its number."""
    means = columns.mean(axis=0, dtype=float)
    return {f"{name}_{i}": float(mean) for i, mean in enumerate(means)}
