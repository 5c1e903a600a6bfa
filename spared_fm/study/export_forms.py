"""The formats embeddings are exported to: one writer each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.nodes import read_elem, zarr_v3
from spared_fm.store.recipe import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import anndata as ad

    from spared_fm.store.embeddings import EmbeddingArray

PROVENANCE = "spared_fm"
"""Name in ``uns`` of what says where the vectors come from."""


class Source:
    """One slide's embeddings and spots, or those of them that are in a cohort."""

    def __init__(self, array: EmbeddingArray, whole: ad.AnnData | None, layer: str | None) -> None:
        self.array, self.layer = array, layer
        self.layout, self.slide = array.layout, array.slide
        self.node = self.layout.slide(self.slide)
        self.record = slide_record(self.layout, self.slide)
        self.barcodes = self._read("obs").index
        self.part = None if whole is None else whole[whole.obs["slide"] == self.slide]
        self.rows = np.arange(array.shape[0])
        if self.part is not None:
            self.rows = self.barcodes.get_indexer(self.part.obs["barcode"])

    def _read(self, name: str) -> Any:
        return read_elem(self.layout, f"{self.node}/{name}")

    def spatial(self) -> np.ndarray | None:
        """Coordinates of the slide's spots, float64 (spots of the slide, 2)."""
        return None if self.record["spots_digest"] is None else np.asarray(self._read("obsm/spatial"), np.float64)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (place, vectors), about a chunk at a time."""
        for start in range(0, len(self.rows), self.array.chunk_rows):
            part = self.rows[start : start + self.array.chunk_rows]
            yield slice(start, start + len(part)), self.array.read(part)

    def provenance(self) -> dict[str, Any]:
        """Say what made the vectors, for the exported file."""
        recipe = self.array.recipe
        return {
            "slide": self.slide,
            "key": self.array.key,
            "encoder": recipe.encoder,
            "recipe_id": recipe.id,
            "embedding_id": self.array.attributes["embedding_id"],
            "recipe": canonical_json(recipe.as_dict()),
        }

    def adata(self) -> ad.AnnData:
        """Everything but the vectors."""
        import anndata as ad

        uns = {"spatial": self._read("uns").get("spatial", {}), PROVENANCE: self.provenance()}
        spatial = self.spatial()
        obsm = {} if spatial is None else {"spatial": spatial[self.rows]}
        if self.part is None:
            X = self._read("X") if self.layout.files.exists(f"{self.node}/X/zarr.json") else None
            return ad.AnnData(X=X, obs=self._read("obs"), var=self._read("var"), uns=uns, obsm=obsm)
        layers = dict(self.part.layers)
        X = layers[self.layer or "counts"].copy()
        return ad.AnnData(X=X, obs=self.part.obs.copy(), var=self.part.var.copy(), uns=uns, obsm=obsm, layers=layers)


def _h5ad(source: Source, drafts: list[Path]) -> int:
    import h5py

    adata = source.adata()
    adata.write_h5ad(drafts[0])
    shape = (len(source.rows), source.array.shape[1])
    with h5py.File(drafts[0], "r+") as file:
        chunks = (min(source.array.chunk_rows, shape[0]), shape[1])
        data = file["obsm"].create_dataset(source.array.key, shape, source.array.dtype, chunks=chunks)
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for place, values in source.blocks():
            data[place] = values
    return shape[0]


def _npy(source: Source, drafts: list[Path]) -> int:
    import pandas as pd

    ids, vectors = drafts
    spatial, absent = source.spatial(), source.array.absent()
    table = pd.DataFrame({"slide": source.slide, "barcode": np.asarray(source.barcodes, object)})
    for column, axis in enumerate("xy"):
        table[axis] = np.nan if spatial is None else spatial[:, column]
    table["absent"] = [absent.get(row) for row in range(len(table))]
    table.to_parquet(ids, engine="pyarrow", index=False)
    data = np.lib.format.open_memmap(vectors, mode="w+", dtype=source.array.dtype, shape=source.array.shape)
    for place, values in source.blocks():
        data[place] = values
    data.flush()
    return len(table)


def _trident(source: Source, drafts: list[Path]) -> int:
    import h5py

    array, record, spatial = source.array, source.record, source.spatial()
    recipe = array.recipe
    side_um = array.attributes.get("patch_um") or recipe.patch_um
    if spatial is None or not record["mpp"] or not side_um:
        raise InputError(
            f"slide {source.slide}: its spots have no place, or {array.key!r} no size of patch, that a TRIDENT file could tell; "
            "export it with --form npy or h5ad"
        )
    image = record["image"]
    scale = image["scale"] if image and image["kind"] != "patches" else 1.0
    level0 = record["mpp"] / scale
    side = max(1, round(side_um / level0))
    present = np.setdiff1d(source.rows, list(array.absent()))
    # A whole number is the middle of a pixel for the spots, and its corner for TRIDENT.
    corners = np.rint((spatial[present] + 0.5) * scale - side / 2).astype(np.int64)
    target = recipe.mpp or level0
    size = recipe.patch_px or side
    with h5py.File(drafts[0], "w") as file:
        shape = (len(present), array.shape[1])
        chunks = (max(1, min(array.chunk_rows, shape[0])), shape[1])
        features = file.create_dataset("features", shape, np.float32, chunks=chunks)
        features.attrs.update({"name": source.slide, **source.provenance()})
        file.create_dataset("coords", data=corners).attrs.update(
            {
                "patch_size": size,
                "patch_size_level0": side,
                "level0_magnification": 10 / level0,
                "target_magnification": 10 / target,
                "overlap": 0,
                "name": source.slide,
                "mpp": level0,
            }
        )
        start = 0
        for place, values in source.blocks():
            kept = values[np.isin(source.rows[place], present)]
            features[start : start + len(kept)] = kept
            start += len(kept)
    return len(present)


def _spatialdata(source: Source, drafts: list[Path]) -> int:
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    record, array = source.record, source.array
    adata = source.adata()
    if "spatial" not in adata.obsm or not record["mpp"]:
        raise InputError(f"slide {source.slide}: its spots have no place; export it with --form npy or h5ad")
    adata.obsm[array.key] = array.read(source.rows)
    adata.obs["region"] = pd.Categorical(["spots"] * adata.n_obs)
    adata.obs["instance"] = adata.obs_names.to_numpy()
    side = array.attributes.get("patch_um") or array.recipe.patch_um
    radius = (record["spot_diameter_px"] or side / record["mpp"]) / 2
    spots = ShapesModel.parse(
        adata.obsm["spatial"],
        geometry=0,
        radius=radius,
        index=adata.obs["instance"],
        transformations={"global": Identity(), "um": Scale([record["mpp"]] * 2, axes=("x", "y"))},
    )
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    with zarr_v3():
        SpatialData(shapes={"spots": spots}, tables={"table": table}).write(drafts[0])
    return adata.n_obs


FORMS: dict[str, tuple[str, str | None, Callable[[Source, list[Path]], int]]] = {
    "h5ad": (".h5ad", None, _h5ad),
    "npy": (".npy", None, _npy),
    "trident": (".h5", None, _trident),
    "spatialdata": (".zarr", "spatialdata", _spatialdata),
}
"""Form → ending, package it needs beyond the core, writer."""
