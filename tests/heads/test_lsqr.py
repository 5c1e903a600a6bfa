from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import lsqr

from spared_fm.heads.lsqr import diagonal_lsqr


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-12])
@pytest.mark.parametrize("alpha", [0.01, 5.0])
@pytest.mark.parametrize("most", [3, 1000])
def test_stops_where_scipy_does_on_the_rows_themselves(tol, alpha, most):
    rng = np.random.default_rng(0)
    A = np.linalg.qr(rng.normal(size=(80, 12)))[0] * np.linspace(1, 6, 12)
    y = A @ rng.normal(size=(12, 5)) + rng.normal(size=(80, 5)) * np.array([0, 0, 1, 10, 100])
    y[:, 0] += 3.0
    theirs = [lsqr(A, column, damp=np.sqrt(alpha), atol=tol, btol=tol, iter_lim=most)[0] for column in y.T]
    root = np.linalg.norm(A, axis=0)
    b = (A / root).T @ y
    rest = np.sqrt((y**2).sum(axis=0) - (b**2).sum(axis=0))
    found = diagonal_lsqr(root, b, rest, alpha, tol=tol, most=most)
    np.testing.assert_allclose(found, np.transpose(theirs), rtol=1e-6, atol=1e-8)


def test_nothing_to_fit():
    found = diagonal_lsqr(
        np.array([2.0, 0.0, 1.0]), np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]), np.array([4.0, 0]), 1.0
    )
    np.testing.assert_allclose(found, [[0, 0.4], [0, 0], [0, 0.5]], atol=1e-3)
    assert (diagonal_lsqr(np.zeros(2), np.zeros((2, 1)), np.ones(1), 1.0) == 0).all()
