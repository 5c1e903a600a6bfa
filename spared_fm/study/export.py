"""Export: embeddings with their spots, in the formats other tools read."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import slug
from spared_fm.study.cohort import cohort_data
from spared_fm.study.encode import choose_slides, find_key
from spared_fm.study.export_forms import FORMS, Source
from spared_fm.study.progress import track

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import anndata as ad

    from spared_fm.store.layout import Layout


def export(
    layout: Layout,
    slides: str | Sequence[str] | None = None,
    *,
    encoder: str,
    to: str | Path,
    form: str = "h5ad",
    cohort: str | None = None,
    layer: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Write one file (or folder) per slide into the folder `to`, named after the slide.

    Each appears whole under its name or not at all. Absent spots are NaN; a TRIDENT file leaves them out.

    ``h5ad``
        AnnData: counts, ``obsm['spatial']``, ``obsm[<key>]``, ``uns['spatial']``, ``uns['spared_fm']`` (the recipe).
    ``npy``
        ``<slide>.npy`` (spots, dim) in the stored dtype; ``<slide>.parquet``, in the same row order: slide, barcode, x, y, absent
        (the reason, or null).
    ``trident``
        ``<slide>.h5``: ``features`` float32 (n, dim), which TRIDENT's and CLAM's models take, and ``coords`` int64 (n, 2) with
        TRIDENT's attributes: top-left corners in level-0 pixels of the slide's image (without one, in the pixels of the
        spots' coordinates).
    ``spatialdata``
        ``<slide>.zarr``: the AnnData as a table of spots, which are circles in pixels (``global``) and in µm (``um``). Needs
        spatialdata.

    Embeddings are copied chunk by chunk; ``spatialdata`` holds a slide's in memory.

    Parameters
    ----------
    layout
        The store.
    slides
        Glob or ids; by default all slides (of the cohort, where one is given) that have the embeddings.
    encoder
        Encoder name or array key.
    to
        Folder; made where it is not there.
    form
        One of the above.
    cohort
        For ``h5ad`` and ``spatialdata``: the cohort's spots, gene panel and layers instead of the slide's counts.
    layer
        With `cohort`: the layer to put into ``X``; by default ``counts``.
    overwrite
        Replace what is there.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per slide: slide, form, path, key, spots (rows written), dim, absent (spots of the slide without a vector),
        bytes.

    Raises
    ------
    InputError
        Unknown form, slide, cohort or layer; embeddings that are missing or unfinished; a target that is there; a package
        that is not installed.
    """
    if form not in FORMS:
        raise InputError(f"--form {form!r} is not one of {', '.join(FORMS)}")
    if cohort is not None and form not in ("h5ad", "spatialdata"):
        raise InputError(f"--cohort goes with h5ad and spatialdata, not with {form}")
    if layer is not None and cohort is None:
        raise InputError("--layer needs --cohort")
    suffix, requires, write = FORMS[form]
    if requires:
        _require(requires, form)
    whole = cohort_data(layout, cohort) if cohort is not None else None
    if whole is not None and layer is not None and layer not in whole.layers:
        raise InputError(f"cohort {cohort!r} has no layer {layer!r} (layers: {', '.join(sorted(whole.layers))})")
    chosen = _choose(layout, slides, encoder, whole)
    key = find_key(layout, chosen, encoder)
    if "/" in key and form != "npy":
        raise InputError(f"{key!r} are token grids, which {form} has no place for; export them with --form npy")
    folder = Path(to)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder to export to")
    targets = {slide: folder / f"{slide}{suffix}" for slide in chosen}
    taken = [file for target in targets.values() for file in _files(target, form) if file.exists()]
    if taken and not overwrite:
        raise InputError(f"{taken[0]}: is there already ({len(taken)} in all); pass --overwrite, or another folder")
    arrays = {slide: EmbeddingArray(layout, slide, key) for slide in chosen}
    for array in arrays.values():
        array.check_current()
        next(array.blocks(), None)  # refuses unfinished embeddings before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for slide in track(chosen, "export", len(chosen), "slides", show=progress):
        array = arrays[slide]
        files = _files(targets[slide], form)
        with _appearing(files) as drafts:
            spots = write(Source(array, whole, layer), drafts)
        rows.append(
            {
                "slide": slide,
                "form": form,
                "path": str(targets[slide]),
                "key": key,
                "spots": spots,
                "dim": array.shape[1],
                "absent": len(array.absent()),
                "bytes": sum(_bytes(file) for file in files),
            }
        )
    return rows


def _choose(layout: Layout, slides: str | Sequence[str] | None, encoder: str, whole: ad.AnnData | None) -> list[str]:
    members = None if whole is None else sorted(set(whole.obs["slide"]))
    chosen = members if slides is None and members is not None else choose_slides(layout, slides)
    outside = [slide for slide in chosen if members is not None and slide not in members]
    if outside:
        raise InputError(f"slide {outside[0]} is not in the cohort (its slides: {', '.join((members or [])[:8])})")
    if slides is not None or members is not None:
        return chosen
    fits = (encoder, slug(encoder))
    return [
        s for s in chosen if any(key in fits or key.split("@")[0] in fits for key in layout.embeddings(s))
    ] or chosen


def _require(package: str, form: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--form {form} needs the package {package}: pip install {package}")


# -- where it goes -----------------------------------------------------------------------------------------------------


def _files(target: Path, form: str) -> list[Path]:
    return [target.with_name(f"{target.stem}.parquet"), target] if form == "npy" else [target]


@contextlib.contextmanager
def _appearing(files: list[Path]) -> Iterator[list[Path]]:
    """Give names to write under; what was written gets its own name when all is well, and goes when not."""
    drafts = [file.with_name(f".{file.name}.{uuid.uuid4().hex}.part") for file in files]
    try:
        yield drafts
        for draft, file in zip(drafts, files, strict=True):
            if file.is_dir():  # a folder can't be replaced in one step
                shutil.rmtree(file)
            os.replace(draft, file)
    finally:
        for draft in drafts:
            if draft.is_dir():
                shutil.rmtree(draft)
            draft.unlink(missing_ok=True)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
