"""Solve (A + a·I) W = B for one symmetric A and many a: factor once, then each a is cheap.

Two forms with the same verbs. `Tridiagonal` keeps the reflectors of A = Q T Qᵀ and solves with T, which costs a
third of an eigendecomposition (the idea of Eldén 1977, BIT 17:134, who bidiagonalises the features). `Eigen` keeps
eigenvectors, all or those of the largest eigenvalues: needed for principal components and leverages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.linalg.lapack import dormqr, dptsv, dsytrd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

#: Columns per panel in LAPACK's blocked routines.
PANEL = 64


class Eigen:
    """A in its eigenbasis; with ``components`` only the largest eigenvalues are kept."""

    def __init__(self, A: Matrix, components: int | None = None) -> None:
        values, vectors = np.linalg.eigh(A)
        kept = slice(-min(components or len(A), len(A)), None)
        self.values: Matrix = np.maximum(values[kept], 0.0)  # rounding makes some negative
        self.vectors: Matrix = vectors[:, kept]

    def eigenvalues(self) -> Matrix:
        """Return the kept eigenvalues, ascending."""
        return self.values

    def rotate(self, B: Matrix) -> Matrix:
        """Return Qᵀ B, from (d, m) to (k, m)."""
        return self.vectors.T @ B

    def back(self, U: Matrix) -> Matrix:
        """Return Q U, from (k, m) to (d, m)."""
        return self.vectors @ U

    def congruent(self, S: Matrix) -> Matrix:
        """Return Qᵀ S Q of a symmetric S (d, d)."""
        return self.vectors.T @ S @ self.vectors

    def solve(self, alpha: float, P: Matrix) -> Matrix:
        """Return U with (Qᵀ A Q + alpha·I) U = P; alpha above 0."""
        return P / (self.values[:, None] + alpha)


class Tridiagonal:
    """A as Q T Qᵀ with T tridiagonal and Q kept as reflectors; A has at least 3 rows."""

    def __init__(self, A: Matrix) -> None:
        d = len(A)
        c, self.diagonal, self.off, self.tau, info = dsytrd(A, lower=1, lwork=d * PANEL)
        assert info == 0
        self.reflectors = np.asfortranarray(c[1:, :-1])
        # an alpha below the rounding of T would be lost in it, and T + alpha might not be positive
        self.least = 8 * d * np.finfo(np.float64).eps * float(np.abs(self.diagonal).max())

    def eigenvalues(self) -> Matrix:
        """Return all eigenvalues, ascending."""
        return np.maximum(eigvalsh_tridiagonal(self.diagonal, self.off), 0.0)

    def rotate(self, B: Matrix) -> Matrix:
        """Return Qᵀ B, (d, m)."""
        return self._reflect(B, "T")

    def back(self, U: Matrix) -> Matrix:
        """Return Q U, (d, m)."""
        return self._reflect(U, "N")

    def congruent(self, S: Matrix) -> Matrix:
        """Return Qᵀ S Q of a symmetric S (d, d)."""
        return self.rotate(self.rotate(S).T)

    def solve(self, alpha: float, P: Matrix) -> Matrix:
        """Return U with (T + alpha·I) U = P; alpha above 0."""
        _, _, found, info = dptsv(self.diagonal + max(alpha, self.least), self.off, P)
        assert info == 0
        return found

    def _reflect(self, B: Matrix, trans: str) -> Matrix:
        out = np.array(B, order="F")
        lower, _, info = dormqr("L", trans, self.reflectors, self.tau, out[1:], lwork=B.shape[1] * PANEL)
        assert info == 0
        out[1:] = lower
        return out


def factor(A: Matrix, components: int | None = None) -> Eigen | Tridiagonal:
    """Return the cheaper form: `Tridiagonal` unless only some components are wanted."""
    return Eigen(A, components) if components or len(A) < 3 else Tridiagonal(A)
