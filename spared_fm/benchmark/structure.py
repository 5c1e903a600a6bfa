"""Does a prediction keep the structure of the truth: spread, genes that vary together, patterns in the tissue.

Heads that average (retrieval, MSE) can correlate well and still be flat, move all genes alike, or be too smooth; PCC and MSE
say little of that.

* Variance ratio: variance of the prediction / variance of the truth, per gene. 1 is right, below 1 is shrunken.
* Gene–gene correlation kept: Pearson correlation of the two gene × gene correlation matrices (each pair of genes once);
  per gene, of the gene's row without itself.
* Moran's I recovered: Pearson correlation over genes of the Moran's I of prediction and truth. Moran's I of a gene is
  n / W · Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ², z the values less their mean, wᵢⱼ one over the number of scored neighbours of spot i for each of
  them (Moran, Biometrika 1950; row-normalised weights as in SpaRED's gene selection), W the sum of all weights.

Rules, as in :mod:`spared_fm.benchmark.metrics`: with ``which="measured"`` only measured entries enter (a pair of genes by the
spots where both are, a pair of neighbours where both are); a gene whose truth is constant over its scored entries is left
out; one whose prediction is constant has variance 0, correlation 0 with every gene and Moran's I 0. A correlation over
fewer than three pairs or genes, or where either side does not vary, is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.benchmark.metrics import (
    Scored,
    Which,
    constant_lines,
    mean_of_scored,
    pool,
    scored_entries,
    scored_slides,
)
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def structure(
    y_true: Mapping[str, ArrayLike],
    y_pred: Mapping[str, ArrayLike],
    neighbors: Mapping[str, ArrayLike] | None = None,
    *,
    mask: Mapping[str, ArrayLike] | None = None,
    which: Which = "all",
) -> list[dict[str, Any]]:
    """Score the structure of predictions, pooled and per slide.

    Parameters
    ----------
    y_true, y_pred
        (spots, genes) by slide; the prediction names the slides that are scored.
    neighbors
        (spots, k) by slide, see :func:`gene_structure`; None: Moran's I is not scored.
    mask, which
        As for :func:`spared_fm.benchmark.metrics.score`.

    Returns
    -------
    list of dict
        Rows with ``over`` and ``slide`` as from :func:`spared_fm.benchmark.metrics.score_slides`:
        ``variance_ratio`` (median over genes), ``gene_correlation`` (kept, over pairs), ``moran_recovered`` (over
        genes), ``moran_true`` and ``moran_predicted`` (means over genes; above the truth: too smooth), NaN where there is
        none, and ``n_genes_scored``. Pooled, variances and gene–gene correlations are over all spots; Moran's I, whose
        graph never leaves a slide, is each gene's mean over the slides.

    Raises
    ------
    InputError
        What :func:`spared_fm.benchmark.metrics.score_slides` and :func:`gene_structure` refuse.
    """
    scored = scored_slides(y_true, y_pred, mask, which)
    if neighbors is not None and (missing := [s for s in scored if s not in neighbors]):
        raise InputError(f"slide {missing[0]} has predictions but no neighbours: give them, or leave the slide out")
    each = {s: _of_genes(found, None if neighbors is None else neighbors[s], s) for s, found in scored.items()}
    pooled = _of_genes(pool(scored.values()), None, "")
    for key in ("moran_true", "moran_predicted"):
        per_slide = np.stack([genes[key] for genes in each.values()])
        pooled[key] = np.array([mean_of_scored(column) for column in per_slide.T])
    rows = {slide: _row(genes) for slide, genes in each.items()}
    mean = {key: mean_of_scored(np.array([row[key] for row in rows.values()])) for key in _row(pooled)}
    mean["n_genes_scored"] = max(row["n_genes_scored"] for row in rows.values())
    return [
        {"over": "pooled", "slide": None, **_row(pooled)},
        {"over": "slide_mean", "slide": None, **mean},
        *({"over": "slide", "slide": slide, **row} for slide, row in rows.items()),
    ]


def gene_structure(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    neighbors: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    which: Which = "all",
) -> dict[str, Floats]:
    """Return the structural scores of each gene of one slide.

    Parameters
    ----------
    y_true, y_pred, mask, which
        As for :func:`spared_fm.benchmark.metrics.score`.
    neighbors
        (spots, k) integers, the row numbers of each spot's neighbours in these arrays, -1 for none; None: no Moran's I.

    Returns
    -------
    dict
        ``variance_ratio, gene_correlation, moran_true, moran_predicted``, (genes,) float64 each, NaN where there is none.

    Raises
    ------
    InputError
        What :func:`spared_fm.benchmark.metrics.score` refuses, or neighbours that are not rows of the arrays.
    """
    found = _of_genes(scored_entries(y_true, y_pred, mask, which), neighbors, "")
    del found["true_pairs"], found["predicted_pairs"]
    return found


def _of_genes(scored: Scored, neighbors: ArrayLike | None, slide: str) -> dict[str, Floats]:
    t, p, seen = scored.truth, scored.predicted, scored.seen
    kept = ~constant_lines(0, t, scored.truth_dtype, seen)
    flat = constant_lines(0, p, scored.predicted_dtype, seen)
    t, p = _centred(t, seen), np.where(flat, 0.0, _centred(p, seen))
    none = np.full(len(kept), np.nan)

    tt, pp = np.sum(t**2, axis=0), np.sum(p**2, axis=0)
    corr = _gene_correlations(t, seen, kept), _gene_correlations(p, seen, kept)
    found = {
        "variance_ratio": np.divide(pp, tt, where=kept, out=none.copy()),
        "gene_correlation": np.array([_correlation(a, b) for a, b in zip(*corr, strict=True)]),
        "moran_true": none,
        "moran_predicted": none,
        "true_pairs": corr[0][np.triu_indices(len(kept), 1)],
        "predicted_pairs": corr[1][np.triu_indices(len(kept), 1)],
    }
    if neighbors is not None:
        around = _checked(neighbors, len(t), slide)
        found["moran_true"] = _moran(t, seen, around, kept)
        found["moran_predicted"] = _moran(p, seen, around, kept)
    return found


def _row(genes: dict[str, Floats]) -> dict[str, Any]:
    """Return the summary over genes."""
    ratio = genes["variance_ratio"][~np.isnan(genes["variance_ratio"])]
    return {
        "variance_ratio": float(np.median(ratio)) if ratio.size else float("nan"),
        "gene_correlation": _correlation(genes["true_pairs"], genes["predicted_pairs"]),
        "moran_recovered": _correlation(genes["moran_true"], genes["moran_predicted"]),
        "moran_true": mean_of_scored(genes["moran_true"]),
        "moran_predicted": mean_of_scored(genes["moran_predicted"]),
        "n_genes_scored": int(ratio.size),
    }


def _centred(values: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Return scored values less the mean of their gene, 0 elsewhere."""
    return np.where(seen, values - values.sum(axis=0) / np.maximum(seen.sum(axis=0), 1), 0.0)


