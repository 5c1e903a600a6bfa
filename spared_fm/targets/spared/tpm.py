"""Transcripts per million with union-exon gene lengths, and their logarithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp


def known_lengths(genes: pd.Index, organism: str | None) -> np.ndarray:
    """Lengths of genes in bases, ``(n_genes,)`` float64; infinite where unknown, so that such a gene adds nothing to TPM.

    Parameters
    ----------
    genes
        Ensembl ids without version.
    organism
        ``human`` or ``mouse``; None: nothing is known.
    """
    if organism is None:
        return np.full(len(genes), np.inf)
    from spared_fm.targets.genes import gene_lengths  # reads a table

    return gene_lengths(organism).reindex(genes).fillna(np.inf).to_numpy(np.float64)


def tpm_scale(counts: sp.csr_matrix, lengths: np.ndarray) -> np.ndarray:
    """Factor that makes the counts per base of each spot sum to one million.

    Parameters
    ----------
    counts
        Raw counts, spots × genes: all genes that are left after filtering.
    lengths
        Gene lengths in bases, ``(n_genes,)``; infinite for a gene that does not count.

    Returns
    -------
    np.ndarray
        ``(n_spots,)`` float64; 0 for a spot without counts on these genes (SpaRED's NaN → 0).
    """
    per_base = counts @ (1.0 / np.asarray(lengths, np.float64))
    return np.divide(1e6, per_base, out=np.zeros(len(per_base)), where=per_base > 0)


def tpm(counts: sp.csr_matrix, lengths: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Transcripts per million.

    Parameters
    ----------
    counts, lengths
        See :func:`tpm_scale`; with ``scale`` given they may be those of a part of the genes.
    scale
        Of :func:`tpm_scale` over all genes; default: over these.

    Returns
    -------
    np.ndarray
        Spots × genes, dense float64.
    """
    if scale is None:
        scale = tpm_scale(counts, lengths)
    dense = counts.toarray().astype(np.float64)
    dense /= np.asarray(lengths, np.float64)
    dense *= scale[:, None]
    return dense


def log1p(values: np.ndarray) -> np.ndarray:
    """log₂(1 + x), as SpaRED has it, float64."""
    return np.log2(1.0 + values)
