"""The report of a declared benchmark: what its kept predictions say, as one HTML page and as numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.benchmark.batch_effect import batch_effect
from spared_fm.benchmark.matrix_answers import Result, answers, shown
from spared_fm.benchmark.matrix_drawings import GeneMap, GenePlot, Strips
from spared_fm.benchmark.matrix_page import ENTRIES, Section, ranked, sentence, write_matrix_page
from spared_fm.benchmark.matrix_scores import gene_ranges, score_cell
from spared_fm.benchmark.metrics import gene_scores
from spared_fm.benchmark.report import LOGNORM_UNIT, Overlay
from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.study.anonymise import hidden, names_of, neutral, neutral_place
from spared_fm.study.evaluate import join
from spared_fm.study.matrix import show
from spared_fm.study.matrix_cells import SCORES
from spared_fm.study.matrix_kept import declared, predictions
from spared_fm.study.matrix_truth import Place, Target
from spared_fm.study.progress import bar
from spared_fm.study.protocols import HEST
from spared_fm.study.reporting import patients_on_both_sides, slide_picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from spared_fm.store.layout import Layout

    Row = dict[str, Any]

GATE_SPOTS = 300
"""Spots of a slide that the batch-effect gate looks at."""
_LEAKS = {
    "spared": "Protocol spared, as published: genes and batch correction were fitted on all spots, held-out ones too.",
    "hest_exact": "Protocol hest_exact, as published: genes were picked over all slides, held-out ones too.",
}
_NO_REASON = {
    "waiting": "not computed yet: run the benchmark again",
    "done": "no held-out spot has a patch",
}
_UNITS = {
    "hest": "ln(1 + count)",
    "deltas": "log₂(1 + TPM) less the gene's mean",
    "lognorm": LOGNORM_UNIT,
    "log1p": "log₂(1 + TPM)",
}


def report(
    layout: Layout,
    name: str,
    path: str | Path,
    *,
    genes_shown: int = 6,
    n_resamples: int = 1000,
    anonymise: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the report of a benchmark from what its cells kept; cells without a result are listed with their reasons.

    Parameters
    ----------
    layout
        The store.
    name
        The benchmark's name.
    path
        HTML file to write.
    genes_shown
        Maps of a target at most: the best and the median gene, slide after slide.
    n_resamples
        Of the bootstrap.
    anonymise
        Give slides and patients neutral names, in what is returned too; leave out reasons, which may name files.
    progress
        Show a bar.

    Returns
    -------
    dict
        benchmark, protocol, report (the file), cells (status → number), resampled, and ``answers``: for each question, cohort,
        target and choice of entries the mean over heads (see :meth:`spared_fm.benchmark.matrix_answers.Answer.plain`) with
        ``said``, a sentence, and ``heads``, the same of each head.

    Raises
    ------
    InputError
        No such benchmark, no cell with a result, predictions that are damaged, a file that can't be written, or, with
        `anonymise`, a page that would still name a file.
    """
    from spared_fm.extract.task import cores

    table = show(layout, name)
    rows: list[Row] = table.astype(object).where(table.notna(), None).to_dict("records")
    first = {row["cell"]: row for row in reversed(rows)}
    done = [row for row in reversed(first.values()) if row["status"] == "done" and row["score"] is not None]
    if not done:
        raise InputError(f"benchmark {name!r} has no cell with a result: `spared-fm benchmark show {name}` says why")
    protocol = done[0]["protocol"]
    entries = SCORES[declared(layout, name)["score"]]
    # SpaRED scores measured entries, so they answer where its protocol does
    entries = tuple(sorted(entries, key=lambda which: (which == "measured") != (protocol == "spared")))
    places = {cohort: Place(layout, cohort) for cohort in dict.fromkeys(row["cohort"] for row in done)}
    whole = {
        (cohort, target): Target(places[cohort], target, protocol)
        for cohort, target in dict.fromkeys((row["cohort"], row["target"]) for row in done)
    }

    def scored(row: Row) -> list[Result]:
        kept = predictions(layout, name, row["cell"])
        return _results(row, whole[row["cohort"], row["target"]], kept, entries, n_resamples)

    results: list[Result] = []
    with bar(f"report {name}", len(done), "cells", show=progress) as advance, ThreadPoolExecutor(cores()) as pool:
        for found in pool.map(scored, done):
            results += found
            advance(1)
    findings = answers(results, entries=entries)
    sections = [
        _section(layout, name, one, results, rows, entries[0], genes_shown, n_resamples) for one in whole.values()
    ]
    status = {key: sum(row["status"] == key for row in first.values()) for key in {r["status"] for r in rows}}
    title, shown_places, finish = name, list(places.values()), None
    if anonymise:
        given = names_of(places, name)
        title, shown_places = given.chosen[name], [neutral_place(place, given) for place in shown_places]
        finish = partial(hidden, given=given)
    page: dict[str, Any] = {
        "title": f"spared-fm benchmark: {title}",
        "notice": _notice(protocol, shown_places, whole.values()),
        "facts": _facts(protocol, entries, shown_places, status, n_resamples),
        "findings": findings,
        "sections": sections,
        "gates": [row for place in places.values() for row in _gates(layout, place, results)],
        "missing": [
            {**row, "reason": row["error"] or _NO_REASON[row["status"]]}
            for row in reversed(first.values())
            if row["score"] is None
        ],
    }
    if anonymise:
        page = neutral(page, given)
    write_matrix_page(path, **page, finish=finish)
    return {
        "benchmark": title,
        "protocol": protocol,
        "report": str(path),
        "cells": status,
        "resamples": n_resamples,
        "answers": [
            {"said": sentence(one), **one.mean.plain(), "heads": [head.plain() for head in one.heads]}
            for one in page["findings"]
        ],
    }


