"""Modules of rate attention: spots attend to similar spots of their slide and pool the counts of each gene there."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, softplus

from spared_fm.targets.completion.rate_inputs import MAPS, RATES

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 1024
"""Spots taken at once; what is predicted does not depend on it beyond rounding."""

REFERENCES = 1024
"""Spots of a slide that its spots attend to beyond their neighbours; a larger slide is thinned evenly to about as many."""

_MIX = (0.5, 0.2, 0.0, 0.2, 0.1, 0.0)  # how the fixed rates are mixed before anything is learnt
_GLOBAL_WEIGHT = 8.0  # with how many spots' weight a whole slide enters a pooled rate, before anything is learnt


@dataclass(frozen=True)
class Sizes:
    """Sizes of a :class:`RateNet`: token width, feed-forward blocks, heads near and over the slide, and so on."""

    width: int = 96
    blocks: int = 1
    near_heads: int = 4
    slide_heads: int = 4
    key: int = 16
    per_gene: int = 2
    gene: int = 8
    entry: int = 32
    dropout: float = 0.1
    input_dropout: float = 0.1


@dataclass(frozen=True)
class Slide:
    """Values that spots of one slide attend to, and who is near whom.

    Attributes
    ----------
    pooled
        ``(n + 1, 3 g)`` float32: counts, log₂ share where visible, visible; the last row is 0.
    total
        ``(n + 1,)`` float32 total counts, 0 in the last row.
    rate, share
        ``(g,)`` float32, the slide's rate of each gene and mean log₂ of its share.
    index, distance
        ``(n, m)``, of :class:`~spared_fm.targets.completion.rate_inputs.Around`.
    """

    pooled: Tensor
    total: Tensor
    rate: Tensor
    share: Tensor
    index: Tensor
    distance: Tensor

    def references(self) -> Tensor:
        """Rows that every spot of the slide may attend to."""
        n = len(self.index)
        return torch.arange(0, n, max(1, math.ceil(n / REFERENCES)), device=self.index.device)


def blocks(n: int) -> Iterator[slice]:
    """Cut ``n`` spots into slices of :data:`BLOCK`."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(n, start + BLOCK))


class FeedForward(nn.Module):
    """Pre-norm feed-forward block with a skip."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(n, width)`` to tokens."""
        return x + self.dropout(self.down(gelu(self.up(self.norm(x)), approximate="tanh")))


