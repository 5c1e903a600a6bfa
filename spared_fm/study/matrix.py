"""Benchmarks declared in a TOML file: run cell by cell, each kept by what it depends on, and shown as one table."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.study.matrix_cells import FORMAT, SCORES, Cell, cells, compute, keep, read_matrix, reason
from spared_fm.study.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import distributed
    import pandas as pd

    from spared_fm.store.layout import Layout

FOLDER = "benchmarks"
DECLARED = "matrix.json"
TABLE = "table.parquet"
NUMBERS = ("pcc_gene", "pcc_patch", "mse", "mae", "r2_gene", "r2_patch")
COUNTS = ("n_slides", "n_spots", "n_entries", "n_genes_scored", "n_spots_scored")
SCORED = ("label", "score", "split", "over", "slide", *NUMBERS, *COUNTS)
"""Columns that a cell without a result leaves empty."""


def run(
    layout: Layout, toml: str | Path, *, workers: int = 0, scheduler: str | None = None, progress: bool = False
) -> list[dict[str, Any]]:
    """Compute the cells of a benchmark that are not kept yet; cells that failed are tried again.

    Every name is looked up before anything is computed. A cell is kept as soon as it is done, under
    ``benchmarks/<name>/<cell id>.json``, so that a run that was killed goes on where it was. A cell that fails is kept with
    its reason, and the others go on. Cells that the declaration no longer names stay there, and count again when it does.

    Parameters
    ----------
    layout
        The store.
    toml
        The declaration: ``name``; lists ``cohorts``, ``encoders``, ``targets``, and ``heads`` (each a name, or a table with
        ``name`` and ``params``); ``protocol`` (``strict`` or ``spared``); and if wanted ``score`` (``all``, ``measured``,
        ``both``) and ``seeds``. See :class:`spared_fm.study.matrix_cells.Matrix`.
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
        A declaration that is not one, an unknown name, a cohort of another mode, or no scheduler answers.
    """
    if workers < 0:
        raise InputError("--workers must be 0 (in this process) or more")
    matrix = read_matrix(Path(toml))
    wanted = cells(layout, matrix)
    declared = {
        "format": FORMAT,
        "protocol": matrix.protocol,
        "score": matrix.score,
        "cells": [dataclasses.asdict(cell) for cell in wanted],
    }
    layout.files.replace(f"{FOLDER}/{matrix.name}/{DECLARED}", json.dumps(declared, indent=1).encode())
    todo = {
        cell.id: cell for cell in wanted if (_kept(layout, matrix.name, cell) or {"error": ""})["error"] is not None
    }
    with bar(f"benchmark {matrix.name}", len(todo), "cells", show=progress) as advance, contextlib.ExitStack() as stack:
        if todo and (workers or scheduler):
            client = stack.enter_context(_client(workers, scheduler))
            for _ in _on_a_cluster(client, layout, matrix.name, list(todo.values())):
                advance(1)
        else:
            for cell in todo.values():
                compute(str(layout.root), cell, _key(matrix.name, cell))
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
        For each cell, by split and score: a row pooled over spots, one of the mean of the slides, one per slide (``over`` says
        which). Columns cell, cohort, protocol, encoder, head, params (JSON text of those given), target, seed, status
        (``done``, ``failed``, ``waiting``), error, seconds, label (why a head is no fair one, or its size), then ``SCORED``.
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
    return table.astype(types | dict.fromkeys((*COUNTS, "seed"), "Int64"))


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
        No such benchmark, or pyarrow is not installed.
    """
    found = show(layout, name)
    data = io.BytesIO()
    try:
        found.to_parquet(data, engine="pyarrow", index=False)
    except ImportError as error:
        raise InputError("writing parquet needs pyarrow; `pip install 'spared-fm[parquet]'`") from error
    key = f"{FOLDER}/{name}/{TABLE}"
    layout.files.replace(key, data.getvalue())
    return str(layout.root / key)


def _key(name: str, cell: Cell) -> str:
    return f"{FOLDER}/{name}/{cell.id}.json"


def _kept(layout: Layout, name: str, cell: Cell) -> dict[str, Any] | None:
    """Read a cell's result; None where there is none."""
    key = _key(name, cell)
    try:
        return json.loads(layout.files.read(key))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{layout.root / key} is damaged ({error}); remove it, and run the benchmark again") from error


def _rows(layout: Layout, name: str) -> list[dict[str, Any]]:
    """Rows of :func:`show`, as JSON has them."""
    try:
        declared = json.loads(layout.files.read(f"{FOLDER}/{name}/{DECLARED}"))
    except FileNotFoundError:
        known = ", ".join(layout.files.list(FOLDER)) or "none"
        raise InputError(f"{layout.root}: no benchmark {name!r} (benchmarks: {known}); run one first") from None
    rows = []
    for fields in declared["cells"]:
        cell = Cell(**fields)
        kept = _kept(layout, name, cell)
        error = kept["error"] if kept else None
        same = {
            "cell": cell.id,
            "cohort": cell.cohort,
            "protocol": declared["protocol"],
            "encoder": cell.encoder,
            "head": cell.head,
            "params": cell.params,
            "target": cell.target,
            "seed": cell.seed,
            "status": "waiting" if kept is None else "failed" if error is not None else "done",
            "error": error,
            "seconds": kept["seconds"] if kept else None,
        }
        found = [row for row in kept["rows"] if row["score"] in SCORES[declared["score"]]] if kept else []
        rows += [{**same, **{column: row.get(column) for column in SCORED}} for row in found or [{}]]
    return rows


def _on_a_cluster(client: distributed.Client, layout: Layout, name: str, todo: Sequence[Cell]) -> Iterator[None]:
    """Compute cells on the client's workers; yields once for each that is done."""
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    # pure=False: the kept file decides what is done, not dask's memory of a key.
    futures = {
        client.submit(compute, str(layout.root), cell, _key(name, cell), pure=False, key=f"{cell.id}-cell"): cell
        for cell in todo
    }
    try:
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                died = "the workers that computed it died (out of memory?)" if isinstance(error, KilledWorker) else None
                result: dict[str, Any] = {"error": died or reason(error), "rows": [], "seconds": None}
                keep(layout, futures[future], _key(name, futures[future]), result)
            future.release()
            yield
    except (FutureCancelledError, CommClosedError) as error:
        raise InputError("the dask scheduler is gone; cells that are done are kept: start one and run again") from error
    except BaseException:
        client.cancel(list(futures), force=True)
        raise


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[distributed.Client]:
    import dask
    from distributed import Client, LocalCluster

    from spared_fm.extract.task import cores

    if scheduler:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler}; start one with `dask scheduler`") from error
        with client:
            yield client
        return
    threads = str(max(1, cores() // workers))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
