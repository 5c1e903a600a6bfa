"""Bootstrap intervals of scores, and of the difference of two heads on the same spots.

Spots next to each other are alike, and spots of one patient more so than those of two: resampling spots would give
intervals far too narrow. What is drawn here, with replacement, is

* whole patients, where there are five or more: the interval says what other patients would give;
* else the blocks of a square grid laid over each slide, each slide by itself: the interval says how well the score of
  *these* slides is known, and nothing of other patients. Every row names its unit.

Each unit is reduced to sums once, so that a resample is a product of a row of counts with them. Intervals are expanded
percentile intervals (:func:`spared_fm.benchmark.resampling.tail_share`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from spared_fm.benchmark.metrics import Scored, Which, line_scores, scored_slides
from spared_fm.benchmark.resampling import Units, draws, resampling_units, tail_share
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

METRICS = ("pcc_gene", "pcc_patch", "mse", "mae", "r2_gene", "r2_patch")
_CHUNK = 8_000_000  # numbers held for the resamples that are worked on at a time


def intervals(
    y_true: Mapping[str, ArrayLike],
    y_pred: Mapping[str, ArrayLike],
    *,
    patients: Mapping[str, str | None] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    mask: Mapping[str, ArrayLike] | None = None,
    which: Which = "all",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the scores of a head with their intervals.

    Parameters
    ----------
    y_true, y_pred, mask, which
        As for :func:`spared_fm.benchmark.metrics.score_slides`.
    patients
        Patient of each slide.
    coords
        Spot centres (spots, 2) of each slide, any unit; needed unless five patients or more are known.
    n_resamples
        Number of bootstrap resamples.
    level
        Of the interval, between 0 and 1.
    seed
        Of the draws.

    Returns
    -------
    list of dict
        A row for each of the six metrics ``over`` ``"pooled"`` and ``"slide_mean"``: ``metric, over, estimate, low, high,
        level, unit, n_units, n_resamples``. The estimate is that of :func:`spared_fm.benchmark.metrics.score_slides`;
        NaN where there is none.

    Raises
    ------
    InputError
        What ``score_slides`` refuses, fewer than two units, a slide without centres, or a bad level or number.
    """
    scored = scored_slides(y_true, y_pred, mask, which)
    units = resampling_units({s: len(found.truth) for s, found in scored.items()}, patients, coords)
    tail = tail_share(units, level, n_resamples)
    drawn = _distribution(scored, units, n_resamples, seed)
    return [_row(key, values, tail, level, units) for key, values in drawn.items()]


