from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from spared_fm import cli
from spared_fm.errors import InputError
from spared_fm.study import doctor_steps
from spared_fm.study.api import Study
from spared_fm.study.doctor import _slow, _unmet, _wrong, compare, doctor, tissue_like
from spared_fm.study.doctor_steps import STEPS, self_test


def test_the_report(study: Study):
    threads = torch.get_num_threads()
    report = json.loads(json.dumps(doctor(store=study.layout, disk_mib=2, self_test=False), allow_nan=False))
    assert torch.get_num_threads() == threads
    moves = {row["setting"]: row for row in report["moves"]}
    assert list(moves) == [
        "repeated",
        "batch size 1",
        "batch size 2",
        "batch size 7",
        "threads 2",
        "bfloat16 autocast",
        "float16 autocast",
        "float16 storage",
    ]
    assert moves["repeated"]["identical"]
    assert moves["batch size 7"]["max_relative"] < 1e-4
    assert 0 < moves["float16 storage"]["max_relative"] < 1e-3
    assert moves["float16 storage"]["min_cosine"] > 0.999
    assert report["machine"]["cores"] >= 1
    assert "torch" in report["machine"]["versions"]
    assert report["disk"]["mib"] == 2
    assert report["disk"]["mib_per_second"] > 0
    assert report["disk"]["free_gib"] > 0
    assert {"stain-bank", "colour-stats"} <= set(report["encoders_ready"])
    assert report["self_test"] == []
    assert report["problems"] == []
    assert study.layout.files.list(".staging") == []


def test_compare_measures_what_it_says():
    reference = np.array([[3.0, 4.0], [0.0, 2.0]])
    row = compare("x", np.array([[3.0, 4.5], [0.0, 2.0]]), reference)
    assert row["max_abs"] == 0.5
    assert row["max_relative"] == pytest.approx(0.1)
    assert row["min_cosine"] == pytest.approx((9 + 18) / 5 / np.hypot(3, 4.5))
    assert not row["identical"]
    assert compare("x", reference, reference)["identical"]
    assert compare("x", np.array([[np.inf, 1], [0, 2]]), reference)["max_abs"] is None


def test_patches_are_neither_flat_nor_noise():
    patches = tissue_like(3, 64)
    assert (patches.shape, patches.dtype) == ((3, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(patches, tissue_like(3, 64))
    grey = patches.mean(axis=3)
    assert grey.std() > 10
    assert np.corrcoef(grey[:, :, 1:].ravel(), grey[:, :, :-1].ravel())[0, 1] > 0.7


def test_unknown_encoder():
    with pytest.raises(InputError, match="unknown encoder"):
        doctor("nope")


@pytest.mark.full
def test_the_small_study_comes_out_right():
    rows = self_test()
    assert [(row["step"], row["ok"]) for row in rows] == [(step, True) for step in STEPS], rows
    assert sum(row["seconds"] for row in rows) < 60


@pytest.mark.parametrize(
    ("verb", "wrong", "said"),
    [
        ("search", lambda rows: rows.assign(spot=rows["spot"].iloc[::-1].to_numpy()), "not the spot itself"),
        ("search", lambda rows: rows.assign(similarity=rows["similarity"] * 0.99), "differ from NumPy"),
    ],
)
def test_a_wrong_search_is_seen(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path, verb, wrong, said):
    right = getattr(Study, verb)
    monkeypatch.setattr(Study, verb, lambda *args, **options: wrong(right(*args, **options)))
    with pytest.raises(InputError, match=said):
        STEPS[verb](study, tmp_path)


@pytest.mark.parametrize(
    ("pcc", "chance", "wrong"),
    [(0.257, 0.08, None), (0.2, 0.0, "ridge has PCC-Gene 0.200"), (0.257, 0.3, "shuffled pairs have PCC-Gene 0.300")],
)
def test_scores_out_of_bounds_are_seen(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path, pcc, chance, wrong):
    def scored(self, name, *, shuffle_seed=None, **options):
        return pd.DataFrame({"slide": ["s", None], "pcc_gene": [9.0, pcc if shuffle_seed is None else chance]})

    monkeypatch.setattr(Study, "cohort", lambda *args, **options: None)
    monkeypatch.setattr(Study, "benchmark", scored)
    monkeypatch.setattr(Study, "fit", lambda *args, **options: {"run": "r"})
    monkeypatch.setattr(Study, "predict", lambda *args, **options: dict.fromkeys(study.slides))
    if wrong is None:
        assert "0.257" in STEPS["fit"](study, tmp_path)
        return
    with pytest.raises(InputError, match=wrong):
        STEPS["fit"](study, tmp_path)


def test_the_first_step_that_fails_ends_the_test(monkeypatch: pytest.MonkeyPatch):
    def broken(study, folder):
        raise OSError("no space left")

    monkeypatch.setattr(
        doctor_steps, "STEPS", {"first": lambda study, folder: "fine", "ingest": broken, "never": broken}
    )
    assert [(row["step"], row["ok"], row["text"]) for row in self_test()] == [
        ("first", True, "fine"),
        ("ingest", False, "OSError: no space left"),
    ]


def test_problems_and_warnings_are_lines():
    moves = [{"setting": "repeated", "identical": False}]
    failed = [{"step": "fit", "ok": False, "text": "ridge has PCC-Gene 0.010"}]
    found = {"self_test": failed, "moves": moves, "device": "cpu"}
    assert [line.split()[0] for line in _wrong(found)] == ["self-test,", "the"]
    assert len(_wrong(found | {"device": "cuda"})) == 1
    disk = {"folder": "/x", "mib_per_second": 3.0, "free_gib": 0.5}
    notes = _slow({"machine": {"torch_threads": 8, "cores_usable": 2}, "disk": disk})
    assert [note.split()[0] for note in notes] == ["torch", "/x", "/x"]
    assert _slow({"machine": {"torch_threads": 2, "cores_usable": 2}, "disk": None}) == []


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch):
    assert _unmet() == []
    monkeypatch.setattr(
        "spared_fm.study.doctor.requires", lambda name: ["numpy>=99", "nosuchpackage", "gone; extra == 'dev'"]
    )
    assert [line.split(";")[0].rpartition(" is ")[0] for line in _unmet()] == ["numpy", "nosuchpackage"]


@pytest.mark.parametrize("problems", [[], ["numpy is 1.0; pip install 'numpy>=2.0'"], ["a: b", "c"]])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_fails_with_one_line(problems, as_json, monkeypatch: pytest.MonkeyPatch, capsys):
    found = {
        "machine": {"python": "3.11"},
        "disk": None,
        "encoders_ready": ["stain-bank"],
        "moves": [{"setting": "repeated"}],
        "self_test": [{"step": "fit", "ok": True}],
        "problems": problems,
        "warnings": ["the disk is slow"],
    }
    asked = {}
    monkeypatch.setattr("spared_fm.study.doctor.doctor", lambda *args, **options: asked.update(options) or found)
    monkeypatch.setattr("sys.argv", ["spared-fm", "doctor", "--quick", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0) == (1 if problems else 0)
    assert asked["self_test"] is False
    assert "warning: the disk is slow" in err
    if problems:
        assert err.splitlines()[-1].startswith(f"error: {problems[0]}")
    if as_json:
        assert json.loads(out) == found
