"""Score completers on hidden entries: the same ones for every method, hidden in the raw counts first."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.targets.completion.data import hide, mask_probability, panel_of
from spared_fm.targets.completion.hiding import normalise, rng_of, scale, section, truth, visible_counts
from spared_fm.targets.completion.scores import METRICS, Sums, interval_scores, spot_interval, width

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spared_fm.targets.completion.data import Completed, Completer, Panel, Progress
    from spared_fm.targets.completion.hiding import Counts

SHARES: tuple[str | float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, "spared", "prob-median")
SPLITS = ("train", "val", "test")
REPEATS = 10
ALL = "all"
"""Slide of a row over all slides of its split."""

FLOOR = "noise-floor"
"""Method of the rows of :func:`floor_sums`."""

SCORED = {
    "": "hidden measured entries, in the unit methods work in: the value that the hidden count has under the scale of what "
    "stayed visible. True zeros are never among them, as in the published protocol",
    "raw_": "the same entries and predictions against the raw target: the value at full depth, as the cohort's layer has it",
    "zeros_": "hidden measured entries and, drawn with the same probability, entries that were not measured, scored as zeros",
}
"""Prefix of a row's columns, and what they are scored on."""


@dataclass
class Evaluation:
    """``rows``: one per method, split, slide (and :data:`ALL`), rule and repeat. ``summary``: one per method, split and rule."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Pooled:
    """What the summary of one method, split and rule needs besides its rows."""

    squared: list[np.ndarray] = field(default_factory=list)  # per slide, (n,) sums over repeats
    absolute: list[np.ndarray] = field(default_factory=list)
    count: list[np.ndarray] = field(default_factory=list)


def fit(
    methods: Mapping[str, Callable[[], Completer]],
    raw: Sequence[Counts],
    genes: Sequence[str],
    *,
    layer: str = "log1p",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Completer]:
    """Fit each method once on the training slides with all that was measured there; validation slides choose.

    Parameters
    ----------
    methods
        Class (or function that makes an unfitted completer) by name.
    raw
        Slides; those of split test are not looked at.
    genes
        The panel.
    layer
        ``log1p`` or ``lognorm``.

    Raises
    ------
    InputError
        No training slide.
    """
    parts = {part: [section(one, layer=layer) for one in raw if one.split == part] for part in ("train", "val")}
    panel = panel_of(parts["train"], genes)
    return {
        name: make().fit(parts["train"], parts["val"], panel, seed=seed, progress=progress)
        for name, make in methods.items()
    }


def evaluate(
    fitted: Mapping[str, Completer],
    raw: Sequence[Counts],
    panel: Panel,
    *,
    rules: Sequence[str | float] = SHARES,
    repeats: int = REPEATS,
    splits: Sequence[str] = ("val", "test"),
    layer: str = "log1p",
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Hide entries of the raw counts, normalise what is left, complete, and score the hidden entries.

    Parameters
    ----------
    fitted
        Completers by name. They were fitted once, on training slides of which nothing is hidden for good: scores on split
        train are of entries that the fit has seen, those on val of slides that chose settings.
    raw
        Slides. Which spots and genes they have was decided before anything is hidden.
    panel
        Its ``measured`` gives the probabilities.
    rules
        See :func:`spared_fm.targets.completion.data.mask_probability`. A slide draws one number per entry and repeat, so what
        a lower share hides a higher one hides too.
    repeats
        Times that entries are drawn.
    splits
        Splits to score.
    layer
        ``log1p`` or ``lognorm``.
    seed
        Of what is hidden.
    progress
        Told after each slide of each rule and repeat.

    Returns
    -------
    Evaluation
        Columns of ``rows``: method, split, slide, share_hidden (the rule), hidden (share of the measured entries that it
        hid), repeat, entries, and ``mse``, ``mae``, ``pcc`` with the prefixes of :data:`SCORED`. Methods with a ``spread``
        also have coverage and interval_score of 90 % intervals, and beside them interval_score_constant for intervals of one
        width: both widths are calibrated on split val under the same rule, in repeat 0. The method ``noise-floor`` is that
        of :func:`floor_sums`.

        Columns of ``summary``: means over repeats of the pooled rows, with ``mse_low``, ``mse_high``, ``mae_low``,
        ``mae_high``: 95 % bootstrap intervals over spots, and ``pcc_low``, ``pcc_high``: the range of the repeats. They say
        nothing about other patients.

    Raises
    ------
    InputError
        An unknown rule, layer or split, or none of its slides.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise InputError(f"unknown split {unknown[0]!r}: choose from {', '.join(SPLITS)}")
    # calibrated on val, so val comes first
    order = sorted(splits, key=lambda split: split != "val")
    slides = {split: [one for one in raw if one.split == split] for split in order}
    if empty := [split for split, found in slides.items() if not found]:
        raise InputError(f"no slide is of split {empty[0]}: leave it out, or give it slides")
    out = Evaluation()
    steps, done = repeats * len(rules) * sum(map(len, slides.values())), 0
    for rule in rules:
        probability = mask_probability(panel.measured, rule)
        widths: dict[str, tuple[float, float]] = {}
        for split in order:
            pooled: dict[str, _Pooled] = defaultdict(_Pooled)
            rows = []
            for repeat in range(repeats):
                total: dict[str, dict[str, Sums]] = {}
                errors: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
                hid = np.zeros(2, np.int64)
                for number, one in enumerate(slides[split]):
                    trial = _Trial(one, probability, layer, repeat, seed)
                    known = {"split": split, "slide": one.slide, "share_hidden": rule, "repeat": repeat}
                    for name, completer in fitted.items():
                        completed = completer.complete(trial.section)
                        sums = trial.sums(completed)
                        own = trial.errors(completed)
                        rows.append(
                            {"method": name, **known, **_row(sums, trial.hid), **_intervals(own, widths.get(name))}
                        )
                        total[name] = _add(total.get(name), sums)
                        errors[name].append(own)
                        trial.per_spot(completed, pooled[name], number)
                    if (floor := floor_sums(one, trial.hidden, layer, repeat, seed)) is not None:
                        rows.append({"method": FLOOR, **known, **_floor_row(floor, trial.hid)})
                        total[FLOOR] = _add(total.get(FLOOR), {"": floor})
                    hid += trial.hid
                    done += 1
                    if progress is not None:
                        progress(done, steps, {})
                known = {"split": split, "slide": ALL, "share_hidden": rule, "repeat": repeat}
                for name, sums in total.items():
                    if name == FLOOR:
                        rows.append({"method": name, **known, **_floor_row(sums[""], hid)})
                        continue
                    joined = _join(errors[name])
                    if split == "val" and repeat == 0:
                        widths[name] = _widths(joined)
                    rows.append({"method": name, **known, **_row(sums, hid), **_intervals(joined, widths.get(name))})
            out.rows += rows
            out.summary += _summary([row for row in rows if row["slide"] == ALL], pooled, seed)
    return out


class _Trial:
    """One slide with entries hidden once."""

    def __init__(self, raw: Counts, probability: np.ndarray, layer: str, repeat: int, seed: int) -> None:
        measured = np.asarray(raw.counts) > 0
        drawn = hide(np.ones(measured.shape, bool), probability, rng_of(raw.slide, repeat, seed))
        self.hidden = drawn & measured
        self.section = section(raw, self.hidden, layer)
        self.truth = truth(raw, self.hidden, layer)
        known = np.isfinite(self.truth)
        self.scored = self.hidden & known
        self.hid = np.array([self.hidden.sum(), measured.sum()])
        self._targets = {
            "": (self.truth, self.scored),
            "raw_": (truth(raw, None, layer), self.scored),
            "zeros_": (self.truth, drawn & known),
        }

    def sums(self, completed: Completed) -> dict[str, Sums]:
        return {key: Sums.of(completed.values, target, where) for key, (target, where) in self._targets.items()}

    def errors(self, completed: Completed) -> tuple[np.ndarray, np.ndarray]:
        """Errors and spreads (empty where there are none) of the scored entries."""
        error = (completed.values - self.truth)[self.scored]
        return error, np.zeros(0) if completed.spread is None else completed.spread[self.scored].astype(np.float64)

    def per_spot(self, completed: Completed, pooled: _Pooled, number: int) -> None:
        error = np.where(self.scored, completed.values - self.truth, 0.0)
        found = (error**2).sum(axis=1), np.abs(error).sum(axis=1), self.scored.sum(axis=1)
        for sums, new in zip((pooled.squared, pooled.absolute, pooled.count), found, strict=True):
            if number == len(sums):
                sums.append(np.zeros(len(new)))
            sums[number] += new


def floor_sums(raw: Counts, hidden: np.ndarray, layer: str, repeat: int, seed: int = 0) -> Sums | None:
    """Compare two halves of the hidden counts, which differ by counting noise alone.

    Each count is divided at random into two halves (binomial thinning): two independent measurements of one spot at half its
    depth, if counts are Poisson. Both are brought to full depth (times two) and normalised by the scale of what stays
    visible. Scored are entries of which both halves are measured. Half of their mean squared difference is the variance of a
    measured value about the mean that its rate gives it, at half depth: no method that knows every rate but not the counts
    can have less. Mean absolute differences divided by √2 and the square root of their correlation are given likewise.
    At full depth the noise of well-measured genes is about half of that; of genes with few counts it may be larger, since
    two halves of a count of 2 or 3 have little room to differ.

    Returns
    -------
    Sums or None
        Of one half against the other; None where counts are fractional.
    """
    counts = np.asarray(raw.counts, np.float64)
    if (counts % 1).any():
        return None
    rng = np.random.default_rng([*rng_of(raw.slide, repeat, seed).integers(0, 2**31, 4), 1])
    first = rng.binomial(np.where(hidden, counts, 0).astype(np.int64), 0.5).astype(np.float64)
    second = np.where(hidden, counts, 0) - first
    factor = scale(raw, visible_counts(raw, hidden), layer)
    one, other = (normalise(2 * half, factor, raw.lengths, layer) for half in (first, second))
    return Sums.of(one, other, (first > 0) & (second > 0) & (factor > 0)[:, None])


def _floor_row(sums: Sums, hid: np.ndarray) -> dict[str, Any]:
    found = sums.scores()
    scores = {"mse": found["mse"] / 2, "mae": found["mae"] / np.sqrt(2), "pcc": float(np.sqrt(max(found["pcc"], 0.0)))}
    return {"hidden": _share(hid), "entries": sums.count, **scores}


def _row(sums: Mapping[str, Sums], hid: np.ndarray) -> dict[str, Any]:
    scores = {f"{key}{metric}": value for key, one in sums.items() for metric, value in one.scores().items()}
    return {"hidden": _share(hid), "entries": sums[""].count, **scores}


def _share(hid: np.ndarray) -> float:
    return float(hid[0] / hid[1]) if hid[1] else float("nan")


def _add(old: dict[str, Sums] | None, new: dict[str, Sums]) -> dict[str, Sums]:
    return new if old is None else {key: old[key] + new[key] for key in new}


def _join(errors: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([e for e, _ in errors]), np.concatenate([s for _, s in errors])


def _widths(errors: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Calibrated multiple of the spread, and constant half-width."""
    error, spread = errors
    return (width(error, spread) if len(spread) else float("nan")), width(error)


