"""Indexes as they lie in the store: their cards, whether they are of what the store holds, and opening them to search."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.cache import cache_folder
from spared_fm.store.commit import checksum
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study.index_table import ROW_BITS, Kept, Rows, Scale
from spared_fm.study.usage import entries, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spared_fm.store.layout import Layout
    from spared_fm.study.search_engine import Metric

    Card = dict[str, Any]

FORMAT = 1
INDEXES = "indexes"
CARD = "card.json"
_NEEDED = {"key", "recipe_id", "metric", "standardize", "plan", "slides", "segments"}
MOST_IDS = 1 << 24
"""Kept rows that are listed to the index; more are asked for one batch of candidates at a time."""


def folder(key: str) -> str:
    """Key of the folder of an index."""
    return f"{INDEXES}/{key}"


def mend(layout: Layout, key: str, *, rebuild: bool = False) -> str:
    """Command that brings an index up to date."""
    return f"`spared-fm index --store {layout.root} --encoder {key}{' --rebuild' if rebuild else ''}`"


def read_card(layout: Layout, key: str) -> Card | None:
    """Card of an index, or None where there is no index.

    Raises
    ------
    InputError
        It is damaged, or of a newer version.
    """
    place = f"{folder(key)}/{CARD}"
    try:
        card = json.loads(layout.files.read(place))
        version = int(card["format"])
        if version <= FORMAT and not set(card) >= _NEEDED:
            raise KeyError("a field is missing")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{layout.root / place} is damaged ({type(error).__name__}); {mend(layout, key, rebuild=True)} makes the index again"
        ) from error
    if version > FORMAT:
        raise InputError(f"{layout.root / place}: index format {version} is newer than {FORMAT}; upgrade spared-fm")
    return card


def entry(layout: Layout, key: str, slide: str) -> dict[str, Any]:
    """Give what an index notes of a slide: slide, embedding_id, rows, receipts (a checksum of theirs).

    Raises
    ------
    InputError
        There are no such embeddings, they are unfinished, or the slide has changed since.
    """
    array = EmbeddingArray(layout, slide, key)
    array.check_current()
    next(array.blocks(), None)  # refuses unfinished embeddings
    receipts = [array.receipt(k) or {} for k in range(array.n_chunks)]
    return {
        "slide": slide,
        "embedding_id": array.attributes["embedding_id"],
        "rows": array.shape[0],
        "receipts": checksum("".join(receipt["crc32c"] for receipt in receipts).encode()),
    }


def stale(layout: Layout, card: Card, slides: Sequence[str] = ()) -> str | None:
    """Say how an index differs from the store, the first thing found; None where it is of what the store holds.

    Parameters
    ----------
    layout
        The store.
    card
        The index's card.
    slides
        Slides that must be in it.
    """
    key = card["key"]
    known = {held["slide"]: held for held in card["slides"]}
    for slide in dict.fromkeys([*known, *slides]):
        now = layout.attributes(layout.embedding(slide, key))
        held = known.get(slide)
        if now is not None and now["recipe_id"] != card["recipe_id"]:
            return f"it is of another recipe than the embeddings of slide {slide}"
        if held is None:
            return f"slide {slide} is not in it"
        if now is None:
            return f"slide {slide} is in it, but has no such embeddings any more"
        if now["embedding_id"] != held["embedding_id"]:
            return f"slide {slide} has other embeddings now"
    return None


def open_index(layout: Layout, card: Card, slides: Sequence[str]) -> Indexed:
    """Open the index of a card, or of the one that replaces it meanwhile, to search these slides.

    Raises
    ------
    InputError
        The index is not of what the store holds now, or is damaged.
    """
    from spared_fm.search.files import MissingFileError

    key = card["key"]
    while True:
        if difference := stale(layout, card, slides):
            raise InputError(
                f"the index of {key!r} can't be used: {difference}; {mend(layout, key)} brings it up to date"
            )
        try:
            return Indexed(layout, card)
        except (
            MissingFileError
        ):  # another index was put into force since the card was read, and this one's files swept away
            now = read_card(layout, key)
            if now is None or now == card:
                raise
            card = now


class Indexed:
    """An open index, as an :class:`spared_fm.study.search_engine.Engine`.

    Parameters
    ----------
    layout
        The store.
    card
        Card of the index.
    """

    def __init__(self, layout: Layout, card: Card) -> None:
        from spared_fm.search.index import Index

        self.metric: Metric = card["metric"]
        self.rows = rows_of_card(layout, card)
        self._index = Index.open(local_folder(layout, card), card)

    def nearest(self, vectors: np.ndarray, k: int, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`spared_fm.study.search_engine.Engine`. Similarities are those of the store's rows, not of codes."""
        from spared_fm.search.filtered import search

        if not len(kept):
            return np.full((len(vectors), k), -1, np.int64), np.full((len(vectors), k), -np.inf, np.float32)
        ids, similarity, _ = search(self._index, vectors, k, keep=self._keep(kept), rerank=self.rows.vectors)
        return ids, similarity

    def _keep(self, kept: Kept) -> Any:
        """Say what is kept in the way that is cheapest for the index: all, whole slides, a list, or a function."""
        if any(mask is not None for mask in kept.masks.values()):
            return kept.ids() if len(kept) <= MOST_IDS else kept
        if set(kept.masks) == set(self.rows.numbers.values()):
            return None
        return ranges(kept.masks)


