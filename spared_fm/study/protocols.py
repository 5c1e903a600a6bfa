"""What a head is fitted on and what it is scored on: the folds of a cohort under each protocol."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anndata as ad
import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.store.nodes import read_elem
from spared_fm.study.cohort import cohort_record
from spared_fm.study.cohort import target as read_target
from spared_fm.study.cohort_build import gene_tables
from spared_fm.study.cohort_split import spot_positions
from spared_fm.targets.counts import raw_counts
from spared_fm.targets.genes import identify
from spared_fm.targets.panel import shared_genes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import scipy.sparse as sp

    from spared_fm.store.layout import Layout
    from spared_fm.study.evaluate import Joined

PROTOCOLS = ("strict", "spared", "hest_exact", "hest_corrected")
HEST = ("hest_exact", "hest_corrected")
HEST_TARGET = "hest"
"""Target of HEST's protocols, ln(1 + raw counts) of genes picked by the protocol: no layer of the cohort."""
LEAK = "leak: genes picked over all slides, also those held out (as published)"
UNCOMPLETED = {
    "d_log1p": "log1p",
    "c_d_log1p": "noisy_c_d_log1p",
    "c_d_deltas": "noisy_c_d_deltas",
}
"""Layers that are completed when a cohort is built, and their raw twin: SpaRED's own, alike in every measured entry."""


@dataclasses.dataclass
class Fold:
    """One fit and what it is scored on.

    Attributes
    ----------
    name
        ``""`` where there is one only, else who is held out: ``patient A``, ``slide A1`` or, where they are many,
        ``patients 3 of 10``. It has no ``/`` and is unique.
    split
        Unit (see :func:`spared_fm.study.cohort_split.units`) → train, val or test.
    truth
        Unit → target, (spots, genes) float32, rows in cohort order.
    mask
        Unit → (spots, genes) bool, True where measured; None where the target has no mask.
    raw
        Unit → the layer that ``truth`` completes, (spots, genes) float32; None where ``truth`` completes none.
    genes
        Names of the genes.
    raw_layer
        Name of the layer in ``raw``, or None.
    label
        What a reader must know of a score on this fold, as ``leak: …``; else ``""``.
    """

    name: str
    split: dict[str, str]
    truth: dict[str, np.ndarray]
    mask: dict[str, np.ndarray] | None
    raw: dict[str, np.ndarray] | None
    genes: list[str]
    raw_layer: str | None = None
    label: str = ""


