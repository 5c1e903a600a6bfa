"""Completion without training to speak of: adaptive median, mean of visible neighbours, mean of the gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from spared_fm.targets.completion import folder as files
from spared_fm.targets.completion.data import (
    Completed,
    check_genes,
    fill,
    hide,
    mask_probability,
    without,
)
from spared_fm.targets.neighbors import knn_graph
from spared_fm.targets.spared.graph import hops_around
from spared_fm.targets.spared.median import complete_median

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spared_fm.targets.completion.data import Completer, Panel, Progress, Section

HOPS = 4
"""Farthest neighbourhood looked at."""

_FIRST_HOPS = (1, 2, 3)


class AdaptiveMedian:
    """SpaRED's adaptive median (arXiv 2407.13027): the median of a growing neighbourhood, of visible values and zeros.

    The rule is :func:`spared_fm.targets.spared.median.complete_median`; nothing is fitted. Where a gene is visible nowhere
    on the slide it says 0. On a square grid the graph has the 8 nearest spots also at the border, which does better than
    SpaRED's, where border spots have fewer: the median of an even number of spots, half of them zero, is half a value.
    """

    name: ClassVar[str] = "adaptive-median"

    def __init__(self) -> None:
        self.genes: tuple[str, ...] = ()

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
        """Remember the panel."""
        self.genes = panel.genes
        return self

    def complete(self, section: Section) -> Completed:
        """Fill what is not visible; raises :class:`InputError` for negative values."""
        check_genes(section, len(self.genes))
        hops = hops_around(_graph(section), HOPS)
        return Completed(complete_median(section.values, hops, ~section.visible).astype(np.float32, copy=False), None)

    def save(self, folder: Path) -> None:
        """Write the panel."""
        files.write(folder, self.name, self.genes, {}, {})

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None) -> Self:
        """Read the panel."""
        new = cls()
        new.genes = tuple(files.read(folder, cls.name, genes)[0]["genes"])
        return new


class GeneMean:
    """Mean of each gene's visible entries on the training slides; its spread is their standard deviation.

    A gene that is visible nowhere in training is taken for 0.
    """

    name: ClassVar[str] = "gene-mean"

    def __init__(self) -> None:
        self.genes: tuple[str, ...] = ()
        self.mean, self.deviation = np.zeros(0), np.zeros(0)

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
        """Take means over the training slides."""
        self.genes = panel.genes
        self.mean, self.deviation = gene_moments(train, len(panel.genes))
        return self

    def complete(self, section: Section) -> Completed:
        """Predict the mean for every spot."""
        check_genes(section, len(self.genes))
        shape = section.values.shape
        return Completed(
            np.broadcast_to(self.mean, shape).astype(np.float32),
            np.broadcast_to(self.deviation, shape).astype(np.float32),
        )

    def save(self, folder: Path) -> None:
        """Write means and deviations."""
        files.write(folder, self.name, self.genes, {}, {"mean": self.mean, "deviation": self.deviation})

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None) -> Self:
        """Read means and deviations."""
        card, arrays = files.read(folder, cls.name, genes)
        new = cls()
        new.genes, new.mean, new.deviation = tuple(card["genes"]), arrays["mean"], arrays["deviation"]
        return new


class NeighborMean:
    """Mean of the visible entries of the gene over the spots around, the spot itself left out.

    The neighbourhood is that of ``first`` hops on the slide's grid (chosen on validation slides among 1, 2, 3; without any it
    is 2) and grows by a hop, up to :data:`HOPS`, where nothing is visible in it; then the gene's training mean.
    """

    name: ClassVar[str] = "neighbor-mean"

    def __init__(self) -> None:
        self.genes: tuple[str, ...] = ()
        self.mean = np.zeros(0)
        self.first = 2

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
        """Take means over the training slides and choose ``first`` on the others."""
        self.genes = panel.genes
        self.mean = gene_moments(train, len(panel.genes))[0]
        if validate:
            trials = hidden_trials(validate, panel, seed)
            self.first = min(_FIRST_HOPS, key=lambda hops: self._error(trials, hops))
        return self

    def _error(self, trials: Sequence[tuple[Section, Section]], first: int) -> float:
        self.first = first
        return hidden_error(self, trials)

    def complete(self, section: Section) -> Completed:
        """Predict every entry from the spots around it."""
        check_genes(section, len(self.genes))
        graph = _graph(section)
        n = graph.shape[0]
        reach = sp.eye_array(n, format="csr", dtype=np.float32)
        visible = section.visible.astype(np.float32)
        out = np.broadcast_to(self.mean, visible.shape).astype(np.float32)
        open_ = np.ones(visible.shape, bool)
        for hop in range(1, HOPS + 1):
            reach = sp.csr_array(reach + reach @ graph).astype(np.float32)
            reach.data[:] = 1.0  # counts of paths → reached or not
            if hop < self.first:
                continue
            seen = reach @ visible - visible
            total = reach @ section.values - section.values
            settled = open_ & (seen > 0)
            out[settled] = total[settled] / seen[settled]
            open_ &= ~settled
            if not open_.any():
                break
        return Completed(out, None)

    def save(self, folder: Path) -> None:
        """Write means and ``first``."""
        files.write(folder, self.name, self.genes, {"first": self.first}, {"mean": self.mean})

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None) -> Self:
        """Read means and ``first``."""
        card, arrays = files.read(folder, cls.name, genes)
        new = cls()
        new.genes, new.first, new.mean = tuple(card["genes"]), int(card["first"]), arrays["mean"]
        return new


def _graph(section: Section) -> sp.csr_array:
    return sp.csr_array(knn_graph(section.xy, section.k))


def gene_moments(sections: Sequence[Section], n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each gene's visible entries, ``(g,)`` float64; 0 where none is visible."""
    count, total, squares = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)
    for one in sections:
        check_genes(one, n_genes)
        values = one.values.astype(np.float64)
        count += one.visible.sum(axis=0)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
    mean = total / np.maximum(count, 1)
    return mean, np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))


def hidden_trials(sections: Sequence[Section], panel: Panel, seed: int) -> list[tuple[Section, Section]]:
    """Pairs of a section with entries hidden by SpaRED's rule and the section as it was, to choose settings on."""
    rng = np.random.default_rng(seed)
    probability = mask_probability(panel.measured, "spared")
    return [(without(one, hide(one.visible, probability, rng)), one) for one in sections]


def hidden_error(completer: Completer, trials: Sequence[tuple[Section, Section]]) -> float:
    """Mean squared error on the hidden entries of :func:`hidden_trials`."""
    total, count = 0.0, 0
    for given, known in trials:
        hidden = known.visible & ~given.visible
        error = (fill(given, completer.complete(given)) - known.values)[hidden]
        total += float(np.sum(error.astype(np.float64) ** 2))
        count += int(hidden.sum())
    return total / max(count, 1)
