"""What a head gets beside a matrix of features: how wide each encoder is, the grid of its tokens, gene descriptions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.layout import TOKENS
from spared_fm.store.nodes import read_elem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spared_fm.heads.base import Head
    from spared_fm.store.embeddings import EmbeddingArray
    from spared_fm.store.layout import Layout

VIEWS = 8
"""Of ``encode --views dihedral``."""
TEXT = "text"
"""In a cohort's ``varm``: what describes its genes, (genes, dim)."""


class UnfitError(InputError):
    """A head that can't take this encoder, or isn't for this protocol; nothing is broken."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One encoder's columns.

    Attributes
    ----------
    key
        Array key.
    width
        Columns.
    grid
        Side of the token grid that they hold, row by row; 0 for a vector.
    views
        Views of the patch that they hold, one after the other.
    """

    key: str
    width: int
    grid: int
    views: int


def blocks_of(arrays: Sequence[EmbeddingArray]) -> list[Block]:
    """Describe a slide's arrays, in their order.

    Raises
    ------
    InputError
        A token grid that doesn't say how large it is.
    """
    found = []
    for array in arrays:
        grid = int(array.attributes.get("tokens", 0))
        if array.key.startswith(f"{TOKENS}/") and not grid:
            raise InputError(f"slide {array.slide}: {array.key!r} does not say how large its grid is; encode it again")
        views = VIEWS if array.recipe.views == "dihedral" else 1
        found.append(Block(array.key, array.shape[1], grid, views))
    return found


def make_fitting(name: str, given: Mapping[str, Any], blocks: Sequence[Block]) -> Head:
    """Make a head for these features: parameters that say how they are laid out are filled in where they aren't given.

    Those are ``blocks``, ``grid`` and ``tokens``, and ``views``.

    Parameters
    ----------
    name
        Head.
    given
        Parameters.
    blocks
        From :func:`blocks_of`.

    Raises
    ------
    UnfitError
        The head can't take these features; one line says what it takes.
    InputError
        Unknown name or parameter.
    """
    from spared_fm.heads.registry import make

    params = make(name, **given).get_params(deep=False)
    filled: dict[str, Any] = {}
    if len(blocks) > 1 and "blocks" in params:
        filled["blocks"] = [block.width for block in blocks]
    filled |= _tokens(name, given, params, blocks)
    views = blocks[0].views if len(blocks) == 1 else 1
    if "views" in params:
        filled["views"] = views
        if given.get("views", 1) > views:
            raise UnfitError(
                f"{name} with views={given['views']} needs an encoder of that many views (encode --views dihedral)"
            )
    return make(name, **(filled | dict(given)))


def _tokens(name: str, given: Mapping[str, Any], params: Mapping[str, Any], blocks: Sequence[Block]) -> dict[str, Any]:
    """Give the parameters of a head that reads tokens, or say why it can't read these features."""
    side = int(params.get("grid", 1))
    asked = side**2 if "grid" in params else int(params.get("tokens", 1))
    grids = [block for block in blocks if block.grid]
    if not grids:
        if asked > 1:
            raise UnfitError(f"{name} reads token grids: encode with --tokens, and name tokens/<encoder>")
        return {}
    if "grid" not in params and "tokens" not in params:
        first = grids[0]
        raise UnfitError(
            f"{name} reads one vector per spot, {first.key} is a grid of {first.grid} × {first.grid} tokens: "
            "heads egn, pixnet, triplex read those"
        )
    if len(grids) > 1 or not blocks[0].grid or (len(blocks) > 1 and "blocks" not in params):
        where = "as its first encoder" if "blocks" in params else "alone"
        raise UnfitError(f"{name} reads one token grid, {where}: name it so")
    there = blocks[0].grid
    if {"grid", "tokens"} & set(given) and asked != there**2:
        raise UnfitError(f"{name} is to read {asked} tokens, {blocks[0].key} has {there} × {there}")
    return {"grid": there} if "grid" in params else {"tokens": there**2}


def gene_text(layout: Layout, cohort: str, genes: Sequence[str]) -> np.ndarray | None:
    """Read what describes these genes, (genes, dim) float32; None where the cohort has no such thing for all of them."""
    node = layout.cohort(cohort)
    if not layout.files.exists(f"{node}/varm/{TEXT}/zarr.json"):
        return None
    known = read_elem(layout, f"{node}/var").index.get_indexer(list(genes))
    if (known < 0).any():
        return None
    return np.asarray(read_elem(layout, f"{node}/varm/{TEXT}"), np.float32)[known]


def text_digest(layout: Layout, cohort: str) -> str | None:
    """Hex sha256 of a cohort's gene descriptions; None where it has none."""
    node = layout.cohort(cohort)
    if not layout.files.exists(f"{node}/varm/{TEXT}/zarr.json"):
        return None
    values = np.ascontiguousarray(read_elem(layout, f"{node}/varm/{TEXT}"), "<f4")
    return hashlib.sha256(json.dumps(values.shape).encode() + values.tobytes()).hexdigest()
