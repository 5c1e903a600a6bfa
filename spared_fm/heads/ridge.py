"""Ridge regression for all alphas and all genes from one pass over the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import Block, check_features, one_pass, row_labels
from spared_fm.heads.moments import Moments, feature_scale, gather, rounding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

#: A sum of squares below this share of that of all slides is rounding, not variance.
ROUNDING = 1e-13
#: Thirteen penalties, half a decade to a decade apart, from almost none to almost the gene mean.
ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-1, 5, 13))


class Ridge:
    """Linear regression with an L2 penalty that is picked inside the training slides.

    For gene j and penalty a, ``w = argmin |y_j - b - Z w|² + a |w|²`` with ``Z`` the standardised features:
    the objective of scikit-learn's ``Ridge``, so an alpha means the same in both. Rows are read once; means,
    products of features and products of features with targets are kept per slide in float64, and everything
    else is algebra on those: every alpha costs one division in the eigenbasis of the features (Hoerl &
    Kennard 1970).

    The alpha is picked by leave-one-slide-out when there are two slides or more: each slide is predicted by
    a fit on the others (standardisation included) and squared errors are summed over all spots. With a
    single slide it is picked by generalised cross-validation, ``n·SSE / (n - df)²`` with the intercept
    counted in ``df`` (Golub, Heath & Wahba 1979). Ties go to the larger alpha.

    Parameters
    ----------
    alphas
        Penalties to choose from, each above 0.
    alpha_per
        ``"all"``: one alpha for the whole panel, minimising the mean over genes of error ÷ variance
        (constant genes don't vote). ``"gene"``: one alpha for each gene.
    standardize
        ``"slide"``: each slide's features get mean 0 and variance 1 from that slide's own spots, in training
        and in prediction. This uses the images of the predicted slide (all rows of a group passed to one
        ``predict``), never its expression; a single spot predicted alone is its own mean and gets the
        training mean of each gene. ``"train"``: mean and variance of the pooled training spots. ``"none"``:
        features as they are. Constant features count as 0.
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
        (alphas, genes) float64, penalties ascending: mean squared error on the slide left out, or the GCV
        score.

    Notes
    -----
    Memory is one block plus 8·d·(d + genes) bytes per slide. Features may be float16 and memory-mapped.
    """

    name: ClassVar[str] = "ridge"

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        *,
        alpha_per: Literal["gene", "all"] = "all",
        standardize: Literal["slide", "train", "none"] = "slide",
        block_rows: int = 4096,
    ) -> None:
        self.alphas = alphas
        self.alpha_per = alpha_per
        self.standardize = standardize
        self.block_rows = block_rows
        self.coef_: NDArray[np.float64] | None = None

    def fit(self, X: Any, y: Any, *, groups: ArrayLike | None = None) -> Self:
        """Fit on ``X`` (n, d) and ``y`` (n, genes).

        Parameters
        ----------
        X
            Features, any float dtype, may be a memory map; read once, in order.
        y
            Targets.
        groups
            (n,) slide labels; None means one slide.

        Raises
        ------
        InputError
            No rows, NaN or infinite values, shapes that do not fit together, or bad parameters.
        """
        self._check_params()
        return self.fit_stream(one_pass(X, y, groups, self.block_rows))

    def fit_stream(self, blocks: Iterable[Block]) -> Self:
        """Fit on ``(X, y, slide)`` blocks, each read once; ``slide`` is one label or one per row.

        The rows of a slide may come in several blocks and in any order. Raises as ``fit`` does.
        """
        alphas = self._check_params()
        slides, ox, oy = self._slides(blocks)
        total = slides[0].about(np.zeros_like(ox), np.zeros_like(oy))
        for slide in slides[1:]:
            total.add(slide)
        flat = ROUNDING * np.diagonal(total.xx) + rounding(total.n, ox)

        mean_x, mean_y, scale, centred = self._training(total, flat)
        eigenvalues, V = _eigh(centred.xx)
        P = V.T @ centred.xy
        if len(slides) == 1:
            error = gcv_score(eigenvalues, P, centred.yy, total.n, alphas)
        else:
            error = np.zeros((len(alphas), len(oy)))
            for held in slides:
                error += self._held_out(total.less(held), held, flat, alphas)
            error /= total.n

        picked = pick_alphas(error, centred.yy / total.n, per_gene=self.alpha_per == "gene")
        self.cv_error_ = error
        self.alpha_ = alphas[picked]
        self.coef_ = V @ (P / (eigenvalues[:, None] + self.alpha_))
        self.intercept_ = oy + mean_y
        self.center_ = ox + mean_x
        self.scale_ = scale
        return self

    def predict(self, X: Any, *, groups: ArrayLike | None = None) -> NDArray[np.float32]:
        """Predict targets.

        Parameters
        ----------
        X
            Features (n, d).
        groups
            (n,) slide labels; None means that all rows are one slide. With ``standardize="slide"`` a slide's
            mean and variance come from its rows in ``X``, so pass whole slides.

        Returns
        -------
        numpy.ndarray
            float32 (n, genes).

        Raises
        ------
        InputError
            Not fitted, another number of columns than in the fit, or NaN or infinite features.
        """
        coef = self._fitted()
        X = check_features(X, len(coef))
        labels = row_labels(groups, len(X))
        out = np.empty((len(X), coef.shape[1]), dtype=np.float32)
        if self.standardize == "slide":
            for label in np.unique(labels):
                rows = np.flatnonzero(labels == label)
                mean, inverse = feature_scale(X, rows, self.block_rows)
                self._apply(X, rows, mean, inverse, out)
        else:
            self._apply(X, np.arange(len(X)), self.center_, self.scale_, out)
        return out

    def get_params(self) -> dict[str, Any]:
        """Return the arguments of the constructor, ready for JSON."""
        return {
            "alphas": [float(a) for a in self.alphas],
            "alpha_per": self.alpha_per,
            "standardize": self.standardize,
            "block_rows": self.block_rows,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays: coef, intercept, center, scale, alpha, cv_error (float64)."""
        coef = self._fitted()
        return {
            "coef": coef,
            "intercept": self.intercept_,
            "center": self.center_,
            "scale": self.scale_,
            "alpha": self.alpha_,
            "cv_error": self.cv_error_,
        }

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        head = cls(**params)
        head._check_params()
        for key in ("coef", "intercept", "center", "scale", "alpha", "cv_error"):
            setattr(head, f"{key}_", np.asarray(state[key], dtype=np.float64))
        return head

    def _check_params(self) -> NDArray[np.float64]:
        alphas = np.unique(np.asarray(self.alphas, dtype=np.float64))
        if alphas.size == 0 or not (np.isfinite(alphas).all() and alphas[0] > 0):
            raise InputError(f"ridge alphas are {list(self.alphas)}: give finite numbers above 0")
        if self.alpha_per not in ("gene", "all"):
            raise InputError(f"ridge alpha_per is {self.alpha_per!r}: use 'gene' or 'all'")
        if self.standardize not in ("slide", "train", "none"):
            raise InputError(f"ridge standardize is {self.standardize!r}: use 'slide', 'train' or 'none'")
        if self.block_rows < 1:
            raise InputError(f"ridge block_rows is {self.block_rows}: use 1 or more")
        return alphas

    def _fitted(self) -> NDArray[np.float64]:
        if self.coef_ is None:
            raise InputError("ridge is not fitted: call fit first")
        return self.coef_

    def _slides(self, blocks: Iterable[Block]) -> tuple[list[Moments], NDArray[np.float64], NDArray[np.float64]]:
        """Return the sums of every slide about one origin near the pooled mean, and that origin."""
        running = gather(blocks, self.block_rows)
        parts = []
        for label in sorted(running):  # the order of the sum must not depend on the order of the blocks
            sums, mean_x, mean_y = running.pop(label).centred()
            if self.standardize == "slide":
                sums, mean_x = sums.scaled(sums.inverse_std()), np.zeros_like(mean_x)
            parts.append((sums, mean_x, mean_y))
        n = sum(sums.n for sums, _, _ in parts)
        ox = np.sum([sums.n * mean_x for sums, mean_x, _ in parts], axis=0) / n
        oy = np.sum([sums.n * mean_y for sums, _, mean_y in parts], axis=0) / n
        return [s.about(ox - mean_x, oy - mean_y) for s, mean_x, mean_y in parts], ox, oy

    def _training(
        self, sums: Moments, flat: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], Moments]:
        """Return means, scale of the features, and the centred, standardised sums of training slides."""
        mean_x, mean_y = sums.sx / sums.n, sums.sy / sums.n
        centred = sums.about(mean_x, mean_y)
        # what is left of a feature that varied only in the slide taken out is rounding of the subtraction
        centred.drop(np.diagonal(centred.xx) <= flat)
        scale = centred.inverse_std() if self.standardize == "train" else np.ones_like(mean_x)
        return mean_x, mean_y, scale, centred.scaled(scale) if self.standardize == "train" else centred

    def _held_out(
        self, rest: Moments, held: Moments, flat: NDArray[np.float64], alphas: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return squared errors (alphas, genes), summed over a slide predicted by a fit on the rest."""
        mean_x, mean_y, scale, centred = self._training(rest, flat)
        eigenvalues, V = _eigh(centred.xx)
        P = V.T @ centred.xy
        seen = held.about(mean_x, mean_y).scaled(scale)
        H, Q = V.T @ seen.xx @ V, V.T @ seen.xy
        error = np.empty((len(alphas), len(mean_y)))
        for i, alpha in enumerate(alphas):
            w = P / (eigenvalues[:, None] + alpha)
            error[i] = seen.yy + np.einsum("ij,ij->j", w, H @ w - 2.0 * Q)
        return np.maximum(error, 0.0)

    def _apply(
        self,
        X: Any,
        rows: NDArray[np.intp],
        mean: NDArray[np.float64],
        inverse: NDArray[np.float64],
        out: NDArray[np.float32],
    ) -> None:
        for start in range(0, len(rows), self.block_rows):
            part = rows[start : start + self.block_rows]
            Z = X[part].astype(np.float64)
            Z -= mean
            Z *= inverse
            values = Z @ self._fitted() + self.intercept_
            if not np.isfinite(values).all():
                raise InputError("features hold NaN or infinite values: encode the missing patches or drop their spots")
            out[part] = values


def ridge_path(
    X: Any, y: Any, alphas: Sequence[float], *, block_rows: int = 4096
) -> Iterator[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """Solve ridge for every alpha from one pass and one eigendecomposition, on features as they are.

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
    head = Ridge(alphas, standardize="none", block_rows=block_rows)
    head._check_params()
    (sums,), ox, oy = head._slides(one_pass(X, y, None, block_rows))
    eigenvalues, V = _eigh(sums.xx)
    P = V.T @ sums.xy
    for alpha in alphas:
        coef = V @ (P / (eigenvalues[:, None] + alpha))
        yield float(alpha), coef, oy - ox @ coef


def gcv_score(
    eigenvalues: NDArray[np.float64],
    P: NDArray[np.float64],
    yy: NDArray[np.float64],
    n: int,
    alphas: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return generalised cross-validation scores ``n·SSE / (n - df)²``.

    Parameters
    ----------
    eigenvalues
        (d,) of the centred product of features.
    P
        (d, genes) products of features and targets in that eigenbasis.
    yy
        (genes,) centred sums of squared targets.
    n
        Number of spots.
    alphas
        (alphas,) penalties.

    Returns
    -------
    numpy.ndarray
        (alphas, genes); infinite where no degree of freedom is left.
    """
    out = np.full((len(alphas), len(yy)), np.inf)
    for i, alpha in enumerate(alphas):
        damped = eigenvalues + alpha
        free = n - 1 - np.sum(eigenvalues / damped)  # 1 for the intercept
        if free > 1e-9 * n:
            fitted = np.einsum("i,ij->j", (eigenvalues + 2 * alpha) / damped**2, P**2)
            out[i] = n * np.maximum(yy - fitted, 0.0) / free**2
    return out


def pick_alphas(error: NDArray[np.float64], variance: NDArray[np.float64], *, per_gene: bool) -> NDArray[np.intp]:
    """Return the row of ``error`` to use for each gene; ties go to the larger alpha.

    Parameters
    ----------
    error
        (alphas, genes) held-out errors, alphas ascending.
    variance
        (genes,) training variances; genes with none don't vote when one alpha serves the panel.
    per_gene
        Each gene its own, or one for all by the mean of error ÷ variance.

    Returns
    -------
    numpy.ndarray
        (genes,) row numbers.
    """
    votes = variance > 0
    if not per_gene:
        share = np.mean(error[:, votes] / variance[votes], axis=1) if votes.any() else np.zeros(len(error))
        error = np.repeat(share[:, None], error.shape[1], axis=1)
    best = len(error) - 1 - np.argmin(error[::-1], axis=0)
    return np.where(votes, best, len(error) - 1) if per_gene else best


def _eigh(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues, those that rounding made negative set to 0, and eigenvectors."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return np.maximum(eigenvalues, 0.0), vectors
