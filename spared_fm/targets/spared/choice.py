"""SpaRED's choice of genes, as two passes over the slides to fit on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spared_fm.errors import InputError
from spared_fm.targets.spared.filtering import Tally, choose_genes, spots_within, tally
from spared_fm.targets.spared.graph import hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median
from spared_fm.targets.spared.moran import morans_i
from spared_fm.targets.spared.stream import N_HOPS, Genes, Source, fitted_rows, fitted_slides, kept_spots, pieces
from spared_fm.targets.spared.tpm import known_lengths, log1p, tpm, tpm_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    import scipy.sparse as sp

    from spared_fm.targets.spared.params import Params

_BLOCK_VALUES = 1 << 24
"""Spots × genes that are dense at a time while genes are scored."""


def moran_panel(
    sources: Mapping[str, Source], names: pd.Index, params: Params, mode: str, n_genes: int
) -> tuple[Genes, np.ndarray]:
    """SpaRED's panel: gene totals, the prefix rule, and the genes of highest Moran's I.

    Parameters
    ----------
    sources
        The slides.
    names
        Ensembl ids of the genes that their counts have, without version.
    params
        Limits.
    mode
        Which spots to fit on.
    n_genes
        Panel size; 0 or less: 128 where more than 320 genes are left, else 32.

    Returns
    -------
    tuple of Genes and np.ndarray
        The genes, and Moran's I of the panel, float64.

    Raises
    ------
    InputError
        No spot or gene is left, none has a known length, or fewer than the panel asks for.
    """
    found = tally_slides(sources, len(names), params, mode)
    left = choose_genes(found, names, params)
    lengths = known_lengths(names[left], params.organism)
    measured = np.flatnonzero(np.isfinite(lengths))
    if not len(measured):
        raise InputError(
            f"no gene has a length in the {params.organism} table (for example {names[left[0]]}): genes must be Ensembl ids "
            "without version; harmonise the gene names first, or check organism"
        )
    score = moran_scores(sources, left, lengths, params, mode)
    panel = measured[_best(score[measured], n_genes)]
    return Genes(names, found, left, lengths, panel), score[panel]


def tally_slides(sources: Mapping[str, Source], n_genes: int, params: Params, mode: str) -> Tally:
    """Sum up the spots to fit on that are within the spot limits.

    Raises
    ------
    InputError
        There is none.
    """

    def each() -> Iterator[sp.csr_matrix]:
        for name in fitted_slides(sources, mode):
            counts, totals = sources[name].read(None)
            within = spots_within(totals, params.cell_min_counts, params.cell_max_counts)
            yield counts[np.flatnonzero(within & fitted_rows(sources[name].part, mode))]

    found = tally(each(), n_genes)
    if not found.n_spots:
        raise InputError(
            f"no spot to fit on has between {params.cell_min_counts} and {params.cell_max_counts} counts: "
            "lower cell_min_counts, or check that X holds raw counts"
        )
    return found


def moran_scores(
    sources: Mapping[str, Source], left: np.ndarray, lengths: np.ndarray, params: Params, mode: str
) -> np.ndarray:
    """Moran's I of d_log1p, mean over the slides to fit on; NaN for a gene without length, or constant on every slide.

    Parameters
    ----------
    sources
        The slides.
    left, lengths
        As in :class:`Genes`.
    params
        Spot limits.
    mode
        strict: a slide's training spots are completed and scored on their own.

    Returns
    -------
    np.ndarray
        ``(len(left),)`` float64.
    """
    scores = []
    measured = np.flatnonzero(np.isfinite(lengths))
    for name in fitted_slides(sources, mode):
        rows, counts, _ = kept_spots(sources[name], left, params, fit=mode)
        source = sources[name].at(rows)
        scale = tpm_scale(counts, lengths)
        by_gene = counts.tocsc()[:, measured]
        for piece in pieces(source.part, mode):
            graph = slide_graph(source.xy[piece], hex_geometry=source.hex_geometry)
            hops = hops_around(graph, N_HOPS)
            own = by_gene if len(piece) == by_gene.shape[0] else by_gene[piece]
            score = np.full(len(left), np.nan)
            step = max(1, _BLOCK_VALUES // len(piece))
            for start in range(0, len(measured), step):
                block = slice(start, start + step)
                values = log1p(tpm(own[:, block], lengths[measured[block]], scale[piece]))
                score[measured[block]] = morans_i(complete_median(values, hops), graph)
            scores.append(score)
    known = np.isfinite(scores)
    n = known.sum(axis=0)
    total = np.where(known, scores, 0.0).sum(axis=0)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


def _best(score: np.ndarray, n_genes: int) -> np.ndarray:
    """Positions of the panel, best first; equal scores keep their order, genes without a score come last."""
    if n_genes <= 0:
        n_genes = 128 if len(score) > 320 else 32
    if n_genes > len(score):
        raise InputError(
            f"a panel of {n_genes} genes cannot be had: {len(score)} are left after the filters; ask for at most that many "
            "(top_moran_genes), lower real_data_percentage, or choose another panel"
        )
    return np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")[:n_genes]
