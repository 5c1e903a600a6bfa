from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.store.claims import CLAIMS, Claim, acquire
from spared_fm.store.files import files_for
from spared_fm.store.layout import DATA, FORMAT, FORMAT_VERSION, REVISION, Layout, check_name, slug

NODE = f"{DATA}/cohorts/c"


def test_create_then_open(storage: str):
    created = Layout.create(f"{storage}/s")
    assert Layout.open(f"{storage}/s").slides() == []
    assert Layout.create(f"{storage}/s/").root == created.root
    root = zarr.open_group(created.zarr_store(DATA), mode="r")
    assert sorted(root) == ["cohorts", "slides"]


def test_the_root_as_text_or_path_opens_the_same_store(storage: str, kind: str):
    created = Layout.create(f"{storage}/s")
    for root in (str(created.root), created.root, Path(str(created.root))):  # pathlib makes one slash of two
        assert str(Layout.open(root).root) == f"{storage}/s"
    assert str(created.root / "x/y") == f"{storage}/s/x/y"
    assert created.is_local == (kind == "local")


def test_no_store_there(storage: str):
    with pytest.raises(InputError, match=r"absent: no store here.*--store \S+/absent"):
        Layout.open(f"{storage}/absent")


def test_a_file_is_no_store(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not that of a spared-fm store"):
        Layout.open(tmp_path / "file")


def test_a_folder_with_other_things_is_not_taken_over(storage: str):
    files_for(storage).replace("photos/cat.jpg", b"")
    with pytest.raises(InputError, match="other things"):
        Layout.create(f"{storage}/photos")


def test_a_file_is_not_taken_over(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Layout.create(tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"attributes": {}}', '{"attributes": {"spared-fm": 1}}'])
def test_a_zarr_that_is_not_a_store(storage: str, content: str):
    files_for(storage).replace(f"{DATA}/zarr.json", content.encode())
    with pytest.raises(InputError, match="not that of a spared-fm store"):
        Layout.open(storage)


def test_a_newer_format_is_refused(storage: str):
    layout = Layout.create(f"{storage}/s")
    key = f"{DATA}/zarr.json"
    metadata = json.loads(layout.files.read(key))
    metadata["attributes"][FORMAT]["format_version"] = FORMAT_VERSION + 1
    layout.files.replace(key, json.dumps(metadata).encode())
    with pytest.raises(InputError, match="newer"):
        Layout.open(layout.root)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "ä", "-x", "a\n", "a:b"])
def test_bad_names_are_refused(name: str):
    with pytest.raises(InputError, match="try"):
        check_name(name, "slide")


@given(st.text(max_size=12))
def test_a_name_is_refused_or_safe_and_the_suggestion_is_allowed(name: str):
    try:
        assert check_name(name, "slide") == name
    except InputError as error:
        suggestion = str(error).rsplit("'", 2)[1]
        assert check_name(suggestion, "slide") == suggestion
    else:
        assert Path(name).name == name
        assert name not in (".", "..")


@pytest.mark.parametrize(
    ("encoder", "key"),
    [
        ("stain-bank", "stain-bank"),
        ("timm:vit_small_patch16_224", "timm.vit_small_patch16_224"),
        ("timm:hf-hub:MahmoodLab/UNI", "timm.hf-hub.MahmoodLab_UNI"),
    ],
)
def test_slug(encoder: str, key: str):
    assert slug(encoder) == key
    assert slug(key) == key


def grown(record: dict[str, Any], layer: str) -> dict[str, Any]:
    """Register a layer; ``count`` must always be that of the layers."""
    layers = {**record.get("layers", {}), layer: {"method": layer}}
    return {**record, "layers": layers, "count": len(layers)}


def register(root: str, writer: int, threads: int, each: int) -> None:
    """Register ``each`` layers from each of some threads at once."""
    layout = Layout.open(root)

    def work(thread: int) -> None:
        for i in range(each):
            layout.update_attributes(NODE, lambda record, i=i: grown(record, f"{writer}-{thread}-{i}"))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


@pytest.fixture
def noted(storage: str) -> Layout:
    layout = Layout.create(f"{storage}/s")
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"encoding-type": "anndata", FORMAT: {"a": 1}}}
    layout.files.replace(f"{NODE}/zarr.json", json.dumps(group).encode())
    return layout


def test_attributes_change_and_the_rest_of_the_node_stays(noted: Layout):
    assert noted.update_attributes(NODE, lambda record: {**record, "b": [2]}) == {"a": 1, "b": [2]}
    assert noted.attributes(NODE) == {"a": 1, "b": [2]}
    noted.update_attributes(NODE, lambda _: {"c": 3})
    assert noted.attributes(NODE) == {"c": 3}
    metadata = json.loads(noted.files.read(f"{NODE}/zarr.json"))
    assert metadata["attributes"] == {"encoding-type": "anndata", FORMAT: {"c": 3}, REVISION: 2}
    assert zarr.open_group(noted.zarr_store(NODE), mode="r").attrs["encoding-type"] == "anndata"
    assert noted.files.list(CLAIMS) == []


