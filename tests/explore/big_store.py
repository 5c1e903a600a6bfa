"""A synthetic store of many spots without images: random vectors in clusters, for load tests."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import write_node
from spared_fm.store.recipe import Recipe, spots_digest

KEY = "synthetic"
_CLUSTERS = 64


def build(folder: Path, *, slides: int, spots: int, dim: int) -> Path:
    """Make the store; slide ``s00`` is of patient ``p0``, two slides each."""
    layout = Layout.create(folder)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((_CLUSTERS, dim)).astype(np.float32)
    recipe = Recipe(
        patch_um=112.0, patch_px=224, mpp=0.5, resampling="bicubic", stain_normalisation="none", encoder="synthetic/1",
        weights="sha256:0", transform={"unverified": "synthetic"}, pooling="none", prefix_tokens=0, views="identity",
        compute_dtype="float32", store_dtype="float16",
    )  # fmt: skip
    side = int(np.ceil(spots**0.5))
    for number in range(slides):
        slide = f"s{number:02d}"
        label = rng.integers(0, _CLUSTERS, spots)
        names = [f"b{i:05d}-1" for i in range(spots)]
        adata = ad.AnnData(obs=pd.DataFrame({"cluster": pd.Categorical(label.astype(str))}, index=names))
        at = np.arange(spots)
        adata.obsm["spatial"] = np.stack([at % side, at // side], axis=1) * 100.0
        record = {
            "slide": slide, "patient": f"p{number // 2}", "split": None, "n_spots": spots, "n_genes": 0,
            "counts_digest": None, "fingerprint": "sha256:0", "image": None, "mpp": 1.0, "mpp_source": "given",
            "spot_diameter_px": 55.0, "spots_digest": spots_digest(names, adata.obsm["spatial"]),
        }  # fmt: skip
        write_node(layout, layout.slide(slide), adata, record)
        array = EmbeddingArray.plan(layout, slide, KEY, recipe=recipe, dim=dim)
        values = centres[label] + rng.standard_normal((spots, dim)).astype(np.float32)
        for k in range(array.n_chunks):
            rows = array.rows(k)
            array.write_chunk(k, values[rows.start : rows.stop], device="cpu")
    return folder
