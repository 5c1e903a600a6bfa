"""The command line as a user meets it: real processes, exit codes, one line on standard error."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spared_fm import cli
from spared_fm.cli import app
from spared_fm.encoders.golden import SHIPPED, load

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spared_fm", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}
    )


def fails(result: subprocess.CompletedProcess[str], pattern: str, *, told: bool = False) -> None:
    assert result.returncode == 1, result
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert "internal error" not in lines[-1]
    assert "Traceback" not in result.stderr
    assert re.search(pattern, lines[-1]), lines[-1]
    assert told or result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert result.exit_code == 0
    assert f"Example: spared-fm {command}" in result.output.replace("`", "")


def test_the_encoders(tmp_path: Path):
    runner = CliRunner()
    for arguments in (["encoders", "--help"], ["encoders", "verify", "--help"]):
        result = runner.invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb"})
        assert f"Example: spared-fm {' '.join(arguments[:-1])}" in result.output.replace("`", "")
    rows = json.loads(runner.invoke(app, ["encoders", "--name", "virchow*", "--json"]).stdout)
    assert {row["name"] for row in rows} == {"virchow", "virchow-cls", "virchow2", "virchow2-cls"}
    found = json.loads(runner.invoke(app, ["encoders", "verify", "stain-bank", "--json"]).stdout)
    assert found["status"] == "same"
    golden = load(SHIPPED)["stain-bank"]
    golden[0]["vectors"] = base64.b64encode(np.ones(560, "<f4").tobytes()).decode()
    (tmp_path / "golden.json").write_text(json.dumps({"stain-bank": golden}))
    fails(run("encoders", "verify", "stain-bank", "--golden", tmp_path / "golden.json"), "golden vector", told=True)


def test_the_data_sets():
    runner = CliRunner()
    for arguments in (["datasets", "--help"], ["datasets", "check", "--help"]):
        result = runner.invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb"})
        assert f"Example: spared-fm {' '.join(arguments[:-1])}" in result.output.replace("`", "")
    rows = json.loads(runner.invoke(app, ["datasets", "--name", "vicari*", "--json"]).stdout)
    assert {row["name"] for row in rows} == {"vicari_mouse_brain", "vicari_human_striatium"}
    assert runner.invoke(app, ["datasets"]).exit_code == 0


def test_usage_errors_exit_with_2(tmp_path: Path):
    assert run("encode").returncode == 2
    assert run("moon").returncode == 2
    assert run("ingest", tmp_path, "--store", tmp_path / "s", "--mpp", "x").returncode == 2
    assert run("--version").stdout.startswith("spared-fm ")


def test_the_whole_job(tmp_path: Path, synthetic_slides: Path):
    store = tmp_path / "S"

    def ok(*arguments: object) -> object:
        result = run(*arguments, "--store", store, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    for slide, split in (("synthetic_p1_s1", "train"), ("synthetic_p1_s2", "train"), ("synthetic_p2_s3", "test")):
        [row] = ok("ingest", synthetic_slides / slide, "--split", split)
        assert row["slide"] == slide
    [row] = ok("encode", "--encoder", "stain-bank", "--chunk-rows", 16, "--threads", 1)
    assert row["key"] == "stain-bank"
    assert (store / "data.zarr/slides/synthetic_p1_s1/obsm/stain-bank/c/0/0").is_file()
    assert ok("cohort", "--name", "C", "--genes", 12, "--panel", "variance")["genes"] == 12
    assert ok("complete", "--cohort", "C", "--method", "adaptive-median")["layer"] == "d_lognorm"
    methods = ("--method", "neighbor-mean", "--method", "low-rank-gaussian")
    rows = ok(
        *("complete", "--cohort", "C", *methods, "--evaluate", "--share", "0.3", "--share", "spared", "--repeats", 2),
        *("--report", tmp_path / "completion.html"),
    )
    assert {"method", "split", "slide", "share_hidden", "repeat", "mse", "mae", "pcc"} <= set(rows[0])
    assert {row["method"] for row in rows} >= {"neighbor-mean", "low-rank-gaussian"}
    assert {row["share_hidden"] for row in rows} == {0.3, "spared"}
    assert "neighbor-mean" in (tmp_path / "completion.html").read_text()
    rows = ok(
        *("benchmark", "--cohort", "C", "--encoder", "stain-bank", "--head", "ridge", "--head", "gene-mean"),
        *("--target", "lognorm", "--report", tmp_path / "report.html"),
    )
    declared = tmp_path / "matrix.toml"
    declared.write_text(
        'name = "m"\ncohorts = ["C"]\nencoders = ["stain-bank"]\nheads = ["gene-mean", "ridge"]\n'
        'targets = ["lognorm"]\nprotocol = "strict"\n'
    )
    cells = ok("benchmark", "run", declared)
    assert {row["status"] for row in cells} == {"done"}
    assert ok("benchmark", "show", "m") == cells
    pooled = [r["pcc_gene"] for r in cells if r["head"] == "ridge" and r["over"] == "pooled"]
    assert pooled == [pytest.approx(r["pcc_gene"]) for r in rows if r["head"] == "ridge" and r["slide"] is None]
    expected = {
        "encoder",
        "head",
        "target",
        "split",
        "slide",
        "pcc_gene",
        "pcc_patch",
        "mse",
        "mae",
        "r2_gene",
        "n_spots",
    }
    assert all(set(row) == expected for row in rows)
    assert {row["slide"] for row in rows} == {None, "synthetic_p2_s3"}
    assert "<html" in (tmp_path / "report.html").read_text()[:300]
    run_name = ok("fit", "--cohort", "C", "--encoder", "stain-bank")["run"]
    [row] = ok("predict", "--cohort", "C", "--run", run_name, "--slide", "synthetic_p2_s3", "--out", tmp_path / "p")
    assert Path(row["path"]).is_file()
    import anndata as ad

    barcode = ad.read_zarr(store / "data.zarr/slides/synthetic_p1_s1").obs_names[0]
    rows = ok(
        "search", "--encoder", "stain-bank", "--spot", f"synthetic_p1_s1/{barcode}", "-k", 3, "--exclude", "slide"
    )
    columns = {"query", "rank", "spot", "slide", "patient", "x", "y", "similarity"}
    assert [set(row) for row in rows] == [columns] * 3
    assert len(ok("info")["slides"]) == 3
    table = run("info", "--store", store)
    assert "synthetic_p1_s1" in table.stdout


def test_bad_input_is_one_line(tmp_path: Path, synthetic_slides: Path):
    store, slide = tmp_path / "S", synthetic_slides / "synthetic_p1_s1"
    assert run("ingest", slide, "--store", store).returncode == 0
    fails(run("encode", "--store", tmp_path / "absent", "--encoder", "stain-bank"), "absent: no store here")
    fails(run("encode", "--store", slide, "--encoder", "stain-bank"), "no store here")
    fails(run("ingest", slide, "--store", slide), "other things in it")
    fails(run("encode", "--store", store, "--encoder", "unii"), "unknown encoder 'unii'")
    wrong = tmp_path / "w.pth"
    torch.save({"cls_token": torch.ones(1, 1, 7)}, wrong)
    fails(
        run("encode", "--store", store, "--encoder", "timm:vit_tiny_patch16_224", "--weights", wrong),
        r"w\.pth: weights do not fit",
    )
    fails(
        run("ingest", synthetic_slides / "synthetic_p2_s3", "--slide", "synthetic_p1_s1", "--store", store),
        "another image",
    )
    fails(run("cohort", "--store", store, "--name", "C", "--split-by", "slide"), "can.t be split into train and test")
    left = sorted(path.name for path in (store / "data.zarr/slides").iterdir())
    assert left == ["synthetic_p1_s1", "zarr.json"]
    assert not list((store / "data.zarr/slides/synthetic_p1_s1/obsm").glob("*timm*"))


def mounted(folder: Path, options: str) -> None:
    """Mount a small file system, as a full or read-only disk; skip where that is not allowed."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a file system here: {made.stderr.strip()}")


