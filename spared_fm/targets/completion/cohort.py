"""Cohorts as completers see them: one section per slide, or per part of a slide that is in several splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.targets.completion.data import Section, fill
from spared_fm.targets.completion.hiding import LAYERS, Counts, normalise, scale
from spared_fm.targets.neighbors import LAYOUT_NEIGHBORS, grid_layout

if TYPE_CHECKING:
    from anndata import AnnData

    from spared_fm.targets.completion.data import Completer

NO_LENGTHS = (
    "the cohort has no gene lengths (var['gene_length'], obs['tpm_rest']): build it with --organism, or use lognorm"
)


def pieces(cohort: AnnData) -> dict[str, np.ndarray]:
    """Rows of each section, slides in order of appearance; parts of one slide are named ``slide/split``."""
    slides = cohort.obs["slide"].astype(str).to_numpy()
    splits = cohort.obs["split"].astype(str).to_numpy() if "split" in cohort.obs else np.full(len(slides), "")
    out = {}
    for slide in pd.unique(slides):
        rows = np.flatnonzero(slides == slide)
        parts = pd.unique(splits[rows])
        for part in parts:
            out[slide if len(parts) == 1 else f"{slide}/{part}"] = rows[splits[rows] == part]
    return out


def sections(cohort: AnnData, source: str) -> dict[str, Section]:
    """Sections of one layer, everything measured visible.

    Parameters
    ----------
    cohort
        Layers ``source`` and ``mask`` (without: the zeros of ``source`` are the missing entries), ``obs['slide']``,
        ``obsm['spatial']``; ``obs['split']``, ``array_row``, ``array_col``, ``total_counts`` where known.
    source
        Layer. Values of ``log1p`` and ``lognorm`` come with that of one count, where counts and lengths are known.

    Raises
    ------
    InputError
        No such layer, or NaN in it.
    """
    if source not in cohort.layers:
        raise InputError(f"the cohort has no layer {source!r}: it has {', '.join(sorted(cohort.layers)) or 'none'}")
    layer = np.asarray(cohort.layers[source], np.float32)
    mask = np.asarray(cohort.layers["mask"], bool) if "mask" in cohort.layers else layer != 0
    units = _units(cohort, source)
    out = {}
    for name, rows in pieces(cohort).items():
        visible = mask[rows]
        out[name] = Section(
            slide=name,
            values=np.where(visible, layer[rows], np.float32(0)),
            visible=visible,
            xy=np.asarray(cohort.obsm["spatial"], np.float64)[rows, :2],
            library=_library(cohort, rows),
            k=grid_neighbors(cohort, rows),
            unit=None if units is None else units[name],
        )
    return out


def raw_counts(cohort: AnnData) -> list[Counts]:
    """Raw counts of each section, to hide entries in.

    Parameters
    ----------
    cohort
        Layer ``counts``, ``obs``: slide, split, total_counts (over all genes), and for ``log1p`` also tpm_rest
        (Σ counts / length over kept genes outside the panel) and ``var['gene_length']``; ``obsm['spatial']``. Without these
        two lengths are 1 and only ``lognorm`` can be made of it.

    Raises
    ------
    InputError
        No counts or totals.
    """
    for name, found in (
        ("layer 'counts'", "counts" in cohort.layers),
        ("obs['total_counts']", "total_counts" in cohort.obs),
    ):
        if not found:
            raise InputError(f"the cohort has no {name}: hiding starts from raw counts; build the cohort again")
    counts = np.asarray(cohort.layers["counts"], np.float64)
    rest = np.maximum(cohort.obs["total_counts"].to_numpy(np.float64) - counts.sum(axis=1), 0)
    known = has_lengths(cohort)
    per_base = cohort.obs["tpm_rest"].to_numpy(np.float64) if known else np.zeros(len(counts))
    lengths = cohort.var["gene_length"].to_numpy(np.float64) if known else np.ones(counts.shape[1])
    splits = cohort.obs["split"].astype(str).to_numpy()
    return [
        Counts(
            slide=name,
            split=str(splits[rows[0]]),
            counts=counts[rows],
            rest_counts=rest[rows],
            rest_per_base=per_base[rows],
            lengths=lengths,
            xy=np.asarray(cohort.obsm["spatial"], np.float64)[rows, :2],
            k=grid_neighbors(cohort, rows),
        )
        for name, rows in pieces(cohort).items()
    ]


def has_lengths(cohort: AnnData) -> bool:
    """Whether TPM can be computed anew."""
    if "tpm_rest" not in cohort.obs or "gene_length" not in cohort.var:
        return False
    return bool(np.isfinite(cohort.var["gene_length"].to_numpy(np.float64)).all())


def complete_layer(cohort: AnnData, completer: Completer, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Complete one layer of a cohort with a fitted completer, each section on its own.

    Returns
    -------
    np.ndarray
        Spots × genes, float32, in the unit of ``source``; measured entries are bit-identical to it.
    np.ndarray or None
        Spread of the completed entries, float32; 0 where measured.
    """
    given = sections(cohort, source)
    values = np.empty(cohort.shape, np.float32)
    spread: np.ndarray | None = np.zeros(cohort.shape, np.float32)
    for name, rows in pieces(cohort).items():
        completed = completer.complete(given[name])
        values[rows] = fill(given[name], completed)
        if completed.spread is None or spread is None:
            spread = None
        else:
            spread[rows] = np.where(given[name].visible, np.float32(0), completed.spread)
    return values, spread


def grid_neighbors(cohort: AnnData, rows: np.ndarray) -> int:
    """Neighbours of a spot on the grid of these rows: 8 where their array positions are a square grid, else 6."""
    if "array_row" not in cohort.obs or "array_col" not in cohort.obs:
        return LAYOUT_NEIGHBORS["hex"]
    array_row, array_col = (cohort.obs[c].to_numpy(np.float64)[rows] for c in ("array_row", "array_col"))
    return LAYOUT_NEIGHBORS[grid_layout(array_row, array_col) or "hex"]


def _library(cohort: AnnData, rows: np.ndarray) -> np.ndarray:
    if "total_counts" in cohort.obs:
        return np.log1p(cohort.obs["total_counts"].to_numpy(np.float64)[rows]).astype(np.float32)
    return np.zeros(len(rows), np.float32)


def _units(cohort: AnnData, source: str) -> dict[str, np.ndarray] | None:
    """Value of one count in each entry, where ``source`` is a layer that can be computed from counts."""
    if source not in LAYERS or "counts" not in cohort.layers or "total_counts" not in cohort.obs:
        return None
    if source == "log1p" and not has_lengths(cohort):
        return None
    return {
        one.slide: normalise(np.ones_like(one.counts), scale(one, one.counts, source), one.lengths, source).astype(
            np.float32
        )
        for one in raw_counts(cohort)
    }
