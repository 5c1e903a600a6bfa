"""Files and folders that appear whole or not at all, among them folders of a card (JSON) and arrays (safetensors)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_load
from safetensors.numpy import save as tensors_save

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CARD = "card.json"


class Form(NamedTuple):
    """What a kind of folder is called and what stands on its card.

    Attributes
    ----------
    thing, made
        Its name in messages (``head``), and what it is once it is there (``saved``).
    format
        Of this version, on the card.
    tensors
        The arrays are in ``<tensors>.safetensors``, and their checksum is ``<tensors>_sha256`` on the card.
    fields
        What stands on every card of this kind, beside format, versions and checksum.
    packages
        Packages whose versions are kept on the card.
    """

    thing: str
    made: str
    format: int
    tensors: str
    fields: tuple[str, ...]
    packages: tuple[str, ...] = ("spared-fm", "numpy", "safetensors")

    @property
    def file(self) -> str:
        """Name of the file with the arrays."""
        return f"{self.tensors}.safetensors"

    @property
    def checksum(self) -> str:
        """Key of the arrays' checksum."""
        return f"{self.tensors}_sha256"

    @property
    def reserved(self) -> tuple[str, ...]:
        """Keys that stand on every card."""
        return ("format", *self.fields, "versions", self.checksum)


def write_folder(
    form: Form,
    folder: str | os.PathLike[str],
    fields: Mapping[str, Any],
    card: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> None:
    """Write a card and arrays into a new folder.

    Parameters
    ----------
    form
        The kind of folder.
    folder
        Must not exist. Files are written into a hidden folder beside it, flushed to disk, and renamed.
    fields
        Values of ``form.fields``; JSON values, numpy's too.
    card
        Whatever else the reader should know; likewise, and none of ``form.reserved``.
    arrays
        Arrays by name.

    Raises
    ------
    InputError
        The folder exists, the card is not JSON or holds a reserved key, or the disk refuses.
    """
    folder = Path(folder)
    if clash := sorted(set(card) & set(form.reserved)):
        raise InputError(f"the card of a {form.thing} may not hold {', '.join(clash)}: these are written with it")
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or choose another name")
    data = tensors_save({key: np.asarray(value, order="C") for key, value in arrays.items()})
    full = {
        "format": form.format,
        **fields,
        "versions": {package: version(package) for package in form.packages},
        form.checksum: hashlib.sha256(data).hexdigest(),
        **card,
    }
    try:
        text = json.dumps(full, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"the card of {folder} is not JSON ({error}): use plain numbers, strings, lists") from error

    part = _beside(folder)
    try:
        part.mkdir(parents=True)
        for name, content in ((form.file, data), (CARD, text.encode())):
            (part / name).write_bytes(content)
            _flush(part / name)
        _flush(part)
        part.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror}): free the disk or choose another") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_folder(form: Form, folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write_folder` wrote.

    Parameters
    ----------
    form
        The kind of folder that it must be.
    folder
        The folder.

    Returns
    -------
    card, arrays
        Everything in ``card.json``, and the arrays by name.

    Raises
    ------
    InputError
        Not a folder of this kind, another format, or arrays that do not match their checksum.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text())
        data = (folder / form.file).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder} is not a {form.made} {form.thing} ({error.strerror}: {error.filename}): fit it first"
        ) from error
    except ValueError as error:
        raise InputError(f"{folder / CARD} is damaged ({error}): fit it again") from error
    if not isinstance(card, dict) or not {*form.reserved} <= set(card):
        raise InputError(f"{folder / CARD} is not the card of a {form.thing}: fit it again")
    if not isinstance(card["format"], int) or card["format"] > form.format:
        raise InputError(f"{folder} has format {card['format']}, this version reads {form.format}: update spared-fm")
    if card["format"] < form.format:
        raise InputError(f"{folder} has format {card['format']}, of an older version: fit it again")
    if hashlib.sha256(data).hexdigest() != card[form.checksum]:
        raise InputError(f"{folder / form.file} does not match its checksum: fit it again")
    try:
        return card, tensors_load(data)
    except SafetensorError as error:
        raise InputError(f"{folder / form.file} can't be read ({error}): fit it again") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write that takes the place of ``path`` when the block ends; after an error ``path`` is as it was.

    It lies beside ``path`` under a hidden name of its own, so that two writers do not meet. What is written there is
    flushed to disk before it is renamed.

    Raises
    ------
    OSError
        The disk refuses, or nothing was written.
    """
    part = _beside(path)
    try:
        yield part
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path``, see `replacing`; the folder of ``path`` is made.

    Raises
    ------
    OSError
        The disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        yield file


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    """Return a numpy value, as parameters may be, in JSON's types."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
