from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spared_fm.store import objects
from spared_fm.store.files import STAGING, Files, LocalFiles, files_for


@pytest.fixture
def files(storage: str) -> Files:
    return files_for(storage)


def test_replace_and_read_round_trip(files: Files):
    files.replace("a/b/c.bin", b"one")
    files.replace("a/b/c.bin", b"two")
    assert files.read("a/b/c.bin") == b"two"
    assert files.list("a/b") == ["c.bin"]
    assert files.list("a") == ["b"]
    assert files.list(STAGING) == []
    with pytest.raises(FileNotFoundError):
        files.read("absent")


def test_exists_is_true_for_files_and_what_holds_them(files: Files):
    files.replace("a/b/c", b"")
    assert [files.exists(key) for key in ("a", "a/b", "a/b/c", "a/b/c/d", "a/x", "ab")] == [True] * 3 + [False] * 3


def test_list_of_nothing_is_empty(files: Files):
    files.replace("file", b"")
    assert files.list("no/such/folder") == []
    assert files.list("file") == []


def test_list_shows_what_another_writer_did_just_now(files: Files, kind: str):
    other = files_for(str(files.root))
    if kind == "s3":  # as in another process: no client in common, so no cache in common
        client = objects._new_filesystem("s3")
        other = type("Other", (objects.ObjectFiles,), {"_fs": client})(str(files.root))
    assert files.list("r") == []
    for i in range(3):
        other.put_if_absent(f"r/{i}", b"")
        assert files.list("r") == [str(j) for j in range(i + 1)]
        assert files.exists(f"r/{i}")
    other.remove("r/1")
    assert files.list("r") == ["0", "2"]
    assert not files.exists("r/1")


@pytest.mark.parametrize("name", ["a b", "a?b", "a*[x]", "50%", "é", "a+b&c=d", "a::b", "#1", "~", "a'\"b"])
def test_any_column_name_can_be_a_key(files: Files, name: str):
    """Columns of an AnnData become keys; none may be taken for a pattern, a query or an escape."""
    files.replace("obs/other/x", b"other")
    assert files.put_if_absent(f"obs/{name}/x", b"1")
    assert files.read(f"obs/{name}/x") == b"1"
    assert files.list("obs") == sorted([name, "other"])
    files.remove(f"obs/{name}")
    assert files.list("obs") == ["other"]


def test_put_if_absent_keeps_the_first(files: Files):
    assert files.put_if_absent("r/0.json", b"first")
    assert not files.put_if_absent("r/0.json", b"second")
    assert files.read("r/0.json") == b"first"


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Switch threads as often as Python can, so that a look and a put of one thread are parted."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_put_if_absent_has_one_winner_among_threads(files: Files, kind: str):
    for trial in range(20 if kind == "memory" else 5):
        barrier = threading.Barrier(16)
        wins: list[int] = []

        def put(i: int, key: str = f"r{trial}", barrier: threading.Barrier = barrier, wins: list[int] = wins) -> None:
            barrier.wait()
            if files.put_if_absent(key, str(i).encode()):
                wins.append(i)

        threads = [threading.Thread(target=put, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert files.read(f"r{trial}") == str(wins[0]).encode()


def test_remove_takes_folders_and_files_and_bears_absence(files: Files):
    files.replace("d/x", b"1")
    files.replace("d/y/z", b"1")
    files.replace("f", b"1")
    files.replace("dd", b"1")
    for key in ("d", "f", "absent"):
        files.remove(key)
    assert set(files.list("")) - {STAGING} == {"dd"}


def stage(files: Files, staging: Path, content: str) -> Path:
    for name in ("zarr.json", "obs/x", "obs/zarr.json", "c/0"):
        (staging / "node" / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / "node" / name).write_text(f"{name} {content}")
    return staging / "node"


def test_a_folder_is_published_whole_and_a_taken_name_is_refused(files: Files):
    with files.staging_folder() as staging:
        files.publish(stage(files, staging, "1"), "slides/node")
    with files.local_folder("slides/node") as folder:
        found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found == {name: f"{name} 1" for name in ("zarr.json", "obs/x", "obs/zarr.json", "c/0")}
    with files.staging_folder() as staging, pytest.raises(OSError, match=r"not empty|exists"):
        files.publish(stage(files, staging, "2"), "slides/node")
    assert files.read("slides/node/c/0") == b"c/0 1"
    assert files.read("slides/node/zarr.json") == b"zarr.json 1"


def test_a_failed_write_leaves_the_old_content_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = LocalFiles(tmp_path)
    files.replace("x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace("x", b"new")
    with pytest.raises(OSError, match="No space"):
        files.put_if_absent("y", b"new")
    monkeypatch.undo()
    assert files.read("x") == b"old"
    assert not files.exists("y")
    assert files.list(STAGING) == []


WRITER = """
import sys
from pathlib import Path
from spared_fm.store.files import LocalFiles
files = LocalFiles(Path(sys.argv[1]))
i = 0
while True:
    i += 1
    files.replace("x", (str(i % 10) * 400_000).encode())
    if i == 3:
        print("going", flush=True)
"""


def test_a_killed_writer_never_leaves_a_torn_file(tmp_path: Path):
    for trial in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        threading.Event().wait(0.003 * trial)
        process.kill()
        process.wait()
        process.stdout.close()
        data = LocalFiles(tmp_path).read("x")
        assert len(data) == 400_000
        assert len(set(data)) == 1