def _intervals(errors: tuple[np.ndarray, np.ndarray], widths: tuple[float, float] | None) -> dict[str, float]:
    error, spread = errors
    if widths is None or not len(error) or not len(spread):
        return {}
    constant = interval_scores(error, widths[1])["interval_score"]
    return {**interval_scores(error, widths[0] * spread), "interval_score_constant": constant}


def _summary(rows: Sequence[Mapping[str, Any]], pooled: Mapping[str, _Pooled], seed: int) -> list[dict[str, Any]]:
    """One row per method of one split and rule."""
    out = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        known = {key: own[0][key] for key in ("method", "split", "share_hidden")}
        figures = [key for key in own[0] if key not in (*known, "slide", "repeat")]
        summary = {**known, "repeats": len(own)}
        for key in figures:
            summary[key] = float(np.mean([row[key] for row in own if key in row]))
        if name in pooled:
            errors = pooled[name]
            for metric, sums in (("mse", errors.squared), ("mae", errors.absolute)):
                rng = np.random.default_rng(seed)  # the same spots for every method
                low, high = spot_interval(np.concatenate(sums), np.concatenate(errors.count), rng)
                summary |= {f"{metric}_low": low, f"{metric}_high": high}
            found = [row["pcc"] for row in own]
            summary |= {"pcc_low": float(np.min(found)), "pcc_high": float(np.max(found))}
        out.append(summary)
    return out


def ratio(
    evaluation: Evaluation, split: str, rule: str | float, method: str, other: str, metric: str = METRICS[0]
) -> float:
    """Score of one method divided by that of another, from the summary."""
    found = {
        row["method"]: row[metric]
        for row in evaluation.summary
        if row["split"] == split and row["share_hidden"] == rule and row["method"] in (method, other)
    }
    return found[method] / found[other]
