from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion.baselines import AdaptiveMedian, GeneMean, NeighborMean
from spared_fm.targets.completion.data import Completed, fill, hide, mask_probability, panel_of
from spared_fm.targets.completion.evaluate import ALL, FLOOR, evaluate, fit, floor_sums, ratio
from spared_fm.targets.completion.hiding import Counts, rng_of, section, truth
from spared_fm.targets.completion.lowrank import LowRankGaussian
from tests.targets.completion.slides import study

GENES = tuple(f"g{i}" for i in range(10))
METHODS = {cls.name: cls for cls in (AdaptiveMedian, NeighborMean, GeneMean, LowRankGaussian)}


@pytest.fixture(scope="module")
def raw():
    return study()


@pytest.fixture(scope="module")
def panel(raw):
    return panel_of([section(one) for one in raw if one.split == "train"], GENES)


@pytest.fixture(scope="module")
def fitted(raw):
    return fit(METHODS, raw, GENES)


@pytest.fixture(scope="module")
def evaluation(fitted, raw, panel):
    return evaluate(fitted, raw, panel, rules=("spared", 0.2), repeats=2)


def test_rows_are_there_once_for_each_method_slide_rule_and_repeat(evaluation):
    keys = [tuple(row[k] for k in ("method", "split", "slide", "share_hidden", "repeat")) for row in evaluation.rows]
    assert len(set(keys)) == len(keys) == 5 * 2 * 2 * 2 * 2
    wanted = {f"{key}{metric}" for key in ("", "raw_", "zeros_") for metric in ("mse", "mae", "pcc")}
    for row in evaluation.rows:
        assert row["method"] == FLOOR or wanted <= set(row)
        assert np.isfinite([value for value in row.values() if isinstance(value, float)]).all()
    assert len(evaluation.summary) == 5 * 2 * 2


def test_a_score_is_what_a_loop_finds(evaluation, fitted, raw, panel):
    """Of one row, from the counts on."""
    one = raw[-1]
    drawn = hide(np.ones(one.counts.shape, bool), mask_probability(panel.measured, 0.2), rng_of("x", 1))
    hidden = drawn & (one.counts > 0)
    predicted = fitted["neighbor-mean"].complete(section(one, hidden)).values
    found = row(evaluation, "neighbor-mean", "x", 0.2, 1)
    error = predicted - truth(one, hidden)
    assert found["entries"] == hidden.sum()
    assert found["hidden"] == pytest.approx(hidden.sum() / (one.counts > 0).sum())
    assert found["mse"] == pytest.approx(np.mean(error[hidden] ** 2))
    assert found["mae"] == pytest.approx(np.mean(np.abs(error[hidden])))
    assert found["raw_mse"] == pytest.approx(np.mean((predicted - truth(one))[hidden] ** 2))
    assert found["zeros_mse"] == pytest.approx(np.mean(error[drawn] ** 2))
    assert drawn.sum() > hidden.sum()


def test_the_same_entries_are_hidden_for_every_method(raw, panel):
    seen: dict[str, list[bytes]] = {"one": [], "two": []}

    class Watch(GeneMean):
        def complete(self, given):
            seen[self.label].append(given.visible.tobytes())
            return super().complete(given)

    fitted = fit({"one": Watch, "two": Watch}, raw, GENES)
    for name in fitted:
        fitted[name].label = name
    evaluate(fitted, raw, panel, rules=(0.5,), repeats=2)
    assert seen["one"] == seen["two"]
    assert len(set(seen["one"])) == 4


@pytest.mark.parametrize("layer", ["log1p", "lognorm"])
def test_hidden_counts_reach_no_input_and_no_output(raw, panel, layer):
    """Whatever the hidden counts are, what methods get and what they give is the same to the bit."""
    one = raw[-1]
    fitted = fit(METHODS, raw, GENES, layer=layer)
    hidden = hide(one.counts > 0, mask_probability(panel.measured, "spared"), rng_of("x", 0))
    other = replace(one, counts=np.where(hidden, 1 + 7 * one.counts[::-1], one.counts))
    for name, completer in fitted.items():
        here, there = (completer.complete(section(slide, hidden, layer)) for slide in (one, other))
        assert here.values.tobytes() == there.values.tobytes(), name
        assert fill(section(one, hidden, layer), here).tobytes() == fill(section(other, hidden, layer), there).tobytes()
        if here.spread is not None:
            assert here.spread.tobytes() == there.spread.tobytes(), name


def test_test_slides_do_not_touch_the_fit(raw, fitted):
    other = [replace(one, counts=one.counts * 5 + 1) if one.split == "test" else one for one in raw]
    again = fit(METHODS, other, GENES)
    given = section(raw[0])
    for name in METHODS:
        assert again[name].complete(given).values.tobytes() == fitted[name].complete(given).values.tobytes()


def test_pooled_scores_are_over_entries_not_over_slides(raw, panel, fitted):
    found = evaluate(fitted, raw, panel, rules=(0.3,), repeats=1, splits=("train",))
    slides = [row(found, "gene-mean", slide, 0.3, 0) for slide in ("t1", "t2", "t3")]
    entries = np.array([one["entries"] for one in slides])
    pooled = row(found, "gene-mean", ALL, 0.3, 0)
    assert pooled["entries"] == entries.sum()
    assert pooled["mse"] == pytest.approx(np.average([one["mse"] for one in slides], weights=entries))


