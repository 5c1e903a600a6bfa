from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.folders import CARD, Form, read_folder, replaced, replacing, write_folder

FORM = Form("thing", "made", 3, "arrays", ("name",))
ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(4)}


def test_a_folder_is_read_as_it_was_written(tmp_path):
    write_folder(FORM, tmp_path / "deep" / "it", {"name": np.str_("a")}, {"scores": np.array([0.5])}, ARRAYS)
    card, arrays = read_folder(FORM, tmp_path / "deep" / "it")
    assert {key: card[key] for key in ("format", "name", "scores")} == {"format": 3, "name": "a", "scores": [0.5]}
    assert set(card["versions"]) == {"spared-fm", "numpy", "safetensors"}
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
        assert (arrays[key].dtype, arrays[key].shape) == (value.dtype, value.shape)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["arrays.safetensors", CARD, "deep", "it"]


def full_disk(_):
    raise OSError(28, "No space left on device")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    for card in ({"name": "b"}, {"arrays_sha256": ""}, {"x": {1}}, {"x": float("inf")}):
        with pytest.raises(InputError, match="card"):
            write_folder(FORM, tmp_path / "it", {"name": "a"}, card, ARRAYS)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(InputError, match="No space left"):
            write_folder(FORM, tmp_path / "it", {"name": "a"}, {}, ARRAYS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_", [2, 4])
def test_another_format_is_refused(tmp_path, format_):
    write_folder(FORM, tmp_path / "it", {"name": "a"}, {}, ARRAYS)
    card = json.loads((tmp_path / "it" / CARD).read_text())
    (tmp_path / "it" / CARD).write_text(json.dumps(card | {"format": format_}))
    with pytest.raises(InputError, match="older version" if format_ == 2 else "update spared-fm"):
        read_folder(FORM, tmp_path / "it")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "it"
    for content in (b"one", b"two"):
        with replaced(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"  # not before the end
        assert path.read_bytes() == content
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)

    def write() -> None:
        with replaced(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"), replaced(path) as file:
        file.write(b"three")
    assert [p.name for p in path.parent.iterdir()] == ["it"]
    assert path.read_bytes() == b"two"


def test_a_file_appears_whole_and_after_it_was_synced(tmp_path, monkeypatch):
    done = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    with replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert done == ["sync", "rename", "sync"]  # the file before its name, then the folder


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
