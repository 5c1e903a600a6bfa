"""Forecast: what an encode would take, without creating anything."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.store.embeddings import PROFILES, EmbeddingArray, slide_record
from spared_fm.study.encode import choose_slides
from spared_fm.study.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.encoders.builder import Encoder
    from spared_fm.store.layout import Layout

PROBE_S = 2.0
"""Seconds of the timed probe, after a warm-up batch."""


def forecast(
    layout: Layout,
    encoders: str | Sequence[str],
    *,
    slides: str | Sequence[str] | None = None,
    device: str = "cpu",
    workers: int = 0,
    probe_s: float = PROBE_S,
    **options: Any,
) -> list[dict[str, Any]]:
    """Say what :func:`spared_fm.study.encode.encode` with the same arguments would do; nothing is written.

    The time comes from a short probe of each encoder on synthetic patches, on all cores of this machine: it leaves out the
    reading of patches (which runs beside the forward pass) and other machines' workers. Where several arrays are filled in
    one pass, the times add up to more than the pass takes.

    Parameters
    ----------
    layout
        The store.
    encoders, slides, device, workers
        As for ``encode``. Local workers share the cores that the probe uses, so their number changes nothing.
    probe_s
        Seconds to probe each encoder.
    **options
        See :class:`spared_fm.study.wanted.Wanted`. Arrays that exist keep their own rows per chunk.

    Returns
    -------
    list of dict
        One row per array: encoder, key, slides, patches (to encode), patches_done, chunks, bytes (to write),
        patches_per_second (of the probe), seconds (estimate).

    Raises
    ------
    InputError
        Unknown encoder or slide.
    """
    wanted = Wanted(encoders, **options)
    jobs = wanted.jobs()
    chosen = choose_slides(layout, slides, with_image=True)

    from spared_fm.extract.plan import array_key, default_chunk_rows, make_recipe
    from spared_fm.extract.task import get

    rows = []
    built = [get(job.spec, device) for job in jobs]
    chunk_rows = wanted.chunk_rows or default_chunk_rows(built)
    for job, encoder in zip(jobs, built, strict=True):
        name = job.key or array_key(make_recipe(encoder, job.patch, wanted.store_dtype), job.spec)
        patches = done = chunks = size = 0
        for slide in chosen:
            missing, finished, chunk_bytes = _left(layout, slide, name, chunk_rows, encoder.dim, wanted.store_dtype)
            patches, done = patches + sum(missing), done + finished
            chunks, size = chunks + len(missing), size + chunk_bytes * len(missing)
        rate = probe(encoder, job.patch.px, wanted.batch_size, wanted.threads, probe_s) if patches else None
        rows.append(
            {
                "encoder": job.spec.name,
                "key": name,
                "slides": len(chosen),
                "patches": patches,
                "patches_done": done,
                "chunks": chunks,
                "bytes": size,
                "patches_per_second": rate and round(rate, 2),
                "seconds": round(patches / rate, 1) if rate else 0.0,
            }
        )
    return rows


def probe(encoder: Encoder, px: int, batch_size: int, threads: int, seconds: float) -> float:
    """Patches per second of transform and forward pass on synthetic patches, batches side by side as ``encode`` runs them."""
    from spared_fm.extract.streams import pool, spread
    from spared_fm.extract.task import cores

    patches = np.random.default_rng(0).integers(0, 256, (batch_size, px, px, 3), dtype=np.uint8)
    streams = max(1, cores() // threads) if encoder.device == "cpu" else 1
    executor = pool(streams, threads)
    ends: list[float] = []

    def work(until: float) -> None:
        while True:
            encoder.encode(patches)
            ends.append(time.perf_counter())
            if ends[-1] >= until:
                return

    spread(executor, work, [0.0] * streams)  # the first passes allocate and compile
    ends.clear()
    started = time.perf_counter()
    spread(executor, work, [started + seconds] * streams)
    return len(ends) * batch_size / (max(ends) - started)


def _left(
    layout: Layout, slide: str, key: str, chunk_rows: int | None, dim: int, store_dtype: str
) -> tuple[list[int], int, int]:
    """Rows of each missing chunk, rows that are done, and bytes of one chunk."""
    if layout.attributes(layout.embedding(slide, key)) is not None:
        array = EmbeddingArray(layout, slide, key)
        missing = [len(array.rows(k)) for k in array.missing()]
        return missing, array.shape[0] - sum(missing), array.chunk_rows * array.shape[1] * array.dtype.itemsize
    n = slide_record(layout, slide)["n_spots"]
    rows = max(1, min(chunk_rows or PROFILES["local" if layout.is_local else "cloud"], n))
    return [min(rows, n - first) for first in range(0, n, rows)], 0, rows * dim * np.dtype(store_dtype).itemsize
