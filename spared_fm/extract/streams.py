"""How a worker keeps its cores (or its GPU) busy: batches are cut by row number, and their order never matters.

On a CPU several *streams* each take a batch through reading, transform and forward, with as many threads inside the forward
pass as the array was planned with (one by default): a core is never idle for want of pixels, and no thread waits for another
one at a barrier. On a GPU one stream runs the forward pass while a bounded number of batches is read and transformed ahead.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

A = TypeVar("A")
B = TypeVar("B")


class _Pool(ThreadPoolExecutor):
    """Threads that give torch ``threads`` threads before every piece of work.

    Once per thread is not enough: part of the setting (MKL's) belongs to the process, and other code may change it between
    two runs. Products summed by another number of threads round differently, and bytes must not depend on that.
    """

    def __init__(self, streams: int, threads: int) -> None:
        super().__init__(streams, thread_name_prefix="spared-fm-stream")
        self.threads = threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._run, fn, *args, **kwargs)

    def _run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        torch.set_num_threads(self.threads)
        return fn(*args, **kwargs)


_lock = threading.Lock()
_pools: dict[tuple[int, int], _Pool] = {}


def pool(streams: int, threads: int) -> ThreadPoolExecutor:
    """Give this process's pool of ``streams`` threads, each running torch with ``threads`` threads.

    It is shared by the chunks a worker has in hand, so that the next chunk's batches fill the cores while the last ones of a
    chunk are finished.
    """
    with _lock:
        if (streams, threads) not in _pools:
            _pools[streams, threads] = _Pool(streams, threads)
        return _pools[streams, threads]


def spread(executor: ThreadPoolExecutor, work: Callable[[A], None], items: Iterable[A]) -> None:
    """Run ``work`` on every item in the pool; the first error cancels what has not begun and is raised."""
    futures = [executor.submit(work, item) for item in items]
    try:
        for future in futures:
            future.result()
    except BaseException:
        _stop(futures)
        raise


def ahead(
    executor: ThreadPoolExecutor,
    prepare: Callable[[A], B],
    consume: Callable[[A, B], None],
    items: Iterable[A],
    *,
    depth: int,
) -> float:
    """Prepare items in the pool, at most ``depth`` ahead, and consume them in order in this thread.

    Returns
    -------
    float
        Seconds that this thread waited for a prepared item.
    """
    waited = 0.0
    queue: deque[tuple[A, Future[B]]] = deque()
    remaining = iter(items)
    try:
        for item in remaining:
            queue.append((item, executor.submit(prepare, item)))
            if len(queue) >= depth:
                waited += _take(queue, consume)
        while queue:
            waited += _take(queue, consume)
    except BaseException:
        _stop([future for _, future in queue])
        raise
    return waited


def _take(queue: deque[tuple[A, Future[B]]], consume: Callable[[A, B], None]) -> float:
    item, future = queue.popleft()
    started = time.perf_counter()
    prepared = future.result()
    waited = time.perf_counter() - started
    consume(item, prepared)
    return waited


def _stop(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.cancel()
    for future in futures:
        if not future.cancelled():
            future.exception()  # what is running writes into the caller's arrays: let it end first