def check_target(protocol: str, target: str) -> None:
    """Check that there is such a protocol and that it takes this target; if the cohort has the layer, is not looked at.

    Raises
    ------
    InputError
        An unknown protocol, a HEST protocol with another target than ``hest``, or ``hest`` with another protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r} is not {' or '.join(PROTOCOLS)}")
    if protocol in HEST and target != HEST_TARGET:
        raise InputError(f"protocol {protocol} takes target {HEST_TARGET!r} only, not {target!r}")
    if protocol not in HEST and target == HEST_TARGET:
        raise InputError(f"target {HEST_TARGET!r} needs protocol {' or '.join(HEST)}, not {protocol}")


def check_head(protocol: str, head: str) -> None:
    """Check that a protocol takes this head.

    Raises
    ------
    InputError
        An unknown head; one that is not ``hest-exact`` with ``hest_exact``; ``hest-exact``, an oracle or a leaking head
        with ``hest_corrected``.
    """
    from spared_fm.heads.registry import head_class

    label = head_class(head).label
    if protocol == "hest_exact" and head != "hest-exact":
        raise InputError(f"protocol hest_exact takes head hest-exact only, not {head!r}: use hest_corrected for it")
    if protocol == "hest_corrected" and head == "hest-exact":
        raise InputError(
            "protocol hest_corrected takes no head 'hest-exact': use hest-corrected, or protocol hest_exact"
        )
    if protocol == "hest_corrected" and label.partition(":")[0] in ("oracle", "leakage"):
        raise InputError(f"protocol hest_corrected takes fair heads only, not {head!r} ({label}): use protocol strict")


def folds(layout: Layout, cohort: str, joined: Joined, target: str, protocol: str) -> list[Fold]:
    """Give the folds of a cohort.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name.
    joined
        Its embeddings, for the units, their rows, split and patients.
    target
        Layer name; ``hest`` for HEST's protocols.
    protocol
        ``strict``, ``spared``: one fold, the cohort's own split and panel. ``hest_exact``, ``hest_corrected``: every
        patient is left out once (dealt into ten folds where there are more; slides where fewer than two patients are
        known, and the label says so), and the cohort's split and panel play no part. The target is ln(1 + raw counts)
        of 50 genes out of all that the cohort's slides share, see :func:`spared_fm.benchmark.hest.pick_genes`: in
        ``hest_exact`` picked once over all slides (a leak, and labelled so), in ``hest_corrected`` for each fold on its
        training slides. The spots are the cohort's; a slide without any is left out.

    Returns
    -------
    list of Fold

    Raises
    ------
    InputError
        Unknown protocol, cohort or layer, a target that the protocol doesn't take, a cohort of one slide only, too few
        genes to pick from, bad counts, or spots that are no longer in the store.

    Notes
    -----
    Source: HEST-1k (Jaume et al. 2024, NeurIPS) and its released benchmark, whose folds are files that leave patients out.
    """
    check_target(protocol, target)
    if protocol in HEST:
        return _hest_folds(layout, cohort, joined, protocol)
    layers = cohort_record(layout, cohort)["layers"]

    def layer(name: str, dtype: type) -> dict[str, np.ndarray]:
        values: np.ndarray = read_target(layout, cohort, name).astype(dtype, copy=False)
        return {unit: values[rows] for unit, rows in joined.rows.items()}

    before = uncompleted(layers, target)
    return [
        Fold(
            name="",
            split=dict(joined.split),
            truth=layer(target, np.float32),
            mask=layer("mask", np.bool_) if "mask" in layers else None,
            raw=None if before is None else layer(before, np.float32),
            genes=list(read_elem(layout, f"{layout.cohort(cohort)}/var").index),
            raw_layer=before,
        )
    ]


def uncompleted(layers: Mapping[str, Mapping[str, Any]], layer: str) -> str | None:
    """Name the layer that a completed one began as, on the same scale; None for a layer that completes none.

    Parameters
    ----------
    layers
        ``layers`` of the cohort's record.
    layer
        Layer name.
    """
    if "of" in layers.get(layer, {}):
        return None  # the uncertainty of a completion
    before = layer
    while before in layers and (source := layers[before].get("source", UNCOMPLETED.get(before))):
        before = source
    return before if before != layer and before in layers else None


def _hest_folds(layout: Layout, cohort: str, joined: Joined, protocol: str) -> list[Fold]:
    from spared_fm.benchmark.hest import gene_sums, leave_out, pick_genes

    record = cohort_record(layout, cohort)
    slides = {unit: unit.split("/")[0] for unit, rows in joined.rows.items() if len(rows)}
    what, whose, label = _whose(record["patients"], {slide: joined.patients[unit] for unit, slide in slides.items()})
    if len(set(whose.values())) < 2:
        raise InputError(f"cohort {cohort!r} has one slide: {protocol} leaves slides out; use protocol strict")
    counts = _RawCounts(
        layout, cohort, record, {s: {u: joined.rows[u] for u in slides if slides[u] == s} for s in whose}
    )
    sums = {slide: gene_sums(counts.read(slide)) for slide in whose}
    held_out = leave_out(list(whose.values()))
    if protocol == "hest_exact":
        picks = [pick_genes(list(sums.values()), counts.names)] * len(held_out)
        label = "; ".join([LEAK, label] if label else [LEAK])
    else:
        picks = [
            pick_genes([own for slide, own in sums.items() if whose[slide] not in out], counts.names)
            for out in held_out
        ]
    columns = np.unique(np.concatenate(picks))
    values: dict[str, np.ndarray] = {}
    for slide in whose:
        values |= counts.parts(slide, columns)
    truth: dict[str, np.ndarray] = {}
    found: list[Fold] = []
    for number, (out, picked) in enumerate(zip(held_out, picks, strict=True)):
        if number == 0 or picked is not picks[number - 1]:  # folds with the same genes share their targets
            at = np.searchsorted(columns, picked)
            truth = {unit: np.log1p(part[:, at]) for unit, part in values.items()}
        # quoted: a patient may be called anything, and the name is part of a key
        alone = f"{what} {quote(out[0], safe=' ')}"
        found.append(
            Fold(
                name=alone if len(out) == 1 else f"{what}s {number + 1} of {len(held_out)}",
                split={unit: "test" if whose[slides[unit]] in out else "train" for unit in slides},
                truth=truth,
                mask=None,
                raw=None,
                genes=[counts.names[i] for i in picked],
                label=label,
            )
        )
    return found


def _whose(known: Mapping[str, str | None], patients: Mapping[str, str]) -> tuple[str, dict[str, str], str]:
    """Say what is left out (patient or slide), its name for every slide, and what to know of it."""
    unknown = [slide for slide in patients if not known.get(slide)]
    if len(unknown) < len(patients) and len(set(patients.values())) > 1:
        note = (
            f"{len(unknown)} of {len(patients)} slides of unknown patients, each taken for a patient of its own"
            if unknown
            else ""
        )
        return "patient", dict(patients), note
    why = "patients unknown" if unknown else "one patient only"
    return "slide", {slide: slide for slide in patients}, f"folds by slide, {why}"


class _RawCounts:
    """Raw counts of a cohort's spots, for the genes that all its slides share; one slide in memory at a time."""

    def __init__(
        self,
        layout: Layout,
        cohort: str,
        record: Mapping[str, Any],
        slides: Mapping[str, Mapping[str, np.ndarray]],
    ) -> None:
        self._layout, self._cohort, self._slides = layout, cohort, slides
        self._ids = identify(gene_tables(layout, list(record["split"])), record["organism"]).ids
        self.names = shared_genes({slide: [i for i in ids if i] for slide, ids in self._ids.items()})
        self._barcodes = read_elem(layout, f"{layout.cohort(cohort)}/obs")["barcode"].to_numpy()

    def read(self, slide: str) -> sp.csr_matrix:
        """Read a slide, (spots of its units one after the other, shared genes)."""
        barcodes = self._barcodes[np.concatenate(list(self._slides[slide].values()))]
        counts = raw_counts(ad.AnnData(read_elem(self._layout, f"{self._layout.slide(slide)}/X")), slide)
        rows = spot_positions(self._layout, self._cohort, slide, barcodes)
        return counts[rows][:, pd.Index(self._ids[slide]).get_indexer(self.names)]

    def parts(self, slide: str, genes: np.ndarray) -> dict[str, np.ndarray]:
        """Read some of the shared genes of a slide: unit → (spots, genes) float32."""
        counts = self.read(slide)[:, genes].toarray().astype(np.float32)
        units = self._slides[slide]
        ends = np.cumsum([len(rows) for rows in units.values()])
        return dict(zip(units, np.split(counts, ends[:-1]), strict=True))
