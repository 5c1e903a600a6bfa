"""`kill -9` in the middle of `encode`: nothing lost but the running chunks, nothing wrong, the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.study.api import Study

SLIDE, KEY = "synthetic_p1_s1", "stain-bank"
OPTIONS = {"chunk_rows": 2, "batch_size": 2, "threads": 1}


def kill_in_the_middle(study: Study, rng: np.random.Generator, workers: int) -> int:
    """Start the real command, kill its whole process group at a random instant; return how many receipts there were."""
    receipts = study.layout.files.path(study.layout.embedding(SLIDE, KEY)) / "receipts"
    n_chunks = -(-study.slide(SLIDE).n_obs // OPTIONS["chunk_rows"])
    wanted = int(rng.integers(0, n_chunks))
    command = [sys.executable, "-m", "spared_fm", "encode", "--store", str(study.layout.root), "--encoder", KEY]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()] + [f"--workers={workers}"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and count(receipts) < wanted:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.1)) if wanted else float(rng.uniform(0, 5)))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return count(receipts)


def count(folder: Path) -> int:
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def tree(study: Study) -> dict[str, bytes]:
    folder = study.layout.files.path(study.layout.embedding(SLIDE, KEY))
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.parent.name not in ("receipts", "claims")
    }


def check_what_is_there(study: Study, reference: np.ndarray) -> None:
    """Rows with a receipt are right, rows without are refused."""
    if not study.layout.embeddings(SLIDE):
        return
    array = EmbeddingArray(study.layout, SLIDE, KEY)
    missing = set(array.missing())
    for k in range(array.n_chunks):
        rows = np.array(array.rows(k))
        if k in missing:
            with pytest.raises(IncompleteError):
                array.read(rows)
        else:
            np.testing.assert_array_equal(array.read(rows), reference[rows])


def run_trials(make_study: Callable[..., Study], trials: int, seed: int) -> None:
    clean = make_study("clean")
    clean.encode(KEY, **OPTIONS)
    reference, expected = clean.features(SLIDE, KEY), tree(clean)
    n_chunks = -(-len(reference) // OPTIONS["chunk_rows"])
    rng = np.random.default_rng(seed)
    in_the_middle = 0
    for trial in range(trials):
        study = make_study(f"trial{trial}")
        there = kill_in_the_middle(study, rng, workers=2 if trial % 5 == 4 else 0)
        in_the_middle += 0 < there < n_chunks
        check_what_is_there(study, reference)
        [row] = study.encode(KEY, **OPTIONS)
        assert row["chunks_done_before"] == there
        assert tree(study) == expected
    print(f"{in_the_middle} of {trials} kills fell between the first and the last receipt")
    assert in_the_middle >= trials / 2


def test_two_kills(make_study: Callable[..., Study]):
    run_trials(make_study, 2, seed=4)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_twenty_kills(make_study: Callable[..., Study]):
    run_trials(make_study, 20, seed=0)
