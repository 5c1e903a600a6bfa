"""Record what the released metrics of SpaRED give on 200 random cases.

From the repository root, with this package's own environment and the wheel from PyPI (``pip download --no-deps
spared==2.2.1``; recorded with torch 2.13.0, CPU):

    python -m tests.benchmark.record_spared_metrics spared-2.2.1-py3-none-any.whl

Only ``spared/metrics/metrics.py`` is taken out of the wheel, into a temporary folder. The cases come from their seeds; the
values are kept, those of single genes and spots for every fourth case.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "spared_metrics.json"
CASES = 200
WITH_DETAILS = 4
EDGES = (
    "none",
    "gene_masked",
    "spot_masked",
    "one_value_gene",
    "one_value_spot",
    "constant_truth_gene",
    "constant_truth_spot",
    "constant_truth_predicted",
    "constant_prediction_gene",
    "constant_prediction_spot",
    "constant_on_the_measured",
    "one_spot",
    "one_gene",
    "nothing_measured",
    "all_measured",
    "nan_where_masked",
    "nan_truth",
    "nan_prediction",
    "tiny",
    "perfect",
)


def case(seed: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Return the edge that a seed makes, truth, prediction and mask; every fifth case of an edge is float32."""
    edge = EDGES[seed % len(EDGES)]
    rng = np.random.default_rng([2505, 2980, seed])
    spots = 1 if edge == "one_spot" else int(rng.integers(4, 16))
    genes = 1 if edge == "one_gene" else int(rng.integers(3, 9))
    # multiples of 1/8 with exact means keep constant columns constant in every dtype
    truth = np.round(rng.gamma(2.0, 2.0, (spots, genes)) * 8) / 8
    predicted = truth * rng.uniform(0.2, 1.0, genes) + rng.normal(size=(spots, genes))
    mask = rng.random((spots, genes)) < rng.uniform(0.5, 0.9)
    g, s = int(rng.integers(genes)), int(rng.integers(spots))
    if edge == "gene_masked":
        mask[:, g] = False
    elif edge == "spot_masked":
        mask[s] = False
    elif edge == "one_value_gene":
        mask[:, g] = False
        mask[s, g] = True
    elif edge == "one_value_spot":
        mask[s] = False
        mask[s, g] = True
    elif edge == "constant_truth_gene":
        truth[:, g] = 2.5
        mask[:3, g] = True
    elif edge == "constant_truth_spot":
        truth[s] = 2.5
        mask[s, :3] = True
    elif edge == "constant_truth_predicted":
        truth[:, g] = predicted[:, g] = 2.5
        mask[:3, g] = True
    elif edge == "constant_prediction_gene":
        predicted[:, g] = 1.25
    elif edge == "constant_prediction_spot":
        predicted[s] = 1.25
    elif edge == "constant_on_the_measured":
        mask[:, g] = True
        mask[0, g] = False
        predicted[1:, g] = 1.25
    elif edge == "nothing_measured":
        mask[:] = False
    elif edge == "all_measured":
        mask[:] = True
    elif edge == "nan_where_masked":
        truth[~mask] = np.nan
    elif edge == "nan_truth":
        mask[s, g] = True
        truth[s, g] = np.nan
    elif edge == "nan_prediction":
        mask[s, g] = True
        predicted[s, g] = np.nan
    elif edge == "tiny":
        truth[:, g] = truth[:, g] * 1e-9
    elif edge == "perfect":
        predicted[:, g] = truth[:, g]
    dtype = np.float32 if seed // len(EDGES) % 5 == 4 else np.float64
    return edge, truth.astype(dtype), predicted.astype(dtype), mask


def released(wheel: Path) -> Any:
    """Return the module of the released metrics."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        spec = importlib.util.spec_from_file_location("metrics", archive.extract("spared/metrics/metrics.py", folder))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def main(wheel: str) -> None:
    warnings.simplefilter("ignore")  # masked tensors are a prototype in torch, and say so
    get_metrics = released(Path(wheel)).get_metrics
    lines = []
    for seed in range(CASES):
        edge, truth, predicted, mask = case(seed)
        try:
            found = get_metrics(truth, predicted, mask, detailed=seed % WITH_DETAILS == 0)
        except Exception as error:
            raise SystemExit(f"case {seed} ({edge}): the released function raises {error!r}") from error
        lines.append(json.dumps({key: rounded(value) for key, value in found.items()}))
    GOLDEN.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(GOLDEN, GOLDEN.stat().st_size)


def rounded(value: Any) -> Any:
    """Keep nine digits."""
    return [rounded(v) for v in value] if isinstance(value, list) else float(f"{float(value):.9g}")


if __name__ == "__main__":
    main(sys.argv[1])
