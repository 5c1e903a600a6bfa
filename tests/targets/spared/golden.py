"""The two collections of the golden comparison, and which values of a result are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from spared_fm.targets.genes import gene_lengths, harmonise
from tests.targets.spared.synthetic import collection

GOLDEN = Path(__file__).parent / "golden"
SPLIT_OF_PATIENT = {"A": "train", "D": "train", "E": "train", "C": "val", "F": "test"}

LAYERS = (
    "counts", "tpm", "log1p", "d_log1p", "c_log1p", "c_d_log1p", "deltas", "d_deltas", "c_deltas", "c_d_deltas",
    "noisy_c_d_log1p", "noisy_c_d_deltas",
)  # fmt: skip
COLUMNS = (
    "exp_frac", "glob_exp_frac", "n_cells_by_counts", "mean_counts", "pct_dropout_by_counts", "total_counts",
    "gene_length", "d_log1p_moran", "log1p_avg_exp", "d_log1p_avg_exp", "c_log1p_avg_exp", "c_d_log1p_avg_exp",
    "used_mean_c_d_deltas",
)  # fmt: skip


def her2st(path: Path) -> ad.AnnData:
    """Read 22 legacy ST sections (square grid), symbols mapped to Ensembl ids."""
    adata, _ = harmonise(ad.read_h5ad(path), "human")
    adata.obs["split"] = [SPLIT_OF_PATIENT[p] for p in adata.obs["patient"].astype(str)]
    return adata


def hexagonal() -> ad.AnnData:
    """Draw four synthetic slides of 360 spots on a hexagonal grid, 400 genes."""
    return collection(list(gene_lengths("mouse").index[:400]), seed=7, rows=18, cols=20)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "hex": (hexagonal, {"organism": "mouse", "top_moran_genes": 32, "combat_key": "slide_id", "hex_geometry": True}),
    "her2st": (her2st, {"organism": "human", "top_moran_genes": 128, "combat_key": "patient", "hex_geometry": False}),
}


def sample(adata: ad.AnnData, n: int = 2500) -> dict[str, np.ndarray]:
    """Names, the whole mask, every column, and ``n`` entries of each layer at the same random places."""
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, adata.n_obs, n), rng.integers(0, adata.n_vars, n)
    kept = {f"layer_{name}": np.asarray(adata.layers[name])[rows, columns] for name in LAYERS}
    kept |= {f"var_{name}": adata.var[name].to_numpy() for name in COLUMNS}
    kept |= {f"obs_{name}": adata.obs[name].to_numpy() for name in ("n_genes_by_counts", "total_counts")}
    names = {"genes": list(adata.var_names), "spots": list(adata.obs_names)}
    kept |= {name: np.array([str(x) for x in values]) for name, values in names.items()}
    return kept | {"mask": np.packbits(np.asarray(adata.layers["mask"])), "rows": rows, "columns": columns}
