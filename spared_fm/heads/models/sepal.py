"""SEPAL: a local prediction, corrected by a graph network over the spots around (Mejia et al. 2023)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn

from spared_fm.heads.base import slide_rows
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.losses import squared
from spared_fm.heads.models.graphs import nearest_table, relatives
from spared_fm.heads.models.pieces import pitch
from spared_fm.heads.neighbours import check_coords, hop_table
from spared_fm.heads.nested import pack, unpack
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import fit_net, inner_split
from spared_fm.heads.ridge import Ridge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from spared_fm.heads.models.graphs import Table

#: Neighbours of a hexagonal and of a square grid.
HEXAGONAL, SQUARE = 6, 8
#: Most parts that the training spots are cut into for predictions of the first stage on spots it hasn't seen.
FOLDS = 5
#: Spots that are predicted at a time.
PREDICTED_ROWS = 512


def position_code(offsets: torch.Tensor, width: int) -> torch.Tensor:
    """Return sines and cosines (…, width) of offsets (…, 2), half of them for each axis (Wang & Liu 2021)."""
    power = torch.arange(width // 4, dtype=offsets.dtype, device=offsets.device) / (width // 4)
    angle = offsets[..., None] / 10_000**power
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class Net(nn.Module):
    """The graphs around some spots to a correction of their genes."""

    def __init__(self, inputs: int, genes: int, size: dict[str, Any], *, as_published: bool) -> None:
        super().__init__()
        widths = (size["enter"], *size["graph"])
        self.code = size["code"]
        self.enter, self.place = nn.Linear(inputs, widths[0]), nn.Linear(self.code, widths[0], bias=False)
        self.graph = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.score = nn.Linear(widths[-1], 1)
        last = nn.Linear(size["out"], genes)
        nn.init.zeros_(last.weight)  # start from the first stage
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.Linear(widths[-1], size["out"]), nn.ELU(), last)
        if as_published:
            self.out.append(nn.ELU())

    def forward(
        self, x: torch.Tensor, nodes: torch.Tensor, offsets: torch.Tensor, ties: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        """Return (b, genes).

        Parameters
        ----------
        x
            (m, d) features.
        nodes
            (b, 1 + k) rows of ``x``: a spot and its neighbours.
        offsets
            (b, 1 + k, 2) where they lie from the spot, in distances between spots.
        ties, there
            (b, 1 + k, 1 + k) which are tied, and (b, 1 + k) which exist.
        """
        h = nn.functional.elu(self.enter(x)[nodes] + self.place(position_code(offsets, self.code)))
        # graph convolution (Kipf & Welling 2017): ties with oneself added, normalised by the degrees on both sides
        near = ties.to(h.dtype) + torch.diag_embed(there.to(h.dtype))
        degree = near.sum(dim=2).clamp_min(1.0).rsqrt()
        near = degree[:, :, None] * near * degree[:, None]
        for layer in self.graph:
            h = nn.functional.elu(near @ layer(h))
        h = h * torch.tanh(near @ self.score(h))  # self-attention pooling that keeps every node; 0 where there is none
        out: torch.Tensor = self.out(h.sum(dim=1) / there.sum(dim=1, keepdim=True))
        return out


class SEPAL(NeuralHead):
    """Spatial gene expression prediction from local graphs (Mejia et al., ICCV workshops 2023).

    A first stage predicts each spot from its own features; a graph network over the spot and the spots next to it, with
    their relative positions, predicts what is left, and both are added. **The first stage of the original is a tuned
    ViT-B/16 that predicts expression minus the gene mean; here it is `Ridge` on cached vectors. The second runs on
    cached vectors in the original too.**

    Parameters
    ----------
    as_published
        Three defects of the released code: the last layer has an activation, so that no correction is below -1 standard
        deviation; spots at the border of the tissue get their 6 (or 8) nearest spots for neighbours, not the adjacent
        ones; the second stage is trained on what the first leaves of its own training spots, which is less than it
        leaves of new ones. False: no activation, adjacent spots, and first predictions from fits without the spot's
        patient (or slide, or block).
    size
        ``"small"``: 128 and 64 wide, 300 steps. ``"published"``: 512, 256 and 128 wide, 20,000 steps at 1e-5.
    steps, lr, batch
        Override the size (Adam).
    standardize
        As for `Ridge`, in both stages.
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Attributes
    ----------
    first_
        The fitted first stage.

    Notes
    -----
    One ring of neighbours, as the paper's network reads (SpaRED's script builds three); graph convolutions also for
    square grids; the last layer starts at zero, so that training starts from the first stage.
    """

    name: ClassVar[str] = "sepal"
    cached: ClassVar[str] = "the first stage is ridge on cached vectors; the original tunes a ViT-B/16 on pixels"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"enter": 128, "graph": (128, 64), "out": 128, "code": 64, "steps": 300, "lr": 1e-3, "every": 20},
        "published": {
            "enter": 512,
            "graph": (256, 128),
            "out": 256,
            "code": 768,
            "steps": 20_000,
            "lr": 1e-5,
            "every": 200,
        },
    }

    standardize: Literal["slide", "train", "none"]
    first_: Ridge

    def __init__(
        self,
        *,
        as_published: bool = False,
        size: Literal["small", "published"] = "small",
        steps: int | None = None,
        lr: float | None = None,
        batch: int = 256,
        standardize: Literal["slide", "train", "none"] = "slide",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.as_published = as_published
        self.size = size
        self.steps = steps
        self.lr = lr
        self.batch = batch
        self.standardize = standardize
        self.seed = seed
        self.device = device
        self.progress = progress

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted as plain arrays; the first stage's are called ``first.<name>``."""
        return super().state() | pack("first", self.first_)

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        head = super().from_state(params, state)
        first = unpack("first", Ridge.name, {"standardize": head.standardize}, state)
        assert isinstance(first, Ridge)
        head.first_ = first
        return head

    def _net(self, d: int, genes: int) -> nn.Module:
        return Net(d, genes, self.sizes[self.size], as_published=self.as_published)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._choice("size", SIZES)
        n = len(X)
        xy = check_coords(coords, n, self.name)
        Z = self._scaled_fit(X, groups)
        self._targets_fit(y)
        self.first_ = Ridge(standardize=self.standardize).fit(X, y, groups=groups)
        left = (y - self._unseen(X, y, groups, xy)) / np.where(self.spread_ > 0, self.spread_, 1.0)
        device = pick_device(self.device)
        around = Around(xy, groups, self._table(xy, groups), device)
        x, wanted = torch.from_numpy(Z).to(device), torch.from_numpy(left.astype(np.float32)).to(device)

        def loss(net: Any, rows: torch.Tensor) -> torch.Tensor:
            return squared(around(net, x, rows), wanted[rows], None)

        plan = self._plan(weight_decay=0.0, optimizer="adam")
        split = inner_split(groups, coords, n, seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(X.shape[1], y.shape[1]), loss, split, plan)
        self.best_step_ = history.best_step

    def _unseen(self, X: NDArray[Any], y: NDArray[Any], groups: Any, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the first stage's predictions for training spots, by fits without their patient, slide or block."""
        fold = relatives(groups, xy, len(X)) % FOLDS
        if self.as_published or len(np.unique(fold)) < 2:
            return local(self.first_, X, groups, y.shape[1])
        out, labels = np.empty(y.shape), None if groups is None else np.asarray(groups)
        for i in np.unique(fold):
            held, rest = fold == i, fold != i
            own, others = (None, None) if labels is None else (labels[held], labels[rest])
            head = Ridge(standardize=self.standardize).fit(X[rest], y[rest], groups=others)
            out[held] = local(head, X[held], own, y.shape[1])
        return out

    def _table(self, xy: NDArray[np.float64], groups: Any) -> Table:
        near = hop_table(xy, groups, 1)
        if not self.as_published:
            return near[:, :SQUARE]
        return nearest_table(xy, groups, HEXAGONAL if near.shape[1] <= HEXAGONAL else SQUARE)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        xy, net = check_coords(coords, len(X), self.name), self._exact()
        out = local(self.first_, X, groups, len(self.spread_))
        for label, rows in slide_rows(groups, len(X)):
            Z = np.empty((len(rows), X.shape[1]))
            for some, z in self._scaled(X[rows], None if groups is None else label):
                Z[some] = z
            around = Around(xy[rows], None, self._table(xy[rows], None), torch.device("cpu"))
            with torch.inference_mode():
                for part in torch.arange(len(rows)).split(PREDICTED_ROWS):
                    out[rows[part.numpy()]] += around(net, torch.from_numpy(Z), part).numpy() * self.spread_
        return out


class Around:
    """The graph of every spot: itself and its neighbours, where they lie, and which of them are adjacent."""

    def __init__(self, xy: NDArray[np.float64], groups: Any, table: Table, device: torch.device) -> None:
        placed = np.empty_like(xy)
        for _, rows in slide_rows(groups, len(xy)):
            placed[rows] = xy[rows] / pitch(xy[rows])
        self.table, self.xy = torch.from_numpy(table).to(device), torch.from_numpy(placed).to(device)
        self.nodes = torch.cat([torch.arange(len(xy), device=device)[:, None], self.table], dim=1)

    def __call__(self, net: Any, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Call the network for some rows of ``x``, the features of all spots."""
        nodes = self.nodes[rows]
        there = nodes >= 0
        both = there[:, :, None] & there[:, None]
        ties = (self.table[nodes][:, :, None] == nodes[:, None, :, None]).any(dim=-1) & both
        offsets = ((self.xy[nodes] - self.xy[rows][:, None]) * there[..., None]).to(x.dtype)
        used, local_nodes = torch.unique(nodes, return_inverse=True)  # -1 is the last spot, and is not looked at
        found: torch.Tensor = net(x[used], local_nodes, offsets, ties | ties.transpose(1, 2), there)
        return found


def local(head: Ridge, X: NDArray[Any], groups: Any, genes: int) -> NDArray[np.float64]:
    """Return the first stage's predictions (n, genes) in float64, whatever the precision of ``X``."""
    out = np.empty((len(X), genes))
    for label, rows in slide_rows(groups, len(X)):
        own = None if groups is None else [label] * len(rows)
        out[rows] = head.predict(X[rows].astype(np.float64), groups=own).reshape(len(rows), genes)
    return out
