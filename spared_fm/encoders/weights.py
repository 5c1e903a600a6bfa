"""Reading weights without executing them, and the digest that names them."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import torch

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
_PREFIXES = ("module.", "backbone.", "encoder.")
_TRAINING = ("dino_head", "ibot_head")
"""Parts of self-distilled checkpoints that only training uses."""


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


def fill(
    module: torch.nn.Module,
    path: Path,
    *,
    ignore: Collection[str] = (),
    convert: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Load the weights in ``path`` into ``module``, strictly.

    Parameters
    ----------
    module
        Built architecture; changed in place.
    path
        Weights file.
    ignore
        Names of the file's parts or keys to leave out (a classifier the encoder is built without).
    convert
        From another way of naming and laying out the same weights to the module's, tried where they do not fit as they are.

    Raises
    ------
    InputError
        Keys are missing, left over or of another shape; the message names the first few.
    """
    state = _fitted(load_state_dict(path), module, ignore)
    misfit = _misfit(state, module)
    if misfit and convert is not None:
        with contextlib.suppress(Exception):  # foreign code on foreign weights; that they don't fit is said below
            state = _fitted(convert(state), module, ignore)
            misfit = _misfit(state, module)
    if misfit:
        raise InputError(f"{path}: weights do not fit this encoder: {misfit}; is it the right file?")
    module.load_state_dict(state, strict=True)


def _fitted(
    state: Mapping[str, torch.Tensor], module: torch.nn.Module, ignore: Collection[str]
) -> dict[str, torch.Tensor]:
    """Strip wrappers' prefixes and leave out what the module is built without."""
    expected = module.state_dict()
    left_out = (*ignore, *(name for name in _TRAINING if not any(key.startswith(f"{name}.") for key in expected)))
    parts = tuple(f"{name}." for name in left_out)
    found = {key: value for key, value in state.items() if key not in left_out and not key.startswith(parts)}
    for prefix in _PREFIXES:
        if found and not any(key in expected for key in found) and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    found = {key: value for key, value in found.items() if key not in left_out and not key.startswith(parts)}
    # how many batches a norm has seen: old files lack it, and no forward pass reads it
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    return {**counters, **found}


def _misfit(state: Mapping[str, torch.Tensor], module: torch.nn.Module) -> str:
    """Say what keeps ``state`` from fitting, empty where nothing does."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    surplus = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    complaints = [("is missing", missing), ("has no place", surplus), ("", shapes)]
    return "; ".join(
        f"{', '.join(found[:3])}{f' (of {len(found)})' if len(found) > 3 else ''} {words}".strip()
        for words, found in complaints
        if found
    )


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
