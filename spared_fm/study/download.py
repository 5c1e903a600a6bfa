"""Download a file: resumed where it stopped, checked against its sha256, there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.study.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import requests

TRIES = 5
"""Failures in a row, without a byte gained, before giving up."""
PAUSE_S = 1.0
"""Wait after the first failure; doubled after each further one."""
TIMEOUT_S = 60.0
"""Longest wait for the server to answer or to send more."""
BLOCK = 1 << 20
MEGABYTE = 1_000_000
HEADERS = {"User-Agent": "spared-fm", "Accept-Encoding": "identity"}  # bytes are counted: no packing on the way


def download(url: str, target: Path, sha256: str | None = None, *, source: str = "", progress: bool = False) -> str:
    """Download `url` to the file `target`, unless it is there already.

    What was received lies in ``<target>.part``, with the server's mark of that version in ``<target>.mark``: another call goes on
    from there where the server still has the same version and can send a range, else from the start.

    Parameters
    ----------
    url
        ``http://`` or ``https://``.
    target
        Where to; its folder is made.
    sha256
        What the file must be, 64 hex digits; None where that isn't known. A file that is there and is something else is
        downloaded again.
    source
        Where `sha256` is from, for the message when the file is another.
    progress
        Show a bar.

    Returns
    -------
    str
        The file's sha256, 64 hex digits.

    Raises
    ------
    InputError
        The server refuses, or can't be reached any more, or sends another file than `sha256` says; or another process is
        downloading to `target`.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    target.parent.mkdir(parents=True, exist_ok=True)

    def resumed(url: str, output_file: str, pooch: Any) -> None:
        part = target.with_name(f"{target.name}.part")
        mark = target.with_name(f"{target.name}.mark")
        with _alone(part):
            _receive(url, part, mark, progress)
            mark.unlink(missing_ok=True)
            part.replace(output_file)

    try:
        pooch.retrieve(url, known_hash=sha256, fname=target.name, path=target.parent, downloader=resumed)
    except InputError:
        raise
    except ValueError as error:  # pooch's word for another hash
        raise InputError(
            f"{url}: is not the file of sha256 {sha256}{source and f', which {source} asks for'}: it was damaged on the way, or "
            "the publisher has replaced it; fetch again, or take the old hash out"
        ) from error
    return str(pooch.file_hash(str(target)))


def _receive(url: str, part: Path, mark: Path, progress: bool) -> None:
    """Fill `part` until it is the whole file."""
    import requests

    failures = 0
    while True:
        before = _size(part)
        try:
            trouble = _attempt(url, part, mark, progress)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            trouble = f"no answer, or not all of it ({type(error).__name__})"
        except requests.RequestException as error:
            raise InputError(f"{url}: can't be fetched ({type(error).__name__}): check the address") from error
        if not trouble:
            return
        failures = 1 if _size(part) > before else failures + 1
        if failures >= TRIES:
            raise InputError(f"{url}: {trouble}, {TRIES} times in a row; what was received is kept: fetch again later")
        time.sleep(PAUSE_S * 2 ** (failures - 1))


def _attempt(url: str, part: Path, mark: Path, progress: bool) -> str:
    """Ask once for what is missing; return what went wrong, "" when the file is whole now."""
    import requests

    have = _size(part)
    version = mark.read_text() if mark.is_file() else ""
    resume = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    with requests.get(url, headers={**HEADERS, **resume}, stream=True, timeout=TIMEOUT_S) as answer:
        code, reason = answer.status_code, answer.reason
        start, total = _range(answer)
        if code == requests.codes.requested_range_not_satisfiable and total == have:
            return ""  # the last byte had come, and only the renaming was missing
        if code == requests.codes.requested_range_not_satisfiable or start not in (0, have):
            os.truncate(part, 0)
            return "the server gave another range than was asked for"
        if code >= 500 or code in (requests.codes.request_timeout, requests.codes.too_many_requests):
            return f"the server says {code} {reason}"
        if code >= 400:
            raise InputError(f"{url}: the server says {code} {reason}: check the address")
        mark.write_text(_version(answer))
        with part.open("r+b") as file, _megabytes(part.name.removesuffix(".part"), start, total, progress) as advance:
            file.truncate(start)
            file.seek(start)
            for block in answer.iter_content(BLOCK):
                file.write(block)
                advance(len(block))
    return "" if total in (None, _size(part)) else "the connection was cut"


def _range(answer: requests.Response) -> tuple[int, int | None]:
    """Return where the answer's bytes begin in the file, and the file's size where the server tells."""
    if "Content-Range" not in answer.headers:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    span, _, total = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return (int(start) if start.isdigit() else -1), int(total) if total.isdigit() else None


def _version(answer: requests.Response) -> str:
    """Return what tells the file from a later one of that address; "" where nothing does, so that it can't be resumed."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Keep other processes from writing to `part`; a process that dies lets go of it."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part}: another process is downloading to it: wait for that one") from None
        if not part.exists():
            raise InputError(f"{part}: another process has just finished it: fetch again")
        try:
            yield
        finally:
            if part.exists() and not _size(part):
                part.unlink()


@contextlib.contextmanager
def _megabytes(name: str, start: int, total: int | None, show: bool) -> Iterator[Any]:
    done = start
    with bar(name, -(-(total or 0) // MEGABYTE), "MB", show=show) as step:
        step(start // MEGABYTE)

        def advance(size: int) -> None:
            nonlocal done
            step((done + size) // MEGABYTE - done // MEGABYTE)
            done += size

        yield advance
