"""Import features: vectors that another tool made, joined to the store's spots and marked as what they are, unverified."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.slides.featurefiles import FeatureFile, open_features
from spared_fm.store.commit import withdraw
from spared_fm.store.embeddings import CHUNK_ROWS, EmbeddingArray, slide_record
from spared_fm.store.layout import check_name, slug
from spared_fm.store.recipe import Recipe
from spared_fm.store.verify import UNFINISHED, check_chunk
from spared_fm.study.join_features import How, join_spots
from spared_fm.study.progress import track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.store.layout import Layout

UNVERIFIED, UNKNOWN = "unverified", "unknown"
RUN = (
    "encoder", "encoder_name", "extractor", "code_hash", "stamp_version", "output_variant", "feature_dtype", "precision",
    "patch_size", "target_magnification", "tile_size", "tile_size_um", "tile_size_px", "unit", "requested_tile_size_px",
    "requested_spacing_um", "encoder_input_size_px",
)  # fmt: skip
"""What a file may say that is the same for all files of a run. It enters the recipe; paths and names of slides don't."""


@dataclasses.dataclass
class _Job:
    """One file, joined and looked through: only the writing is left."""

    path: Path
    slide: str
    kind: str
    coordinates: Path | None
    dim: int
    rows: np.ndarray
    absent: dict[int, str]
    overflows: bool
    recipe: Recipe
    settings: dict[str, Any]
    report: dict[str, Any]


def import_features(
    layout: Layout,
    files: str | Path | Sequence[str | Path],
    *,
    encoder: str,
    slide: str | None = None,
    tolerance_um: float | None = None,
    key: str | None = None,
    kind: str | None = None,
    coordinates: str | Path | None = None,
    pixels: str = "image",
    patch_level0: float | None = None,
    mpp: float | None = None,
    min_matched: float = 0.5,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Import feature files of TRIDENT, CLAM, STAMP, slide2vec or HEST-Benchmark.

    All files are joined and read through before anything is written. None of these files proves what made its vectors, so
    the recipe says ``unverified`` and the key is never one that `encode` gives. The vectors can't be computed again from
    the store: to mend a damaged chunk, import the same file again.

    Parameters
    ----------
    layout
        The store.
    files
        One file per slide.
    encoder
        Name of the encoder that made the vectors, as far as is known.
    slide
        Slide id, for one file; by default the file's name without its ending.
    tolerance_um
        How far a patch's centre may be from its spot; by default a quarter of the patch's side, see
        :data:`spared_fm.study.join_features.TOLERANCE`.
    key
        Array key, ``<name>@<label>``; by default ``<encoder>@<8 hex of the recipe id>``.
    kind
        One of :data:`spared_fm.slides.featurefiles.KINDS`; by default what the content says.
    coordinates
        File or folder with the places of the patches, where neither the file nor one beside it has them.
    pixels
        What coordinates in pixels count: ``image``, level 0 of the image the slide was ingested with; ``spots``, the pixels
        that ``obsm['spatial']`` counts (the full-resolution image, where the slide has a smaller one); ``ignore`` joins by
        barcode without looking at coordinates.
    patch_level0
        Side of a patch in level-0 pixels, where the file doesn't say (CLAM), or says it wrong.
    mpp
        µm per level-0 pixel: what the file's maker assumed, for coordinates in µm (by default the slide's), and the scale of a
        slide that has none, being without an image.
    min_matched
        Least share of the slide's spots that must get a vector: below it, it is likely another slide's file.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per file: slide, file, kind, key, recipe_id, dim, spots, matched, absent (spots without a vector),
        unmatched (rows of the file that are no spot's), median_um (distance of the patches from their spots; None where
        joined by barcode), tolerance_um, status (``added``, ``mended``, ``unchanged``), stated (what the file says about
        its making), warnings.

    Raises
    ------
    InputError
        Unknown slide; a file that can't be read, has no places or another slide's, doubles, or patches that can't be told
        apart; a key that is taken or could be a verified recipe's.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise InputError("no file to import; name at least one")
    if slide is not None and len(paths) > 1:
        raise InputError(f"--slide goes with one file, {len(paths)} are given; name them <slide>.h5 instead")
    how = How(tolerance_um, pixels, patch_level0, mpp, min_matched)
    check_name(slug(encoder), "encoder")
    _check_key(key)
    jobs: list[_Job] = []
    for path in track(paths, "read", len(paths), "files", show=progress):
        name = slide or path.stem
        twin = next((job for job in jobs if job.slide == name), None)
        if twin:
            raise InputError(
                f"{path} and {twin.path} are both of slide {name}: import one, or the other under another --key"
            )
        _check_slide(layout, name, path)
        with open_features(path, kind, coordinates) as file:
            jobs.append(_prepare(layout, name, file, encoder, how, coordinates))
    if any(job.overflows for job in jobs):  # for all of them, so that they share a recipe
        jobs[0].report["warnings"].append("the vectors overflow float16: stored as float32 instead")
        for job in jobs:
            job.recipe = dataclasses.replace(job.recipe, store_dtype="float32")
    if len({job.recipe.id for job in jobs}) > 1:
        jobs[0].report["warnings"].append(
            "the files differ in what they say about their making, so the slides can't be used together; see the rows' stated"
        )
    arrays = [_plan(layout, job, key or f"{slug(encoder)}@{job.recipe.id[:8]}") for job in jobs]
    return [
        _write(array, job)
        for array, job in track(zip(arrays, jobs, strict=True), "import", len(jobs), "files", show=progress)
    ]


