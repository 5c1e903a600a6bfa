from __future__ import annotations

import numpy as np

from spared_fm.heads.oracle import SlideMean


def test_knows_each_slides_mean_and_nothing_else():
    rng = np.random.default_rng(0)
    y, groups = rng.normal(size=(30, 4)), np.repeat(["a", "b", "c"], [5, 10, 15])
    X = np.full((30, 2), np.nan)
    head = SlideMean().fit(X, y, groups=groups)
    found = head.predict(X, groups=groups)
    for g in "abc":
        np.testing.assert_allclose(found[groups == g], np.tile(y[groups == g].mean(axis=0), ((groups == g).sum(), 1)))
    np.testing.assert_allclose(head.predict(X[:1], groups=["é"])[0], y.mean(axis=0))
    again = SlideMean.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(X, groups=groups), found)
    assert head.shown == "slide-mean (oracle)"
