import os

import pytest

from spared_fm.errors import InputError
from spared_fm.search import files


def test_a_file_appears_whole_and_after_it_was_synced(tmp_path, monkeypatch):
    done = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    with files.written(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert done == ["sync", "rename", "sync"]  # the file before its name, then the folder


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), files.written(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_checksums_of_files_and_their_beginnings(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_STEP", 4)
    (tmp_path / "a").write_bytes(b"123456789")
    assert files.checksum(tmp_path / "a") == "e3069283"  # the check value of CRC-32C
    (tmp_path / "b").write_bytes(b"123456789 and more")
    assert files.checksum(tmp_path / "b", 9) == "e3069283"
    with pytest.raises(InputError, match="b is damaged"):
        files.check(tmp_path / "b", "e3069283")
