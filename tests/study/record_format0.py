"""Write ``format0.zip``: a store of format 0 as the first prototype wrote it (see ``spared_fm.study.migrate``).

Two slides, one with an image and two finished chunks of a stand-in encoder, one with counts only. Run from the repository's
root: ``python -m tests.study.record_format0``. The zip is kept so that the test reads files that no code of today has written.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import DATA, Layout
from spared_fm.store.recipe import Recipe
from spared_fm.study.ingest import ingest

OUT = Path(__file__).with_name("format0.zip")
STAMP = (2026, 1, 1, 0, 0, 0)


def sources(folder: Path) -> tuple[Path, Path]:
    """Write what was ingested: a folder with an image, and counts only."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        X=sp.csr_matrix(rng.poisson(2.0, (6, 5)).astype(np.int32)),
        obs=pd.DataFrame({"array_row": range(6), "array_col": [0, 1, 0, 1, 0, 1]}, index=[f"s{i}-1" for i in range(6)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(5)]),
    )
    adata.obsm["spatial"] = np.array([[20.0 + 15 * i, 40.0] for i in range(6)])
    with_image = folder / "with_image"
    with_image.mkdir(parents=True)
    adata.write_h5ad(with_image / "counts.h5ad")
    pixels = np.add.outer(2 * np.arange(80), np.arange(120)).astype(np.uint8)
    Image.fromarray(np.stack([pixels, pixels // 2, pixels], axis=2)).save(with_image / "image.png")
    del adata.obsm["spatial"]
    adata.write_h5ad(folder / "only.h5ad")
    return with_image, folder / "only.h5ad"


def older(record: dict) -> dict:
    """Turn a record of format 1 into one of format 0."""
    old = {name: record[name] for name in ("slide", "patient", "split", "n_spots", "n_genes", "spots_digest")}
    old["spot_diameter_px"] = record["spot_diameter_px"]
    old["image_fingerprint"] = record["fingerprint"]
    old["um_per_px"], old["um_per_px_source"] = record["mpp"], record["mpp_source"]
    image = record["image"]
    if image:
        old["image_path"], old["image_kind"], old["image_scale"] = "/data/image.png", image["kind"], image["scale"]
        old["image_size"] = [image["width"], image["height"]]
    return old


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        layout = Layout.create(folder / "store")
        with_image, only = sources(folder / "sources")
        ingest(layout, with_image, mpp=0.5, patient="P1", split="train")
        ingest(layout, only)
        recipe = Recipe(
            112.0,
            224,
            0.5,
            "bicubic",
            "none",
            "stand-in/1",
            "sha256:0",
            {},
            "mean",
            0,
            "identity",
            "float32",
            "float16",
        )
        array = EmbeddingArray.plan(layout, "with_image", "stand-in", recipe=recipe, dim=3, chunk_rows=2)
        with mock.patch("time.strftime", return_value="2026-01-01T00:00:00Z"):
            for k in (0, 2):
                array.write_chunk(k, np.full((2, 3), k + 1.0), device="cpu")
        for slide in layout.slides():
            layout.update_attributes(layout.slide(slide), older)
        layout.update_attributes(DATA, lambda _: {"format_version": 0})
        with zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED) as out:
            for path in sorted((folder / "store").rglob("*")):
                name = path.relative_to(folder / "store").as_posix()
                if path.is_file() and not name.startswith(".staging"):
                    out.writestr(zipfile.ZipInfo(name, STAMP), path.read_bytes())


if __name__ == "__main__":
    main()
