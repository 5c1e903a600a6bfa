"""Time the linear heads against scikit-learn doing the same, in one process and interleaved.

    python benchmarks/heads_linear.py [alphas loso hest stream] [--repeats 5] [--rows 1000000]

All data is SYNTHETIC (clusters and a decaying spectrum). Each section prints one line of JSON with medians and
the ratio, and exits with 1 if the solutions differ. The threads are those of the environment (OMP_NUM_THREADS).

alphas   13 alphas × 128 genes, n = 20,000, d = 1,024, float64: scikit-learn's Ridge in a loop ÷ `ridge_path`; largest
         difference of coefficients and intercepts.
loso     The same data as 10 slides: leave-one-slide-out errors of every alpha and gene, the loop ÷ `Ridge.fit`, which
         also fits the chosen alpha. Features as they are on both sides. The loop takes minutes: by default it is run
         once, ours ``--repeats`` times.
hest     HEST's protocol as published (StandardScaler, PCA to 256, Ridge lsqr without intercept, alpha 100 / (256 · 50))
         on 50 genes and 5 folds of patients, and mean Pearson per fold; the loop ÷ `HestExact.fit_folds`. Also one fold
         by one fit.
stream   `Ridge` from float16 files of 1,000,000 × 1,024 features and 1,000 genes in 10 slides: peak resident memory above
         the interpreter with all imports, and the rate of the reading pass, of the whole fit by GCV, and of the whole fit
         with leave-one-slide-out, against this machine's float64 GEMM of a square 2,048 matrix, kept up for seconds
         before, between and after. Flops are those needed: n·d·(d + 2·genes), the product of features being symmetric,
         and, with slides left out, those of each fold's path. Runs in a process of its own. The files (4 GB) are written
         to a temporary folder.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg.blas import dgemm
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from spared_fm.heads.hest import HestExact
from spared_fm.heads.ridge import Ridge, ridge_path

ROWS, DIM, GENES, SLIDES = 20_000, 1024, 128, 10
BLOCK = 8192  # rows that the stream reads at a time
ALPHAS = [float(a) for a in np.logspace(-1, 5, 13)]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def draw(genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features shaped as embeddings are: clusters, 256 directions of decaying spread, noise, each row normalised."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, 257) ** -0.7
    latent = (rng.normal(size=(60, 256))[rng.integers(60, size=ROWS)] + rng.normal(size=(ROWS, 256))) * spread
    X = latent @ rng.normal(size=(256, DIM)) + 0.05 * rng.normal(size=(ROWS, DIM))
    X = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    y = latent @ rng.normal(size=(256, genes)) + 3 * rng.normal(size=(ROWS, genes))
    return X, y, np.array([f"s{i}" for i in np.arange(ROWS) * SLIDES // ROWS])


def alphas(repeats: int) -> tuple[dict[str, Any], float, float]:
    X, y, _ = draw(GENES)
    theirs_s, ours_s, worst = [], [], 0.0
    for _ in range(repeats):
        seconds, theirs = timed(lambda: [SklearnRidge(a).fit(X, y) for a in ALPHAS])
        theirs_s.append(seconds)
        seconds, ours = timed(lambda: list(ridge_path(X, y, ALPHAS)))
        ours_s.append(seconds)
        for model, (_, coef, intercept) in zip(theirs, ours, strict=True):
            worst = max(worst, np.abs(model.coef_.T - coef).max(), np.abs(model.intercept_ - intercept).max())
    return ratio(theirs_s, ours_s) | {"bar": 10, "largest_difference": float(worst)}, worst, 1e-6


def loso(repeats: int) -> tuple[dict[str, Any], float, float]:
    X, y, groups = draw(GENES)

    def loop() -> np.ndarray:
        error = np.zeros((len(ALPHAS), GENES))
        for slide in np.unique(groups):
            held = groups == slide
            Xr, yr, Xh, yh = X[~held], y[~held], X[held], y[held]
            for i, alpha in enumerate(ALPHAS):
                error[i] += ((SklearnRidge(alpha).fit(Xr, yr).predict(Xh) - yh) ** 2).sum(axis=0)
        return error / len(X)

    theirs_s, expected = timed(loop)
    ours_s = []
    for _ in range(repeats):
        seconds, head = timed(lambda: Ridge(ALPHAS, standardize="none", alpha_per="gene").fit(X, y, groups=groups))
        ours_s.append(seconds)
    worst = float(np.abs(head.cv_error_ / expected - 1).max())
    found = ratio([theirs_s] * repeats, ours_s) | {"bar": 10, "runs_of_the_loop": 1}
    same = np.array_equal(head.alpha_, np.array(ALPHAS)[expected.argmin(axis=0)])
    return found | {"largest_relative_difference_of_errors": worst, "same_alphas": bool(same)}, worst, 1e-6


def hest(repeats: int) -> tuple[dict[str, Any], float, float]:
    genes, folds = 50, 5
    X, y, groups = draw(genes)
    y = np.log1p(np.random.default_rng(1).poisson(np.exp(y / y.std(axis=0) / 2 + 1)).astype(np.float64))
    patients = [[f"s{2 * i}", f"s{2 * i + 1}"] for i in range(folds)]

    def published(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(X[train])
        pca = PCA(256, random_state=1)
        Z = pca.fit_transform(scaler.transform(X[train]))
        alpha = 100 / (Z.shape[1] * genes)
        model = SklearnRidge(alpha, solver="lsqr", fit_intercept=False, max_iter=1000, random_state=1).fit(Z, y[train])
        return model.predict(pca.transform(scaler.transform(X[test])))

    def pearson(predicted: np.ndarray, truth: np.ndarray) -> float:
        a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
        return float(np.mean((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))))

    masks = [np.isin(groups, fold) for fold in patients]

    def theirs() -> list[float]:
        return [pearson(published(~held, held), y[held]) for held in masks]

    def ours() -> list[float]:
        heads = HestExact().fit_folds(X, y, groups, patients)
        return [pearson(head.predict(X[held]), y[held]) for head, held in zip(heads, masks, strict=True)]

    def one() -> np.ndarray:
        return HestExact().fit(X[~masks[0]], y[~masks[0]]).predict(X[masks[0]])

    theirs_s, ours_s, single_theirs, single_ours, worst = [], [], [], [], 0.0
    for _ in range(repeats):
        seconds, expected = timed(theirs)
        theirs_s.append(seconds)
        seconds, found = timed(ours)
        ours_s.append(seconds)
        single_theirs.append(timed(lambda: published(~masks[0], masks[0]))[0])
        single_ours.append(timed(one)[0])
        worst = max(worst, float(np.abs(np.subtract(expected, found)).max()))
    line = ratio(theirs_s, ours_s) | {"bar": 20, "largest_difference_of_pcc": worst, "pcc": round(found[0], 4)}
    return line | {"one_fold": ratio(single_theirs, single_ours)}, worst, 1e-4


def ratio(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    middle = statistics.median
    return {
        "sklearn_s": round(middle(theirs), 3),
        "ours_s": round(middle(ours), 3),
        "ratio": round(middle(a / b for a, b in zip(theirs, ours, strict=True)), 1),
        "ratios": [round(a / b, 1) for a, b in zip(theirs, ours, strict=True)],
    }


def gemm_rate() -> float:
    """GFLOP/s of float64 products of square matrices of 2,048, kept up for some seconds as the pass is."""
    A = np.asfortranarray(np.random.default_rng(0).normal(size=(2048, 2048)))
    C = np.zeros((2048, 2048), order="F")

    def products() -> None:
        for _ in range(40):
            dgemm(1.0, A, A, c=C, overwrite_c=1)

    products()
    return 40 * 2 * 2048**3 / timed(products)[0] / 1e9


def resident_mb(line: str) -> float:
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(line):
            return float(row.split()[1]) / 1024
    raise RuntimeError(f"no {line} in /proc/self/status")


def stream(rows: int) -> None:
    """Write the files, then fit in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(DIM, 1000)).astype(np.float32) / 32
        with (Path(folder) / "x").open("wb") as xs, (Path(folder) / "y").open("wb") as ys:
            for start in range(0, rows, 10_000):
                X = rng.standard_normal((min(10_000, rows - start), DIM), dtype=np.float32)
                X.astype(np.float16).tofile(xs)
                (X @ weights + rng.standard_normal((len(X), 1000), dtype=np.float32)).astype(np.float16).tofile(ys)
        subprocess.run([sys.executable, __file__, "--inside", folder, "--rows", str(rows)], check=True)


