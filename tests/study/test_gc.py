from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from spared_fm.errors import InputError
from spared_fm.store.claims import acquire
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import DATA, Layout
from spared_fm.study import usage
from spared_fm.study.api import Study
from spared_fm.study.gc import gc
from spared_fm.study.verify import verify
from tests.object_stores import KINDS, place

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


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return Layout.create(f"{place(request.param, tmp_path)}/store")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Age all files by some hours; leases don't see it."""

    def go(hours: float) -> None:
        monkeypatch.setattr(usage, "time", SimpleNamespace(time=lambda: time.time() + hours * 3600))

    return go


def fill(layout: Layout, *keys: str) -> None:
    for key in keys:
        layout.files.replace(key, b"12345")


def left(layout: Layout) -> set[str]:
    return {entry.key for entry in usage.entries(layout)} - {
        f"{DATA}/zarr.json",
        f"{DATA}/slides/zarr.json",
        f"{DATA}/cohorts/zarr.json",
    }


SLIDES, COHORTS = f"{DATA}/slides", f"{DATA}/cohorts"
WHOLE = {
    f"{SLIDES}/claims/zarr.json",
    f"{SLIDES}/claims/obs/claims/zarr.json",
    f"{SLIDES}/claims/obsm/k/zarr.json",
    f"{SLIDES}/claims/obsm/k/c/0/0",
    f"{SLIDES}/s.partial/zarr.json",
    f"{SLIDES}/s.partial/X/zarr.json",
    f"{SLIDES}/s.tokens/k/zarr.json",
    f"{SLIDES}/s.tokens/k/c/0/0",
    f"{COHORTS}/c/zarr.json",
    f"{COHORTS}/c/layers/counts/zarr.json",
    "heads/c/run/card.json",
    "heads/c/run/weights.safetensors",
    "heads/c/claims/card.json",
    "completers/c/m.lognorm.01234567/card.json",
    "completers/c/m.lognorm.01234567/tensors.safetensors",
    "benchmarks/b/matrix.json",
    "benchmarks/b/table.parquet",
    "benchmarks/b/done.json",
    "benchmarks/b/done.safetensors",
    "benchmarks/b/skipped.json",
    "indexes/damaged/card.json",  # what it was of can't be told
    "indexes/damaged/segment-1.faiss",
    "indexes/k/trained-1.faiss",
    "indexes/k/segment-2.faiss",
}
CARD_OF_K = {
    "format": 1,
    "key": "k",
    "recipe_id": "",
    "metric": "cosine",
    "standardize": False,
    "plan": {},
    "slides": [],
    "trained": {"file": "trained-1.faiss"},
    "segments": [{"file": "segment-2.faiss"}],
}
TORN = {
    f"{SLIDES}/gone": {"obs/zarr.json", "obsm/k/zarr.json", "obsm/k/receipts/0.json", "obsm/k/c/0/0"},
    f"{SLIDES}/claims/obsm/gone": {"receipts/0.json", "c/0/0", "claims/0.ab.intent"},
    f"{SLIDES}/s.tokens/gone": {"c/0/0"},
    f"{COHORTS}/gone": {"X/zarr.json", "X/c/0/0", "layers/counts/c/0/0"},
    f"{COHORTS}/c/layers/gone": {"c/0/0"},
    "heads/c/gone": {"weights.safetensors"},
    "completers/c/gone": {"tensors.safetensors"},
    "completers/c/gone.training": {"last.ckpt", "log/events"},
    "benchmarks/gone": {"done.json", "done.safetensors"},
    "indexes/gone": {"trained-1.faiss", "segment-1.faiss"},
}
OLD = {"indexes/k/trained-0.faiss", "indexes/k/segment-1.faiss", "indexes/k/.segment-3.faiss.ab.part"}


def test_torn_folders_and_old_files_of_indexes_go_by_age(empty: Layout, later: Callable[[float], None]):
    doomed = {f"{folder}/{name}" for folder, names in TORN.items() for name in names} | OLD
    fill(empty, *WHOLE, *doomed)
    empty.files.replace("indexes/k/card.json", json.dumps(CARD_OF_K).encode())
    assert gc(empty) == [], "all of it is new"
    later(48)
    listed = gc(empty, dry_run=True)
    assert left(empty) == WHOLE | doomed | {"indexes/k/card.json"}
    expected = {("torn", name): 5 * len(names) for name, names in TORN.items()}
    expected |= {("old", name): 5 for name in OLD}
    assert {(row["kind"], row["name"]): row["bytes"] for row in listed} == expected
    assert [{**row, "removed": False} for row in gc(empty)] == listed
    assert left(empty) == WHOLE | {"indexes/k/card.json"}
    assert gc(empty) == []


