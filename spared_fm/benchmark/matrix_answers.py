"""What a benchmark answers: does completion help, do graphs and retrieval beat ridge, does context help.

Every answer is a difference of cells on the same spots, with its interval, and is decided by the interval alone.
All are scored on raw targets, those that no method has completed: a completed target is easier to predict, whatever is
predicted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from spared_fm.benchmark.matrix_scores import Difference, difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spared_fm.benchmark.matrix_scores import Scores

HELPS, HURTS, OPEN = "helps", "hurts", "can't tell"
FLOORS = ("gene-mean", "slide-mean", "coordinates")
GRAPH = ("sepal", "eggn", "hist2st")
RETRIEVAL = ("knn", "bleep", "egn", "eggn")
BASE_OF = {
    "context-ridge": "ridge",
    "context-mlp": "mlp",
    "deepsets": "mlp",
    "triplex": "mlp",
    "histogene": "mlp",
    "hist2st": "mlp",
    "sepal": "spared-linear",
}
"""Heads that see a spot's surroundings → the nearest head here that sees the spot alone."""
QUESTIONS = {
    "completion": "Does completing the targets help a head, on raw targets?",
    "graph": "Do graph heads beat tuned ridge?",
    "retrieval": "Do retrieval heads beat tuned ridge?",
    "context": "Does seeing a spot's surroundings help?",
}
ABOUT = {
    "completion": "The same head, fitted on completed targets less fitted on raw ones; both scored on the raw ones.",
    "graph": f"{', '.join(GRAPH)} less ridge, whose alpha is chosen by slides or patients left out; same encoder, same target.",
    "retrieval": f"{', '.join(RETRIEVAL)} less ridge, whose alpha is chosen by slides or patients left out; same encoder, same "
    "target.",
    "context": "Less the nearest head that sees the spot alone: "
    + ", ".join(f"{head} less {base}" for head, base in BASE_OF.items())
    + ". Only the first two pairs differ in nothing else.",
}


class Result(NamedTuple):
    """The scores of one cell on one layer over one choice of entries.

    Attributes
    ----------
    cohort, encoder, head, params, target
        As declared; ``params`` is JSON text.
    seed
        None where the head has none.
    label
        Why the head is no fair one, or its size; else "".
    scored_on
        Layer that it is scored on: its own target or, for a completed target, the raw one too.
    raw
        Name of the raw layer of its target; the target itself where no method completed it.
    entries
        ``all`` or ``measured``.
    scores
        See :class:`spared_fm.benchmark.matrix_scores.Scores`.
    cell
        Its id.
    cached
        What stands in the head, on cached features, for what needs pixels in the original; else "".
    """

    cohort: str
    encoder: str
    head: str
    params: str
    seed: int | None
    label: str
    target: str
    scored_on: str
    raw: str
    entries: str
    scores: Scores
    cell: str = ""
    cached: str = ""

    @property
    def floor(self) -> bool:
        """Whether it is no fair head: an oracle, a leak, or one that sees no features."""
        return self.head in FLOORS or self.label.partition(":")[0] in ("oracle", "leakage")


