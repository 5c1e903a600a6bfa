"""Time SpaRED's preprocessing of her2st_counts.h5ad (8,452 spots × 12,405 genes): the released package against this one.

    SPARED_PYTHON=ENV/bin/python SPARED_WHEEL=DIR python benchmarks/spared_preprocessing.py her2st_counts.h5ad [--repeats 5]

From the repository root. ``ENV`` is an environment of its own with the released package's needs and ``DIR`` holds the files
of its wheel: see tests/targets/spared/record_golden.py, whose ``run`` does the released part (six minutes on a quiet core).
Every measurement is a fresh process with the threads that the environment allows (OMP_NUM_THREADS, NUMBA_NUM_THREADS); peak
memory is that process's highest resident size, input and imports included. The median is that of log1p of all genes left
after the filters, neighbours included, and its result is compared with the released one on the same numbers: log1p and
d_log1p of the panel as the released functions wrote them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS = 5


def main() -> None:
    """Run both sides, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument(
        "--folder", type=Path, help="keep the files here; a released result found there is not run again"
    )
    parser.add_argument("--step", choices=[step.__name__ for step in (prepare, whole, median)], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(globals()[args.step](args.counts)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        load = os.getloadavg()[0]
        (folder / "source").unlink(missing_ok=True)
        (folder / "source").symlink_to(args.counts.resolve())
        ours(folder, "prepare")
        theirs = released(folder)
        runs = [ours(folder, "whole") for _ in range(args.repeats)]
        medians = ours(folder, "median")
    seconds, peak = (statistics.median(run[key] for run in runs) for key in ("whole", "peak_mib"))
    print(
        json.dumps(
            {
                "load_before": round(load, 1),
                "released": theirs,
                "median_seconds": medians["seconds"],
                "median_processor_seconds": medians["processor_seconds"],
                "median_first_call_seconds": medians["first"],
                "median_ratio": round(theirs["median"] / medians["seconds"], 1),
                "median_largest_difference": medians["largest_difference"],
                "whole_seconds": seconds,
                "whole_ratio": round(theirs["whole"] / seconds, 1),
                "peak_mib": peak,
                "peak_share_of_released": round(peak / theirs["peak_mib"], 3),
            }
        )
    )


def released(folder: Path) -> dict[str, float]:
    """Run the released functions: seconds of the median and of everything, and peak memory."""
    known = folder / "released.json"
    if not known.exists():
        python, wheel = os.environ["SPARED_PYTHON"], os.environ["SPARED_WHEEL"]
        files = [str(folder / name) for name in ("in.h5ad", "params.json", "released.h5ad")]
        run = [python, "-m", "tests.targets.spared.record_golden", "run", *files]
        known.write_text(last_line(run, PYTHONPATH=f".:{wheel}"))
    return dict(json.loads(known.read_text()))


def ours(folder: Path, step: str) -> dict[str, Any]:
    """Run one step of this script in a process of its own."""
    return dict(json.loads(last_line([sys.executable, __file__, str(folder), "--step", step], PYTHONPATH=".")))


def last_line(command: list[str], **environment: str) -> str:
    """Run a command, and return the last line it prints."""
    done = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def prepare(folder: Path) -> dict[str, int]:
    """Write the input of both sides: symbols mapped to Ensembl ids, splits by patient."""
    from tests.targets.spared.golden import CASES

    make, params = CASES["her2st"]
    adata = make(folder / "source")
    adata.write_h5ad(folder / "in.h5ad")
    (folder / "params.json").write_text(json.dumps(params))
    return {"spots": adata.n_obs, "genes": adata.n_vars}


def whole(folder: Path) -> dict[str, float]:
    """Process the collection: seconds, and peak memory with the result in it."""
    import anndata as ad

    from spared_fm.targets import process_dataset

    adata, params = ad.read_h5ad(folder / "in.h5ad"), json.loads((folder / "params.json").read_text())
    started = time.perf_counter()
    process_dataset(adata, params)
    return {"whole": time.perf_counter() - started, "peak_mib": peak_mib()}


def median(folder: Path) -> dict[str, Any]:
    """Time the median on the slides that the gene scores see, and compare it with the released one."""
    import anndata as ad
    import numpy as np

    from spared_fm.targets import process_dataset
    from spared_fm.targets.spared import choice
    from spared_fm.targets.spared.graph import hops_around, slide_graph
    from spared_fm.targets.spared.median import complete_median

    def completed(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
        return complete_median(values, hops_around(slide_graph(xy, hex_geometry=False)))

    started = time.perf_counter()
    completed(np.ones((1, 1)), np.zeros((1, 2)))  # compiles, or reads machine code that an earlier process kept
    first = time.perf_counter() - started

    theirs = ad.read_h5ad(folder / "released.h5ad")
    largest = 0.0
    for slide in theirs.obs["slide_id"].unique():
        one = theirs[theirs.obs["slide_id"] == slide]
        filled = completed(np.asarray(one.layers["log1p"]), np.asarray(one.obsm["spatial"], np.float64)[:, :2])
        largest = max(largest, float(np.abs(filled - one.layers["d_log1p"]).max()))

    slides: list[tuple[np.ndarray, np.ndarray]] = []
    positions: list[np.ndarray] = []

    def graph_of(xy: np.ndarray, **kwargs: Any) -> Any:
        positions.append(xy)
        return slide_graph(xy, **kwargs)

    def median_of(values: np.ndarray, hops: Any, missing: np.ndarray | None = None) -> np.ndarray:
        slides.append((values, positions[-1]))
        return complete_median(values, hops, missing)

    choice.slide_graph, choice.complete_median = graph_of, median_of
    process_dataset(ad.read_h5ad(folder / "in.h5ad"), json.loads((folder / "params.json").read_text()))
    seconds, processor = [], []
    for _ in range(REPEATS):
        started, used = time.perf_counter(), time.process_time()
        for values, xy in slides:
            completed(values, xy)
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return {
        "seconds": statistics.median(seconds),
        "processor_seconds": statistics.median(processor),
        "first": first,
        "entries": sum(values.size for values, _ in slides),
        "largest_difference": largest,
    }


def peak_mib() -> float:
    """Highest resident size of this process (of the parent's, nothing: ru_maxrss would be inherited)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
