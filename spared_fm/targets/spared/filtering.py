"""Which spots and genes of a collection are kept, and the columns SpaRED writes about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spared_fm.errors import InputError

if TYPE_CHECKING:
    import scipy.sparse as sp

    from spared_fm.targets.spared.params import Params


class Kept(NamedTuple):
    """Spots (positions, ascending) and genes (positions, in the order kept) with their columns of obs and var."""

    spots: np.ndarray
    genes: np.ndarray
    obs: pd.DataFrame
    var: pd.DataFrame


def filter_counts(counts: sp.csr_matrix, names: pd.Index, slides: np.ndarray, fit: np.ndarray, params: Params) -> Kept:
    """All filters in SpaRED's order: spots, expression fractions, gene totals, prefix rule, empty spots.

    Parameters
    ----------
    counts
        Raw counts, spots × genes, without explicit zeros.
    names
        Gene ids, ``(n_genes,)``.
    slides
        Slide of each spot, ``(n_spots,)``.
    fit
        ``(n_spots,)`` bool: spots on which genes are chosen and var is described (all of them in SpaRED, the training
        spots in strict mode).
    params
        See :class:`spared_fm.targets.spared.params.Params`.

    Returns
    -------
    Kept
        ``obs``: n_genes_by_counts, total_counts (over kept genes). ``var``: exp_frac, glob_exp_frac (over the spots
        that passed the limits, all genes), n_cells_by_counts, mean_counts, pct_dropout_by_counts, total_counts (over
        kept spots of ``fit``).

    Raises
    ------
    InputError
        No spot or no gene left, or a listed gene that the collection lacks.
    """
    spots = spots_within(counts, params.cell_min_counts, params.cell_max_counts)
    if not (spots & fit).any():
        raise InputError(
            f"no spot to fit on has between {params.cell_min_counts} and {params.cell_max_counts} counts: "
            "lower cell_min_counts, or check that X holds raw counts"
        )
    fitted = counts[np.flatnonzero(spots & fit)]
    lowest, overall = expression_fractions(fitted, slides[spots & fit])
    if params.wildcard_genes != "None":
        genes = names.get_indexer(pd.Index(_listed(params.wildcard_genes, names)))
    else:
        totals = _column_sums(fitted)
        within = np.flatnonzero((totals > params.gene_min_counts) & (totals < params.gene_max_counts))
        genes = within[gene_prefix(lowest[within], overall[within], params.real_data_percentage)]
    if not len(genes):
        raise InputError(
            f"no gene is seen in {params.real_data_percentage:.0%} of the spots: lower real_data_percentage "
            "or leave out the slides with the fewest counts"
        )
    left = counts[:, genes]
    total = np.asarray(left.sum(axis=1, dtype=np.float64)).ravel()
    spots &= total > 0
    kept = np.flatnonzero(spots)
    obs = pd.DataFrame({"n_genes_by_counts": np.diff(left.indptr)[kept].astype(np.int32), "total_counts": total[kept]})
    var = pd.DataFrame({"exp_frac": lowest[genes], "glob_exp_frac": overall[genes]}, index=names[genes])
    return Kept(kept, genes, obs, var.join(gene_metrics(left[np.flatnonzero(spots & fit)], names[genes])))


def spots_within(counts: sp.csr_matrix, low: float, high: float) -> np.ndarray:
    """Spots whose total counts lie strictly between ``low`` and ``high``, ``(n_spots,)`` bool."""
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return (totals > low) & (totals < high)


def expression_fractions(counts: sp.csr_matrix, slides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of spots in which each gene is seen: the lowest of all slides, and over the whole collection.

    Parameters
    ----------
    counts
        Counts, spots × genes, without explicit zeros.
    slides
        Slide of each spot, ``(n_spots,)``.

    Returns
    -------
    tuple of np.ndarray
        exp_frac and glob_exp_frac, ``(n_genes,)`` float64 each, 0 to 1.
    """
    n_spots, n_genes = counts.shape
    lowest = np.full(n_genes, np.inf)
    seen = np.zeros(n_genes)
    for slide in pd.unique(slides):
        rows = np.flatnonzero(slides == slide)
        own = np.bincount(counts[rows].indices, minlength=n_genes)
        seen += own
        np.minimum(lowest, own / len(rows), out=lowest)
    return lowest, seen / n_spots


def gene_prefix(exp_frac: np.ndarray, glob_exp_frac: np.ndarray, share: float) -> np.ndarray:
    """Genes by falling exp_frac, up to the last at which the running mean of glob_exp_frac is still ``share`` or more.

    Parameters
    ----------
    exp_frac, glob_exp_frac
        ``(n_genes,)``, 0 to 1.
    share
        SpaRED's ``real_data_percentage``.

    Returns
    -------
    np.ndarray
        Positions, best first; empty where no prefix reaches ``share``. Equal exp_frac come as pandas sorts them
        by default (an unstable sort, as in the released code): which of them stand at the end may depend on the processor.
    """
    order = pd.Series(exp_frac).sort_values(ascending=False).index.to_numpy()
    running = np.cumsum(glob_exp_frac[order]) / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(running >= share)
    return order[: reached[-1] + 1] if len(reached) else order[:0]


def gene_metrics(counts: sp.csr_matrix, names: pd.Index) -> pd.DataFrame:
    """Columns of scanpy's quality metrics per gene: n_cells_by_counts, mean_counts, pct_dropout_by_counts, total_counts."""
    n = counts.shape[0]
    seen = np.bincount(counts.indices, minlength=counts.shape[1])
    total = _column_sums(counts)
    return pd.DataFrame(
        {
            "n_cells_by_counts": seen,
            "mean_counts": total / n,
            "pct_dropout_by_counts": (1 - seen / n) * 100,
            "total_counts": total,
        },
        index=names,
    )


def _column_sums(counts: sp.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()


def _listed(path: str, names: pd.Index) -> list[str]:
    if not Path(path).is_file():
        raise InputError(f"wildcard_genes {path}: no such file; give a text file of gene ids, one a line")
    listed = list(dict.fromkeys(Path(path).read_text(encoding="utf-8").split()))
    for gene in listed:
        if gene not in names:
            raise InputError(f"{path}: gene {gene} is not in the collection; remove it from the list")
    return listed