def test_a_full_disk_costs_no_stored_work(tmp_path: Path, synthetic_slides: Path):
    disk = tmp_path / "disk"
    mounted(disk, "size=3m")
    try:
        store = disk / "S"
        assert run("ingest", synthetic_slides / "synthetic_p1_s1", "--store", store).returncode == 0
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 40_000))
        options = ("--store", store, "--encoder", "stain-bank", "--chunk-rows", 8, "--threads", 1)
        fails(run("encode", *options), "No space left")
        fails(run("ingest", synthetic_slides / "synthetic_p1_s2", "--store", store), "No space left")
        obsm = store / "data.zarr/slides/synthetic_p1_s1/obsm/stain-bank"
        for receipt in obsm.glob("receipts/*.json"):
            assert (obsm / "c" / receipt.stem / "0").stat().st_size == json.loads(receipt.read_text())["bytes"]
        (disk / "ballast").unlink()
        again = run("encode", *options, "--json")
        assert again.returncode == 0, again.stderr
        assert run("info", "--store", store).returncode == 0
        assert sorted(p.name for p in (store / "data.zarr/slides").iterdir()) == ["synthetic_p1_s1", "zarr.json"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_disk(tmp_path: Path, synthetic_slides: Path):
    disk = tmp_path / "disk"
    mounted(disk, "size=30m")
    try:
        assert run("ingest", synthetic_slides / "synthetic_p1_s1", "--store", disk / "S").returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        fails(run("encode", "--store", disk / "S", "--encoder", "stain-bank"), "Read-only file system")
        fails(run("ingest", synthetic_slides / "synthetic_p1_s2", "--store", disk / "S"), "Read-only file system")
        assert run("info", "--store", disk / "S").returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_unexpected_error_is_one_line_and_debug_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import spared_fm

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(spared_fm, "open", broken)
    monkeypatch.setattr(sys, "argv", ["spared-fm", "info", "--store", "x"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err.strip() == (
        r"error: internal error, RuntimeError: surprise (run again with --debug and report it)"
    )
    monkeypatch.setattr(sys, "argv", ["spared-fm", "info", "--store", "x", "--debug"])
    with pytest.raises(RuntimeError, match="surprise"):
        cli.main()
