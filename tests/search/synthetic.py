"""A small synthetic index: clustered vectors, trained, and written as segments."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np

from spared_fm.search import build
from spared_fm.search.index import Index
from spared_fm.search.plan import Plan

ROWS, DIM, LISTS = 3000, 24, 12
#: As `choose` makes them for many more rows.
HALF = Plan("ivf-sq", ROWS, DIM, f"IVF{LISTS},SQfp16", LISTS, ROWS, 4, 1, ROWS)
BYTE = dataclasses.replace(HALF, factory=f"IVF{LISTS},SQ8", candidates=3)
BIT = Plan("pca-ivf-rabitq", ROWS, DIM, f"PCAR16,IVF{LISTS},RaBitQ", LISTS, ROWS, 6, 40, ROWS)
PLANS = {"half": HALF, "byte": BYTE, "bit": BIT}


def draw(seed=0, rows=ROWS, dim=DIM):
    """Return ascending ids and clustered float16 vectors away from the origin."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, dim))[rng.integers(30, size=rows)] + rng.normal(size=(rows, dim)) + 0.5
    slide, row = np.divmod(np.arange(rows), 500)
    return slide << 32 | row, vectors.astype(np.float16)


def write(folder, plan, ids, vectors, cuts=(), metric="cosine"):
    """Write an index of segments cut at ``cuts``; return its card."""
    trained = build.train(folder / "trained", plan, vectors, metric=metric, threads=1)
    segments = [
        build.write_segment(
            folder / f"segment-{a}", folder / "trained", lambda a=a, b=b: [(ids[a:b], vectors[a:b])], metric=metric
        )
        for a, b in pairwise([0, *cuts, len(ids)])
    ]
    return {
        "metric": metric,
        "dim": plan.dim,
        "plan": dataclasses.asdict(plan),
        "trained": trained,
        "segments": segments,
        "tombstones": [],
    }


def stored(ids, vectors):
    """Return the function that gives stored vectors by id."""
    return lambda wanted: vectors[np.searchsorted(ids, wanted)]


def opened(folder, plan=HALF, cuts=(), metric="cosine", **changed):
    """Return an open index over `draw()`, its ids, vectors and card."""
    ids, vectors = draw()
    card = write(folder, plan, ids, vectors, cuts, metric) | changed
    return Index.open(folder, card, threads=1), ids, vectors, card
