"""Measure whether search finds anatomy: whether the nearest patches of other sections share the query's layer.

Queries are all annotated spots of the mouse olfactory bulb section rep11; rep1 and rep12 are searched, through the whole
product (``Study.search``). Per encoder: the mean share of the ten nearest that have the query's anatomical layer, and its
difference from two floors, the share that chance gives (how common the layer is among the spots searched) and the share that
twelve colour statistics of the same patches give. Intervals are 95 %, from resampling spatial blocks of the queries' section:
neighbouring spots look alike, so spots would give too narrow ones. Prints, and is deterministic.

    python benchmarks/search_real.py [--data ../shared/data] [--store DIR] [--encoder stain-bank ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import spared_fm
from spared_fm.benchmark.resampling import grid_blocks
from spared_fm.study.api import Study

QUERIES, SEARCHED = "mob_rep11", ("mob_rep1", "mob_rep12")
FLOOR = "colour-stats"
LABEL = "annotation"
K = 10
COMPARISONS: dict[str, dict[str, Any]] = {
    "default (cosine, standardised)": {},
    "cosine": {"metric": "cosine", "standardize": False},
    "l2": {"metric": "l2", "standardize": False},
    "l2, standardised": {"metric": "l2", "standardize": True},
}
RESAMPLES = 5000


def searched(study: Study, encoder: str, **options: Any) -> np.ndarray:
    """Share of each query's results that have its layer, (queries,)."""
    adata = study.slide(QUERIES)
    names = [f"{QUERIES}/{name}" for name in adata.obs_names]
    found = study.search(encoder, spots=names, slides=SEARCHED, k=K, columns=[LABEL], exact=True, **options)
    own = dict(zip(names, adata.obs[LABEL].astype(str), strict=True))
    return (found[LABEL] == found["query"].map(own)).groupby(found["query"]).mean()[names].to_numpy()


def chance(study: Study) -> np.ndarray:
    """How common each query's layer is among the spots searched, (queries,)."""
    there = np.concatenate([study.slide(slide).obs[LABEL].astype(str) for slide in SEARCHED])
    return np.array([(there == own).mean() for own in study.slide(QUERIES).obs[LABEL].astype(str)])


def interval(values: np.ndarray, blocks: np.ndarray) -> tuple[float, float, float]:
    """Mean, and its 95 % interval over resampled blocks."""
    numbers = np.unique(blocks)
    sums = np.array([values[blocks == number].sum() for number in numbers])
    sizes = np.array([(blocks == number).sum() for number in numbers])
    drawn = np.random.default_rng(0).integers(0, len(numbers), (RESAMPLES, len(numbers)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--encoder", action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = spared_fm.open(options.store or Path(temporary) / "store", create=True)
        for slide in (QUERIES, *SEARCHED):
            study.ingest(options.data / slide)
        encoders = options.encoder or ["stain-bank"]
        study.encode([*encoders, FLOOR])
        blocks = grid_blocks(study.slide(QUERIES).obsm["spatial"])
        prior = chance(study)
        print(
            f"{QUERIES} ({len(prior)} queries, {len(np.unique(blocks))} blocks) against {' + '.join(SEARCHED)}: share of the"
        )
        print(f"{K} nearest in the query's layer; chance gives {prior.mean():.3f}\n")
        print(f"{'encoder':14s} {'compared by':24s} {'share':22s} {'less chance':24s} less {FLOOR}, same comparison")
        for name, how in COMPARISONS.items():
            floor = searched(study, FLOOR, **how)
            for encoder in (FLOOR, *encoders):
                share = floor if encoder == FLOOR else searched(study, encoder, **how)
                cells = [f"{encoder:14s} {name:24s}"]
                for values, sign in ((share, ""), (share - prior, "+"), (share - floor, "+")):
                    mean, low, high = interval(values, blocks)
                    cells.append(f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]")
                print("   ".join(cells[: 3 if encoder == FLOOR else 4]))


if __name__ == "__main__":
    main()
