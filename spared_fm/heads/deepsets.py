"""Deep sets over a spot, its sub-tiles and its neighbours, after DeepSpot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spared_fm.errors import InputError
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.losses import squared
from spared_fm.heads.neighbours import check_coords, hop_table
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import entries, fit_net, inner_split

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DeepSets(NeuralHead):
    """A code of the spot, the sum of the codes of its sub-tiles and the maximum of those of its neighbours.

    After DeepSpot (Nonchev et al. 2025, medRxiv 2025.02.09.25321567): each of the three has its own encoder (linear, dropout,
    ReLU; an ensemble of which the median is taken); the codes are put side by side, and an ensemble of linear layers,
    averaged, gives the genes; mean squared error on standardised targets, AdamW. Unlike the released code, nothing is
    dropped out of the outputs, and training stops by inner slides instead of by the training loss. Neighbours are the
    spots one step away on the slide (`spared_fm.heads.neighbours.adjacency`), their images only.

    Parameters
    ----------
    subtiles
        Number of sub-tiles. With ``subtiles = s`` the columns of ``X`` are the features of the spot's whole
        patch, followed by those of its s sub-tiles, all by the same encoder: (1 + s) · d columns. 0: only whole patches,
        and the branch of the sub-tiles is left out.
    neighbours
        Most neighbours of a spot, the nearest first. 0: that branch is left out and coords are not needed.
    size
        ``"small"``: 128 wide, 2 branches, 300 steps of 128 spots. ``"published"``: 512 wide, 10 branches,
        3,000 steps of 1,024 spots.
    width, branches, steps, batch
        Override the size.
    dropout, lr, weight_decay
        Of the training; those of DeepSpot are .3, 1e-4 and 1e-6.
    standardize
        As for `Ridge`.
    fit_on
        ``"all"`` entries, or only those ``"measured"`` (the mask of ``fit``).
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.
    """

    name: ClassVar[str] = "deepsets"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})
    poor_score: ClassVar[bool] = True  # three hundred steps
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 128, "branches": 2, "steps": 300, "batch": 128},
        "published": {"width": 512, "branches": 10, "steps": 3000, "batch": 1024},
    }

    def __init__(
        self,
        subtiles: int = 0,
        *,
        neighbours: int = 8,
        size: Literal["small", "published"] = "small",
        width: int | None = None,
        branches: int | None = None,
        steps: int | None = None,
        batch: int | None = None,
        dropout: float = 0.3,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        standardize: Literal["slide", "train", "none"] = "slide",
        fit_on: Literal["all", "measured"] = "all",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.subtiles = subtiles
        self.neighbours = neighbours
        self.size = size
        self.width = width
        self.branches = branches
        self.steps = steps
        self.batch = batch
        self.dropout = dropout
        self.lr = lr
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.fit_on = fit_on
        self.seed = seed
        self.device = device
        self.progress = progress

    def _net(self, d: int, genes: int) -> torch.nn.Module:
        return Net(
            d // (1 + self.subtiles),
            genes,
            self._of_size("width"),
            self._of_size("branches"),
            self.dropout,
            subtiles=self.subtiles > 0,
            neighbours=self.neighbours > 0,
        )

    def _check_params(self, d: int) -> None:
        self._choice("size", SIZES)
        self._choice("fit_on", ("all", "measured"))
        if self.subtiles < 0 or d % (1 + self.subtiles):
            raise InputError(f"deepsets: {d} columns are not a patch and {self.subtiles} sub-tiles of the same width")
        if (
            min(self._of_size("width"), self._of_size("branches")) < 1
            or self.neighbours < 0
            or not 0 <= self.dropout < 1
        ):
            raise InputError("deepsets width, branches must be 1 or more, neighbours 0 or more, dropout below 1")

    def _table(self, rows: int, groups: Any, coords: Any) -> NDArray[np.int64]:
        """Return the neighbours of every spot, (rows, neighbours)."""
        if self.neighbours == 0:
            return np.zeros((rows, 0), dtype=np.int64)
        return hop_table(check_coords(coords, rows, self.name), groups, 1, most=self.neighbours)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params(X.shape[1])
        table = self._table(len(X), groups, coords)
        Z = self._scaled_fit(X, groups)
        measured = entries(mask, y.shape, self.fit_on)
        device = pick_device(self.device)
        x, near, wanted = (torch.from_numpy(a).to(device) for a in (Z, table, self._targets_fit(y, measured)))
        weight = None if measured is None else torch.from_numpy(measured.astype(np.float32)).to(device)

        def loss(net: Any, rows: torch.Tensor) -> torch.Tensor:
            return squared(net(x, rows, near[rows]), wanted[rows], None if weight is None else weight[rows])

        split = inner_split(groups, coords, len(X), seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(X.shape[1], y.shape[1]), loss, split, self._plan())
        self.best_step_ = history.best_step

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        table = torch.from_numpy(self._table(len(X), groups, coords))
        Z = np.empty(X.shape)
        for rows, some in self._scaled(X, groups):
            Z[rows] = some
        net, x, out = self._exact(), torch.from_numpy(Z), np.empty((len(X), len(self.offset_)))
        with torch.inference_mode():
            for start in range(0, len(X), 512):
                rows = torch.arange(start, min(start + 512, len(X)))
                out[start : start + 512] = net(x, rows, table[rows]).numpy()
        return out * self.spread_ + self.offset_


class Encoder(nn.Module):
    """Codes (…, width) of vectors (…, d): the median over branches of linear, dropout, ReLU."""

    def __init__(self, d: int, width: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.branches, self.width = branches, width
        self.linear, self.dropout = nn.Linear(d, branches * width), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes."""
        each = torch.relu(self.dropout(self.linear(x))).unflatten(-1, (self.branches, self.width))
        ranked = each.sort(dim=-2).values  # torch.median is not deterministic on CUDA
        return 0.5 * (ranked[..., (self.branches - 1) // 2, :] + ranked[..., self.branches // 2, :])


class Net(nn.Module):
    """The network of `DeepSets` for d features per patch."""

    def __init__(
        self, d: int, genes: int, width: int, branches: int, dropout: float, *, subtiles: bool, neighbours: bool
    ) -> None:
        super().__init__()
        self.d = d
        self.spot = Encoder(d, width, branches, dropout)
        self.tile = Encoder(d, width, branches, dropout) if subtiles else None
        self.near = Encoder(d, width, branches, dropout) if neighbours else None
        self.dropout = nn.Dropout(dropout)
        # the mean of an ensemble of linear layers, each with a dropout of its own
        codes = 1 + subtiles + neighbours
        self.out = nn.ModuleList(nn.Linear(codes * width, genes) for _ in range(branches))

    def forward(self, x: torch.Tensor, rows: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Return targets (m, genes) of some spots.

        Parameters
        ----------
        x
            (n, (1 + sub-tiles) · d) features of all spots.
        rows, near
            (m,) row numbers of the spots and (m, k) of their neighbours, -1 for none.
        """
        own = x[rows]
        codes = [self.spot(own[:, : self.d])]
        if self.tile is not None:
            codes.append(self.tile(own[:, self.d :].unflatten(1, (-1, self.d))).sum(dim=1))
        if self.near is not None:
            absent = (near < 0)[..., None]
            around = self.near(x[near.clamp_min(0), : self.d]).masked_fill(absent, 0.0)
            codes.append(around.amax(dim=1))  # codes are 0 or more, so that an absent one never is the maximum
        together = torch.cat(codes, dim=1)
        return torch.stack([out(self.dropout(together)) for out in self.out]).mean(dim=0)
