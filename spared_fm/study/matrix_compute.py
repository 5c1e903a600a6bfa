"""Computing one cell of a benchmark: fit its head fold by fold, predict the spots held out, score, keep."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.layout import Layout
from spared_fm.study.cohort import cohort_record, target
from spared_fm.study.evaluate import join
from spared_fm.study.head_inputs import UnfitError, gene_text, make_fitting
from spared_fm.study.matrix_cells import TEXT_PARAM
from spared_fm.study.matrix_kept import COUNTED, FAILED, NUMBERS, keep
from spared_fm.study.protocols import HEST, check_head, folds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spared_fm.benchmark.metrics import Which
    from spared_fm.benchmark.runner import Fitted
    from spared_fm.heads.base import Head
    from spared_fm.study.evaluate import Joined
    from spared_fm.study.matrix_cells import Cell
    from spared_fm.study.protocols import Fold

    Row = dict[str, Any]

LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "pytorch-lightning", "lightgbm")
"""Their versions are kept with a cell, but a newer one doesn't make it another cell."""
WHICH: tuple[Which, Which] = ("all", "measured")
COUNTS = "counts"
"""The cohort's layer of raw counts, and the argument of heads' ``fit`` that takes them."""
# A network's random numbers come from generators of the whole process.
_ONE_AT_A_TIME = threading.Lock()


def compute(root: str, name: str, cell: Cell) -> str:
    """Compute one cell and keep its result; what goes wrong is kept as its reason.

    Parameters
    ----------
    root
        The store.
    name
        The benchmark's name.
    cell
        What to compute.

    Returns
    -------
    str
        Status: ``done``; ``skipped`` where the head isn't for this encoder or protocol; ``failed``.
    """
    layout = Layout.open(root)
    started = time.perf_counter()
    found: dict[str, Any] = {}
    predicted = None
    try:
        with _ONE_AT_A_TIME:
            found, predicted = _scored(layout, cell)
        status, error = "done", None
    except UnfitError as unfit:
        status, error = "skipped", reason(unfit)
    except Exception as failure:  # whatever it is, it is this cell's: the others go on
        status, error = FAILED, reason(failure)
    seconds = round(time.perf_counter() - started, 3)
    keep(layout, name, cell.id, receipt(cell, status, error, seconds, **found), predicted)
    return status


def receipt(cell: Cell, status: str, error: str | None, seconds: float | None, **found: Any) -> dict[str, Any]:
    """Give a cell's receipt: the cell, how it ended and why, its rows and folds, and the versions it was computed with."""
    versions = {library: version(library) for library in LIBRARIES}
    ended = {"status": status, "error": error, "seconds": seconds}
    return {"cell": dataclasses.asdict(cell), "versions": versions, **ended, "rows": [], **found}


def reason(error: BaseException) -> str:
    """Say in one line what went wrong; what is no :class:`InputError` is named by its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _scored(layout: Layout, cell: Cell) -> tuple[dict[str, Any], dict[tuple[str, str], np.ndarray]]:
    """Fit a cell's head on the training spots of each fold and score the others; give what its receipt says, and predictions."""
    from spared_fm.benchmark.runner import fit_predict

    try:
        check_head(cell.protocol, cell.head)
    except InputError as error:
        raise UnfitError(str(error)) from error
    joined = join(layout, cell.cohort, cell.encoder)
    given = json.loads(cell.params) | ({} if cell.seed is None else {"seed": cell.seed})
    make_fitting(cell.head, given, joined.blocks)  # before anything is read for it
    rows: list[Row] = []
    said: list[dict[str, Any]] = []
    predictions: dict[tuple[str, str], np.ndarray] = {}
    for fold in folds(layout, cell.cohort, joined, cell.target, cell.protocol):
        head = make_fitting(cell.head, given | _described(layout, cell, fold, given), joined.blocks)
        fitted = fit_predict(
            head,
            X=joined.features,
            Y=fold.truth,
            mask=fold.mask,
            split=fold.split,
            patients=joined.patients,
            coords=joined.coords,
            counts=_counts(layout, cell, joined, fold, head),
        )
        rows += _rows(cell, fold, fitted, head.label)
        predictions |= {(fold.name, unit): values for unit, values in fitted.predictions.items()}
        held_out = {unit: fold.split[unit] for unit in fitted.predictions}
        said.append(
            {"name": fold.name, "label": fold.label, "genes": fold.genes, "split": held_out, "absent": fitted.absent}
        )
    return {"rows": rows + _mean_of_folds(rows), "folds": said}, predictions


