from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spared_fm.store import claims
from spared_fm.store.claims import acquire, hold
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.files import LocalFiles
from spared_fm.store.layout import Layout
from spared_fm.store.recipe import Recipe
from tests.store.writer import turns

FOLDER = "claims-here"


@pytest.fixture
def array(make_store: Callable[..., Layout], recipe: Recipe) -> EmbeddingArray:
    return EmbeddingArray.plan(make_store(), "s1", "enc", recipe=recipe, dim=4, chunk_rows=2)


def write(array: EmbeddingArray, k: int) -> None:
    array.write_chunk(k, np.full((len(array.rows(k)), 4), k, np.float32), device="cpu")


def test_one_holder_at_a_time(array: EmbeddingArray):
    with hold(array, 0) as first, hold(array, 0) as second, hold(array, 1) as other:
        assert (first, second, other) == (True, False, True)
    with hold(array, 0) as again:
        assert again
    assert array.layout.files.list(f"{array.node}/claims") == []


def test_a_finished_chunk_is_not_held(array: EmbeddingArray):
    write(array, 0)
    with hold(array, 0) as held:
        assert not held


def test_an_error_inside_releases(array: EmbeddingArray):
    with pytest.raises(KeyError), hold(array, 0):
        raise KeyError
    with hold(array, 0) as held:
        assert held


def test_a_receipt_that_came_between_look_and_claim(array: EmbeddingArray, monkeypatch: pytest.MonkeyPatch):
    def late(*arguments: object) -> object:
        write(array, 0)
        return acquire(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(claims, "acquire", late)
    with hold(array, 0) as held:
        assert not held


def test_the_lease_of_a_silent_owner_is_taken_over_once(array: EmbeddingArray):
    files = array.layout.files
    silent = acquire(files, FOLDER, "0", 0.05)
    assert silent is not None
    assert acquire(files, FOLDER, "0") is None
    time.sleep(0.1)
    barrier = threading.Barrier(8)

    def take(_: int) -> claims.Claim | None:
        barrier.wait()
        return acquire(files, FOLDER, "0")

    with ThreadPoolExecutor(8) as pool:
        takers = [claim for claim in pool.map(take, range(8)) if claim is not None]
    assert [claim.generation for claim in takers] == [1]
    assert not silent.renew(), "the old owner learns that it was taken for dead"
    takers[0].release()
    assert files.list(FOLDER) == []


def test_the_heartbeat_keeps_a_claim(array: EmbeddingArray):
    with hold(array, 0, lease_s=1.0):
        time.sleep(2.5)
        with hold(array, 0) as second:
            assert not second


def test_the_heart_survives_a_disk_that_refuses(array: EmbeddingArray, monkeypatch: pytest.MonkeyPatch):
    refused = threading.Event()

    def refuse(claim: claims.Claim) -> bool:
        refused.set()
        raise OSError("disk full")

    with hold(array, 0, lease_s=0.2):
        monkeypatch.setattr(claims.Claim, "renew", refuse)
        assert refused.wait(5)
        monkeypatch.undo()
        time.sleep(0.2)  # by now the claim would be over
        deadline = time.monotonic() + 20
        while claims.is_over(claims.read_claim(array.layout.files, f"{array.node}/claims/0.0.json")):
            assert time.monotonic() < deadline, "the heart stopped"
            time.sleep(0.01)


def test_a_released_claim_is_not_renewed(array: EmbeddingArray):
    claim = acquire(array.layout.files, FOLDER, "0")
    assert claim is not None
    claim.release()
    assert not claim.renew()
    assert array.layout.files.list(FOLDER) == []


def test_a_dead_process_of_this_machine_needs_no_waiting(tmp_path: Path):
    code = (
        "import os, pathlib, sys; from spared_fm.store.files import LocalFiles; from spared_fm.store.claims import acquire;"
        f"acquire(LocalFiles(pathlib.Path(sys.argv[1])), {FOLDER!r}, '0', 3600); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    files = LocalFiles(tmp_path)
    assert files.list(FOLDER) == ["0.0.json"]
    taken = acquire(files, FOLDER, "0")
    assert taken is not None
    assert taken.generation == 1


def test_an_owner_on_another_machine_is_judged_by_its_lease_alone(array: EmbeddingArray):
    files = array.layout.files
    claim = {"owner": "x", "host": "elsewhere", "pid": 2**22 + 1, "expires": time.time() + 60}
    files.put_if_absent(f"{FOLDER}/0.0.json", json.dumps(claim).encode())
    assert acquire(files, FOLDER, "0") is None
    files.replace(f"{FOLDER}/0.0.json", json.dumps({**claim, "expires": time.time() - 1}).encode())
    assert acquire(files, FOLDER, "0") is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"expires": "soon"}'])
def test_a_damaged_claim_holds_nobody_up(array: EmbeddingArray, content: bytes):
    array.layout.files.put_if_absent(f"{FOLDER}/0.0.json", content)
    assert acquire(array.layout.files, FOLDER, "0") is not None


def test_a_forked_child_has_a_heart_of_its_own(array: EmbeddingArray):
    with hold(array, 0, lease_s=0.3):
        before = claims._heart
        claims._new_heart()
        assert claims._heart is not before
        assert not claims._heart._due
        claims._heart = before


def test_turns_share_the_chunks(array: EmbeddingArray):
    done: list[int] = []

    def work(_: int) -> None:
        mine = EmbeddingArray(array.layout, "s1", "enc")
        for k in turns(mine, range(mine.n_chunks), poll_s=0.01):
            time.sleep(0.01)
            write(mine, k)
            done.append(k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(done) == list(range(array.n_chunks)), "each chunk once"
    assert array.missing() == []
    assert array.layout.files.list(f"{array.node}/claims") == []


def test_turns_wait_for_a_dead_writers_chunk(array: EmbeddingArray):
    folder = f"{array.node}/claims"
    claim = {"owner": "x", "host": "elsewhere", "pid": os.getpid(), "expires": time.time() + 1.5}
    array.layout.files.put_if_absent(f"{folder}/1.0.json", json.dumps(claim).encode())
    order = []
    for k in turns(array, range(3), poll_s=0.02):
        order.append(k)
        write(array, k)
    assert order == [0, 2, 1]


def test_claims_of_different_generations_do_not_hold_together(tmp_path: Path):
    files = LocalFiles(tmp_path)
    assert acquire(files, FOLDER, "0", lease_s=-1)
    held: list[claims.Claim | None] = []

    class Slow(LocalFiles):
        """Between its look and its claim, one writer takes the dead claim over and releases it, and another one claims."""

        def put_if_absent(self, key: str, data: bytes) -> bool:
            if not held:
                taken = acquire(files, FOLDER, "0")
                assert taken is not None
                taken.release()
                held.append(acquire(files, FOLDER, "0"))
            return super().put_if_absent(key, data)

    assert acquire(Slow(tmp_path), FOLDER, "0") is None
    [claim] = held
    assert claim is not None
    assert claim.renew()
