from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.targets.completion.scores import Sums, interval_scores, spot_interval, width


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 1), cut=st.integers(0, 40))
def test_scores_are_those_of_the_entries_and_add_up(seed, share, cut):
    rng = np.random.default_rng(seed)
    truth = rng.normal(9, 2, (40, 4))
    predicted = truth + rng.normal(0, 1, (40, 4))
    scored = rng.random((40, 4)) < share
    found = (
        Sums.of(predicted[:cut], truth[:cut], scored[:cut]) + Sums.of(predicted[cut:], truth[cut:], scored[cut:])
    ).scores()
    error = (predicted - truth)[scored]
    assert found["mse"] == pytest.approx(np.mean(error**2))
    assert found["mae"] == pytest.approx(np.mean(np.abs(error)))
    by_gene = [
        np.corrcoef(predicted[s, g], truth[s, g])[0, 1] for g, s in enumerate(scored.T) if np.count_nonzero(s) > 1
    ]
    assert found["pcc"] == pytest.approx(np.mean(by_gene), abs=1e-6)


def test_constant_predictions_count_as_zero_and_constant_truths_not_at_all():
    truth = np.array([[1.0, 5, 2], [2, 5, 3], [3, 5, 5]])
    predicted = np.array([[7.0, 1, 2], [7, 2, 3], [7, 3, 5]])
    found = Sums.of(predicted, truth, np.ones((3, 3), bool)).scores()
    assert found["pcc"] == pytest.approx(0.5)  # 0 of the first gene, 1 of the last


def test_nothing_scored_is_nan_and_unscored_entries_may_be_nan():
    assert np.isnan(list(Sums.of(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool)).scores().values())).all()
    found = Sums.of(np.array([[1.0, np.nan]]), np.array([[2.0, np.nan]]), np.array([[True, False]]))
    assert found.count == 1
    assert found.scores()["mse"] == 1


def test_the_bootstrap_draws_spots():
    """Entries of one spot agree: the interval is that of 50 spots, not of 5,000 entries."""
    rng = np.random.default_rng(0)
    level = rng.gamma(4, size=50)
    low, high = spot_interval(level * 100, np.full(50, 100), rng)
    assert low < level.mean() < high
    assert (high - low) / 3.92 == pytest.approx(level.std() / np.sqrt(50), rel=0.15)
    assert np.isnan(spot_interval(np.zeros(3), np.zeros(3), rng)).all()


def test_calibrated_intervals_cover_and_the_better_spread_scores_better():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.2, 3, 20_000)
    error = rng.normal(0, spread)
    half, constant = width(error[:10_000], spread[:10_000]) * spread[10_000:], width(error[:10_000])
    assert width(error, spread) == pytest.approx(1.645, abs=0.03)
    own, flat = interval_scores(error[10_000:], half), interval_scores(error[10_000:], constant)
    assert own["coverage"] == pytest.approx(0.9, abs=0.01)
    assert flat["coverage"] == pytest.approx(0.9, abs=0.01)
    assert own["interval_score"] < flat["interval_score"]
    assert interval_scores(np.array([0.0, 3]), 1.0) == {"coverage": 0.5, "interval_score": pytest.approx(2 + 20)}
