"""A dask client for a run: of a cluster of local processes, or of a scheduler that is already there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import distributed

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def client(
    workers: int, scheduler: str | None, *, threads_per_worker: int, blas_threads: int
) -> Iterator[distributed.Client]:
    """Connect to a scheduler, or start local processes that end with the context.

    Parameters
    ----------
    workers
        Processes of a ``LocalCluster`` on the loopback interface, where no scheduler is given.
    scheduler
        Address of a running dask scheduler, whose workers have their own threads.
    threads_per_worker
        Tasks that a local process has in work at once.
    blas_threads
        Threads of the numeric libraries in each local process.

    Yields
    ------
    distributed.Client

    Raises
    ------
    InputError
        No scheduler answers.
    """
    import dask
    from distributed import Client, LocalCluster

    if scheduler:
        try:
            connected = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler}; start one with `dask scheduler`") from error
        with connected:
            yield connected
        return
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": dict.fromkeys(THREAD_VARIABLES, str(blas_threads))}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads_per_worker,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as connected,
    ):
        yield connected
