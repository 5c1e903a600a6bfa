"""Compiled loops over the spots of one slide. Import this module inside functions: numba is slow to import.

Machine code is kept beside the module or in numba's own cache folder where one of them can be written to, so that only the
first process compiles it (seconds). The loops run in the caller's thread and let go of Python's lock meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

_FEW = 8  # so many values are kept in order without branches, more of them by insertion


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the machine code
        return njit(nogil=True)(function)


@_compiled
def reach(indptr: np.ndarray, indices: np.ndarray, n_hops: int) -> tuple[np.ndarray, np.ndarray]:
    """Spots that each spot reaches along the rows of a CSR graph, breadth first: see ``graph.Hops``."""
    n = len(indptr) - 1
    ends = np.empty((n, n_hops + 1), np.int64)
    spots = np.empty(64 * n, np.int32)
    reached_from = np.full(n, -1, np.int32)  # the last spot that reached it
    total = 0
    for spot in range(n):
        if len(spots) - total <= n:
            spots = np.concatenate((spots, np.empty_like(spots)))
        front = total
        spots[total] = spot
        reached_from[spot] = spot
        total += 1
        ends[spot, 0] = total
        for hop in range(1, n_hops + 1):
            back = total
            for at in range(front, back):
                for entry in range(indptr[spots[at]], indptr[spots[at] + 1]):
                    other = indices[entry]
                    spots[total] = other  # overwritten by the next if it was reached before: faster than a condition
                    total += reached_from[other] != spot
                    reached_from[other] = spot
            front = back
            ends[spot, hop] = total
    return spots[:total].copy(), ends


@_compiled
def _select(a: np.ndarray, n: int, k: int) -> float:
    """Put the k-th smallest of a[:n] in its place (Hoare's quickselect)."""
    low, high = 0, n - 1
    while low < high:
        pivot = a[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while a[i] < pivot:
                i += 1
            while a[j] > pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return a[k]


@_compiled
def _median_of_nonzero(column: np.ndarray, buffer: np.ndarray, two: float) -> float:
    found = 0
    for value in column:
        buffer[found] = value
        found += value != 0  # a zero is overwritten by the next
    if found == 0:
        return two - two
    upper = _select(buffer, found, found // 2)
    if found % 2:
        return upper
    lower = buffer[0]
    for i in range(found // 2):  # after the selection all smaller ones stand in front
        lower = max(lower, buffer[i])
    return (lower + upper) / two


@_compiled
def _median_around(
    column: np.ndarray, spots: np.ndarray, first: int, end: int, n_nonzero: int, best: np.ndarray, two: float
) -> float:
    """Median over ``column[spots[first:end]]``, of which at least half are not zero; ``best`` is room to work in.

    Zeros come first in order, so that it is one of the smallest of the others: few have to be kept in order.
    """
    size = end - first
    rank = size // 2 - (size - n_nonzero)  # of the upper middle value among those that are not zero
    infinite = two * np.inf
    best[: rank + 1] = infinite
    for at in range(first, end):
        value = column[spots[at]]
        if value == 0:
            value = infinite
        if rank < _FEW:
            for i in range(rank + 1):
                other = best[i]
                best[i] = value if value < other else other
                value = other if value < other else value
        elif value < best[rank]:
            i = rank
            while i > 0 and best[i - 1] > value:
                best[i] = best[i - 1]
                i -= 1
            best[i] = value
    if size % 2:
        return best[rank]
    lower = best[rank - 1] if rank > 0 else two - two
    return (lower + best[rank]) / two


@_compiled
def fill_medians(
    values: np.ndarray,
    missing: np.ndarray,
    filled: np.ndarray,
    spots: np.ndarray,
    ends: np.ndarray,
    start: int,
    stop: int,
    two: float,
) -> None:
    """Write the genes ``start`` to ``stop`` of ``values`` with the missing ones completed to ``filled``.

    All arrays but the hops are spots × genes. ``two`` is 2 in the dtype of the values: medians are taken in it.
    """
    n_spots, n_genes = values.shape[0], stop - start
    n_hops = ends.shape[1] - 1
    block = np.empty((n_genes, n_spots), values.dtype)
    nonzero = np.empty((n_spots, n_genes), np.uint8)
    n_nonzero = np.empty(n_genes, np.int32)
    still_open = np.empty(n_genes, np.int64)
    best = np.empty(n_spots, values.dtype)
    last_resort = np.full(n_genes, -two)  # negative: not computed yet
    for spot in range(n_spots):
        for gene in range(n_genes):
            value = values[spot, start + gene]
            if missing[spot, start + gene]:
                value = two - two
            filled[spot, start + gene] = value
            block[gene, spot] = value
            nonzero[spot, gene] = value != 0
    for spot in range(n_spots):
        n_open = 0
        for gene in range(n_genes):
            still_open[n_open] = gene
            n_open += missing[spot, start + gene]
        n_nonzero[:] = 0
        first = ends[spot, 0] - 1
        at = first
        for hop in range(1, n_hops + 1):
            if n_open == 0:
                break
            end = ends[spot, hop]
            while at < end:
                other = spots[at]
                for gene in range(n_genes):  # without a condition, so that it runs on many genes at once
                    n_nonzero[gene] += nonzero[other, gene]
                at += 1
            candidates, n_open = n_open, 0
            for i in range(candidates):
                gene = still_open[i]
                # a median of non-negative numbers is not zero when half of them (rounded up) are not
                if n_nonzero[gene] >= (end - first + 1) // 2:
                    filled[spot, start + gene] = _median_around(
                        block[gene], spots, first, end, n_nonzero[gene], best, two
                    )
                else:
                    still_open[n_open] = gene
                    n_open += 1
        for i in range(n_open):
            gene = still_open[i]
            if last_resort[gene] < 0:
                last_resort[gene] = _median_of_nonzero(block[gene], best, two)
            filled[spot, start + gene] = last_resort[gene]