def test_slides_besides_change_no_row_of_a_slide(evaluation, fitted, raw, panel):
    more = [replace(raw[-1], slide="y"), *raw]
    found = evaluate({"neighbor-mean": fitted["neighbor-mean"]}, more, panel, rules=(0.2,), repeats=1)
    assert row(found, "neighbor-mean", "x", 0.2, 0)["mse"] == row(evaluation, "neighbor-mean", "x", 0.2, 0)["mse"]


def test_the_summary_has_means_and_intervals(evaluation):
    for one in evaluation.summary:
        own = [
            r
            for r in evaluation.rows
            if r["slide"] == ALL and all(r[k] == one[k] for k in ("method", "split", "share_hidden"))
        ]
        assert one["repeats"] == 2
        assert one["mse"] == pytest.approx(np.mean([r["mse"] for r in own]))
        if one["method"] != FLOOR:
            assert one["mse_low"] < one["mse"] < one["mse_high"]
            assert one["mae_low"] < one["mae"] < one["mae_high"]
            assert one["pcc_low"] <= one["pcc"] <= one["pcc_high"]
    found = ratio(evaluation, "test", "spared", "neighbor-mean", "adaptive-median")
    means = {
        one["method"]: one["mse"]
        for one in evaluation.summary
        if one["split"] == "test" and one["share_hidden"] == "spared"
    }
    assert found == pytest.approx(means["neighbor-mean"] / means["adaptive-median"])


def test_intervals_are_calibrated_on_validation_slides(evaluation):
    test = row(evaluation, "low-rank-gaussian", ALL, "spared", 1)
    assert 0.7 < test["coverage"] < 1
    val = [r for r in evaluation.rows if r["slide"] == ALL and r["split"] == "val" and r["method"] == "gene-mean"]
    assert val[0]["repeat"] == 0
    assert val[0]["coverage"] == pytest.approx(0.9, abs=0.02)
    assert {"interval_score", "interval_score_constant"} <= set(test)
    assert "coverage" not in row(evaluation, "adaptive-median", ALL, "spared", 1)


def test_the_floor_is_the_variance_of_counting():
    """Against the variance of a measured value at half depth, of counts whose rate is known."""
    rng = np.random.default_rng(0)
    rate, n = 24.0, 4000
    counts = rng.poisson(rate, (n, 2)).astype(float)
    rest = np.full(n, 1e5)
    one = Counts("s", "test", counts, rest, rest / 1000, np.full(2, 1000.0), rng.random((n, 2)), 6)
    hidden = np.ones(counts.shape, bool)
    half = rng.poisson(rate / 2, 200_000)
    scale = 1e6 / (1e5 / 1000)
    wanted = np.log2(1 + 2 * half[half > 0] / 1000 * scale).var()
    found = floor_sums(one, hidden, "log1p", 0)
    assert found.scores()["mse"] / 2 == pytest.approx(wanted, rel=0.05)
    assert found.sums[1].sum() / found.count == pytest.approx(np.log2(1 + rate / 1000 * scale), rel=0.03)  # full depth
    assert floor_sums(replace(one, counts=counts + 0.5), hidden, "log1p", 0) is None


def test_a_method_that_knows_the_truth_has_no_error_but_the_shift_of_the_raw_target(raw, panel):
    """The scale of the test itself: predictions equal to the truth."""

    class Oracle(GeneMean):
        def complete(self, given):
            one = next(slide for slide in raw if slide.slide == given.slide)
            return Completed(truth(one, (one.counts > 0) & ~given.visible).astype(np.float32), None)

    found = row(evaluate({"o": Oracle()}, raw, panel, rules=(0.5,), repeats=1), "o", "x", 0.5, 0)
    assert found["mse"] < 1e-10
    assert found["pcc"] == pytest.approx(1)
    assert found["raw_mse"] > 1e-4


def test_progress_is_told_and_bad_questions_are_refused(raw, panel, fitted):
    told = []
    some = {"gene-mean": fitted["gene-mean"]}
    evaluate(some, raw, panel, rules=(0.2,), repeats=2, progress=lambda *step: told.append(step[:2]))
    assert told == [(i, 4) for i in range(1, 5)]
    with pytest.raises(InputError, match="unknown split 'dev'"):
        evaluate(some, raw, panel, splits=("dev",))
    with pytest.raises(InputError, match="no slide is of split test"):
        evaluate(some, raw[:-1], panel)
    with pytest.raises(InputError, match="unknown rule"):
        evaluate(some, raw, panel, rules=("most",))
    with pytest.raises(InputError, match="no training spot"):
        fit(METHODS, raw[-1:], GENES)


def row(evaluation, method, slide, rule, repeat):
    return next(
        r
        for r in evaluation.rows
        if (r["method"], r["slide"], r["share_hidden"], r["repeat"]) == (method, slide, rule, repeat)
        and (slide != ALL or r["split"] in ("test", "train"))
    )
