"""Reads of an embedding array against a raw memory map (the physical limit) and an HDF5 file with (1, dim) chunks.

All data is synthetic. Rows are gathered in random order; sorted ones are shown beside. Every round measures each side once,
interleaved; ratios are medians over the rounds.

    python benchmarks/store_reads.py [--rounds 5] [--rows 131072] [--dim 1024]

``extraction_memory.py`` measures the memory that `encode` and a full read take.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import write_node
from spared_fm.store.recipe import Recipe, spots_digest

RECIPE = Recipe(
    112.0, 224, 0.5, "bicubic", "none", "synthetic", "none", {}, "none", 0, "identity", "float32", "float16"
)


def plan_array(folder: Path, rows: int, dim: int) -> EmbeddingArray:
    """Make a store with one slide of ``rows`` synthetic spots and an empty embedding array."""
    layout = Layout.create(folder)
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(rows)]), var=pd.DataFrame(index=[]))
    adata.obsm["spatial"] = np.zeros((rows, 2))
    digest = spots_digest(list(adata.obs_names), adata.obsm["spatial"])
    write_node(layout, layout.slide("s"), adata, {"n_spots": rows, "fingerprint": "synthetic", "spots_digest": digest})
    return EmbeddingArray.plan(layout, "s", "x", recipe=RECIPE, dim=dim)


def write_all(array: EmbeddingArray) -> None:
    rng = np.random.default_rng(0)
    for k in range(array.n_chunks):
        array.write_chunk(
            k, rng.normal(size=(len(array.rows(k)), array.shape[1])).astype(np.float32), device="synthetic"
        )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def gather_hdf5(stored: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows in any order; h5py takes ascending ones only, so they are put back in order as its users do."""
    order = np.argsort(rows)
    out = np.empty((len(rows), stored.shape[1]), stored.dtype)
    out[order] = stored[rows[order]]
    return out


def reads(rows: int, dim: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_all(plan_array(folder / "store", rows, dim))
        array = EmbeddingArray(Layout(folder / "store"), "s", "x")
        raw = np.memmap(folder / "raw", dtype="<f2", mode="w+", shape=(rows, dim))
        with h5py.File(folder / "rows.h5", "w") as file:
            stored = file.create_dataset("features", (rows, dim), "<f2", chunks=(1, dim))
            for block, values in array.blocks():
                raw[block.start : block.stop] = values
                stored[block.start : block.stop] = values
        raw.flush()
        reference = np.memmap(folder / "raw", dtype="<f2", mode="r", shape=(rows, dim))
        rng = np.random.default_rng(1)
        found: dict[str, list[float]] = {}
        buffer = np.empty((1024, dim), "<f2")

        def scan_reference() -> None:
            for start in range(0, rows, 1024):
                part = reference[start : start + 1024]
                buffer[: len(part)] = part

        def scan_ours() -> None:
            for _, values in array.blocks():
                buffer[: len(values)] = values

        with h5py.File(folder / "rows.h5") as file:
            stored = file["features"]
            for round_ in range(rounds + 1):
                wanted = rng.choice(rows, 4096, replace=False)
                ordered = np.sort(wanted)
                sides = {
                    "gather, memmap": lambda wanted=wanted: reference[wanted],
                    "gather, ours": lambda wanted=wanted: array.read(wanted),
                    "gather, hdf5": lambda wanted=wanted: gather_hdf5(stored, wanted),
                    "sorted, memmap": lambda ordered=ordered: reference[ordered],
                    "sorted, ours": lambda ordered=ordered: array.read(ordered),
                    "sorted, hdf5": lambda ordered=ordered: stored[ordered],
                    "scan, memmap": scan_reference,
                    "scan, ours": scan_ours,
                }
                for side, work in sides.items():
                    taken = seconds(work)
                    if round_:  # the first round warms the page cache
                        found.setdefault(side, []).append(taken)
        for side, values in found.items():
            print(f"{side:16s} {statistics.median(values) * 1e3:9.2f} ms")
        for label, above, below in (
            ("gather of 4,096 random rows ÷ raw memmap", "gather, ours", "gather, memmap"),
            ("the same gather, HDF5 (1, dim) chunks ÷ ours", "gather, hdf5", "gather, ours"),
            ("sorted rows ÷ raw memmap", "sorted, ours", "sorted, memmap"),
            ("sorted rows, HDF5 (1, dim) chunks ÷ ours", "sorted, hdf5", "sorted, ours"),
            ("full scan ÷ raw memmap scan", "scan, ours", "scan, memmap"),
        ):
            ratio = statistics.median(a / b for a, b in zip(found[above], found[below], strict=True))
            print(f"{label:46s} {ratio:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--dim", type=int, default=1024)
    options = parser.parse_args()
    reads(options.rows, options.dim, options.rounds)


if __name__ == "__main__":
    main()
