from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from spared_fm.errors import InputError
from spared_fm.heads.ridge import Ridge
from spared_fm.heads.stacking import Stacking, folds
from tests.heads.tissue import pcc, tissue


def test_scikit_learn_accepts_it():
    check_estimator(Stacking(["ridge", "knn"]), on_skip=None)


def test_folds_keep_patients_together():
    slides = np.repeat([f"s{i}" for i in range(6)], 5)
    patients = np.repeat([f"p{i}" for i in range(3)], 10)
    fold = folds(np.stack([slides, patients], axis=1), None, 30, 5, 0)
    assert len(set(fold)) == 3
    assert all(len(set(fold[patients == p])) == 1 for p in set(patients))
    fold = folds(slides, None, 30, 5, 0)
    assert len(set(fold)) == 5
    assert all(len(set(fold[slides == s])) == 1 for s in set(slides))
    xy = np.stack([np.arange(30.0), np.zeros(30)], axis=1)
    np.testing.assert_array_equal(folds(None, xy, 30, 5, 0), np.arange(30) // 6)
    assert len(folds(None, None, 4, 5, 0)) == 0


@pytest.mark.parametrize("weights_per", ["all", "gene"])
def test_a_head_that_only_remembers_gets_no_weight(weights_per):
    """knn with one neighbour is perfect on its training spots; only spots it has not seen tell that it is poor."""
    X, y, groups, _ = tissue(d=12, noise=1.0)
    heads = ["ridge", ["knn", {"k": 1}]]
    head = Stacking(heads, weights_per=weights_per).fit(X, y, groups=groups)
    assert (head.weights_[0] > 0.7).all()
    assert (head.weights_[1] < 0.2).all()
    Xt, yt, gt, _ = tissue(d=12, noise=1.0, slides=4)
    new = gt == "s3"
    alone = Ridge().fit(X, y, groups=groups).predict(Xt[new], groups=gt[new])
    found = head.predict(Xt[new], groups=gt[new])
    assert pcc(found, yt[new], gt[new]) > pcc(alone, yt[new], gt[new]) - 0.01


def test_comes_back_and_shows_the_labels_of_its_heads():
    X, y, groups, coords = tissue()
    head = Stacking(["ridge", ["pca-ridge", {"components": 2}]]).fit(X, y, groups=groups, coords=coords)
    again = Stacking.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(
        again.predict(X, groups=groups, coords=coords), head.predict(X, groups=groups, coords=coords)
    )
    assert Stacking(["ridge", "coordinates"]).label == "leakage: coordinates only"
    assert Stacking(["ridge"]).label == ""


def test_oracles_and_bad_parameters_are_refused():
    X, y, _, _ = tissue()
    for bad, words in (
        ({"heads": ["slide-mean"]}, "knows the targets"),
        ({"heads": []}, "one head"),
        ({"heads": ["ridge"], "folds": 1}, "2 folds"),
        ({"heads": ["ridge"], "weights_per": "spot"}, "weights_per"),
        ({"heads": ["ridgy"]}, "unknown head"),
    ):
        with pytest.raises(InputError, match=words):
            Stacking(**bad).fit(X, y)
