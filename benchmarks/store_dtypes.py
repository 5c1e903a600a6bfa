"""Measure what storing embeddings with fewer bits does to ridge and to search on the real slides.

The reference is the float32 array of the store. Against it: the float16 array of the store, and the float32 values
rounded to bfloat16, which has no Zarr dtype and is never stored. One row per cohort, encoder and dtype:

- PCC: mean PCC-Gene of ridge on the test slide, 50 genes and protocol as in ``real_slides.py``, with features
  standardised per slide and by the training slides; difference from float32, and the largest change of one gene;
- recall@k: share of each test spot's exact cosine top k among the training spots in float32 that is still in the top k
  when queries and searched vectors are both rounded; ``deepest`` is the worst float32 rank among all that took a place;
- largest relative error: of a single value that is not 0, of one that is at least float16's smallest normal number
  (``subnormal`` is the share of values below it), and of a whole vector (norm of the error by norm of the vector).

    python benchmarks/store_dtypes.py [--data ../shared/data] [--store DIR] [-k 10]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from real_slides import COHORTS, RANDOM

import spared_fm
from spared_fm.benchmark.metrics import gene_scores
from spared_fm.benchmark.runner import evaluate
from spared_fm.search.exact import search
from spared_fm.study.api import Study
from spared_fm.study.cohort import target
from spared_fm.study.evaluate import join, make_head

Features = dict[str, np.ndarray]
TINY = float(np.finfo(np.float16).smallest_normal)  # below it float16 loses bits


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to the nearest bfloat16, kept as float32."""
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


def encode(study: Study, encoder: str) -> dict[str, str]:
    """Encode all slides with each dtype the store keeps; give dtype → array key."""
    keys = {}
    for dtype in ("float32", "float16"):
        [row] = study.encode(encoder, store_dtype=dtype, progress=True)
        keys[dtype] = row["key"]
    return keys


def gene_pcc(x: Features, y: Features, split: dict[str, str], standardize: str) -> np.ndarray:
    """PCC of each gene on the test slide, ridge fitted on the others."""
    found = evaluate(make_head("ridge", standardize), encoder="", target="", X=x, Y=y, split=split)
    [test] = found.predictions
    return gene_scores(y[test], found.predictions[test])[0]


def neighbours(x: Features, train: list[str], test: str, k: int) -> np.ndarray:
    """Row numbers (test spots, k) of the training spots nearest by cosine, exact."""
    searched = np.concatenate([x[slide] for slide in train])
    return search(x[test], [(np.arange(len(searched)), searched)], k)[0]


def recall(found: np.ndarray, reference: np.ndarray) -> float:
    """Share of the reference neighbours that were found."""
    return float(np.mean([np.isin(best, got).mean() for best, got in zip(reference, found, strict=True)]))


def deepest(found: np.ndarray, ranking: np.ndarray) -> int:
    """Worst rank, from 1, that the reference gives to anything found; ``ranking`` holds all rows, best first."""
    return 1 + int(np.take_along_axis(np.argsort(ranking, axis=1), found, axis=1).max())


def relative_errors(x: Features, reference: Features) -> tuple[float, float, float]:
    """Largest relative error of a value that is not 0, of one in float16's normal range, and of a vector."""
    exact = np.concatenate(list(reference.values())).astype(np.float64)
    error = np.abs(np.concatenate([x[slide] for slide in reference]).astype(np.float64) - exact)
    size = np.abs(exact)
    largest = [float((error[kept] / size[kept]).max()) for kept in (size > 0, size >= TINY)]
    vectors = np.linalg.norm(error, axis=1) / np.linalg.norm(exact, axis=1)
    return largest[0], largest[1], float(vectors.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--store", type=Path)
    parser.add_argument("-k", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = spared_fm.open(options.store or Path(temporary) / "store", create=True)
        for train, test, _ in COHORTS.values():
            for slide in [*train, test]:
                study.ingest(options.data / slide, split="test" if slide == test else "train")
        keys = {encoder: encode(study, encoder) for encoder in ("stain-bank", RANDOM)}
        for label, (train, test, _) in COHORTS.items():
            name = test.split("_")[0]
            study.cohort(name, slides=[*train, test], n_genes=50, panel="variance")
            split = {**dict.fromkeys(train, "train"), test: "test"}
            layer = target(study.layout, name, "lognorm")
            print(f"\n{label}")
            heads = f" {'PCC slide':>9s} {'diff':>8s} {'a gene':>7s} {'PCC train':>9s} {'diff':>8s} {'a gene':>7s}"
            heads += f" {'recall@' + str(options.k):>9s} {'deepest':>7s} {'value':>7s} {'normal':>7s} {'vector':>7s}"
            print(f"{'features':26s} {'dtype':8s}{heads}")
            for encoder, stored in keys.items():
                joined = {dtype: join(study.layout, name, key) for dtype, key in stored.items()}
                variants = {dtype: found.features for dtype, found in joined.items()}
                for dtype, x in variants.items():
                    if any(values.dtype != dtype for values in x.values()):
                        raise SystemExit(f"{encoder}: the store did not keep {dtype}: its values overflow")
                exact = variants["float32"]
                variants["bfloat16"] = {slide: bfloat16(values) for slide, values in exact.items()}
                y = {slide: layer[rows] for slide, rows in joined["float32"].rows.items()}
                scores = {
                    dtype: [gene_pcc(x, y, split, standardize) for standardize in ("slide", "train")]
                    for dtype, x in variants.items()
                }
                ranking = neighbours(exact, train, test, sum(len(exact[slide]) for slide in train))
                for dtype, x in variants.items():
                    columns = ""
                    for pcc, reference in zip(scores[dtype], scores["float32"], strict=True):
                        change = pcc - reference
                        columns += f" {pcc.mean():9.5f} {change.mean():+8.5f} {np.abs(change).max():7.5f}"
                    found = neighbours(x, train, test, options.k)
                    columns += f" {recall(found, ranking[:, : options.k]):9.4f} {deepest(found, ranking):7d}"
                    columns += "".join(f" {error:7.1e}" for error in relative_errors(x, exact))
                    print(f"{encoder:26s} {dtype:8s}{columns}")
                sizes = np.abs(np.concatenate(list(exact.values())))
                small = np.mean((sizes > 0) & (sizes < TINY))
                print(
                    f"{encoder:26s} largest value {sizes.max():.3g}; subnormal in float16 {small:.2e} of {sizes.size:,}"
                )


if __name__ == "__main__":
    main()
