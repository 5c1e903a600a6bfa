"""Neighbour graphs of the spots of one slide. Never call these with spots of two slides at once."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

LAYOUT_NEIGHBORS = {"hex": 6, "square": 8}
"""Nearest neighbours of a spot by grid layout (Visium is hexagonal, legacy ST square)."""

_TIE_CANDIDATES = 12  # no more than 12 points of a hex or square grid lie at one distance within four pitches


def grid_layout(array_row: np.ndarray | None, array_col: np.ndarray | None) -> str | None:
    """Layout of the spot grid from its array positions.

    Parameters
    ----------
    array_row, array_col
        Integer array positions, ``(n_spots,)``; None where unknown.

    Returns
    -------
    str or None
        ``"hex"`` where row + column has one parity throughout (Visium numbers its staggered rows so) and
        spots have neighbours at (±1, ±1) or (0, ±2); ``"square"`` where at least half of the spots have a
        neighbour at (0, ±1) or (±1, 0); else None (also for missing or fractional positions).
    """
    if array_row is None or array_col is None:
        return None
    positions = np.column_stack([np.asarray(array_row, np.float64), np.asarray(array_col, np.float64)])
    if len(positions) < 2 or not np.isfinite(positions).all() or (positions % 1).any():
        return None
    cells = np.unique(positions.astype(np.int64), axis=0)
    occupied = {(int(r), int(c)) for r, c in cells}

    def share(steps: tuple[tuple[int, int], ...]) -> float:
        near = [any((r + dr, c + dc) in occupied for dr, dc in steps) for r, c in occupied]
        return float(np.mean(near))

    if len(np.unique(cells.sum(axis=1) % 2)) == 1:
        return "hex" if share(((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 2), (0, -2))) >= 0.5 else None
    return "square" if share(((0, 1), (0, -1), (1, 0), (-1, 0))) >= 0.5 else None


def nearest(xy: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k`` Euclidean nearest spots of each spot, itself left out.

    Parameters
    ----------
    xy
        Spot centres, ``(n_spots, 2)``, any one unit.
    k
        Neighbours per spot; capped at ``n_spots - 1``.

    Returns
    -------
    np.ndarray
        ``(n_spots, min(k, n_spots - 1))`` int64, nearest first. Distances that agree to a millionth of the
        median neighbour distance count as equal and are ordered by spot index, so the graph of a regular
        grid does not depend on rounding or on the search tree. Border spots reach further out to find their
        ``k``.
    """
    points = np.asarray(xy, np.float64)
    n = len(points)
    k = min(k, n - 1)
    if k <= 0:
        return np.zeros((n, 0), np.int64)
    distance, index = cKDTree(points).query(points, k=min(n, k + 1 + _TIE_CANDIDATES))
    unit = float(np.median(distance[:, 1])) or 1.0
    steps = np.round(distance / unit * 1e6)
    steps[index == np.arange(n)[:, None]] = np.inf  # the spot itself sorts last, also among coincident spots
    order = np.lexsort((index, steps), axis=1)[:, :k]
    return np.take_along_axis(index, order, axis=1).astype(np.int64)


def knn_graph(xy: np.ndarray, k: int, *, normalize: bool = False) -> sp.csr_matrix:
    """Directed k-nearest-neighbour graph: row i holds the neighbours of spot i.

    Parameters
    ----------
    xy, k
        As for :func:`nearest`.
    normalize
        Divide each row by its number of neighbours (the weights of Moran's I in SpaRED).

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(n_spots, n_spots)`` float64, zero diagonal.
    """
    index = nearest(xy, k)
    n, width = index.shape
    weight = 1.0 / width if normalize and width else 1.0
    indptr = np.arange(0, n * width + 1, width) if width else np.zeros(n + 1, np.int64)
    return sp.csr_matrix((np.full(n * width, weight), index.ravel(), indptr), shape=(n, n))
