"""Rows of a search, shared by threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spared_fm.store.layout import Layout
from spared_fm.study import index_table
from spared_fm.study.index_table import Rows

SLIDES = 60


class Opened:
    """Stands for the embeddings of a slide."""

    n_chunks = 2

    def __init__(self, layout: Layout, slide: str, key: str) -> None:
        self.slide = slide

    def check_current(self) -> None:
        pass


@pytest.fixture
def hasty() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_threads_share_arrays_that_are_opened_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_table, "EmbeddingArray", Opened)
    monkeypatch.setattr(index_table, "MAPPED_CHUNKS", 2 * 2 * SLIDES // 2)  # half of them fit
    rows = Rows(Layout.create(tmp_path / "store"), "k", {f"s{number}": number for number in range(SLIDES)})

    def open_some(seed: int) -> bool:
        wanted = np.random.default_rng(seed).integers(SLIDES, size=3000).tolist()
        return all(rows.array(number).slide == f"s{number}" for number in wanted)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(open_some, range(8)))
