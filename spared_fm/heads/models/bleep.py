"""BLEEP: images and expression in one space, and the training spots nearest in it (Xie et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spared_fm.errors import InputError
from spared_fm.heads.base import slide_rows
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.models.graphs import exemplars
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import fit_net, inner_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

AVERAGES = ("uniform", "distance", "nearest")
WIDTH = 256


class Projection(nn.Module):
    """A linear layer, and a second one around which the first may pass, normalised."""

    def __init__(self, inputs: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, WIDTH)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs) → (n, 256)."""
        found = self.first(x)
        out: torch.Tensor = self.norm(found + self.second(found))
        return out


def contrast(image: torch.Tensor, spot: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return BLEEP's loss of a batch: which image belongs to which spot, where spots that are alike count as the same.

    Parameters
    ----------
    image, spot
        (n, 256) embeddings, not normalised.
    temperature
        Divides the similarities of image and spot, and multiplies those among images and among spots, as published.
    """
    logits = spot @ image.T / temperature
    alike = torch.softmax((image @ image.T + spot @ spot.T) / 2 * temperature, dim=-1)
    by_spot = -(alike * torch.log_softmax(logits, dim=-1)).sum(dim=1)
    by_image = -(alike.T * torch.log_softmax(logits.T, dim=-1)).sum(dim=1)
    return (by_spot + by_image).mean() / 2


class BLEEP(NeuralHead):
    """Bi-modal embedding of expression and image (Xie et al., NeurIPS 2023), on cached vectors.

    Two projections into one space of 256 dimensions are trained by contrast, one of images, one of expression. A
    prediction is the mean expression of the ``k`` training spots whose projected expression has the largest cosine with
    the projected image; it can't leave the range of the training spots. **The original tunes a ResNet-50 on pixels with
    it; here the encoder is frozen.**

    Parameters
    ----------
    k
        Training spots per prediction; all there are if fewer.
    average
        ``"uniform"``: their mean. ``"distance"``: weighted by exp(-(d² - d₀²)), d the distance and d₀ that of the
        nearest, both without normalisation. ``"nearest"``: the first alone. These are the three of the released code.
    temperature
        See `contrast`; 1 in the released code.
    size
        ``"small"``: 300 steps. ``"published"``: 1,000 steps, all taken before the best is picked (SpaRED's port). The
        projections are the published ones in both.
    steps, lr, batch, dropout, weight_decay
        Of the training (AdamW).
    standardize
        As for `Ridge`.
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Attributes
    ----------
    embedded_
        (n, 256) float32 projected expression of the training spots.
    profiles_
        (n, genes) float32 their targets.

    Notes
    -----
    Like the released code, embeddings are normalised in the retrieval but not in training, and training stops by the
    contrastive loss (of inner slides), not by the error of the prediction. Differences: frozen encoder; expression with
    mean 0 and variance 1 per gene for Harmony over all slides, test slides included; no test spots are dropped.
    """

    name: ClassVar[str] = "bleep"
    cached: ClassVar[str] = "a frozen encoder; the original tunes a ResNet-50 on pixels"
    arrays: ClassVar[tuple[str, ...]] = (*NeuralHead.arrays, "embedded", "profiles")
    poor_score: ClassVar[bool] = True  # fifty neighbours of two hundred rows are a coarse mean
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"steps": 300, "every": 20, "patience": 4},
        "published": {"steps": 1000, "every": 10, "patience": 100},
    }

    embedded_: NDArray[np.float32]
    profiles_: NDArray[np.float32]

    def __init__(
        self,
        k: int = 50,
        *,
        average: Literal["uniform", "distance", "nearest"] = "uniform",
        temperature: float = 1.0,
        size: Literal["small", "published"] = "small",
        steps: int | None = None,
        lr: float = 1e-3,
        batch: int = 256,
        dropout: float = 0.1,
        weight_decay: float = 1e-3,
        standardize: Literal["slide", "train", "none"] = "slide",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.k = k
        self.average = average
        self.temperature = temperature
        self.size = size
        self.steps = steps
        self.lr = lr
        self.batch = batch
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.seed = seed
        self.device = device
        self.progress = progress

    def _net(self, d: int, genes: int) -> nn.Module:
        return nn.ModuleDict({"image": Projection(d, self.dropout), "spot": Projection(genes, self.dropout)})

    def _check_params(self) -> None:
        self._choice("size", SIZES)
        self._choice("average", AVERAGES)
        if self.k < 1 or not self.temperature > 0 or not 0 <= self.dropout < 1:
            raise InputError("bleep k must be 1 or more, temperature above 0, dropout from 0 to below 1")

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        Z, targets = self._scaled_fit(X, groups), self._targets_fit(y)
        device = pick_device(self.device)
        x, expression = torch.from_numpy(Z).to(device), torch.from_numpy(targets).to(device)

        def loss(net: Any, rows: torch.Tensor) -> torch.Tensor:
            return contrast(net["image"](x[rows]), net["spot"](expression[rows]), self.temperature)

        split = inner_split(groups, coords, len(X), seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(X.shape[1], y.shape[1]), loss, split, self._plan())
        self.best_step_ = history.best_step
        exact: Any = self._exact()
        with torch.inference_mode():
            self.embedded_ = exact["spot"](torch.from_numpy(targets).double()).float().numpy()
        self.profiles_ = y.astype(np.float32)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        exact: Any = self._exact()
        out = np.empty((len(X), self.profiles_.shape[1]))
        k = 1 if self.average == "nearest" else min(self.k, len(self.embedded_))
        for label, rows in slide_rows(groups, len(X)):
            for some, Z in self._scaled(X[rows], None if groups is None else label):
                with torch.inference_mode():
                    image = exact["image"](torch.from_numpy(Z)).numpy()
                table = exemplars(image, self.embedded_, k, metric="cosine")
                share = np.full(table.shape, 1.0 / k)
                if self.average == "distance":
                    squared = np.stack([((image - self.embedded_[near]) ** 2).sum(axis=1) for near in table.T], axis=1)
                    share = np.exp(squared.min(axis=1, keepdims=True) - squared)
                    share /= share.sum(axis=1, keepdims=True)
                mean = np.zeros((len(image), out.shape[1]))
                for weight, near in zip(share.T, table.T, strict=True):
                    mean += weight[:, None] * self.profiles_[near]
                out[rows[some]] = mean
        return out
