"""Moran's I of each gene on one slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp

_BLOCK_VALUES = 1 << 22


def morans_i(values: np.ndarray, graph: sp.csr_array) -> np.ndarray:
    """Moran's I, ``n / Σw · Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ²`` with z the centred values and each row of w summing to one.

    Parameters
    ----------
    values
        Expression, spots × genes.
    graph
        Weights before normalisation; a row without neighbours stays empty.

    Returns
    -------
    np.ndarray
        ``(n_genes,)`` float64; NaN for a gene that is constant on the slide, or without any neighbours.
    """
    degree = np.asarray(graph.sum(axis=1)).ravel()
    n_linked = np.count_nonzero(degree)
    score = np.full(values.shape[1], np.nan)
    if n_linked == 0:
        return score
    inverse = np.divide(1.0, degree, out=np.zeros(len(degree)), where=degree > 0)
    step = max(1, _BLOCK_VALUES // len(values))
    for start in range(0, values.shape[1], step):
        z = np.ascontiguousarray(values[:, start : start + step], np.float64)
        varies = z.min(axis=0) < z.max(axis=0)  # rounding leaves a centred constant not quite zero
        z = z - z.mean(axis=0)
        lagged = (graph @ z) * inverse[:, None]
        cross, square = np.einsum("ij,ij->j", z, lagged), np.einsum("ij,ij->j", z, z)
        np.divide(cross * (len(z) / n_linked), square, out=score[start : start + step], where=varies)
    return score
