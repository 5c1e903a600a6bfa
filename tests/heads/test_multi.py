from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from spared_fm.errors import InputError
from spared_fm.heads.multi import MultiEncoder
from spared_fm.heads.ridge import Ridge
from tests.heads.tissue import pcc, tissue


def test_scikit_learn_accepts_it():
    check_estimator(MultiEncoder(), on_skip=None)


def test_every_block_brings_the_same_variance():
    X, y, groups, _ = tissue(d=9)
    X[:, 5:] *= 1e3
    for components in (None, 2):
        head = MultiEncoder([2, 7], components=components, weights=[1.0, 0.5]).fit(X, y, groups=groups)
        Z = head._inputs(X, groups)
        wide = 2 if components is None else min(2, components)
        a, b = Z[:, :wide].var(axis=0).sum(), Z[:, wide:].var(axis=0).sum()
        assert a == pytest.approx(4.5, rel=1e-4)  # half of nine columns
        assert b == pytest.approx(4.5 / 4, rel=1e-4)


def test_one_block_is_ridge():
    X, y, groups, _ = tissue()
    found = MultiEncoder().fit(X, y, groups=groups).predict(X, groups=groups)
    np.testing.assert_allclose(found, Ridge().fit(X, y, groups=groups).predict(X, groups=groups), atol=1e-4)


def test_a_wide_useless_encoder_does_not_drown_a_narrow_good_one():
    """Knn has no way to weigh columns: put together as they are, noise of 60 columns decides who is near."""
    X, y, groups, _ = tissue(slides=4)
    X = np.concatenate([X, np.random.default_rng(0).normal(size=(len(X), 60))], axis=1).astype(np.float32)
    new = groups == "s3"
    score = {}
    for blocks in (None, [6, 60]):
        head = MultiEncoder(blocks, head="knn", params={"k": 5}).fit(X[~new], y[~new], groups=groups[~new])
        score[blocks is None] = pcc(head.predict(X[new], groups=groups[new]), y[new], groups[new])
    assert score[False] > score[True] + 0.05


def test_comes_back():
    X, y, groups, _ = tissue()
    head = MultiEncoder([2, 4], components=2, head="knn", params={"k": 3}).fit(X, y, groups=groups)
    again = MultiEncoder.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(X, groups=groups), head.predict(X, groups=groups))
    assert MultiEncoder(head="coordinates").label == "leakage: coordinates only"


@pytest.mark.parametrize(
    "bad",
    [
        {"blocks": [2, 2]},
        {"blocks": [6, 0]},
        {"weights": [1, 2]},
        {"components": 0},
        {"standardize": "x"},
        {"head": "?"},
    ],
)
def test_bad_parameters(bad):
    X, y, _, _ = tissue()
    with pytest.raises(InputError, match=r"multi-encoder|unknown head"):
        MultiEncoder(**bad).fit(X, y)
