"""Weights files the user has named in a config: a TOML file, found by the environment variable ``SPARED_FM_WEIGHTS``.

One table per encoder::

    [uni]
    file = "/models/uni.safetensors"      # or relative to the config
    sha256 = "<64 hex digits of the file>"
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from spared_fm.errors import InputError
from spared_fm.tables import read_toml

VARIABLE = "SPARED_FM_WEIGHTS"


def configured_file(name: str) -> Path | None:
    """Find the file the config names for encoder ``name``; None where there is no config, or no table for it.

    Raises
    ------
    InputError
        The config can't be read, or the table lacks a field.
    """
    table = _tables().get(name)
    if table is None:
        return None
    if not isinstance(table, dict) or not all(isinstance(table.get(field), str) for field in ("file", "sha256")):
        raise InputError(f"{os.environ[VARIABLE]}: table [{name}] needs file and sha256, both in quotes")
    return Path(os.environ[VARIABLE]).absolute().parent / Path(table["file"]).expanduser()


def checked_file(name: str) -> Path | None:
    """Find the file the config names for encoder ``name`` and make sure it is the one: as :func:`configured_file`.

    Raises
    ------
    InputError
        The file is missing, or its sha256 is another.
    """
    path = configured_file(name)
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; {os.environ[VARIABLE]} names it for {name}")
    state = path.stat()
    found, expected = _sha256(path, state.st_mtime_ns, state.st_size), _tables()[name]["sha256"].lower()
    if found != expected.removeprefix("sha256:"):
        raise InputError(
            f"{path}: sha256 is {found}, {os.environ[VARIABLE]} says {expected} for {name}; "
            "fetch the file again, or mend the config"
        )
    return path


def _tables() -> dict[str, Any]:
    config = os.environ.get(VARIABLE)
    if not config:
        return {}
    return read_toml(Path(config), f"the help of {VARIABLE}")


@functools.lru_cache(maxsize=32)
def _sha256(path: Path, _modified: int, _size: int) -> str:
    """Digest of a file of gigabytes, taken once per process while the file stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
