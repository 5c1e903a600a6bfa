"""The protocol every head follows: arrays in, arrays out, scikit-learn's verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray

#: One block of training rows: features (m, d), targets (m, genes), and the slide of all rows or of each row.
Block = tuple[Any, Any, Any]


@runtime_checkable
class Head(Protocol):
    """Anything that predicts targets from embeddings.

    ``X`` is (spots, dim), ``y`` is (spots, genes), ``groups`` holds the slide label of every spot (None: one
    slide). Predictions are float32 (spots, genes). ``state`` and ``from_state`` carry what was fitted as
    plain arrays, so that a head is saved without pickle.
    """

    name: ClassVar[str]

    def fit(self, X: Any, y: Any, *, groups: ArrayLike | None = None) -> Self:
        """Fit on ``X`` (n, d) and ``y`` (n, genes); ``groups`` (n,) are slide labels."""
        ...

    def predict(self, X: Any, *, groups: ArrayLike | None = None) -> NDArray[np.float32]:
        """Predict (n, genes) float32 for ``X`` (n, d)."""
        ...

    def get_params(self) -> dict[str, Any]:
        """Return the arguments of the constructor, ready for JSON."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays by name."""
        ...

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``."""
        ...


@runtime_checkable
class StreamingHead(Head, Protocol):
    """A head that can be fitted from blocks, so that the training rows never need to fit in memory."""

    def fit_stream(self, blocks: Iterable[Block]) -> Self:
        """Fit on ``(X, y, slide)`` blocks; ``slide`` is one label or one per row."""
        ...


def check_features(X: Any, dim: int | None = None) -> Any:
    """Return ``X`` as a 2-d array, not copied when it is one (a memory map stays one).

    Raises
    ------
    InputError
        ``X`` is not 2-d, is not numeric, or does not have ``dim`` columns.
    """
    X = X if isinstance(X, np.ndarray) else np.asarray(X)
    if X.ndim != 2:
        raise InputError(f"features have shape {X.shape}: give a (spots, dim) array")
    if X.dtype.kind not in "fiub":
        raise InputError(f"features have dtype {X.dtype}: give a dense numeric array")
    if dim is not None and X.shape[1] != dim:
        raise InputError(f"features have {X.shape[1]} columns, the head was fitted with {dim}: use the same encoder")
    return X


def check_targets(y: Any, rows: int) -> Any:
    """Return ``y`` as a 2-d array with ``rows`` rows.

    Raises
    ------
    InputError
        ``y`` is not 2-d, is not numeric, or has another number of rows than the features.
    """
    y = y if isinstance(y, np.ndarray) else np.asarray(y)
    if y.ndim != 2 or y.dtype.kind not in "fiub":
        raise InputError(f"targets have shape {y.shape} and dtype {y.dtype}: give a dense (spots, genes) array")
    if len(y) != rows:
        raise InputError(f"{rows} rows of features but {len(y)} of targets: join them by spot id first")
    return y


def row_labels(groups: Any, rows: int) -> NDArray[np.str_]:
    """Return one string label per row from None (one slide), one label, or one label per row.

    Raises
    ------
    InputError
        The number of labels is not ``rows``.
    """
    labels = np.asarray("" if groups is None else groups)
    if labels.ndim == 0:
        return np.full(rows, str(labels))
    if labels.shape != (rows,):
        raise InputError(f"{rows} rows of features but slide labels of shape {labels.shape}: give one per spot")
    return labels.astype(np.str_)


def one_pass(X: Any, y: Any, groups: ArrayLike | None, block_rows: int) -> Iterable[Block]:
    """Cut arrays into blocks of at most ``block_rows`` rows, so that memory is bounded by the block."""
    X = check_features(X)
    y = check_targets(y, len(X))
    labels = row_labels(groups, len(X))
    for start in range(0, len(X), block_rows):
        rows = slice(start, start + block_rows)
        yield X[rows], y[rows], labels[rows]
