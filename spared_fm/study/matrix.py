"""Benchmarks declared in a TOML file: run cell by cell, each kept by what it depends on, and shown as one table."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.heads.registry import head_class
from spared_fm.study.matrix_cells import SCORES, Cell, cells, read_matrix
from spared_fm.study.matrix_compute import compute, reason, receipt
from spared_fm.study.matrix_kept import COUNTED, DIGEST, FAILED, NUMBERS, PREDICTIONS, declare, declared, folder, keep
from spared_fm.study.matrix_kept import receipt as kept_receipt
from spared_fm.study.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import distributed
    import pandas as pd

    from spared_fm.store.layout import Layout

TABLE = "table.parquet"
SCORED = ("label", "score", "scored_on", "split", "over", "fold", "slide", *NUMBERS, *COUNTED)
"""Columns that a cell without a result leaves empty."""


def run(
    layout: Layout, toml: str | Path, *, workers: int = 0, scheduler: str | None = None, progress: bool = False
) -> list[dict[str, Any]]:
    """Compute the cells of a benchmark that are not kept yet; cells that failed are tried again.

    Every name is looked up before anything is computed. A cell is kept as soon as it is done, under
    ``benchmarks/<name>/``: what it predicts of the spots held out as ``<cell id>.safetensors``, then its receipt
    ``<cell id>.json``, so that a run that was killed goes on where it was. A cell that fails is kept with its reason, and the
    others go on; one whose head can't take the encoder, or isn't for the protocol, is skipped, with the reason. Cells that the
    declaration no longer names stay there, and count again when it does.

    Parameters
    ----------
    layout
        The store.
    toml
        The declaration: ``name``; lists ``cohorts``, ``encoders``, ``targets``, and ``heads`` (each a name, or a table with
        ``name`` and ``params``); ``protocol`` (``strict``, ``spared``, ``hest_exact`` or ``hest_corrected``); and if wanted
        ``score`` (``all``, ``measured``, ``both``) and ``seeds``. See :class:`spared_fm.study.matrix_cells.Matrix`.
    workers
        0: one cell after the other in this process. N: a ``LocalCluster`` of N processes, a cell at a time in each, which
        share the cores. Sums over another number of threads may differ in the last bits.
    scheduler
        Address of a running dask scheduler; its workers must see the store.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        The rows of :func:`show`, with None where there is nothing.

    Raises
    ------
    InputError
        A declaration that is not one, an unknown name, a cohort of another mode, a target that the protocol doesn't take, or
        no scheduler answers.
    """
    if workers < 0:
        raise InputError("--workers must be 0 (in this process) or more")
    matrix = read_matrix(Path(toml))
    wanted = cells(layout, matrix)
    declare(layout, matrix.name, {"score": matrix.score, "cells": [dataclasses.asdict(cell) for cell in wanted]})
    todo = _unfinished(layout, matrix.name, wanted)
    with bar(f"benchmark {matrix.name}", len(todo), "cells", show=progress) as advance, contextlib.ExitStack() as stack:
        if todo and (workers or scheduler):
            from spared_fm.extract import cluster
            from spared_fm.extract.task import cores

            # local processes share the cores
            threads = max(1, cores() // max(1, workers))
            client = stack.enter_context(cluster.client(workers, scheduler, threads_per_worker=1, blas_threads=threads))
            for _ in _on_a_cluster(client, layout, matrix.name, todo):
                advance(1)
        else:
            for cell in todo:
                compute(str(layout.root), matrix.name, cell)
                advance(1)
    return _rows(layout, matrix.name)


def show(layout: Layout, name: str) -> pd.DataFrame:
    """Give the table of a benchmark as it was last declared.

    Parameters
    ----------
    layout
        The store.
    name
        The benchmark's name.

    Returns
    -------
    pandas.DataFrame
        For each cell, by fold, split, layer it is scored on and score: a row pooled over spots, one of the mean of the slides,
        one per slide (``over`` says which: ``pooled``, ``slide_mean``, ``slide``); where there are several folds also the mean of
        their pooled rows (``fold_mean``). Columns cell, cohort, protocol, encoder, head, cached (what stands in it, on cached
        features, for what needs pixels in the original), params (JSON text of those given), target, seed, status (``done``,
        ``failed``, ``skipped``, ``waiting``), error (why a cell failed or was skipped), seconds, then ``SCORED``: label (why a
        head or a fold is no fair one, or the head's size), score (``all`` or ``measured`` entries), scored_on (the layer: the
        target, and for a completed one also what it was before), fold (empty where there is one only) …
        A cell that is not done has one row without scores.

    Raises
    ------
    InputError
        No such benchmark.
    """
    import pandas as pd

    rows = _rows(layout, name)
    table = pd.DataFrame(rows, columns=list(rows[0]))
    # Said outright: an empty column has no type of its own, in pandas or in parquet.
    types = dict.fromkeys(table, "string") | dict.fromkeys((*NUMBERS, "seconds"), "float64")
    return table.astype(types | dict.fromkeys((*COUNTED, "seed"), "Int64"))


def table(layout: Layout, name: str) -> str:
    """Write :func:`show` as ``benchmarks/<name>/table.parquet``.

    Parameters
    ----------
    layout, name
        As for :func:`show`.

    Returns
    -------
    str
        Path or URL of the file.

    Raises
    ------
    InputError
        No such benchmark.
    """
    found = show(layout, name)
    data = io.BytesIO()
    found.to_parquet(data, engine="pyarrow", index=False)
    key = f"{folder(name)}/{TABLE}"
    layout.files.replace(key, data.getvalue())
    return str(layout.root / key)


def _unfinished(layout: Layout, name: str, wanted: Sequence[Cell]) -> list[Cell]:
    """Choose the cells that have no result yet, and those that failed or whose predictions are gone."""
    there = set(layout.files.list(folder(name)))

    def finished(cell: Cell) -> bool:
        kept = kept_receipt(layout, name, cell.id)
        return (
            kept is not None and kept["status"] != FAILED and (DIGEST not in kept or f"{cell.id}{PREDICTIONS}" in there)
        )

    return [cell for cell in wanted if not finished(cell)]


def _rows(layout: Layout, name: str) -> list[dict[str, Any]]:
    """Rows of :func:`show`, as JSON has them."""
    found = declared(layout, name)
    rows = []
    for fields in found["cells"]:
        cell = Cell(**fields)
        kept = kept_receipt(layout, name, cell.id) or {"status": "waiting", "error": None, "seconds": None, "rows": []}
        same = {
            "cell": cell.id,
            "cohort": cell.cohort,
            "protocol": cell.protocol,
            "encoder": cell.encoder,
            "head": cell.head,
            "cached": head_class(cell.head).cached or None,
            "params": cell.params,
            "target": cell.target,
            "seed": cell.seed,
            **{column: kept[column] for column in ("status", "error", "seconds")},
        }
        scored = [row for row in kept["rows"] if row["score"] in SCORES[found["score"]]]
        rows += [{**same, **{column: row.get(column) for column in SCORED}} for row in scored or [{}]]
    return rows


def _on_a_cluster(client: distributed.Client, layout: Layout, name: str, todo: Sequence[Cell]) -> Iterator[None]:
    """Compute cells on the client's workers; yields once for each that is done."""
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    # pure=False: the kept file decides what is done, not dask's memory of a key.
    futures = {
        client.submit(compute, str(layout.root), name, cell, pure=False, key=f"{cell.id}-cell"): cell for cell in todo
    }
    try:
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                died = "the workers that computed it died (out of memory?)" if isinstance(error, KilledWorker) else None
                cell = futures[future]
                keep(layout, name, cell.id, receipt(cell, FAILED, died or reason(error), None))
            future.release()
            yield
    except (FutureCancelledError, CommClosedError) as error:
        raise InputError("the dask scheduler is gone; cells that are done are kept: start one and run again") from error
    except BaseException:
        client.cancel(list(futures), force=True)
        raise
