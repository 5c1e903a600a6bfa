"""Gene panels, fitted on training slides only: the caller passes no others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.counts import Slides, gene_names, load_slide, raw_counts, total_counts
from spared_fm.targets.normalize import lognorm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData


class Panel(NamedTuple):
    """Genes of a panel, best first, and the score each was chosen by (NaN for a list from a file)."""

    genes: list[str]
    scores: np.ndarray


def fit_panel(
    slides: Slides,
    *,
    n_genes: int,
    panel: str | Sequence[str],
    genes: Sequence[str] | None = None,
) -> Panel:
    """Rank genes on training slides and keep the best.

    Parameters
    ----------
    slides
        *Training* slides: id → AnnData with raw counts in ``X``, or a function that loads one (called once
        here). Library sizes are ``obs['total_counts']`` where it is there, else row sums. The result does not depend on
        the order of the slides.
    n_genes
        Size of the panel. Not used where ``panel`` is a list.
    panel
        ``"variance"``: variance of lognorm pooled over the spots. ``"hvg"``: scanpy's highly variable genes (flavor ``seurat``,
        slides as batches), ordered by number of slides, then normalised dispersion. Equal scores go by
        gene name. Else a list of genes, taken whole and in its order (:func:`read_panel`).
    genes
        Genes to choose from; default: those that all slides have.

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
    if not isinstance(panel, str):
        if unknown := [g for g in panel if g not in set(universe)]:
            raise InputError(f"panel: {_few(unknown)} not among the {len(universe)} genes that all slides share")
        return Panel(list(panel), np.full(len(panel), np.nan))
    if panel not in _RANKINGS:
        raise InputError(f"unknown panel {panel!r}: choose {', '.join(_RANKINGS)} or a list of genes")
    if not 0 < n_genes <= len(universe):
        raise InputError(f"a panel of {n_genes} genes cannot be had from the {len(universe)} that all slides share")
    ordered = {name: slides[name] for name in sorted(slides)}
    ranked = _RANKINGS[panel](ordered, universe, n_genes).head(n_genes)
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


def read_panel(path: str | Path) -> list[str]:
    """Read a text file of gene names, one a line; blank lines and ``#`` comments are skipped.

    Raises
    ------
    InputError
        No such file, one that is not text, or names none or one twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"unknown panel {str(path)!r}: choose moran, variance, hvg or the path of a file of gene names"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file of gene names ({error})") from error
    listed = [line for line in lines if line and not line.startswith("#")]
    if not listed:
        raise InputError(f"{path}: names no gene; write one name a line")
    if repeated := [g for g, count in pd.Series(listed).value_counts(sort=False).items() if count > 1]:
        raise InputError(f"{path}: {_few(repeated)} named more than once; keep one")
    return listed


def _few(names: Sequence[object], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(n) for n in names[:most]) + more


def _by_score(genes: list[str], score: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"score": score}, index=pd.Index(genes))
    # genes come sorted by name, so a stable sort leaves ties in the order of their names
    return table.sort_values("score", ascending=False, kind="stable")


def _normalised(name: str, adata: AnnData, genes: list[str]) -> sp.csr_matrix:
    counts = raw_counts(adata, name)
    known = "total_counts" in adata.obs
    sums = adata.obs["total_counts"].to_numpy(np.float64) if known else total_counts(counts)
    columns = pd.Index(gene_names(adata)).get_indexer(pd.Index(genes))
    if (columns < 0).any():
        raise InputError(f"slide {name} lacks gene {genes[int(np.argmin(columns))]}: choose among shared genes")
    return lognorm(counts[:, columns], sums)


def _variance(slides: Slides, genes: list[str], n_genes: int) -> pd.DataFrame:
    """Rank by population variance; slides are merged by Chan's update, which does not cancel."""
    n_seen, mean, squares = 0, np.zeros(len(genes)), np.zeros(len(genes))
    for name, slide in slides.items():
        x = _normalised(name, load_slide(slide), genes)
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


def _hvg(slides: Slides, genes: list[str], n_genes: int) -> pd.DataFrame:
    import anndata as ad
    import scanpy as sc

    parts = {name: _normalised(name, load_slide(slide), genes) for name, slide in slides.items()}
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


_RANKINGS = {"variance": _variance, "hvg": _hvg}
