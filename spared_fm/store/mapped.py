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
    from pathlib import Path

MAPPED_CHUNKS = 256
"""Most chunk files kept mapped at once: each holds a file descriptor, and a process has about a thousand."""


class MappedRows:
    """Row access to a folder of raw chunk files ``c/<k>/0``.

    Parameters
    ----------
    folder
        The array's folder.
    shape
        (rows, dim) of the array.
    chunk_rows
        Rows per chunk; the last chunk's file is padded to it.
    dtype
        Little-endian dtype of the values.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], chunk_rows: int, dtype: np.dtype) -> None:
        self.folder = folder
        self.shape = shape
        self.chunk_rows = chunk_rows
        self.dtype = dtype
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def chunk(self, k: int) -> np.ndarray:
        """Read-only view of chunk ``k``, shape (rows in the chunk, dim)."""
        mapped = self._maps.get(k)
        if mapped is None:
            path = self.folder / "c" / str(k) / "0"
            mapped = np.memmap(path, dtype=self.dtype, mode="r", shape=(self.chunk_rows, self.shape[1]))
            self._maps[k] = mapped
            if len(self._maps) > MAPPED_CHUNKS:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(k)
        return mapped[: min(self.chunk_rows, self.shape[0] - k * self.chunk_rows)]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Copy ``rows`` (any order, repeats allowed) into an array of shape (len(rows), dim)."""
        out = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        chunks = ordered // self.chunk_rows
        edges = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1))  # where each chunk's run starts, and the end
        for start, stop in pairwise(edges):
            k = int(chunks[start])
            out[order[start:stop]] = self.chunk(k)[ordered[start:stop] - k * self.chunk_rows]
        return out
