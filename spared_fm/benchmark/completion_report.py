"""One evaluation of completion methods as one HTML page: what the figures say, curves, tables. No network, no scripts."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any

from spared_fm.benchmark.page import Ranged, Table, short, table_context, write_page
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FLOOR = "noise-floor"
"""Rows of this method are no method's: two halves of the same counts against each other."""

RULES = {
    "spared": "SpaRED's rule, p = min(1, 0.3 / f), f being the share of training spots in which the gene is measured",
    "prob-median": "as many as are missing by nature, p = min(1, (1 − f) / f), f being the share of training spots in which "
    "the gene is measured",
}

SPLITS = {
    "train": "train: the methods were fitted on these slides or blocks, with the hidden entries in sight. No held-out score.",
    "val": "val: methods chose settings on these slides or blocks and their intervals were calibrated on them, so "
    "scores and coverage here flatter the methods that choose most.",
    "test": "test: no fit has looked at these slides or blocks.",
}

_KNOWN = ("method", "split", "share_hidden", "repeats", "hidden", "entries", "mse", "mae", "pcc")
_HEADINGS = {
    "mse": "MSE ↓",
    "mae": "MAE ↓",
    "pcc": "PCC ↑",
    "raw_mse": "raw MSE ↓",
    "raw_mae": "raw MAE ↓",
    "raw_pcc": "raw PCC ↑",
    "zeros_mse": "zeros-too MSE ↓",
    "zeros_mae": "zeros-too MAE ↓",
    "zeros_pcc": "zeros-too PCC ↑",
    "coverage": "90 % coverage",
    "interval_score": "interval score ↓",
    "interval_score_constant": "at constant width",
}
_BETTER = {key: max if key.endswith("pcc") else min for key in _HEADINGS if key.endswith(("mse", "mae", "pcc"))} | {
    "interval_score": min
}
_LOG_FROM = 4.0  # largest ÷ smallest MSE from which the axis is logarithmic
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b2430")  # Okabe and Ito
_MARKERS = "osD^vPX"


