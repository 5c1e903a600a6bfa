"""Reduced-rank ridge: genes share a few directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.linear import LinearHead, gcv
from spared_fm.heads.ridge import ALPHAS, ascending
from spared_fm.heads.spectral import factor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spared_fm.heads.moments import Moments

    Matrix = NDArray[np.float64]

RANKS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


class ReducedRankPath:
    """Candidates (alpha, rank), alphas ascending and within each the ranks descending.

    With B the ridge solution for an alpha and V the leading eigenvectors of Bᵀ(XᵀX + alpha·I)B, the solution of
    rank r is B V_r V_rᵀ (Mukherjee & Zhu 2011, Stat Anal Data Min 4:612).
    """

    def __init__(self, sums: Moments, alphas: Matrix, ranks: Sequence[int]) -> None:
        self.sums, self.alphas = sums, alphas
        genes = len(sums.yy)
        self.ranks = sorted({min(r, genes) for r in ranks}, reverse=True)
        std = np.sqrt(sums.yy / sums.n)
        self.std = np.where(std > 0, std, 1.0)
        self.basis = factor(sums.xx)
        self.P = self.basis.rotate(sums.xy / self.std)
        self.solutions = [self.basis.solve(alpha, self.P) for alpha in alphas]
        self.directions = [np.linalg.eigh(U.T @ self.P)[1][:, ::-1] for U in self.solutions]

    def held_out(self, seen: Moments) -> Matrix:
        """Return squared errors (alphas · ranks, genes) of rows with the sums ``seen``."""
        H, Q = self.basis.congruent(seen.xx), self.basis.rotate(seen.xy / self.std)
        error = []
        for U, V in zip(self.solutions, self.directions, strict=True):
            W = U @ V
            A, C = W.T @ (H @ W), W.T @ Q
            for r in self.ranks:
                v = V[:, :r].T
                error.append(seen.yy + self.std**2 * np.einsum("ij,ij->j", v, A[:r, :r] @ v - 2.0 * C[:r]))
        return np.array(error)

    def gcv(self, n: int) -> Matrix:
        """Return generalised cross-validation scores: a direction costs what a gene would in plain ridge."""
        values, genes = self.basis.eigenvalues(), len(self.std)
        df = [np.sum(values / (values + alpha)) * r / genes for alpha in self.alphas for r in self.ranks]
        return gcv(self.held_out(self.sums), np.array(df), n)

    def coef(self, picked: NDArray[np.intp]) -> Matrix:
        """Return coefficients (d, genes) of the one candidate that serves the panel."""
        i, j = divmod(int(picked[0]), len(self.ranks))
        V = self.directions[i][:, : self.ranks[j]]
        return self.basis.back(self.solutions[i] @ V @ V.T) * self.std


class ReducedRankRidge(LinearHead):
    """Ridge whose predictions of the panel lie in a few directions, so that genes lend each other strength.

    Alpha and rank are picked together inside the training slides, one pair for the panel. Genes are scaled to
    variance 1 for the choice of directions, so that loud genes don't own them.

    Parameters
    ----------
    alphas
        Penalties to choose from, each above 0.
    ranks
        Ranks to choose from; those above the number of genes are plain ridge.
    standardize, cv, block_rows
        As for `Ridge`. With ``cv="gcv"`` (and with a single slide) a direction counts as one gene's share of the
        degrees of freedom; that the directions were chosen isn't counted.

    Attributes
    ----------
    coef_
        (d, genes) float64, for standardised features.
    cv_error_
        (alphas · ranks, genes) float64: alphas ascending, and within each the ranks descending.
    """

    name: ClassVar[str] = "reduced-rank-ridge"

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        ranks: Sequence[int] = RANKS,
        *,
        standardize: Literal["slide", "train", "none"] = "slide",
        cv: Literal["auto", "patient", "slide", "gcv"] = "auto",
        block_rows: int = 8192,
    ) -> None:
        self.alphas = alphas
        self.ranks = ranks
        self.standardize = standardize
        self.cv = cv
        self.block_rows = block_rows

    def _check_params(self) -> None:
        super()._check_params()
        ascending(self.alphas, self.name)
        if not len(self.ranks) or min(self.ranks) < 1:
            raise InputError(f"{self.name} ranks are {list(self.ranks)}: give whole numbers of 1 or more")

    def _path(self, sums: Moments) -> ReducedRankPath:
        return ReducedRankPath(sums, ascending(self.alphas, self.name), self.ranks)
