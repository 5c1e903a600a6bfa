"""Decoded tiles of an image, kept as long as they fit: neighbouring patches share tiles."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

from spared_fm.slides.stopwatch import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np

__all__ = ["DEFAULT_CACHE_BYTES", "TileCache"]

#: One row of patches over a slide 100,000 pixels wide needs three rows of 256-pixel RGB tiles: 230 MB.
DEFAULT_CACHE_BYTES = 256 << 20


class TileCache:
    """The most recently used tiles, bounded in bytes, for many threads.

    Tiles are decoded outside of the lock, so threads decode different tiles at the same time; a tile that
    another thread is decoding is waited for, never decoded twice.

    Parameters
    ----------
    max_bytes
        The most bytes of decoded tiles to keep. A tile larger than that is returned and not kept.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._tiles: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._pending: dict[Hashable, Future[np.ndarray | None]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles kept."""
        return self._bytes

    def get(self, key: Hashable, decode: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """Return the tile `key`, decoding it if need be.

        Parameters
        ----------
        key
            Names the tile.
        decode
            Makes the tile; None stands for a tile that the file leaves out. What it raises reaches every
            thread that waits for this tile, and the next one tries again.

        Returns
        -------
        numpy.ndarray or None
            Shared with other threads and read-only.
        """
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
            pending = self._pending.get(key)
            if pending is None:
                mine = self._pending[key] = Future()
        if pending is not None:
            with stage("wait"):
                return pending.result()
        try:
            tile = decode()
        except BaseException as error:
            self._settle(key, mine, None)
            mine.set_exception(error)
            raise
        if tile is not None:
            tile.flags.writeable = False
        self._settle(key, mine, tile)
        mine.set_result(tile)
        return tile

    def clear(self) -> None:
        """Forget all tiles; what is being decoded now is returned to its callers and not kept."""
        with self._lock:
            self._tiles.clear()
            self._pending.clear()
            self._bytes = 0

    def _settle(self, key: Hashable, mine: Future[np.ndarray | None], tile: np.ndarray | None) -> None:
        with self._lock:
            if self._pending.get(key) is not mine:
                return  # clear() came between
            del self._pending[key]
            if tile is None or tile.nbytes > self.max_bytes:
                return
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            while self._bytes > self.max_bytes:
                _, oldest = self._tiles.popitem(last=False)
                self._bytes -= oldest.nbytes
