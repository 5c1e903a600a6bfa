from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spared_fm
from spared_fm.benchmark.intervals import paired_intervals
from spared_fm.errors import InputError
from spared_fm.store.layout import Layout
from spared_fm.study import matrix
from spared_fm.study.api import Study
from spared_fm.study.matrix_kept import predictions
from spared_fm.study.matrix_report import report
from spared_fm.study.matrix_truth import Place, Target
from tests.benchmark.pages import Page
from tests.study.conftest import ENCODER

TOML = f"""
name = "b"
cohorts = ["c"]
encoders = ["{ENCODER}"]
heads = ["gene-mean", "ridge", "coordinates", {{name = "knn", params = {{k = 5}}}},
         {{name = "context-ridge", params = {{hops = 1, components = 4}}}},
         {{name = "pca-ridge", params = {{components = -1}}}}]
targets = ["lognorm", "d_lognorm"]
protocol = "strict"
score = "both"
"""


@pytest.fixture(scope="module")
def kept(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A store with a kept benchmark of synthetic slides: don't change it."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "b.toml").write_text(TOML)
    layout = spared_fm.open(shutil.copytree(encoded, folder / "store")).layout
    matrix.run(layout, folder / "b.toml")
    return layout


@pytest.fixture(scope="module")
def written(kept: Layout, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Page]:
    path = tmp_path_factory.mktemp("page") / "b.html"
    found = report(kept, "b", path, n_resamples=60)
    return found, Page(path.read_text(encoding="utf-8"))


def test_the_answers_are_paired_differences_of_kept_predictions(kept: Layout, written: tuple[dict[str, Any], Page]):
    found, _ = written
    json.dumps(found, allow_nan=False)
    table = matrix.show(kept, "b")
    assert found["cells"]["done"] == 10
    cell = {(r.head, r.target): r.cell for r in table.itertuples() if r.status == "done"}
    one = Target(Place(kept, "c"), "d_lognorm", "strict")
    [fold] = one.folds
    held = one.held(fold)

    def guess(head: str, target: str) -> dict[str, np.ndarray]:
        values = predictions(kept, "b", cell[head, target])
        return {unit: values["", unit] for unit in held}

    for question, entries, head, (first, second) in [
        ("completion", "measured", "ridge", (("ridge", "d_lognorm"), ("ridge", "lognorm"))),
        ("completion", "all", 'knn', (("knn", "d_lognorm"), ("knn", "lognorm"))),
        ("context", "all", "context-ridge", (("context-ridge", "lognorm"), ("ridge", "lognorm"))),
        ("retrieval", "all", "knn", (("knn", "d_lognorm"), ("ridge", "d_lognorm"))),
    ]:  # fmt: skip
        [answer] = [
            a for a in found["answers"] if (a["question"], a["entries"], a["target"]) == (question, entries, first[1])
        ]
        assert answer["scored_on"] == "lognorm"
        [ours] = [h["differences"] for h in answer["heads"] if h["head"].split()[0] == head]
        theirs = paired_intervals(
            fold.raw, guess(*first), guess(*second), mask=fold.mask, which=entries, n_resamples=60,
            coords={u: one.place.coords[u] for u in held},
        )  # fmt: skip
        for metric in ("pcc_gene", "mse"):
            [row] = [r for r in theirs if (r["metric"], r["over"]) == (metric, "pooled")]
            for key in ("estimate", "low", "high", "unit", "n_units"):
                assert ours[metric][key] == pytest.approx(row[key]), (question, metric, key)
    heads = {h["head"] for a in found["answers"] for h in a["heads"]}
    assert not {h for h in heads if h.startswith(("gene-mean", "coordinates"))}


def test_the_page_shows_the_kept_rows(kept: Layout, written: tuple[dict[str, Any], Page]):
    _, page = written
    table = matrix.show(kept, "b")
    pooled = table[(table["over"] == "pooled") & (table["split"] == "test")]
    assert set(pooled["scored_on"]) == {"lognorm", "d_lognorm"}
    for row in pooled.itertuples():
        for value in (row.pcc_gene, row.mse, row.mae):
            assert f"{value:.3f}".replace("-", "−") in page.text
    slide = table[(table["over"] == "slide") & (table["score"] == "all") & (table["scored_on"] == table["target"])]
    for row in slide[slide["split"] == "test"].itertuples():
        assert f"{row.pcc_gene:.3f}".replace("-", "−") in page.text
    text = " ".join(page.text)
    for said in ("coordinates (leakage: coordinates only)", "gene-mean (floor)", "failed", "pca-ridge", "components",
                 "ln(1 + counts per 10⁴)", "predicted less completed target (d_lognorm)",
                 "published, not measured here"):  # fmt: skip
        assert said in text, said
    assert not page.all("script")


def test_it_needs_no_embeddings_and_no_image_but_says_what_is_gone(
    kept: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def gone(path: str) -> None:
        raise InputError(f"{path}: no such image")

    monkeypatch.setattr("spared_fm.study.reporting.open_image", gone)
    study = spared_fm.open(shutil.copytree(kept.root, tmp_path / "copy"))
    study.rm(encoder=ENCODER)
    found = report(study.layout, "b", tmp_path / "b.html", n_resamples=20)
    assert found["answers"]
    text = " ".join(Page((tmp_path / "b.html").read_text(encoding="utf-8")).text)
    assert f"no embeddings of '{ENCODER}'" in text
    assert "No maps of" in text
    assert "no such image" in text


def test_hest_folds_are_reported(copy: Callable[[], Study], tmp_path: Path):
    layout = copy().layout
    (tmp_path / "h.toml").write_text(
        f'name = "h"\ncohorts = ["c"]\nencoders = ["{ENCODER}"]\nheads = ["ridge", "knn"]\n'
        'targets = ["hest"]\nprotocol = "hest_corrected"\n'
    )
    matrix.run(layout, tmp_path / "h.toml")
    found = report(layout, "h", tmp_path / "h.html", n_resamples=20)
    text = " ".join(Page((tmp_path / "h.html").read_text(encoding="utf-8")).text)
    assert [a["question"] for a in found["answers"]] == ["retrieval"]
    assert "ln(1 + count)" in text
    assert "Mean of 2 folds" in text


def test_what_cannot_be_reported_is_said(kept: Layout, tmp_path: Path):
    with pytest.raises(InputError, match="no benchmark 'x'"):
        report(kept, "x", tmp_path / "x.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        report(kept, "b", tmp_path / "file" / "x.html", genes_shown=0, n_resamples=20)
