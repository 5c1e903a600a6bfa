"""Heads within heads: the state of each kept under a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.heads.base import UnfittedError
from spared_fm.heads.registry import head_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from spared_fm.heads.base import Head


def pack(prefix: str, head: Head) -> dict[str, NDArray[Any]]:
    """Return the head's state with ``prefix`` and a dot before every name."""
    return {f"{prefix}.{key}": value for key, value in head.state().items()}


def unpack(prefix: str, name: str, params: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> Head:
    """Return the head called ``name`` in the registry from what `pack` packed."""
    start = f"{prefix}."
    own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    return head_class(name).from_state(params, own)


def require(attribute: str, head: Head) -> None:
    """Raise if the head has no fitted head of this name.

    Raises
    ------
    UnfittedError
        ``fit`` was not called, or did not succeed.
    """
    if not hasattr(head, attribute):
        raise UnfittedError(f"{head.name} is not fitted: call fit first")
