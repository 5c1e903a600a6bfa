"""Gene panels, fitted on training slides only: the caller passes no others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.counts import Slides, gene_names, load_slide, raw_counts, total_counts
from spared_fm.targets.neighbors import LAYOUT_NEIGHBORS, grid_layout, knn_graph
from spared_fm.targets.normalize import lognorm

if TYPE_CHECKING:
    from anndata import AnnData

Totals: TypeAlias = Mapping[str, np.ndarray] | None

MORAN_MIN_SPOTS = 10
"""A gene seen in fewer spots of a slide (or the same in all of them) scores a Moran's I of 0 there."""


class Panel(NamedTuple):
    """Genes of a panel, best first, and the score each was chosen by (NaN for a list from a file)."""

    genes: list[str]
    scores: np.ndarray


def select_panel(
    slides: Slides,
    *,
    n_genes: int,
    panel: str,
    genes: Sequence[str] | None = None,
    totals: Totals = None,
) -> list[str]:
    """Choose the genes of a cohort; see :func:`fit_panel`, of which this returns the names."""
    return fit_panel(slides, n_genes=n_genes, panel=panel, genes=genes, totals=totals).genes


def fit_panel(
    slides: Slides,
    *,
    n_genes: int,
    panel: str,
    genes: Sequence[str] | None = None,
    totals: Totals = None,
) -> Panel:
    """Rank genes on training slides and keep the best.

    Parameters
    ----------
    slides
        *Training* slides: id → AnnData with raw counts in ``X``, or a function that loads one (called once
        here). The result does not depend on their order.
    n_genes
        Size of the panel. Not used where ``panel`` is a file.
    panel
        ``"variance"``: variance of lognorm pooled over the spots. ``"moran"``: mean over slides of Moran's
        I of lognorm on the slide's row-normalised nearest-neighbour graph (6 neighbours, 8 on a square
        grid; ``scanpy.metrics.morans_i``); a gene in fewer than :data:`MORAN_MIN_SPOTS` spots of a slide,
        or constant there, counts as 0 on it. ``"hvg"``: scanpy's highly variable genes (flavor ``seurat``,
        slides as batches), ordered by number of slides, then normalised dispersion. Equal scores go by gene
        name. Anything else: the path of a text file of gene names, one a line (blank lines and ``#``
        comments skipped), taken whole and in its order.
    genes
        Genes to choose from; default: those that all slides have.
    totals
        Library size per spot by slide; default: ``obs['total_counts']`` of the slide, else its row sums.

    Returns
    -------
    Panel
        Genes, best first, with scores (float64).

    Raises
    ------
    InputError
        No slides, more genes asked for than there are, an unknown panel, or a listed gene that the slides
        lack.
    """
    if not slides:
        raise InputError("a gene panel needs at least one training slide: check the split")
    if genes is None:
        genes = shared_genes({name: gene_names(load_slide(slide)) for name, slide in slides.items()})
    universe = sorted(genes)
    if panel not in _RANKINGS:
        return Panel(listed := _read_list(panel, set(universe)), np.full(len(listed), np.nan))
    if not 0 < n_genes <= len(universe):
        raise InputError(f"a panel of {n_genes} genes cannot be had from the {len(universe)} that all slides share")
    ordered = {name: slides[name] for name in sorted(slides)}
    ranked = _RANKINGS[panel](ordered, universe, totals, n_genes).head(n_genes)
    return Panel(list(ranked.index), ranked["score"].to_numpy(np.float64))


def shared_genes(names: Mapping[str, Sequence[str]]) -> list[str]:
    """Genes that every slide has, sorted by name.

    Raises
    ------
    InputError
        No gene is common to all slides; the message names two slides and an example gene of each.
    """
    shared = set.intersection(*(set(n) for n in names.values()))
    if not shared:
        raise InputError(_no_shared_genes(names))
    return sorted(shared)


def _no_shared_genes(names: Mapping[str, Sequence[str]]) -> str:
    first = next(iter(names))
    other = next((s for s in names if not set(names[s]) & set(names[first])), list(names)[-1])
    shown = ", ".join(f"{s} (for example {names[s][0]})" if len(names[s]) else f"{s} (none)" for s in (first, other))
    return f"the slides share no gene: {shown}; are some named by symbol and others by Ensembl id?"


def _read_list(panel: str, known: set[str]) -> list[str]:
    path = Path(panel)
    if not path.is_file():
        raise InputError(f"unknown panel {panel!r}: choose variance, moran, hvg or the path of a file of gene names")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file of gene names ({error})") from error
    listed = [line for line in lines if line and not line.startswith("#")]
    if not listed:
        raise InputError(f"{path}: names no gene; write one name a line")
    if repeated := [g for g, count in pd.Series(listed).value_counts(sort=False).items() if count > 1]:
        raise InputError(f"{path}: {_few(repeated)} named more than once; keep one")
    if unknown := [g for g in listed if g not in known]:
        raise InputError(f"{path}: {_few(unknown)} not among the {len(known)} genes that all slides share")
    return listed


def _few(names: Sequence[object], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(n) for n in names[:most]) + more


def _by_score(genes: list[str], score: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"score": score}, index=pd.Index(genes))
    # genes come sorted by name, so a stable sort leaves ties in the order of their names
    return table.sort_values("score", ascending=False, kind="stable")


