from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.targets.neighbors import grid_layout, knn_graph, nearest
from tests.targets.conftest import hex_grid


def square_grid(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r, c = np.divmod(np.arange(rows * cols), cols)
    return r, c, np.column_stack([c, r]).astype(float)


def test_layouts_are_told_apart():
    assert grid_layout(*hex_grid(5, 6)[:2]) == "hex"
    assert grid_layout(*square_grid(5, 6)[:2]) == "square"
    assert grid_layout(None, None) is None
    assert grid_layout(np.array([0, 0.5]), np.array([1, 2])) is None
    assert grid_layout(np.array([0, np.nan]), np.array([1, 2])) is None
    assert grid_layout(np.array([0, 10, 20]), np.array([0, 17, 31])) is None


def test_real_layouts(shared_data):
    import anndata as ad

    legacy = ad.read_h5ad(shared_data / "her2st_C2" / "counts.h5ad").obs
    assert grid_layout(legacy["array_row"].to_numpy(), legacy["array_col"].to_numpy()) == "square"


@pytest.mark.parametrize(("grid", "k", "reach"), [(hex_grid, 6, 1.01), (square_grid, 8, 1.5)])
def test_inner_spots_have_their_grid_neighbours(grid, k, reach):
    xy = grid(7, 7)[2]
    centre = 24
    ring = np.flatnonzero((d := np.linalg.norm(xy - xy[centre], axis=1)) < reach)
    assert d[centre] == 0
    assert set(nearest(xy * 137.3, k)[centre]) == set(ring) - {centre}


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 25), st.integers(1, 8), st.integers(0, 2**16))
def test_nearest_equals_brute_force(n, k, seed):
    xy = np.random.default_rng(seed).uniform(0, 1000, (n, 2))
    found = nearest(xy, k)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(found, np.argsort(distance, axis=1)[:, : min(k, n - 1)])


def test_coincident_spots_are_neighbours_and_never_their_own():
    found = nearest(np.zeros((4, 2)), 3)
    for spot, row in enumerate(found):
        assert sorted(row) == [i for i in range(4) if i != spot]


@pytest.mark.parametrize("grid", [hex_grid, square_grid])
@pytest.mark.parametrize("scale", [1.0, 0.1, 144.9062717])
def test_ties_go_by_index_at_any_scale(grid, scale):
    xy = grid(6, 6)[2]
    np.testing.assert_array_equal(nearest(xy * scale, 6), nearest(xy, 6))
    assert nearest(square_grid(3, 3)[2], 1)[4] == 1  # of the four at one distance, the lowest index


def test_normalised_rows_sum_to_one():
    graph = knn_graph(hex_grid(4, 4)[2], 6, normalize=True)
    np.testing.assert_allclose(graph.sum(axis=1), 1)
    assert graph.diagonal().sum() == 0
