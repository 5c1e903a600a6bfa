"""Progress on standard error, shown once something takes longer than two seconds."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

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
    started = time.monotonic()
    done = 0
    with _line(description, show) as update:

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            update(done, total, f"{done / max(time.monotonic() - started, 1e-9):,.1f} {unit}/s")

        yield advance


@contextlib.contextmanager
def steps(description: str, *, show: bool = True) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """Show a progress bar with the latest figures of something iterative; gives the function that is told of each step.

    Parameters
    ----------
    description
        What is going on.
    show
        False hides the bar.

    Yields
    ------
    Callable
        Takes the step, the steps in all, and figures by name, such as the loss.
    """
    with _line(description, show) as update:

        def step(number: int, of: int, figures: Mapping[str, float]) -> None:
            update(number, of, "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

        yield step


@contextlib.contextmanager
def _line(description: str, show: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Draw a bar once it has been there for ``PATIENCE``; gives the function that sets what is done, of how much, and words."""
    console = Console(stderr=True)
    show = show and console.is_terminal  # in a log file a bar is noise
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not show,
        transient=True,
    )
    task = progress.add_task(description, total=None, words="")
    started = time.monotonic()

    def update(done: int, total: int, words: str) -> None:
        if show and time.monotonic() - started > PATIENCE and not progress.live.is_started:
            progress.start()
        progress.update(task, completed=done, total=total, words=words)

    try:
        yield update
    finally:
        progress.stop()


def track(items: Iterable[T], description: str, total: int, unit: str, *, show: bool = True) -> Iterator[T]:
    """Iterate with a progress bar."""
    with bar(description, total, unit, show=show) as advance:
        for item in items:
            yield item
            advance(1)