def _results(
    row: Row, one: Target, kept: Mapping[tuple[str, str], np.ndarray], entries: Sequence[str], n_resamples: int
) -> list[Result]:
    """Score a cell on every layer and choice of entries."""
    predicted = one.predicted(kept)
    masked = one.folds[0].mask is not None
    shared = {key: row[key] for key in ("cohort", "encoder", "head", "params", "seed", "target", "cell")}
    return [
        Result(
            **shared,
            label=_own_label(row["label"] or "", one.folds[0].label),
            cached=row["cached"] or "",
            scored_on=layer,
            raw=one.raw,
            entries=which,
            scores=score_cell(
                one.scored_on(layer),
                predicted,
                which=which,  # type: ignore[arg-type]
                compat=one.protocol == "spared",
                n_resamples=n_resamples,
            ),
        )
        for layer in one.layers()
        for which in entries
        if masked or which == "all"
    ]


def _own_label(label: str, of_folds: str) -> str:
    """Take from a row's label what is said of the whole target."""
    return label.removesuffix(of_folds).removesuffix("; ") if of_folds else label


def _section(
    layout: Layout,
    name: str,
    one: Target,
    results: Sequence[Result],
    rows: Sequence[Row],
    which: str,
    genes_shown: int,
    n_resamples: int,
) -> Section:
    own = [r for r in results if (r.cohort, r.target) == (one.place.cohort, one.target)]
    main = ranked([r for r in own if (r.scored_on, r.entries) == (one.target, which)])
    fair = [r for r in main if not r.floor]
    n_slides = len({one.place.slide[unit] for fold in one.folds for unit in one.held(fold)})
    about = (
        f"{n_slides} held-out slide{'' if n_slides == 1 else 's'} ({one.held_out}), {len(one.folds[0].genes)} genes, in "
        f"{_unit(one.target)}."
        + (f" Mean of {len(one.folds)} folds." if len(one.folds) > 1 else "")
        + (" No slide is for test only: val served for choices too." if one.held_out == "val" else "")
        + (f" {one.folds[0].label.capitalize()}." if one.folds[0].label else "")
        + (f" {one.target} is completed; what it was completed from is {one.raw}." if one.raw != one.target else "")
    )
    section = Section(
        cohort=one.place.cohort,
        target=one.target,
        about=about,
        results=own,
        by_slide=[
            row
            for row in rows
            if (row["cohort"], row["target"], row["scored_on"]) == (one.place.cohort, one.target, one.target)
            and (row["over"], row["score"], row["split"]) == ("slide", which, one.held_out)
        ],
        compat=one.protocol == "spared",
        strips=Strips([(f"{r.encoder} + {shown(r, own)}", r.scores.genes) for r in main]),
    )
    if not fair:
        return section
    best = fair[0]
    ridge = next((r for r in fair if r.head == "ridge" and r.encoder == best.encoder and r is not best), None)
    other = ridge or next((r for r in fair[1:] if r.head == "ridge" or best.head == "ridge"), None)
    predicted = one.predicted(predictions(layout, name, best.cell))
    ranges = gene_ranges(
        one.scored_on(one.target),
        predicted,
        best.scores.genes,
        which=which,  # type: ignore[arg-type]
        n_resamples=n_resamples,
    )
    titles = {id(r): f"{r.encoder} + {shown(r, own)}" for r in fair}
    plot = GenePlot(
        titles[id(best)],
        ranges,
        "" if other is None else titles[id(other)],
        {} if other is None else other.scores.genes,
    )
    maps, unmapped = _maps(layout, one, predicted, titles[id(best)], genes_shown)
    return replace(section, plot=plot, maps=maps, unmapped=unmapped)


