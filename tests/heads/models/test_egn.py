from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.models.egn import EGN
from spared_fm.heads.models.graphs import exemplars

FAST = {"steps": 30, "dropout": 0.0}


def planted(seed=0, slides=3, n=30, d=6):
    """Synthetic: expression bends with the features; slides differ in nothing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(slides * n, d)).astype(np.float32)
    y = np.abs(X[:, :3]) * 2 + X[:, 1:4] + 0.05 * rng.normal(size=(slides * n, 3)) + 4.0
    groups = np.column_stack([np.repeat([f"s{i}" for i in range(slides)], n)] * 2)
    return X, y, groups


def error(found, y):
    return float(((found - y) ** 2).mean())


@pytest.fixture(scope="module")
def fitted():
    X, y, groups = planted()
    return EGN(3, **FAST).fit(X, y, groups=groups)


def test_decided_by_its_seed():
    X, y, groups = planted(n=10)
    first, second, other = (
        EGN(3, steps=3, seed=i).fit(X, y, groups=groups).predict(X, groups=groups) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.full
def test_learns_and_round_trips(fitted):
    y, head = planted()[1], fitted
    Xt, yt, gt = planted(seed=1, slides=2)
    found = head.predict(Xt, groups=gt)
    assert error(found, yt) < 0.8 * error(y.mean(axis=0), yt)
    again = EGN.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(Xt, groups=gt), found)
    for slide in np.unique(gt[:, 0]):  # a slide's prediction is its own
        rows = gt[:, 0] == slide
        np.testing.assert_array_equal(head.predict(Xt[rows], groups=gt[rows]), found[rows])
    assert head.label == "small"


@pytest.mark.full
def test_expression_of_the_exemplars_counts(fitted):
    X, _, groups = planted()
    head = EGN.from_state(fitted.get_params(), fitted.state())
    before = head.predict(X, groups=groups)
    head.profiles_ = head.profiles_[::-1].copy()
    assert np.abs(head.predict(X, groups=groups) - before).max() > 1e-3


def test_as_published_takes_exemplars_from_the_same_slide(monkeypatch):
    seen = {}

    def spy(queries, bank, k, **kwargs):
        table = exemplars(queries, bank, k, **kwargs)
        if kwargs.get("own") is not None:
            seen["share"] = float((patients[table] == patients[:, None]).mean())
        return table

    X, y, groups = planted(n=10)
    patients = groups[:, 1]
    monkeypatch.setattr("spared_fm.heads.models.egn.exemplars", spy)
    correct = EGN(3, steps=5).fit(X, y, groups=groups).predict(X, groups=groups)
    assert seen["share"] == 0.0
    published = EGN(3, steps=5, as_published=True).fit(X, y, groups=groups).predict(X, groups=groups)
    assert seen["share"] > 0.1
    assert np.abs(correct - published).max() > 1e-4


def test_tokens():
    X, y, groups = planted(n=10)
    rng = np.random.default_rng(0)
    tokens = (X[:, None] + rng.normal(size=(30, 4, 6))).reshape(30, -1).astype(np.float32)
    head = EGN(3, tokens=4, steps=5).fit(tokens, y, groups=groups)
    assert head.bank_.shape == (30, 6)
    turned = tokens.reshape(30, 4, 6)[:, ::-1].reshape(30, -1)
    assert np.isfinite(head.predict(turned, groups=groups)).all()
    with pytest.raises(InputError, match="tokens"):
        EGN(3, tokens=5).fit(tokens, y)


def test_few_spots_and_a_constant_gene():
    X, y, _ = planted()
    y[:, 1] = 7.0
    for n in (1, 2, 5):
        head = EGN(3, steps=2).fit(X[:n], y[:n], groups=np.arange(n))
        found = head.predict(X[:n], groups=np.arange(n))
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found[:, 1], 7.0)
        assert head.predict(X[:0]).shape == (0, 3)


@pytest.mark.parametrize("params", [{"k": 0}, {"size": "x"}, {"dropout": 1.0}, {"standardize": "x"}])
def test_bad_parameters(params):
    X, y, _ = planted(n=2)
    with pytest.raises(InputError, match="egn"):
        EGN(**params).fit(X, y)
