"""PyTorch Lightning for the neural heads: imported late, quiet, seeded, and leaving no trace."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def pick_device(name: str) -> torch.device:
    """Return the device that `fit_net` will use for ``Plan.device``; put the data there.

    Raises
    ------
    InputError
        No such device on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}: use 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"there is no device {name!r} here: use 'auto' or 'cpu'")
    return found


def import_lightning() -> Any:
    """Import PyTorch Lightning, which takes seconds, and only where something is trained."""
    from spared_fm.torchvision_ops import declare_missing_operators

    declare_missing_operators()  # torchmetrics, which Lightning needs, imports torchvision
    import pytorch_lightning

    return pytorch_lightning


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch, and put back its generators and its choice of algorithms afterwards."""
    import torch

    exact, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cublas = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(exact, warn_only=warned)
            if cublas is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from telling of devices, tips and worker counts; errors still come through."""
    names = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning.pytorch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
