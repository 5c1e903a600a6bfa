"""Transfer: a label or the expression of a query, from the spots that look most like it, with these as evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.study.search import described, find
from spared_fm.study.search_columns import expression, native, obs_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.store.layout import Layout

WEIGHTING = ("distance", "uniform")


def transfer(
    layout: Layout,
    encoder: str,
    *,
    label: str | None = None,
    genes: Sequence[str] = (),
    layer: str | None = None,
    cohort: str | None = None,
    k: int = 15,
    weighting: str = "distance",
    **options: Any,
) -> list[dict[str, Any]]:
    """Give each query the label, or the expression, that its nearest neighbours have.

    The neighbours vote by 1 ÷ distance, a distance-weighted nearest-neighbour rule (Dudani 1976, IEEE Trans. SMC 6:325); for
    ``cosine`` the distance is that of the vectors at length 1, √(2 - 2·cos). What lies at distance 0 outvotes all else.

    Parameters
    ----------
    layout
        The store.
    encoder
        Encoder name or array key.
    label
        Column to transfer, as `where` of a search knows them (``annotation``, ``tissue`` …). Spots without a value are no
        neighbours.
    genes, layer, cohort
        Or expression, see :func:`spared_fm.study.search.search`.
    k
        Neighbours.
    weighting
        ``distance``, or ``uniform``: all count the same.
    **options
        Queries and what may be found, see :func:`spared_fm.study.search.find`. ``exclude="patient"`` keeps the evidence to other
        patients.

    Returns
    -------
    list of dict
        One row per query: query, neighbours (how many there were). For a label: label, share (its share of the weights, 0 to 1),
        shares (label → share, largest first). For expression: ``<layer>:<gene>``, the weighted mean, and ``<layer>:<gene> sd``,
        the weighted standard deviation. And evidence: the neighbours, rows like those of a search with their weight (weights add
        up to 1) and what they have of the label or the expression.

    Raises
    ------
    InputError
        Neither a label nor genes, or both; what a search refuses; a metric without a distance; nothing found.
    """
    if (label is None) == (not genes):
        raise InputError("give what to transfer: --label COLUMN, or --gene GENE")
    if weighting not in WEIGHTING:
        raise InputError(f"--weighting {weighting!r} is not distance or uniform")
    found = find(layout, encoder, k=k, cohort=cohort, known=[label] if label is not None else (), **options)
    if found.metric == "ip" and weighting == "distance":
        raise InputError("an inner product is no distance; use --weighting uniform")
    if label is not None:
        if layer is not None:
            raise InputError("--layer goes with --gene")
        beside = obs_values(found.tables, found.spots, [label], list(found.rows.numbers))
        names = [label]
    else:
        values = expression(found.tables, found.spots, genes, layer, cohort)
        names = [f"{layer or 'counts'}:{gene}" for gene in genes]
        beside = [dict(zip(names, map(native, row), strict=True)) for row in values.tolist()]
    evidence = described(found, beside)
    rows = []
    at = 0
    for query, hits in zip(found.queries, found.hits, strict=True):
        own = evidence[at : at + len(hits)]
        at += len(hits)
        if not own:
            raise InputError(f"nothing to transfer to {query.name}: no neighbour is left; exclude less")
        votes = _votes(np.array([hit["similarity"] for hit in own]), found.metric, weighting)
        for hit, vote in zip(own, votes.tolist(), strict=True):
            hit["weight"] = vote
        row: dict[str, Any] = {"query": query.name, "neighbours": len(own)}
        row |= _label(own, votes, label) if label is not None else _expression(own, votes, names)
        rows.append(row | {"evidence": own})
    return rows


def _votes(similarity: np.ndarray, metric: str, weighting: str) -> np.ndarray:
    """Weights of neighbours, float64 (k,), which add up to 1."""
    if weighting == "uniform":
        return np.full(len(similarity), 1 / len(similarity))
    squared = -similarity if metric == "l2" else 2 - 2 * similarity
    distance = np.sqrt(np.maximum(squared, 0.0))
    # float32 cosines of equal vectors may be an ulp below 1
    same = squared <= 4 * np.finfo(np.float32).eps if metric == "cosine" else distance == 0
    weights = same.astype(np.float64) if same.any() else 1 / distance
    return weights / weights.sum()


def _label(hits: Sequence[dict[str, Any]], votes: np.ndarray, label: str) -> dict[str, Any]:
    shares: dict[Any, float] = {}
    for hit, vote in zip(hits, votes.tolist(), strict=True):
        shares[hit[label]] = shares.get(hit[label], 0.0) + vote
    ranked = dict(sorted(shares.items(), key=lambda item: (-item[1], str(item[0]))))
    best = next(iter(ranked))
    return {"label": best, "share": ranked[best], "shares": {str(name): share for name, share in ranked.items()}}


def _expression(hits: Sequence[dict[str, Any]], votes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in names:
        values = np.array([np.nan if hit[name] is None else hit[name] for hit in hits])
        there = np.isfinite(values)
        weights = votes[there] / votes[there].sum() if votes[there].sum() > 0 else np.zeros(there.sum())
        mean = float(weights @ values[there]) if weights.any() else None
        row[name] = mean
        row[f"{name} sd"] = None if mean is None else float(np.sqrt(weights @ (values[there] - mean) ** 2))
    return row
