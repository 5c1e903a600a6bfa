"""A montage: queries and what was found for them as images, with similarity, slide and scale below each."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spared_fm.errors import InputError
from spared_fm.extract.source import patch_source
from spared_fm.slides.patches import PatchSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spared_fm.study.queries import Query
    from spared_fm.study.search import Found
    from spared_fm.study.search_columns import Tables

SIDE = 192
"""Pixels of one patch."""
PER_LINE = 5
"""Results beside each other."""
MOST = 200
"""Most results that are drawn."""
_GAP, _BAR = 16, 20
_TEXT = 14  # px: legible without zooming in
_INK, _PALE, _PAPER = "#1a1a1a", "#d9d9d9", "#ffffff"


def montage(found: Found, path: str | Path) -> None:
    """Write a PNG: one band per query, the query at the left, what was found beside it, best first.

    Below each patch stand its similarity, its slide and spot, and how wide it is in µm; a bar in the patch shows a round part of
    that width. A region is shown whole. Where an image can't be read an empty square says so.

    Parameters
    ----------
    found
        What a search found.
    path
        PNG file to write.

    Raises
    ------
    InputError
        The file can't be written, or there is more to draw than fits a page.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: a montage is a PNG; name it so")
    if (drawn := sum(map(len, found.hits))) > MOST:
        raise InputError(
            f"a montage of {drawn} results can't be read; ask for {MOST} at most, with fewer queries or -k"
        )
    recipe = found.rows.array(next(iter(found.rows.numbers.values()))).recipe
    spec = PatchSpec(recipe.patch_um, SIDE, recipe.resampling)
    pixels = _patches(found.tables, spec, {spot for q in found.queries for spot in q.own[:1]} | set(found.spots))
    font = _font(_TEXT)
    line = _TEXT + 5
    cell = (SIDE + _GAP, SIDE + 4 * line + _GAP)
    lines = [max(1, -(-len(hits) // PER_LINE)) for hits in found.hits]
    columns = 1 + max(1, min(PER_LINE, max(map(len, found.hits))))
    page = Image.new("RGB", (cell[0] * columns + 2 * _GAP, cell[1] * sum(lines) + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)

    def put(column: int, row: int, patch: np.ndarray | None, um: float, texts: list[str]) -> None:
        left = _GAP + column * cell[0] + (_GAP if column else 0)
        top = _GAP + row * cell[1]
        if patch is None:
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_PALE)
            draw.text((left + SIDE / 2, top + SIDE / 2), "no image", fill=_INK, font=font, anchor="mm")
        else:
            page.paste(Image.fromarray(patch), (left, top))
            _scale_bar(draw, left, top, um)
            texts = [*texts, f"{um:g} µm wide"]
        for i, text in enumerate(texts):
            draw.text((left, top + SIDE + 4 + i * line), _fitted(text, font, SIDE), fill=_INK, font=font)

    at = 0
    for query, hits, height in zip(found.queries, found.hits, lines, strict=True):
        tiles = round(len(query.patches) ** 0.5) if query.patches is not None else 1
        put(0, at, _query_patch(query, tiles, pixels), tiles * spec.um, ["query", *_query_text(query, found)])
        for i, (slide, row, similarity) in enumerate(hits):
            barcode = str(found.tables.barcodes(slide)[row])
            texts = [f"{i + 1}.  {_similarity(similarity, found.metric)}", slide, barcode]
            put(1 + i % PER_LINE, at + i // PER_LINE, pixels[slide, row], spec.um, texts)
        if not hits:
            draw.text((_GAP * 2 + cell[0], _GAP + at * cell[1] + SIDE / 2), "nothing found", fill=_INK, font=font)
        at += height
    try:
        page.save(target, format="PNG")
    except OSError as error:
        raise InputError(f"{target}: can't be written ({error.strerror or error}); name another file") from error


def _patches(tables: Tables, spec: PatchSpec, spots: set[tuple[str, int]]) -> dict[tuple[str, int], np.ndarray | None]:
    """Read the patches of spots, slide by slide; None for what can't be read."""
    out: dict[tuple[str, int], np.ndarray | None] = {}
    for slide, row in sorted(spots):
        out[slide, row] = None
        if tables.record(slide)["image"] is None:
            continue
        with contextlib.suppress(InputError, OSError):
            reader, places = patch_source(tables.layout, slide, spec, range(row, row + 1))
            out[slide, row] = reader.read(places)[0]
    return out


def _query_patch(query: Query, tiles: int, pixels: Mapping[tuple[str, int], np.ndarray | None]) -> np.ndarray | None:
    """Give the query's pixels; the patches of a region, tiles by tiles, together."""
    if query.patches is None:
        return pixels[query.own[0]] if query.own else None
    px = query.patches.shape[1]
    whole = query.patches.reshape(tiles, tiles, px, px, 3).swapaxes(1, 2).reshape(tiles * px, tiles * px, 3)
    return np.asarray(Image.fromarray(whole).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _query_text(query: Query, found: Found) -> list[str]:
    """Say where a query is from, and what it is."""
    if len(query.own) == 1:
        [(slide, row)] = query.own
        return [slide, str(found.tables.barcodes(slide)[row])]
    if query.own:
        return [", ".join(query.slides), f"{query.name}: the first"]
    if query.slides:
        return [query.slides[0], query.name.partition(":")[2]]
    return [Path(query.name).name]


def _similarity(value: float, metric: str) -> str:
    return {"cosine": f"cosine {value:.3f}", "ip": f"inner product {value:.4g}"}.get(
        metric, f"distance {max(0.0, -value) ** 0.5:.4g}"
    )


def _scale_bar(draw: ImageDraw.ImageDraw, left: float, top: float, um: float) -> None:
    """Draw a bar of a round length, about a third of the patch, into its lower right corner."""
    rough = um / 3
    power = 10.0 ** np.floor(np.log10(rough))
    length = power * max(step for step in (1, 2, 5) if step * power <= rough)
    right, bottom, wide = left + SIDE - 8, top + SIDE - 8, length / um * SIDE
    small = _font(12)
    draw.rectangle((right - max(wide, 44) - 6, bottom - _BAR - 4, right + 4, bottom + 4), fill=_PAPER)
    draw.rectangle((right - wide, bottom - 3, right, bottom), fill=_INK)
    draw.text((right - max(wide, 44) / 2 - 1, bottom - _BAR + 6), f"{length:g} µm", fill=_INK, font=small, anchor="mm")


@functools.cache
def _font(px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; Pillow's own font has no µ."""
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", px)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut the middle out of a text that is too long: ids differ at their ends."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(_cut(text, keep)) > width:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    return f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
