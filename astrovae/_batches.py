# Licensed under a 3-clause BSD style license - see LICENSE
"""Batches of galaxies for Keras, and compiled functions mapped over them."""

import signal
import threading

import keras
import numpy as np

from astrovae._progress import progress_bar
from astrovae._validation import check_positive_int

__all__ = [
    "BatchDataset",
    "EpochCallback",
    "RowFunction",
    "random_flips",
]


class BatchDataset(keras.utils.PyDataset):
    """
    Batches of a source, in an order that only seed and epoch decide.

    So a training that was interrupted and resumed at an epoch sees the same
    batches as one that was not. Keras does not tell a dataset which epoch
    it is: `EpochCallback` does.

    Parameters
    ----------
    source : source of batches
        The galaxies.
    batch_size : int
        Galaxies per batch.
    seed : int or None
        Seed of the order; `None` keeps the order of the source.
    augment : callable, optional
        ``augment(batch, rng) -> batch`` changes training batches.
    pad : bool, optional
        Repeat the last galaxy to fill the last batch, so that all batches
        have one shape and are compiled once.
    masks : bool, optional
        Whether batches have a mask. Where every pixel counts, a step without
        one is shorter.
    **kwargs
        Arguments of `keras.utils.PyDataset`.
    """

    def __init__(
        self,
        source,
        batch_size,
        *,
        seed=None,
        augment=None,
        pad=False,
        masks=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.source = source
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.seed = seed
        self.augment = augment
        self.pad = pad
        self.masks = masks
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Shuffle for epoch ``epoch``."""
        self.epoch = epoch
        self.order = np.arange(len(self.source))
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(self.order)

    def __len__(self):
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.order[start : start + self.batch_size]
        if self.pad and len(rows) < self.batch_size:
            rows = np.pad(rows, (0, self.batch_size - len(rows)), mode="edge")
        batch = self.source.batch(rows)
        if not self.masks:
            batch = {name: plane for name, plane in batch.items() if name != "mask"}
        if self.augment is not None:
            rng = np.random.default_rng([self.seed or 0, self.epoch, index])
            batch = self.augment(batch, rng)
        return batch


class EpochCallback(keras.callbacks.Callback):
    """Tell a `BatchDataset` which epoch begins."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.set_epoch(epoch)


class KeepVariables(keras.callbacks.Callback):
    """
    Leave a model its variables where a step fails or someone interrupts it.

    On JAX, Keras takes the variables out of a model while steps run, and puts back
    what the last step returned. Without any, as when the first batch cannot be read,
    the weights would be lost; and so they would if an interrupt came between a step,
    which reuses their memory, and the note of what it returned. It waits for the end
    of the step; a second one does not.
    """

    def __init__(self):
        super().__init__()
        self._kept, self._handler, self._pending = [], None, None

    def _begin(self, step, logs=None):
        if keras.config.backend() != "jax":
            return
        self._hold_interrupts()
        if step == 0:
            owners = [self.model, getattr(self.model, "optimizer", None)]
            variables = [v for owner in owners if owner for v in owner.variables]
            self._kept = [(variable, variable.value) for variable in variables]

    def _end(self, step, logs=None):
        self._kept = []
        self._release_interrupts()

    on_train_batch_begin = on_test_batch_begin = on_predict_batch_begin = _begin
    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _end

    def _hold_interrupts(self):
        handler = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if main and self._handler is None and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._note_interrupt)

    def _note_interrupt(self, *args):
        if self._pending is not None:
            self._handler(*args)
        self._pending = args

    def _release_interrupts(self):
        """Put back what an interrupt does, and do it if there was one."""
        if self._handler is None:
            return
        handler = self._handler
        # this notes an interrupt that came just now
        signal.signal(signal.SIGINT, handler)
        args, self._handler, self._pending = self._pending, None, None
        if args is not None:
            handler(*args)

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        try:
            if error is not None and self.model and keras.config.backend() == "jax":
                # what steps before this one returned
                self.model.jax_state_sync()
                for variable, value in self._kept:
                    if not value.is_deleted():
                        variable.assign(value)
        finally:
            self._release_interrupts()


