"""What graph and retrieval models share: neighbourhoods within a slide, and exemplars from other slides.

Tables are (rows, k) int64 row numbers, the nearest first, -1 where there are no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.spatial import cKDTree

from spared_fm.errors import InputError
from spared_fm.heads.base import row_groups, slide_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Table = NDArray[np.int64]

METRICS = ("l2", "l1", "cosine")
#: Spatial blocks that a lone slide is cut into, so that a spot's exemplars are not the spots beside it.
BLOCKS = 8


def nearest_table(coords: NDArray[np.float64], groups: Any, k: int) -> Table:
    """Return the ``k`` nearest spots of the same slide, however far, without the spot itself.

    At the border of the tissue these are not all adjacent: `spared_fm.heads.neighbours.hop_table` returns those that are.

    Parameters
    ----------
    coords
        (n, 2) positions within the slide.
    groups
        Slides as `row_groups` takes them.
    k
        Columns.

    Returns
    -------
    numpy.ndarray
        (n, k), -1 where a slide has fewer spots.
    """
    out = np.full((len(coords), k), -1, dtype=np.int64)
    for _, rows in slide_rows(groups, len(coords)):
        count = min(k, len(rows) - 1)
        if count > 0:
            _, found = cKDTree(coords[rows]).query(coords[rows], k=count + 1)
            out[rows, :count] = rows[without_self(found)]
    return out


def pieces(coords: Any, groups: Any, rows: int, max_spots: int) -> NDArray[np.int64]:
    """Cut slides into compact pieces of at most ``max_spots`` spots: halved along the longer side until they fit.

    Parameters
    ----------
    coords
        (rows, 2) positions; None cuts large slides by the order of their rows.
    groups
        Slides as `row_groups` takes them.
    rows
        Number of rows.
    max_spots
        Most spots of a piece.

    Returns
    -------
    numpy.ndarray
        (rows,) number of the piece of each spot. Slides that fit are one piece; the pieces of a slide depend on its own
        spots alone.

    Raises
    ------
    InputError
        ``max_spots`` is below 1.
    """
    if max_spots < 1:
        raise InputError(f"max_spots is {max_spots}: use 1 or more")
    xy = np.arange(rows, dtype=np.float64)[:, None] if coords is None else np.asarray(coords, dtype=np.float64)
    out, count = np.zeros(rows, dtype=np.int64), 0
    for _, own in slide_rows(groups, rows):
        waiting = [own]
        while waiting:
            part = waiting.pop()
            if len(part) > max_spots:
                along = int(np.argmax(np.ptp(xy[part], axis=0)))
                part = part[np.argsort(xy[part, along], kind="stable")]
                half = len(part) // 2
                waiting += [np.sort(part[half:]), np.sort(part[:half])]
            else:
                out[part] = count
                count += 1
    return out


def relatives(groups: Any, coords: Any, rows: int) -> NDArray[np.int64]:
    """Return a number per training spot; spots of the same number may not be each other's exemplars.

    A new slide has no spots of its own among the exemplars, so a training spot must not have any either: by patient if
    there are two (a slide has one patient), else by slide if there are two, else by compact block of the only slide
    (`BLOCKS` of them; each row by itself without coords).

    Parameters
    ----------
    groups, coords
        As in `Head.fit`.
    rows
        Number of rows.
    """
    slides, patients = row_groups(groups, rows)
    for labels in (patients, slides):
        found, code = np.unique(labels, return_inverse=True)
        if len(found) > 1:
            return code.astype(np.int64)
    if coords is None:
        return np.arange(rows)
    return pieces(coords, None, rows, max(1, -(-rows // BLOCKS)))


def exemplars(
    queries: NDArray[Any],
    bank: NDArray[Any],
    k: int,
    *,
    metric: Literal["l2", "l1", "cosine"] = "l2",
    own: NDArray[np.int64] | None = None,
) -> Table:
    """Return the rows of ``bank`` nearest to each query; the search is exact (faiss, flat).

    Parameters
    ----------
    queries, bank
        (m, d) and (n, d) vectors.
    k
        Columns.
    metric
        Euclidean, city block, or cosine distance.
    own
        (n,) numbers from `relatives` where the queries are the bank itself: rows of the query's number are left out.

    Returns
    -------
    numpy.ndarray
        (m, k) row numbers of the bank, -1 where there are fewer.

    Raises
    ------
    InputError
        Unknown metric, or ``k`` below 1.
    """
    import faiss

    if metric not in METRICS or k < 1:
        raise InputError(
            f"exemplar metric is {metric!r}, k is {k}: use one of {', '.join(METRICS)}, and k of 1 or more"
        )
    queries, bank = np.asarray(queries, dtype=np.float32), np.asarray(bank, dtype=np.float32)
    if metric == "cosine":
        queries, bank = unit_length(queries), unit_length(bank)
    kind = faiss.METRIC_L1 if metric == "l1" else faiss.METRIC_L2
    out = np.full((len(queries), k), -1, dtype=np.int64)
    everyone, all_rows = np.arange(len(bank)), np.arange(len(queries))
    units = [(all_rows, everyone)]
    if own is not None:
        if len(np.unique(own)) == len(bank):  # nobody is related: the first found is the spot itself, or its double
            return without_self(exemplars(queries, bank, k + 1, metric=metric))
        units = [(np.flatnonzero(own == unit), np.flatnonzero(own != unit)) for unit in np.unique(own)]
    for rows, allowed in units:
        count = min(k, len(allowed))
        if count and len(rows):
            _, found = faiss.knn(queries[rows], bank[allowed], count, kind)
            out[rows, :count] = allowed[found]
    return out


def without_self(table: Table) -> Table:
    """Return a table of row numbers without each row's own, one column less."""
    n, k = table.shape
    itself = table == np.arange(n)[:, None]
    itself[~itself.any(axis=1), -1] = True  # it lies behind others of the same distance, or the row is not full
    return table[~itself].reshape(n, k - 1)


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors scaled to length 1; a vector of zeros stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1.0)).astype(np.float32)
