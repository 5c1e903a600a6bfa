"""How the API answers: JSON without NaN, Arrow streams, pictures, and errors as one line."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import Request, Response
from PIL import Image
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
Format = Literal["json", "arrow"]


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """An answer other than what was asked for.

    Parameters
    ----------
    status
        HTTP status, 4xx.
    reason
        One line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Error(BaseModel):
    """What is wrong, in one line."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request can't be read."},
    403: {"model": Error, "description": "It was sent by another site, or to another name."},
    404: {"model": Error, "description": "The store has no such thing."},
    409: {"model": Error, "description": "The store can't answer as it is now; the reason names the mend."},
    413: {"model": Error, "description": "Too large."},
    422: {"model": Error, "description": "A value that has no meaning here."},
}


class Json(Response):
    """JSON in ASCII: what is not a number is null, never NaN, and no text breaks the encoding."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error(status: int, reason: str) -> Json:
    """Make the answer to a request that can't be served."""
    return Json({"error": " ".join(reason.split())}, status)


def wants_arrow(request: Request, asked: Format | None) -> bool:
    """Whether the answer is to be Arrow: the query says so, or else the Accept header."""
    return asked == "arrow" if asked else ARROW in request.headers.get("accept", "")


def numbers(values: np.ndarray) -> list[Any]:
    """List floats with None for what isn't finite."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def vectors(values: np.ndarray, absent: np.ndarray | None = None) -> pa.Array:
    """Rows (n, m) as a fixed-size list column; `absent` rows, bool (n,), are null."""
    import pyarrow as pa

    mask = None if absent is None else pa.array(absent)
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)


def arrow(columns: Mapping[str, pa.Array], notes: Mapping[str, str | None] | None = None) -> Response:
    """Answer with one table as an Arrow IPC stream; `notes` are the schema's metadata."""
    import pyarrow as pa

    batch = pa.record_batch(list(columns.values()), schema=schema(columns, notes))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Response(sink.getvalue(), media_type=ARROW)


def schema(columns: Mapping[str, pa.Array], notes: Mapping[str, str | None] | None) -> pa.Schema:
    """Make the schema of columns, with metadata."""
    import pyarrow as pa

    metadata = {name: value for name, value in (notes or {}).items() if value is not None}
    return pa.schema([(name, column.type) for name, column in columns.items()], metadata=metadata)


def rows_arrow(rows: Sequence[Mapping[str, Any]]) -> Response:
    """Answer with rows of plain values."""
    import pyarrow as pa

    flat = [{name: json.dumps(v) if isinstance(v, dict) else v for name, v in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in flat]
        kinds = {type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[name] = pa.array([None if v is None else str(v) for v in values] if mixed else values)
    return arrow(columns)


def jpeg(pixels: np.ndarray, quality: int = 85) -> bytes:
    """Encode uint8 (h, w, 3)."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def picture(request: Request, data: bytes, mark: str) -> Response:
    """Answer with a JPEG that the browser may keep, and asks for again by its mark."""
    tag = f'"{mark}"'
    headers = {"etag": tag, "cache-control": "private, max-age=60"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)
