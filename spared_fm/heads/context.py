"""Heads that see a spot's surroundings: the mean features of the spots one and two steps away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import Head
from spared_fm.heads.mlp import MLP
from spared_fm.heads.neighbours import check_coords, hop_means
from spared_fm.heads.nested import pack, require, unpack
from spared_fm.heads.ridge import ALPHAS, Ridge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


class ContextRidge(Head):
    """`Ridge` on a spot's features and their means over the spots one, two, … steps away on its slide.

    Only images are looked at, never the expression of a neighbour. Neighbours are found from the positions
    (`spared_fm.heads.neighbours.adjacency`); pass whole slides, in ``fit`` and in ``predict``.

    Parameters
    ----------
    hops
        How many rings of neighbours.
    alphas, components, alpha_per, standardize, cv, block_rows
        As for `Ridge`. A ring counts as features of its own in the standardisation.

    Attributes
    ----------
    ridge_
        The fitted `Ridge`.
    """

    name: ClassVar[str] = "context-ridge"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})

    ridge_: Head

    def __init__(
        self,
        hops: int = 2,
        *,
        alphas: Sequence[float] = ALPHAS,
        components: int | None = None,
        alpha_per: Literal["gene", "all"] = "all",
        standardize: Literal["slide", "train", "none"] = "slide",
        cv: Literal["auto", "patient", "slide", "gcv", "loo"] = "auto",
        block_rows: int = 8192,
    ) -> None:
        self.hops = hops
        self.alphas = alphas
        self.components = components
        self.alpha_per = alpha_per
        self.standardize = standardize
        self.cv = cv
        self.block_rows = block_rows

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        params = {key: value for key, value in self.get_params().items() if key != "hops"}
        self.ridge_ = Ridge(**params).fit(around(X, groups, coords, self.hops, self.name), y, groups=groups)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        return self.ridge_.predict(around(X, groups, coords, self.hops, self.name), groups=groups)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted as plain arrays; those of the ridge are called ``ridge.<name>``."""
        return super().state() | pack("ridge", self.ridge_)

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        head = super().from_state(params, state)
        own = {key: value for key, value in params.items() if key != "hops"}
        head.ridge_ = unpack("ridge", "ridge", own, state)
        return head

    def _require_fitted(self) -> None:
        super()._require_fitted()
        require("ridge_", self)


class ContextMLP(MLP):
    """`MLP` on a spot's features and their means over the spots one, two, … steps away on its slide.

    Parameters
    ----------
    hops
        How many rings of neighbours; see `ContextRidge`.
    loss, size, width, depth, steps, ensemble, dropout, lr, weight_decay, batch, standardize, fit_on
        As for `MLP`.
    seed, device, progress
        As for `MLP`.
    """

    name: ClassVar[str] = "context-mlp"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})

    def __init__(
        self,
        hops: int = 2,
        *,
        loss: Literal["mse", "mse+pcc", "nb"] = "mse",
        size: Literal["small", "published"] = "small",
        width: int | None = None,
        depth: int | None = None,
        steps: int | None = None,
        ensemble: int | None = None,
        dropout: float = 0.3,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        batch: int = 256,
        standardize: Literal["slide", "train", "none"] = "slide",
        fit_on: Literal["all", "measured"] = "all",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        super().__init__(
            loss,
            size=size,
            width=width,
            depth=depth,
            steps=steps,
            ensemble=ensemble,
            dropout=dropout,
            lr=lr,
            weight_decay=weight_decay,
            batch=batch,
            standardize=standardize,
            fit_on=fit_on,
            seed=seed,
            device=device,
            progress=progress,
        )
        self.hops = hops

    def _inputs(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        return around(X, groups, coords, self.hops, self.name)


def around(X: NDArray[Any], groups: Any, coords: Any, hops: int, name: str) -> NDArray[Any]:
    """Return `hop_means` in the precision of ``X``, its inputs checked.

    Raises
    ------
    InputError
        No coordinates, or ``hops`` below 0.
    """
    if hops < 0:
        raise InputError(f"{name} hops is {hops}: use 0 or more")
    found = hop_means(X, groups, check_coords(coords, len(X), name), hops)
    return found if X.dtype in (np.float16, np.float32) else found.astype(np.float64)
