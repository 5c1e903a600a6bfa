"""Partial least squares from sums of products."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.linear import LinearHead, gcv

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spared_fm.heads.moments import Moments

    Matrix = NDArray[np.float64]


class PLSPath:
    """PLS2 with 1 … ``components`` components, most first (the most shrunk comes last).

    Dayal & MacGregor 1997 (J Chemometrics 11:73), their second modified kernel algorithm: only the product of
    features with targets is deflated.
    """

    def __init__(self, sums: Moments, components: int) -> None:
        self.sums = sums
        d, g = sums.xy.shape
        R, Q = np.zeros((d, components)), np.zeros((components, g))
        P, xy = np.zeros((d, components)), sums.xy.copy()
        size, found = float(np.linalg.norm(sums.xy)), 0
        for a in range(min(components, d, max(sums.n - 1, 1))):
            w = _leading(xy)
            r = w - R[:, :a] @ (P[:, :a].T @ w)
            xr = sums.xx @ r
            tt = float(r @ xr)
            if np.linalg.norm(xy) <= 1e-12 * size or tt <= 0:  # nothing is left to explain
                break
            P[:, a], R[:, a], Q[a] = xr / tt, r, r @ xy / tt
            xy -= np.outer(P[:, a], Q[a]) * tt
            found = a + 1
        self.R, self.Q, self.components, self.found = R, Q, components, found

    def held_out(self, seen: Moments) -> Matrix:
        """Return squared errors (components descending, genes) of rows with the sums ``seen``."""
        M, N = self.R.T @ seen.xx @ self.R, self.R.T @ seen.xy
        error = np.empty((self.components, len(seen.yy)))
        for a in range(1, self.components + 1):
            Q = self.Q[:a]
            error[-a] = seen.yy + np.einsum("ij,ij->j", Q, M[:a, :a] @ Q - 2.0 * N[:a])
        return error

    def gcv(self, n: int) -> Matrix:
        """Return generalised cross-validation scores, each component counted as one degree of freedom."""
        return gcv(self.held_out(self.sums), np.arange(self.components, 0, -1.0), n)

    def coef(self, picked: NDArray[np.intp]) -> Matrix:
        """Return coefficients (d, genes) of one number of components per gene."""
        used = np.arange(self.components)[:, None] < self.components - picked
        return self.R @ (self.Q * used)


class PLS(LinearHead):
    """Partial least squares (PLS2): components of the features that covary most with the whole panel.

    Parameters
    ----------
    components
        Most components; how many are used is picked inside the training slides, one number for the panel.
    standardize, cv, block_rows
        As for `Ridge`. With ``cv="gcv"`` (and with a single slide) a component counts as one degree of freedom,
        which is too few (Krämer & Sugiyama 2011): many spots are needed for the choice to be a fair one.
        Targets are centred, not scaled: genes that vary much weigh more.

    Attributes
    ----------
    coef_
        (d, genes) float64, for standardised features.
    cv_error_
        (components, genes) float64, descending number of components.
    components_
        Number of components in use.
    """

    name: ClassVar[str] = "pls"

    def __init__(
        self,
        components: int = 32,
        *,
        standardize: Literal["slide", "train", "none"] = "slide",
        cv: Literal["auto", "patient", "slide", "gcv"] = "auto",
        block_rows: int = 8192,
    ) -> None:
        self.components = components
        self.standardize = standardize
        self.cv = cv
        self.block_rows = block_rows

    @property
    def components_(self) -> int:
        """Number of components in use."""
        return int(self.components - self.picked_[0])

    def _check_params(self) -> None:
        super()._check_params()
        if self.components < 1:
            raise InputError(f"pls components is {self.components}: use 1 or more")

    def _path(self, sums: Moments) -> PLSPath:
        return PLSPath(sums, self.components)


def _leading(xy: Matrix) -> Matrix:
    """Return the left singular vector (d,) of the largest singular value."""
    if xy.shape[1] > xy.shape[0]:
        return np.asarray(np.linalg.eigh(xy @ xy.T)[1][:, -1])
    w = xy @ np.linalg.eigh(xy.T @ xy)[1][:, -1]
    return w / max(float(np.linalg.norm(w)), np.finfo(np.float64).tiny)
