"""Who lies next to whom on a slide, from positions alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from spared_fm.errors import InputError
from spared_fm.heads.base import slide_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Neighbours are nearer than so many pitches: the 6 of a hexagonal grid (1), the 8 of a square one (1, 1.41).
REACH = 1.55


def check_coords(coords: Any, rows: int, name: str) -> NDArray[np.float64]:
    """Return positions as float64.

    Raises
    ------
    InputError
        There are none, or not one finite pair per row.
    """
    if coords is None:
        raise InputError(f"the {name} head needs coords: give (spots, 2) positions within the slide")
    found = np.asarray(coords, dtype=np.float64)
    if found.shape != (rows, 2) or not np.isfinite(found).all():
        raise InputError(f"coords have shape {found.shape} or hold NaN: give finite ({rows}, 2) positions")
    return found


def adjacency(coords: NDArray[np.float64], groups: Any) -> csr_matrix:
    """Return who is next to whom: (n, n) of 0 and 1, symmetric, nothing between slides, no spot with itself.

    Parameters
    ----------
    coords
        (n, 2) positions within the slide, in any unit. The pitch of a slide is the median distance to the nearest spot.
    groups
        Slides as `row_groups` takes them.

    Raises
    ------
    InputError
        Spots of one slide lie on top of each other, as they do when several slides come without ``groups``.
    """
    pairs = []
    for label, rows in slide_rows(groups, len(coords)):
        if len(rows) < 2:
            continue
        tree = cKDTree(coords[rows])
        pitch = float(np.median(tree.query(coords[rows], k=2)[0][:, 1]))
        if pitch == 0:
            raise InputError(f"most spots of slide {label!r} share their position: give coords, and groups per slide")
        pairs.append(rows[tree.query_pairs(REACH * pitch, output_type="ndarray")])
    i, j = np.concatenate(pairs).T if pairs else np.zeros((2, 0), dtype=np.intp)
    both = (np.concatenate([i, j]), np.concatenate([j, i]))
    return csr_matrix((np.ones(len(both[0]), dtype=np.float32), both), shape=(len(coords), len(coords)))


def hop_means(X: NDArray[Any], groups: Any, coords: NDArray[np.float64], hops: int) -> NDArray[np.float32]:
    """Return every spot's features, followed by their means over the spots 1, 2, … steps away.

    Parameters
    ----------
    X
        (n, d) features.
    groups, coords
        As for `adjacency`.
    hops
        How many rings. A spot with an empty ring gets the mean of the ring before.

    Returns
    -------
    numpy.ndarray
        (n, d · (1 + hops)) float32.
    """
    near = adjacency(coords, groups)
    n, d = X.shape
    out = np.empty((n, d * (1 + hops)), dtype=np.float32)
    out[:, :d] = X
    seen = csr_matrix((np.ones(n, dtype=np.float32), (np.arange(n), np.arange(n))), shape=(n, n))
    ring = seen
    for hop in range(1, hops + 1):
        reached = ring @ near
        reached.data[:] = 1.0
        ring = reached - reached.multiply(seen)  # what is reached for the first time
        ring.eliminate_zeros()
        seen = seen + ring
        count = np.diff(ring.indptr)
        now, before = slice(hop * d, (hop + 1) * d), slice((hop - 1) * d, hop * d)
        some = count > 0
        out[:, now] = out[:, before]
        out[some, now] = (ring[some] @ out[:, :d]) / count[some, None]
    return out


def hop_table(coords: NDArray[np.float64], groups: Any, hops: int, most: int | None = None) -> NDArray[np.int64]:
    """Return the spots that can be reached in at most ``hops`` steps between adjacent spots, without the spot itself.

    Parameters
    ----------
    coords, groups
        As for `adjacency`.
    hops
        1: the 6 of a hexagonal grid, or the 8 of a square one. 0: none.
    most
        Columns, of which the nearest spots are kept; None: as many as the largest neighbourhood has.

    Returns
    -------
    numpy.ndarray
        (n, most) row numbers, the nearest first, -1 where there are no more.

    Raises
    ------
    InputError
        Most spots of a slide lie on top of each other.
    """
    n = len(coords)
    near = adjacency(coords, groups)
    reached = near
    for _ in range(1, hops):
        reached = reached + reached @ near
    row, col = (index.astype(np.int64) for index in reached.nonzero())
    others = (row != col) & (hops > 0)
    row, col = row[others], col[others]
    order = np.lexsort((col, ((coords[row] - coords[col]) ** 2).sum(axis=1), row))
    row, col = row[order], col[order]
    count = np.bincount(row, minlength=n)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    width = int(count.max(initial=0)) if most is None else most
    kept = place < width
    out = np.full((n, width), -1, dtype=np.int64)
    out[row[kept], place[kept]] = col[kept]
    return out
