from __future__ import annotations

import numpy as np

from spared_fm.heads.models.histogene import HisToGene
from tests.heads.models.lattice import error, planted


def test_learns_from_features():
    X, y, where = planted(context=0.0)
    Xt, yt, there = planted(seed=1, slides=1, context=0.0)
    head = HisToGene(depth=1, width=32, steps=60, lr=3e-3).fit(X, y, **where)
    assert error(head.predict(Xt, **there), yt) < 0.5


def test_places_that_were_never_trained_add_nothing():
    X, y, where = planted(slides=2)
    extra = np.array([[200.0 * 40, 200.0 * 40]])  # far out, beyond the training slides' columns and rows
    there = {"coords": np.concatenate([where["coords"][:36], extra])}
    seen = np.concatenate([X[:36], X[:1]])
    for published in (False, True):
        head = HisToGene(depth=1, width=8, steps=3, as_published=published).fit(X, y, **where)
        assert head.places_ == 64
        rows, columns = head.net_.tables.rows.weight.detach(), head.net_.tables.columns.weight.detach()
        assert bool(rows[:6].any() and columns[:6].any())
        assert bool(rows[6:].any() or columns[6:].any()) == published
        moved = there | {"coords": there["coords"] + (there["coords"] > 4000.0) * 200.0}  # one column and row farther
        same = np.array_equal(head.predict(seen, **there), head.predict(seen, **moved))
        assert same != published


def test_tables_grow_with_the_slides_and_end_there():
    X, y, where = planted(slides=1)
    where["coords"] = where["coords"] * [1.0, 1.0]
    where["coords"][-1] = [200.0 * 80, 0.0]
    head = HisToGene(depth=1, width=8, steps=2).fit(X, y, **where)
    assert head.places_ == 81
    where["coords"][-1] = [200.0 * 300, 0.0]
    assert np.isfinite(head.predict(X, **where)).all()
