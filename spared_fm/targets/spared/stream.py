"""SpaRED's preprocessing as passes over slides, one slide's counts in memory at a time.

Genes are chosen in two passes over the slides to fit on (:func:`moran_panel`), then every slide is cut down to the panel
(:func:`panel_spots`), which gives the moments of ComBat and the means (:func:`moments_of`, :func:`fit_statistics`), and last
every slide gets its layers (:func:`slide_layers`). What is fitted does not depend on the order of the slides: sums over
slides are taken in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.spared.combat import Combat, Moments, apply_combat, fit_combat, merge_moments, moments
from spared_fm.targets.spared.deltas import deltas, noisy
from spared_fm.targets.spared.filtering import Tally, gene_columns, spots_within
from spared_fm.targets.spared.graph import hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median
from spared_fm.targets.spared.tpm import log1p, tpm, tpm_scale

if TYPE_CHECKING:
    import pandas as pd

    from spared_fm.targets.spared.params import Params

N_HOPS = 4
FITTED_ON = {
    "spared": "all splits, as published: gene filter, panel and ComBat have seen validation and test spots",
    "strict": "training spots only: gene filter, panel, ComBat and means; batches unseen in training are not corrected",
}
"""Modes, and what each says of itself in ``uns``."""

LEFT_OUT = ""
"""Part of a spot that belongs to no split: it is in no layer, nothing is fitted on it, and it is nobody's neighbour."""

DELTAS = {"log1p": "deltas", "d_log1p": "d_deltas", "c_log1p": "c_deltas", "c_d_log1p": "c_d_deltas"}

