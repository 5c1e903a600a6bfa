"""A planted patient effect must not raise the held-out score of a split by patient, and does raise that of one by slide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spared_fm.benchmark.metrics import score_slides
from spared_fm.benchmark.runner import evaluate
from spared_fm.benchmark.splits import split_by
from spared_fm.heads.registry import make

PATIENTS = {f"p{i}s{j}": f"p{i}" for i in range(10) for j in range(3)}


def study(effect, seed, signal=0.5, spots=40, dim=24, genes=6):
    """Synthetic slides: features predict targets weakly; each patient shifts its features and, independently, its targets."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(dim, genes)) / np.sqrt(dim)
    in_x = {p: rng.normal(size=dim) for p in dict.fromkeys(PATIENTS.values())}
    in_y = {p: rng.normal(size=genes) for p in in_x}
    X, Y = {}, {}
    for slide, patient in PATIENTS.items():
        own = rng.normal(size=(spots, dim))
        X[slide] = (own + effect * in_x[patient]).astype(np.float32)
        Y[slide] = signal * own @ weights + rng.normal(size=(spots, genes)) + effect * 2 * in_y[patient]
    return X, Y


HEADS: dict[str, dict[str, Any]] = {"ridge": {}, "knn": {}, "lightgbm": {"rounds": 15, "lr": 0.2, "threads": 1}}
STUDIES = 8


def held_out(by, effect, seed, head, standardize, **kw):
    """Return PCC-Gene on held-out slides, pooled and as the mean of the slides."""
    X, Y = study(effect, seed, **kw)
    split = split_by(PATIENTS, PATIENTS, by, seed=seed, fractions=(0.7, 0, 0.3))
    found = evaluate(
        make(head, standardize=standardize, **HEADS[head]),
        encoder="synthetic",
        target="synthetic",
        X=X,
        Y=Y,
        split=split,
        patients=PATIENTS,
    )
    return [row["pcc_gene"] for row in score_slides(Y, found.predictions)[:2]]


@pytest.mark.parametrize("standardize", ["slide", "train"])
@pytest.mark.parametrize(
    ("head", "signal"), [("ridge", 0.0), ("ridge", 0.5), ("knn", 0.0), ("knn", 0.5), ("lightgbm", 0.5)]
)
def test_a_patient_effect_does_not_raise_the_score_of_held_out_patients(head, signal, standardize):
    without, planted = (
        np.array([held_out("patient", effect, seed, head, standardize, signal=signal) for seed in range(STUDIES)])
        for effect in (0, 3)
    )
    # pooled over three patients, the order of their levels is guessed right or wrong by chance: studies differ widely
    rise = planted - without
    chance = 2 * rise.std(axis=0, ddof=1) / np.sqrt(STUDIES)
    assert (rise.mean(axis=0) <= 0.05 + chance).all()
    assert (chance < (0.3, 0.1)).all()  # else it would let the rise of the next test pass
    assert (np.abs(without.mean(axis=0)) < 0.04).all() if signal == 0 else (without.mean(axis=0) > 0.2).all()


@pytest.mark.parametrize("head", HEADS)
def test_the_same_effect_raises_the_pooled_score_of_a_split_by_slide(head):
    """What the test above would miss if its effect could not be learned."""
    without, planted = (
        np.mean([held_out("slide", effect, seed, head, "train", signal=0) for seed in range(3)], axis=0)
        for effect in (0, 3)
    )
    assert abs(without[0]) < 0.05
    assert planted[0] > 0.5
    assert abs(planted[1]) < 0.05  # within a slide there is nothing to know
