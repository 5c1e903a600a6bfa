"""Refuse counts and coordinates that would only fail, or lie, much later."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata.utils import make_index_unique
from scipy import sparse

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = [
    "check_barcodes",
    "check_coordinates",
    "check_inside",
    "check_slide_id",
    "gene_names",
    "raw_counts",
]

_ID = re.compile(r"[A-Za-z0-9._-]+")
_INT32_MAX = np.iinfo(np.int32).max


def check_slide_id(slide_id: str) -> str:
    """Return a slide id that can be a Zarr node's name, or raise with one that could.

    Zarr reserves names of dots alone and names that start with two underscores.
    """
    if _ID.fullmatch(slide_id) and slide_id.strip(".") and not slide_id.startswith("__"):
        return slide_id
    suggestion = re.sub(r"[^A-Za-z0-9._-]+", "-", slide_id).strip("-._") or "slide1"
    raise InputError(
        f"slide id {slide_id!r}: use letters, digits, '.', '_' and '-' only, not dots alone nor '__' in "
        f"front: pass --slide {suggestion}"
    )


def check_barcodes(barcodes: pd.Index, source: Path) -> None:
    """Refuse barcodes that occur twice."""
    twice = barcodes[barcodes.duplicated()].unique()
    if len(twice):
        raise InputError(
            f"{source}: {len(twice)} barcodes occur more than once, e.g. {twice[0]!r}: make them unique, or "
            "give several slides in one file a slide_id column"
        )


def raw_counts(matrix: Any, barcodes: pd.Index, genes: pd.Index, source: Path) -> sparse.csr_matrix:
    """Check counts and bring them into one form.

    Parameters
    ----------
    matrix
        (n_spots, n_genes) counts: dense or any scipy sparse matrix of numbers.
    barcodes, genes
        Names of the rows and columns, for messages.
    source
        The file, for messages.

    Returns
    -------
    scipy.sparse.csr_matrix
        Sorted, without stored zeros; int32 (int64 where that is too small) when all counts are whole numbers,
        else float32.

    Raises
    ------
    InputError
        The matrix is empty, not numeric, or has a count that is NaN, infinite or negative.
    """
    if matrix is None or 0 in matrix.shape:
        shape = "none" if matrix is None else f"{matrix.shape[0]} spots × {matrix.shape[1]} genes"
        raise InputError(f"{source}: the count matrix is empty ({shape}): give the file with the counts in X")
    # always a copy: the caller's matrix stays as it was
    counts = sparse.csr_matrix(matrix, copy=True)
    if counts.dtype.kind not in "biuf":
        raise InputError(f"{source}: the counts are of type {counts.dtype}: give numbers")
    counts.sum_duplicates()
    for wrong, kind in (
        (np.isnan(counts.data), "NaN"),
        (np.isinf(counts.data), "infinite"),
        (counts.data < 0, "negative"),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            spot = barcodes[np.searchsorted(counts.indptr, first, side="right") - 1]
            gene = genes[counts.indices[first]]
            raise InputError(
                f"{source}: {int(wrong.sum())} counts are {kind}, e.g. gene {gene!r} at spot {spot!r}: "
                "give raw counts, 0 where nothing was measured"
            )
    counts.eliminate_zeros()
    if not counts.nnz:
        raise InputError(f"{source}: the count matrix holds zeros only: give the file with the counts in X")
    if counts.dtype.kind != "f" or np.array_equal(counts.data, np.rint(counts.data)):
        return counts.astype(np.int32 if counts.data.max() <= _INT32_MAX else np.int64)
    return counts.astype(np.float32)


def gene_names(names: pd.Index, gene_ids: pd.Series | None) -> pd.Index:
    """Make gene names unique the way scanpy does (``-1``, ``-2``, …), with the id where a name is missing.

    pandas reads a gene called NA as a missing name.
    """
    if names.hasnans:
        spare = gene_ids.astype(str) if gene_ids is not None else [f"gene{i}" for i in range(len(names))]
        names = names.where(names.notna(), spare)
    return make_index_unique(names.astype(str))


def check_coordinates(xy: Any, n_spots: int, barcodes: pd.Index, source: Path) -> np.ndarray:
    """Return coordinates as float64 (n, 2), or refuse other shapes and values that aren't finite."""
    try:
        coordinates = np.asarray(xy, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{source}: the spot coordinates are not numbers: give x, y in pixels") from None
    if coordinates.shape != (n_spots, 2):
        raise InputError(f"{source}: coordinates of shape {coordinates.shape} for {n_spots} spots: give x, y in pixels")
    bad = ~np.isfinite(coordinates).all(axis=1)
    if bad.any():
        raise InputError(
            f"{source}: {int(bad.sum())} spots have coordinates that are not finite, e.g. "
            f"{barcodes[int(np.argmax(bad))]!r}: mend or drop them"
        )
    return coordinates


def check_inside(xy: np.ndarray, scale: float, size: tuple[int, int], image: Path) -> None:
    """Refuse an image that doesn't reach as far as the spots.

    Parameters
    ----------
    xy
        (n, 2) spot centres in pixels of the coordinates' frame, whole numbers at pixel centres.
    scale
        Image pixels per coordinate pixel.
    size
        Width and height of the image.
    image
        The file, for messages.
    """
    at = (xy + 0.5) * scale
    # half an image pixel of grace: downscaled images are rounded to whole pixels
    outside = ((at < -0.5) | (at > np.asarray(size) + 0.5)).any(axis=1)
    if outside.any():
        (x0, y0), (x1, y1) = at.min(axis=0), at.max(axis=0)
        raise InputError(
            f"{image}: the image is {size[0]}×{size[1]} pixels, but the spots reach from "
            f"({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}) in it; {int(outside.sum())} of {len(xy)} lie "
            "outside: give the image that the coordinates belong to"
        )
