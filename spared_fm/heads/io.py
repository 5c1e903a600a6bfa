"""Fitted heads on disk: weights and a card in a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_load
from safetensors.numpy import save as tensors_save

from spared_fm.errors import InputError
from spared_fm.heads.registry import head_class

if TYPE_CHECKING:
    from spared_fm.heads.base import Head

FORMAT = 2
WEIGHTS, CARD = "weights.safetensors", "card.json"
#: Keys of the card that ``save`` writes itself.
RESERVED = ("format", "head", "params", "versions", "weights_sha256")


def save(head: Head, folder: str | os.PathLike[str], card: dict[str, Any]) -> None:
    """Write a fitted head into a new folder.

    Parameters
    ----------
    head
        A fitted head.
    folder
        Must not exist. Files are written into a hidden folder beside it, flushed to disk, and renamed.
    card
        What the reader should know (cohort, panel, recipe, scores): JSON values, none of ``RESERVED``.

    Raises
    ------
    InputError
        The folder exists, the card is not JSON, the head is not fitted, or the disk refuses.
    """
    folder = Path(folder)
    if clash := sorted(set(card) & set(RESERVED)):
        raise InputError(f"the card of a head may not hold {', '.join(clash)}: these are written by save")
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or give the run another name")
    weights = tensors_save({key: np.asarray(value, order="C") for key, value in head.state().items()})
    full = {
        "format": FORMAT,
        "head": head.name,
        "params": head.get_params(),
        "versions": {name: version(name) for name in ("spared-fm", "numpy", "scikit-learn", "safetensors")},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **card,
    }
    try:
        text = json.dumps(full, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"the card of {folder} is not JSON ({error}): use plain numbers, strings, lists") from error

    part = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        part.mkdir(parents=True)
        _write(part / WEIGHTS, weights)
        _write(part / CARD, text.encode())
        _flush_folder(part)
        part.rename(folder)
        _flush_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror}): free the disk or choose another") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(folder: str | os.PathLike[str]) -> tuple[Head, dict[str, Any]]:
    """Read a fitted head and its card.

    Returns
    -------
    head, card
        The head, ready to predict, and everything in ``card.json``.

    Raises
    ------
    InputError
        Not a head's folder, a newer format, an unknown head, or weights that do not match their checksum.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text())
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise InputError(f"{folder} is not a saved head ({error.strerror}: {error.filename}): fit it first") from error
    except ValueError as error:
        raise InputError(f"{folder / CARD} is damaged ({error}): fit the head again") from error
    if not isinstance(card, dict) or not {*RESERVED} <= set(card):
        raise InputError(f"{folder / CARD} is not the card of a head: fit the head again")
    if not isinstance(card["format"], int) or card["format"] > FORMAT:
        raise InputError(f"{folder} has format {card['format']}, this version reads {FORMAT}: update spared-fm")
    if card["format"] < FORMAT:
        raise InputError(f"{folder} has format {card['format']}, of an older version: fit the head again")
    if hashlib.sha256(weights).hexdigest() != card["weights_sha256"]:
        raise InputError(f"{folder / WEIGHTS} does not match its checksum: fit the head again")
    try:
        return head_class(card["head"]).from_state(card["params"], tensors_load(weights)), card
    except (KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} can't be read as a {card['head']!r} head ({error}): fit it again") from error


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """Return a numpy value, as parameters may be, in JSON's types."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
