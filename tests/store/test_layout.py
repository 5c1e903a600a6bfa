from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.store.layout import DATA, FORMAT, FORMAT_VERSION, Layout, check_name, slug


def test_create_then_open(tmp_path: Path):
    created = Layout.create(tmp_path / "s")
    assert Layout.open(tmp_path / "s").slides() == []
    assert Layout.create(tmp_path / "s").root == created.root
    root = zarr.open_group(tmp_path / "s" / DATA, mode="r")
    assert sorted(root) == ["cohorts", "slides"]


def test_no_store_there(tmp_path: Path):
    with pytest.raises(InputError, match="no store here"):
        Layout.open(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not that of a spared-fm store"):
        Layout.open(tmp_path / "file")


def test_a_folder_with_other_things_is_not_taken_over(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="other things"):
        Layout.create(tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Layout.create(tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"attributes": {}}', '{"attributes": {"spared-fm": 1}}'])
def test_a_zarr_that_is_not_a_store(tmp_path: Path, content: str):
    (tmp_path / DATA).mkdir()
    (tmp_path / DATA / "zarr.json").write_text(content)
    with pytest.raises(InputError, match="not that of a spared-fm store"):
        Layout.open(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path):
    layout = Layout.create(tmp_path / "s")
    path = layout.root / DATA / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"][FORMAT]["format_version"] = FORMAT_VERSION + 1
    path.write_text(json.dumps(metadata))
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
