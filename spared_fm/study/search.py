"""Search: the most similar patches of the store, for a spot or for an image file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.nodes import read_elem
from spared_fm.study.encode import choose_slides, find_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spared_fm.store.layout import Layout


@dataclasses.dataclass
class _Slide:
    """One searched slide: its embeddings and where its rows start among all rows."""

    array: EmbeddingArray
    first: int
    patient: str | None


def search(
    layout: Layout,
    encoder: str,
    *,
    spots: Sequence[str] = (),
    images: Sequence[str | Path] = (),
    k: int = 10,
    exclude: str | None = None,
    slides: str | Sequence[str] | None = None,
    weights: str | Path | None = None,
    mpp: float | None = None,
) -> list[dict[str, Any]]:
    """Find the patches most similar (cosine) to spots of the store or to image files; exact.

    Parameters
    ----------
    layout
        The store.
    encoder
        Encoder name or array key.
    spots
        Query spots, ``<slide>/<barcode>``. The query itself is never among its results.
    images
        Query image files. Each is one patch: with ``mpp`` its centre is read at the recipe's scale, without it the whole
        (centre square) image is taken to be one patch.
    k
        Results per query.
    exclude
        ``slide`` or ``patient`` leaves out results of the query spot's slide or patient.
    slides
        Glob or ids of the slides to search; by default all that have the embeddings.
    weights
        Weights file of the encoder, to encode image queries, when the array was made with one.
    mpp
        Microns per pixel of the query images.

    Returns
    -------
    list of dict
        Rows with query, rank (from 1), spot, slide, similarity (cosine), best first.

    Raises
    ------
    InputError
        No query, unknown spot, unreadable image, embeddings that are missing or unfinished, ``exclude`` with an image query.
    """
    from spared_fm.search.exact import search as exact

    if not spots and not images:
        raise InputError("nothing to search for; give --spot SLIDE/BARCODE or --image FILE")
    if exclude not in (None, "slide", "patient"):
        raise InputError(f"--exclude {exclude!r} is not slide or patient")
    if exclude and images:
        raise InputError("--exclude needs a query spot: an image file has no slide or patient")
    chosen = choose_slides(layout, slides, with_image=True)
    if slides is None:
        keys = {slide: layout.embeddings(slide) for slide in chosen}
        encoded = [s for s in chosen if any(_matches(encoder, key) for key in keys[s])]
        chosen = encoded or chosen
    key = find_key(layout, chosen, encoder)
    searched: list[_Slide] = []
    total = 0
    for slide in chosen:
        array = EmbeddingArray(layout, slide, key)
        array.check_current()
        searched.append(_Slide(array, total, slide_record(layout, slide)["patient"]))
        total += array.shape[0]

    queries, excluded = [], []
    for spot in spots:
        vector, own, left_out = _spot_query(layout, key, spot, searched, exclude, total)
        queries.append(vector)
        left_out[own] = True
        excluded.append(left_out)
    for image in images:
        queries.append(_image_query(searched[0].array, Path(image), weights, mpp))
        excluded.append(np.zeros(total, dtype=bool))
    if any(len(query) != searched[0].array.shape[1] for query in queries):
        raise InputError(f"the query has another dimension than {key!r}")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in searched:
            for rows, values in part.array.blocks():
                yield np.arange(rows.start, rows.stop) + part.first, values

    ids, similarity = exact(np.stack(queries).astype(np.float32), blocks(), k, exclude=np.stack(excluded))
    names = [str(query) for query in (*spots, *images)]
    barcodes = {part.array.slide: read_elem(layout, f"{layout.slide(part.array.slide)}/obs").index for part in searched}
    firsts = np.array([part.first for part in searched])
    results = []
    for query, found, values in zip(names, ids, similarity, strict=True):
        for rank, (row, value) in enumerate(zip(found, values, strict=True), start=1):
            if row < 0:
                break
            part = searched[int(np.searchsorted(firsts, row, side="right")) - 1]
            slide = part.array.slide
            results.append(
                {
                    "query": query,
                    "rank": rank,
                    "spot": f"{slide}/{barcodes[slide][int(row) - part.first]}",
                    "slide": slide,
                    "similarity": float(value),
                }
            )
    return results


def _matches(encoder: str, key: str) -> bool:
    from spared_fm.store.layout import slug

    return key in (encoder, slug(encoder)) or key.split("@")[0] == slug(encoder)


def _spot_query(
    layout: Layout, key: str, spot: str, searched: list[_Slide], exclude: str | None, total: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the query's vector, its own row among the searched rows (empty when not searched), and what to leave out."""
    slide, _, barcode = spot.partition("/")
    record = slide_record(layout, slide)
    barcodes = read_elem(layout, f"{layout.slide(slide)}/obs").index
    if barcode not in barcodes:
        raise InputError(
            f"slide {slide} has no spot {barcode!r}; a spot is named SLIDE/BARCODE, e.g. {slide}/{barcodes[0]}"
        )
    row = int(barcodes.get_loc(barcode))
    array = EmbeddingArray(layout, slide, key)
    vector = array.read(np.array([row]))[0]
    if not np.isfinite(vector).all():
        raise InputError(f"spot {spot} has no embedding: {array.absent().get(row, 'its patch could not be read')}")
    if exclude == "patient" and record["patient"] is None:
        raise InputError(
            f"--exclude patient: the patient of slide {slide} is not known; ingest it again with --patient"
        )
    left_out = np.zeros(total, dtype=bool)
    own = np.empty(0, dtype=np.int64)
    for part in searched:
        stop = part.first + part.array.shape[0]
        if part.array.slide == slide:
            own = np.array([part.first + row])
        same = part.array.slide == slide or (exclude == "patient" and part.patient == record["patient"])
        if exclude and same:
            left_out[part.first : stop] = True
    return vector, own, left_out


def _image_query(array: EmbeddingArray, path: Path, weights: str | Path | None, mpp: float | None) -> np.ndarray:
    from spared_fm.encoders.builder import build
    from spared_fm.encoders.spec import from_settings
    from spared_fm.slides.images import open_image
    from spared_fm.slides.patches import PatchReader, PatchSpec

    recipe = array.recipe
    if recipe.transform.get("unverified"):
        raise InputError(f"{array.key!r} were imported, so an image can't be encoded the same way; query with --spot")
    with open_image(path) as image:
        level = image.levels[0]
        side = min(level.width, level.height)
        spec = PatchSpec(recipe.patch_um, recipe.patch_px, recipe.resampling)
        if mpp is not None and side * mpp < spec.um:
            raise InputError(
                f"{path}: {side} px at {mpp} µm/px is smaller than a patch ({spec.um:g} µm); crop a larger region"
            )
        reader = PatchReader(image, mpp or spec.um / side, spec)
        patch = reader.read_one(level.width / 2 - 0.5, level.height / 2 - 0.5)
    encoder = build(from_settings(array.attributes, weights))
    if encoder.weights != recipe.weights:
        raise InputError(
            f"{array.key!r} was made with other weights than the encoder has now; give them with --weights FILE"
        )
    return encoder.encode(patch[None])[0].astype(array.dtype)
