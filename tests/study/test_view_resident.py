from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.study.index_table import Kept, ids_of
from spared_fm.study.search_engine import Exact
from spared_fm.study.view_resident import Resident


class Table:
    """Rows as a search sees them, from arrays."""

    scale = None

    def __init__(self, parts: dict[int, np.ndarray]) -> None:
        self.parts = parts

    def array(self, number: int) -> np.ndarray:
        return self.parts[number]

    def blocks(self, kept: Kept) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, mask in kept.masks.items():
            rows = np.arange(len(self.parts[number])) if mask is None else np.flatnonzero(mask)
            for start in range(0, len(rows), 50):
                yield ids_of(number, rows[start : start + 50]), self.parts[number][rows[start : start + 50]]

    def kept(self, masks: dict[int, np.ndarray | None]) -> Kept:
        return Kept(masks, {number: len(values) for number, values in self.parts.items()})


def tables(seed: int, coarse: bool) -> Table:
    rng = np.random.default_rng(seed)
    parts = {}
    for number in (0, 3, 7):
        values = rng.standard_normal((int(rng.integers(1, 300)), 8))
        if coarse:
            values = np.rint(values)  # many twins and zeros
        values = values.astype(np.float16)
        values[rng.random(len(values)) < 0.05] = np.nan  # absent
        parts[number] = values
    return Table(parts)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), coarse=st.booleans(), k=st.integers(1, 40))
def test_it_answers_as_looking_at_every_row_does(seed: int, coarse: bool, k: int) -> None:
    table = tables(seed, coarse)
    rng = np.random.default_rng(seed + 1)
    whole = table.kept(dict.fromkeys(table.parts))
    resident, exact = Resident(table, whole), Exact(table, "cosine")  # type: ignore[arg-type]
    queries = rng.standard_normal((3, 8)).astype(np.float32)
    if coarse:
        queries = np.rint(queries)
    mask = rng.random(len(table.parts[3])) < 0.3
    for kept in (whole, whole.without([0]), table.kept({0: None, 3: mask})):
        want = min(k, len(kept))
        if want:
            expected, found = exact.nearest(queries, want, kept), resident.nearest(queries, want, kept)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_many_threads_get_their_own_answers() -> None:
    table = tables(5, coarse=False)
    whole = table.kept(dict.fromkeys(table.parts))
    resident = Resident(table, whole)  # type: ignore[arg-type]
    queries = np.random.default_rng(6).standard_normal((24, 8)).astype(np.float32)
    expected = [resident.nearest(query[None], 5, whole) for query in queries]
    wrong: list[int] = []
    start = threading.Barrier(len(queries))

    def ask(i: int) -> None:
        start.wait()
        for _ in range(20):
            ids, similarity = resident.nearest(queries[i][None], 5, whole)
            if not (np.array_equal(ids, expected[i][0]) and np.array_equal(similarity, expected[i][1])):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_a_failure_reaches_who_asked_and_the_next_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables(5, coarse=False)
    whole = table.kept(dict.fromkeys(table.parts))
    resident = Resident(table, whole)  # type: ignore[arg-type]
    query = np.ones((1, 8), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr("spared_fm.study.view_resident.similarities", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            resident.nearest(query, 2, whole)
    assert (resident.nearest(query, 2, whole)[0] >= 0).all()


def test_too_little_memory_for_the_answer_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables(5, coarse=False)
    whole = table.kept(dict.fromkeys(table.parts))
    resident = Resident(table, whole)  # type: ignore[arg-type]
    query = np.ones((1, 8), np.float32)

    def full(*_: object) -> np.ndarray:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("spared_fm.study.view_resident.np.full", full)
        with pytest.raises(MemoryError):
            resident.nearest(query, 2, whole)
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(resident.nearest(query, 2, whole)[0]), daemon=True)
    thread.start()
    thread.join(10)
    assert len(found) == 1
