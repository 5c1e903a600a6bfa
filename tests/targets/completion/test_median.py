from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.targets.completion import median
from spared_fm.targets.completion.median import adaptive_median
from spared_fm.targets.neighbors import nearest
from tests.targets.conftest import hex_grid


def naive(values: np.ndarray, xy: np.ndarray, k: int, n_hops: int) -> np.ndarray:
    """SpaRED's rule, one entry at a time."""
    step = nearest(xy, k)
    out = values.copy()
    for i, g in np.argwhere(values == 0):
        column, reached = values[:, g], {int(i)}
        if not column.any():
            continue
        for _ in range(n_hops):
            reached |= {int(j) for spot in reached for j in step[spot]}
            if (m := np.median(column[sorted(reached)])) != 0:
                break
        else:
            m = np.median(column[column != 0])
        out[i, g] = m
    return out


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    g=st.integers(1, 5),
    k=st.integers(1, 8),
    n_hops=st.integers(1, 4),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_equals_the_naive_loop(n, g, k, n_hops, zeros, seed):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 1, (n, g)).astype(np.float32)
    values[rng.random((n, g)) < zeros] = 0
    xy = rng.uniform(0, 1000, (n, 2))
    found = adaptive_median(values, None, xy, k=k, n_hops=n_hops)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, naive(values, xy, k, n_hops))
    measured = values != 0
    assert found[measured].tobytes() == values[measured].tobytes()


def test_each_hop_and_the_fall_back_are_reached():
    """Values begin far from the corner spot, so that each stage has entries to fill."""
    xy = hex_grid(12, 12)[2]
    values = np.zeros((144, 2), np.float32)
    far = np.argsort(np.linalg.norm(xy - xy[0], axis=1))
    values[far[15:], 0] = np.arange(1, 130)
    found = adaptive_median(values, None, xy, k=6)
    np.testing.assert_array_equal(found, naive(values, xy, 6, 4))
    one_hop = adaptive_median(values, None, xy, k=6, n_hops=1)
    assert one_hop[0, 0] == np.median(np.arange(1, 130))  # nothing near: the slide's median
    assert found[0, 0] not in (0, one_hop[0, 0])
    assert (found[:, 1] == 0).all()  # a gene seen nowhere stays zero


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    values = (rng.random((30, 9)) * (rng.random((30, 9)) > 0.6)).astype(np.float32)
    xy = hex_grid(5, 6)[2]
    whole = adaptive_median(values, None, xy, k=6)
    monkeypatch.setattr(median, "_BLOCK_VALUES", 64)
    np.testing.assert_array_equal(adaptive_median(values, None, xy, k=6), whole)


def test_hidden_entries_are_filled_as_if_never_measured():
    rng = np.random.default_rng(1)
    values = rng.lognormal(0, 1, (30, 4)).astype(np.float32)
    values[rng.random((30, 4)) < 0.3] = 0
    mask = (values > 0) & (rng.random((30, 4)) < 0.7)
    xy = hex_grid(5, 6)[2]
    found = adaptive_median(values, mask, xy, k=6)
    np.testing.assert_array_equal(found, adaptive_median(np.where(mask, values, 0), None, xy, k=6))
    np.testing.assert_array_equal(found[mask], values[mask])


def test_the_input_is_left_alone():
    values = np.array([[0, 1], [2, 0], [1, 1]], np.float32)
    before = values.copy()
    adaptive_median(values, np.array([[False, True], [True, False], [True, True]]), np.eye(3, 2), k=2)
    np.testing.assert_array_equal(values, before)


def test_one_spot_has_nothing_to_learn_from():
    np.testing.assert_array_equal(adaptive_median(np.array([[0, 3]]), None, np.zeros((1, 2)), k=6), [[0, 3]])


@pytest.mark.parametrize(
    ("values", "mask", "xy"),
    [
        (np.array([[-1.0]]), None, np.zeros((1, 2))),
        (np.array([[np.nan]]), None, np.zeros((1, 2))),
        (np.ones((2, 1)), None, np.zeros((3, 2))),
        (np.ones((2, 1)), np.ones((2, 2), bool), np.zeros((2, 2))),
    ],
)
def test_bad_input_is_refused(values, mask, xy):
    with pytest.raises(InputError):
        adaptive_median(values, mask, xy, k=6)
