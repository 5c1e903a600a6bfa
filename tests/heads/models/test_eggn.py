from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.models.eggn import EGGN

FAST = {"steps": 30, "dropout": 0.0}


def planted(seed=0, slides=3, side=6, d=6):
    """Synthetic: a gene by the spot's own features, one by those of the spot to the right, one constant."""
    rng = np.random.default_rng(seed)
    n = slides * side * side
    X = rng.normal(size=(n, d)).astype(np.float32)
    coords = np.tile(np.indices((side, side)).reshape(2, -1).T * 200.0, (slides, 1))
    groups = np.column_stack([np.repeat([f"s{i}" for i in range(slides)], side * side)] * 2)
    beside = np.roll(X, -1, axis=0)
    y = np.column_stack([2 * X[:, 0] + np.abs(X[:, 1]), beside[:, 2], np.full(n, 7.0)])
    return X, y, {"groups": groups, "coords": coords}


def error(found, y):
    return float(((found - y) ** 2)[:, 0].mean())


@pytest.fixture(scope="module")
def fitted():
    X, y, where = planted()
    return EGGN(3, standardize="train", **FAST).fit(X, y, **where)


def test_decided_by_its_seed():
    X, y, where = planted(side=4)
    first, second, other = (EGGN(3, steps=3, seed=i).fit(X, y, **where).predict(X, **where) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4


def test_learns_and_round_trips(fitted):
    y, head = planted()[1], fitted
    Xt, yt, there = planted(seed=1, slides=2)
    found = head.predict(Xt, **there)
    assert error(found, yt) < 0.6 * error(y.mean(axis=0), yt)
    np.testing.assert_array_equal(found[:, 2], 7.0)
    again = EGGN.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(Xt, **there), found)
    own = {key: value[:36] for key, value in there.items()}  # a slide's prediction is its own
    np.testing.assert_array_equal(head.predict(Xt[:36], **own), found[:36])


def test_adjacent_spots_and_expression_of_exemplars_count(fitted):
    X, _, where = planted()
    head = EGGN.from_state(fitted.get_params(), fitted.state())
    before = head.predict(X, **where)
    shuffled = where | {"coords": np.random.default_rng(0).permutation(where["coords"][:36])[np.arange(len(X)) % 36]}
    assert np.abs(head.predict(X, **shuffled) - before).max() > 1e-2
    moved = X.copy()
    moved[0] += 3.0
    change = np.abs(head.predict(moved, **where) - before).max(axis=1)
    assert change[[1, 6, 7]].mean() > 5 * change[35]  # the other corner hears of it by the exemplars alone
    assert change[36:].max() == 0.0
    head.profiles_ = head.profiles_[::-1].copy()
    assert np.abs(head.predict(X, **where) - before).max() > 1e-3


@pytest.mark.parametrize("as_published", [False, True])
def test_as_published_hides_the_expression_from_the_layers(as_published):
    X, y, where = planted()
    head = EGGN(3, steps=2, as_published=as_published).fit(X, y, **where)
    for part in head.net_.exemplar.weight.data[:, 6:], head.net_.out.weight.data[:, 128:]:
        part.zero_()  # the other two ways from the exemplars to a prediction
    before = head.predict(X, **where)
    head.profiles_ = head.profiles_[::-1].copy()
    assert bool(np.abs(head.predict(X, **where) - before).max() > 1e-6) is not as_published


def test_pieces_few_spots_and_no_coords():
    X, y, where = planted()
    cut = EGGN(3, steps=3, max_spots=10).fit(X, y, **where)
    assert np.isfinite(cut.predict(X, **where)).all()
    for n in (1, 2, 5):
        one = {"groups": np.arange(n), "coords": where["coords"][:n]}
        head = EGGN(3, steps=2).fit(X[:n], y[:n], **one)
        assert np.isfinite(head.predict(X[:n], **one)).all()
        assert head.predict(X[:0], groups=[], coords=np.zeros((0, 2))).shape == (0, 3)
    for use in (lambda: EGGN().fit(X, y), lambda: cut.predict(X)):
        with pytest.raises(InputError, match="needs coords"):
            use()


@pytest.mark.parametrize("params", [{"k": 0}, {"size": "x"}, {"max_spots": 0}])
def test_bad_parameters(params):
    X, y, where = planted()
    with pytest.raises(InputError):
        EGGN(**params).fit(X, y, **where)
