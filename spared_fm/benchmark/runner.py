"""Fit a head on the train slides, predict the others, score: arrays in, rows out."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.benchmark.metrics import Which, score
from spared_fm.benchmark.splits import PARTS, check_split
from spared_fm.errors import InputError
from spared_fm.heads.base import StreamingHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from spared_fm.heads.base import Head

#: One line of the table; ``slide`` is None for all slides of a split pooled, a score is None where there is
#: none.
Row = dict[str, Any]
KEYS = (
    "encoder",
    "head",
    "target",
    "split",
    "slide",
    "pcc_gene",
    "pcc_patch",
    "mse",
    "mae",
    "r2_gene",
    "n_spots",
)


@dataclass
class Fitted:
    """A head that was fitted on the train slides, and what it predicts of the others.

    Attributes
    ----------
    predictions
        float32 (spots, genes) of each held-out slide, those of val before those of test; NaN rows where the embedding is
        absent.
    present
        Row numbers of each slide's spots that have an embedding.
    absent
        Number of spots without an embedding, of the slides that have any: they are neither fitted nor scored.
    """

    predictions: dict[str, NDArray[np.float32]]
    present: dict[str, NDArray[np.intp]]
    absent: dict[str, int]


@dataclass
class Evaluation:
    """What one cell of the benchmark gives.

    Attributes
    ----------
    rows
        For val, then test: the pooled row, then one row per slide in sorted order. Plain JSON values.
    predictions
        As in :class:`Fitted`.
    head
        The fitted head.
    absent
        As in :class:`Fitted`.
    """

    rows: list[Row]
    predictions: dict[str, NDArray[np.float32]]
    head: Head
    absent: dict[str, int] = field(default_factory=dict)


def fit_predict(
    head: Head,
    *,
    X: Mapping[str, Any],
    Y: Mapping[str, Any],
    mask: Mapping[str, Any] | None = None,
    split: Mapping[str, str],
    patients: Mapping[str, str] | None = None,
    coords: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    shuffle_seed: int | None = None,
) -> Fitted:
    """Fit on the train slides and predict every other slide.

    Parameters
    ----------
    head
        An unfitted head; it is fitted in place.
    X
        Embeddings (spots, dim) of each slide, any float dtype, may be memory maps. A row that is all NaN is
        a patch that could not be read: its spot is left out and counted in ``absent``.
    Y
        Targets (spots, genes) of each slide, rows as in ``X``.
    mask
        (spots, genes) bool of each slide. Heads fit all entries, unless one is told otherwise by its own parameter.
    split
        ``"train"``, ``"val"`` or ``"test"`` for each slide; slides of ``X`` that are not named are not used.
    patients
        Patient of each slide, for heads that choose by leaving patients out; absent: each slide its own.
    coords
        Positions (spots, 2) of each slide, for heads that look at them.
    counts
        Raw counts (spots, genes) of each slide, for heads whose ``fit`` takes them.
    shuffle_seed
        Pair the features and the targets of each train slide at random: a check that scores about 0 if
        nothing leaks.

    Raises
    ------
    InputError
        No train slide or none held out, a slide without features, targets or mask, rows that do not match.
    """
    check_split(split, {})
    present: dict[str, NDArray[np.intp]] = {}
    absent: dict[str, int] = {}
    for slide in sorted(split):
        present[slide] = _present(slide, X, Y, mask)
        if missing := len(X[slide]) - len(present[slide]):
            absent[slide] = missing

    train = [s for s in sorted(split) if split[s] == "train"]
    # an oracle is fitted on the slides it predicts: that is what makes it one
    fitted = sorted(split) if "targets-of-slide" in head.sees else train

    def targets(slide: str) -> Any:
        y = _take(Y[slide], present[slide])
        if shuffle_seed is None or slide not in train:
            return y
        return y[np.random.default_rng([shuffle_seed, train.index(slide)]).permutation(len(y))]

    def whose(slide: str) -> tuple[str, str]:
        return slide, slide if patients is None else patients[slide]

    if isinstance(head, StreamingHead):
        head.fit_stream(_Blocks(lambda: ((_take(X[s], present[s]), targets(s), whose(s)) for s in fitted)))
    else:
        beside = {"mask": mask, "coords": coords} | ({"counts": counts} if takes_counts(head) else {})
        head.fit(
            np.concatenate([_take(X[s], present[s]) for s in fitted]),
            np.concatenate([targets(s) for s in fitted]),
            groups=np.concatenate([_labels(whose(s), len(present[s])) for s in fitted]),
            **{
                what: np.concatenate([_take(part[s], present[s]) for s in fitted])
                for what, part in beside.items()
                if part is not None
            },
        )

    predictions: dict[str, NDArray[np.float32]] = {}
    for slide in (s for part in PARTS[1:] for s in sorted(split) if split[s] == part):
        kept = present[slide]
        predicted = head.predict(
            _take(X[slide], kept),
            groups=_labels(whose(slide), len(kept)),
            coords=None if coords is None else _take(coords[slide], kept),
        ).astype(np.float32, copy=False)
        full = np.full((len(X[slide]), predicted.shape[1]), np.nan, dtype=np.float32)
        full[kept] = predicted
        predictions[slide] = full
    return Fitted(predictions, present, absent)


def takes_counts(head: Head) -> bool:
    """Whether a head's ``fit`` takes raw counts beside the targets."""
    return "counts" in inspect.signature(head.fit).parameters


