"""An index of several segments, mapped from files, searched as one.

A query visits the same lists of every segment; what they hold is merged, scored again with the stored vectors, and
ordered by similarity, then by id. So results don't depend on how the rows were cut into segments.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from spared_fm.errors import InputError
from spared_fm.search import files
from spared_fm.search.exact import MARGIN, PIECE_BYTES, row_norms, similarities, unit_rows, usable_queries
from spared_fm.search.ivf import bounded, list_rows, visit_lists
from spared_fm.search.keep import Selection, mark
from spared_fm.search.plan import Plan
from spared_fm.search.ranges import within
from spared_fm.search.segments import open_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray

    from spared_fm.search.exact import Metric
    from spared_fm.search.ivf import Trained
    from spared_fm.search.keep import Keep
    from spared_fm.search.segments import Segment

    #: Ascending ids (m,) in, their stored vectors (m, d) out.
    Rerank = Callable[[NDArray[np.int64]], NDArray[np.floating]]
    #: Ids int64 and similarities float32, (q, k).
    Found = tuple[NDArray[np.int64], NDArray[np.float32]]

#: Queries handled at a time.
_BATCH = 1024
#: Lists visited hold at least so many rows for each candidate asked for.
_ROOM = 4
#: Lists visited under a filter hold at least this share of the kept rows that so many lists hold on average.
_FAIR = 0.5


class Index:
    """Inverted lists over one recipe's vectors.

    Attributes
    ----------
    dim, metric, plan
        What was indexed, and how.
    probes, candidates
        Lists visited, and candidates scored again for each result, unless a search says otherwise.
    rows, dead
        Rows that can be found, and rows that were removed since their segment was written.
    threads
        Most threads of a search; None for all cores.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any], trained: Trained, segments: list[Segment]) -> None:
        self.folder, self.card = folder, card
        self.dim: int = trained.dim
        self.metric: Metric = card["metric"]
        self.plan = Plan(**card["plan"])
        self.probes = int(card.get("probes", self.plan.probes))
        self.candidates = int(card.get("candidates", self.plan.candidates))
        self._trained, self._segments = trained, segments
        self.dead = sum(int((~s.alive).sum()) for s in segments if s.alive is not None)
        self.rows = sum(len(segment.ids) for segment in segments) - self.dead
        self.threads: int | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._alive = self.select(None) if self.dead else None

    @classmethod
    def open(cls, folder: str | Path, card: Mapping[str, Any], *, threads: int | None = None) -> Index:
        """Map the files that a card lists.

        Sizes, the trained file and the head of each segment (all that FAISS parses) are checked here;
        :meth:`verify` reads the rest.

        Parameters
        ----------
        folder
            Holds the files.
        card
            ``metric``, ``dim``, ``plan``, ``trained`` and ``segments`` as the builders returned them, and optionally
            ``tombstones`` (ranges ``[start, stop)`` of ids that were removed), ``probes`` and ``candidates``.
        threads
            Most threads of a search; by default all cores.

        Raises
        ------
        InputError
            A card that isn't one, an index of kind ``"exact"``, or a file that is damaged.
        MissingFileError
            A file is gone (an InputError too).
        """
        folder = Path(folder)
        try:
            opened = cls(folder, card, *open_segments(folder, card))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder}: the index's card is damaged ({error}); build the index again") from error
        opened.threads = threads
        return opened

    def close(self) -> None:
        """End the threads of searches; the files stay mapped while the index is referred to."""
        if self._pool:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises
        ------
        InputError
            Names the first that is damaged, of another size, or gone.
        """
        for entry in [self.card["trained"], *self.card["segments"]]:
            files.check(files.file_of(self.folder, entry), entry["crc32c"])

    def select(self, keep: Keep | None) -> Selection:
        """Evaluate a filter once, for several searches.

        Parameters
        ----------
        keep
            What may be found: ids (m,), ascending; ranges ``[start, stop)`` of ids (r, 2); a function of ascending ids
            giving bool; None for all; or a selection. Removed rows are never kept.
        """
        if isinstance(keep, Selection):
            return keep
        masks = []
        for segment in self._segments:
            found = np.ones(len(segment.ids), bool) if keep is None else mark(segment.ids, keep)
            masks.append(found if segment.alive is None else found & segment.alive)
        return Selection.of(masks)

    def kept_ids(self, selection: Selection) -> NDArray[np.int64]:
        """Return the ids that a selection keeps, ascending."""
        parts = [segment.ids[found] for segment, found in zip(self._segments, selection.masks, strict=True)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        keep: Keep | None = None,
        probes: int | None = None,
        candidates: int | None = None,
        rerank: Rerank | None = None,
    ) -> Found:
        """Find about the k most similar rows of each query.

        Parameters
        ----------
        queries
            (q, d), or (d,) for one.
        k
            How many to return.
        keep
            What may be found, as in :meth:`select`.
        probes
            Lists to visit; more are visited where a filter or removed rows leave fewer in each (or, in those that are near,
            next to none: a query's own slide left out), and for a large k.
        candidates
            For each result, so many are found and scored again.
        rerank
            Gives the stored vectors of ascending ids. With it similarities are those of an exact search, to the bit;
            without it they are estimates from the codes.

        Returns
        -------
        ids, similarity
            int64 and float32 (q, k), as :func:`spared_fm.search.exact.search` returns them.

        Raises
        ------
        InputError
            k below 1, unusable queries or filter, or a damaged file.
        """
        if k < 1:
            raise InputError(f"k is {k}: ask for 1 or more")
        asked = usable_queries(queries, self.metric)
        if asked.shape[1] != self.dim:
            raise InputError(f"the query has {asked.shape[1]} dimensions, the index {self.dim}: use one encoder")
        selection = self._alive if keep is None else self.select(keep)
        kept = self.rows if selection is None else selection.count
        ids, similarity = np.full((len(asked), k), -1, np.int64), np.full((len(asked), k), -np.inf, np.float32)
        if not kept:
            return ids, similarity
        count = k if rerank is None else (candidates or self.candidates) * k + MARGIN
        count = min(count, kept)
        nlist = self._trained.ivf.nlist
        visited = (probes or self.probes) * max(1.0, (self.rows + self.dead) / kept)
        visited = min(nlist, int(np.ceil(max(visited, _ROOM * count * nlist / kept))))
        least = 0.0 if selection is None else _FAIR * visited * kept / nlist
        step = max(1, min(_BATCH, PIECE_BYTES // (8 * count)))
        for start in range(0, len(asked), step):
            part = slice(start, start + step)
            near, rough = self._candidates(asked[part], count, visited, selection, least)
            if rerank is not None:
                rough = self._scored(asked[part], near, rerank)
                near = np.where(rough > -np.inf, near, -1)
            order = np.lexsort((near, -rough), axis=1)[:, :k]
            width = order.shape[1]
            ids[part, :width] = np.take_along_axis(near, order, 1)
            similarity[part, :width] = np.take_along_axis(rough, order, 1)
        return ids, similarity

    def _candidates(
        self, queries: NDArray[np.float32], count: int, probes: int, selection: Selection | None, least: float
    ) -> Found:
        """Return ids and estimated similarities (q, c) of candidates, of lists that hold ``least`` kept rows or more.

        Where a list was short of them they are -1 and -inf.
        """
        unit = unit_rows(queries, row_norms(queries, self.metric)) if self.metric == "cosine" else queries
        with bounded(self.threads):
            points = self._trained.points(unit)
            distance, lists = self._trained.ivf.quantizer.search(points, probes)
        nlist = self._trained.ivf.nlist
        if selection is None or probes >= nlist:
            return self._visited(points, distance, lists, count, selection)
        # what a filter leaves out is often just what lies near: the lists of a query's own slide
        short = self._held(lists, selection) < least
        if not short.any():
            return self._visited(points, distance, lists, count, selection)
        ids, rough = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
        more = self._candidates(queries[short], count, min(nlist, 2 * probes), selection, least)
        ids[short], rough[short] = more
        if not short.all():
            rest = ~short
            ids[rest], rough[rest] = self._visited(points[rest], distance[rest], lists[rest], count, selection)
        return ids, rough

    def _held(self, lists: NDArray[np.int64], selection: Selection) -> NDArray[np.int64]:
        """Count the kept rows in the lists (q, p) of each query."""
        unique, back = np.unique(lists, return_inverse=True)
        try:
            for number in unique.tolist():
                if number not in selection.listed:
                    selection.listed[number] = sum(
                        segment.ivf.invlists.list_size(number)
                        if bits is None
                        else int(np.count_nonzero(mask[list_rows(segment.ivf, number)]))
                        for segment, mask, bits in zip(self._segments, selection.masks, selection.bits, strict=True)
                    )
        except IndexError:
            raise InputError(f"{self.folder}: a segment of the index is damaged; build the index again") from None
        held = np.array([selection.listed[number] for number in unique.tolist()], np.int64)
        return held[back.reshape(lists.shape)].sum(axis=1)

    def _visited(
        self,
        points: NDArray[np.float32],
        distance: NDArray[np.float32],
        lists: NDArray[np.int64],
        count: int,
        selection: Selection | None,
    ) -> Found:
        """Search the given lists of all segments."""
        with bounded(self.threads):
            threads = faiss.omp_get_max_threads()
            work = [
                (segment, None if selection is None else selection.bits[number])
                for number, segment in enumerate(self._segments)
                if selection is None or selection.masks[number].any()
            ]

            def visit(item: tuple[Segment, NDArray[np.uint8] | None]) -> Found:
                return self._visit(item[0], points, distance, lists, count, item[1])

            if len(work) > 1 and threads > 1 and len(points) < threads:  # too few queries to share out
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))
                found = list(self._pool.map(visit, work))
            else:
                found = list(map(visit, work))
        if len(found) == 1:
            return found[0]
        ids, rough = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.argpartition(-rough, count - 1, axis=1)[:, :count]
        return np.take_along_axis(ids, best, 1), np.take_along_axis(rough, best, 1)

    def _visit(
        self,
        segment: Segment,
        points: NDArray[np.float32],
        distance: NDArray[np.float32],
        lists: NDArray[np.int64],
        count: int,
        bits: NDArray[np.uint8] | None,
    ) -> Found:
        """Search the given lists of one segment."""
        far, rows = visit_lists(segment.ivf, points, lists, distance, count, bits)
        if rows.max() >= len(segment.ids):
            raise InputError(f"{self.folder}: a segment of the index is damaged; build the index again")
        absent = rows < 0
        ids = segment.ids[np.where(absent, 0, rows)]
        rough = far if self.metric == "ip" else -far
        if self.metric == "cosine":
            rough = (1 + rough / 2).astype(np.float32)
        absent |= ~np.isfinite(rough)
        ids[absent], rough[absent] = -1, -np.inf
        return ids, rough

    def _scored(self, queries: NDArray[np.float32], ids: NDArray[np.int64], rerank: Rerank) -> NDArray[np.float32]:
        """Return similarities (q, c) of stored vectors; -inf where there is no candidate, or its row is gone."""
        out = np.full(ids.shape, -np.inf, np.float32)
        width = max(1, PIECE_BYTES // (8 * self.dim))
        step = max(1, width // ids.shape[1])
        for start in range(0, len(ids), step):
            for left in range(0, ids.shape[1], width):
                piece = slice(start, start + step), slice(left, left + width)
                wanted, back = np.unique(ids[piece], return_inverse=True)
                first = int(np.searchsorted(wanted, 0))  # -1, where a list was short, comes before all ids
                if first == len(wanted):
                    continue
                stored = np.asarray(rerank(wanted[first:]))
                if stored.shape != (len(wanted) - first, self.dim):
                    raise InputError(
                        f"{len(wanted) - first} stored vectors of {self.dim} dimensions were asked for, "
                        f"shape {stored.shape} came: build the index again"
                    )
                back = back.reshape(ids[piece].shape)
                found = similarities(queries[piece[0]], stored, np.maximum(back - first, 0), self.metric)
                out[piece] = np.where((back >= first) & np.isfinite(found), found, -np.inf)
        return out

    def range_search(
        self,
        queries: ArrayLike,
        least: float,
        *,
        limit: int = 10_000,
        keep: Keep | None = None,
        probes: int | None = None,
        candidates: int | None = None,
        rerank: Rerank | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Find about all rows at least so similar to each query.

        Parameters
        ----------
        queries, keep, probes, candidates, rerank
            As in :meth:`search`.
        least
            Smallest similarity.
        limit
            Most results of a query; the most similar are returned.

        Returns
        -------
        limits, ids, similarity
            Results of query i are ``ids[limits[i] : limits[i + 1]]``, most similar first: int64 (q + 1,), int64 and
            float32 (all results,).
        """
        keep = None if keep is None else self.select(keep)

        def find(some: NDArray[np.float32], k: int) -> Found:
            return self.search(some, k, keep=keep, probes=probes, candidates=candidates, rerank=rerank)

        return within(find, usable_queries(queries, self.metric), least, limit)
