"""Synthetic collections of slides with SpaRED's columns."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

SPLITS = ("train", "train", "val", "test")


def hex_xy(rows: int, cols: int) -> np.ndarray:
    r, c = np.divmod(np.arange(rows * cols), cols)
    return np.column_stack([c + (r % 2) / 2, r * np.sqrt(3) / 2])


def collection(
    genes: list[str], seed: int = 0, *, rows: int = 9, cols: int = 10, splits: tuple[str, ...] = SPLITS
) -> ad.AnnData:
    """Slides on a hexagonal grid; positions are moved a little, so that no two distances agree."""
    rng = np.random.default_rng(seed)
    n = rows * cols
    level = rng.lognormal(1.2, 1.2, len(genes))
    wave, phase = rng.uniform(0.0, 1.5, (2, len(genes))), rng.uniform(0, 6, len(genes))
    counts, obs, xy = [], [], []
    for s, split in enumerate(splits):
        at = hex_xy(rows, cols) + rng.normal(scale=1e-3, size=(n, 2))
        pattern = np.exp(1.5 * np.sin(at @ wave * 0.4 + phase)) * rng.lognormal(0, 0.3, len(genes))
        counts.append(rng.poisson(level * pattern * rng.lognormal(0, 0.3, (n, 1))))
        obs.append(pd.DataFrame({"slide_id": f"s{s}", "patient": f"p{s // 2}", "split": split}, index=range(n)))
        xy.append(at * 100)
    table = pd.concat(obs, ignore_index=True)
    table.index = pd.Index([f"{slide}_{i}" for i, slide in enumerate(table["slide_id"])])
    return ad.AnnData(
        X=sp.csr_matrix(np.vstack(counts).astype(np.float32)),
        obs=table,
        var=pd.DataFrame(index=pd.Index(genes)),
        obsm={"spatial": np.vstack(xy)},
    )
