"""What heads with a network share: standardised inputs and targets, a label by size, and weights as plain arrays."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_TARGETS
from spared_fm.heads.neural import Plan
from spared_fm.heads.scaled import ScaledHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

SIZES = ("small", "published")


class NeuralHead(ScaledHead):
    """A head with a network in ``net_``.

    Subclasses have the parameters ``size`` and ``standardize``, name their ``sizes``, write ``_net``, and set ``net_``
    and the ``arrays`` in ``_fit``.

    Attributes
    ----------
    sizes
        What each size stands for, by the names of the parameters (where there is one, it overrides the size if it is
        not None) and of the fields of `spared_fm.heads.neural.Plan`.
    net_
        The fitted network, on the CPU.
    offset_, spread_
        Mean and standard deviation of the targets (genes,); 0 for a constant gene, which is predicted as its mean.
    best_step_
        Optimiser step with the best score on the inner slides (mean over the networks).
    """

    arrays: ClassVar[tuple[str, ...]] = ("center", "scale", "offset", "spread", "labelled", "best_step")

    sizes: ClassVar[dict[str, dict[str, Any]]]

    size: str

    net_: torch.nn.Module
    offset_: Matrix
    spread_: Matrix
    best_step_: int

    @property
    def label(self) -> str:  # type: ignore[override]
        """``"small"`` at this size."""
        return "small" if self.size == "small" else ""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted as plain arrays; those of the network are called ``net.<parameter>``."""
        return super().state() | {f"net.{key}": value.numpy() for key, value in self.net_.state_dict().items()}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted head from ``get_params()`` and ``state()``; predictions are the same to the bit."""
        import torch

        head = super().from_state(params, state)
        with torch.random.fork_rng([]):  # first weights are drawn, and then replaced
            head.net_ = head._net(len(head.center_), len(head.offset_))
        weights = {key[4:]: torch.from_numpy(np.array(value)) for key, value in state.items() if key.startswith("net.")}
        head.net_.load_state_dict(weights)
        head.net_.eval()
        return head

    def _net(self, d: int, genes: int) -> torch.nn.Module:
        """Return the network, with new weights, for ``d`` inputs."""
        raise NotImplementedError

    def _of_size(self, what: str) -> Any:
        """Return a parameter as it was given, or else as the size has it."""
        given = getattr(self, what, None)
        return self.sizes[self.size][what] if given is None else given

    def _plan(self, **settings: Any) -> Plan:
        """Return how to train: by ``settings``, else by the head's parameters, else by its size, else `Plan`'s defaults."""
        params = {key: value for key, value in self.get_params().items() if value is not None}
        known = {field.name for field in fields(Plan)}
        found = self.sizes[self.size] | params | settings
        return Plan(**{key: value for key, value in found.items() if key in known})

    def _scaled_fit(self, X: NDArray[Any], groups: Any) -> NDArray[np.float32]:
        """Learn the scale of the training inputs and return them standardised, float32."""
        self._choice("size", SIZES)
        self._learn_scale(X, groups)
        out = np.empty(X.shape, dtype=np.float32)
        for rows, Z in self._scaled(X, groups):
            out[rows] = Z
        return out

    def _targets_fit(self, y: NDArray[Any], measured: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Learn mean and spread of the targets (of those ``measured``) and return them with mean 0 and variance 1, float32."""
        y64 = y.astype(np.float64)
        if not np.isfinite(y64).all():
            raise InputError(NAN_TARGETS)
        share = np.ones(y.shape) if measured is None else measured | ~measured.any(axis=0)
        count = share.sum(axis=0)
        self.offset_ = (y64 * share).sum(axis=0) / count
        spread = np.sqrt(((y64 - self.offset_) ** 2 * share).sum(axis=0) / count)
        self.spread_ = np.where(spread > 1e-12 * np.abs(self.offset_), spread, 0.0)
        return ((y64 - self.offset_) / np.where(self.spread_ > 0, self.spread_, 1.0)).astype(np.float32)

    def _exact(self) -> torch.nn.Module:
        """Return the network in float64, where what a spot gets does not depend on the batch it comes in."""
        return copy.deepcopy(self.net_).double()
