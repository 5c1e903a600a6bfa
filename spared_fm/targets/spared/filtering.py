"""Which spots and genes of a collection are kept, and the columns SpaRED writes about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import scipy.sparse as sp

    from spared_fm.targets.spared.params import Params


class Tally(NamedTuple):
    """What the gene filters need of the spots to fit on; arrays are ``(n_genes,)``.

    ``lowest`` is the smallest fraction of a slide's spots in which the gene is seen, ``seen`` the number of spots, ``total``
    the sum of counts (float64), over ``n_spots`` spots.
    """

    n_spots: int
    lowest: np.ndarray
    seen: np.ndarray
    total: np.ndarray


def tally(slides: Iterable[sp.csr_matrix], n_genes: int) -> Tally:
    """Sum up the spots to fit on, one slide after the other.

    Parameters
    ----------
    slides
        Per slide the raw counts of its spots within the limits, spots × genes, without explicit zeros. A slide without
        spots does not count.
    n_genes
        Number of genes.
    """
    n_spots, lowest = 0, np.full(n_genes, np.inf)
    seen, total = np.zeros(n_genes, np.int64), np.zeros(n_genes)
    for counts in slides:
        if not (n := counts.shape[0]):
            continue
        own = np.bincount(counts.indices, minlength=n_genes)
        n_spots, seen = n_spots + n, seen + own
        total = total + np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
        lowest = np.minimum(lowest, own / n)
    return Tally(n_spots, lowest, seen, total)


def choose_genes(found: Tally, names: pd.Index, params: Params) -> np.ndarray:
    """Gene totals, then the prefix rule; or the list of ``wildcard_genes``.

    Parameters
    ----------
    found
        Of :func:`tally`.
    names
        Gene ids, ``(n_genes,)``.
    params
        See :class:`spared_fm.targets.spared.params.Params`.

    Returns
    -------
    np.ndarray
        Positions of the genes, in the order kept.

    Raises
    ------
    InputError
        No gene is left, or a listed gene that the collection lacks.
    """
    if params.wildcard_genes != "None":
        genes = names.get_indexer(pd.Index(_listed(params.wildcard_genes, names)))
    else:
        within = np.flatnonzero((found.total > params.gene_min_counts) & (found.total < params.gene_max_counts))
        overall = found.seen / found.n_spots
        genes = within[gene_prefix(found.lowest[within], overall[within], params.real_data_percentage)]
    if not len(genes):
        raise InputError(
            f"no gene is seen in {params.real_data_percentage:.0%} of the spots: lower real_data_percentage "
            "or leave out the slides with the fewest counts"
        )
    return genes


def gene_columns(found: Tally, genes: np.ndarray, names: pd.Index, n_left: int) -> pd.DataFrame:
    """Columns of var about the spots that were fitted on.

    Parameters
    ----------
    found
        Of :func:`tally`.
    genes
        Positions of the genes to describe.
    names
        Gene ids of all genes.
    n_left
        How many of the spots are left once those without a count on the genes kept are gone.

    Returns
    -------
    pandas.DataFrame
        exp_frac and glob_exp_frac (over the spots within the limits, 0 to 1), and scanpy's n_cells_by_counts, mean_counts,
        pct_dropout_by_counts, total_counts (over the spots left; those gone add nothing to either sum).
    """
    seen, total = found.seen[genes], found.total[genes]
    return pd.DataFrame(
        {
            "exp_frac": found.lowest[genes],
            "glob_exp_frac": seen / found.n_spots,
            "n_cells_by_counts": seen,
            "mean_counts": total / n_left,
            "pct_dropout_by_counts": (1 - seen / n_left) * 100,
            "total_counts": total,
        },
        index=names[genes],
    )


def spots_within(totals: np.ndarray, low: float, high: float) -> np.ndarray:
    """Spots whose total counts lie strictly between ``low`` and ``high``, ``(n_spots,)`` bool."""
    return (totals > low) & (totals < high)


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


def _listed(path: str, names: pd.Index) -> list[str]:
    if not Path(path).is_file():
        raise InputError(f"wildcard_genes {path}: no such file; give a text file of gene ids, one a line")
    listed = list(dict.fromkeys(Path(path).read_text(encoding="utf-8").split()))
    for gene in listed:
        if gene not in names:
            raise InputError(f"{path}: gene {gene} is not in the collection; remove it from the list")
    return listed
