"""Searches by smallest similarity, as searches for more and more neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Found = tuple[NDArray[np.int64], NDArray[np.float32]]

#: Neighbours asked for at first, and by how much they grow.
_FIRST, _GROWTH = 64, 8


def within(
    find: Callable[[NDArray[np.float32], int], Found], queries: NDArray[np.float32], least: float, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Ask for more and more results until the last is less similar than ``least``.

    Parameters
    ----------
    find
        Gives ids and similarities (q, k) of queries and k, as :func:`spared_fm.search.exact.search` returns them.
    queries
        (q, d).
    least
        Smallest similarity.
    limit
        Most results of a query.

    Returns
    -------
    limits, ids, similarity
        As :meth:`spared_fm.search.index.Index.range_search` returns them.
    """
    if limit < 1:
        raise InputError(f"the limit is {limit}: ask for 1 or more")
    ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(queries)
    values: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(queries)
    open_, k = np.arange(len(queries)), min(_FIRST, limit)
    while len(open_):
        near, similarity = find(queries[open_], k)
        for i, some, those in zip(open_.tolist(), near, similarity, strict=True):
            kept = (some >= 0) & (those >= least)
            ids[i], values[i] = some[kept], those[kept]
        more = (near[:, -1] >= 0) & (similarity[:, -1] >= least)
        open_ = open_[more] if k < limit else open_[:0]
        k = min(_GROWTH * k, limit)
    limits = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    return limits, np.concatenate([np.empty(0, np.int64), *ids]), np.concatenate([np.empty(0, np.float32), *values])
