"""Search: by spots, a vector, a region of a slide, or a picture that is sent."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spared_fm.errors import InputError
from spared_fm.explore.answers import Json, Refused, rows_arrow, wants_arrow
from spared_fm.explore.desk import Desk, desk
from spared_fm.explore.pictures import AsFormat
from spared_fm.study.search_columns import conditions
from spared_fm.study.view_image import picture_size
from spared_fm.study.view_search import Ask, Box

if TYPE_CHECKING:
    from spared_fm.study.queries import Query as Asked
    from spared_fm.study.view_search import Searcher

router = APIRouter(prefix="/api", tags=["search"])
UPLOAD = "/api/search/upload"
MOST_RESULTS = 20_000
MOST_NAMED = 1_000
_SUFFIXES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
_decoding = threading.Semaphore(2)  # an upload takes up to three bytes for each of its pixels

Name = Annotated[str, Field(max_length=500)]
Names = Annotated[list[Name], Field(max_length=100)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Side = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e6)]
K = Annotated[int, Field(ge=1, le=200, description="Results per query.")]


class Region(BaseModel):
    """A rectangle of a slide: µm from the top left corner of its picture."""

    model_config = ConfigDict(extra="forbid")

    slide: Name
    x: Finite
    y: Finite
    width: Side
    height: Side


class SearchRequest(BaseModel):
    """What to find: give one of spots, vector and region."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"encoder": "stain-bank", "spots": ["slide1/AAAC-1"], "k": 5, "exclude": "slide"}
        },
    )

    encoder: Name
    spots: Annotated[list[Name], Field(max_length=1000, description="SLIDE/BARCODE.")] | None = None
    vector: (
        Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=20_000)] | None
    ) = None
    region: Region | None = None
    combine: Literal["mean", "any"] | None = None
    k: K = 10
    exclude: Literal["slide", "patient", "cohort"] | None = None
    slides: Annotated[list[Name], Field(max_length=10_000)] | None = None
    where: Annotated[dict[Name, Names], Field(max_length=20)] | None = None
    cohort: Name | None = None
    one_per_slide: bool = False
    columns: Names = []
    genes: Names = []
    layer: Annotated[str, Field(max_length=500, description="counts, or cohort:C/LAYER.")] = "counts"

    @model_validator(mode="after")
    def _one_query(self) -> SearchRequest:
        if sum(given is not None for given in (self.spots or None, self.vector, self.region)) != 1:
            raise ValueError("give exactly one of spots, vector and region")
        if len(self.spots or ()) * self.k > MOST_RESULTS and self.combine is None:
            raise ValueError(f"at most {MOST_RESULTS} results at a time; ask for fewer spots or a smaller k")
        if self.vector is not None and self.exclude is not None:
            raise ValueError("exclude needs spots or a region: a vector has no slide")
        return self


class Result(BaseModel):
    """A spot that was found. x and y are pixels of its slide's picture, from the top left corner."""

    model_config = ConfigDict(extra="allow")

    query: str
    rank: int
    spot: str
    slide: str
    patient: str | None
    x: float | None
    y: float | None
    similarity: float
    expression: dict[str, float | None] | None = None


class SearchAnswer(BaseModel):
    """What was found."""

    encoder: str
    metric: str
    made_from: Literal["spots", "region spots", "region pixels", "vector", "upload"]
    query_spots: list[str]
    milliseconds: float
    results: list[Result]


ANSWER: dict[int | str, dict[str, Any]] = {200: {"model": SearchAnswer}}


@router.post("/search", responses=ANSWER)
def search(request: Request, body: SearchRequest, as_format: AsFormat = None) -> Response:
    """Find the spots most similar to spots of the store, to a vector, or to a region of a slide."""
    at = desk(request)
    ask = _ask(at, body)
    if body.region is not None:
        at.slide(body.region.slide)
    for spot in body.spots or ():
        at.slide(spot.partition("/")[0])
    searcher = at.searcher(body.encoder)
    start = time.perf_counter()
    if body.region is not None:
        query, made_from = searcher.region_query(Box(**body.region.model_dump()), body.combine)
        queries = [query]
    elif body.vector is not None:
        queries, made_from = [searcher.vector_query(body.vector)], "vector"
    else:
        queries, made_from = searcher.spot_queries(body.spots or (), body.combine), "spots"
    return _answer(request, as_format, searcher, queries, ask, made_from, start)


