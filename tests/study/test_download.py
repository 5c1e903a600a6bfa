from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.study import download as module
from spared_fm.study.download import TRIES, download
from tests.study.web import Web, serve

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setattr(module, "BLOCK", 4096)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as served:
        served.files["/a.bin"] = CONTENT
        yield served


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_once_and_then_not_again(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    assert download(f"{web.base}/a.bin", target) == SHA256
    assert target.read_bytes() == CONTENT
    assert download(f"{web.base}/a.bin", target, SHA256) == SHA256
    assert len(web.asked) == 1
    assert names(target.parent) == ["a.bin"]


def test_a_cut_connection_goes_on_where_it_stopped(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 50_000, 7]
    assert download(f"{web.base}/a.bin", tmp_path / "a.bin", SHA256) == SHA256
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0 for _, asked in web.asked]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert 90_000 < starts[1] <= 100_000
    assert 130_000 < starts[2] <= 150_000
    assert names(tmp_path) == ["a.bin"]


def test_the_next_call_goes_on_after_one_that_gave_up(web: Web, tmp_path: Path) -> None:
    web.cuts = [200_000] + [0] * (TRIES - 1)
    with pytest.raises(InputError, match=rf"a\.bin: .* {TRIES} times in a row; what was received is kept"):
        download(f"{web.base}/a.bin", tmp_path / "a.bin")
    assert names(tmp_path) == ["a.bin.mark", "a.bin.part"]
    web.asked.clear()
    assert download(f"{web.base}/a.bin", tmp_path / "a.bin") == SHA256
    (_, asked), *more = web.asked
    assert not more
    assert asked is not None
    assert int(asked.removeprefix("bytes=").removesuffix("-")) > 190_000


@pytest.mark.parametrize("how", ["changed", "no tag", "weak tag", "no ranges"])
def test_what_cannot_be_continued_starts_anew(web: Web, tmp_path: Path, how: str) -> None:
    web.tag = {"no tag": "", "weak tag": 'W/"v1"'}.get(how, '"v1"')
    web.ranges = how != "no ranges"
    web.cuts = [200_000] + [0] * (TRIES - 1)
    with pytest.raises(InputError, match="times in a row"):
        download(f"{web.base}/a.bin", tmp_path / "a.bin")
    if how == "changed":
        web.files["/a.bin"], web.tag = CONTENT[150_000:], '"v2"'  # and shorter than what is there
    download(f"{web.base}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == web.files["/a.bin"]
    if how.endswith("tag"):
        assert not any(asked for _, asked in web.asked)


@pytest.mark.parametrize(("part", "status"), [(CONTENT, "whole"), (CONTENT + b"more", "too long")])
def test_a_part_with_every_byte(web: Web, tmp_path: Path, part: bytes, status: str) -> None:
    (tmp_path / "a.bin.part").write_bytes(part)
    (tmp_path / "a.bin.mark").write_text(web.tag)
    assert download(f"{web.base}/a.bin", tmp_path / "a.bin") == SHA256
    assert len(web.asked) == (1 if status == "whole" else 2)


def test_another_file_than_expected_is_not_kept(web: Web, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the file of sha256 000.*, which my list asks for"):
        download(f"{web.base}/a.bin", tmp_path / "a.bin", "0" * 64, source="my list")
    assert names(tmp_path) == []


def test_a_damaged_file_is_fetched_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1] + b"x")
    assert download(f"{web.base}/a.bin", tmp_path / "a.bin", SHA256) == SHA256
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_refusals(web: Web, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/none: the server says 404 Not Found: check the address"):
        download(f"{web.base}/none", tmp_path / "none")
    assert len(web.asked) == 1
    assert names(tmp_path) == []
    web.statuses = [503, 429]
    assert download(f"{web.base}/a.bin", tmp_path / "a.bin") == SHA256
    web.statuses = [500] * TRIES
    with pytest.raises(InputError, match="the server says 500"):
        download(f"{web.base}/a.bin", tmp_path / "b.bin")
    with pytest.raises(InputError, match="check the address"):
        download("http://", tmp_path / "c.bin")


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as web:
        pass
    with pytest.raises(InputError, match="no answer"):
        download(f"{web.base}/a.bin", tmp_path / "a.bin")


def test_one_at_a_time(web: Web, tmp_path: Path) -> None:
    with (tmp_path / "a.bin.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"a\.bin\.part: another process is downloading"):
            download(f"{web.base}/a.bin", tmp_path / "a.bin")
    assert web.asked == []