def evaluate(
    head: Head,
    *,
    encoder: str,
    target: str,
    X: Mapping[str, Any],
    Y: Mapping[str, Any],
    mask: Mapping[str, Any] | None = None,
    split: Mapping[str, str],
    patients: Mapping[str, str] | None = None,
    coords: Mapping[str, Any] | None = None,
    which: Which = "all",
    shuffle_seed: int | None = None,
) -> Evaluation:
    """Fit on the train slides and score every other slide.

    Parameters
    ----------
    head
        An unfitted head; it is fitted in place.
    encoder, target
        Names for the rows.
    X, Y, split, patients, coords, shuffle_seed
        As for :func:`fit_predict`.
    mask
        As there; needed for ``which="measured"``.
    which
        Score all entries or the measured ones.

    Returns
    -------
    Evaluation
        Rows with the keys of ``KEYS``, predictions, the fitted head, and counts of absent spots.

    Raises
    ------
    InputError
        As :func:`fit_predict`, or no mask where measured entries are to be scored.
    """
    if which == "measured" and mask is None:
        raise InputError("scoring measured entries needs a mask: the cohort's layer 'mask'")
    found = fit_predict(
        head, X=X, Y=Y, mask=mask, split=split, patients=patients, coords=coords, shuffle_seed=shuffle_seed
    )
    rows: list[Row] = []
    for part in PARTS[1:]:
        scored: dict[str, tuple[Any, Any, Any]] = {}
        for slide in (s for s in found.predictions if split[s] == part):
            kept = found.present[slide]
            seen = _take(mask[slide], kept) if mask is not None and which == "measured" else None
            scored[slide] = _take(Y[slide], kept), _take(found.predictions[slide], kept), seen
        usable = {s: arrays for s, arrays in scored.items() if len(arrays[0])}
        names: list[str | None] = [None, *scored] if scored else []
        for name in names:
            parts = list(usable.values()) if name is None else [scored[name]]
            rows.append(
                {"encoder": encoder, "head": head.shown, "target": target, "split": part, "slide": name}
                | _scores(parts, which)
            )
    return Evaluation(rows, found.predictions, head, found.absent)


@dataclass
class _Blocks:
    """Blocks that can be read again, one slide in memory at a time."""

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def _labels(whose: tuple[str, str], rows: int) -> NDArray[np.str_]:
    """Return the (rows, 2) slide and patient of a slide's rows."""
    return np.tile(np.array(whose), (rows, 1))


def _present(
    slide: str, X: Mapping[str, Any], Y: Mapping[str, Any], mask: Mapping[str, Any] | None
) -> NDArray[np.intp]:
    """Return the rows of a slide that have an embedding, after checking that its arrays belong together."""
    for what, found in (("features", X), ("targets", Y), *([] if mask is None else [("mask", mask)])):
        if slide not in found:
            raise InputError(f"slide {slide} has no {what}: give them, or take it out of the split")
        if len(found[slide]) != len(X[slide]):
            raise InputError(
                f"slide {slide} has {len(X[slide])} rows of features but {len(found[slide])} of {what}: "
                "join them by spot id first"
            )
    x = X[slide]
    missing = [np.isnan(x[i : i + 16384]).all(axis=1) for i in range(0, len(x), 16384)]
    return np.flatnonzero(~np.concatenate(missing)) if missing else np.zeros(0, dtype=np.intp)


def _take(array: Any, rows: NDArray[np.intp]) -> Any:
    """Return rows of an array, not copied when they are all of them."""
    return array if len(rows) == len(array) else array[rows]


def _scores(parts: list[tuple[Any, Any, Any]], which: Which) -> Row:
    """Score the parts pooled; a score that does not exist is None, so that the row is valid JSON."""
    if not sum(len(truth) for truth, _, _ in parts):
        return dict.fromkeys(KEYS[5:-1]) | {"n_spots": 0}
    truth, predicted = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    seen = np.concatenate([part[2] for part in parts]) if which == "measured" else None
    found = score(truth, predicted, mask=seen, which=which)
    return {key: None if isinstance(found[key], float) and math.isnan(found[key]) else found[key] for key in KEYS[5:]}
