"""Writing the files of an index: training, and segments, here or on the workers of a dask cluster."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout
from spared_fm.study.index_open import folder
from spared_fm.study.index_table import Scale, ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from spared_fm.search.plan import Plan
    from spared_fm.study.search_engine import Metric

    Advance = Callable[[int], None]


class Part(NamedTuple):
    """Consecutive rows of a slide: its number in the index, its id, first row, and the row after the last."""

    number: int
    slide: str
    start: int
    stop: int


def pack(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """Divide rows, in the order of their ids, into groups of at most ``most`` rows; slides are cut where a group is full."""
    groups: list[list[Part]] = []
    room = 0
    for part in sorted(parts):
        start = part.start
        while start < part.stop:
            if not room:
                groups.append([])
                room = most
            stop = min(part.stop, start + room)
            groups[-1].append(part._replace(start=start, stop=stop))
            room -= stop - start
            start = stop
    return groups


def size(parts: Sequence[Part]) -> int:
    """Rows in parts."""
    return sum(part.stop - part.start for part in parts)


def train(
    layout: Layout,
    key: str,
    plan: Plan,
    parts: Sequence[Part],
    *,
    metric: Metric,
    scale: Scale | None,
    seed: int,
    advance: Advance,
) -> dict[str, Any]:
    """Train on rows drawn from the parts and put the trained file into the store; see :func:`spared_fm.search.build.train`."""
    from spared_fm.search import build

    drawn = build.sample(blocks(layout, key, parts, scale, advance), size(parts), plan.train_rows, seed=seed)
    with _new_file(layout, key, "trained") as path:
        return build.train(path, plan, drawn, metric=metric, seed=seed)


def write(
    layout: Layout,
    key: str,
    trained: dict[str, Any],
    groups: Sequence[Sequence[Part]],
    *,
    metric: Metric,
    scale: Scale | None,
    workers: int,
    scheduler: str | None,
    advance: Advance,
) -> list[dict[str, Any]]:
    """Write a segment of each group of rows and give their records for the card, with ``parts``, in this order.

    A group whose rows are all absent gives none.

    Parameters
    ----------
    layout
        The store.
    key
        Array key.
    trained
        Record of the trained file.
    groups
        From :func:`pack`.
    metric, scale
        Those it was trained with.
    workers, scheduler
        0 and None: in this process; else see :func:`spared_fm.extract.cluster.client`.
    advance
        Called with rows that were read; each is read twice.

    Raises
    ------
    InputError
        No scheduler answers, or it is gone.
    """
    if not groups or not (workers or scheduler):
        made = (_write_segment(layout, key, trained, group, metric, scale, advance) for group in groups)
        return [record for record in made if record is not None]
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    from spared_fm.extract.cluster import client

    found: dict[int, dict[str, Any] | None] = {}
    with client(workers, scheduler, threads_per_worker=1, blas_threads=1) as connected:
        try:
            futures = {
                connected.submit(
                    _task, str(layout.root), key, trained, list(group), metric, scale, pure=False
                ): position
                for position, group in enumerate(groups)
            }
            for future in as_completed(list(futures)):
                found[futures[future]] = future.result()
                advance(2 * size(groups[futures[future]]))
        except (FutureCancelledError, CommClosedError, KilledWorker) as error:
            raise InputError(
                f"writing the index stopped: workers died, or their scheduler is gone ({type(error).__name__}); run it again, "
                "with more memory for each worker or less --memory"
            ) from error
    return [record for _, record in sorted(found.items()) if record is not None]


def blocks(
    layout: Layout, key: str, parts: Sequence[Part], scale: Scale | None, advance: Advance = lambda rows: None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids (m,) and embeddings (m, dim) of parts, chunk by chunk, in their order."""
    for part in parts:
        for rows, values in EmbeddingArray(layout, part.slide, key).blocks():
            start, stop = max(rows.start, part.start), min(rows.stop, part.stop)
            if start < stop:
                some = values[start - rows.start : stop - rows.start]
                yield ids_of(part.number, range(start, stop)), some if scale is None else scale(some)
                advance(stop - start)


def _task(
    root: str, key: str, trained: dict[str, Any], group: list[Part], metric: Metric, scale: Scale | None
) -> dict[str, Any] | None:
    return _write_segment(Layout.open(root), key, trained, group, metric, scale, lambda rows: None)


def _write_segment(
    layout: Layout,
    key: str,
    trained: dict[str, Any],
    group: Sequence[Part],
    metric: Metric,
    scale: Scale | None,
    advance: Advance,
) -> dict[str, Any] | None:
    from spared_fm.search.build import NoVectorsError, write_segment

    trained_file = layout.files.local_file(f"{folder(key)}/{trained['file']}", trained["crc32c"])
    try:
        with _new_file(layout, key, "segment") as path:
            record = write_segment(
                path, trained_file, lambda: blocks(layout, key, group, scale, advance), metric=metric
            )
    except NoVectorsError:
        return None
    return record | {"parts": [[part.number, part.start, part.stop] for part in group]}


@contextlib.contextmanager
def _new_file(layout: Layout, key: str, kind: str) -> Iterator[Path]:
    """Give the path to write a new file of an index to; in an object store it is put there at the end."""
    name = f"{kind}-{uuid.uuid4().hex[:16]}.faiss"
    if isinstance(layout.root, Path):
        path = layout.root / folder(key) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with layout.files.staging_folder() as staging:
        yield staging / name
        layout.files.put_if_absent(f"{folder(key)}/{name}", (staging / name).read_bytes())
