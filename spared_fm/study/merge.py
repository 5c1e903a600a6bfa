"""Merge: bring another store's slides, embeddings, cohorts, heads, completers and benchmarks into this one."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.commit import chunk_key, commit, receipt_key
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.verify import check_chunk
from spared_fm.study import matrix_kept
from spared_fm.study.progress import bar
from spared_fm.study.usage import entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spared_fm.store.layout import Layout

IDENTITY = ("fingerprint", "spots_digest", "counts_digest", "mpp")
PLANNED = ("recipe_id", "embedding_id", "batch_size", "threads")
SHOWN_CONFLICTS = 5
CARD = "card.json"
FITTED = {"head": "heads", "completer": "completers"}
"""What was fitted on a cohort, by its folder in the store; a completer's name is the digest of what it was fitted on."""


def merge(layout: Layout, other: Layout, *, progress: bool = False) -> list[dict[str, Any]]:
    """Copy what ``other`` has and this store lacks; embeddings chunk by chunk, each checked against its receipt.

    Run it again after a kill: what is there stays. ``other`` is only read. Indexes are not copied: run ``index`` afterwards.

    Parameters
    ----------
    layout
        The store that grows.
    other
        The store that is read.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per slide, embedding, cohort, head, completer and benchmark of ``other``: kind, name, status (``added``,
        ``extended``, ``unchanged``), chunks (copied; a benchmark's are its cells), damaged (chunks of ``other`` that do not
        match their receipt, left out). A benchmark that is in both stores keeps the declaration it has in this one; cells that
        it doesn't name count when it is run with one that does.

    Raises
    ------
    InputError
        The stores contradict each other: the same id with another image, spots, counts or scale, the same key with another
        recipe, cut or batches, the same cohort or head with other content. All conflicts are found before anything is copied.
    """
    if str(layout.root) == str(other.root):
        raise InputError(f"{layout.root}: a store can't be merged into itself; name two stores")
    conflicts = list(_conflicts(layout, other))
    if conflicts:
        more = f"; and {len(conflicts) - SHOWN_CONFLICTS} more" if len(conflicts) > SHOWN_CONFLICTS else ""
        raise InputError(
            f"{other.root} does not fit {layout.root}: {'; '.join(conflicts[:SHOWN_CONFLICTS])}{more}; "
            "remove one side with `spared-fm rm` or ingest it under another id"
        )
    rows = []
    slides = other.slides()
    with bar("merge", len(slides), "slides", show=progress) as advance:
        for slide in slides:
            rows.append(_slide(layout, other, slide))
            rows += [_embedding(layout, other, slide, key) for key in other.embeddings(slide)]
            advance(1)
    for cohort in other.cohorts():
        rows.append(_cohort(layout, other, cohort))
    for kind, top in FITTED.items():
        for cohort in other.files.list(top):
            for name in other.files.list(f"{top}/{cohort}"):
                if other.files.exists(f"{top}/{cohort}/{name}/{CARD}"):  # none: half written
                    added = _copy(layout, other, f"{top}/{cohort}/{name}", lambda name: True, last=CARD)
                    rows.append(_row(kind, f"{cohort}/{name}", "added" if added else "unchanged"))
    return rows + [_benchmark(layout, other, name) for name in matrix_kept.names(other)]


def _conflicts(layout: Layout, other: Layout) -> Iterator[str]:
    for slide in other.slides():
        mine = layout.attributes(layout.slide(slide))
        if mine is None:
            continue
        theirs = slide_record(other, slide)
        different = [name for name in IDENTITY if mine.get(name) != theirs.get(name)]
        if different:
            yield f"slide {slide} differs in {', '.join(different)}"
            continue
        for key in other.embeddings(slide):
            ours = layout.attributes(layout.embedding(slide, key))
            if ours is None:
                continue
            array = other.attributes(other.embedding(slide, key)) or {}
            different = [name for name in PLANNED if ours.get(name) != array.get(name)]
            if not different and _cut(layout, slide, key) != _cut(other, slide, key):
                different = ["chunk layout"]
            if different:
                yield f"embeddings {slide}/{key} differ in {', '.join(different)}"
    for cohort in other.cohorts():
        known, found = layout.attributes(layout.cohort(cohort)), other.attributes(other.cohort(cohort)) or {}
        if known is not None and known.get("settings_digest") != found.get("settings_digest"):
            yield f"cohort {cohort} has other settings"
    for cohort in other.files.list("heads"):
        for run in set(other.files.list(f"heads/{cohort}")) & set(layout.files.list(f"heads/{cohort}")):
            if not run.startswith(".") and _weights(layout, cohort, run) != _weights(other, cohort, run):
                yield f"head {cohort}/{run} has other weights"


