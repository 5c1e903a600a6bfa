from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.mean import GeneMean


def test_predicts_the_pooled_mean_and_never_looks_at_features():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 5))
    head = GeneMean().fit(X, y, groups=["a"] * 10 + ["b"] * 20)
    found = head.predict(X[:7] * 1e9)
    assert found.dtype == np.float64
    assert head.predict(X.astype(np.float16)).dtype == np.float32
    assert found.shape == (7, 5)
    np.testing.assert_allclose(found, np.tile(y.mean(axis=0), (7, 1)), rtol=1e-6)


def test_stream_is_the_same():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 5)).astype(np.float16)
    whole = GeneMean().fit(X, y)
    parts = GeneMean().fit_stream([(X[:3], y[:3], "a"), (X[3:], y[3:], "b")])
    np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=1e-12)


def test_bad_input():
    X, y = np.zeros((4, 2)), np.zeros((4, 3))
    with pytest.raises(InputError, match="not fitted"):
        GeneMean().predict(X)
    with pytest.raises(InputError, match="no training spots"):
        GeneMean().fit(X[:0], y[:0])
    with pytest.raises(InputError, match="NaN"):
        GeneMean().fit(X, y * np.nan)
    with pytest.raises(InputError, match="gene panel"):
        GeneMean().fit_stream([(X, y, "a"), (X, y[:, :1], "b")])
