"""Scores of a benchmark's cell from its kept predictions, and differences of two cells, with intervals from the same draws.

A cell is resampled once for each layer and choice of entries it is scored on, and the draws are kept: a difference of any
two cells is then a subtraction. Cells are drawn alike where the same spots have predictions, and only these are compared.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spared_fm.benchmark.intervals import METRICS, gene_intervals, pooled_draws, quantiles
from spared_fm.benchmark.metrics import Which, line_scores, mean_of_scored, pool, scored_slides
from spared_fm.benchmark.resampling import FEWEST_PATIENTS, Units, draws, resampling_units, tail_share
from spared_fm.benchmark.spared_metrics import get_metrics
from spared_fm.benchmark.structure import structure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWN = ("pcc_gene", "mse")
"""Metrics whose draws are kept."""
STRUCTURE = ("variance_ratio", "gene_correlation", "moran_recovered")
COMPAT = {
    "pcc_gene": "PCC-Gene",
    "pcc_patch": "PCC-Patch",
    "mse": "MSE",
    "mae": "MAE",
    "r2_gene": "R2-Gene",
    "r2_patch": "R2-Patch",
}
LEVEL = 0.95


class HeldOut(NamedTuple):
    """What the cells of one fold are scored on; arrays by unit (a slide, or the held-out part of one).

    Attributes
    ----------
    genes
        Names of the genes.
    truth, mask
        (spots, genes); ``mask`` is None where it is not known what was measured.
    coords, neighbors
        (spots, 2) centres; (spots, k) rows of each spot's neighbours in the unit.
    patients
        None where not known.
    """

    genes: Sequence[str]
    truth: Mapping[str, NDArray[np.float32]]
    mask: Mapping[str, NDArray[np.bool_]] | None
    coords: Mapping[str, Floats]
    neighbors: Mapping[str, NDArray[np.intp]]
    patients: Mapping[str, str | None]


class Scores(NamedTuple):
    """Scores of one cell on one layer over one choice of entries.

    Attributes
    ----------
    numbers
        The six metrics (SpaRED's rules where asked for), those of :data:`STRUCTURE`, and ``n_spots``.
    drawn
        (1 + resamples,) of each metric of :data:`DRAWN`, the estimate first; by the rules of
        :mod:`spared_fm.benchmark.metrics`.
    genes
        PCC of each gene, mean over the folds that have the gene.
    unit, n_units, tail
        What was drawn, how many of them, and the share of draws to leave out on each side.
    spots
        Digest of the spots that were scored.
    """

    numbers: dict[str, float]
    drawn: dict[str, Floats]
    genes: dict[str, float]
    unit: str
    n_units: int
    tail: float
    spots: str

    def interval(self, metric: str) -> tuple[float, float, float]:
        """Return estimate, low and high of a metric of :data:`DRAWN`."""
        return _interval(self.drawn[metric], self.tail)


class Difference(NamedTuple):
    """First less second; ``unit`` and ``n_units`` say what was resampled. A low above 0 or a high below it decides."""

    estimate: float
    low: float
    high: float
    unit: str
    n_units: int


def score_cell(
    folds: Sequence[HeldOut],
    predictions: Sequence[Mapping[str, NDArray[np.float32]]],
    *,
    which: Which = "all",
    compat: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score the kept predictions of a cell, pooled over the spots of a fold, then averaged over folds.

    Parameters
    ----------
    folds, predictions
        What each fold is scored on, and (spots, genes) by unit. Rows of NaN (no patch) are left out.
    which
        ``"all"`` entries or ``"measured"`` ones.
    compat
        Give the six metrics by SpaRED's rules (:mod:`spared_fm.benchmark.spared_metrics`).
    n_resamples, seed
        Of the bootstrap. Five folds or more are drawn as wholes (they hold out other patients or slides); else the units of
        :func:`spared_fm.benchmark.resampling.resampling_units` within each fold.

    Raises
    ------
    InputError
        What :func:`spared_fm.benchmark.intervals.intervals` refuses.
    """
    each = [
        _of_fold(*both, which, compat, n_resamples, seed + i)
        for i, both in enumerate(zip(folds, predictions, strict=True))
    ]
    genes: dict[str, list[float]] = {}
    for one in each:
        for gene, value in one.genes.items():
            genes.setdefault(gene, []).append(value)
    units = _units([one.units for one in each])
    counts = np.concatenate(list(draws(units, n_resamples, seed, n_resamples))) if units.kind == "fold" else None
    return Scores(
        numbers={key: float(np.mean([one.numbers[key] for one in each])) for key in each[0].numbers}
        | {"n_spots": sum(int(one.numbers["n_spots"]) for one in each)},
        drawn={metric: _over_folds([one.drawn[metric] for one in each], counts) for metric in DRAWN},
        genes={gene: mean_of_scored(np.array(values)) for gene, values in genes.items()},
        unit=units.kind,
        n_units=len(units.stratum),
        tail=tail_share(units, LEVEL, n_resamples),
        spots=" ".join(one.spots for one in each),
    )


def difference(pairs: Sequence[tuple[Scores, Scores]], metric: str) -> Difference | None:
    """Return first less second, the mean over the pairs, with its interval; None where they were not drawn alike.

    Parameters
    ----------
    pairs
        Cells to compare, all of them scored on the same spots.
    metric
        One of :data:`DRAWN`.
    """
    if not pairs or len({one.spots for pair in pairs for one in pair}) > 1:
        return None
    first = pairs[0][0]
    drawn = np.mean([a.drawn[metric] - b.drawn[metric] for a, b in pairs], axis=0)
    return Difference(*_interval(drawn, first.tail), first.unit, first.n_units)


def gene_ranges(
    folds: Sequence[HeldOut],
    predictions: Sequence[Mapping[str, NDArray[np.float32]]],
    genes: Mapping[str, float],
    *,
    which: Which,
    n_resamples: int,
) -> dict[str, tuple[float, float, float]]:
    """Return PCC, low and high of each gene of ``genes``; without an interval (NaN) where there are several folds.

    Parameters
    ----------
    folds, predictions, which, n_resamples
        As for :func:`score_cell`.
    genes
        Its ``genes``.
    """
    if len(folds) > 1:
        return {gene: (value, np.nan, np.nan) for gene, value in genes.items()}
    [fold], [predicted] = folds, predictions
    truth, predicted, mask, rows = present(fold, predicted)
    found = gene_intervals(
        truth,
        predicted,
        patients=fold.patients,
        coords={unit: fold.coords[unit][rows[unit]] for unit in truth},
        mask=mask,
        which=which,
        n_resamples=n_resamples,
    )
    ranges = np.stack([found[key] for key in ("estimate", "low", "high")], axis=1)
    return {gene: tuple(values) for gene, values in zip(fold.genes, ranges.tolist(), strict=True)}


def present(
    fold: HeldOut, predicted: Mapping[str, NDArray[np.float32]]
) -> tuple[
    dict[str, NDArray[np.float32]],
    dict[str, NDArray[np.float32]],
    dict[str, NDArray[np.bool_]] | None,
    dict[str, NDArray[np.intp]],
]:
    """Return truth, prediction and mask on the spots that have a prediction, and their rows, of units that have any."""
    rows = {unit: np.flatnonzero(np.isfinite(values).all(axis=1)) for unit, values in sorted(predicted.items())}
    rows = {unit: own for unit, own in rows.items() if len(own)}
    return (
        {unit: fold.truth[unit][own] for unit, own in rows.items()},
        {unit: predicted[unit][own] for unit, own in rows.items()},
        None if fold.mask is None else {unit: fold.mask[unit][own] for unit, own in rows.items()},
        rows,
    )


class _Fold(NamedTuple):
    numbers: dict[str, float]
    drawn: dict[str, Floats]
    genes: dict[str, float]
    units: Units
    spots: str


def _of_fold(
    fold: HeldOut,
    predicted: Mapping[str, NDArray[np.float32]],
    which: Which,
    compat: bool,
    n_resamples: int,
    seed: int,
) -> _Fold:
    truth, values, mask, rows = present(fold, predicted)
    scored = scored_slides(truth, values, mask, which)
    units = resampling_units(
        {unit: len(own) for unit, own in rows.items()},
        fold.patients,
        {unit: fold.coords[unit][own] for unit, own in rows.items()},
    )
    drawn = pooled_draws(scored, units, n_resamples, seed)
    numbers = {metric: float(drawn[i, 0]) for i, metric in enumerate(METRICS)}
    if compat:
        whole = [np.concatenate(list(of.values())) for of in (truth, values)]
        seen = np.concatenate([one.seen for one in scored.values()])
        theirs = get_metrics(whole[0], whole[1], seen)
        numbers = {metric: theirs[name] for metric, name in COMPAT.items()}
    around = {unit: _among(fold.neighbors[unit], own) for unit, own in rows.items()}
    shape = structure(truth, values, around, mask=mask, which=which)[0]
    gene = line_scores(0, pool(scored.values()))[0]
    return _Fold(
        numbers | {key: shape[key] for key in STRUCTURE} | {"n_spots": sum(map(len, rows.values()))},
        {metric: drawn[METRICS.index(metric)] for metric in DRAWN},
        dict(zip(fold.genes, gene.tolist(), strict=True)),
        units,
        _digest(rows),
    )


def _digest(rows: Mapping[str, NDArray[np.intp]]) -> str:
    found = hashlib.sha256()
    for unit, own in rows.items():
        found.update(f"{unit}/{len(own)}/".encode() + own.astype("<i8").tobytes())
    return found.hexdigest()[:16]


def _among(neighbors: NDArray[np.intp], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the neighbours of some rows, numbered among these; -1 for those that are not."""
    number = np.full(len(neighbors) + 1, -1, dtype=np.intp)  # the last one is for "none", which is -1
    number[rows] = np.arange(len(rows))
    return number[neighbors[rows]]


def _units(each: Sequence[Units]) -> Units:
    """Return what is drawn over all folds: folds where there are five or more, else the units of each."""
    if len(each) >= FEWEST_PATIENTS:
        return Units("fold", {}, np.zeros(len(each), dtype=np.intp))
    stratum: list[NDArray[np.intp]] = []
    for units in each:
        stratum.append(units.stratum + (stratum[-1].max() + 1 if stratum else 0))
    kinds = list(dict.fromkeys(units.kind for units in each))
    return Units(" or ".join(kinds), {}, np.concatenate(stratum))


def _over_folds(drawn: Sequence[Floats], counts: Floats | None) -> Floats:
    """Return the mean over folds: of their draws, or of their estimates as often as each fold is drawn."""
    if counts is None:
        return np.mean(drawn, axis=0)
    estimates = np.array([values[0] for values in drawn])
    return counts @ estimates / counts.sum(axis=1)


def _interval(drawn: Floats, tail: float) -> tuple[float, float, float]:
    low, high = quantiles(drawn[1:, None], tail)
    return float(drawn[0]), float(low[0]), float(high[0])