class Answer(NamedTuple):
    """A difference that answers a question.

    Attributes
    ----------
    question
        One of :data:`QUESTIONS`.
    cohort, target, entries
        Where: the target the first was fitted on, and the entries that were scored.
    scored_on
        Raw layer.
    encoder, head, versus
        What is compared; for the mean of several heads ``head`` and ``encoder`` are "".
    n_heads
        Comparisons that the mean is over; 1 for a head by itself.
    differences
        By metric (pcc_gene, mse), None where the two were not scored on the same spots.
    """

    question: str
    cohort: str
    target: str
    entries: str
    scored_on: str
    encoder: str
    head: str
    versus: str
    n_heads: int
    differences: dict[str, Difference | None]

    def verdict(self, metric: str) -> str:
        """Say what the interval of a metric says: helps, hurts or can't tell."""
        found = self.differences[metric]
        if found is None or not math.isfinite(found.low + found.high):
            return OPEN
        better, worse = (found.high < 0, found.low > 0) if metric == "mse" else (found.low > 0, found.high < 0)
        return HELPS if better else HURTS if worse else OPEN

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it: None for a number there is none of."""
        numbers = {
            metric: None
            if found is None
            else {key: _plain(value) for key, value in found._asdict().items()} | {"verdict": self.verdict(metric)}
            for metric, found in self.differences.items()
        }
        return {**self._asdict(), "differences": numbers}


class Finding(NamedTuple):
    """The mean over heads, and the heads; the mean leaves out what was not scored on the same spots as its partner."""

    mean: Answer
    heads: list[Answer]

    def counts(self, metric: str) -> dict[str, int]:
        """Count the verdicts of the heads."""
        found = [answer.verdict(metric) for answer in self.heads]
        return {verdict: found.count(verdict) for verdict in (HELPS, HURTS, OPEN)}


def answers(results: Sequence[Result], *, entries: Sequence[str]) -> list[Finding]:
    """Answer the questions.

    Parameters
    ----------
    results
        Of all cells.
    entries
        Choices of entries that were scored, the first is the one that answers. Completion is answered on each.

    Returns
    -------
    list of Finding
        By question, cohort, target and choice of entries; encoders that lack different patches are not mixed.
    """
    on_raw = [result for result in results if result.scored_on == result.raw and not result.floor]
    found = []
    for question in QUESTIONS:
        groups: dict[tuple[str, str, str, str, str], list[tuple[Result, Result]]] = {}
        for one in on_raw:
            if question != "completion" and one.entries != entries[0]:
                continue
            if (other := _partner(question, one, on_raw)) is not None:
                place = (one.cohort, one.target, one.entries, one.raw, one.scores.spots)
                groups.setdefault(place, []).append((one, other))
        for (cohort, target, which, raw, _), pairs in groups.items():
            versus = f"fitted on {raw}" if question == "completion" else "" if question == "context" else "ridge"
            same = [(one, other) for one, other in pairs if one.scores.spots == other.scores.spots]
            mean = Answer(question, cohort, target, which, raw, "", "", versus, len(same), _differences(same))
            heads = [
                mean._replace(
                    encoder=one.encoder,
                    head=shown(one, on_raw),
                    versus=_versus(one, other, on_raw),
                    n_heads=1,
                    differences=_differences([(one, other)]),
                )
                for one, other in pairs
            ]
            found.append(Finding(mean, heads))
    return found


def against_ridge(result: Result, results: Iterable[Result]) -> Difference | None:
    """Return its PCC-Gene less that of ridge on the same encoder and target, over the same entries; None for ridge itself."""
    ridge = _ridge(result, [r for r in results if r.scored_on == result.scored_on])
    return None if ridge is None or ridge == result else difference([(result.scores, ridge.scores)], "pcc_gene")


def shown(result: Result, results: Iterable[Result]) -> str:
    """Name a head with its label, and with parameters and seed where another cell of ``results`` differs in these only."""
    alike = [other for other in results if _key(other) == _key(result)]
    params = f" {result.params}" if len({other.params for other in alike}) > 1 and result.params != "{}" else ""
    seed = f", seed {result.seed}" if len({other.seed for other in alike}) > 1 else ""
    label = result.label or ("floor" if result.floor else "")
    return f"{result.head}{params}{seed}{f' ({label})' if label else ''}"


def _key(result: Result) -> tuple[str, ...]:
    return result.cohort, result.encoder, result.head, result.target, result.scored_on, result.entries


def _partner(question: str, one: Result, results: Sequence[Result]) -> Result | None:
    """Find the cell that one is compared with; None where the question is not about it, or there is no such cell."""
    if question == "completion":
        raw = [r for r in results if _key(r) == _key(one._replace(target=one.raw))] if one.target != one.raw else []
        return next((r for r in raw if (r.params, r.seed) == (one.params, one.seed)), None)
    if question == "context":
        return _other(one, BASE_OF[one.head], results) if one.head in BASE_OF else None
    return _ridge(one, results) if one.head in {"graph": GRAPH, "retrieval": RETRIEVAL}[question] else None


def _ridge(one: Result, results: Iterable[Result]) -> Result | None:
    return _other(one, "ridge", results)


def _other(one: Result, head: str, results: Iterable[Result]) -> Result | None:
    """Find a cell of another head that is alike in all else; or on the pooled vectors of the first encoder alone."""
    same = [r for r in results if r.head == head and _place(r) == _place(one)]
    pooled = one.encoder.replace("tokens/", "")
    for encoder in (one.encoder, pooled, pooled.split("+")[0]):
        found = [r for r in same if r.encoder == encoder]
        # the seed of the head, and the head's own parameters, where there is a choice
        found.sort(key=lambda r: (r.seed != one.seed, r.params != "{}"))
        if found:
            return found[0]
    return None


def _place(result: Result) -> tuple[str, ...]:
    return result.cohort, result.target, result.scored_on, result.entries


def _versus(one: Result, other: Result, results: Sequence[Result]) -> str:
    name = shown(other, results)
    on = f" on {other.encoder}" if other.encoder != one.encoder else ""
    return f"fitted on {other.target}" if other.target != one.target else f"{name}{on}"


def _differences(pairs: Sequence[tuple[Result, Result]]) -> dict[str, Difference | None]:
    scores = [(one.scores, other.scores) for one, other in pairs]
    return {metric: difference(scores, metric) for metric in ("pcc_gene", "mse")}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
