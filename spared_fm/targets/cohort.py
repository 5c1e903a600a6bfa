"""Cohorts: slides with one gene panel and one split, as one AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.targets.counts import Slides, gene_names, load_slide, raw_counts, total_counts
from spared_fm.targets.normalize import lognorm
from spared_fm.targets.panel import fit_panel, shared_genes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Facts:
    """What the first pass keeps of a slide: no expression."""

    genes: list[str]
    totals: np.ndarray
    whole: bool  # are all counts whole numbers below 2³¹?


def build_cohort(
    slides: Slides,
    *,
    split: Mapping[str, str],
    patients: Mapping[str, str | None],
    n_genes: int = 128,
    panel: str = "variance",
) -> AnnData:
    """Join slides into one cohort, with the gene panel fitted on its training slides.

    Parameters
    ----------
    slides
        Slide id → AnnData with raw counts in ``X`` and pixel coordinates in ``obsm['spatial']``, or a
        function that loads one. Loaders are called up to three times each (names and totals, panel, values)
        and one slide's counts are in memory at a time (``panel="hvg"`` holds the training slides together).
    split
        Slide id → ``"train"``, ``"val"`` or ``"test"``. Entries for slides outside the cohort are not
        looked at.
    patients
        Slide id → patient; None or absent where unknown.
    n_genes, panel
        See :func:`spared_fm.targets.panel.fit_panel`.

    Returns
    -------
    anndata.AnnData
        Spots × panel genes, no ``X``. Slides come in the order given, their spots in their own order.

        - ``obs``: index ``<slide>/<barcode>``; ``slide``, ``barcode``, ``patient`` (missing where unknown),
          ``split``; ``total_counts`` (float64, over *all* genes of the slide, before the join);
          ``array_row``, ``array_col`` where at least one slide has them (NaN for the others).
        - ``var``: index gene; ``panel_score`` (float64), ``panel_rank`` (int32, from 0). Genes come in this
          order.
        - ``layers``: ``counts`` (int32; float32 where a slide has fractional counts), ``lognorm`` (float32,
          ln(1 + counts per 10⁴) with ``total_counts``), ``mask`` (bool, count > 0), each dense, spots ×
          genes.
        - ``obsm['spatial']``: pixel (x, y), float64.
        - ``uns['cohort']``: ``panel``, ``n_genes``, ``n_shared_genes``, ``train_slides``.

    Raises
    ------
    InputError
        No slides, no training slide, a slide without a split, without counts or coordinates, with repeated
        barcodes or with bad counts; slides that share no gene; a panel that cannot be had.
    """
    import anndata as ad

    _check_split(slides, split)
    facts = {name: _survey(name, load_slide(slide)) for name, slide in slides.items()}
    genes = shared_genes({name: f.genes for name, f in facts.items()})
    train = [name for name in slides if split[name] == "train"]
    fitted = fit_panel(
        {name: slides[name] for name in train},
        n_genes=n_genes,
        panel=panel,
        genes=genes,
        totals={name: facts[name].totals for name in train},
    )

    dtype = np.int32 if all(f.whole for f in facts.values()) else np.float32
    n_spots = sum(len(f.totals) for f in facts.values())
    counts = np.empty((n_spots, len(fitted.genes)), dtype)
    spatial = np.empty((n_spots, 2), np.float64)
    obs, start = [], 0
    for name, slide in slides.items():
        adata = load_slide(slide)
        rows = slice(start, start := start + adata.n_obs)
        columns = pd.Index(facts[name].genes).get_indexer(pd.Index(fitted.genes))
        counts[rows] = raw_counts(adata, name)[:, columns].toarray()
        spatial[rows] = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
        obs.append(_spots(name, adata, facts[name], patients.get(name), split[name]))

    table = pd.concat(obs)
    for column in ("slide", "patient", "split"):
        table[column] = pd.Categorical(table[column])
    scores = {"panel_score": fitted.scores, "panel_rank": np.arange(len(fitted.genes), dtype=np.int32)}
    return ad.AnnData(
        obs=table,
        var=pd.DataFrame(scores, index=pd.Index(fitted.genes)),
        layers={
            "counts": counts,
            "lognorm": lognorm(counts, table["total_counts"].to_numpy()),
            "mask": counts > 0,
        },
        obsm={"spatial": spatial},
        uns={
            "cohort": {
                "panel": panel,
                "n_genes": len(fitted.genes),
                "n_shared_genes": len(genes),
                "train_slides": train,
            }
        },
    )


def _check_split(slides: Slides, split: Mapping[str, str]) -> None:
    if not slides:
        raise InputError("a cohort needs at least one slide: none was chosen")
    for name in slides:
        if name not in split:
            raise InputError(f"slide {name} has no split: say train, val or test for it")
        if split[name] not in SPLITS:
            raise InputError(f"slide {name} has split {split[name]!r}: it must be train, val or test")
    if not any(split[name] == "train" for name in slides):
        raise InputError(f"no training slide among {', '.join(slides)}: the gene panel is fitted on split 'train'")


def _survey(name: str, adata: AnnData) -> _Facts:
    if "spatial" not in adata.obsm:
        raise InputError(f"slide {name} has no spot coordinates: obsm['spatial'] must hold pixel (x, y)")
    if not adata.obs_names.is_unique:
        again = adata.obs_names[adata.obs_names.duplicated()][0]
        raise InputError(f"slide {name} has barcode {again} more than once: barcodes must be unique on a slide")
    counts = raw_counts(adata, name)
    whole = bool(counts.nnz == 0 or ((counts.data % 1 == 0).all() and counts.data.max() < 2**31))
    return _Facts(gene_names(adata), total_counts(counts), whole)


def _spots(name: str, adata: AnnData, facts: _Facts, patient: str | None, split: str) -> pd.DataFrame:
    barcodes = adata.obs_names.astype(str)
    columns: dict[str, object] = {
        "slide": name,
        "barcode": barcodes.to_numpy(object),
        "patient": patient,
        "split": split,
        "total_counts": facts.totals,
    }
    for position in ("array_row", "array_col"):
        if position in adata.obs:
            columns[position] = adata.obs[position].to_numpy(np.float64)
    return pd.DataFrame(columns, index=pd.Index([f"{name}/{b}" for b in barcodes]))
