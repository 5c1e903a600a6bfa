"""Adaptive median completion of one slide, compiled."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spared_fm.targets.spared.graph import Hops


def complete_median(values: np.ndarray, hops: Hops) -> np.ndarray:
    """Fill the zeros of one slide with the median of a growing neighbourhood (SpaRED, arXiv 2407.13027).

    A zero takes the median over the spot and all spots within h hops, zeros and its own zero included, for the smallest
    h at which that median is not zero; else the median of the gene's non-zero values on the slide; else, for a gene that
    is zero all over the slide, 0. Medians are taken over the values given, never over filled ones; genes are
    independent.

    Parameters
    ----------
    values
        Non-negative expression of one slide, spots × genes.
    hops
        Of :func:`spared_fm.targets.spared.graph.hops_around` for the spots of that slide.

    Returns
    -------
    np.ndarray
        Spots × genes, float64; entries that were not zero are unchanged.

    Raises
    ------
    InputError
        Negative or non-finite values.
    """
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError("median completion needs finite, non-negative expression (use the log1p layer)")
    # by gene: the neighbours of a spot then lie in one short stretch of memory
    by_gene = np.array(np.asarray(values).T, np.float64, order="C")
    filled = by_gene.copy()
    _kernel()(by_gene, filled, hops.spots, hops.ends)
    return filled.T


@cache
def _kernel() -> Callable[..., None]:
    """Compile once a process, at first use."""
    from numba import njit  # slow to import

    @njit(nogil=True)
    def select(a: np.ndarray, n: int, k: int) -> float:
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

    @njit(nogil=True)
    def median(a: np.ndarray, n: int, zeros: int) -> float:
        """Median of a[:n] (all positive) and as many ``zeros``; a is reordered."""
        size = n + zeros
        upper = select(a, n, size // 2 - zeros)
        if size % 2:
            return upper
        below = size // 2 - 1 - zeros
        lower = 0.0
        for i in range(below + 1):  # after select all smaller ones stand in front
            lower = max(lower, a[i])
        return (lower + upper) / 2.0

    @njit(nogil=True)
    def fill(values: np.ndarray, filled: np.ndarray, index: np.ndarray, ends: np.ndarray) -> None:
        n_genes, n_spots = values.shape
        buffer = np.empty(n_spots)
        for gene in range(n_genes):
            row = values[gene]
            fallback = -1.0  # of this gene, not computed yet
            for spot in range(n_spots):
                if row[spot] != 0.0:
                    continue
                start = ends[spot, 0] - 1
                at, found = start, 0
                settled = False
                for hop in range(1, ends.shape[1]):
                    end = ends[spot, hop]
                    while at < end:
                        value = row[index[at]]
                        buffer[found] = value
                        found += value != 0.0  # a zero is overwritten by the next
                        at += 1
                    size = end - start
                    # a median of non-negative numbers is not zero when half of them (rounded up) are not
                    if found > 0 and found >= (size + 1) // 2:
                        filled[gene, spot] = median(buffer, found, size - found)
                        settled = True
                        break
                if settled:
                    continue
                if fallback < 0.0:
                    found = 0
                    for other in range(n_spots):
                        if row[other] != 0.0:
                            buffer[found] = row[other]
                            found += 1
                    fallback = median(buffer, found, 0) if found else 0.0
                filled[gene, spot] = fallback

    return fill
