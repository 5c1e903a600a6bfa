"""Claims: several writers on one store tell each other what they work on, so that no chunk is computed twice.

A claim is a file ``<array>/claims/<k>.<generation>.json``, put if absent, that names its owner and when its lease ends. The
owner's heartbeat moves that end; when it stops, another writer takes over by putting the next generation, which only one can.
Claims save work and nothing else: what makes several writers safe is :mod:`spared_fm.store.commit`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spared_fm.store.embeddings import EmbeddingArray
    from spared_fm.store.files import Files

LEASE_S = 60.0
"""Seconds without a heartbeat after which an owner is taken for dead. Clocks of the writers may differ by less than this."""
CLAIMS = "claims"


@functools.cache
def _host() -> str:
    """Name of this machine's process table: a pid means the same process only where this is equal."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


class Claim:
    """One held claim; make it with :func:`acquire`.

    Attributes
    ----------
    key
        Its file.
    lease_s
        Seconds the claim lives without a heartbeat.
    """

    def __init__(self, files: Files, folder: str, stem: str, generation: int, lease_s: float) -> None:
        self.files, self.folder, self.stem, self.generation, self.lease_s = files, folder, stem, generation, lease_s
        self._owner = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._released = False

    @property
    def key(self) -> str:
        """Key of the claim's file."""
        return f"{self.folder}/{self.stem}.{self.generation}.json"

    def words(self) -> bytes:
        """Content of the claim's file, its lease counted from now."""
        now = time.time()
        claim = {
            "owner": self._owner,
            "host": _host(),
            "pid": os.getpid(),
            "lease_s": self.lease_s,
            "heartbeat": now,
            "expires": now + self.lease_s,
        }
        return json.dumps(claim, indent=1).encode()

    def renew(self) -> bool:
        """Move the lease's end; False when the claim was released, or taken over by a later generation."""
        with self._lock:  # a heartbeat must not bring back a claim that is being released
            if self._released or generations(self.files, self.folder, self.stem)[-1:] != [self.generation]:
                return False
            self.files.replace(self.key, self.words())
            return True

    def release(self) -> None:
        """Delete the claim and the expired ones before it. What can't be deleted expires."""
        with self._lock:
            self._released = True
            with contextlib.suppress(OSError):
                for generation in generations(self.files, self.folder, self.stem):
                    if generation <= self.generation:
                        self.files.remove(f"{self.folder}/{self.stem}.{generation}.json")


def generations(files: Files, folder: str, stem: str) -> list[int]:
    """List the generations of the claims on ``stem``, ascending; the last is the one in force."""
    found = []
    for name in files.list(folder):
        head, _, rest = name.partition(".")
        number, _, suffix = rest.partition(".")
        if head == stem and suffix == "json" and number.isdigit():
            found.append(int(number))
    return sorted(found)


def read_claim(files: Files, key: str) -> dict[str, Any] | None:
    """Content of a claim's file; None when it is gone or damaged."""
    try:
        claim = json.loads(files.read(key))
        return claim if isinstance(claim["expires"], int | float) else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def is_over(claim: dict[str, Any] | None) -> bool:
    """Whether a claim holds no more: gone, expired, or its owner was a process of this machine that is dead."""
    if claim is None or claim["expires"] < time.time():
        return True
    return claim.get("host") == _host() and isinstance(claim.get("pid"), int) and not _runs(claim["pid"])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def acquire(files: Files, folder: str, stem: str, lease_s: float = LEASE_S) -> Claim | None:
    """Claim ``stem``, or take over its expired claim.

    Returns
    -------
    Claim or None
        None while another owner's lease runs, or when another taker was faster.
    """
    there = generations(files, folder, stem)
    if there and not is_over(read_claim(files, f"{folder}/{stem}.{there[-1]}.json")):
        return None
    claim = Claim(files, folder, stem, there[-1] + 1 if there else 0, lease_s)
    if not files.put_if_absent(claim.key, claim.words()):
        return None
    # A release sets the count back to 0, so that one who listed before it and one who listed after it may both have put a
    # claim, of different generations. The later of the two sees the other one, and gives way; both may.
    for generation in generations(files, folder, stem):
        key = f"{folder}/{stem}.{generation}.json"
        if generation != claim.generation and not is_over(read_claim(files, key)):
            files.remove(claim.key)
            return None
    return claim


@contextlib.contextmanager
def hold(array: EmbeddingArray, k: int, *, lease_s: float = LEASE_S) -> Iterator[bool]:
    """Claim chunk ``k`` while the block runs; write the chunk inside it.

    Parameters
    ----------
    array
        The array.
    k
        Chunk number.
    lease_s
        Seconds without a heartbeat after which others may take the chunk over.

    Yields
    ------
    bool
        True when this writer should compute the chunk. False when another writer is on it, or its receipt is there.
    """
    files = array.layout.files
    if _has_receipt(array, k) or (claim := acquire(files, f"{array.node}/{CLAIMS}", str(k), lease_s)) is None:
        yield False
        return
    _heart.add(claim)
    try:
        # Between the look for a receipt and the claim another writer may have finished and released.
        yield not _has_receipt(array, k)
    finally:
        _heart.discard(claim)
        claim.release()


def _has_receipt(array: EmbeddingArray, k: int) -> bool:
    return array.layout.files.exists(f"{array.node}/receipts/{k}.json")


class _Heart:
    """One thread that renews all claims this process holds, each three times per lease: one beat may be late."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Claim, float] = {}
        self._thread: threading.Thread | None = None

    def add(self, claim: Claim) -> None:
        with self._changed:
            self._due[claim] = time.monotonic() + claim.lease_s / 3
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spared-fm claims", daemon=True)
                self._thread.start()
            self._changed.notify()

    def discard(self, claim: Claim) -> None:
        with self._changed:
            self._due.pop(claim, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None)
                due = [claim for claim, at in self._due.items() if at <= time.monotonic()]
            for claim in due:
                try:
                    ours = claim.renew()
                except OSError:  # the disk refuses; the claim expires, which costs double work at most
                    ours = True
                with self._changed:
                    if claim in self._due:
                        self._due[claim] = time.monotonic() + claim.lease_s / 3
                        if not ours:
                            del self._due[claim]


_heart = _Heart()


def _new_heart() -> None:
    """Threads don't survive a fork, and a child must not renew its parent's claims."""
    global _heart
    _heart = _Heart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_heart)
