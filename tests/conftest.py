"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides (see its README); the test skips where it is absent."""
    folder = Path(os.environ.get("SPARED_FM_TEST_DATA", SHARED_DATA))
    if not folder.is_dir():
        pytest.skip(f"real slides are not on this machine ({folder} is absent)")
    return folder


@pytest.fixture(scope="session")
def synthetic_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three small synthetic slides (about 60 spots each) with their ``study.csv``."""
    from spared_fm.slides.synthetic import generate_study

    folder = tmp_path_factory.mktemp("synthetic")
    generate_study(folder, n_slides=3, n_patients=2, spots_per_side=8, n_genes=60)
    return folder
