from __future__ import annotations

import lightgbm
import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.base import unpack_labels
from spared_fm.heads.neural import inner_split
from spared_fm.heads.trees import LightGBM
from tests.heads.tissue import pcc, tissue


def curved(seed=0, slides=4):
    """Targets that no linear head can find: products of features."""
    X, _, groups, _ = tissue(seed=seed, slides=slides, side=12)
    Z = X.copy()
    for slide in np.unique(groups):
        Z[groups == slide] -= Z[groups == slide].mean(axis=0)
    return X, np.stack([np.abs(Z[:, 0]), Z[:, 1] * Z[:, 2] > 0, Z[:, 3]], axis=1).astype(float), groups


def test_finds_what_is_not_linear():
    X, y, groups = curved()
    new = groups == "s3"
    head = LightGBM(lr=0.1).fit(X[~new], y[~new], groups=groups[~new])
    assert pcc(head.predict(X[new], groups=groups[new]), y[new], groups[new]) > 0.7
    assert (head.rounds_ > 5).all()


def test_one_binning_gives_the_models_of_a_dataset_per_gene():
    X, y, groups = curved()
    head = LightGBM(components=None, standardize="none", rounds=20).fit(X, y, groups=groups)
    split = inner_split(groups, None, len(X))
    settings = {
        "objective": "regression",
        "num_leaves": 15,
        "max_depth": 5,
        "min_data_in_leaf": 20,
        "learning_rate": 0.05,
    }
    settings |= {"max_bin": 63, "lambda_l2": 1.0, "verbosity": -1, "deterministic": True, "force_col_wise": True}
    for gene in range(3):
        train = lightgbm.Dataset(X[split.train].astype(np.float64), y[split.train, gene], params=settings)
        held = lightgbm.Dataset(X[split.held].astype(np.float64), y[split.held, gene], reference=train)
        stop = [lightgbm.early_stopping(20, verbose=False)]
        model = lightgbm.train(settings, train, 20, valid_sets=[held], callbacks=stop)
        np.testing.assert_allclose(head.predict(X)[:, gene], model.predict(X), rtol=1e-6)


def test_models_are_lightgbms_own_text_and_come_back():
    X, y, groups = curved()
    head = LightGBM(rounds=5).fit(X, y, groups=groups)
    texts = unpack_labels(head.state()["models"])
    assert len(texts) == 3
    assert all(text.startswith("tree\nversion=v4") for text in texts)
    again = LightGBM.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(X, groups=groups), head.predict(X, groups=groups))


def test_stops_early_by_inner_slides():
    """Every slide has a truth of its own, so no tree helps on the slide held out."""
    rng = np.random.default_rng(0)
    X, _, groups, _ = tissue(slides=3)
    y = np.concatenate([X[groups == s] @ rng.normal(size=(6, 2)) * (-1) ** i for i, s in enumerate(np.unique(groups))])
    stopped = LightGBM(rounds=100, patience=5).fit(X, rng.permutation(y), groups=groups)
    assert stopped.rounds_.max() < 50
    assert [text.count("\nTree=") for text in unpack_labels(stopped.models_)] == list(stopped.rounds_)


def test_same_for_any_number_of_threads():
    X, y, groups = curved(slides=2)
    a, b = (LightGBM(rounds=2, threads=t).fit(X, y, groups=groups).predict(X, groups=groups) for t in (1, 2))
    np.testing.assert_array_equal(a, b)


def test_only_measured_entries_count_if_asked():
    X, y, groups = curved()
    mask = np.random.default_rng(0).random(y.shape) < 0.7
    poor = np.where(mask, y, 100.0)
    found = (
        LightGBM(rounds=60, lr=0.1, fit_on="measured").fit(X, poor, mask=mask, groups=groups).predict(X, groups=groups)
    )
    assert np.abs(found - y).max() < 5


@pytest.mark.parametrize(
    "bad", [{"rounds": 0}, {"leaves": 1}, {"components": 0}, {"standardize": "row"}, {"fit_on": "x"}]
)
def test_bad_parameters(bad):
    X, y, _ = curved()
    with pytest.raises(InputError, match="lightgbm"):
        LightGBM(**bad).fit(X, y)
