from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.store.layout import Layout
from spared_fm.study import merge as module
from spared_fm.study.api import Study
from spared_fm.study.merge import merge
from spared_fm.study.rm import rm
from spared_fm.study.verify import verify

KEY = "stain-bank"


@pytest.fixture
def two(encoded: Path, tmp_path: Path) -> Callable[[], tuple[Study, Study]]:
    def make() -> tuple[Study, Study]:
        return tuple(spared_fm.open(shutil.copytree(encoded, tmp_path / name)) for name in ("a", "b"))  # type: ignore[return-value]

    return make


def data(study: Study) -> dict[str, bytes]:
    root = Path(study.layout.root)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not str(path.relative_to(root)).startswith((".staging", "runs"))
    }


def forget(study: Study, slide: str, chunks: list[int]) -> None:
    node = study.layout.embedding(slide, KEY)
    for k in chunks:
        study.layout.files.remove(f"{node}/receipts/{k}.json")
        study.layout.files.remove(f"{node}/c/{k}")


def test_into_an_empty_store_gives_a_copy(study: Study, tmp_path: Path):
    empty = spared_fm.open(tmp_path / "empty", create=True)
    rows = merge(empty.layout, study.layout)
    assert {row["status"] for row in rows} == {"added"}
    assert {row["kind"] for row in rows} >= {"slide", "embedding", "cohort"}
    assert data(empty) == data(study)
    assert verify(empty.layout) == []
    assert {row["status"] for row in merge(empty.layout, study.layout)} == {"unchanged"}


def test_finished_chunks_are_united(two: Callable[[], tuple[Study, Study]]):
    a, b = two()
    expected = data(a)
    first, second, third = a.slides
    forget(a, first, [0, 1])
    forget(b, first, [1, 2])
    rm(a.layout, slides=second, encoder=KEY)
    rm(a.layout, slides=third, force=True)
    rows = {(row["kind"], row["name"]): row for row in merge(a.layout, b.layout)}
    assert rows["embedding", f"{first}/{KEY}"]["chunks"] == 1
    assert rows["embedding", f"{first}/{KEY}"]["status"] == "extended"
    assert rows["embedding", f"{second}/{KEY}"]["status"] == "added"
    assert rows["slide", third]["status"] == "added"
    missing = {f"{a.layout.embedding(first, KEY)}/{name}" for name in ("c/1/0", "receipts/1.json")}
    assert data(a) == {name: value for name, value in expected.items() if name not in missing}
    a.encode(KEY)
    assert a.features(first, KEY).shape[0] > 0


def test_a_damaged_chunk_is_left_out(two: Callable[[], tuple[Study, Study]]):
    a, b = two()
    slide = a.slides[0]
    forget(a, slide, [1, 2])
    path = b.layout.files.path(f"{b.layout.embedding(slide, KEY)}/c/1/0")
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    row = next(row for row in merge(a.layout, b.layout) if row["name"] == f"{slide}/{KEY}")
    assert (row["chunks"], row["damaged"]) == (1, 1)
    assert verify(a.layout) == []


def test_all_conflicts_are_found_before_anything_is_copied(two: Callable[[], tuple[Study, Study]]):
    a, b = two()
    first, second, third = a.slides
    rm(a.layout, slides=third, force=True)
    record = b.layout.attributes(b.layout.slide(first))
    assert record is not None
    b.layout.update_attributes(b.layout.slide(first), lambda _: {**record, "fingerprint": "other"})
    node = b.layout.embedding(second, KEY)
    b.layout.update_attributes(node, lambda _: {**(b.layout.attributes(node) or {}), "batch_size": 7})
    node = b.layout.cohort("c")
    b.layout.update_attributes(node, lambda _: {**(b.layout.attributes(node) or {}), "settings_digest": "other"})
    before = data(a)
    with pytest.raises(
        InputError, match=rf"slide {first} differs in fingerprint; .*{second}/{KEY} differ in batch_size; .*cohort c"
    ):
        merge(a.layout, b.layout)
    assert data(a) == before


