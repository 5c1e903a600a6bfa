"""Cohorts: slides with one gene panel and one split, one slide in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spared_fm.targets.normalize import lognorm
from spared_fm.targets.panel import fit_panel
from spared_fm.targets.spared.choice import moran_panel, tally_slides
from spared_fm.targets.spared.stream import (
    Genes,
    Source,
    Spots,
    Statistics,
    fitted_slides,
    kept_spots,
    slide_layers,
)
from spared_fm.targets.spared.tpm import known_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

    from spared_fm.targets.spared.params import Params


def choose_panel(
    sources: Mapping[str, Source],
    names: pd.Index,
    params: Params,
    mode: str,
    *,
    panel: str | Sequence[str],
    n_genes: int,
) -> tuple[Genes, np.ndarray]:
    """Choose the genes of a cohort.

    Parameters
    ----------
    sources
        The slides.
    names
        Ids of the genes that their counts have.
    params
        Limits of SpaRED's filters.
    mode
        ``strict``: fitted on training spots; ``spared``: on all.
    panel
        ``moran``: SpaRED's rule, :func:`spared_fm.targets.spared.stream.moran_panel`. Else see
        :func:`spared_fm.targets.panel.fit_panel`; genes are not filtered then.
    n_genes
        Panel size.

    Returns
    -------
    tuple of Genes and np.ndarray
        The genes, and the score each of the panel was chosen by (NaN for a list), float64.

    Raises
    ------
    InputError
        A panel that cannot be had.
    """
    if panel == "moran":
        return moran_panel(sources, names, params, mode, n_genes)
    found = tally_slides(sources, len(names), params, mode)
    every = np.arange(len(names))

    def loader(source: Source) -> Callable[[], AnnData]:
        def load() -> AnnData:
            import anndata as ad

            rows, counts, totals = kept_spots(source, every, params, fit=mode)
            obs = pd.DataFrame({"total_counts": totals}, index=rows.astype(str))
            return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names))

        return load

    slides = {name: loader(sources[name]) for name in fitted_slides(sources, mode)}
    fitted = fit_panel(slides, n_genes=n_genes, panel=panel, genes=list(names))
    genes = Genes(names, found, every, known_lengths(names, params.organism), names.get_indexer(pd.Index(fitted.genes)))
    return genes, fitted.scores


def why_no_tpm(genes: Genes, params: Params) -> str | None:
    """Say why there are no layers of SpaRED's; None where every gene of the panel has a known length."""
    unknown = ~np.isfinite(genes.lengths[genes.panel])
    if not unknown.any():
        return None
    example = genes.names[genes.left[genes.panel[np.argmax(unknown)]]]
    if params.organism is None:
        return f"the organism of the genes (for example {example}) is not known: give it (--organism human or mouse)"
    return (
        f"{unknown.sum()} of the {len(unknown)} panel genes (for example {example}) have no length in the {params.organism} "
        "table: panel moran, or a list without them, has one for each"
    )


def spot_table(name: str, spots: Spots, obs: pd.DataFrame, patient: str | None, *, with_tpm: bool) -> pd.DataFrame:
    """Rows of a cohort's ``obs`` for one slide.

    Parameters
    ----------
    name
        Slide id.
    spots
        Its spots, see :func:`spared_fm.targets.spared.stream.panel_spots`.
    obs
        ``obs`` of the whole slide: barcodes as index; ``array_row``, ``array_col`` where known.
    patient
        None where unknown.
    with_tpm
        Add ``tpm_rest``.

    Returns
    -------
    pandas.DataFrame
        Index ``<slide>/<barcode>``; ``slide``, ``barcode``, ``patient``, ``split``; ``total_counts`` (float64, over *all* genes
        of the slide), ``n_genes_by_counts`` (int32, of the genes left after the filters), ``tpm_rest`` (float64: sum of
        counts / length over the genes left outside the panel, per base), ``array_row``, ``array_col``.
    """
    own = obs.iloc[spots.rows]
    barcodes = own.index.astype(str)
    columns: dict[str, Any] = {
        "slide": name,
        "barcode": barcodes.to_numpy(object),
        "patient": patient,
        "split": spots.source.part.astype(object),
        "total_counts": spots.totals,
        "n_genes_by_counts": spots.n_genes,
    }
    if with_tpm:
        columns["tpm_rest"] = spots.tpm_rest
    for position in ("array_row", "array_col"):
        if position in own:
            columns[position] = own[position].to_numpy(np.float64)
    return pd.DataFrame(columns, index=pd.Index([f"{name}/{b}" for b in barcodes]))


def cohort_layers(spots: Spots, lengths: np.ndarray, fitted: Statistics | None, mode: str) -> dict[str, np.ndarray]:
    """Layers of one slide of a cohort but its counts.

    Returns
    -------
    dict
        Spots × panel: lognorm (float32, ln(1 + counts per 10⁴) with the totals over all genes), mask (bool, count > 0); where
        ``fitted`` is given also those of :func:`spared_fm.targets.spared.stream.slide_layers`.
    """
    counts = spots.counts.toarray()
    layers = {"lognorm": lognorm(counts, spots.totals), "mask": counts > 0}
    return layers if fitted is None else slide_layers(spots, lengths, fitted, mode) | layers


def layer_names(*, with_tpm: bool, with_combat: bool) -> dict[str, type]:
    """Layers that :func:`cohort_layers` gives, and the dtype that a store keeps them in."""
    names: list[str] = []
    if with_tpm:
        names = ["tpm", "log1p", "d_log1p", "deltas", "d_deltas"]
        if with_combat:
            names += ["c_log1p", "c_d_log1p", "c_deltas", "c_d_deltas", "noisy_c_d_log1p", "noisy_c_d_deltas"]
    return {"lognorm": np.float32, "mask": np.bool_} | dict.fromkeys(names, np.float32)
