"""The scripts of ``pipelines/`` import each other as a script's folder lets them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import spared_fm
from spared_fm.study.api import Study
from tests.pipelines.slurm import Slurm, start_slurm

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))


@pytest.fixture
def make_study(tmp_path: Path, synthetic_slides: Path) -> Callable[[str], Study]:
    def make(name: str) -> Study:
        study = spared_fm.open(tmp_path / name, create=True)
        study.ingest(synthetic_slides / "synthetic_p1_s1")
        return study

    return make


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real SLURM of one node, with daemons of its own; the test skips where it can't be had."""
    with start_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running
