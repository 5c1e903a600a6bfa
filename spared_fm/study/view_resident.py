"""Exact search over rows held in memory, the questions of many threads answered together.

A matrix product of fifty queries costs little more than one of a few, since it is the rows that have to be fetched. So a thread
that comes while another one searches leaves its question, and when that one is done the first who waits answers all who do.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

import numpy as np

from spared_fm.search.exact import MARGIN, row_norms, similarities, unit_rows, usable_queries
from spared_fm.study.index_table import numbers_of

if TYPE_CHECKING:
    from spared_fm.study.index_table import Kept, Rows
    from spared_fm.study.search_engine import Metric

MOST_BYTES = 2 << 30
"""Most memory that the rows of one key may take."""
_BLOCK = 64  # similarities of which first only the largest is looked at
_RESCORED = 8192  # rows scored again at a time
_PRODUCTS = 1 << 24  # similarities held at a time


@dataclasses.dataclass
class _Question:
    vectors: np.ndarray
    k: int
    kept: Kept
    answer: tuple[np.ndarray, np.ndarray] | None = None
    error: BaseException | None = None
    woken: threading.Event = dataclasses.field(default_factory=threading.Event)


class Resident:
    """Looks at every row, like :class:`spared_fm.study.search_engine.Exact` and with the same answers, but in memory; cosine.

    Parameters
    ----------
    rows
        Rows to hold.
    whole
        All that may be kept in a search.
    """

    metric: Metric = "cosine"

    def __init__(self, rows: Rows, whole: Kept) -> None:
        n, dim = len(whole), rows.array(next(iter(whole.masks))).shape[1]
        padded = -(-n // _BLOCK) * _BLOCK
        self._ids = np.full(padded, -1, np.int64)
        self._units = np.zeros((padded, dim), np.float32)
        self._absent = np.ones(padded, dtype=bool)
        stored: list[np.ndarray] = []
        at = 0
        for ids, values in rows.blocks(whole):
            place = slice(at, at := at + len(values))
            wide = values.astype(np.float32)
            norms = row_norms(wide, self.metric)
            good = np.isfinite(norms)
            self._ids[place], self._absent[place] = ids, ~good
            self._units[place][good] = unit_rows(wide[good], norms[good])
            stored.append(np.array(values))
        self._stored = np.concatenate(stored)
        numbers = numbers_of(self._ids[:n])
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        ends = [*starts[1:].tolist(), n]
        self._parts = {int(numbers[start]): slice(start, end) for start, end in zip(starts.tolist(), ends, strict=True)}
        self._empty = self._absent.any()
        self._slack = 4 * np.sqrt(dim) * np.finfo(np.float32).eps  # float32 errs by less; see spared_fm.search.exact
        self._waiting: list[_Question] = []
        self._door = threading.Lock()
        self._busy = False

    @staticmethod
    def needs(rows: Rows, whole: Kept) -> int:
        """Bytes that these rows would take: once in float32, once as they are compared in the end."""
        array = rows.array(next(iter(whole.masks)))
        return len(whole) * array.shape[1] * (4 + (4 if rows.scale is not None else array.dtype.itemsize))

    def nearest(self, vectors: np.ndarray, k: int, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`spared_fm.study.search_engine.Engine`."""
        mine = _Question(usable_queries(vectors, self.metric), k, kept)
        with self._door:
            self._waiting.append(mine)
            lead, self._busy = not self._busy, True
        if not lead:
            mine.woken.wait()  # with an answer, or to search for all that wait now
        if mine.answer is None and mine.error is None:
            with self._door:
                asked, self._waiting = self._waiting, []
            self._answer(asked)
            for question in asked:
                question.woken.set()
            with self._door:
                self._busy = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].woken.set()
        if mine.error is not None:
            raise mine.error
        assert mine.answer is not None
        return mine.answer

    def _answer(self, asked: list[_Question]) -> None:
        try:
            found = self._found(asked)
        except BaseException as error:  # whoever waits must hear of it, not only the thread that searched
            for question in asked:
                question.error = error
            return
        for question, answer in zip(asked, found, strict=True):
            question.answer = answer

    def _found(self, asked: list[_Question]) -> list[tuple[np.ndarray, np.ndarray]]:
        step = max(1, _PRODUCTS // len(self._ids))
        vectors = np.concatenate([question.vectors for question in asked])
        owner = np.repeat(np.arange(len(asked)), [len(question.vectors) for question in asked])
        ids = [np.full((len(q.vectors), q.k), -1, np.int64) for q in asked]
        found = [np.full((len(q.vectors), q.k), -np.inf, np.float32) for q in asked]
        first = np.searchsorted(owner, np.arange(len(asked)))
        units = unit_rows(vectors, row_norms(vectors, self.metric))
        for start in range(0, len(vectors), step):
            # this way round BLAS is a quarter faster: it cuts the long matrix, not the short one, into panels
            rough = self._units @ units[start : start + step].T
            for offset, products in enumerate(rough.T):
                self._leave(products, asked[owner[start + offset]].kept)
            tops = rough.reshape(-1, _BLOCK, rough.shape[1]).max(axis=1)
            for offset, products in enumerate(rough.T):
                i = start + offset
                question, place = asked[owner[i]], i - first[owner[i]]
                near, similarity = self._best(products, tops[:, offset], vectors[i], question.k)
                ids[owner[i]][place, : len(near)] = self._ids[near]
                found[owner[i]][place, : len(near)] = similarity
        return list(zip(ids, found, strict=True))

    def _leave(self, products: np.ndarray, kept: Kept) -> None:
        """Strike out what isn't kept, and rows that hold no vector."""
        if self._empty:
            products[self._absent] = -np.inf
        for number, part in self._parts.items():
            if number not in kept.masks:
                products[part] = -np.inf
            elif (mask := kept.masks[number]) is not None:
                products[part][~mask] = -np.inf

    def _best(
        self, products: np.ndarray, tops: np.ndarray, vector: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and similarities of the k best, scored again in float64; equal ones by id. `tops` are those of the blocks."""
        count = k + MARGIN
        held = np.argpartition(tops, -count)[-count:] if count < len(tops) else np.arange(len(tops))
        rows = (held[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        if count < len(rows):
            rows = rows[np.argpartition(products[rows], -count)[-count:]]
        rows = rows[np.isfinite(products[rows])]
        if not len(rows):
            return rows, np.empty(0, np.float32)
        rows, similarity = self._scored(rows, vector, k)
        if len(rows) == k:  # rows whose product errs low may belong among the best
            near = np.flatnonzero(tops + self._slack >= similarity[-1])
            reach = (near[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
            reach = reach[products[reach] + self._slack >= similarity[-1]]
            for start in range(0, len(reach) if len(reach) > k else 0, _RESCORED):
                rows, similarity = self._scored(np.union1d(rows, reach[start : start + _RESCORED]), vector, k)
        return rows, similarity

    def _scored(self, rows: np.ndarray, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        similarity = similarities(vector[None], self._stored, rows[None], self.metric)[0]
        order = np.lexsort((self._ids[rows], -similarity))[:k]
        return rows[order], similarity[order]
