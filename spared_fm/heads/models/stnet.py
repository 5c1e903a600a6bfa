"""The backbone rows of SpaRED (ShuffleNet, ViT-B, ViT-B+Δ, ST-Net): one linear layer on frozen vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.network import NeuralHead
from spared_fm.heads.neural import Split, entries, fit_net, inner_split

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from spared_fm.heads.neural import History, Loss, Plan


#: Learning rates that are tried on the inner slides: points of the grid 10^(-k/3) of SpaRED's scripts.
RATES = (10 ** (-4 / 3), 1e-2, 10 ** (-8 / 3), 10 ** (-10 / 3))


class SparedLinear(NeuralHead):
    """A linear layer trained as SpaRED trains its image backbones (Mejia et al. 2025; ST-Net: He et al. 2020).

    Mean squared error, Adam, batches of 256, a score on inner slides every 10 steps, the best weights kept; the
    learning rate is picked on the inner slides. **The original tunes the whole backbone on pixels; here it is frozen**
    and runs on cached vectors. `spared_fm.heads.registry.PRESETS` says which encoder makes which published row.

    Parameters
    ----------
    target
        ``"expression"``: the layer starts with bias 0 and has to learn the level of each gene (ShuffleNet, ViT-B,
        ST-Net). ``"deltas"``: expression minus the training mean of the gene, which is added back (ViT-B+Δ).
    views
        8 if ``X`` holds the eight turned and mirrored views of each patch one after the other
        (``spared-fm encode --views dihedral``): each step trains on one view of a spot drawn at random, and a
        prediction is the mean over the eight (ST-Net). 1: one vector per spot (which may be ``dihedral-mean``).
    size
        ``"small"``: 300 steps. ``"published"``: 1,000 steps, all of them taken before the best is picked.
    steps
        Overrides the size.
    lr
        Learning rate. None: the best of `RATES` on the inner slides (1e-2 where too few spots are there to hold any
        out).
    batch
        Spots per step.
    standardize
        As for `Ridge`; all views of a slide together.
    fit_on
        ``"all"`` entries, or only those ``"measured"`` (SpaRED's robust loss).
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Attributes
    ----------
    rate_
        The learning rate that was used.

    Notes
    -----
    Differences: frozen backbone, features standardised, the best step repeated on all training slides. He et al. train
    with SGD at 1e-6 on targets scaled per gene, leaving out one patient; SpaRED's row has SpaRED's recipe. No known
    defect of the released code changes the result of this head.
    """

    name: ClassVar[str] = "spared-linear"
    cached: ClassVar[str] = "a frozen backbone; the original tunes it on pixels"
    arrays: ClassVar[tuple[str, ...]] = (*NeuralHead.arrays, "rate")
    poor_score: ClassVar[bool] = True  # three hundred steps
    sizes: ClassVar[dict[str, dict[str, Any]]] = {  # the learning rate is for where none can be picked
        "small": {"steps": 300, "lr": RATES[1], "every": 20, "patience": 4},
        "published": {"steps": 1000, "lr": RATES[1], "every": 10, "patience": 100},
    }

    rate_: float

    def __init__(
        self,
        target: Literal["expression", "deltas"] = "expression",
        *,
        views: int = 1,
        size: Literal["small", "published"] = "small",
        steps: int | None = None,
        lr: float | None = None,
        batch: int = 256,
        standardize: Literal["slide", "train", "none"] = "slide",
        fit_on: Literal["all", "measured"] = "all",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.target = target
        self.views = views
        self.size = size
        self.steps = steps
        self.lr = lr
        self.batch = batch
        self.standardize = standardize
        self.fit_on = fit_on
        self.seed = seed
        self.device = device
        self.progress = progress

    def _net(self, d: int, genes: int) -> torch.nn.Module:
        from torch import nn

        return nn.Linear(d, genes)

    def _check_params(self, d: int) -> None:
        self._choice("target", ("expression", "deltas"))
        self._choice("fit_on", ("all", "measured"))
        if self.views not in (1, 8) or d % self.views:
            raise InputError(f"{d} columns are not {self.views} views: encode with --views dihedral, or use views=1")

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        n = len(X)
        self._check_params(X.shape[1])
        Z = self._scaled_fit(*self._apart(X, groups))
        measured = entries(mask, y.shape, self.fit_on)
        self._targets_fit(y, measured)
        self.spread_ = np.where(self.spread_ > 0, 1.0, 0.0)  # no scaling, but a constant gene is predicted as it is
        if self.target == "expression":
            self.offset_ = np.where(self.spread_ > 0, 0.0, self.offset_)
        loss = self._loss(Z.reshape(n, self.views, -1), y, measured)
        split = inner_split(groups, coords, n, seed=self.seed)
        plan = self._plan(weight_decay=0.0, optimizer="adam", clip=None, refit=False)

        def train(plan: Plan, split: Split) -> tuple[torch.nn.Module, History]:
            return fit_net(lambda: self._net(Z.shape[1], y.shape[1]), loss, split, plan)

        if len(split.held):
            plans = [replace(plan, lr=lr) for lr in RATES] if self.lr is None else [plan]
            tried = [train(one, split)[1] for one in plans]
            best = int(np.argmin([min(score for _, score in history.scores) for history in tried]))
            plan = replace(plans[best], steps=tried[best].best_step)
        self.net_, _ = train(plan, Split(np.arange(n), np.arange(0), split.by))
        self.best_step_, self.rate_ = plan.steps, plan.lr

    def _loss(self, Z: NDArray[np.float32], y: NDArray[Any], measured: NDArray[np.bool_] | None) -> Loss:
        """Return the mean squared error: of a view drawn at random in training, of the mean of the views elsewhere."""
        import torch

        from spared_fm.heads.losses import squared

        device = pick_device(self.device)
        x, wanted = (torch.from_numpy(a).to(device) for a in (Z, (y - self.offset_).astype(np.float32)))
        weight = None if measured is None else torch.from_numpy(measured.astype(np.float32)).to(device)

        def mean_squared(net: Any, rows: torch.Tensor) -> torch.Tensor:
            if net.training and self.views > 1:
                seen = x[rows, torch.randint(self.views, rows.shape, device=rows.device)]
            else:
                seen = x[rows].mean(dim=1)
            return squared(net(seen), wanted[rows], None if weight is None else weight[rows])

        return mean_squared

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        import torch

        net, out = self._exact(), np.empty((len(X), len(self.offset_)))
        apart, slides = self._apart(X, groups)
        every = np.arange(len(apart))
        with torch.inference_mode():
            for rows, Z in self._scaled(apart, slides):  # the views of a spot are in one block: 8 divides its length
                mean = Z.reshape(-1, self.views, Z.shape[1]).mean(axis=1)
                out[every[rows][:: self.views] // self.views] = net(torch.from_numpy(mean)).numpy()
        return out * self.spread_ + self.offset_

    def _apart(self, X: NDArray[Any], groups: Any) -> tuple[NDArray[Any], Any]:
        """Return every view as a row of its own, with its slide."""
        repeated = None if groups is None else np.repeat(np.asarray(groups), self.views, axis=0)
        return X.reshape(len(X) * self.views, X.shape[1] // self.views), repeated
