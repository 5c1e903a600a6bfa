"""Low-rank Gaussian completion: what the visible genes of a spot say about its others, without its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from spared_fm.errors import InputError
from spared_fm.targets.completion import folder as files
from spared_fm.targets.completion.baselines import gene_moments, hidden_error, hidden_trials
from spared_fm.targets.completion.data import Completed, check_genes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spared_fm.targets.completion.data import Panel, Progress, Section

RANKS = (4, 8, 16)
"""Tried on the validation slides; without any the rank is 8."""

STEPS = 30
MAX_SPOTS = 20_000
"""Fitted on at most so many training spots, drawn at random."""

_BLOCK_SPOTS = 4096
_FLOOR = 1e-3  # of a gene's variance: its own noise is never taken for less
_RIDGE = 10.0  # prior precision of the loadings: a gene seen in few spots is not fitted to them


class LowRankGaussian:
    """Factor analysis fitted to the visible entries: x = μ + W z + ε, z ~ N(0, I_r), ε ~ N(0, diag d).

    The covariance W Wᵀ + diag d is of rank r plus a noise of each gene's own. It is fitted by expectation maximisation, whose
    likelihood leaves out what is not visible (Ghahramani & Jordan, NIPS 1994; Rubin & Thayer, Psychometrika 1982). An entry
    is predicted by its mean given the visible genes of the spot; ``spread`` is the standard deviation of that distribution,
    noise included. A visible entry takes part in its own prediction. Where sections tell the value of one count
    (``Section.unit``) x is the value above it, which does not change with how much of the spot is hidden.
    """

    name: ClassVar[str] = "low-rank-gaussian"

    def __init__(self) -> None:
        self.genes: tuple[str, ...] = ()
        self.mean, self.noise = np.zeros(0), np.zeros(0)
        self.loadings = np.zeros((0, 0))

    def fit(
        self,
        train: Sequence[Section],
        validate: Sequence[Section],
        panel: Panel,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Fit each rank of :data:`RANKS` on the training slides and keep the best on the validation slides."""
        self.genes = panel.genes
        n_genes = len(panel.genes)
        above = [_above_one_count(one) for one in train]
        mean, deviation = gene_moments(above, n_genes)
        values, visible = _stack(above, seed)
        if not visible.any():
            raise InputError("nothing is visible on the training slides: there is nothing to fit a completer on")
        limit = max(1, min(n_genes, len(values)) - 1)
        ranks = sorted({min(rank, limit) for rank in (RANKS if validate else (8,))})
        trials = hidden_trials(validate, panel, seed)
        best = np.inf
        kept = None
        for done, rank in enumerate(ranks):
            self.mean, self.loadings, self.noise = _factor_analysis(values, visible, mean, deviation, rank)
            error = hidden_error(self, trials)
            if progress is not None:
                progress(done + 1, len(ranks), {"rank": float(rank), "mse": error})
            if error < best:
                best, kept = error, (self.mean, self.loadings, self.noise)
        if kept is not None:
            self.mean, self.loadings, self.noise = kept
        return self

    def complete(self, section: Section) -> Completed:
        """Predict every entry of each spot from the spot's visible ones."""
        check_genes(section, len(self.genes))
        values = np.empty(section.values.shape, np.float32)
        spread = np.empty_like(values)
        pairs = _pairs(self.loadings)
        above = _above_one_count(section).values
        for start in range(0, len(values), _BLOCK_SPOTS):
            rows = slice(start, start + _BLOCK_SPOTS)
            given = above[rows].astype(np.float64)
            z, covariance = _posterior(given, section.visible[rows], self.mean, self.loadings, self.noise)
            values[rows] = self.mean + z @ self.loadings.T
            variance = covariance.reshape(len(z), -1) @ pairs.T  # wᵀ C w of every spot and gene
            spread[rows] = np.sqrt(np.maximum(variance, 0) + self.noise)
        return Completed(values if section.unit is None else values + section.unit, spread)

    def save(self, folder: Path) -> None:
        """Write mean, loadings and noise."""
        arrays = {"mean": self.mean, "loadings": self.loadings, "noise": self.noise}
        files.write(folder, self.name, self.genes, {"rank": self.loadings.shape[1]}, arrays)

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None) -> Self:
        """Read mean, loadings and noise."""
        card, arrays = files.read(folder, cls.name, genes)
        new = cls()
        new.genes = tuple(card["genes"])
        new.mean, new.loadings, new.noise = arrays["mean"], arrays["loadings"], arrays["noise"]
        return new


