"""What heads share that read a slide as a whole: every spot sees the others of its slide, and none of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from spared_fm.errors import InputError
from spared_fm.heads.base import slide_rows
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.losses import squared
from spared_fm.heads.models.pieces import Piece, cut
from spared_fm.heads.neighbours import check_coords
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import entries, fit_net, inner_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """What the loss of one step gets beside the network.

    Attributes
    ----------
    inputs
        What the network takes of the piece.
    inside
        (m,) which spots of the piece are trained on, or scored.
    rows
        (m,) their row numbers in the training set.
    wanted, weight
        (m, genes) their targets, with mean 0 and variance 1 per gene, and 0 or 1 per entry (None: all 1).
    """

    inputs: Inputs
    inside: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor
    weight: torch.Tensor | None


class SlideHead(NeuralHead):
    """A network over the spots of a slide, one slide per training step.

    Subclasses name their ``sizes`` and write ``_net`` and, where the network takes more than features,
    ``_inputs`` (whose names are those of the network's arguments), ``_learn`` and ``_loss``.

    Parameters
    ----------
    size
        ``"small"`` or ``"published"``: a row of ``sizes``.
    width, depth, steps, lr, dropout
        Override the size; width of the network, number of its layers, most steps, learning rate.
    weight_decay
        Of the training (AdamW).
    max_spots
        A slide with more spots is cut into compact pieces, each halved across its longer side until it is small enough;
        spots don't see beyond their piece, neither in training nor in prediction.
    as_published
        Reproduce the defects of the released code that change results (each head says which).
    standardize
        As for `Ridge`.
    fit_on
        ``"all"`` entries, or only those ``"measured"`` (the mask of ``fit``).
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.
    """

    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})

    def __init__(
        self,
        *,
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
        self.size = size
        self.width = width
        self.depth = depth
        self.steps = steps
        self.lr = lr
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.max_spots = max_spots
        self.as_published = as_published
        self.standardize = standardize
        self.fit_on = fit_on
        self.seed = seed
        self.device = device
        self.progress = progress

    def _check_params(self) -> None:
        self._choice("size", SIZES)
        self._choice("fit_on", ("all", "measured"))
        if min(self._of_size("width"), self._of_size("depth")) < 1 or not 0 <= self._of_size("dropout") < 1:
            raise InputError(f"{self.name} width and depth must be 1 or more, dropout from 0 to below 1")
        heads = self.sizes[self.size].get("heads", 1)
        if self._of_size("width") % heads:
            raise InputError(f"{self.name} width must be a multiple of its {heads} attention heads")

    def _learn(self, pieces: list[Piece]) -> None:
        """Set what the network's form depends on beside the number of inputs and genes."""

    def _inputs(self, Z: torch.Tensor, piece: Piece) -> Inputs:
        """Return the network's arguments for the standardised features (m, d) of a piece."""
        return {"x": Z}

    def _loss(self, net: Any, batch: Batch) -> torch.Tensor:
        """Return the mean loss of some spots of a piece."""
        return squared(net(**batch.inputs)[batch.inside], batch.wanted, batch.weight)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        xy = check_coords(coords, len(X), self.name)
        measured = entries(mask, y.shape, self.fit_on)
        Z, targets = self._scaled_fit(X, groups), self._targets_fit(y, measured)

        pieces: list[tuple[NDArray[np.intp], Piece]] = []
        unit, place = np.empty(len(X), dtype=np.int64), np.empty(len(X), dtype=np.int64)
        for _, rows in slide_rows(groups, len(X)):
            for piece in cut(xy[rows], self.max_spots):
                own = rows[piece.rows]
                unit[own], place[own] = len(pieces), np.arange(len(own))
                pieces.append((own, piece))
        self._learn([piece for _, piece in pieces])

        device = pick_device(self.device)
        wanted = torch.from_numpy(targets).to(device)
        weight = None if measured is None else torch.from_numpy(measured.astype(np.float32)).to(device)
        inputs = [self._on(device, self._inputs(torch.from_numpy(Z[rows]), piece)) for rows, piece in pieces]
        places = torch.from_numpy(place).to(device)

        def loss(net: Any, rows: torch.Tensor) -> torch.Tensor:
            some = None if weight is None else weight[rows]
            return self._loss(net, Batch(inputs[unit[int(rows[0])]], places[rows], rows, wanted[rows], some))

        plan = self._plan(every=max(20, self._of_size("steps") // 25))
        split = inner_split(groups, coords, len(X), seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(X.shape[1], y.shape[1]), loss, split, plan, units=unit)
        self.best_step_ = history.best_step

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        return self._scores(self._exact(), X, groups, coords, len(self.offset_)) * self.spread_ + self.offset_

    def _scores(self, net: Any, X: NDArray[Any], groups: Any, coords: Any, genes: int) -> NDArray[np.float64]:
        """Return what a network in float64 gives for every spot, piece by piece."""
        xy, out = check_coords(coords, len(X), self.name), np.empty((len(X), genes))
        with torch.inference_mode():
            for label, rows in slide_rows(groups, len(X)):
                Z = np.empty((len(rows), X.shape[1]))
                for some, z in self._scaled(X[rows], None if groups is None else label):
                    Z[some] = z
                for piece in cut(xy[rows], self.max_spots):
                    inputs = self._inputs(torch.from_numpy(Z[piece.rows]), piece)
                    out[rows[piece.rows]] = net(**inputs).numpy()
        return out

    @staticmethod
    def _on(device: torch.device, inputs: Inputs) -> Inputs:
        return {key: value.to(device) for key, value in inputs.items()}
