"""Fitted completers on disk: arrays and a card in a folder that appears whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.folders import CARD, Form, read_folder, write_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np

__all__ = ["ARRAYS", "CARD", "FORM", "check_panel", "read", "write"]

FORM = Form("completer", "fitted", 1, "arrays", ("name", "genes"))
ARRAYS = FORM.file


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
        Must not exist (see :func:`spared_fm.folders.write_folder`).
    name
        The method.
    genes
        The panel, in the order of the arrays.
    card
        Settings and whatever the reader should know: JSON values, none of ``FORM.reserved``.
    arrays
        What was fitted.

    Raises
    ------
    InputError
        The folder exists, the card is not JSON, or the disk refuses.
    """
    write_folder(FORM, folder, {"name": name, "genes": list(genes)}, card, arrays)


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
        Not a completer's folder, another method or panel, another format, or arrays that do not match their checksum.
    """
    card, arrays = read_folder(FORM, folder)
    if card["name"] != name:
        raise InputError(f"{folder} holds {card['name']!r}, not {name!r}: load it by its name")
    if genes is not None:
        check_panel(str(folder), card["genes"], genes)
    return card, arrays


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
