"""Entries of a slide as rate attention's nets predict them: of hidden ones the error, of a whole slide the values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spared_fm.targets.completion.rate_inputs import View, hidden_from
from spared_fm.targets.completion.rate_nets import Slide, blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.targets.completion.rate_inputs import Around, Counted, Prior, Unit
    from spared_fm.targets.completion.rate_nets import RateNet

_LOG_LIMIT = 12.0  # natural logarithm of a variance stays within ±


@dataclass(frozen=True)
class Case:
    """A slide of which entries are hidden.

    Attributes
    ----------
    view, slide
        What is seen of it, and what its spots attend to.
    spot, gene
        ``(entries,)`` int64, the hidden entries.
    amount, truth
        ``(entries,)`` float32, amount of one count there, and the value.
    """

    view: View
    slide: Slide
    spot: np.ndarray
    gene: np.ndarray
    amount: np.ndarray
    truth: np.ndarray


def hide_in(one: Counted, place: Around, hidden: np.ndarray, unit: Unit, prior: Prior, device: torch.device) -> Case:
    """Hide those of the chosen entries that are visible, normalise anew, and keep what they had."""
    hidden = hidden & (one.counts > 0)
    seen = hidden_from(one, hidden, unit)
    spot, gene = np.nonzero(hidden)
    amount = seen.amount[spot, gene]
    view = View(seen, place, prior)
    return Case(view, attended(view, device), spot, gene, amount, unit.log(amount * one.counts[spot, gene]))


def attended(view: View, device: torch.device) -> Slide:
    """Put what the spots of a slide attend to on a device."""
    place = view.place
    arrays = (view.pooled, view.total, view.rate, view.share, place.index, place.distance)
    return Slide(*(torch.from_numpy(array).to(device) for array in arrays))


def chosen_inputs(maps: list[np.ndarray], spot: np.ndarray, gene: np.ndarray) -> Tensor:
    """Take the inputs of chosen entries, ``(entries, MAPS)``, from the maps of all."""
    return torch.from_numpy(np.stack([one[spot, gene] for one in maps], axis=1))


def errors(net: RateNet, case: Case, base: float) -> tuple[Tensor, Tensor]:
    """Error and learnt variance of the hidden entries, ``(entries,)``, in the unit of values; both with gradients."""
    everything = slice(0, len(case.view.depth))
    device = case.slide.total.device
    maps, spot = case.view.maps(everything)
    tokens = net.tokens(torch.from_numpy(spot).to(device))
    pooled = net.pooling(tokens, net.pooling.keys(tokens, case.slide), everything, case.slide)
    log_count, log_variance = net.entries(
        tokens,
        chosen_inputs(maps, case.spot, case.gene).to(device),
        pooled,
        torch.from_numpy(case.view.depth[:, 0]).to(device),
        *(torch.from_numpy(which).to(device) for which in (case.spot, case.gene)),
    )
    amount, truth = (torch.from_numpy(array).to(device) for array in (case.amount, case.truth))
    mean, slope = to_values(log_count, amount, base)
    return mean - truth, _variance(log_variance) * slope.detach().square()


@torch.no_grad()
def predict(nets: Sequence[RateNet], view: View, slide: Slide) -> tuple[Tensor, Tensor]:
    """Predict all entries of a slide by the mean of the nets.

    Returns
    -------
    log_count, variance
        ``(n, g)``: log₂ of the count, and its variance, in which the nets' disagreement counts.
    """
    n, g = len(view.depth), len(view.rate)
    device = slide.total.device
    mean, square = torch.zeros(n, g, device=device), torch.zeros(n, g, device=device)
    for net in nets:
        tokens = torch.cat([net.tokens(torch.from_numpy(view.maps(rows)[1]).to(device)) for rows in blocks(n)])
        keys = net.pooling.keys(tokens, slide)
        for rows in blocks(n):
            spot, gene = (torch.from_numpy(a.ravel()).to(device) for a in np.indices((rows.stop - rows.start, g)))
            maps = torch.from_numpy(np.stack([one.ravel() for one in view.maps(rows)[0]], axis=1)).to(device)
            depth = torch.from_numpy(view.depth[rows, 0]).to(device)
            pooled = net.pooling(tokens[rows], keys, rows, slide)
            log_count, log_variance = net.entries(tokens[rows], maps, pooled, depth, spot, gene)
            mean[rows] += log_count.view(-1, g)
            square[rows] += (_variance(log_variance) + log_count.square()).view(-1, g)
    mean /= len(nets)
    square /= len(nets)
    return mean, square.addcmul_(mean, mean, value=-1).clamp_(min=math.exp(-_LOG_LIMIT))


def to_values(log_count: Tensor, amount: Tensor, base: float) -> tuple[Tensor, Tensor]:
    """Values of log₂ counts, log_base(1 + amount × count), and their slope by the log₂ count."""
    linear = amount * torch.exp2(log_count)
    return torch.log1p(linear) / math.log(base), linear / (1 + linear) * (math.log(2) / math.log(base))


def ratios(nets: Sequence[RateNet], case: Case, base: float) -> np.ndarray:
    """Absolute errors of the hidden entries in units of their spread, ``(entries,)``."""
    log_count, variance = predict(nets, case.view, case.slide)
    spot, gene, amount = (torch.from_numpy(a).to(log_count.device) for a in (case.spot, case.gene, case.amount))
    mean, slope = to_values(log_count[spot, gene], amount, base)
    spread = variance[spot, gene].sqrt() * slope
    return np.abs(mean.cpu().numpy() - case.truth) / spread.cpu().numpy()


def _variance(log_variance: Tensor) -> Tensor:
    return log_variance.clamp(-_LOG_LIMIT, _LOG_LIMIT).exp()
