"""Peak memory and time of a strict cohort over many synthetic slides.

Slides (5,000 spots on a hexagonal grid, 18,000 genes of which a spot shows a tenth) are written straight into a store in a
temporary folder, which is deleted in the end. The cohort is made in a process of its own, whose peak memory is sampled
(pages of its own, without files) and read from the system at its end. 100 slides need some 10 GB of disk. Run it as
``python benchmarks/cohort_scale.py [--slides 100] [--spots 5000] [--genes 18000]``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

BYTES_PER_ENTRY = 4  # of the slides on disk, compressed, and some room
COHORT = """
import json, resource, sys, time
import spared_fm
study = spared_fm.open(sys.argv[1])
started = time.perf_counter()
made = study.cohort("c", mode=sys.argv[2], progress=True)
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    **{key: made[key] for key in ("spots", "genes", "panel", "dropped_spots", "layers")},
}))
"""


def slide(seed: int, genes: pd.Index, level: np.ndarray, waves: np.ndarray, n_spots: int) -> ad.AnnData:
    """Draw one slide; ``waves`` are the spatial patterns, (patterns, genes)."""
    rng = np.random.default_rng(seed)
    cols = int(np.sqrt(n_spots))
    row, col = np.divmod(np.arange(n_spots), cols)
    xy = np.column_stack([col + (row % 2) / 2, row * np.sqrt(3) / 2]) * 100.0
    phase = rng.uniform(0, 6, (2, len(waves)))
    fields = np.sin(xy[:, :1] / 700 + phase[0]) * np.cos(xy[:, 1:] / 900 + phase[1])  # spots × patterns
    depth = rng.lognormal(0, 0.3, n_spots)
    blocks = []
    for start in range(0, n_spots, 500):
        rows = slice(start, start + 500)
        rate = level * np.exp(fields[rows] @ waves) * depth[rows, None]
        blocks.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    obs = pd.DataFrame({"array_row": row, "array_col": 2 * col + row % 2}, index=[f"b{i}" for i in range(n_spots)])
    var = pd.DataFrame(index=genes)
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var, obsm={"spatial": xy})


def make_store(root: Path, n_slides: int, n_spots: int, n_genes: int) -> float:
    """Write the slides; return the mean number of genes seen in a spot."""
    from spared_fm.store.layout import Layout
    from spared_fm.store.nodes import write_node
    from spared_fm.targets.genes import gene_lengths

    rng = np.random.default_rng(0)
    known = gene_lengths("human").index
    genes = pd.Index(sorted(known[rng.permutation(len(known))[:n_genes]]))
    level = 10 ** rng.normal(-1.75, 1.0, n_genes)
    waves = rng.normal(0, 0.35, (3, n_genes))
    layout = Layout.create(root)
    seen = []
    for i in range(n_slides):
        name = f"s{i:03d}"
        adata = slide(i, genes, level, waves, n_spots)
        seen.append(adata.X.nnz / n_spots)
        record = {"slide": name, "patient": f"p{i // 4}", "split": None, "n_spots": n_spots, "n_genes": n_genes}
        record |= {"counts_digest": name, "spots_digest": name, "fingerprint": None, "image": None, "mpp": 1.0}
        write_node(layout, layout.slide(name), adata, record)
    return float(np.mean(seen))


def main() -> None:
    """Make the store, make the cohort, say what it took."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slides", type=int, default=100)
    options.add_argument("--spots", type=int, default=5000)
    options.add_argument("--genes", type=int, default=18000)
    options.add_argument("--mode", default="strict")
    options.add_argument("--folder", type=Path, default=None, help="where to put the store; by default the system's")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        needed = asked.slides * asked.spots * 2000 * BYTES_PER_ENTRY + asked.slides * asked.spots * 128 * 50
        if shutil.disk_usage(folder).free < needed:
            sys.exit(f"{folder}: {needed / 1e9:.0f} GB are needed; give another --folder")
        store = Path(folder) / "store"
        started = time.perf_counter()
        per_spot = make_store(store, asked.slides, asked.spots, asked.genes)
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        print(
            f"{asked.slides} slides x {asked.spots} spots x {asked.genes} genes, {per_spot:.0f} genes per spot: "
            f"{size / 1e9:.1f} GB in {(time.perf_counter() - started) / 60:.1f} min",
            flush=True,
        )
        command = [sys.executable, "-c", COHORT, str(store), asked.mode]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        peak = [0]
        sampler = threading.Thread(target=sample, args=(child, peak))
        sampler.start()
        out, _ = child.communicate()
        sampler.join()
        if child.returncode:
            sys.exit(child.returncode)
        found = json.loads(out.splitlines()[-1])
        minutes, gib = found["seconds"] / 60, found["peak"] / 2**30
        print(f"{minutes:.1f} min, peak {gib:.2f} GiB resident ({peak[0] / 2**30:.2f} GiB its own)")
        print(json.dumps({key: found[key] for key in ("spots", "genes", "panel", "dropped_spots", "layers")}))


def sample(child: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the most memory of its own, in bytes, that the process has been seen with."""
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            return
        own = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
        peak[0] = max([peak[0], *own])
        time.sleep(0.05)


if __name__ == "__main__":
    main()
