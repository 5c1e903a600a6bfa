"""Files of an index, checked before FAISS reads a byte of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_STEP = 1 << 16  # bytes that stay in the processor's cache, and for which memory isn't mapped anew each time


class MissingFileError(InputError):
    """A file of the index is gone: it was replaced by a newer build, whose card is to be read."""


def checksum(path: Path, size: int | None = None) -> str:
    """Return the crc32c, as 8 hex digits, of a file or of its first ``size`` bytes."""
    total = google_crc32c.Checksum()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, _STEP))):
            total.update(part)
            left -= len(part)
    return total.digest().hex()


def file_of(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Return the path of a file that a card lists, once its name and size are as the card says.

    Raises
    ------
    InputError
        A name that leaves the folder, or another size.
    MissingFileError
        No such file.
    """
    name = str(entry["file"])
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name:
        raise InputError(f"{folder}: the card names a file {name!r} outside its folder; build the index again")
    path = folder / name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise MissingFileError(f"{path} is gone; build the index again") from None
    if size != entry["bytes"]:
        raise InputError(f"{path} has {size} bytes, {entry['bytes']} were written; build the index again")
    return path


def check(path: Path, crc32c: str, size: int | None = None) -> None:
    """Compare a file (or its first ``size`` bytes) with its checksum.

    Raises
    ------
    InputError
        They differ.
    """
    if checksum(path, size) != crc32c:
        raise InputError(f"{path} is damaged (its checksum differs); build the index again")
