"""Eight processes write one array and are killed at random: in the end it is the array that one process would have written."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import write_node
from spared_fm.store.recipe import Recipe
from spared_fm.store.verify import check_chunk, verify_array
from tests.store import writer
from tests.store.conftest import make_slide, record_of

WRITERS, ROWS_PER_CHUNK, DIM = 8, 2, 8
HARMLESS = {"unfinished", "unreceipted"}


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.BaseContext:
    """Processes that start in milliseconds: forked from one that has imported everything and runs no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store.writer"])
    return context


def arrays(folder: Path, recipe: Recipe, n_chunks: int) -> Callable[[str], EmbeddingArray]:
    layout = Layout.create(folder)
    adata = make_slide(n_chunks * ROWS_PER_CHUNK - 1)  # the last chunk is padded
    write_node(layout, layout.slide("s1"), adata, record_of(adata))
    return lambda key: EmbeddingArray.plan(layout, "s1", key, recipe=recipe, dim=DIM, chunk_rows=ROWS_PER_CHUNK)


def chunks(array: EmbeddingArray) -> dict[str, bytes]:
    folder = array.layout.root / array.node
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "c").rglob("*") if path.is_file()}


class Round:
    """One array, eight writers, random kills until it is finished or there were enough."""

    def __init__(
        self,
        context: multiprocessing.context.BaseContext,
        array: EmbeddingArray,
        target: Callable,
        rng: np.random.Generator,
    ) -> None:
        self.context, self.array, self.target, self.rng = context, array, target, rng
        self.kills = self.in_the_middle = 0

    def run(self, most: int, pause: float) -> None:
        crowd = [self._start() for _ in range(WRITERS)]
        try:
            if self.rng.random() < 0.8:  # else the first kills may come before anything is written
                self._wait_for_a_receipt()
            while self.kills < most and self.array.missing():
                time.sleep(self.rng.uniform(0, pause))
                i = int(self.rng.integers(WRITERS))
                alive = crowd[i].is_alive()
                if alive:
                    os.kill(crowd[i].pid, signal.SIGKILL)
                crowd[i].join()
                left = len(self.array.missing())
                if alive and crowd[i].exitcode == -signal.SIGKILL:
                    self.kills += 1
                    self.in_the_middle += 0 < left < self.array.n_chunks
                self._nothing_served_is_wrong()
                crowd[i] = self._start()
            for process in crowd:
                process.join(60)
                assert process.exitcode == 0
        finally:
            for process in crowd:
                process.kill()
                process.join()

    def _wait_for_a_receipt(self) -> None:
        deadline = time.monotonic() + 60
        while len(self.array.missing()) == self.array.n_chunks:
            assert time.monotonic() < deadline, "no writer writes"
            time.sleep(0.002)

    def _start(self) -> multiprocessing.process.BaseProcess:
        seed = int(self.rng.integers(1 << 31))
        process = self.context.Process(target=self.target, args=(str(self.array.layout.root), self.array.key, seed))
        process.start()
        return process

    def _nothing_served_is_wrong(self) -> None:
        for k in self.rng.choice(self.array.n_chunks, 4):
            problem = check_chunk(self.array, int(k))
            assert problem is None or problem.kind in HARMLESS, problem


def hammer(
    context: multiprocessing.context.BaseContext,
    folder: Path,
    recipe: Recipe,
    *,
    kills: int,
    n_chunks: int,
    pause: float,
) -> None:
    make = arrays(folder, recipe, n_chunks)
    clean = make("clean")
    for k in range(clean.n_chunks):
        clean.write_chunk(k, writer.values(clean, k), device="cpu")
    expected = chunks(clean)
    rng = np.random.default_rng(7)
    done = middle = rounds = 0
    while done < kills:
        array = make(f"round{rounds}")
        trial = Round(context, array, writer.write, rng)
        trial.run(kills - done, pause)
        done, middle, rounds = done + trial.kills, middle + trial.in_the_middle, rounds + 1
        assert array.missing() == []
        assert list(verify_array(array)) == []
        assert chunks(array) == expected
    print(f"{middle} of {done} kills fell between the first and the last receipt, in {rounds} rounds")
    assert middle >= done / 2


def test_ten_kills(server: multiprocessing.context.BaseContext, tmp_path: Path, recipe: Recipe):
    hammer(server, tmp_path / "store", recipe, kills=10, n_chunks=150, pause=0.1)


@pytest.mark.full
def test_two_hundred_kills(server: multiprocessing.context.BaseContext, tmp_path: Path, recipe: Recipe):
    hammer(server, tmp_path / "store", recipe, kills=200, n_chunks=1000, pause=0.3)


def unclaimed(
    context: multiprocessing.context.BaseContext,
    folder: Path,
    recipe: Recipe,
    *,
    kills: int,
    n_chunks: int,
    pause: float,
) -> set[int]:
    """Writers of three devices without claims: every chunk is whole, of one device, and that which its receipt says."""
    array = arrays(folder, recipe, n_chunks)("enc")
    trial = Round(context, array, writer.write_unclaimed, np.random.default_rng(3))
    trial.run(kills, pause)
    assert array.missing() == []
    assert list(verify_array(array)) == []
    devices = set()
    for k in range(array.n_chunks):
        receipt = json.loads(array.layout.files.read(f"{array.node}/receipts/{k}.json"))
        device = int(receipt["device"].split()[-1])
        devices.add(device)
        expected = writer.values(array, k, device).astype(array.dtype)
        np.testing.assert_array_equal(array.read(np.array(array.rows(k))), expected)
    return devices


def test_devices_that_disagree(server: multiprocessing.context.BaseContext, tmp_path: Path, recipe: Recipe):
    unclaimed(server, tmp_path / "store", recipe, kills=5, n_chunks=200, pause=0.1)


@pytest.mark.full
def test_devices_that_disagree_under_many_kills(
    server: multiprocessing.context.BaseContext, tmp_path: Path, recipe: Recipe
):
    devices = unclaimed(server, tmp_path / "store", recipe, kills=60, n_chunks=600, pause=0.1)
    assert len(devices) > 1, "the writers never met"  # a slow machine may let one of the quick test's writers do it all
