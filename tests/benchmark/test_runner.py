from __future__ import annotations

import json

import numpy as np
import pytest

from spared_fm.benchmark.metrics import score
from spared_fm.benchmark.runner import KEYS, evaluate
from spared_fm.errors import InputError
from spared_fm.heads.base import Head
from spared_fm.heads.registry import make

SPLIT = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}


def cell(seed=0, head="ridge", n=60, **kw):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(6, 4))
    X = {s: rng.normal(size=(n + i, 6)).astype(np.float16) for i, s in enumerate(SPLIT)}
    Y = {s: x.astype(np.float64) @ w + rng.normal(size=(len(x), 4)) for s, x in X.items()}
    mask = {s: rng.random(y.shape) < 0.5 for s, y in Y.items()}
    return {
        "head": make(head),
        "encoder": "e",
        "target": "t",
        "X": X,
        "Y": Y,
        "mask": mask,
        "split": SPLIT,
    } | kw


def test_rows_and_predictions():
    given = cell()
    found = evaluate(**given)
    assert [(r["split"], r["slide"]) for r in found.rows] == [
        ("val", None),
        ("val", "c"),
        ("test", None),
        ("test", "d"),
        ("test", "e"),
    ]
    assert all(tuple(r) == KEYS for r in found.rows)
    assert set(found.predictions) == {"c", "d", "e"}
    expected = score(given["Y"]["d"], found.predictions["d"])
    row = found.rows[3]
    assert all(row[k] == expected[k] for k in KEYS[5:])
    both = score(*(np.concatenate([part[s] for s in "de"]) for part in (given["Y"], found.predictions)))
    assert found.rows[2]["pcc_gene"] == both["pcc_gene"] > 0.8
    assert found.rows[2]["n_spots"] == 63 + 64
    json.dumps(found.rows, allow_nan=False)


def test_shuffled_pairs_score_about_nothing_and_inputs_stay():
    given = cell(n=400)
    before = given["Y"]["a"].copy()
    row = evaluate(**given, shuffle_seed=1).rows[0]
    np.testing.assert_array_equal(given["Y"]["a"], before)
    assert abs(row["pcc_gene"]) < 0.35
    assert row["r2_gene"] < 0.05
    assert evaluate(**cell(n=400)).rows[0]["pcc_gene"] > 0.8
    assert evaluate(**cell(n=400), shuffle_seed=1).rows == evaluate(**cell(n=400), shuffle_seed=1).rows
    assert evaluate(**cell(n=400), shuffle_seed=2).rows != evaluate(**cell(n=400), shuffle_seed=1).rows


def test_held_out_targets_never_reach_the_head():
    a, b = cell(), cell()
    for s in "cde":
        b["Y"][s] = b["Y"][s] * -100
    for s, p in evaluate(**a).predictions.items():
        np.testing.assert_array_equal(p, evaluate(**b).predictions[s])


def test_measured_entries():
    given = cell(which="measured")
    found = evaluate(**given)
    expected = score(given["Y"]["e"], found.predictions["e"], mask=given["mask"]["e"], which="measured")
    assert found.rows[-1]["mse"] == expected["mse"]
    assert found.rows[-1]["mse"] != evaluate(**cell()).rows[-1]["mse"]
    with pytest.raises(InputError, match="mask"):
        evaluate(**cell(which="measured", mask=None))


def test_floor_row_and_scores_that_do_not_exist_are_null():
    given = cell(head="gene-mean")
    assert evaluate(**given).rows[0]["pcc_gene"] == 0
    given["Y"]["c"][:] = 1.0
    row = evaluate(**given).rows[0]
    assert row["pcc_gene"] is None
    assert row["r2_gene"] is None
    json.dumps(row, allow_nan=False)


def test_absent_spots_are_left_out_and_counted():
    given, less = cell(), cell()
    for s in "ad":
        given["X"][s][3:5] = np.nan
        for part in ("X", "Y", "mask"):
            less[part][s] = np.delete(less[part][s], [3, 4], axis=0)
    found, expected = evaluate(**given), evaluate(**less)
    assert found.absent == {"a": 2, "d": 2}
    assert found.rows == expected.rows
    assert np.isnan(found.predictions["d"][3:5]).all()
    assert np.isfinite(np.delete(found.predictions["d"], [3, 4], axis=0)).all()
    given["X"]["d"][:] = np.nan
    rows = evaluate(**given).rows
    assert rows[3]["n_spots"] == 0
    assert rows[3]["pcc_gene"] is None
    assert rows[2]["n_spots"] == 64
    given["X"]["e"][0, 0] = np.nan  # half a vector is damage, not absence
    with pytest.raises(InputError, match="NaN"):
        evaluate(**given)


def test_a_head_that_cannot_stream_sees_the_same_rows():
    class Plain(Head):
        name = "plain"

        def _fit(self, X, y, mask, groups, coords):
            self.inner = make("ridge").fit(X, y, groups=groups)

        def _predict(self, X, groups, coords):
            return self.inner.predict(X, groups=groups)

    plain, ridge = evaluate(**cell(head="ridge") | {"head": Plain()}), evaluate(**cell())
    assert [r["mse"] for r in plain.rows] == pytest.approx([r["mse"] for r in ridge.rows])


def test_bad_cells():
    with pytest.raises(InputError, match="no slide is in the train"):
        evaluate(**cell(split={"a": "test"}))
    with pytest.raises(InputError, match="slide z has no features"):
        evaluate(**cell(split=SPLIT | {"z": "test"}))
    given = cell()
    given["Y"]["d"] = given["Y"]["d"][1:]
    with pytest.raises(InputError, match="join"):
        evaluate(**given)


def test_an_oracle_is_fitted_on_what_it_predicts_and_shown_as_one():
    given = cell(head="slide-mean")
    found = evaluate(**given)
    assert {r["head"] for r in found.rows} == {"slide-mean (oracle)"}
    for s in "cde":
        np.testing.assert_allclose(found.predictions[s][0], given["Y"][s].mean(axis=0), rtol=1e-5)


def test_coordinates_and_patients_reach_the_head():
    coords = {s: np.random.default_rng(0).uniform(size=(len(x), 2)) for s, x in cell()["X"].items()}
    found = evaluate(**cell(head="coordinates"), coords=coords)
    assert np.isfinite(found.rows[0]["mse"])
    split = dict.fromkeys("abcd", "train") | {"e": "test"}
    by_slide = evaluate(**cell(split=split))
    by_patient = evaluate(**cell(split=split), patients=dict(zip("abcde", "ppqqr", strict=True)))
    assert np.abs(by_slide.head.cv_error_ - by_patient.head.cv_error_).max() > 1e-6


def test_rows_can_be_read_twice():
    row = evaluate(**cell() | {"head": make("ridge", cv="loo")}).rows[0]
    assert row["pcc_gene"] > 0.8
