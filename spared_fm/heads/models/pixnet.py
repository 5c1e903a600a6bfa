"""A dense head after PixNet: expression for every token of a patch, of which the spot's disc was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, gelu, interpolate

from spared_fm.errors import InputError
from spared_fm.heads.base import check_array, result_dtype, slide_rows
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.losses import squared
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import entries, fit_net, inner_split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

#: The smallest disc ÷ patch whose area is counted well enough.
LEAST_DISC = 0.05


class PixNet(NeuralHead):
    """A dense head in the manner of PixNet (Yang et al. 2025) on cached token grids.

    A small U-Net gives every token of the patch its expression; a spot's prediction is the sum over the tokens, each
    with the share of the spot's disc that it covers. `predict_map` returns the tokens' expression, a map finer than the
    spots.

    Needs pixels in the original, and is replaced here: PixNet decodes feature pyramids of the whole slide's image; here
    each patch is decoded by itself from tokens of a frozen encoder (``encode --tokens``), each of which has seen the
    whole patch. No code was released: widths and training are ours.

    Parameters
    ----------
    grid
        ``X`` holds ``grid`` × ``grid`` tokens, row by row from the top left. 1: one vector, and the map is the spot.
    disc
        Diameter of the spot's disc ÷ side of the patch (Visium's 55 µm in a 112 µm patch: .49). Above 1.42 all tokens
        count the same.
    size
        ``"small"``: 64 wide, 2 levels, 300 steps. ``"published"``: 512 wide, 3 levels, 3,000 steps.
    width, depth, steps
        Override the size; channels, levels of the U-Net (each halves the grid), most steps.
    dropout, lr, weight_decay, batch
        Of the training (AdamW).
    standardize
        As for `Ridge`; a channel's mean and variance are those over all tokens.
    fit_on
        ``"all"`` entries, or only those ``"measured"`` (the mask of ``fit``).
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Attributes
    ----------
    center_, scale_
        As for `NeuralHead`, per channel of a token.

    Notes
    -----
    A fit holds the tokens of all training spots in float32; a prediction holds one slide's as they are given.
    """

    name: ClassVar[str] = "pixnet"
    cached: ClassVar[str] = "cached tokens, patch by patch; the original decodes pixels of the whole slide"
    poor_score: ClassVar[bool] = True  # three hundred steps
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 64, "depth": 2, "steps": 300},
        "published": {"width": 512, "depth": 3, "steps": 3000},
    }

    def __init__(
        self,
        grid: int = 7,
        *,
        disc: float = 0.5,
        size: Literal["small", "published"] = "small",
        width: int | None = None,
        depth: int | None = None,
        steps: int | None = None,
        dropout: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        batch: int = 128,
        standardize: Literal["slide", "train", "none"] = "slide",
        fit_on: Literal["all", "measured"] = "all",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.grid = grid
        self.disc = disc
        self.size = size
        self.width = width
        self.depth = depth
        self.steps = steps
        self.dropout = dropout
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch = batch
        self.standardize = standardize
        self.fit_on = fit_on
        self.seed = seed
        self.device = device
        self.progress = progress

    def predict_map(self, X: Any, groups: Any = None) -> NDArray[Any]:
        """Predict the expression of every token.

        Parameters
        ----------
        X, groups
            As in `Head.predict`.

        Returns
        -------
        numpy.ndarray
            (n, grid, grid, genes), row by row from the top left; dtype as of ``predict``. Values are on the scale of
            the targets: what a spot would show that lay on this token alone. Their sum over the disc's shares is
            ``predict``.
        """
        self._require_fitted()
        X = check_array(self, X, reset=False)
        out = np.empty((len(X), self.grid, self.grid, len(self.offset_)), dtype=result_dtype(X))
        for rows, found in self._maps(X, groups):
            out[rows] = found
        return out

    def _check_params(self) -> None:
        self._choice("size", SIZES)
        self._choice("fit_on", ("all", "measured"))
        if self.grid < 1 or self.n_features_in_ % self.grid**2:
            raise InputError(
                f"{self.name} grid is {self.grid} but X has {self.n_features_in_} columns: give the side of the token grid"
            )
        if (
            not self.disc >= LEAST_DISC
            or not 0 <= self.dropout < 1
            or min(self._of_size("width"), self._of_size("depth")) < 1
        ):
            raise InputError(
                f"{self.name} disc must be {LEAST_DISC} or more, width and depth 1 or more, dropout from 0 to below 1"
            )

    def _net(self, d: int, genes: int) -> nn.Module:
        return TokenUNet(d, genes, self._of_size("width"), self._of_size("depth"), self.dropout)

    def _tokens(self, X: NDArray[Any], groups: Any) -> tuple[NDArray[Any], Any]:
        """Return all spots' tokens as rows (n · grid², w), and whose they are."""
        cells = self.grid**2
        return X.reshape(len(X) * cells, -1), None if groups is None else np.repeat(np.asarray(groups), cells, axis=0)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        measured = entries(mask, y.shape, self.fit_on)
        Z, targets = self._scaled_fit(*self._tokens(X, groups)), self._targets_fit(y, measured)
        device = pick_device(self.device)
        tokens = torch.from_numpy(Z.reshape(len(X), self.grid, self.grid, -1)).to(device)
        wanted = torch.from_numpy(targets).to(device)
        weight = None if measured is None else torch.from_numpy(measured.astype(np.float32)).to(device)
        shares = torch.from_numpy(disc_shares(self.grid, self.disc).astype(np.float32)).to(device)

        def loss(net: Any, rows: Tensor) -> Tensor:
            spots = torch.einsum("nijg,ij->ng", net(tokens[rows]), shares)
            return squared(spots, wanted[rows], None if weight is None else weight[rows])

        split = inner_split(groups, coords, len(X), seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(Z.shape[1], y.shape[1]), loss, split, self._plan())
        self.best_step_ = history.best_step

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        out, shares = np.empty((len(X), len(self.offset_))), disc_shares(self.grid, self.disc)
        for rows, found in self._maps(X, groups):
            out[rows] = np.einsum("nijg,ij->ng", found, shares)
        return out

    def _maps(self, X: NDArray[Any], groups: Any) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """Yield row numbers and their tokens' expression (m, grid, grid, genes)."""
        net, cells = self._exact(), self.grid**2
        with torch.inference_mode():
            for label, rows in slide_rows(groups, len(X)):
                waiting, done = np.empty((0, len(self.center_))), 0
                for _, z in self._scaled(self._tokens(X[rows], None)[0], None if groups is None else label):
                    waiting = np.concatenate([waiting, z])
                    spots = len(waiting) // cells
                    tokens = waiting[: spots * cells].reshape(spots, self.grid, self.grid, -1)
                    found = net(torch.from_numpy(tokens)).numpy()
                    yield rows[done : done + spots], found * self.spread_ + self.offset_
                    waiting, done = waiting[spots * cells :], done + spots


