"""Reading weights without executing them, and the digest that names them."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import torch

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
_PREFIXES = ("module.", "backbone.", "encoder.")


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from ``.safetensors``, or from a torch file with ``weights_only=True``.

    Raises
    ------
    InputError
        The file is damaged, holds anything but tensors, or needs pickle to be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{path}: not a readable safetensors file ({_first_line(error)}); fetch it again"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # torch remarks on foreign pickle protocols before it refuses them
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, not a plain state dict (reading it would run code from the file); save it as .safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable weights file ({_first_line(error)}); fetch it again") from error
    for name in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if (
        not isinstance(loaded, dict)
        or not all(isinstance(value, torch.Tensor) for value in loaded.values())
        or not loaded
    ):
        raise InputError(f"{path}: holds no state dict of tensors; save the model's state_dict() as .safetensors")
    return loaded


def fill(module: torch.nn.Module, path: Path, *, ignore: tuple[str, ...] = ()) -> None:
    """Load the weights in ``path`` into ``module``, strictly.

    Parameters
    ----------
    module
        Built architecture; changed in place.
    path
        Weights file.
    ignore
        Key prefixes of the file to leave out (a classifier the encoder is built without).

    Raises
    ------
    InputError
        A key is missing, left over or of another shape; the message names the first.
    """
    state = _without_prefix(load_state_dict(path), module)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{name}." for name in ignore))}
    expected = module.state_dict()
    for key, value in expected.items():
        if key not in state:
            raise InputError(f"{path}: weights do not fit this encoder: {key} is missing; is it the right file?")
        if state[key].shape != value.shape:
            raise InputError(
                f"{path}: weights do not fit this encoder: {key} is {tuple(state[key].shape)}, "
                f"expected {tuple(value.shape)}; is it the right file?"
            )
    surplus = sorted(state.keys() - expected.keys())
    if surplus:
        raise InputError(
            f"{path}: weights do not fit this encoder: {surplus[0]} (of {len(surplus)}) has no place; is it the right file?"
        )
    module.load_state_dict(state, strict=True)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """``sha256:<hex>`` over names, dtypes, shapes and bytes of a state dict, in name order: the same for any file format."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type; the bits are what counts
            tensor = tensor.view(torch.int16)
        total.update(tensor.numpy().tobytes())  # logical order, whatever the memory format
    return f"sha256:{total.hexdigest()}"


def _without_prefix(state: dict[str, torch.Tensor], module: torch.nn.Module) -> dict[str, torch.Tensor]:
    expected = module.state_dict().keys()
    for prefix in _PREFIXES:
        if not any(key in expected for key in state) and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
