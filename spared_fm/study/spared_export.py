"""A cohort that came from a file of SpaRED's, out of the store as such a file: the same values under the same names."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.patchfiles import SPARED_KEY, open_patches
from spared_fm.store.embeddings import slide_record
from spared_fm.store.nodes import read_elem
from spared_fm.study.cohort import cohort_data, cohort_record
from spared_fm.study.progress import bar
from spared_fm.study.spared_files import JOIN_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

    from spared_fm.store.layout import Layout

BLOCK = 256
"""Patches in memory at a time on the way out: some 40 MB."""


def export_spared(
    layout: Layout,
    name: str,
    to: str | Path,
    *,
    patches: bool = True,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a cohort that came from a file of SpaRED's as such a file: the same values under the same names.

    Layers that were added to the cohort since are written too. The file appears whole or not at all. Patches are copied in
    blocks; the rest is in memory at once.

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    to
        The ``.h5ad`` to write.
    patches
        False leaves the patches out; so the file they came from need not be there.
    overwrite
        Replace a file that is there.
    progress
        Show a bar.

    Returns
    -------
    dict
        cohort, path, spots, genes, layers, patches (whether they were written), bytes.

    Raises
    ------
    InputError
        Unknown cohort or one of another origin, a slide that is gone or has changed, patches whose file is gone or has changed,
        or a target that is there.
    """
    to = Path(to)
    record = cohort_record(layout, name)
    origin = record.get("spared")
    if origin is None:
        raise InputError(
            f"cohort {name!r} is not from a file of SpaRED's; `spared-fm export --cohort {name}` writes it"
        )
    if to.exists() and not overwrite:
        raise InputError(f"{to}: is there already; pass --overwrite, or another name")
    patches = patches and origin["patches"]
    sources = _patch_files(layout, record) if patches else {}
    adata = cohort_data(layout, name)
    if origin["x"] is not None:
        adata.X = _counts(layout, adata, origin["x"])
    keys = adata.obs[list(JOIN_KEYS)].astype(str)
    adata.obs = adata.obs.set_index("barcode")[origin["columns"]].rename_axis(origin["index"])
    with _appearing(to) as draft:
        adata.write_h5ad(draft, convert_strings_to_categoricals=False)
        if patches:
            _copy_patches(draft, sources, keys, progress)
    return {
        "cohort": name,
        "path": str(to),
        "spots": adata.n_obs,
        "genes": adata.n_vars,
        "layers": sorted(adata.layers),
        "patches": patches,
        "bytes": to.stat().st_size,
    }


def _counts(layout: Layout, adata: ad.AnnData, form: dict[str, str]) -> Any:
    """Put the slides' counts together again: (spots, genes) in the file's order, dtype and format."""
    blocks, places = [], []
    for slide in adata.obs["slide"].unique():
        node = layout.slide(slide)
        at = np.flatnonzero(adata.obs["slide"].to_numpy() == slide)
        rows = read_elem(layout, f"{node}/obs").index.get_indexer(adata.obs["barcode"].iloc[at])
        columns = read_elem(layout, f"{node}/var").index.get_indexer(adata.var_names)
        if (rows < 0).any() or (columns < 0).any():
            raise InputError(f"slide {slide} has lost spots or genes of the cohort: read the cohort's file again")
        blocks.append(sparse.csr_matrix(read_elem(layout, f"{node}/X"))[rows][:, columns])
        places.append(at)
    whole = sparse.vstack(blocks, format="csr")[np.argsort(np.concatenate(places))].astype(form["dtype"])
    return whole.toarray() if form["format"] == "dense" else whole.asformat(form["format"])


def _patch_files(layout: Layout, record: dict[str, Any]) -> dict[str, Path]:
    """Slide → the file of its patches, checked to be the one that was read."""
    files = {}
    checked: dict[Path, str] = {}
    for slide in record["split"]:
        known = slide_record(layout, slide)
        mend = "leave the patches out (--no-patches)"
        if known["image"] is None or known["image"]["kind"] != "patches":
            raise InputError(f"slide {slide} has no file of patches in the store; {mend}")
        path = Path(known["image"]["path"])
        if not path.is_file():
            raise InputError(f"{path}: is gone, with the patches of slide {slide}: `spared-fm relink`, or {mend}")
        checked.setdefault(path, fingerprint(path))
        if checked[path] != known["fingerprint"]:
            raise InputError(
                f"{path}: has changed since the patches of slide {slide} were read: bring it back, or {mend}"
            )
        files[slide] = path
    return files


def _copy_patches(draft: Path, sources: dict[str, Path], keys: pd.DataFrame, progress: bool) -> None:
    """Add ``obsm['patches_scale_1.0']``, uint8 (spots, px·px·3), to the file, a block of rows at a time."""
    with h5py.File(draft, "r+") as file, bar("patches", len(keys), "patches", show=progress) as advance:
        data = None
        for slide, path in sources.items():
            places = np.flatnonzero(keys["slide"].to_numpy() == slide)
            with open_patches(path, slide) as patches:
                rows = pd.Index(patches.barcodes).get_indexer(keys["barcode"].iloc[places])
                if (rows < 0).any():
                    lost = keys["barcode"].iloc[places[np.argmax(rows < 0)]]
                    raise InputError(f"{path}: no patch of spot {lost!r}: leave the patches out (--no-patches)")
                width = patches.px * patches.px * 3
                if data is None:
                    chunks = (1, width)
                    data = file["obsm"].create_dataset(SPARED_KEY, (len(keys), width), np.uint8, chunks=chunks)
                    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
                elif data.shape[1] != width:
                    raise InputError(f"{path}: patches of slide {slide} have another size than those before it")
                for start in range(0, len(places), BLOCK):
                    at = places[start : start + BLOCK]
                    run = at[-1] - at[0] + 1 == len(at)
                    data[slice(at[0], at[-1] + 1) if run else at] = patches.read(rows[start : start + BLOCK]).reshape(
                        len(at), width
                    )
                    advance(len(at))


@contextlib.contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """Give a name to write under; what was written gets its own name when all is well, and goes when not."""
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f".{to.name}.{uuid.uuid4().hex}.part")
    try:
        yield draft
        os.replace(draft, to)
    finally:
        draft.unlink(missing_ok=True)
