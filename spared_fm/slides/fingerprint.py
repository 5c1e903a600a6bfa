"""Tell whether two files are the same image without reading gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spared_fm.errors import InputError

__all__ = ["fingerprint"]

_EDGE = 1 << 20  # first and last MiB
_BLOCK = 1 << 16  # 64 KiB
_BLOCKS = 64
_WHOLE = 2 * _EDGE + _BLOCKS * _BLOCK  # up to 6 MiB the samples would cover the file anyway


def fingerprint(path: str | Path, *, full: bool = False) -> str:
    """Hash a file's content, sampled by default.

    The sampled hash is the sha256 of these bytes, in this order:

    1. the file's size in bytes, as 8 bytes little-endian;
    2. a file of at most 6 MiB (6,291,456 bytes): all of it. A longer one: its first MiB; then 64 blocks of
       65,536 bytes, block *i* (0…63) starting at byte ``i * (size - 65536) // 63``, so that the first starts
       at 0 and the last ends at the end; then its last MiB.

    It sees every change of length, and of the parts of the file where headers and indexes lie; a change of a
    few bytes in the middle of a long file can escape it, which `full` cures.

    Parameters
    ----------
    path
        A file. Only its content counts, not its name or date.
    full
        Hash every byte: plain sha256, as ``sha256sum`` prints it.

    Returns
    -------
    str
        ``"sha256-sampled:<64 hex>"``, or ``"sha256:<64 hex>"`` when `full`.

    Raises
    ------
    InputError
        The file is missing or can't be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if full:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            size = file.seek(0, 2)
            digest = hashlib.sha256(size.to_bytes(8, "little"))
            for start, length in _samples(size):
                file.seek(start)
                digest.update(file.read(length))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: check the path") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: the file can't be read ({reason}): check path and rights") from error
    return f"sha256-sampled:{digest.hexdigest()}"


def _samples(size: int) -> list[tuple[int, int]]:
    """(start, length) of the parts that are hashed."""
    if size <= _WHOLE:
        return [(0, size)]
    strided = [(i * (size - _BLOCK) // (_BLOCKS - 1), _BLOCK) for i in range(_BLOCKS)]
    return [(0, _EDGE), *strided, (size - _EDGE, _EDGE)]
