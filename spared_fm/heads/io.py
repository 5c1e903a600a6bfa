"""Fitted heads on disk: weights and a card in a folder that appears whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.folders import CARD, Form, read_folder, write_folder
from spared_fm.heads.registry import head_class

if TYPE_CHECKING:
    import os

    from spared_fm.heads.base import Head

__all__ = ["CARD", "FORM", "load", "save"]

FORM = Form("head", "saved", 2, "weights", ("head", "params"), ("spared-fm", "numpy", "scikit-learn", "safetensors"))


def save(head: Head, folder: str | os.PathLike[str], card: dict[str, Any]) -> None:
    """Write a fitted head into a new folder.

    Parameters
    ----------
    head
        A fitted head.
    folder
        Must not exist (see `spared_fm.folders.write_folder`).
    card
        What the reader should know (cohort, panel, recipe, scores): JSON values, none of ``FORM.reserved``.

    Raises
    ------
    InputError
        The folder exists, the card is not JSON, the head is not fitted, or the disk refuses.
    """
    write_folder(FORM, folder, {"head": head.name, "params": head.get_params()}, card, head.state())


def load(folder: str | os.PathLike[str]) -> tuple[Head, dict[str, Any]]:
    """Read a fitted head and its card.

    Returns
    -------
    head, card
        The head, ready to predict, and everything in ``card.json``.

    Raises
    ------
    InputError
        Not a head's folder, another format, an unknown head, or weights that do not match their checksum.
    """
    card, weights = read_folder(FORM, folder)
    try:
        return head_class(card["head"]).from_state(card["params"], weights), card
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder} can't be read as a {card['head']!r} head ({error}): fit it again") from error
