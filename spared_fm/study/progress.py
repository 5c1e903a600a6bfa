"""Progress on standard error, shown once something takes longer than two seconds."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before a bar appears."""


@contextlib.contextmanager
def bar(description: str, total: int, unit: str, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with a rate; gives the function that advances it.

    Parameters
    ----------
    description
        What is going on.
    total
        Units to do.
    unit
        Name of the unit, for the rate (``patches``).
    show
        False hides the bar.
    """
    console = Console(stderr=True)
    show = show and console.is_terminal  # in a log file a bar is noise
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not show,
        transient=True,
    )
    task = progress.add_task(description, total=total, rate="")
    started = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        elapsed = time.monotonic() - started
        if show and elapsed > PATIENCE and not progress.live.is_started:
            progress.start()
        progress.update(task, advance=amount, rate=f"{done / max(elapsed, 1e-9):,.1f} {unit}/s")

    try:
        yield advance
    finally:
        progress.stop()


def track(items: Iterable[T], description: str, total: int, unit: str, *, show: bool = True) -> Iterator[T]:
    """Iterate with a progress bar."""
    with bar(description, total, unit, show=show) as advance:
        for item in items:
            yield item
            advance(1)
