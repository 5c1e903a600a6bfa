from __future__ import annotations

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.heads.models.bleep import BLEEP, contrast

FAST = {"steps": 30, "dropout": 0.0}


def planted(seed=0, n=180, d=5):
    """Synthetic: expression is linear in the features."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    y = X @ np.random.default_rng(9).normal(size=(d, 4)) + 0.1 * rng.normal(size=(n, 4)) + 3.0
    return X, y, np.repeat(["a", "b", "c"], n // 3)


def error(found, y):
    return float(((found - y) ** 2).mean())


@pytest.fixture(scope="module")
def fitted():
    X, y, groups = planted()
    return BLEEP(8, **FAST).fit(X, y, groups=groups)


def test_decided_by_its_seed():
    X, y, groups = planted(n=30)
    first, second, other = (
        BLEEP(3, steps=3, seed=i).fit(X, y, groups=groups).predict(X, groups=groups) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4


def test_learns_and_round_trips(fitted):
    y = planted()[1]
    Xt, yt, gt = planted(seed=1)
    found = fitted.predict(Xt, groups=gt)
    assert error(found, yt) < 0.6 * error(y.mean(axis=0), yt)
    again = BLEEP.from_state(fitted.get_params(), fitted.state())
    np.testing.assert_array_equal(again.predict(Xt, groups=gt), found)
    np.testing.assert_array_equal(fitted.predict(Xt[gt == "b"], groups=gt[gt == "b"]), found[gt == "b"])
    assert (found <= y.max(axis=0) + 1e-5).all()


def test_three_averages(fitted):
    Xt, _, gt = planted(seed=1)
    found = {}
    for average in ("uniform", "distance", "nearest"):
        head = BLEEP.from_state(fitted.get_params() | {"average": average}, fitted.state())
        found[average] = head.predict(Xt, groups=gt)
    one = BLEEP.from_state(fitted.get_params() | {"k": 1}, fitted.state()).predict(Xt, groups=gt)
    np.testing.assert_array_equal(found["nearest"], one)
    assert all((row == fitted.profiles_).all(axis=1).any() for row in one[:5])
    assert np.abs(found["distance"] - found["uniform"]).max() > 1e-3
    every = BLEEP.from_state(fitted.get_params() | {"k": 999}, fitted.state()).predict(Xt, groups=gt)
    np.testing.assert_allclose(every, np.tile(fitted.profiles_.mean(axis=0), (len(Xt), 1)), atol=1e-5)


def test_loss_by_hand():
    image, spot = (torch.from_numpy(np.random.default_rng(i).normal(size=(3, 4))) for i in (0, 1))
    a, b = image.numpy(), spot.numpy()

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    t = 0.7
    target = softmax((a @ a.T + b @ b.T) / 2 * t)
    logits = b @ a.T / t
    by_spot = -(target * np.log(softmax(logits))).sum(axis=1)
    by_image = -(target.T * np.log(softmax(logits.T))).sum(axis=1)
    np.testing.assert_allclose(float(contrast(image, spot, t)), ((by_spot + by_image) / 2).mean())


def test_few_spots():
    X, y, _ = planted()
    for n in (1, 2):
        head = BLEEP(steps=2).fit(X[:n], y[:n], groups=np.arange(n))
        np.testing.assert_allclose(head.predict(X[:1]), y[:n].mean(axis=0, keepdims=True), rtol=1e-5)
        assert head.predict(X[:0]).shape == (0, 4)


@pytest.mark.parametrize("params", [{"k": 0}, {"size": "x"}, {"average": "x"}, {"temperature": 0.0}])
def test_bad_parameters(params):
    X, y, _ = planted()
    with pytest.raises(InputError, match="bleep"):
        BLEEP(**params).fit(X, y)