Read: TypeAlias = Callable[[np.ndarray | None], tuple[sp.csr_matrix, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """One slide, as the passes take it.

    Attributes
    ----------
    read
        Takes positions of genes (None: all); gives the raw counts of these, spots × genes, without explicit zeros, and the total
        counts of each spot over *all* genes of the slide, ``(n_spots,)`` float64.
    part
        ``(n_spots,)``: train, val, test, or :data:`LEFT_OUT`.
    batch
        ``(n_spots,)``: batch of ComBat.
    xy
        ``(n_spots, 2)``: spot centres, any one unit.
    hex_geometry
        See :func:`spared_fm.targets.spared.graph.slide_graph`.
    """

    read: Read
    part: np.ndarray
    batch: np.ndarray
    xy: np.ndarray
    hex_geometry: bool = True

    def at(self, rows: np.ndarray) -> Source:
        """Facts about some of the spots; ``read`` stays that of the slide."""
        return replace(self, part=self.part[rows], batch=self.batch[rows], xy=self.xy[rows])


class Genes(NamedTuple):
    """Genes left after the filters and the panel among them.

    ``left`` are positions in ``names``; ``lengths`` in bases of those left, infinite where unknown (they count for the spots
    that are kept, not for TPM); ``panel`` are positions in ``left``, best first.
    """

    names: pd.Index
    found: Tally
    left: np.ndarray
    lengths: np.ndarray
    panel: np.ndarray


class Spots(NamedTuple):
    """The spots of one slide that are kept, cut down to the panel.

    ``source`` is that of these spots, which are ``rows`` of the slide; ``counts`` are spots × panel; ``totals`` are over all
    genes of the slide, ``left_totals`` and ``n_genes`` over those left; ``scale`` is the factor of TPM, and ``tpm_rest`` the
    sum of counts / length over the genes left outside the panel.
    """

    source: Source
    rows: np.ndarray
    counts: sp.csr_matrix
    totals: np.ndarray
    left_totals: np.ndarray
    n_genes: np.ndarray
    scale: np.ndarray
    tpm_rest: np.ndarray


class Seen(NamedTuple):
    """Per layer (log1p, d_log1p) the moments of one slide: of the spots to fit on, and of the training spots."""

    fit: dict[str, Moments]
    train: dict[str, Moments]


class Statistics(NamedTuple):
    """ComBat per layer (log1p, d_log1p; empty: none), and the training mean of each layer, ``(n_panel,)`` float64."""

    combat: dict[str, Combat]
    means: dict[str, np.ndarray]


def fitted_rows(part: np.ndarray, mode: str) -> np.ndarray:
    """Spots that a mode fits on, ``(n_spots,)`` bool."""
    return part == "train" if mode == "strict" else part != LEFT_OUT


def fitted_slides(sources: Mapping[str, Source], mode: str) -> list[str]:
    """Slides that have spots to fit on, by name."""
    return sorted(name for name, source in sources.items() if fitted_rows(source.part, mode).any())


def kept_spots(
    source: Source, left: np.ndarray, params: Params, *, fit: str | None = None
) -> tuple[np.ndarray, sp.csr_matrix, np.ndarray]:
    """Read the spots of a slide that are kept: within the limits, with a count on the genes left.

    Parameters
    ----------
    source
        The slide.
    left
        Positions of the genes left after the filters.
    params
        Limits.
    fit
        A mode: of these spots only the ones it fits on.

    Returns
    -------
    tuple
        Their rows, their counts (spots × genes left), and their totals over all genes.
    """
    counts, totals = source.read(left)
    kept = spots_within(totals, params.cell_min_counts, params.cell_max_counts)
    kept &= (_row_sums(counts) > 0) & (source.part != LEFT_OUT if fit is None else fitted_rows(source.part, fit))
    return np.flatnonzero(kept), _take(counts, kept), totals[kept]


def panel_spots(source: Source, genes: Genes, params: Params) -> Spots:
    """Read a slide and keep its panel and its spots: within the limits, and with a count on the genes left."""
    rows, counts, totals = kept_spots(source, genes.left, params)
    outside = genes.lengths.copy()
    outside[genes.panel] = np.inf
    return Spots(
        source=source.at(rows),
        rows=rows,
        counts=counts[:, genes.panel],
        totals=totals,
        left_totals=_row_sums(counts),
        n_genes=np.diff(counts.indptr).astype(np.int32),
        scale=tpm_scale(counts, genes.lengths),
        tpm_rest=counts @ (1.0 / outside),
    )


def moments_of(spots: Spots, lengths: np.ndarray, mode: str) -> Seen:
    """Moments of one slide's log1p and d_log1p.

    Parameters
    ----------
    spots
        Of :func:`panel_spots`.
    lengths
        Of the panel, in bases.
    mode
        Which spots are fitted on.
    """
    source = spots.source
    values = _expression(spots, lengths, mode)
    fit, train = fitted_rows(source.part, mode), source.part == "train"

    def of(rows: np.ndarray) -> dict[str, Moments]:
        return {layer: moments(values[layer][rows], source.batch[rows]) for layer in ("log1p", "d_log1p")}

    in_training = of(train)
    return Seen(in_training if (fit == train).all() else of(fit), in_training)


def fit_statistics(seen: Mapping[str, Seen], params: Params, mode: str) -> Statistics:
    """ComBat and the training means, from the moments of every slide.

    Raises
    ------
    InputError
        No training spot is left, or a batch of one spot.
    """
    ordered: Sequence[Seen] = [seen[name] for name in sorted(seen)]
    train = {layer: merge_moments([one.train[layer] for one in ordered]) for layer in ("log1p", "d_log1p")}
    if not train["log1p"].n.sum():
        raise InputError("no training spot is left after the filters: lower cell_min_counts or move slides to train")
    combat, means = {}, {}
    for layer, known in train.items():
        share = known.n / known.n.sum()
        means[layer] = share @ known.mean
        if params.combat_key != "None":
            fitted = fit_combat(merge_moments([one.fit[layer] for one in ordered]), as_released=mode == "spared")
            combat[layer] = fitted
            # the correction of a batch is affine, so it may be applied to the batch's mean
            means[f"c_{layer}"] = share @ apply_combat(known.mean, known.batches.to_numpy(), fitted)
    return Statistics(combat, means)


def slide_layers(spots: Spots, lengths: np.ndarray, fitted: Statistics, mode: str) -> dict[str, np.ndarray]:
    """All of SpaRED's layers of one slide but the counts.

    Returns
    -------
    dict
        Spots × panel, float64: tpm, log1p, d_log1p, deltas, d_deltas; where there is a ComBat also c_log1p, c_d_log1p, c_deltas,
        c_d_deltas, noisy_c_d_log1p, noisy_c_d_deltas; and mask (bool, True measured).
    """
    layers = _expression(spots, lengths, mode)
    for layer, combat in fitted.combat.items():
        layers[f"c_{layer}"] = apply_combat(layers[layer], spots.source.batch, combat)
    for source, target in DELTAS.items():
        if source in layers:
            layers[target] = deltas(layers[source], fitted.means[source])
    layers["mask"] = layers["tpm"] != 0
    if fitted.combat:
        layers["noisy_c_d_log1p"] = noisy(layers["c_d_log1p"], layers["mask"])
        layers["noisy_c_d_deltas"] = noisy(layers["c_d_deltas"], layers["mask"], fitted.means["c_d_log1p"])
    return layers


def panel_columns(genes: Genes, n_left: int, fitted: Statistics | None) -> pd.DataFrame:
    """Columns of var for the panel.

    Parameters
    ----------
    genes
        The genes.
    n_left
        Number of spots to fit on that are kept.
    fitted
        Of :func:`fit_statistics`, where there are SpaRED's layers.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`spared_fm.targets.spared.filtering.gene_columns`, gene_length (NaN where unknown), and where
        there are layers <layer>_avg_exp of each and used_mean_c_d_deltas.
    """
    columns = gene_columns(genes.found, genes.left[genes.panel], genes.names, n_left)
    lengths = genes.lengths[genes.panel]
    columns["gene_length"] = np.where(np.isfinite(lengths), lengths, np.nan)
    if fitted is not None:
        for layer in DELTAS:
            if layer in fitted.means:
                columns[f"{layer}_avg_exp"] = fitted.means[layer]
        if fitted.combat:
            columns["used_mean_c_d_deltas"] = fitted.means["c_d_log1p"]
    return columns


def pieces(part: np.ndarray, mode: str) -> list[np.ndarray]:
    """Rows of a slide that are completed together.

    In strict mode a slide with spots of several parts is cut into these, so that no neighbour carries test expression into
    training spots.
    """
    if mode != "strict":
        return [np.arange(len(part))] if len(part) else []
    return [np.flatnonzero(part == one) for one in np.unique(part)]


def _expression(spots: Spots, lengths: np.ndarray, mode: str) -> dict[str, np.ndarray]:
    """Give tpm, log1p and d_log1p, spots × panel, float64."""
    layers = {"tpm": tpm(spots.counts, lengths, spots.scale)}
    layers["log1p"] = log1p(layers["tpm"])
    layers["d_log1p"] = np.empty_like(layers["tpm"])
    for piece in pieces(spots.source.part, mode):
        graph = slide_graph(spots.source.xy[piece], hex_geometry=spots.source.hex_geometry)
        layers["d_log1p"][piece] = complete_median(layers["log1p"][piece], hops_around(graph, N_HOPS))
    return layers


def _take(counts: sp.csr_matrix, rows: np.ndarray) -> sp.csr_matrix:
    return counts if rows.all() else counts[np.flatnonzero(rows)]


def _row_sums(counts: sp.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
