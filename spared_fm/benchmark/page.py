"""What the reports share: a self-contained HTML page (no network, no scripts), its tables, its writing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np

from spared_fm.errors import InputError
from spared_fm.folders import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_BETTER = {"pcc_gene": max, "pcc_patch": max, "r2_gene": max, "mse": min, "mae": min}
_HEADINGS = {
    "pcc_gene": "PCC-Gene ↑",
    "pcc_patch": "PCC-Patch ↑",
    "r2_gene": "R²-Gene ↑",
    "mse": "MSE ↓",
    "mae": "MAE ↓",
    "n_spots": "spots",
}


class Ranged(NamedTuple):
    """A figure with the interval that is printed beside it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """Rows of figures.

    Attributes
    ----------
    title, caption
        Heading, and what stands below.
    rows
        They share their keys, which are the columns. A figure may be :class:`Ranged`.
    within
        Columns: metrics have their best value set bold among the rows that agree in these, since errors on two targets don't
        compare.
    better
        Column → ``min`` or ``max``: metrics, by default ``pcc_gene``, ``pcc_patch``, ``r2_gene``, ``mse`` and ``mae``.
    headings
        Column → heading, where it is not the column's name.
    apart
        Numbers of rows that are shown but take part in no comparison.
    divided
        Draw a line where a row does not agree with the one above in the columns ``within``.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    caption: str
    within: Sequence[str] = ("target", "split", "slide")
    better: Mapping[str, Callable[[list[float]], float]] = field(default_factory=lambda: _BETTER)
    headings: Mapping[str, str] = field(default_factory=lambda: _HEADINGS)
    apart: Collection[int] = ()
    divided: bool = False


def table_context(table: Table) -> dict[str, Any]:
    """Table as the template ``page.html.j2`` takes it: texts, and which of them are bold."""
    columns = list(table.rows[0]) if table.rows else []
    groups = [tuple(row.get(c) for c in table.within) for row in table.rows]
    rows = []
    for i, (row, group) in enumerate(zip(table.rows, groups, strict=True)):
        ranked = [
            r for j, (r, g) in enumerate(zip(table.rows, groups, strict=True)) if g == group and j not in table.apart
        ]
        cells = []
        for column in columns:
            better = None if i in table.apart else table.better.get(column)
            cells.append(_cell(row.get(column), _is_best(better, row.get(column), [r.get(column) for r in ranked])))
        rows.append({"cells": cells, "new": table.divided and i > 0 and group != groups[i - 1]})
    return {
        "title": table.title,
        "caption": table.caption,
        "columns": [{"text": table.headings.get(c, c), "number": _is_numeric(c, table.rows)} for c in columns],
        "rows": rows,
        "ranked": any(c in table.better for c in columns),
    }


def write_page(
    path: str | Path, template: str, context: Mapping[str, Any], finish: Callable[[str], str] | None = None
) -> None:
    """Render a template of this package and replace the file as a whole, or leave it as it was.

    Parameters
    ----------
    path
        File to write; its folder is made.
    template
        File name. Templates extend ``page.html.j2``, which takes ``title``, ``notice`` and ``facts``.
    context
        What the template takes. All of it is escaped.
    finish
        Makes the page that is written of the one that was rendered.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(context)
    if finish is not None:
        text = finish(text)
    try:
        with replaced(Path(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot write the report ({error.strerror}); choose another place") from error


def short(value: float) -> str:
    """Two decimals, with a true minus sign."""
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def _template(name: str) -> str:
    return files("spared_fm.benchmark").joinpath(name).read_text(encoding="utf-8")


def _is_numeric(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [_bare(row.get(column)) for row in rows if row.get(column) is not None]
    return bool(values) and all(_number(v) for v in values)


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Ranged) else value


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_best(better: Callable[[list[float]], float] | None, value: Any, peers: Sequence[Any]) -> bool:
    """Tell whether a metric is its group's best; equal as printed counts as equal, a lone row is no contest."""
    value = _bare(value)
    scores = [round(float(p), 3) for p in map(_bare, peers) if _number(p) and math.isfinite(p)]
    if better is None or len(scores) < 2 or not _number(value) or not math.isfinite(value):
        return False
    return bool(round(float(value), 3) == better(scores))


def _cell(value: Any, best: bool) -> dict[str, Any]:
    interval = ""
    if isinstance(value, Ranged):
        interval = f"{_text(value.low)}–{_text(value.high)}" if math.isfinite(value.low + value.high) else ""
        value = value.value
    text = _text(value)
    return {"text": text, "number": _number(value) or text == "–", "best": best, "interval": interval}


def _text(value: Any) -> str:
    number = _number(value)
    if value is None or (number and not math.isfinite(value)):
        return "–"
    if number and not isinstance(value, int | np.integer):
        return f"{value:.3f}".replace("-", "−")
    return f"{value:,}".replace(",", "\u2009") if number else str(value)
