"""What knowing a slide's mean expression, and nothing else, is worth: a row to read pooled scores by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import (
    NAN_TARGETS,
    NO_ROWS,
    Block,
    StreamingHead,
    pack_labels,
    row_groups,
    slide_rows,
    unpack_labels,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class SlideMean(StreamingHead):
    """Predict, for every spot, the mean of each gene over the spots of the same slide.

    An oracle: it has to be fitted on the slides that it predicts, targets included. Its pooled PCC says how much of
    a pooled score is knowledge of the slide alone; within a slide its PCC is 0. A slide it wasn't fitted on
    gets the mean of all spots.

    Parameters
    ----------
    block_rows
        Most rows that are read at a time.

    Attributes
    ----------
    means_
        (slides + 1, genes) float64, the mean of all spots last.
    slides_
        Labels of the slides as `pack_labels` packs them.
    """

    name: ClassVar[str] = "slide-mean"
    label: ClassVar[str] = "oracle"
    sees: ClassVar[frozenset[str]] = frozenset({"targets-of-slide"})
    arrays: ClassVar[tuple[str, ...]] = ("means", "slides")
    poor_score: ClassVar[bool] = True

    means_: NDArray[np.float64]
    slides_: NDArray[np.uint8]

    def __init__(self, *, block_rows: int = 16384) -> None:
        self.block_rows = block_rows

    def _fit_blocks(self, blocks: Iterable[Block]) -> None:
        sums: dict[str, tuple[int, NDArray[np.float64]]] = {}
        for _, y, groups in self._checked(blocks):
            for label, rows in slide_rows(groups, len(y)):
                count, before = sums.get(label, (0, np.zeros(y.shape[1])))
                sums[label] = count + len(rows), before + y[rows].sum(axis=0, dtype=np.float64)
        if not sums:
            raise InputError(NO_ROWS)
        labels = sorted(sums)
        counts = np.array([sums[label][0] for label in labels])
        totals = np.stack([sums[label][1] for label in labels])
        if not np.isfinite(totals).all():
            raise InputError(NAN_TARGETS)
        self.means_ = np.vstack([totals / counts[:, None], totals.sum(axis=0) / counts.sum()])
        self.slides_ = pack_labels(labels)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        rows = {label: i for i, label in enumerate(unpack_labels(self.slides_))}
        slides, _ = row_groups(groups, len(X))
        return self.means_[[rows.get(str(slide), -1) for slide in slides]]
