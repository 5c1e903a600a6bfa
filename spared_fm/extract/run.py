"""Run a plan on dask: in this process, on a cluster of local processes, or on a scheduler that is already there."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.extract import cluster
from spared_fm.extract.task import Done, encode_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import distributed

    from spared_fm.extract.plan import Plan, Task


CHUNKS_IN_HAND = 2
"""Chunks a worker has in work at once: what a kill of it may cost, and enough to hide one's end behind the next."""


POLL_S = 0.5
"""Seconds between looks at chunks that other writers have in hand."""


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
    started = time.perf_counter()
    summary = Summary(0, 0.0, {}, {})

    def count(done: Done) -> None:
        summary.patches += done.patches
        for stage, value in done.seconds.items():
            summary.seconds[stage] = summary.seconds.get(stage, 0.0) + value
        if done.absent:
            summary.absent.setdefault(done.slide, {}).update(done.absent)
        if done.busy is not None:
            busy.append(done.busy)
        on_patches(done.patches)

    tasks: list[Task] = plan.tasks
    busy: list[Task] = []
    with contextlib.ExitStack() as stack:
        client = None
        if tasks and (workers or scheduler):
            stack.enter_context(_quiet())
            # Streams fill the cores; thread pools below them would only oversubscribe. Tasks set torch's threads as planned.
            opened = cluster.client(workers, scheduler, threads_per_worker=CHUNKS_IN_HAND, blas_threads=1)
            client = stack.enter_context(opened)
        while tasks:
            before = len(tasks)
            if client is None:
                _in_this_process(tasks, count)
            else:
                _on_a_cluster(client, tasks, count)
            # Chunks that another writer has in hand are looked at until it has finished them, or its lease ends.
            tasks, busy = busy, []
            if len(tasks) == before:
                time.sleep(POLL_S)
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
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    address = client.scheduler.address if client.scheduler else "the given address"
    futures: list[distributed.Future] = []
    try:
        # pure=False: the receipt decides what is done, not dask's memory of a key.
        futures = client.map(encode_chunk, tasks, pure=False, batch_size=1000)
        for future in as_completed(futures):
            count(future.result())
            future.release()
    except (FutureCancelledError, CommClosedError) as error:
        raise InputError(
            f"the dask scheduler at {address} is gone; finished chunks are kept: start one and run the same command again"
        ) from error
    except KilledWorker as error:
        raise InputError(
            f"{error.last_worker.address}: {error.allowed_failures + 1} workers died on one chunk (out of memory?); finished "
            "chunks are kept: give workers more memory, then run the same command again"
        ) from error
    except BaseException:
        client.cancel(futures, force=True)
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's tracebacks of a lost connection off the screen: the run ends with one line that says the same."""
    import distributed  # noqa: F401  importing it sets the level

    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
