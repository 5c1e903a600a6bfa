"""Relink: find moved images by their fingerprint."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.study.encode import choose_slides
from spared_fm.study.progress import track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.store.layout import Layout

SUFFIXES = {
    *(".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".mrxs", ".vms", ".vmu", ".svslide", ".czi"),
    *(".jpg", ".jpeg", ".png", ".h5", ".h5ad"),
}


def relink(
    layout: Layout, folder: str | Path, *, slides: str | Sequence[str] | None = None, progress: bool = False
) -> list[dict[str, Any]]:
    """Point slides at their images again after these were moved or renamed.

    A file is a slide's image when its fingerprint is the slide's; its name plays no part.

    Parameters
    ----------
    layout
        The store.
    folder
        Searched with all folders below it.
    slides
        Glob or ids; by default all slides with an image.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per slide: slide, status (``in place``: its image is where the record says; ``relinked``; ``not found``), path.

    Raises
    ------
    InputError
        No such folder, unknown slide.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder to look for images in")
    rows: list[dict[str, Any]] = []
    lost: dict[str, list[str]] = {}
    for slide in choose_slides(layout, slides, with_image=True):
        record = layout.attributes(layout.slide(slide)) or {}
        if not record.get("image"):
            continue
        path = record["image"]["path"]
        if _is(path, record["fingerprint"]):
            _tell_uns(layout, slide, path)
            rows.append({"slide": slide, "status": "in place", "path": path})
        else:
            lost.setdefault(record["fingerprint"], []).append(slide)
    candidates = [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in sorted(names)
        if Path(name).suffix.lower() in SUFFIXES
    ]
    for candidate in track(candidates if lost else [], "relink", len(candidates), "files", show=progress):
        try:
            found = fingerprint(candidate)
        except InputError:  # a file that can't be read is no slide's image
            continue
        path = str(candidate.absolute())
        for slide in lost.pop(found, []):
            node = layout.slide(slide)
            layout.update_attributes(node, functools.partial(_moved, path))
            _tell_uns(layout, slide, path)
            rows.append({"slide": slide, "status": "relinked", "path": path})
    for names in lost.values():
        for slide in names:
            path = (layout.attributes(layout.slide(slide)) or {})["image"]["path"]
            rows.append({"slide": slide, "status": "not found", "path": path})
    return sorted(rows, key=lambda row: row["slide"])


def _moved(path: str, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "image": {**record["image"], "path": path}}


def _is(path: str, expected: str) -> bool:
    try:
        return fingerprint(path) == expected
    except InputError:
        return False


def _tell_uns(layout: Layout, slide: str, path: str) -> None:
    """Write the path where scanpy's users look for it: ``uns['spatial'][slide]['metadata']['source_image_path']``."""
    import anndata as ad
    import zarr
    from zarr.storage import MemoryStore

    from spared_fm.store.nodes import read_elem, zarr_v3

    key = f"{layout.slide(slide)}/uns/spatial/{slide}/metadata/source_image_path"
    if not layout.files.exists(f"{key}/zarr.json") or str(read_elem(layout, key)) == path:
        return
    memory = MemoryStore()
    with zarr_v3():
        ad.io.write_elem(zarr.open_group(memory, mode="w", zarr_format=3), "path", path)
    # The string's file holds its text; the metadata beside it is the same for every text.
    for name, buffer in sorted(memory._store_dict.items(), reverse=True):
        if name.startswith("path/"):
            layout.files.replace(f"{key}/{name.removeprefix('path/')}", buffer.to_bytes())
