"""One encoded synthetic study with a cohort, a completed layer and a head, behind the application."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fastapi.testclient import TestClient

import spared_fm
from spared_fm.explore.app import create_app
from spared_fm.study.api import Study

ENCODER = "stain-bank"
HOST = "http://127.0.0.1:8765"


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, synthetic_slides: Path) -> Study:
    """Don't change it."""
    study = spared_fm.open(tmp_path_factory.mktemp("shown") / "store", create=True)
    for row in pd.read_csv(synthetic_slides / "study.csv", dtype=str).itertuples():
        study.ingest(synthetic_slides / row.path, patient=row.patient, split=row.split)
    study.encode(ENCODER, chunk_rows=16, threads=1)
    study.cohort("c", n_genes=12)
    study.complete("c")
    study.complete("c", method="low-rank-gaussian")  # one that says how sure it is
    study.fit("c", encoder=ENCODER, target_layer="lognorm", head="ridge")
    return study


@pytest.fixture(scope="session")
def client(shown: Study) -> TestClient:
    return TestClient(create_app(shown.layout.root), base_url=HOST, raise_server_exceptions=False)
