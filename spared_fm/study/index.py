"""Index: an encoder's embeddings made quick to search, and kept up with the store without being built again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.claims import CLAIMS, acquire
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import TOKENS, UPDATE_LEASE_S
from spared_fm.study.index_build import Part, blocks, pack, size, train, write
from spared_fm.study.index_open import (
    CARD,
    FORMAT,
    entry,
    files,
    folder,
    leftovers,
    local_folder,
    ranges,
    read_card,
    rows_of_card,
)
from spared_fm.study.index_table import ROW_BITS, Scale, encoded_slides, ids_of, standardized
from spared_fm.study.progress import bar
from spared_fm.study.runs import record_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spared_fm.search.plan import Plan
    from spared_fm.store.layout import Layout
    from spared_fm.study.index_open import Card
    from spared_fm.study.search_engine import Metric

    Entry = dict[str, Any]

RECALL = 0.95
QUERIES = 200
"""Rows that recall is measured with; where slides were added, half of them are theirs."""
SMALL_SEGMENTS, DEAD_SHARE = 32, 0.2
"""More segments than this that are not half full are joined; one with a larger share of removed rows is written again."""
FEWEST_ROWS = 1 << 16
"""Segments smaller than this are not made just to keep workers busy."""
OTHER_LISTS = 4
"""An index is built anew when so many times more lists, or fewer, suit the rows there are now."""
GRACE_S = 24 * 3600.0
"""Seconds after which a file that no card lists is a leftover, and not one that another run is about to list."""
_UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def index(
    layout: Layout,
    encoder: str,
    *,
    slides: str | Sequence[str] | None = None,
    metric: Metric | None = None,
    standardize: bool | None = None,
    target_recall: float | None = None,
    memory: int | str | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    rebuild: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Make an index of an encoder's embeddings, or bring it up to date: new slides are added, removed ones leave it.

    Searches go on with the index as it was until the new one is whole, and then use that.

    Parameters
    ----------
    layout
        The store.
    encoder
        Encoder name or array key.
    slides
        Glob or ids of slides that are to be in it beside those that are; by default all that have the embeddings.
    metric
        ``cosine``, ``ip`` or ``l2``. This and the next three are by default what they were, at first ``cosine``, True for the
        built-in encoders and False for networks, 0.95, and None.
    standardize
        Compare embeddings less the mean of each dimension, over its standard deviation (over all that is indexed when it is
        built): dimensions of other size count the same.
    target_recall
        Least recall@10 against exact search. Lists are probed until it is reached.
    memory
        Bytes, or ``8GB``, that a build may take and that the index may fill; by default a build takes 2 GiB.
    workers, scheduler
        Write segments on dask: on N local processes, or on the workers of a running scheduler, which must see the store.
    rebuild
        Make it anew, of `slides` alone.
    seed
        Of training, and of the rows that recall is measured with.
    progress
        Show a bar.

    Returns
    -------
    dict
        key, status (``built``, ``updated``, ``unchanged``), why (an index that was there was built anew, or None), kind
        (``exact``: so few rows need no files), metric, standardize, rows, slides, added, removed (slides), segments, bytes,
        recall (1 for ``exact``), target_recall, queries (that it was measured with), probes, candidates, lists, seconds,
        warnings.

    Raises
    ------
    InputError
        Embeddings that are missing, unfinished or of several recipes; a recall that is not reached though all lists are probed;
        too little memory; another run that put its index into force meanwhile. The index is then what it was.
    """
    from spared_fm.search import plan as plans
    from spared_fm.study.search_engine import METRICS

    started = time.perf_counter()
    if workers < 0:
        raise InputError("--workers must be 0 (in this process) or more")
    if metric not in (None, *METRICS):
        raise InputError(f"--metric {metric!r} is not cosine, ip or l2")
    chosen, key = encoded_slides(layout, slides, encoder)
    if key.startswith(f"{TOKENS}/"):
        raise InputError(f"{key!r} are token grids; embeddings of whole patches can be indexed")
    place = f"{folder(key)}/{CARD}"
    seen = layout.files.read(place) if layout.files.exists(place) else None
    old = None if rebuild else read_card(layout, key)
    for name, _ in leftovers(layout, GRACE_S, key):
        layout.files.remove(name)

    first = EmbeddingArray(layout, chosen[0], key)
    settings: dict[str, Any] = {
        "metric": metric or (old or {}).get("metric", "cosine"),
        "standardize": standardize
        if standardize is not None
        else (old or {"standardize": standardized(key)})["standardize"],
        "target_recall": target_recall if target_recall is not None else (old or {}).get("target_recall", RECALL),
        "memory": _bytes(memory) if memory is not None else (old or {}).get("memory"),
    }
    now = _entries(layout, key, chosen, [held["slide"] for held in (old or {"slides": []})["slides"]])
    rows = sum(slide["rows"] for slide in now.values())
    wanted = plans.choose(rows, first.shape[1], memory=settings["memory"], target_recall=settings["target_recall"])
    why = None
    if old is not None:
        why = _why_anew(old, settings, first.attributes["recipe_id"], wanted) or _damage(layout, old)
    base = old if why is None else None
    table, next_number = _numbered(now, base)
    held = {slide["number"] for slide in (base or {"slides": []})["slides"]}
    live = {slide["number"]: slide for slide in table}
    added, removed = [live[n] for n in live if n not in held], held - set(live)
    card: Card = {
        "format": FORMAT,
        "key": key,
        "recipe_id": first.attributes["recipe_id"],
        "dim": first.shape[1],
        **settings,
        "rows": rows,
        "plan": dataclasses.asdict(wanted),
        "scale": None,
        "trained": None,
        "segments": [],
        "tombstones": [],
        "slides": table,
        "next_number": next_number,
        "recall": None,
        "seed": seed,
        "versions": {"spared-fm": version("spared-fm"), "faiss": version("faiss-cpu")},
    }
    if base is not None and wanted.kind != "exact":
        card |= {
            name: base[name] for name in ("plan", "scale", "trained", "segments", "recall", "probes", "candidates")
        }
    if base is not None and not added and not removed and base["target_recall"] == settings["target_recall"]:
        return _summary(base, "unchanged", None, 0, 0, time.perf_counter() - started)
    warnings: list[str] = []
    with _removed_on_failure(layout, card, base):
        if wanted.kind != "exact":
            parts = _rewritten(card, live) + [Part(s["number"], s["slide"], 0, s["rows"]) for s in added]
            with bar(f"index {key}", (3 if base is None else 2) * size(parts), "rows", show=progress) as advance:
                if base is None and card["standardize"]:
                    mean, inverse = Scale.measure(blocks(layout, key, parts, None))
                    card["scale"] = {"mean": mean.tolist(), "inverse": inverse.tolist()}
                compared: dict[str, Any] = {"metric": card["metric"], "scale": rows_of_card(layout, card).scale}
                if base is None:
                    card["trained"] = train(layout, key, wanted, parts, seed=seed, advance=advance, **compared)
                # workers of this machine share the memory that a segment takes while it is written
                most = min(
                    max(1, card["plan"]["segment_rows"] // max(1, workers)),
                    max(FEWEST_ROWS, -(-size(parts) // max(workers, wanted.shards))),
                )
                groups = pack(parts, most)
                made: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "advance": advance}
                card["segments"] = card["segments"] + write(layout, key, card["trained"], groups, **compared, **made)
            dead = {number for segment in card["segments"] for number, *_ in segment["parts"]} - set(live)
            card["tombstones"] = ranges(dead).tolist() if dead else []
            if added or base is None or base["target_recall"] != card["target_recall"]:
                warnings += _measure(layout, card, added, seed)
        card["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _put_into_force(layout, seen, card)
    status = "built" if base is None else "updated"
    summary = _summary(card, status, why, len(added), len(removed), time.perf_counter() - started)
    record_run(layout, "index", {name: value for name, value in summary.items() if name != "warnings"})
    return summary | {"warnings": warnings}


def _bytes(memory: int | str) -> int:
    """Read ``8GB`` as bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(memory).lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"--memory {memory!r} is no size; give bytes, or e.g. 800MB or 8GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _entries(layout: Layout, key: str, chosen: Iterable[str], others: Iterable[str]) -> dict[str, Entry]:
    """Give what the index is to hold of each slide; of the other slides those whose embeddings can be used."""
    found = {slide: entry(layout, key, slide) for slide in chosen}
    for slide in others:
        if slide not in found:
            try:
                found[slide] = entry(layout, key, slide)
            except InputError:  # it leaves the index
                continue
    return found


def _numbered(now: Mapping[str, Entry], old: Card | None) -> tuple[list[Entry], int]:
    """Give slides that are as they were their numbers, and others numbers that no slide ever had."""
    known = {held["slide"]: held for held in (old or {"slides": []})["slides"]}
    fresh = (old or {"next_number": 0})["next_number"]
    table = []
    for slide, state in sorted(now.items()):
        held = known.get(slide)
        if held is not None and held == state | {"number": held["number"]}:
            table.append(held)
        else:
            table.append({"number": fresh, **state})
            fresh += 1
    return sorted(table, key=lambda held: held["number"]), fresh


def _why_anew(old: Card, settings: Mapping[str, Any], recipe_id: str, wanted: Plan) -> str | None:
    """Say why an index can't be brought up to date but is built anew."""
    plan = old["plan"]
    if old["recipe_id"] != recipe_id:
        return "the embeddings are of another recipe"
    for name in ("metric", "standardize", "memory"):
        if old[name] != settings[name]:
            return f"another {name}"
    if plan["kind"] != wanted.kind:
        return f"{wanted.kind} suits {wanted.rows} rows, not {plan['kind']}"
    codes = [factory.rpartition(",")[2] for factory in (wanted.factory, plan["factory"])]
    if codes[0] != codes[1]:  # of one kind: with more rows, those of half precision outgrow --memory
        return f"{codes[0]} codes suit {wanted.rows} rows, not {codes[1]}"
    if not plan["lists"] / OTHER_LISTS < max(1, wanted.lists) < max(1, plan["lists"]) * OTHER_LISTS:
        return f"{wanted.lists} lists suit {wanted.rows} rows, not {plan['lists']}"
    return None


def _damage(layout: Layout, old: Card) -> str | None:
    """Say that files of an index can't be opened; an object store's, which would be fetched for it, aren't looked at."""
    if not files(old) or not isinstance(layout.files.root, Path):
        return None
    from spared_fm.search.index import Index

    try:
        Index.open(local_folder(layout, old), old).close()
    except InputError:
        return "a file of it is damaged or gone"
    return None


def _rewritten(card: Card, live: Mapping[int, Entry]) -> list[Part]:
    """Take segments that are to be written again off the card, and give the rows of theirs that are still wanted."""
    parts = {
        segment["file"]: [Part(n, live[n]["slide"], start, stop) for n, start, stop in segment["parts"] if n in live]
        for segment in card["segments"]
    }
    small = {s["file"] for s in card["segments"] if 2 * s["rows"] < card["plan"]["segment_rows"]}
    again = set(small if len(small) > SMALL_SEGMENTS else ())
    for segment in card["segments"]:
        rows = sum(stop - start for _, start, stop in segment["parts"])
        if rows - size(parts[segment["file"]]) > DEAD_SHARE * rows:
            again.add(segment["file"])
    card["segments"] = [segment for segment in card["segments"] if segment["file"] not in again]
    return [part for file in sorted(again) for part in parts[file]]


def _measure(layout: Layout, card: Card, added: Sequence[Entry], seed: int) -> list[str]:
    """Measure recall, probe as many lists as the target takes, and note both in the card; give what is to be said."""
    from spared_fm.search import recall
    from spared_fm.search.index import Index

    key, table = card["key"], card["slides"]
    rows = rows_of_card(layout, card)
    own = np.union1d(_drawn(table, QUERIES // 2, seed), _drawn(added or table, QUERIES // 2, seed + 1))
    vectors = rows.vectors(own).astype(np.float32)
    there = np.isfinite(vectors).all(axis=1)
    own, vectors = own[there], vectors[there]
    everything = rows.kept(dict.fromkeys(rows.numbers))
    truth = recall.truth(vectors, own, rows.blocks(everything), metric=card["metric"])
    with Index.open(local_folder(layout, card), card) as opened:
        found = recall.tune(opened, vectors, own, truth, card["target_recall"], rerank=rows.vectors)
    if not found["met"]:
        raise InputError(
            f"the index of {key!r} reaches a recall@{found['k']} of {found['recall']:.3f} with {found['probes']} of "
            f"{card['plan']['lists']} lists probed, --target-recall is {card['target_recall']}: lower it, or give more --memory"
        )
    card |= {"recall": found, "probes": found["probes"], "candidates": found["candidates"]}
    if found["raised"]:
        return [
            f"{found['probes']} lists are probed, and {found['candidates']} candidates scored for each result, to reach a recall "
            f"of {card['target_recall']}; {card['plan']['probes']} and {card['plan']['candidates']} were planned"
        ]
    return []


def _drawn(table: Sequence[Entry], count: int, seed: int) -> np.ndarray:
    """Vector ids of rows drawn at random, int64, ascending."""
    ends = np.cumsum([slide["rows"] for slide in table])
    drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], min(count, int(ends[-1])), replace=False))
    at = np.searchsorted(ends, drawn, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    numbers = np.array([slide["number"] for slide in table])
    return np.unique(ids_of(0, drawn - starts[at]) + (numbers[at] << ROW_BITS))


@contextlib.contextmanager
def _removed_on_failure(layout: Layout, card: Card, old: Card | None) -> Iterator[None]:
    """Remove the new files of a card that does not come into force; what an interrupted write left goes a day later."""
    try:
        yield
    except BaseException:
        used = {file["file"] for file in files(old)} if old is not None else set()
        with contextlib.suppress(InputError):  # an interrupted or failed write may have put it into force all the same
            used |= {file["file"] for file in files(read_card(layout, card["key"]) or {"segments": []})}
        for file in files(card):
            if file["file"] not in used:
                layout.files.remove(f"{folder(card['key'])}/{file['file']}")
        raise


def _put_into_force(layout: Layout, seen: bytes | None, card: Card) -> None:
    """Replace the card in one step, if it is still the one that this run began with.

    That look and that write are one step for all who come this way: they need the claim on what they saw.
    """
    key = card["key"]
    place = f"{folder(key)}/{CARD}"
    busy = InputError(f"another run has changed the index of {key!r} meanwhile, or is about to; run it again")
    stem = hashlib.sha256(key.encode() + b"\0" + (seen or b"")).hexdigest()[:16]
    claim = acquire(layout.files, CLAIMS, f"index-{stem}", UPDATE_LEASE_S)
    if claim is None:
        raise busy
    try:
        now = layout.files.read(place) if layout.files.exists(place) else None
        if now != seen or not claim.renew():
            raise busy
        layout.files.replace(place, json.dumps(card, indent=1).encode())
    finally:
        claim.release()


def _summary(card: Card, status: str, why: str | None, added: int, removed: int, seconds: float) -> dict[str, Any]:
    found = card["recall"] or {}
    exact = card["plan"]["kind"] == "exact"
    return {
        "key": card["key"],
        "status": status,
        "why": why,
        "kind": card["plan"]["kind"],
        "metric": card["metric"],
        "standardize": card["standardize"],
        "rows": card["rows"],
        "slides": len(card["slides"]),
        "added": added,
        "removed": removed,
        "segments": len(card["segments"]),
        "bytes": sum(file["bytes"] for file in files(card)),
        "recall": 1.0 if exact else found.get("recall"),
        "target_recall": card["target_recall"],
        "queries": found.get("queries"),
        "probes": found.get("probes"),
        "candidates": found.get("candidates"),
        "lists": None if exact else card["plan"]["lists"],
        "seconds": round(seconds, 3),
        "warnings": [],
    }
