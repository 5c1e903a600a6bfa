"""The heads by name; each family's module is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.heads.base import Head

#: name: (module, class)
HEADS: dict[str, tuple[str, str]] = {
    "gene-mean": ("spared_fm.heads.mean", "GeneMean"),
    "ridge": ("spared_fm.heads.ridge", "Ridge"),
}


def head_class(name: str) -> type[Head]:
    """Return the class of a head.

    Raises
    ------
    InputError
        No head has this name; the message lists those there are.
    """
    if name not in HEADS:
        raise InputError(f"unknown head {name!r}: use one of {', '.join(sorted(HEADS))}")
    module, attribute = HEADS[name]
    found: type[Head] = getattr(import_module(module), attribute)
    return found


def make(name: str, **params: Any) -> Head:
    """Return an unfitted head.

    Raises
    ------
    InputError
        Unknown name, or a parameter that the head does not take.
    """
    try:
        return head_class(name)(**params)
    except TypeError as error:
        raise InputError(f"head {name!r} can't be made with {params}: {error}") from error