def test_no_change_writes_nothing(noted: Layout):
    before = noted.files.read(f"{NODE}/zarr.json")
    assert noted.update_attributes(NODE, lambda record: record) == {"a": 1}
    assert noted.files.read(f"{NODE}/zarr.json") == before


def test_a_change_that_fails_keeps_nobody_out(noted: Layout):
    with pytest.raises(KeyError):
        noted.update_attributes(NODE, lambda record: {"x": record["absent"]})
    assert noted.files.list(CLAIMS) == []
    with pytest.raises(FileNotFoundError):
        noted.update_attributes(noted.cohort("absent"), lambda record: record)


def test_threads_that_register_at_once_lose_nothing_and_readers_see_whole_records(noted: Layout):
    done = threading.Event()
    seen: list[dict[str, Any]] = []

    def read() -> None:
        while not done.is_set():
            seen.append(noted.attributes(NODE) or {})

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            register(str(noted.root), 0, threads=5, each=3)
        finally:
            done.set()
        reader.result()
    record = noted.attributes(NODE) or {}
    assert sorted(record["layers"]) == sorted(f"0-{t}-{i}" for t in range(5) for i in range(3))
    counts = [record.get("count", 0) for record in seen]
    assert all(record["a"] == 1 and len(record.get("layers", {})) == record.get("count", 0) for record in seen)
    assert counts == sorted(counts)
    assert len(set(counts)) > 2, "read while they wrote"
    assert noted.files.list(CLAIMS) == []


def start(*arguments: object) -> subprocess.Popen[bytes]:
    code = f"from tests.store.test_layout import register; register{arguments!r}"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[2])


def test_processes_that_register_at_once_lose_nothing(noted: Layout, kind: str):
    if kind == "memory":
        pytest.skip("lives in one process")
    writers = [start(str(noted.root), writer, 2, 3) for writer in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    record = noted.attributes(NODE) or {}
    assert sorted(record["layers"]) == sorted(f"{w}-{t}-{i}" for w in range(3) for t in range(2) for i in range(3))
    assert noted.files.list(CLAIMS) == []


def test_a_killed_writer_of_this_machine_keeps_nobody_out(tmp_path: Path):
    layout = Layout.create(tmp_path / "s")
    code = (
        "import os, sys; from spared_fm.store.layout import DATA, Layout\n"
        "layout = Layout.open(sys.argv[1])\n"
        "replace = layout.files.replace\n"
        "layout.files.replace = lambda key, data: os._exit(9) if key.endswith('zarr.json') else replace(key, data)\n"
        "layout.update_attributes(DATA, lambda record: {**record, 'lost': 1})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(layout.root)], check=False).returncode == 9
    assert len(layout.files.list(CLAIMS)) == 1, "it died with the claim"
    began = time.monotonic()
    assert layout.update_attributes(DATA, lambda record: {**record, "x": 2})["x"] == 2
    assert time.monotonic() - began < 5
    assert "lost" not in (layout.attributes(DATA) or {})
    assert layout.files.list(CLAIMS) == []


def test_a_dead_writer_elsewhere_keeps_others_out_until_its_lease_ends(noted: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spared_fm.store.claims._host", lambda: "elsewhere")
    monkeypatch.setattr("spared_fm.store.layout.UPDATE_LEASE_S", 0.6)
    with monkeypatch.context() as dying:
        dying.setattr("spared_fm.store.claims.Claim.renew", lambda claim: False)
        dying.setattr("spared_fm.store.layout._POLL_S", (60.0, 60.0))
        dying.setattr("spared_fm.store.layout.time.sleep", lambda s: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            noted.update_attributes(NODE, lambda record: {**record, "lost": 1})
    monkeypatch.setattr("spared_fm.store.claims._host", lambda: "here")
    began = time.monotonic()
    assert noted.update_attributes(NODE, lambda record: {**record, "b": 2}) == {"a": 1, "b": 2}
    assert 0.3 < time.monotonic() - began < 5


def test_a_writer_that_was_taken_for_dead_begins_anew(noted: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spared_fm.store.layout.UPDATE_LEASE_S", 0.1)
    renew = Claim.renew
    stalls = [True]

    def late(claim: Claim) -> bool:
        if stalls.pop() if stalls else False:
            time.sleep(0.2)
            noted.update_attributes(NODE, lambda record: {**record, "other": 1})
        return renew(claim)

    monkeypatch.setattr(Claim, "renew", late)
    assert noted.update_attributes(NODE, lambda record: {**record, "b": 2}) == {"a": 1, "other": 1, "b": 2}
    assert noted.attributes(NODE) == {"a": 1, "other": 1, "b": 2}


def test_who_claims_a_revision_that_is_over_comes_too_late(noted: Layout, monkeypatch: pytest.MonkeyPatch):
    first = [True]

    def claim_late(*arguments: Any) -> Claim | None:
        if first.pop() if first else False:  # between reading and claiming another writer begins and ends
            noted.update_attributes(NODE, lambda record: {**record, "other": 1})
        return acquire(*arguments)

    monkeypatch.setattr("spared_fm.store.layout.acquire", claim_late)
    assert noted.update_attributes(NODE, lambda record: {**record, "b": 2}) == {"a": 1, "other": 1, "b": 2}
    assert noted.files.list(CLAIMS) == []
