"""Completion by rate attention: what a gene's rate is in similar spots of the slide, and what that says of an entry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from spared_fm.errors import InputError
from spared_fm.targets.completion import folder as files
from spared_fm.targets.completion.data import Completed, check_genes, hide, mask_probability
from spared_fm.targets.completion.rate_entries import (
    Case,
    attended,
    chosen_inputs,
    errors,
    hide_in,
    predict,
    ratios,
    to_values,
)
from spared_fm.targets.completion.rate_inputs import (
    Around,
    Counted,
    Prior,
    Unit,
    View,
    around,
    check_known,
    counted,
    cut,
    prior_of,
    unit_of,
)
from spared_fm.targets.completion.rate_nets import Averaged, RateNet, Sizes, blocks
from spared_fm.targets.completion.training import fingerprint, one_cycle, seeded
from spared_fm.targets.completion.training import train as run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spared_fm.targets.completion.data import Panel, Progress, Section

RULES: tuple[str | float, ...] = ("spared", 0.1, 0.5, 0.7)
"""What is hidden to validate and to calibrate."""

COVERED = 0.9
"""Share of hidden validation entries within 1.645 times the spread."""

_PIECE = 1500  # spots; larger training slides are cut
_NORMAL = 1.6448536269514722  # half width of a normal distribution's central 90 %
_MOMENTUM = 0.85, 0.95  # AdamW's first beta at the peak of the learning rate, and at its foot
_CLIP = 1.0  # norm of a step's gradient at most
_LIKELIHOOD = 0.1  # weight of the Gaussian likelihood, from which the variance is learnt, beside the squared error
_SPARED = 0.3  # how often SpaRED's rule hides in training
_SHARES = 0.05, 0.75  # the range a share is drawn from otherwise


@dataclass(frozen=True)
class Settings:
    """How rate attention is trained; the card of a fitted completer holds them.

    Attributes
    ----------
    members
        Nets that are trained alike but for the seed, and averaged.
    steps
        Steps for each.
    spots
        Spots per step, in whole slides.
    learning_rate, weight_decay
        Peak of AdamW's one-cycle rate, and decay of matrices.
    every
        Steps between validations.
    patience
        Stop after this many steps without a better validation. None: never.
    average
        Decay of the running mean of the weights.
    """

    members: int = 4
    steps: int = 250
    spots: int = 1200
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    every: int = 50
    patience: int | None = None
    average: float = 0.98


class RateAttention:
    """Completes a slide from rates pooled over similar spots (name ``rate-attention``), on CPU or GPU.

    Values become counts (by ``Section.unit`` where there is one). The count expected in an entry is estimated from the
    gene's rate near the spot, further around, on the slide and in training; attention heads, over the spot's neighbours and
    over the whole slide, add rates of spots that look alike; a small net corrects what they say by the spot's visible genes.
    Predicted is the mean of an entry *given that it is measured* (counted at least once), as hidden entries are: a prediction
    is never below a single count. Nets are trained on entries hidden on the fly at shares of 5 to 75 % and by SpaRED's rule;
    a prediction is the mean over nets, its spread joins theirs with their disagreement and is scaled on validation slides.

    Any slide can be completed: one of few spots, or of one; genes missing on all of it rest on training rates; a spot without
    a count has the slide's median depth; entries of a slide without any count are those of an average training slide.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    sizes
        Sizes of the nets.
    **settings
        Fields of :class:`Settings`.
    """

    name: ClassVar[str] = "rate-attention"

    def __init__(self, *, device: str = "cpu", sizes: Sizes | None = None, **settings: float | None) -> None:
        try:
            self.settings = Settings(**settings)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"{self.name} has no such setting ({error})") from error
        if self.settings.members < 1 or self.settings.steps < 1:
            raise InputError(f"{self.name} needs one member and one step at least")
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"{device!r} is not a device: choose cpu, cuda or cuda:1") from error
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"{device} is not to be had on this machine: choose device cpu")
        self.sizes = sizes or Sizes()
        self.genes: tuple[str, ...] = ()
        self.unit: Unit
        self.prior: Prior
        self.nets: list[RateNet] = []
        self.stretch = 1.0
        self.trained: list[dict[str, Any]] = []

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
        """Train on visible entries that are hidden on the fly; nothing else is ever a target.

        Parameters
        ----------
        train
            Sections to learn from.
        validate
            Sections on which steps are chosen and the spread is scaled: entries hidden from them once by each of
            :data:`RULES`. Empty: the last step is kept, and the spread is as learnt.
        panel
            Genes and their measured shares, from the training sections.
        seed
            Of first weights, batches, hiding and dropout.
        checkpoint
            Folder from which a killed training goes on, to the same result.
        progress
            Told after each step, over all members.

        Raises
        ------
        InputError
            No training spot, a gene never measured in training, sections of other panels, or a checkpoint of another
            training.
        """
        for section in (*train, *validate):
            check_genes(section, len(panel.genes))
        check_known(train, panel.genes)
        pieces = [piece for section in train for piece in cut(section, _PIECE) if len(piece.values)]
        self.unit = unit_of(pieces)
        slides = [counted(piece, self.unit) for piece in pieces]
        self.prior, self.genes = prior_of(slides), tuple(panel.genes)
        places = [around(piece) for piece in pieces]
        checks = self._checks(validate, panel, seed)
        parts = (a for s in (*pieces, *validate) for a in (s.values, s.visible, s.xy, s.library))
        data = fingerprint(*parts, panel.measured)
        self.nets, self.trained = [], []
        for member in range(self.settings.members):
            net = self._train(member, slides, places, checks, panel, seed, checkpoint, progress, data)
            self.nets.append(net)
        self.stretch = 1.0
        if checks:
            every = [ratios(self.nets, case, self.unit.base) for cases in checks for case in cases]
            self.stretch = float(np.quantile(np.concatenate(every), COVERED) / _NORMAL)
        return self

    def complete(self, section: Section) -> Completed:
        """Predict every entry of one slide, and its spread; deterministic, from this slide alone.

        Raises
        ------
        InputError
            Not fitted, or a section of another panel.
        """
        if not self.nets:
            raise InputError(f"{self.name} is not fitted: call fit or load first")
        check_genes(section, len(self.genes))
        if not len(section.values):
            return Completed(np.empty(section.values.shape, np.float32), np.empty(section.values.shape, np.float32))
        one = counted(section, self.unit, self.prior.depth)
        view = View(one, around(section), self.prior)
        log_count, variance = predict(self.nets, view, attended(view, self.device))
        for rows in blocks(len(log_count)):  # in place: a large slide's entries are held as few times as can be
            amount = torch.from_numpy(one.amount[rows]).to(self.device)
            log_count[rows], slope = to_values(log_count[rows], amount, self.unit.base)
            variance[rows] = variance[rows].sqrt() * slope * self.stretch
        return Completed(log_count.cpu().numpy(), variance.cpu().numpy())

    def save(self, folder: Path) -> None:
        """Write card and weights into a new folder."""
        if not self.nets:
            raise InputError(f"{self.name} is not fitted: call fit or load first")
        arrays = {"rate": self.prior.rate, "seen": self.prior.seen, "amount": self.unit.amount}
        for member, net in enumerate(self.nets):
            arrays |= {f"{member}.{key}": value.cpu().numpy() for key, value in net.state_dict().items()}
        card = {
            "settings": asdict(self.settings),
            "sizes": asdict(self.sizes),
            "base": self.unit.base,
            "total": self.unit.total,
            "depth": self.prior.depth,
            "stretch": self.stretch,
            "trained": self.trained,
        }
        files.write(folder, self.name, self.genes, card, arrays)

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None, *, device: str = "cpu") -> Self:
        """Read what :meth:`save` wrote, for this panel (None: whichever it is)."""
        card, arrays = files.read(folder, cls.name, genes)
        try:
            made = cls(device=device, sizes=Sizes(**card["sizes"]), **card["settings"])
            made.genes, made.stretch, made.trained = tuple(card["genes"]), float(card["stretch"]), card["trained"]
            made.unit = Unit(card["base"], card["total"], arrays["amount"])
            made.prior = Prior(arrays["rate"], arrays["seen"], float(card["depth"]))
            for member in range(made.settings.members):
                net = RateNet(len(made.genes), made.sizes)
                start = f"{member}."
                state = {key[len(start) :]: torch.tensor(a) for key, a in arrays.items() if key.startswith(start)}
                net.load_state_dict(state)
                made.nets.append(net.to(made.device).eval())
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{folder} can't be read as {cls.name}: fit it again") from error
        return made

    def _train(
        self,
        member: int,
        slides: list[Counted],
        places: list[Around],
        checks: list[list[Case]],
        panel: Panel,
        seed: int,
        checkpoint: Path | None,
        progress: Progress | None,
        data: str,
    ) -> RateNet:
        settings = self.settings
        own_seed = seed * settings.members + member
        start = np.random.default_rng([own_seed])
        firsts = [
            self._case(*pair, start.random(pair[0].counts.shape) < 0.4) for pair in zip(slides, places, strict=True)
        ]
        net: Any = seeded(lambda: RateNet(len(panel.genes), self.sizes), own_seed)
        net.standardise(
            torch.cat([chosen_inputs(case.view.maps(slice(None))[0], case.spot, case.gene) for case in firsts])
        )
        both: Any = Averaged(net, settings.average).to(self.device)

        def loss(step: int, rng: np.random.Generator) -> Tensor:
            if step:
                both.update()
            found, variances = [], []
            for i in _chosen(rng, [len(one.counts) for one in slides], settings.spots):
                hidden = hide(slides[i].counts > 0, _share(rng, panel.measured), rng)
                error, variance = errors(both.net, self._case(slides[i], places[i], hidden), self.unit.base)
                found.append(error)
                variances.append(variance)
            error, variance = torch.cat(found), torch.cat(variances)
            if not len(error):
                return both.net.offset.sum() * 0
            likelihood = (variance.log() + error.detach().square() / variance).mean() / 2
            return error.square().mean() + _LIKELIHOOD * likelihood

        def score() -> float:
            return float(
                np.mean([_mse([errors(both.average, case, self.unit.base)[0] for case in cases]) for cases in checks])
            )

        matrices = [p for p in both.net.parameters() if p.ndim > 1]
        others = [p for p in both.net.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate,
        )

        def before(*_: Any) -> None:
            clip_grad_norm_(both.net.parameters(), _CLIP)
            for group in optimizer.param_groups:
                share = (
                    group["lr"] / group["initial_lr"]
                )  # momentum falls as the rate rises, as in the one-cycle policy
                group["betas"] = (_MOMENTUM[1] - share * (_MOMENTUM[1] - _MOMENTUM[0]), group["betas"][1])

        optimizer.register_step_pre_hook(before)
        history = run(
            both,
            loss,
            score if checks else None,
            optimizer=optimizer,
            steps=settings.steps,
            every=settings.every,
            patience=settings.patience,
            rate=one_cycle(settings.steps, warm_up=0.15),
            seed=own_seed,
            checkpoint=checkpoint / f"member{member}.pt" if checkpoint else None,
            settings=asdict(settings) | asdict(self.sizes) | {"name": self.name, "member": member, "data": data},
            progress=_shifted(progress, member, settings),
        )
        found = {"seed": own_seed, "steps": history.step, "best_step": history.best_step}
        self.trained.append(found | ({"best_mse": history.best_score} if history.scores else {}))
        return both.average

    def _checks(self, validate: Sequence[Section], panel: Panel, seed: int) -> list[list[Case]]:
        """Cases of each rule that hides anything at all."""
        checks = []
        for rule in RULES:
            probability = mask_probability(panel.measured, rule)
            cases = []
            for i, section in enumerate(validate):
                one = counted(section, self.unit, self.prior.depth)
                cases.append(
                    self._case(
                        one, around(section), hide(section.visible, probability, np.random.default_rng([seed, i]))
                    )
                )
            if any(len(case.truth) for case in cases):
                checks.append([case for case in cases if len(case.truth)])
        return checks

    def _case(self, one: Counted, place: Around, hidden: np.ndarray) -> Case:
        return hide_in(one, place, hidden, self.unit, self.prior, self.device)


def _chosen(rng: np.random.Generator, sizes: list[int], spots: int) -> list[int]:
    """Slides of one step: in random order until there are spots enough."""
    order = rng.permutation(len(sizes))
    before = np.cumsum([0, *(sizes[i] for i in order[:-1])])
    return [int(i) for i in order[before < spots]]


def _share(rng: np.random.Generator, measured: np.ndarray) -> np.ndarray:
    """Share of each gene's measured entries to hide in one slide of one step."""
    if rng.random() < _SPARED:
        return mask_probability(measured, "spared")
    share = rng.uniform(*_SHARES) + rng.normal(0, 0.1, len(measured))
    return np.clip(share, 0.02, 0.95)


def _mse(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().square().mean())


def _shifted(progress: Progress | None, member: int, settings: Settings) -> Progress | None:
    if progress is None:
        return None
    return lambda step, steps, figures: progress(member * steps + step, settings.members * steps, figures)
