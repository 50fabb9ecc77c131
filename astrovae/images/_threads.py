# Licensed under a 3-clause BSD style license - see LICENSE
"""Several pieces of work on arrays at a time."""

import os
from concurrent.futures import ThreadPoolExecutor

__all__ = ["map_in_threads"]

# more threads wait for memory
_MAX_THREADS = 4


def _count_cpus():
    """The processors that this process may use."""
    if hasattr(os, "process_cpu_count"):  # since Python 3.13, users can set it
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(function, pieces):
    """
    Apply a function to each piece, in threads if there are several processors.

    NumPy releases the interpreter while it works on arrays, and while it reads
    files that are mapped to memory.

    Parameters
    ----------
    function : callable
        May be called from several threads at a time.
    pieces : sequence
        What it is called with.

    Yields
    ------
    result
        In the order of the pieces.
    """
    n_threads = min(_MAX_THREADS, _count_cpus(), len(pieces))
    if n_threads < 2:
        yield from map(function, pieces)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        yield from pool.map(function, pieces)
