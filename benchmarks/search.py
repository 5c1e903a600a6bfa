"""Similarity search against FAISS Flat (exact, float32) in one process, interleaved; each row beside its bar.

    python benchmarks/search.py [batch single open filter add memory] [--real EMBEDDINGS.npy] [--rows N] [--rounds 5]

The vectors are SYNTHETIC clusters, or with ``--real`` mixtures of neighbouring embeddings of real slides (a file (n, d), best
of jittered views). Ours is the whole search: lists, and scores in float64 with the stored float16 vectors, which are mapped.
Probes are the fewest (doubling from the plan's) that reach the recall on 200 held-out queries. Threads are the environment's.

batch    200,000 × 512: queries per second ÷ Flat's, 1,000 queries at once, recall@10 ≥ 0.99; also of one-bit codes.
single   1,000,000 × 384: median latency of one query ÷ Flat's, recall@10 ≥ 0.95, warm.
open     The same index: milliseconds and private memory of `Index.open`, each time in a new process.
filter   0.3 % of the rows kept, at random: recall@10.
add      A segment of 10,000 rows, written and opened ÷ a build of all (sample, training, segments).
memory   1,000,000 × 512 built in a process of its own: peak resident memory, and the anonymous part of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from search_data import blocks, write

from spared_fm.search import build, filtered, recall
from spared_fm.search.index import Index
from spared_fm.search.plan import CODE_DIM, Plan, choose

SECTIONS = ["batch", "single", "open", "filter", "add", "memory"]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def say(label: str, value: float, bar: str, met: bool, note: str = "") -> None:
    print(f"{label:66s} {value:10.4g}   bar {bar:10s} {'met' if met else 'MISSED'}  {note}", flush=True)


def status(name: str, file: str = "/proc/self/status") -> float:
    """Megabytes of a line (or of all lines that begin so) of the process's memory."""
    lines = Path(file).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def bits(plan: Plan) -> Plan:
    """Return the plan with one-bit codes in place of half precision."""
    dim = min(CODE_DIM, plan.dim)
    rotation = f"PCAR{dim}" if dim < plan.dim else f"RR{dim}"
    return dataclasses.replace(
        plan,
        kind="pca-ivf-rabitq",
        factory=f"{rotation},IVF{plan.lists},RaBitQ",
        candidates=10,
        bytes=plan.rows * (dim // 8 + 24) + 4 * dim * (plan.lists + plan.dim),
    )


def make(folder: Path, plan: Plan, vectors: np.ndarray) -> dict[str, Any]:
    """Build an index; return its card."""
    folder.mkdir()
    sample = build.sample(blocks(vectors), len(vectors), plan.train_rows)
    trained = build.train(folder / "trained", plan, sample)
    del sample
    segments = []
    for start in range(0, len(vectors), plan.segment_rows):
        stop = min(start + plan.segment_rows, len(vectors))
        path = folder / f"segment-{start}"
        segments.append(build.write_segment(path, folder / "trained", lambda a=start, b=stop: blocks(vectors, a, b)))
    card = {
        "metric": "cosine",
        "dim": plan.dim,
        "plan": dataclasses.asdict(plan),
        "trained": trained,
        "segments": segments,
    }
    (folder / "card.json").write_text(json.dumps(card))
    return card


def flat_of(vectors: np.ndarray) -> faiss.IndexFlatIP:
    """FAISS Flat over the same vectors, of norm 1."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    for _, part in blocks(vectors):
        part = part.astype(np.float32)
        faiss.normalize_L2(part)
        flat.add(part)
    return flat


def tuned(index: Index, vectors: np.ndarray, queries: np.ndarray, target: float) -> dict[str, Any]:
    own = np.full(len(queries), -1)
    true = recall.truth(queries, own, blocks(vectors))
    return recall.tune(index, queries, own, true, target, rerank=lambda ids: vectors[ids])


def batch(folder: Path, vectors: np.ndarray, queries: np.ndarray, rounds: int) -> None:
    flat = flat_of(vectors)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    plan = choose(len(vectors), vectors.shape[1], target_recall=0.99)
    for name, some in (("half", plan), ("bits", bits(plan))):
        with Index.open(folder / name, make(folder / name, some, vectors)) as index:
            found = tuned(index, vectors, queries[:200], 0.99)
            taken: dict[str, list[float]] = {"flat": [], "ours": [], "codes": []}
            for _ in range(rounds):
                taken["flat"].append(seconds(lambda: flat.search(unit, 10)))
                taken["ours"].append(seconds(lambda: index.search(queries, 10, rerank=lambda ids: vectors[ids])))
                taken["codes"].append(seconds(lambda: index.search(queries, 10)))
            one = {side: statistics.median(values) for side, values in taken.items()}
            qps = len(queries) / one["ours"]
            note = f"recall {found['recall']:.3f}, {found['probes']} probes, {qps:.0f} QPS"
            note += f", codes alone {one['flat'] / one['codes']:.1f}"
            ratio = one["flat"] / one["ours"]
            say(f"batched QPS ÷ Flat's, {some.factory}", ratio, "≥ 8", ratio >= 8 and found["met"], note)


def single(index: Index, vectors: np.ndarray, queries: np.ndarray) -> None:
    flat = flat_of(vectors)
    found = tuned(index, vectors, queries[:200], 0.95)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    ours, theirs = [], []
    for i in range(300):
        query = queries[i : i + 1]
        time_ours = seconds(lambda query=query: index.search(query, 10, rerank=lambda ids: vectors[ids]))
        if i >= 100:  # the others warm the page cache
            ours.append(time_ours)
        if i % 15 == 0:
            theirs.append(seconds(lambda i=i: flat.search(unit[i : i + 1], 10)))
    one, other = statistics.median(ours), statistics.median(theirs)
    note = f"recall {found['recall']:.3f}, {found['probes']} probes, {one * 1e3:.2f} ms and {other * 1e3:.1f} ms"
    say(f"single-query latency ÷ Flat's, {index.plan.factory}", one / other, "≤ 0.02", one / other <= 0.02, note)


OPEN = """
import json, sys, time
from pathlib import Path
from search import status
from spared_fm.search.index import Index
folder = Path(sys.argv[1])
card = json.loads((folder / "card.json").read_text())
before = status("Private", "/proc/self/smaps_rollup")
started = time.perf_counter()
index = Index.open(folder, card)
taken = time.perf_counter() - started
print(json.dumps([taken * 1e3, status("Private", "/proc/self/smaps_rollup") - before]))
"""


def opening(folder: Path, rounds: int) -> None:
    runs = [json.loads(run(["-c", OPEN, str(folder)])) for _ in range(rounds + 1)][1:]
    taken, private = (statistics.median(values) for values in zip(*runs, strict=True))
    say("opening, ms", taken, "≤ 20", taken <= 20)
    say("opening, private memory, MB", private, "≤ 20", private <= 20)


def filters(index: Index, vectors: np.ndarray, queries: np.ndarray) -> None:
    keep = np.sort(np.random.default_rng(7).choice(len(vectors), round(0.003 * len(vectors)), replace=False))
    queries = queries[:300]
    ids, _, how = filtered.search(index, queries, 10, keep=keep, rerank=lambda some: vectors[some])
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, vectors[keep].astype(np.float32))]
    _, near = faiss.knn(unit[0], unit[1], 10, metric=faiss.METRIC_INNER_PRODUCT)
    hits = np.mean([len(np.intersect1d(a, keep[b])) / 10 for a, b in zip(ids, near, strict=True)])
    taken = seconds(lambda: filtered.search(index, queries, 10, keep=keep, rerank=lambda some: vectors[some]))
    say("recall under a filter that keeps 0.3 %", hits, "1", hits == 1, f"{how}, {taken * 1e3:.0f} ms for 300 queries")


def adding(folder: Path, card: dict[str, Any], built: float, dim: int) -> None:
    more, _, _ = write(folder / "more", 10_000, dim, None, seed=99)
    ids = np.arange(10_000) + (1 << 40)

    def add() -> None:
        entry = build.write_segment(folder / "added", folder / "trained", lambda: [(ids, more)])
        Index.open(folder, card | {"segments": [*card["segments"], entry]}).close()

    ratio = statistics.median(seconds(add) for _ in range(3)) / built
    say("adding 10,000 rows ÷ building all", ratio, "≤ 0.05", ratio <= 0.05, f"build {built:.0f} s")


def memory(path: Path, rows: int, dim: int) -> None:
    """Build from a file that is read, not mapped, in a process of its own."""
    found = json.loads(run(["-c", MEMORY, str(path), str(rows), str(dim)]))
    note = f"anonymous {found['anonymous']:.0f}, before the build {found['before']:.0f}, {found['seconds']:.0f} s"
    say("peak memory of a build, MB", found["peak"], "≤ 2048", found["peak"] <= 2048, note)


MEMORY = """
import json, sys, tempfile, threading, time
from pathlib import Path
import numpy as np
from search import make, status
from spared_fm.search.plan import choose
path, rows, dim = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class Rows:
    def __len__(self):
        return rows
    def __getitem__(self, part):
        return np.fromfile(path, np.float16, (part.stop - part.start) * dim, offset=2 * dim * part.start).reshape(-1, dim)

peak, done, before = [0.0], threading.Event(), status("VmRSS")
def watch():
    while not done.wait(0.05):
        peak[0] = max(peak[0], status("RssAnon"))
threading.Thread(target=watch).start()
started = time.perf_counter()
with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    make(Path(folder) / "index", choose(rows, dim), Rows())
done.set()
print(json.dumps({"peak": status("VmHWM"), "anonymous": peak[0], "before": before, "seconds": time.perf_counter() - started}))
"""


def run(arguments: list[str]) -> str:
    """Run Python beside this file; return what it printed."""
    here = Path(__file__).resolve().parent
    return subprocess.run([sys.executable, *arguments], cwd=here, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="section", default=SECTIONS, help=", ".join(SECTIONS))
    parser.add_argument("--real", type=Path)
    parser.add_argument("--rows", type=int, help="in place of 200,000 and of 1,000,000, to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the files, about 6 GB; by default the system's temporary one")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {unknown}")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        if "batch" in options.sections:
            vectors, queries, what = write(folder / "batch", options.rows or 200_000, 512, options.real)
            print(f"{len(vectors)} × {vectors.shape[1]}: {what}")
            batch(folder, vectors, queries, options.rounds)
        if {"single", "open", "filter", "add"} & set(options.sections):
            vectors, queries, what = write(folder / "single", options.rows or 1_000_000, 384, options.real)
            print(f"{len(vectors)} × {vectors.shape[1]}: {what}")
            started = time.perf_counter()
            card = make(folder / "index", choose(*vectors.shape), vectors)
            built = time.perf_counter() - started
            with Index.open(folder / "index", card) as index:
                if "single" in options.sections:
                    single(index, vectors, queries)
                if "filter" in options.sections:
                    filters(index, vectors, queries)
            if "open" in options.sections:
                opening(folder / "index", options.rounds)
            if "add" in options.sections:
                adding(folder / "index", card, built, vectors.shape[1])
        if "memory" in options.sections:
            vectors, _, what = write(folder / "memory", options.rows or 1_000_000, 512, options.real)
            print(f"{len(vectors)} × {vectors.shape[1]}: {what}")
            memory(folder / "memory", *vectors.shape)


if __name__ == "__main__":
    main()
