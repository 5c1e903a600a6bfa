from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from spared_fm.errors import InputError
from spared_fm.heads.knn import KNN


def study(seed=0):
    rng = np.random.default_rng(seed)
    X, groups = rng.normal(size=(90, 6)), np.repeat(["a", "b", "c"], 30)
    X[groups == "b"] = X[groups == "b"] * 3 + 5  # its own stain
    return X, rng.normal(size=(90, 4)), groups


def centred(X, groups):
    out = np.empty_like(X)
    for g in np.unique(groups):
        rows = X[groups == g]
        out[groups == g] = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    return out


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("weights", ["uniform", "softmax"])
def test_brute_force(metric, weights):
    X, y, groups = study()
    Xt, _, gt = study(1)
    Z, Zt = centred(X, groups), centred(Xt, gt)
    head = KNN(7, metric=metric, weights=weights, temperature=0.2, block_rows=11).fit(X, y, groups=groups)
    distance, found = NearestNeighbors(n_neighbors=7, metric=metric).fit(Z).kneighbors(Zt)
    w = np.ones_like(distance)
    if weights == "softmax":
        w = np.exp(-(distance if metric == "cosine" else distance**2 / 6) / 0.2)
    expected = (y[found] * (w / w.sum(axis=1, keepdims=True))[:, :, None]).sum(axis=1)
    np.testing.assert_allclose(head.predict(Xt, groups=gt), expected, rtol=1e-4, atol=1e-5)


def test_slides_are_centred_unless_told_otherwise():
    X, y, groups = study()
    by_slide = KNN(5).fit(X, y, groups=groups).predict(X, groups=groups)
    moved = np.where((groups == "a")[:, None], X * 2 + 1, X)
    np.testing.assert_allclose(KNN(5).fit(X, y, groups=groups).predict(moved, groups=groups), by_slide, atol=1e-5)
    raw = KNN(5, standardize="none").fit(X, y, groups=groups)
    assert np.abs(raw.predict(moved, groups=groups) - raw.predict(X, groups=groups)).max() > 0.1
    np.testing.assert_allclose(KNN(1).fit(X, y, groups=groups).predict(X, groups=groups), y, rtol=1e-6)
    np.testing.assert_allclose(KNN(900).fit(X, y).predict(X), np.tile(y.mean(axis=0), (90, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "params", [{"k": 0}, {"metric": "l1"}, {"weights": "x"}, {"temperature": 0.0}, {"standardize": "x"}]
)
def test_bad_parameters(params):
    X, y, _ = study()
    with pytest.raises(InputError, match="knn"):
        KNN(**params).fit(X, y)
