from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.relink import relink


@pytest.fixture
def moved(tmp_path: Path, synthetic_slides: Path) -> tuple[Study, Path]:
    """A study whose images lie elsewhere now, under other names."""
    study = spared_fm.open(tmp_path / "store", create=True)
    for folder in sorted(synthetic_slides.glob("synthetic_*")):
        study.ingest(shutil.copytree(folder, tmp_path / "before" / folder.name))
    for i, folder in enumerate(sorted((tmp_path / "before").iterdir())):
        target = tmp_path / "after" / f"deep{i}" / f"renamed{i}.jpeg"
        target.parent.mkdir(parents=True)
        (folder / "image.jpg").rename(target)
    return study, tmp_path / "after"


def test_images_are_found_by_their_content(moved: tuple[Study, Path]):
    study, after = moved
    (after / "broken.jpg").write_bytes(b"")
    (after / "dangling.png").symlink_to(after / "nowhere")
    first, second, third = study.slides
    next(after.rglob("renamed2.jpeg")).unlink()
    with pytest.raises(InputError, match="can't be read"):
        study.encode("stain-bank", slides=first)
    rows = {row["slide"]: row for row in relink(study.layout, after)}
    assert {slide: row["status"] for slide, row in rows.items()} == {
        first: "relinked",
        second: "relinked",
        third: "not found",
    }
    assert rows[first]["path"].endswith("renamed0.jpeg")
    for slide in (first, second):
        path = rows[slide]["path"]
        record = study.layout.attributes(study.layout.slide(slide))
        assert record is not None
        assert record["image"]["path"] == path
        assert study.slide(slide).uns["spatial"][slide]["metadata"]["source_image_path"] == path
    assert study.encode("stain-bank", slides=first)[0]["patches"] > 0
    assert {row["status"] for row in relink(study.layout, after, slides=[first, second])} == {"in place"}


def test_a_kill_between_record_and_uns_is_mended(moved: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch):
    study, after = moved
    slide = study.slides[0]
    monkeypatch.setattr("spared_fm.study.relink._tell_uns", lambda *_: None)
    [row] = relink(study.layout, after, slides=slide)
    monkeypatch.undo()
    assert relink(study.layout, after, slides=slide)[0]["status"] == "in place"
    assert study.slide(slide).uns["spatial"][slide]["metadata"]["source_image_path"] == row["path"]


def test_another_image_at_the_old_path_is_not_taken(moved: tuple[Study, Path]):
    study, after = moved
    first = study.slides[0]
    record = study.layout.attributes(study.layout.slide(first))
    assert record is not None
    shutil.copy(next(after.rglob("renamed1.jpeg")), record["image"]["path"])
    [row] = relink(study.layout, after, slides=first)
    assert row["status"] == "relinked"
    assert row["path"].endswith("renamed0.jpeg")


def test_no_such_folder(moved: tuple[Study, Path]):
    with pytest.raises(InputError, match="no such folder"):
        relink(moved[0].layout, moved[1] / "nowhere")
