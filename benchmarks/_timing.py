# Licensed under a 3-clause BSD style license - see LICENSE
"""
Time functions side by side.

The functions take turns, so that whatever else the machine does slows all of
them alike: quote the ratios.
"""

import json
import time
from pathlib import Path

import numpy as np

__all__ = ["interleaved", "ratio", "report"]


def interleaved(functions, *, repeats):
    """
    Run functions in turns.

    Parameters
    ----------
    functions : dict of callable
        What to time. Each is called once before, to compile.
    repeats : int
        How many turns.

    Returns
    -------
    dict of `~numpy.ndarray`
        Seconds of each turn.
    """
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def ratio(times, slow, fast):
    """Median over the turns of the ratio of two times; None if one is missing."""
    if slow not in times or fast not in times:
        return None
    return float(np.median(times[slow] / times[fast]))


def report(rows, results, json_path):
    """
    Print a table and the results, and write the results.

    Parameters
    ----------
    rows : list of tuple
        (name, seconds of each turn, items per turn).
    results : dict
        A flat object.
    json_path : str or None
        Where to write it.
    """
    print(f"{'':28}{'median ms':>12}{'best ms':>12}{'per second':>14}")
    for name, seconds, items in rows:
        median, best = np.median(seconds), seconds.min()
        print(f"{name:28}{1e3 * median:12.2f}{1e3 * best:12.2f}{items / median:14,.0f}")
    for key, value in results.items():
        text = f"{value:.3g}" if isinstance(value, float) else value
        print(f"{key:28}{text!s:>12}")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(results, indent=2) + "\n", "utf-8")
