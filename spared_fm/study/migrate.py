"""Migrate: stores of older formats.

Format 0 differs from format 1 in the slides' records only:

=========================  ==========================================
format 0                   format 1
=========================  ==========================================
``image_path``             ``image``: ``path``
``image_kind``             ``image``: ``kind``
``image_scale``            ``image``: ``scale``
``image_size`` [w, h]      ``image``: ``width``, ``height``
``image_fingerprint``      ``fingerprint``
``um_per_px``              ``mpp``
``um_per_px_source``       ``mpp_source``
(not kept)                 ``counts_digest``, of the raw counts in X
=========================  ==========================================

Counts, coordinates, embeddings and receipts are the same in both.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import anndata

from spared_fm.store.layout import DATA, FORMAT_VERSION, Layout
from spared_fm.store.nodes import read_elem
from spared_fm.study.ingest import _counts_digest
from spared_fm.study.progress import track

if TYPE_CHECKING:
    from pathlib import Path


def migrate(path: str | Path, *, progress: bool = False) -> dict[str, Any]:
    """Bring a store to the format of this version.

    Slide by slide, each in one atomic write, the store's own version last: run it again after a kill.

    Parameters
    ----------
    path
        The store.
    progress
        Show a bar.

    Returns
    -------
    dict
        store, from_version, to_version, slides (records rewritten).

    Raises
    ------
    InputError
        No store there, or its format is newer than this version.
    """
    layout = Layout.open(path, older=True)
    marker = layout.attributes(DATA) or {}
    version = int(marker["format_version"])
    changed = 0
    if version < 1:
        slides = layout.slides()
        for slide in track(slides, "migrate", len(slides), "slides", show=progress):
            node = layout.slide(slide)
            record = layout.attributes(node) or {}
            if "counts_digest" not in record:
                layout.update_attributes(node, functools.partial(_newer, _from_0(layout, node, record)))
                changed += 1
    if version < FORMAT_VERSION:
        layout.update_attributes(DATA, lambda now: {**now, "format_version": FORMAT_VERSION})
    return {"store": str(layout.root), "from_version": version, "to_version": FORMAT_VERSION, "slides": changed}


def _newer(new: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Give the new record, unless another writer has migrated the slide: that one may have been changed since."""
    return now if "counts_digest" in now else new


def _from_0(layout: Layout, node: str, old: dict[str, Any]) -> dict[str, Any]:
    new = {name: value for name, value in old.items() if not name.startswith(("image_", "um_per_px"))}
    new["fingerprint"] = old.get("image_fingerprint")
    new["mpp"], new["mpp_source"] = old.get("um_per_px"), old.get("um_per_px_source")
    new["image"] = None
    if old.get("image_path") is not None:
        width, height = old["image_size"]
        new["image"] = {
            "path": old["image_path"],
            "kind": old["image_kind"],
            "scale": old["image_scale"],
            "width": width,
            "height": height,
        }
    new["counts_digest"] = None
    if layout.files.exists(f"{node}/X/zarr.json"):
        obs, var = read_elem(layout, f"{node}/obs"), read_elem(layout, f"{node}/var")
        new["counts_digest"] = _counts_digest(anndata.AnnData(X=read_elem(layout, f"{node}/X"), obs=obs, var=var))
    return new