def _above_one_count(section: Section) -> Section:
    if section.unit is None:
        return section
    return replace(section, values=np.where(section.visible, section.values - section.unit, np.float32(0)))


def _stack(sections: Sequence[Section], seed: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([one.values for one in sections]).astype(np.float64)
    visible = np.concatenate([one.visible for one in sections])
    if len(values) > MAX_SPOTS:
        rows = np.sort(np.random.default_rng(seed).choice(len(values), MAX_SPOTS, replace=False))
        values, visible = values[rows], visible[rows]
    return values, visible


def _pairs(loadings: np.ndarray) -> np.ndarray:
    """Products w wᵀ of each gene, ``(g, r²)``."""
    return (loadings[:, :, None] * loadings[:, None, :]).reshape(len(loadings), -1)


def _posterior(
    values: np.ndarray, visible: np.ndarray, mean: np.ndarray, loadings: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(n, r)`` and covariance ``(n, r, r)`` of the factors of each spot given its visible genes."""
    rank = loadings.shape[1]
    seen = visible.astype(np.float64)
    precision = (seen @ (_pairs(loadings) / noise[:, None])).reshape(-1, rank, rank) + np.eye(rank)
    covariance = np.linalg.inv(precision)
    projected = (np.where(visible, values - mean, 0.0) / noise) @ loadings
    return np.einsum("nij,nj->ni", covariance, projected), covariance


def _factor_analysis(
    values: np.ndarray, visible: np.ndarray, mean: np.ndarray, deviation: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean ``(g,)``, loadings ``(g, r)`` and noise variances ``(g,)`` by expectation maximisation."""
    scale = np.where(deviation > 0, deviation, 1.0)
    standard = np.where(visible, (values - mean) / scale, 0.0)  # what is missing stands at the mean: a start only
    eigenvalues, vectors = np.linalg.eigh(standard.T @ standard / max(len(standard), 1))
    loadings = vectors[:, -rank:] * np.sqrt(np.maximum(eigenvalues[-rank:], _FLOOR))
    noise = np.maximum(1.0 - (loadings**2).sum(axis=1), 0.1)
    offset = np.zeros(len(scale))
    seen = visible.astype(np.float64)
    count = seen.sum(axis=0)
    for _ in range(STEPS):
        z, covariance = _posterior(standard, visible, offset, loadings, noise)
        # a regression of every gene on factors and constant over the spots in which it is visible
        ones = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        second = ones[:, :, None] * ones[:, None, :]
        second[:, :rank, :rank] += covariance
        gram = (seen.T @ second.reshape(len(z), -1)).reshape(-1, rank + 1, rank + 1)
        gram += _RIDGE * np.eye(rank + 1)
        cross = standard.T @ ones
        solved = np.linalg.solve(gram, cross[:, :, None])[:, :, 0]
        squares = (standard**2).sum(axis=0) - (solved * cross).sum(axis=1)
        noise = np.maximum((squares + _FLOOR) / np.maximum(count, 1), _FLOOR)
        # the factors' own covariance goes into the loadings, without which convergence takes hundreds of steps (parameter
        # expansion: Liu, Rubin & Wu, Biometrika 1998)
        loadings = solved[:, :rank] @ np.linalg.cholesky(second[:, :rank, :rank].mean(axis=0))
        offset = solved[:, rank]
    noise[count == 0] = 1.0
    return mean + offset * scale, loadings * scale[:, None], noise * scale**2
