"""SpaRED's whole preprocessing in one call."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.counts import raw_counts, total_counts
from spared_fm.targets.spared.choice import moran_panel
from spared_fm.targets.spared.params import Params, read_params
from spared_fm.targets.spared.stream import (
    FITTED_ON,
    Source,
    fit_statistics,
    fitted_rows,
    moments_of,
    panel_columns,
    panel_spots,
    slide_layers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData


def process_dataset(adata: AnnData, params: Mapping[str, Any], mode: str = "spared") -> AnnData:
    """Turn raw counts of a collection of slides into SpaRED's layers.

    Spot filter → expression fractions → gene totals → prefix rule → TPM → log₂(1 + x) → adaptive median → Moran's I
    per slide and panel → ComBat → deltas → mask. One slide is dense at a time until the panel is chosen.

    Parameters
    ----------
    adata
        Raw counts in ``X`` (spots × genes, sparse or dense), Ensembl ids without version as ``var_names``,
        ``obs['slide_id']``, ``obs['split']`` (train, val or test), the ComBat column, and pixel (x, y) in
        ``obsm['spatial']``. Not changed.
    params
        SpaRED's parameters, see :class:`spared_fm.targets.spared.params.Params`.
    mode
        ``"spared"``: everything but the delta means is fitted on all spots, as published, and ComBat has the
        scale of the released package (:func:`spared_fm.targets.spared.combat.fit_combat`). ``"strict"``: on spots of
        split train only, and on a slide with spots of several splits each is completed from its own spots alone.

    Returns
    -------
    anndata.AnnData
        Kept spots, slides by name and spots in their order × panel genes, highest Moran's I first.
        ``X`` and other obs, obsm and var columns are carried over.

        - ``layers`` (dense): counts (dtype of ``X``), tpm, log1p, d_log1p, c_log1p, c_d_log1p, deltas, d_deltas,
          c_deltas, c_d_deltas, noisy_c_d_log1p, noisy_c_d_deltas (float64), mask (bool, True measured). With
          ``combat_key`` "None" there are no layers of c_ and no noisy ones.
        - ``obs``: n_genes_by_counts, total_counts, unique_id, and tpm_rest: counts per base of the genes that were left
          after the filters but are not in the panel, which TPM was scaled with.
        - ``var``: exp_frac, glob_exp_frac, n_cells_by_counts, mean_counts, pct_dropout_by_counts, total_counts,
          gene_length, d_log1p_moran, <layer>_avg_exp, used_mean_c_d_deltas; in strict mode all of them over training
          spots.
        - ``uns['preprocessing']``: mode, fitted_on, params.

    Raises
    ------
    InputError
        Unknown mode or parameter, a column that is missing, counts that are negative or not finite (in strict mode
        also fractional ones; one published set has them), no training spot, repeated gene ids, no gene with a
        known length, a panel larger than the genes left.

    Notes
    -----
    A slide whose spots are all filtered out does not count in exp_frac or Moran's I. A slide of one spot has no
    neighbours: its zeros stay zero and its Moran's I is left out of the mean.
    """
    if mode not in FITTED_ON:
        raise InputError(f"unknown mode {mode!r}: choose {' or '.join(FITTED_ON)}")
    settings = read_params(params)
    counts, slides, split = _checked(adata, settings, mode)
    rows_of = {name: np.flatnonzero(slides == name) for name in np.unique(slides)}
    sources = {name: _source(adata, counts, rows, split, settings) for name, rows in rows_of.items()}

    names = pd.Index(adata.var_names.astype(str))
    genes, score = moran_panel(sources, names, settings, mode, settings.top_moran_genes)
    lengths = genes.lengths[genes.panel]
    spots = {name: panel_spots(source, genes, settings) for name, source in sources.items()}
    seen = {name: moments_of(own, lengths, mode) for name, own in spots.items()}
    fitted = fit_statistics(seen, settings, mode)

    kept = np.concatenate([rows_of[name][own.rows] for name, own in spots.items()])
    columns = genes.left[genes.panel]
    out = ad.AnnData(
        X=adata.X[:, columns][kept],  # rows first would copy every gene of them
        obs=adata.obs.iloc[kept].copy(),
        var=adata.var.iloc[columns].copy(),
        obsm={key: values[kept] for key, values in adata.obsm.items()},
        uns=dict(adata.uns),
    )
    out.obs["n_genes_by_counts"] = np.concatenate([own.n_genes for own in spots.values()])
    out.obs["total_counts"] = np.concatenate([own.left_totals for own in spots.values()])
    out.obs["tpm_rest"] = np.concatenate([own.tpm_rest for own in spots.values()])
    out.obs["unique_id"] = out.obs_names
    n_left = sum(int(fitted_rows(own.source.part, mode).sum()) for own in spots.values())
    facts = panel_columns(genes, n_left, fitted)
    facts.insert(list(facts).index("gene_length") + 1, "d_log1p_moran", score)
    out.var[list(facts)] = facts
    layers = {"counts": sp.vstack([own.counts for own in spots.values()]).toarray()}
    start = 0
    for name in list(spots):
        for layer, values in slide_layers(own := spots.pop(name), lengths, fitted, mode).items():
            whole = layers.setdefault(layer, np.empty((len(kept), values.shape[1]), values.dtype))
            whole[start : start + len(own.rows)] = values
        start += len(own.rows)
    for layer, values in layers.items():
        out.layers[layer] = values
    out.uns["preprocessing"] = {"mode": mode, "fitted_on": FITTED_ON[mode], "params": asdict(settings)}
    return out


def _source(adata: AnnData, counts: sp.csr_matrix, rows: np.ndarray, split: np.ndarray, params: Params) -> Source:
    def read(genes: np.ndarray | None) -> tuple[sp.csr_matrix, np.ndarray]:
        own = counts[rows]
        return own if genes is None else own[:, genes], total_counts(own)

    key = params.combat_key if params.combat_key != "None" else "slide_id"
    return Source(
        read=read,
        part=split[rows],
        batch=adata.obs[key].astype(str).to_numpy()[rows],
        xy=np.asarray(adata.obsm["spatial"], np.float64)[rows, :2],
        hex_geometry=params.hex_geometry,
    )


def _checked(adata: AnnData, params: Params, mode: str) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Read counts, and slide and split of each spot."""
    wanted = ["slide_id", "split", *([params.combat_key] if params.combat_key != "None" else [])]
    for column in wanted:
        if column not in adata.obs:
            raise InputError(f"obs has no column {column!r}: add it to the collection")
        if adata.obs[column].isna().any():
            raise InputError(f"obs[{column!r}] is missing for {adata.obs[column].isna().sum()} spots: fill it in")
    if "spatial" not in adata.obsm:
        raise InputError("obsm['spatial'] is missing: the median and Moran's I need pixel (x, y) of the spots")
    if not adata.var_names.is_unique:
        again = adata.var_names[adata.var_names.duplicated()][0]
        raise InputError(f"gene {again} is there more than once: merge or drop repeated genes first")
    splits = adata.obs["split"].astype(str).to_numpy()
    if unknown := sorted(set(splits) - {"train", "val", "test"}):
        raise InputError(f"obs['split'] says {unknown[0]!r}: it must be train, val or test")
    if not (splits == "train").any():
        raise InputError("no spot has split 'train': means are taken over training spots")
    counts = raw_counts(adata, "collection")
    if mode == "strict" and counts.nnz and (counts.data % 1).any():
        raise InputError(
            "X holds fractional counts: strict mode needs raw counts (mode='spared' takes them as they are)"
        )
    return counts, adata.obs["slide_id"].astype(str).to_numpy(), splits
