from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.neighbours import adjacency, check_coords, hop_means, hop_table


def square(side=5, pitch=200.0):
    return pitch * np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)


def test_square_has_eight_neighbours_and_hexagonal_six():
    near = adjacency(square(), None).toarray()
    np.testing.assert_array_equal(near, near.T)
    assert near[12].sum() == 8
    assert near[0].sum() == 3
    assert np.trace(near) == 0
    rows, cols = np.divmod(np.arange(49), 7)
    hexagonal = np.stack([cols + 0.5 * (rows % 2), rows * np.sqrt(3) / 2], axis=1)
    assert adjacency(hexagonal * 100, None).toarray()[24].sum() == 6


def test_nothing_between_slides_whose_spots_lie_at_the_same_place():
    xy, groups = np.concatenate([square(), square()]), np.repeat(["a", "b"], 25)
    near = adjacency(xy, groups).toarray()
    assert near[:25, 25:].sum() == 0
    np.testing.assert_array_equal(near[:25, :25], adjacency(square(), None).toarray())
    with pytest.raises(InputError, match="share their position"):
        adjacency(xy, None)


def test_hop_means_by_walking():
    xy = square()
    X = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    found = hop_means(X, None, xy, 2)
    steps = np.abs(xy[:, None] - xy[None]).max(axis=-1) / 200  # a king's moves
    np.testing.assert_array_equal(found[:, :3], X)
    for hop in (1, 2):
        for spot in range(25):
            ring = steps[spot] == hop
            np.testing.assert_allclose(found[spot, hop * 3 : hop * 3 + 3], X[ring].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_a_spot_without_neighbours_is_its_own_surroundings():
    X = np.arange(12.0).reshape(4, 3)
    alone = hop_means(X, ["a", "b", "b", "b"], np.array([[0, 0], [0, 0], [0, 1], [0, 50]]), 2)
    np.testing.assert_array_equal(alone[0], np.tile(X[0], 3))
    np.testing.assert_array_equal(alone[3], np.tile(X[3], 3))
    np.testing.assert_array_equal(alone[1], np.concatenate([X[1], X[2], X[2]]))


def test_table_has_the_nearest_first():
    table = hop_table(square(), None, 1, most=4)
    assert set(table[12]) == {7, 11, 13, 17}
    assert set(table[0]) == {1, 5, 6, -1}
    assert table[0, 3] == -1


@pytest.mark.parametrize("bad", [None, np.zeros((3, 2)), np.full((4, 2), np.nan), np.zeros((4, 3))])
def test_bad_coords(bad):
    with pytest.raises(InputError, match="coords"):
        check_coords(bad, 4, "x")