def run_safely(method, *args, callbacks=None, **kwargs):
    """Call ``fit``, ``evaluate`` or ``predict`` of a model; see `KeepVariables`."""
    if callbacks is None or isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks] if callbacks else []
    with KeepVariables() as keep:
        return method(*args, callbacks=[keep, *callbacks], **kwargs)


def random_flips(batch, rng, ways=8):
    """
    Turn and mirror all planes of each galaxy at random.

    One of eight ways; or, with ``ways=4``, one of those that leave horizontal
    lines horizontal.
    """
    ways = rng.integers(ways, size=len(batch["image"])) * (8 // ways)
    turned = {name: np.array(planes) for name, planes in batch.items()}
    for way in np.unique(ways[ways > 0]):
        rows = ways == way
        for name, planes in batch.items():
            if name == "pose":
                turned[name][rows] = _turn_pose(planes[rows], way)
                continue
            image = planes[rows][:, ::-1] if way & 4 else planes[rows]
            turned[name][rows] = np.rot90(image, way & 3, axes=(1, 2))
    return turned


def _turn_pose(pose, way):
    """Turn x, y, angle and parity of poses as their images are turned."""
    x, y, angle, parity, *rest = pose.T
    if way & 4:
        y, angle, parity = -y, -angle, -parity
    for _ in range(way & 3):
        x, y, angle = y, -x, angle - np.pi / 2
    return np.stack([x, y, angle, parity, *rest], axis=1)


class RowFunction(keras.Model):
    """
    A function of a batch, compiled on any backend, mapped over all rows.

    This is the one way in which astrovae runs tensors outside training:
    batches have one fixed shape, the last one is padded, and results come
    back as NumPy arrays of the true length, also for zero rows.

    Parameters
    ----------
    function : callable
        ``function(batch: dict of tensors) -> dict of tensors``, row by row.
    model : `keras.Model` or `keras.layers.Layer`, optional
        The owner of the weights that the function uses.
    """

    def __init__(self, function, model=None):
        # the function decides what it computes in which precision
        super().__init__(autocast=False)
        self.function = function
        self.model = model
        # torch runs eagerly: its compiler costs minutes and needs a C++ compiler
        self.compile(jit_compile=keras.config.backend() != "torch")

    def call(self, inputs):
        return self.function(inputs)

    def map(self, source, *, batch_size=256, description="", show_progress=False):
        """
        Apply the function to every row of a source.

        Parameters
        ----------
        source : source of batches
            The galaxies.
        batch_size : int, optional
            Rows at a time.
        description : str, optional
            What to show beside the progress bar.
        show_progress : bool, optional
            Whether to show one.

        Returns
        -------
        results : dict of `~numpy.ndarray`
            One row per row of the source.
        """
        n = len(source)
        if n == 0:
            return {
                name: array[:0] for name, array in self.map(_OneRow(source)).items()
            }
        dataset = BatchDataset(source, min(batch_size, n), pad=True)
        with progress_bar(description, n, show=show_progress) as advance:
            size = dataset.batch_size
            bar = keras.callbacks.LambdaCallback(
                on_predict_batch_end=lambda batch, logs: advance(
                    min(size, n - batch * size)
                )
            )
            results = run_safely(self.predict, dataset, verbose=0, callbacks=bar)
        return {name: array[:n] for name, array in results.items()}


class _OneRow:
    """A source with one row of zeros, shaped like an empty one."""

    def __init__(self, empty):
        self.empty = empty

    def __len__(self):
        return 1

    def batch(self, indices):
        batch = self.empty.batch(np.arange(0))
        return {
            name: np.zeros((len(indices), *array.shape[1:]), array.dtype)
            for name, array in batch.items()
        }
