"""What heads share that standardise their features and keep all rows in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import Head
from spared_fm.heads.scaling import STANDARDIZE, feature_scale, scaled_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


class ScaledHead(Head):
    """A head with the parameter ``standardize``.

    Attributes
    ----------
    center_, scale_
        Mean and 1 ÷ standard deviation of the features of all training spots (d,).
    labelled_
        Whether the fit got slides.
    """

    standardize: str

    center_: Matrix
    scale_: Matrix
    labelled_: bool

    def _choice(self, what: str, allowed: tuple[str, ...]) -> None:
        if (given := getattr(self, what)) not in allowed:
            raise InputError(f"{self.name} {what} is {given!r}: use one of {', '.join(allowed)}")

    def _learn_scale(self, X: NDArray[Any], groups: Any) -> None:
        self._choice("standardize", STANDARDIZE)
        self.labelled_ = groups is not None
        self.center_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.standardize != "none":
            self.center_, self.scale_ = feature_scale(X, np.arange(len(X)))

    def _scaled(self, X: NDArray[Any], groups: Any) -> Iterator[tuple[Any, Matrix]]:
        """Yield row numbers and standardised features in float64, block by block."""
        by_slide = self.standardize == "slide" and (bool(self.labelled_) or groups is not None)
        yield from scaled_blocks(X, groups, None if by_slide else (self.center_, self.scale_))
