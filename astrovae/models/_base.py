# Licensed under a 3-clause BSD style license - see LICENSE
"""What models of galaxy images have in common: doors for data and presets."""

import contextlib
import functools
from types import SimpleNamespace

import keras
import numpy as np

from astrovae._batches import (
    BatchDataset,
    EpochCallback,
    RowFunction,
    random_flips,
    run_safely,
)
from astrovae._sources import as_source
from astrovae._validation import (
    check_option,
    check_positive_int,
    check_preprocessing,
)

__all__ = ["GalaxyModel", "PresetModel"]

_AUGMENT = {
    None: None,
    "flips": random_flips,
    "mirrors": functools.partial(random_flips, ways=4),
}
# small stamps of PSFs lose some of their light
_PSF_SUM_TOLERANCE = 0.2
_NEEDS = {
    "error": "the error of each pixel, and these images have none. Give error=... "
    "to make_cutouts or CutoutStack.",
    "pose": "the pose of each galaxy, and these images have none. Use "
    "measure_pose(stack).",
    "psf": "the PSF of the images, and these have none. Give psf=... to "
    "make_cutouts or CutoutStack.",
}


class PresetModel(keras.Model):
    """
    Base of Keras models that are kept in preset folders.

    Parameters
    ----------
    seed : int, optional
        Seed of the order of batches.
    **kwargs
        Arguments of `keras.Model`.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.sha256 = None
        # a plain object: Keras would track, wrap and save what it holds
        self._plain = SimpleNamespace(functions={})

    def compile(self, optimizer="adam", jit_compile="auto", **kwargs):
        """
        Configure training.

        Parameters
        ----------
        optimizer : str or `keras.optimizers.Optimizer`, optional
            The optimizer.
        jit_compile : bool or "auto", optional
            "auto" compiles on TensorFlow and JAX, also on a CPU.
        **kwargs
            Further arguments of `keras.Model.compile`. The loss is the
            model's own.
        """
        if jit_compile == "auto":
            jit_compile = keras.config.backend() != "torch"
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _map(self, name, function, source, **kwargs):
        """Run a function of a batch over a source, compiled once for each name."""
        if name is None:
            return RowFunction(function, self).map(source, **kwargs)
        functions = self._plain.functions
        if name not in functions:
            functions[name] = RowFunction(function, self)
        return functions[name].map(source, **kwargs)

    @classmethod
    def from_preset(cls, preset, **kwargs):
        """
        Make a model from a named preset or a preset folder.

        Parameters
        ----------
        preset : str or path-like
            A name, e.g. "regier2015": a `VAE` without weights; or a folder
            written by `save_preset`: a trained model.
        **kwargs
            For a name: ``image_shape``, and any argument of `VAE` to set
            otherwise than the preset does.

        Returns
        -------
        model : `VAE` or `LatentFlow`
            The model.

        Raises
        ------
        ~astrovae.exceptions.PresetError
            If there is no such preset, the folder is incomplete, unreadable or
            was altered, or it holds a model of another kind.
        """
        from astrovae.models.presets import load_preset

        return load_preset(preset, kind=cls, **kwargs)

    def save_preset(self, folder, *, overwrite=False, metadata=None):
        """
        Write configuration, weights and preparation record to a folder.

        Parameters
        ----------
        folder : path-like
            The folder to make. It appears complete or not at all.
        overwrite : bool, optional
            Replace an existing preset folder.
        metadata : dict, optional
            Anything to keep in ``metadata.json``.

        Raises
        ------
        FileExistsError
            If the folder exists and ``overwrite`` is false.
        """
        from astrovae.models.presets import save_preset

        save_preset(self, folder, overwrite=overwrite, metadata=metadata)


class GalaxyModel(PresetModel):
    """
    Base of Keras models that take stacks of cutouts or arrays.

    A subclass defines ``call`` and ``compute_loss`` over a batch (a dict of
    tensors) and ``adapt``, which measures constants on the training images.

    Parameters
    ----------
    image_shape : tuple of int
        The shape of an image, ``(ny, nx, n_bands)``.
    preprocessing : dict, optional
        The record of how the training images were prepared.
    seed : int, optional
        Seed of the order of batches.
    **kwargs
        Arguments of `keras.Model`.
    """

    def __init__(self, image_shape, preprocessing=None, seed=None, **kwargs):
        # in mixed precision, too, pixels enter the likelihood as they are
        super().__init__(seed, autocast=False, **kwargs)
        self.image_shape = _check_image_shape(image_shape)
        self._plain.preprocessing = preprocessing

    @property
    def preprocessing(self):
        """How the training images were prepared, or None."""
        return self._plain.preprocessing

    def fit(
        self,
        x=None,
        y=None,
        batch_size=128,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_data=None,
        augment=None,
        shuffle=True,
        **kwargs,
    ):
        """
        Train on galaxies.

        Parameters
        ----------
        x : `~astrovae.images.CutoutStack`, array, dict, or Keras dataset
            Training images.
        y : None
            There are no targets.
        batch_size : int, optional
            Galaxies per step.
        epochs : int, optional
            Passes over the galaxies.
        verbose, callbacks, **kwargs
            As for `keras.Model.fit`.
        validation_data : `~astrovae.images.CutoutStack`, array or dict, optional
            Galaxies that are not trained on.
        augment : {None, "flips", "mirrors"}, optional
            Mirror and turn square cutouts at random, each in one of eight ways;
            or mirror along x and y alone, as suits galaxies that were aligned.
        shuffle : bool, optional
            Draw the order of galaxies anew for each epoch, by seed and epoch.

        Returns
        -------
        history : `keras.callbacks.History`
            Loss and terms by epoch.

        Raises
        ------
        ValueError
            If there is nothing to train on, or the images do not fit.
        """
        check_option("augment", augment, _AUGMENT)
        with self._safe_training():
            return run_safely(
                self._fit,
                x,
                y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_data=validation_data,
                augment=augment,
                shuffle=shuffle,
                **kwargs,
            )

    @contextlib.contextmanager
    def _safe_training(self):
        """Leave nothing behind if training fails; nothing by default."""
        yield

    def _fit(self, x, y, *, batch_size, validation_data, augment, shuffle, **kwargs):
        if isinstance(x, keras.utils.PyDataset) or not _is_source_like(x):
            if not self.adapted:
                msg = (
                    "a Keras dataset cannot be measured before it is trained on: call "
                    "adapt(images) first, or give fit the images themselves."
                )
                raise ValueError(msg)
            return super().fit(
                x, y, validation_data=validation_data, shuffle=shuffle, **kwargs
            )
        source = self._training_source(x)
        if len(source) == 0:
            msg = "there are no galaxies: there is nothing to train on."
            raise ValueError(msg)
        if augment == "flips":
            self._check_square(source)
        self._prepare_training(source)
        self._plain.preprocessing = getattr(source, "preprocessing", self.preprocessing)
        seed = 0 if self.seed is None else self.seed
        dataset = BatchDataset(
            source,
            batch_size,
            seed=seed if shuffle else None,
            augment=_AUGMENT[augment],
            masks=not getattr(source, "complete", False),
        )
        if validation_data is not None:
            validation_data = BatchDataset(
                self._training_source(validation_data), batch_size
            )
        kwargs["callbacks"] = [EpochCallback(dataset), *kwargs["callbacks"]]
        return super().fit(
            dataset,
            validation_data=validation_data,
            # Keras would shuffle batches by the global state of Python
            shuffle=False,
            **kwargs,
        )

    def _check_square(self, source):
        """Refuse planes that cannot be turned by right angles."""
        planes = source.batch(np.arange(0))
        for name, plane in planes.items():
            if plane.ndim == 4 and plane.shape[1] != plane.shape[2]:
                msg = (
                    "augment='flips' turns images and needs square ones; the shape "
                    f"(ny, nx) of {name} is {plane.shape[1:3]}. Use 'mirrors'."
                )
                raise ValueError(msg)

    def evaluate(self, x=None, y=None, batch_size=128, **kwargs):
        """Evaluate the loss on galaxies; arguments as for `fit`."""
        if _is_source_like(x):
            dataset = BatchDataset(self._source(x), batch_size)
            return run_safely(super().evaluate, dataset, **kwargs)
        return super().evaluate(x, y, batch_size=batch_size, **kwargs)

    def predict(self, x, batch_size=256, **kwargs):
        """Give the terms of `call` for galaxies, as NumPy arrays."""
        if _is_source_like(x):
            dataset = BatchDataset(self._source(x), batch_size)
            return run_safely(super().predict, dataset, **kwargs)
        return super().predict(x, batch_size=batch_size, **kwargs)

    def _source(self, inputs):
        """Check images at the door."""
        source = as_source(inputs)
        empty = source.batch(np.arange(0))
        shape = empty["image"].shape[1:]
        if shape != self.image_shape:
            msg = (
                f"the model takes images of shape {self.image_shape} "
                f"(ny, nx, n_bands), got {shape}."
            )
            raise ValueError(msg)
        for name in sorted(self.needs - set(empty)):
            msg = f"this model needs {_NEEDS[name]}"
            raise ValueError(msg)
        if "psf" in self.needs:
            _check_psf_shape(empty["psf"].shape)
        check_preprocessing(self.preprocessing, getattr(source, "preprocessing", None))
        return source

    @property
    def needs(self):
        """Planes that images must bring, beside their pixels."""
        return set()

    def _training_source(self, inputs):
        """Check images at the door of training."""
        source = self._source(inputs)
        if "psf" in self.needs:
            _check_psf_sum(source)
        return source

    def _prepare_training(self, source):
        """Measure what must be known before the first step."""
        if not self.adapted:
            self.adapt(source)


def _check_image_shape(image_shape):
    shape = tuple(image_shape)
    if len(shape) != 3:
        msg = f"image_shape must be (ny, nx, n_bands), got {image_shape!r}."
        raise ValueError(msg)
    return tuple(check_positive_int("image_shape", size) for size in shape)


def _check_psf_shape(shape):
    """Refuse PSFs that are no images, or whose centre is no pixel."""
    if len(shape) != 4 or 0 in (size % 2 for size in shape[1:3]):
        msg = (
            "the PSFs that this model needs must have the shape (n, ky, kx, n_bands) "
            "with odd ky and kx, their centre on the middle pixel, got "
            f"{('n', *shape[1:])}. Draw them again, or shift them by half a pixel and "
            "pad them."
        )
        raise ValueError(msg)


def _check_psf_sum(source):
    """Refuse PSFs that would change the light of galaxies, by a look at a few."""
    rows = np.unique(np.linspace(0, max(len(source) - 1, 0), 32).astype(int))
    total = source.batch(rows[: len(source)])["psf"].sum(axis=(1, 2), dtype=float)
    total = total[np.isfinite(total) & (total != 0)]
    if total.size and np.abs(np.median(total) - 1) > _PSF_SUM_TOLERANCE:
        msg = (
            f"the PSFs must have the sum 1, got {np.median(total):.4g}: divide them by "
            "their sums."
        )
        raise ValueError(msg)


def _is_source_like(inputs):
    """Whether inputs are galaxies for `as_source`, not a Keras dataset."""
    return (hasattr(inputs, "batch") and hasattr(inputs, "__getitem__")) or isinstance(
        inputs, (dict, np.ndarray)
    )
