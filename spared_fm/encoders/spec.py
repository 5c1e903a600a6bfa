"""Which encoder a name means. No torch here, so that names are checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from spared_fm.errors import InputError

BUILT_IN = "stain-bank"
RANDOM, PRETRAINED = "random", "pretrained"


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """An encoder as the user names it.

    Parameters
    ----------
    name
        ``stain-bank``, or ``timm:<architecture>[.<tag>]``.
    weights
        ``"none"`` (built-in), ``"random"`` (seeded), ``"pretrained"`` (timm downloads or finds them in its cache), or the
        path of a weights file.
    seed
        Seed of random weights.
    """

    name: str
    weights: str
    seed: int = 0

    @property
    def loader(self) -> str:
        """``"builtin"`` or ``"timm"``."""
        return "builtin" if self.name == BUILT_IN else "timm"

    @property
    def architecture(self) -> str:
        """The name timm knows the model by."""
        return self.name.removeprefix("timm:")

    @property
    def is_default(self) -> bool:
        """Whether the weights are those the bare name stands for."""
        return self.weights == default_weights(self.name)


def default_weights(name: str) -> str:
    """Say what weights a bare name stands for.

    timm's convention is kept: ``timm:arch.tag`` names trained weights, ``timm:arch`` names an architecture, built here with
    seeded random weights, a floor to compare with.
    """
    if name == BUILT_IN:
        return "none"
    return PRETRAINED if "." in name.removeprefix("timm:") else RANDOM


def resolve(name: str, weights: str | Path | None = None, *, seed: int = 0) -> EncoderSpec:
    """Find the encoder ``name``.

    Parameters
    ----------
    name
        ``stain-bank`` or ``timm:<model>``.
    weights
        ``"random"``, ``"pretrained"``, a file (``.safetensors``, or a state dict readable with ``weights_only=True``), or
        None for the name's default.
    seed
        Seed of random weights.

    Raises
    ------
    InputError
        Unknown encoder (close names are suggested), weights for an encoder that has none, or no such weights file.
    """
    if name != BUILT_IN and not name.startswith("timm:"):
        raise InputError(
            f"unknown encoder {name!r}; there are {BUILT_IN} and timm:<model>, e.g. timm:vit_small_patch16_224"
        )
    if name == BUILT_IN and weights is not None:
        raise InputError(f"encoder {BUILT_IN} has fixed filters and takes no --weights")
    if name.startswith("timm:"):
        _check_timm_name(name.removeprefix("timm:"))
    if weights is None:
        return EncoderSpec(name, default_weights(name), seed)
    if str(weights) in (RANDOM, PRETRAINED):
        return EncoderSpec(name, str(weights), seed)
    if not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights file; give a file, `random` or `pretrained`")
    return EncoderSpec(name, str(Path(weights).absolute()), seed)


def _check_timm_name(architecture: str) -> None:
    from spared_fm.encoders.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    import timm

    stem = architecture.split(".")[0]
    if timm.is_model(architecture) or (timm.is_model(stem) and not architecture.startswith("hf-hub:")):
        return
    close = difflib.get_close_matches(stem, timm.list_models(), n=3)
    hint = (
        f"did you mean {', '.join(f'timm:{name}' for name in close)}?"
        if close
        else "`timm.list_models()` lists the names"
    )
    raise InputError(f"unknown encoder 'timm:{architecture}': timm has no such model; {hint}")