def _normalised(name: str, adata: AnnData, genes: list[str], totals: Totals) -> sp.csr_matrix:
    counts = raw_counts(adata, name)
    if totals is not None:
        sums = np.asarray(totals[name], np.float64)
    elif "total_counts" in adata.obs:
        sums = adata.obs["total_counts"].to_numpy(np.float64)
    else:
        sums = total_counts(counts)
    columns = pd.Index(gene_names(adata)).get_indexer(pd.Index(genes))
    if (columns < 0).any():
        raise InputError(f"slide {name} lacks gene {genes[int(np.argmin(columns))]}: choose among shared genes")
    return lognorm(counts[:, columns], sums)


def _variance(slides: Slides, genes: list[str], totals: Totals, n_genes: int) -> pd.DataFrame:
    """Rank by population variance; slides are merged by Chan's update, which does not cancel."""
    n_seen, mean, squares = 0, np.zeros(len(genes)), np.zeros(len(genes))
    for name, slide in slides.items():
        x = _normalised(name, load_slide(slide), genes, totals)
        n = x.shape[0]
        if n == 0:
            continue
        data, column = x.data.astype(np.float64), x.indices
        own_mean = np.bincount(column, data, len(genes)) / n
        zeros = n - np.bincount(column, minlength=len(genes))
        own_squares = np.bincount(column, (data - own_mean[column]) ** 2, len(genes)) + zeros * own_mean**2
        delta, total = own_mean - mean, n_seen + n
        squares += own_squares + delta**2 * (n_seen * n / total)
        mean += delta * (n / total)
        n_seen = total
    return _by_score(genes, squares / max(n_seen, 1))


def _moran(slides: Slides, genes: list[str], totals: Totals, n_genes: int) -> pd.DataFrame:
    score = np.zeros(len(genes))
    for name, slide in slides.items():
        adata = load_slide(slide)
        score += morans_i(_normalised(name, adata, genes, totals), _xy(adata, name), _layout(adata))
    return _by_score(genes, score / len(slides))


def morans_i(values: sp.csr_matrix, xy: np.ndarray, layout: str | None) -> np.ndarray:
    """Moran's I of each gene on one slide.

    Parameters
    ----------
    values
        Expression, spots × genes, sparse.
    xy
        Spot centres, ``(n_spots, 2)``.
    layout
        ``"hex"`` (or None): 6 neighbours; ``"square"``: 8.

    Returns
    -------
    np.ndarray
        ``(n_genes,)`` float64; 0 for a gene in fewer than :data:`MORAN_MIN_SPOTS` spots or constant.
    """
    import scanpy as sc  # slow to import; only this panel and hvg need it

    by_gene = sp.csc_matrix(values)
    seen = np.diff(by_gene.indptr)
    lowest, highest = (np.asarray(f(axis=0).todense()).ravel() for f in (by_gene.min, by_gene.max))
    usable = np.flatnonzero((seen >= MORAN_MIN_SPOTS) & (highest > lowest))
    score = np.zeros(values.shape[1])
    if len(usable):
        graph = knn_graph(xy, LAYOUT_NEIGHBORS[layout or "hex"], normalize=True)
        score[usable] = sc.metrics.morans_i(graph, sp.csr_matrix(by_gene[:, usable].T))
    return score


def _hvg(slides: Slides, genes: list[str], totals: Totals, n_genes: int) -> pd.DataFrame:
    import anndata as ad
    import scanpy as sc

    parts = {name: _normalised(name, load_slide(slide), genes, totals) for name, slide in slides.items()}
    batch = np.repeat(list(parts), [p.shape[0] for p in parts.values()])
    pooled = ad.AnnData(
        X=sp.vstack(list(parts.values()), format="csr"),
        obs=pd.DataFrame(
            {"slide": pd.Categorical(batch, categories=list(parts))},
            index=pd.RangeIndex(len(batch)).astype(str),
        ),
        var=pd.DataFrame(index=pd.Index(genes)),
    )
    # genes without a dispersion are sorted last below; that is all scanpy's and numpy's warnings are about
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", message=".*number of normalized dispersions.*")
        try:
            table = sc.pp.highly_variable_genes(
                pooled, n_top_genes=n_genes, flavor="seurat", batch_key="slide", inplace=False
            )
        except (IndexError, ValueError) as error:  # scanpy's words for genes without any dispersion
            raise InputError(
                f"scanpy finds no highly variable genes on these slides ({error}): use panel variance or moran"
            ) from error
    # scanpy's own order, made stable: its sort leaves ties in any order
    table = table.loc[genes].sort_values(
        ["highly_variable_nbatches", "dispersions_norm"], ascending=False, kind="stable", na_position="last"
    )
    return table.rename(columns={"dispersions_norm": "score"})


def _xy(adata: AnnData, name: str) -> np.ndarray:
    if "spatial" not in adata.obsm:
        raise InputError(f"slide {name} has no spot coordinates (obsm['spatial']): Moran's I needs them")
    return np.asarray(adata.obsm["spatial"], np.float64)[:, :2]


def _layout(adata: AnnData) -> str | None:
    if not {"array_row", "array_col"} <= set(adata.obs.columns):
        return None
    return grid_layout(adata.obs["array_row"].to_numpy(np.float64), adata.obs["array_col"].to_numpy(np.float64))


_RANKINGS = {"variance": _variance, "moran": _moran, "hvg": _hvg}
