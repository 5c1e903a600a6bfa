"""Library-size normalisation."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError

Counts = TypeVar("Counts", np.ndarray, sp.csr_matrix)


def lognorm(counts: Counts, totals: np.ndarray | None = None, target_sum: float = 1e4) -> Counts:
    """Natural log of one plus counts per ``target_sum`` (the target ``lognorm``).

    Parameters
    ----------
    counts
        Raw counts, spots × genes, dense or sparse.
    totals
        Library size per spot, ``(n_spots,)``; default: the row sums of ``counts``. Give the totals over
        *all* genes when ``counts`` holds a panel only.
    target_sum
        Counts that each spot is scaled to.

    Returns
    -------
    np.ndarray or scipy.sparse.csr_matrix
        float32, shape and kind of ``counts``; unit: ln(1 + counts per ``target_sum``). A spot whose total
        is zero gives zeros.

    Raises
    ------
    InputError
        ``totals`` of another length than there are spots.

    Notes
    -----
    Same as ``scanpy.pp.normalize_total(target_sum=1e4)`` followed by ``scanpy.pp.log1p`` where the totals
    are the row sums.
    """
    given = counts.sum(axis=1, dtype=np.float64) if totals is None else totals
    sums = np.asarray(given, np.float64).ravel()
    if sums.shape != (counts.shape[0],):
        raise InputError(f"totals has shape {sums.shape} for {counts.shape[0]} spots: give one per spot")
    scale = np.divide(target_sum, sums, out=np.zeros_like(sums), where=sums > 0)
    if sp.issparse(counts):
        csr = sp.csr_matrix(counts)
        data = np.log1p(csr.data * np.repeat(scale, np.diff(csr.indptr))).astype(np.float32)
        return sp.csr_matrix((data, csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    return np.log1p(np.asarray(counts, np.float64) * scale[:, None]).astype(np.float32)
