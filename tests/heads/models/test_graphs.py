from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from spared_fm.errors import InputError
from spared_fm.heads.models.graphs import exemplars, nearest_table, pieces, relatives
from spared_fm.heads.neighbours import hop_table


def hexagons(rows=6, columns=6):
    y, x = np.mgrid[:rows, :columns]
    return np.column_stack([(x + 0.5 * (y % 2)).ravel() * 100.0, y.ravel() * 100.0 * np.sqrt(3) / 2])


def squares(rows=6, columns=6):
    return np.indices((rows, columns)).reshape(2, -1).T * 200.0


@pytest.mark.parametrize(("grid", "rings"), [(hexagons, (6, 18)), (squares, (8, 24))])
def test_rings_of_a_grid(grid, rings):
    coords = grid()
    middle = 2 * 6 + 2
    for hops, count in enumerate(rings, start=1):
        table = hop_table(coords, None, hops)
        assert table.shape[1] <= count
        found = table[middle][table[middle] >= 0]
        assert len(found) == count
        assert middle not in found
        distance = np.linalg.norm(coords[found] - coords[middle], axis=1)
        assert (np.diff(distance) >= -1e-9).all()
    assert (hop_table(coords, None, 1)[0] >= 0).sum() < rings[0]  # a corner has fewer
    assert hop_table(coords, None, 0).shape == (36, 0)
    assert hop_table(coords, None, 1, most=3).shape == (36, 3)


def test_slides_do_not_touch_and_one_spot_has_no_neighbours():
    coords, groups = np.vstack([squares(2, 2), squares(2, 2), [[0, 0]]]), np.repeat(["a", "b", "c"], [4, 4, 1])
    for table in (hop_table(coords, groups, 1, most=5), nearest_table(coords, groups, 5)):
        np.testing.assert_array_equal(np.sort(table[0]), [-1, -1, 1, 2, 3])
        np.testing.assert_array_equal(np.sort(table[5]), [-1, -1, 4, 6, 7])
        assert (table[8] == -1).all()


def test_nearest_reaches_over_the_border():
    coords = squares(1, 6)
    assert (nearest_table(coords, None, 4)[0] == [1, 2, 3, 4]).all()
    assert (hop_table(coords, None, 1, most=4)[0] == [1, -1, -1, -1]).all()
    double = np.zeros((4, 2))  # on top of each other: still never itself
    assert not (nearest_table(double, None, 2) == np.arange(4)[:, None]).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_pieces_are_bounded_and_own(rows, most, seed):
    rng = np.random.default_rng(seed)
    coords, groups = rng.normal(size=(rows, 2)), rng.integers(0, 3, rows)
    found = pieces(coords, groups, rows, most)
    assert np.bincount(found).max() <= most
    assert np.array_equal(np.unique(found), np.arange(found.max() + 1))
    for piece in np.unique(found):
        assert len(np.unique(groups[found == piece])) == 1
    alone = pieces(coords[groups == 0], None, int((groups == 0).sum()), most)
    np.testing.assert_array_equal(found[groups == 0] - found[groups == 0].min(initial=0), alone)


def test_pieces_are_compact():
    coords = np.column_stack([np.arange(40) % 20, np.arange(40) // 20]).astype(float)
    found = pieces(coords, None, 40, 20)
    assert np.ptp(coords[found == 0, 0]) < 10
    with pytest.raises(InputError, match="max_spots"):
        pieces(coords, None, 40, 0)


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
def test_exemplars_are_the_nearest_that_are_not_related(metric):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(40, 5)), rng.normal(size=(9, 5))
    own = np.repeat([0, 1, 2, 3], 10)
    name = {"l2": "euclidean", "l1": "cityblock", "cosine": "cosine"}[metric]
    np.testing.assert_array_equal(
        exemplars(queries, bank, 4, metric=metric), np.argsort(cdist(queries, bank, name), axis=1)[:, :4]
    )
    distance = cdist(bank, bank, name)
    distance[own[:, None] == own] = np.inf
    np.testing.assert_array_equal(exemplars(bank, bank, 6, metric=metric, own=own), np.argsort(distance)[:, :6])
    full = exemplars(bank, bank, 35, metric=metric, own=own)
    assert (full[:, 30:] == -1).all()
    alone = exemplars(bank, bank, 39, metric=metric, own=np.arange(40))
    assert not (alone == np.arange(40)[:, None]).any()
    assert (np.sort(alone, axis=1)[:, 0] >= 0).all()
    assert (exemplars(bank[:1], bank[:1], 3, own=np.zeros(1, dtype=int)) == -1).all()
    with pytest.raises(InputError, match="metric"):
        exemplars(queries, bank, 4, metric="x")


def test_relatives():
    coords = squares(8, 5)
    slides, patients = np.repeat(["a", "b", "c", "d"], 10), np.repeat(["p", "q"], 20)
    both = np.column_stack([slides, patients])
    np.testing.assert_array_equal(relatives(both, coords, 40), np.repeat([0, 1], 20))
    both[:, 1] = "p"
    np.testing.assert_array_equal(relatives(both, coords, 40), np.repeat([0, 1, 2, 3], 10))
    np.testing.assert_array_equal(np.bincount(relatives(None, coords, 40)), np.full(8, 5))
    np.testing.assert_array_equal(relatives(None, None, 40), np.arange(40))
