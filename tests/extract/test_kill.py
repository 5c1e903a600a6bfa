"""`kill -9` in the middle of `encode`: nothing lost but the running chunks, nothing wrong, the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.study.api import Study

SLIDE = "synthetic_p1_s1"
ONE = ("stain-bank",)
TWO = ("stain-bank", "timm:mobilenetv3_small_100")
OPTIONS = {"chunk_rows": 2, "batch_size": 2, "threads": 1}


def kill_in_the_middle(
    study: Study, encoders: tuple[str, ...], n_receipts: int, rng: np.random.Generator, workers: int
) -> int:
    """Start the real command, kill its whole process group at a random instant; return how many receipts there were."""
    wanted = int(rng.integers(0, n_receipts))
    command = [sys.executable, "-m", "spared_fm", "encode", "--store", str(study.layout.root)]
    command += [f"--encoder={name}" for name in encoders] + [f"--workers={workers}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and count(study) < wanted:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.1)) if wanted else float(rng.uniform(0, 5)))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return count(study)


def count(study: Study) -> int:
    """Receipts of all arrays of the slide."""
    return len(list(study.layout.files.path(study.layout.slide(SLIDE)).glob("obsm/*/receipts/*.json")))


def tree(study: Study) -> dict[str, bytes]:
    folder = study.layout.files.path(study.layout.slide(SLIDE)) / "obsm"
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.parent.name not in ("receipts", "claims")
    }


def check_what_is_there(study: Study, references: dict[str, np.ndarray]) -> None:
    """Rows with a receipt are right, rows without are refused."""
    for key in study.layout.embeddings(SLIDE):
        array = EmbeddingArray(study.layout, SLIDE, key)
        missing = set(array.missing())
        for k in range(array.n_chunks):
            rows = np.array(array.rows(k))
            if k in missing:
                with pytest.raises(IncompleteError):
                    array.read(rows)
            else:
                np.testing.assert_array_equal(array.read(rows), references[key][rows])


def run_trials(make_study: Callable[..., Study], encoders: tuple[str, ...], trials: int, seed: int) -> None:
    clean = make_study("clean")
    keys = [row["key"] for row in clean.encode(encoders, **OPTIONS)]
    references, expected = {key: clean.features(SLIDE, key) for key in keys}, tree(clean)
    assert all(np.isfinite(values).all() and values.any() for values in references.values())
    n_receipts = count(clean)
    assert n_receipts == len(encoders) * -(-clean.slide(SLIDE).n_obs // OPTIONS["chunk_rows"])
    rng = np.random.default_rng(seed)
    in_the_middle = 0
    for trial in range(trials):
        study = make_study(f"trial{trial}")
        there = kill_in_the_middle(study, encoders, n_receipts, rng, workers=2 if trial % 5 == 4 else 0)
        in_the_middle += 0 < there < n_receipts
        check_what_is_there(study, references)
        rows = study.encode(encoders, **OPTIONS)
        assert rows[0]["chunks_done_before"] == there
        assert tree(study) == expected
    print(f"{in_the_middle} of {trials} kills fell between the first and the last receipt")
    assert in_the_middle >= trials / 2


def test_two_kills(make_study: Callable[..., Study]):
    run_trials(make_study, ONE, 2, seed=4)


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("encoders", [ONE, TWO], ids=["one-encoder", "two-encoders"])
def test_ten_kills(make_study: Callable[..., Study], encoders: tuple[str, ...]):
    run_trials(make_study, encoders, 10, seed=0)
