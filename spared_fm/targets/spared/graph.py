"""Spot graphs of one slide, by the rules that SpaRED takes from squidpy, without squidpy.

Row i of a graph holds the neighbours of spot i: those that a search from i finds. Squidpy wrote this matrix in either
orientation depending on its version, which changes border spots only (inside a complete grid the relation is mutual).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from spared_fm.targets.neighbors import nearest

GRID_SLACK = 1.3
"""On a square grid a neighbour lies nearer than this many medians of all neighbour distances of the slide."""


class Hops(NamedTuple):
    """Spots around each spot, sorted by hop: the spot itself, those one hop away, two hops, ….

    ``spots`` is ``(n_entries,)`` int32; those of spot i within h hops are ``spots[ends[i, 0] - 1 : ends[i, h]]``, where
    ``ends`` is ``(n_spots, n_hops + 1)`` int64.
    """

    spots: np.ndarray
    ends: np.ndarray


def slide_graph(xy: np.ndarray, *, hex_geometry: bool = True) -> sp.csr_array:
    """Neighbours of the spots of one slide.

    Parameters
    ----------
    xy
        Spot centres, ``(n_spots, 2)``, any one unit.
    hex_geometry
        True: the 6 nearest spots, wherever they are, so that a border spot reaches further out. False: those of the 8
        nearest that lie nearer than :data:`GRID_SLACK` medians, so that a border spot has fewer. Equal distances go by
        spot index (:func:`spared_fm.targets.neighbors.nearest`).

    Returns
    -------
    scipy.sparse.csr_array
        ``(n_spots, n_spots)`` float64 of ones, zero diagonal; row i holds the neighbours of spot i.
    """
    points = np.asarray(xy, np.float64)
    index = nearest(points, 6 if hex_geometry else 8)
    near = np.ones(index.shape, bool)
    if not hex_geometry and index.size:
        distance = np.linalg.norm(points[index] - points[:, None], axis=2)
        near = distance < GRID_SLACK * np.median(distance)
    ends = np.concatenate([[0], np.cumsum(near.sum(axis=1))])
    columns = index[near]
    graph = sp.csr_array((np.ones(len(columns)), columns, ends), shape=(len(points), len(points)))
    graph.sort_indices()
    return graph


def hops_around(graph: sp.csr_array, n_hops: int = 4) -> Hops:
    """Spots that each spot reaches in at most 1, 2, … ``n_hops`` steps along the rows of ``graph``."""
    from spared_fm.targets.spared.kernels import reach  # compiles

    return Hops(*reach(graph.indptr, graph.indices, n_hops))
