"""Completion methods by name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from spared_fm.errors import InputError
from spared_fm.targets.completion.folder import CARD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.targets.completion.data import Completer


class Method(NamedTuple):
    """Where a method's class is, and the prefix of the layers that it writes."""

    module: str
    class_: str
    prefix: str


METHODS = {
    "adaptive-median": Method("baselines", "AdaptiveMedian", "d"),
    "neighbor-mean": Method("baselines", "NeighborMean", "n"),
    "gene-mean": Method("baselines", "GeneMean", "g"),
    "low-rank-gaussian": Method("lowrank", "LowRankGaussian", "lr"),
    "spackle": Method("spackle", "Spackle", "t"),
    "spackle-released": Method("spackle", "SpackleReleased", "tr"),
    "rate-attention": Method("rate_attention", "RateAttention", "ra"),
}
"""Modules are those of this package; they are imported when a method is asked for (some need torch)."""


def method(name: str) -> type[Completer]:
    """Class of a method.

    Raises
    ------
    InputError
        Unknown name.
    """
    found = _find(name)
    module = importlib.import_module(f"spared_fm.targets.completion.{found.module}")
    return cast("type[Completer]", getattr(module, found.class_))


def load(folder: Path, genes: Sequence[str] | None = None) -> Completer:
    """Read a fitted completer of whatever method wrote the folder.

    Parameters
    ----------
    folder
        As ``save`` wrote it.
    genes
        The panel that it must be for.

    Raises
    ------
    InputError
        Not such a folder, an unknown method, or another panel.
    """
    try:
        name = json.loads((Path(folder) / CARD).read_text())["name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder} is not a fitted completer: give the folder that holds its {CARD}") from error
    return method(name).load(Path(folder), genes)


def layer_name(name: str, source: str) -> str:
    """Name of the layer that a method makes of ``source``: its prefix, after SpaRED's ``c_`` and instead of ``d_``.

    ``d_log1p`` by the adaptive median; ``c_t_log1p`` by SpaCKLE (SpaRED's name for it) from ``c_log1p`` or ``c_d_log1p``.

    Raises
    ------
    InputError
        Unknown method.
    """
    corrected = "c_" if source.startswith("c_") else ""
    return f"{corrected}{_find(name).prefix}_{source.removeprefix('c_').removeprefix('d_')}"


def _find(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"unknown completion {name!r}: choose from {', '.join(METHODS)}")
    return METHODS[name]
