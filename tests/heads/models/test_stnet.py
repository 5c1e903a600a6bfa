from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.models.stnet import SparedLinear

FAST = {"steps": 60, "lr": 10 ** (-4 / 3)}


def planted(n=120, d=6, genes=3, seed=0):
    """Synthetic: expression is linear in the features."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    y = X @ np.random.default_rng(9).normal(size=(d, genes)) + 2.0 + 0.1 * rng.normal(size=(n, genes))
    return X, y, np.repeat(["a", "b", "c"], n // 3)


def error(head, X, y, groups):
    return float(((head.predict(X, groups=groups) - y) ** 2).mean())


@pytest.mark.parametrize("target", ["expression", "deltas"])
def test_learns_and_round_trips(target):
    X, y, groups = planted()
    head = SparedLinear(target, **FAST).fit(X, y, groups=groups)
    Xt, yt, gt = planted(seed=1)
    assert error(head, Xt, yt, gt) < 0.7 * ((yt - y.mean(axis=0)) ** 2).mean()
    again = SparedLinear.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(Xt, groups=gt), head.predict(Xt, groups=gt))
    same = SparedLinear(target, **FAST).fit(X, y, groups=groups)
    np.testing.assert_array_equal(same.predict(Xt, groups=gt), head.predict(Xt, groups=gt))
    assert head.predict(Xt).dtype == np.float32
    assert head.shown == "spared-linear (small)"


def test_deltas_start_at_the_gene_mean():
    X, y, groups = planted()
    y = y + 100.0  # ten steps can't reach this level
    short = {"steps": 10, "lr": 1e-3}
    assert error(SparedLinear("deltas", **short).fit(X, y, groups=groups), X, y, groups) < 20
    assert error(SparedLinear("expression", **short).fit(X, y, groups=groups), X, y, groups) > 5000


def test_rate_is_picked_on_inner_slides():
    X, y, groups = planted()
    assert SparedLinear(steps=40).fit(X, y, groups=groups).rate_ == 10 ** (-4 / 3)  # the others don't get there in time
    assert SparedLinear(steps=2).fit(X[:5], y[:5]).rate_ == 1e-2  # nothing to hold out


def test_slides_are_centred_in_the_fit():
    X, y, groups = planted()
    stained = np.where((groups == "b")[:, None], 3 * X + 5, X)
    a, b = (SparedLinear(views=1, **FAST).fit(each, y, groups=groups) for each in (X, stained))
    np.testing.assert_allclose(a.predict(X, groups=groups), b.predict(X, groups=groups), atol=1e-3)


def test_eight_views_are_averaged():
    X, y, groups = planted()
    rng = np.random.default_rng(2)
    views = (X[:, None] + 0.5 * rng.normal(size=(len(X), 8, X.shape[1])).astype(np.float32)).reshape(len(X), -1)
    head = SparedLinear(views=8, standardize="train", **FAST).fit(views, y, groups=groups)
    one = SparedLinear(standardize="train", **FAST).fit(X, y, groups=groups)
    one.net_, one.center_, one.scale_ = head.net_, head.center_, head.scale_
    each = [one.predict(views[:, i * 6 : (i + 1) * 6], groups=groups) for i in range(8)]
    np.testing.assert_allclose(head.predict(views, groups=groups), np.mean(each, axis=0), atol=1e-5)
    assert error(head, views, y, groups) < 0.7 * y.var(axis=0).mean()
    turned = np.roll(views.reshape(len(X), 8, -1), 3, axis=1).reshape(len(X), -1)
    np.testing.assert_allclose(head.predict(turned, groups=groups), head.predict(views, groups=groups), atol=1e-5)
    by_slide = SparedLinear(views=8, steps=2, lr=0.01).fit(views, y, groups=groups)  # rows of slides are not contiguous
    order = rng.permutation(len(X))
    np.testing.assert_allclose(
        by_slide.predict(views[order], groups=groups[order]), by_slide.predict(views, groups=groups)[order], atol=1e-5
    )


def test_measured_entries_alone():
    X, y, groups = planted()
    mask = np.random.default_rng(3).random(y.shape) > 0.4
    noisy = np.where(mask, y, 50.0)
    head = SparedLinear(fit_on="measured", **FAST).fit(X, noisy, mask=mask, groups=groups)
    assert error(head, X, y, groups) < 0.1 * error(SparedLinear(**FAST).fit(X, noisy, groups=groups), X, y, groups)
    with pytest.raises(InputError, match="mask"):
        SparedLinear(fit_on="measured").fit(X, y)


def test_constant_gene_and_no_spots():
    X, y, groups = planted()
    y[:, 1] = 5.0
    head = SparedLinear(steps=2, lr=0.01).fit(X, y, groups=groups)
    np.testing.assert_array_equal(head.predict(X)[:, 1], 5.0)
    assert head.predict(X[:0]).shape == (0, 3)
    assert np.isfinite(head.predict(X[:1], groups=["new"])).all()


@pytest.mark.parametrize("params", [{"target": "x"}, {"views": 3}, {"size": "x"}, {"fit_on": "x"}, {"views": 8}])
def test_bad_parameters(params):
    X, y, _ = planted()
    with pytest.raises(InputError):
        SparedLinear(**params).fit(X, y)