def paired_intervals(
    y_true: Mapping[str, ArrayLike],
    y_first: Mapping[str, ArrayLike],
    y_second: Mapping[str, ArrayLike],
    *,
    patients: Mapping[str, str | None] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    mask: Mapping[str, ArrayLike] | None = None,
    which: Which = "all",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the difference of two heads' scores, first less second, with intervals from the same draws for both.

    Parameters are those of :func:`intervals`; both predictions must be of the same slides.

    Returns
    -------
    list of dict
        Rows of :func:`intervals` in which ``estimate, low, high`` are of the difference, with ``first``, ``second`` (the
        scores) and ``share_above``, the share of resamples in which the first scores higher (for MSE and MAE: is worse).

    Raises
    ------
    InputError
        What :func:`intervals` refuses, or predictions of different slides.
    """
    if set(y_first) != set(y_second):
        odd = sorted(set(y_first) ^ set(y_second))[0]
        raise InputError(f"slide {odd} has predictions of one head only: compare heads on the same slides")
    scored = scored_slides(y_true, y_first, mask, which)
    units = resampling_units({s: len(found.truth) for s, found in scored.items()}, patients, coords)
    tail = tail_share(units, level, n_resamples)
    first = _distribution(scored, units, n_resamples, seed)
    second = _distribution(scored_slides(y_true, y_second, mask, which), units, n_resamples, seed)
    rows = []
    for key in first:
        row = _row(key, first[key] - second[key], tail, level, units)
        there = ~np.isnan(first[key][1:] - second[key][1:])
        above = float(np.mean((first[key] > second[key])[1:][there])) if there.any() else float("nan")
        rows.append(row | {"first": float(first[key][0]), "second": float(second[key][0]), "share_above": above})
    return rows


def gene_intervals(
    y_true: Mapping[str, ArrayLike],
    y_pred: Mapping[str, ArrayLike],
    *,
    patients: Mapping[str, str | None] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    mask: Mapping[str, ArrayLike] | None = None,
    which: Which = "all",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Floats]:
    """Return ``estimate``, ``low`` and ``high`` of the pooled PCC of each gene, (genes,) float64, NaN where there is none.

    Parameters and errors are those of :func:`intervals`. The levels are of each gene by itself, not of all at once.
    """
    scored = scored_slides(y_true, y_pred, mask, which)
    units = resampling_units({s: len(found.truth) for s, found in scored.items()}, patients, coords)
    tail = tail_share(units, level, n_resamples)
    sums = _sums(scored, units)
    drawn = draws(units, n_resamples, seed, _at_once(sums))
    pcc = np.concatenate([_gene_scores(counts, sums.genes, sums.noise)[0] for counts in drawn])
    low, high = quantiles(pcc[1:], tail)
    return {"estimate": pcc[0], "low": low, "high": high}


def pooled_draws(scored: Mapping[str, Scored], units: Units, n_resamples: int, seed: int) -> Floats:
    """Return each of :data:`METRICS`, pooled, in each resample: (metrics, 1 + resamples), the estimate first."""
    sums = _sums(scored, units)
    drawn = draws(units, n_resamples, seed, _at_once(sums))
    return np.concatenate([_scores(counts, sums.genes, sums.spots, sums.noise) for counts in drawn], axis=1)


class _Sums(NamedTuple):
    """All that resampling needs to know of a prediction.

    Attributes
    ----------
    genes
        (units, 8, genes): count, Σt, Σp, Σt², Σp², Σtp (of values less their gene's mean), Σ(t−p)², Σ|t−p|.
    spots
        (units, 4): sum and number of the PCC of spots, then of their R2.
    noise
        (2, genes): square of what rounding may do to a value of the truth, of the prediction.
    slides
        The units of each slide.
    fixed
        (slides, metrics): scores of each slide, where a slide is drawn as a whole; else None.
    """

    genes: Floats
    spots: Floats
    noise: Floats
    slides: list[NDArray[np.intp]]
    fixed: Floats | None


def _sums(scored: Mapping[str, Scored], units: Units) -> _Sums:
    found = list(scored.values())
    n = np.maximum(sum(f.seen.sum(axis=0) for f in found), 1)
    # sums of squares about the genes' means: those about 0 would cancel
    t_mean, p_mean = sum(f.truth.sum(axis=0) for f in found) / n, sum(f.predicted.sum(axis=0) for f in found) / n
    noise = np.zeros((2, len(n)))
    genes, spots = np.zeros((len(units.stratum), 8, len(n))), np.zeros((len(units.stratum), 4))
    slides, fixed = [], []
    for slide, f in scored.items():
        rows, unit = np.unique(units.of[slide], return_inverse=True)
        add = sp.csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))), shape=(len(rows), len(unit)))
        t, p = np.where(f.seen, f.truth - t_mean, 0.0), np.where(f.seen, f.predicted - p_mean, 0.0)
        d = f.truth - f.predicted
        values = (f.seen.astype(np.float64), t, p, t * t, p * p, t * p, d * d, np.abs(d))
        own_genes = np.stack([add @ v for v in values], axis=1)
        of_spots = [v for score in line_scores(1, f) for v in (np.nan_to_num(score), ~np.isnan(score))]
        own_spots = add @ np.stack(of_spots, axis=1).astype(np.float64)
        genes[rows] += own_genes
        spots[rows] += own_spots
        slides.append(rows)
        for i, (array, dtype) in enumerate(((f.truth, f.truth_dtype), (f.predicted, f.predicted_dtype))):
            eps = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
            noise[i] = np.maximum(noise[i], (4 * eps * np.abs(array).max(axis=0)) ** 2)
        if units.kind == "patient":
            fixed.append((own_genes.sum(axis=0, keepdims=True), own_spots.sum(axis=0, keepdims=True)))
    one = np.ones((1, 1))
    whole = np.stack([_scores(one, g, s, noise)[:, 0] for g, s in fixed]) if fixed else None
    return _Sums(genes, spots, noise, slides, whole)


def _gene_scores(counts: Floats, genes: Floats, noise: Floats) -> tuple[Floats, Floats, Floats]:
    """Return PCC and R2 of each gene in each resample, (resamples, genes), and the sums they come from."""
    total = (counts @ genes.reshape(len(genes), -1)).reshape(len(counts), *genes.shape[1:])
    n, t, p, tt, pp, tp, dd, _ = total.transpose(1, 0, 2)
    some = np.maximum(n, 1)
    t_spread, p_spread = tt - t * t / some, pp - p * p / some
    # a constant gene keeps its own rounding, and that of the subtraction
    varies = t_spread > n * noise[0] + 1e-13 * tt
    both = varies & (p_spread > n * noise[1] + 1e-13 * pp)
    pcc = np.where(varies, 0.0, np.nan)
    np.divide(tp - t * p / some, np.sqrt(np.abs(t_spread)) * np.sqrt(np.abs(p_spread)), where=both, out=pcc)
    unexplained = np.divide(dd, t_spread, where=varies, out=np.full_like(pcc, np.nan))
    return np.clip(pcc, -1, 1), 1 - unexplained, total


def _scores(counts: Floats, genes: Floats, spots: Floats, noise: Floats) -> Floats:
    """Return (metrics, resamples)."""
    pcc, r2, total = _gene_scores(counts, genes, noise)
    n, squares, sizes = (total[:, i].sum(axis=1) for i in (0, 6, 7))
    spot = counts @ spots
    of_spots = [_ratio(spot[:, i], spot[:, i + 1]) for i in (0, 2)]
    found = (_nanmean(pcc, 1), of_spots[0], _ratio(squares, n), _ratio(sizes, n), _nanmean(r2, 1), of_spots[1])
    return np.stack(found)


def _slide_means(counts: Floats, sums: _Sums) -> Floats:
    """Return (metrics, resamples): the mean of the slides' own scores."""
    if sums.fixed is None:
        each = [_scores(counts[:, rows], sums.genes[rows], sums.spots[rows], sums.noise) for rows in sums.slides]
        return _nanmean(np.stack(each), 0)
    weight = np.stack([counts[:, rows[0]] for rows in sums.slides])
    there = ~np.isnan(sums.fixed)
    return _ratio(np.nan_to_num(sums.fixed).T @ weight, there.T.astype(np.float64) @ weight)


def _distribution(
    scored: Mapping[str, Scored], units: Units, n_resamples: int, seed: int
) -> dict[tuple[str, str], Floats]:
    """Return each score by (over, metric), (1 + resamples,): the estimate first."""
    sums = _sums(scored, units)
    pooled, mean = [], []
    for counts in draws(units, n_resamples, seed, _at_once(sums)):
        pooled.append(_scores(counts, sums.genes, sums.spots, sums.noise))
        mean.append(_slide_means(counts, sums))
    found = {"pooled": np.concatenate(pooled, axis=1), "slide_mean": np.concatenate(mean, axis=1)}
    return {(over, metric): rows[i] for over, rows in found.items() for i, metric in enumerate(METRICS)}


def _at_once(sums: _Sums) -> int:
    """Return how many resamples to work on at a time, so that memory is bounded."""
    return max(1, _CHUNK // sums.genes[0].size)


def _row(key: tuple[str, str], values: Floats, tail: float, level: float, units: Units) -> dict[str, Any]:
    low, high = quantiles(values[1:, None], tail)
    return {
        "metric": key[1],
        "over": key[0],
        "estimate": float(values[0]),
        "low": float(low[0]),
        "high": float(high[0]),
        "level": level,
        "unit": units.kind,
        "n_units": len(units.stratum),
        "n_resamples": len(values) - 1,
    }


def quantiles(values: Floats, tail: float) -> Floats:
    """Return the two quantiles of each column, (2, columns), over the resamples that have a score; NaN where none has."""
    none = np.isnan(values).all(axis=0)
    return np.where(none, np.nan, np.nanquantile(np.where(none, 0.0, values), [tail, 1 - tail], axis=0))


def _nanmean(values: Floats, axis: int) -> Floats:
    return _ratio(np.nansum(values, axis=axis), (~np.isnan(values)).sum(axis=axis))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, where=below > 0, out=np.full(np.shape(above), np.nan))
