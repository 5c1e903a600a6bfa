"""A multilayer perceptron: all genes from one vector per spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.network import SIZES, NeuralHead
from spared_fm.heads.neural import entries, fit_net, inner_split

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from spared_fm.heads.neural import Loss

LOSSES = ("mse", "mse+pcc", "nb")


class MLP(NeuralHead):
    """Linear, LayerNorm, GELU, dropout, twice, and a linear layer to the genes.

    Parameters
    ----------
    loss
        ``"mse"``: on targets with mean 0 and variance 1, so that every gene counts the same. ``"mse+pcc"``: this plus
        half of one minus the Pearson correlation of each gene over the batch (the loss of SGN and EGGN). ``"nb"``: negative
        binomial likelihood of raw counts, one dispersion per gene, the logarithm of the spot's total over the panel
        as offset. The totals of new spots are not known: predictions are counts at the training median of the totals.
    size
        ``"small"``: 256 wide, 300 steps, one network. ``"published"``: 512 wide, 3,000 steps, the mean of five networks.
    width, depth, steps, ensemble
        Override the size; width and number of hidden layers, most steps, number of networks.
    dropout, lr, weight_decay, batch
        Of the training (AdamW).
    standardize
        As for `Ridge`.
    fit_on
        ``"all"`` entries, or only those ``"measured"`` (the mask of ``fit``).
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Attributes
    ----------
    library_
        Total counts that predictions are for (``"nb"``), else 1.

    Notes
    -----
    Training stops early by inner slides, and is then repeated on all slides: see
    `spared_fm.heads.neural.inner_split` and `spared_fm.heads.neural.Plan`.
    """

    name: ClassVar[str] = "mlp"
    arrays: ClassVar[tuple[str, ...]] = (*NeuralHead.arrays, "library")
    poor_score: ClassVar[bool] = True  # three hundred steps
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 256, "depth": 2, "steps": 300, "ensemble": 1},
        "published": {"width": 512, "depth": 2, "steps": 3000, "ensemble": 5},
    }

    library_: float

    def __init__(
        self,
        loss: Literal["mse", "mse+pcc", "nb"] = "mse",
        *,
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
        self.loss = loss
        self.size = size
        self.width = width
        self.depth = depth
        self.steps = steps
        self.ensemble = ensemble
        self.dropout = dropout
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch = batch
        self.standardize = standardize
        self.fit_on = fit_on
        self.seed = seed
        self.device = device
        self.progress = progress

    def _net(self, d: int, genes: int) -> torch.nn.Module:
        import torch

        return torch.nn.ModuleList(self._one(d, genes) for _ in range(self._of_size("ensemble")))

    def _one(self, d: int, genes: int) -> torch.nn.Module:
        from torch import nn

        width, layers = self._of_size("width"), []
        for layer in range(self._of_size("depth")):
            layers += [
                nn.Linear(width if layer else d, width),
                nn.LayerNorm(width),
                nn.GELU(),
                nn.Dropout(self.dropout),
            ]
        net = nn.Sequential(*layers, nn.Linear(width if layers else d, genes))
        if self.loss == "nb":
            import torch

            net.register_parameter("log_dispersion", nn.Parameter(torch.zeros(genes)))
        return net

    def _check_params(self) -> None:
        self._choice("size", SIZES)
        self._choice("loss", LOSSES)
        self._choice("fit_on", ("all", "measured"))
        if min(self._of_size("width"), self._of_size("ensemble")) < 1 or not 0 <= self.dropout < 1:
            raise InputError(f"{self.name} width and ensemble must be 1 or more, dropout from 0 to below 1")

    def _inputs(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        """Return what the network sees of each spot, (n, inputs), not yet standardised."""
        return X

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:

        from torch import nn

        self._check_params()
        Z = self._scaled_fit(self._inputs(X, groups, coords), groups)
        split = inner_split(groups, coords, len(X), seed=self.seed)
        loss = self._loss(Z, y, mask)
        nets, steps = nn.ModuleList(), []
        for i in range(self._of_size("ensemble")):
            plan = self._plan(seed=self.seed + i)
            net, history = fit_net(lambda: self._one(Z.shape[1], y.shape[1]), loss, split, plan)
            nets.append(net)
            steps.append(history.best_step)
        self.net_ = nets.eval()
        self.best_step_ = int(np.mean(steps))

    def _loss(self, Z: NDArray[np.float32], y: NDArray[Any], mask: Any) -> Loss:
        """Learn the scale of the targets and return the loss over rows."""
        import torch

        from spared_fm.heads.losses import negative_binomial, pearson, squared

        device = pick_device(self.device)
        measured = entries(mask, y.shape, self.fit_on)
        x, wanted = torch.from_numpy(Z).to(device), torch.from_numpy(self._wanted(y, measured)).to(device)
        weight = None if measured is None else torch.from_numpy(measured.astype(np.float32)).to(device)

        def mean_squared(net: Any, rows: torch.Tensor) -> torch.Tensor:
            return squared(net(x[rows]), wanted[rows], None if weight is None else weight[rows])

        def and_correlation(net: Any, rows: torch.Tensor) -> torch.Tensor:
            found, some = net(x[rows]), None if weight is None else weight[rows]
            return squared(found, wanted[rows], some) + 0.5 * (1.0 - pearson(found, wanted[rows], some))

        base = torch.from_numpy(self.offset_.astype(np.float32)).to(device)
        totals = wanted.sum(dim=1, keepdim=True).clamp_min(1.0).log() if self.loss == "nb" else base

        def likelihood(net: Any, rows: torch.Tensor) -> torch.Tensor:
            some = None if weight is None else weight[rows]
            return negative_binomial(net(x[rows]) + base + totals[rows], net.log_dispersion, wanted[rows], some)

        return {"mse": mean_squared, "mse+pcc": and_correlation, "nb": likelihood}[self.loss]

    def _wanted(self, y: NDArray[Any], measured: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Learn the scale of the targets and return what the loss compares with."""
        self.library_ = 1.0
        scaled = self._targets_fit(y, measured)
        if self.loss != "nb":
            return scaled
        if y.min() < 0 or (y != np.rint(y)).any():
            raise InputError(f"{self.name} with loss 'nb' needs raw counts: fit the layer 'counts', or use loss 'mse'")
        totals = y.sum(axis=1, dtype=np.float64)
        share = y.sum(axis=0, dtype=np.float64) / max(totals.sum(), 1.0)
        self.offset_, self.spread_ = np.log(np.maximum(share, 1e-9)), np.ones(y.shape[1])
        self.library_ = float(np.median(totals))
        return y.astype(np.float32)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        import torch

        nets, out = list(self._exact().children()), np.empty((len(X), len(self.offset_)))
        with torch.inference_mode():
            for rows, Z in self._scaled(self._inputs(X, groups, coords), groups):
                out[rows] = self._mean(torch.stack([net(torch.from_numpy(Z)) for net in nets]).numpy())
        return out

    def _mean(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean prediction of the networks' outputs (networks, spots, genes)."""
        scaled = found * self.spread_ + self.offset_
        return (np.exp(scaled) * self.library_ if self.loss == "nb" else scaled).mean(axis=0)
