from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.targets.completion.baselines import AdaptiveMedian
from spared_fm.targets.completion.data import (
    Completed,
    Completer,
    Panel,
    Section,
    fill,
    hide,
    mask_probability,
    neighbours,
    panel_of,
    without,
)
from tests.targets.conftest import hex_grid


def small(**changes) -> Section:
    given = {
        "slide": "s",
        "values": np.array([[1, 0], [2, 3]], np.float32),
        "visible": np.array([[True, False], [True, True]]),
        "xy": np.eye(2),
        "library": np.ones(2, np.float32),
        "k": 6,
    }
    return Section(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"visible": np.ones((2, 3), bool)}, "slide s: values .* do not fit"),
        ({"xy": np.eye(3)}, r"slide s: xy is \(3, 3\) for 2 spots"),
        ({"library": np.ones(3)}, "slide s: library"),
        ({"extra": np.ones((3, 1))}, "slide s: extra"),
        ({"unit": np.ones((3, 1))}, "slide s: unit"),
        ({"values": np.array([[1, 0], [2, np.nan]])}, "slide s: values holds NaN"),
        ({"xy": np.array([[1, 0], [2, np.inf]])}, "slide s: xy holds NaN"),
        ({"visible": np.zeros((2, 2), bool)}, "slide s: an entry that is not visible has a value"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        small(**changes)


def test_visible_values_are_put_back_to_the_bit():
    section = small()
    found = fill(section, Completed(np.full((2, 2), 7, np.float32), None))
    np.testing.assert_array_equal(found, [[1, 7], [2, 3]])
    assert found.dtype == np.float32


def test_neighbours_are_padded_on_small_slides():
    xy = hex_grid(5, 5)[2]
    found = neighbours(xy)
    assert found.shape == (25, 18)
    assert found.dtype == np.int64
    assert (found >= 0).all()
    few = neighbours(xy[:4])
    np.testing.assert_array_equal(few[:, 3:], -1)
    assert [sorted(row[:3]) for row in few] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    np.testing.assert_array_equal(neighbours(xy[:1], 2), [[-1, -1]])


def test_rules_hide_what_they_say():
    measured = np.array([1.0, 0.6, 0.5, 0.2, 0.0])
    np.testing.assert_allclose(mask_probability(measured, "spared"), [0.3, 0.5, 0.6, 1, 1])
    np.testing.assert_allclose(mask_probability(measured, "prob-median"), [0, 2 / 3, 1, 1, 1])
    np.testing.assert_array_equal(mask_probability(measured, 0.4), 0.4)
    for wrong in ("half", 1.5, -0.1):
        with pytest.raises(InputError, match="unknown rule"):
            mask_probability(measured, wrong)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_share_hides_more_of_the_same(seed, low, high):
    low, high = sorted((low, high))
    visible = np.random.default_rng(seed).random((20, 3)) < 0.7
    few, many = (hide(visible, np.full(3, share), np.random.default_rng(seed)) for share in (low, high))
    assert not (few & ~many).any()
    assert not (many & ~visible).any()


def test_what_is_hidden_does_not_depend_on_what_is_visible():
    visible = np.random.default_rng(0).random((30, 4)) < 0.5
    probability = np.array([0.2, 0.5, 0.9, 1.0])
    everywhere = hide(np.ones((30, 4), bool), probability, np.random.default_rng(1))
    np.testing.assert_array_equal(hide(visible, probability, np.random.default_rng(1)), everywhere & visible)
    assert everywhere[:, 3].all()


def test_without_hides_and_keeps_the_rest():
    section = small()
    found = without(section, np.array([[False, False], [True, False]]))
    np.testing.assert_array_equal(found.values, [[1, 0], [0, 3]])
    np.testing.assert_array_equal(found.visible, [[True, False], [False, True]])
    assert section.visible[1, 0]


def test_the_panel_knows_shares_of_training_spots():
    panel = panel_of([small(), replace(small(), slide="t")], ["a", "b"])
    np.testing.assert_array_equal(panel.measured, [1.0, 0.5])
    with pytest.raises(InputError, match="no training spot"):
        panel_of([], ["a"])
    with pytest.raises(InputError, match="slide s has 2 genes"):
        panel_of([small()], ["a"])
    with pytest.raises(InputError, match="panel: 1 genes"):
        Panel(("a",), np.ones(2))


def test_a_completer_is_known_by_its_methods():
    assert isinstance(AdaptiveMedian(), Completer)
    assert not isinstance(object(), Completer)
