from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.recipe import embedding_id
from spared_fm.study import matrix
from spared_fm.study.api import Study
from spared_fm.study.matrix_cells import cells, read_matrix
from tests.study.conftest import ENCODER

Declare = Callable[..., Path]
RIDGE: dict[str, Any] = {"name": "ridge", "params": {"alphas": [1.0, 10.0]}}


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """Write a declaration; fields given replace those it has, None takes one out."""

    def make(**changed: Any) -> Path:
        fields: dict[str, Any] = {
            "name": "b",
            "cohorts": ["c"],
            "encoders": [ENCODER],
            "heads": ["gene-mean", RIDGE],
            "targets": ["lognorm", "d_lognorm"],
            "protocol": "strict",
        }
        path = tmp_path / "b.toml"
        fields = {key: value for key, value in (fields | changed).items() if value is not None}
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in fields.items()))
        return path

    return make


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Head and target of every cell that is computed."""
    found: list[tuple[str, str]] = []
    compute = matrix.compute

    def count(root: str, cell: Any, key: str) -> str | None:
        found.append((cell.head, cell.target))
        return compute(root, cell, key)

    monkeypatch.setattr(matrix, "compute", count)
    return found


def test_scores_are_those_of_the_benchmark_verb(copy: Callable[[], Study], declare: Declare):
    study = copy()
    rows = matrix.run(study.layout, declare(heads=["gene-mean", "ridge"], score="both"))
    json.dumps(rows, allow_nan=False)
    table = matrix.show(study.layout, "b")
    assert set(table["status"]) == {"done"}
    for which in ("all", "measured"):
        other = study.benchmark(
            "c", encoders=[ENCODER], heads=["gene-mean", "ridge"], targets=["lognorm", "d_lognorm"], score=which
        )
        for over, whole in (("pooled", True), ("slide", False)):
            ours = table[(table["score"] == which) & (table["over"] == over)]
            theirs = other[other["slide"].isna() == whole]
            keys = ["pcc_gene", "pcc_patch", "mse", "mae", "r2_gene", "n_spots"]
            merged = ours.merge(theirs, on=["encoder", "head", "target", "split"], suffixes=("", "_their"))
            assert len(merged) == len(ours) == len(theirs) == 4
            for key in keys:
                np.testing.assert_allclose(
                    merged[key].astype(float), merged[f"{key}_their"].astype(float), rtol=1e-6, atol=1e-9, err_msg=key
                )


def test_a_second_run_computes_only_what_changed(
    copy: Callable[[], Study], declare: Declare, computed: list[tuple[str, str]]
):
    layout = copy().layout
    first = matrix.run(layout, declare())
    assert len(computed) == 4
    assert matrix.run(layout, declare()) == first
    assert {row["score"] for row in matrix.run(layout, declare(score="both"))} == {"all", "measured"}
    assert len(computed) == 4
    changed = {"name": "ridge", "params": {"alphas": [1.0, 11.0]}}
    matrix.run(layout, declare(heads=["gene-mean", RIDGE, changed], targets=["lognorm"]))
    assert computed[4:] == [("ridge", "lognorm")]
    shown = matrix.show(layout, "b")
    assert set(shown["target"]) == {"lognorm"}  # what is no longer declared is not shown
    assert shown["cell"].nunique() == 3
    assert matrix.run(layout, declare()) == first  # and is still kept
    assert len(computed) == 5


def test_other_inputs_are_other_cells(copy: Callable[[], Study], declare: Declare, monkeypatch: pytest.MonkeyPatch):
    study = copy()
    layout = study.layout

    def ids() -> dict[tuple[str, str], str]:
        return {(cell.head, cell.target): cell.id for cell in cells(layout, read_matrix(declare()))}

    def change_card(**fields: Any) -> None:
        def change(record: dict[str, Any]) -> dict[str, Any]:
            record["layers"]["d_lognorm"] |= fields
            return record

        layout.update_attributes(layout.cohort("c"), change)

    first = ids()
    change_card(scores=[{"method": "median", "mse": 1.0}])
    assert ids() == first  # how well it does is no part of what it is
    change_card(fit_id="another fit")
    completed = ids()
    assert {key for key in first if first[key] != completed[key]} == {key for key in first if key[1] == "d_lognorm"}
    for slide in study.slides:
        record = slide_record(layout, slide)
        identity = embedding_id("another", record["fingerprint"], record["spots_digest"])
        layout.update_attributes(
            layout.embedding(slide, ENCODER),
            lambda known, i=identity: known | {"recipe_id": "another", "embedding_id": i},
        )
    encoded = ids()
    assert not set(encoded.values()) & set(completed.values())
    monkeypatch.setattr("spared_fm.__version__", "999.0")
    assert not set(ids().values()) & set(encoded.values())


def test_seeds_are_for_heads_that_have_one(study: Study, declare: Declare):
    heads = ["ridge", {"name": "mlp", "params": {"steps": 5}}]
    found = cells(study.layout, read_matrix(declare(heads=heads, targets=["lognorm"], seeds=[0, 1])))
    assert [(cell.head, cell.seed) for cell in found] == [("ridge", None), ("mlp", 0), ("mlp", 1)]
    assert len({cell.id for cell in found}) == 3
    assert cells(study.layout, read_matrix(declare(heads=heads * 2, targets=["lognorm"], seeds=[0, 1]))) == found


def test_a_cell_that_fails_is_kept_with_its_reason_and_tried_again(
    copy: Callable[[], Study], declare: Declare, computed: list[tuple[str, str]]
):
    layout = copy().layout
    bad = {"name": "ridge", "params": {"alphas": [-1.0]}}
    toml = declare(heads=[bad, "gene-mean"], targets=["lognorm"])
    rows = matrix.run(layout, toml)
    assert [row["status"] for row in rows if row["over"] in (None, "pooled")] == ["failed", "done"]
    assert "alpha" in rows[0]["error"]
    assert "\n" not in rows[0]["error"]
    assert rows[0]["pcc_gene"] is None
    assert matrix.show(layout, "b")["pcc_gene"].dtype == float
    matrix.run(layout, toml)
    assert computed == [("ridge", "lognorm"), ("gene-mean", "lognorm"), ("ridge", "lognorm")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cohorts": ["c", "nobody"]}, "no cohort 'nobody'"),
        ({"encoders": [ENCODER, "uni"]}, "no embeddings of 'uni'"),
        ({"heads": ["gene-mean", "rigde"]}, "unknown head 'rigde'"),
        ({"heads": ["gene-mean", {"name": "ridge", "params": {"alpha": 1}}]}, "alpha"),
        ({"heads": [{"name": "mlp", "params": {"seed": 1}}]}, "give it in seeds"),
        ({"heads": [{"name": "ridge", "parms": {}}]}, "head 1: unknown field 'parms'; did you mean 'params'"),
        ({"targets": ["lognorm", "tpm9"]}, "no layer 'tpm9'"),
        ({"protocol": "spared"}, "built in mode strict, not spared"),
        ({"protocol": None}, "'protocol' is missing"),
        ({"score": "some"}, "score is 'some'"),
        ({"seeds": [-1]}, "seeds"),
        ({"name": "a/b"}, "benchmark name 'a/b'"),
        ({"cohort": ["c"]}, "did you mean 'cohorts'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    study: Study, declare: Declare, computed: list[Any], changed: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        matrix.run(study.layout, declare(**changed))
    assert computed == []
    assert study.layout.files.list("benchmarks") == []


def test_a_killed_run_goes_on(copy: Callable[[], Study], declare: Declare, computed: list[tuple[str, str]]):
    layout = copy().layout
    toml = declare()
    code = (
        "import os, signal, sys\nimport spared_fm\nfrom spared_fm.study import matrix\n"
        "compute, done = matrix.compute, []\n"
        "def killed(*cell):\n"
        "    if len(done) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(compute(*cell))\n"
        "matrix.compute = killed\n"
        "matrix.run(spared_fm.open(sys.argv[1]).layout, sys.argv[2])\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(layout.root), str(toml)], check=False, capture_output=True)
    assert died.returncode == -9, died.stderr
    assert list(matrix.show(layout, "b").drop_duplicates("cell")["status"]) == ["done"] * 3 + ["waiting"]
    rows = matrix.run(layout, toml)
    assert computed == [("ridge", "d_lognorm")]
    assert {row["status"] for row in rows} == {"done"}


@pytest.mark.full
def test_workers_give_the_same_rows(copy: Callable[[], Study], declare: Declare):
    layout = copy().layout
    bad = {"name": "ridge", "params": {"alphas": [-1.0]}}
    alone = declare(heads=["gene-mean", RIDGE, bad], targets=["lognorm"])
    matrix.run(layout, alone)
    many = declare(heads=["gene-mean", RIDGE, bad], targets=["lognorm"], name="many")
    matrix.run(layout, many, workers=2)
    pd.testing.assert_frame_equal(
        matrix.show(layout, "many").drop(columns="seconds"), matrix.show(layout, "b").drop(columns="seconds"), rtol=1e-6
    )


def test_parquet(copy: Callable[[], Study], declare: Declare, monkeypatch: pytest.MonkeyPatch):
    layout = copy().layout
    matrix.run(layout, declare(heads=["gene-mean"], targets=["lognorm"]))
    read = pd.read_parquet(matrix.table(layout, "b"))
    pd.testing.assert_frame_equal(read, matrix.show(layout, "b"))
    assert read["error"].isna().all()
    assert read["pcc_gene"].dtype == float
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow"):
        matrix.table(layout, "b")
    with pytest.raises(InputError, match=r"no benchmark 'x' \(benchmarks: b\)"):
        matrix.show(layout, "x")
