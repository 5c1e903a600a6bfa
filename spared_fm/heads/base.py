"""The protocol every head follows: scikit-learn's estimators, arrays in, arrays out, saved as plain arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import validate_data

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from sklearn.utils import Tags

#: One block of training rows: features (m, d), targets (m, genes), and whose they are (see `row_groups`).
Block = tuple[Any, Any, Any]

NAN_FEATURES = "features hold NaN or infinite values: encode the missing patches or drop their spots"
NAN_TARGETS = "targets hold NaN or infinite values: drop those spots or complete the layer first"
NO_ROWS = "no training spots: give the split at least one train slide with spots"


class UnfittedError(InputError, NotFittedError):
    """``predict`` or ``state`` before ``fit``."""


class Head(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """A regressor from the embeddings of spots to the expression of a gene panel.

    A head is a scikit-learn estimator: it can be cloned, put into a pipeline and searched over. Subclasses write
    ``_fit`` and ``_predict``, which get checked arrays, and name the arrays they fitted in ``arrays``.

    Attributes
    ----------
    name
        Name in the registry.
    label
        ``""`` for a fair head, else why it isn't one (``"oracle"``, ``"leakage: coordinates only"``, ``"small"``).
        It stands beside the name in every table (`shown`).
    cached
        For tables: what stands here, on cached features, for what needs pixels in the original; ``""`` if nothing does.
    sees
        What a prediction may depend on: ``"features"``, ``"coords"``, ``"targets-of-slide"`` (an oracle).
    arrays
        Names of the fitted array attributes, without the underscore at the end.
    poor_score
        scikit-learn's tag: with its default parameters the head may score below .5 on scikit-learn's toy data.
    n_features_in_
        Number of columns of ``X`` in the fit.
    single_target_
        True if the fit got targets of shape (n,); predictions have this shape then.
    """

    name: ClassVar[str]
    label: ClassVar[str] = ""
    cached: ClassVar[str] = ""
    sees: ClassVar[frozenset[str]] = frozenset({"features"})
    arrays: ClassVar[tuple[str, ...]] = ()
    poor_score: ClassVar[bool] = False

    n_features_in_: int
    single_target_: bool

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = self.poor_score
        tags.input_tags.allow_nan = "features" not in self.sees
        return tags

    def fit(self, X: Any, y: Any, mask: Any = None, groups: Any = None, coords: Any = None) -> Self:
        """Fit the head.

        Parameters
        ----------
        X
            (n, d) features, any float dtype, may be a memory map.
        y
            (n, genes) targets, or (n,) for one gene.
        mask
            (n, genes) bool, True where an entry was measured. All entries are fitted unless a head has the
            parameter ``fit_on`` and it says otherwise.
        groups
            None, (n,) slide labels, or (n, 2) slide and patient labels. None means that no slides are known.
        coords
            (n, 2) positions within the slide, in µm or pixels; only for heads that see ``"coords"``.

        Raises
        ------
        InputError
            No rows, shapes that do not fit together, NaN or infinite values, or bad parameters.
        """
        X, y = self._begin(X, y)
        for what, given in (("mask", mask), ("coords", coords)):
            if given is not None and len(given) != len(X):
                raise InputError(f"{len(X)} rows of features but {len(given)} of {what}: join them by spot id first")
        self._fit(X, y, mask, groups, coords)
        return self

    def predict(self, X: Any, groups: Any = None, coords: Any = None) -> NDArray[Any]:
        """Predict targets.

        Parameters
        ----------
        X
            (n, d) features.
        groups
            As in ``fit``. A head that centres each slide, or looks at the neighbours of a spot, takes what it
            needs of a slide from its rows in ``X``: pass whole slides.
        coords
            As in ``fit``.

        Returns
        -------
        numpy.ndarray
            (n, genes), or (n,) if the fit got (n,) targets; float32, or float64 if ``X`` is neither float16 nor
            float32 (scikit-learn's rule that a prediction keeps the precision of its input).

        Raises
        ------
        InputError
            Not fitted, another number of columns than in the fit, NaN or infinite features.
        """
        self._require_fitted()
        X = check_array(self, X, reset=False)
        out = np.asarray(self._predict(X, groups, coords)).astype(result_dtype(X), copy=False)
        if not np.isfinite(out).all():
            raise InputError(NAN_FEATURES)
        return out[:, 0] if self.single_target_ else out

    @property
    def shown(self) -> str:
        """The name with the label, as it stands in a table."""
        return f"{self.name} ({self.label})" if self.label else self.name

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted as plain arrays, by name, so that a head is saved without pickle."""
        self._require_fitted()
        fitted = {key: np.asarray(getattr(self, f"{key}_")) for key in self.arrays}
        return fitted | {"n_features_in": np.array(self.n_features_in_), "single_target": np.array(self.single_target_)}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        head = cls(**params)
        for key in cls.arrays:
            setattr(head, f"{key}_", np.asarray(state[key]))
        head.n_features_in_ = state["n_features_in"].item()
        head.single_target_ = state["single_target"].item()
        return head

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        raise NotImplementedError

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _begin(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Check training arrays, remember their form, and return them as 2-d arrays, not copied if they are."""
        X = check_array(self, X, reset=True)
        if len(X) == 0:
            raise InputError(NO_ROWS)
        y = check_targets(y, len(X))
        self.single_target_ = y.ndim == 1
        return X, y if y.ndim == 2 else y[:, None]

    def _require_fitted(self) -> None:
        if not all(hasattr(self, f"{key}_") for key in ("single_target", *self.arrays)):
            raise UnfittedError(f"{getattr(self, 'name', type(self).__name__)} is not fitted: call fit first")


class StreamingHead(Head):
    """A head that can be fitted from blocks, so that the training rows never need to fit in memory.

    Subclasses write ``_fit_blocks`` instead of ``_fit`` and have the parameter ``block_rows``.
    """

    block_rows: int

    def fit_stream(self, blocks: Iterable[Block]) -> Self:
        """Fit on ``(X, y, groups)`` blocks.

        Parameters
        ----------
        blocks
            Features (m, d), targets (m, genes), and whose the rows are: one slide label, a tuple (slide, patient),
            or an array with one or two labels per row. The rows of a slide may come in several blocks, in any order.
            Each block is read once (a head says so where it reads twice).

        Raises
        ------
        InputError
            As ``fit``; or blocks with different numbers of columns or genes.
        """
        self._fit_blocks(blocks)
        return self

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._fit_blocks(RowBlocks(X, y[:, 0] if self.single_target_ else y, groups, self.block_rows))

    def _fit_blocks(self, blocks: Iterable[Block]) -> None:
        raise NotImplementedError

    def _checked(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks as 2-d arrays, checked against the first one, which decides the head's form."""
        genes = 0
        for X, y, groups in blocks:
            first = genes == 0
            X = check_array(self, X, reset=first)
            y = check_targets(y, len(X))
            if first:
                self.single_target_ = y.ndim == 1
            y = y if y.ndim == 2 else y[:, None]
            if not first and y.shape[1] != genes:
                raise InputError(f"a block has {y.shape[1]} genes, the first had {genes}: use one gene panel")
            genes = y.shape[1]
            yield X, y, groups
        if genes == 0:
            raise InputError(NO_ROWS)


class RowBlocks:
    """Arrays cut into blocks of at most ``block_rows`` rows, so that memory is bounded by the block."""

    def __init__(self, X: Any, y: Any, groups: Any, block_rows: int) -> None:
        if groups is not None and len(groups) != len(X):
            raise InputError(f"{len(X)} rows of features but {len(groups)} slide labels: give one per spot")
        self.X, self.y, self.block_rows = X, y, block_rows
        self.groups = None if groups is None else np.asarray(groups)

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, len(self.X), self.block_rows):
            rows = slice(start, start + self.block_rows)
            yield self.X[rows], self.y[rows], None if self.groups is None else self.groups[rows]


def result_dtype(X: NDArray[Any]) -> type[np.floating[Any]]:
    """Return the dtype of predictions for features ``X``."""
    return np.float32 if X.dtype in (np.float16, np.float32) else np.float64


def check_array(head: Head, X: Any, *, reset: bool) -> NDArray[Any]:
    """Return features as a dense 2-d array, not copied when they are one (a memory map stays one).

    Parameters
    ----------
    head
        Its ``n_features_in_`` is set (``reset``) or compared.
    X
        Features. NaN is looked for where the values are read, not here.
    reset
        True in a fit.

    Raises
    ------
    InputError
        Not numeric, not 2-d, empty, or another number of columns than in the fit.
    TypeError
        Sparse, or objects that are not numbers (scikit-learn's rule).
    """
    try:
        found: NDArray[Any] = validate_data(
            head, X, reset=reset, dtype="numeric", ensure_all_finite=False, ensure_min_samples=0
        )
    except ValueError as error:
        message = " ".join(str(error).split())
        raise InputError(f"{message} Give a dense (spots, dim) array of the same encoder throughout.") from error
    return found


def check_targets(y: Any, rows: int) -> NDArray[Any]:
    """Return ``y`` as a dense numeric array of shape (rows, genes) or (rows,).

    Raises
    ------
    InputError
        Absent, of another shape, not numeric, without genes, or with another number of rows than the features.
    """
    if y is None:
        raise InputError("no targets: a head requires y to be passed, but the target y is None")
    y = y if isinstance(y, np.ndarray) else np.asarray(y)
    if y.dtype == object:
        try:
            y = y.astype(np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"targets are not numbers ({error}): give a dense (spots, genes) array") from error
    if y.ndim not in (1, 2) or y.dtype.kind not in "fiub" or 0 in y.shape[1:]:
        raise InputError(f"targets have shape {y.shape} and dtype {y.dtype}: give a dense (spots, genes) array")
    if len(y) != rows:
        raise InputError(f"{rows} rows of features but {len(y)} of targets: join them by spot id first")
    return y


def row_groups(groups: Any, rows: int) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Return the slide and the patient of every row.

    Parameters
    ----------
    groups
        None (one slide, ``""``), one slide label, a tuple (slide, patient), (rows,) slide labels, or (rows, 2) labels
        of slide and patient. Without patients every slide is a patient of its own.
    rows
        Number of rows.

    Raises
    ------
    InputError
        The labels are not ``rows``.
    """
    if groups is None or isinstance(groups, (str, int, np.generic, tuple)):
        slide, patient = groups if isinstance(groups, tuple) else (groups, groups)
        return (
            np.full(rows, "" if slide is None else str(slide)),
            np.full(rows, "" if patient is None else str(patient)),
        )
    labels = np.asarray(groups).astype(np.str_)
    if labels.shape not in ((rows,), (rows, 2)):
        raise InputError(f"{rows} rows of features but slide labels of shape {labels.shape}: give one per spot")
    return (labels, labels) if labels.ndim == 1 else (labels[:, 0], labels[:, 1])


def slide_rows(groups: Any, rows: int) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Yield every slide with its row numbers, in sorted order of the slides."""
    slides, _ = row_groups(groups, rows)
    found, index = np.unique(slides, return_inverse=True)
    for i, label in enumerate(found):
        yield str(label), np.flatnonzero(index == i)


def pack_labels(labels: list[str]) -> NDArray[np.uint8]:
    """Return labels as UTF-8 bytes, each ended by a zero, for a head's ``state``."""
    return np.frombuffer("".join(f"{label}\0" for label in labels).encode(), dtype=np.uint8)


def unpack_labels(packed: NDArray[np.uint8]) -> list[str]:
    """Return what `pack_labels` packed."""
    return packed.tobytes().decode().split("\0")[:-1]
