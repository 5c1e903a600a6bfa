"""Building a cohort in the store: passes over its slides, with its layers written as they come."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.nodes import new_node, read_elem
from spared_fm.study.progress import bar
from spared_fm.targets.cohort import choose_panel, cohort_layers, layer_names, spot_table, why_no_tpm
from spared_fm.targets.counts import raw_counts, total_counts, whole_numbers
from spared_fm.targets.genes import ENSEMBL_COLUMN, SYMBOL_COLUMN
from spared_fm.targets.neighbors import grid_layout
from spared_fm.targets.panel import shared_genes
from spared_fm.targets.spared.stream import (
    FITTED_ON,
    LEFT_OUT,
    Genes,
    Read,
    Source,
    Spots,
    Statistics,
    fit_statistics,
    fitted_rows,
    fitted_slides,
    moments_of,
    panel_columns,
    panel_spots,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spared_fm.store.layout import Layout
    from spared_fm.store.nodes import Draft, Rows
    from spared_fm.targets.genes import Naming
    from spared_fm.targets.spared.params import Params

HOW = {"counts": "measured", "mask": "measured", "lognorm": "ln(1 + counts per 1e4)"}
"""What made a layer; all others are SpaRED's."""


@dataclass(frozen=True)
class Plan:
    """What a cohort is to be made of.

    Attributes
    ----------
    parts
        Slide → train, val or test, or one of these for each spot (``""``: left out). The slides come in this order.
    patients
        Slide → patient, None where unknown.
    batches
        Slide → batch of ComBat.
    naming
        The cohort's names of the slides' genes.
    params
        SpaRED's parameters; ``hex_geometry`` counts only where ``given_geometry``.
    given_geometry
        Whether the user said what grid the spots lie on; else it is told from their places on the array.
    mode
        ``strict`` or ``spared``.
    panel, n_genes
        See :func:`spared_fm.targets.cohort.choose_panel`.
    """

    parts: Mapping[str, str | np.ndarray]
    patients: Mapping[str, str | None]
    batches: Mapping[str, str]
    naming: Naming
    params: Params
    given_geometry: bool
    mode: str
    panel: str | Sequence[str]
    n_genes: int


def build(
    layout: Layout, node: str, plan: Plan, record: Mapping[str, Any], *, progress: bool = False
) -> dict[str, Any]:
    """Build a cohort and publish it as ``node``.

    Slides are read one at a time: to choose genes (those that are fitted on, up to twice) and to cut out the panel. What
    grows with the cohort is its ``obs`` and, per slide, a few numbers per gene of the panel; its layers go to disk slide by
    slide.

    Parameters
    ----------
    layout
        The store.
    node
        Key of the cohort.
    plan
        What to make.
    record
        Our record of the cohort so far.
    progress
        Show a bar.

    Returns
    -------
    dict
        The record as written: with n_genes, n_shared_genes, layers, share_missing, spots, dropped_spots, empty_slides, no_tpm
        (why there are no layers of SpaRED's, or None), preprocessing.

    Raises
    ------
    InputError
        Slides that share no gene, bad counts, no spot to fit on, a panel that cannot be had, or the node exists.
    """
    first = {id(ids): slide for slide, ids in reversed(plan.naming.ids.items())}  # most slides share one list of genes
    names = pd.Index(shared_genes({slide: [i for i in plan.naming.ids[slide] if i] for slide in first.values()}))
    fractional: set[str] = set()  # slides whose counts were found to be no whole numbers when they were read
    sources = {slide: _source(layout, slide, plan, names, fractional) for slide in plan.parts}
    n_passes = 1 if not isinstance(plan.panel, str) else 2
    n_reads = n_passes * len(fitted_slides(sources, plan.mode)) + 2 * len(sources)
    with new_node(layout, node) as draft, bar("cohort", n_reads, "slides", show=progress) as advance:
        sources = {slide: replace(source, read=_counted(source.read, advance)) for slide, source in sources.items()}
        genes, scores = choose_panel(sources, names, plan.params, plan.mode, panel=plan.panel, n_genes=plan.n_genes)
        no_tpm = why_no_tpm(genes, plan.params)
        # strict mode takes no fractions, and mode spared has read every slide by now
        dtype = np.float32 if fractional else np.int32
        cut = _cut_out(layout, draft, sources, genes, plan, dtype, with_tpm=no_tpm is None)
        with_combat = cut.fitted is not None and bool(cut.fitted.combat)
        layers = layer_names(with_tpm=no_tpm is None, with_combat=with_combat)
        missing = _write_layers(draft, layers, cut, genes, plan.mode, advance)
        var = panel_columns(genes, cut.n_fitted, cut.fitted)
        if plan.panel == "moran":
            var["d_log1p_moran"] = scores
        var["panel_score"] = scores
        var["panel_rank"] = np.arange(len(var), dtype=np.int32)
        var[SYMBOL_COLUMN] = [plan.naming.symbols.get(gene, "") for gene in var.index]
        settings = {key: value for key, value in asdict(plan.params).items() if value is not None}
        preprocessing = {"mode": plan.mode, "fitted_on": FITTED_ON[plan.mode], "params": settings}
        full = {
            **record,
            "n_genes": len(var),
            "n_shared_genes": len(names),
            "spots": len(cut.obs),
            "dropped_spots": cut.n_dropped,
            "empty_slides": [slide for slide, own in cut.spots.items() if not len(own.rows)],
            "layers": {layer: _how(layer, plan) for layer in ("counts", *layers)},
            "share_missing": missing,
            "no_tpm": no_tpm,
            "preprocessing": preprocessing,
        }
        uns = {
            "preprocessing": preprocessing,
            "cohort": {"split_by": full["split_by"], "split_label": full["split_label"]},
        }
        draft.publish(ad.AnnData(obs=cut.obs, var=var, obsm={"spatial": cut.xy}, uns=uns), full)
    return full


