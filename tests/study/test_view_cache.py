from __future__ import annotations

import threading
import time

import pytest

from spared_fm.study.view_cache import Cache


def test_the_oldest_go_when_the_rest_weighs_too_much() -> None:
    cache: Cache[bytes] = Cache(10, len)
    made: list[str] = []

    def make(key: str, size: int) -> bytes:
        made.append(key)
        return b"." * size

    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4)):
        assert len(cache.get(key, lambda key=key, size=size: make(key, size))) == size
    assert cache.total == 8
    cache.get("a", lambda: make("a", 4))
    cache.get("b", lambda: make("b", 4))  # it was the oldest when c came
    assert made == ["a", "b", "c", "b"]
    assert len(cache.get("large", lambda: make("large", 99))) == 99
    assert cache.total == 99
    cache.clear()
    assert cache.total == 0


def test_many_threads_make_a_value_once() -> None:
    cache: Cache[int] = Cache(5)
    calls: list[int] = []
    found: list[int] = []

    def slow() -> int:
        calls.append(1)
        time.sleep(0.05)
        return 7

    threads = [threading.Thread(target=lambda: found.append(cache.get("x", slow))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, calls) == ([7] * 8, [1])


def test_a_failure_is_not_kept() -> None:
    cache: Cache[int] = Cache(5)

    def fail() -> int:
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        cache.get("x", fail)
    assert cache.get("x", lambda: 3) == 3


def test_what_is_made_while_all_is_forgotten_is_not_kept() -> None:
    cache: Cache[str] = Cache(5)

    def overtaken() -> str:
        cache.clear()
        return "old"

    assert cache.get("x", overtaken) == "old"
    assert cache.get("x", lambda: "new") == "new"

    def overtaken_twice() -> str:
        cache.clear()
        assert cache.get("y", lambda: "new") == "new"  # who comes later doesn't wait for the old one
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        cache.get("y", overtaken_twice)
    assert cache.get("y", lambda: "newer") == "new"


def test_a_value_that_cannot_be_weighed_keeps_nobody_waiting() -> None:
    cache: Cache[bytes] = Cache(5, lambda _: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.get("x", lambda: b"")
