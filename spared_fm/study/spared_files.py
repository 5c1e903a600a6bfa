"""SpaRED's ``adata.h5ad`` and ``adata_raw.h5ad`` into the store, as slides and a cohort; `spared_export` takes them out again.

The patches of ``obsm['patches_scale_1.0']``, some 150 kB per spot, are not copied: a slide refers to the file they lie in, as it
does to an image, and ``encode`` and the way out read them from there in blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.slides.counts import read_slides
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.patchfiles import SPARED_KEY, has_patches
from spared_fm.slides.slide import READ_ERRORS, first_line
from spared_fm.store.embeddings import slide_record
from spared_fm.store.layout import check_name
from spared_fm.store.nodes import read_elem, write_node
from spared_fm.store.recipe import digest
from spared_fm.study.ingest import SPLITS, ingest_one
from spared_fm.study.progress import track

if TYPE_CHECKING:
    import anndata as ad

    from spared_fm.slides.slide import SlideData
    from spared_fm.store.layout import Layout

JOIN_KEYS = ("slide", "barcode")
"""Columns a cohort's obs has beyond SpaRED's: they go again on the way out."""
PATCHES = "patches_scale"
"""What the names of SpaRED's patches in ``obsm`` begin with."""


def import_spared(
    layout: Layout, path: str | Path, name: str, *, mpp: float | None = None, progress: bool = False
) -> dict[str, Any]:
    """Read a file of SpaRED's into the store: each ``obs['slide_id']`` as a slide, the whole as the cohort `name`.

    The cohort holds all of the file but the patches: ``layers`` (dense), ``obs``, ``var``, ``uns``, ``obsm``, ``obsp``. Its
    spots are joined to the slides by name. ``X`` of a file without layers (``adata_raw.h5ad``) lies in the slides only. A slide
    that is in the store already is not written again where it has the file's spots, coordinates and counts, so
    ``adata_raw.h5ad`` may come first and ``adata.h5ad``, which has fewer spots and genes, after it. Everything but the patches is
    in memory at once.

    Parameters
    ----------
    layout
        The store.
    path
        ``adata.h5ad`` or ``adata_raw.h5ad``: ``obs`` has ``slide_id``, ``patient`` and ``split``.
    name
        Cohort name.
    mpp
        µm per pixel of the coordinates; by default from the spots' places on the array.
    progress
        Show a bar.

    Returns
    -------
    dict
        cohort, status (``added``, ``unchanged``), slides (rows with slide, status: ``added`` or ``present``), spots, genes,
        layers, split (slide → part), patches (whether the file has them), share_missing, warnings.

    Raises
    ------
    InputError
        The file is damaged or lacks a column, a slide has spots of several splits, a slide of that id with other content is in
        the store, or the name is taken by another cohort.
    """
    path = Path(path)
    check_name(name, "cohort")
    obs = _read_obs(path)
    parts = {
        str(slide): str(rows.iloc[0]) for slide, rows in obs.groupby("slide_id", sort=False, observed=True)["split"]
    }
    known = layout.attributes(layout.cohort(name))
    mark = fingerprint(path)
    if known is not None:
        if known.get("spared", {}).get("fingerprint") != mark:
            raise InputError(f"cohort {name!r} exists and is not from {path}; give this one another --name")
        slides = [{"slide": slide, "status": "present"} for slide in parts]
        return _report(name, "unchanged", slides, known, [])
    slides, warnings = [], []
    found = read_slides(path, mpp=mpp)
    for data in track(found, "slides", len(found), "slides", show=progress):
        for layer in list(data.adata.layers):  # they go to the cohort
            del data.adata.layers[layer]
        if layout.attributes(layout.slide(data.id)) is None:
            row = ingest_one(layout, data, None, parts[data.id], mpp)
            warnings += row["warnings"]
            slides.append({"slide": data.id, "status": "added"})
        else:
            _check_same(layout, data, path)
            slides.append({"slide": data.id, "status": "present"})
    del found
    adata, left_out = _read_but_patches(path)
    warnings += [f"{path}: {place} is not taken over" for place in left_out]
    record = _describe(layout, adata, name, parts, mark)
    record["spared"]["patches"] = has_patches(path)
    _make_cohort(adata, keep_x=record["spared"]["x"] is None)
    write_node(layout, layout.cohort(name), adata, record)
    return _report(name, "added", slides, record, warnings)


def _read_obs(path: Path) -> pd.DataFrame:
    """Read and check the table of spots, before anything else is touched."""
    import anndata as ad

    try:
        with h5py.File(path, "r") as file:
            obs = ad.io.read_elem(file["obs"])
    except READ_ERRORS as error:
        if not path.is_file():
            raise InputError(f"{path}: no such file: check the path") from None
        raise InputError(f"{path}: not a readable .h5ad ({first_line(error)}): copy it again") from error
    for column in ("slide_id", "patient", "split"):
        if column not in obs:
            raise InputError(
                f"{path}: obs has no column {column!r}, as SpaRED's files do; `spared-fm ingest` reads others"
            )
        if obs[column].isna().any():
            raise InputError(f"{path}: {int(obs[column].isna().sum())} spots have no {column}: fill the column")
    for column in JOIN_KEYS:
        if column in obs:
            raise InputError(f"{path}: obs has a column {column!r}, which a cohort has of its own: rename it")
    if not obs.index.is_unique:
        raise InputError(
            f"{path}: spot {obs.index[obs.index.duplicated()][0]!r} occurs more than once: make names unique"
        )
    unknown = sorted(set(obs["split"].astype(str)) - set(SPLITS))
    if unknown:
        raise InputError(f"{path}: split {unknown[0]!r} is not one of {', '.join(SPLITS)}")
    for column in ("split", "patient"):
        several = obs.astype({"slide_id": str, column: str}).groupby("slide_id")[column].nunique()
        if (several > 1).any():
            raise InputError(
                f"{path}: slide {several.idxmax()} has spots of {several.max()} values of {column}: give it one per slide"
            )
    return obs


