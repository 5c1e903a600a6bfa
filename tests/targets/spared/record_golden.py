"""Run the released SpaRED preprocessing, and record what it says about two collections.

Needs an environment of its own, without this package's pins: ``pip install squidpy combat==0.3.3`` and the files of the
wheel ``spared==2.2.1`` on the path (Python 3.11, squidpy 1.8.2 and scanpy 1.11.5 were used). From the repository root:

    PYTHONPATH=.:WHEEL ENV/bin/python -m tests.targets.spared.record_golden record HER2ST_COUNTS.h5ad
    PYTHONPATH=.:WHEEL ENV/bin/python -m tests.targets.spared.record_golden run IN.h5ad PARAMS.json OUT.h5ad

``run`` prints seconds and peak memory of the released functions as JSON. Left out is SpaCKLE, the last step: it trains a
network on a GPU and touches the c_t_ layers only.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import anndata as ad
import numpy as np

from tests.targets.spared.golden import CASES, GOLDEN, her2st, sample

DEFAULTS = {
    "cell_min_counts": 10,
    "cell_max_counts": 1e6,
    "gene_min_counts": 10,
    "gene_max_counts": 1e6,
    "min_exp_frac": -1,
    "min_glob_exp_frac": -1,
    "real_data_percentage": 0.7,
    "wildcard_genes": "None",
    "combat_key": "slide_id",
    "top_moran_genes": 128,
    "hex_geometry": True,
}


def released(adata: ad.AnnData, params: dict[str, Any]) -> tuple[ad.AnnData, dict[str, float]]:
    """Filter and process; return the result and the seconds of the median and of everything."""
    warnings.simplefilter("ignore")
    for name in ("torch", "torch.nn", "torch.utils", "torch.utils.data", "torchvision", "torchvision.models", "wget"):
        sys.modules[name] = MagicMock()
    for name in ("lightning", "lightning.pytorch", "models", "spared.spackle.model", "spared.spackle.dataset"):
        sys.modules[name] = MagicMock()
    for name in ("spared.spackle.main", "spared.spackle.utils"):  # one of them is imported with a star
        sys.modules[name] = types.ModuleType(name)
    sys.modules["spared.spackle.main"].train_spackle = None
    sys.modules["torch"].Tensor = type("Tensor", (), {})  # scipy asks whether its input is one
    from spared.denoising import denoising
    from spared.filtering import filtering
    from spared.layer_operations import layer_operations

    seconds = {"median": 0.0}
    median_cleaner = denoising.median_cleaner

    def timed(*args: Any, **kwargs: Any) -> ad.AnnData:
        started = time.perf_counter()
        cleaned = median_cleaner(*args, **kwargs)
        seconds["median"] += time.perf_counter() - started
        return cleaned

    def no_spackle(adata: ad.AnnData, **_: Any) -> tuple[ad.AnnData, str]:
        adata.layers["c_t_log1p"] = adata.layers["c_d_log1p"]
        return adata, ""

    denoising.median_cleaner = timed
    denoising.spackle_cleaner = no_spackle
    adata = adata.copy()
    adata.var["gene_ids"] = adata.var_names
    adata.obs["unique_id"] = adata.obs_names
    adata.uns["spatial"] = {slide: {} for slide in adata.obs["slide_id"].unique()}
    started = time.perf_counter()
    out = filtering.filter_dataset(adata, DEFAULTS | params)
    out = layer_operations.process_dataset(out, DEFAULTS | params, "none")
    seconds["whole"] = time.perf_counter() - started
    return out, seconds


def main(command: str, *args: str) -> None:
    if command == "run":
        source, params, target = args
        adata = ad.read_h5ad(source)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out, seconds = released(adata, json.loads(Path(params).read_text()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out.uns = {}
        for name in [layer for layer in out.layers if "c_t_" in layer]:
            del out.layers[name]
        out.write_h5ad(target)
        print(json.dumps(seconds | {"peak_mib": peak / 1024, "before_mib": before / 1024}))
        return
    for name, (make, params) in CASES.items():
        out, _ = released(her2st(Path(args[0])) if name == "her2st" else make(), params)
        np.savez_compressed(GOLDEN / f"{name}.npz", **sample(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
