"""Recall of an index: measured against exact search, and raised until it is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.search import exact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    from spared_fm.search.exact import Metric
    from spared_fm.search.index import Found, Index, Rerank

#: Candidates scored again for each result are raised to this at most.
MOST_CANDIDATES = 64


def truth(
    queries: ArrayLike,
    own: NDArray[np.int64],
    blocks: Iterable[tuple[ArrayLike, ArrayLike]],
    k: int = 10,
    *,
    metric: Metric = "cosine",
) -> Found:
    """Find the true neighbours of rows drawn from the index, themselves left out.

    Parameters
    ----------
    queries, own
        Vectors (q, d) of rows, and their ids int64 (q,); -1 for a query that is no row.
    blocks
        All ``(ids, vectors)`` of the index.
    k
        Neighbours.
    metric
        That of the index.

    Returns
    -------
    ids, similarity
        (q, k), as :func:`spared_fm.search.exact.search` returns them.
    """
    return exact.search(queries, blocks, k, metric=metric, exclude=[[row] for row in np.asarray(own).tolist()])


def measure(
    index: Index,
    queries: ArrayLike,
    own: NDArray[np.int64],
    truth: Found,
    *,
    probes: int | None = None,
    candidates: int | None = None,
    rerank: Rerank | None = None,
) -> float:
    """Return recall@k: the share of true neighbours that a search of the index returns.

    With ``rerank`` a row as similar as the k-th true neighbour counts as one: which of several equal rows an exact
    search returns is a matter of their ids.

    Parameters
    ----------
    index, queries, probes, candidates, rerank
        As in :meth:`spared_fm.search.index.Index.search`.
    own
        The queries' own ids, int64 (q,), which don't count.
    truth
        From :func:`truth`; its width is k.
    """
    true_ids, true_values = truth
    k = true_ids.shape[1]
    ids, values = index.search(queries, k + 1, probes=probes, candidates=candidates, rerank=rerank)
    others = (ids != np.asarray(own)[:, None]) & (ids >= 0)
    others &= np.cumsum(others, axis=1) <= k
    wanted = (true_ids >= 0).sum(axis=1)
    hits = 0
    for i, count in enumerate(wanted.tolist()):
        good = np.isin(ids[i], true_ids[i, :count])
        if rerank is not None and count:
            good |= values[i] >= true_values[i, count - 1]
        hits += int((good & others[i]).sum())
    return hits / max(1, int(wanted.sum()))


def tune(
    index: Index,
    queries: ArrayLike,
    own: NDArray[np.int64],
    truth: Found,
    target: float = 0.95,
    *,
    rerank: Rerank | None = None,
) -> dict[str, Any]:
    """Raise probes, then candidates, until recall reaches the target; the index is left with what was chosen.

    Parameters
    ----------
    index, queries, own, truth, rerank
        As in :func:`measure`.
    target
        Recall@k to reach.

    Returns
    -------
    dict
        ``recall`` that was measured, ``k``, ``queries`` (their number), ``probes`` and ``candidates`` chosen,
        ``target``, ``met`` (False: all lists are probed and it is still missed), ``raised`` (from the plan's).
    """

    def at(probes: int, candidates: int) -> float:
        return measure(index, queries, own, truth, probes=probes, candidates=candidates, rerank=rerank)

    lists, start = index.plan.lists, (index.plan.probes, index.plan.candidates)
    probes, candidates = start
    recall = at(probes, candidates)
    while recall < target:
        steps = []
        if probes < lists:
            steps.append((min(lists, 2 * probes), candidates))
        if rerank is not None and candidates < MOST_CANDIDATES:
            steps.append((probes, min(MOST_CANDIDATES, 2 * candidates)))
        if not steps:
            break
        # one step of each, and on with the one that helps more: what is short is either lists or candidates
        recall, (probes, candidates) = max(((at(*step), step) for step in steps), key=lambda found: found[0])
    index.probes, index.candidates = probes, candidates
    return {
        "recall": recall,
        "k": truth[0].shape[1],
        "queries": len(truth[0]),
        "probes": probes,
        "candidates": candidates,
        "target": target,
        "met": recall >= target,
        "raised": (probes, candidates) != start,
    }
