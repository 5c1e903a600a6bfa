from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.targets.spared.graph import Hops, hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median
from tests.targets.spared.synthetic import hex_xy


def by_the_words(values: np.ndarray, hops: Hops) -> np.ndarray:
    out = values.copy()
    for spot, gene in zip(*np.nonzero(values == 0), strict=True):
        column = values[:, gene]
        medians = [np.median(column[hops.spots[ends[0] - 1 : end]]) for ends in [hops.ends[spot]] for end in ends[1:]]
        found = [m for m in medians if m != 0]
        if found:
            out[spot, gene] = found[0]
        elif column.any():
            out[spot, gene] = np.median(column[column != 0])
    return out


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), hexagonal=st.booleans(), ties=st.booleans())
def test_the_kernel_does_what_the_words_say(seed: int, share: float, hexagonal: bool, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    xy = hex_xy(6, 7)
    values = rng.integers(1, 4, (42, 5)) * 0.7 if ties else rng.gamma(2, size=(42, 5))
    values = values * (rng.random((42, 5)) >= share)
    values[:, 4] = 0
    values[3, 4] = 2.5  # one value on the slide: only the last resort reaches far spots
    values[:, 3] *= seed % 2  # sometimes a gene without any value
    hops = hops_around(slide_graph(xy, hex_geometry=hexagonal))
    np.testing.assert_array_equal(complete_median(values, hops), by_the_words(values, hops))


def test_missing_entries_are_filled_and_measured_zeros_stay() -> None:
    rng = np.random.default_rng(5)
    hops = hops_around(slide_graph(hex_xy(9, 8)))
    values, missing = rng.gamma(2, size=(72, 6)), rng.random((72, 6)) < 0.6
    values[~missing & (rng.random((72, 6)) < 0.3)] = 0
    expected = np.where(missing, by_the_words(np.where(missing, 0, values), hops), values)
    np.testing.assert_array_equal(complete_median(values, hops, missing), expected)


def test_single_precision_stays_single_and_is_taken_in_it() -> None:
    rng = np.random.default_rng(6)
    hops = hops_around(slide_graph(hex_xy(9, 8)))
    values = (rng.gamma(2, size=(72, 6)) * (rng.random((72, 6)) > 0.5)).astype(np.float32)
    filled = complete_median(values, hops)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled, by_the_words(values, hops))
    assert complete_median((values > 0).astype(np.int64), hops).dtype == np.float64


def test_more_genes_than_fit_a_block_and_any_memory_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    hops = hops_around(slide_graph(hex_xy(6, 7)))
    values = rng.gamma(2, size=(42, 150)) * (rng.random((42, 150)) > 0.6)
    whole = complete_median(values, hops)
    np.testing.assert_array_equal(whole, by_the_words(values, hops))
    monkeypatch.setattr("spared_fm.targets.spared.median._BLOCK_VALUES", 1)
    np.testing.assert_array_equal(complete_median(np.asfortranarray(values), hops), whole)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_values_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="non-negative"):
        complete_median(np.array([[bad]]), hops_around(slide_graph(np.zeros((1, 2)))))


def test_shapes_that_do_not_fit_are_refused() -> None:
    hops = hops_around(slide_graph(hex_xy(3, 3)))
    with pytest.raises(InputError, match=r"\(8, 2\) values do not fit the 9 spots"):
        complete_median(np.ones((8, 2)), hops)
    with pytest.raises(InputError, match=r"mask \(9, 1\) does not fit values \(9, 2\)"):
        complete_median(np.ones((9, 2)), hops, np.ones((9, 1), bool))


def test_a_slide_of_one_spot_and_one_of_zeros_stay_as_they_are() -> None:
    alone = hops_around(slide_graph(np.zeros((1, 2))))
    assert complete_median(np.array([[0.0, 3.0]]), alone).tolist() == [[0, 3]]
    hops = hops_around(slide_graph(hex_xy(4, 4)))
    assert not complete_median(np.zeros((16, 3)), hops).any()
    assert complete_median(np.zeros((16, 0)), hops).shape == (16, 0)


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    hops = hops_around(slide_graph(hex_xy(20, 30)))
    values = rng.gamma(2, size=(600, 130)) * (rng.random((600, 130)) > 0.6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = complete_median(values, hops)
    monkeypatch.setattr("spared_fm.targets.spared.median._threads", lambda: 3)
    np.testing.assert_array_equal(complete_median(values, hops), one)


def test_a_hole_in_dense_expression_takes_a_middle_value_of_the_far_hops() -> None:
    rng = np.random.default_rng(9)
    row, column = np.divmod(np.arange(121), 11)
    values = rng.gamma(2, size=(121, 3))
    values[(abs(row - 5) <= 2) & (abs(column - 5) <= 2)] = 0  # at four hops 56 of 81 are left: far more than are needed
    xy = np.column_stack([column, row]).astype(float)
    hops = hops_around(slide_graph(xy, hex_geometry=False))
    np.testing.assert_array_equal(complete_median(values, hops), by_the_words(values, hops))
