"""HisToGene: a transformer over all spots of a slide, with learned vectors for its columns and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from spared_fm.heads.models.attention import PlaceTables, Transformer
from spared_fm.heads.models.slidewise import SlideHead

if TYPE_CHECKING:
    from torch import Tensor

    from spared_fm.heads.models.pieces import Piece
    from spared_fm.heads.models.slidewise import Inputs

#: Columns and rows in the released model's tables.
PLACES = 64


class PlacedHead(SlideHead):
    """A slide-wise head that knows the column and the row of each spot.

    Attributes
    ----------
    places_
        Columns and rows in the tables: 64, or as many as the training slides have.
    """

    arrays: ClassVar[tuple[str, ...]] = (*SlideHead.arrays, "places")

    places_: int

    def _learn(self, pieces: list[Piece]) -> None:
        self.places_ = max(PLACES, 1 + max(int(places(piece).max()) for piece in pieces))

    def _inputs(self, Z: Tensor, piece: Piece) -> Inputs:
        return {"x": Z, "place": places(piece)}


class HisToGene(PlacedHead):
    """HisToGene (Pang, Su & Li 2021) on cached vectors.

    A linear layer to ``width``, plus a learned vector for the spot's column and one for its row, a transformer over all
    spots of the slide, LayerNorm and a linear layer to the genes; mean squared error, one slide per step.

    Needs pixels in the original, and is replaced here: the tokens are cached vectors, where the original projects 112 ×
    112 raw pixels of each patch. Columns and rows are the position ÷ the distance between spots, rounded, where the
    original has array indices. Targets have mean 0 and variance 1 per gene, where the original fits them as they are.

    Parameters
    ----------
    size
        ``"small"``: 128 wide, 2 layers of 4 heads, 200 steps. ``"published"``: 1,024 wide, 8 layers of 16 heads, 2,000
        steps (as SpaRED trains it; the original has 4 layers), learning rate 1e-4, dropout .1.
    as_published
        The tables of columns and rows start random, so that places no training slide has add noise to a new slide.
        Otherwise they start from zero and such places add nothing.
    width, depth, steps, lr, dropout, weight_decay, max_spots, standardize, fit_on, seed, device, progress
        As for `SlideHead`.

    Attributes
    ----------
    places_
        See `PlacedHead`.
    """

    name: ClassVar[str] = "histogene"
    cached: ClassVar[str] = "cached vectors; the original projects raw pixels"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 128, "depth": 2, "heads": 4, "hidden": 256, "steps": 200, "lr": 1e-3, "dropout": 0.1},
        "published": {
            "width": 1024,
            "depth": 8,
            "heads": 16,
            "hidden": 2048,
            "steps": 2000,
            "lr": 1e-4,
            "dropout": 0.1,
        },
    }

    def _net(self, d: int, genes: int) -> nn.Module:
        size = self.sizes[self.size]
        width, dropout = self._of_size("width"), self._of_size("dropout")
        spots = Transformer(self._of_size("depth"), width, size["heads"], size["hidden"], dropout)
        return HisToGeneNet(d, genes, PlaceTables(int(self.places_), width, random=self.as_published), spots, width)


class HisToGeneNet(nn.Module):
    """Features and places of a slide's spots to genes."""

    def __init__(self, d: int, genes: int, tables: PlaceTables, spots: Transformer, width: int) -> None:
        super().__init__()
        self.first, self.tables, self.spots = nn.Linear(d, width), tables, spots
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, genes))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """(m, d) and (m, 2) → (m, genes)."""
        tokens = self.first(x) + self.tables(place)
        out: Tensor = self.last(self.spots(tokens[None])[0])
        return out


def places(piece: Piece) -> Tensor:
    """Return column and row numbers (m, 2) of the spots."""
    return torch.from_numpy(np.rint(piece.xy).astype(np.int64))
