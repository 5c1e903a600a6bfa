"""Commit: how a chunk and its receipt get into the store when several writers may compute the same chunk.

The rule: at every instant, a chunk that has a receipt matches it, whichever writers run, stall or die, and even when they
compute different bytes (two kinds of device). It is kept by writing the chunk once, and by vouching for bytes before they
are stored:

1. *Intent*: the receipt-to-be is put under ``claims/<k>.<crc32c>.intent``. It vouches for bytes with that checksum.
2. *Chunk*: put if absent. The first writer's bytes stay; nobody overwrites bytes that somebody vouches for.
3. *Receipt*: put if absent, always the receipt of the bytes that are stored: the writer's own when it stored them, else
   the intent of whoever did.

Only bytes that nobody vouches for (damage, or leftovers of a writer that knew no intents) are overwritten, by the one
writer that holds the claim on exactly those bytes. A writer that lost reads the stored chunk back and compares it with the
receipt, so it also notices damage.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import google_crc32c

from spared_fm.store.claims import CLAIMS, acquire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spared_fm.store.files import Files

SETTLE_LEASE_S = 10.0
"""Settling takes milliseconds; a settler that is silent for this long is dead."""
POLL_S = 0.01


def chunk_key(node: str, k: int) -> str:
    """Key of chunk ``k`` of an array of whole rows."""
    return f"{node}/c/{k}/0"


def receipt_key(node: str, k: int) -> str:
    """Key of the receipt of chunk ``k``."""
    return f"{node}/receipts/{k}.json"


def checksum(data: bytes) -> str:
    """Return the crc32c of ``data`` as receipts write it: 8 hex digits."""
    return f"{google_crc32c.value(data):08x}"


def commit(files: Files, node: str, k: int, data: bytes, receipt: Mapping[str, Any]) -> bool:
    """Store chunk ``k`` and its receipt, once.

    Parameters
    ----------
    files
        The store's primitives.
    node
        Key of the array.
    k
        Chunk number.
    data
        The whole chunk object.
    receipt
        Its receipt; ``crc32c`` is that of ``data``.

    Returns
    -------
    bool
        True when this call's receipt is now the chunk's; False when another writer was first: then the stored bytes are
        that writer's, and have been read back and compared with its receipt.
    """
    words = json.dumps(dict(receipt), indent=1).encode()
    intent = _intent_key(node, k, receipt["crc32c"])
    files.put_if_absent(intent, words)
    stored = files.put_if_absent(chunk_key(node, k), data)
    first = stored and files.put_if_absent(receipt_key(node, k), words)
    if not first:
        first = _settle(files, node, k, data, words)
    files.remove(intent)
    return first


def withdraw(files: Files, node: str, k: int) -> None:
    """Take the receipt of chunk ``k`` away, so that no reader serves the chunk; its content is kept beside the claims."""
    try:
        words = files.read(receipt_key(node, k))
    except FileNotFoundError:
        return
    files.put_if_absent(f"{node}/{CLAIMS}/{k}.{uuid.uuid4().hex}.withdrawn", words)
    files.remove(receipt_key(node, k))


def _settle(files: Files, node: str, k: int, data: bytes, words: bytes) -> bool:
    """Make receipt and stored bytes agree: our bytes were not the first, or a receipt was there before them."""
    mine = checksum(data)
    while True:
        stored = _stored(files, node, k)
        if stored is None:
            files.put_if_absent(chunk_key(node, k), data)
            continue
        if _receipted(files, node, k) == stored:
            return False
        claim = acquire(files, f"{node}/{CLAIMS}", f"{k}-{stored}", SETTLE_LEASE_S)
        if claim is None:
            time.sleep(POLL_S)
            continue
        try:
            if _stored(files, node, k) != stored:
                continue  # settled by another writer before the claim was ours
            vouched = words if stored == mine else _read(files, _intent_key(node, k, stored))
            there = _receipted(files, node, k)
            if there == stored:  # looked at after the intent, which goes only when the receipt is there
                return False
            if there is not None:
                withdraw(files, node, k)
            if vouched is None:
                files.replace(chunk_key(node, k), data)
                vouched = words
            if files.put_if_absent(receipt_key(node, k), vouched):
                return vouched is words
        finally:
            claim.release()


def _stored(files: Files, node: str, k: int) -> str | None:
    data = _read(files, chunk_key(node, k))
    return None if data is None else checksum(data)


def _receipted(files: Files, node: str, k: int) -> str | None:
    """Checksum in the receipt; None without one, empty where it can't be read."""
    words = _read(files, receipt_key(node, k))
    if words is None:
        return None
    try:
        return str(json.loads(words)["crc32c"])
    except (ValueError, TypeError, KeyError):
        return ""


def _read(files: Files, key: str) -> bytes | None:
    try:
        return files.read(key)
    except FileNotFoundError:
        return None


def _intent_key(node: str, k: int, crc: str) -> str:
    return f"{node}/{CLAIMS}/{k}.{crc}.intent"
