from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from spared_fm.errors import InputError
from spared_fm.heads.models.pixnet import PixNet, disc_shares

GRID, WIDTH = 4, 3


def planted(seed=0, spots=160):
    """Synthetic: a token's expression is its first number; a spot's is the sum over its disc. One gene is constant."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(spots, GRID, GRID, WIDTH)).astype(np.float32)
    y = np.einsum("nij,ij->n", tokens[..., 0], disc_shares(GRID, 0.8))
    groups = np.repeat(["a", "b", "c", "d"], spots // 4)
    return tokens, np.stack([y, np.full(spots, 2.0)], axis=1), groups


@pytest.fixture(scope="module")
def fitted():
    tokens, y, groups = planted()
    return PixNet(GRID, disc=0.8, width=16, steps=120, lr=5e-3, standardize="train").fit(
        tokens.reshape(160, -1), y, groups=groups
    )


@pytest.mark.full
def test_learns_where_expression_lies_from_sums(fitted):
    tokens, y, groups = planted(1)
    X = tokens.reshape(160, -1)
    found, dense = fitted.predict(X, groups=groups), fitted.predict_map(X, groups=groups)
    assert found.dtype == dense.dtype == np.float32
    assert ((found - y)[:, 0] ** 2).mean() < 0.3 * y[:, 0].var()
    assert dense.shape == (160, GRID, GRID, 2)
    np.testing.assert_allclose(np.einsum("nijg,ij->ng", dense, disc_shares(GRID, 0.8)), found, atol=1e-5)
    inner = np.s_[:, 1:3, 1:3]
    assert np.corrcoef(dense[..., 0][inner].ravel(), tokens[..., 0][inner].ravel())[0, 1] > 0.6
    np.testing.assert_allclose(dense[..., 1], 2.0, rtol=1e-6)


@pytest.mark.full
def test_same_seed_same_head_and_saved_weights(fitted):
    tokens, y, groups = planted()
    X = tokens.reshape(160, -1)
    small = [PixNet(GRID, width=8, steps=5).fit(X, y, groups=groups).predict(X, groups=groups) for _ in range(2)]
    np.testing.assert_array_equal(*small)
    loaded = PixNet.from_state(fitted.get_params(), fitted.state())
    np.testing.assert_array_equal(loaded.predict_map(X, groups=groups), fitted.predict_map(X, groups=groups))
    assert fitted.shown == "pixnet (small)"


@pytest.mark.full
def test_slides_longer_than_a_block_and_one_spot(fitted):
    tokens, *_ = planted(2, spots=600)  # 9,600 tokens
    X = tokens.reshape(600, -1)
    whole = fitted.predict(X)
    np.testing.assert_allclose(whole[[0, 257, 599]], [fitted.predict(X[[i]])[0] for i in (0, 257, 599)], rtol=1e-5)
    assert fitted.predict_map(X[:0]).shape == (0, GRID, GRID, 2)
    one = PixNet(GRID, width=8, steps=5).fit(X[:1], np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(one.predict(X[:1]), [[1.0, 3.0]])


def test_vectors_and_grids_that_do_not_halve():
    rng = np.random.default_rng(0)
    for grid, d in ((1, 5), (3, 18), (7, 49)):
        X = rng.normal(size=(20, d)).astype(np.float32)
        head = PixNet(grid, width=4, steps=2, size="published").fit(X, rng.normal(size=20))
        assert head.predict(X).shape == (20,)
        assert head.label == ""


def test_disc_shares():
    np.testing.assert_allclose(disc_shares(7, 2.0), 1 / 49)
    shares = disc_shares(2, 0.3)
    np.testing.assert_allclose(shares, 0.25)
    middle = disc_shares(3, 0.2)
    assert middle[1, 1] == 1.0
    ring = disc_shares(3, 1.0) * np.pi / 4 * 9  # in tokens
    assert ring[1, 1] == pytest.approx(1.0, abs=0.01)
    corner, _ = quad(lambda x: np.sqrt(1.5**2 - x**2) - 0.5, 0.5, np.sqrt(2.0))
    assert ring[0, 0] == pytest.approx(corner, rel=0.01)


@pytest.mark.parametrize(
    "bad", [{"grid": 3}, {"grid": 0}, {"disc": 0.0}, {"width": 0}, {"dropout": 1.0}, {"fit_on": "x"}]
)
def test_bad_parameters(bad):
    tokens, y, groups = planted()
    with pytest.raises(InputError, match=next(iter(bad))):
        PixNet(**{"grid": GRID} | bad).fit(tokens.reshape(160, -1), y, groups=groups)


def test_only_measured_entries_are_fitted():
    tokens, y, groups = planted()
    X, mask = tokens.reshape(160, -1), np.ones(y.shape, dtype=bool)
    mask[::2, 0] = False
    every, some = (PixNet(GRID, width=8, steps=5, fit_on=told).fit(X, y, mask, groups) for told in ("all", "measured"))
    assert not np.array_equal(every.predict(X), some.predict(X))
