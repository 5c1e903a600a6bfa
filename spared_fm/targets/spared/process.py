"""SpaRED's whole preprocessing in one call."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.targets.counts import raw_counts
from spared_fm.targets.spared.combat import apply_combat, fit_combat
from spared_fm.targets.spared.deltas import deltas, noisy, train_mean
from spared_fm.targets.spared.filtering import filter_counts
from spared_fm.targets.spared.graph import hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median
from spared_fm.targets.spared.moran import morans_i
from spared_fm.targets.spared.params import Params, read_params
from spared_fm.targets.spared.tpm import log1p, tpm, tpm_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import scipy.sparse as sp
    from anndata import AnnData

N_HOPS = 4
FITTED_ON = {
    "spared": "all splits, as published: gene filter, panel and ComBat have seen validation and test spots",
    "strict": "training spots only: gene filter, panel, ComBat and means; batches unseen in training are not corrected",
}
"""Modes, and what each says of itself in ``uns``."""

_DELTAS = {"log1p": "deltas", "d_log1p": "d_deltas", "c_log1p": "c_deltas", "c_d_log1p": "c_d_deltas"}


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
        - ``obs``: n_genes_by_counts, total_counts, unique_id.
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
    names = pd.Index(adata.var_names.astype(str))
    fit = split == "train" if mode == "strict" else np.ones(len(split), bool)
    kept = filter_counts(counts, names, slides, fit, settings)
    lengths = _lengths(kept.var.index, settings.organism)
    measured = np.flatnonzero(np.isfinite(lengths))
    genes, lengths = kept.genes[measured], lengths[measured]
    order = np.argsort(slides[kept.spots], kind="stable")
    kept = kept._replace(spots=kept.spots[order], obs=kept.obs.iloc[order])
    slides, split, fit = slides[kept.spots], split[kept.spots], fit[kept.spots]
    train = split == "train"
    if not train.any():
        raise InputError("no training spot is left after the filters: lower cell_min_counts or move slides to train")
    counts = counts[kept.spots][:, genes]
    scale = tpm_scale(counts, lengths)
    xy = np.asarray(adata.obsm["spatial"], np.float64)[kept.spots, :2]

    # where a slide holds spots of several splits, no neighbour may carry test expression into training spots
    pieces = slides if mode == "spared" else np.char.add(np.char.add(slides.astype(str), "/"), split)

    scores = [
        morans_i(completed, graph)
        for _, completed, graph in _completed(counts, lengths, scale, xy, pieces, fit, settings)
    ]
    moran = _mean_of_slides(np.stack(scores))
    panel = _best(moran, settings.top_moran_genes)

    panel_counts, panel_lengths = counts[:, panel], lengths[panel]
    layers = {"counts": panel_counts.toarray(), "tpm": tpm(panel_counts, panel_lengths, scale)}
    layers["log1p"] = log1p(layers["tpm"])
    layers["d_log1p"] = np.empty_like(layers["tpm"])
    everything = np.ones(len(pieces), bool)
    for rows, completed, _ in _completed(panel_counts, panel_lengths, scale, xy, pieces, everything, settings):
        layers["d_log1p"][rows] = completed
    layers["mask"] = layers["tpm"] != 0

    out = adata[kept.spots, genes[panel]].copy()
    for column in kept.obs:
        out.obs[column] = kept.obs[column].to_numpy()
    out.obs["unique_id"] = out.obs_names
    chosen = kept.var.iloc[measured[panel]]
    out.var[list(chosen)] = chosen
    out.var["gene_length"] = panel_lengths
    out.var["d_log1p_moran"] = moran[panel]
    if settings.combat_key != "None":
        batch = adata.obs[settings.combat_key].astype(str).to_numpy()[kept.spots]
        for layer in ("log1p", "d_log1p"):
            fitted = fit_combat(layers[layer][fit], batch[fit], as_released=mode == "spared")
            layers[f"c_{layer}"] = apply_combat(layers[layer], batch, fitted)
    for source, target in _DELTAS.items():
        if source in layers:
            mean = train_mean(layers[source], train)
            out.var[f"{source}_avg_exp"] = mean
            layers[target] = deltas(layers[source], mean)
    if settings.combat_key != "None":
        mean = out.var["c_d_log1p_avg_exp"].to_numpy()
        layers["noisy_c_d_log1p"] = noisy(layers["c_d_log1p"], layers["mask"])
        layers["noisy_c_d_deltas"] = noisy(layers["c_d_deltas"], layers["mask"], mean)
        out.var["used_mean_c_d_deltas"] = mean
    for layer, values in layers.items():
        out.layers[layer] = values
    out.uns["preprocessing"] = {"mode": mode, "fitted_on": FITTED_ON[mode], "params": asdict(settings)}
    return out


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


def _lengths(genes: pd.Index, organism: str) -> np.ndarray:
    from spared_fm.targets.genes import gene_lengths  # reads a table

    lengths = gene_lengths(organism).reindex(genes).to_numpy(np.float64)
    if not np.isfinite(lengths).any():
        raise InputError(
            f"no gene has a length in the {organism} table (for example {genes[0]}): var_names must be Ensembl ids "
            "without version; harmonise the gene names first, or check organism"
        )
    return lengths


def _completed(
    counts: sp.csr_matrix,
    lengths: np.ndarray,
    scale: np.ndarray,
    xy: np.ndarray,
    pieces: np.ndarray,
    wanted: np.ndarray,
    params: Params,
) -> Iterator[tuple[np.ndarray, np.ndarray, sp.csr_array]]:
    """Yield rows, d_log1p (rows × genes) and graph of each piece that has a wanted spot."""
    for piece in pd.unique(pieces[wanted]):
        rows = np.flatnonzero(pieces == piece)
        graph = slide_graph(xy[rows], hex_geometry=params.hex_geometry)
        values = log1p(tpm(counts[rows], lengths, scale[rows]))
        yield rows, complete_median(values, hops_around(graph, N_HOPS)), graph


def _mean_of_slides(score: np.ndarray) -> np.ndarray:
    """Mean over the slides on which the gene has a score; NaN where it has none."""
    known = np.isfinite(score)
    n = known.sum(axis=0)
    total = np.where(known, score, 0.0).sum(axis=0)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


def _best(moran: np.ndarray, n_genes: int) -> np.ndarray:
    """Positions of the panel, best first; equal scores keep their order, genes without a score come last."""
    if n_genes <= 0:
        n_genes = 128 if len(moran) > 320 else 32
    if n_genes > len(moran):
        raise InputError(f"a panel of {n_genes} genes cannot be had: {len(moran)} are left; lower top_moran_genes")
    return np.argsort(-np.nan_to_num(moran, nan=-np.inf), kind="stable")[:n_genes]
