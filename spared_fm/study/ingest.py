"""Ingest: slides on disk → slide nodes in the store."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.slides.counts import SlideData, read_slides
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.grid import DEFAULT_MIN_TISSUE
from spared_fm.slides.images import open_image, thumbnail
from spared_fm.slides.mpp import resolve_mpp
from spared_fm.slides.patchfiles import HEST_MPP, PatchFile, open_patches, spared_window
from spared_fm.store.embeddings import slide_record
from spared_fm.store.layout import check_name
from spared_fm.store.nodes import write_node
from spared_fm.store.recipe import spots_digest
from spared_fm.study.progress import track

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

    from spared_fm.store.layout import Layout

SPLITS = ("train", "val", "test")
THUMBNAIL_PX = 600


def ingest(
    layout: Layout,
    path: str | Path,
    *,
    slide: str | None = None,
    patient: str | None = None,
    split: str | None = None,
    mpp: float | None = None,
    image: str | Path | None = None,
    spacing_um: float | None = None,
    min_tissue: float = DEFAULT_MIN_TISSUE,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Read the slides at ``path`` and write each as a node of the store.

    Parameters
    ----------
    layout
        The store.
    path
        Folder with ``counts.h5ad`` and ``image.*``, a Space Ranger ``outs/`` (or its parent), a counts-only ``.h5ad``, an
        ``.h5ad`` of SpaRED's with its patches, or an image without spots.
    slide
        Slide id, for a path that holds one slide; by default from the path.
    patient, split
        Labels kept with the slide; ``split`` is ``train``, ``val`` or ``test``.
    mpp
        Microns per full-resolution pixel; overrides every other source.
    image
        Full-resolution image to use instead of what lies beside the counts, or HEST's ``.h5`` of patches.
    spacing_um, min_tissue
        Of an image without spots: distance of the grid's points, µm (by default 112, so that patches touch), and the least
        share of tissue in a patch.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per slide: slide, status (``added``, ``updated``, ``unchanged``), spots, genes, image kind, mpp, mpp_source,
        warnings.

    Raises
    ------
    InputError
        Bad input, or an id taken by another image or other counts. Slides before it in a multi-slide file stay ingested.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    found = read_slides(path, slide=slide, image=image, spacing_um=spacing_um, min_tissue=min_tissue, mpp=mpp)
    return [
        ingest_one(layout, data, patient, split, mpp)
        for data in track(found, "ingest", len(found), "slides", show=progress)
    ]


def ingest_one(
    layout: Layout, data: SlideData, patient: str | None, split: str | None, mpp: float | None
) -> dict[str, Any]:
    """Add one slide that has been read; gives its row of :func:`ingest`."""
    check_name(data.id, "slide")
    record, adata, warnings = _prepare(data, patient, split, mpp)
    node = layout.slide(data.id)
    known = layout.attributes(node)
    if known is None:
        write_node(layout, node, adata, record)
        status = "added"
    else:
        status = _update(layout, node, known, record, {"patient": patient, "split": split})
        record = slide_record(layout, data.id)
    return {
        "slide": data.id,
        "status": status,
        "spots": record["n_spots"],
        "genes": record["n_genes"],
        "patient": record["patient"],
        "split": record["split"],
        "image": record["image"] and record["image"]["kind"],
        "mpp": record["mpp"],
        "mpp_source": record["mpp_source"],
        "warnings": warnings,
    }


def _prepare(
    data: SlideData, patient: str | None, split: str | None, mpp: float | None
) -> tuple[dict[str, Any], ad.AnnData, list[str]]:
    adata = data.adata
    record: dict[str, Any] = {
        "slide": data.id,
        "patient": patient or data.patient,
        "split": split,
        "n_spots": adata.n_obs,
        "n_genes": adata.n_vars,
        "counts_digest": _counts_digest(adata),
        "spots_digest": None,
        "fingerprint": None,
        "image": None,
        "mpp": None,
        "mpp_source": None,
        "spot_diameter_px": data.scalefactors.get("spot_diameter_fullres"),
    }
    if "spatial" in adata.obsm:
        record["spots_digest"] = spots_digest(list(adata.obs_names), adata.obsm["spatial"])
    images = dict(data.thumbnails)
    scalefactors = {name: float(value) for name, value in data.scalefactors.items()}
    warnings = list(data.warnings)
    candidates = dict(data.mpp_candidates)
    if data.image is not None and data.image_kind == "patches":
        with open_patches(data.image, data.id) as patches:
            _describe_patches(record, data, patches, mpp, warnings)
    elif data.image is not None:
        with open_image(data.image) as reader:
            if reader.mpp is not None:
                candidates["image"] = reader.mpp * data.image_scale  # µm per coordinate pixel
            level = reader.levels[0]
            if not images:
                images["lowres"], scale = thumbnail(reader, THUMBNAIL_PX)
                scalefactors["tissue_lowres_scalef"] = scale * data.image_scale
        resolved = resolve_mpp(data.id, given=mpp, **candidates)
        warnings += resolved.warnings
        record["mpp"], record["mpp_source"] = resolved.value, resolved.source
        record["fingerprint"] = fingerprint(data.image)
        record["image"] = {
            "path": str(data.image.absolute()),
            "kind": data.image_kind,
            "scale": data.image_scale,
            "width": level.width,
            "height": level.height,
        }
    if "spot_pitch_um" in data.metadata and record["mpp"]:
        # A grid has no spots with a size of their own, and scanpy draws nothing without one.
        scalefactors.setdefault("spot_diameter_fullres", float(data.metadata["spot_pitch_um"]) / record["mpp"])
    metadata = {
        key: value
        for key, value in {
            **data.metadata,
            "um_per_px": record["mpp"],
            "um_per_px_source": record["mpp_source"],
            "source_image_path": record["image"] and record["image"]["path"],
            "fingerprint": record["fingerprint"],
        }.items()
        if value is not None
    }
    adata.uns["spatial"] = {data.id: {"images": images, "scalefactors": scalefactors, "metadata": metadata}}
    return record, adata, warnings


def _describe_patches(
    record: dict[str, Any], data: SlideData, patches: PatchFile, mpp: float | None, warnings: list[str]
) -> None:
    """Enter a file of patches into the slide's record; the scale is patch pixels per coordinate pixel, as for an image."""
    resolved = resolve_mpp(data.id, given=mpp, **data.mpp_candidates)
    warnings += resolved.warnings
    diameter = data.scalefactors.get("spot_diameter_fullres")
    if data.image is not None and data.image.suffix == ".h5ad":
        if not diameter:
            raise InputError(
                f"{data.image}: slide {data.id} has no spot_diameter_fullres, so its patches have no scale"
            )
        scale = patches.px / spared_window(diameter)
    else:
        scale = resolved.value / (patches.mpp or HEST_MPP)
        if patches.mpp is None:
            warnings.append(f"{data.id}: {patches.path} doesn't say its mpp, {HEST_MPP} is taken, which HEST publishes")
    missing = len(set(data.adata.obs_names) - set(patches.barcodes))
    if missing == data.adata.n_obs:
        raise InputError(
            f"{patches.path}: none of its barcodes is a spot of slide {data.id}: give the file of this slide"
        )
    if missing:
        warnings.append(f"{data.id}: {missing} of {data.adata.n_obs} spots have no patch in {patches.path}")
    record["mpp"], record["mpp_source"] = resolved.value, resolved.source
    record["fingerprint"] = fingerprint(patches.path)
    record["image"] = {
        "path": str(patches.path.absolute()),
        "kind": "patches",
        "scale": scale,
        "width": patches.px,
        "height": patches.px,
    }


