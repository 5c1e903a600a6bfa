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
