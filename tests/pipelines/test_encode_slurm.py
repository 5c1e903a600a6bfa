"""`pipelines/encode_cluster.py` on a real SLURM of one node: the bytes of an in-process run, also when jobs are cancelled."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.study.api import Study
from tests.pipelines.conftest import PIPELINES
from tests.pipelines.slurm import Slurm

pytestmark = pytest.mark.full
pytest.importorskip("dask_jobqueue")
pytest.importorskip("cryptography")

SLIDE, KEY = "synthetic_p1_s1", "stain-bank"
PATIENCE = 240.0

CONFIG = """
[cluster]
kind = "slurm"
min_workers = 2
max_workers = 2
cores = 1
memory = "2GB"
lifetime = "10m"
lifetime_stagger = "1m"
first_worker = "2m"
host = "127.0.0.1"

[slurm]
partition = "{partition}"
directives = []
walltime = "00:20:00"
log_directory = "{folder}/logs"
scratch = "{folder}/scratch"
key_directory = "{folder}/keys"

[encode]
encoders = ["stain-bank"]
chunk_rows = 2
batch_size = 2
"""


def receipts(study: Study) -> int:
    folder = Path(study.layout.root) / study.layout.embedding(SLIDE, KEY) / "receipts"
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def chunks(study: Study) -> dict[str, bytes]:
    folder = Path(study.layout.root) / study.layout.embedding(SLIDE, KEY) / "c"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def script(slurm: Slurm, folder: Path, study: Study, partition: str = "debug", **changes: str) -> subprocess.Popen:
    folder.mkdir()
    config = folder / "slurm.toml"
    text = CONFIG.format(folder=folder, partition=partition)
    for key, value in changes.items():
        text = re.sub(f"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    config.write_text(text)
    command = [
        sys.executable,
        str(PIPELINES / "encode_cluster.py"),
        f"--config={config}",
        f"--store={study.layout.root}",
    ]
    return subprocess.Popen(
        command, env=slurm.environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, seconds: float) -> tuple[str, str]:
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it cancels its jobs
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        pytest.fail(f"not done within {seconds:.0f} s: {out} {err}")


@pytest.fixture
def clean(make_study: Callable[[str], Study]) -> dict[str, bytes]:
    study = make_study("clean")
    study.encode(KEY, chunk_rows=2, batch_size=2, threads=1)
    return chunks(study)


@pytest.mark.parametrize("n_cancelled", [0, 1, 2])
def test_two_jobs(
    slurm: Slurm, make_study: Callable[[str], Study], clean: dict[str, bytes], tmp_path: Path, n_cancelled: int
):
    study = make_study("store")
    process = script(slurm, tmp_path / "run", study)
    seen: dict[str, int] = {}

    def cancel() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            if receipts(study) >= 4 and len(running := slurm.jobs()) == 2:
                for job in running[:n_cancelled]:
                    slurm.call("scancel", "--signal=KILL", "--full", job)
                seen.update(jobs=len(running), receipts=receipts(study))
                return
            time.sleep(0.01)

    canceller = threading.Thread(target=cancel, daemon=True)
    canceller.start()
    out, err = finish(process, PATIENCE)
    canceller.join()
    assert process.returncode == 0, err
    assert seen["jobs"] == 2
    assert seen["receipts"] < len(clean)
    assert chunks(study) == clean
    assert json.loads(out)["key"] == KEY
    logs = list((tmp_path / "run" / "logs").glob("*.err"))
    assert len(logs) >= (
        3 if n_cancelled == 2 else 2
    )  # a job that ran left a log; with both gone others must have come
    assert any("tls://127.0.0.1" in log.read_text() for log in logs)
    assert list((tmp_path / "run" / "keys").iterdir()) == []
    deadline = time.monotonic() + 30
    while slurm.call("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert slurm.call("squeue", "--noheader") == ""  # no job stays behind


def test_a_partition_that_is_not_there(slurm: Slurm, make_study: Callable[[str], Study], tmp_path: Path):
    process = script(slurm, tmp_path / "run", make_study("store"), partition="nosuch")
    out, err = finish(process, 60)
    assert process.returncode == 1
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: sbatch does not take the job: ")
    assert "invalid partition specified: nosuch" in err
    assert slurm.call("squeue", "--noheader") == ""


def test_a_job_that_never_starts(slurm: Slurm, make_study: Callable[[str], Study], tmp_path: Path):
    process = script(slurm, tmp_path / "run", make_study("store"), directives='["--hold"]', first_worker='"3s"')
    out, err = finish(process, 60)
    assert process.returncode == 1
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: no worker came up within 3s")
    assert f"{tmp_path}/run/logs" in err
    assert slurm.call("squeue", "--noheader") == ""
