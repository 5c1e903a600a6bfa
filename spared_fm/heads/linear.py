"""What the linear heads share: sums per slide, and a choice among candidates inside the training slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import NO_ROWS, Block, StreamingHead, result_dtype
from spared_fm.heads.moments import Moments, gather
from spared_fm.heads.scaling import STANDARDIZE, rounding, scaled_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

#: A sum of squares below this share of that of all slides is rounding, not variance.
ROUNDING = 1e-13


class Path(Protocol):
    """Candidate solutions of one training set, numbered from the least to the most shrunk."""

    def held_out(self, seen: Moments) -> Matrix:
        """Return squared errors (candidates, genes) summed over rows with the sums ``seen``."""
        ...

    def gcv(self, n: int) -> Matrix:
        """Return scores (candidates, genes) of ``n`` training rows; infinite where no freedom is left."""
        ...

    def coef(self, picked: NDArray[np.intp]) -> Matrix:
        """Return coefficients (d, genes) of one candidate per gene."""
        ...


class Sums:
    """The training set as sums of every slide about one origin, standardised by slide where that is asked for."""

    def __init__(self, blocks: Iterable[Block], standardize: str, block_rows: int) -> None:
        running = gather(blocks, block_rows)
        if not running:
            raise InputError(NO_ROWS)
        self.labelled = set(running) != {""}
        # a set of rows without slide labels has nothing to centre by but itself: the training rows
        self.standardize = "train" if standardize == "slide" and not self.labelled else standardize
        self.slides: list[str] = sorted(running)  # the order of a sum must not depend on the order of the blocks
        self.patients = [running[label].patient for label in self.slides]
        self.scales: dict[str, tuple[Matrix, Matrix]] = {}
        parts = []
        for label in self.slides:
            sums, mean_x, mean_y = running.pop(label).centred()
            if self.standardize == "slide":
                self.scales[label] = mean_x, sums.inverse_std()
                sums, mean_x = sums.scaled(self.scales[label][1]), np.zeros_like(mean_x)
            parts.append((sums, mean_x, mean_y))
        n = sum(sums.n for sums, _, _ in parts)
        self.ox: Matrix = np.sum([sums.n * mean_x for sums, mean_x, _ in parts], axis=0) / n
        self.oy: Matrix = np.sum([sums.n * mean_y for sums, _, mean_y in parts], axis=0) / n
        self.parts: list[Moments] = []
        while parts:  # the last slide first, so that each is let go before the next is copied
            sums, mean_x, mean_y = parts.pop()
            self.parts.insert(0, sums.about(self.ox - mean_x, self.oy - mean_y))
        self.total = total(self.parts)
        self.flat: Matrix = ROUNDING * np.diagonal(self.total.xx) + rounding(self.total.n, self.ox)

    def folds(self, cv: str) -> list[Moments]:
        """Return the sums of each slide or patient to leave out; none if they are not to be, or there is one."""
        units = self.slides if cv == "slide" or (cv == "auto" and len(set(self.patients)) < 2) else self.patients
        if cv == "gcv" or len(set(units)) < 2:
            if cv in ("slide", "patient"):
                raise InputError(f"cv is {cv!r} but the training spots are of one {cv}: use cv='auto'")
            return []
        chosen = [[part for part, unit in zip(self.parts, units, strict=True) if unit == u] for u in sorted(set(units))]
        return [total(parts) if len(parts) > 1 else parts[0] for parts in chosen]

    def training(self, sums: Moments) -> tuple[Matrix, Matrix, Matrix, Moments]:
        """Return means and scale of the features, means of the targets, and centred, standardised sums."""
        mean_x, mean_y = sums.sx / sums.n, sums.sy / sums.n
        centred = sums.about(mean_x, mean_y)
        # what is left of a feature that varied only in the slide taken out is rounding of the subtraction
        centred.drop(np.diagonal(centred.xx) <= self.flat)
        np.maximum(centred.yy, 0.0, out=centred.yy)
        if self.standardize != "train":
            return mean_x, np.ones_like(mean_x), mean_y, centred
        scale = centred.inverse_std()
        return mean_x, scale, mean_y, centred.scaled(scale)


class LinearHead(StreamingHead):
    """A head ``(x - center) * scale @ coef + intercept``, fitted from sums of products.

    Subclasses write ``_path`` (candidates of one training set) and say in ``per_gene`` whether each gene gets a
    candidate of its own. See `Ridge` for the parameters.
    """

    arrays: ClassVar[tuple[str, ...]] = ("coef", "intercept", "center", "scale", "labelled", "picked", "cv_error")

    #: values of the parameter ``cv``
    cv_choices: ClassVar[tuple[str, ...]] = ("auto", "patient", "slide", "gcv")

    standardize: str
    cv: str

    coef_: Matrix
    intercept_: Matrix
    center_: Matrix
    scale_: Matrix
    labelled_: bool
    picked_: NDArray[np.intp]
    cv_error_: Matrix

    def _path(self, sums: Moments) -> Path:
        raise NotImplementedError

    def _per_gene(self) -> bool:
        return False

    def _check_params(self) -> None:
        if self.standardize not in STANDARDIZE:
            raise InputError(f"{self.name} standardize is {self.standardize!r}: use 'slide', 'train' or 'none'")
        if self.cv not in self.cv_choices:
            raise InputError(f"{self.name} cv is {self.cv!r}: use one of {', '.join(self.cv_choices)}")
        if self.block_rows < 1:
            raise InputError(f"{self.name} block_rows is {self.block_rows}: use 1 or more")

    def _fit_blocks(self, blocks: Iterable[Block]) -> None:
        self._check_params()
        sums = Sums(self._checked(blocks), self.standardize, self.block_rows)
        mean_x, scale, mean_y, centred = sums.training(sums.total)
        self.labelled_, self.center_, self.scale_ = sums.labelled, sums.ox + mean_x, scale
        self.intercept_ = sums.oy + mean_y
        path = self._path(centred)
        n = sums.total.n
        self.cv_error_ = self._error(blocks, sums, path)
        self.picked_ = pick(self.cv_error_, centred.yy / n, per_gene=self._per_gene())
        self.coef_ = path.coef(self.picked_)

    def _error(self, blocks: Iterable[Block], sums: Sums, path: Path) -> Matrix:
        """Return the errors (candidates, genes) to choose by."""
        folds = sums.folds(self.cv)
        if not folds:
            return path.gcv(sums.total.n)
        error = self._left_out(sums, folds[0])
        for held in folds[1:]:
            error += self._left_out(sums, held)
        return error / sums.total.n

    def _left_out(self, sums: Sums, held: Moments) -> Matrix:
        """Return squared errors (candidates, genes) on a slide or patient, predicted by a fit on the others."""
        mean_x, scale, mean_y, centred = sums.training(sums.total.less(held))
        seen = held.about(mean_x, mean_y)
        return np.maximum(self._path(centred).held_out(seen.scaled(scale)), 0.0)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        out = np.empty((len(X), self.coef_.shape[1]), dtype=result_dtype(X))
        by_slide = self.standardize == "slide" and (bool(self.labelled_) or groups is not None)
        fixed = None if by_slide else (self.center_, self.scale_)
        for rows, Z in scaled_blocks(X, groups, fixed, self.block_rows):
            out[rows] = Z @ self.coef_ + self.intercept_
        return out


def total(parts: list[Moments]) -> Moments:
    """Return the sums of several slides about their common origin; the parts stay as they are."""
    first = parts[0]
    out = Moments(first.n, *(array.copy() for array in first.arrays()))
    for part in parts[1:]:
        out.add(part)
    return out


def gcv(sse: Matrix, df: Matrix, n: int) -> Matrix:
    """Return generalised cross-validation scores ``n·SSE / (n - 1 - df)²`` (Golub, Heath & Wahba 1979).

    Parameters
    ----------
    sse
        (candidates, genes) sums of squared residuals.
    df
        (candidates,) degrees of freedom besides the intercept.
    n
        Number of spots.

    Returns
    -------
    numpy.ndarray
        (candidates, genes); infinite where no degree of freedom is left.
    """
    free = n - 1 - df
    out = np.full(sse.shape, np.inf)
    some = free > 1e-9 * n
    out[some] = n * np.maximum(sse[some], 0.0) / free[some, None] ** 2
    return out


def pick(error: Matrix, variance: Matrix, *, per_gene: bool) -> NDArray[np.intp]:
    """Return the candidate to use for each gene; ties go to the later one (the most shrunk).

    Parameters
    ----------
    error
        (candidates, genes) held-out errors.
    variance
        (genes,) training variances; genes with none don't vote when one candidate serves the panel.
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