def _update(
    layout: Layout, node: str, known: dict[str, Any], record: dict[str, Any], labels: dict[str, str | None]
) -> str:
    """Settle a second ingest of an id: labels that were given may change, other content is refused."""
    slide = record["slide"]
    free = f"--slide {slide}_2"
    if known["fingerprint"] != record["fingerprint"]:
        raise InputError(
            f"slide id {slide!r} is taken by another image ({_image_of(known)}); use another id, e.g. {free}"
        )
    if (known["counts_digest"], known["spots_digest"]) != (record["counts_digest"], record["spots_digest"]):
        raise InputError(
            f"slide id {slide!r} is taken by the same image with other counts or spots; use another id, e.g. {free}"
        )
    if known["mpp"] != record["mpp"]:
        raise InputError(
            f"slide {slide!r} was ingested at {known['mpp']:.4g} µm/px, now {record['mpp']:.4g}; use another id, e.g. {free}"
        )
    given = {name: value for name, value in labels.items() if value is not None}
    if all(known[name] == value for name, value in given.items()):
        return "unchanged"
    layout.update_attributes(node, lambda now: {**now, **given})
    return "updated"


def _image_of(record: dict[str, Any]) -> str:
    return record["image"]["path"] if record["image"] else "none, counts only"


def _counts_digest(adata: ad.AnnData) -> str | None:
    """Hex sha256 of the raw counts with their gene and spot names; None for a slide without counts."""
    if adata.X is None:
        return None
    counts = sp.csr_matrix(adata.X)
    counts.sort_indices()
    total = hashlib.sha256()
    for part in (counts.data.astype("<f8"), counts.indices.astype("<i8"), counts.indptr.astype("<i8")):
        total.update(np.ascontiguousarray(part).tobytes())
    for name in (*adata.var_names, *adata.obs_names):
        total.update(str(name).encode() + b"\0")
    return total.hexdigest()
