from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study.api import Study
from spared_fm.study.verify import verify

KEY = "stain-bank"


@pytest.fixture
def damaged(copy: Callable[[], Study]) -> Study:
    return copy()


def folder(study: Study, slide: str) -> Path:
    return study.layout.files.path(study.layout.embedding(slide, KEY))


def flip(path: Path, position: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_whole_store(study: Study):
    study_rows = verify(study.layout)
    assert study_rows == []


def test_one_flipped_byte_in_every_chunk_in_turn(damaged: Study):
    count = 0
    for slide in damaged.slides:
        for k in range(EmbeddingArray(damaged.layout, slide, KEY).n_chunks):
            path = folder(damaged, slide) / f"c/{k}/0"
            flip(path, 7 * k)
            [row] = verify(damaged.layout)
            assert (row["slide"], row["key"], row["chunk"], row["kind"]) == (slide, KEY, k, "checksum")
            assert f"chunk {k} of {slide}/{KEY}" in row["problem"]
            flip(path, 7 * k)
            count += 1
    assert count > 9
    assert verify(damaged.layout) == []


def padding(path: Path) -> None:
    flip(path / "c/3/0", -1)


def lose(path: Path) -> None:
    (path / "c/1/0").unlink()


def truncate(path: Path) -> None:
    (path / "c/1/0").write_bytes((path / "c/1/0").read_bytes()[:100])


def lose_receipt(path: Path) -> None:
    (path / "receipts/2.json").unlink()


def garble_receipt(path: Path) -> None:
    (path / "receipts/2.json").write_text("{oops")


@pytest.mark.parametrize("damage", [padding, lose, truncate, lose_receipt, garble_receipt])
def test_repair_gives_the_bytes_of_a_clean_run_and_touches_nothing_else(damaged: Study, damage: Callable):
    slide = damaged.slides[0]
    place = folder(damaged, slide)
    assert len(list((place / "c").iterdir())) == 4
    clean = files(damaged.layout.files.path("data.zarr"))
    damage(place)
    [row] = verify(damaged.layout, repair=True)
    assert row["repaired"], row
    now = files(damaged.layout.files.path("data.zarr"))
    assert now.keys() == clean.keys()
    mended = {
        f"slides/{slide}/obsm/{KEY}/c/{row['chunk']}/0",
        f"slides/{slide}/obsm/{KEY}/receipts/{row['chunk']}.json",
    }
    assert {name for name in now if now[name] != clean[name]} <= mended
    assert {name for name in now if now[name][0] != clean[name][0]} <= {name for name in mended if "receipts" in name}
    assert verify(damaged.layout) == []


def test_several_at_once(damaged: Study):
    first, second = damaged.slides[:2]
    clean = {slide: damaged.features(slide, KEY).tobytes() for slide in (first, second)}
    flip(folder(damaged, first) / "c/0/0")
    flip(folder(damaged, first) / "c/2/0", 50)
    lose(folder(damaged, second))
    rows = verify(damaged.layout, repair=True)
    assert [(row["slide"], row["chunk"], row["repaired"]) for row in rows] == [
        (first, 0, True),
        (first, 2, True),
        (second, 1, True),
    ]
    assert {slide: damaged.features(slide, KEY).tobytes() for slide in clean} == clean


def test_other_bytes_on_the_same_device_are_reported(damaged: Study):
    slide = damaged.slides[0]
    for device, expected in (("cpu", "same device"), ("NVIDIA H200", "instead of NVIDIA H200")):
        path = folder(damaged, slide) / "receipts/1.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "crc32c": "0badc0de", "device": device}))
        [row] = verify(damaged.layout, repair=True)
        assert row["repaired"]
        assert expected in row["note"]
        assert json.loads(path.read_text())["device"] == "cpu"


def test_the_receipt_is_away_while_the_chunk_is_computed(damaged: Study, monkeypatch: pytest.MonkeyPatch):
    slide = damaged.slides[0]
    flip(folder(damaged, slide) / "c/1/0")
    from spared_fm.extract import run as runs

    seen = []

    def spy(plan: object) -> None:
        seen.append([task.chunk for task in plan.tasks])  # type: ignore[attr-defined]
        assert not (folder(damaged, slide) / "receipts/1.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run", spy)
    with pytest.raises(KeyboardInterrupt):
        verify(damaged.layout, repair=True)
    assert seen == [[1]]
    monkeypatch.undo()
    with pytest.raises(InputError, match="not finished"):
        damaged.features(slide, KEY)
    [row] = verify(damaged.layout)
    assert row["kind"] == "unreceipted"
    assert verify(damaged.layout, repair=True)[0]["repaired"]


def test_what_can_not_be_repaired_here_is_refused_before_anything_is_withdrawn(damaged: Study):
    slide = damaged.slides[0]
    flip(folder(damaged, slide) / "c/1/0")
    node = damaged.layout.embedding(slide, KEY)
    attributes = damaged.layout.attributes(node)
    assert attributes is not None
    damaged.layout.update_attributes(
        node, lambda _: {**attributes, "recipe": {**attributes["recipe"], "weights": "sha256:of a file"}}
    )
    with pytest.raises(InputError, match="--weights"):
        verify(damaged.layout, repair=True)
    damaged.layout.update_attributes(node, lambda _: attributes)
    record = damaged.layout.attributes(damaged.layout.slide(slide))
    assert record is not None
    damaged.layout.update_attributes(
        damaged.layout.slide(slide), lambda _: {**record, "image": {**record["image"], "path": "/gone.jpg"}}
    )
    with pytest.raises(InputError, match="can't be read"):
        verify(damaged.layout, repair=True)
    assert (folder(damaged, slide) / "receipts/1.json").exists()


def test_weights_from_a_file_are_asked_for_again(study: Study, copy: Callable[[], Study], tmp_path: Path):
    from safetensors.torch import save_file

    from spared_fm.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    import timm

    mine = copy()
    slide = mine.slides[0]
    name = "timm:mobilenetv3_small_050"
    weights = tmp_path / "w.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050", num_classes=0).state_dict(), weights)
    [row] = mine.encode(name, slides=slide, weights=weights, chunk_rows=32)
    flip(mine.layout.files.path(mine.layout.embedding(slide, row["key"])) / "c/0/0")
    with pytest.raises(InputError, match="--weights"):
        verify(mine.layout, repair=True)
    [mended] = verify(mine.layout, repair=True, weights=weights)
    assert mended["repaired"]
    assert "the bytes its receipt named" in mended["note"]