def write_completion_report(
    path: str | Path,
    *,
    title: str,
    notice: str,
    summary: Sequence[Mapping[str, Any]],
    scored: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]] = (),
    split_label: str = "",
    fitted: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the report of an evaluation of completion methods as a self-contained HTML page.

    Parameters
    ----------
    path
        File to write; its folder is made. It is replaced as a whole or left as it was.
    title, notice
        Heading, and first visible line: what the figures may and may not be taken for.
    summary
        One row per method, split and rule: method, split, share_hidden (a share or a name of :data:`RULES`), repeats, hidden
        (share of the measured entries that were hidden), entries, mse, mae, pcc. Where there are any: ``mse_low``,
        ``mse_high`` and so on, scores of the variants with the prefixes ``raw_`` and ``zeros_``, and coverage,
        interval_score, interval_score_constant. None is taken for NaN. Rows of method :data:`FLOOR` are set apart.
    scored
        Column → what it is scored on, printed as it is.
    rows
        One per method, split, slide, rule and repeat, with mse; empty leaves out the tables by slide. Rows of the slide
        ``all`` are passed over.
    split_label
        What the split lets a score say.
    fitted
        What was fitted on what.
    facts
        Further facts, name → value.

    Raises
    ------
    InputError
        No rows, a column missing, an unknown split or rule, a method twice under one split and rule, or a file that cannot be
        written.
    """
    summary, rows = _filled(summary), _filled(rows)
    rules = _checked(summary)
    methods = [name for name in dict.fromkeys(row["method"] for row in summary) if name != FLOOR]
    splits = [split for split in SPLITS if any(row["split"] == split for row in summary)]
    known = {
        "Methods": ", ".join(methods),
        "Scores say": split_label or "not known: the split has no label",
        **({"Fitted on": fitted} if fitted else {}),
        "Repeats": ", ".join(str(n) for n in sorted({row["repeats"] for row in summary})),
        **(facts or {}),
    }
    context = {
        "title": title,
        "notice": notice,
        "facts": known,
        "findings": _findings(summary, rules, splits),
        "splits": [SPLITS[split] for split in splits],
        "scored": {_bare(column): said for column, said in scored.items()},
        "floor": any(row["method"] == FLOOR for row in summary),
        "intervals": any("coverage" in row for row in summary),
        "curves": [curve for split in splits if (curve := _curve(summary, split, methods)) is not None],
        "tables": [table_context(_table(summary, rule, methods, splits)) for rule in rules],
        "slides": [
            table_context(table) for split in splits if (table := _by_slide(rows, rules[0], split, methods)) is not None
        ],
    }
    write_page(path, "completion_report.html.j2", context)


def _filled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """NaN for None, which is how JSON may have written it."""
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def _checked(summary: Sequence[Mapping[str, Any]]) -> list[str | float]:
    """Rules in the order in which they are shown: named ones first."""
    if not summary:
        raise InputError("no scores to report: evaluate at least one method on one split")
    seen = set()
    for row in summary:
        if missing := [key for key in _KNOWN if key not in row]:
            raise InputError(
                f"row of method {row.get('method', '?')!r} has no {missing[0]!r}: give rows of the summary"
            )
        if row["split"] not in SPLITS:
            raise InputError(f"unknown split {row['split']!r}: choose from {', '.join(SPLITS)}")
        rule = row["share_hidden"]
        if rule not in RULES and (isinstance(rule, str) or not 0 <= rule <= 1):
            raise InputError(f"unknown rule {rule!r}: choose {', '.join(RULES)} or a share from 0 to 1")
        if (key := (row["method"], row["split"], rule)) in seen:
            raise InputError(f"method {key[0]!r} is there twice for split {key[1]} and rule {key[2]}: leave one out")
        seen.add(key)
    found = dict.fromkeys(row["share_hidden"] for row in summary)
    return [*(rule for rule in RULES if rule in found), *sorted(rule for rule in found if rule not in RULES)]


def _bare(column: str) -> str:
    return _HEADINGS.get(column, column).rstrip(" ↓↑")


def _rule_name(rule: str | float) -> str:
    return f"rule {rule}" if rule in RULES else f"{100 * float(rule):.3g} % hidden"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _at(summary: Sequence[Mapping[str, Any]], split: str, rule: str | float) -> dict[str, Mapping[str, Any]]:
    return {row["method"]: row for row in summary if row["split"] == split and row["share_hidden"] == rule}


def _findings(
    summary: Sequence[Mapping[str, Any]], rules: Sequence[str | float], splits: Sequence[str]
) -> list[dict[str, Any]]:
    """Per split: who is best under which rule, by how much, whether the variants agree, what the intervals cover."""
    out = []
    for split in splits:
        parts = [(rule, _at(summary, split, rule)) for rule in rules]
        parts = [(rule, found) for rule, found in parts if found]
        said = [text for column in ("mse", "pcc", "raw_mse", "zeros_mse") if (text := _winners(parts, column))]
        said += [text for rule, found in parts[:1] if (text := _margin(rule, found))]
        out.append({"split": split, "said": said + _covered(parts)})
    return out


def _scores(found: Mapping[str, Mapping[str, Any]], column: str) -> dict[str, float]:
    given = {name: float(row[column]) for name, row in found.items() if name != FLOOR and column in row}
    return {name: value for name, value in given.items() if math.isfinite(value)}


def _winners(parts: Sequence[tuple[str | float, Mapping[str, Mapping[str, Any]]]], column: str) -> str:
    wins: dict[str, list[str | float]] = {}
    for rule, found in parts:
        scores = _scores(found, column)
        if len(scores) > 1:
            wins.setdefault(_BETTER[column](scores, key=lambda name: scores[name]), []).append(rule)
    contests = sum(map(len, wins.values()))
    each = "; ".join(
        f"{name} under {len(won)} of {contests} rules" + (f" ({', '.join(map(str, won))})" if len(wins) > 1 else "")
        for name, won in sorted(wins.items(), key=lambda item: -len(item[1]))
    )
    best = "Lowest" if _BETTER[column] is min else "Highest"
    return f"{best} {_bare(column)}: {each}." if each else ""


def _margin(rule: str | float, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Best and next best of the first rule. Overlapping intervals do not tell them apart; others not for sure."""
    scores = _scores(found, "mse")
    if len(scores) < 2:
        return ""
    best, second = sorted(scores, key=lambda name: scores[name])[:2]
    ratio = scores[best] / scores[second] if scores[second] > 0 else math.nan
    text = (
        f"{_rule_name(rule).capitalize()}: MSE {short(scores[best])} by {best} is {short(ratio)} times that of {second}"
    )
    high, low = found[best].get("mse_high"), found[second].get("mse_low")
    if high is None or low is None:
        return f"{text}, without intervals."
    apart = (
        "their intervals over spots do not overlap"
        if high < low
        else "their intervals over spots overlap, so this page does not tell them apart"
    )
    return f"{text}; {apart}."


def _covered(parts: Sequence[tuple[str | float, Mapping[str, Mapping[str, Any]]]]) -> list[str]:
    out = []
    for name in dict.fromkeys(name for _, found in parts for name in found):
        rows = [found[name] for _, found in parts if name in found]
        rows = [row for row in rows if math.isfinite(row.get("coverage", math.nan))]
        if not rows:
            continue
        cover = [float(row["coverage"]) for row in rows]
        text = f"90 % intervals of {name} cover {_percent(min(cover))} to {_percent(max(cover))} of the hidden entries"
        sharper = [
            row["interval_score"] < row["interval_score_constant"] for row in rows if "interval_score_constant" in row
        ]
        if sharper:
            text += f" and score better than intervals of one width under {sum(sharper)} of {len(sharper)} rules"
        out.append(f"{text}.")
    return out


