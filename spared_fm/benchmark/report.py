"""One benchmark as one HTML page: tables, spot maps over the tissue, similar patches. No network, no scripts."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from spared_fm.benchmark.page import Table, short, table_context, write_page
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LOGNORM_UNIT = "ln(1 + counts per 10⁴)"
COLOUR_STEPS = 48
COLOURS = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, COLOUR_STEPS))]


@dataclass(frozen=True)
class Overlay:
    """Spot maps of one gene on one slide, side by side on one colour scale.

    ``thumbnail`` is ``(h, w, 3)`` uint8; ``xy`` ``(n, 2)`` spot centres and ``spot_px`` the spot diameter,
    in its pixels; ``panels`` label → values ``(n,)`` in ``unit`` (not finite: drawn as an empty ring);
    ``pcc`` label → Pearson correlation shown beside that label.
    """

    slide: str
    gene: str
    thumbnail: np.ndarray
    xy: np.ndarray
    spot_px: float
    panels: Mapping[str, np.ndarray]
    caption: str
    unit: str = LOGNORM_UNIT
    pcc: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """A query patch, ``(h, w, 3)`` uint8, and the patches found for it, best first, with their labels."""

    title: str
    query: np.ndarray
    query_label: str
    hits: Sequence[tuple[np.ndarray, str]]


def write_report(
    path: str | Path,
    *,
    title: str,
    notice: str,
    tables: Sequence[Table],
    overlays: Sequence[Overlay],
    gallery: Sequence[Gallery],
    facts: Mapping[str, str],
) -> None:
    """Write a self-contained HTML page.

    Parameters
    ----------
    path
        File to write; its folder is made. It is replaced as a whole or left as it was.
    title
        Heading of the page.
    notice
        First visible line: what the figures may and may not be taken for.
    tables, overlays, gallery
        Contents; an empty list leaves its section out.
    facts
        Name → value, listed under the heading.

    Raises
    ------
    InputError
        A picture that is not ``(h, w, 3)`` uint8, values that don't fit their spots, or a file that can't
        be written.
    """
    pictures: dict[str, str] = {}
    context = {
        "title": title,
        "notice": notice,
        "facts": facts,
        "tables": [table_context(t) for t in tables],
        "overlays": [overlay_context(o, pictures) for o in overlays],
        "galleries": [_gallery(g) for g in gallery],
        "pictures": pictures,
        "ramp": ", ".join(COLOURS),
    }
    write_page(path, "report.html.j2", context)


def overlay_context(overlay: Overlay, pictures: dict[str, str]) -> dict[str, Any]:
    """Give an overlay as the template takes it; its tissue goes into ``pictures``, once for each slide."""
    what = f"overlay of {overlay.gene} on {overlay.slide}"
    thumbnail = _picture(overlay.thumbnail, what)
    xy = np.asarray(overlay.xy, np.float64)
    panels = {label: np.asarray(v, np.float64) for label, v in overlay.panels.items()}
    for label, values in panels.items():
        if xy.ndim != 2 or xy.shape[1] != 2 or values.shape != (len(xy),):
            raise InputError(f"{what}: panel {label!r} has shape {values.shape} for spots of shape {xy.shape}")
    name = next((n for n, uri in pictures.items() if uri == thumbnail), f"tissue-{len(pictures)}")
    pictures[name] = thumbnail  # a slide's picture is stored once however many genes are drawn on it
    low, high = _limits(panels)
    height, width = overlay.thumbnail.shape[:2]
    return {
        "slide": overlay.slide,
        "gene": overlay.gene,
        "caption": overlay.caption,
        "unit": overlay.unit,
        "picture": name,
        "width": width,
        "height": height,
        "spot": f"{overlay.spot_px:.2f}",
        "ring": f"{max(overlay.spot_px - 1, 0.5) / 2:.2f}",
        "ticks": [short(t) for t in (low, (low + high) / 2, high)],
        "panels": [
            {
                "label": label,
                "pcc": short(overlay.pcc[label]) if label in overlay.pcc else None,
                "dots": dots_of(xy, values, low, high),
                "rings": [(f"{x:.1f}", f"{y:.1f}") for x, y in xy[~np.isfinite(values)]],
            }
            for label, values in panels.items()
        ],
    }


def _limits(panels: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Shared colour limits: least value to the 99th percentile, so that one bright spot doesn't flatten the rest."""
    pooled = np.concatenate([v[np.isfinite(v)] for v in panels.values()]) if panels else np.empty(0)
    if not len(pooled):
        return 0.0, 1.0
    low, high = float(pooled.min()), float(np.percentile(pooled, 99))
    return (low, high) if high > low else (low, low + 1.0)


def dots_of(
    xy: np.ndarray, values: np.ndarray, low: float, high: float, colours: Sequence[str] = COLOURS
) -> list[tuple[str, str]]:
    """Colour → SVG path of zero-length strokes, which round caps draw as discs: far smaller than circles."""
    finite = np.isfinite(values)
    level = ((np.clip(values[finite], low, high) - low) / (high - low) * (COLOUR_STEPS - 1)).round().astype(int)
    spots = xy[finite]
    return [(colours[c], "".join(f"M{x:.1f} {y:.1f}h0" for x, y in spots[level == c])) for c in np.unique(level)]


def _gallery(gallery: Gallery) -> dict[str, Any]:
    return {
        "title": gallery.title,
        "query": {"src": _picture(gallery.query, gallery.title), "label": gallery.query_label},
        "hits": [{"src": _picture(patch, gallery.title), "label": label} for patch, label in gallery.hits],
    }


def _picture(pixels: np.ndarray, what: str) -> str:
    """Encode as a data URI (JPEG)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(f"{what}: the picture is {pixels.dtype} {pixels.shape}; it must be uint8 (h, w, 3)")
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
