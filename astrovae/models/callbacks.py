# Licensed under a 3-clause BSD style license - see LICENSE
"""What happens while a model is trained."""

import keras

from astrovae._progress import progress_bar

__all__ = ["TrainingProgress"]


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
