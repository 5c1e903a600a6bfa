"""Exact nearest neighbours over blocks of vectors, streamed with bounded memory.

FAISS finds a few candidates too many in float32; those are scored again in float64, rounded to float32 and
ordered by similarity, then by id. So the answer does not depend on how the vectors were cut into blocks, nor
on the number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import faiss
import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Exclude = Callable[[NDArray[np.int64]], NDArray[np.bool_]] | Sequence[Any] | NDArray[np.bool_]

    #: Ids and similarities of the k best so far, (q, k) each, changed in place.
    Best = tuple[NDArray[np.int64], NDArray[np.float32]]

Metric = Literal["cosine", "ip", "l2"]
#: Candidates beyond k that are scored again.
MARGIN = 8
#: A query that has more rows than this left out of a piece is searched over a copy of the rows that remain.
FEW = 64
#: Bytes of vectors in float32, and of candidates in float64, held at a time.
PIECE_BYTES = 64 << 20
#: Values scored again at a time, in float64: they stay in the cache of a core.
_CACHED = 1 << 18
#: Fewest rows of a piece, however long the vectors.
_SMALLEST = 1024
#: Norms above this, or below its inverse, leave the range of float32 when they are squared.
LARGEST = 1e17


def search(
    queries: ArrayLike,
    blocks: Iterable[tuple[ArrayLike, ArrayLike]],
    k: int,
    *,
    metric: Metric = "cosine",
    exclude: Exclude | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k most similar vectors of each query.

    Parameters
    ----------
    queries
        (q, d), or (d,) for one.
    blocks
        ``(ids, vectors)``: int64 (m,), unique over all blocks and not negative, and float16 or float32 (m,
        d), which may be memory maps. Read once, in pieces of 64 MiB. Rows that hold NaN or infinity (absent
        patches) are skipped.
    k
        How many to return.
    metric
        ``"cosine"``: cosine of the angle, 0 where either vector is zero. ``"ip"``: inner product. ``"l2"``:
        minus the squared Euclidean distance, so that larger is always more similar.
    exclude
        Rows to leave out before the k best are picked, so that k are still returned where there are as many:
        a function of ids (m,) giving bool (m,) for all queries or (q, m) for each; or a bool array (q, n) or
        (n,) to be looked up by id; or, for each query, a collection of ids. True, or a listed id, means left
        out.

    Returns
    -------
    ids, similarity
        int64 and float32 (q, k), most similar first, equal similarities by lower id. Where fewer than k rows
        remain the rest is id -1 and similarity -inf.

    Raises
    ------
    InputError
        k below 1, queries that are not (q, d) or hold NaN, vectors of another dimension, nothing to search,
        values too large for float32 arithmetic, or an ``exclude`` of the wrong shape.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for 1 or more")
    asked = usable_queries(queries, metric)
    left_out = _excluder(exclude, len(asked))

    best = np.full((len(asked), k), -1, np.int64), np.full((len(asked), k), -np.inf, np.float32)
    rows = 0
    for ids, vectors in pieces(blocks, asked.shape[1]):
        rows += len(ids)
        norms = row_norms(vectors, metric)
        if not np.isfinite(norms).all():
            kept = np.flatnonzero(np.isfinite(norms))
            ids, vectors, norms = ids[kept], vectors[kept], norms[kept]
        if len(ids):
            _search_piece(_Piece(asked, ids, vectors, norms, metric), best, left_out(ids))
    if rows == 0:
        raise InputError("there are no vectors to search: encode a slide first")
    return best


def pieces(
    blocks: Iterable[tuple[ArrayLike, ArrayLike]], dim: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Cut and join blocks into pieces of even, bounded size: small blocks would waste the search."""
    step = max(_SMALLEST, PIECE_BYTES // (4 * dim))
    held: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    for ids, vectors in blocks:
        ids = np.asarray(ids)
        vectors = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise InputError(f"queries have {dim} dimensions, vectors shape {vectors.shape}: use one encoder")
        if ids.shape != (len(vectors),) or ids.dtype.kind not in "iu":
            raise InputError(f"{len(vectors)} vectors but ids of shape {ids.shape} and dtype {ids.dtype}")
        start = 0
        while start < len(ids):
            rows = slice(start, start + step - sum(len(part) for part, _ in held))
            held.append((ids[rows].astype(np.int64), vectors[rows].astype(np.float32)))
            start = rows.stop
            if sum(len(part) for part, _ in held) == step:
                yield _joined(held)
                held = []
    if held:
        yield _joined(held)


def _joined(
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return parts end to end."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def row_norms(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    """Return Euclidean norms (m,); NaN or infinite for rows that are."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors)).astype(np.float64)
    odd = np.flatnonzero(~((norms > 1 / LARGEST) & (norms < LARGEST)))  # the squares left float32's range
    norms[odd] = np.linalg.norm(vectors[odd].astype(np.float64), axis=1)
    if metric != "cosine" and (large := norms[np.isfinite(norms)].max(initial=0.0)) > LARGEST:
        raise InputError(f"vectors have norms up to {large:.1e}, too large for {metric}: use cosine")
    return norms


def unit_rows(vectors: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return vectors of norm 1; zero stays zero."""
    out = vectors * (1.0 / np.where(norms > 0, norms, 1.0)).astype(np.float32)[:, None]
    odd = np.flatnonzero((norms > 0) & ~((norms > 1 / LARGEST) & (norms < LARGEST)))
    out[odd] = vectors[odd].astype(np.float64) / norms[odd, None]
    return out


def similarities(
    queries: NDArray[Any], vectors: NDArray[Any], rows: NDArray[np.intp], metric: Metric
) -> NDArray[np.float32]:
    """Return similarities of queries (q, d) to ``rows`` (q, c) of vectors (n, d): float64, rounded to float32."""
    out = np.empty(rows.shape, np.float32)
    step = max(1, _CACHED // max(1, rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        q, v = queries[part].astype(np.float64), vectors[rows[part]].astype(np.float64)
        if metric == "l2":
            v -= q[:, None]
            out[part] = -np.einsum("qcd,qcd->qc", v, v)
            continue
        product = np.einsum("qd,qcd->qc", q, v)
        if metric == "cosine":
            size = np.sqrt(np.einsum("qd,qd->q", q, q)[:, None] * np.einsum("qcd,qcd->qc", v, v))
            product = np.clip(product / np.where(size > 0, size, 1.0), -1.0, 1.0)
        out[part] = product
    return out


def usable_queries(queries: ArrayLike, metric: Metric) -> NDArray[np.float32]:
    """Return queries as float32 (q, d), checked as :func:`search` says."""
    if metric not in ("cosine", "ip", "l2"):
        raise InputError(f"unknown metric {metric!r}: use 'cosine', 'ip' or 'l2'")
    asked = np.atleast_2d(np.asarray(queries, dtype=np.float32))
    if asked.ndim != 2 or asked.shape[1] == 0:
        raise InputError(f"queries have shape {asked.shape}: give a (queries, dim) array")
    if not np.isfinite(asked).all():
        raise InputError("a query holds NaN or infinite values: its patch has no embedding")
    row_norms(asked, metric)
    return asked


class _Piece:
    """A piece of the vectors beside all queries: both as given, and both as FAISS compares them."""

    def __init__(
        self,
        queries: NDArray[np.float32],
        ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
        norms: NDArray[np.float64],
        metric: Metric,
    ) -> None:
        self.queries, self.ids, self.vectors, self.metric = queries, ids, vectors, metric
        if metric == "cosine":
            self.rough_queries = unit_rows(queries, row_norms(queries, metric))
            self.rough_vectors = unit_rows(vectors, norms)
        elif metric == "l2":  # a common offset costs float32 its digits and changes no distance
            centre = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
            self.rough_queries, self.rough_vectors = queries - centre, vectors - centre
        else:
            self.rough_queries, self.rough_vectors = queries, vectors
        # float32 errs by about sqrt(d)·eps·(size of the terms); 4 for safety
        q, v = np.linalg.norm(self.rough_queries, axis=1), np.linalg.norm(self.rough_vectors, axis=1).max()
        terms = (q + v) ** 2 if metric == "l2" else q * v
        self.slack = 4 * np.sqrt(queries.shape[1]) * np.finfo(np.float32).eps * terms

    def candidates(
        self, picked: NDArray[np.intp], rows: NDArray[np.intp] | None, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Return rough similarities and row numbers (picked, count), best first, among ``rows``."""
        code = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        vectors = self.rough_vectors if rows is None else self.rough_vectors[rows]
        rough, near = faiss.knn(self.rough_queries[picked], vectors, count, metric=code)
        return (-rough if self.metric == "l2" else rough), (near if rows is None else rows[near])

    def within_reach(self, query: int, bound: float) -> NDArray[np.intp]:
        """Return all rows whose similarity to one query may be ``bound`` or more."""
        q, v = self.rough_queries[query], self.rough_vectors
        rough = v @ q
        if self.metric == "l2":
            rough = 2 * rough - np.einsum("ij,ij->i", v, v) - q @ q
        return np.flatnonzero(rough + self.slack[query] >= bound)

    def similarity(self, picked: NDArray[np.intp], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return similarities of ``rows`` (picked, c)."""
        return similarities(self.queries[picked], self.vectors, rows, self.metric)


def _excluder(exclude: Any, q: int) -> Callable[[NDArray[np.int64]], NDArray[np.bool_] | None]:
    """Return a function of ids that gives None, (m,) or (q, m): True is left out."""
    if exclude is None:
        return lambda ids: None
    if callable(exclude):
        rule = exclude
    elif isinstance(exclude, np.ndarray) and exclude.dtype == bool:
        table = exclude

        def rule(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            if ids.max() >= table.shape[-1]:
                raise InputError(
                    f"the exclude table has {table.shape[-1]} columns, an id is {ids.max()}: make it wider"
                )
            return table[..., ids]
    else:
        lists = [np.fromiter(listed, dtype=np.int64) for listed in exclude]
        if len(lists) != q:
            raise InputError(f"{q} queries but {len(lists)} collections of ids to exclude: give one for each query")

        def rule(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            return np.stack([np.isin(ids, listed) for listed in lists])

    def checked(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = np.asarray(rule(ids))
        if found.dtype != bool or found.shape not in ((len(ids),), (q, len(ids))):
            raise InputError(
                f"exclude gave shape {found.shape} and dtype {found.dtype}: "
                f"give bool of shape ({len(ids)},) or ({q}, {len(ids)})"
            )
        return found

    return checked


def _search_piece(piece: _Piece, best: Best, out: NDArray[np.bool_] | None) -> None:
    """Merge one piece into the best so far, leaving out what ``out`` (m,) or (q, m) marks."""
    everyone = np.arange(len(piece.queries))
    if out is None:
        _merge(piece, everyone, None, best, None)
    elif out.ndim == 1:
        _merge(piece, everyone, np.flatnonzero(~out), best, None)
    else:
        many = out.sum(axis=1) > FEW
        _merge(piece, everyone[~many], None, best, out)  # fetches as many more as are left out
        # queries that leave out the same rows (those of their own slide) share one copy of the others
        patterns, which = np.unique(np.packbits(out[many], axis=1), axis=0, return_inverse=True)
        for i in range(len(patterns)):
            picked = everyone[many][which.ravel() == i]
            _merge(piece, picked, np.flatnonzero(~out[picked[0]]), best, None)


def _merge(
    piece: _Piece,
    picked: NDArray[np.intp],
    rows: NDArray[np.intp] | None,
    best: Best,
    out: NDArray[np.bool_] | None,
) -> None:
    """Merge ``rows`` (None: all) for some queries, less the few that ``out`` (q, m) marks."""
    available = len(piece.ids) if rows is None else len(rows)
    if available == 0 or len(picked) == 0:
        return
    k = best[0].shape[1]
    spare = 0 if out is None else int(out[picked].sum(axis=1).max())
    count = min(k + MARGIN + spare, available)
    rough, near = piece.candidates(picked, rows, count)
    step = max(1, PIECE_BYTES // (8 * count * piece.queries.shape[1]))
    for start in range(0, len(picked), step):
        some = picked[start : start + step]
        _score(piece, some, near[start : start + step], best, out)
    if count < available:
        # where the last candidate still comes within reach of the k-th best (twins, blank tissue), so may
        # others
        for i in np.flatnonzero(rough[:, -1] + piece.slack[picked] >= best[1][picked, -1]):
            reach = piece.within_reach(int(picked[i]), float(best[1][picked[i], -1]))
            reach = reach if rows is None else reach[np.isin(reach, rows)]
            for start in range(0, len(reach), 8192):
                _score(piece, picked[i : i + 1], reach[None, start : start + 8192], best, out)


def _score(
    piece: _Piece, picked: NDArray[np.intp], rows: NDArray[np.intp], best: Best, out: NDArray[np.bool_] | None
) -> None:
    """Score ``rows`` (picked, c) exactly and keep the best."""
    ids, similarity = piece.ids[rows], piece.similarity(picked, rows)
    if out is not None:
        left = out[picked[:, None], rows]
        ids, similarity = np.where(left, -1, ids), np.where(left, np.float32(-np.inf), similarity)
    _keep(best, picked, ids, similarity)


def _keep(
    best: Best,
    picked: NDArray[np.intp],
    ids: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> None:
    """Merge candidates (picked, c) into the best so far; an id seen twice counts once."""
    k = best[0].shape[1]
    all_ids = np.concatenate([best[0][picked], ids], axis=1)
    all_sims = np.concatenate([best[1][picked], similarity], axis=1)
    order = np.lexsort((all_ids, -all_sims), axis=1)
    all_ids, all_sims = np.take_along_axis(all_ids, order, 1), np.take_along_axis(all_sims, order, 1)
    twice = np.zeros_like(all_ids, dtype=bool)
    twice[:, 1:] = (all_ids[:, 1:] == all_ids[:, :-1]) & (all_ids[:, 1:] >= 0)
    if twice.any():  # the same row, scored again in full: to the back with it
        all_ids[twice], all_sims[twice] = -1, -np.inf
        order = np.argsort(twice, axis=1, kind="stable")
        all_ids, all_sims = np.take_along_axis(all_ids, order, 1), np.take_along_axis(all_sims, order, 1)
    best[0][picked], best[1][picked] = all_ids[:, :k], all_sims[:, :k]
