"""Run a plan on dask: in this process, on a cluster of local processes, or on a scheduler that is already there."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.extract.task import Done, encode_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import distributed

    from spared_fm.extract.plan import Plan, Task


CHUNKS_IN_HAND = 2
"""Chunks a worker has in work at once: what a kill of it may cost, and enough to hide one's end behind the next."""


@dataclasses.dataclass
class Summary:
    """What a run did.

    Attributes
    ----------
    patches
        Patches read and encoded by this run.
    wall
        Seconds from start to end.
    seconds
        Stage → seconds, summed over streams and workers.
    absent
        Slide → spot row → reason, for patches that could not be read.
    """

    patches: int
    wall: float
    seconds: dict[str, float]
    absent: dict[str, dict[int, str]]


def run(
    plan: Plan,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    on_patches: Callable[[int], Any] = lambda patches: None,
) -> Summary:
    """Encode the plan's unfinished chunks.

    Parameters
    ----------
    plan
        From :func:`spared_fm.extract.plan.make_plan`.
    workers
        0: in this process. N: a ``LocalCluster`` of N processes.
    scheduler
        Address of a running dask scheduler; its workers must see the store and the images.
    on_patches
        Called with the patches of each finished task, for progress.

    Raises
    ------
    InputError
        From a task, or no scheduler answers.
    OverflowError
        An embedding does not fit the stored dtype.
    """
    if workers < 0:
        raise InputError("--workers must be 0 (in this process) or more")
    started = time.perf_counter()
    summary = Summary(0, 0.0, {}, {})

    def count(done: Done) -> None:
        summary.patches += done.patches
        for stage, value in done.seconds.items():
            summary.seconds[stage] = summary.seconds.get(stage, 0.0) + value
        if done.absent:
            summary.absent.setdefault(done.slide, {}).update(done.absent)
        on_patches(done.patches)

    if plan.tasks and not workers and not scheduler:
        _in_this_process(plan.tasks, count)
    elif plan.tasks:
        with _client(workers, scheduler) as client:
            _on_a_cluster(client, plan.tasks, count)
    summary.wall = time.perf_counter() - started
    return summary


def _in_this_process(tasks: list[Task], count: Callable[[Done], None]) -> None:
    """Use dask's threaded scheduler: no processes, no sockets, and the cores never run dry between two chunks."""
    import dask
    import torch
    from dask.callbacks import Callback

    def finished(key: str, result: Any, *_: Any) -> None:
        if isinstance(result, Done):
            count(result)

    call = dask.delayed(encode_chunk, pure=False, traverse=False)
    threads = torch.get_num_threads()
    try:
        with Callback(posttask=finished):
            dask.compute(*(call(task) for task in tasks), scheduler="threads", num_workers=CHUNKS_IN_HAND)
    finally:
        torch.set_num_threads(threads)  # the streams' setting reaches the whole process


def _on_a_cluster(client: distributed.Client, tasks: list[Task], count: Callable[[Done], None]) -> None:
    from distributed import as_completed

    # pure=False: the receipt decides what is done, not dask's memory of a key.
    futures = client.map(encode_chunk, tasks, pure=False, batch_size=1000)
    try:
        for future in as_completed(futures):
            count(future.result())
            future.release()
    except BaseException:
        client.cancel(futures, force=True)
        raise


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[distributed.Client]:
    import dask
    from distributed import Client, LocalCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler}; start one with `dask scheduler`") from error
        with client:
            yield client
        return
    # Streams fill the cores; thread pools below them would only oversubscribe. Tasks set torch's threads as planned.
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=CHUNKS_IN_HAND,
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