def gene_tables(layout: Layout, slides: Sequence[str]) -> dict[str, pd.DataFrame]:
    """``var`` of each slide, its columns but the Ensembl ids left out; slides of one reference share one table."""
    distinct: list[pd.DataFrame] = []
    tables = {}
    for slide in slides:
        var = read_elem(layout, f"{layout.slide(slide)}/var")
        var = var[[column for column in (ENSEMBL_COLUMN,) if column in var]]
        same = next((one for one in distinct if one.equals(var)), None)
        if same is None:
            distinct.append(same := var)
        tables[slide] = same
    return tables


@dataclass
class _Cut:
    """What is kept of the slides once they are cut down to the panel: facts about spots, no expression."""

    spots: dict[str, Spots]
    counts: Rows
    obs: pd.DataFrame
    xy: np.ndarray
    fitted: Statistics | None
    n_fitted: int
    n_dropped: int


def _cut_out(
    layout: Layout,
    draft: Draft,
    sources: Mapping[str, Source],
    genes: Genes,
    plan: Plan,
    dtype: type,
    *,
    with_tpm: bool,
) -> _Cut:
    """Write the panel's counts, and fit ComBat and the means on the way."""
    lengths = genes.lengths[genes.panel]
    n_spots = sum(int((source.part != LEFT_OUT).sum()) for source in sources.values())
    counts = draft.layer("counts", len(genes.panel), dtype, n_spots)
    spots, seen, tables = {}, {}, []
    for slide, source in sources.items():
        own = panel_spots(source, genes, plan.params)
        counts.append(own.counts.toarray())
        if with_tpm:
            seen[slide] = moments_of(own, lengths, plan.mode)
        obs = read_elem(layout, f"{layout.slide(slide)}/obs")
        tables.append(spot_table(slide, own, obs, plan.patients[slide], with_tpm=with_tpm))
        spots[slide] = own._replace(counts=None)  # on disk: _write_layers reads it back
    counts.close()
    n_fitted = sum(int(fitted_rows(own.source.part, plan.mode).sum()) for own in spots.values())
    table = pd.concat([one for one in tables if len(one)])
    for column in ("slide", "patient", "split"):
        table[column] = pd.Categorical(table[column])
    fitted = fit_statistics(seen, plan.params, plan.mode) if with_tpm else None
    xy = np.concatenate([own.source.xy for own in spots.values()])
    return _Cut(spots, counts, table, xy, fitted, n_fitted, n_spots - len(table))


def _write_layers(
    draft: Draft, layers: Mapping[str, type], cut: _Cut, genes: Genes, mode: str, advance: Callable[[int], None]
) -> float:
    """Write all layers but the counts; give the share of entries that are missing."""
    lengths = genes.lengths[genes.panel]
    rows = {layer: draft.layer(layer, len(lengths), dtype, len(cut.obs)) for layer, dtype in layers.items()}
    start = measured = 0
    for slide in cut.spots:
        stop = start + len(cut.spots[slide].rows)
        own = cut.spots[slide]._replace(counts=sp.csr_matrix(cut.counts.read(slice(start, stop))))
        for layer, values in cohort_layers(own, lengths, cut.fitted, mode).items():
            rows[layer].append(values)
        measured += own.counts.nnz
        start = stop
        advance(1)
    return float(1 - measured / (start * len(lengths)))


def _source(layout: Layout, slide: str, plan: Plan, names: pd.Index, fractional: set[str]) -> Source:
    node = layout.slide(slide)
    if slide_record(layout, slide)["spots_digest"] is None:
        raise InputError(f"slide {slide} has no spot coordinates; leave it out of the cohort (--slides)")
    obs = read_elem(layout, f"{node}/obs")
    part = plan.parts[slide]
    columns = pd.Index(plan.naming.ids[slide]).get_indexer(names)

    def read(genes: np.ndarray | None) -> tuple[sp.csr_matrix, np.ndarray]:
        counts = raw_counts(ad.AnnData(read_elem(layout, f"{node}/X")), slide)
        if not whole_numbers(counts):
            fractional.add(slide)
        if fractional and plan.mode == "strict":
            raise InputError(
                f"slide {slide} has fractional counts: strict mode needs raw counts (--mode spared takes them as they are)"
            )
        return counts[:, columns if genes is None else columns[genes]], total_counts(counts)

    hexagonal = plan.params.hex_geometry
    if not plan.given_geometry and {"array_row", "array_col"} <= set(obs):
        hexagonal = grid_layout(obs["array_row"].to_numpy(), obs["array_col"].to_numpy()) != "square"
    return Source(
        read=read,
        part=np.full(len(obs), part) if isinstance(part, str) else part,
        batch=np.broadcast_to(plan.batches[slide], len(obs)),
        xy=np.asarray(read_elem(layout, f"{node}/obsm/spatial"), np.float64)[:, :2],
        hex_geometry=hexagonal,
    )


def _counted(read: Read, advance: Callable[[int], None]) -> Read:
    def reading(genes: np.ndarray | None) -> tuple[sp.csr_matrix, np.ndarray]:
        found = read(genes)
        advance(1)
        return found

    return reading


def _how(layer: str, plan: Plan) -> dict[str, str]:
    return {"method": HOW[layer]} if layer in HOW else {"method": "SpaRED's preprocessing", "mode": plan.mode}
