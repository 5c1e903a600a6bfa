"""Train a torch module step by step: validated, stopped early, and resumed after a kill to the same last bit."""

from __future__ import annotations

import hashlib
import math
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spared_fm.errors import InputError
from spared_fm.folders import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from spared_fm.targets.completion.data import Progress

FORMAT = 1


@dataclass
class History:
    """What happened in a training; plain numbers, ready for a card.

    Attributes
    ----------
    step
        Steps taken.
    best_step, best_score
        The step whose weights were kept, and its validation score (NaN without validation).
    losses
        Mean training loss since the validation before, one for each validation.
    scores
        ``(step, score)`` of each validation.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = math.nan
    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)


def one_cycle(steps: int, warm_up: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> Callable[[int], float]:
    """Return the one-cycle schedule as a function of the step (0 first): share of the peak learning rate.

    A cosine rise from ``start`` to 1 over the share ``warm_up`` of the steps, then a cosine fall to ``start × end``
    (Smith and Topin, arXiv 1708.07120, in torch's two-phase form; Adam's moments are not cycled).
    """
    top = max(1.0, warm_up * steps - 1)
    rest = max(1.0, steps - 1 - top)

    def rate(step: int) -> float:
        low, share = (start, 1 - step / top) if step <= top else (start * end, (step - top) / rest)
        return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, share))) / 2

    return rate


def train(
    model: nn.Module,
    loss: Callable[[int, np.random.Generator], Tensor],
    validate: Callable[[], float] | None,
    *,
    optimizer: torch.optim.Optimizer,
    steps: int,
    every: int = 10,
    patience: int | None = None,
    rate: Callable[[int], float] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    save_seconds: float = 30.0,
    progress: Progress | None = None,
) -> History:
    """Train in place; the model ends with the weights of its best validation.

    Each step draws its random numbers from ``seed`` and the step's number alone, so nothing but weights, the state of the
    optimizer and the scores has to be kept: a training that was killed and goes on from its checkpoint ends with the
    weights, bit for bit, of one that was not (same machine, same threads, CPU).

    Parameters
    ----------
    model
        Trained in place, on the device it lies on; its weights are given by the caller (:func:`seeded` for making them).
    loss
        ``loss(step, rng)``: loss of one batch, a tensor of one number. ``rng`` and torch's global generators (dropout)
        are seeded for this step. It must depend on nothing else that changes between steps.
    validate
        Score of the model as it stands, lower is better; called without gradients, with the model in evaluation mode.
        None: nothing is selected and the last weights are kept.
    optimizer
        Over the parameters of ``model``.
    steps
        Steps at most.
    every
        Steps between validations; the last step is validated too.
    patience
        Stop after this many steps without a better score. None: never.
    rate
        Factor on the learning rates the optimizer came with, by step (0 first), such as :func:`one_cycle`.
    seed
        0 or more.
    checkpoint
        File to go on from where it exists, and to write: replaced whole, so a kill leaves the one before. It stays when the
        training ends; a call that finds it finished returns at once.
    settings
        What else decides the result, as plain numbers and strings (:func:`fingerprint` for arrays): a checkpoint of other
        settings is refused.
    save_seconds
        Seconds between writes of the checkpoint.
    progress
        Told after each step: step, ``steps``, ``{"loss": …}`` and, once there are any, ``"score"`` and ``"best"``.

    Returns
    -------
    History

    Raises
    ------
    InputError
        The loss or the score is no longer finite, or the checkpoint is damaged, of another training, or can't be written.
    """
    device = next(model.parameters()).device
    identity = {"steps": steps, "every": every, "patience": patience, "seed": seed, **(settings or {})}
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    history, best = History(), None
    recent: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        history, best, recent = _resume(checkpoint, identity, model, optimizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        saved = time.monotonic()
        while history.step < steps and not _stopped(history, patience):
            recent.append(_step(model, loss, optimizer, rate, history.step, seed))
            history.step += 1
            if not math.isfinite(recent[-1]):
                raise InputError(f"the training loss is {recent[-1]} at step {history.step}: lower the learning rate")
            figures = {"loss": recent[-1]}
            if validate is not None and (history.step % every == 0 or history.step == steps):
                score = _score(model, validate, history.step)
                history.losses.append(float(np.mean(recent)))
                history.scores.append((history.step, score))
                recent = []
                if not history.best_score <= score:  # the first one is better than NaN
                    history.best_step, history.best_score = history.step, score
                    best = _weights(model)
            if history.scores:
                figures |= {"score": history.scores[-1][1], "best": history.best_score}
            last = history.step == steps or _stopped(history, patience)
            if checkpoint is not None and (last or time.monotonic() - saved >= save_seconds):
                _save(checkpoint, identity, history, best, recent, model, optimizer)
                saved = time.monotonic()
            if progress is not None:
                progress(history.step, steps, figures)
    if best is not None:
        model.load_state_dict(best)
    else:
        history.best_step = history.step
    model.eval()
    return history


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a module whose first weights depend on ``seed`` only; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def fingerprint(*arrays: np.ndarray) -> str:
    """Hash of the arrays' types, shapes and bytes, for ``settings``."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def load_tensors(path: Path, mend: str) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values; nothing else is unpickled.

    Raises
    ------
    InputError
        No such file, or one that is damaged or would run code; its message ends with ``mend``.
    """
    try:
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        if path.exists():
            raise UnpicklingError("no zip archive")
        raise InputError(f"{path} is not there: {mend}")
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): {mend}") from error
    except (RuntimeError, UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged, or would run code if it were read: {mend}") from error


def _step(
    model: nn.Module,
    loss: Callable[[int, np.random.Generator], Tensor],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float] | None,
    step: int,
    seed: int,
) -> float:
    rng = np.random.default_rng([seed, step])
    torch.manual_seed(int(rng.integers(2**62)))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (rate(step) if rate else 1.0)
    model.train()
    optimizer.zero_grad(set_to_none=True)
    value = loss(step, rng)
    value.backward()
    optimizer.step()
    return float(value.detach())


def _score(model: nn.Module, validate: Callable[[], float], step: int) -> float:
    model.eval()
    with torch.no_grad():
        score = float(validate())
    if not math.isfinite(score):
        raise InputError(f"the validation score is {score} at step {step}: lower the learning rate")
    return score


def _stopped(history: History, patience: int | None) -> bool:
    return patience is not None and bool(history.scores) and history.step - history.best_step >= patience


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}


def _save(
    path: Path,
    identity: dict[str, Any],
    history: History,
    best: dict[str, Tensor] | None,
    recent: list[float],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "format": FORMAT,
        "identity": identity,
        "history": asdict(history),
        "best": best,
        "recent": recent,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    try:
        with replaced(path) as file:
            torch.save(state, file)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}): free the disk or choose another") from error


def _resume(
    path: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[History, dict[str, Tensor] | None, list[float]]:
    state = load_tensors(path, "remove it to start anew")
    if not isinstance(state, dict) or not {"format", "identity"} <= state.keys():
        raise InputError(f"{path} is not a training checkpoint: remove it to start anew")
    if state["format"] != FORMAT:
        raise InputError(f"{path} has format {state['format']}, this version reads {FORMAT}: remove it to start anew")
    found = state["identity"]
    if found != identity:
        other = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
        raise InputError(f"{path} is of a training with other {', '.join(other)}: remove it to start anew")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is of a training of another model: remove it to start anew") from error
    return History(**state["history"]), state["best"], state["recent"]
