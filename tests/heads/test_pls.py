from __future__ import annotations

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression

from spared_fm.errors import InputError
from spared_fm.heads.pls import PLS


def study(n=120, d=12, genes=5, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    y = X[:, :2] @ rng.normal(size=(2, genes)) + noise * rng.normal(size=(n, genes))
    return X, y, np.repeat(["a", "b", "c"], n // 3)


@pytest.mark.parametrize(("d", "genes"), [(12, 5), (4, 9)])
def test_every_number_of_components_is_sklearns(d, genes):
    X, y, groups = study(d=d, genes=genes)
    path = PLS(4, standardize="none")
    errors = np.zeros((4, genes))
    for held in "abc":
        out = groups == held
        for a in range(1, 5):
            theirs = PLSRegression(a, scale=False, tol=1e-13, max_iter=20000).fit(X[~out], y[~out])
            errors[4 - a] += ((theirs.predict(X[out]) - y[out]) ** 2).sum(axis=0)
    path.fit(X, y, groups=groups)
    np.testing.assert_allclose(path.cv_error_, errors / len(y), rtol=1e-6)
    used = path.components_
    assert used == 4 - (errors / y.var(axis=0)).mean(axis=1).argmin()
    theirs = PLSRegression(used, scale=False, tol=1e-13, max_iter=20000).fit(X, y)
    np.testing.assert_allclose(path.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-5)


def test_noise_needs_few_components_and_signal_needs_its_own():
    X, y, groups = study(noise=0.01)
    assert PLS(8, standardize="train").fit(X, y, groups=groups).components_ > 1
    rng = np.random.default_rng(1)
    noise = rng.normal(size=y.shape)
    head = PLS(8, standardize="none").fit(X, noise, groups=groups)
    assert head.components_ <= 2
    theirs = PLSRegression(head.components_, scale=False, tol=1e-13, max_iter=20000).fit(X, noise)
    np.testing.assert_allclose(head.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-5)


def test_more_components_than_there_are():
    X, y, groups = study(d=3)
    head = PLS(32, standardize="train").fit(X, y, groups=groups)
    theirs = np.linalg.lstsq(np.c_[X, np.ones(len(X))], y, rcond=None)[0]
    np.testing.assert_allclose(head.predict(X), np.c_[X, np.ones(len(X))] @ theirs, rtol=1e-2, atol=0.2)
    with pytest.raises(InputError, match="components is 0"):
        PLS(0).fit(X, y)
