from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.store.claims import acquire
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study.api import Study
from spared_fm.study.gc import gc
from spared_fm.study.verify import verify

KEY = "stain-bank"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def put(study: Study, key: str, *, hours: float, data: bytes = b"12345") -> None:
    path = study.layout.files.path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def test_a_clean_store_has_no_garbage(study: Study):
    assert gc(study.layout, older_than=0, orphans=True, dry_run=True) == []


def test_leftovers_go_by_age_and_data_stays(copy: Callable[[], Study]):
    study = copy()
    before = files(study.layout.root)
    node = study.layout.embedding(study.slides[0], KEY)
    for hours, tag in ((48, "old"), (1, "new")):
        put(study, f".staging/{tag}-file", hours=hours)
        put(study, f".staging/{tag}-tree/node/zarr.json", hours=hours)
        put(study, f"{node}/c/0/0.{tag}.partial", hours=hours)
        put(study, f"heads/c/.run.{tag}.partial/card.json", hours=hours)
        put(study, f"{node}/claims/0.{tag}.intent", hours=hours)
        put(study, f"{node}/claims/0.{tag}.withdrawn", hours=hours)
    put(study, ".staging/mixed/a", hours=48)
    put(study, ".staging/mixed/b", hours=1)
    put(study, "runs/old.json", hours=24 * 91)
    put(study, "runs/new.json", hours=24 * 89)
    everything = files(study.layout.root)
    listed = gc(study.layout, dry_run=True)
    assert files(study.layout.root) == everything
    assert sorted(row["kind"] for row in listed) == [
        "claim",
        "claim",
        "partial",
        "partial",
        "run",
        "staging",
        "staging",
    ]
    assert all(row["bytes"] == 5 and not row["removed"] for row in listed)
    removed = gc(study.layout)
    assert [{**row, "removed": False} for row in removed] == listed
    left = files(study.layout.root)
    assert left == {name for name in everything if "old" not in name}
    assert before <= left
    assert verify(study.layout) == []
    gc(study.layout, older_than=0, runs_days=0)
    assert files(study.layout.root) == {name for name in before if not name.startswith("runs/")}


def test_claims_go_by_their_lease(copy: Callable[[], Study]):
    study = copy()
    folder = f"{study.layout.embedding(study.slides[0], KEY)}/claims"
    assert acquire(study.layout.files, folder, "0", 3600) is not None
    put(study, f"{folder}/1.0.json", hours=0, data=json.dumps({"expires": time.time() - 1}).encode())
    assert [row["name"] for row in gc(study.layout)] == [f"{folder}/1.0.json"]
    assert study.layout.files.list(folder) == ["0.0.json"]


def test_an_intent_of_an_unfinished_chunk_stays(copy: Callable[[], Study]):
    study = copy()
    node = study.layout.embedding(study.slides[0], KEY)
    put(study, f"{node}/claims/0.0badc0de.intent", hours=48)
    study.layout.files.remove(f"{node}/receipts/0.json")
    assert gc(study.layout) == [], "it vouches for the chunk"


def test_orphan_chunks_on_request_only(copy: Callable[[], Study]):
    study = copy()
    slide = study.slides[0]
    node = study.layout.embedding(slide, KEY)
    for k in (0, 2):
        study.layout.files.remove(f"{node}/receipts/{k}.json")
        path = study.layout.files.path(f"{node}/c/{k}/0")
        put(study, f"{node}/c/{k}/0", hours=48, data=path.read_bytes())
    claim = acquire(study.layout.files, f"{node}/claims", "2", 3600)
    assert claim is not None
    assert gc(study.layout) == []
    assert [row["name"] for row in gc(study.layout, orphans=True)] == [f"{node}/c/0/0"]
    claim.release()
    assert EmbeddingArray(study.layout, slide, KEY).missing() == [0, 2]
    assert (study.layout.files.path(node) / "c/1/0").exists()
    assert (study.layout.files.path(study.layout.slide(slide)) / "obsm/spatial/c/0/0").exists(), "not an embedding"


def test_negative_ages(study: Study):
    with pytest.raises(InputError, match="negative"):
        gc(study.layout, older_than=-1)
