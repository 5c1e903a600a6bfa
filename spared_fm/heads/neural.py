"""Train a small network on cached features: one function that every neural head shares, on PyTorch Lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import row_groups
from spared_fm.heads.lightning import import_lightning, pick_device, quiet, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]
    #: (network, row numbers on its device) -> mean loss of these rows, a scalar
    Loss = Callable[[Any, torch.Tensor], torch.Tensor]

#: Fewer training rows than this are not split: there is nothing to stop early by.
LEAST_ROWS = 10
#: Rows per batch when the held-out rows are scored.
SCORED_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes
    ----------
    steps
        Most optimiser steps.
    batch
        Rows per step, all if there are fewer; not used where the rows come in units.
    lr, weight_decay, optimizer
        Learning rate, weight decay and optimiser: ``"adamw"``, ``"adam"`` (the decay is an L2 penalty) or ``"sgd"``
        (momentum .9).
    schedule
        ``"constant"``, or ``"cosine"``: from ``lr`` to zero over ``steps``.
    clip
        Largest norm of the gradient, None for no limit.
    every, patience
        Steps between two scores on the held-out rows; how many scores in a row may be no better before training stops.
    refit
        Train once more, from the same first weights, on all rows, for the number of steps that was best times the
        share by which there are more rows (so that each is seen as often). False: the best weights are kept as they are.
    seed
        Decides first weights, order of rows and dropout.
    device
        ``"auto"`` (a CUDA device if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
    progress
        Show Lightning's progress bar.
    """

    steps: int
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-2
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = 1.0
    every: int = 20
    patience: int = 4
    refit: bool = True
    seed: int = 0
    device: str = "auto"
    progress: bool = False


@dataclass(frozen=True)
class Split:
    """Row numbers to train on, row numbers to stop by (may be none), and how they were parted.

    ``by`` is ``"patient"``, ``"slide"``, ``"block"`` (one end of the only slide), ``"rows"`` (drawn at random, since
    nothing else is known; neighbouring spots land on both sides and training stops late), or ``"none"``.
    """

    train: Rows
    held: Rows
    by: str


@dataclass
class History:
    """What a training run did.

    Attributes
    ----------
    split_by
        See `Split`.
    best_step
        The step with the best score: of the weights that are kept, or before a refit.
    scores
        (step, score on the held-out rows), lower is better.
    """

    split_by: str
    best_step: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)


def inner_split(groups: Any, coords: Any, rows: int, *, fraction: float = 0.2, seed: int = 0) -> Split:
    """Part the training rows for early stopping: by patient if there are two, else slide, else block, else row.

    Parameters
    ----------
    groups
        As in `Head.fit`.
    coords
        (rows, 2) positions or None. With one slide, the spots at one end of its longest direction are held out.
    rows
        Number of rows.
    fraction
        Share of the rows to hold out, about; at least one patient or slide, and never all.
    seed
        Decides which.

    Raises
    ------
    InputError
        The groups do not fit the rows.
    """
    everything = np.arange(rows)
    rng = np.random.default_rng(seed)
    code, by = known_units(groups, rows)
    if code is not None:
        sizes = np.bincount(code)
        order = rng.permutation(len(sizes))
        count = 1 + int(np.searchsorted(np.cumsum(sizes[order])[:-1], fraction * rows * 0.999))
        held = np.isin(code, order[: min(count, len(sizes) - 1)])
    elif rows < LEAST_ROWS:
        return Split(everything, everything[:0], "none")
    else:
        by = "rows" if coords is None else "block"
        order = rng.permutation(rows) if coords is None else np.argsort(main_direction(coords), kind="stable")
        held = np.isin(everything, order[rows - max(1, round(fraction * rows)) :])
    return Split(everything[~held], everything[held], by)


def known_units(groups: Any, rows: int) -> tuple[NDArray[np.intp] | None, str]:
    """Return the number of every row's patient if there are two or more, else of its slide if there are, else None."""
    slides, patients = row_groups(groups, rows)
    given = np.ndim(groups) == 2 or isinstance(groups, tuple)
    for by, labels in (("patient", patients), ("slide", slides)):
        names, code = np.unique(labels, return_inverse=True)
        if len(names) > 1 and (by == "slide" or given):
            return code, by
    return None, ""


