from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.heads.spectral import Eigen, Tridiagonal, factor


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(1, 40), st.sampled_from([1e-3, 1.0, 1e4]))
def test_both_forms_solve(seed, d, n, alpha):
    rng = np.random.default_rng(seed)
    X, B, S = rng.normal(size=(n, d)), rng.normal(size=(d, 3)), rng.normal(size=(d, d))
    A, S = X.T @ X, S + S.T
    expected = np.linalg.solve(A + alpha * np.eye(d), B)
    for basis in (Eigen(A), Tridiagonal(A)):
        U = basis.solve(alpha, basis.rotate(B))
        np.testing.assert_allclose(basis.back(U), expected, rtol=1e-6, atol=1e-6 / alpha)
        np.testing.assert_allclose(np.sort(basis.eigenvalues()), np.linalg.eigvalsh(A).clip(0), atol=1e-9)
        # uᵀ (QᵀSQ) u is wᵀ S w
        w = basis.back(U)
        scale = np.abs(w).max() ** 2 * np.abs(S).sum()
        np.testing.assert_allclose(U.T @ basis.congruent(S) @ U, w.T @ S @ w, atol=1e-10 * scale)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_small_and_zero_matrices(d):
    basis = factor(np.zeros((d, d)))
    np.testing.assert_allclose(basis.back(basis.solve(2.0, basis.rotate(np.ones((d, 1))))), 0.5)
    assert isinstance(factor(np.eye(d), 1), Eigen)
    assert len(factor(np.eye(d), 1).eigenvalues()) == 1


def test_the_input_is_left_alone():
    A = np.diag(np.arange(1.0, 7.0))
    B = np.ones((6, 2))
    basis = Tridiagonal(A)
    basis.back(basis.solve(1.0, basis.rotate(B)))
    np.testing.assert_array_equal(A, np.diag(np.arange(1.0, 7.0)))
    np.testing.assert_array_equal(B, 1.0)
