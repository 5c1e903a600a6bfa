"""The floor of every table: predict each gene's training mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import Block, check_features, check_targets, one_pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray


class GeneMean:
    """Predict, for every spot, the mean of each gene over the training spots.

    It never looks at a feature: its PCC-Gene is 0 by the rule for constant predictions, its MSE is what any
    other head has to beat.
    """

    name: ClassVar[str] = "gene-mean"

    def __init__(self) -> None:
        self.mean_: NDArray[np.float64] | None = None

    def fit(self, X: Any, y: Any, *, groups: ArrayLike | None = None) -> Self:
        """Fit on ``X`` (n, d) and ``y`` (n, genes); ``groups`` is not used."""
        return self.fit_stream(one_pass(X, y, groups, 16384))

    def fit_stream(self, blocks: Iterable[Block]) -> Self:
        """Fit on ``(X, y, slide)`` blocks.

        Raises
        ------
        InputError
            No rows, NaN or infinite targets, or blocks with different numbers of genes.
        """
        rows, total = 0, np.zeros(0)
        for X, y, _ in blocks:
            X = check_features(X)
            y = check_targets(y, len(X))
            sums = y.sum(axis=0, dtype=np.float64)
            if not np.isfinite(sums).all():
                raise InputError("targets hold NaN or infinite values: drop those spots or complete the layer first")
            if rows and sums.shape != total.shape:
                raise InputError(f"a block has {len(sums)} genes, the first had {len(total)}: use one gene panel")
            total = total + sums if rows else sums
            rows += len(X)
        if rows == 0:
            raise InputError("no training spots: give the split at least one train slide with spots")
        self.mean_ = total / rows
        return self

    def predict(self, X: Any, *, groups: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return the training means, float32 (n, genes), one row per row of ``X``."""
        if self.mean_ is None:
            raise InputError("gene-mean is not fitted: call fit first")
        return np.tile(self.mean_.astype(np.float32), (len(check_features(X)), 1))

    def get_params(self) -> dict[str, Any]:
        """Return no parameters: there are none."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return ``mean`` (genes,) float64."""
        if self.mean_ is None:
            raise InputError("gene-mean is not fitted: call fit first")
        return {"mean": self.mean_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from ``get_params()`` and ``state()``."""
        head = cls(**params)
        head.mean_ = np.asarray(state["mean"], dtype=np.float64)
        return head
