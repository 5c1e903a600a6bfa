"""The commands that search, as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import spared_fm
from spared_fm.cli import app
from spared_fm.study import search as searches
from spared_fm.study.api import Study
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"


def ok(store: Path, *arguments: object) -> Any:
    command = [arguments[0], "--store", store, "--encoder", ENCODER, *arguments[1:], "--json"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_search(encoded: Path, tmp_path: Path):
    study = spared_fm.open(encoded)
    spot = f"{SLIDE}/{study.slide(SLIDE).obs_names[3]}"
    np.save(tmp_path / "q.npy", study.features(SLIDE, ENCODER)[[3, 5]])
    gene = str(study.cohort_data("c").var_names[0])
    rows = ok(
        encoded,
        *("search", "--spot", spot, "--vector", tmp_path / "q.npy", "-k", 2, "--column", "array_row", "--gene", gene),
        *("--layer", "d_lognorm", "--cohort", "c", "--where", "slide=*s*", "--montage", tmp_path / "m.png"),
    )
    assert len(rows) == 6
    assert {row["query"] for row in rows} == {spot, f"{tmp_path}/q.npy[0]", f"{tmp_path}/q.npy[1]"}
    expected = study.search(
        ENCODER, spots=[spot], k=2, columns=["array_row"], genes=[gene], layer="d_lognorm", cohort="c"
    )
    assert rows[:2] == [pytest.approx(row) for row in expected.to_dict("records")]
    with Image.open(tmp_path / "m.png") as page:
        assert page.size[0] > 600
    within = ok(encoded, "search", "--spot", spot, "--radius", 0.1, "--one-per-slide", "--exclude", "slide")
    assert 1 <= len(within) <= 2
    assert ok(encoded, "search", "--spot", spot, "--metric", "l2", "--standardize", "--radius", 0.001) == []


def test_transfer(encoded: Path):
    study = spared_fm.open(encoded)
    spot = f"{SLIDE}/{study.slide(SLIDE).obs_names[3]}"
    [row] = ok(encoded, "transfer", "--spot", spot, "--label", "patient", "-k", 5, "--weighting", "uniform")
    assert row["share"] == pytest.approx(sum(hit["patient"] == row["label"] for hit in row["evidence"]) / 5)
    command = ["transfer", "--store", str(encoded), "--encoder", ENCODER, "--spot", spot, "--label", "patient"]
    shown = CliRunner().invoke(app, command).stdout
    assert row["label"] in shown
    assert row["evidence"][0]["spot"] in shown


def test_index(copy: Callable[[], Study]):
    study = copy()
    row = ok(study.layout.root, "index", "--target-recall", 0.9, "--memory", "1GB", "--metric", "l2")
    assert (row["kind"], row["rows"], row["metric"], row["target_recall"]) == ("exact", 186, "l2", 0.9)
    assert study.info()["indexes"][0]["index"] == ENCODER
    shown = CliRunner().invoke(app, ["info", "--store", str(study.layout.root)]).stdout
    assert "metric" in shown


def test_a_slow_search_is_warned_of(encoded: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searches, "EXACT_ROWS", 100)
    spot = f"{SLIDE}/{spared_fm.open(encoded).slide(SLIDE).obs_names[3]}"
    command = ["search", "--store", str(encoded), "--encoder", ENCODER, "--spot", spot, "-k", "1", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.stderr.startswith("warning: 186 rows are compared one by one; `spared-fm index")
    assert len(json.loads(result.stdout)) == 1