def _check_key(key: str | None) -> None:
    """Refuse a key that `encode` could give: the bare slug of an encoder, or one with 8 hex digits of a recipe's id."""
    if key is None:
        return
    check_name(key, "embedding")
    if not re.fullmatch(r"[^@/]+@[^@/]+", key) or re.fullmatch(r"[^@]+@[0-9a-f]{8}", key):
        free = f"{key.split('@')[0]}@imported"
        raise InputError(f"--key {key!r} could be that of a verified recipe; use <name>@<label>, e.g. {free}")


def _check_slide(layout: Layout, slide: str, path: Path) -> None:
    try:
        slide_record(layout, slide)
    except InputError as error:
        raise InputError(f"{path}: {error}; name the slide with --slide, or the file like the slide") from None


def _prepare(
    layout: Layout, slide: str, file: FeatureFile, encoder: str, how: How, coordinates: str | Path | None
) -> _Job:
    source = file.path
    joined = join_spots(layout, slide, file, how)
    broken, overflows = _look_through(file, joined.rows)
    absent = {int(spot): joined.reason for spot in np.flatnonzero(joined.rows < 0)}
    absent |= {int(spot): f"NaN or infinity in {source.name}" for spot in np.flatnonzero(np.isin(joined.rows, broken))}
    stated = {name: file.places.stated[name] for name in RUN if name in file.places.stated}
    settings = {
        "encoder_argument": encoder,
        "patch_um": joined.side_um,
        "source": {
            "name": source.name,
            "sha256": _sha256(source),
            "stated": file.places.stated,
            "joined_by": "coordinates" if file.barcodes is None else "barcode",
            "tolerance_um": joined.tolerance_um,
            "pixels": how.pixels,
            "mpp": how.mpp,
        },
    }
    report = {
        "slide": slide,
        "file": str(source),
        "kind": file.kind,
        "dim": file.dim,
        "spots": len(joined.rows),
        "matched": len(joined.rows) - len(absent),
        "absent": len(absent),
        "unmatched": file.n - int((joined.rows >= 0).sum()),
        "median_um": joined.median_um,
        "tolerance_um": joined.tolerance_um,
        "stated": stated,
        "warnings": joined.warnings,
    }
    place = None if coordinates is None else Path(coordinates)
    recipe = _recipe(encoder, file, stated)
    return _Job(source, slide, file.kind, place, file.dim, joined.rows, absent, overflows, recipe, settings, report)


def _recipe(encoder: str, file: FeatureFile, stated: dict[str, Any]) -> Recipe:
    places = file.places
    return Recipe(
        patch_um=places.patch_um,
        patch_px=places.patch_px,
        mpp=places.patch_um / places.patch_px if places.patch_px else 0.0,
        resampling=UNKNOWN,
        stain_normalisation=UNKNOWN,
        encoder=encoder,
        weights=UNVERIFIED,
        transform={UNVERIFIED: True, "kind": file.kind, "dim": file.dim, "stated": stated},
        pooling=UNKNOWN,
        prefix_tokens=0,
        views=UNKNOWN,
        compute_dtype=UNKNOWN,
        store_dtype="float16",
    )


def _look_through(file: FeatureFile, rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Rows of the file with NaN or infinity, and whether a value does not fit float16."""
    wanted = np.unique(rows[rows >= 0])
    broken: list[np.ndarray] = []
    overflows = False
    for start in range(0, len(wanted), CHUNK_ROWS):
        block = wanted[start : start + CHUNK_ROWS]
        values = file.read(block)
        finite = np.isfinite(values).all(axis=1)
        broken.append(block[~finite])
        with np.errstate(over="ignore"):
            overflows |= not np.isfinite(values[finite].astype(np.float16)).all()
    return np.concatenate(broken), overflows


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan(layout: Layout, job: _Job, key: str) -> EmbeddingArray:
    there = layout.attributes(layout.embedding(job.slide, key))
    if there is not None and there.get("source") != job.settings["source"] and there["recipe_id"] == job.recipe.id:
        was = there.get("source", {}).get("name", "?")
        raise InputError(
            f"slide {job.slide}: embeddings {key!r} were imported from another file ({was}) or with another tolerance; "
            f"use --key {key.split('@')[0]}@<label> to keep both, or `spared-fm rm` the old ones"
        )
    job.report["status"] = "unchanged" if there else "added"
    return EmbeddingArray.plan(layout, job.slide, key, recipe=job.recipe, dim=job.dim, settings=job.settings)


def _write(array: EmbeddingArray, job: _Job) -> dict[str, Any]:
    """Write the chunks that are not there, or damaged."""
    with open_features(job.path, job.kind, job.coordinates) as file:
        for k in range(array.n_chunks):
            problem = check_chunk(array, k)
            if problem is None:
                continue
            if problem.kind != UNFINISHED:
                withdraw(array.layout.files, array.node, k)
            chunk = np.asarray(array.rows(k))
            absent = {int(row): job.absent[row] for row in chunk if row in job.absent}
            values = np.zeros((len(chunk), job.dim), np.float32)
            present = np.array([row not in job.absent for row in chunk])
            values[present] = file.read(job.rows[chunk[present]])
            array.write_chunk(k, values, absent=absent, device=f"imported ({job.kind})")
            if job.report["status"] == "unchanged":
                job.report["status"] = "mended"
    order = ("slide", "file", "kind", "key", "recipe_id", "status")
    report = job.report | {"key": array.key, "recipe_id": job.recipe.id}
    return {name: report[name] for name in order} | {name: report[name] for name in report if name not in order}
