from __future__ import annotations

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.heads.deepsets import DeepSets, Encoder
from tests.heads.tissue import pcc, tissue

QUICK = {"steps": 5, "width": 8}


def test_encoder_is_the_median_of_its_branches():
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    for branches in (1, 3, 4):
        encoder = Encoder(5, 6, branches, 0.5).eval()
        each = torch.relu(encoder.linear(x)).reshape(7, branches, 6).detach().numpy()
        np.testing.assert_allclose(encoder(x).detach(), np.median(each, axis=1), rtol=1e-6)


def test_learns_on_a_slide_it_has_not_seen():
    X, y, groups, coords = tissue(slides=4, around=1.0)
    new = groups == "s3"
    head = DeepSets(steps=60, lr=5e-3, width=32).fit(X[~new], y[~new], groups=groups[~new], coords=coords[~new])
    assert head.label == "small"
    assert pcc(head.predict(X[new], groups=groups[new], coords=coords[new]), y[new], groups[new]) > 0.7


def test_order_of_subtiles_and_of_neighbours_does_not_matter_but_they_do():
    X, y, groups, coords = tissue()
    tiles = np.random.default_rng(0).normal(size=(len(X), 3, 6)).astype(np.float32)
    flat = np.concatenate([X, tiles.reshape(len(X), -1)], axis=1)
    turned = np.concatenate([X, tiles[:, [2, 0, 1]].reshape(len(X), -1)], axis=1)
    head = DeepSets(3, standardize="none", **QUICK).fit(flat, y, groups=groups, coords=coords)
    where = {"groups": groups, "coords": coords}
    found = head.predict(flat, **where)
    np.testing.assert_allclose(head.predict(turned, **where), found, rtol=1e-5)
    assert not np.allclose(head.predict(np.concatenate([X, 0 * flat[:, 6:]], axis=1), **where), found)
    order = np.random.default_rng(1).permutation(len(X))
    np.testing.assert_allclose(
        head.predict(flat[order], groups=groups[order], coords=coords[order]), found[order], rtol=1e-5
    )
    far = head.predict(flat[:1], groups=groups[:1], coords=coords[:1])  # a spot alone has no neighbours
    assert not np.allclose(far, found[:1])
    assert np.isfinite(far).all()


def test_comes_back_and_the_seed_decides():
    X, y, groups, coords = tissue()
    where = {"groups": groups, "coords": coords}
    head = DeepSets(**QUICK).fit(X, y, **where)
    again = DeepSets.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(X, **where), head.predict(X, **where))
    np.testing.assert_array_equal(DeepSets(**QUICK).fit(X, y, **where).predict(X, **where), head.predict(X, **where))
    assert not np.array_equal(
        DeepSets(**QUICK, seed=1).fit(X, y, **where).predict(X, **where), head.predict(X, **where)
    )


def test_bad_columns_and_coords():
    X, y, groups, coords = tissue()
    with pytest.raises(InputError, match="sub-tiles"):
        DeepSets(4).fit(X, y, groups=groups, coords=coords)
    with pytest.raises(InputError, match="needs coords"):
        DeepSets().fit(X, y, groups=groups)
    assert DeepSets(neighbours=0, **QUICK).fit(X, y, groups=groups).predict(X).shape == y.shape
