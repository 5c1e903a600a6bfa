"""Mapping the files of an index, checked first."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.search import files
from spared_fm.search.ivf import Trained
from spared_fm.search.keep import in_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclasses.dataclass
class Segment:
    """A mapped segment.

    Attributes
    ----------
    ivf
        Its inverted lists, of row numbers; they lie in ``mapped``.
    ids
        int64 (rows,), ascending.
    alive
        bool (rows,): False where a row was removed; None where none was.
    mapped
        The file.
    """

    ivf: Any
    ids: NDArray[np.int64]
    alive: NDArray[np.bool_] | None
    mapped: NDArray[np.uint8]


def open_segments(folder: Path, card: Mapping[str, Any]) -> tuple[Trained, list[Segment]]:
    """Map the trained file and the segments of a card, as :meth:`spared_fm.search.index.Index.open` says."""
    if card["plan"]["kind"] == "exact":
        raise InputError(f"{folder}: so few vectors are searched exactly, there is no index to open")
    if card["metric"] not in ("cosine", "ip", "l2"):
        raise InputError(f"{folder}: the index has an unknown metric {card['metric']!r}; build the index again")
    path = files.file_of(folder, card["trained"])
    files.check(path, card["trained"]["crc32c"])
    trained = Trained.open(path)
    if trained.dim != card["dim"]:
        raise InputError(f"{trained.path} is of {trained.dim} dimensions, not {card['dim']}; build the index again")
    return trained, [_opened(trained, folder, entry, card.get("tombstones", ())) for entry in card["segments"]]


def _opened(trained: Trained, folder: Path, entry: Mapping[str, Any], tombstones: Sequence[Sequence[int]]) -> Segment:
    path, rows = files.file_of(folder, entry), entry["rows"]
    size = entry["head_bytes"] + rows * (trained.ivf.code_size + 8)
    at = size + -size % 8
    if rows < 1 or entry["head_bytes"] < 1 or (entry["ids_at"], entry["bytes"]) != (at, at + 8 * rows):
        raise InputError(f"{path} does not have the size of its {rows} rows; build the index again")
    files.check(path, entry["head_crc32c"], entry["head_bytes"])
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    ivf = trained.filled(path, mapped[:size])
    if ivf.ntotal != rows:
        raise InputError(f"{path} holds {ivf.ntotal} rows, not {rows}; build the index again")
    ids = mapped[at:].view("<i8")
    dead = in_ranges(ids, tombstones) if tombstones else None
    return Segment(ivf, ids, None if dead is None or not dead.any() else ~dead, mapped)