def main_direction(coords: Any) -> NDArray[np.float64]:
    """Return how far each spot (n, 2) lies along the direction in which they spread most."""
    xy = np.asarray(coords, dtype=np.float64)
    _, _, axes = np.linalg.svd(xy - xy.mean(axis=0), full_matrices=False)
    axis = axes[0]
    sign = np.sign(axis[np.argmax(np.abs(axis))])  # an axis has no sign of its own
    found: NDArray[np.float64] = xy @ (axis * sign)
    return found


def entries(mask: Any, shape: tuple[int, ...], fit_on: str) -> NDArray[np.bool_] | None:
    """Return the entries (spots, genes) to fit, None for all.

    Raises
    ------
    InputError
        ``fit_on`` is ``"measured"`` but there is no mask of that shape, or it is empty.
    """
    if fit_on == "all":
        return None
    if mask is None:
        raise InputError("fit_on is 'measured' but there is no mask: give the layer's mask, or use fit_on 'all'")
    found = np.asarray(mask, dtype=bool).reshape(len(mask), -1)
    if found.shape != shape or not found.any():
        raise InputError(f"the mask has shape {found.shape} or is False everywhere: give one True or False per target")
    return found


def fit_net(
    build: Callable[[], torch.nn.Module],
    loss: Loss,
    split: Split,
    plan: Plan,
    *,
    units: NDArray[Any] | None = None,
    score: Loss | None = None,
) -> tuple[torch.nn.Module, History]:
    """Train a network with early stopping; the result is decided by the seed.

    Parameters
    ----------
    build
        Makes the network; called under the seed, once (twice if refitted).
    loss
        ``loss(net, rows)``: mean loss of some training rows. ``rows`` is an int64 tensor on the device; features and targets
        are the caller's, held in the closure on `pick_device`'s device.
    split
        From `inner_split`.
    plan
        How to train.
    units
        (n,) a label for every row of the training set; each step then gets all the rows of one unit that are
        trained on (a whole slide, say), and a score is taken unit by unit.
    score
        Like ``loss``, called without gradients and with dropout off on the held-out rows, averaged over them
        by their number; lower is better. None: ``loss``.

    Returns
    -------
    net, history
        The network on the CPU, in evaluation mode.

    Raises
    ------
    InputError
        The loss or the weights became NaN or infinite, or the plan is impossible.

    Notes
    -----
    Nothing is written or logged. torch's generators are put back afterwards; they are global, so heads must not be
    trained in several threads of one process at the same time.
    """
    _check(plan)
    net, history = _train(build, loss, score or loss, split, plan, units, plan.steps)
    if plan.refit and len(split.held):
        rows = np.sort(np.concatenate([split.train, split.held]))
        steps = min(plan.steps, round(history.best_step * len(rows) / len(split.train)))
        net, _ = _train(build, loss, loss, Split(rows, rows[:0], split.by), plan, units, steps)
    return net, history


def _check(plan: Plan) -> None:
    if plan.optimizer not in ("adamw", "adam", "sgd") or plan.schedule not in ("constant", "cosine"):
        raise InputError(f"no optimizer {plan.optimizer!r} or no schedule {plan.schedule!r}: see heads.neural.Plan")
    if min(plan.steps, plan.batch, plan.every, plan.patience) < 1 or not plan.lr > 0 or plan.weight_decay < 0:
        raise InputError("steps, batch, every, patience must be 1 or more, lr above 0, weight_decay 0 or more")


