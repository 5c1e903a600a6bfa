"""Mapped reads of uncompressed embedding chunks: the chunk file is raw rows, so rows are gathered without a codec pipeline.

Measured (see ``facts/store.md`` A1 in the project's notes): a gather of 4,096 random rows is an order of magnitude faster
than through zarr-python, while the files stay plain Zarr for everybody else.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _most_maps() -> int:
    """Half of the file descriptors this process may have: a mapping holds one."""
    try:
        import resource
    except ImportError:  # not on this platform; its own limits are higher
        return 4096
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if soft == resource.RLIM_INFINITY else max(16, soft // 2)


MAPPED_CHUNKS = _most_maps()
"""Most chunk files kept mapped at once by one array."""


class MappedRows:
    """Row access to raw chunk files.

    Parameters
    ----------
    chunk_file
        Gives the local file of chunk ``k``; called once for a chunk that is mapped.
    shape
        (rows, dim) of the array.
    chunk_rows
        Rows per chunk; the last chunk's file is padded to it.
    dtype
        Little-endian dtype of the values.
    """

    def __init__(
        self, chunk_file: Callable[[int], Path], shape: tuple[int, int], chunk_rows: int, dtype: np.dtype
    ) -> None:
        self.chunk_file = chunk_file
        self.shape = shape
        self.chunk_rows = chunk_rows
        self.dtype = dtype
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def chunk(self, k: int) -> np.ndarray:
        """Read-only view of chunk ``k``, shape (rows in the chunk, dim)."""
        mapped = self._maps.get(k)
        if mapped is None:
            shape = (self.chunk_rows, self.shape[1])
            # a plain view: every slice of numpy's memmap class is dear
            mapped = np.asarray(np.memmap(self.chunk_file(k), dtype=self.dtype, mode="r", shape=shape))
            self._maps[k] = mapped
            if len(self._maps) > MAPPED_CHUNKS:
                self._maps.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):  # another thread has just let it go
                self._maps.move_to_end(k)
        return mapped[: min(self.chunk_rows, self.shape[0] - k * self.chunk_rows)]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Copy ``rows`` (any order, repeats allowed) into an array of shape (len(rows), dim)."""
        out = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        # A row as one opaque item: numpy copies it whole, where indexing along an axis pays for every row (measured by
        # benchmarks/store_reads.py: a gather of random rows takes 1.8 times as long as from one memory map, against 2.5).
        row = np.dtype((np.void, self.shape[1] * self.dtype.itemsize))
        target = out.view(row)[:, 0]
        chunks, local = np.divmod(rows, self.chunk_rows)
        if self.shape[0] <= self.chunk_rows << 16:
            chunks = chunks.astype(np.uint16)  # sorted by radix
        order = np.argsort(chunks, kind="stable")
        chunks, local = chunks[order].astype(np.int64), local[order]
        edges = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1))  # where each chunk's run starts, and the end
        for start, stop in pairwise(edges.tolist()):
            target[order[start:stop]] = self.chunk(int(chunks[start])).view(row)[:, 0].take(local[start:stop])
        return out
