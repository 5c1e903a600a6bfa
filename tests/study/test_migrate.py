from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.store.layout import DATA, FORMAT_VERSION, Layout
from spared_fm.study import migrate as module
from spared_fm.study.migrate import migrate
from spared_fm.study.verify import verify
from tests.study.record_format0 import sources


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).with_name("format0.zip")) as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_old_store_becomes_one_of_today(old: Path, tmp_path: Path):
    before = files(old)
    result = migrate(old)
    assert (result["from_version"], result["to_version"], result["slides"]) == (0, FORMAT_VERSION, 2)
    after = files(old)
    records = {f"data.zarr/slides/{slide}/zarr.json" for slide in ("with_image", "only")}
    assert {name for name in after if after[name] != before.get(name)} == {*records, "data.zarr/zarr.json"}
    study = spared_fm.open(old)
    assert study.layout.attributes(DATA) == {"format_version": FORMAT_VERSION}
    record = study.layout.attributes(study.layout.slide("with_image"))
    assert record is not None
    assert record["image"] == {"path": "/data/image.png", "kind": "fullres", "scale": 1.0, "width": 120, "height": 80}
    assert (record["mpp"], record["mpp_source"], record["patient"]) == (0.5, "given", "P1")
    assert not [name for name in record if name.startswith(("image_", "um_per_px"))]
    # the same sources ingested today are recognised, so every digest is right
    with_image, only = sources(tmp_path / "sources")
    assert study.ingest(with_image, mpp=0.5)[0]["status"] == "unchanged"
    assert study.ingest(only)[0]["status"] == "unchanged"
    # embeddings and receipts are as they were
    assert verify(study.layout) == []
    np.testing.assert_array_equal(study.features("with_image", "stand-in", np.array([0, 5])), [[1] * 3, [3] * 3])


def test_again_changes_nothing(old: Path):
    migrate(old)
    before = files(old)
    assert migrate(old)["slides"] == 0
    assert files(old) == before


def test_stopped_half_way(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = tmp_path / "whole"
    whole.mkdir()
    for name, data in files(old).items():
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_bytes(data)
    migrate(whole)
    calls = []

    def once(*arguments: object) -> dict:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return was(*arguments)  # type: ignore[arg-type]

    was = module._from_0
    monkeypatch.setattr(module, "_from_0", once)
    with pytest.raises(KeyboardInterrupt):
        migrate(old)
    assert json.loads((old / "data.zarr/zarr.json").read_text())["attributes"]["spared-fm"]["format_version"] == 0
    monkeypatch.undo()
    assert migrate(old)["slides"] == 1
    assert files(old) == files(whole)


def test_a_newer_format_is_refused(old: Path):
    layout = Layout.open(old, older=True)
    layout.update_attributes(DATA, lambda _: {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(InputError, match="newer"):
        migrate(old)


def test_no_store(tmp_path: Path):
    with pytest.raises(InputError, match="no store"):
        migrate(tmp_path / "nothing")


def test_other_verbs_name_the_mend_for_an_older_store(old: Path):
    with pytest.raises(InputError, match=r"format 0 is an older one; `spared-fm migrate --store"):
        Layout.open(old)