def test_heads_are_united(two: Callable[[], tuple[Study, Study]]):
    a, b = two()
    b.fit("c", encoder=KEY, head="gene-mean", name="theirs")
    a.fit("c", encoder=KEY, head="gene-mean", name="mine")
    rows = {(row["kind"], row["name"]): row["status"] for row in merge(a.layout, b.layout)}
    assert rows["head", "c/theirs"] == "added"
    assert a.layout.files.list("heads/c") == ["mine", "theirs"]
    assert verify(a.layout) == []
    rm(a.layout, cohort="c", head="theirs")
    a.fit("c", encoder=KEY, head="ridge", name="theirs")
    with pytest.raises(InputError, match="head c/theirs has other weights"):
        merge(a.layout, b.layout)


def test_benchmarks_are_united(two: Callable[[], tuple[Study, Study]]):
    def run(study: Study, *heads: str) -> None:
        text = f'name = "b"\ncohorts = ["c"]\nencoders = ["{KEY}"]\ntargets = ["lognorm"]\nprotocol = "strict"\n'
        path = Path(study.layout.root).with_suffix(".toml")
        path.write_text(text + f"heads = {list(heads)}\n".replace("'", '"'))
        study.run_benchmark(path)

    def merged() -> tuple[str, int, int]:
        [row] = [row for row in merge(a.layout, b.layout) if row["kind"] == "benchmark"]
        return row["status"], row["chunks"], row["damaged"]

    a, b = two()
    run(b, "gene-mean")
    assert merged() == ("added", 1, 0)
    assert data(a) == data(b)
    assert merged() == ("unchanged", 0, 0)
    run(b, "gene-mean", "ridge", "knn")
    shown = b.show_benchmark("b")
    cells = dict(zip(shown["head"], shown["cell"], strict=True))
    path = b.layout.files.path(f"benchmarks/b/{cells['knn']}.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert merged() == ("extended", 1, 1)
    assert set(a.show_benchmark("b")["head"]) == {"gene-mean"}, "the declaration here stays"
    before = data(a)[f"benchmarks/b/{cells['ridge']}.json"]
    run(a, "gene-mean", "ridge")
    assert data(a)[f"benchmarks/b/{cells['ridge']}.json"] == before, "it was not computed again"


def test_a_missing_layer_is_added(two: Callable[[], tuple[Study, Study]]):
    a, b = two()
    node = a.layout.cohort("c")
    record = a.layout.attributes(node) or {}
    lost = sorted(record["layers"])[0]
    a.layout.update_attributes(
        node, lambda _: {**record, "layers": {k: v for k, v in record["layers"].items() if k != lost}}
    )
    shutil.rmtree(a.layout.files.path(f"{node}/layers/{lost}"))
    [row] = [row for row in merge(a.layout, b.layout) if row["kind"] == "cohort"]
    assert row["status"] == "extended"
    (a.cohort_data("c").layers[lost] == b.cohort_data("c").layers[lost]).all()
    assert (a.layout.attributes(node) or {})["layers"] == record["layers"]


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_stopped_anywhere_it_goes_on(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int):
    empty = spared_fm.open(tmp_path / "empty", create=True)
    count = 0

    def stopping(name: str) -> None:
        was = getattr(module, name)

        def step(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return was(*arguments, **options)

        monkeypatch.setattr(module, name, step)

    stopping("_copy")
    stopping("commit")
    with pytest.raises(KeyboardInterrupt):
        merge(empty.layout, study.layout)
    monkeypatch.undo()
    merge(empty.layout, study.layout)
    assert data(empty) == data(study)


def test_itself(study: Study):
    with pytest.raises(InputError, match="into itself"):
        merge(study.layout, Layout.open(study.layout.root))


def test_into_an_object_store(study: Study):
    remote = Layout.create("memory://merge-test/store")
    merge(remote, study.layout)
    assert verify(remote) == []
    slide = study.slides[0]
    key = f"{remote.embedding(slide, KEY)}/c/1/0"
    whole = remote.files.read(key)
    assert whole == study.layout.files.read(key)
    remote.files.replace(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    [row] = verify(remote)
    assert (row["slide"], row["chunk"], row["kind"]) == (slide, 1, "checksum")
    [row] = verify(remote, repair=True)
    assert row["repaired"]
    assert remote.files.read(key) == whole
