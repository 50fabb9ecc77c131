# Licensed under a 3-clause BSD style license - see LICENSE
"""Outputs that are complete or absent, whatever happens on the way."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["atomic_file", "atomic_folder", "check_output"]


def check_output(path, *, overwrite, marker=None):
    """
    Refuse an output that exists, or that has nowhere to go.

    A folder that is empty, or that has ``marker`` in it, may be replaced.

    Raises
    ------
    FileExistsError
        If ``path`` exists and ``overwrite`` is false.
    FileNotFoundError
        If the folder to write into does not exist.
    """
    path = Path(path)
    empty = marker and path.is_dir() and not any(path.iterdir())
    if path.exists() and not overwrite and not empty:
        msg = f"{path} exists. Give overwrite=True (--overwrite) to replace it."
        raise FileExistsError(msg)
    if marker and path.exists() and not empty and not (path / marker).exists():
        msg = f"{path} exists and has no {marker}: it is something else, and stays."
        raise FileExistsError(msg)
    if not path.parent.is_dir():
        msg = f"There is no folder {path.parent} to write {path.name} into."
        raise FileNotFoundError(msg)
    return path


@contextlib.contextmanager
def atomic_file(path, *, overwrite=False):
    """
    Write a file under a temporary name, and rename it when it is complete.

    Parameters
    ----------
    path : path-like
        The file to make.
    overwrite : bool, optional
        Replace an existing file.

    Yields
    ------
    temporary : `~pathlib.Path`
        What to write to; it has the extension of ``path``.

    Raises
    ------
    FileExistsError, FileNotFoundError
        As `check_output`.
    """
    path = check_output(path, overwrite=overwrite)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix
    )
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path, *, overwrite=False, marker):
    """
    Fill a folder under a temporary name, and rename it when it is complete.

    Parameters
    ----------
    path : path-like
        The folder to make.
    overwrite : bool, optional
        Replace an existing folder of the same kind.
    marker : str
        The file that tells such a folder: a folder without it is never
        replaced, unless it is empty.

    Yields
    ------
    temporary : `~pathlib.Path`
        The folder to fill.

    Raises
    ------
    FileExistsError, FileNotFoundError
        As `check_output`, and if ``path`` is something else.
    """
    path = check_output(path, overwrite=overwrite, marker=marker)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current
