from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from spared_fm.errors import InputError
from spared_fm.heads.coordinates import Coordinates


def study(seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(["a", "b"], 40)
    xy = rng.uniform(0, 1000, (80, 2)) + np.where(groups == "b", 5000, 0)[:, None]
    y = np.stack([np.sin(xy[:, 0] / 200), xy[:, 1] / 1000], axis=1)
    return np.zeros((80, 3)), y, groups, xy


def test_spots_of_a_training_slide_come_from_that_slide():
    X, y, groups, xy = study()
    rng = np.random.default_rng(1)
    new = rng.uniform(0, 1000, (20, 2))
    head = Coordinates(k=3).fit(X, y, groups=groups, coords=xy)
    found = head.predict(X[:20], groups=["a"] * 20, coords=new)
    nearest = np.argsort(cdist(new, xy[groups == "a"]), axis=1)[:, :3]
    np.testing.assert_allclose(found, y[groups == "a"][nearest].mean(axis=1))
    assert np.corrcoef(found[:, 1], new[:, 1])[0, 1] > 0.9  # leakage, as the label says
    assert head.label.startswith("leakage")


def test_another_slide_is_laid_over_all_of_them():
    X, y, groups, xy = study()
    head = Coordinates(k=2).fit(X, y, groups=groups, coords=xy)
    new = xy[groups == "a"] * 7 - 300  # the same tissue, elsewhere and larger
    laid = np.concatenate([(p - p.mean(axis=0)) / p.std(axis=0) for p in (xy[:40], xy[40:])])
    nearest = np.argsort(cdist(laid[:40], laid), axis=1)[:, :2]
    np.testing.assert_allclose(head.predict(X[:40], groups=["z"] * 40, coords=new), y[nearest].mean(axis=1))


def test_bad_input():
    X, y, _, xy = study()
    for coords in (None, xy[:, :1], xy * np.nan):
        with pytest.raises(InputError, match="coords"):
            Coordinates().fit(X, y, coords=coords)
    with pytest.raises(InputError, match="k is 0"):
        Coordinates(0).fit(X, y, coords=xy)
