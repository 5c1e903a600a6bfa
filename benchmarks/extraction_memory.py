"""Peak anonymous memory (RssAnon) of `encode` and of a full read at 1,000,000 rows, against 100,000 rows.

All data is synthetic: a tiled image, spots scattered over it, small patches, and a stand-in encoder (one fixed matrix to 1024
values), so that what grows with the rows is all there is to see. The plan, the tasks, dask, the claims, the commits and the
receipts are the real ones. Every figure is of a fresh process, sampled from outside every 20 ms; the peaks are the median of
the rounds.

    python benchmarks/extraction_memory.py [--rounds 1] [--rows 100000 1000000]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLIDE, KEY, DIM = "s", "stand-in", 1024
PX, MPP, SIDE = 8, 0.5, 2048
"""Pixels of a patch, µm per pixel of image and patch, pixels of the image's side."""
SAMPLE_S = 0.02
PHASES = {"slide": None, "encode": "`encode`", "read": "a full read"}


def write_slide(folder: Path, rows: int) -> None:
    """Make a store of one slide with ``rows`` spots on a tiled image."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    import tifffile

    from spared_fm.slides.fingerprint import fingerprint
    from spared_fm.store.layout import Layout
    from spared_fm.store.nodes import write_node
    from spared_fm.store.recipe import spots_digest

    rng = np.random.default_rng(0)
    image = folder / "image.tif"
    pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    tifffile.imwrite(image, pixels, photometric="rgb", tile=(256, 256), compression="jpeg")
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"spot{i}" for i in range(rows)]), var=pd.DataFrame(index=[]))
    adata.obsm["spatial"] = rng.uniform(PX, SIDE - PX, (rows, 2))
    record = {
        "n_spots": rows,
        "spots_digest": spots_digest(list(adata.obs_names), adata.obsm["spatial"]),
        "fingerprint": fingerprint(image),
        "mpp": MPP,
        "image": {"path": str(image), "kind": "fullres", "scale": 1.0, "width": SIDE, "height": SIDE},
    }
    layout = Layout.create(folder / "store")
    write_node(layout, layout.slide(SLIDE), adata, record)


def encode(folder: Path) -> None:
    """Fill the slide's array by plan and run, as the verb does."""
    import torch

    from spared_fm.encoders.builder import build
    from spared_fm.encoders.spec import resolve
    from spared_fm.extract.plan import make_plan
    from spared_fm.extract.run import run
    from spared_fm.extract.task import keep
    from spared_fm.slides.patches import PatchSpec
    from spared_fm.store.layout import Layout

    class StandIn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.randn(3 * PX * PX, DIM, generator=torch.Generator().manual_seed(0))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(1) @ self.matrix

    encoder = dataclasses.replace(build(resolve("stain-bank")), module=StandIn(), dim=DIM, weights="stand-in")
    keep(encoder)
    patch = PatchSpec(PX * MPP, PX)
    plan = make_plan(Layout(folder / "store"), [SLIDE], [encoder], patch, keys=[KEY], batch_size=128)
    summary = run(plan)
    assert summary.patches == plan.patches > 0
    assert not summary.absent


def read(folder: Path) -> None:
    """Go over every value of the array, block by block."""
    import numpy as np

    from spared_fm.store.embeddings import EmbeddingArray
    from spared_fm.store.layout import Layout

    total = 0.0
    for _, values in EmbeddingArray(Layout(folder / "store"), SLIDE, KEY).blocks():
        total += float(values.sum(dtype=np.float64))
    assert total == total, "a row is absent"


def peak_anonymous(phase: str, folder: Path, rows: int) -> tuple[float, float]:
    """Run one phase in a fresh process; peak RssAnon in MB (10^6 bytes), and seconds."""
    # Torch and BLAS alone would take as many threads as the machine has cores, each with memory of its own.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--phase", phase, str(folder), str(rows)], env=environment)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        peak = max(peak, int(found[1]) * 1024 if found else 0)  # a process at its end has no memory to tell of
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(f"{phase} of {rows:,} rows failed")
    return peak / 1e6, time.perf_counter() - started


def compare(sizes: list[int], rounds: int) -> None:
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for rows in sizes:
            with tempfile.TemporaryDirectory(prefix="spared-fm-memory-") as temporary:
                for phase, label in PHASES.items():
                    peak, seconds = peak_anonymous(phase, Path(temporary), rows)
                    if label:
                        found.setdefault((phase, rows), []).append(peak)
                        print(f"{label:12s} {rows:>10,} rows  peak {peak:7.1f} MB  {seconds:6.1f} s", flush=True)
    small, large = sizes
    for phase, label in PHASES.items():
        if label:
            before, after = (statistics.median(found[phase, rows]) for rows in (small, large))
            print(
                f"peak RssAnon of {label}: {before:.1f} MB at {small:,} rows, {after:.1f} MB at {large:,}: "
                f"{after - before:+.1f} MB, {after / before - 1:+.1%} (bar: +10%)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 1_000_000], metavar=("SMALL", "LARGE"))
    parser.add_argument("--phase", nargs=3, metavar=("PHASE", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        phase, folder, rows = options.phase
        if phase == "slide":
            write_slide(Path(folder), int(rows))
        else:
            {"encode": encode, "read": read}[phase](Path(folder))
    else:
        compare(options.rows, options.rounds)


if __name__ == "__main__":
    main()
