"""Verify: stored chunks against their receipts."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from spared_fm.store.commit import checksum, chunk_key, receipt_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spared_fm.store.embeddings import EmbeddingArray

UNFINISHED = "unfinished"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with one chunk.

    Attributes
    ----------
    chunk
        Chunk number.
    kind
        ``unfinished`` (neither chunk nor receipt: not damage), ``unreceipted`` (a chunk nobody vouches for), ``missing``
        (a receipt whose chunk is gone), ``size``, ``checksum``, ``receipt`` (unreadable), ``foreign`` (receipt of another
        embedding or chunk).
    text
        One line for the user.
    """

    chunk: int
    kind: str
    text: str


def check_chunk(array: EmbeddingArray, k: int) -> Problem | None:
    """Compare chunk ``k`` as stored with its receipt: presence, size, crc32c of every byte, padding included.

    Parameters
    ----------
    array
        The array.
    k
        Chunk number.

    Returns
    -------
    Problem or None
        None when the chunk is whole.
    """
    files, node = array.layout.files, array.node
    try:
        words = files.read(receipt_key(node, k))
    except FileNotFoundError:
        if files.exists(chunk_key(node, k)):
            return Problem(k, "unreceipted", "stored without a receipt")
        return Problem(k, UNFINISHED, "not finished")
    try:
        receipt = json.loads(words)
        said = (receipt["chunk"], receipt["embedding_id"])
        size, crc = int(receipt["bytes"]), str(receipt["crc32c"])
    except (ValueError, TypeError, KeyError):
        return Problem(k, "receipt", "its receipt can't be read")
    if said != (k, array.attributes["embedding_id"]):
        return Problem(k, "foreign", "its receipt belongs to another embedding or chunk")
    try:
        data = files.read(chunk_key(node, k))
    except FileNotFoundError:
        return Problem(k, "missing", "has a receipt, but the chunk is gone")
    if len(data) != size:
        return Problem(k, "size", f"is {len(data)} bytes, its receipt says {size}")
    found = checksum(data)
    if found != crc:
        return Problem(k, "checksum", f"has crc32c {found}, its receipt says {crc}")
    return None


def verify_array(array: EmbeddingArray) -> Iterator[Problem]:
    """Yield the problems of all chunks of ``array``, in order; unfinished chunks are not looked for.

    One chunk is held in memory at a time.
    """
    files, node = array.layout.files, array.node
    receipts, chunks = set(files.list(f"{node}/receipts")), set(files.list(f"{node}/c"))
    for k in range(array.n_chunks):
        if f"{k}.json" in receipts or str(k) in chunks:
            problem = check_chunk(array, k)
            if problem is not None and problem.kind != UNFINISHED:
                yield problem
