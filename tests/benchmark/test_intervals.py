"""Bootstrap intervals: the estimate, what is drawn, and on synthetic data how often they hold the truth."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from spared_fm.benchmark.intervals import METRICS, gene_intervals, intervals, paired_intervals
from spared_fm.benchmark.metrics import gene_scores, score, score_slides
from spared_fm.benchmark.resampling import draws, grid_blocks, resampling_units
from spared_fm.errors import InputError


def study(seed=0, slides=3, genes=5):
    rng = np.random.default_rng(seed)
    names = [f"s{i}" for i in range(slides)]
    truth = {s: rng.normal(size=(60 + 5 * i, genes)) + rng.normal(size=genes) * 20 for i, s in enumerate(names)}
    predicted = {s: t * 0.5 + rng.normal(size=t.shape) for s, t in truth.items()}
    return {
        "y_true": truth,
        "y_pred": predicted,
        "mask": {s: rng.random(t.shape) < 0.6 for s, t in truth.items()},
        "coords": {s: rng.random((len(t), 2)) * 1000 for s, t in truth.items()},
    }


def by_key(rows):
    return {(r["over"], r["metric"]): r for r in rows}


@pytest.mark.parametrize("which", ["all", "measured"])
@pytest.mark.parametrize("unit", ["patient", "spatial block"])
def test_estimates_are_the_scores(which, unit):
    given = study(slides=6)
    given["y_true"]["s0"][:, 0] = 3.0  # constant in one slide
    given["y_pred"]["s1"][:, 1] = -2.0
    given["y_pred"] = {s: p.astype(np.float32) for s, p in given["y_pred"].items()}
    for p in given["y_pred"].values():  # constant but for rounding
        p[:, 2] = 2.0
        p[::2, 2] = np.nextafter(np.float32(2.0), np.float32(3.0))
    patients = {s: s for s in given["y_true"]} if unit == "patient" else None
    rows = by_key(intervals(**given, which=which, patients=patients, n_resamples=50))
    expected = score_slides(given["y_true"], given["y_pred"], mask=given["mask"], which=which)
    assert set(rows) == {(over, m) for over in ("pooled", "slide_mean") for m in METRICS}
    for over, scores in zip(("pooled", "slide_mean"), expected[:2], strict=True):
        for metric in METRICS:
            row = rows[over, metric]
            assert row["estimate"] == pytest.approx(scores[metric], abs=1e-9)
            assert row["low"] < row["high"]
            assert (row["unit"], row["level"], row["n_resamples"]) == (unit, 0.95, 50)
    assert rows["pooled", "mse"]["n_units"] == 6 if unit == "patient" else 60 < rows["pooled", "mse"]["n_units"] < 150


@pytest.mark.parametrize("unit", ["patient", "spatial block"])
def test_resamples_are_scores_of_the_drawn_units(unit):
    """The interval of one resample is that of the spots drawn, put together and scored."""
    given = study(1, slides=5)
    patients = dict(zip(given["y_true"], "aabcd" if unit == "spatial block" else "abcde", strict=True))
    units = resampling_units({s: len(t) for s, t in given["y_true"].items()}, patients, given["coords"])
    assert units.kind == unit
    rng = np.random.default_rng(3)  # as resampling.draws does, stratum by stratum
    counts = np.zeros(len(units.stratum), int)
    for stratum in np.unique(units.stratum):
        rows = np.flatnonzero(units.stratum == stratum)
        counts[rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=1)[0]
    drawn = {s: np.repeat(np.arange(len(of)), counts[of]) for s, of in units.of.items()}
    t, p = ({s: given[k][s][i] for s, i in drawn.items() if len(i)} for k in ("y_true", "y_pred"))
    rows = by_key(intervals(**given, patients=patients, n_resamples=1, seed=3))
    pooled = score(np.concatenate(list(t.values())), np.concatenate(list(p.values())))
    for metric in METRICS:
        assert rows["pooled", metric]["low"] == pytest.approx(pooled[metric], abs=1e-9)
    weights = [counts[units.of[s][0]] if unit == "patient" else 1 for s in t]
    each = [score(given["y_true"][s], given["y_pred"][s]) if unit == "patient" else score(t[s], p[s]) for s in t]
    for metric in METRICS:
        mean = np.average([scores[metric] for scores in each], weights=weights)
        assert rows["slide_mean", metric]["low"] == pytest.approx(mean, abs=1e-9)


def test_patients_are_drawn_from_five_on():
    given = study(2, slides=6)
    of = dict(zip(given["y_true"], "aabcde", strict=True))
    assert {r["unit"] for r in intervals(**given, patients=of, n_resamples=5)} == {"patient"}
    assert {r["n_units"] for r in intervals(**given, patients=of, n_resamples=5)} == {5}
    for fewer in (of | {"s5": "d"}, of | {"s5": None}, None):
        assert {r["unit"] for r in intervals(**given, patients=fewer, n_resamples=5)} == {"spatial block"}


def test_blocks_are_drawn_within_their_slide():
    given = study(2)
    units = resampling_units({s: len(t) for s, t in given["y_true"].items()}, None, given["coords"])
    slides = [np.unique(of) for of in units.of.values()]
    assert np.concatenate(slides).tolist() == list(range(len(units.stratum)))
    assert units.n_free == len(units.stratum) - 2
    for counts in draws(units, 30, seed=0, at_once=7):
        assert len(counts) <= 7
        for rows in slides:
            assert (counts[:, rows].sum(axis=1) == len(rows)).all()


def test_seeded_and_a_constant_gene_is_left_out():
    given = study(3)
    assert intervals(**given, n_resamples=20) == intervals(**given, n_resamples=20)
    assert intervals(**given, n_resamples=20, seed=1) != intervals(**given, n_resamples=20)
    base = by_key(intervals(**given, n_resamples=200))["pooled", "pcc_gene"]
    for arrays in (given["y_true"], given["y_pred"], given["mask"]):
        for s, a in arrays.items():
            arrays[s] = np.column_stack([a, np.full(len(a), 0.1 if a.dtype != bool else True)]).astype(a.dtype)
    more = by_key(intervals(**given, n_resamples=200))["pooled", "pcc_gene"]
    assert more == pytest.approx(base, abs=1e-9)


def test_nothing_to_score_is_nan():
    given = study(4)
    given["y_true"] = {s: np.ones_like(t) for s, t in given["y_true"].items()}
    rows = by_key(intervals(**given, n_resamples=20))
    assert all(math.isnan(rows["slide_mean", "pcc_gene"][k]) for k in ("estimate", "low", "high"))
    assert rows["pooled", "mse"]["high"] > 0


def test_a_paired_difference_is_narrower_than_either_score():
    given = study(5)
    rng = np.random.default_rng(55)
    second = {s: p + rng.normal(size=p.shape) * 0.7 for s, p in given["y_pred"].items()}
    first = given.pop("y_pred")
    rows = by_key(paired_intervals(**given, y_first=first, y_second=second))
    alone = by_key(intervals(**given, y_pred=first)), by_key(intervals(**given, y_pred=second))
    for key, row in rows.items():
        assert (row["first"], row["second"]) == (alone[0][key]["estimate"], alone[1][key]["estimate"])
        assert row["estimate"] == pytest.approx(row["first"] - row["second"])
    key = "slide_mean", "pcc_gene"
    row = rows[key]
    assert row["low"] > 0
    assert row["share_above"] == 1
    unpaired = math.hypot(*(rows[key]["high"] - rows[key]["low"] for rows in alone))
    assert row["high"] - row["low"] < unpaired / 2
    same = by_key(paired_intervals(**given, y_first=first, y_second=first))["pooled", "mse"]
    assert (same["low"], same["high"], same["share_above"]) == (0, 0, 0)


def test_genes():
    given = study(6)
    given["y_true"] = {s: np.column_stack([t, np.zeros(len(t))]) for s, t in given["y_true"].items()}
    given["y_pred"] = {s: np.column_stack([p, p[:, 0]]) for s, p in given["y_pred"].items()}
    del given["mask"]
    found = gene_intervals(**given, n_resamples=300)
    together = [np.concatenate(list(given[k].values())) for k in ("y_true", "y_pred")]
    np.testing.assert_allclose(found["estimate"], gene_scores(*together)[0], atol=1e-9)
    assert (found["low"][:5] < found["estimate"][:5]).all()
    assert (found["estimate"][:5] < found["high"][:5]).all()
    assert np.isnan([found["low"][5], found["high"][5]]).all()


def patients_of(rng, n):
    """Synthetic patients, each with its own strength of the relation."""
    truth = {str(i): rng.normal(size=(40, 3)) for i in range(n)}
    predicted = {s: t * rng.normal(0.6, 0.3) + rng.normal(size=t.shape) * 0.7 for s, t in truth.items()}
    return truth, predicted


def test_coverage_over_patients():
    rng = np.random.default_rng(11)
    expected = score_slides(*patients_of(rng, 1000))[1]["pcc_gene"]
    held = []
    for trial in range(100):
        t, p = patients_of(rng, 8)
        rows = intervals(t, p, patients={s: s for s in t}, n_resamples=400, seed=trial)
        row = by_key(rows)["slide_mean", "pcc_gene"]
        held.append(row["low"] <= expected <= row["high"])
    assert 0.86 <= np.mean(held) <= 0.98  # spots instead of patients: about .4


def test_coverage_over_blocks_and_not_over_spots():
    """Fields that are alike over some spots: blocks hold the true PCC of .6, single spots seldom do."""
    rng = np.random.default_rng(8)
    side, sigma = 32, 1.5
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    held = {"blocks": [], "spots": []}
    for trial in range(80):
        field = gaussian_filter(rng.normal(size=(side, side, 6)), (sigma, sigma, 0), mode="wrap").reshape(-1, 6)
        t, p = field[:, :3], field[:, :3] * 0.6 + field[:, 3:] * 0.8
        row = by_key(intervals({"a": t}, {"a": p}, coords={"a": xy}, n_resamples=300, seed=trial))["pooled", "pcc_gene"]
        held["blocks"].append(row["low"] <= 0.6 <= row["high"])
        error = np.abs(row["estimate"] - 0.6)
        held["spots"].append(error <= 1.96 * (1 - 0.6**2) / np.sqrt(3 * len(xy)))  # for independent spots
    assert 0.84 <= np.mean(held["blocks"]) <= 0.99
    assert np.mean(held["spots"]) < 0.6


def test_blocks_are_squares_whatever_the_order_and_unit():
    xy = np.stack(np.meshgrid(np.arange(40), np.arange(20)), axis=-1).reshape(-1, 2).astype(float)
    block = grid_blocks(xy, 8)
    assert sorted(np.unique(block)) == list(range(block.max() + 1))
    for b in range(block.max() + 1):
        assert (np.ptp(xy[block == b], axis=0) < 10).all()
    order = np.random.default_rng(9).permutation(len(xy))
    np.testing.assert_array_equal(grid_blocks(xy[order] * 7 - 3, 8), block[order])
    assert grid_blocks(np.zeros((4, 2))).tolist() == [0] * 4
    assert len(set(grid_blocks([[0, 0], [0, 1], [0, 60], [0, 100]], 2)[:2])) == 1  # a line is cut along itself
    assert len(set(grid_blocks([[0, 0], [0, 1], [0, 60], [0, 100]], 2))) == 3


def test_fast():
    """2,000 resamples of a real study's size; seconds are allowed, a fraction of one is usual."""
    rng = np.random.default_rng(10)
    t = {s: rng.normal(size=(2000, 128)) for s in "abcd"}
    started = time.perf_counter()
    gene_intervals(t, {s: v + 1 for s, v in t.items()}, coords={s: rng.random((2000, 2)) for s in t})
    assert time.perf_counter() - started < 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coords": None}, "no centres for its 60 spots"),
        ({"coords": {"s0": np.zeros((60, 2))}}, "slide s1 has no centres"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"n_resamples": 0}, "take 2000"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(InputError, match=words):
        intervals(**study() | change)


def test_heads_on_different_slides_and_a_single_place():
    given = study()
    first = given.pop("y_pred")
    with pytest.raises(InputError, match="slide s2 has predictions of one head only"):
        paired_intervals(**given, y_first=first, y_second={s: first[s] for s in ("s0", "s1")})
    t = {"a": np.arange(6.0).reshape(3, 2)}
    with pytest.raises(InputError, match="nothing to resample"):
        intervals(t, t, coords={"a": np.ones((3, 2))})
