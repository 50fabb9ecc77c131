# Licensed under a 3-clause BSD style license - see LICENSE
"""Posteriors refined galaxy by galaxy, by gradient steps on the ELBO."""

import contextlib

import keras
import numpy as np
from keras import ops

from astrovae._progress import progress_bar
from astrovae.models._draws import normal_draws

__all__ = ["WithPosterior", "refine_posteriors"]

# In units of the prior: it anneals to zero, so that sharp posteriors, too,
# come to rest.
_LEARNING_RATE = 0.05
# The first steps, from far away, must not slow down the last ones.
_BETA_2 = 0.95
# Pairs of opposite samples of each step.
_NUM_PAIRS = 1
# Samples that say whether posteriors became better.
_NUM_SAMPLES = 16


class _Refiner(keras.Model):
    """
    A model whose only trainable weights are the posteriors of one batch.

    Fitting it for an epoch of one batch, repeated, makes the gradient steps.
    All galaxies are fitted at once, and independently: their ELBOs are added
    up, and Adam works on each number by itself.
    """

    def __init__(self, vae, batch_size, num_steps, learning_rate):
        super().__init__(autocast=False, name="refiner", dtype="float32")
        self.vae = vae
        self.raw = self._state("raw", (batch_size, vae.posterior_layer.units))
        self.step = self._state("step", (), dtype="int32")
        draws = normal_draws(num_steps * _NUM_PAIRS, vae.latent_dim)
        draws = draws.reshape(num_steps, _NUM_PAIRS, vae.latent_dim)
        self._noise = np.concatenate([draws, -draws], axis=1)
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
        # torch runs eagerly: its compiler costs minutes
        jit_compile = keras.config.backend() != "torch"
        optimizer = keras.optimizers.Adam(rate, beta_2=_BETA_2)
        self.compile(optimizer, jit_compile=jit_compile, auto_scale_loss=False)
        self.optimizer.build(self.trainable_variables)
        self.built = True

    def _state(self, name, shape, dtype="float32"):
        return self.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer="zeros",
            trainable=dtype == "float32",
            autocast=False,
        )

    # the model's own weights stay as they are, without marking them so

    @property
    def trainable_weights(self):
        return [self.raw]

    @property
    def trainable_variables(self):
        return [self.raw]

    @property
    def non_trainable_weights(self):
        return [weight for weight in self.weights if weight is not self.raw]

    @property
    def non_trainable_variables(self):
        return [variable for variable in self.variables if variable is not self.raw]

    def call(self, inputs):
        raw = ops.convert_to_tensor(self.raw)
        posterior = self.vae._encode_batch({**inputs, "posterior": raw})
        # Keras may have tried a step before the first one
        step = ops.mod(ops.convert_to_tensor(self.step), len(self._noise))
        noise = ops.take(ops.convert_to_tensor(self._noise), step, axis=0)
        self.step.assign_add(1)
        # a point is the same for all samples
        number = 1 if self.vae.posterior == "delta" else 2 * _NUM_PAIRS
        elbo = 0.0
        for i in range(number):
            log_like, kl = self.vae._elbo_terms(inputs, posterior, noise[i])
            elbo = elbo + log_like - kl
        return elbo / number

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return -ops.sum(y_pred)

    def refine(self, batch, raw, num_steps):
        """Give better parameters of the posteriors of a batch."""
        for variable in self.optimizer.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        self.step.assign(0)
        self.raw.assign(raw)
        self.fit(_Repeated(batch, num_steps), verbose=0)
        return ops.convert_to_numpy(self.raw)


@contextlib.contextmanager
def _keeping_weights(model):
    """Give a model its weights back if it is interrupted: JAX reuses their memory."""
    kept = [
        (variable, np.array(ops.convert_to_numpy(variable)))
        for variable in model.variables
    ]
    try:
        yield
    except BaseException:
        for variable, value in kept:
            variable.assign(value)
        model._plain.functions.clear()
        raise


class WithPosterior:
    """A source whose galaxies bring the parameters of their posteriors."""

    def __init__(self, source, raw):
        self.source, self.raw = source, raw

    def __len__(self):
        return len(self.source)

    def batch(self, indices):
        """Read the rows ``indices``."""
        return {**self.source.batch(indices), "posterior": self.raw[indices]}


class _Repeated(keras.utils.PyDataset):
    """The same batch, many times."""

    def __init__(self, batch, times):
        super().__init__()
        self.batch, self.times = batch, times

    def __len__(self):
        return self.times

    def __getitem__(self, index):
        return self.batch


def refine_posteriors(
    model,
    source,
    num_steps,
    batch_size,
    show_progress=False,
    *,
    learning_rate=_LEARNING_RATE,
    num_samples=_NUM_SAMPLES,
):
    """
    Improve posteriors by gradient steps on each galaxy's own ELBO.

    Parameters
    ----------
    model : `~astrovae.models._inference.LatentModel`
        The model; its weights do not change.
    source : source of batches
        The galaxies.
    num_steps : int
        Number of steps of Adam.
    batch_size : int
        Galaxies at a time.
    show_progress : bool, optional
        Show a progress bar.
    learning_rate : float, optional
        Learning rate of the first step.
    num_samples : int, optional
        Latents per galaxy that say whether its ELBO became better.

    Returns
    -------
    raw : `~numpy.ndarray`, shape (n, num_parameters)
        Parameters of the posteriors. A galaxy whose ELBO did not become better
        keeps that of the encoder.
    """
    n = len(source)
    batch_size = min(batch_size, n)
    before = model._map("raw", model._raw_batch, source, batch_size=batch_size)
    raw = before["raw"]
    functions, size = model._plain.functions, (batch_size, num_steps)
    if functions.get("refine", (None,))[0] != size:
        functions["refine"] = size, _Refiner(model, *size, learning_rate)
    (_, refiner), better = functions["refine"], []
    with (
        _keeping_weights(model),
        progress_bar("Refining", n, show=show_progress) as advance,
    ):
        for start in range(0, n, batch_size):
            rows = np.arange(start, start + batch_size)
            batch = source.batch(np.minimum(rows, n - 1))
            steps = refiner.refine(batch, raw[np.minimum(rows, n - 1)], num_steps)
            better.append(steps[: n - start])
            advance(len(better[-1]))
    better = np.concatenate(better)
    elbos = [
        model._terms(WithPosterior(source, values), num_samples, batch_size)["elbo"]
        for values in (raw, better)
    ]
    return np.where((elbos[1] > elbos[0])[:, None], better, raw)
