"""A store with one small slide, and a fast stand-in for the work of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import spared_fm
from spared_fm.study.api import Study


@pytest.fixture
def make_study(tmp_path: Path, synthetic_slides: Path) -> Callable[..., Study]:
    def make(name: str = "store") -> Study:
        study = spared_fm.open(tmp_path / name, create=True)
        study.ingest(synthetic_slides / "synthetic_p1_s1")
        return study

    return make
