"""Ridge regression for all alphas and all genes from one pass over the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import RowBlocks, slide_rows
from spared_fm.heads.linear import LinearHead, Path, Sums, gcv
from spared_fm.heads.scaling import standardised
from spared_fm.heads.spectral import Eigen, factor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from spared_fm.heads.base import Block
    from spared_fm.heads.moments import Moments

    Matrix = NDArray[np.float64]

#: Thirteen penalties, half a decade apart, from almost none to almost the gene mean.
ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-1, 5, 13))
#: The same from a hundredth to a million, for features of any scale and number.
WIDE: tuple[float, ...] = tuple(float(a) for a in np.logspace(-2, 6, 17))


class RidgePath:
    """Ridge for every alpha on one training set, from one factorisation.

    Parameters
    ----------
    sums
        Centred sums of the training rows.
    alphas
        Penalties, ascending.
    components
        Only so many principal components of the features, all if None.
    eigen
        Keep eigenvectors also where all components are used.
    """

    def __init__(self, sums: Moments, alphas: Matrix, components: int | None = None, *, eigen: bool = False) -> None:
        self.sums, self.alphas = sums, alphas
        self.basis = Eigen(sums.xx, components) if eigen else factor(sums.xx, components)
        self.P = self.basis.rotate(sums.xy)

    def held_out(self, seen: Moments) -> Matrix:
        """Return squared errors (alphas, genes) of rows with the sums ``seen``."""
        H, Q = self.basis.congruent(seen.xx), self.basis.rotate(seen.xy)
        error = np.empty((len(self.alphas), len(seen.yy)))
        for i, alpha in enumerate(self.alphas):
            U = self.basis.solve(alpha, self.P)
            error[i] = seen.yy + np.einsum("ij,ij->j", U, H @ U - 2.0 * Q)
        return error

    def gcv(self, n: int) -> Matrix:
        """Return generalised cross-validation scores (alphas, genes)."""
        sse = np.empty((len(self.alphas), self.P.shape[1]))
        for i, alpha in enumerate(self.alphas):
            U = self.basis.solve(alpha, self.P)
            sse[i] = self.sums.yy - np.einsum("ij,ij->j", U, self.P + alpha * U)
        values = self.basis.eigenvalues()
        return gcv(sse, np.array([np.sum(values / (values + alpha)) for alpha in self.alphas]), n)

    def coef(self, picked: NDArray[np.intp]) -> Matrix:
        """Return coefficients (d, genes) of one alpha per gene."""
        U = np.empty_like(self.P)
        for i in np.unique(picked):
            genes = picked == i
            U[:, genes] = self.basis.solve(self.alphas[i], self.P[:, genes])
        return self.basis.back(U)


class Ridge(LinearHead):
    """Linear regression with an L2 penalty that is picked inside the training slides.

    For gene j and penalty a, ``w = argmin |y_j - b - Z w|² + a |w|²`` with ``Z`` the standardised features:
    the objective of scikit-learn's ``Ridge``, so an alpha means the same in both. Rows are read once; means,
    products of features and products of features with targets are kept per slide in float64, and everything
    else is algebra on those: the products are factored once, and every alpha costs a solve with what the
    factorisation left (Hoerl & Kennard 1970).

    Parameters
    ----------
    alphas
        Penalties to choose from, each above 0.
    components
        Regress on so many principal components of the standardised features (of the training spots, and of the
        training spots of each inner fold). None: on the features.
    alpha_per
        ``"all"``: one alpha for the whole panel, minimising the mean over genes of error ÷ variance
        (constant genes don't vote). ``"gene"``: one alpha for each gene. Ties go to the larger alpha.
    standardize
        ``"slide"``: each slide's features get mean 0 and variance 1 from that slide's own spots, in training
        and in prediction. This uses the images of the predicted slide (all rows of a group passed to one
        ``predict``; all rows if no groups are given), never its expression; a single spot predicted alone is
        its own mean and gets the training mean of each gene. A head fitted without groups knows no slides and
        standardises as ``"train"`` unless ``predict`` gets groups. ``"train"``: mean and variance of the pooled
        training spots. ``"none"``: features as they are. Constant features count as 0.
    cv
        How the alpha is picked. ``"patient"``, ``"slide"``: each is predicted by a fit on the others
        (standardisation and components included) and squared errors are summed over all spots. ``"gcv"``:
        ``n·SSE / (n - df)²``, the intercept counted in ``df`` (Golub, Heath & Wahba 1979). ``"loo"``: exact
        leave-one-spot-out with standardisation and components held fixed, as scikit-learn's ``RidgeCV``; the rows are
        read twice. ``"auto"``: by patient if there are two or more, else by slide if there are two or more,
        else ``"gcv"``.
    block_rows
        Most rows that are held in float64 at a time.

    Attributes
    ----------
    coef_
        (d, genes) float64, for standardised features.
    intercept_
        (genes,) float64.
    alpha_
        (genes,) float64, the penalty of each gene.
    cv_error_
        (alphas, genes) float64, penalties ascending: mean squared error on what was left out, or the GCV score.

    Notes
    -----
    Memory is one block plus 8·d·(d + genes) bytes per slide. Features may be float16 and memory-mapped.
    """

    name: ClassVar[str] = "ridge"
    cv_choices: ClassVar[tuple[str, ...]] = (*LinearHead.cv_choices, "loo")

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        *,
        components: int | None = None,
        alpha_per: Literal["gene", "all"] = "all",
        standardize: Literal["slide", "train", "none"] = "slide",
        cv: Literal["auto", "patient", "slide", "gcv", "loo"] = "auto",
        block_rows: int = 8192,
    ) -> None:
        self.alphas = alphas
        self.components = components
        self.alpha_per = alpha_per
        self.standardize = standardize
        self.cv = cv
        self.block_rows = block_rows

    @property
    def alpha_(self) -> Matrix:
        """The penalty of each gene."""
        return ascending(self.alphas, self.name)[self.picked_]

    def _path(self, sums: Moments) -> RidgePath:
        return RidgePath(sums, ascending(self.alphas, self.name), self.components, eigen=self.cv == "loo")

    def _per_gene(self) -> bool:
        return self.alpha_per == "gene"

    def _check_params(self) -> None:
        super()._check_params()
        ascending(self.alphas, self.name)
        if self.alpha_per not in ("gene", "all"):
            raise InputError(f"{self.name} alpha_per is {self.alpha_per!r}: use 'gene' or 'all'")
        if self.components is not None and self.components < 1:
            raise InputError(f"{self.name} components is {self.components}: use 1 or more, or None")

    def _error(self, blocks: Iterable[Block], sums: Sums, path: Path) -> Matrix:
        if self.cv != "loo":
            return super()._error(blocks, sums, path)
        if iter(blocks) is blocks:
            raise InputError("cv='loo' reads the rows twice: give the blocks as a list, or use cv='gcv'")
        assert isinstance(path, RidgePath)
        return self._leave_one_out(blocks, sums, path)

    def _leave_one_out(self, blocks: Iterable[Block], sums: Sums, path: RidgePath) -> Matrix:
        """Return mean squared errors (alphas, genes) of each spot predicted by a fit on all others.

        The residual of the fit on all spots, over one minus the leverage (Allen 1974's PRESS).
        """
        n, values = sums.total.n, path.basis.eigenvalues()
        solved = [path.basis.solve(alpha, path.P) for alpha in path.alphas]
        error = np.zeros((len(path.alphas), path.P.shape[1]))
        for X, y, groups in self._checked(blocks):
            by_slide = sums.standardize == "slide"
            for label, rows in slide_rows(groups if by_slide else None, len(X)):
                center, scale = sums.scales[label] if by_slide else (self.center_, self.scale_)
                for start in range(0, len(rows), self.block_rows):
                    some = rows[start : start + self.block_rows]
                    U = path.basis.rotate(standardised(X[some], center, scale).T).T
                    leverage = 1.0 / n + U**2 @ (1.0 / (values[:, None] + path.alphas))
                    target = y[some] - self.intercept_
                    for i, weights in enumerate(solved):
                        left = 1.0 - leverage[:, i, None]
                        residual = target - U @ weights
                        residual = np.divide(residual, left, out=np.full_like(residual, np.inf), where=left > 1e-9)
                        error[i] += np.einsum("ij,ij->j", residual, residual)
        return error / n


class PCARidge(Ridge):
    """`Ridge` on the first principal components of the standardised features.

    Parameters
    ----------
    components
        Number of principal components, all there are if fewer.
    alphas, alpha_per, standardize, cv, block_rows
        As for `Ridge`.
    """

    name: ClassVar[str] = "pca-ridge"

    def __init__(
        self,
        components: int | None = 256,
        *,
        alphas: Sequence[float] = ALPHAS,
        alpha_per: Literal["gene", "all"] = "all",
        standardize: Literal["slide", "train", "none"] = "slide",
        cv: Literal["auto", "patient", "slide", "gcv", "loo"] = "auto",
        block_rows: int = 8192,
    ) -> None:
        super().__init__(
            alphas,
            components=components,
            alpha_per=alpha_per,
            standardize=standardize,
            cv=cv,
            block_rows=block_rows,
        )


def ridge_path(
    X: Any, y: Any, alphas: Sequence[float], *, block_rows: int = 8192
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Solve ridge for every alpha from one pass and one factorisation, on features as they are.

    Parameters
    ----------
    X, y
        Features (n, d) and targets (n, genes).
    alphas
        Penalties above 0.
    block_rows
        Most rows that are held in float64 at a time.

    Yields
    ------
    alpha, coef, intercept
        The penalty, (d, genes) and (genes,), both float64: what scikit-learn's ``Ridge(alpha).fit(X, y)``
        finds.
    """
    ascending(alphas, "ridge_path")
    head = Ridge(alphas, standardize="none", block_rows=block_rows)
    X, y = head._begin(X, y)
    sums = Sums(RowBlocks(X, y, None, block_rows), "none", block_rows)
    mean_x, _, mean_y, centred = sums.training(sums.total)
    path = RidgePath(centred, np.asarray(alphas, dtype=np.float64))
    for i, alpha in enumerate(alphas):
        coef = path.coef(np.full(y.shape[1], i))
        yield float(alpha), coef, sums.oy + mean_y - (sums.ox + mean_x) @ coef


def ascending(alphas: Sequence[float], name: str) -> Matrix:
    """Return the penalties in ascending order.

    Raises
    ------
    InputError
        None at all, or one that is not a finite number above 0.
    """
    found = np.sort(np.asarray(alphas, dtype=np.float64))
    if found.size == 0 or not (np.isfinite(found).all() and found[0] > 0):
        raise InputError(f"{name} alphas are {list(alphas)}: give finite numbers above 0")
    return found
