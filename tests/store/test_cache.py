from __future__ import annotations

import uuid
from pathlib import Path

import google_crc32c
import pytest

from spared_fm.errors import InputError
from spared_fm.store.objects import ObjectFiles

KEY = "indexes/i/index.faiss"


def crc(data: bytes) -> str:
    return f"{google_crc32c.value(data):08x}"


@pytest.fixture
def files() -> ObjectFiles:
    return ObjectFiles(f"memory://{uuid.uuid4().hex}")


def test_a_copy_is_made_once_and_a_damaged_copy_is_replaced(files: ObjectFiles, cache: Path, monkeypatch):
    files.replace(KEY, b"content")
    path = files.local_file(KEY, crc(b"content"))
    assert path.read_bytes() == b"content"
    assert path.is_relative_to(cache)
    reads = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda key: reads.append(key) or read(key))
    assert files.local_file(KEY, crc(b"content")) == path
    assert reads == []
    path.write_bytes(b"c0ntent")
    assert files.local_file(KEY, crc(b"content")).read_bytes() == b"content"
    assert reads == [KEY]


def test_another_version_or_store_has_another_copy(files: ObjectFiles):
    files.replace(KEY, b"old")
    old = files.local_file(KEY, crc(b"old"))
    files.replace(KEY, b"new")
    assert files.local_file(KEY, crc(b"new")).read_bytes() == b"new"
    assert old.read_bytes() == b"old"
    other = ObjectFiles(f"memory://{uuid.uuid4().hex}")
    other.replace(KEY, b"old")
    assert other.local_file(KEY, crc(b"old")) != old


def test_what_the_receipt_does_not_vouch_for_is_refused(files: ObjectFiles, cache: Path):
    with pytest.raises(InputError, match=r"index\.faiss is gone"):
        files.local_file(KEY, crc(b"x"))
    files.replace(KEY, b"y")
    with pytest.raises(InputError, match=r"is damaged: its crc32c is"):
        files.local_file(KEY, crc(b"x"))
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("checksum", ["../../x", "", "ABCDEF01", "0"])
def test_a_checksum_is_no_path(files: ObjectFiles, checksum: str):
    files.replace(KEY, b"x")
    with pytest.raises(InputError, match="damaged"):
        files.local_file(KEY, checksum)
