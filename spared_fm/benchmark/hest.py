"""HEST's benchmark beside its regression: which genes are predicted, who is left out together, and the score.

Genes are picked as the published list was made: those found on at least a tenth of the spots of every slide are ranked
by scanpy's ``highly_variable_genes`` (flavour ``seurat``, 20 bins, the spots of all slides as one batch) on ln(1 + raw
counts). That flavour takes the logarithm back, so it needs no more of a slide than sums over its counts.

Source: HEST-1k (Jaume et al. 2024, NeurIPS) and its released benchmark; the flavour: Satija et al. 2015 as in scanpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from spared_fm.benchmark.metrics import constant_lines, line_scores, mean_of_scored, pool, scored_slides
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import scipy.sparse as sp
    from numpy.typing import ArrayLike, NDArray

N_GENES = 50
LEAST_SHARE = 0.1
"""A gene found on a smaller share of any slide's spots is not picked."""
MOST_FOLDS = 10
_BINS = 20
_CONTROLS = ("BLANK", "Control")
"""Names of imaging assays' controls hold one of these."""


class GeneSums(NamedTuple):
    """What the choice of genes needs of a slide.

    Attributes
    ----------
    n_spots
        Number of spots.
    found
        Spots with a count of each gene, (genes,) int64.
    total, squares
        Sum of the counts of each gene and of their squares, (genes,) float64: exact for whole numbers.
    """

    n_spots: int
    found: NDArray[np.int64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]


def gene_sums(counts: sp.csr_matrix) -> GeneSums:
    """Sum up raw counts (spots, genes)."""
    spots, genes = counts.shape
    found = np.bincount(counts.indices[counts.data > 0], minlength=genes)
    data = counts.data.astype(np.float64)
    total, squares = (np.bincount(counts.indices, what, minlength=genes).astype(float) for what in (data, data**2))
    return GeneSums(spots, found, total, squares)


def pick_genes(slides: Sequence[GeneSums], names: Sequence[str], n_genes: int = N_GENES) -> NDArray[np.intp]:
    """Pick the most variable genes of some slides.

    Parameters
    ----------
    slides
        Sums of the slides to look at, the same genes in the same order.
    names
        Names of these genes.
    n_genes
        How many to pick.

    Returns
    -------
    np.ndarray
        Positions in ``names`` of the picked genes, (n_genes,), in the order of their names. Where genes at the end of the
        list are equally good, all down to these count as good enough, and of them the first by name are taken, as
        published.

    Raises
    ------
    InputError
        Too few genes are found often enough, or vary.
    """
    often = np.all([one.found >= np.ceil(LEAST_SHARE * one.n_spots) for one in slides], axis=0)
    real = np.array([not any(word in name for word in _CONTROLS) for name in names])
    kept = np.flatnonzero(often & real)
    kept = kept[np.argsort(np.asarray(names, dtype=object)[kept], kind="stable")]
    dispersion = _dispersion(
        np.sum([one.total[kept] for one in slides], axis=0),
        np.sum([one.squares[kept] for one in slides], axis=0),
        sum(one.n_spots for one in slides),
    )
    ranked = np.sort(dispersion[~np.isnan(dispersion)])
    if len(ranked) < n_genes:
        raise InputError(
            f"HEST's protocol takes {n_genes} genes, but only {len(ranked)} of {len(names)} vary and are found on "
            f"{LEAST_SHARE:.0%} of the spots of each of {len(slides)} slides; use protocol strict"
        )
    return kept[np.flatnonzero(dispersion >= ranked[-n_genes])[:n_genes]]


def leave_out(labels: Sequence[str], most: int = MOST_FOLDS) -> list[tuple[str, ...]]:
    """Say which patients are held out together: each alone; where they are more than ``most``, dealt into as many folds.

    Parameters
    ----------
    labels
        Patient (or slide) of every slide; repeats count once.
    most
        Most folds.

    Returns
    -------
    list of tuple
        The patients of each fold, every one in exactly one; the order of ``labels`` doesn't matter.
    """
    patients = sorted(set(labels))
    return [tuple(patients[i::most]) for i in range(min(most, len(patients)))]


class FoldScores(NamedTuple):
    """Score of a run over folds.

    Attributes
    ----------
    pcc_gene
        Mean of ``folds``.
    folds
        Mean Pearson correlation over the genes of each fold, (folds,).
    genes
        Pearson correlation of each gene over the whole test split, (genes,) of each fold.
    """

    pcc_gene: float
    folds: NDArray[np.float64]
    genes: list[NDArray[np.float64]]


def score_folds(
    folds: Iterable[tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]]], *, as_published: bool
) -> FoldScores:
    """Score folds as HEST does: correlation of each gene over all spots held out, mean over genes, mean over folds.

    Parameters
    ----------
    folds
        Truth and prediction of each fold, slide → (spots, genes). The prediction names the slides that are held out;
        its rows that are all NaN (absent patches) are left out.
    as_published
        A gene that is constant, or predicted constant, has no correlation, and then the fold and the run have none
        (NaN). Otherwise the rules of :mod:`spared_fm.benchmark.metrics` hold: constant truth is left out, a constant
        prediction is 0.

    Returns
    -------
    FoldScores

    Raises
    ------
    InputError
        No fold, a slide without truth, shapes that differ, or infinite values.
    """
    genes = [_correlations(truth, predicted, as_published) for truth, predicted in folds]
    if not genes:
        raise InputError("nothing to score: no fold has predictions")
    mean = np.mean if as_published else mean_of_scored
    means = np.array([float(mean(one)) for one in genes])
    return FoldScores(float(mean(means)), means, genes)


def _correlations(
    truth: Mapping[str, ArrayLike], predicted: Mapping[str, ArrayLike], as_published: bool
) -> NDArray[np.float64]:
    present = {slide: ~np.isnan(values).all(axis=1) for slide, values in predicted.items()}
    kept = [slide for slide, rows in present.items() if rows.any()]
    scored = pool(
        scored_slides(
            {slide: np.asarray(truth[slide])[present[slide]] for slide in kept if slide in truth},
            {slide: np.asarray(predicted[slide])[present[slide]] for slide in kept},
            None,
            "all",
        ).values()
    )
    pcc = line_scores(0, scored)[0]
    if as_published:
        pcc[constant_lines(0, scored.predicted, scored.predicted_dtype, scored.seen)] = np.nan
    return pcc


def _dispersion(total: NDArray[Any], squares: NDArray[Any], n_spots: int) -> NDArray[np.float64]:
    """Return the dispersion of each gene as against genes of like mean, (genes,); NaN for one that doesn't vary."""
    dispersion = np.full(len(total), np.nan)
    if not len(total) or n_spots < 2:
        return dispersion
    mean = total / n_spots
    variance = squares / n_spots - mean**2  # n - 1 would shift all logarithms alike
    np.log(variance / mean, where=variance > 0, out=dispersion)
    like = pd.Series(dispersion).groupby(pd.cut(np.log1p(mean), _BINS, labels=False))
    middle, spread = like.transform("mean").to_numpy(), like.transform("std").to_numpy()
    alone = np.where(np.isnan(dispersion), np.nan, 1.0)  # a gene alone in its bin counts as 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(spread), alone, (dispersion - middle) / spread)