def test_predictions_without_a_receipt_go_by_age(empty: Layout, later: Callable[[float], None]):
    fill(empty, "benchmarks/b/matrix.json", "benchmarks/b/a.json", "benchmarks/b/a.safetensors")
    fill(empty, "benchmarks/b/gone.safetensors")
    assert gc(empty) == []
    later(48)
    assert [(row["kind"], row["name"]) for row in gc(empty)] == [("torn", "benchmarks/b/gone.safetensors")]
    assert left(empty) == {f"benchmarks/b/{name}" for name in ("matrix.json", "a.json", "a.safetensors")}


def test_a_torn_folder_in_which_something_changed_stays(copy: Callable[[], Study]):
    study = copy()
    for folder in ("heads/c/busy", "indexes/busy"):  # an index that is being built
        put(study, f"{folder}/a", hours=48)
        put(study, f"{folder}/b", hours=1)
    assert gc(study.layout) == []
    assert [row["name"] for row in gc(study.layout, older_than=0.5)] == ["heads/c/busy", "indexes/busy"]


@pytest.mark.parametrize("guard", [f"{SLIDES}/gone/obsm/k", f"{SLIDES}/gone"])
def test_a_live_claim_guards_a_torn_folder(empty: Layout, later: Callable[[float], None], guard: str):
    fill(empty, f"{SLIDES}/gone/obsm/k/c/0/0")
    claim = acquire(empty.files, f"{guard}/claims", "0", 3600 * 100)
    assert claim is not None
    later(48)
    assert gc(empty) == []
    assert len(left(empty)) == 2
    claim.release()
    assert [row["name"] for row in gc(empty)] == [f"{SLIDES}/gone"]
    assert left(empty) == set()


def test_a_live_claim_on_a_slide_guards_its_torn_arrays(empty: Layout, later: Callable[[float], None]):
    fill(empty, f"{SLIDES}/s/zarr.json", f"{SLIDES}/s/obsm/gone/c/0/0")
    claim = acquire(empty.files, f"{SLIDES}/s/claims", "0", 3600 * 100)
    assert claim is not None
    later(48)
    assert gc(empty) == []
    claim.release()
    assert [row["name"] for row in gc(empty)] == [f"{SLIDES}/s/obsm/gone"]


def test_an_upload_taken_up_again_stays(empty: Layout, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch):
    fill(empty, "heads/c/a/weights", "heads/c/b/weights")
    later(48)
    remove = empty.files.remove

    def meanwhile(key: str) -> None:
        later(0)  # what is seen from now on is new
        remove(key)

    monkeypatch.setattr(empty.files, "remove", meanwhile)
    rows = gc(empty)
    assert sorted(row["name"] for row in rows) == ["heads/c/a", "heads/c/b"]
    assert [row["removed"] for row in rows] == [True, False]
    assert left(empty) == {f"{rows[1]['name']}/weights"}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_killed_upload_and_a_killed_removal_are_swept(
    kind: str, study: Study, tmp_path: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    layout = Layout.create(f"{place(kind, tmp_path)}/store")
    source = study.layout.files.path(study.layout.slide(study.slides[0]))
    put_if_absent, put_count = layout.files.put_if_absent, itertools.count()

    def dies(key: str, data: bytes) -> bool:
        if next(put_count) == 5:
            raise OSError("killed")
        return put_if_absent(key, data)

    with monkeypatch.context() as dying:
        dying.setattr(layout.files, "put_if_absent", dies)
        with pytest.raises(OSError, match="killed"):
            layout.files.publish(source, layout.slide("up"))
    for slide in ("down", "whole"):
        layout.files.publish(source, layout.slide(slide))
    layout.files.remove(f"{layout.slide('down')}/zarr.json")  # goes first
    before = {key for key in left(layout) if key.startswith(layout.slide("whole"))}
    assert gc(layout) == []
    later(48)
    assert sorted((row["kind"], row["name"]) for row in gc(layout)) == [
        ("torn", layout.slide("down")),
        ("torn", layout.slide("up")),
    ]
    assert left(layout) == before
    assert layout.slides() == ["whole"]


def test_claims_on_records_go_when_over_and_old(empty: Layout, later: Callable[[float], None]):
    held = acquire(empty.files, "claims", "0123456789abcdef-3", 3600 * 100)
    assert acquire(empty.files, "claims", "0123456789abcdef-4", -1) is not None
    assert held is not None
    assert gc(empty) == []
    later(48)
    assert [(row["kind"], row["name"]) for row in gc(empty)] == [("claim", "claims/0123456789abcdef-4.0.json")]
    assert left(empty) == {held.key}


def test_negative_ages(study: Study):
    with pytest.raises(InputError, match="negative"):
        gc(study.layout, older_than=-1)
