"""Dask's own parts die with `kill -9` in the middle of `encode`: the bytes in the end are those of a clean run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study.api import Study

SLIDE, KEY = "synthetic_p1_s1", "stain-bank"
OPTIONS = {"chunk_rows": 2, "batch_size": 2, "threads": 1}
ENVIRONMENT = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
PATIENCE = 120.0  # seconds for something that takes a few on an idle machine


def receipts(study: Study) -> int:
    folder = Path(study.layout.root) / study.layout.embedding(SLIDE, KEY) / "receipts"
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def chunks(study: Study) -> dict[str, bytes]:
    folder = Path(study.layout.root) / study.layout.embedding(SLIDE, KEY) / "c"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {PATIENCE:.0f} s")
        time.sleep(0.002)


class At(threading.Thread):
    """Calls ``action`` once, when ``study`` has a given number of receipts; remembers how many there were."""

    def __init__(self, study: Study, n: int, action: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.study, self.n, self.action, self.seen = study, n, action, -1
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while receipts(self.study) < self.n and time.monotonic() < deadline:
            time.sleep(0.002)
        self.seen = receipts(self.study)
        self.action()


@pytest.fixture
def clean(make_study: Callable[..., Study]) -> Study:
    study = make_study("clean")
    study.encode(KEY, **OPTIONS)
    return study


def test_a_dead_worker(make_study: Callable[..., Study], clean: Study):
    from distributed import LocalCluster

    study, n_chunks = make_study(), len(chunks(clean))
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        victim = cluster.workers[0].process.pid
        killer = At(study, 5, lambda: os.kill(victim, signal.SIGKILL))
        study.encode(KEY, scheduler=cluster.scheduler_address, **OPTIONS)
        killer.join()
        # the nanny has put another process in its place, or is about to
        wait(lambda: cluster.workers[0].process is None or cluster.workers[0].process.pid != victim, "the death")
    assert 5 <= killer.seen < n_chunks
    assert chunks(study) == chunks(clean)
    assert EmbeddingArray(study.layout, SLIDE, KEY).missing() == []


@contextlib.contextmanager
def scheduler_and_workers(folder: Path, workers: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """``dask scheduler`` and ``dask worker`` as a user starts them; the workers give up soon after the scheduler."""
    folder.mkdir()
    file = folder / "scheduler.json"
    processes = []

    def start(name: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments, "--host", "127.0.0.1"]
        with (folder / f"{name}{len(processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--no-dashboard"], env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
            )
        processes.append(process)
        return process

    try:
        scheduler = start("scheduler", "--port", "0", "--scheduler-file", str(file))
        wait(lambda: file.is_file() and file.stat().st_size > 0, "the start of the scheduler")
        address = json.loads(file.read_text())["address"]
        for _ in range(workers):
            start("worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
        yield address, scheduler
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_dead_scheduler(make_study: Callable[..., Study], clean: Study, tmp_path: Path):
    study, n_chunks = make_study(), len(chunks(clean))
    with scheduler_and_workers(tmp_path / "dask", 2) as (address, scheduler):
        killed_at = []

        def kill() -> None:
            scheduler.kill()
            killed_at.append(time.monotonic())

        killer = At(study, 5, kill)
        command = [sys.executable, "-m", "spared_fm", "encode", "--store", str(study.layout.root), "--encoder", KEY]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        found = subprocess.run([*command, "--scheduler", address], capture_output=True, text=True, timeout=PATIENCE)
        killer.join()
        seconds = time.monotonic() - killed_at[0]
    assert found.returncode == 1
    errors = [line for line in found.stderr.splitlines() if line.strip()]
    assert len(errors) == 1, found.stderr
    assert errors[0].startswith("error: ")
    assert address in errors[0]
    assert "run the same command again" in errors[0]
    assert seconds < 60
    there, kept = receipts(study), chunks(study)
    assert 5 <= killer.seen <= there < n_chunks
    [row] = study.encode(KEY, **OPTIONS)
    assert row["chunks_done_before"] == there
    expected = chunks(clean)
    assert chunks(study) == expected
    # chunks that had a receipt were right before the second run
    assert sum(expected[name] == content for name, content in kept.items()) >= there


@pytest.mark.full
def test_a_scheduler_with_no_worker_left_waits_for_the_next_one(
    make_study: Callable[..., Study], clean: Study, tmp_path: Path
):
    study, n_chunks = make_study(), len(chunks(clean))
    with scheduler_and_workers(tmp_path / "dask", 0) as (address, _):
        first, second = (
            [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
            for _ in "12"
        )
        options = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
        running = [subprocess.Popen([*first, "--no-dashboard"], **options)]

        def replace() -> None:
            running[0].kill()
            running.append(subprocess.Popen([*second, "--no-dashboard"], **options))

        killer = At(study, 5, replace)
        try:
            study.encode(KEY, scheduler=address, **OPTIONS)
        finally:
            killer.join()
            for process in running:
                process.kill()
                process.wait()
    assert len(running) == 2
    assert 5 <= killer.seen < n_chunks
    assert chunks(study) == chunks(clean)


@pytest.mark.full
def test_a_chunk_that_kills_too_many_workers(make_study: Callable[..., Study], clean: Study):
    import dask
    from distributed import LocalCluster

    study, n_chunks = make_study(), len(chunks(clean))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        killer = At(study, 5, lambda: os.kill(cluster.workers[0].process.pid, signal.SIGKILL))
        with pytest.raises(InputError, match=r"1 workers died on one chunk .* run the same command again"):
            study.encode(KEY, scheduler=cluster.scheduler_address, **OPTIONS)
        killer.join()
    there = receipts(study)
    assert 5 <= killer.seen <= there < n_chunks
    [row] = study.encode(KEY, **OPTIONS)
    assert row["chunks_done_before"] == there
    assert chunks(study) == chunks(clean)
