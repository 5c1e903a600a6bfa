"""Cohorts: from slides to targets, and their completion."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.layout import check_name
from spared_fm.store.nodes import read_elem
from spared_fm.store.recipe import digest
from spared_fm.study.cohort_build import Plan, build, gene_tables
from spared_fm.study.cohort_split import check_leaks, part_name, split_slides
from spared_fm.study.encode import choose_slides
from spared_fm.targets.genes import SYMBOL_COLUMN
from spared_fm.targets.panel import read_panel
from spared_fm.targets.spared.params import read_params
from spared_fm.targets.spared.stream import FITTED_ON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata as ad

    from spared_fm.store.layout import Layout

PANELS = ("moran", "variance", "hvg")
PARTS = ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "uns")
"""Of a cohort's AnnData, but its layers."""


def cohort(
    layout: Layout,
    name: str,
    *,
    slides: str | Sequence[str] | None = None,
    split: Mapping[str, str] | str | Path | None = None,
    split_by: str | None = None,
    seed: int = 0,
    n_genes: int | None = None,
    panel: str | None = None,
    mode: str = "strict",
    organism: str | None = None,
    params: Mapping[str, Any] | str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Join slides into a cohort with one gene panel and one split, with SpaRED's layers where gene lengths are known.

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    slides
        Glob or ids; by default all slides that have counts.
    split
        Slide → ``train``/``val``/``test``, or a CSV file with columns slide, split; by default what ingest was told.
    split_by
        ``patient``, ``slide`` (or ``section``) or ``block`` (every slide into spatial blocks, a buffer between them): split at
        random (``seed``) instead. Where neither a split nor this is given and ingest was told none: by patient where three are
        known, else by slide, else one slide by block.
    n_genes, panel
        Panel size (default: ``top_moran_genes``, 128), and ``moran`` (SpaRED's filters and panel), ``variance``, ``hvg`` or
        a file of gene names (all three choose among all genes that the slides share). Default: ``moran`` where the organism
        of the genes is known, else ``variance``.
    mode
        ``strict``: gene filter, panel, ComBat and means are fitted on training spots only. ``spared``: all but the means are
        fitted on all spots, as SpaRED was published.
    organism
        ``human`` or ``mouse``, for the lengths of the genes; by default told from their names.
    params
        SpaRED's parameters under SpaRED's names, or a JSON file of them (SpaRED's own configuration files are such), see
        :class:`spared_fm.targets.spared.params.Params`; ``combat_key`` is
        ``slide_id``, ``patient`` or ``None``, and ``hex_geometry`` by default follows from the spots' places on the array.
    progress
        Show a bar.

    Returns
    -------
    dict
        cohort, status (``added``, ``unchanged``), mode, fitted_on (a sentence), spots, dropped_spots (outside the limits of total
        counts, or without a count on the genes left), genes, panel, organism, layers, no_tpm (why there are no layers of
        SpaRED's, or None), split (slide → part; parts joined by ``+`` where a slide is divided), split_by, split_label (what a
        score on this split says), gene_report, leakage (findings), share_missing, warnings.

    Raises
    ------
    InputError
        No split for a slide, no training slide, no genes in common, a panel that cannot be had, bad counts, unknown mode or
        parameter, or the name is taken by a cohort with other settings.
    """
    from spared_fm.targets.genes import identify

    check_name(name, "cohort")
    if mode not in FITTED_ON:
        raise InputError(f"--mode {mode!r} is not {' or '.join(FITTED_ON)}")
    chosen = [
        s for s in choose_slides(layout, slides) if slides is not None or slide_record(layout, s)["counts_digest"]
    ]
    if not chosen:
        raise InputError(f"{layout.root}: no slide has counts, which a cohort is made of; ingest some with counts")
    records = {slide: slide_record(layout, slide) for slide in chosen}
    for slide, record in records.items():
        if record["counts_digest"] is None:
            raise InputError(f"slide {slide} has no counts; leave it out of the cohort (--slides)")
    patients = {slide: record["patient"] for slide, record in records.items()}
    chosen_split = split_slides(layout, records, split, split_by, seed)
    asked = _read_json(params) if isinstance(params, str | Path) else dict(params or {})
    if organism is not None:
        asked["organism"] = organism
    naming = identify(gene_tables(layout, chosen), asked.get("organism"))
    rules = read_params(asked | {"organism": naming.organism}, may_lack_organism=True)
    panel = panel or ("moran" if naming.organism else "variance")
    parts = {slide: part_name(chosen_split.parts[slide]) for slide in chosen}
    size = n_genes or rules.top_moran_genes
    settings = {
        "panel": _panel_identity(panel),
        "n_genes": size,
        "mode": mode,
        "params": asdict(rules),
        "split": parts,
        "split_spots": {s: digest(p.tolist()) for s, p in chosen_split.parts.items() if not isinstance(p, str)},
        "patients": patients,
        "parents": {s: {k: r[k] for k in ("counts_digest", "spots_digest", "fingerprint")} for s, r in records.items()},
    }
    node = layout.cohort(name)
    known = layout.attributes(node)
    if known is not None and known["settings_digest"] != digest(settings):
        raise InputError(f"cohort {name!r} exists with other settings; give this one another --name")
    found, warnings = check_leaks(layout, records, chosen_split)
    if known is None:
        base = {
            **settings,
            "cohort": name,
            "settings_digest": digest(settings),
            "organism": naming.organism,
            "split_by": chosen_split.by,
            "split_label": chosen_split.label,
            "gene_report": naming.report,
            "leakage": found,
        }
        plan = Plan(
            parts={slide: chosen_split.parts[slide] for slide in chosen},
            patients=patients,
            batches=_batches(chosen, patients, rules.combat_key),
            naming=naming,
            params=rules,
            given_geometry="hex_geometry" in asked,
            mode=mode,
            panel=panel if panel in PANELS else naming.find(read_panel(panel)),
            n_genes=size,
        )
        record, status = build(layout, node, plan, base, progress=progress), "added"
    else:
        record, status = known, "unchanged"
    warnings += [
        f"slide {slide} has no spot left within the limits of total counts, with a count on the genes chosen among"
        for slide in record["empty_slides"]
    ]
    return {
        "cohort": name,
        "status": status,
        "mode": mode,
        "fitted_on": FITTED_ON[mode],
        "spots": record["spots"],
        "dropped_spots": record["dropped_spots"],
        "genes": record["n_genes"],
        "panel": panel,
        "organism": record["organism"],
        "layers": sorted(record["layers"]),
        "no_tpm": record["no_tpm"],
        "split": record["split"],
        "split_by": record["split_by"],
        "split_label": record["split_label"],
        "gene_report": record["gene_report"],
        "leakage": record["leakage"],
        "share_missing": record["share_missing"],
        "warnings": warnings,
    }


def cohort_record(layout: Layout, name: str) -> dict[str, Any]:
    """Our record of a cohort; raises :class:`InputError` for an unknown one."""
    record = layout.attributes(layout.cohort(name))
    if record is None:
        known = ", ".join(layout.cohorts()) or "none"
        raise InputError(
            f"{layout.root}: no cohort {name!r} in the store (cohorts: {known}); `spared-fm cohort` makes one"
        )
    return record


def cohort_data(layout: Layout, name: str, layers: Sequence[str] | None = None) -> ad.AnnData:
    """Read a cohort as AnnData (spots × panel genes).

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    layers
        Layers to read, others stay on disk; by default all that are registered.

    Raises
    ------
    InputError
        No such cohort, or no such layer.
    """
    import anndata

    record, node = cohort_record(layout, name), layout.cohort(name)
    for layer in layers or ():
        require_layer(record, name, layer)
    there = [part for part in PARTS if layout.files.exists(f"{node}/{part}/zarr.json")]
    adata = anndata.AnnData(**{part: read_elem(layout, f"{node}/{part}") for part in there})
    for layer in record["layers"] if layers is None else layers:
        adata.layers[layer] = read_elem(layout, f"{node}/layers/{layer}")
    return adata


def target(layout: Layout, name: str, layer: str) -> np.ndarray:
    """Read a registered layer of a cohort, shape (spots, genes)."""
    require_layer(cohort_record(layout, name), name, layer)
    return np.asarray(read_elem(layout, f"{layout.cohort(name)}/layers/{layer}"))


def gene_names(layout: Layout, name: str) -> dict[str, str]:
    """Give the genes of a cohort's panel, in its order, as people name them → as they are stored.

    People name them by symbol, where the cohort knows one that is no other gene's.

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    """
    var = read_elem(layout, f"{layout.cohort(name)}/var")
    stored = [str(gene) for gene in var.index]
    symbols = [str(symbol) for symbol in var[SYMBOL_COLUMN]] if SYMBOL_COLUMN in var else stored
    taken = Counter([*symbols, *(gene for gene, symbol in zip(stored, symbols, strict=True) if gene != symbol)])
    return {
        symbol if symbol and taken[symbol] == 1 else gene: gene for gene, symbol in zip(stored, symbols, strict=True)
    }


def require_layer(record: Mapping[str, Any], name: str, layer: str) -> None:
    """Raise :class:`InputError` where the cohort ``name``, whose record this is, has no layer ``layer``."""
    if layer not in record["layers"]:
        raise InputError(f"cohort {name!r} has no layer {layer!r} (layers: {', '.join(sorted(record['layers']))})")


def _panel_identity(panel: str) -> str:
    """Name of the panel rule; for a file, the digest of its content, so that an edited list is another panel."""
    return panel if panel in PANELS else f"file:{digest(read_panel(panel))}"


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of parameters") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file of parameters ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a JSON object of parameters under SpaRED's names")
    return found


def _batches(slides: Sequence[str], patients: Mapping[str, str | None], key: str) -> dict[str, str]:
    if key not in ("slide_id", "patient", "None"):
        raise InputError(f"combat_key {key!r} is not slide_id, patient or None, which the slides of a store have")
    if key != "patient":
        return {slide: slide for slide in slides}
    batches = {slide: patient for slide in slides if (patient := patients[slide])}
    if unknown := [slide for slide in slides if slide not in batches]:
        raise InputError(
            f"combat_key is patient, but the patient of slide {unknown[0]} is unknown: ingest with --patient"
        )
    return batches
