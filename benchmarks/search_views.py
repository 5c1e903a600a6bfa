"""Write embeddings of jittered views of the real slides: the base of ``search.py --real`` and ``search_scale.py --real``.

    python benchmarks/search_views.py OUT.npy [--data ../shared/data] [--encoder stain-bank] [--views 4]

Each view is every spot of every slide, its centre moved at random by up to half a spot's distance, encoded by the product.
Embeddings are standardised by dimension, as those of the built-in encoders are when they are searched.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np

import spared_fm

SLIDES = ("her2st_C2", "her2st_C3", "her2st_C4", "mob_rep1", "mob_rep11", "mob_rep12")


def jittered(source: Path, target: Path, rng: np.random.Generator) -> Path:
    """Copy a slide with its spots moved."""
    target.mkdir()
    (target / "image.jpg").symlink_to((source / "image.jpg").resolve())
    adata = ad.read_h5ad(source / "counts.h5ad")
    xy = adata.obsm["spatial"]
    gaps = np.linalg.norm(xy[:, None] - xy, axis=2)
    reach = np.median(np.where(gaps > 0, gaps, np.inf).min(axis=1)) / 2
    adata.obsm["spatial"] = xy + rng.uniform(-reach, reach, xy.shape)
    adata.write_h5ad(target / "counts.h5ad")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--encoder", default="stain-bank")
    parser.add_argument("--views", type=int, default=4)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        study = spared_fm.open(Path(folder) / "store", create=True)
        for view in range(options.views):
            for slide in SLIDES:
                study.ingest(jittered(options.data / slide, Path(folder) / f"{slide}.{view}", rng))
        study.encode(options.encoder)
        values = np.concatenate([study.features(slide, options.encoder).astype(np.float32) for slide in study.slides])
    values = values[np.isfinite(values).all(axis=1)]
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-6)
    np.save(options.out, values)
    print(f"{len(values)} embeddings of {values.shape[1]} dimensions")


if __name__ == "__main__":
    main()
