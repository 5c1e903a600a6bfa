"""Drawings of a benchmark's report: PCC of single genes, heads × genes, and a gene over the tissue. All as SVG and PNG."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from spared_fm.benchmark.page import short
from spared_fm.benchmark.report import COLOUR_STEPS, COLOURS, Overlay, dots_of, overlay_context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spared_fm.benchmark.matrix_scores import Difference

TURNING = [to_hex(colour) for colour in colormaps["PuOr_r"](np.linspace(0.06, 0.94, COLOUR_STEPS))]
"""Of differences: purple is too low, orange too high. Told apart with any kind of colour vision."""
_SEQUENCE = [tuple(bytes.fromhex(colour[1:])) for colour in COLOURS]
_ABSENT = (205, 205, 205)
_STEP_PX, _LEFT_PX, _TOP_PX, _PLOT_PX = (8.0, 26.0), 46.0, 10.0, 240.0
_BAR_PX = 120.0


@dataclass(frozen=True)
class GenePlot:
    """PCC of each gene of one cell, with its interval (NaN for none), and of another to compare with.

    ``best`` gene → (PCC, low, high); ``other`` gene → PCC.
    """

    name: str
    best: Mapping[str, tuple[float, float, float]]
    other_name: str
    other: Mapping[str, float]


@dataclass(frozen=True)
class Strips:
    """PCC of each gene (column) for each cell (row), genes in the order of the first row's PCC."""

    rows: Sequence[tuple[str, Mapping[str, float]]]


@dataclass(frozen=True)
class GeneMap:
    """A gene over the tissue: an overlay whose panels are ``truth`` and ``predicted``, and their difference."""

    overlay: Overlay
    truth: str
    predicted: str


def gene_plot(plot: GenePlot) -> dict[str, Any] | None:
    """Give a plot of sorted genes as the template takes it; None without a gene that has a PCC."""
    genes = sorted((g for g, v in plot.best.items() if math.isfinite(v[0])), key=lambda g: -plot.best[g][0])
    if not genes:
        return None
    others = {g: plot.other[g] for g in genes if math.isfinite(plot.other.get(g, math.nan))}
    seen = [v for g in genes for v in (*plot.best[g], others.get(g, math.nan)) if math.isfinite(v)]
    low, high = min(0.0, math.floor(min(seen) * 10) / 10), max(0.1, math.ceil(max(seen) * 10) / 10)
    step = float(np.clip(1060 / len(genes), *_STEP_PX))

    def y(value: float) -> str:
        return f"{_TOP_PX + (high - value) / (high - low) * _PLOT_PX:.1f}"

    tenths = range(round(low * 10), round(high * 10) + 1, 1 if high - low <= 1 else 2)
    marks = []
    for i, gene in enumerate(genes):
        value, down, up = plot.best[gene]
        ranged = math.isfinite(down + up)
        marks.append(
            {
                "gene": gene,
                "x": f"{_LEFT_PX + (i + 0.5) * step:.1f}",
                "y": y(value),
                "range": (y(up), y(down)) if ranged else None,
                "other": y(others[gene]) if gene in others else None,
                "said": f"{gene}: {short(value)}" + (f" ({short(down)} to {short(up)})" if ranged else ""),
            }
        )
    return {
        "name": plot.name,
        "other_name": plot.other_name if others else "",
        "width": round(_LEFT_PX + step * len(genes) + 8),
        "height": round(_TOP_PX + _PLOT_PX + 116),
        "left": _LEFT_PX,
        "bottom": _TOP_PX + _PLOT_PX,
        "font": min(11.0, max(7.0, step - 0.5)),
        "ticks": [(y(t / 10), short(t / 10)[:-1], t == 0) for t in tenths],
        "marks": marks,
        "better": sum(plot.best[g][0] > others[g] for g in others),
        "compared": len(others),
    }


def strips(given: Strips) -> dict[str, Any] | None:
    """Give rows of coloured genes as the template takes them; None without a PCC to colour."""
    if not given.rows:
        return None
    first = given.rows[0][1]
    genes = sorted(first, key=lambda g: (math.isnan(first[g]), -first[g]))
    values = np.array([[row.get(g, math.nan) for g in genes] for _, row in given.rows])
    if not np.isfinite(values).any():
        return None
    high = max(0.1, float(np.nanpercentile(values, 99)))
    level = (np.clip(np.nan_to_num(values) / high, 0, 1) * (COLOUR_STEPS - 1)).round().astype(int)
    pixels = np.array(_SEQUENCE, dtype=np.uint8)[level]
    pixels[np.isnan(values)] = _ABSENT
    return {
        "rows": [
            {
                "name": name,
                "src": _png(line[None]),
                "mean": short(float(np.nanmean(row))) if np.isfinite(row).any() else "–",
            }
            for (name, _), line, row in zip(given.rows, pixels, values, strict=True)
        ],
        "genes": len(genes),
        "ticks": ["≤ 0", short(high / 2), f"≥ {short(high)}"],
    }


def gene_map(given: GeneMap, pictures: dict[str, str]) -> dict[str, Any]:
    """Give maps of truth, prediction and difference as the template takes them; the slide's picture goes into ``pictures``."""
    overlay = _cropped(given.overlay)
    found = overlay_context(overlay, pictures)
    wrong = np.asarray(overlay.panels[given.predicted], np.float64) - overlay.panels[given.truth]
    there = np.isfinite(wrong)
    limit = (float(np.percentile(np.abs(wrong[there]), 99)) if there.any() else 0.0) or 1.0
    xy = np.asarray(overlay.xy, np.float64)
    found["difference"] = {
        "label": f"{given.predicted} less {given.truth}",
        "pcc": None,
        "dots": dots_of(xy, wrong, -limit, limit, TURNING),
        "rings": [(f"{x:.1f}", f"{y:.1f}") for x, y in xy[~there]],
        "ticks": [short(t) for t in (-limit, 0.0, limit)],
    }
    return found


def _cropped(overlay: Overlay) -> Overlay:
    """Cut the picture to where the spots are, a little around them: glass says nothing."""
    xy = np.asarray(overlay.xy, np.float64)
    around = 2 * overlay.spot_px
    height, width = overlay.thumbnail.shape[:2]
    left, top = np.clip(np.floor(xy.min(axis=0) - around), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.ceil(xy.max(axis=0) + around).astype(int)
    picture = np.ascontiguousarray(overlay.thumbnail[top : max(bottom, top + 1), left : max(right, left + 1)])
    return replace(overlay, thumbnail=picture, xy=xy - (left, top))


def bar(found: Difference | None, limit: float) -> dict[str, str] | None:
    """Give an interval as a line with a dot on a scale from −limit to limit, in pixels; None where there is none."""
    if found is None or not math.isfinite(found.low + found.high) or limit <= 0:
        return None
    at = [(np.clip(v / limit, -1, 1) + 1) / 2 * _BAR_PX for v in (found.low, found.estimate, found.high)]
    return {
        "low": f"{at[0]:.1f}",
        "dot": f"{at[1]:.1f}",
        "high": f"{at[2]:.1f}",
        "width": f"{_BAR_PX:.0f}",
        "middle": f"{_BAR_PX / 2:.1f}",
    }


def _png(pixels: np.ndarray) -> str:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
