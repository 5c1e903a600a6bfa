"""The three primitives everything durable is written with: put-if-absent, atomic replace, list.

Temporary files live in ``<store>/.staging``, on the same file system as their targets but outside ``data.zarr``, so a kill
at any instant leaves nothing half-written under a name that a reader would open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGING = ".staging"


class LocalFiles:
    """Durable file operations under one local folder.

    Parameters
    ----------
    root
        The store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        """Absolute path of ``key`` (relative, ``/``-separated)."""
        return self.root / key

    def read(self, key: str) -> bytes:
        """Content of ``key``; raises ``FileNotFoundError`` when absent."""
        return self.path(key).read_bytes()

    def exists(self, key: str) -> bool:
        """Whether a file or folder named ``key`` exists."""
        return self.path(key).exists()

    def list(self, key: str) -> list[str]:
        """Names directly under folder ``key``, sorted; empty when there is no such folder."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path(key)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def replace(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key`` atomically and durably (temp, fsync, rename, fsync of the folder)."""
        with self._temporary(data) as temporary:
            target = self._parent_made(key)
            os.replace(temporary, target)
            _fsync_folder(target.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` under ``key`` unless something is there already.

        Returns
        -------
        bool
            True when this call created the file; False when another writer was first. The file is never seen half-written:
            it is linked into place complete.
        """
        with self._temporary(data) as temporary:
            target = self._parent_made(key)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _fsync_folder(target.parent)
            return True

    def remove(self, key: str) -> None:
        """Delete the file or folder ``key``; nothing happens when it is absent.

        A folder is first renamed into the staging area, so that readers see it whole or not at all.
        """
        path = self.path(key)
        if path.is_dir():
            with self.staging_folder() as staging, contextlib.suppress(FileNotFoundError):
                os.replace(path, staging / "removed")
        else:
            path.unlink(missing_ok=True)

    def rename_folder(self, staged: Path, key: str) -> None:
        """Move a staged folder to ``key`` in one step, durably; fails when a non-empty ``key`` exists."""
        target = self._parent_made(key)
        sync_tree(staged)
        os.rename(staged, target)
        _fsync_folder(target.parent)

    @contextlib.contextmanager
    def staging_folder(self) -> Iterator[Path]:
        """Give a fresh folder inside the staging area; what is left in it is deleted at the end."""
        folder = self.root / STAGING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        staging = self.root / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        temporary = staging / uuid.uuid4().hex
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _parent_made(self, key: str) -> Path:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _fsync_folder(Path(parent))


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
