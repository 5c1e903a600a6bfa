"""The floor of every table: predict each gene's training mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_TARGETS, NO_ROWS, Block, StreamingHead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class GeneMean(StreamingHead):
    """Predict, for every spot, the mean of each gene over the training spots.

    It never looks at a feature: its PCC-Gene is 0 by the rule for constant predictions, its MSE is what any
    other head has to beat.

    Parameters
    ----------
    block_rows
        Most rows that are read at a time.

    Attributes
    ----------
    mean_
        (genes,) float64.
    """

    name: ClassVar[str] = "gene-mean"
    sees: ClassVar[frozenset[str]] = frozenset()
    arrays: ClassVar[tuple[str, ...]] = ("mean",)
    poor_score: ClassVar[bool] = True

    mean_: NDArray[np.float64]

    def __init__(self, *, block_rows: int = 16384) -> None:
        self.block_rows = block_rows

    def _fit_blocks(self, blocks: Iterable[Block]) -> None:
        rows, total = 0, np.zeros(0)
        for _, y, _ in self._checked(blocks):
            sums = y.sum(axis=0, dtype=np.float64)
            if not np.isfinite(sums).all():
                raise InputError(NAN_TARGETS)
            total = total + sums if rows else sums
            rows += len(y)
        if rows == 0:
            raise InputError(NO_ROWS)
        self.mean_ = total / rows

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        return np.tile(self.mean_, (len(X), 1))