def _read_but_patches(path: Path) -> tuple[ad.AnnData, list[str]]:
    """Read an .h5ad but its patches, and name what else the store has no place for."""
    import anndata as ad

    parts: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        for place in ("X", "obs", "var", "uns", "varm", "obsp", "layers"):
            if place in file:
                parts[place] = ad.io.read_elem(file[place])
        obsm = file.get("obsm", {})
        parts["obsm"] = {key: ad.io.read_elem(value) for key, value in obsm.items() if not key.startswith(PATCHES)}
        usable = {SPARED_KEY} if has_patches(path) else set()
        left_out = [f"obsm[{key!r}]" for key in obsm if key.startswith(PATCHES) and key not in usable]
        left_out += [place for place in ("raw", "varp") if len(file.get(place, ()))]
    parts["layers"] = {
        key: value.toarray() if sparse.issparse(value) else value for key, value in parts.get("layers", {}).items()
    }
    return ad.AnnData(**parts), left_out


def _check_same(layout: Layout, data: SlideData, path: Path) -> None:
    """Refuse a slide of the store that hasn't the spots and counts of the file's slide of that id."""
    node = layout.slide(data.id)
    rows = read_elem(layout, f"{node}/obs").index.get_indexer(data.adata.obs_names)
    columns = read_elem(layout, f"{node}/var").index.get_indexer(data.adata.var_names)
    if (rows < 0).any() or (columns < 0).any():
        what = f"spot {data.adata.obs_names[np.argmax(rows < 0)]!r}"
        if not (rows < 0).any():
            what = f"gene {data.adata.var_names[np.argmax(columns < 0)]!r}"
        raise InputError(
            f"{path}: slide {data.id} is in the store without {what}: read adata_raw.h5ad before adata.h5ad, or use another store"
        )
    here = slide_record(layout, data.id)
    if here["counts_digest"] is None:
        raise InputError(f"{path}: slide {data.id} is in the store without counts: use another store")
    places = data.adata.obsm.get("spatial")
    if places is not None and (
        here["spots_digest"] is None or not np.array_equal(read_elem(layout, f"{node}/obsm/spatial")[rows], places)
    ):
        raise InputError(f"{path}: slide {data.id} is in the store with other coordinates: use another store")
    counts = sparse.csr_matrix(read_elem(layout, f"{node}/X"))[rows][:, columns]
    if (counts != data.adata.X).nnz:
        raise InputError(f"{path}: slide {data.id} is in the store with other counts: use another store")


def _describe(layout: Layout, adata: ad.AnnData, name: str, parts: dict[str, str], mark: str) -> dict[str, Any]:
    """Our record of the cohort; `spared` in it is what the way out needs."""
    records = {slide: slide_record(layout, slide) for slide in parts}
    patients = adata.obs.groupby("slide_id", observed=True)["patient"].first()
    settings: dict[str, Any] = {
        "panel": f"file:{digest(list(adata.var_names))}",
        "n_genes": adata.n_vars,
        "split": parts,
        "patients": {slide: str(patients[slide]) for slide in parts},
        "parents": {s: {k: r[k] for k in ("counts_digest", "spots_digest", "fingerprint")} for s, r in records.items()},
    }
    from_slides = not adata.layers and adata.X is not None and adata.var_names.is_unique and _whole(adata.X)
    x = {"dtype": str(adata.X.dtype), "format": getattr(adata.X, "format", "dense")} if from_slides else None
    spared = {
        "fingerprint": mark,
        "spots": adata.n_obs,
        "columns": list(adata.obs.columns),
        "index": adata.obs.index.name,
        "x": x,
    }
    return {
        **settings,
        "cohort": name,
        "mode": "spared",
        "settings_digest": digest({**settings, "file": mark}),
        "layers": {layer: {"method": "read from a file of SpaRED's", "file": mark} for layer in adata.layers},
        "share_missing": _share_missing(adata),
        "spared": spared,
    }


def _make_cohort(adata: ad.AnnData, *, keep_x: bool) -> None:
    """Give the file's AnnData a cohort's join keys and index, in place."""
    adata.obs["slide"] = pd.Categorical(adata.obs["slide_id"].astype(str))
    adata.obs["barcode"] = adata.obs_names.to_numpy(object)
    adata.obs_names = pd.Index(adata.obs["slide"].astype(str) + "/" + adata.obs["barcode"], name=None)
    if not keep_x:
        adata.X = None


def _share_missing(adata: ad.AnnData) -> float:
    if "mask" in adata.layers:
        return float(1 - np.mean(adata.layers["mask"]))
    counts = adata.layers["counts"] if adata.X is None else adata.X
    nonzero = counts.count_nonzero() if sparse.issparse(counts) else np.count_nonzero(counts)
    return float(1 - nonzero / max(1, adata.n_obs * adata.n_vars))


def _whole(matrix: Any) -> bool:
    values = np.asarray(matrix.data if sparse.issparse(matrix) else matrix)
    return bool(np.array_equal(values, np.rint(values)))


def _report(
    name: str, status: str, slides: list[dict[str, Any]], record: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:
    return {
        "cohort": name,
        "status": status,
        "slides": slides,
        "spots": record["spared"]["spots"],
        "genes": record["n_genes"],
        "layers": sorted(record["layers"]),
        "split": record["split"],
        "patches": record["spared"]["patches"],
        "share_missing": record["share_missing"],
        "warnings": warnings,
    }
