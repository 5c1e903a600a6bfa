"""Score completion methods on hidden entries of real slides, and print the ratios that matter.

    python benchmarks/completion.py [--data her2st --data crc16] [--method NAME …] [--repeats 10] [--quick]
                                    [--fitted FOLDER] [--train-scores] [--json FILE]

Data and splits: see completion_data.py. Every method is fitted once on the training slides, chooses on the validation slides,
and is scored on the same entries, hidden in the raw counts before anything is normalised. A method found under
FOLDER/<data>/<method> is loaded instead, a fitted one is written there. The released SpaCKLE is trained for the wall time
of ours, best validation checkpoint kept, when ours is fitted in the same run. `--quick`: two repeats, three rules. The process
uses the threads of its environment (OMP_NUM_THREADS).

Columns: mse with its 95 % interval (bootstrap over spots), mae, pcc (mean over genes) on hidden measured entries; raw: mse
against the value at full depth; zeros: mse with unmeasured entries drawn alike and scored as zeros; cover, interval, constant:
coverage and interval score of 90 % intervals calibrated on validation slides, and the score of intervals of one width.
True zeros are among the scored entries in the column zeros only.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import completion_data

from spared_fm.targets.completion.evaluate import FLOOR, SHARES, Evaluation, evaluate, fit
from spared_fm.targets.completion.registry import METHODS, load, method

OURS, RELEASED = "rate-attention", "spackle-released"
TIMED_STEPS = 50
RATIOS = ((OURS, "adaptive-median", 0.58), (OURS, "spackle", 0.75), (OURS, RELEASED, 0.5))
COLUMNS = ("mse", "mae", "pcc", "raw_mse", "zeros_mse", "coverage", "interval_score", "interval_score_constant")
HEADS = ("mse", "mae", "pcc", "raw", "zeros", "cover", "interval", "constant")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", choices=("her2st", "crc16"))
    parser.add_argument("--method", action="append", choices=tuple(METHODS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fitted", type=Path)
    parser.add_argument("--train-scores", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    written: dict[str, Any] = {}
    for data in args.data or ("her2st", "crc16"):
        raw, genes = getattr(completion_data, data)()
        fitted, seconds = {}, {}
        for name in sorted(args.method or METHODS, key=lambda name: name == RELEASED):  # trained as long as ours
            start = time.perf_counter()
            folder = args.fitted / data / name if args.fitted else None
            if folder is not None and folder.exists():
                fitted[name] = load(folder, genes)
            else:
                made = method(name)
                if name == RELEASED and OURS in seconds:
                    made = partial(made, steps=_steps_for(seconds[OURS], raw, genes))
                fitted |= fit({name: made}, raw, genes)
                if folder is not None:
                    fitted[name].save(folder)
            seconds[name] = time.perf_counter() - start
            print(f"{data}: {name} ready in {seconds[name]:.1f} s", flush=True)
        found = evaluate(
            fitted,
            raw,
            completion_data.panel(raw, genes),
            rules=("spared", 0.3, 0.5) if args.quick else SHARES,
            repeats=2 if args.quick else args.repeats,
            splits=("train", "val", "test") if args.train_scores else ("val", "test"),
        )
        print_table(data, found)
        written[data] = {"fit_seconds": seconds, "rows": found.rows, "summary": found.summary}
    if args.json:
        args.json.write_text(json.dumps(written))


def _steps_for(wanted: float, raw: Any, genes: Any) -> int:
    """Find how many steps the released SpaCKLE makes in a wall time, from a short training; never under its own 1,000."""
    start = time.perf_counter()
    fit({RELEASED: partial(method(RELEASED), steps=TIMED_STEPS)}, raw, genes)
    steps = max(1000, round(wanted / (time.perf_counter() - start) * TIMED_STEPS))
    print(f"{RELEASED}: {steps} steps for {wanted:.0f} s", flush=True)
    return steps


def print_table(data: str, found: Evaluation) -> None:
    """One block per split and rule, then the ratios."""
    blocks: dict[tuple[str, str | float], dict[str, dict[str, Any]]] = {}
    for row in found.summary:
        blocks.setdefault((row["split"], row["share_hidden"]), {})[row["method"]] = row
    for (split, rule), rows in blocks.items():
        hidden = next(iter(rows.values()))["hidden"]
        print(f"\n{data} {split}, rule {rule}: {hidden:.1%} of the measured entries hidden")
        print(f"{'':21}{'95 % of mse':>16}" + "".join(f"{head:>9}" for head in HEADS))
        for name, row in sorted(rows.items(), key=lambda item: (item[0] == FLOOR, item[1]["mse"])):
            interval = f"{row['mse_low']:.3f}–{row['mse_high']:.3f}" if "mse_low" in row else "half depth"
            figures = "".join(f"{row[column]:9.3f}" if column in row else f"{'':>9}" for column in COLUMNS)
            print(f"{name:21}{interval:>16}{figures}")
    print()
    for (split, rule), rows in blocks.items():
        if split != "test" or OURS not in rows:
            continue
        others = {name: row["mse"] for name, row in rows.items() if name not in (OURS, FLOOR)}
        ours = rows[OURS]["mse"]
        if rule == "spared":
            for name, other, bar in RATIOS:
                if other in rows:
                    print(f"{data} {split} {name} ÷ {other}: {ours / rows[other]['mse']:.3f} (bar {bar})")
        if others:
            best = min(others, key=lambda name: others[name])
            print(f"{data} {split} rule {rule}: {OURS} ÷ lowest other ({best}): {ours / others[best]:.3f}")


if __name__ == "__main__":
    main()