def _train(
    build: Callable[[], torch.nn.Module],
    loss: Loss,
    score: Loss,
    split: Split,
    plan: Plan,
    units: NDArray[Any] | None,
    stop: int,
) -> tuple[torch.nn.Module, History]:
    """Train for at most ``stop`` steps of the plan's schedule and return the best weights, or the last if none are scored."""
    import torch

    pl = import_lightning()
    from lightning_fabric.plugins.environments import LightningEnvironment

    device = pick_device(plan.device)
    history = History(split.by)
    best: dict[str, torch.Tensor] = {}

    class Task(pl.LightningModule):  # type: ignore[name-defined]
        """What Lightning calls; ``self.net`` is the network."""

        def __init__(self) -> None:
            super().__init__()
            self.net = build()
            self.sums: list[tuple[float, int]] = []

        def training_step(self, rows: torch.Tensor, _: int) -> torch.Tensor:
            return loss(self.net, rows)

        def validation_step(self, rows: torch.Tensor, _: int) -> None:
            self.sums.append((float(score(self.net, rows)), len(rows)))

        def on_validation_epoch_end(self) -> None:
            found = sum(value * count for value, count in self.sums) / sum(count for _, count in self.sums)
            self.sums.clear()
            history.scores.append((self.global_step, found))
            if found < min((value for _, value in history.scores[:-1]), default=math.inf):
                history.best_step = self.global_step
                best.update({key: value.detach().clone() for key, value in self.net.state_dict().items()})
            since = sum(step > history.best_step for step, _ in history.scores)
            self.trainer.should_stop = since >= plan.patience or not math.isfinite(found)

        def configure_optimizers(self) -> Any:
            made = _optimizer(self.net, plan)
            if plan.schedule == "constant":
                return made
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=plan.steps)
            return {"optimizer": made, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    index = [device.index or 0] if device.type == "cuda" else 1
    with seeded(plan.seed, device), quiet():
        task = Task()
        scored = len(split.held) > 0
        pl.Trainer(
            accelerator=device.type,
            devices=index,
            max_steps=stop,
            val_check_interval=min(plan.every, stop) if scored else None,
            check_val_every_n_epoch=None if scored else 1,
            gradient_clip_val=plan.clip,
            deterministic=True,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=plan.progress,
            plugins=[LightningEnvironment()],  # a cluster's variables are not for us
        ).fit(task, Batches(split.train, units, plan, stop), Parts(split.held, units) if scored else None)
    net = task.net.cpu().eval()
    if best:
        net.load_state_dict(best)
    else:
        history.best_step = stop
    finite = all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())
    if not finite or (scored and not best):
        raise InputError("training diverged to NaN or infinity: lower lr, or look for outliers in the targets")
    return net, history


class Batches:
    """Row numbers of every step: rows in random order, each seen once before any is seen again, or whole units."""

    def __init__(self, rows: Rows, units: NDArray[Any] | None, plan: Plan, steps: int) -> None:
        self.rows, self.seed, self.steps = rows, plan.seed, steps
        self.batch = min(plan.batch, len(rows))
        self.parts = None if units is None else Parts(rows, units).parts

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        import torch

        rng = np.random.default_rng(self.seed)
        waiting = np.zeros(0, dtype=np.int64)
        pool = self.rows if self.parts is None else np.arange(len(self.parts))
        size = self.batch if self.parts is None else 1
        for _ in range(self.steps):
            if len(waiting) < size:
                waiting = np.concatenate([waiting, rng.permutation(pool)])
            now, waiting = waiting[:size], waiting[size:]
            yield torch.from_numpy(now) if self.parts is None else self.parts[int(now[0])]


class Parts:
    """Row numbers cut into their units, or into pieces; not a list, which Lightning takes for several loaders."""

    def __init__(self, rows: Rows, units: NDArray[Any] | None) -> None:
        import torch

        if units is None:
            cut = [rows[i : i + SCORED_ROWS] for i in range(0, len(rows), SCORED_ROWS)]
        else:
            own = units[rows]
            cut = [rows[own == unit] for unit in np.unique(own)]
        self.parts = [torch.from_numpy(part) for part in cut]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.parts)


def _optimizer(net: torch.nn.Module, plan: Plan) -> torch.optim.Optimizer:
    import torch

    if plan.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), lr=plan.lr, momentum=0.9, weight_decay=plan.weight_decay)
    kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    return kind(net.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
