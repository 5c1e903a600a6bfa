from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from spared_fm.targets.spared.graph import hops_around, slide_graph
from tests.targets.spared.synthetic import hex_xy


def square_xy(rows: int, cols: int) -> np.ndarray:
    r, c = np.divmod(np.arange(rows * cols), cols)
    return np.column_stack([c, r]).astype(float)


def test_hexagonal_rows_hold_the_six_nearest_also_on_the_border() -> None:
    xy = hex_xy(5, 6) + np.random.default_rng(0).normal(scale=1e-3, size=(30, 2))
    distance = np.linalg.norm(xy[:, None] - xy, axis=2)
    expected = np.argsort(distance, axis=1)[:, 1:7]
    dense = slide_graph(xy).toarray()
    for spot in range(30):
        assert set(np.flatnonzero(dense[spot])) == set(expected[spot])


def test_square_grid_has_touching_spots_only() -> None:
    xy = square_xy(5, 6)
    gap = np.abs(xy[:, None] - xy).max(axis=2)
    np.testing.assert_array_equal(slide_graph(xy, hex_geometry=False).toarray(), gap == 1)


@pytest.mark.parametrize("hexagonal", [True, False])
def test_hops_are_what_powers_of_the_graph_reach(hexagonal: bool) -> None:
    xy = hex_xy(6, 7) if hexagonal else square_xy(6, 7)
    graph = slide_graph(xy, hex_geometry=hexagonal)
    index, ends = hops_around(graph, 3)
    step = graph.toarray()
    total = np.zeros_like(step)
    for hop in range(1, 4):
        total += np.linalg.matrix_power(step, hop)
        for spot in range(len(xy)):
            around = index[ends[spot, 0] - 1 : ends[spot, hop]]
            assert around[0] == spot
            assert set(around[1:]) == set(np.flatnonzero(total[spot])) - {spot}
            assert len(set(around)) == len(around)


def test_one_spot_has_no_neighbours() -> None:
    for hexagonal in (True, False):
        graph = slide_graph(np.zeros((1, 2)), hex_geometry=hexagonal)
        assert graph.nnz == 0
        index, ends = hops_around(graph)
        assert index.tolist() == [0]
        assert ends.tolist() == [[1] * 5]


def test_hops_of_a_graph_in_which_every_spot_is_near_every_other() -> None:
    n = 150  # more entries than are expected of a grid
    graph = sp.csr_array(np.ones((n, n)) - np.eye(n))
    index, ends = hops_around(graph, 2)
    np.testing.assert_array_equal(np.sort(index.reshape(n, n), axis=1), np.tile(np.arange(n), (n, 1)))
    np.testing.assert_array_equal(ends[:, 1], ends[:, 2])
    assert ends[-1, 2] == n * n
