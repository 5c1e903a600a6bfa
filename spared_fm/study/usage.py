"""Files of a store with their sizes and ages, wherever the store lies."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spared_fm.store.layout import Layout


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file or object: its key in the store, its size in bytes, seconds since it last changed."""

    key: str
    bytes: int
    age: float


def entries(layout: Layout, key: str = "") -> Iterator[Entry]:
    """Yield every file at and below ``key``; files that vanish meanwhile are left out."""
    now = time.time()
    root = layout.files.root
    if isinstance(root, Path):
        top = root / key
        if top.is_file():
            stat = top.stat()
            yield Entry(key, stat.st_size, now - stat.st_mtime)
        for parent, _, names in os.walk(top):
            for name in names:
                path = os.path.join(parent, name)
                try:
                    stat = os.stat(path, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield Entry(Path(path).relative_to(root).as_posix(), stat.st_size, now - stat.st_mtime)
        return
    import fsspec

    files, base = fsspec.core.url_to_fs(str(root), use_listings_cache=False)
    base = base.rstrip("/")
    for name, details in files.find(f"{base}/{key}".rstrip("/"), detail=True).items():
        yield Entry(name.removeprefix(f"{base}/"), int(details["size"]), now - _changed(details, now))


def total(layout: Layout, key: str) -> int:
    """Bytes at and below ``key``."""
    return sum(entry.bytes for entry in entries(layout, key))


def _changed(details: dict[str, Any], default: float) -> float:
    for name in ("mtime", "LastModified", "last_modified", "created"):
        value = details.get(name)
        if isinstance(value, datetime.datetime):
            return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return default
