"""Fifty clients at a time over 10⁵ patches; the server is a process of its own.

The bar, 95 % of the answers within 300 ms, is for two quiet cores. Where others use them too, it is stretched by as much as a
matrix product of fifty queries takes longer than on those; what was measured is printed.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explore.big_store import KEY, build
from tests.explore.clients import search_load

CLIENTS, SECONDS, P95_S = 50, 60.0, 0.3
PRODUCT_S = 0.03  # of fifty queries with all vectors, on the two quiet cores that the bar is for
ROUNDS = 2  # the machine may have had other work in the first
SLIDES, SPOTS, DIM = 20, 5_000, 384


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    store = build(tmp_path / "store", slides=SLIDES, spots=SPOTS, dim=DIM)
    command = [sys.executable, "-m", "spared_fm", "explore", "--store", str(store), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # closes the pipe
        try:
            assert server.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", server.stdout.readline())
            assert found is not None
            yield int(found[1])
        finally:
            server.terminate()
            server.wait(timeout=20)


def slowness() -> float:
    """How much longer than on quiet cores the arithmetic of a search takes now; 1 where it takes less."""
    rows, queries = np.ones((SLIDES * SPOTS, DIM), np.float32), np.ones((DIM, CLIENTS), np.float32)
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        np.matmul(rows, queries)
        taken.append(time.perf_counter() - start)
    return max(1.0, float(np.median(taken)) / PRODUCT_S)


@pytest.mark.full
def test_fifty_clients_are_answered_in_time(port: int) -> None:
    chance = random.Random(0)

    def body() -> dict[str, Any]:
        spot = f"s{chance.randrange(SLIDES):02d}/b{chance.randrange(SPOTS):05d}-1"
        more: list[dict[str, Any]] = [{}, {"exclude": "slide"}, {"exclude": "patient", "columns": ["cluster"]}]
        return {"encoder": KEY, "spots": [spot], "k": 10, **chance.choice(more)}

    search_load(port, clients=4, seconds=10, body=body)  # what is read once
    slow = []
    for _ in range(ROUNDS):
        seen = search_load(port, clients=CLIENTS, seconds=SECONDS, body=body)
        assert {status for status, _ in seen} == {200}
        p50, p95 = np.percentile([took for _, took in seen], [50, 95])
        stretch = slowness()
        print(
            f"{len(seen)} answers in {SECONDS:g} s, p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms, "
            f"arithmetic {stretch:.2f} times as slow as on quiet cores"
        )
        slow.append(p95 / stretch)
        if slow[-1] <= P95_S:
            break
    assert min(slow) <= P95_S
