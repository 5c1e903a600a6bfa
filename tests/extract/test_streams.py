from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from spared_fm.extract.streams import ahead, pool, spread


def test_a_pool_is_shared_and_sets_torchs_threads():
    assert pool(2, 1) is pool(2, 1) is not pool(3, 1)
    assert pool(2, 1).submit(torch.get_num_threads).result() == 1


def test_the_setting_holds_although_others_change_it():
    before = torch.get_num_threads()
    try:
        assert pool(2, 1).submit(torch.get_num_threads).result() == 1
        torch.set_num_threads(2)
        assert [pool(2, 1).submit(_product).result() for _ in range(4)] == [_one_thread()] * 4
    finally:
        torch.set_num_threads(before)


def _product() -> bytes:
    x = torch.randn(257, 2049, generator=torch.Generator().manual_seed(0))
    return (x @ x.T).numpy().tobytes()


def _one_thread() -> bytes:
    torch.set_num_threads(1)
    try:
        return _product()
    finally:
        torch.set_num_threads(2)


def test_spread_does_everything_side_by_side():
    barrier = threading.Barrier(2, timeout=10)
    done = np.zeros(8, dtype=int)

    def work(i: int) -> None:
        barrier.wait()
        done[i] += 1

    spread(pool(2, 1), work, range(8))
    assert (done == 1).all()


def test_spread_raises_the_error_after_all_running_work_has_ended():
    running = []

    def work(i: int) -> None:
        if i == 0:
            raise ValueError("first")
        running.append(i)
        time.sleep(0.05)
        running.remove(i)

    with pytest.raises(ValueError, match="first"):
        spread(pool(2, 1), work, range(50))
    assert running == []


@pytest.mark.parametrize("depth", [1, 3])
def test_ahead_keeps_order_and_bounds_what_is_prepared(depth: int):
    prepared: list[int] = []
    consumed: list[int] = []
    most = 0

    def prepare(i: int) -> int:
        prepared.append(i)
        return i * i

    def consume(i: int, value: int) -> None:
        nonlocal most
        assert value == i * i
        most = max(most, len(prepared) - len(consumed))
        consumed.append(i)

    waited = ahead(pool(2, 1), prepare, consume, range(20), depth=depth)
    assert consumed == list(range(20))
    assert most <= depth
    assert waited >= 0


def test_ahead_measures_the_wait_and_raises_errors():
    assert ahead(pool(1, 1), lambda _: time.sleep(0.05), lambda i, v: None, range(3), depth=1) > 0.1

    def fail(i: int) -> None:
        raise ValueError(str(i))

    with pytest.raises(ValueError, match="0"):
        ahead(pool(2, 1), fail, lambda i, v: None, range(9), depth=4)
