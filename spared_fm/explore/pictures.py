"""Slides and their pictures: lists, deep zoom, thumbnails, patches, spots."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from spared_fm.explore.answers import Format, Json, Refused, arrow, numbers, picture, wants_arrow
from spared_fm.explore.desk import Desk, desk
from spared_fm.study import view
from spared_fm.study.view_image import OVERLAP, TILE, patch, stored_patch

router = APIRouter(prefix="/api/slides", tags=["slides"])

AsFormat = Annotated[
    Format | None, Query(alias="format", description="json or arrow; by default what Accept asks for.")
]
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "A JPEG."}}


@router.get("")
def slides(request: Request) -> Response:
    """List the slides."""
    at = desk(request)
    at.held()  # forgets the list that is kept, where the store has changed
    return Json({"store": at.name, "slides": at.lists.get("slides", lambda: view.slides(at.held(), at.layout))})


@router.get("/{slide}")
def slide(request: Request, slide: str) -> Response:
    """Describe a slide: its size, what its spots can be coloured by, and its embeddings."""
    at = desk(request)
    held = at.held()
    record = at.slide(slide, held)
    shown = view.frame(at.layout, slide, record)
    return Json(
        {
            **view.summary(held, at.layout, slide),
            "zoom": None if shown.source is None else _zoom(at, slide),
            "spot_diameter": view.diameter(record, shown),
            "obs": view.obs_columns(at.tables().obs(slide)),
            "layers": at.layers(slide),
            "encoders": [{"key": key, "dim": own["dim"]} for key, own in sorted(held.embeddings[slide].items())],
        }
    )


@router.get("/{slide}/dzi")
def dzi(request: Request, slide: str) -> Response:
    """Describe the deep zoom of a slide's picture."""
    at = desk(request)
    shown = at.view(slide).frame
    size = {"width": shown.width, "height": shown.height, "mpp": shown.mpp, "source": shown.source}
    return Json(size | _zoom(at, slide))


@router.get("/{slide}/tiles/{level}/{column}_{row}.jpg", responses=JPEG, response_class=Response)
def tile(request: Request, slide: str, level: int, column: int, row: int) -> Response:
    """Give a tile of the deep zoom."""
    at = desk(request)
    mark = at.mark("tile", slide, level, column, row)
    shown = at.view(slide)
    if not 0 <= level <= shown.max_level:
        raise Refused(404, f"slide {slide} has no level {level} (levels 0 to {shown.max_level})")
    width, height = shown.size(level)
    if not (0 <= column * TILE < width and 0 <= row * TILE < height):
        raise Refused(404, f"slide {slide}, level {level}: no tile {column}_{row}")
    return picture(request, at.picture(mark, lambda: shown.tile(level, column, row)), mark)


@router.get("/{slide}/thumbnail.jpg", responses=JPEG, response_class=Response)
def thumbnail(request: Request, slide: str, px: Annotated[int, Query(ge=16, le=1024)] = 256) -> Response:
    """Give the whole picture, its longer side at most `px` pixels."""
    at = desk(request)
    mark = at.mark("thumbnail", slide, px)
    shown = at.view(slide)
    return picture(request, at.picture(mark, lambda: shown.shrunk(px)), mark)


@router.get("/{slide}/patch", responses=JPEG, response_class=Response)
def one_patch(
    request: Request,
    slide: str,
    spot: Annotated[str | None, Query(max_length=500, description="Barcode.")] = None,
    x: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    y: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    um: Annotated[float, Query(ge=1, le=2000, description="Side, µm.")] = 112,
    px: Annotated[int, Query(ge=16, le=512, description="Side, pixels.")] = 224,
) -> Response:
    """Give the square of tissue around a spot, or around a place of the picture."""
    at = desk(request)
    mark = at.mark("patch", slide, spot, x, y, um, px)
    record = at.slide(slide)
    if (spot is None) == (x is None or y is None):
        raise Refused(422, "give spot, or x and y")
    row = None if spot is None else at.rows(slide, [spot])[0]
    if row is not None and record["image"] is not None and record["image"]["kind"] == "patches":
        return picture(request, at.picture(mark, lambda: stored_patch(at.layout, slide, row, um, px)), mark)
    shown = at.view(slide)
    if row is not None:
        x, y = at.spots(slide)["xy"][row].tolist()
    if x is None or y is None:
        raise Refused(422, "give spot, or x and y")
    place = x, y
    return picture(request, at.picture(mark, lambda: patch(shown, *place, um, px)), mark)


@router.get("/{slide}/spots")
def spots(request: Request, slide: str, as_format: AsFormat = None) -> Response:
    """List the spots of a slide with their places in the picture."""
    found = desk(request).spots(slide)
    if wants_arrow(request, as_format):
        import pyarrow as pa

        columns = {"spot": pa.array(found["ids"], pa.utf8())}
        for i, axis in enumerate("xy"):
            columns[axis] = pa.array(numbers(found["xy"][:, i]), pa.float64())
        return arrow(columns, {"slide": slide, "mpp": None if found["mpp"] is None else repr(found["mpp"])})
    return Json(
        {
            "slide": slide,
            "spot_diameter": found["diameter"],
            "mpp": found["mpp"],
            "ids": found["ids"],
            "x": numbers(found["xy"][:, 0]),
            "y": numbers(found["xy"][:, 1]),
        }
    )


def _zoom(at: Desk, slide: str) -> dict[str, Any]:
    shown = at.view(slide)
    return {"tile_size": TILE, "overlap": OVERLAP, "min_level": shown.min_level, "max_level": shown.max_level}
