"""SpaCKLE (arXiv 2407.13027, 2505.02980) in two variants: ``spackle-released`` and ``spackle``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from spared_fm.errors import InputError
from spared_fm.targets.completion import folder as files
from spared_fm.targets.completion.baselines import hidden_error, hidden_trials
from spared_fm.targets.completion.data import Completed, check_genes, mask_probability, neighbours
from spared_fm.targets.completion.spackle_nets import DescribedNet, ReleasedNet, read_released
from spared_fm.targets.completion.training import fingerprint, seeded
from spared_fm.targets.completion.training import train as run
from spared_fm.targets.spared.graph import hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spared_fm.targets.completion.data import Panel, Progress, Section

BATCH = 256
HEXAGONAL = 6  # neighbours of a spot on such a grid
RULE = "spared"  # which share of a gene's entries is hidden, in training and for validation


@dataclass(frozen=True)
class Table:
    """Spots of all training slides, and which rows stand around each: gathered once, before the first step.

    Attributes
    ----------
    values
        ``(rows, g)`` float32.
    visible
        ``(rows, g)`` bool.
    index
        ``(n, 19)`` int64: rows of the spot and its 18 nearest on its slide.
    padding
        ``(n, 19)`` bool, True where the slide has no more spots; None where all have enough.
    """

    values: Tensor
    visible: Tensor
    index: Tensor
    padding: Tensor | None


@dataclass(frozen=True)
class Settings:
    """How a variant is trained; the card of a fitted completer holds them.

    Attributes
    ----------
    steps
        Steps of :data:`BATCH` spots at most.
    learning_rate
        Of Adam.
    every
        Steps between validations.
    patience
        Stop after this many steps without a better validation. None: never.
    loss
        ``"full"`` or ``"hidden"``: on all measured entries or on those hidden in this step (``spackle`` only).
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    every: int = 10
    patience: int | None = None
    loss: str = "full"


