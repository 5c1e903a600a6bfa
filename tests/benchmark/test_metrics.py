"""Metrics against SciPy and scikit-learn, and the rule for constant genes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from spared_fm.benchmark.metrics import gene_scores, score, score_slides
from spared_fm.errors import InputError


def draw(seed, spots=25, genes=7, share=0.6):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(spots, genes)) + rng.normal(size=genes) * 3
    predicted = truth * rng.uniform(-1, 1, genes) + rng.normal(size=(spots, genes))
    return truth, predicted, rng.random((spots, genes)) < share


def test_all_entries_against_scipy_and_sklearn():
    t, p, _ = draw(0)
    s = score(t, p)
    assert s["pcc_gene"] == pytest.approx(np.mean([pearsonr(t[:, j], p[:, j])[0] for j in range(7)]), abs=1e-12)
    assert s["pcc_patch"] == pytest.approx(np.mean([pearsonr(t[i], p[i])[0] for i in range(25)]), abs=1e-12)
    assert s["r2_gene"] == pytest.approx(r2_score(t, p), abs=1e-12)
    assert s["r2_patch"] == pytest.approx(r2_score(t.T, p.T), abs=1e-12)
    assert s["mse"] == pytest.approx(mean_squared_error(t, p))
    assert s["mae"] == pytest.approx(mean_absolute_error(t, p))
    assert (s["n_spots"], s["n_entries"], s["n_genes_scored"], s["n_spots_scored"]) == (25, 175, 7, 25)


def test_measured_entries_against_loops():
    t, p, mask = draw(1)
    mask[:, 2] = False  # a gene never measured
    mask[:, 3] = False
    mask[4, 3] = True  # a gene measured once
    garbage = np.where(mask, t, np.nan)
    s = score(garbage, p, mask=mask, which="measured")
    genes = [j for j in range(7) if mask[:, j].sum() > 1]
    spots = [i for i in range(25) if mask[i].sum() > 1]
    assert s["n_genes_scored"] == len(genes) == 5
    cols = [(t[mask[:, j], j], p[mask[:, j], j]) for j in genes]
    rows = [(t[i, mask[i]], p[i, mask[i]]) for i in spots]
    assert s["pcc_gene"] == pytest.approx(np.mean([pearsonr(*c)[0] for c in cols]), abs=1e-12)
    assert s["pcc_patch"] == pytest.approx(np.mean([pearsonr(*r)[0] for r in rows]), abs=1e-12)
    assert s["r2_gene"] == pytest.approx(np.mean([r2_score(*c) for c in cols]), abs=1e-12)
    assert s["r2_patch"] == pytest.approx(np.mean([r2_score(*r) for r in rows]), abs=1e-9)
    assert s["mse"] == pytest.approx(mean_squared_error(t[mask], p[mask]))
    assert s["mae"] == pytest.approx(mean_absolute_error(t[mask], p[mask]))
    assert s["n_entries"] == mask.sum()
    assert score(t, p, mask=mask, which="all") == score(t, p)


def test_rule_for_constant_genes():
    t, p, _ = draw(2)
    t[:, 0] = 4.2  # constant truth: left out of PCC and R2, not of MSE
    p[:, 1] = -0.7  # constant prediction: PCC 0, R2 as it is
    pcc, r2 = gene_scores(t, p)
    assert np.isnan([pcc[0], r2[0]]).all()
    assert pcc[1] == 0
    assert r2[1] == pytest.approx(r2_score(t[:, 1], p[:, 1]))
    s = score(t, p)
    assert s["n_genes_scored"] == 6
    rest = [pearsonr(t[:, j], p[:, j])[0] for j in range(2, 7)]
    assert s["pcc_gene"] == pytest.approx(sum(rest) / 6, abs=1e-12)
    assert s["mse"] == pytest.approx(mean_squared_error(t, p))


def test_constant_up_to_rounding_is_constant():
    t, p, _ = draw(3)
    p = p.astype(np.float32)
    p[:, 0] = np.float32(2.0)
    p[::2, 0] = np.nextafter(np.float32(2.0), np.float32(3.0))
    assert gene_scores(t, p)[0][0] == 0
    p[::2, 0] += np.float32(1e-3)  # small but real
    assert gene_scores(t, p)[0][0] != 0


@pytest.mark.parametrize("sign", [1, -1])
def test_constant_over_the_measured_spots_only(sign):
    t, p, mask = draw(4)
    mask[:, 0] = True
    mask[0, 0] = False
    t[1:, 0] = sign
    t[0, 0] = 9.0
    assert np.isnan(gene_scores(t, p, mask=mask, which="measured")[0][0])
    assert not np.isnan(gene_scores(t, p)[0][0])
    t, p, _ = draw(4)
    p[1:, 0] = sign
    p[0, 0] = 9.0
    assert gene_scores(t, p, mask=mask, which="measured")[0][0] == 0
    assert gene_scores(t, p)[0][0] != 0


def test_nothing_to_average_is_nan():
    s = score(np.ones((3, 2)), np.zeros((3, 2)))
    assert math.isnan(s["pcc_gene"])
    assert math.isnan(s["r2_gene"])
    assert s["mse"] == 1
    s = score(np.ones((3, 2)), np.zeros((3, 2)), mask=np.zeros((3, 2), bool), which="measured")
    assert math.isnan(s["mse"])
    assert s["n_entries"] == 0
    one = score(np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 2.0, 4.0]]))
    assert math.isnan(one["pcc_gene"])
    assert one["pcc_patch"] == pytest.approx(1)


def test_gene_mean_scores_zero_and_truth_scores_one():
    t, _, _ = draw(5)
    s = score(t, np.tile(t.mean(axis=0), (25, 1)))
    assert s["pcc_gene"] == 0
    assert s["r2_gene"] == pytest.approx(0, abs=1e-12)
    s = score(t, t)
    assert s["pcc_gene"] == pytest.approx(1)
    assert (s["r2_gene"], s["mse"], s["mae"]) == (1, 0, 0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-100, 100), st.booleans())
def test_pcc_of_affine_predictions_and_order_of_spots(seed, scale, shift, measured):
    t, p, mask = draw(seed)
    kw = {"mask": mask, "which": "measured" if measured else "all"}
    base, moved = score(t, p, **kw), score(t, p * scale + shift, **kw)
    assert moved["pcc_gene"] == pytest.approx(base["pcc_gene"], abs=1e-9)
    assert moved["pcc_patch"] == pytest.approx(base["pcc_patch"], abs=1e-9)
    assert score(t, -p, **kw)["pcc_gene"] == pytest.approx(-base["pcc_gene"], abs=1e-9)
    assert -1 <= base["pcc_gene"] <= 1
    assert base["r2_gene"] <= 1
    order = np.random.default_rng(seed).permutation(len(t))
    again = score(t[order], p[order], mask=mask[order], which=kw["which"])
    assert again == pytest.approx(base, abs=1e-9, nan_ok=True)


def test_tiny_and_huge_scales():
    t, p, _ = draw(6)
    base = score(t, p)["pcc_gene"]
    assert score(t * 1e-60, p * 1e60)["pcc_gene"] == pytest.approx(base, abs=1e-9)


@pytest.mark.parametrize(
    ("args", "kw", "words"),
    [
        ((np.ones((3, 2)), np.ones((2, 3))), {}, "shape"),
        ((np.ones(3), np.ones(3)), {}, "shape"),
        ((np.ones((0, 2)), np.ones((0, 2))), {}, "nothing to score"),
        ((np.ones((3, 2)), np.ones((3, 2))), {"which": "measured"}, "mask"),
        ((np.ones((3, 2)), np.ones((3, 2))), {"which": "measured", "mask": np.ones((3, 2))}, "bool"),
        ((np.ones((3, 2)), np.ones((3, 2))), {"which": "some"}, "use 'all'"),
        ((np.ones((3, 2)), np.full((3, 2), np.nan)), {}, "prediction holds NaN"),
        ((np.full((3, 2), np.inf), np.ones((3, 2))), {}, "truth holds NaN"),
    ],
)
def test_bad_input(args, kw, words):
    with pytest.raises(InputError, match=words):
        score(*args, **kw)


def two_slides(seed=7):
    t, p, mask = draw(seed, spots=40)
    cut = {"b": slice(0, 15), "a": slice(15, 40)}
    return t, p, mask, *({s: x[c] for s, c in cut.items()} for x in (t, p, mask))


@pytest.mark.parametrize("which", ["all", "measured"])
def test_slides_pooled_and_averaged(which):
    t, p, mask, ts, ps, masks = two_slides()
    rows = score_slides(ts, ps, mask=masks, which=which)
    assert [(r["over"], r["slide"], r["n_slides"]) for r in rows] == [
        ("pooled", None, 2),
        ("slide_mean", None, 2),
        ("slide", "a", 1),
        ("slide", "b", 1),
    ]
    order = np.r_[15:40, 0:15]
    pooled = score(t[order], p[order], mask=mask[order], which=which)
    assert {k: rows[0][k] for k in pooled} == pooled
    for row in rows[2:]:
        one = score(ts[row["slide"]], ps[row["slide"]], mask=masks[row["slide"]], which=which)
        assert {k: row[k] for k in one} == one
    for key in ("pcc_gene", "r2_patch", "mse"):
        assert rows[1][key] == pytest.approx((rows[2][key] + rows[3][key]) / 2, abs=1e-12)
    assert rows[1]["n_spots"] == 40


def test_slide_levels_raise_the_pooled_score_only():
    rng = np.random.default_rng(8)
    level = {s: rng.normal(size=5) * 3 for s in "abcd"}
    truth = {s: level[s] + rng.normal(size=(30, 5)) for s in level}
    rows = score_slides(truth, {s: np.tile(level[s], (30, 1)) for s in level})
    assert rows[0]["pcc_gene"] > 0.8
    assert rows[1]["pcc_gene"] == 0


def test_a_slide_without_a_score_is_left_out_of_the_mean():
    _, _, _, ts, ps, _ = two_slides()
    ts["b"] = np.ones_like(ts["b"])
    rows = score_slides(ts, ps)
    assert math.isnan(rows[3]["pcc_gene"])
    assert rows[1]["pcc_gene"] == rows[2]["pcc_gene"]


def test_slides_that_do_not_fit():
    _, _, _, ts, ps, masks = two_slides()
    with pytest.raises(InputError, match="slide a has predictions but no truth"):
        score_slides({"b": ts["b"]}, ps)
    with pytest.raises(InputError, match="slide b has predictions but no mask"):
        score_slides(ts, ps, mask={"a": masks["a"]}, which="measured")
    with pytest.raises(InputError, match="needs a mask"):
        score_slides(ts, ps, which="measured")
    with pytest.raises(InputError, match="same panel"):
        score_slides(ts | {"b": ts["b"][:, :3]}, ps | {"b": ps["b"][:, :3]})
    with pytest.raises(InputError, match="no slide"):
        score_slides(ts, {})
