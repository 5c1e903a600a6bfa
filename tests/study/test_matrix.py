from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from typer.testing import CliRunner

from spared_fm.cli import app
from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.nodes import zarr_v3
from spared_fm.store.recipe import embedding_id
from spared_fm.study import matrix, matrix_kept
from spared_fm.study.api import Study
from spared_fm.study.cohort import cohort_data, target
from spared_fm.study.evaluate import join
from spared_fm.study.matrix_cells import cells, read_matrix
from tests.study.conftest import ENCODER

Declare = Callable[..., Path]
Toy = Callable[..., Study]
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
def toy() -> Toy:
    """Give every slide an array of random vectors, whose third patch could not be read."""

    def make(study: Study, key: str, dim: int, **settings: Any) -> Study:
        for slide in study.slides:
            recipe = dataclasses.replace(EmbeddingArray(study.layout, slide, ENCODER).recipe, encoder=key)
            array = EmbeddingArray.plan(study.layout, slide, key, recipe=recipe, dim=dim, settings=settings)
            rng = np.random.default_rng(0)
            for k in range(array.n_chunks):
                rows = array.rows(k)
                absent = {2: "torn"} if 2 in rows else {}
                array.write_chunk(k, rng.normal(size=(len(rows), dim)).astype(np.float32), absent=absent, device="cpu")
        return study

    return make


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Head and target of every cell that is computed."""
    found: list[tuple[str, str]] = []
    compute = matrix.compute

    def count(root: str, name: str, cell: Any) -> str:
        found.append((cell.head, cell.target))
        return compute(root, name, cell)

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
            own = table["scored_on"] == table["target"]
            ours = table[(table["score"] == which) & (table["over"] == over) & own]
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
    layout.files.remove(f"benchmarks/b/{first[0]['cell']}.safetensors")
    matrix.run(layout, declare())
    assert len(computed) == 6
    assert matrix_kept.predictions(layout, "b", first[0]["cell"])


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
        ({"protocol": "hest_exact"}, "takes target 'hest' only, not 'lognorm'"),
        ({"protocol": "hest_exact", "targets": ["hest"], "score": "measured"}, "scores all entries"),
        ({"encoders": [f"{ENCODER}+uni"]}, "no embeddings of 'uni'"),
        ({"encoders": [f"{ENCODER}+{ENCODER}"]}, "the same embeddings twice"),
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


def test_a_completed_target_is_scored_on_what_was_measured_too(copy: Callable[[], Study], declare: Declare):
    study = copy()
    matrix.run(study.layout, declare(heads=["ridge"], targets=["d_lognorm"], score="both"))
    table = matrix.show(study.layout, "b")
    pooled = table[table["over"] == "pooled"].set_index(["scored_on", "score"])
    assert sorted(pooled.index) == [(on, which) for on in ("d_lognorm", "lognorm") for which in ("all", "measured")]
    predicted = matrix_kept.predictions(study.layout, "b", table["cell"][0])
    joined = join(study.layout, "c", ENCODER)
    assert list(predicted) == [("", unit) for unit, part in joined.split.items() if part != "train"]
    [((_, unit), values)] = predicted.items()
    assert values.dtype == np.float32
    rows, mask = joined.rows[unit], target(study.layout, "c", "mask")
    for layer in ("d_lognorm", "lognorm"):
        difference = target(study.layout, "c", layer)[rows] - values
        assert pooled["mse"][layer, "all"] == pytest.approx((difference**2).mean(), rel=1e-5)
        assert pooled["mse"][layer, "measured"] == pytest.approx((difference[mask[rows]] ** 2).mean(), rel=1e-5)
    kept = matrix_kept.receipt(study.layout, "b", table["cell"][0])
    assert kept is not None
    assert [(fold["name"], fold["split"], fold["absent"]) for fold in kept["folds"]] == [("", {unit: "test"}, {})]
    assert kept["folds"][0]["genes"] == list(study.cohort_data("c").var_names)


def test_several_encoders_stand_side_by_side(copy: Callable[[], Study], declare: Declare, toy: Toy):
    study = toy(copy(), "toy", 3)
    both = f"{ENCODER}+toy"
    alone, joined = join(study.layout, "c", ENCODER), join(study.layout, "c", both)
    assert [block.width for block in joined.blocks] == [alone.features[study.slides[0]].shape[1], 3]
    for unit, values in joined.features.items():
        absent = np.isnan(values).all(axis=1)
        assert np.flatnonzero(absent).tolist() == [2]
        np.testing.assert_array_equal(values[~absent, :-3], alone.features[unit][~absent])
    heads = ["multi-encoder", "ridge"]
    rows = matrix.run(study.layout, declare(encoders=[both], heads=heads, targets=["lognorm"]))
    assert {(row["encoder"], row["status"]) for row in rows} == {(both, "done")}
    assert len({row["pcc_gene"] for row in rows if row["over"] == "pooled"}) == 2
    kept = matrix_kept.predictions(study.layout, "b", rows[0]["cell"])
    assert all(np.flatnonzero(np.isnan(values).all(axis=1)).tolist() == [2] for values in kept.values())
    run = study.fit("c", encoder=both, head="multi-encoder")["run"]
    for slide, adata in study.predict("c", run).items():
        assert np.flatnonzero(np.isnan(adata.X).all(axis=1)).tolist() == [2], slide


def test_a_head_that_cannot_take_the_encoder_is_skipped(
    copy: Callable[[], Study], declare: Declare, computed: list[tuple[str, str]], toy: Toy, tmp_path: Path
):
    study = toy(copy(), "tokens/toy", 8, tokens=2)
    pixnet = {"name": "pixnet", "params": {"steps": 2}}
    toml = declare(encoders=[ENCODER, "tokens/toy"], heads=[pixnet, "ridge"], targets=["lognorm"])
    rows = matrix.run(study.layout, toml)
    found = {(row["encoder"], row["head"]): row for row in rows if row["over"] in (None, "pooled")}
    assert "decodes pixels" in found["tokens/toy", "pixnet"]["cached"]
    assert found[ENCODER, "ridge"]["cached"] is None
    status = {key: row["status"] for key, row in found.items()}
    assert status == {
        (ENCODER, "pixnet"): "skipped",
        (ENCODER, "ridge"): "done",
        ("tokens/toy", "pixnet"): "done",
        ("tokens/toy", "ridge"): "skipped",
    }
    assert "encode with --tokens" in found[ENCODER, "pixnet"]["error"]
    assert "grid of 2 × 2 tokens" in found["tokens/toy", "ridge"]["error"]
    with pytest.raises(InputError, match="has no predictions"):
        matrix_kept.predictions(study.layout, "b", found[ENCODER, "pixnet"]["cell"])
    store = ["--store", str(study.layout.root)]
    shown = CliRunner().invoke(app, ["benchmark", "run", str(toml), *store])
    assert shown.exit_code == 0, shown.output
    assert len(computed) == 4  # a skipped cell isn't tried again
    page = tmp_path / "page.html"
    written = CliRunner().invoke(app, ["benchmark", "report", "b", "--out", str(page), *store])
    assert written.exit_code == 0, written.output
    assert "encode with --tokens" in page.read_text()


def test_heads_get_the_counts_and_texts_that_they_read(
    copy: Callable[[], Study], declare: Declare, monkeypatch: pytest.MonkeyPatch
):
    from spared_fm.heads.models.hist2st import Hist2ST
    from spared_fm.heads.models.sgn import SGN

    layout = copy().layout
    seen: dict[str, Any] = {}
    fit = {kind: kind.fit for kind in (Hist2ST, SGN)}

    def hist2st(head: Any, *arrays: Any, counts: Any = None, **options: Any) -> Any:
        seen["counts"] = counts
        return fit[Hist2ST](head, *arrays, counts=counts, **options)

    def sgn(head: Any, *arrays: Any, **options: Any) -> Any:
        seen["text"] = head.gene_features
        return fit[SGN](head, *arrays, **options)

    monkeypatch.setattr(Hist2ST, "fit", hist2st)
    monkeypatch.setattr(SGN, "fit", sgn)
    toml = declare(heads=[{"name": name, "params": {"steps": 1}} for name in ("hist2st", "sgn")], targets=["lognorm"])
    first = [cell.id for cell in cells(layout, read_matrix(toml))]
    assert {row["status"] for row in matrix.run(layout, toml)} == {"done"}
    train = cohort_data(layout, "c").obs["split"].to_numpy() == "train"
    np.testing.assert_array_equal(seen["counts"], target(layout, "c", "counts")[train])
    assert seen["text"] is None
    text = np.arange(24, dtype=np.float32).reshape(12, 2)
    with zarr_v3():
        group = zarr.open_group(layout.files.path(f"{layout.cohort('c')}/varm"), mode="a")
        ad.io.write_elem(group, "text", text)
    second = [cell.id for cell in cells(layout, read_matrix(toml))]
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, False]
    matrix.run(layout, toml)
    np.testing.assert_array_equal(seen["text"], text)


def test_folds_of_hest(copy: Callable[[], Study], declare: Declare):
    study = copy()
    heads = ["hest-exact", "hest-corrected"]
    for protocol, taken in (("hest_exact", "hest-exact"), ("hest_corrected", "hest-corrected")):
        matrix.run(study.layout, declare(name=protocol, heads=heads, targets=["hest"], protocol=protocol))
        table = matrix.show(study.layout, protocol)
        assert dict(zip(table["head"], table["status"], strict=True)) == {
            head: "done" if head == taken else "skipped" for head in heads
        }
        done = table[table["status"] == "done"]
        pooled, mean = (done[done["over"] == over] for over in ("pooled", "fold_mean"))
        assert pooled["fold"].nunique() == len(pooled) == 2  # patients
        assert mean["fold"].isna().all()
        assert mean["pcc_gene"].item() == pytest.approx(pooled["pcc_gene"].mean())
        assert mean["n_spots"].item() == pooled["n_spots"].sum()
        assert done["label"].str.contains("leak").all() == (protocol == "hest_exact")
        predicted = matrix_kept.predictions(study.layout, protocol, done["cell"].iloc[0])
        assert sorted(unit for _, unit in predicted) == study.slides
        assert {fold for fold, _ in predicted} == set(pooled["fold"])


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


def test_parquet(copy: Callable[[], Study], declare: Declare):
    layout = copy().layout
    matrix.run(layout, declare(heads=["gene-mean"], targets=["lognorm"]))
    read = pd.read_parquet(matrix.table(layout, "b"))
    pd.testing.assert_frame_equal(read, matrix.show(layout, "b"))
    assert read["error"].isna().all()
    assert read["pcc_gene"].dtype == float
    with pytest.raises(InputError, match=r"no benchmark 'x' \(benchmarks: b\)"):
        matrix.show(layout, "x")
