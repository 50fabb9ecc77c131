# Licensed under a 3-clause BSD style license - see LICENSE
"""Pixels that stay in their file until they are asked for."""

import contextlib
import warnings

import h5py
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

__all__ = ["FilePlane", "FileSection", "read_column"]


def _file_version(path):
    """What changes when a file is replaced."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_column(dataset):
    """A small dataset, in memory; text as strings of fixed length."""
    if dataset.dtype.kind == "O":
        return dataset.asstr()[()].astype(str)
    return dataset[()]


class FilePlane:
    """Rows of an array in an HDF5 file, read where they are indexed."""

    def __init__(self, path, name, shape, dtype, rows=None, version=None):
        self.path, self.name = path, name
        self.version = version or _file_version(path)
        self.rows = np.arange(shape[0]) if rows is None else rows
        self.shape, self.dtype = (len(self.rows), *shape[1:]), dtype
        self.ndim = len(shape)

    def __len__(self):
        return self.shape[0]

    def select(self, rows):
        """Choose rows without reading them."""
        return FilePlane(
            self.path,
            self.name,
            self.shape,
            self.dtype,
            self.rows[rows],
            self.version,
        )

    def __getitem__(self, index):
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            first, rest = slice(None), [Ellipsis, *rest]
        rows = self.rows[first]
        # h5py wants increasing, unique indices
        unique, inverse = np.unique(rows, return_inverse=True)
        if _file_version(self.path) != self.version:
            msg = f"{self.path} was replaced since it was opened: read it again."
            raise OSError(msg)
        with h5py.File(self.path, "r") as file:
            dataset = file[self.name]
            if len(unique) and unique[-1] - unique[0] + 1 == len(unique):
                values = dataset[unique[0] : unique[-1] + 1]
            else:
                values = dataset[unique]
        return values[inverse.reshape(np.shape(rows))][
            (slice(None),) * np.ndim(rows) + tuple(rest)
        ]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype=dtype)


class FileSection:
    """
    An image in a FITS file that is compressed in tiles, or scaled.

    What is asked for is read, decompressed and scaled, and nothing else.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file.
    hdu : int
        Number of the HDU.
    shape : tuple of int
        Of the stored image.
    dtype : `~numpy.dtype`
        Of the pixels as they are given out.
    fixed : dict of int to int, optional
        Axes of the stored image that are held at one index.
    version : tuple, optional
        The file as it was when it was opened.
    """

    def __init__(self, path, hdu, shape, dtype, fixed=None, version=None):
        self.path, self.hdu, self.stored_shape = path, hdu, tuple(shape)
        self.dtype, self.fixed = np.dtype(dtype), dict(fixed or {})
        self.version = version or _file_version(path)
        self.axes = [axis for axis in range(len(shape)) if axis not in self.fixed]
        self.shape = tuple(shape[axis] for axis in self.axes)
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

    def __len__(self):
        return self.shape[0]

    def hold(self, axis, index):
        """The image at one index of an axis."""
        fixed = self.fixed | {self.axes[axis]: index}
        return FileSection(
            self.path, self.hdu, self.stored_shape, self.dtype, fixed, self.version
        )

    @contextlib.contextmanager
    def open(self):
        """Give a function that reads what a tuple of slices selects."""
        if _file_version(self.path) != self.version:
            msg = f"{self.path} was replaced since it was opened: read it again."
            raise OSError(msg)
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore", AstropyUserWarning)
            with self._blame():
                hdus = stack.enter_context(fits.open(self.path, memmap=False))
                section = hdus[self.hdu].section

            def read(slices):
                index = dict(zip(self.axes, slices, strict=True)) | self.fixed
                index = tuple(index[axis] for axis in range(len(self.stored_shape)))
                with self._blame():
                    return np.asarray(section[index])

            yield read

    @contextlib.contextmanager
    def _blame(self):
        """Name the file in whatever goes wrong: decompression fails in many ways."""
        try:
            yield
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            msg = f"{self.path} is damaged: {reason.splitlines()[0]}."
            raise OSError(msg) from error

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(one, slice) for one in index):
            return np.asarray(self)[index]
        index += (slice(None),) * (self.ndim - len(index))
        with self.open() as read:
            return read(index)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype=dtype)
