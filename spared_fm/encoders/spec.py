"""Which encoder a name means. No torch here, so that names are checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.encoders import offline
from spared_fm.encoders.registry import BUILT_INS, DTYPES, Row
from spared_fm.encoders.registry import row as find_row
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

RANDOM, PRETRAINED = "random", "pretrained"
VIEWS = ("identity", "dihedral-mean", "dihedral")
_TIMM = "timm:"


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """An encoder as the user names it; strings and numbers only, so that it travels to workers.

    Parameters
    ----------
    name
        A registry name, or ``timm:<architecture>[.<tag>]``.
    weights
        ``"none"`` (built-in), ``"random"`` (seeded), ``"pretrained"`` (downloaded, or found in the cache), or the path of a
        weights file.
    seed
        Seed of random weights.
    views
        ``"identity"``, ``"dihedral-mean"`` or ``"dihedral"``: see :func:`spared_fm.encoders.pooling.views_of`.
    tokens
        Side of a token grid that takes the place of the pooled vector; 0 for the vector.
    precision
        Dtype of the forward pass where it is not the encoder's own, else empty.
    registry
        The user's own registry file, empty for none.
    """

    name: str
    weights: str
    seed: int = 0
    views: str = "identity"
    tokens: int = 0
    precision: str = ""
    registry: str = ""

    @property
    def row(self) -> Row | None:
        """The encoder's registry row; None for ``timm:<model>``."""
        if self.name.startswith(_TIMM):
            return None
        return find_row(self.name, Path(self.registry) if self.registry else None)

    @property
    def architecture(self) -> str:
        """The name timm knows a ``timm:<model>`` by."""
        return self.name.removeprefix(_TIMM)

    @property
    def is_default(self) -> bool:
        """Whether this is what the bare name stands for, its published weights perhaps from the user's config of files."""
        weights = [default_weights(self.name)]
        if weights == [PRETRAINED] and (file := offline.configured_file(self.name)):
            weights.append(str(file))
        plain = dataclasses.replace(self, weights="", seed=0, registry="")
        return self.weights in weights and plain == EncoderSpec(self.name, "")

    def as_settings(self) -> dict[str, Any]:
        """Give what :func:`from_settings` needs beside the weights, for an array's attributes."""
        options = {"views": self.views, "tokens": self.tokens, "precision": self.precision, "registry": self.registry}
        chosen = {name: value for name, value in options.items() if value != _PLAIN[name]}
        return {"encoder_argument": self.name, "seed": self.seed, **chosen}


_PLAIN = {field.name: field.default for field in dataclasses.fields(EncoderSpec)}


def from_settings(settings: Mapping[str, Any], weights: str | Path | None = None) -> EncoderSpec:
    """Resolve the encoder that an array's attributes name (:meth:`EncoderSpec.as_settings`); others in them are passed over.

    Raises
    ------
    InputError
        As :func:`resolve`.
    """
    options = {
        name: settings[name] for name in ("seed", "views", "tokens", "precision", "registry") if name in settings
    }
    return resolve(settings["encoder_argument"], weights, **options)


def native_patch(spec: EncoderSpec) -> tuple[float, int]:
    """Side of the patch the encoder is meant for, in µm and in pixels; 112 µm and 224 for ``timm:<model>``."""
    row = spec.row
    return (row.px * row.mpp[0], row.px) if row else (112.0, 224)


def default_weights(name: str) -> str:
    """Say what weights a bare name stands for.

    A registry name stands for published weights. timm's convention is kept: ``timm:arch.tag`` names trained weights,
    ``timm:arch`` names an architecture, built here with seeded random weights, a floor to compare with.
    """
    if name in BUILT_INS:
        return "none"
    return RANDOM if name.startswith(_TIMM) and "." not in name else PRETRAINED


def resolve(
    name: str,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    views: str = "identity",
    tokens: int = 0,
    precision: str | None = None,
    registry: str | Path | None = None,
) -> EncoderSpec:
    """Find the encoder ``name``.

    Parameters
    ----------
    name
        A registry name (``stain-bank``, ``uni``, …) or ``timm:<model>``.
    weights
        ``"random"``, ``"pretrained"``, a file (``.safetensors``, or a state dict readable with ``weights_only=True``), or
        None for the name's default. Where the default is published weights, the file that the config named by
        ``SPARED_FM_WEIGHTS`` has for the encoder takes their place (:mod:`spared_fm.encoders.offline`).
    seed
        Seed of random weights.
    views
        ``identity``, ``dihedral-mean`` or ``dihedral`` (eight vectors one after the other).
    tokens
        Side g of a grid of g × g pooled patch tokens instead of the vector; 0 for the vector.
    precision
        ``float32``, ``float16`` or ``bfloat16`` instead of the encoder's own compute dtype. The two half precisions run
        under autocast, on a CPU as well (slower there than float32).
    registry
        A TOML file with rows of the user's own.

    Raises
    ------
    InputError
        Unknown encoder (close names are suggested), weights for an encoder that has none, no such weights file, a file that is
        not the one the config names, or options the encoder does not have.
    """
    spec = EncoderSpec(
        name, "", seed, views, tokens, precision or "", str(Path(registry).absolute()) if registry else ""
    )
    if name.startswith(_TIMM):
        _check_timm_name(spec.architecture)
    row = checked(spec).row
    # what an encoder does by itself is not written down as an option: one recipe, one spec
    if spec.precision == (row.compute_dtype if row else "float32"):
        spec = dataclasses.replace(spec, precision="")
    return dataclasses.replace(spec, weights=_weights(name, weights))


def _weights(name: str, weights: str | Path | None) -> str:
    if name in BUILT_INS and weights is not None:
        raise InputError(f"encoder {name} has nothing learned and takes no --weights")
    if weights is None:
        default = default_weights(name)
        file = offline.checked_file(name) if default == PRETRAINED else None
        return str(file) if file else default
    if str(weights) in (RANDOM, PRETRAINED):
        return str(weights)
    if not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights file; give a file, `random` or `pretrained`")
    return str(Path(weights).absolute())


def checked(spec: EncoderSpec) -> EncoderSpec:
    """Give ``spec`` back if its options are some, and go together."""
    row = spec.row
    if spec.views not in VIEWS:
        raise InputError(f"views {spec.views!r} are not {', '.join(VIEWS)}")
    if spec.precision and spec.precision not in DTYPES:
        raise InputError(f"precision {spec.precision!r} is not {', '.join(DTYPES)}")
    if row and row.loader == "builtin" and spec.precision not in ("", row.compute_dtype):
        raise InputError(f"encoder {spec.name} computes in {row.compute_dtype} only; leave out the precision")
    if spec.tokens < 0 or (spec.tokens and spec.views != "identity"):
        raise InputError("a token grid has at least one token per side, and goes with the view 'identity' only")
    if spec.tokens and row and not row.token_dim:
        raise InputError(f"encoder {spec.name} has no grid of patch tokens; leave out --tokens")
    return spec


def _check_timm_name(architecture: str) -> None:
    from spared_fm.torchvision_ops import declare_missing_operators

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
