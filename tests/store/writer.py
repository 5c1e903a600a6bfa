"""A writer with a stand-in encoder, for tests that kill it: it imports neither torch nor dask and its values are known."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator

import numpy as np

from spared_fm.store.claims import LEASE_S as USUAL_LEASE_S
from spared_fm.store.claims import hold
from spared_fm.store.commit import checksum, commit
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout

LEASE_S = 2.0


def values(array: EmbeddingArray, k: int, device: int = 0) -> np.ndarray:
    """What the encoder gives for chunk ``k``; other devices differ a little."""
    rows = np.arange(array.rows(k).start, array.rows(k).stop)
    return (np.sin(rows[:, None] + np.arange(array.shape[1])) * (1 + device / 64)).astype(np.float32)


def turns(
    array: EmbeddingArray, chunks: Iterable[int], *, lease_s: float = USUAL_LEASE_S, poll_s: float
) -> Iterator[int]:
    """Yield the chunks this writer should write, each while it holds the claim, until all of them have receipts.

    Chunks of other writers are passed over and looked at again; a dead writer's chunks are taken over.
    """
    waiting = list(chunks)
    while waiting:
        others = []
        for k in waiting:
            with hold(array, k, lease_s=lease_s) as held:
                if held:
                    yield k
                elif k in array.missing():
                    others.append(k)
        if len(others) == len(waiting):
            time.sleep(poll_s)
        waiting = others


def write(store: str, key: str, seed: int) -> None:
    """Encode what is missing, sharing the work by claims."""
    rng = np.random.default_rng(seed)
    array = EmbeddingArray(Layout.open(store), "s1", key)
    for k in turns(array, rng.permutation(array.missing()).tolist(), lease_s=LEASE_S, poll_s=0.02):
        time.sleep(rng.uniform(0, 0.02))  # the forward pass
        array.write_chunk(k, values(array, k), device="cpu")


def write_unclaimed(store: str, key: str, seed: int) -> None:
    """Encode on a device of its own without any claims: writers meet on the same chunk, with other bytes."""
    device = seed % 3
    array = EmbeddingArray(Layout.open(store), "s1", key)
    for k in array.missing():
        stored = values(array, k, device).astype(array.dtype)
        data = array._encode_chunk(k, stored)
        receipt = {
            "chunk": k,
            "rows": [array.rows(k).start, array.rows(k).stop],
            "bytes": len(data),
            "crc32c": checksum(data),
            "absent": {},
            "embedding_id": array.attributes["embedding_id"],
            "device": f"device {device}",
        }
        commit(array.layout.files, array.node, k, data, json.loads(json.dumps(receipt)))
