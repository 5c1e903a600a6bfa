"""Spot graphs of one slide, by the rules that SpaRED takes from squidpy, without squidpy.

Row i of a graph holds the neighbours of spot i: those that a search from i finds. Squidpy wrote this matrix in either
orientation depending on its version, which changes border spots only (inside a complete grid the relation is mutual).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from spared_fm.targets.neighbors import knn_graph

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
    graph = sp.csr_array(knn_graph(xy, 6 if hex_geometry else 8))
    if hex_geometry or not graph.nnz:
        return graph
    row, column = graph.nonzero()
    distance = np.linalg.norm(np.asarray(xy, np.float64)[row] - np.asarray(xy, np.float64)[column], axis=1)
    near = distance < GRID_SLACK * np.median(distance)
    return sp.csr_array((np.ones(int(near.sum())), (row[near], column[near])), shape=graph.shape)


def hops_around(graph: sp.csr_array, n_hops: int = 4) -> Hops:
    """Spots that each spot reaches in at most 1, 2, … ``n_hops`` steps along the rows of ``graph``."""
    n = graph.shape[0]
    reach = sp.eye_array(n, format="csr")
    times = sp.eye_array(n, format="csr")  # in how many of the sets 0, 1, … n_hops a spot is
    for _ in range(n_hops):
        reach = sp.csr_array(reach + reach @ graph)
        reach.data[:] = 1.0  # counts of paths → reached or not
        times = sp.csr_array(times + reach)
    entries = sp.coo_array(times)
    hop = n_hops + 1 - entries.data.astype(np.int64)
    row, column = entries.coords
    order = np.lexsort((column, hop, row))
    per_hop = np.bincount(row.astype(np.int64) * (n_hops + 1) + hop, minlength=n * (n_hops + 1))
    return Hops(column[order].astype(np.int32), np.cumsum(per_hop).reshape(n, n_hops + 1))
