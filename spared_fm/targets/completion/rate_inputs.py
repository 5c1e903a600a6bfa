"""What rate attention sees of a slide: counts, depth, and the rates of a gene around a spot and on the slide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.completion.data import neighbours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.targets.completion.data import Section

NEAR, FAR = 1.6, 3.2  # pitches: the first ring of either grid, and what counts as around a spot at all
_REACH = {6: 18, 8: 24}  # full rings within FAR
MAPS = 11
"""Inputs per entry, of :meth:`View.maps`; the first :data:`RATES` are estimates of log₂ of the expected count."""
RATES = 6
_LAYERS = ((2.0, 1e6), (np.e, 1e4))  # base of the logarithm and sum of a spot: log₂(1 + TPM), ln(1 + counts per 10⁴)


@dataclass(frozen=True)
class Unit:
    """How values of a layer come from counts: value = log_base(1 + count × amount).

    Attributes
    ----------
    base
        Of the logarithm.
    total
        What the amounts of all counts of a spot sum to; None where unknown (a layer corrected for batches, say).
    amount
        ``(g,)`` float32, amount of one count × total count of its spot, roughly; where sections carry no ``unit``.
    """

    base: float
    total: float | None
    amount: np.ndarray

    def log(self, amount: np.ndarray) -> np.ndarray:
        """Value of an amount."""
        return np.log1p(amount) / np.float32(np.log(self.base))

    def exp(self, value: np.ndarray) -> np.ndarray:
        """Amount of a value."""
        return np.expm1(value * np.float32(np.log(self.base)))


@dataclass(frozen=True)
class Prior:
    """What the training slides say of each gene, ``(g,)`` float32 each, and of depth.

    Attributes
    ----------
    rate
        log₂ of the gene's share in all counts.
    seen
        Mean log₂ of that share where the gene is measured.
    depth
        log₂ of the median total count of a spot.
    """

    rate: np.ndarray
    seen: np.ndarray
    depth: float


@dataclass(frozen=True)
class Around:
    """Neighbours of the spots of one slide.

    Attributes
    ----------
    index
        ``(n, 18 or 24)`` int64, nearest first; n where there is none within :data:`FAR` pitches.
    distance
        As ``index``, float32, pitches; 0 where there is none.
    near, far
        ``(n, n)`` float32, 1 for neighbours within :data:`NEAR` and :data:`FAR` pitches.
    """

    index: np.ndarray
    distance: np.ndarray
    near: sp.csr_array
    far: sp.csr_array


@dataclass(frozen=True)
class Counted:
    """A section in counts.

    Attributes
    ----------
    counts
        ``(n, g)`` float32, 0 where not visible; whole numbers where the section's ``unit`` fits its values.
    total
        ``(n,)`` float32 total count of the spot, never 0: a spot without counts has the slide's median.
    amount
        ``(n, g)`` float32, amount of one count (:class:`Unit`).
    """

    counts: np.ndarray
    total: np.ndarray
    amount: np.ndarray


def around(section: Section) -> Around:
    """Find the neighbours of each spot."""
    index = neighbours(section.xy, _REACH.get(section.k, _REACH[6]))
    n = len(index)
    step = np.linalg.norm(section.xy[index] - section.xy[:, None], axis=-1)
    step[index < 0] = np.inf
    first = step[:, 0][np.isfinite(step[:, 0])]
    pitch = (float(np.median(first)) if len(first) else 0.0) or 1.0
    step = (step / pitch).astype(np.float32)

    def within(limit: float) -> sp.csr_array:
        chosen = step < limit
        indptr = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))])
        return sp.csr_array((np.ones(int(indptr[-1]), np.float32), index[chosen], indptr), shape=(n, n))

    reached = step < FAR
    return Around(np.where(reached, index, n), np.where(reached, step, np.float32(0)), within(NEAR), within(FAR))


def unit_of(train: Sequence[Section]) -> Unit:
    """Tell from training sections how their layer comes from counts.

    Where sections carry ``unit``, the layer is the one under which visible entries are whole counts. Without it, the amount
    of one count is taken as inverse to the spot's total, at the gene's 5 % quantile: the lowest values are single counts.
    """
    base, total = _LAYERS[0][0], None
    if all(section.unit is not None for section in train):
        for candidate in _LAYERS:
            guess = Unit(*candidate, np.zeros(0, np.float32))
            if all(_whole(section, guess) for section in train):
                base, total = candidate
    plain = Unit(base, total, np.zeros(0, np.float32))
    scaled = np.concatenate(
        [
            np.where(one.visible, plain.exp(one.values) * np.expm1(one.library)[:, None], np.float32(np.nan))
            for one in train
        ]
    )
    with np.errstate(invalid="ignore"):
        amount = np.nanquantile(scaled, 0.05, axis=0)
    return replace(plain, amount=np.maximum(amount, 1e-6).astype(np.float32))


def _whole(section: Section, unit: Unit) -> bool:
    single = np.asarray(section.unit)
    known = section.visible & (single > 0)
    counts = unit.exp(section.values[known]) / unit.exp(single[known])
    return bool(np.all(np.abs(counts - np.round(counts)) <= 1e-3 * np.maximum(counts, 1)))


def counted(section: Section, unit: Unit, prior_depth: float | None = None) -> Counted:
    """Put a section into counts.

    Parameters
    ----------
    section
        Visible values; ``unit`` if there is one.
    unit
        Of :func:`unit_of`.
    prior_depth
        log₂ of the total to assume on a slide without any count.
    """
    total = np.expm1(section.library.astype(np.float32))
    empty = total < 1
    if empty.any():
        usual = np.median(total[~empty]) if not empty.all() else 2.0 ** (prior_depth or 0.0)
        total = np.where(empty, np.float32(usual), total)
    amount = unit.amount / total[:, None]
    if section.unit is not None:
        single = unit.exp(np.asarray(section.unit, np.float32))
        known = (single > 0).all(axis=1) & ~empty
        # a spot without a scale has one by its depth, at the ratio that the slide's other spots show
        if known.any() and not known.all():
            amount = np.median(single[known] * total[known, None], axis=0) / total[:, None]
        amount = np.where(known[:, None], single, amount)
    counts = np.where(section.visible, np.maximum(unit.exp(section.values) / amount, 1), np.float32(0))
    return Counted(counts.astype(np.float32), total.astype(np.float32), amount.astype(np.float32))


def hidden_from(one: Counted, hidden: np.ndarray, unit: Unit) -> Counted:
    """Hide entries and normalise anew, as if they had never been counted.

    Exact where the layer's sum is known (:class:`Unit`), else the amount grows as the total falls. Hidden counts are in
    nothing but the sums taken out.
    """
    counts = np.where(hidden, np.float32(0), one.counts)
    gone = one.counts - counts
    total = np.maximum(one.total - gone.sum(axis=1), 1)
    if unit.total is None:
        factor = one.total / total
    else:
        factor = unit.total / np.maximum(unit.total - (gone * one.amount).sum(axis=1), 1e-6 * unit.total)
    return Counted(counts, total, one.amount * factor[:, None].astype(np.float32))


def prior_of(train: Sequence[Counted]) -> Prior:
    """Gather what training slides say of each gene."""
    counts = np.concatenate([one.counts for one in train])
    total = np.concatenate([one.total for one in train])
    seen = counts > 0
    share = np.log2(np.where(seen, counts / total[:, None], 1))
    rate = np.log2(counts.sum(axis=0, dtype=np.float64) / total.sum(dtype=np.float64))
    mean = share.sum(axis=0, dtype=np.float64) / np.maximum(seen.sum(axis=0), 1)
    return Prior(rate.astype(np.float32), mean.astype(np.float32), float(np.log2(np.median(total))))


class View:
    """Rates of one slide, computed once; inputs of a block of its spots on demand.

    A rate pools what is visible within :data:`NEAR` pitches, :data:`FAR` pitches, and on the whole slide, each shrunk
    towards the wider one and the slide's towards the training slides'. Two kinds: of counts, with what is not visible as
    zero, and the mean log₂ share of visible entries.

    Parameters
    ----------
    one
        The slide in counts.
    place
        Its neighbours.
    prior
        Of the training slides.

    Attributes
    ----------
    pooled, total
        ``(n + 1, 3 g)`` and ``(n + 1,)`` float32, what rates are pooled from: counts, log₂ share where visible, visible;
        total counts. The last row is 0.
    depth
        ``(n, 1)`` log₂ of the total count.
    rate, share, seen
        ``(g,)``, the slide's rate, mean log₂ share, and share of spots in which the gene is visible.
    """

    def __init__(self, one: Counted, place: Around, prior: Prior) -> None:
        self.place, self.prior = place, prior
        n, g = one.counts.shape
        self.depth = np.log2(one.total + 1)[:, None]
        self.pooled = np.zeros((n + 1, 3 * g), np.float32)
        counts, share, seen = (self.pooled[:n, i * g : (i + 1) * g] for i in range(3))
        counts[:] = one.counts
        seen[:] = one.counts > 0
        share[:] = seen * (np.log2(np.maximum(one.counts, 1)) - self.depth)
        self.total = np.append(one.total, np.float32(0))
        self.weight = np.float32(2 * one.total.mean())  # counts with which a wider rate enters a narrower one
        n_seen = seen.sum(axis=0, dtype=np.float64)
        whole = counts.sum(axis=0, dtype=np.float64) + 2.0**prior.rate * self.weight
        self.rate = (whole / (one.total.sum(dtype=np.float64) + self.weight)).astype(np.float32)
        mean = (share.sum(axis=0, dtype=np.float64) + 3 * prior.seen) / (n_seen + 3)
        self.share = mean.astype(np.float32)
        self.seen = (n_seen / n).astype(np.float32)

    def maps(self, rows: slice) -> tuple[list[np.ndarray], np.ndarray]:
        """Gather the inputs of a block of spots.

        Returns
        -------
        list of np.ndarray
            :data:`MAPS` arrays ``(rows, g)`` float32: log₂ expected count by six rates, visible shares near, far, on the
            slide and in the spot, depth.
        np.ndarray
            ``(rows, 4 g + 1)`` float32, inputs per spot: what its visible entries have more than their surroundings, which
            are visible, what its surroundings have more than the training slides (two kinds), depth.
        """
        near, far = self.place.near[rows], self.place.far[rows]
        _, own, seen = np.split(self.pooled[:-1][rows], 3, axis=1)
        far_counts, far_share, far_seen = np.split(far @ self.pooled[:-1], 3, axis=1)
        near_counts, near_share, near_seen = np.split(near @ self.pooled[:-1], 3, axis=1)
        half = self.weight / 2
        far_rate = (far_counts + self.rate * self.weight) / ((far @ self.total[:-1])[:, None] + self.weight)
        near_rate = (near_counts + far_rate * half) / ((near @ self.total[:-1])[:, None] + half)
        far_share = (far_share + self.share) / (far_seen + 1)
        near_share = (near_share + far_share) / (near_seen + 1)
        depth = self.depth[rows]
        level = depth - self.prior.depth
        near_n, far_n = (np.maximum(w.sum(axis=1), 1)[:, None] for w in (near, far))
        rates = [np.log2(near_rate), np.log2(far_rate), np.log2(self.rate), near_share, far_share, self.share]
        shares = [near_seen / near_n, far_seen / far_n, self.seen, seen.mean(axis=1, keepdims=True)]
        maps = [np.broadcast_to(one, seen.shape) for one in (*(rate + depth for rate in rates), *shares, level)]
        more = [seen * (own - far_share), seen - 0.5, rates[0] - self.prior.rate, near_share - self.prior.seen, level]
        return [one.astype(np.float32, copy=False) for one in maps], np.concatenate(more, axis=1, dtype=np.float32)


def cut(section: Section, size: int) -> list[Section]:
    """Cut a slide in halves across its longer side until no piece has more than ``size`` spots."""
    if len(section.values) <= size:
        return [section]
    along = section.xy[:, np.ptp(section.xy, axis=0).argmax()]
    order = np.argsort(along, kind="stable")
    pieces = []
    for rows in np.array_split(order, 2):
        kept = np.sort(rows)
        fields = ("values", "visible", "xy", "library", "extra", "unit")
        parts: Any = {name: None if (a := getattr(section, name)) is None else a[kept] for name in fields}
        pieces += cut(replace(section, **parts), size)
    return pieces


def check_known(train: Sequence[Section], genes: Sequence[str]) -> None:
    """Refuse training slides on which no spot is, or a gene is never, measured."""
    if not sum(len(section.values) for section in train):
        raise InputError("no training spot: give at least one training slide with spots")
    known = np.any([section.visible.any(axis=0) for section in train], axis=0)
    if not known.all():
        gene = genes[int(np.flatnonzero(~known)[0])]
        raise InputError(f"gene {gene} is measured in no training spot: leave it out of the panel")