def _gene_correlations(centred: Floats, seen: NDArray[np.bool_], kept: NDArray[np.bool_]) -> Floats:
    """Return (genes, genes): 0 with a gene that does not vary, NaN on the diagonal and for genes left out."""
    w = seen.astype(np.float64)
    size = np.sqrt(np.sum(centred**2, axis=0))
    unit = centred / np.where(size > 0, size, 1.0)  # sums of squares of tiny values would underflow
    n, sums = w.T @ w, unit.T @ w  # [i, j]: of gene i over the spots where j is scored too
    shared = np.maximum(n, 1.0)
    spread = (unit**2).T @ w - sums**2 / shared
    norm = np.sqrt(np.maximum(spread, 0.0) * np.maximum(spread.T, 0.0))
    varies = (spread > 1e-12) & (spread.T > 1e-12)  # a share of the gene's whole spread, which is 1
    out = np.divide(unit.T @ unit - sums * sums.T / shared, norm, where=varies, out=np.zeros_like(norm))
    out[~kept] = out[:, ~kept] = np.nan
    out[n < 2] = np.nan
    np.fill_diagonal(out, np.nan)
    return out


def _checked(neighbors: ArrayLike, spots: int, slide: str) -> NDArray[np.intp]:
    around = np.asarray(neighbors)
    if around.ndim != 2 or len(around) != spots or around.dtype.kind not in "iu":
        raise InputError(
            f"the neighbours{f' of slide {slide}' if slide else ''} have shape {around.shape} and dtype {around.dtype}: "
            f"give integers, one row for each of {spots} spots"
        )
    if around.size and not -1 <= int(around.min()) <= int(around.max()) < spots:
        raise InputError(
            f"the neighbours{f' of slide {slide}' if slide else ''} name rows {around.min()} to {around.max()}: "
            f"rows are 0 to {spots - 1}, -1 for none"
        )
    return around.astype(np.intp)


def _moran(centred: Floats, seen: NDArray[np.bool_], around: NDArray[np.intp], kept: NDArray[np.bool_]) -> Floats:
    """Return Moran's I of each gene."""
    size = np.sqrt(np.sum(centred**2, axis=0))
    z = centred / np.where(size > 0, size, 1.0)
    # a last row stands for "no neighbour": nothing scored there
    z_of, seen_of = np.vstack([z, np.zeros_like(z[:1])]), np.vstack([seen, np.zeros_like(seen[:1])])
    total, count = np.zeros_like(z), np.zeros_like(z)
    for column in around.T:
        total += z_of[column]
        count += seen_of[column]
    weight = np.sum(seen & (count > 0), axis=0)
    lag = np.divide(total, count, where=count > 0, out=np.zeros_like(z))
    usable = kept & (weight > 0)
    return np.divide(seen.sum(axis=0) * np.sum(z * lag, axis=0), weight, where=usable, out=np.full(len(kept), np.nan))


def _correlation(a: Floats, b: Floats) -> float:
    """Return Pearson's correlation over the pairs that are there."""
    there = ~(np.isnan(a) | np.isnan(b))
    if there.sum() < 3:
        return float("nan")
    a, b = a[there] - a[there].mean(), b[there] - b[there].mean()
    norm = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return float(np.clip(np.sum(a * b) / norm, -1, 1)) if norm > 1e-12 else float("nan")
