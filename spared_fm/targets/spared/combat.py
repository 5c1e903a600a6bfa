"""ComBat without covariates: parametric empirical Bayes of Johnson, Li & Rabinovic (Biostatistics 2007, 8:118-127)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONVERGED = 1e-4
"""Largest relative change of a location or scale at which the iteration stops."""


class Combat(NamedTuple):
    """A fitted correction; every array is float64.

    ``mean`` and ``scale`` are the pooled mean and standard deviation, ``(n_genes,)``; ``gamma`` and ``delta`` the
    shrunken location and variance of each batch in pooled units, ``(n_batches, n_genes)``, in the order of ``batches``.
    """

    batches: pd.Index
    mean: np.ndarray
    scale: np.ndarray
    gamma: np.ndarray
    delta: np.ndarray


class Moments(NamedTuple):
    """Spots per batch ``(n_batches,)``, their mean and the sum of squares about it, ``(n_batches, n_genes)`` float64."""

    batches: pd.Index
    n: np.ndarray
    mean: np.ndarray
    squares: np.ndarray


def moments(values: np.ndarray, batch: np.ndarray) -> Moments:
    """Moments of each batch.

    Parameters
    ----------
    values
        Expression, spots × genes.
    batch
        Batch of each spot, ``(n_spots,)``.
    """
    values = np.asarray(values, np.float64)
    codes, batches = pd.factorize(batch, sort=True)
    rows = [np.flatnonzero(codes == b) for b in range(len(batches))]
    shape = (len(batches), values.shape[1])
    mean = np.array([values[r].mean(axis=0) for r in rows]).reshape(shape)
    squares = np.array([len(r) * values[r].var(axis=0) for r in rows]).reshape(shape)
    return Moments(pd.Index(batches), np.array([len(r) for r in rows], np.int64), mean, squares)


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """Moments of all spots together, from those of parts (Chan's update: it does not cancel)."""
    batches = pd.Index(sorted({b for part in parts for b in part.batches}))
    n_genes = parts[0].mean.shape[1]
    n = np.zeros(len(batches), np.int64)
    mean, squares = np.zeros((2, len(batches), n_genes))
    for part in parts:
        for at, own_n, own_mean, own_squares in zip(
            batches.get_indexer(part.batches), part.n, part.mean, part.squares, strict=True
        ):
            total, apart = n[at] + own_n, own_mean - mean[at]
            squares[at] += own_squares + apart**2 * (n[at] * own_n / total)
            mean[at] += apart * (own_n / total)
            n[at] = total
    return Moments(batches, n, mean, squares)


def fit_combat(known: Moments, *, as_released: bool = False) -> Combat:
    """Estimate the location and scale of each batch.

    Parameters
    ----------
    known
        Moments of the spots to fit on.
    as_released
        Estimate as pyComBat 0.3.3 does, which SpaRED's released pipeline calls (found from its outputs): variances have
        the divisor n, and squares of every gene are taken about the location of the first gene, so that the scale of a
        gene depends on which gene stands first. False: as in the paper.

    Returns
    -------
    Combat
        With one batch there is nothing to align: its location is 0 and its variance 1.

    Raises
    ------
    InputError
        A batch of one spot, which has no variance.
    """
    batches, sizes, means = known.batches, known.n, known.mean
    if len(batches) > 1 and sizes.min() < 2:
        raise InputError(
            f"ComBat batch {batches[sizes.argmin()]} has one spot: leave it out or choose another combat_key"
        )
    mean = sizes @ means / sizes.sum()
    scale = np.sqrt(known.squares.sum(axis=0) / sizes.sum())
    gamma, delta = np.zeros_like(means), np.ones_like(means)
    varies = scale > 0
    if len(batches) > 1 and varies.any():
        location = (means - mean)[:, varies] / scale[varies]
        spread = known.squares[:, varies] / sizes[:, None] / scale[varies] ** 2
        for b, size in enumerate(sizes):
            gamma[b, varies], delta[b, varies] = _shrink(location[b], spread[b], int(size), as_released)
    return Combat(batches, mean, scale, gamma, delta)


def apply_combat(values: np.ndarray, batch: np.ndarray, fitted: Combat) -> np.ndarray:
    """Correct spots by the location and scale of their batch.

    Parameters
    ----------
    values, batch
        As for :func:`moments`.
    fitted
        Of :func:`fit_combat`. Spots of a batch that it has not seen are returned as they are: without a look at their
        expression nothing is known of their effect. So is a gene without any variance.

    Returns
    -------
    np.ndarray
        Spots × genes, float64.
    """
    out = np.array(values, np.float64)
    codes = fitted.batches.get_indexer(pd.Index(batch))
    scale = np.where(fitted.scale > 0, fitted.scale, 1.0)
    for b in range(len(fitted.batches)):
        rows = np.flatnonzero(codes == b)
        standard = (out[rows] - fitted.mean) / scale
        out[rows] = (standard - fitted.gamma[b]) / np.sqrt(fitted.delta[b]) * scale + fitted.mean
    return out


def _shrink(location: np.ndarray, variance: np.ndarray, size: int, as_released: bool) -> tuple[np.ndarray, np.ndarray]:
    """Posterior location and variance of one batch over its genes (the paper's equations of section 3.2)."""
    ddof = 0 if as_released else 1
    spread = variance * size / (size - ddof)
    if len(location) == 1:  # nothing to shrink towards
        return location, spread
    prior_mean, prior_variance = location.mean(), location.var(ddof=ddof)
    m, s2 = spread.mean(), spread.var(ddof=ddof)
    if prior_variance == 0 or s2 == 0:  # the genes agree
        return location, spread
    shape, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    gamma, delta = location, spread
    while True:
        new_gamma = (size * prior_variance * location + delta * prior_mean) / (size * prior_variance + delta)
        centre = new_gamma[0] if as_released else new_gamma
        squares = size * variance + size * (location - centre) ** 2
        new_delta = (0.5 * squares + rate) / (size / 2 + shape - 1)
        change = max(_change(gamma, new_gamma), _change(delta, new_delta))
        gamma, delta = new_gamma, new_delta
        if not change > CONVERGED:  # NaN ends it too
            return gamma, delta


def _change(old: np.ndarray, new: np.ndarray) -> float:
    moved = np.abs(new - old)
    return float(np.max(np.divide(moved, np.abs(old), out=np.where(moved > 0, np.inf, 0.0), where=old != 0)))