class _Spackle(ABC):
    """What the two variants share: settings, training, validation, files."""

    name: ClassVar[str]
    defaults: ClassVar[Settings]
    losses: ClassVar[tuple[str, ...]]

    def __init__(self, *, device: str = "cpu", **settings: float | str | None) -> None:
        try:
            self.settings = replace(self.defaults, **settings)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"{self.name} has no such setting ({error})") from error
        if self.settings.loss not in self.losses:
            raise InputError(f"{self.name}: loss {self.settings.loss!r} is not one of {', '.join(self.losses)}")
        self.device = _device(device)
        self.net: Any = None
        self.genes: tuple[str, ...] = ()
        self.trained: dict[str, float] = {}

    def fit(
        self,
        train: Sequence[Section],
        validate: Sequence[Section],
        panel: Panel,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train on visible entries, some of them hidden anew in each step; entries that are not visible are unknown to it.

        Parameters
        ----------
        train
            Sections to learn from. A slide of fewer than 19 spots takes part with the neighbours it has.
        validate
            Sections on which the best step is chosen: every few steps, the MSE of entries hidden from them once
            (p = min(1, 0.3 / f)), predicted as :meth:`complete` does. Empty, or with
            nothing visible: the last step is kept.
        panel
            Genes and their measured shares, from the training sections.
        seed
            Of first weights, batches, hiding and dropout.
        checkpoint
            Folder from which a killed training goes on, to the same weights.
        progress
            Told after each step.

        Raises
        ------
        InputError
            No training spot, a gene never measured in training, sections of other panels, or a checkpoint of another
            training.
        """
        for section in (*train, *validate):
            check_genes(section, len(panel.genes))
        if not sum(len(section.values) for section in train):
            raise InputError("no training spot: give at least one training slide with spots")
        seen = np.any([section.visible.any(axis=0) for section in train], axis=0)
        if not seen.all():
            gene = panel.genes[int(np.flatnonzero(~seen)[0])]
            raise InputError(f"gene {gene} is measured in no training spot: leave it out of the panel")
        chance = torch.as_tensor(mask_probability(panel.measured, RULE), dtype=torch.float32, device=self.device)
        table = self._table(train)
        net = seeded(lambda: self._make(len(panel.genes)), seed).to(self.device)
        candidate = copy(self)  # not self: a fit that is cut off leaves nothing that looks fitted
        candidate.net, candidate.genes = net, tuple(panel.genes)
        trials = [
            pair for pair in hidden_trials(validate, panel, seed) if pair[0].visible.sum() < pair[1].visible.sum()
        ]

        def loss(step: int, _: np.random.Generator) -> Tensor:
            rows = torch.from_numpy(batch_rows(len(table.index), BATCH, step, seed)).to(self.device)
            return self._loss(net, table, rows, chance)

        settings = asdict(self.settings)
        data = (a for s in (*train, *validate) for a in (s.values, s.visible, s.xy))
        history = run(
            net,
            loss,
            (lambda: hidden_error(candidate, trials)) if trials else None,
            optimizer=torch.optim.Adam(net.parameters(), lr=self.settings.learning_rate),
            steps=self.settings.steps,
            every=self.settings.every,
            patience=self.settings.patience,
            seed=seed,
            checkpoint=checkpoint / "training.pt" if checkpoint else None,
            settings=settings | {"name": self.name, "data": fingerprint(*data, panel.measured)},
            progress=progress,
        )
        self.net, self.genes = candidate.net, candidate.genes
        self.trained = {"seed": seed, "steps": history.step, "best_step": history.best_step}
        if history.scores:
            self.trained["best_mse"] = history.best_score
        return self

    def complete(self, section: Section) -> Completed:
        """Predict every entry of one slide, ``(n, g)`` float32; this method states no uncertainty.

        Raises
        ------
        InputError
            Not fitted, or a section of another panel.
        """
        net = self._fitted()
        check_genes(section, len(self.genes))
        with torch.no_grad():
            return Completed(self._predict(net, section), None)

    def save(self, folder: Path) -> None:
        """Write card and weights into a new folder."""
        arrays = {key: value.cpu().numpy() for key, value in self._fitted().state_dict().items()}
        files.write(folder, self.name, self.genes, {"settings": asdict(self.settings), "trained": self.trained}, arrays)

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None, *, device: str = "cpu") -> Self:
        """Read what :meth:`save` wrote, for this panel (None: whichever it is)."""
        card, arrays = files.read(folder, cls.name, genes)
        try:
            made = cls(device=device, **card["settings"])
            net = made._make(len(card["genes"]))
            net.load_state_dict({key: torch.tensor(value) for key, value in arrays.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{folder} can't be read as {cls.name}: fit it again") from error
        made.net, made.genes, made.trained = net.to(made.device).eval(), tuple(card["genes"]), card.get("trained", {})
        return made

    def _fitted(self) -> Any:
        if self.net is None:
            raise InputError(f"{self.name} is not fitted: call fit or load first")
        return self.net

    @abstractmethod
    def _make(self, n_genes: int) -> Any:
        """Make the module with fresh weights."""

    @abstractmethod
    def _table(self, train: Sequence[Section]) -> Table:
        """Gather inputs and targets of training, on the device."""

    @abstractmethod
    def _loss(self, net: Any, table: Table, rows: Tensor, chance: Tensor) -> Tensor:
        """Loss on the neighbourhoods of ``rows``, each measured entry hidden with the ``chance`` of its gene."""

    @abstractmethod
    def _predict(self, net: Any, section: Section) -> np.ndarray:
        """Every entry of a section, ``(n, g)`` float32."""


class SpackleReleased(_Spackle):
    """SpaCKLE as package ``spared`` 2.2.1 has it (name ``spackle-released``), on CPU or GPU.

    As released: attention over the batch (:class:`ReleasedNet`); entries hidden in all 19 spots with p = min(1, 0.3 / f);
    entries missing by nature enter training as their adaptive median, and completion as 0; MSE over all spots and entries
    against the median-completed matrix; Adam, 256 spots a step in shuffled epochs, the rest of an epoch dropped. It
    completes 256 consecutive spots of a slide at a time, and **what it predicts for a spot depends on the others**.

    By a rule of ours, where the released code has none that could be kept: neighbours lie on the spot's own slide (it mixes
    slides that overlap in pixels; they are only further samples, a spot's prediction does not depend on them); a slide of
    fewer than 19 spots repeats the spot itself; fewer than 256 training spots make one batch; validation hides the same
    entries each time and completes as in use (it draws anew each time and enters medians).

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    **settings
        Fields of :class:`Settings`; ``loss`` is ``"full"``.
    """

    name: ClassVar[str] = "spackle-released"
    defaults: ClassVar[Settings] = Settings()
    losses: ClassVar[tuple[str, ...]] = ("full",)

    @classmethod
    def from_checkpoint(cls, path: Path, genes: Sequence[str], *, device: str = "cpu") -> Self:
        """Take the weights of a checkpoint that the released code wrote (:func:`read_released`), for this panel."""
        made = cls(device=device)
        made.net, made.genes = read_released(path, len(genes)).to(made.device), tuple(genes)
        return made

    def _make(self, n_genes: int) -> ReleasedNet:
        return ReleasedNet(n_genes)

    def _table(self, train: Sequence[Section]) -> Table:
        filled = [
            complete_median(one.values, hops_around(slide_graph(one.xy, hex_geometry=one.k == HEXAGONAL)))
            for one in train
        ]
        index = _around(train)
        index = np.where(index < 0, index[:, :1], index)
        return _tensors(filled, [section.visible for section in train], index, None, self.device)

    def _loss(self, net: ReleasedNet, table: Table, rows: Tensor, chance: Tensor) -> Tensor:
        around = table.index[rows]
        target = table.values[around]
        hidden = (torch.rand_like(target) < chance) & table.visible[around]
        return mse_loss(net(target.masked_fill(hidden, 0.0)), target)

    def _predict(self, net: ReleasedNet, section: Section) -> np.ndarray:
        spots = torch.as_tensor(section.values, dtype=torch.float32, device=self.device)
        return _joined([net(part[:, None])[:, 0] for part in spots.split(BATCH) if len(part)], section)


class Spackle(_Spackle):
    """SpaCKLE as its paper describes it (name ``spackle``), on CPU or GPU.

    Attention over a spot and its 18 nearest on its slide (:class:`DescribedNet`). Whatever is not visible enters as 0, in
    training and in use. Training hides entries in all 19 spots with p = min(1, 0.3 / f). The loss is the MSE on those of the
    centre spot that were hidden, or with ``loss="full"`` on all its measured entries, which is nearer to the paper's; the
    first did better on slides of a patient it was chosen on (by 2 to 3 %). Median-completed entries are never a target. What
    it predicts for a spot depends on its neighbourhood only.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    **settings
        Fields of :class:`Settings`.
    """

    name: ClassVar[str] = "spackle"
    defaults: ClassVar[Settings] = Settings(patience=500, loss="hidden")
    losses: ClassVar[tuple[str, ...]] = ("full", "hidden")

    def _make(self, n_genes: int) -> DescribedNet:
        return DescribedNet(n_genes)

    def _table(self, train: Sequence[Section]) -> Table:
        nothing = np.zeros((1, train[0].values.shape[1]))  # the row that stands where a slide has no more spots
        index = _around(train)
        padding = index < 0
        return _tensors(
            [*(section.values for section in train), nothing],
            [*(section.visible for section in train), nothing],
            np.where(padding, len(index), index),
            padding if padding.any() else None,
            self.device,
        )

    def _loss(self, net: DescribedNet, table: Table, rows: Tensor, chance: Tensor) -> Tensor:
        tokens = table.values[table.index[rows]]
        hidden = torch.rand_like(tokens) < chance
        scored = table.visible[rows]
        if self.settings.loss == "hidden":
            scored = scored & hidden[:, 0]
        padding = None if table.padding is None else table.padding[rows]
        error = (net(tokens.masked_fill(hidden, 0.0), padding) - table.values[rows]) * scored
        return error.square().sum() / scored.sum().clamp(min=1)

    def _predict(self, net: DescribedNet, section: Section) -> np.ndarray:
        spots = torch.as_tensor(section.values, dtype=torch.float32, device=self.device)
        around = _around([section])[:, : len(spots)]  # in a small slide all spots have equally few neighbours
        index = torch.from_numpy(around).to(self.device)
        return _joined([net(spots[part]) for part in index.split(BATCH) if len(part)], section)


def batch_rows(n: int, size: int, step: int, seed: int) -> np.ndarray:
    """Rows of one step: epochs in a shuffled order of their own, what is left of an epoch dropped; ``(min(size, n),)``."""
    size = min(size, n)
    epoch, batch = divmod(step, n // size)
    return _order(n, epoch, seed)[batch * size : (batch + 1) * size]


@lru_cache(maxsize=1)
def _order(n: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 1]).permutation(n)


def _around(sections: Sequence[Section]) -> np.ndarray:
    """Row of each spot and of its neighbours on its slide among the rows of all sections, ``(n, 19)``; -1 is padding."""
    found, start = [], 0
    for section in sections:
        near = neighbours(section.xy)
        near = np.column_stack([np.arange(len(near)), near])
        found.append(np.where(near < 0, -1, near + start))
        start += len(near)
    return np.concatenate(found)


def _tensors(
    values: list[np.ndarray], visible: list[np.ndarray], index: np.ndarray, padding: np.ndarray | None, device: str
) -> Table:
    return Table(
        torch.from_numpy(np.concatenate(values).astype(np.float32)).to(device),
        torch.from_numpy(np.concatenate(visible).astype(bool)).to(device),
        torch.from_numpy(index).to(device),
        None if padding is None else torch.from_numpy(padding).to(device),
    )


def _joined(parts: list[Tensor], section: Section) -> np.ndarray:
    if not parts:
        return np.zeros(section.values.shape, np.float32)
    return torch.cat(parts).cpu().numpy()


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: choose cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} is not there: torch sees no CUDA GPU; choose cpu")
    return name
