"""Mapped reads of uncompressed embedding chunks: the chunk file is raw rows, so rows are gathered without a codec pipeline.

Measured (see ``facts/store.md`` A1 in the project's notes): a gather of 4,096 random rows is an order of magnitude faster
than through zarr-python, while the files stay plain Zarr for everybody else.
"""

from __future__ import annotations

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
            mapped = np.memmap(self.chunk_file(k), dtype=self.dtype, mode="r", shape=(self.chunk_rows, self.shape[1]))
            self._maps[k] = mapped
            if len(self._maps) > MAPPED_CHUNKS:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(k)
        return mapped[: min(self.chunk_rows, self.shape[0] - k * self.chunk_rows)]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Copy ``rows`` (any order, repeats allowed) into an array of shape (len(rows), dim)."""
        out = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        in_order = bool((np.diff(rows) >= 0).all())
        order = np.arange(len(rows)) if in_order else np.argsort(rows, kind="stable")
        ordered = rows[order]
        chunks = ordered // self.chunk_rows
        edges = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1))  # where each chunk's run starts, and the end
        for start, stop in pairwise(edges):
            k = int(chunks[start])
            local = ordered[start:stop] - k * self.chunk_rows
            if in_order:  # straight into place; "clip" spares a buffer, and every row is inside
                np.take(self.chunk(k), local, axis=0, out=out[start:stop], mode="clip")
            else:
                out[order[start:stop]] = self.chunk(k)[local]
        return out
