from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.store.layout import Layout
from spared_fm.study import matrix_kept as kept

DONE = {"status": "done", "error": None, "rows": [], "cell": {"cohort": "c"}}
FAILED = DONE | {"status": kept.FAILED, "error": "no"}
PREDICTED = {
    ("", "s/test"): np.array([[1.0, np.nan]], np.float32),
    ("patient A%2FB", "s"): np.zeros((0, 2), np.float32),
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout.create(tmp_path / "store")
    kept.declare(made, "b", {"score": "all", "cells": []})
    return made


def test_predictions_come_back_as_they_were_kept(layout: Layout):
    kept.keep(layout, "b", "one", DONE, PREDICTED)
    found = kept.predictions(layout, "b", "one")
    assert found.keys() == PREDICTED.keys()
    for key, values in PREDICTED.items():
        np.testing.assert_array_equal(found[key], values)
        assert found[key].dtype == np.float32
    assert [cell for cell, _ in kept.cells(layout, "b")] == ["one"]
    assert kept.names(layout) == ["b"]


def test_the_receipt_comes_last(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    replace = layout.files.replace
    monkeypatch.setattr(layout.files, "replace", lambda key, data: (written.append(key), replace(key, data)))
    kept.keep(layout, "b", "one", DONE, PREDICTED)
    assert written == ["benchmarks/b/one.safetensors", "benchmarks/b/one.json"]


def test_what_is_damaged_is_named_with_its_mend(layout: Layout):
    kept.keep(layout, "b", "one", DONE, PREDICTED)
    path = Path(str(layout.root)) / "benchmarks/b/one.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"one.safetensors does not match its receipt; remove one.json"):
        kept.predictions(layout, "b", "one")
    path.unlink()
    with pytest.raises(InputError, match=r"one.safetensors is gone; remove one.json"):
        kept.predictions(layout, "b", "one")
    path.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match=r"one.json is damaged"):
        kept.receipt(layout, "b", "one")
    with pytest.raises(InputError, match="cell two of benchmark 'b' has no predictions"):
        kept.predictions(layout, "b", "two")
    with pytest.raises(InputError, match=r"no benchmark 'x' \(benchmarks: b\)"):
        kept.declared(layout, "x")


def test_other_formats_are_run_again(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    kept.keep(layout, "b", "one", DONE, PREDICTED)
    monkeypatch.setattr(kept, "FORMAT", kept.FORMAT + 1)
    assert kept.receipt(layout, "b", "one") is None
    with pytest.raises(InputError, match="run it again"):
        kept.declared(layout, "b")


@pytest.mark.parametrize(
    ("ours", "theirs", "copied"),
    [(None, DONE, True), (FAILED, DONE, True), (DONE, DONE, False), (None, FAILED, False), (None, None, False)],
)
def test_results_are_copied_where_there_are_none(
    layout: Layout, tmp_path: Path, ours: dict[str, Any] | None, theirs: dict[str, Any] | None, copied: bool
):
    other = Layout.create(tmp_path / "other")
    for store, record, number in ((layout, ours, 1.0), (other, theirs, 2.0)):
        if record is not None:
            predicted = {("", "s"): np.full((1, 1), number, np.float32)} if record is DONE else None
            kept.keep(store, "b", "one", record, predicted)
    assert kept.copy(layout, other, "b", "one") == copied
    if copied:
        assert kept.predictions(layout, "b", "one")["", "s"] == 2.0
