"""A declared benchmark as one HTML page: answers with intervals, tables, genes, maps. No network, no scripts."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from spared_fm.benchmark.matrix_answers import (
    ABOUT,
    HELPS,
    HURTS,
    OPEN,
    QUESTIONS,
    Answer,
    Finding,
    Result,
    against_ridge,
    shown,
)
from spared_fm.benchmark.matrix_drawings import (
    TURNING,
    GeneMap,
    GenePlot,
    Strips,
    bar,
    gene_map,
    gene_plot,
    strips,
)
from spared_fm.benchmark.page import Ranged, Table, table_context, write_page
from spared_fm.benchmark.report import COLOURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

NAMES = {"pcc_gene": "PCC-Gene", "mse": "MSE"}
ENTRIES = {"all": "all entries", "measured": "measured entries"}
SAFE = "metrics by this package's rules (a gene that doesn't vary is left out)"
COMPAT = "the six metrics by SpaRED's rules (compat), their intervals by this package's"
_HEADINGS = {
    "pcc_gene": "PCC-Gene\u00a0↑",
    "pcc_patch": "PCC-Patch\u00a0↑",
    "mse": "MSE\u00a0↓",
    "mae": "MAE\u00a0↓",
    "r2_gene": "R²-Gene\u00a0↑",
    "r2_patch": "R²-Patch\u00a0↑",
    "variance_ratio": "variance ratio (1 is right)",
    "gene_correlation": "gene–gene correlation kept\u00a0↑",
    "moran_recovered": "Moran's I recovered\u00a0↑",
    "less_ridge": "PCC-Gene less ridge's",
    "n_spots": "spots",
}
_BETTER = {
    **dict.fromkeys(("pcc_gene", "pcc_patch", "r2_gene", "r2_patch", "gene_correlation", "moran_recovered"), max),
    **dict.fromkeys(("mse", "mae"), min),
}


@dataclass(frozen=True)
class Section:
    """What is shown of one target of one cohort.

    Attributes
    ----------
    cohort, target, about
        Names, and a sentence on what was scored.
    results
        Of its cells, on every layer and choice of entries.
    by_slide
        Rows of single slides, from :func:`spared_fm.benchmark.metrics.score_slides`, with ``cell``; all entries of one kind.
    compat
        Whether the six metrics follow SpaRED's rules.
    plot, strips, maps
        Drawings; None or empty leaves them out.
    unmapped
        Why a slide has no maps, a sentence each.
    """

    cohort: str
    target: str
    about: str
    results: Sequence[Result]
    by_slide: Sequence[Mapping[str, Any]] = ()
    compat: bool = False
    plot: GenePlot | None = None
    strips: Strips | None = None
    maps: Sequence[GeneMap] = ()
    unmapped: Sequence[str] = ()


def write_matrix_page(
    path: str | Path,
    *,
    title: str,
    notice: str,
    facts: Mapping[str, str],
    findings: Sequence[Finding],
    sections: Sequence[Section],
    gates: Sequence[Mapping[str, Any]] = (),
    missing: Sequence[Mapping[str, Any]] = (),
    finish: Callable[[str], str] | None = None,
) -> None:
    """Write the page.

    Parameters
    ----------
    path
        File to write; it is replaced as a whole or left as it was.
    title, notice, facts
        Heading, first visible line (what the scores may not be taken for), and a list of name → value.
    findings
        From :func:`spared_fm.benchmark.matrix_answers.answers`.
    sections
        In the order shown.
    gates
        Rows cohort, encoder, best (text), pcc_gene, factor, held_out, logistic, knn, chance, n_classes, or ``why`` there is
        none.
    missing
        Rows cohort, encoder, head, target, status, reason of the cells without a result.
    finish
        See :func:`spared_fm.benchmark.page.write_page`.

    Raises
    ------
    InputError
        The file can't be written, or a map's values don't fit its spots.
    """
    pictures: dict[str, str] = {}
    context = {
        "title": title,
        "notice": notice,
        "facts": facts,
        "questions": [_question(key, findings) for key in QUESTIONS],
        "sections": [_section(section, i, pictures) for i, section in enumerate(sections)],
        "gate": _gate(gates) if gates else None,
        "missing": _missing(missing) if missing else None,
        "published": [_published(table) for table in published()],
        "pictures": pictures,
        "ramp": ", ".join(COLOURS),
        "turning": ", ".join(TURNING),
    }
    write_page(path, "matrix_page.html.j2", context, finish)


def published() -> list[dict[str, Any]]:
    """Return the tables of figures that others published, from ``published.toml``."""
    text = files("spared_fm.benchmark").joinpath("published.toml").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text)["tables"]
    return found


def sentence(finding: Finding, metric: str = "pcc_gene") -> str:
    """Say an answer in words; ``metric`` decides it."""
    mean, n = finding.mean, len(finding.heads)
    verdict = mean.verdict(metric)
    what = {
        "completion": f"fitting on {mean.target} instead of {mean.scored_on}",
        "graph": "a graph head instead of ridge",
        "retrieval": "a retrieval head instead of ridge",
        "context": "seeing the surroundings",
    }[mean.question]
    said = {HELPS: f"{what} helps", HURTS: f"{what} hurts", OPEN: f"can't tell whether {what} helps or hurts"}[verdict]
    fitted = "" if mean.question == "completion" else f", fitted on {mean.target}"
    where = f"{mean.cohort}{fitted}, {ENTRIES[mean.entries]}"
    numbers = [
        f"{NAMES[key]} {_signed(found.estimate)} ({_range(found)})"
        if found is not None
        else f"{NAMES[key]} not comparable"
        for key, found in mean.differences.items()
    ]
    heads = f"mean of {n} pairs of head and encoder" if n > 1 else f"one head, {finding.heads[0].head}"
    counts = finding.counts(metric)
    each = f" Head by head: helps {counts[HELPS]}, hurts {counts[HURTS]}, {counts[OPEN]} can't tell." if n > 1 else ""
    return f"{where}: {said}. {'; '.join(numbers)}; {heads}.{each}"


def _question(key: str, findings: Sequence[Finding]) -> dict[str, Any]:
    own = [finding for finding in findings if finding.mean.question == key]
    every = [answer for finding in own for answer in (finding.mean, *finding.heads)]
    limits = {metric: _limit(every, metric) for metric in NAMES}
    return {
        "key": key,
        "text": QUESTIONS[key],
        "about": ABOUT[key],
        "groups": [
            {"mean": _answer(finding.mean, limits, finding), "heads": [_answer(head, limits) for head in finding.heads]}
            for finding in own
        ],
        "limits": {metric: f"{limits[metric]:.2g}" for metric in NAMES},
    }


def _limit(every: Sequence[Answer], metric: str) -> float:
    """Return the scale of a metric's drawings; a few wild heads don't set it."""
    ends = sorted(
        max(abs(d.low), abs(d.high))
        for answer in every
        if (d := answer.differences[metric]) is not None and math.isfinite(d.low + d.high)
    )
    return ends[int(0.9 * (len(ends) - 1))] if ends else 0.0


def _answer(answer: Answer, limits: Mapping[str, float], finding: Finding | None = None) -> dict[str, Any]:
    cells = []
    for metric in NAMES:
        found = answer.differences[metric]
        verdict = answer.verdict(metric)
        cells.append(
            {
                "number": "–" if found is None or not math.isfinite(found.estimate) else _signed(found.estimate),
                "range": "" if found is None or not math.isfinite(found.low + found.high) else _range(found),
                "bar": bar(found, limits[metric]),
                "verdict": verdict,
                "kind": {HELPS: "helps", HURTS: "hurts", OPEN: "open"}[verdict],
                "counts": finding.counts(metric) if finding and len(finding.heads) > 1 else None,
            }
        )
    first = next((d for d in answer.differences.values() if d is not None), None)
    return {
        "cohort": answer.cohort,
        "target": answer.target,
        "entries": ENTRIES[answer.entries],
        "scored_on": answer.scored_on,
        "encoder": answer.encoder,
        "head": answer.head,
        "versus": answer.versus,
        "n_heads": len(finding.heads) if finding else 1,
        "heads": "" if finding is None else f"{n} heads" if (n := len(finding.heads)) > 1 else finding.heads[0].head,
        "unit": "not scored on the same spots" if first is None else _drawn(first.unit, first.n_units),
        "cells": cells,
    }


def _drawn(unit: str, n: int) -> str:
    return f"{n} {unit}{'' if n == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _range(found: Any) -> str:
    return f"{_signed(found.low)} to {_signed(found.high)}"


def _section(section: Section, number: int, pictures: dict[str, str]) -> dict[str, Any]:
    kinds = dict.fromkeys((result.scored_on, result.entries) for result in section.results)
    return {
        "id": f"target-{number}",
        "title": f"{section.cohort}: {section.target}",
        "about": section.about,
        "tables": [_score_table(section, *kind) for kind in kinds],
        "by_slide": _by_slide(section),
        "plot": None if section.plot is None else gene_plot(section.plot),
        "strips": None if section.strips is None else strips(section.strips),
        "maps": [gene_map(one, pictures) for one in section.maps],
        "unmapped": section.unmapped,
    }


def ranked(results: Sequence[Result]) -> list[Result]:
    """Sort by PCC-Gene, best first, cells without one behind; floors come last."""
    scores = {id(r): r.scores.interval("pcc_gene")[0] for r in results}
    return sorted(results, key=lambda r: (r.floor, math.isnan(scores[id(r)]), -scores[id(r)]))


def _score_table(section: Section, scored_on: str, entries: str) -> dict[str, Any]:
    found = ranked([r for r in section.results if (r.scored_on, r.entries) == (scored_on, entries)])
    rows: list[dict[str, Any]] = []
    spots: list[int] = []
    for result in found:
        less = against_ridge(result, found)
        numbers: dict[str, Any] = dict(result.scores.numbers)
        spots.append(int(numbers.pop("n_spots")))
        for metric in NAMES:
            numbers[metric] = Ranged(numbers[metric], *result.scores.interval(metric)[1:])
        rows.append(
            {
                "encoder": result.encoder,
                "head": shown(result, section.results),
                **numbers,
                "less_ridge": None if less is None else Ranged(less.estimate, less.low, less.high),
            }
        )
    if len(set(spots)) > 1:
        rows = [row | {"n_spots": n} for row, n in zip(rows, spots, strict=True)]
    completed = "" if scored_on == section.target else ", the raw layer"
    units = {_drawn(r.scores.unit, r.scores.n_units) for r in found}
    table = _plain_table(
        Table(
            title=f"Scored on {scored_on}{completed}: {ENTRIES[entries]}",
            rows=rows,
            caption=f"{max(spots)} held-out spots pooled; {COMPAT if section.compat else SAFE}. Small: 95 % intervals, "
            f"resampled: {' or '.join(sorted(units))}. Floors stand below the line and are no rivals.",
            within=(),
            better=_BETTER,
            headings=_HEADINGS,
            apart=[i for i, r in enumerate(found) if r.floor],
        ),
        next((i for i, r in enumerate(found) if r.floor), None),
    )
    at = list(rows[0]).index("head")
    for result, row in zip(found, table["rows"], strict=True):
        row["cells"][at]["interval"] = result.cached
    return table


def _by_slide(section: Section) -> dict[str, Any] | None:
    """PCC-Gene of each slide, MSE below it; None where there are fewer than two slides."""
    cells = {r.cell: r for r in ranked([r for r in section.results if r.scored_on == section.target])}
    cells = {cell: r for cell, r in cells.items() if any(row["cell"] == cell for row in section.by_slide)}
    slides = sorted({row["slide"] for row in section.by_slide})
    if len(slides) < 2:
        return None
    number = {(row["cell"], row["slide"]): row for row in section.by_slide}

    def score(cell: str, slide: str, metric: str) -> float:
        value = number.get((cell, slide), {}).get(metric)
        return math.nan if value is None else float(value)

    rows = [
        {"encoder": r.encoder, "head": shown(r, section.results), **{s: score(cell, s, "pcc_gene") for s in slides}}
        for cell, r in cells.items()
    ]
    floors = [i for i, r in enumerate(cells.values()) if r.floor]
    about = "PCC-Gene of each held-out slide by itself, MSE below it"
    table = _plain_table(
        Table(
            title=f"By slide, scored on {section.target}",
            rows=rows,
            caption=f"{about}; {section.by_slide[0]['score']} entries, {SAFE}.",
            within=(),
            better=dict.fromkeys(slides, max),
            headings={},
            apart=floors,
        ),
        floors[0] if floors else None,
    )
    for cell, row in zip(cells, table["rows"], strict=True):
        for slide, shown_cell in zip(slides, row["cells"][2:], strict=True):
            mse = score(cell, slide, "mse")
            shown_cell["interval"] = f"{mse:.3f}" if math.isfinite(mse) else ""
    return table


def _gate(gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    headings = {
        "best": "best fair head",
        "pcc_gene": "its PCC-Gene",
        "factor": "told apart",
        "held_out": "held out",
        "logistic": "logistic regression",
        "knn": "nearest neighbours",
        "n_classes": "classes",
        "why": "note",
    }
    columns = ["cohort", "encoder", *headings]
    columns.insert(columns.index("n_classes"), "chance")
    used = [column for column in columns if any(row.get(column) is not None for row in gates)]
    return _plain_table(
        Table(
            title="Does the encoder show where a patch comes from?",
            rows=[{column: row.get(column) for column in used} for row in gates],
            caption="Balanced accuracy on held-out spots; near chance: nothing shows; near 1: slide or patient can be told, "
            "and a high PCC may rest on that. Patients differ in biology too.",
            within=(),
            better={},
            headings=headings,
        ),
        None,
    )


def _missing(missing: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = ("cohort", "encoder", "head", "target", "status", "reason")
    rows = [{column: row[column] for column in columns} for row in missing]
    return _plain_table(Table("Cells without a result", rows, "", within=(), better={}, headings={}), None)


def _plain_table(table: Table, floors_from: int | None) -> dict[str, Any]:
    """Give a table as its template takes it, with a line above the floors and intervals that say "to"."""
    found = table_context(table)
    for i, row in enumerate(found["rows"]):
        row["new"] = i > 0 and i == floors_from
        for cell in row["cells"]:
            cell["interval"] = cell["interval"].replace("–", " to ")
    return found


def _published(table: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for name, *values in table["rows"]:
        texts = [[f"{value:.3f}".replace("-", "−") for value in cell] for cell in values]
        rows.append(
            {"name": name, "cells": [{"text": (t or ["–"])[0], "small": t[1] if len(t) > 1 else ""} for t in texts]}
        )
    return {**table, "rows": rows}
