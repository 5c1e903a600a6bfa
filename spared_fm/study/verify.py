"""Verify: damage and drift, named; and their repair, chunk by chunk."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.claims import CLAIMS
from spared_fm.store.commit import receipt_key, withdraw
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.files import COMMIT
from spared_fm.store.layout import TOKENS, key_name
from spared_fm.store.verify import check_chunk, verify_array
from spared_fm.study.encode import choose_slides
from spared_fm.study.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from spared_fm.encoders.builder import Encoder
    from spared_fm.store.layout import Layout

Row = dict[str, Any]
ABSENT = "absent"


def verify(
    layout: Layout,
    *,
    slides: str | Sequence[str] | None = None,
    encoder: str | None = None,
    repair: bool = False,
    weights: str | Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> list[Row]:
    """Check every stored chunk against its receipt, cohorts against their slides, heads and indexes against their checksums.

    Parameters
    ----------
    layout
        The store.
    slides
        Glob or ids; by default all slides. Cohorts, heads and indexes are checked when neither this nor ``encoder`` is given.
    encoder
        Encoder name or array key; by default all arrays.
    repair
        Compute the damaged chunks again, and only these. Their receipts are withdrawn first, so that nobody is served
        damage. Everything that can refuse (encoder, weights, image) is asked before that.
    weights
        Weights of the encoder, where the array was made with a file or with weights other than its default.
    device
        Where to compute; the new receipt notes it.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per problem: slide (or cohort), key (array, index, or head run), chunk (None for a whole array, cohort, index or
        head), kind (see :class:`spared_fm.store.verify.Problem`; also ``array``, ``drift``, ``head``, ``index``, and ``absent``:
        patches that could not be read, which is no damage, and which a repair tries again), problem (one line), and after a
        repair ``repaired`` and ``note``. Empty when all is well. Chunks not yet encoded are no problem.

    Raises
    ------
    InputError
        Unknown slide; or a repair that needs weights or an image that are not there: nothing is changed for that array then.
    """
    rows: list[Row] = []
    chosen = choose_slides(layout, slides) if slides is not None or layout.slides() else []
    arrays: list[EmbeddingArray] = []
    for slide in chosen:
        grids = [f"{TOKENS}/{name}" for name in layout.files.list(layout.tokens(slide)) if name != COMMIT]
        for key in [*layout.files.list(f"{layout.slide(slide)}/obsm"), *grids]:
            if encoder is not None and encoder != key and key.split("@")[0] != key_name(encoder):
                continue
            try:
                if layout.attributes(layout.embedding(slide, key)) is not None:
                    arrays.append(EmbeddingArray(layout, slide, key))
            except (InputError, ValueError, KeyError, TypeError) as error:
                rows.append(_row(slide, key, None, "array", f"its zarr.json can't be read ({_first_line(error)})"))
    with bar("verify", sum(array.n_chunks for array in arrays), "chunks", show=progress) as advance:
        for array in arrays:
            found = _check(array)
            if repair:
                _repair(array, found, weights, device)
            rows += found
            advance(array.n_chunks)
    if slides is None and encoder is None:
        rows += [*_drift(layout), *_heads(layout), *_indexes(layout)]
    return rows


def _row(slide: str | None, key: str | None, chunk: int | None, kind: str, problem: str, **more: Any) -> Row:
    return {"slide": slide, "key": key, "chunk": chunk, "kind": kind, "problem": problem, **more}


def _check(array: EmbeddingArray) -> list[Row]:
    try:
        array.check_current()
    except InputError as error:
        return [_row(array.slide, array.key, None, "drift", str(error))]
    rows = [
        _row(array.slide, array.key, p.chunk, p.kind, f"chunk {p.chunk} of {array.slide}/{array.key} {p.text}")
        for p in verify_array(array)
    ]
    damaged = {row["chunk"] for row in rows}
    for k in sorted(set(range(array.n_chunks)) - damaged):
        rows += _absent(array, k)
    return rows


def _absent(array: EmbeddingArray, k: int) -> list[Row]:
    """One row for a whole chunk with patches that could not be read."""
    lost = (array.receipt(k) or {}).get("absent") or {}
    if not lost:
        return []
    first = next(iter(lost))
    text = f"chunk {k} of {array.slide}/{array.key} has {len(lost)} absent rows (first: row {first}, {lost[first]})"
    return [_row(array.slide, array.key, k, ABSENT, text)]


def _drift(layout: Layout) -> Iterator[Row]:
    """Yield cohorts whose slides are gone or changed since they were joined."""
    for cohort in layout.cohorts():
        record = layout.attributes(layout.cohort(cohort)) or {}
        for slide, then in record.get("parents", {}).items():
            now = layout.attributes(layout.slide(slide))
            if now is None:
                yield _row(
                    slide,
                    None,
                    None,
                    "drift",
                    f"cohort {cohort} was made from slide {slide}, which is gone",
                    cohort=cohort,
                )
                continue
            changed = [name for name, value in then.items() if now.get(name) != value]
            if changed:
                text = f"cohort {cohort}: slide {slide} has changed since ({', '.join(changed)}); make the cohort again"
                yield _row(slide, None, None, "drift", text, cohort=cohort)


def _heads(layout: Layout) -> Iterator[Row]:
    for cohort in layout.files.list("heads"):
        for run in layout.files.list(f"heads/{cohort}"):
            if run.startswith("."):
                continue
            problem = _head_problem(layout, layout.head(cohort, run))
            if problem:
                yield _row(None, run, None, "head", f"head {cohort}/{run} {problem}; fit it again", cohort=cohort)


def _indexes(layout: Layout) -> Iterator[Row]:
    """Yield indexes that are damaged, or not of what the store holds."""
    from spared_fm.study.index_open import problems

    for key, problem in problems(layout):
        yield _row(None, key, None, "index", problem)


def _head_problem(layout: Layout, folder: str) -> str | None:
    try:
        expected = json.loads(layout.files.read(f"{folder}/card.json"))["weights_sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return "has no card"
    except (ValueError, KeyError, TypeError):
        return "has a card that can't be read"
    try:
        found = hashlib.sha256(layout.files.read(f"{folder}/weights.safetensors")).hexdigest()
    except FileNotFoundError:
        return "has no weights"
    return None if found == expected else "has weights that do not match their checksum"


# -- repair ------------------------------------------------------------------------------------------------------------


def _repair(array: EmbeddingArray, rows: list[Row], weights: str | Path | None, device: str) -> None:
    """Recompute the damaged chunks of one array; ``rows`` get ``repaired`` and ``note``."""
    damaged = [row["chunk"] for row in rows if row["chunk"] is not None]
    for row in rows:
        row |= {"repaired": False, "note": None if row["chunk"] is not None else "not repairable; see the problem"}
    if not damaged:
        return
    if array.recipe.transform.get("unverified"):
        for row in rows:
            source = array.attributes["source"]["name"]
            row["note"] = f"imported from {source}: `spared-fm import-features` with that file mends it"
        return

    from spared_fm.extract.plan import array_key, make_plan, make_recipe
    from spared_fm.extract.run import run
    from spared_fm.extract.task import keep
    from spared_fm.slides.patches import PatchSpec

    layout, recipe = array.layout, array.recipe
    encoder = _encoder(array, weights, device)
    keep(encoder)
    patch = PatchSpec(recipe.patch_um, recipe.patch_px, recipe.resampling)
    own = array_key(make_recipe(encoder, patch, recipe.store_dtype), encoder.spec)
    key = None if own == array.key else array.key

    def plan() -> Any:
        found = make_plan(layout, [array.slide], [encoder], patch, keys=[key], store_dtypes=[recipe.store_dtype])
        found.tasks = [task for task in found.tasks if task.chunk in damaged]
        return found

    plan()  # refuses what can't be computed here, before any receipt is touched
    before = {k: _receipt(array, k) for k in damaged}
    for k in damaged:
        withdraw(layout.files, array.node, k)
    run(plan())
    for row in rows:
        k = row["chunk"]
        after = EmbeddingArray(layout, array.slide, array.key)  # with no receipt from before
        row["repaired"] = check_chunk(array, k) is None and not (row["kind"] == ABSENT and _absent(after, k))
        row["note"] = _compare(before[k], _receipt(array, k))
        if row["repaired"]:
            for name in layout.files.list(f"{array.node}/{CLAIMS}"):
                if name.startswith(f"{k}.") and name.endswith(".withdrawn"):
                    layout.files.remove(f"{array.node}/{CLAIMS}/{name}")


def _encoder(array: EmbeddingArray, weights: str | Path | None, device: str) -> Encoder:
    from spared_fm.encoders.builder import build
    from spared_fm.encoders.spec import from_settings

    encoder = build(from_settings(array.attributes, weights), device=device)
    if encoder.weights != array.recipe.weights:
        raise InputError(
            f"slide {array.slide}: embeddings {array.key!r} were made with weights {array.recipe.weights}, "
            f"{encoder.spec.name} has {encoder.weights} here; repair with --weights and the file they came from"
        )
    return encoder


def _receipt(array: EmbeddingArray, k: int) -> Row:
    """Receipt of chunk ``k`` as it lies there, empty when there is none to read."""
    try:
        receipt = json.loads(array.layout.files.read(receipt_key(array.node, k)))
    except (FileNotFoundError, ValueError):
        return {}
    return receipt if isinstance(receipt, dict) else {}


def _compare(old: Row, new: Row) -> str:
    if not new:
        return "could not be computed again"
    if old.get("embedding_id") != new["embedding_id"] or "crc32c" not in old:
        return f"computed again on {new['device']}; there was no receipt to compare with"
    if old["crc32c"] == new["crc32c"]:
        return f"computed again on {new['device']}: the bytes its receipt named"
    if old.get("device") == new["device"]:
        return (
            f"computed again on the same device ({new['device']}), but the bytes differ from those the old receipt named: "
            "library versions or settings have changed since; `spared-fm doctor` measures by how much"
        )
    return f"computed again on {new['device']} instead of {old.get('device')}: other bytes, the new receipt notes the device"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
