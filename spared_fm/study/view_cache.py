"""What a running explorer keeps of a store: the things used last, as far as they fit, for many threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class Cache(Generic[T]):
    """The values used last, bounded by what they weigh. What one thread is making, others wait for.

    Parameters
    ----------
    limit
        The most that the values may weigh together; the newest one is kept whatever it weighs.
    weight
        Weight of a value, by default 1: `limit` is a number of values.
    """

    def __init__(self, limit: int, weight: Callable[[T], int] = lambda _: 1) -> None:
        self.limit, self._weight = limit, weight
        self._held: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._pending: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()
        self._total = 0
        self._cleared = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Give the value of `key`, making it where there is none; what `make` raises reaches all who wait for it."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
            pending = self._pending.get(key)
            if pending is None:
                mine = self._pending[key] = Future()
                cleared = self._cleared
        if pending is not None:
            return pending.result()
        try:
            value = make()
            weight = self._weight(value)
        except BaseException as error:
            with self._lock:
                if cleared == self._cleared:
                    del self._pending[key]
            mine.set_exception(error)
            raise
        with self._lock:
            if cleared == self._cleared:  # else it may be made of what was forgotten since
                del self._pending[key]
                self._held[key] = value, weight
                self._total += weight
                while self._total > self.limit and len(self._held) > 1:
                    _, (_, gone) = self._held.popitem(last=False)
                    self._total -= gone
        mine.set_result(value)
        return value

    def clear(self) -> None:
        """Forget all values; what is being made now is given to those who wait for it, and not kept."""
        with self._lock:
            self._held.clear()
            self._pending.clear()
            self._total = 0
            self._cleared += 1

    @property
    def total(self) -> int:
        """What the values kept weigh together."""
        return self._total