def inside(folder: Path, rows: int) -> None:
    read_s = 0.0

    def blocks(block: int = BLOCK) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        nonlocal read_s
        with (folder / "x").open("rb") as xs, (folder / "y").open("rb") as ys:
            for slide in range(SLIDES):
                left = rows // SLIDES
                while left:
                    n = min(block, left)
                    start = time.perf_counter()
                    X = np.fromfile(xs, np.float16, n * DIM).reshape(n, DIM)
                    y = np.fromfile(ys, np.float16, n * 1000).reshape(n, 1000)
                    read_s += time.perf_counter() - start
                    yield X, y, f"s{slide}"
                    left -= n

    # everything is imported and every routine used once
    rng = np.random.default_rng(0)
    Ridge(ALPHAS).fit(rng.normal(size=(100, 8)), rng.normal(size=(100, 3)), groups=np.repeat(["a", "b"], 50))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_mb("VmRSS")
    from spared_fm.heads.moments import gather

    rates = [gemm_rate()]
    pass_s, _ = timed(lambda: [None for _ in [gather(Ridge(ALPHAS)._checked(blocks()), BLOCK)]])
    first_read, read_s = read_s, 0.0
    rates.append(gemm_rate())
    seconds, _ = timed(lambda: Ridge(ALPHAS, cv="gcv").fit_stream(blocks()))
    rates.append(gemm_rate())
    loso_s, _ = timed(lambda: Ridge(ALPHAS, cv="slide").fit_stream(blocks()))
    peak = resident_mb("VmHWM") - before
    rate = statistics.mean([*rates, gemm_rate()])
    flops = rows * DIM * (DIM + 2 * 1000) / 1e9
    # of leaving slides out: tridiagonalise, rotate, and a product with the left-out moments for each alpha
    one = 4 / 3 * DIM**3 + 4 * DIM**3 + 4 * DIM**2 * 1000 + len(ALPHAS) * 2 * DIM**2 * 1000
    path_flops = SLIDES * one / 1e9
    print(
        json.dumps(
            {
                "section": "stream",
                "data": "synthetic",
                "threads": threads(),
                "rows": rows,
                "peak_mb_above_interpreter": round(peak),
                "bar_mb": 600,
                "gemm_gflops": round(rate, 1),
                "pass_s": round(pass_s, 1),
                "pass_share_of_gemm": round(flops / pass_s / rate, 3),
                "of_it_reading_files_s": round(first_read, 1),
                "whole_fit_gcv_s": round(seconds, 1),
                "whole_fit_gcv_share_of_gemm": round(flops / seconds / rate, 3),
                "whole_fit_loso_s": round(loso_s, 1),
                "whole_fit_loso_share_of_gemm": round((flops + path_flops) / loso_s / rate, 3),
                "bar_share": 0.6,
            }
        )
    )


def threads() -> str:
    return os.environ.get("OMP_NUM_THREADS", f"default of {os.cpu_count()} cores")


def main() -> None:
    """Run the sections and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["alphas", "loso", "hest", "stream"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args.inside, args.rows)
        return
    failed = []
    for section in args.sections:
        if section == "stream":
            stream(args.rows)
            continue
        found, difference, most = {"alphas": alphas, "loso": loso, "hest": hest}[section](args.repeats)
        print(json.dumps({"section": section, "data": "synthetic", "threads": threads(), **found}), flush=True)
        if difference > most:
            failed.append(f"{section}: differs by {difference:.1e}")
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