def _table(
    summary: Sequence[Mapping[str, Any]], rule: str | float, methods: Sequence[str], splits: Sequence[str]
) -> Table:
    """Methods of each split under one rule; the floor last."""
    found = [
        at[name] for split in splits for at in [_at(summary, split, rule)] for name in (*methods, FLOOR) if name in at
    ]
    columns = [column for column in _HEADINGS if any(column in row for row in found)]
    hidden = []
    for split in dict.fromkeys(row["split"] for row in found):
        own = next((row for row in found if row["split"] == split and row["method"] != FLOOR), None)
        if own is not None:
            entries = f"{float(own['entries']):,.0f}".replace(",", "\u2009")
            hidden.append(
                f"{split}: {_percent(float(own['hidden']))} of the measured entries, {entries} scored in each repeat"
            )
    about = (
        f"Hidden are {RULES[rule]}" if rule in RULES else "Hidden is that share of the measured entries of every gene"
    )
    return Table(
        title=_rule_name(rule).capitalize(),
        rows=[
            {"split": row["split"], "method": row["method"], **{c: _figure(row, c) for c in columns}} for row in found
        ],
        caption=f"{about} ({'; '.join(hidden)}).",
        within=("split",),
        better=_BETTER,
        headings=_HEADINGS,
        apart=[i for i, row in enumerate(found) if row["method"] == FLOOR],
        divided=True,
    )


def _figure(row: Mapping[str, Any], column: str) -> float | Ranged | None:
    if column not in row:
        return None
    if f"{column}_low" in row:
        return Ranged(float(row[column]), float(row[f"{column}_low"]), float(row[f"{column}_high"]))
    return float(row[column])


def _by_slide(rows: Sequence[Mapping[str, Any]], rule: str | float, split: str, methods: Sequence[str]) -> Table | None:
    """MSE of each method on each slide of a split, mean over repeats; None where there are fewer than two slides."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in (*methods, FLOOR)}
    for row in rows:
        if row["split"] == split and row["share_hidden"] == rule and row["slide"] != "all" and row["method"] in found:
            found[row["method"]].setdefault(row["slide"], []).append(float(row["mse"]))
    slides = list(dict.fromkeys(slide for scores in found.values() for slide in scores))
    if len(slides) < 2:
        return None
    named = [name for name, scores in found.items() if scores]
    return Table(
        title=f"MSE by slide: {split}, {_rule_name(rule)}",
        rows=[{"method": name, **{s: _mean(found[name].get(s, [])) for s in slides}} for name in named],
        caption="Mean over repeats.",
        within=(),
        better=dict.fromkeys(slides, min),
        headings={},
        apart=[i for i, name in enumerate(named) if name == FLOOR],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _curve(summary: Sequence[Mapping[str, Any]], split: str, methods: Sequence[str]) -> dict[str, str] | None:
    """MSE against the share hidden, as a picture; None without two shares to draw a line through."""
    lines = {}
    for name in (*methods, FLOOR):
        own = [row for row in summary if row["split"] == split and row["method"] == name]
        own = [row for row in own if row["share_hidden"] not in RULES and math.isfinite(row["mse"])]
        if own:
            lines[name] = sorted(own, key=lambda row: row["share_hidden"])
    if max((len(line) for line in lines.values()), default=0) < 2:
        return None
    ends = ", ".join(f"{name} {short(line[0]['mse'])} to {short(line[-1]['mse'])}" for name, line in lines.items())
    return {
        "split": split,
        "src": _drawn(lines, methods),
        "alt": f"MSE on {split} from the least to the largest share hidden: {ends}",
    }


def _drawn(lines: Mapping[str, Sequence[Mapping[str, Any]]], methods: Sequence[str]) -> str:
    """Draw as SVG in a data URI."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    # text stays text, in the reader's font; a fixed salt, so that the same rows give the same file
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "spared-fm", "text.parse_math": False, "font.size": 10.5}
    ):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = figure.subplots()
        for name, line in lines.items():
            x = [float(row["share_hidden"]) for row in line]
            y = [float(row["mse"]) for row in line]
            if name == FLOOR:
                axes.plot(x, y, color="#5b6675", linestyle="--", linewidth=1.3, label="noise floor (half depth)")
                continue
            i = methods.index(name)
            colour, turn = _COLOURS[i % len(_COLOURS)], i // len(_COLOURS)
            dashes = ("-", "-.", ":")[turn % 3]
            axes.plot(
                x, y, color=colour, marker=_MARKERS[i % 7], markersize=4.5, linestyle=dashes, linewidth=1.6, label=name
            )
            if all("mse_low" in row for row in line):
                axes.fill_between(
                    x,
                    [row["mse_low"] for row in line],
                    [row["mse_high"] for row in line],
                    color=colour,
                    alpha=0.16,
                    linewidth=0,
                )
        drawn = [float(row["mse"]) for line in lines.values() for row in line]
        axes.set_xlabel("share of the measured entries hidden")
        axes.set_ylabel("MSE on hidden measured entries")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        if min(drawn) > 0 and max(drawn) > _LOG_FROM * min(drawn):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.grid(color="#e1e5ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")