def rows_of_card(layout: Layout, card: Card) -> Rows:
    """Give the embeddings that an index is of."""
    numbers = {held["slide"]: held["number"] for held in card["slides"]}
    sizes = {held["number"]: held["rows"] for held in card["slides"]}
    scale = card.get("scale")
    if scale is not None:
        scale = Scale(np.array(scale["mean"], np.float32), np.array(scale["inverse"], np.float32))
    return Rows(layout, card["key"], numbers, sizes, scale)


def ranges(numbers: Any) -> np.ndarray:
    """Ids of whole slides, int64 (n, 2): from, and up to but not with."""
    starts = np.array(sorted(numbers), dtype=np.int64)
    return np.stack([starts << ROW_BITS, (starts + 1) << ROW_BITS], axis=1)


def local_folder(layout: Layout, card: Card) -> Path:
    """Folder of this machine that has an index's files under their names: the store's own, or one of links to cached copies."""
    place = folder(card["key"])
    if isinstance(layout.files.root, Path):
        return layout.files.root / place
    links = cache_folder() / INDEXES / hashlib.sha256(str(layout.root).encode()).hexdigest()[:16] / card["key"]
    links.mkdir(parents=True, exist_ok=True)
    for file in files(card):
        copy = layout.files.local_file(f"{place}/{file['file']}", file["crc32c"])
        link = links / file["file"]
        if not link.is_symlink() or link.readlink() != copy:
            fresh = links / uuid.uuid4().hex
            fresh.symlink_to(copy)
            os.replace(fresh, link)
    return links


def files(card: Card) -> list[dict[str, Any]]:
    """Give the records of the files a card is of."""
    return [*([card["trained"]] if card.get("trained") else []), *card["segments"]]


def leftovers(layout: Layout, still: float, only: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield files (key, bytes) beside the cards (or one of them) that no card lists and older than ``still`` seconds."""
    for key in layout.files.list(INDEXES) if only is None else [only]:
        try:
            card = read_card(layout, key)
        except InputError:
            continue  # what it was of can't be told
        if card is None:
            continue
        used = {f"{folder(key)}/{name}" for name in (CARD, *(file["file"] for file in files(card)))}
        yield from ((e.key, e.bytes) for e in entries(layout, folder(key)) if e.key not in used and e.age > still)


def problems(layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield key and one line for every index that is damaged, or is not of what the store holds."""
    for key in layout.files.list(INDEXES):
        try:
            card = read_card(layout, key)
            if card is None:
                continue
            different = None if card["plan"]["kind"] == "exact" else stale(layout, card) or _rows_changed(layout, card)
            if different:
                yield key, f"index {key}: {different}; {mend(layout, key)} brings it up to date"
            elif card["plan"]["kind"] != "exact":
                from spared_fm.search.index import Index

                try:
                    with Index.open(local_folder(layout, card), card) as index:
                        index.verify()
                except InputError as error:  # a run without --rebuild may find nothing to do
                    yield key, f"index {key}: {error}, with {mend(layout, key, rebuild=True)}"
        except InputError as error:
            yield key, f"index {key}: {error}"


def _rows_changed(layout: Layout, card: Card) -> str | None:
    """Name a slide whose rows were computed again since, with other bytes."""
    for held in card["slides"]:
        try:
            now = entry(layout, card["key"], held["slide"])
        except InputError as error:
            return str(error)
        if now["receipts"] != held["receipts"]:
            return f"rows of slide {held['slide']} were computed again since"
    return None


def overview(layout: Layout) -> list[dict[str, Any]]:
    """List the indexes: index (its key), kind, metric, rows, slides, segments, recall, bytes, problem (None: it can be used)."""
    rows = []
    for key in layout.files.list(INDEXES):
        row: dict[str, Any] = {"index": key, "bytes": total(layout, folder(key)), "problem": None}
        try:
            card = read_card(layout, key)
            if card is None:
                continue
            row |= {name: card.get(name) for name in ("metric", "rows")}
            row |= {"kind": card["plan"]["kind"], "slides": len(card["slides"]), "segments": len(card["segments"])}
            row["recall"] = (card.get("recall") or {}).get("recall")
            row["problem"] = None if row["kind"] == "exact" else stale(layout, card)
        except InputError as error:
            row["problem"] = str(error)
        rows.append(row)
    return rows
