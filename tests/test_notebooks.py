"""Every notebook opens as one, and runs from top to bottom as the script that it is."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.py"))
SECONDS = 600
"""On a busy machine; each is meant to take under a minute on two cores that are free."""


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_opens_as_a_notebook(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that jupytext imports
        import jupytext
    found = jupytext.read(path)
    kinds = [cell.cell_type for cell in found.cells]
    assert kinds[0] == "markdown"
    assert found.cells[0].source.startswith(f"# {int(path.stem[:2])}. ")
    assert kinds.count("markdown") >= 5
    assert kinds.count("code") >= 5
    assert found.metadata["kernelspec"]["name"] == "python3"
    assert "**synthetic**" in found.cells[0].source
    assert jupytext.writes(found, fmt="py:percent").count("# %%") == path.read_text(encoding="utf-8").count("\n# %%")


@pytest.mark.full
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "PYTHONWARNINGS": "default"}
    found = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert found.returncode == 0, found.stderr[-3000:]
    [folder] = tmp_path.glob("spared-fm-*")
    assert list(folder.glob("*.png")), "no plot was written"
