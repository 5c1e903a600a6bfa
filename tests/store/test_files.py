from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spared_fm.store.files import STAGING, LocalFiles


def test_replace_and_read_round_trip(tmp_path: Path):
    files = LocalFiles(tmp_path)
    files.replace("a/b/c.bin", b"one")
    files.replace("a/b/c.bin", b"two")
    assert files.read("a/b/c.bin") == b"two"
    assert files.list("a/b") == ["c.bin"]
    assert files.list(STAGING) == []


def test_list_of_nothing_is_empty(tmp_path: Path):
    files = LocalFiles(tmp_path)
    files.replace("file", b"")
    assert files.list("no/such/folder") == []
    assert files.list("file") == []


def test_put_if_absent_keeps_the_first(tmp_path: Path):
    files = LocalFiles(tmp_path)
    assert files.put_if_absent("r/0.json", b"first")
    assert not files.put_if_absent("r/0.json", b"second")
    assert files.read("r/0.json") == b"first"


def test_put_if_absent_has_one_winner_among_threads(tmp_path: Path):
    files = LocalFiles(tmp_path)
    barrier = threading.Barrier(16)
    wins: list[int] = []

    def put(i: int) -> None:
        barrier.wait()
        if files.put_if_absent("r", str(i).encode()):
            wins.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert files.read("r") == str(wins[0]).encode()


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


def test_remove_takes_folders_and_files_and_bears_absence(tmp_path: Path):
    files = LocalFiles(tmp_path)
    files.replace("d/x", b"1")
    files.replace("f", b"1")
    for key in ("d", "f", "absent"):
        files.remove(key)
    assert set(files.list("")) == {STAGING}


def test_rename_folder_refuses_a_taken_name(tmp_path: Path):
    files = LocalFiles(tmp_path)
    for attempt in range(2):
        with files.staging_folder() as staging:
            (staging / "node").mkdir()
            (staging / "node" / "x").write_text(str(attempt))
            if attempt == 0:
                files.rename_folder(staging / "node", "node")
            else:
                with pytest.raises(OSError, match=r"not empty|exists"):
                    files.rename_folder(staging / "node", "node")
    assert files.read("node/x") == b"0"


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
