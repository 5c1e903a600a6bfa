"""Retrieval: predict the expression of the training spots that look most alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_TARGETS, Head, result_dtype
from spared_fm.heads.scaling import STANDARDIZE, feature_scale, scaled_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


class KNN(Head):
    """The mean target of the ``k`` nearest training spots in embedding space; the search is exact.

    Parameters
    ----------
    k
        Number of neighbours; all training spots if there are fewer.
    metric
        ``"cosine"``, or ``"euclidean"``.
    weights
        ``"uniform"``, or ``"softmax"``: proportional to exp(-distance ÷ temperature), the distance being 1 - cosine,
        or the squared Euclidean distance per feature.
    temperature
        Of the softmax.
    standardize
        As for `Ridge`: ``"slide"`` centres and scales each slide by its own spots, so that neighbours are not
        chosen by the stain of their slide.
    block_rows
        Most rows that are searched for at a time.

    Attributes
    ----------
    vectors_
        (n, d) float32, standardised (and of length 1 for cosine) features of the training spots.
    targets_
        (n, genes) float32.
    """

    name: ClassVar[str] = "knn"
    arrays: ClassVar[tuple[str, ...]] = ("vectors", "targets", "center", "scale", "labelled")
    poor_score: ClassVar[bool] = True  # fifty neighbours of two hundred rows are a coarse mean

    vectors_: NDArray[np.float32]
    targets_: NDArray[np.float32]
    center_: Matrix
    scale_: Matrix
    labelled_: bool

    def __init__(
        self,
        k: int = 50,
        *,
        metric: Literal["cosine", "euclidean"] = "cosine",
        weights: Literal["uniform", "softmax"] = "uniform",
        temperature: float = 0.1,
        standardize: Literal["slide", "train", "none"] = "slide",
        block_rows: int = 4096,
    ) -> None:
        self.k = k
        self.metric = metric
        self.weights = weights
        self.temperature = temperature
        self.standardize = standardize
        self.block_rows = block_rows

    def _check_params(self) -> None:
        for what, allowed in (
            ("metric", ("cosine", "euclidean")),
            ("weights", ("uniform", "softmax")),
            ("standardize", STANDARDIZE),
        ):
            if (given := getattr(self, what)) not in allowed:
                raise InputError(f"knn {what} is {given!r}: use one of {', '.join(allowed)}")
        if self.k < 1 or self.block_rows < 1 or not self.temperature > 0:
            raise InputError("knn k and block_rows must be 1 or more, and temperature above 0")

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        self.labelled_ = groups is not None
        self.center_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.standardize != "none":
            self.center_, self.scale_ = feature_scale(X, np.arange(len(X)), self.block_rows)
        self.targets_ = y.astype(np.float32)
        if not np.isfinite(self.targets_).all():
            raise InputError(NAN_TARGETS)
        self.vectors_ = np.empty(X.shape, dtype=np.float32)
        for rows, vectors in self._vectors(X, groups):
            self.vectors_[rows] = vectors

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        import faiss

        metric = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        out = np.empty((len(X), self.targets_.shape[1]), dtype=result_dtype(X))
        for rows, vectors in self._vectors(X, groups):
            found, neighbours = faiss.knn(vectors, self.vectors_, min(self.k, len(self.vectors_)), metric)
            share = np.full(found.shape, 1.0)
            if self.weights == "softmax":
                distance = 1.0 - found if self.metric == "cosine" else found / self.vectors_.shape[1]
                share = np.exp((distance.min(axis=1, keepdims=True) - distance) / self.temperature)
            share /= share.sum(axis=1, keepdims=True)
            mean = np.zeros((len(vectors), out.shape[1]))
            for weight, neighbour in zip(share.T, neighbours.T, strict=True):
                mean += weight[:, None] * self.targets_[neighbour]
            out[rows] = mean
        return out

    def _vectors(self, X: NDArray[Any], groups: Any) -> Any:
        """Yield rows and what is compared of them, float32."""
        by_slide = self.standardize == "slide" and (bool(self.labelled_) or groups is not None)
        for rows, Z in scaled_blocks(X, groups, None if by_slide else (self.center_, self.scale_), self.block_rows):
            if self.metric == "cosine":
                length = np.linalg.norm(Z, axis=1, keepdims=True)
                Z /= np.where(length > 0, length, 1.0)
            yield rows, Z.astype(np.float32)
