"""For programs: cohorts, encoders, embeddings and targets."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from spared_fm.explore.answers import ARROW, Json, Refused, arrow, vectors
from spared_fm.explore.desk import answered, desk
from spared_fm.study import view, view_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator


router = APIRouter(prefix="/api", tags=["programs"])
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {ARROW: {}}, "description": "An Arrow IPC stream."}}


@router.get("/cohorts")
def cohorts(request: Request) -> Response:
    """List the cohorts with their layers."""
    return Json({"cohorts": view.cohorts(desk(request).held())})


@router.get("/encoders")
def encoders(request: Request) -> Response:
    """List the embeddings by key, and their indexes."""
    at = desk(request)
    at.held()  # forgets the list that is kept, where the store has changed
    return Json({"encoders": at.lists.get("encoders", lambda: view.encoders(at.held(), at.layout))})


@router.get("/features", responses=STREAM, response_class=StreamingResponse)
def features(
    request: Request,
    encoder: Annotated[str, Query(max_length=500)],
    slide: str,
    spots: Annotated[list[str] | None, Query(max_length=10_000, description="Barcodes; by default all.")] = None,
) -> Response:
    """Stream the embeddings of a slide: spot, vector (null where the patch could not be read)."""
    at = desk(request)
    at.slide(slide)
    key = at.key(encoder, slide)
    rows = None if spots is None else at.rows(slide, spots)
    with answered():
        note, blocks = view_vectors.features(at.layout, slide, key, rows)
    ids = np.array(at.spots(slide)["ids"], object)
    notes = {"slide": slide, "key": key, "recipe_id": note["recipe_id"], "embedding_id": note["embedding_id"]}
    return StreamingResponse(_stream(ids, note, blocks, notes), media_type=ARROW)


@router.get("/targets", responses=STREAM, response_class=Response)
def targets(
    request: Request,
    cohort: Annotated[str, Query(max_length=500)],
    layer: Annotated[str, Query(max_length=500, description="Name of a layer of the cohort.")],
    slide: str,
    genes: Annotated[list[str] | None, Query(max_length=10_000, description="By default the whole panel.")] = None,
) -> Response:
    """Give a layer at the spots of a slide: value, mask (measured), uncertainty where the layer states one."""
    import pyarrow as pa

    at = desk(request)
    record = at.cohort(cohort)
    if slide not in record["split"]:
        raise Refused(
            404, f"no slide {slide!r} in cohort {cohort!r} (there are: {', '.join(sorted(record['split'])[:8])})"
        )
    if layer not in record["layers"]:
        raise Refused(
            404, f"no layer {layer!r} in cohort {cohort!r} (there are: {', '.join(sorted(record['layers']))})"
        )
    found = view_vectors.targets(at.layout, cohort, layer, slide, genes or ())
    columns = {"spot": pa.array(found["spots"], pa.utf8()), "split": pa.array(found["split"], pa.utf8())}
    columns |= {name: vectors(found[name]) for name in ("value", "mask", "uncertainty") if found[name] is not None}
    notes = {
        "cohort": cohort,
        "layer": layer,
        "slide": slide,
        "genes": json.dumps(found["genes"]),
        "unit": view.unit(layer),
    }
    return arrow(columns, notes)


def _stream(
    ids: np.ndarray, note: dict[str, Any], blocks: Iterator[tuple[np.ndarray, np.ndarray]], notes: dict[str, str]
) -> Iterator[bytes]:
    """Encode block by block, so that a slide of any size takes the memory of a chunk."""
    import pyarrow as pa

    kind = pa.list_(pa.float16() if note["dtype"].itemsize == 2 else pa.float32(), note["dim"])
    schema = pa.schema([("spot", pa.utf8()), ("vector", kind)], metadata=notes)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        for rows, values in blocks:
            columns = [pa.array(ids[rows], pa.utf8()), vectors(values, ~np.isfinite(values).all(axis=1))]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()
