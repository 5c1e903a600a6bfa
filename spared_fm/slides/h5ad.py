"""Read slides from an .h5ad: one, or several told apart by ``obs['slide_id']``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.slides import checks
from spared_fm.slides.images import image_size
from spared_fm.slides.mpp import mpp_candidates
from spared_fm.slides.patchfiles import has_patches
from spared_fm.slides.slide import READ_ERRORS, SlideData, array_positions, assemble, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

__all__ = ["read_h5ad_slides"]


def read_h5ad_slides(
    path: Path, default_id: str, slide: str | None = None, image: Path | None = None
) -> list[SlideData]:
    """Read the slides of an .h5ad.

    Parameters
    ----------
    path
        The file.
    default_id
        The id of its one slide when neither `slide` nor ``obs['slide_id']`` says.
    slide
        The id to give to a file's one slide, or which of several to read.
    image
        The image the coordinates are pixels of, or a file of patches (HEST's .h5). SpaRED's patches in the .h5ad itself
        are used where there is no other image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # duplicate names are checked below; old formats still read
            adata = _read_without_patches(path)
    except READ_ERRORS as error:
        raise InputError(f"{path}: not a readable .h5ad ({first_line(error)}): copy it again") from error
    rows_by_id = _split(adata, path, slide or default_id)
    several = len(rows_by_id) > 1
    if slide is None:
        chosen = rows_by_id
    elif not several:
        chosen = {slide: next(iter(rows_by_id.values()))}
    elif slide in rows_by_id:
        chosen = {slide: rows_by_id[slide]}
    else:
        raise InputError(f"{path}: no slide {slide!r} in slide_id: give one of {', '.join(rows_by_id)}")
    if image is not None and len(chosen) > 1 and not has_patches(image):
        raise InputError(f"{path}: {len(chosen)} slides for the one image {image}: pass the slide it shows")
    matrix, note = _pick_counts(adata)
    return [_one(adata, matrix, path, i, rows, image, several, note) for i, rows in chosen.items()]


def _read_without_patches(path: Path) -> ad.AnnData:
    """Read an .h5ad and leave SpaRED's patches on disk: they are some 150 kB per spot."""
    with h5py.File(path, "r") as file:
        skip = {key for key in file.get("obsm", ()) if key.startswith("patches_scale")}
        if skip:
            whole = {key: ad.io.read_elem(file[key]) for key in ("X", "obs", "var", "uns", "layers") if key in file}
            obsm = {key: ad.io.read_elem(value) for key, value in file["obsm"].items() if key not in skip}
            return ad.AnnData(**whole, obsm=obsm)
    return ad.read_h5ad(path)


def _split(adata: ad.AnnData, path: Path, default_id: str) -> dict[str, np.ndarray]:
    """Row numbers by slide id, in order of first appearance."""
    if "slide_id" not in adata.obs or not adata.n_obs:
        return {default_id: np.arange(adata.n_obs)}
    ids = adata.obs["slide_id"]
    if ids.isna().any():
        raise InputError(f"{path}: {int(ids.isna().sum())} spots have no slide_id: fill or drop the column")
    ids = ids.astype(str)
    return {str(i): np.flatnonzero(ids == i) for i in ids.unique()}


def _one(
    adata: ad.AnnData,
    matrix: Any,
    path: Path,
    slide_id: str,
    rows: np.ndarray,
    image: Path | None,
    several: bool,
    note: str | None,
) -> SlideData:
    checks.check_slide_id(slide_id)
    obs = adata.obs.iloc[rows].copy()
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    barcodes = obs.index.astype(str)
    checks.check_barcodes(barcodes, path)
    counts = checks.raw_counts(None if matrix is None else matrix[rows], barcodes, adata.var_names, path)
    xy = None
    if "spatial" in adata.obsm:
        xy = checks.check_coordinates(np.asarray(adata.obsm["spatial"])[rows], len(rows), barcodes, path)
    kind = "none" if image is None else "fullres"
    if image is None and has_patches(path):
        image = path  # SpaRED keeps patches beside the counts
    if image is not None and has_patches(image):
        kind = "patches"
    elif image is not None:
        if xy is None:
            raise InputError(f"{path}: an image but no obsm['spatial']: add the spots' x, y in its pixels")
        checks.check_inside(xy, 1.0, image_size(image), image)
    library = _library(adata.uns.get("spatial"), slide_id, several)
    metadata = _plain(library.get("metadata") or {})
    slide = assemble(counts, obs, barcodes, adata.var, xy)
    for name, layer in adata.layers.items():  # a user's own layers stay with the slide
        slide.layers[name] = layer[rows]
    scalefactors = {str(k): float(v) for k, v in (library.get("scalefactors") or {}).items()}
    return SlideData(
        id=slide_id,
        adata=slide,
        image=image,
        image_kind=kind,
        mpp_candidates=mpp_candidates(metadata, scalefactors, array_positions(obs, xy)),
        patient=_patient(obs, metadata, path, slide_id),
        scalefactors=scalefactors,
        metadata=metadata,
        thumbnails={str(k): _as_rgb(v) for k, v in (library.get("images") or {}).items()},
        warnings=() if note is None else (f"{slide_id}: {note}",),
    )


def _pick_counts(adata: ad.AnnData) -> tuple[Any, str | None]:
    """Return X, or ``layers['counts']`` where X holds something else, as scanpy's tutorials leave it."""
    if adata.X is not None and _whole(adata.X):
        return adata.X, None
    if "counts" in adata.layers and _whole(adata.layers["counts"]):
        return adata.layers["counts"], "X is not whole numbers, layers['counts'] is read as the counts"
    return adata.X, "the counts are not whole numbers: check that X is raw, not normalised"


def _whole(matrix: Any) -> bool:
    values = np.asarray(matrix.data if sparse.issparse(matrix) else matrix)
    if values.dtype.kind != "f":
        return True
    finite = values[np.isfinite(values)]  # what isn't finite is refused later, with its place
    return bool(np.array_equal(finite, np.rint(finite)))


def _library(spatial: Any, slide_id: str, several: bool) -> Mapping[str, Any]:
    """Return the slide's entry of ``uns['spatial']``: by its id, else the only one of a file of one slide."""
    if not isinstance(spatial, dict):
        return {}
    if slide_id in spatial:
        return dict(spatial[slide_id])
    return dict(next(iter(spatial.values()))) if len(spatial) == 1 and not several else {}


def _patient(obs: pd.DataFrame, metadata: Mapping[str, Any], path: Path, slide_id: str) -> str | None:
    if "patient" not in obs:
        return None if metadata.get("patient") is None else str(metadata["patient"])
    patients = obs["patient"].dropna().astype(str).unique()
    if len(patients) > 1:
        names = ", ".join(patients[:5])
        raise InputError(f"{path}: slide {slide_id} has several patients ({names}): give each its own slide_id")
    return str(patients[0]) if len(patients) else None


def _plain(value: Any) -> Any:
    """Turn what HDF5 gave into plain Python values."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _as_rgb(image: Any) -> np.ndarray:
    """Turn what ``uns['spatial']`` holds (scanpy: floats 0…1, or uint8; with or without alpha) into RGB."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        values = np.rint(np.clip(values, 0, 1) * 255)
    values = values.astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values[..., :3]
