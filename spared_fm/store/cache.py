"""Local copies of objects, for readers that need a file: kept under the checksum of their receipt, and checked on every use."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from spared_fm.errors import InputError
from spared_fm.store.commit import checksum
from spared_fm.store.files import LocalFiles

if TYPE_CHECKING:
    from spared_fm.store.files import Files


def cache_folder() -> Path:
    """Where copies lie: ``$SPARED_FM_CACHE``, else ``spared-fm`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SPARED_FM_CACHE") or Path(home) / "spared-fm").absolute()


class Cache:
    """Copies of one store's objects. They may be deleted at any time.

    Parameters
    ----------
    files
        The store's files.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.name = hashlib.sha256(str(files.root).encode()).hexdigest()[:16]

    def fetch(self, key: str, crc32c: str) -> Path:
        """Give a local file with the content of ``key``.

        Parameters
        ----------
        key
            Object key.
        crc32c
            Its checksum as its receipt gives it, 8 hex digits.

        Raises
        ------
        InputError
            The object is gone, or is not what the receipt vouches for.
        """
        if not re.fullmatch(r"[0-9a-f]{8}", crc32c):  # it names a file
            raise InputError(
                f"{self.files.root / key}: its receipt's checksum {crc32c!r} is damaged; `spared-fm verify`"
            )
        copies = LocalFiles(cache_folder() / "objects" / self.name)
        copy = f"{key}/{crc32c}"
        try:
            if checksum(copies.read(copy)) == crc32c:
                return copies.path(copy)
        except FileNotFoundError:
            pass
        try:
            data = self.files.read(key)
        except FileNotFoundError:
            raise InputError(f"{self.files.root / key} is gone; `spared-fm verify --repair` makes it again") from None
        if checksum(data) != crc32c:
            raise InputError(
                f"{self.files.root / key} is damaged: its crc32c is {checksum(data)}, its receipt says {crc32c}; "
                "`spared-fm verify --repair` makes it again"
            )
        copies.replace(copy, data)
        return copies.path(copy)
