"""How an index of one-bit codes grows: measured builds of growing size, each foretold from the one before; 1e8 and 1e9 planned.

    python benchmarks/search_scale.py [--sizes 100000 1000000] [--dim 384] [--real EMBEDDINGS.npy] [--cores 64] [--known FILE]

The vectors are SYNTHETIC clusters (or mixtures of real embeddings, as in ``search.py``). The model has three measured rates:
training takes time by sample × lists × dimensions and writing by rows × lists × dimensions, each taken from the largest size; a
query has a fixed part, and one by centres compared and codes visited (probes × rows ÷ lists), fitted to all sizes. Building is
in seconds of one core (what the process was given), so that other work on the machine matters little. Latency is that of one
query on one core, warm; ``--cores`` are those of the node that the plan is for. 1e7 rows take about 8 GB of disk and two hours
of one core. Lines printed by an earlier run can be given back with ``--known FILE`` instead of measuring those sizes again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from search import bits, seconds, tuned
from search_data import blocks, write

from spared_fm.search import build
from spared_fm.search.index import Index
from spared_fm.search.plan import CODE_DIM, EXACT_ROWS, Plan, choose


def planned(rows: int, dim: int, memory: int | None = None) -> Plan:
    """Return the plan of one-bit codes, also where so few rows would be kept in half precision."""
    plan = choose(max(rows, EXACT_ROWS + 1), dim, memory=memory)
    return plan if plan.kind == "pca-ivf-rabitq" else bits(plan)


def core_seconds(work: Callable[[], object]) -> float:
    """Return what all threads of the process took of the cores."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measured(folder: Path, rows: int, dim: int, real: Path | None) -> dict[str, float]:
    vectors, queries, _ = write(folder / "vectors", rows, dim, real)
    plan = planned(rows, vectors.shape[1])
    index_folder = folder / "index"
    index_folder.mkdir()
    parts: dict[str, object] = {}

    def train() -> None:
        sample = build.sample(blocks(vectors), rows, plan.train_rows)
        parts["trained"] = build.train(index_folder / "trained", plan, sample)

    def fill() -> None:
        step = plan.segment_rows
        parts["segments"] = [
            build.write_segment(
                index_folder / f"s{a}", index_folder / "trained", lambda a=a: blocks(vectors, a, min(a + step, rows))
            )
            for a in range(0, rows, step)
        ]

    taken = {"train": core_seconds(train), "fill": core_seconds(fill)}
    card = {"metric": "cosine", "dim": plan.dim, "plan": dataclasses.asdict(plan), **parts}
    with Index.open(index_folder, card) as index:
        found = tuned(index, vectors, queries[:200], 0.95)

        def ask(i: int) -> float:
            return seconds(lambda: index.search(queries[i], 10, rerank=lambda ids: vectors[ids]))

        latency = statistics.median([ask(i) for i in range(300)][100:])
    size = sum(path.stat().st_size for path in index_folder.iterdir())
    return {
        "rows": rows,
        "dim": plan.dim,
        "lists": plan.lists,
        "train_rows": plan.train_rows,
        "train_core_s": taken["train"],
        "fill_core_s": taken["fill"],
        "bytes": size,
        "recall": found["recall"],
        "probes": found["probes"],
        "latency_ms": latency * 1e3,
    }


def work(lists: float, probes: float, rows: float) -> float:
    """Return a query's work: it compares the centres of all lists, then the codes it visits, each a tenth of a centre."""
    return lists + 0.1 * probes * rows / lists


def latency(runs: list[dict[str, float]]) -> tuple[float, float]:
    """Return a query's fixed milliseconds, and those of a unit of work, as the measured sizes have them."""
    amounts = [work(run["lists"], run["probes"], run["rows"]) for run in runs]
    if len(runs) == 1:
        return runs[0]["latency_ms"], 0.0
    slope, fixed = np.polyfit(amounts, [run["latency_ms"] for run in runs], 1)
    return float(fixed), max(0.0, float(slope))


def foretold(plan: Plan, runs: list[dict[str, float]], probes: int, cores: float) -> dict[str, float]:
    """Scale what was measured to a plan of another size."""
    code_dim, known = min(CODE_DIM, plan.dim), runs[-1]
    lists = plan.lists / known["lists"]
    train = known["train_core_s"] * lists * plan.train_rows / known["train_rows"] / cores
    fill = known["fill_core_s"] * lists * plan.rows / known["rows"] / cores
    fixed, slope = latency(runs)
    return {
        "rows": plan.rows,
        "lists": plan.lists,
        "shards": plan.shards,
        "segments": -(-plan.rows // plan.segment_rows),
        "GB": plan.bytes / 1e9,
        "GB of vectors": 2 * plan.rows * plan.dim / 1e9,
        "train_h": train / 3600,
        "build_h": (train + fill) / 3600,
        "latency_ms": fixed + slope * work(plan.lists, probes, plan.rows),
        "centres_MB": 4 * plan.lists * code_dim / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--memory", type=int, default=64, help="GiB of the node that the plan is for")
    parser.add_argument("--known", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    runs: list[dict[str, float]] = []
    if options.known:
        lines = [json.loads(line) for line in options.known.read_text().splitlines() if line.startswith("{")]
        runs = [line["measured"] for line in lines if "measured" in line]
    for rows in options.sizes:
        if rows not in [run["rows"] for run in runs]:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                runs.append(measured(Path(folder), rows, options.dim, options.real))
            print(json.dumps({"measured": runs[-1]}), flush=True)
    runs.sort(key=lambda run: run["rows"])
    for before, run in enumerate(runs[1:], start=1):
        plan = planned(int(run["rows"]), int(run["dim"]))
        told = foretold(plan, runs[:before], int(run["probes"]), 1)
        ratios = {
            "build": told["build_h"] * 3600 / (run["train_core_s"] + run["fill_core_s"]),
            "latency": told["latency_ms"] / run["latency_ms"],
            "bytes": plan.bytes / run["bytes"],
        }
        print(json.dumps({f"{run['rows']:,.0f} foretold from the sizes before ÷ measured": ratios}), flush=True)
    dim = int(runs[-1]["dim"])
    for rows in (10**8, 10**9):
        plan = planned(rows, dim, options.memory << 30)
        told = foretold(plan, runs, int(runs[-1]["probes"]), options.cores)
        print(
            json.dumps(
                {f"plan for {rows:.0e}, {options.cores} cores": {k: float(np.round(v, 3)) for k, v in told.items()}}
            )
        )


if __name__ == "__main__":
    main()
