from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from spared_fm.errors import InputError
from spared_fm.heads.models.pieces import cut
from spared_fm.heads.models.triplex import Triplex
from tests.heads.models.lattice import error, planted

SMALLEST = {"depth": 2, "width": 8, "steps": 5}


@pytest.mark.full
def test_learns_from_the_spots_around():
    X, y, where = planted()
    Xt, yt, there = planted(seed=1, slides=1)
    head = Triplex(depth=2, width=32, steps=100, lr=5e-3).fit(X, y, **where)
    assert error(head.predict(Xt, **there), yt) < 0.7  # a spot's own features explain a fifth


def test_tokens_and_streams():
    X, y, where = planted(slides=2)
    tokens = np.column_stack([X, X[:, :2], X[:, 2:5]])  # 8 columns of tokens, then a stream of 3
    head = Triplex([8, 3], grid=2, **SMALLEST).fit(tokens, y, **where)
    found = head.predict(tokens, **where)
    assert np.isfinite(found).all()
    loaded = Triplex.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(loaded.predict(tokens, **where), found)
    trained = Triplex.from_state(head.get_params() | {"standardize": "train"}, head.state())
    for column in (0, 8):  # an image token and the stream are both looked at
        moved = tokens.copy()
        moved[:36:2, column] += 3.0
        assert not np.allclose(head.predict(moved, **where), found)
    moved = tokens.copy()
    moved[0, 8] += 3.0  # the stream of a neighbour
    assert not np.allclose(trained.predict(moved, **where)[1], trained.predict(tokens, **where)[1])
    swapped = tokens.copy()
    swapped[:, :8] = tokens[:, [2, 3, 0, 1, 4, 5, 6, 7]]  # the same tokens elsewhere: their mean stays
    assert not np.allclose(head.predict(swapped, **where), found)


def test_published_places_end_with_the_first_slide():
    X, y, where = planted(slides=2)
    small = np.flatnonzero((where["groups"][:, 0] == "s1") | (where["coords"] <= 400.0).all(axis=1))
    some = {key: value[small] for key, value in where.items()}
    heads = [Triplex(**SMALLEST, as_published=told).fit(X[small], y[small], **some) for told in (False, True)]
    np.testing.assert_array_equal(heads[1].extent_, [2.0, 2.0])
    right, published = (head.predict(X, **where) for head in heads)
    assert not np.allclose(right, published)
    heads[1].as_published = False
    assert not np.allclose(heads[1].predict(X, **where), published)


def test_empty_places_around_a_spot_are_not_looked_at():
    X, y, where = planted(slides=2)
    streams = np.column_stack([X, X[:, :2]])
    head = Triplex([6, 2], **SMALLEST).fit(streams, y, **where)
    (piece,) = cut(where["coords"][:36], 4096)
    inputs = head._inputs(torch.from_numpy(streams[:36]), piece)
    wider = inputs | {
        "near": pad(inputs["near"], (0, 3), value=-1),
        "cells": pad(inputs["cells"], (0, 0, 0, 3), value=0.0),
    }
    with torch.no_grad():
        for found, expected in zip(
            *(head.net_.predictions(**i, inside=torch.arange(36)) for i in (wider, inputs)), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_step_takes_some_spots_of_a_slide(monkeypatch):
    X, y, where = planted(slides=2)
    plain = Triplex(**SMALLEST).fit(X, y, **where).predict(X, **where)
    monkeypatch.setattr("spared_fm.heads.models.triplex.STEP_SPOTS", 7)
    assert not np.array_equal(Triplex(**SMALLEST).fit(X, y, **where).predict(X, **where), plain)


@pytest.mark.parametrize("bad", [{"blocks": [4, 1]}, {"blocks": []}, {"grid": 2}, {"blocks": [6, 0]}])
def test_bad_columns(bad):
    X, y, where = planted(slides=1)
    with pytest.raises(InputError, match=next(iter(bad))):
        Triplex(**SMALLEST, **bad).fit(X, y, **where)
