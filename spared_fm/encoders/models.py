"""From a registry row to its network: built, filled with weights, and wrapped so that it gives vectors or tokens."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spared_fm.encoders import parts
from spared_fm.encoders.hub import fetch
from spared_fm.encoders.spec import PRETRAINED, RANDOM
from spared_fm.encoders.weights import fill
from spared_fm.errors import InputError
from spared_fm.torchvision_ops import declare_missing_operators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spared_fm.encoders.registry import Row

    State = Mapping[str, torch.Tensor]


def make_core(row: Row) -> nn.Module:
    """Build the network of ``row`` with fresh weights, also under ``with torch.device("meta")``.

    Parameters
    ----------
    row
        From the registry.

    Returns
    -------
    torch.nn.Module
        Its state dict has the names of the published file; :func:`wrap` makes of it what is called.

    Raises
    ------
    InputError
        An optional package is missing, or the row names what its loader does not have.
    """
    declare_missing_operators()
    makers = {"timm": _timm, "transformers": _transformers, "package": _package}
    try:
        return makers[row.loader](row)
    except InputError:
        raise
    except Exception as error:  # what a foreign constructor says to arguments it does not take
        raise InputError(
            f"encoder {row.name}: {row.loader} can't build {row.architecture!r} with {dict(row.build)} "
            f"({(str(error).splitlines() or [type(error).__name__])[0][:160]}); mend its registry row"
        ) from error


def wrap(core: nn.Module, row: Row) -> nn.Module:
    """Make the module that is called out of the one that holds the weights.

    Returns
    -------
    torch.nn.Module
        Pixels (batch, 3, crop, crop) → vectors (batch, dim) for pooling ``model``, else tokens (batch, n, token_dim).
    """
    kind = row.head.get("kind", "")
    if kind == "stage":
        return parts.Stage(core, tokens=row.pooling != "model")
    if kind == "call":
        arguments = {key: value for key, value in row.head.items() if key not in ("kind", "output")}
        return parts.Call(core, arguments, row.head.get("output"))
    if row.loader == "transformers":
        return parts.LastHidden(core)
    return core if row.pooling == "model" else parts.Features(core)


def wrap_for_tokens(module: nn.Module) -> nn.Module:
    """Make the module that gives tokens out of one that may give vectors, with the same weights in memory."""
    if isinstance(module, parts.Stage):
        return module if module.tokens else parts.Stage(module.core, tokens=True)
    return parts.Features(module) if hasattr(module, "forward_features") else module


def fill_core(core: nn.Module, row: Row, weights: str) -> None:
    """Load published weights, or those of a file, into a built core: the same strict way for both.

    Raises
    ------
    InputError
        The weights can't be had, or don't fit.
    """
    if weights != RANDOM:
        path = fetch(row) if weights == PRETRAINED else Path(weights)
        fill(core, path, ignore=_left_out(core, row), convert=_conversion(core, row))


def _timm(row: Row) -> nn.Module:
    import timm

    build = dict(row.build)
    kind = row.head.get("kind", "")
    if kind == "stage":
        build |= {"features_only": True, "out_indices": (row.head["index"],)}
    model = timm.create_model(row.architecture, pretrained=False, **_with_classes(build))
    if kind == "attention-pool":
        options = {key: value for key, value in row.head.items() if key != "kind"}
        return parts.AttentionPooled(model, **options)
    return _without_dropped(model, row)


def _transformers(row: Row) -> nn.Module:
    transformers = _package_of(row, "transformers")
    cls = getattr(transformers, row.architecture)
    return cls(cls.config_class(**row.build), **_class_arguments(row))


def _package(row: Row) -> nn.Module:
    name, factory = row.architecture.split(":")
    model = getattr(_package_of(row, name), factory)(**_with_classes(dict(row.build)))
    return _without_dropped(model, row)


def _class_arguments(row: Row) -> dict[str, Any]:
    """Leave out the pooler of ``ViTModel``: it is not part of the released encoders, and would be random."""
    return {"add_pooling_layer": False} if row.architecture == "ViTModel" else {}


def _package_of(row: Row, module: str) -> Any:
    """Import an optional package, or say in one line how it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        wanted = [
            r for r in row.requires if re.split(r"[\s@<>=!~\[;]", r)[0].replace("-", "_") == package
        ] or row.requires
        install = " ".join(f"'{'spared-fm[transformers]' if r == 'transformers' else r}'" for r in wanted or (package,))
        raise InputError(f"encoder {row.name} needs the package {package}: pip install {install}") from error


def _with_classes(build: dict[str, Any]) -> dict[str, Any]:
    from timm.layers import SwiGLUPacked

    classes = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU, "ConvStem": parts.ConvStem}
    return {key: classes.get(value, value) if isinstance(value, str) else value for key, value in build.items()}


def _without_dropped(model: nn.Module, row: Row) -> nn.Module:
    if row.head.get("kind") == "drop":
        model.get_submodule(row.head["name"])  # says so when there is no such part
        setattr(model, row.head["name"], nn.Identity())
    return model


def _left_out(core: nn.Module, row: Row) -> set[str]:
    """Parts and keys of the published file that the encoder is built without."""
    kind = row.head.get("kind", "")
    if kind == "drop":
        return {row.head["name"]}
    if row.loader == "transformers":
        return {"pooler", "classifier"}
    if row.loader != "timm":
        return set()
    if isinstance(core, parts.AttentionPooled):
        return set(core.left_out)
    import timm

    if kind == "stage":
        with torch.device("meta"):
            whole = timm.create_model(row.architecture, pretrained=False)
        return whole.state_dict().keys() - core.state_dict().keys()
    return classifier_names(row.architecture) if row.build.get("num_classes") == 0 else set()


def classifier_names(architecture: str) -> set[str]:
    """Names of the classifier of a timm architecture."""
    import timm

    names = timm.get_pretrained_cfg_value(architecture, "classifier") or ()
    return {names} if isinstance(names, str) else set(names)


def _conversion(core: nn.Module, row: Row) -> Callable[[State], State] | None:
    if isinstance(core, parts.AttentionPooled):
        return core.convert
    if row.loader == "transformers":
        return lambda state: _transformers_names(core, state, _class_arguments(row))
    return timm_conversion(core)


def timm_conversion(model: nn.Module) -> Callable[[State], State] | None:
    """Find timm's own conversion of the original authors' checkpoints, which its modules keep under one name."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return None if convert is None else lambda state: convert(state, model)


def _transformers_names(core: Any, state: State, arguments: dict[str, Any]) -> State:
    """Let transformers rename and split published weights, whose names its newer versions have left."""
    with _quiet():
        loaded, report = type(core).from_pretrained(
            None, config=core.config, state_dict=dict(state), output_loading_info=True, **arguments
        )
    found = {key: value for key, value in loaded.state_dict().items() if key not in report["missing_keys"]}
    return {**found, **{key: state[key] for key in report["unexpected_keys"] if key in state}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing; what it has to say is in the report."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
