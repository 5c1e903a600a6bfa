"""Slides as the targets room takes them: an AnnData of raw counts, or a function that loads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import anndata as ad
import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError

Slide: TypeAlias = ad.AnnData | Callable[[], ad.AnnData]
Slides: TypeAlias = Mapping[str, Slide]


def load_slide(slide: Slide) -> ad.AnnData:
    """Return the AnnData of a slide, calling it first where a loader was given."""
    return slide if isinstance(slide, ad.AnnData) else slide()


def raw_counts(adata: ad.AnnData, name: str) -> sp.csr_matrix:
    """Raw counts of a slide, checked.

    Parameters
    ----------
    adata
        Slide with counts in ``X`` (spots × genes; sparse or dense).
    name
        Slide id, for the message.

    Returns
    -------
    scipy.sparse.csr_matrix
        Counts, spots × genes, dtype as stored, without explicit zeros.

    Raises
    ------
    InputError
        No counts, or a count that is negative, NaN or infinite.
    """
    if adata.X is None:
        raise InputError(f"slide {name} has no counts (X is empty): leave it out of the cohort or ingest its counts")
    counts = sp.csr_matrix(adata.X)
    if counts.nnz and (not np.isfinite(counts.data).all() or counts.data.min() < 0):
        raise InputError(f"slide {name} has negative, NaN or infinite counts in X: raw counts are needed")
    if counts.nnz and not counts.data.all():
        counts = counts.copy()  # never edit the caller's matrix
        counts.eliminate_zeros()
    return counts


def gene_names(adata: ad.AnnData) -> list[str]:
    """Gene names of a slide, repeated ones told apart by AnnData's rule (``A``, ``A-1``, ``A-2``).

    10x references name some genes twice; the rule gives the same names on every slide of one reference.
    """
    names = adata.var_names
    return list(names.astype(str)) if names.is_unique else list(ad.utils.make_index_unique(names).astype(str))


def total_counts(counts: sp.csr_matrix) -> np.ndarray:
    """Library size per spot, ``(n_spots,)`` float64: the sum over all genes of ``counts``."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def whole_numbers(counts: sp.csr_matrix) -> bool:
    """Whether all counts are whole numbers below 2³¹."""
    return bool(counts.nnz == 0 or (not (counts.data % 1).any() and counts.data.max() < 2**31))
