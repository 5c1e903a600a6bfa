"""Fitted completers on disk: arrays and a card in a folder that appears whole or not at all."""

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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = 1
ARRAYS, CARD = "arrays.safetensors", "card.json"
#: Keys of the card that ``write`` writes itself.
RESERVED = ("format", "name", "genes", "versions", "arrays_sha256")


def write(
    folder: str | os.PathLike[str],
    name: str,
    genes: Sequence[str],
    card: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write a fitted completer into a new folder.

    Parameters
    ----------
    folder
        Must not exist. Files are written into a hidden folder beside it, flushed to disk, and renamed.
    name
        The method.
    genes
        The panel, in the order of the arrays.
    card
        Settings and whatever the reader should know: JSON values, none of ``RESERVED``.
    arrays
        What was fitted.

    Raises
    ------
    InputError
        The folder exists, the card is not JSON, or the disk refuses.
    """
    folder = Path(folder)
    if clash := sorted(set(card) & set(RESERVED)):
        raise InputError(f"the card of a completer may not hold {', '.join(clash)}: these are written with it")
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or choose another")
    data = tensors_save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
    full = {
        "format": FORMAT,
        "name": name,
        "genes": list(genes),
        "versions": {package: version(package) for package in ("spared-fm", "numpy", "safetensors")},
        "arrays_sha256": hashlib.sha256(data).hexdigest(),
        **card,
    }
    try:
        text = json.dumps(full, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the card of {folder} is not JSON ({error}): use plain numbers, strings, lists") from error

    part = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        part.mkdir(parents=True)
        for file, content in ((ARRAYS, data), (CARD, text.encode())):
            with (part / file).open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        part.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror}): free the disk or choose another") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(
    folder: str | os.PathLike[str], name: str, genes: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what :func:`write` wrote.

    Parameters
    ----------
    folder
        Folder of a fitted completer.
    name
        The method it must be of.
    genes
        The panel it must be for, in this order. None: any.

    Returns
    -------
    card, arrays
        Everything in ``card.json``, and the arrays.

    Raises
    ------
    InputError
        Not a completer's folder, another method or panel, a newer format, or arrays that do not match their checksum.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text())
        data = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise InputError(f"{folder} is not a fitted completer ({error.strerror}: {error.filename}): fit it") from error
    except ValueError as error:
        raise InputError(f"{folder / CARD} is damaged ({error}): fit the completer again") from error
    if not isinstance(card, dict) or not {*RESERVED} <= set(card):
        raise InputError(f"{folder / CARD} is not the card of a completer: fit it again")
    if not isinstance(card["format"], int) or card["format"] > FORMAT:
        raise InputError(f"{folder} has format {card['format']}, this version reads {FORMAT}: update spared-fm")
    if card["name"] != name:
        raise InputError(f"{folder} holds {card['name']!r}, not {name!r}: load it by its name")
    if hashlib.sha256(data).hexdigest() != card["arrays_sha256"]:
        raise InputError(f"{folder / ARRAYS} does not match its checksum: fit the completer again")
    if genes is not None:
        check_panel(str(folder), card["genes"], genes)
    try:
        return card, tensors_load(data)
    except SafetensorError as error:
        raise InputError(f"{folder / ARRAYS} can't be read ({error}): fit the completer again") from error


def check_panel(what: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise :class:`InputError` where the genes of ``what`` are not the wanted ones in their order."""
    if list(found) == list(wanted):
        return
    missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        reason = f"{missing[0]} is not in its panel ({len(missing)} of {len(wanted)} genes)"
    elif more:
        reason = f"its panel also has {more[0]} ({len(more)} genes more)"
    else:
        reason = "its genes stand in another order"
    raise InputError(f"{what} is for another panel: {reason}; fit a completer for this one")
