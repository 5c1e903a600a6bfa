"""The HEST protocol against its steps in scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spared_fm.errors import InputError
from spared_fm.heads.hest import HestCorrected, HestExact
from spared_fm.heads.ridge import WIDE


def study(n=300, d=60, genes=7, seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, 8)) @ rng.normal(size=(8, d)) + rng.normal(size=(n, d))).astype(np.float32)
    y = np.log1p(rng.poisson(np.exp(X[:, :genes] / 4 + 1)))
    return X, y, np.repeat(["a", "b", "c"], n // 3)


def published(X, y, components):
    """The steps as published, with exact components."""
    alpha = 100 / (components * y.shape[1])
    return make_pipeline(
        StandardScaler(),
        PCA(components, svd_solver="full"),
        Ridge(alpha, fit_intercept=False, solver="lsqr", max_iter=1000),
    ).fit(X.astype(np.float64), y)


def test_exact_is_the_published_protocol():
    X, y, groups = study()
    head = HestExact(20).fit(X[:200], y[:200], groups=groups[:200])
    assert head.alpha_ == 100 / (20 * 7)
    np.testing.assert_allclose(head.predict(X[200:]), published(X[:200], y[:200], 20).predict(X[200:]), atol=2e-6)
    exact = published(X[:200], y[:200], 20).set_params(ridge__solver="svd").fit(X[:200].astype(np.float64), y[:200])
    assert np.abs(head.predict(X[200:]) - exact.predict(X[200:])).max() > 1e-4  # where lsqr stops matters
    assert head.predict(X[200:]).mean() < y.mean() - 0.5  # no intercept, and the test knows it


def test_folds_from_one_reading_are_the_fits():
    X, y, groups = study()
    folds = [["a"], ["b", "c"]]
    for head, fold in zip(HestExact(20).fit_folds(X, y, groups, folds), folds, strict=True):
        out = np.isin(groups, fold)
        alone = HestExact(20).fit(X[~out], y[~out])
        np.testing.assert_allclose(head.predict(X[out]), alone.predict(X[out]), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no slide 'z'"):
        next(HestExact(20).fit_folds(X, y, groups, [["z"]]))
    with pytest.raises(InputError, match="leaves no slide"):
        next(HestExact(20).fit_folds(X, y, groups, [["a", "b", "c"]]))


def test_fewer_features_than_components():
    X, y, groups = study(d=9)
    head = HestExact().fit(X, y, groups=groups)
    assert head.alpha_ == 100 / (9 * 7)


def test_corrected_has_an_intercept_and_chooses_alpha():
    X, y, groups = study()
    head = HestCorrected(20).fit(X[:200], y[:200], groups=groups[:200])
    assert head.alpha_[0] in WIDE
    assert head.alpha_[0] != 100 / (20 * 7)
    Z = StandardScaler().fit(X[:200].astype(np.float64))
    steps = make_pipeline(PCA(20, svd_solver="full"), Ridge(head.alpha_[0], solver="svd"))
    expected = steps.fit(Z.transform(X[:200].astype(np.float64)), y[:200]).predict(Z.transform(X[200:].astype(float)))
    np.testing.assert_allclose(head.predict(X[200:]), expected, rtol=1e-5, atol=1e-5)
