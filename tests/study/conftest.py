"""One encoded study with a cohort, shared by the read-only tests; a fresh one for those that change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import spared_fm
from spared_fm.study.api import Study

ENCODER = "stain-bank"


def ingest_all(study: Study, slides: Path) -> None:
    for row in pd.read_csv(slides / "study.csv", dtype=str).itertuples():
        study.ingest(slides / row.path, patient=row.patient, split=row.split)


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory, synthetic_slides: Path) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "store"
    study = spared_fm.open(folder, create=True)
    ingest_all(study, synthetic_slides)
    study.encode(ENCODER, chunk_rows=16, threads=1)
    study.cohort("c", n_genes=12)
    study.complete("c")
    return folder


@pytest.fixture
def study(encoded: Path) -> Study:
    """The shared study: don't change it."""
    return spared_fm.open(encoded)


@pytest.fixture
def copy(encoded: Path, tmp_path: Path) -> Callable[[], Study]:
    def make() -> Study:
        return spared_fm.open(shutil.copytree(encoded, tmp_path / "copy"))

    return make
