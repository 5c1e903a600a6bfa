"""Gc: what killed writers left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.claims import CLAIMS, is_over, read_claim
from spared_fm.store.files import STAGING
from spared_fm.store.layout import DATA
from spared_fm.study.usage import entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spared_fm.store.layout import Layout
    from spared_fm.study.usage import Entry

HOUR = 3600.0


def gc(
    layout: Layout, *, older_than: float = 24.0, orphans: bool = False, runs_days: float = 90.0, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Delete leftovers: staged and partial files, claims nobody holds, old run records; orphan chunks on request.

    Parameters
    ----------
    layout
        The store.
    older_than
        Hours that staged, partial and withdrawn files must have lain still, so that nothing a live writer works on is
        touched. Claims go by their lease.
    orphans
        Also delete chunks without a receipt that nobody claims. They are harmless, and a resumed ``encode`` writes them
        anyway; do it when nobody writes to the store.
    runs_days
        Days that run records are kept.
    dry_run
        Only list.

    Returns
    -------
    list of dict
        kind (``staging``, ``partial``, ``claim``, ``orphan``, ``run``), name (file, or staged folder), bytes, removed.

    Raises
    ------
    InputError
        A negative age.
    """
    if older_than < 0 or runs_days < 0:
        raise InputError("ages can't be negative")
    found = [
        *_staging(layout, older_than * HOUR),
        *_scattered(layout, older_than * HOUR, orphans=orphans),
        *(("run", e.key, e.bytes) for e in entries(layout, "runs") if e.age > runs_days * 24 * HOUR),
    ]
    if not dry_run:
        for _, name, _ in found:
            layout.files.remove(name)
    return [{"kind": kind, "name": name, "bytes": size, "removed": not dry_run} for kind, name, size in found]


def _staging(layout: Layout, still: float) -> Iterator[tuple[str, str, int]]:
    """Yield staged files and folders in which nothing has changed for ``still`` seconds."""
    for name in layout.files.list(STAGING):
        held = list(entries(layout, f"{STAGING}/{name}"))
        ages = [entry.age for entry in held]
        if not held:  # a folder without files: its own age tells
            ages = [_folder_age(layout, f"{STAGING}/{name}")]
        if min(ages) > still:
            yield "staging", f"{STAGING}/{name}", sum(entry.bytes for entry in held)


def _folder_age(layout: Layout, key: str) -> float:
    import time
    from pathlib import Path

    root = layout.files.root
    try:
        return time.time() - (root / key).stat().st_mtime if isinstance(root, Path) else 0.0
    except FileNotFoundError:
        return 0.0


def _scattered(layout: Layout, still: float, *, orphans: bool) -> Iterator[tuple[str, str, int]]:
    """Yield leftovers among the data: partial files of zarr and of heads, claims, orphan chunks."""
    held: list[Entry] = []
    for top in (DATA, "heads", "indexes"):
        held += entries(layout, top)
    keys = {entry.key for entry in held}
    partial_folders: dict[str, list[Entry]] = {}
    for entry in held:
        parts = entry.key.split("/")
        partial = next((i for i, part in enumerate(parts) if part.endswith(".partial")), None)
        if partial is not None:
            partial_folders.setdefault("/".join(parts[: partial + 1]), []).append(entry)
        elif parts[-2:-1] == [CLAIMS]:
            if _spent(layout, entry, still, keys):
                yield "claim", entry.key, entry.bytes
        elif orphans and len(parts) > 3 and parts[-3] == "c" and parts[-1] == "0":
            node, k = "/".join(parts[:-3]), parts[-2]
            claimed = any(key.startswith(f"{node}/{CLAIMS}/{k}.") and key.endswith(".json") for key in keys)
            ours = f"{node}/zarr.json" in keys and layout.attributes(node) is not None
            if ours and not claimed and f"{node}/receipts/{k}.json" not in keys and entry.age > still:
                yield "orphan", entry.key, entry.bytes
    for name, inside in partial_folders.items():
        if min(entry.age for entry in inside) > still:
            yield "partial", name, sum(entry.bytes for entry in inside)


def _spent(layout: Layout, entry: Entry, still: float, keys: set[str]) -> bool:
    """Whether a file beside the claims serves no one: an expired claim, an intent of a finished chunk, an old withdrawal."""
    node, name = entry.key.rsplit(f"/{CLAIMS}/", 1)
    if name.endswith(".json"):
        return is_over(read_claim(layout.files, entry.key))
    finished = f"{node}/receipts/{name.split('.')[0]}.json" in keys
    return entry.age > still and (finished or name.endswith(".withdrawn"))
