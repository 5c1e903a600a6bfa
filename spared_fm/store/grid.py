"""How an embedding array is cut and packed: the two layouts, from measurement (DESIGN §2 rule 9).

``local``
    Raw rows, so that a chunk file is mapped and rows are gathered without a codec pipeline.
``cloud``
    A chunk is one object, a zarr shard written whole. Inside, pieces of about ``INNER_ROWS`` rows, each zstd-compressed with a
    checksum: a reader fetches by byte range what a few rows need.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from spared_fm.errors import InputError

CHUNK_ROWS = 1024
CLOUD_CHUNK_ROWS = 8192
"""16 MiB of float16 at 1024 dimensions: a request to an object store costs as much as sending megabytes."""
PROFILES = {"local": CHUNK_ROWS, "cloud": CLOUD_CHUNK_ROWS}
"""Profile → rows per chunk where none are asked for."""
INNER_ROWS = 256


def cut(n_rows: int, chunk_rows: int) -> tuple[int, int]:
    """Rows per chunk and rows per piece inside it, in the cloud profile.

    A piece divides the chunk, and has at most ``INNER_ROWS`` rows unless ``chunk_rows`` has no divisor near that.

    >>> cut(100_000, 8192), cut(700, 1024), cut(10, 1024), cut(5000, 1021)
    ((8192, 256), (768, 256), (10, 10), (1021, 1021))
    """
    divisors = [d for d in range(INNER_ROWS // 4, INNER_ROWS + 1) if chunk_rows % d == 0]
    inner = divisors[-1] if divisors else chunk_rows
    if n_rows <= inner:
        return n_rows, n_rows
    return min(chunk_rows, -(-n_rows // inner) * inner), inner


def array_metadata(
    shape: tuple[int, int], chunk_rows: int | None, dtype: str, profile: str, attributes: dict[str, Any]
) -> bytes:
    """Content of ``zarr.json`` of a new embedding array.

    Parameters
    ----------
    shape
        (spots, dim).
    chunk_rows
        Rows per chunk, by default the profile's; lowered to what the spots fill.
    dtype
        Stored dtype.
    profile
        ``local`` or ``cloud``.
    attributes
        The array's attributes.

    Raises
    ------
    InputError
        Unknown profile.
    """
    if profile not in PROFILES:
        raise InputError(f"storage profile {profile!r} is not one of {', '.join(PROFILES)}")
    rows = chunk_rows or PROFILES[profile]
    layout: dict[str, Any] = {"chunks": (min(rows, shape[0]), shape[1]), "compressors": None}
    if profile == "cloud":
        outer, inner = cut(shape[0], rows)
        layout = {
            "chunks": (inner, shape[1]),
            "shards": (outer, shape[1]),
            "compressors": ZstdCodec(level=3, checksum=True),
        }
    memory = MemoryStore()
    zarr.create_array(
        memory,
        shape=shape,
        dtype=dtype,
        fill_value=np.nan,
        filters=None,
        attributes=attributes,
        zarr_format=3,
        **layout,
    )
    buffer = sync(memory.get("zarr.json", default_buffer_prototype()))
    if buffer is None:
        raise RuntimeError("zarr wrote no metadata")
    return buffer.to_bytes()
