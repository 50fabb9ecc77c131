# Licensed under a 3-clause BSD style license - see LICENSE
"""One progress display for all long work."""

import contextlib

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(description, total, *, show):
    """
    Show how far a piece of work is.

    Parameters
    ----------
    description : str
        What is being done, e.g. "Encoding".
    total : int
        The number of steps, e.g. galaxies.
    show : bool
        Whether to show anything.

    Yields
    ------
    advance : callable
        ``advance(n, note="")`` says that ``n`` more steps are done.
    """
    if not show:
        yield lambda n=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(n=1, note=""):
            progress.update(task, advance=n, note=note)

        yield advance
