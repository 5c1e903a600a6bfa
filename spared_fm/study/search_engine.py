"""How a search finds rows: by looking at all of them, or with an index; by number, radius, or one per slide."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from spared_fm.study.index_table import Kept, Rows, ids_of, numbers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.study.queries import Query

Metric = Literal["cosine", "ip", "l2"]
METRICS = ("cosine", "ip", "l2")
Hits = list[tuple[int, float]]
"""Vector ids and similarities, best first."""
_FIRST = 64  # results asked for at first where their number is not known


class Engine(Protocol):
    """Finds the nearest rows among those that are kept."""

    metric: Metric

    def nearest(self, vectors: np.ndarray, k: int, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
        """Vector ids and similarities (q, k), best first, equal ones by id; -1 where there are no more."""
        ...


@dataclasses.dataclass
class Exact:
    """Looks at every row."""

    rows: Rows
    metric: Metric

    def nearest(self, vectors: np.ndarray, k: int, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Engine`."""
        from spared_fm.search.exact import search as exact

        if not len(kept):
            return np.full((len(vectors), k), -1, np.int64), np.full((len(vectors), k), -np.inf, np.float32)
        return exact(vectors, self.rows.blocks(kept), k, metric=self.metric)


def _least(engine: Engine, radius: float | None) -> float:
    """Similarity that results must have."""
    if radius is None:
        return -np.inf
    return -(radius**2) if engine.metric == "l2" else radius


def _ask(engine: Engine, rows: Rows, queries: Sequence[Query], kept: Kept, k: int) -> list[tuple[Hits, float]]:
    """For each query, what its vectors have among their k best, less its own spots; and how similar a row not listed may be."""
    # of spots that can't be found anyway no more need be asked for
    own = [
        {int(ids_of(rows.numbers[s], r)) for s, r in query.own if rows.numbers.get(s) in kept.masks}
        for query in queries
    ]
    want = max(1, min(k + max(map(len, own)), len(kept)))
    ids, similarity = engine.nearest(np.concatenate([query.vectors for query in queries]), want, kept)
    horizon = similarity[:, -1] if want < len(kept) else np.full(len(ids), -np.inf)
    out, at = [], 0
    for query, mine in zip(queries, own, strict=True):
        part = slice(at, at + len(query.vectors))
        at = part.stop
        best: dict[int, float] = {}
        for i, value in zip(ids[part].ravel().tolist(), similarity[part].ravel().tolist(), strict=True):
            if i >= 0 and i not in mine and value > best.get(i, -np.inf):
                best[i] = value
        out.append((sorted(best.items(), key=lambda hit: (-hit[1], hit[0])), float(horizon[part].max())))
    return out


def best(
    engine: Engine, rows: Rows, queries: Sequence[Query], kept: Kept, k: int | None, radius: float | None
) -> list[Hits]:
    """Give the k best of each query, all where k is None, down to the radius."""
    least, want = _least(engine, radius), k or _FIRST
    found = _ask(engine, rows, queries, kept, want)
    while k is None and any(horizon >= least for _, horizon in found):
        want *= 4
        found = _ask(engine, rows, queries, kept, want)
    return [[hit for hit in hits[:k] if hit[1] >= least] for hits, _ in found]


def best_per_slide(
    engine: Engine, rows: Rows, queries: Sequence[Query], kept: Kept, k: int | None, radius: float | None
) -> list[Hits]:
    """Give the best of each slide, of the k best slides (all where k is None), down to the radius.

    Slides that were found are left out, and the others are asked again.
    """
    least = _least(engine, radius)
    out = []
    for query in queries:
        left, slides = kept, Hits()
        while k is None or len(slides) < k:
            [(hits, horizon)] = _ask(engine, rows, [query], left, 4 * (k or _FIRST))
            fresh: dict[int, tuple[int, float]] = {}
            for hit in hits:
                if hit[1] >= max(least, horizon):  # below it another row of that slide, not listed, may be more similar
                    fresh.setdefault(int(numbers_of(np.array(hit[0]))), hit)
            if not fresh:
                break
            slides += fresh.values()
            left = left.without(fresh)
        out.append(slides[:k])
    return out