def _described(layout: Layout, cell: Cell, fold: Fold, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the cohort's gene descriptions to a head that reads them and was given no others."""
    from spared_fm.heads.registry import make

    if TEXT_PARAM in given or TEXT_PARAM not in make(cell.head).get_params(deep=False):
        return {}
    return {TEXT_PARAM: gene_text(layout, cell.cohort, fold.genes)}


def _counts(layout: Layout, cell: Cell, joined: Joined, fold: Fold, head: Head) -> dict[str, np.ndarray] | None:
    """Give the raw counts behind a fold's targets, to a head that takes them."""
    from spared_fm.benchmark.runner import takes_counts

    if not takes_counts(head):
        return None
    if cell.protocol in HEST:  # whose target is their logarithm
        return {unit: np.rint(np.expm1(values)) for unit, values in fold.truth.items()}
    if COUNTS not in cohort_record(layout, cell.cohort)["layers"]:
        return None
    counts = target(layout, cell.cohort, COUNTS)
    return {unit: counts[rows] for unit, rows in joined.rows.items()}


def _rows(cell: Cell, fold: Fold, fitted: Fitted, label: str) -> list[Row]:
    """Score a fold: on its target, and where that is a completed one also on what it was before."""
    from spared_fm.benchmark.metrics import score_slides
    from spared_fm.benchmark.splits import PARTS

    truths = {cell.target: fold.truth}
    if fold.raw is not None and fold.raw_layer is not None:
        truths[fold.raw_layer] = fold.raw

    def kept(arrays: Mapping[str, Any], units: Sequence[str]) -> dict[str, Any]:
        return {unit: arrays[unit][fitted.present[unit]] for unit in units}

    rows = []
    for split in PARTS[1:]:
        units = [unit for unit in fitted.predictions if fold.split[unit] == split and len(fitted.present[unit])]
        for layer, truth in truths.items() if units else ():
            for which in WHICH[: 1 if fold.mask is None else 2]:
                mask = None if fold.mask is None else kept(fold.mask, units)
                for row in score_slides(kept(truth, units), kept(fitted.predictions, units), mask=mask, which=which):
                    slide = row["slide"] and row["slide"].split("/")[0]  # a unit: its part stands beside it
                    same = {"label": _joined(label, fold.label), "score": which, "scored_on": layer, "split": split}
                    rows.append(same | {"fold": fold.name or None} | _plain(row) | {"slide": slide})
    return rows


def _mean_of_folds(rows: Sequence[Row]) -> list[Row]:
    """Average the pooled rows of several folds, all weighing the same; counts are sums."""
    from spared_fm.benchmark.metrics import mean_of_scored

    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["fold"] is not None and row["over"] == "pooled":
            groups.setdefault((row["split"], row["scored_on"], row["score"]), []).append(row)
    found = []
    for group in groups.values():
        means = {key: mean_of_scored(np.array([row[key] for row in group], np.float64)) for key in NUMBERS}
        sums = {key: sum(row[key] for row in group) for key in COUNTED}
        found.append(group[0] | _plain(means) | sums | {"over": "fold_mean", "fold": None})
    return found


def _joined(*labels: str) -> str:
    return "; ".join(label for label in labels if label)


def _plain(row: Mapping[str, Any]) -> Row:
    """Give a row as JSON has it: None for a score there is none of."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
