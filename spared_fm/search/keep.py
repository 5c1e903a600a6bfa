"""Which rows of an index a search may return, as one bool array per segment."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    #: Ascending ids (m,), ranges of ids (r, 2), a function of ids giving bool, or what was selected before.
    Keep: TypeAlias = "Selection | Callable[[NDArray[np.int64]], NDArray[np.bool_]] | NDArray[np.int64]"

LAST = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a filter keeps of each segment.

    Attributes
    ----------
    masks
        bool (rows of the segment,) for each segment.
    bits
        The same, packed as FAISS reads it; None where the whole segment is kept.
    count
        Rows kept, in all.
    listed
        Rows kept in each inverted list that a search has asked for.
    """

    masks: list[NDArray[np.bool_]]
    bits: list[NDArray[np.uint8] | None]
    count: int
    listed: dict[int, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, masks: list[NDArray[np.bool_]]) -> Selection:
        """Pack and count what masks keep."""
        bits = [None if mask.all() else np.packbits(mask, bitorder="little") for mask in masks]
        return cls(masks, bits, sum(int(mask.sum()) for mask in masks))


def in_ranges(ids: NDArray[np.int64], ranges: Sequence[Sequence[int]] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark ascending ids (n,) that lie in one of the ranges ``[start, stop)``."""
    found = np.zeros(len(ids), dtype=bool)
    if len(ranges):
        edges = np.searchsorted(ids, np.asarray(ranges, dtype=np.int64))
        for start, stop in edges.tolist():
            found[start:stop] = True
    return found


def ranges_without(ranges: Sequence[Sequence[int]] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges of ids (r, 2) between those given: what is left when they are excluded."""
    first, left = 0, []
    for start, stop in sorted(map(tuple, np.asarray(ranges, dtype=np.int64).reshape(-1, 2).tolist())):
        if start > first:
            left.append((first, start))
        first = max(first, stop)
    return np.array([*left, (first, LAST)], dtype=np.int64)


def mark(ids: NDArray[np.int64], keep: Keep) -> NDArray[np.bool_]:
    """Mark ascending ids (n,) of one segment that are kept.

    Raises
    ------
    InputError
        ``keep`` is neither ids, ranges nor a function that gives one bool for each id.
    """
    if callable(keep):
        found = np.asarray(keep(ids))
        if found.dtype != bool or found.shape != ids.shape:
            raise InputError(f"keep gave shape {found.shape} and dtype {found.dtype}: give bool of shape ({len(ids)},)")
        return found
    wanted = np.asarray(keep)
    if wanted.dtype.kind not in "iu" and wanted.size:
        raise InputError(f"keep has dtype {wanted.dtype}: give ids, ranges of ids (r, 2), or a function of ids")
    if wanted.ndim == 2 and wanted.shape[1] == 2:
        return in_ranges(ids, wanted)
    if wanted.ndim != 1 or (np.diff(wanted) <= 0).any():
        raise InputError(
            f"keep has shape {wanted.shape}: give ascending ids, ranges of ids (r, 2), or a function of ids"
        )
    found = np.zeros(len(ids), dtype=bool)
    at = np.searchsorted(ids, wanted)
    inside = at < len(ids)
    at = at[inside]
    found[at[ids[at] == wanted[inside]]] = True
    return found
