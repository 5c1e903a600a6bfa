"""Several encoders at once: each block of columns on a scale of its own, then any head on all of them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import Head, result_dtype
from spared_fm.heads.nested import pack, require, unpack
from spared_fm.heads.registry import head_class, make
from spared_fm.heads.scaled import ScaledHead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


class MultiEncoder(ScaledHead):
    """A head on the features of several encoders side by side.

    Put together as they are, an encoder of 1,536 columns outvotes one of 384. Here every column is standardised, each
    block is rotated to its principal components (if ``components`` is given) and divided by the square root of its total
    variance, so that every block brings the same variance whatever its width; then ``weights`` are applied. All blocks
    together have as much variance as there are columns, so that an alpha means what it means for `Ridge`.

    Parameters
    ----------
    blocks
        Number of columns of each encoder, in the order in which they stand in ``X``; None for one block.
    components
        Principal components of each block, all there are if fewer; None: the columns themselves.
    weights
        Factor on each block's scale; None: 1 for all.
    head, params
        Name in the registry of the head on top, and its parameters. It gets features that are standardised
        already: ``standardize`` is ``"none"`` for it, unless ``params`` says otherwise.
    standardize
        As for `Ridge`, for the columns.

    Attributes
    ----------
    head_
        The fitted head on top.
    center_, scale_
        (d,) float64.
    rotation_
        (d, k) float64, block by block, with the scale of the blocks in it.

    Notes
    -----
    Components and scales come from all training rows, so the inner folds of the head on top share them. With
    ``standardize="slide"`` this is a rotation only.
    """

    name: ClassVar[str] = "multi-encoder"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})
    arrays: ClassVar[tuple[str, ...]] = ("center", "scale", "rotation", "labelled")

    rotation_: Matrix
    head_: Head

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        *,
        components: int | None = None,
        weights: Sequence[float] | None = None,
        head: str = "ridge",
        params: Mapping[str, Any] | None = None,
        standardize: Literal["slide", "train", "none"] = "slide",
    ) -> None:
        self.blocks = blocks
        self.components = components
        self.weights = weights
        self.head = head
        self.params = params
        self.standardize = standardize

    @property
    def label(self) -> str:  # type: ignore[override]
        """That of the head on top."""
        return self._top().label

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted as plain arrays; those of the head on top are called ``head.<name>``."""
        return super().state() | pack("head", self.head_)

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        head = super().from_state(params, state)
        head.head_ = unpack("head", head.head, head._top().get_params(), state)
        return head

    def _require_fitted(self) -> None:
        super()._require_fitted()
        require("head_", self)

    def _top(self) -> Head:
        takes = "standardize" in head_class(self.head)().get_params()
        return make(self.head, **({"standardize": "none"} if takes else {}), **dict(self.params or {}))

    def _check_params(self, d: int) -> tuple[list[int], list[float]]:
        """Return the widths of the blocks and their weights."""
        blocks = [d] if self.blocks is None else [int(width) for width in self.blocks]
        weights = [1.0] * len(blocks) if self.weights is None else [float(weight) for weight in self.weights]
        if sum(blocks) != d or min(blocks) < 1:
            raise InputError(
                f"{self.name} blocks are {blocks} but there are {d} columns: give the width of each encoder"
            )
        if len(weights) != len(blocks) or min(weights) < 0 or not np.isfinite(weights).all():
            raise InputError(
                f"{self.name} weights are {weights} for {len(blocks)} blocks: give one of 0 or more for each"
            )
        if self.components is not None and self.components < 1:
            raise InputError(f"{self.name} components is {self.components}: use 1 or more, or None")
        return blocks, weights

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        blocks, weights = self._check_params(X.shape[1])
        self._learn_scale(X, groups)
        self.rotation_ = self._rotation(X, groups, blocks, weights)
        self.head_ = self._top().fit(self._inputs(X, groups), y, mask=mask, groups=groups, coords=coords)

    def _rotation(self, X: NDArray[Any], groups: Any, blocks: list[int], weights: list[float]) -> Matrix:
        edges = np.concatenate([[0], np.cumsum(blocks)])
        products = [np.zeros((width, width)) for width in blocks]
        total = np.zeros(X.shape[1])
        for _, Z in self._scaled(X, groups):
            total += Z.sum(axis=0)
            for product, (start, end) in zip(products, pairwise(edges), strict=True):
                product += Z[:, start:end].T @ Z[:, start:end]
        columns = []
        for product, weight, (start, end) in zip(products, weights, pairwise(edges), strict=True):
            covariance = product / len(X) - np.outer(total[start:end], total[start:end]) / len(X) ** 2
            axes = np.eye(end - start)
            if self.components is not None and self.components < end - start:
                axes = np.linalg.eigh(covariance)[1][:, ::-1][:, : self.components]
            variance = float(np.trace(axes.T @ covariance @ axes))
            block = np.zeros((X.shape[1], axes.shape[1]))
            block[start:end] = axes * (weight * np.sqrt(X.shape[1] / variance) if variance > 1e-12 else 0.0)
            columns.append(block)
        return np.concatenate(columns, axis=1) / np.sqrt(len(blocks))

    def _inputs(self, X: NDArray[Any], groups: Any) -> NDArray[Any]:
        out = np.empty((len(X), self.rotation_.shape[1]), dtype=result_dtype(X))
        for rows, Z in self._scaled(X, groups):
            out[rows] = Z @ self.rotation_
        return out

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        return self.head_.predict(self._inputs(X, groups), groups=groups, coords=coords)
