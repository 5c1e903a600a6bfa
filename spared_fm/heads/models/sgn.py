"""SGN: the weights of a gene come from a text that describes it, so that new genes can be predicted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu

from spared_fm.errors import InputError
from spared_fm.heads.base import check_array
from spared_fm.heads.losses import pearson, squared
from spared_fm.heads.models.attention import Transformer
from spared_fm.heads.models.graph_layers import neighbour_mean
from spared_fm.heads.models.graphs import exemplars
from spared_fm.heads.models.slidewise import SlideHead
from spared_fm.heads.neighbours import REACH

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from spared_fm.heads.models.pieces import Piece
    from spared_fm.heads.models.slidewise import Batch, Inputs

#: Genes that a training step sees, and spots of similar features that each spot is joined to.
STEP_GENES, ALIKE = 64, 5


class SGN(SlideHead):
    """SGN (Yang et al. 2024) on cached vectors and cached text embeddings of the genes.

    Each spot: graph layers (a linear map of the spot + one of the mean over a relation's spots, averaged over two
    relations: adjacent spots of the slide, and the 5 spots of the slide with the most similar features). Each gene: a
    transformer over the vectors of its description gives a weight per feature and a bias. Their product is the
    prediction. A step sees 64 genes, drawn at random; the loss is the mean squared error + half of one minus the
    Pearson correlation per gene over the slide.

    Differs from the original: windows are cached vectors of any encoder and the text embeddings are given; targets have
    mean 0 and variance 1 per gene over the training slides (original: logarithm, scaled to 0–1 by all slides'
    extremes).

    Parameters
    ----------
    gene_features
        (genes, dim), or (genes, tokens, dim) for the vectors of all words, in the order of the targets; or the path of
        a ``.npy`` file with such an array. None: a learned vector per gene, and `predict_genes` can't be used.
    size
        ``"small"``: 128 wide, 2 graph and 1 text layers, 200 steps. ``"published"``: 512 wide, 4 graph layers, 2 text
        layers of 256, 2,000 steps, learning rate 5e-4.
    as_published
        The correlation compares the 64 drawn genes' predictions with the targets of the first 64 genes of the panel,
        whichever were drawn.
    width, depth, steps, lr, dropout, weight_decay, max_spots, standardize, fit_on, seed, device, progress
        As for `SlideHead`.

    Attributes
    ----------
    text_
        (genes, tokens, dim) float32, empty if none were given.
    """

    name: ClassVar[str] = "sgn"
    arrays: ClassVar[tuple[str, ...]] = (*SlideHead.arrays, "text")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 128, "depth": 2, "joint": 64, "text": 1, "steps": 200, "lr": 1e-3, "dropout": 0.1},
        "published": {"width": 512, "depth": 4, "joint": 256, "text": 2, "steps": 2000, "lr": 5e-4, "dropout": 0.1},
    }

    text_: NDArray[np.float32]

    def __init__(
        self,
        gene_features: Any = None,
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
        self.gene_features = gene_features

    def predict_genes(self, X: Any, gene_features: Any, groups: Any = None, coords: Any = None) -> NDArray[np.float32]:
        """Predict genes by their descriptions, also genes that were not in the fit.

        Parameters
        ----------
        X, groups, coords
            As in `Head.predict`.
        gene_features
            As in the fit, for the genes wanted.

        Returns
        -------
        numpy.ndarray
            (n, genes) float32, in standard deviations from the gene's mean over the training slides: the mean and the
            spread of a gene that was never measured are not known.

        Raises
        ------
        InputError
            The head was fitted without gene features, or these have another form.
        """
        self._require_fitted()
        X = check_array(self, X, reset=False)
        if self.text_.size == 0:
            raise InputError(
                f"head {self.name!r} was fitted without gene_features: fit it with them to predict new genes"
            )
        text = described(gene_features)
        if text.shape[2] != self.text_.shape[2]:
            raise InputError(
                f"gene_features are {text.shape[2]} long, those of the fit {self.text_.shape[2]}: use one source"
            )
        net = self._exact()
        net.text = torch.from_numpy(text).double()
        return self._scores(net, X, groups, coords, len(text)).astype(np.float32)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self.text_ = np.zeros((0, 0, 0), np.float32) if self.gene_features is None else described(self.gene_features)
        if self.text_.size and len(self.text_) != y.shape[1]:
            raise InputError(
                f"gene_features describe {len(self.text_)} genes, the targets have {y.shape[1]}: give a row for each"
            )
        super()._fit(X, y, mask, groups, coords)

    def _net(self, d: int, genes: int) -> nn.Module:
        size, width = self.sizes[self.size], self._of_size("width")
        dropout = self._of_size("dropout")
        windows = Windows(d, width, self._of_size("depth"), size["joint"], dropout)
        return SGNNet(windows, genes, torch.from_numpy(self.text_), size["joint"], size["text"], dropout)

    def _inputs(self, Z: Tensor, piece: Piece) -> Inputs:
        alike = exemplars(Z.numpy(), Z.numpy(), ALIKE, own=np.arange(len(Z)))
        near = piece.nearest(8, REACH, itself=False)
        return {"x": Z, "near": torch.from_numpy(near), "alike": torch.from_numpy(alike)}

    def _loss(self, net: Any, batch: Batch) -> Tensor:
        genes = batch.wanted.shape[1]
        picked = torch.randperm(genes)[:STEP_GENES] if net.training else torch.arange(genes)
        picked = picked.to(batch.wanted.device)
        found = net(**batch.inputs)[batch.inside][:, picked]
        weight = None if batch.weight is None else batch.weight[:, picked]
        compared = batch.wanted[:, : len(picked)] if self.as_published else batch.wanted[:, picked]
        return squared(found, batch.wanted[:, picked], weight) + 0.5 * (1.0 - pearson(found, compared, weight))


class Windows(nn.Module):
    """Graph layers over a slide's spots, two relations each."""

    def __init__(self, d: int, width: int, depth: int, joint: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(d, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.theirs = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(depth))
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, joint))

    def forward(self, x: Tensor, near: Tensor, alike: Tensor) -> Tensor:
        """(m, d) and two tables (m, k) → (m, joint)."""
        h = leaky_relu(self.first(x), 0.2)
        for own, theirs in zip(self.own, self.theirs, strict=True):
            around = torch.cat([neighbour_mean(h, near), neighbour_mean(h, alike)], dim=1)
            h = leaky_relu(own(h) + theirs(around) / 2.0, 0.2)
        out: Tensor = self.last(h)
        return out


