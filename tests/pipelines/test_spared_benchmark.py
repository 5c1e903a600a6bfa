"""`pipelines/spared_benchmark.py` over two small SYNTHETIC data sets, on local processes and on a real SLURM of one node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.targets.datasets import datasets
from spared_fm.targets.genes import gene_lengths
from tests.pipelines.conftest import PIPELINES
from tests.pipelines.slurm import Slurm

ONE, TWO, THREE = "synthetic_p1_s1", "synthetic_p1_s2", "synthetic_p2_s3"
LOCAL = (
    '[cluster]\nkind = "local"\nmax_workers = 1\ncores = 1\nmemory = "4GB"\n[encode]\nchunk_rows = 16\nthreads = 1\n'
)
MATRIX = """
name = "small"
protocol = "strict"
cohorts = ["one", "TWO", "gone", "far"]
encoders = ["stain-bank"]
targets = ["log1p", "g_log1p"]
heads = ["gene-mean", {name = "ridge", params = {standardize = "none", alphas = [1.0, 10.0]}}]
score = "both"
"""
SPARED = """
[parameters]
cell_max_counts = 1_000_000
gene_min_counts = 1
gene_max_counts = 1_000_000
real_data_percentage = 0.7
wildcard_genes = "None"
hex_geometry = true
"""
DATASET = """
[dataset.{name}]
abbreviation = "{short}"
organism = "human"
tissue = "none"
train = ["{train}"]
val = ["{val}"]
test = {test}
genes = 6
combat_key = "slide_id"
cell_min_counts = 1
patients = {patients}
patient_from = "{rule}"
spots = 1
missing = 1
missing_raw = 1
incomplete_spots = 1
sources = ["https://example.org"]
"""


@pytest.fixture
def arguments(tmp_path: Path, synthetic_slides: Path) -> Callable[..., list[str]]:
    """Write the files of a run, and give its command line.

    "gone" is a data set of which a slide is not there, "far" is none; genes are called what human ones are.
    """
    names = gene_lengths("human").index
    for name, slides in (("one", (ONE, TWO, THREE)), ("TWO", (TWO, THREE)), ("gone", (ONE,))):
        for slide in slides:
            shutil.copytree(synthetic_slides / slide, tmp_path / "data" / name / slide)
            counts = tmp_path / "data" / name / slide / "counts.h5ad"
            adata = ad.read_h5ad(counts)
            adata.var_names = names[: adata.n_vars]
            adata.write_h5ad(counts)
    sets = [
        DATASET.format(name="one", short="O", train=ONE, val=TWO, test=f'["{THREE}"]', patients=1, rule="prefix"),
        DATASET.format(name="second", short="Two", train=TWO, val=THREE, test="[]", patients=1, rule="prefix"),
        DATASET.format(name="gone", short="G", train=ONE, val="lost_a", test='["lost_b"]', patients=3, rule="suffix"),
    ]
    (tmp_path / "registry.toml").write_text(SPARED + "".join(sets))
    (tmp_path / "matrix.toml").write_text(MATRIX)

    def line(*more: str, cluster: str = LOCAL, matrix: str = MATRIX) -> list[str]:
        (tmp_path / "cluster.toml").write_text(cluster)
        (tmp_path / "matrix.toml").write_text(matrix)
        files = {"config": "cluster.toml", "benchmark": "matrix.toml", "datasets": "registry.toml"}
        files |= {"data": "data", "store": "store"}
        return [f"--{option}={tmp_path / name}" for option, name in files.items()] + list(more)

    return line


def called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    from spared_benchmark import main

    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    from spared_benchmark import main

    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.strip().splitlines()
    return line


def check(rows: list[dict[str, Any]], store: Path) -> None:
    """Two cohorts are ready, two are left out with their reason, and every cell of the two is done."""
    *cohorts, benchmark = rows
    assert [(row["cohort"], row["status"]) for row in cohorts] == [
        ("one", "ready"),
        ("TWO", "ready"),
        ("gone", "skipped"),
        ("far", "skipped"),
    ]
    assert cohorts[2]["reason"].startswith("2 of 3 slides are not in ")
    assert benchmark == {"benchmark": "small", "cells": 8, "done": 8}  # 2 cohorts, 2 targets, 2 heads
    study = spared_fm.open(store)
    assert study.cohorts == ["TWO", "one"]
    shown = study.show_benchmark("small")
    assert set(shown["cohort"]) == {"one", "TWO"}
    assert set(shown["target"]) == {"log1p", "g_log1p"}
    assert {json.loads(text).get("standardize") for text in shown["params"]} == {None, "none"}
    info = {row["cohort"]: row for row in study.info()["cohorts"]}
    assert info["one"]["split"] == {ONE: "train", TWO: "val", THREE: "test"}
    assert info["TWO"]["split"] == {TWO: "train", THREE: "val"}
    assert info["one"]["genes"] == 6


def test_a_dry_run_says_what_would_be_done(arguments: Callable[..., list[str]], capsys, tmp_path: Path):
    rows = called(arguments("--dry-run"), capsys)
    assert [(row["cohort"], row["status"]) for row in rows] == [
        ("one", "to make"),
        ("TWO", "to make"),
        ("gone", "skipped"),
        ("far", "skipped"),
    ]
    assert rows[0]["ingest"] == [ONE, TWO, THREE]
    assert rows[0]["encoders"] == ["stain-bank"]
    assert rows[0]["complete"] is None
    assert rows[2]["reason"] == f"2 of 3 slides are not in {tmp_path / 'data' / 'gone'}: lost_a, lost_b"
    assert rows[3]["reason"] == "neither a data set of SpaRED's nor a cohort of the store"
    assert not (tmp_path / "store").exists()


def test_what_can_not_be_had_is_one_line(arguments: Callable[..., list[str]], capsys, tmp_path: Path):
    nothing = MATRIX.replace('"one", "TWO", ', "")
    assert "none of the 2 cohorts can be used; gone: 2 of 3 slides" in refused(arguments(matrix=nothing), capsys)
    tokens = MATRIX.replace('"stain-bank"', '"stain-bank+tokens/resnet18"')
    assert "tokens/resnet18 is a token grid" in refused(arguments("--dry-run", matrix=tokens), capsys)
    assert "no key 'gpus'" in refused(arguments("--dry-run", cluster=LOCAL + "gpus = 1\n"), capsys)
    assert "unknown" in refused(arguments("--dry-run", matrix=MATRIX + "more = 1\n"), capsys)


def test_targets_are_built_or_completed():
    from spared_benchmark import completions

    layers = ["lognorm", "mask", "counts", "log1p", "c_log1p", "d_log1p"]
    assert completions(["d_log1p", "lognorm"], layers) == {}
    assert completions(["lr_lognorm", "c_t_log1p"], layers) == {
        "lr_lognorm": ("low-rank-gaussian", "lognorm"),
        "c_t_log1p": ("spackle", "c_log1p"),
    }
    with pytest.raises(InputError, match="no layer 'c_t_log1p', nor a completion"):
        completions(["c_t_log1p"], ["lognorm", "log1p"])


def test_the_reduced_declaration_says_the_same():
    from spared_benchmark import _toml

    declared = tomllib.loads(MATRIX) | {"text": 'µ "quoted" \\ line\nbreak', "flag": True, "number": 1e-7, "none": []}
    assert tomllib.loads("".join(f"{key} = {_toml(value)}\n" for key, value in declared.items())) == declared


def test_the_example_names_every_data_set():
    from spared_fm.heads.registry import make
    from spared_fm.study.matrix_cells import read_matrix

    matrix = read_matrix(PIPELINES / "spared_benchmark.toml")
    assert set(matrix.cohorts) == set(datasets())
    assert all(make(name, **params) for name, params in matrix.heads)


@pytest.mark.full
def test_on_local_processes_and_again(arguments: Callable[..., list[str]], capsys, tmp_path: Path):
    """The second run finds all of it done; a data set that came meanwhile would be taken in."""
    check(called(arguments(), capsys), tmp_path / "store")
    kept = {path: path.read_bytes() for path in (tmp_path / "store" / "benchmarks" / "small").glob("*.json")}
    rows = called(arguments("--dry-run"), capsys)
    assert [row["status"] for row in rows] == ["there", "there", "skipped", "skipped"]
    assert rows[0]["ingest"] == rows[0]["complete"] == []
    check(called(arguments(), capsys), tmp_path / "store")
    assert all(path.read_bytes() == data for path, data in kept.items())
    other = MATRIX.replace("strict", "spared")
    assert "it is in the store in mode strict, not spared" in refused(arguments(matrix=other), capsys)


@pytest.mark.full
def test_on_slurm(slurm: Slurm, arguments: Callable[..., list[str]], tmp_path: Path):
    pytest.importorskip("dask_jobqueue")
    pytest.importorskip("cryptography")
    cluster = LOCAL.replace("local", "slurm").replace("[encode]", 'host = "127.0.0.1"\nfirst_worker = "2m"\n[encode]')
    folders = "".join(f'{key} = "{tmp_path / key}"\n' for key in ("log_directory", "scratch", "key_directory"))
    cluster += f'[slurm]\npartition = "debug"\nwalltime = "00:20:00"\n{folders}'
    command = [sys.executable, str(PIPELINES / "spared_benchmark.py"), *arguments(cluster=cluster)]
    done = subprocess.run(
        command, env=slurm.environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    check([json.loads(line) for line in done.stdout.splitlines()], tmp_path / "store")
    assert len(list((tmp_path / "log_directory").glob("*.err"))) >= 2  # a job that encodes, one that computes cells
    assert list((tmp_path / "key_directory").iterdir()) == []
