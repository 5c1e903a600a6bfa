"""TRIPLEX: the spot, its surroundings and the whole slide, read by three branches that are fused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spared_fm.errors import InputError
from spared_fm.heads.losses import squared
from spared_fm.heads.models.attention import Attention, Transformer
from spared_fm.heads.models.graph_layers import gathered, offset_cells
from spared_fm.heads.models.slidewise import SlideHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from spared_fm.heads.models.pieces import Piece
    from spared_fm.heads.models.slidewise import Batch, Inputs

#: Spots of the slide that the two local branches and the loss see in a step.
STEP_SPOTS = 128


class Triplex(SlideHead):
    """TRIPLEX (Chung et al. 2024) on cached vectors or tokens.

    Three branches: a transformer over the tokens of the spot's patch; one over the spot and its nearest spots, whose
    attention has a learned bias for where each lies; one over all spots of the slide, in which each spot's vector has a
    3 × 3 convolution over the slide added after the first layer. The slide's token of the spot attends to the tokens of
    the other two branches, with the same weights for both; the sum, LayerNorm and a linear layer give the prediction.
    The loss is the mean squared error + for each branch .7 × its own error + .3 × its squared distance to the
    prediction.

    Needs pixels in the original, and is replaced here: the first branch reads cached tokens (``grid``), or one cached
    vector, where the original trains a ResNet-18. The surroundings are the nearest spots, where the original reads 5 ×
    5 patches around the spot, also off the spots. The bias depends on the attended spot's place alone. The convolution
    shares each neighbour between the cells next to it, so that hexagonal slides need no square grid. No clamp at 0.
    Each step draws 128 spots of one slide.

    BG-TRIPLEX's streams (Qu et al. 2024; edges, nuclei) are further cached encoders in ``blocks``: the first two
    branches' tokens attend to the streams' vectors of the same spots.

    Parameters
    ----------
    blocks
        Widths of the encoders whose columns stand side by side in ``X``, the image first, then the streams. None: one.
    grid
        The first block holds ``grid`` × ``grid`` tokens; the other two branches use their mean. 1: a vector.
    size
        ``"small"``: 64 wide, 9 spots around, layers 1, 1 and 2 with 4 heads, 200 steps. ``"published"``: 512 wide, 25
        spots around, layers 1, 3 and 3 with 4, 16 and 16 heads, learning rate 1e-4, dropout .2, 5,000 steps.
    depth
        Layers of the slide's branch.
    as_published
        Places in the convolution are cut off at the width and height of the first training slide.
    width, steps, lr, dropout, weight_decay, max_spots, standardize, fit_on, seed, device, progress
        As for `SlideHead`.

    Attributes
    ----------
    extent_
        (2,) width and height of the first training slide, in spot distances.
    """

    name: ClassVar[str] = "triplex"
    cached: ClassVar[str] = "cached vectors or tokens; the original trains a ResNet-18 on pixels"
    arrays: ClassVar[tuple[str, ...]] = (*SlideHead.arrays, "extent")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "width": 64, "depth": 2, "near_depth": 1, "target_heads": 4, "heads": 4, "near": 9,
            "steps": 200, "lr": 1e-3, "dropout": 0.1,
        },
        "published": {
            "width": 512, "depth": 3, "near_depth": 3, "target_heads": 4, "heads": 16, "near": 25,
            "steps": 5000, "lr": 1e-4, "dropout": 0.2,
        },
    }  # fmt: skip

    extent_: NDArray[np.float64]

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        *,
        grid: int = 1,
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
        self.blocks = blocks
        self.grid = grid

    def _check_params(self) -> None:
        super()._check_params()
        d = self.n_features_in_
        blocks = [d] if self.blocks is None else list(self.blocks)
        if sum(blocks) != d or min(blocks, default=0) < 1:
            raise InputError(
                f"{self.name} blocks are {blocks} but X has {d} columns: give the encoders' widths in order"
            )
        if self.grid < 1 or blocks[0] % self.grid**2:
            raise InputError(
                f"{self.name} grid is {self.grid} but the first encoder has {blocks[0]} columns: give the side of its token grid"
            )

    def _learn(self, pieces: list[Piece]) -> None:
        self.extent_ = pieces[0].xy.max(axis=0)

    def _net(self, d: int, genes: int) -> nn.Module:
        blocks = [d] if self.blocks is None else [int(block) for block in self.blocks]
        layers = self.sizes[self.size] | {key: self._of_size(key) for key in ("width", "depth", "dropout")}
        return TriplexNet(blocks, self.grid, genes, layers)

    def _inputs(self, Z: Tensor, piece: Piece) -> Inputs:
        near = piece.nearest(self.sizes[self.size]["near"] - 1)
        half = 1 if near.shape[1] <= 9 else 2
        placed = np.minimum(piece.xy, self.extent_) if self.as_published else piece.xy
        around = near[:, :9]
        return {
            "x": Z,
            "near": torch.from_numpy(near),
            "cells": offset_cells(piece.xy, near, half).to(Z.dtype),
            "around": torch.from_numpy(around),
            "kernel": offset_cells(placed, around, 1).to(Z.dtype),
        }

    def _loss(self, net: Any, batch: Batch) -> Tensor:
        some = torch.arange(len(batch.inside), device=batch.inside.device)
        if net.training:
            some = torch.randperm(len(some))[:STEP_SPOTS].to(batch.inside.device)
        wanted, weight = batch.wanted[some], None if batch.weight is None else batch.weight[some]
        fused, *branches = net.predictions(**batch.inputs, inside=batch.inside[some])
        loss = squared(fused, wanted, weight)
        if net.training:
            for own in branches:
                loss = loss + 0.7 * squared(own, wanted, weight) + 0.3 * squared(fused, own, weight)
        return loss


class TriplexNet(nn.Module):
    """Columns of all encoders of a slide's spots to genes."""

    def __init__(self, blocks: list[int], grid: int, genes: int, size: dict[str, Any]) -> None:
        super().__init__()
        width, heads, dropout = size["width"], size["heads"], size["dropout"]
        self.blocks, self.grid = blocks, grid
        w = blocks[0] // grid**2
        self.first = nn.ModuleList(nn.Linear(w, width) for _ in range(3))
        self.cell = nn.Parameter(torch.zeros(grid**2, width))
        self.streams = nn.ModuleList(nn.Linear(block, width) for block in blocks[1:])
        self.guides = nn.ModuleList(Attention(width, heads, dropout) for _ in range(2 if blocks[1:] else 0))
        self.target = Transformer(1, width, size["target_heads"], 2 * width, dropout)
        self.nearby = Transformer(size["near_depth"], width, heads, 2 * width, dropout)
        self.bias = nn.Parameter(torch.zeros(9 if size["near"] <= 9 else 25, heads))
        self.slide = Transformer(size["depth"], width, heads, 2 * width, dropout)
        self.kernel = nn.Parameter(torch.zeros(9, width))
        self.fuse = Attention(width, heads, dropout)
        self.last = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, genes)) for _ in range(4))

    def forward(self, x: Tensor, near: Tensor, cells: Tensor, around: Tensor, kernel: Tensor) -> Tensor:
        """Features (m, d), and tables and cells of the spots around → (m, genes)."""
        return self.predictions(x, near, cells, around, kernel, torch.arange(len(x), device=x.device))[0]

    def predictions(
        self, x: Tensor, near: Tensor, cells: Tensor, around: Tensor, kernel: Tensor, inside: Tensor
    ) -> list[Tensor]:
        """Return what the fusion and the three branches predict for the spots ``inside``, (len(inside), genes) each."""
        image, *others = x.split(self.blocks, dim=1)
        tokens = image.unflatten(1, (self.grid**2, -1))
        pooled, near = tokens.mean(dim=1), near[inside]
        target = self.first[0](tokens[inside]) + self.cell
        nearby = gathered(self.first[1](pooled), near)
        away = torch.zeros_like(near, dtype=x.dtype).masked_fill(near < 0, -torch.inf)[:, None, None, :]
        place = (cells[inside] @ self.bias).transpose(1, 2)[:, :, None, :]
        if others:
            streams = torch.stack([first(part) for first, part in zip(self.streams, others, strict=True)], dim=1)
            target = target + self.guides[0](target, streams[inside])
            known = gathered(streams.flatten(1), near).unflatten(2, streams.shape[1:]).flatten(1, 2)
            nearby = nearby + self.guides[1](nearby, known, away.repeat_interleave(len(others), dim=3))
        target, nearby = self.target(target), self.nearby(nearby, place + away)

        slide = self.slide.layers[0](self.first[2](pooled)[None])[0]
        slide = slide + ((kernel @ self.kernel) * gathered(slide, around)).sum(dim=1)
        for layer in self.slide.layers[1:]:
            slide = layer(slide[None])[0]
        query = slide[inside][:, None]
        fused = self.fuse(query, target) + self.fuse(query, nearby, away)
        seen = (near >= 0).unsqueeze(2)
        near_mean = (nearby * seen).sum(dim=1) / seen.sum(dim=1)
        found = (fused[:, 0], target.mean(dim=1), near_mean, query[:, 0])
        return [last(vector) for last, vector in zip(self.last, found, strict=True)]