class SGNNet(nn.Module):
    """Spots and gene descriptions to their products."""

    text: Tensor

    def __init__(self, windows: Windows, genes: int, text: Tensor, joint: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.windows = windows
        self.register_buffer("text", text, persistent=False)
        self.own = nn.Parameter(torch.randn(genes, joint) / joint**0.5) if text.numel() == 0 else None
        if self.own is None:
            self.read = nn.Sequential(nn.LayerNorm(text.shape[2]), nn.Linear(text.shape[2], joint))
        self.words = Transformer(depth, joint, 4, 2 * joint, dropout)
        self.weights = nn.Sequential(nn.LayerNorm(joint), nn.Linear(joint, joint + 1))

    def forward(self, x: Tensor, near: Tensor, alike: Tensor) -> Tensor:
        """(m, d) and two tables (m, k) → (m, genes)."""
        words = self.read(self.text) if self.own is None else self.own[:, None]
        of_gene = self.weights(self.words(words).mean(dim=1))
        out: Tensor = self.windows(x, near, alike) @ of_gene[:, :-1].T / of_gene.shape[1] ** 0.5 + of_gene[:, -1]
        return out


def described(gene_features: Any) -> NDArray[np.float32]:
    """Return the vectors that describe genes as (genes, tokens, dim) float32.

    Raises
    ------
    InputError
        Not an array of two or three dimensions, nor the path of one, or not finite.
    """
    found = gene_features
    if isinstance(found, (str, os.PathLike)):
        try:
            found = np.load(Path(found), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"gene_features {gene_features} can't be read ({error}): give a .npy file") from error
    found = np.asarray(found, dtype=np.float32)
    if found.ndim not in (2, 3) or found.size == 0 or not np.isfinite(found).all():
        raise InputError(
            f"gene_features have shape {found.shape} or hold NaN: give (genes, dim) or (genes, tokens, dim)"
        )
    return found if found.ndim == 3 else found[:, None]
