from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.store.files import files_for
from spared_fm.store.layout import DATA, FORMAT, FORMAT_VERSION, Layout, check_name, slug


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
