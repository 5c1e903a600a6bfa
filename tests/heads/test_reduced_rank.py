from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.reduced_rank import ReducedRankRidge
from spared_fm.heads.ridge import Ridge


def study(n=90, d=10, genes=6, rank=2, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = X @ rng.normal(size=(d, rank)) @ rng.normal(size=(rank, genes)) + noise * rng.normal(size=(n, genes))
    return X, y * np.logspace(0, 2, genes), np.repeat(["a", "b", "c"], n // 3)


def explicit(X, y, alpha, rank):
    """Rows augmented by the penalty, fitted values projected on their leading right singular vectors."""
    std = y.std(axis=0)
    Z, t = X - X.mean(axis=0), (y - y.mean(axis=0)) / std
    d = X.shape[1]
    rows = np.vstack([Z, np.sqrt(alpha) * np.eye(d)])
    B = np.linalg.lstsq(rows, np.vstack([t, np.zeros((d, t.shape[1]))]), rcond=None)[0]
    V = np.linalg.svd(rows @ B)[2][:rank].T
    return lambda new: (new - X.mean(axis=0)) @ B @ V @ V.T * std + y.mean(axis=0)


def test_solution_and_inner_errors_match_the_definition():
    X, y, groups = study()
    alphas, ranks = [0.5, 20.0], [1, 3]
    head = ReducedRankRidge(alphas, ranks, standardize="none").fit(X, y, groups=groups)
    expected = np.zeros((4, y.shape[1]))
    for held in "abc":
        out = groups == held
        for i, (alpha, rank) in enumerate([(0.5, 3), (0.5, 1), (20.0, 3), (20.0, 1)]):
            expected[i] += ((explicit(X[~out], y[~out], alpha, rank)(X[out]) - y[out]) ** 2).sum(axis=0)
    np.testing.assert_allclose(head.cv_error_, expected / len(y), rtol=1e-8)
    alpha, rank = [(0.5, 3), (0.5, 1), (20.0, 3), (20.0, 1)][int(head.picked_[0])]
    np.testing.assert_allclose(head.predict(X), explicit(X, y, alpha, rank)(X), rtol=1e-8, atol=1e-8)


def test_full_rank_is_ridge_and_low_rank_is_found():
    X, y, groups = study()
    full = ReducedRankRidge([3.0], [99]).fit(X, y, groups=groups)
    plain = Ridge([3.0]).fit(X, y, groups=groups)
    np.testing.assert_allclose(full.predict(X, groups=groups), plain.predict(X, groups=groups), rtol=1e-7, atol=1e-7)
    X, y, groups = study(n=60, genes=20, rank=1, noise=3.0)
    head = ReducedRankRidge([1.0], [1, 2, 4, 20], standardize="none").fit(X, y, groups=groups)
    assert head.picked_[0] == 3
    assert np.linalg.matrix_rank(head.coef_, tol=1e-8 * np.linalg.norm(head.coef_)) == 1
    with pytest.raises(InputError, match="ranks"):
        ReducedRankRidge(ranks=[]).fit(X, y)