class TokenUNet(nn.Module):
    """Tokens of a patch to genes at each: a U-Net whose levels halve the grid."""

    def __init__(self, d: int, genes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(d, width)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.up = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(depth - 1))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, genes))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, grid, grid, d) → (n, grid, grid, genes)."""
        h = self.first(tokens).permute(0, 3, 1, 2)
        levels = []
        for level, layer in enumerate(self.down):
            h = h if level == 0 else avg_pool2d(h, 2, ceil_mode=True)
            h = h + gelu(layer(h))
            levels.append(h)
        for layer, fine in zip(self.up, reversed(levels[:-1]), strict=True):
            h = interpolate(h, scale_factor=2.0)[..., : fine.shape[2], : fine.shape[3]]
            h = fine + gelu(layer(torch.cat([h, fine], dim=1)))
        out: Tensor = self.last(h.permute(0, 2, 3, 1))
        return out


def disc_shares(grid: int, disc: float, fine: int = 32) -> NDArray[np.float64]:
    """Return the share of a disc in the middle of a patch that each token covers.

    Parameters
    ----------
    grid
        Tokens per side.
    disc
        Diameter of the disc ÷ side of the patch.
    fine
        Points per token and axis that the areas are counted with.

    Returns
    -------
    numpy.ndarray
        (grid, grid), adding up to 1.
    """
    along = (np.arange(grid * fine) + 0.5) / (grid * fine) - 0.5
    inside = along[:, None] ** 2 + along**2 <= (disc / 2.0) ** 2
    area = inside.reshape(grid, fine, grid, fine).sum(axis=(1, 3)).astype(np.float64)
    return np.asarray(area / area.sum())
