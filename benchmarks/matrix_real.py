"""Run every head at its small size on the real slides, from the TOML beside this script, and say what came of each cell.

Two cohorts of 50 genes, those of highest variance on the training slides, in strict mode: her2st C2, C3 to train and C4 to
test (sections of one patient), olfactory bulb rep1, rep12 to train and rep11 to test. Targets are ``lognorm`` and what
rate-attention completes of it. The store is made once (slides, three encoders without a download, cohorts, completion) and
is not in the time that is printed; cells that are kept in it are not computed again.

Printed: the cells that are not done, with their reasons; scores that a cell lacks; seconds per head; tuned ridge on the
built-in encoder against the colour floor, with 95 % intervals over spatial blocks of the test slide; what completion changes
once the depth of a spot is known; the report's answers.

    OMP_NUM_THREADS=1 python benchmarks/matrix_real.py [--data ../shared/data] [--store DIR] [--workers 2] [--report FILE.html]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import spared_fm
from spared_fm.benchmark.intervals import intervals, paired_intervals
from spared_fm.study.cohort import target
from spared_fm.study.evaluate import join
from spared_fm.study.matrix_kept import NUMBERS, predictions
from spared_fm.study.matrix_report import report

if TYPE_CHECKING:
    import pandas as pd

    from spared_fm.study.api import Study

TOML = Path(__file__).with_suffix(".toml")
NAME = "real"
COHORTS = {
    "her2st": (["her2st_C2", "her2st_C3"], "her2st_C4"),
    "mob": (["mob_rep1", "mob_rep12"], "mob_rep11"),
}
N_GENES = 50
BUILT_IN = "stain-bank"


def prepare(study: Study, data: Path) -> None:
    """Ingest, encode, make the cohorts and complete them; what is there already stays."""
    for train, test in COHORTS.values():
        for slide in {*train, test} - set(study.slides):
            study.ingest(data / slide, split="test" if slide == test else "train")
    study.encode([BUILT_IN, "colour-stats"], progress=True)
    study.encode("timm:vit_tiny_patch16_224", weights="random", key=["vit-tiny-random"], tokens=4, progress=True)
    for name, (train, test) in COHORTS.items():
        study.cohort(name, slides=[*train, test], n_genes=N_GENES, panel="variance")
        study.complete(name, method="rate-attention", source="lognorm")


def cells(table: pd.DataFrame) -> None:
    """Print how the cells ended, what scores they lack, and the seconds that each head took."""
    each = table.drop_duplicates("cell")
    print(f"\n{len(each)} cells: " + ", ".join(f"{n} {status}" for status, n in each["status"].value_counts().items()))
    for (status, encoder), group in each[each["status"] != "done"].groupby(["status", "encoder"], sort=False):
        heads = ", ".join(group["head"].drop_duplicates())
        print(f"  {status} on {encoder}: {len(group)} cells of {heads}; the first: {group['error'].iloc[0]}")
    rows = table[table["status"] == "done"]
    for metric in NUMBERS:
        for head, group in rows[rows[metric].isna()].groupby("head", sort=False):
            print(f"  {head} has no {metric} in {len(group)} of {(rows['head'] == head).sum()} rows")
    done = each[each["status"] == "done"]
    print(f"\n{'head':20s} {'cells':>5s} {'seconds':>8s} {'longest':>8s}")
    for head, seconds in done.groupby("head", sort=False)["seconds"]:
        print(f"{head:20s} {len(seconds):5d} {seconds.sum():8.1f} {seconds.max():8.1f}")
    print(f"{'all':20s} {len(done):5d} {done['seconds'].sum():8.1f}")


def floors(study: Study, table: pd.DataFrame) -> None:
    """Print tuned ridge on the built-in encoder, on the colour floor, and their difference, on measured targets."""
    print(f"\n{'ridge, lognorm, all entries':28s} {'PCC-Gene [95 %]':>24s}")
    for cohort in COHORTS:
        joined = join(study.layout, cohort, BUILT_IN)
        own = table[
            (table["cohort"] == cohort) & (table["head"] == "ridge") & (table["target"] == "lognorm")
        ].drop_duplicates("cell")
        predicted = {
            row.encoder: {unit: y for (_, unit), y in predictions(study.layout, NAME, row.cell).items()}
            for row in own[own["status"] == "done"].itertuples()
        }
        held_out = list(predicted[BUILT_IN])
        layer = target(study.layout, cohort, "lognorm")
        truth = {unit: layer[joined.rows[unit]] for unit in held_out}
        coords = {unit: joined.coords[unit] for unit in held_out}
        for encoder, values in predicted.items():
            show(f"{cohort} {encoder}", intervals(truth, values, coords=coords))
        for encoder in set(predicted) - {"colour-stats"}:
            pair = paired_intervals(truth, predicted[encoder], predicted["colour-stats"], coords=coords)
            show(f"{cohort} {encoder} less floor", pair)


def depth(study: Study, table: pd.DataFrame) -> None:
    """Print what completion adds to PCC-Gene on raw targets, as it is and with the spots' depth taken out of both sides.

    Taken out of truth and prediction, gene by gene over the entries scored: a line and a parabola in log total counts.
    """
    print(f"\ncompleted less raw targets, {BUILT_IN}: PCC-Gene, and with depth taken out")
    print(f"{'':28s} {'all entries':>22s} {'measured entries':>22s}")
    for cohort, (_, slide) in COHORTS.items():
        rows = join(study.layout, cohort, BUILT_IN).rows[slide]
        truth, mask = (target(study.layout, cohort, layer)[rows] for layer in ("lognorm", "mask"))
        counted = study.slide(slide)
        spots = counted.obs_names.get_indexer(study.cohort_data(cohort).obs["barcode"].to_numpy()[rows])
        total = np.log(np.asarray(counted.X.sum(axis=1)).ravel()[spots])
        known = np.stack([np.ones_like(total), total, total**2], axis=1)
        own = table[(table["cohort"] == cohort) & (table["encoder"] == BUILT_IN) & (table["status"] == "done")]
        fair = own[~own["label"].str.contains("oracle|leakage")].drop_duplicates("cell")
        gains = []
        for head, cells_of_head in fair.groupby("head", sort=False):
            predicted = {
                row.target: predictions(study.layout, NAME, row.cell)["", slide] for row in cells_of_head.itertuples()
            }
            if head == "gene-mean" or set(predicted) != {"lognorm", "ra_lognorm"}:
                continue
            gain = [
                correlation(truth, predicted["ra_lognorm"], seen, given)
                - correlation(truth, predicted["lognorm"], seen, given)
                for seen in (np.ones_like(truth, dtype=bool), mask.astype(bool))
                for given in (known[:, :1], known)
            ]
            gains.append(gain)
            print(f"{cohort:7s} {head:20s} " + " ".join(f"{value:+10.3f}" for value in gain))
        print(f"{cohort:7s} {'mean of heads':20s} " + " ".join(f"{value:+10.3f}" for value in np.mean(gains, axis=0)))


def correlation(truth: np.ndarray, predicted: np.ndarray, seen: np.ndarray, known: np.ndarray) -> float:
    """Mean over genes of the correlation over the entries seen, of what the columns of ``known`` do not explain."""
    found = []
    for gene, rows in enumerate(seen.T):
        pair = np.stack([truth[rows, gene], predicted[rows, gene]], axis=1).astype(np.float64)
        left = pair - known[rows] @ np.linalg.lstsq(known[rows], pair, rcond=None)[0]
        found.append(np.corrcoef(left.T)[0, 1])
    return float(np.mean(found))


def show(said: str, rows: list[dict]) -> None:
    """Print PCC-Gene with its interval."""
    [row] = [row for row in rows if (row["metric"], row["over"]) == ("pcc_gene", "pooled")]
    above = f"   above in {row['share_above']:.1%} of resamples" if "share_above" in row else ""
    print(
        f"{said:44s} {row['estimate']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] {row['n_units']} {row['unit']}s{above}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = spared_fm.open(options.store or Path(temporary) / "store", create=True)
        started = time.perf_counter()
        prepare(study, options.data)
        print(f"store made or found in {time.perf_counter() - started:.0f} s")
        started = time.perf_counter()
        study.run_benchmark(TOML, workers=options.workers, progress=True)
        print(f"benchmark run in {time.perf_counter() - started:.0f} s with {options.workers} workers")
        table = study.show_benchmark(NAME)
        cells(table)
        floors(study, table)
        depth(study, table)
        page = options.report or Path(temporary) / "report.html"
        for answer in report(study.layout, NAME, page)["answers"]:
            print(f"\n{answer['said']}")


if __name__ == "__main__":
    main()