def test_drift_of_a_cohort_and_of_an_array(damaged: Study):
    slide = damaged.slides[0]
    record = damaged.layout.attributes(damaged.layout.slide(slide))
    assert record is not None
    damaged.layout.update_attributes(damaged.layout.slide(slide), lambda _: {**record, "counts_digest": "other"})
    [row] = verify(damaged.layout)
    assert (row["kind"], row["slide"], row["cohort"]) == ("drift", slide, "c")
    assert "counts_digest" in row["problem"]
    damaged.layout.update_attributes(damaged.layout.slide(slide), lambda _: {**record, "fingerprint": "other"})
    rows = verify(damaged.layout, repair=True)
    assert [(row["kind"], row.get("cohort")) for row in rows] == [("drift", None), ("drift", "c")]
    assert rows[0]["repaired"] is False
    damaged.layout.files.remove(damaged.layout.slide(slide))
    [row] = verify(damaged.layout)
    assert "gone" in row["problem"]


@pytest.mark.parametrize("damage", ["weights", "card", "none"])
def test_heads(damaged: Study, damage: str):
    path = Path(damaged.fit("c", encoder=KEY, head="gene-mean", name="h")["path"])
    assert verify(damaged.layout) == []
    if damage == "weights":
        flip(path / "weights.safetensors", -1)
    elif damage == "card":
        (path / "card.json").write_text("{")
    else:
        (path / "weights.safetensors").unlink()
    [row] = verify(damaged.layout)
    assert (row["kind"], row["cohort"], row["key"]) == ("head", "c", "h")


def test_an_array_whose_metadata_is_damaged_is_named_and_the_others_are_checked(damaged: Study):
    first, second = damaged.slides[:2]
    (folder(damaged, first) / "zarr.json").write_text("{")
    flip(folder(damaged, second) / "c/0/0")
    rows = verify(damaged.layout, slides=[first, second])
    assert [(row["slide"], row["kind"]) for row in rows] == [(first, "array"), (second, "checksum")]


def test_choosing_what_to_verify(damaged: Study):
    first, second = damaged.slides[:2]
    flip(folder(damaged, first) / "c/0/0")
    assert verify(damaged.layout, slides=second) == []
    assert len(verify(damaged.layout, encoder=KEY)) == 1
    assert verify(damaged.layout, encoder="timm:resnet18") == []
    with pytest.raises(InputError, match="no slide matches"):
        verify(damaged.layout, slides="nope*")
