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
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from zarr.abc.store import Store

    from spared_fm.store.objects import StoreUrl

STAGING = ".staging"
COMMIT = "zarr.json"
"""The file of a node that makes it a node: where folders can't be renamed it is written last and removed first."""


class Files(Protocol):
    """What a store needs of the place it lies in: :class:`LocalFiles`, or ``ObjectFiles`` for an object store."""

    @property
    def root(self) -> Path | StoreUrl:
        """The store's folder or URL."""

    def read(self, key: str) -> bytes:
        """Content of ``key``; raises ``FileNotFoundError`` when absent."""

    def exists(self, key: str) -> bool:
        """Whether a file named ``key``, or anything below it, exists."""

    def list(self, key: str) -> list[str]:
        """Names directly under folder ``key``, sorted; empty when there is no such folder."""

    def replace(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key`` atomically and durably."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` under ``key`` unless something is there already; True when this call created it."""

    def remove(self, key: str) -> None:
        """Delete the file or folder ``key``; nothing happens when it is absent."""

    def staging_folder(self) -> AbstractContextManager[Path]:
        """Give a fresh local folder; what is left in it is deleted at the end."""

    def publish(self, staged: Path, key: str, *, last: str = COMMIT) -> None:
        """Make a staged local folder appear as ``key``, whole or not at all; raises ``OSError`` when ``key`` is taken."""

    def local_folder(self, key: str) -> AbstractContextManager[Path]:
        """Give a local folder with the files of folder ``key``, to read only."""

    def local_file(self, key: str, crc32c: str) -> Path:
        """Local path of a file with ``key``'s content, whose checksum a receipt gives as 8 hex digits."""

    def zarr_store(self, key: str) -> Store:
        """Read-only zarr store of the node ``key``; :func:`anndata.read_zarr` takes it too."""


def files_for(root: str | Path | StoreUrl) -> Files:
    """Pick what a store at ``root`` needs: a folder, or a URL of an object store.

    Raises
    ------
    InputError
        The URL's kind is not supported, or its library is not installed.
    """
    from spared_fm.store.objects import ObjectFiles, url_of

    url = url_of(root)
    return ObjectFiles(url) if url else LocalFiles(Path(str(root)).absolute())


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

    def publish(self, staged: Path, key: str, *, last: str = COMMIT) -> None:
        """:meth:`rename_folder`; ``last`` plays no part where a folder is renamed in one step."""
        self.rename_folder(staged, key)

    @contextlib.contextmanager
    def local_folder(self, key: str) -> Iterator[Path]:
        """Give the folder ``key`` itself."""
        yield self.path(key)

    def local_file(self, key: str, crc32c: str) -> Path:
        """Give the file itself, unchecked: ``verify`` does that."""
        return self.path(key)

    def zarr_store(self, key: str) -> Store:
        """Read-only zarr store of the node ``key``."""
        from zarr.storage import LocalStore

        return LocalStore(self.path(key), read_only=True)

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