def _cut(layout: Layout, slide: str, key: str) -> dict[str, Any]:
    """Everything zarr knows of the array but its attributes."""
    metadata = json.loads(layout.files.read(f"{layout.embedding(slide, key)}/zarr.json"))
    return {name: value for name, value in metadata.items() if name != "attributes"}


def _weights(layout: Layout, cohort: str, run: str) -> str | None:
    try:
        return json.loads(layout.files.read(f"{layout.head(cohort, run)}/{CARD}")).get("weights_sha256")
    except (FileNotFoundError, ValueError):
        return None


def _row(kind: str, name: str, status: str, chunks: int = 0, damaged: int = 0) -> dict[str, Any]:
    return {"kind": kind, "name": name, "status": status, "chunks": chunks, "damaged": damaged}


def _slide(layout: Layout, other: Layout, slide: str) -> dict[str, Any]:
    arrays = tuple(f"obsm/{key}/" for key in other.embeddings(slide))
    added = _copy(layout, other, other.slide(slide), lambda name: not name.startswith(arrays))
    return _row("slide", slide, "added" if added else "unchanged")


def _copy(layout: Layout, other: Layout, key: str, wanted: Callable[[str], bool], last: str = "zarr.json") -> bool:
    """Copy a node that is not there, complete or not at all."""
    if layout.files.exists(f"{key}/{last}"):
        return False
    with layout.files.staging_folder() as staging:
        node = staging / "node"
        node.mkdir()
        for entry in entries(other, key):
            name = entry.key.removeprefix(f"{key}/")
            if wanted(name):
                (node / name).parent.mkdir(parents=True, exist_ok=True)
                (node / name).write_bytes(other.files.read(entry.key))
        try:
            layout.files.publish(node, key, last=last)
        except OSError as error:
            if layout.files.exists(f"{key}/{last}"):
                raise InputError(
                    f"{layout.root / key} was written by another process meanwhile; merge again"
                ) from error
            raise
    return True


def _embedding(layout: Layout, other: Layout, slide: str, key: str) -> dict[str, Any]:
    theirs = EmbeddingArray(other, slide, key)
    added = layout.files.put_if_absent(f"{theirs.node}/zarr.json", other.files.read(f"{theirs.node}/zarr.json"))
    mine = EmbeddingArray(layout, slide, key)
    copied, damaged = 0, 0
    there = set(theirs.missing())
    for k in mine.missing():
        if k in there:
            continue
        if check_chunk(theirs, k) is not None:
            damaged += 1
            continue
        receipt = json.loads(other.files.read(receipt_key(theirs.node, k)))
        commit(layout.files, mine.node, k, other.files.read(chunk_key(theirs.node, k)), receipt)
        copied += 1
    status = "added" if added else "extended" if copied else "unchanged"
    return _row("embedding", f"{slide}/{key}", status, copied, damaged)


def _cohort(layout: Layout, other: Layout, cohort: str) -> dict[str, Any]:
    node = other.cohort(cohort)
    record = other.attributes(node) or {}
    # Only registered layers are data; the others are leftovers of writers that died.
    layers = tuple(f"layers/{layer}/" for layer in record["layers"])

    def is_data(name: str) -> bool:
        return not name.startswith("layers/") or name == "layers/zarr.json" or name.startswith(layers)

    if _copy(layout, other, node, is_data):
        return _row("cohort", cohort, "added")
    status = "unchanged"
    for layer, card in record["layers"].items():
        known = layout.attributes(node) or {}
        if layer in known["layers"]:
            continue
        layout.files.remove(f"{node}/layers/{layer}")  # unregistered, so nobody's
        _copy(layout, other, f"{node}/layers/{layer}", lambda name: True)
        layout.update_attributes(node, functools.partial(_with_layer, layer, card))
        status = "extended"
    return _row("cohort", cohort, status)


def _benchmark(layout: Layout, other: Layout, name: str) -> dict[str, Any]:
    copied, damaged = 0, 0
    for cell, _ in matrix_kept.cells(other, name):
        try:
            copied += matrix_kept.copy(layout, other, name, cell)
        except InputError:
            damaged += 1
    key = f"{matrix_kept.folder(name)}/{matrix_kept.DECLARED}"
    added = layout.files.put_if_absent(key, other.files.read(key))
    return _row("benchmark", name, "added" if added else "extended" if copied else "unchanged", copied, damaged)


def _with_layer(layer: str, card: Any, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "layers": {**record["layers"], layer: card}}
