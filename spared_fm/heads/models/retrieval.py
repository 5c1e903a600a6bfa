"""What the models share that look at exemplars: a bank of training spots, kept with the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import slide_rows
from spared_fm.heads.losses import pearson, squared
from spared_fm.heads.models.graphs import exemplars
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from spared_fm.heads.models.graphs import Table


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
    #: size: width, depth, heads, steps, lr … of the network
    of_size: ClassVar[dict[str, dict[str, Any]]]

    k: int
    steps: int | None
    lr: float | None
    batch: int = 1
    dropout: float
    seed: int
    device: str
    progress: bool

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

    def _plan(self) -> Plan:
        size = self.of_size[self.size]
        return Plan(
            steps=size["steps"] if self.steps is None else self.steps,
            lr=size["lr"] if self.lr is None else self.lr,
            batch=self.batch,
            weight_decay=1e-4,
            schedule="cosine",
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )

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
