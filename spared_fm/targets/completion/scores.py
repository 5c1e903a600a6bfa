"""Scores of predicted entries that add up over slides, and intervals around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METRICS = ("mse", "mae", "pcc")

NOMINAL = 0.9
"""Share of entries that an interval is meant to cover."""


@dataclass
class Sums:
    """What the scores of a set of entries are made of, by gene; sums of two sets are the sums of both.

    ``count``, ``predicted``, ``known`` (sums), ``predicted2``, ``known2``, ``product`` (sums of squares and products),
    ``absolute`` and ``squared`` (sums of errors), stacked as ``(8, g)`` float64.
    """

    sums: np.ndarray

    @classmethod
    def of(cls, predicted: np.ndarray, known: np.ndarray, scored: np.ndarray) -> Sums:
        """Sum over the entries where ``scored`` is True; all arrays ``(n, g)``."""
        p = np.where(scored, predicted, 0.0).astype(np.float64)
        t = np.where(scored, known, 0.0).astype(np.float64)
        error = p - t
        parts = (scored.astype(np.float64), p, t, p * p, t * t, p * t, np.abs(error), error * error)
        return cls(np.stack([part.sum(axis=0) for part in parts]))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.sums + other.sums)

    @property
    def count(self) -> int:
        """Entries scored."""
        return int(self.sums[0].sum())

    def scores(self) -> dict[str, float]:
        """``mse`` and ``mae`` over all entries, ``pcc``: mean over genes of Pearson's correlation within the gene.

        Genes with fewer than two entries or a constant truth do not count; a constant prediction has correlation 0. NaN where
        there is nothing to score.
        """
        n, p, t, pp, tt, pt, absolute, squared = self.sums
        total = n.sum()
        if not total:
            return dict.fromkeys(METRICS, float("nan"))
        size = np.maximum(n, 1)
        var_p, var_t = pp / size - (p / size) ** 2, tt / size - (t / size) ** 2
        covariance = pt / size - p * t / size**2
        # of numbers near 10 a variance is known to about 1e-13
        varies, counts = var_p > 1e-10, (n > 1) & (var_t > 1e-10)
        pearson = np.where(varies, covariance / np.sqrt(np.where(varies & counts, var_p * var_t, 1.0)), 0.0)
        pcc = float(pearson[counts].mean()) if counts.any() else float("nan")
        return {"mse": float(squared.sum() / total), "mae": float(absolute.sum() / total), "pcc": pcc}


def spot_interval(
    error: np.ndarray, count: np.ndarray, rng: np.random.Generator, *, draws: int = 1000, share: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of a mean error over entries, drawing spots (whose entries are not independent).

    Parameters
    ----------
    error, count
        Sum of errors and number of entries of each spot, ``(n,)``.
    rng
        Draws the spots.
    draws, share
        Bootstrap samples, and the share of them inside the interval.

    Returns
    -------
    tuple of float
        NaN where there is no entry.
    """
    some = count > 0
    error, count = error[some], count[some]
    if not len(error):
        return float("nan"), float("nan")
    means = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(0, len(error), len(error))
        means[i] = error[rows].sum() / count[rows].sum()
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def width(error: np.ndarray, spread: np.ndarray | float = 1.0) -> float:
    """Multiple of ``spread`` within which the share :data:`NOMINAL` of the errors lies (split conformal)."""
    return float(np.quantile(np.abs(error) / spread, NOMINAL)) if len(error) else float("nan")


def interval_scores(error: np.ndarray, half: np.ndarray | float) -> dict[str, float]:
    """Return ``coverage`` and ``interval_score`` of intervals of half-width ``half`` around a prediction.

    The interval score is its width plus 2/α times what the truth lies outside, α = 1 - :data:`NOMINAL`; lower is better
    (Gneiting & Raftery, JASA 2007, eq. 43).
    """
    outside = np.maximum(np.abs(error) - half, 0.0)
    score = 2 * half + 2 / (1 - NOMINAL) * outside
    return {"coverage": float(np.mean(outside == 0)), "interval_score": float(np.mean(score))}
