"""Adaptive-median completion, by the rule of SpaRED (arXiv 2407.13027) as its released code has it."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.neighbors import spatial_neighbors

_BLOCK_VALUES = 1 << 22  # values gathered at once (16 MiB of float32)


def adaptive_median(
    values: np.ndarray, mask: np.ndarray | None, xy: np.ndarray, *, k: int, n_hops: int = 4
) -> np.ndarray:
    """Fill missing entries of one slide with the median of a growing neighbourhood.

    A missing entry takes the median over the spot and its neighbours within h hops, zeros and its own zero
    included, for the smallest h ≤ ``n_hops`` at which that median is not zero; else the median of the
    gene's non-zero values on the slide; else, for a gene that is zero all over the slide, 0. Medians are
    always taken over what was measured, never over filled entries, and genes do not touch each other.

    Parameters
    ----------
    values
        Non-negative expression of one slide, ``(n_spots, n_genes)``.
    mask
        ``(n_spots, n_genes)`` bool, True where measured; entries outside it count as zero and are filled.
        None: exactly the zeros are missing (SpaRED's rule).
    xy
        Spot centres, ``(n_spots, 2)``.
    k
        Neighbours per spot: 6 on a hexagonal grid, 8 on a square one.
    n_hops
        Hops tried.

    Returns
    -------
    np.ndarray
        ``(n_spots, n_genes)`` float32 in the unit of ``values``; measured entries are bit-identical to the
        input.

    Raises
    ------
    InputError
        Negative or non-finite values, or shapes that do not fit.

    Notes
    -----
    A median of non-negative numbers is non-zero exactly when at least half of them are (one more than half
    of an odd number), so one sparse product per hop tells which entries are settled there and each entry's
    median is computed once. Memory beyond input and output stays near 16 MiB plus one block of genes.
    """
    measured = np.array(values, dtype=np.float32, order="C")
    if measured.ndim != 2 or np.shape(xy) != (len(measured), 2):
        raise InputError(f"values {measured.shape} and xy {np.shape(xy)} do not describe the same spots")
    if not np.isfinite(measured).all() or (measured < 0).any():
        raise InputError("adaptive median needs finite, non-negative expression (use lognorm or log1p)")
    if mask is None:
        missing = measured == 0
    elif np.shape(mask) != measured.shape:
        raise InputError(f"mask {np.shape(mask)} does not fit values {measured.shape}")
    else:
        missing = ~np.asarray(mask, bool)
        measured[missing] = 0
    out = measured.copy()
    if not missing.any():
        return out

    hops = [(padded, _membership(padded)) for padded in spatial_neighbors(xy, k, n_hops)]
    block = max(1, _BLOCK_VALUES // max(1, len(measured)))
    for start in range(0, measured.shape[1], block):
        genes = slice(start, start + block)
        _fill_block(out[:, genes], measured[:, genes], missing[:, genes], hops)
    return out


def _fill_block(
    out: np.ndarray, values: np.ndarray, missing: np.ndarray, hops: list[tuple[np.ndarray, sp.csr_array]]
) -> None:
    """Fill ``out`` (a view on one block of genes) in place."""
    nonzero = (values != 0).astype(np.float32)
    fill_possible = nonzero.any(axis=0)
    open_ = missing & fill_possible
    for padded, member in hops:
        if not open_.any():
            return
        size = (padded >= 0).sum(axis=1)
        settled = open_ & (member @ nonzero >= ((size + 1) // 2)[:, None])
        _fill_medians(out, values, settled, padded, size)
        open_ &= ~settled
    for gene in np.flatnonzero(open_.any(axis=0)):
        column = values[:, gene]
        out[open_[:, gene], gene] = np.median(column[column != 0])


def _fill_medians(
    out: np.ndarray, values: np.ndarray, settled: np.ndarray, padded: np.ndarray, size: np.ndarray
) -> None:
    spots, genes = np.nonzero(settled)
    step = max(1, _BLOCK_VALUES // padded.shape[1])
    for start in range(0, len(spots), step):
        spot, gene = spots[start : start + step], genes[start : start + step]
        around = padded[spot]
        near = values[around, gene[:, None]]
        near[around < 0] = np.inf  # padding sorts past every value
        near.sort(axis=1)
        rows, count = np.arange(len(spot)), size[spot]
        low, high = near[rows, (count - 1) // 2], near[rows, count // 2]
        # mean of the two middle values in float32, as np.median takes it; of an odd number they are one
        out[spot, gene] = np.where(low == high, low, (low + high) / np.float32(2))


def _membership(padded: np.ndarray) -> sp.csr_array:
    n = len(padded)
    inside = padded >= 0
    indptr = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    ones = np.ones(int(indptr[-1]), np.float32)
    return sp.csr_array((ones, padded[inside], indptr), shape=(n, n))