def _maps(
    layout: Layout, one: Target, predicted: Sequence[Mapping[str, np.ndarray]], cell: str, genes_shown: int
) -> tuple[list[GeneMap], list[str]]:
    """Give the best and the median gene of each slide, until there are enough; and why a slide has none."""
    found: list[GeneMap] = []
    lost: list[str] = []
    name = f"{'truth' if one.raw == one.target else 'completed target'} ({one.target})"  # completed is no truth
    for fold, values in zip(one.folds, predicted, strict=True):
        for unit, guess in values.items():
            seen = np.isfinite(guess).all(axis=1)
            if len(found) + 2 > genes_shown or not seen.any():
                continue
            truth = fold.truth[unit]
            scores = gene_scores(truth[seen], guess[seen])[0]
            order = np.argsort(np.where(np.isnan(scores), -np.inf, scores))[::-1][: int((~np.isnan(scores)).sum())]
            if not len(order):
                continue
            slide = one.place.slide[unit]
            barcodes = one.place.obs["barcode"].to_numpy()[one.place.rows[unit]]
            try:
                image, xy, spot_px = slide_picture(layout, slide, barcodes)
            except InputError as error:  # the scores are kept, and need no image
                lost.append(f"No maps of {slide}: {error}.")
                continue
            for said, gene in (("Best", order[0]), ("Median", order[len(order) // 2])):
                overlay = Overlay(
                    slide=slide,
                    gene=one.named(fold)[gene],
                    thumbnail=image,
                    xy=xy,
                    spot_px=spot_px,
                    panels={name: truth[:, gene], "predicted": guess[:, gene]},
                    pcc={"predicted": float(scores[gene])},
                    unit=_unit(one.target),
                    caption=f"{said} gene of this slide by PCC; {cell}",
                )
                found.append(GeneMap(overlay, name, "predicted"))
    return found, lost


def _gates(layout: Layout, place: Place, results: Sequence[Result]) -> list[Row]:
    """Rows of the batch-effect gate for each encoder of a cohort, beside the best PCC on raw targets."""
    rows = []
    for encoder in dict.fromkeys(r.encoder for r in results if r.cohort == place.cohort):
        own = [r for r in results if (r.cohort, r.encoder) == (place.cohort, encoder)]
        first = [r for r in own if r.scored_on == r.raw and r.entries == own[0].entries and not r.floor]
        best = ranked(first)[:1]
        row = {
            "cohort": place.cohort,
            "encoder": encoder,
            "best": f"{shown(best[0], first)}, {best[0].target}" if best else None,
            "pcc_gene": best[0].scores.interval("pcc_gene")[0] if best else None,
        }
        try:
            found = _probed(layout, place, encoder)
        except InputError as error:
            rows.append(row | {"why": str(error)})
            continue
        for factor, held_out in dict.fromkeys((one["factor"], one["held_out"]) for one in found):
            probes = {one["probe"]: one for one in found if (one["factor"], one["held_out"]) == (factor, held_out)}
            logistic = probes["logistic"]
            values = {probe: one["value"] for probe, one in probes.items()}
            held = {
                "factor": factor,
                "held_out": held_out,
                "chance": logistic["chance"],
                "n_classes": logistic["n_classes"],
            }
            rows.append(row | held | values)
    return rows


def _probed(layout: Layout, place: Place, encoder: str) -> list[Row]:
    if "tokens/" in encoder:
        raise InputError("token grids are not probed: see the pooled vectors of the same encoder")
    joined = join(layout, place.cohort, encoder)
    X: dict[str, np.ndarray] = {}
    coords: dict[str, np.ndarray] = {}
    for slide in dict.fromkeys(place.slide.values()):
        own = [unit for unit, whose in place.slide.items() if whose == slide and len(place.rows[unit])]
        if own:
            X[slide] = np.concatenate([joined.features[unit] for unit in own])
            mpp = float(slide_record(layout, slide)["mpp"])
            coords[slide] = np.concatenate([place.coords[unit] for unit in own]) * mpp
    return batch_effect(X, coords, patients=place.record["patients"], spots_per_slide=GATE_SPOTS)


def _unit(layer: str) -> str:
    return next((unit for part, unit in _UNITS.items() if part in layer), layer)


def _notice(protocol: str, places: Iterable[Place], targets: Iterable[Target]) -> str:
    said = [f"Scores on held-out slides, protocol {protocol}."]
    if protocol in _LEAKS:
        said = [_LEAKS[protocol]]
    for place in places:
        if protocol not in HEST and (shared := patients_on_both_sides(place.record)):
            said.append(
                f"{place.cohort}: patient {', '.join(shared)} is on both sides of the split: scores say little of new patients."
            )
    labels = {fold.label for one in targets for fold in one.folds if fold.label and protocol not in _LEAKS}
    return " ".join([*said, *sorted(labels)])


def _facts(
    protocol: str, entries: Sequence[str], places: Iterable[Place], status: Mapping[str, int], n_resamples: int
) -> dict[str, str]:
    found = {}
    for place in places:
        record = place.record
        parts = list(record["split"].values())
        counts = ", ".join(f"{parts.count(part)} {part}" for part in dict.fromkeys(parts))
        n_patients = len({p for p in record["patients"].values() if p})
        whose = f"{n_patients or 'unknown'} patient{'' if n_patients == 1 else 's'}"
        label = f"; {record['split_label']}" if record.get("split_label") else ""
        found[f"Cohort {place.cohort}"] = (
            f"{len(parts)} slides ({counts}), {len(place.obs)} spots, {whose}, {record['n_genes']} genes ({record['panel']}), "
            f"{record['share_missing']:.0%} of entries not measured{label}"
        )
    return found | {
        "Protocol": protocol,
        "Cells": ", ".join(f"{n} {what}" for what, n in sorted(status.items())),
        "Answers use": f"raw targets, {ENTRIES[entries[0]]}",
        "Intervals": f"95 %, {n_resamples} resamples",
    }
