"""Hist2ST: HisToGene's transformer, then graph layers over the nearest spots, read by an LSTM from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from spared_fm.errors import InputError
from spared_fm.heads.base import check_targets
from spared_fm.heads.models.attention import PlaceTables, Transformer
from spared_fm.heads.models.graph_layers import neighbour_mean
from spared_fm.heads.models.histogene import PlacedHead

if TYPE_CHECKING:
    from torch import Tensor

    from spared_fm.heads.models.pieces import Piece
    from spared_fm.heads.models.slidewise import Batch, Inputs


class Hist2ST(PlacedHead):
    """Hist2ST (Zeng et al. 2022) on cached vectors.

    As HisToGene up to the transformer's output; then graph layers (mean over the four nearest spots, linear, ReLU,
    scaled to length 1), an LSTM over the graph layers' outputs, their mean, LayerNorm and a linear layer to the genes.
    The loss is the mean squared error + ``zinb`` × the negative log-likelihood of raw counts under a zero-inflated
    negative binomial + ``distil`` × self-distillation.

    Needs pixels in the original, and is replaced here: a linear layer of cached vectors stands for the ConvMixer, and
    cached views of the patch for its augmented copies. Training stops by inner slides, where the released code scores
    checkpoints on the test slide. The rest as for `HisToGene`.

    Parameters
    ----------
    views
        The columns of ``X`` are so many views of each patch, one after the other (8 for ``encode --views dihedral``).
        Predictions are those of the first; each view's prediction enters a mean with learned weights that add up to
        1, which the first is drawn to. 1: no distillation.
    prune
        Nearest spots farther away than so many spot distances are no neighbours. None: all four are.
    zinb, distil
        Weights in the loss. The likelihood needs ``counts`` in `fit` and is left out without.
    size
        ``"small"``: 128 wide, 2 transformer and 2 graph layers, 200 steps. ``"published"``: 1,024 wide, 8 transformer
        layers of 16 heads and 4 graph layers, learning rate 1e-5, dropout .2, 10,000 steps (the original: 350 rounds
        over the slides).
    as_published
        A spot is not among its own neighbours, so that a graph layer forgets what it knew of the spot itself, and the
        tables start random (see `HisToGene`). A spot without neighbours gets 0, where the original divides by 0.
    width, depth, steps, lr, dropout, weight_decay, max_spots, standardize, fit_on, seed, device, progress
        As for `SlideHead`.
    """

    name: ClassVar[str] = "hist2st"
    cached: ClassVar[str] = "cached vectors; the original's ConvMixer reads pixels"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "width": 128, "depth": 2, "heads": 4, "hidden": 128, "graph": 2, "steps": 200, "lr": 1e-3, "dropout": 0.2,
        },
        "published": {
            "width": 1024, "depth": 8, "heads": 16, "hidden": 1024, "graph": 4, "steps": 10_000, "lr": 1e-5, "dropout": 0.2,
        },
    }  # fmt: skip

    def __init__(
        self,
        views: int = 1,
        *,
        prune: float | None = 2.0,
        zinb: float = 0.25,
        distil: float = 0.5,
        size: Literal["small", "published"] = "small",
        width: int | None = None,
        depth: int | None = None,
        steps: int | None = None,
        lr: float | None = None,
        dropout: float | None = None,
        weight_decay: float = 1e-4,
        max_spots: int = 4096,
        as_published: bool = False,
        standardize: Literal["slide", "train", "none"] = "slide",
        fit_on: Literal["all", "measured"] = "all",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        super().__init__(
            size=size,
            width=width,
            depth=depth,
            steps=steps,
            lr=lr,
            dropout=dropout,
            weight_decay=weight_decay,
            max_spots=max_spots,
            as_published=as_published,
            standardize=standardize,
            fit_on=fit_on,
            seed=seed,
            device=device,
            progress=progress,
        )
        self.views = views
        self.prune = prune
        self.zinb = zinb
        self.distil = distil

    def fit(self, X: Any, y: Any, mask: Any = None, groups: Any = None, coords: Any = None, counts: Any = None) -> Self:
        """Fit the head.

        Parameters
        ----------
        X, y, mask, groups, coords
            As for `Head.fit`.
        counts
            (n, genes) raw counts of the same genes, for the likelihood; None leaves it out.

        Raises
        ------
        InputError
            As for `Head.fit`, or counts that do not fit the targets or are negative.
        """
        self._counts = None
        if counts is not None:
            found = check_targets(counts, len(X)).astype(np.float32)
            if found.shape != np.shape(y) or not (found >= 0).all():
                raise InputError(
                    f"counts have shape {found.shape} or are negative: give raw counts shaped as the targets"
                )
            found = found.reshape(len(found), -1)
            self._counts = torch.from_numpy(found)
        try:
            return super().fit(X, y, mask, groups, coords)
        finally:
            del self._counts

    def _check_params(self) -> None:
        super()._check_params()
        if self.views < 1 or self.n_features_in_ % self.views:
            raise InputError(
                f"{self.name} views is {self.views} but X has {self.n_features_in_} columns: give the number of cached views"
            )
        if min(self.zinb, self.distil, 1.0 if self.prune is None else self.prune) < 0:
            raise InputError(f"{self.name} zinb, distil and prune must not be negative")

    def _net(self, d: int, genes: int) -> nn.Module:
        size = self.sizes[self.size]
        width, dropout = self._of_size("width"), self._of_size("dropout")
        tables = PlaceTables(int(self.places_), width, random=self.as_published)
        spots = Transformer(self._of_size("depth"), width, size["heads"], size["hidden"], dropout)
        return Hist2STNet(d // self.views, genes, tables, spots, width, size["graph"])

    def _inputs(self, Z: Tensor, piece: Piece) -> Inputs:
        reach = np.inf if self.prune is None else self.prune
        near = piece.nearest(4, reach, itself=not self.as_published)
        return super()._inputs(Z, piece) | {"near": torch.from_numpy(near)}

    def _loss(self, net: Any, batch: Batch) -> Tensor:
        views = self.views if self.distil else 1
        hidden = net.hidden(**batch.inputs, views=views)[:, batch.inside]
        every = net.last(hidden)
        loss = mean_over(functional.mse_loss(every[0], batch.wanted, reduction="none"), batch.weight)
        if views > 1:
            share = net.share(hidden).softmax(dim=0)
            loss = loss + self.distil * functional.mse_loss(every[0], (share * every).sum(dim=0))
        if self._counts is not None and self.zinb:
            counts = self._counts[batch.rows.cpu()].to(hidden.device)
            total = counts.sum(dim=1, keepdim=True).clamp(min=1.0)
            size = total / max(float(self._counts.sum(dim=1).median()), 1.0)
            loss = loss + self.zinb * mean_over(net.unlikely(hidden[0], counts, size), batch.weight)
        return loss


class Hist2STNet(nn.Module):
    """Features and places of a slide's spots to genes."""

    def __init__(self, d: int, genes: int, tables: PlaceTables, spots: Transformer, width: int, graph: int) -> None:
        super().__init__()
        self.d = d
        self.first, self.tables, self.spots = nn.Linear(d, width), tables, spots
        self.graph = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(graph))
        self.layers = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, genes))
        self.share = nn.Linear(width, 1)
        self.counts = nn.Linear(width, 3 * genes)

    def hidden(self, x: Tensor, place: Tensor, near: Tensor, views: int) -> Tensor:
        """Return (views, m, width) of the first ``views`` views."""
        seen = x[:, : views * self.d].unflatten(1, (views, self.d)).transpose(0, 1)
        h = self.spots(self.first(seen) + self.tables(place))
        found = []
        for layer in self.graph:
            h = functional.normalize(torch.relu(layer(neighbour_mean(h, near))), dim=-1)
            found.append(h)
        read, _ = self.layers(torch.stack(found, dim=2).flatten(0, 1))
        out: Tensor = read.mean(dim=1).unflatten(0, h.shape[:2])
        return out

    def forward(self, x: Tensor, place: Tensor, near: Tensor) -> Tensor:
        """(m, views · d), (m, 2) and (m, k) → (m, genes)."""
        out: Tensor = self.last(self.hidden(x, place, near, 1)[0])
        return out

    def unlikely(self, hidden: Tensor, counts: Tensor, size: Tensor) -> Tensor:
        """Return minus the log-likelihood (m, genes) of counts; ``size`` (m, 1) is a spot's total ÷ the median."""
        log_mean, r, zero = self.counts(hidden).chunk(3, dim=-1)
        log_mean = log_mean.clamp(-12.0, 14.0) + size.log()
        log_r = functional.softplus(r).clamp(1e-4, 1e4).log()
        both = torch.logaddexp(log_r, log_mean)
        none = log_r.exp() * (log_r - both)  # log-probability of 0 counts before inflation
        some = torch.lgamma(counts + log_r.exp()) - torch.lgamma(log_r.exp()) - torch.lgamma(counts + 1.0)
        log_kept, log_zero = functional.logsigmoid(-zero), functional.logsigmoid(zero)
        seen = log_kept + some + none + counts * (log_mean - both)
        return -torch.where(counts > 0, seen, torch.logaddexp(log_zero, log_kept + none))


def mean_over(loss: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of a loss per entry over the entries with weight."""
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp(min=1.0)
