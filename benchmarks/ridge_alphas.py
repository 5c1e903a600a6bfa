"""Time all alphas × all genes of ridge: a scikit-learn loop against one pass of sufficient statistics.

    python benchmarks/ridge_alphas.py [--n 20000 --dim 1024 --genes 128 --alphas 13 --repeats 3]

The data is SYNTHETIC (normal features with a decaying spectrum). Both sides get the same float64 array and
fit an intercept; the solutions must agree to 1e-6. Runs are interleaved and medians printed. The threads are
those of the environment (OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import numpy as np
from sklearn.linear_model import Ridge as SklearnRidge

from spared_fm.heads.ridge import Ridge, ridge_path


def main() -> None:
    """Draw the data, time both, print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("n", 20_000), ("dim", 1024), ("genes", 128), ("alphas", 13), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    X = rng.normal(size=(args.n, args.dim)) * (np.arange(1, args.dim + 1) ** -0.5)
    y = X @ rng.normal(size=(args.dim, args.genes)) + rng.normal(size=(args.n, args.genes))
    groups = np.arange(args.n) * 10 // args.n
    alphas = [float(a) for a in np.logspace(-1, 5, args.alphas)]

    theirs_s, ours_s, gcv_s, loso_s, worst = [], [], [], [], 0.0
    for _ in range(args.repeats):
        start = time.perf_counter()
        theirs = [SklearnRidge(a).fit(X, y) for a in alphas]
        theirs_s.append(time.perf_counter() - start)

        start = time.perf_counter()
        ours = list(ridge_path(X, y, alphas))
        ours_s.append(time.perf_counter() - start)
        for model, (_, coef, intercept) in zip(theirs, ours, strict=True):
            worst = max(worst, float(np.abs(model.coef_.T - coef).max()))
            worst = max(worst, float(np.abs(model.intercept_ - intercept).max()))

        start = time.perf_counter()
        Ridge(alphas).fit(X, y)
        gcv_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        Ridge(alphas).fit(X, y, groups=groups)
        loso_s.append(time.perf_counter() - start)

    middle = statistics.median
    print(
        json.dumps(
            {
                "data": "synthetic",
                **vars(args),
                "threads": os.environ.get("OMP_NUM_THREADS", f"default of {os.cpu_count()} cores"),
                "sklearn_s": round(middle(theirs_s), 3),
                "ours_s": round(middle(ours_s), 3),
                "ratio": round(middle(a / b for a, b in zip(theirs_s, ours_s, strict=True)), 1),
                "largest_difference": worst,
                "ours_gcv_fit_s": round(middle(gcv_s), 3),
                "ours_leave_one_of_10_slides_out_fit_s": round(middle(loso_s), 3),
            },
            indent=1,
        )
    )
    if worst > 1e-6:
        raise SystemExit(f"solutions differ by {worst:.1e}")


if __name__ == "__main__":
    main()
