# Licensed under a 3-clause BSD style license - see LICENSE
"""
Sources of galaxies: what can be read batch by batch.

A *source* is anything with ``len(source)`` and ``source.batch(indices)``, a dict
of arrays: a `~astrovae.images.CutoutStack`, or `Arrays` around plain arrays.
"""

import functools
import importlib

import numpy as np

from astrovae._validation import check_positive_int, clean_batch

__all__ = ["Arrays", "EvenlySpaced", "as_source", "make_stack", "makes_stacks"]

_stack_classes = []


class Arrays:
    """
    A source of batches over arrays in memory.

    Parameters
    ----------
    arrays : dict of array_like
        Arrays of equal length; a single ``psf`` is that of all images.
    clean : bool, optional
        Whether the arrays are images, to be passed through
        `clean_batch`.
    """

    def __init__(self, arrays, *, clean=True):
        self.arrays = {
            name: np.asarray(array)
            for name, array in arrays.items()
            if array is not None
        }
        self.clean = clean
        psf = self.arrays.get("psf")
        if psf is not None and "image" in self.arrays and len(psf) == 1:
            n = len(self.arrays["image"])
            self.arrays["psf"] = np.broadcast_to(psf, (n, *psf.shape[1:]))
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            msg = f"arrays must be of equal length, got {lengths}."
            raise ValueError(msg)
        self._length = next(iter(lengths.values()))

    def __len__(self):
        return self._length

    @functools.cached_property
    def complete(self):
        """Whether every pixel of every image counts; it takes a look at each."""
        return self.clean and not any(
            self.batch(slice(start, start + 1024))["mask"].any()
            for start in range(0, len(self), 1024)
        )

    def batch(self, indices):
        """Read the rows ``indices`` of every array."""
        batch = {name: array[indices] for name, array in self.arrays.items()}
        return clean_batch(batch) if self.clean else batch


def as_source(inputs):
    """
    Make a source of batches from a stack, an array of images or a dict.

    Raises
    ------
    TypeError
        If ``inputs`` is none of these.
    """
    if hasattr(inputs, "batch") and hasattr(inputs, "__len__"):
        return inputs
    if isinstance(inputs, dict):
        if "image" not in inputs:
            msg = f"a dict of inputs must have the key 'image', got {list(inputs)}."
            raise ValueError(msg)
        return Arrays(inputs)
    array = inputs if hasattr(inputs, "dtype") else None
    if array is None or np.ndim(array) not in (3, 4):
        msg = (
            "expected a CutoutStack, a dict with 'image', or an array of images of "
            f"shape (n, ny, nx, n_bands), got {type(inputs).__name__}"
            f"{'' if array is None else f' of shape {np.shape(array)}'}."
        )
        raise TypeError(msg)
    return Arrays({"image": array})


class EvenlySpaced:
    """
    Some rows of a source, from the first to the last.

    Parameters
    ----------
    inputs : source of batches, or what `as_source` makes one of
        The galaxies.
    max_galaxies : int
        Use at most this many.
    """

    def __init__(self, inputs, max_galaxies):
        self.source = as_source(inputs)
        check_positive_int("max_galaxies", max_galaxies)
        number = min(max_galaxies, len(self.source))
        self.rows = np.linspace(0, len(self.source) - 1, number).astype(int)

    def __len__(self):
        return len(self.rows)

    def batch(self, indices):
        """Read the rows ``indices`` of those chosen."""
        return self.source.batch(self.rows[indices])


def makes_stacks(cls):
    """Let a class be the one that `make_stack` makes; a decorator."""
    _stack_classes[:] = [cls]
    return cls


def make_stack(data, **attributes):
    """
    Make a stack of cutouts of what a model has painted.

    Models know stacks by what they do, and never import them: the class that
    makes them says so itself, with `makes_stacks`.

    Parameters
    ----------
    data : array_like, shape (n, ny, nx, n_bands)
        The pixels.
    **attributes
        Arguments of `~astrovae.images.CutoutStack`.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        The stack.
    """
    if not _stack_classes:
        importlib.import_module("astrovae.images")
    return _stack_classes[0](data, **attributes)
