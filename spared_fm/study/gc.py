"""Gc: what killed writers left behind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.claims import CLAIMS, is_over, read_claim
from spared_fm.store.files import COMMIT, STAGING
from spared_fm.store.layout import DATA
from spared_fm.study.index_open import INDEXES, leftovers
from spared_fm.study.matrix_kept import DECLARED, PREDICTIONS, RECEIPT
from spared_fm.study.matrix_kept import FOLDER as BENCHMARKS
from spared_fm.study.usage import entries

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from spared_fm.store.layout import Layout
    from spared_fm.study.usage import Entry

HOUR = 3600.0
CARD = "card.json"
_NAME = r"[^/.][^/]*"
WHOLE = tuple(
    (re.compile(f"({pattern})/"), commit)
    for pattern, commit in (
        # Token grids are arrays beside the slide's node; their folder is no node.
        (rf"{DATA}/slides/{_NAME}(?<!\.tokens)", COMMIT),
        (rf"{DATA}/slides/{_NAME}\.tokens/{_NAME}", COMMIT),
        (rf"{DATA}/slides/{_NAME}/obsm/{_NAME}", COMMIT),
        (rf"{DATA}/cohorts/{_NAME}", COMMIT),
        (rf"{DATA}/cohorts/{_NAME}/layers/{_NAME}", COMMIT),
        (rf"heads/{_NAME}/{_NAME}", CARD),
        # Beside a completer, <name>.training: where a training that was killed goes on.
        (rf"completers/{_NAME}/{_NAME}", CARD),
        (rf"{BENCHMARKS}/{_NAME}", DECLARED),
        (rf"{INDEXES}/{_NAME}", CARD),
    )
)
"""Folders that are data as a whole or not at all, outermost first, with the file that is written last and removed first."""
TOPS = (DATA, "heads", "completers", BENCHMARKS, INDEXES, CLAIMS)
# Slides and columns may be called "claims" too.
CLAIM = re.compile(rf"(?:(.+)/)?{CLAIMS}/[^/]+(?:\.\d+\.json|\.intent|\.withdrawn)")
PREDICTED = re.compile(rf"({BENCHMARKS}/{_NAME}/{_NAME}){re.escape(PREDICTIONS)}")


def gc(
    layout: Layout, *, older_than: float = 24.0, orphans: bool = False, runs_days: float = 90.0, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Delete leftovers: staged, partial and torn files, claims nobody holds, old run records; orphan chunks on request.

    Torn is what lacks the file that makes it data, as a killed upload or removal leaves it on an object store: a slide, cohort,
    embedding or layer without ``zarr.json``, a head, a completer (or a training of one that nobody took up again) or an index
    without ``card.json``, a benchmark without ``matrix.json``; and predictions of a benchmark's cell without its receipt. Old is
    a file of an index that its card does not list, or no longer.

    Parameters
    ----------
    layout
        The store.
    older_than
        Hours that staged, partial, torn, old and withdrawn files must have lain still, so that nothing a live writer works
        on is touched. Claims go by their lease; nothing torn goes while there is a live claim in or above it.
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
        kind (``staging``, ``partial``, ``torn``, ``old``, ``claim``, ``orphan``, ``run``), name (file or folder), bytes,
        removed (False too where a writer went on with a torn folder meanwhile).

    Raises
    ------
    InputError
        A negative age.
    """
    if older_than < 0 or runs_days < 0:
        raise InputError("ages can't be negative")
    still = older_than * HOUR
    found = [
        *_staging(layout, still),
        *_scattered(layout, still, orphans=orphans),
        *(("old", key, size) for key, size in leftovers(layout, still)),
        *(("run", e.key, e.bytes) for e in entries(layout, "runs") if e.age > runs_days * 24 * HOUR),
    ]
    rows = []
    for kind, name, size in found:
        # An upload that was stopped may be taken up again at any time.
        doomed = not dry_run and (kind != "torn" or all(entry.age > still for entry in entries(layout, name)))
        if doomed:
            layout.files.remove(name)
        rows.append({"kind": kind, "name": name, "bytes": size, "removed": doomed})
    return rows


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
    """Yield leftovers among the data: torn folders, partial files, claims, orphan chunks."""
    held = {entry.key: entry for top in TOPS for entry in entries(layout, top)}
    claims = {key: read_claim(layout.files, key) for key in held if _claimed(key) is not None and key.endswith(".json")}
    live = {f"{_claimed(key)}/" for key, claim in claims.items() if not is_over(claim)}
    folders: dict[tuple[str, str], list[Entry]] = {}
    for key, entry in held.items():
        parts = key.split("/")
        if leftover := _torn(key, held) or _partial(key):
            folders.setdefault(leftover, []).append(entry)
        elif (of := _claimed(key)) is not None:
            # A claim on a record's revision must outlast whoever is looking at it.
            spent = is_over(claims[key]) and (of or entry.age > still) if key in claims else _spent(entry, still, held)
            if spent:
                yield "claim", key, entry.bytes
        elif orphans and len(parts) > 3 and parts[-3] == "c" and parts[-1] == "0":
            node, k = "/".join(parts[:-3]), parts[-2]
            claimed = any(claim.startswith(f"{node}/{CLAIMS}/{k}.") for claim in claims)
            ours = f"{node}/{COMMIT}" in held and layout.attributes(node) is not None
            if ours and not claimed and f"{node}/receipts/{k}.json" not in held and entry.age > still:
                yield "orphan", key, entry.bytes
    for (kind, name), inside in folders.items():
        guarded = any(f"{name}/".startswith(place) or place.startswith(f"{name}/") for place in live)
        if min(entry.age for entry in inside) > still and not guarded:
            yield kind, name, sum(entry.bytes for entry in inside)


def _torn(key: str, keys: Container[str]) -> tuple[str, str] | None:
    """Give the outermost folder around ``key``, or the file itself, that lacks the file which makes it data."""
    for pattern, commit in WHOLE:
        match = pattern.match(key)
        if match and f"{match[1]}/{commit}" not in keys:
            return "torn", match[1]
    cell = PREDICTED.fullmatch(key)
    return ("torn", key) if cell and f"{cell[1]}{RECEIPT}" not in keys else None


def _partial(key: str) -> tuple[str, str] | None:
    """Give the partial file or hidden partial folder that ``key`` is or lies in; a slide may be called ``x.partial``."""
    parts = key.split("/")
    for i, part in enumerate(parts):
        if part.endswith(".partial") and (part.startswith(".") or i == len(parts) - 1):
            return "partial", "/".join(parts[: i + 1])
    return None


def _claimed(key: str) -> str | None:
    """Folder whose parts ``key`` claims (empty: records of nodes); None for what is no file of claims."""
    match = CLAIM.fullmatch(key)
    return match[1] or "" if match else None


def _spent(entry: Entry, still: float, keys: Container[str]) -> bool:
    """Whether a file beside the claims serves no one: an intent of a finished chunk, an old withdrawal."""
    node, _, name = entry.key.rpartition(f"/{CLAIMS}/")
    finished = f"{node}/receipts/{name.split('.')[0]}.json" in keys
    return entry.age > still and (finished or name.endswith(".withdrawn"))
