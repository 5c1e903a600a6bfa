"""Where the time of reading goes: seconds by stage, kept apart for each thread.

Readers are layered (patch, image, tile), and only the lowest layer knows whether it waits for a file or decodes a tile. It
says so here; who times the whole takes the tally of its own thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["stage", "taken"]

_tally = threading.local()


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time spent inside to this thread's seconds of stage ``name``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = _tally.__dict__
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def taken() -> dict[str, float]:
    """Seconds by stage of this thread since it last asked."""
    seconds = dict(_tally.__dict__)
    _tally.__dict__.clear()
    return seconds