@router.post("/search/upload", responses=ANSWER)
def upload(
    request: Request,
    image: Annotated[UploadFile, File(description="A PNG or JPEG.")],
    encoder: Annotated[str, Form(max_length=500)],
    mpp: Annotated[float | None, Form(ge=0.05, le=20, allow_inf_nan=False, description="Its µm per pixel.")] = None,
    k: Annotated[int, Form(ge=1, le=200)] = 10,
    one_per_slide: Annotated[bool, Form()] = False,
    slides: Annotated[list[str] | None, Form(max_length=10_000)] = None,
    where: Annotated[list[str] | None, Form(max_length=100, description="COLUMN=VALUE.")] = None,
    cohort: Annotated[str | None, Form(max_length=500)] = None,
    columns: Annotated[list[str] | None, Form(max_length=100)] = None,
    genes: Annotated[list[str] | None, Form(max_length=100)] = None,
    layer: Annotated[str, Form(max_length=500)] = "counts",
    as_format: AsFormat = None,
) -> Response:
    """Find the spots most similar to a picture: with mpp its middle patch, without it the whole of it as one patch."""
    at = desk(request)
    wanted = SearchRequest.model_construct(
        encoder=encoder, k=k, slides=slides, where=conditions(where or ()) or None, cohort=cohort,
        one_per_slide=one_per_slide, columns=columns or [], genes=genes or [], layer=layer,
    )  # fmt: skip
    ask = _ask(at, wanted)
    searcher = at.searcher(encoder)
    start = time.perf_counter()
    with _decoding, tempfile.TemporaryDirectory(prefix="spared-fm-") as folder:
        path = _kept(at, image, Path(folder))
        try:
            query = searcher.image_query(path, mpp, "upload")
        except InputError as error:
            raise Refused(422, str(error).replace(str(path), "the picture")) from error
    return _answer(request, as_format, searcher, [query], ask, "upload", start)


def _kept(at: Desk, image: UploadFile, folder: Path) -> Path:
    """Put an upload into a file named by us, once its size is known to be within bounds."""
    data = image.file.read(at.max_upload + 1)
    if len(data) > at.max_upload:
        raise Refused(413, f"the picture is larger than {at.max_upload:,} bytes; crop it")
    suffix = next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), None)
    if suffix is None:
        raise Refused(422, "the picture is neither a PNG nor a JPEG")
    path = folder / f"picture{suffix}"
    path.write_bytes(data)
    try:
        width, height = picture_size(path)
    except InputError as error:
        raise Refused(422, str(error).replace(str(path), "the picture")) from error
    if width * height > at.max_pixels:
        raise Refused(413, f"the picture is {width}×{height} pixels, at most {at.max_pixels:,} are decoded; crop it")
    return path


def _ask(at: Desk, body: SearchRequest) -> Ask:
    """Look up every id in a request."""
    for slide in body.slides or ():
        at.slide(slide)
    if body.cohort is not None:
        at.cohort(body.cohort)
    if body.genes and body.layer != "counts":
        kind, _, rest = body.layer.partition(":")
        cohort, _, layer = rest.partition("/")
        if kind != "cohort" or layer not in at.cohort(cohort)["layers"]:
            raise Refused(
                404, f"no layer {body.layer!r} to read expression of results from: counts, or cohort:COHORT/LAYER"
            )
    return Ask(
        k=body.k,
        combine=body.combine,
        exclude=body.exclude,
        slides=None if body.slides is None else tuple(body.slides),
        where=body.where,
        cohort=body.cohort,
        one_per_slide=body.one_per_slide,
        columns=tuple(body.columns),
        genes=tuple(dict.fromkeys(body.genes)),
        layer=body.layer,
    )


def _answer(
    request: Request,
    as_format: Literal["json", "arrow"] | None,
    searcher: Searcher,
    queries: list[Asked],
    ask: Ask,
    made_from: str,
    start: float,
) -> Response:
    results = searcher.answer(queries, ask)
    if wants_arrow(request, as_format):
        return rows_arrow(results)
    own = [
        f"{slide}/{searcher.tables.barcodes(slide)[row]}" for query in queries for slide, row in query.own[:MOST_NAMED]
    ]
    return Json(
        {
            "encoder": searcher.key,
            "metric": searcher.engine.metric,
            "made_from": made_from,
            "query_spots": own[:MOST_NAMED],
            "milliseconds": round(1000 * (time.perf_counter() - start), 2),
            "results": results,
        }
    )
