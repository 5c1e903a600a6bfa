from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion import lowrank
from spared_fm.targets.completion.data import Panel, Section, without
from spared_fm.targets.completion.lowrank import LowRankGaussian

MEAN = np.linspace(5, 8, 12)
LOADINGS = np.random.default_rng(7).normal(0, 1, (12, 3))
NOISE = np.linspace(0.1, 0.5, 12)


def drawn(seed: int, n: int = 1500, share: float = 0.7) -> Section:
    """SYNTHETIC: spots of the very model that is fitted."""
    rng = np.random.default_rng(seed)
    values = MEAN + rng.normal(size=(n, 3)) @ LOADINGS.T + rng.normal(size=(n, 12)) * np.sqrt(NOISE)
    visible = rng.random((n, 12)) < share
    values = np.where(visible, values, 0).astype(np.float32)
    return Section(f"s{seed}", values, visible, rng.uniform(0, 9, (n, 2)), np.ones(n, np.float32), 6)


@pytest.fixture(scope="module")
def fitted():
    panel = Panel(tuple("abcdefghijkl"), np.full(12, 0.7))
    return LowRankGaussian().fit([drawn(0), drawn(1)], [drawn(2)], panel)


def test_the_model_is_found_from_visible_entries(fitted):
    assert fitted.loadings.shape[1] == 4  # the smallest tried that holds three factors
    np.testing.assert_allclose(fitted.mean, MEAN, atol=0.15)
    wanted = LOADINGS @ LOADINGS.T + np.diag(NOISE)
    found = fitted.loadings @ fitted.loadings.T + np.diag(fitted.noise)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.06


def test_mean_and_spread_are_those_of_the_conditional_gaussian(fitted):
    one = drawn(3, n=20)
    completed = fitted.complete(one)
    covariance = fitted.loadings @ fitted.loadings.T + np.diag(fitted.noise)
    for spot in range(20):
        seen = one.visible[spot]
        inverse = np.linalg.inv(covariance[np.ix_(seen, seen)])
        gain = covariance[np.ix_(~seen, seen)] @ inverse
        mean = fitted.mean[~seen] + gain @ (one.values[spot, seen] - fitted.mean[seen])
        variance = np.diag(covariance[np.ix_(~seen, ~seen)] - gain @ covariance[np.ix_(seen, ~seen)])
        np.testing.assert_allclose(completed.values[spot, ~seen], mean, rtol=1e-4)
        np.testing.assert_allclose(completed.spread[spot, ~seen], np.sqrt(variance), rtol=1e-4)


def test_it_does_better_than_the_mean_and_knows_how_well(fitted):
    whole = drawn(4, share=1.0)
    hidden = np.random.default_rng(5).random(whole.values.shape) < 0.4
    completed = fitted.complete(without(whole, hidden))
    error = (completed.values - whole.values)[hidden]
    assert np.mean(error**2) < 0.4 * np.mean((fitted.mean - whole.values)[hidden] ** 2)
    assert np.mean((error / completed.spread[hidden]) ** 2) == pytest.approx(1, abs=0.1)


def test_blocks_do_not_change_the_result(fitted, monkeypatch):
    one = drawn(3, n=50)
    whole = fitted.complete(one)
    monkeypatch.setattr(lowrank, "_BLOCK_SPOTS", 7)
    np.testing.assert_allclose(fitted.complete(one).values, whole.values, rtol=1e-6)


def test_the_value_of_one_count_is_taken_out_and_put_back():
    """Sections shifted by that value, spot by spot, are completed to shifted values."""
    shift = np.random.default_rng(0).uniform(1, 4, (800, 12)).astype(np.float32)
    plain = drawn(0, n=800)
    values = np.where(plain.visible, plain.values + shift, 0).astype(np.float32)
    moved = Section("m", values, plain.visible, plain.xy, plain.library, 6, unit=shift)
    panel = Panel(tuple("abcdefghijkl"), np.full(12, 0.7))
    one, two = LowRankGaussian().fit([plain], [], panel), LowRankGaussian().fit([moved], [], panel)
    np.testing.assert_allclose(two.complete(moved).values, one.complete(plain).values + shift, atol=1e-3)


def test_many_spots_are_drawn_from(monkeypatch):
    panel = Panel(tuple("abcdefghijkl"), np.full(12, 0.7))
    monkeypatch.setattr(lowrank, "MAX_SPOTS", 300)
    one, two, other = (LowRankGaussian().fit([drawn(0)], [], panel, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.loadings, two.loadings)
    assert not np.array_equal(one.loadings, other.loadings)


def test_a_gene_seen_nowhere_and_nothing_seen_at_all():
    one = drawn(0, n=200)
    gone = np.zeros(one.visible.shape, bool)
    gone[:, 4] = True
    panel = Panel(tuple("abcdefghijkl"), np.full(12, 0.7))
    found = LowRankGaussian().fit([without(one, gone)], [], panel).complete(one)
    assert np.isfinite(found.values).all()
    assert np.isfinite(found.spread).all()
    with pytest.raises(InputError, match="nothing is visible"):
        LowRankGaussian().fit([without(one, ~gone | gone)], [], panel)