class Pooling(nn.Module):
    """Attention heads whose values are the visible entries of other spots: two rates per head and gene.

    A near head weighs the neighbours by key · query and distance; a slide head weighs the reference spots of the whole slide
    by the distance of key and query. Never the spot itself, and no head knows more of another spot than what is visible.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.near_heads, self.key = sizes.near_heads, sizes.key
        self.heads = sizes.near_heads + sizes.slide_heads
        self.norm = nn.LayerNorm(sizes.width)
        self.query_key = nn.Linear(sizes.width, 2 * self.heads * sizes.key)
        nn.init.normal_(self.query_key.weight, std=0.05)
        self.place = nn.Parameter(torch.zeros(4, sizes.near_heads))
        self.weight = nn.Parameter(torch.zeros(sizes.slide_heads))
        self.prior = nn.Parameter(torch.zeros(self.heads))

    def keys(self, tokens: Tensor, slide: Slide) -> tuple[Tensor, Tensor]:
        """Keys of all spots for near heads (``(n + 1, heads, key)``, last 0) and of reference spots for slide heads."""
        near = self._project(tokens, 1, slice(0, self.near_heads))
        whole = self._project(tokens[slide.references()], 1, slice(self.near_heads, self.heads))
        return torch.cat([near, torch.zeros_like(near[:1])]), whole

    def forward(self, tokens: Tensor, keys: tuple[Tensor, Tensor], rows: slice, slide: Slide) -> Tensor:
        """Log₂ rates of a block of spots by each head, ``(rows, g, 2 heads)``: of counts, and mean log₂ share.

        ``tokens`` are those of the block, ``keys`` of :meth:`keys`.
        """
        query = self._project(tokens, 0, slice(0, self.heads))
        near, near_total = self._near(query[:, : self.near_heads], keys[0], rows, slide)
        whole, whole_total = self._whole(query[:, self.near_heads :], keys[1], rows, slide)
        counts, share, seen = torch.cat([near, whole], dim=1).chunk(3, dim=2)
        total = torch.cat([near_total, whole_total], dim=1)[..., None]
        prior = self.prior.exp()[:, None]
        depth = prior * slide.total[:-1].mean()
        rate = torch.log2((counts + slide.rate * depth) / (total + depth))
        mean = (share + slide.share * prior) / (seen + prior)
        return torch.cat([rate, mean], dim=1).transpose(1, 2)

    def _project(self, tokens: Tensor, which: int, heads: slice) -> Tensor:
        """Project to queries (0) or keys (1) of some heads."""
        shape = (2, self.heads, self.key)
        weight = self.query_key.weight.view(*shape, -1)[which, heads].flatten(0, 1)
        bias = self.query_key.bias.view(shape)[which, heads].flatten()
        return linear(self.norm(tokens), weight, bias).view(len(tokens), -1, self.key)

    def _near(self, query: Tensor, key: Tensor, rows: slice, slide: Slide) -> tuple[Tensor, Tensor]:
        index, distance = slide.index[rows], slide.distance[rows]
        place = torch.stack([distance, distance.square() / 4, torch.exp(-distance), torch.ones_like(distance)], dim=-1)
        score = torch.einsum("nhe,nkhe->nkh", query, key[index]) / math.sqrt(self.key) + place @ self.place
        weight = score.clamp(-8, 8).exp()  # the row where there is no neighbour pools nothing
        return (
            torch.einsum("nkh,nkg->nhg", weight, slide.pooled[index]),
            torch.einsum("nkh,nk->nh", weight, slide.total[index]),
        )

    def _whole(self, query: Tensor, key: Tensor, rows: slice, slide: Slide) -> tuple[Tensor, Tensor]:
        others = slide.references()
        score = torch.einsum("nhe,khe->nhk", query, key) / math.sqrt(self.key)
        score = score - key.square().sum(dim=-1).T / (2 * math.sqrt(self.key))
        own = (others == torch.arange(rows.start, rows.stop, device=others.device)[:, None])[:, None]
        weight = score.masked_fill(own, -1e4).softmax(dim=-1).masked_fill(own, 0.0)  # a lone spot pools nothing
        weight = weight * (_GLOBAL_WEIGHT * self.weight.exp())[:, None]
        flat = weight.reshape(-1, len(others))
        shape = weight.shape[:2]
        return (flat @ slide.pooled[others]).view(*shape, -1), (flat @ slide.total[others]).view(shape)


class RateNet(nn.Module):
    """Log₂ of the count of an entry, given that it is measured, and the variance of that.

    A gene's mix of the fixed rates around a spot and of the pooled ones, plus a residual from the spot's token and from a
    small head that all entries share. The count is 1 + 2 to the power of that sum: a measured entry has one at least.

    Parameters
    ----------
    n_genes
        Panel.
    sizes
        Widths.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_genes: int, sizes: Sizes) -> None:
        super().__init__()
        self.n_genes, self.per_gene = n_genes, sizes.per_gene
        self.drop = nn.Dropout(sizes.input_dropout)
        self.enter = nn.Linear(4 * n_genes + 1, sizes.width)
        self.inner = nn.Sequential(*(FeedForward(sizes.width, sizes.dropout) for _ in range(sizes.blocks)))
        self.pooling = Pooling(sizes)
        self.norm = nn.LayerNorm(sizes.width)
        self.leave = nn.Linear(sizes.width, n_genes * (1 + sizes.per_gene))
        self.gene = nn.Parameter(torch.randn(n_genes, sizes.gene) * 0.1)
        pooled = 2 * self.pooling.heads
        self.first = nn.Linear(MAPS + pooled + sizes.gene + sizes.per_gene, sizes.entry)
        self.second = nn.Linear(sizes.entry, sizes.entry)
        self.last = nn.Linear(sizes.entry, 2)
        self.rates = nn.Parameter(torch.tensor(_MIX).repeat(n_genes, 1))
        self.pooled_rates = nn.Parameter(torch.zeros(n_genes, pooled))
        self.offset = nn.Parameter(torch.zeros(n_genes))
        for last in (self.leave, self.last):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)
        self.register_buffer("mean", torch.zeros(MAPS))
        self.register_buffer("scale", torch.ones(MAPS))

    def standardise(self, maps: Tensor) -> None:
        """Set mean and scale of the entry inputs from samples ``(entries, MAPS)``."""
        self.mean.copy_(maps.mean(dim=0))
        self.scale.copy_(maps.std(dim=0).clamp(min=1e-3))

    def tokens(self, spot: Tensor) -> Tensor:
        """Tokens of spots from their inputs ``(n, 4 g + 1)``."""
        return self.inner(self.enter(self.drop(spot)))

    def entries(
        self, tokens: Tensor, maps: Tensor, pooled: Tensor, depth: Tensor, spot: Tensor, gene: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict chosen entries.

        Parameters
        ----------
        tokens
            ``(rows, width)``.
        maps
            ``(entries, MAPS)``.
        pooled
            ``(rows, g, 2 heads)``, of :class:`Pooling`.
        depth
            ``(rows,)`` log₂ of the total counts of the spots.
        spot, gene
            ``(entries,)`` int64: row, and gene.

        Returns
        -------
        log_count, log_variance
            ``(entries,)``: log₂ of the count, at least 0; natural logarithm of the variance of that.
        """
        of_spot = self.leave(self.norm(tokens)).view(-1, self.n_genes, 1 + self.per_gene)[spot, gene]
        found = pooled[spot, gene] + depth[spot, None]
        inputs = [(found - 1) / 2, (maps - self.mean) / self.scale, self.gene[gene], of_spot[:, 1:]]
        inner = relu(self.first(torch.cat(inputs, dim=1)))
        out = self.last(inner + relu(self.second(inner)))
        mixed = (maps[:, :RATES] * self.rates[gene]).sum(dim=1) + self.offset[gene]
        mixed = mixed + ((found - maps[:, :1]) * self.pooled_rates[gene]).sum(dim=1)
        more = mixed + of_spot[:, 0] + out[:, 0]
        return softplus(more * math.log(2)) / math.log(2), out[:, 1]


class Averaged(nn.Module):
    """A net and the running mean of its weights, which is what predicts; both are in the state of a checkpoint."""

    taken: Tensor

    def __init__(self, net: RateNet, decay: float) -> None:
        super().__init__()
        self.net, self.decay = net, decay
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def update(self) -> None:
        """Take the weights of now into the mean, which looks back no further than a tenth of the steps so far."""
        taken = int(self.taken)
        decay = min(self.decay, (taken + 1) / (taken + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        self.taken += 1
