"""What the models share that look at exemplars: a bank of training spots, kept with the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import slide_rows
from spared_fm.heads.losses import pearson, squared
from spared_fm.heads.models.graphs import exemplars
from spared_fm.heads.network import SIZES, NeuralHead

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from spared_fm.heads.models.graphs import Table
    from spared_fm.heads.neural import Plan


class ExemplarHead(NeuralHead):
    """A network that sees, beside a spot, the training spots that look most alike, with their expression.

    In training, a spot's exemplars are of other patients (or slides, or blocks: `graphs.relatives`), as they will be
    for a new slide. In prediction every training spot may be one.

    Attributes
    ----------
    bank_
        (n, d) float32 standardised features of the training spots.
    profiles_
        (n, genes) float32 their targets, with mean 0 and variance 1 per gene.
    """

    arrays: ClassVar[tuple[str, ...]] = (*NeuralHead.arrays, "bank", "profiles")
    metric: ClassVar[Literal["l2", "l1"]] = "l2"

    k: int
    dropout: float

    bank_: NDArray[np.float32]
    profiles_: NDArray[np.float32]

    def _check_params(self) -> None:
        self._choice("size", SIZES)
        if self.k < 1 or not 0 <= self.dropout < 1:
            raise InputError(f"{self.name} k must be 1 or more, dropout from 0 to below 1")

    def _remember(self, X: NDArray[Any], y: NDArray[Any], groups: Any) -> NDArray[np.float32]:
        """Keep the training spots as exemplars; return their standardised features."""
        Z, self.profiles_ = self._scaled_fit(X, groups), self._targets_fit(y)
        self.bank_ = self._looks(Z)
        return Z

    def _looks(self, Z: NDArray[Any]) -> NDArray[np.float32]:
        """Return what spots are compared by, (n, d)."""
        return Z.astype(np.float32, copy=False)

    def _plan(self, **settings: Any) -> Plan:
        return super()._plan(weight_decay=1e-4, schedule="cosine", **settings)

    def _slides(self, X: NDArray[Any], groups: Any) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64], Table]]:
        """Yield row numbers, standardised features and exemplars, slide by slide."""
        for label, rows in slide_rows(groups, len(X)):
            Z = np.empty((len(rows), X.shape[1]))
            for some, z in self._scaled(X[rows], None if groups is None else label):
                Z[some] = z
            yield rows, Z, exemplars(self._looks(Z), self.bank_, self.k, metric=self.metric)


def error_and_correlation(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the loss of EGN and EGGN: mean squared error plus half of one minus the mean correlation of the genes."""
    return squared(found, wanted, None) + 0.5 * (1.0 - pearson(found, wanted, None))
