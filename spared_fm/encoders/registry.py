"""The encoders by name, as data: one validated table per encoder in ``registry.toml``, and the user's own in a file like it.

A row says all that decides an encoder's vector besides its weights. Where tools disagree about an encoder, ``note`` says which
choice is taken, and two meanings of one name are two rows. ``unverified`` lists what is in conflict or was never checked.
No torch here: a name is checked, and a table printed, before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.tables import (
    check_fields,
    is_list,
    is_number,
    is_one_of,
    is_positive,
    is_said,
    is_text,
    is_whole,
    read_toml,
)

if TYPE_CHECKING:
    from spared_fm.tables import Check

BUILT_IN_FILE = Path(__file__).with_name("registry.toml")

#: Encoders that are code of this package, with nothing to load: their names, and ``module:class`` under this package.
BUILT_INS = {"stain-bank": "stain_bank:StainBank", "colour-stats": "colour_stats:ColourStats"}
LOADERS = ("builtin", "timm", "transformers", "package")
POOLINGS = ("cls", "mean", "cls+mean", "model")
INTERPOLATIONS = ("bilinear", "bicubic")
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Row:
    """One encoder.

    Attributes
    ----------
    name
        What the user types.
    title
        The name in print.
    loader
        ``builtin``, ``timm``, ``transformers``, or ``package`` (any other importable package).
    hub
        Repository on the Hugging Face hub, in its canonical case (``datasets/<owner>/<name>`` for a data-set repository);
        empty where there is none.
    revision
        Git revision of that repository.
    file
        Weights file in it, where it is not the loader's default.
    architecture
        timm architecture, transformers class, ``module:factory`` of a package, or one of ``BUILT_INS``.
    build
        Keyword arguments of the architecture (transformers: of its config class). The strings ``SwiGLUPacked``, ``SiLU`` and
        ``ConvStem`` stand for classes.
    head
        What comes after the trunk or is cut from it, by its ``kind``; empty for a plain model.
    pooling
        ``cls``; ``mean`` of the patch tokens; ``cls+mean``, the two one after the other; ``model``, where the module's own
        output is the vector.
    prefix_tokens
        Tokens before the patch tokens: class token and registers.
    dim
        Length of the vector.
    token_dim
        Width of a patch token, 0 where the model gives no token grid.
    mean, std
        Per channel (R, G, B), of values scaled to 0–1.
    resize
        Side after resizing the patch, pixels; 0 leaves it as it is.
    crop
        Side of the centre crop, pixels.
    interpolation, antialias
        How the patch is resized.
    px
        Side of the patch as read from the slide, pixels.
    mpp
        Microns per pixel the encoder is meant for; the first is the default, so that the patch covers ``px * mpp[0]`` µm.
    compute_dtype
        ``float32``, ``float16`` or ``bfloat16`` (autocast).
    licence
        Of the weights.
    gated
        Whether the repository's terms must be accepted first.
    requires
        Optional packages beyond the core, as pip takes them.
    parameters
        Count for the module as built, head included; 0 where it has not been counted.
    parameters_source
        Where that figure comes from, and the published one where it is known.
    reference
        Paper or page.
    note
        Where tools disagree: the choice taken and why.
    unverified
        Facts in conflict or never checked.
    """

    name: str
    title: str
    loader: str
    hub: str
    revision: str
    file: str
    architecture: str
    build: dict[str, Any] = dataclasses.field(hash=False)
    head: dict[str, Any] = dataclasses.field(hash=False)
    pooling: str
    prefix_tokens: int
    dim: int
    token_dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    crop: int
    interpolation: str
    antialias: bool
    px: int
    mpp: tuple[float, ...]
    compute_dtype: str
    licence: str
    gated: bool
    requires: tuple[str, ...]
    parameters: int
    parameters_source: str
    reference: str
    note: str
    unverified: tuple[str, ...]


def rows(extra: Path | None = None) -> dict[str, Row]:
    """Give all encoders by name: the package's, then those of the user's file.

    Parameters
    ----------
    extra
        A TOML file of further ``[encoder.<name>]`` tables.

    Raises
    ------
    InputError
        The file is absent or not TOML, a row in it is wrong, or it redefines an encoder of the package.
    """
    found = dict(_built_in())
    if extra is None:
        return found
    for name, row in _read(extra).items():
        if name in found:
            raise InputError(f"{extra}: encoder {name!r} is in the package already; give yours another name")
        found[name] = row
    return found


def row(name: str, extra: Path | None = None) -> Row:
    """Give the encoder ``name``.

    Raises
    ------
    InputError
        No such encoder (close names are suggested), or ``extra`` is wrong.
    """
    found = rows(extra)
    if name in found:
        return found[name]
    close = difflib.get_close_matches(name.lower(), found, n=3, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "`spared-fm encoders` lists them; timm:<model> builds any other"
    )
    raise InputError(f"unknown encoder {name!r}; {hint}")


@functools.cache
def _built_in() -> dict[str, Row]:
    return _read(BUILT_IN_FILE)


def _read(path: Path) -> dict[str, Row]:
    data = read_toml(path, BUILT_IN_FILE.name)
    tables = data.pop("encoder", {})
    if data or not isinstance(tables, dict) or not tables:
        raise InputError(
            f"{path}: expected [encoder.<name>] tables and nothing else; see {BUILT_IN_FILE.name} for the form"
        )
    return {name: _parse(path, name, table) for name, table in tables.items()}


def _parse(path: Path, name: str, table: Any) -> Row:
    where = f"{path}: encoder {name!r}"
    if not re.fullmatch(r"[a-z0-9.+-]+", name):
        raise InputError(f"{where}: a name has lower-case letters, digits and .+- only; rename it")
    found = Row(name=name, **check_fields(where, table, _CHECKS, _DEFAULTS))
    for field, words in _contradictions(found):
        raise InputError(f"{where}: {field} is {getattr(found, field)!r}; {words}")
    return found


def _contradictions(row: Row) -> list[tuple[str, str]]:
    """Find fields that do not go together, each with what would."""
    tokens = {"cls": 1, "mean": 1, "cls+mean": 2}.get(row.pooling)
    rules = [
        (
            "dim",
            tokens is not None and row.dim != tokens * row.token_dim,
            f"pooling {row.pooling!r} of tokens {row.token_dim} wide gives {(tokens or 0) * row.token_dim}",
        ),
        (
            "prefix_tokens",
            row.pooling in ("cls", "cls+mean") and row.prefix_tokens < 1,
            f"pooling {row.pooling!r} takes a class token, so at least 1",
        ),
        ("crop", 0 < row.resize < row.crop, f"the patch is resized to {row.resize}, so at most that"),
        ("crop", row.resize == 0 and row.crop > row.px, f"the patch is {row.px} pixels wide, so at most that"),
        (
            "architecture",
            row.architecture not in BUILT_INS if row.loader == "builtin" else row.architecture == "",
            f"loader 'builtin' has {', '.join(BUILT_INS)}; name what any other is to build",
        ),
        (
            "architecture",
            row.loader == "package" and not re.fullmatch(r"[\w.]+:\w+", row.architecture),
            "loader 'package' needs module:factory",
        ),
        ("head", bool(row.head) and not isinstance(row.head.get("kind"), str), "it needs a kind, or leave it empty"),
    ]
    return [(field, words) for field, wrong, words in rules if wrong]


def _is_hub(value: Any) -> bool:
    return isinstance(value, str) and (value == "" or re.fullmatch(r"(datasets/)?[\w.-]+/[\w.-]+", value) is not None)


_DEFAULTS: dict[str, Any] = {"file": "", "head": {}, "requires": [], "note": "", "unverified": []}

_SAID, _TEXT, _TABLE = ("some text", is_said), ("text", is_text), ("a table", lambda value: isinstance(value, dict))
_TEXTS, _YES_NO = ("a list of texts", is_list(is_said)), ("true or false", lambda value: isinstance(value, bool))
_CHANNELS = ("three numbers (R, G, B)", is_list(is_number, 3))

_CHECKS: dict[str, Check] = {
    "title": _SAID,
    "loader": (f"one of {', '.join(LOADERS)}", is_one_of(*LOADERS)),
    "hub": ("<owner>/<name>, datasets/<owner>/<name>, or an empty text", _is_hub),
    "revision": _TEXT,
    "file": _TEXT,
    "architecture": _TEXT,
    "build": _TABLE,
    "head": _TABLE,
    "pooling": (f"one of {', '.join(POOLINGS)}", is_one_of(*POOLINGS)),
    "prefix_tokens": ("a whole number, 0 or more", is_whole(0)),
    "dim": ("a whole number, 1 or more", is_whole(1)),
    "token_dim": ("a whole number, 0 where there is no token grid", is_whole(0)),
    "mean": _CHANNELS,
    "std": ("three numbers above 0 (R, G, B)", is_list(is_positive, 3)),
    "resize": ("a whole number, 0 to leave the patch as it is", is_whole(0)),
    "crop": ("a whole number, 1 or more", is_whole(1)),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", is_one_of(*INTERPOLATIONS)),
    "antialias": ("true (resizing without it is not offered)", lambda value: value is True),
    "px": ("a whole number, 1 or more", is_whole(1)),
    "mpp": (
        "a list of numbers above 0, the default first",
        is_list(is_positive, empty=False),
    ),
    "compute_dtype": (f"one of {', '.join(DTYPES)}", is_one_of(*DTYPES)),
    "licence": _SAID,
    "gated": _YES_NO,
    "requires": _TEXTS,
    "parameters": ("a whole number, 0 where it has not been counted", is_whole(0)),
    "parameters_source": _SAID,
    "reference": _SAID,
    "note": _TEXT,
    "unverified": _TEXTS,
}
