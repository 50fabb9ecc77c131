# Licensed under a 3-clause BSD style license - see LICENSE
"""Planes of a stack that stay in their file."""

import h5py
import numpy as np

__all__ = ["FilePlane"]


def _file_version(path):
    """What changes when a file is replaced."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


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
