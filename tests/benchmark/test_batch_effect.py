"""The batch-effect gate on synthetic vectors: nothing planted, slides, patients or centres planted."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from spared_fm.benchmark.batch_effect import batch_effect, robustness_index
from spared_fm.errors import InputError

PATIENTS = {f"s{i}": f"p{i // 2}" for i in range(8)}
CENTRES = {f"s{i}": f"c{i // 4}" for i in range(8)}


def vectors(slide=0.0, patient=0.0, centre=0.0, biology=1.0, seed=0, dim=8):
    """Vectors of spots on a square grid: two tissues in stripes, and shifts of the given size for each class."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(14), np.arange(14)), axis=-1).reshape(-1, 2) * 100.0
    stripe = np.where(xy[:, 1] // 300 % 2, "stroma", "tumour")
    shifts = {name: rng.normal(size=dim) for name in [*PATIENTS, *PATIENTS.values(), *CENTRES.values()]}
    tumour = rng.normal(size=dim)
    X = {
        s: rng.normal(size=(len(xy), dim))
        + slide * shifts[s]
        + patient * shifts[PATIENTS[s]]
        + centre * shifts[CENTRES[s]]
        + biology * np.where(stripe == "tumour", 1, -1)[:, None] * tumour
        for s in PATIENTS
    }
    return X, dict.fromkeys(X, xy), dict.fromkeys(X, stripe)


@functools.cache
def gate(k=10, **planted):
    X, xy, tissue = vectors(**planted)
    rows = batch_effect(X, xy, patients=PATIENTS, centres=CENTRES, tissue=tissue, k=k, spots_per_slide=80)
    json.dumps(rows, allow_nan=False)
    return {(r["factor"], r["held_out"], r["probe"]): r for r in rows}


def test_nothing_planted_is_chance():
    rows = gate()
    assert set(rows) == {
        (factor, held, probe)
        for factor, held in (
            ("slide", "block"),
            ("patient", "block"),
            ("patient", "slide"),
            ("centre", "block"),
            ("centre", "patient"),
        )
        for probe in ("logistic", "knn")
    } | {
        ("slide", None, "robustness_index"),
        ("patient", "slide", "robustness_index"),
        ("centre", "slide", "robustness_index"),
    }
    for (_, _, probe), row in rows.items():
        if probe == "robustness_index":
            assert row["value"] > 0.8
        else:
            assert abs(row["excess"]) < 0.15
            assert row["chance"] == 1 / row["n_classes"]


def test_planted_slides_show_and_say_nothing_of_patients_on_new_slides():
    rows = gate(slide=3)
    assert rows["slide", "block", "logistic"]["excess"] > 0.9
    assert rows["slide", "block", "knn"]["excess"] > 0.9
    assert rows["patient", "block", "logistic"]["excess"] > 0.9
    assert rows["patient", "slide", "logistic"]["excess"] < 0.5
    assert rows["slide", None, "robustness_index"]["value"] < gate()["slide", None, "robustness_index"]["value"] - 0.2


def test_planted_patients_are_found_on_new_slides_and_centres_on_new_patients():
    assert gate(patient=3)["patient", "slide", "knn"]["excess"] > 0.9
    rows = gate(centre=3)
    assert rows["centre", "patient", "logistic"]["excess"] > 0.9
    assert rows["centre", "slide", "robustness_index"]["value"] < 0.5
    assert gate()["centre", "slide", "robustness_index"]["value"] > 0.8


def test_index_against_plain_counting():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 3))
    batch, tissue = rng.choice(["a", "b", "c"], 40), rng.choice(["x", "y", ""], 40)
    slides = np.char.add(batch, rng.choice(["1", "2"], 40))
    for own in (None, slides):
        so = os = 0
        known = [i for i in range(40) if tissue[i]]
        for i in known:
            others = [j for j in known if (j != i if own is None else own[j] != own[i])]
            cosine = [X[i] @ X[j] / np.linalg.norm(X[i]) / np.linalg.norm(X[j]) for j in others]
            for j in np.array(others)[np.argsort(cosine)[::-1][:4]]:
                so += tissue[i] == tissue[j] and batch[i] != batch[j]
                os += tissue[i] != tissue[j] and batch[i] == batch[j]
        (row,) = robustness_index(X, batch, tissue, own, k=4)
        assert row["value"] == pytest.approx(so / (so + os))
        assert row["n_spots"] == len(known)
    one_slide = np.where(batch == "a", "a", slides)  # says nothing of class a
    (row,) = robustness_index(X, batch, tissue, one_slide, k=4)
    assert row["n_spots"] == sum(batch[i] != "a" for i in known)
    assert robustness_index(X, batch, tissue, batch) == []
    assert robustness_index(X, np.full(40, "a"), tissue) == []
    assert robustness_index(X, batch, np.full(40, "x")) == []


def test_what_is_not_known_gives_no_rows_and_absent_vectors_are_left_out():
    X, xy, _ = vectors(slide=1)
    X = {s: X[s] for s in ("s0", "s2")}
    X["s0"][:30] = np.nan
    rows = batch_effect(X, xy, patients={"s0": "p", "s2": None}, centres=dict.fromkeys(X, "c"))
    assert {r["factor"] for r in rows} == {"slide"}
    assert batch_effect(X, xy) == rows


def test_seeded():
    X, xy, tissue = vectors(slide=0.5)
    X = {s: X[s] for s in ("s0", "s2")}
    first, again, other = (batch_effect(X, xy, tissue=tissue, spots_per_slide=80, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_centres_without_patients_are_probed_on_blocks_only():
    X, xy, _ = vectors(centre=1)
    rows = batch_effect(X, xy, centres=CENTRES, spots_per_slide=40)
    assert {(r["factor"], r["held_out"]) for r in rows} == {("slide", "block"), ("centre", "block")}


def test_bad_input():
    X, xy, tissue = vectors()
    with pytest.raises(InputError, match="two or more"):
        batch_effect({"s0": X["s0"]}, xy)
    with pytest.raises(InputError, match="slide s0 has vectors"):
        batch_effect(X, {})
    with pytest.raises(InputError, match="0 tissue labels"):
        batch_effect(X, xy, tissue={})
    with pytest.raises(InputError, match="slide s0 has no spots with vectors"):
        batch_effect(X | {"s0": np.full_like(X["s0"], np.nan)}, xy)
    with pytest.raises(InputError, match="k = 0"):
        batch_effect(X, xy, tissue=tissue, k=0)
