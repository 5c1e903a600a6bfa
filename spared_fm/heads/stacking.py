"""Stacking: the best non-negative mix of several heads, found on spots that none of them was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from scipy.optimize import nnls

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_TARGETS, Head
from spared_fm.heads.nested import pack, require, unpack
from spared_fm.heads.neural import LEAST_ROWS, known_units, main_direction
from spared_fm.heads.registry import head_class, make

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


class Stacking(Head):
    """A non-negative combination of heads (Breiman 1996), plus a constant per gene.

    Each head is fitted as often as there are folds, each time without one of them, and predicts what was left out;
    weights are the non-negative least squares of the targets on these predictions. Then every head is fitted on
    all rows.

    Parameters
    ----------
    heads
        Names in the registry, or pairs (name, parameters).
    folds
        Most folds: patients if there are two, else slides, are dealt to them; with one slide, blocks along its longest
        direction; without coordinates, random rows (neighbouring spots then share folds with each other's neighbours,
        which flatters heads that remember).
    weights_per
        ``"all"``: one weight per head, for the whole panel, genes weighted by 1 ÷ variance. ``"gene"``.
    seed
        Decides the folds, not the heads.

    Attributes
    ----------
    heads_
        The fitted heads.
    weights_
        (heads, genes) float64.
    intercept_
        (genes,) float64.
    """

    name: ClassVar[str] = "stacking"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})
    arrays: ClassVar[tuple[str, ...]] = ("weights", "intercept")

    weights_: Matrix
    intercept_: Matrix
    heads_: list[Head]

    def __init__(
        self,
        heads: Sequence[Any] = ("ridge", "knn", "mlp"),
        *,
        folds: int = 5,
        weights_per: Literal["all", "gene"] = "all",
        seed: int = 0,
    ) -> None:
        self.heads = heads
        self.folds = folds
        self.weights_per = weights_per
        self.seed = seed

    @property
    def label(self) -> str:  # type: ignore[override]
        """Those of the heads."""
        return ", ".join(sorted({head.label for head in self._new()} - {""}))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted as plain arrays; those of the first head are called ``0.<name>``."""
        state = super().state()
        for i, head in enumerate(self.heads_):
            state |= pack(str(i), head)
        return state

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        head = super().from_state(params, state)
        head.heads_ = [unpack(str(i), part.name, part.get_params(), state) for i, part in enumerate(head._new())]
        return head

    def _require_fitted(self) -> None:
        super()._require_fitted()
        require("heads_", self)

    def _new(self) -> list[Head]:
        made = []
        for given in self.heads:
            name, params = (given, {}) if isinstance(given, str) else given
            if "targets-of-slide" in head_class(name).sees:
                raise InputError(f"stacking can't use {name}: it knows the targets of the slide it predicts")
            made.append(make(name, **params))
        return made

    def _check_params(self) -> None:
        if not self.heads or self.folds < 2:
            raise InputError("stacking needs one head or more, and 2 folds or more")
        if self.weights_per not in ("all", "gene"):
            raise InputError(f"stacking weights_per is {self.weights_per!r}: use 'all' or 'gene'")

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        y64 = y.astype(np.float64)
        if not np.isfinite(y64).all():
            raise InputError(NAN_TARGETS)
        marks, labels, places = (None if a is None else np.asarray(a) for a in (mask, groups, coords))

        def part(array: Any, rows: NDArray[Any]) -> Any:
            return None if array is None else array[rows]

        fold = folds(labels, places, len(X), self.folds, self.seed)
        unseen = np.empty((len(self.heads), *y.shape))
        for left_out in np.unique(fold):
            now, rest = np.flatnonzero(fold == left_out), np.flatnonzero(fold != left_out)
            for i, head in enumerate(self._new()):
                head.fit(X[rest], y[rest], part(marks, rest), part(labels, rest), part(places, rest))
                unseen[i, now] = head.predict(X[now], part(labels, now), part(places, now))
        if len(fold):
            self.weights_ = self._mix(unseen, y64)
            self.intercept_ = y64.mean(axis=0) - (self.weights_[:, None] * unseen).mean(axis=1).sum(axis=0)
        else:
            self.weights_ = np.full((len(self.heads), y.shape[1]), 1.0 / len(self.heads))
            self.intercept_ = np.zeros(y.shape[1])
        self.heads_ = [head.fit(X, y, mask=marks, groups=labels, coords=places) for head in self._new()]

    def _mix(self, found: Matrix, y: Matrix) -> Matrix:
        """Return weights (heads, genes) for predictions (heads, spots, genes)."""
        spread = y.std(axis=0)
        spread = np.where(spread > 0, spread, np.inf)  # a constant gene doesn't vote
        A = (found - found.mean(axis=1, keepdims=True)) / spread
        b = (y - y.mean(axis=0)) / spread
        if self.weights_per == "gene":
            return np.stack([nnls(A[:, :, gene].T, b[:, gene])[0] for gene in range(y.shape[1])], axis=1)
        return np.tile(nnls(A.reshape(len(A), -1).T, b.ravel())[0][:, None], (1, y.shape[1]))

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        out = np.tile(self.intercept_, (len(X), 1))
        for weight, head in zip(self.weights_, self.heads_, strict=True):
            out += weight * head.predict(X, groups, coords)
        return out


def folds(groups: Any, coords: Any, rows: int, most: int, seed: int) -> NDArray[np.int64]:
    """Return the number of the fold of every row; empty if there are too few rows to have any.

    Parameters
    ----------
    groups, coords
        As in `Head.fit`.
    rows, most
        Number of rows, and most folds.
    seed
        Decides which patients, slides or rows go together.
    """
    rng = np.random.default_rng(seed)
    code, _ = known_units(groups, rows)
    if code is not None:
        count = int(code.max()) + 1
        dealt = np.empty(count, dtype=np.int64)
        dealt[rng.permutation(count)] = np.arange(count) % most
        return dealt[code]
    if rows < LEAST_ROWS:
        return np.zeros(0, dtype=np.int64)
    order = rng.permutation(rows) if coords is None else np.argsort(main_direction(coords), kind="stable")
    out = np.empty(rows, dtype=np.int64)
    out[order] = np.arange(rows) * most // rows
    return out
