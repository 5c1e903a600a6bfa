"""TOML tables that people write: read, and checked field by field, with one line that names the field and the mend."""

from __future__ import annotations

import difflib
import math
import tomllib
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

#: What a field must be, in words, and the test of it.
Check = tuple[str, "Callable[[Any], bool]"]


def read_toml(path: Path, form: str) -> dict[str, Any]:
    """Read a TOML file.

    Parameters
    ----------
    path
        The file.
    form
        Where its form is written down, for the message.

    Raises
    ------
    InputError
        The file can't be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error}); mend it, or see {form} for the form") from error


def check_fields(
    where: str, table: Any, checks: Mapping[str, Check], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check the fields of one table, and give them with the defaults filled in and lists as tuples.

    Parameters
    ----------
    where
        File and table, in front of every message.
    table
        What the file holds.
    checks
        Field → what it must be, in words, and the test of it. Every field is needed that has no default.
    defaults
        Field → value where the table has none.

    Raises
    ------
    InputError
        Not a table, or a field that is unknown, missing or not what it must be.
    """
    if not isinstance(table, dict):
        raise InputError(f"{where}: expected a table of fields")
    if unknown := sorted(table.keys() - checks.keys()):
        close = difflib.get_close_matches(unknown[0], checks, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(checks)}"
        raise InputError(f"{where}: unknown field {unknown[0]!r}; {mend}")
    table = {**(defaults or {}), **table}
    for field, (words, holds) in checks.items():
        if field not in table:
            raise InputError(f"{where}: field {field!r} is missing; give {words}")
        if not holds(table[field]):
            raise InputError(f"{where}: {field} is {table[field]!r}; expected {words}")
    return {field: tuple(value) if isinstance(value, list) else value for field, value in table.items()}


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """Whether it is a number above 0."""
    return is_number(value) and value > 0


def is_text(value: Any) -> bool:
    """Whether it is a text, an empty one included."""
    return isinstance(value, str)


def is_said(value: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(value, str) and value.strip() != ""


def is_whole(least: int, most: int | None = None) -> Callable[[Any], bool]:
    """Make a test for whole numbers from ``least`` to ``most``."""
    return lambda value: type(value) is int and value >= least and (most is None or value <= most)


def is_list(holds: Callable[[Any], bool], length: int | None = None, *, empty: bool = True) -> Callable[[Any], bool]:
    """Make a test for lists of what ``holds`` is true of."""
    return lambda value: (
        isinstance(value, list | tuple)
        and all(map(holds, value))
        and (length is None or len(value) == length)
        and (empty or len(value) > 0)
    )


def is_one_of(*choices: object) -> Callable[[Any], bool]:
    """Make a test for one of some values."""
    return lambda value: value in choices
