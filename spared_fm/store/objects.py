"""The store on an object store: the three primitives, and whole nodes, on fsspec URLs (``s3://``, ``memory://``).

An object appears whole or not at all, so ``replace`` is a plain PUT. Put-if-absent is a conditional PUT (``If-None-Match: *``),
which the server decides. Folders don't exist and can't be renamed: a folder is published object by object, the one that makes
it a node last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import random
import re
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.cache import Cache
from spared_fm.store.files import COMMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from zarr.abc.store import Store

KINDS = ("s3", "memory")
"""URL schemes whose put-if-absent is known to have one winner."""
UPLOADS = 8
"""Objects sent or deleted at once: latency, not bandwidth, bounds small objects."""
_CONFLICT_RETRIES = 8
_memory_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class StoreUrl:
    """A store's URL; joins like a path, prints as the URL."""

    url: str

    def __truediv__(self, key: str) -> StoreUrl:
        return StoreUrl(f"{self.url}/{key}")

    def __str__(self) -> str:
        return self.url


def url_of(root: str | Path | StoreUrl) -> str | None:
    """Give the normal form of a store's URL, or None for a local path.

    >>> url_of("s3://bucket/store/"), url_of(Path("s3://bucket/store")), url_of("my-store")
    ('s3://bucket/store', 's3://bucket/store', None)
    """
    # pathlib makes one slash of two, and command lines like to hand over paths
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.*?)/*", str(root), re.DOTALL)
    if match is None:
        return None
    kind, rest = match[1].lower(), match[2].strip("/")
    if kind not in KINDS:
        known = ", ".join(f"{name}://" for name in KINDS)
        raise InputError(f"{root}: a store can't lie on {kind}://; give a local folder or a URL with {known}")
    if not rest:
        raise InputError(f"{root}: names no place for a store; give e.g. {kind}://bucket/my-store")
    return f"{kind}://{rest}"


class ObjectFiles:
    """File operations under one prefix of an object store.

    Parameters
    ----------
    url
        As :func:`url_of` gives it. ``memory://`` lives in one process. ``s3://`` takes credentials and endpoint where the AWS
        tools do (environment, ``~/.aws``).
    """

    def __init__(self, url: str) -> None:
        self.root = StoreUrl(url)
        self._kind, _, rest = url.partition("://")
        self._base = f"/{rest}" if self._kind == "memory" else rest
        self._cache = Cache(self)
        self._fs  # noqa: B018  a missing library is told now

    # -- primitives ----------------------------------------------------------------------------------------------------

    def read(self, key: str) -> bytes:
        """Content of ``key``; raises ``FileNotFoundError`` when absent."""
        with self._told(key):
            return self._fs.cat_file(self._path(key))

    def exists(self, key: str) -> bool:
        """Whether an object named ``key``, or anything below it, exists."""
        with self._told(key):
            return bool(self._fs.exists(self._path(key)))

    def list(self, key: str) -> list[str]:
        """Names directly under ``key``, sorted, as the server has them now; empty when there is nothing."""
        prefix = self._path(key) + "/"
        try:
            with self._told(key):
                found = self._fs.ls(prefix.rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix) and name != prefix)

    def replace(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key``; readers see the old object or the new one."""
        with self._told(key, writing=True), self._lock:
            self._fs.pipe_file(self._path(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` under ``key`` unless something is there already; the server decides who was first.

        Returns
        -------
        bool
            True when this call created the object. False when one was there; also when the answer to our own successful PUT was
            lost and the repeated one met our object: never are there two winners.
        """
        for attempt in range(_CONFLICT_RETRIES):
            try:
                with self._told(key, writing=True), self._lock:
                    self._fs.pipe_file(self._path(key), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                status = _http_status(error)
                if status == 412:  # precondition failed, from servers that don't name the condition
                    return False
                if status != 409 or attempt == _CONFLICT_RETRIES - 1:
                    raise
            # 409: two conditional PUTs ran at the same time, and the server asks to try again
            time.sleep(0.05 * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311  spread, not secrecy
        raise AssertionError("unreachable")

    def remove(self, key: str) -> None:
        """Delete the object or everything under ``key``; nothing happens when it is absent.

        What makes it a node goes first, receipts before the chunks they vouch for: stopped at any instant, what is left is not
        taken for data.
        """
        names = self._names(key)
        if not names:
            with self._told(key), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))
            return

        def delete(name: str) -> None:
            with self._told(f"{key}/{name}"), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(f"{key}/{name}"))

        ranks: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for name in sorted(names):
            ranks[2 if not name.endswith(".json") else 1 if "/" in name else 0].append(name)
        for group in ranks.values():
            _all_of(delete, group)

    # -- folders -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def staging_folder(self) -> Iterator[Path]:
        """Give a fresh local temporary folder; it is deleted at the end."""
        with tempfile.TemporaryDirectory(prefix="spared-fm-") as folder:
            yield Path(folder)

    def publish(self, staged: Path, key: str, *, last: str = COMMIT) -> None:
        """Make a staged local folder appear as ``key``: its objects, then the one named ``last``.

        Every object is put if absent, and one that is there must be the same: two writers of different content can't mix, and
        the same content sent again after a kill completes it. What is there is compared before anything is sent, so that
        another content does not spoil that.

        Raises
        ------
        FileExistsError
            ``key`` is published already, with another ``last``.
        InputError
            There are other objects under ``key`` that nobody published.
        """

        def refuse() -> None:
            if self.exists(f"{key}/{last}"):
                raise FileExistsError(errno.EEXIST, "exists already", str(self.root / key))
            raise InputError(
                f"{self.root / key}: another write to it is going on or was stopped half-way; wait for it, use another "
                f"name, or `spared-fm gc --store {self.root}` and run again"
            )

        def compare(name: str) -> None:
            if name not in names or self.read(f"{key}/{name}") != (staged / name).read_bytes():
                refuse()

        def put(name: str) -> None:
            data = (staged / name).read_bytes()
            if not self.put_if_absent(f"{key}/{name}", data) and self.read(f"{key}/{name}") != data:
                refuse()

        names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
        there = self._names(key)
        _all_of(compare, sorted(there))
        _all_of(put, sorted(names - there - {last}))
        put(last)

    @contextlib.contextmanager
    def local_folder(self, key: str) -> Iterator[Path]:
        """Download everything under ``key`` into a temporary folder."""
        with self.staging_folder() as staging:

            def fetch(name: str) -> None:
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.read(f"{key}/{name}"))

            _all_of(fetch, self._names(key))
            yield staging

    def local_file(self, key: str, crc32c: str) -> Path:
        """Local copy of the object ``key``; see :class:`spared_fm.store.cache.Cache`."""
        return self._cache.fetch(key, crc32c)

    def zarr_store(self, key: str) -> Store:
        """Read-only zarr store of the node ``key``."""
        from zarr.storage import FsspecStore

        return FsspecStore(_async_filesystem(self._kind, os.getpid()), read_only=True, path=self._path(key))

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def _fs(self) -> Any:
        return _filesystem(self._kind, os.getpid())

    @property
    def _lock(self) -> contextlib.AbstractContextManager[Any]:
        """What makes look-and-put one step where there is no server to do it."""
        return _memory_lock if self._kind == "memory" else contextlib.nullcontext()

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    def _names(self, key: str) -> set[str]:
        """Names of all objects below ``key``, relative to it."""
        prefix = self._path(key) + "/"
        with self._told(key):
            found = self._fs.find(prefix.rstrip("/"))
        names = {name.removeprefix(prefix) for name in found if name.startswith(prefix) and name != prefix}
        if strange := [name for name in names if ".." in PurePosixPath(name).parts or name.startswith("/")]:
            raise InputError(f"{self.root / key}: object {strange[0]!r} is not of a store; remove it")
        return names

    @contextlib.contextmanager
    def _told(self, key: str, *, writing: bool = False) -> Iterator[None]:
        """Turn the client library's errors into ``OSError`` that names the object."""
        try:
            yield
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if writing:
                raise InputError(f"{self.root}: there is no such bucket; make it first") from error
            raise
        except OSError as error:
            if error.filename is None and _http_status(error) not in (409, 412):
                raise type(error)(error.errno or errno.EIO, _words(error), str(self.root / key)) from error
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
                raise OSError(errno.EIO, _words(error), str(self.root / key)) from error
            raise


def _all_of(call: Callable[[str], None], names: Iterable[str]) -> None:
    """Call for every name, several at once; the first error stops what has not begun."""
    pool = ThreadPoolExecutor(UPLOADS)
    try:
        for _ in pool.map(call, names):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _http_status(error: BaseException | None) -> int | None:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        error = error.__cause__
    return None


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@functools.lru_cache(maxsize=8)
def _filesystem(kind: str, pid: int) -> Any:
    """One client per kind and process (a client's thread does not survive a fork), listing what is there now."""
    return _new_filesystem(kind)


@functools.lru_cache(maxsize=8)
def _async_filesystem(kind: str, pid: int) -> Any:
    """One client per kind and process on zarr's own event loop."""
    if kind == "memory":
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        return AsyncFileSystemWrapper(_filesystem(kind, pid), asynchronous=True)
    return _new_filesystem(kind, asynchronous=True)


def _new_filesystem(kind: str, **options: Any) -> Any:
    import fsspec

    if kind == "s3":
        # one GET per object: parts fetched at once could be of two versions
        options |= {"use_listings_cache": False, "max_concurrency": 1, "skip_instance_cache": True}
    try:
        return fsspec.filesystem(kind, **options)
    except ImportError as error:
        raise InputError(f"{kind}:// stores need a library; `pip install 'spared-fm[{kind}]'`") from error
