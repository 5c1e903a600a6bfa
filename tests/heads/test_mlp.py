from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from spared_fm.errors import InputError
from spared_fm.heads.losses import negative_binomial, pearson, squared
from spared_fm.heads.mlp import MLP
from tests.heads.tissue import pcc, tissue


def test_losses_by_their_definitions():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 3))
    weight = (rng.random((30, 3)) < 0.6).astype(float)
    a_, b_, w_ = (torch.from_numpy(v) for v in (a, b, weight))
    some = weight > 0
    expected = np.mean([np.corrcoef(a[some[:, j], j], b[some[:, j], j])[0, 1] for j in range(3)])
    assert pearson(a_, b_, w_).item() == pytest.approx(expected, abs=1e-6)
    assert pearson(a_, b_, None).item() == pytest.approx(
        np.mean([np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(3)]), abs=1e-6
    )
    assert pearson(a_, torch.ones_like(b_), None).item() == 0
    assert squared(a_, b_, w_).item() == pytest.approx(np.mean((a - b)[some] ** 2))
    counts, mean, r = rng.poisson(4, (30, 3)), np.exp(a), np.array([0.5, 2.0, 10.0])
    expected = -nbinom.logpmf(counts, r, r / (r + mean))
    found = negative_binomial(a_, torch.from_numpy(np.log(r)), torch.from_numpy(counts.astype(float)), w_)
    assert found.item() == pytest.approx(expected[some].mean())


@pytest.mark.parametrize("loss", ["mse", "mse+pcc"])
def test_learns_on_slides_it_has_not_seen(loss):
    X, y, groups, _ = tissue()
    Xt, yt, gt, _ = tissue(seed=0, slides=4)
    new = gt == "s3"
    head = MLP(loss, steps=120, width=64).fit(X, y, groups=groups)
    assert head.label == "small"
    assert MLP(size="published").label == ""
    assert pcc(head.predict(Xt[new], groups=gt[new]), yt[new], gt[new]) > 0.85


def test_counts_get_their_library_size():
    """Totals differ tenfold between spots for no reason the features show: the offset must take them up."""
    rng = np.random.default_rng(1)
    X, y, groups, _ = tissue(noise=0.0)
    rate = np.exp(0.5 * (y - y.mean(axis=0)) / y.std(axis=0))
    share = rate / rate.sum(axis=1, keepdims=True)
    library = rng.choice([30, 300], len(X))
    counts = rng.poisson(share * library[:, None])
    head = MLP("nb", steps=200, width=64).fit(X, counts, groups=groups)
    found = head.predict(X, groups=groups)
    assert head.library_ == np.median(counts.sum(axis=1))
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1).mean(), head.library_, rtol=0.1)
    assert pcc(found, share, groups) > 0.8
    assert head.state()["net.0.log_dispersion"].shape == (4,)
    for bad in (counts - 5, counts + 0.5):
        with pytest.raises(InputError, match="raw counts"):
            MLP("nb").fit(X, bad)


def test_only_measured_entries_count_if_asked():
    X, y, groups, _ = tissue()
    mask = np.random.default_rng(0).random(y.shape) < 0.7
    poor = np.where(mask, y, 1e3)
    quick = {"steps": 100, "width": 32}
    found = MLP(**quick, fit_on="measured").fit(X, poor, mask=mask, groups=groups).predict(X, groups=groups)
    assert pcc(found, y, groups) > 0.7
    found = MLP(**quick).fit(X, poor, mask=mask, groups=groups).predict(X, groups=groups)
    assert pcc(found, y, groups) < 0.7


def test_a_spot_gets_the_same_whoever_comes_with_it():
    X, y, groups, _ = tissue()
    head = MLP(steps=5, width=16, ensemble=2, standardize="train").fit(X, y, groups=groups)
    whole = head.predict(X, groups=groups)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(head.predict(X[order], groups=groups[order]), whole[order], rtol=1e-6)
    one = np.concatenate([head.predict(X[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(one, whole[:20], rtol=1e-6)


def test_seed_decides_and_networks_are_averaged():
    X, y, groups, _ = tissue()

    def found(seed, ensemble):
        return MLP(steps=5, width=16, seed=seed, ensemble=ensemble).fit(X, y, groups=groups).predict(X, groups=groups)

    np.testing.assert_array_equal(found(0, 1), found(0, 1))
    assert not np.array_equal(found(0, 1), found(1, 1))


@pytest.mark.parametrize("bad", [{"size": "large"}, {"loss": "l1"}, {"fit_on": "some"}, {"dropout": 1.0}, {"width": 0}])
def test_bad_parameters(bad):
    X, y, _, _ = tissue(slides=1)
    with pytest.raises(InputError, match="mlp"):
        MLP(**bad).fit(X, y)
