"""Demo: a synthetic study through every step, ending with a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.study.api import Study

COHORT = "demo"
FLOOR = "timm:mobilenetv3_small_100"
NOTICE = (
    "All data on this page is SYNTHETIC: images, spots and expression were drawn by spared-fm itself, so that the truth is "
    "known. No figure here says anything about real tissue."
)


def demo(folder: str | Path, *, seed: int = 0, progress: bool = False) -> dict[str, Any]:
    """Generate a synthetic study and run ingest, encode, cohort, complete, fit, benchmark and search on it.

    Parameters
    ----------
    folder
        The store to make; must not exist. The synthetic slides lie in ``<folder>-slides``.
    seed
        Seed of the study.
    progress
        Show progress bars.

    Returns
    -------
    dict
        store, report, seconds, and the pooled benchmark rows of the best cell.

    Raises
    ------
    InputError
        The folder exists.
    """
    from spared_fm.slides.synthetic import generate_study
    from spared_fm.study.evaluate import benchmark
    from spared_fm.study.reporting import benchmark_report

    folder = Path(folder)
    slides = folder.with_name(f"{folder.name}-slides")
    for path in (folder, slides):
        if path.exists():
            raise InputError(f"{path} exists; remove it or give the demo another --store")
    started = time.perf_counter()
    generate_study(slides, seed=seed)
    study = Study(folder, create=True)
    for row in pd.read_csv(slides / "study.csv", dtype=str).itertuples():
        study.ingest(slides / row.path, slide=row.slide, patient=row.patient, split=row.split)
    study.encode(["stain-bank", FLOOR], progress=progress)
    study.cohort(COHORT, n_genes=50, panel="variance")
    study.complete(COHORT)
    results = benchmark(
        study.layout,
        COHORT,
        encoders=["stain-bank", FLOOR],
        heads=["gene-mean", "ridge"],
        targets=["lognorm", "d_lognorm"],
    )
    fitted = study.fit(COHORT, encoder="stain-bank")
    report = folder / "report.html"
    benchmark_report(
        study.layout,
        COHORT,
        results,
        report,
        notice=NOTICE,
        facts={
            "Encoders": f"stain-bank (built in) and {FLOOR} with random weights, a floor",
            "Saved head": fitted["run"],
            "Seed": str(seed),
        },
        truth=_truth(study),
    )
    best = max((found.rows[0] for _, found in results), key=lambda row: row["pcc_gene"] or -1.0)
    return {
        "store": str(folder),
        "report": str(report),
        "seconds": round(time.perf_counter() - started, 1),
        "best": {name: best[name] for name in ("encoder", "head", "target", "pcc_gene")},
    }


def _truth(study: Study) -> dict[str, np.ndarray]:
    """Noise-free expression of the cohort's spots and genes, slide by slide."""
    cohort = study.cohort_data(COHORT)
    truth = {}
    for slide in study.slides:
        adata = study.slide(slide)
        barcodes = cohort.obs.loc[cohort.obs["slide"] == slide, "barcode"]
        truth[slide] = np.asarray(adata[barcodes.to_numpy(), cohort.var_names].layers["true_lognorm"])
    return truth
