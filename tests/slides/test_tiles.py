from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.slides.tiles import TileCache


def tile(value: int, size: int = 100) -> np.ndarray:
    return np.full(size, value, np.uint8)


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 9), max_size=60), limit=st.integers(0, 450))
def test_the_most_recent_tiles_that_fit_are_kept(keys: list[int], limit: int) -> None:
    cache, kept = TileCache(limit), []
    for key in keys:
        decoded: list[int] = []
        found = cache.get(key, lambda key=key, decoded=decoded: (decoded.append(key), tile(key))[1])
        assert found is not None
        assert found[0] == key
        assert decoded == ([] if key in kept else [key])
        kept = [*(k for k in kept if k != key), key]
        kept = kept[-(limit // 100) :] if limit >= 100 else []
        assert cache.nbytes == 100 * len(kept)


def test_a_tile_is_decoded_once_however_many_threads_want_it() -> None:
    cache, calls, gate = TileCache(), [], threading.Event()

    def decode() -> np.ndarray:
        calls.append(1)
        assert gate.wait(10)
        return tile(7)

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.get, "a", decode) for _ in range(8)]
        gate.set()
        tiles = [future.result() for future in found]
    assert len(calls) == 1
    assert all(t is tiles[0] for t in tiles)
    assert not tiles[0].flags.writeable


def test_threads_decode_different_tiles_at_the_same_time() -> None:
    cache, both = TileCache(), threading.Barrier(2, timeout=10)  # breaks unless two are inside at once
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(cache.get, key, lambda key=key: (both.wait(), tile(key))[1]) for key in (1, 2)]
        assert [int(future.result()[0]) for future in found] == [1, 2]


def test_a_failure_reaches_all_who_wait_and_is_tried_again() -> None:
    cache, gate, waiting = TileCache(), threading.Event(), threading.Event()

    def fail() -> np.ndarray:
        waiting.set()
        assert gate.wait(10)
        raise OSError("disk")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", fail)
        assert waiting.wait(10)
        second = pool.submit(cache.get, "a", fail)
        gate.set()
        for future in (first, second):
            with pytest.raises(OSError, match="disk"):
                future.result()
    assert cache.get("a", lambda: tile(3))[0] == 3


def test_what_is_missing_or_too_large_is_not_kept() -> None:
    cache = TileCache(50)
    assert cache.get("a", lambda: None) is None
    assert cache.get("b", lambda: tile(1)).nbytes == 100
    assert cache.nbytes == 0


def test_clear_forgets_also_what_is_being_decoded() -> None:
    cache = TileCache()
    cache.get("a", lambda: tile(1))
    found = cache.get("b", lambda: (cache.clear(), tile(2))[1])
    assert found[0] == 2
    assert cache.nbytes == 0
    assert cache.get("b", lambda: tile(4))[0] == 4
