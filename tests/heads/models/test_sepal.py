from __future__ import annotations

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.heads.models.sepal import SEPAL, Around

SIDE = 7
SPOTS = SIDE * SIDE


def planted(seed=0, slides=4, d=5):
    """Synthetic: expression is linear in a spot's features and in the sum of its neighbours'; one gene is constant."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(slides, SIDE, SIDE, d)).astype(np.float32)
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = sum(
        padded[:, 1 + i : 1 + i + SIDE, 1 + j : 1 + j + SIDE] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j
    )
    y = np.stack([X[..., 0] + around[..., 1], X[..., 1] - around[..., 0], np.full(X.shape[:3], 7.0)], axis=-1)
    coords = np.tile(np.indices((SIDE, SIDE)).reshape(2, -1).T * 200.0, (slides, 1))
    groups = np.column_stack([np.repeat([f"s{i}" for i in range(slides)], SPOTS)] * 2)
    return X.reshape(-1, d), y.reshape(-1, 3), {"groups": groups, "coords": coords}


def error(found, y):
    return float(((found - y) ** 2)[:, :2].mean())


@pytest.fixture(scope="module")
def fitted():
    X, y, where = planted()
    return SEPAL(steps=80, lr=4e-3).fit(X, y, **where)


def test_the_neighbours_correct_the_first_stage(fitted):
    Xt, yt, there = planted(seed=1, slides=2)
    found = fitted.predict(Xt, **there)
    assert error(found, yt) < 0.8 * error(fitted.first_.predict(Xt, groups=there["groups"]), yt)
    np.testing.assert_allclose(found[:, 2], 7.0, rtol=1e-6)
    again = SEPAL.from_state(fitted.get_params(), fitted.state())
    np.testing.assert_array_equal(again.predict(Xt, **there), found)
    own = {key: value[:SPOTS] for key, value in there.items()}  # a slide's prediction is its own
    np.testing.assert_array_equal(fitted.predict(Xt[:SPOTS], **own), found[:SPOTS])
    assert fitted.shown == "sepal (small)"


def test_what_lies_beside_counts_and_nothing_else(fitted):
    X, _, where = planted()
    head = SEPAL.from_state(fitted.get_params() | {"standardize": "train"}, fitted.state())
    head.labelled_ = False
    moved = X.copy()
    moved[0] += 3.0
    change = np.abs(head.predict(moved, **where) - head.predict(X, **where)).max(axis=1)
    beside = [0, 1, SIDE, SIDE + 1]
    assert change[beside].min() > 1e-3
    assert np.delete(change, beside).max() == 0.0
    far = where | {"coords": where["coords"] * 17.0 - 4.0}  # the unit and the origin don't matter
    np.testing.assert_allclose(head.predict(X, **far), head.predict(X, **where), atol=1e-5)


def test_graph_of_a_corner(fitted):
    X, _, where = planted(slides=1)
    xy, net = where["coords"] * 3.0, fitted._exact()
    around = Around(xy, None, fitted._table(xy, None), torch.device("cpu"))
    with torch.inference_mode():
        found = around(net, torch.from_numpy(X).double(), torch.tensor([0, 10]))[0]
        nodes = [0, 1, SIDE, SIDE + 1]  # all four are next to each other
        x, offsets = torch.from_numpy(X[nodes]).double(), torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).double()
        ties, there = ~torch.eye(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)

        def by_hand(offsets, ties):
            return net(x, torch.arange(4)[None], offsets[None], ties[None], there[None])[0]

        torch.testing.assert_close(by_hand(offsets, ties), found)
        for other in (by_hand(-offsets, ties), by_hand(offsets, ties & False)):
            assert float((other - found).abs().max()) > 1e-3


def test_decided_by_its_seed():
    X, y, where = planted(slides=2)
    first, second, other = (SEPAL(steps=4, seed=seed).fit(X, y, **where).predict(X, **where) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-5


def test_as_published():
    X, y, where = planted(slides=2)
    correct, published = (SEPAL(steps=10, as_published=flag).fit(X, y, **where) for flag in (False, True))
    for head, least in ((correct, -5.0), (published, -1.0)):
        head.net_.out[2].bias.data.fill_(-5.0)
        head.net_.out[2].weight.data.zero_()
        first = head.first_.predict(X, groups=where["groups"])
        correction = (head.predict(X, **where) - first)[:, :2] / head.spread_[:2]
        np.testing.assert_allclose(correction, least, atol=0.01)
    xy = where["coords"][:SPOTS]
    assert (correct._table(xy, None)[0] >= 0).sum() == 3
    assert (published._table(xy, None)[0] >= 0).sum() == 8
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(X), 60)), rng.normal(size=(len(X), 2))  # nothing to learn: a fit can only memorise
    for head in (correct, published):
        head.first_.fit(*noise, groups=where["groups"])
    seen, unseen = (head._unseen(*noise, where["groups"], where["coords"]) for head in (published, correct))
    assert ((seen - noise[1]) ** 2).mean() < ((unseen - noise[1]) ** 2).mean()


def test_few_spots_and_no_coords(fitted):
    X, y, where = planted(slides=1)
    for n in (1, 2, 5):
        one = {"groups": np.arange(n), "coords": where["coords"][:n]}
        head = SEPAL(steps=2).fit(X[:n], y[:n], **one)
        assert np.isfinite(head.predict(X[:n], **one)).all()
        assert head.predict(X[:0], groups=[], coords=np.zeros((0, 2))).shape == (0, 3)
    assert np.isfinite(SEPAL(steps=2).fit(X, y, coords=where["coords"]).predict(X, coords=where["coords"])).all()
    for use in (lambda: SEPAL().fit(X, y), lambda: fitted.predict(X)):
        with pytest.raises(InputError, match="needs coords"):
            use()
    with pytest.raises(InputError, match="size"):
        SEPAL(size="x").fit(X, y, **where)
