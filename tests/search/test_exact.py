"""Exact search against brute force in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.search import exact
from spared_fm.search.exact import search


def brute(queries, ids, vectors, k, metric="cosine", out=None):
    """Score everything in float64, round, and sort by similarity then id."""
    q, v = np.atleast_2d(queries).astype(np.float32).astype(np.float64), vectors.astype(np.float64)
    keep = np.isfinite(v).all(axis=1)
    v, ids = v[keep], ids[keep]
    if metric == "l2":
        sims = -((q[:, None] - v[None]) ** 2).sum(-1)
    else:
        sims = (q[:, None] * v[None]).sum(-1)
        if metric == "cosine":
            size = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(v, axis=1)[None]
            sims = np.where(size > 0, sims / np.where(size > 0, size, 1), 0)
    sims = sims.astype(np.float32)
    found_ids, found_sims = np.full((len(q), k), -1), np.full((len(q), k), -np.inf, np.float32)
    for i in range(len(q)):
        rows = np.arange(len(ids)) if out is None else np.flatnonzero(~out[i][keep])
        order = rows[np.lexsort((ids[rows], -sims[i, rows]))][:k]
        found_ids[i, : len(order)], found_sims[i, : len(order)] = ids[order], sims[i, order]
    return found_ids, found_sims


def cut(ids, vectors, at):
    edges = [0, *sorted(at), len(ids)]
    return [(ids[a:b], vectors[a:b]) for a, b in pairwise(edges)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Cut the small data of these tests into several pieces."""
    monkeypatch.setattr(exact, "_SMALLEST", 40)
    monkeypatch.setattr(exact, "PIECE_BYTES", 8000)


def draw(seed, n=200, d=12, q=5, dtype=np.float32):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d)).astype(dtype)
    return rng.normal(size=(q, d)).astype(np.float32), rng.permutation(10 * n)[:n].astype(np.int64), vectors


def agree(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6, atol=1e-7)
    assert found[0].dtype == np.int64
    assert found[1].dtype == np.float32


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_against_brute_force(metric, dtype):
    q, ids, v = draw(0, n=3000, d=33, q=30, dtype=dtype)
    agree(search(q, cut(ids, v, [100, 1500]), 10, metric=metric), brute(q, ids, v, 10, metric))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 60), max_size=4),
    st.sampled_from(["cosine", "ip", "l2"]),
    st.sampled_from([np.float16, np.float32]),
    st.integers(1, 80),
)
def test_cuts_do_not_matter_and_ties_go_to_the_lower_id(seed, at, metric, dtype, k):
    """Coarse values make many exact ties, within and across blocks."""
    q, ids, _ = draw(seed, n=60, d=3)
    rng = np.random.default_rng(seed)
    v = rng.integers(-1, 2, size=(60, 3)).astype(dtype)
    q = rng.integers(-1, 2, size=(5, 3))
    agree(search(q, cut(ids, v, at), k, metric=metric), brute(q, ids, v, k, metric))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_many_twins(metric):
    """Blank tissue: thousands of equal vectors, the lowest ids win."""
    q, ids, v = draw(1, n=4000, d=16)
    v[500:3500] = v[500]
    q[0] = v[500]
    agree(search(q, cut(ids, v, [900, 2000]), 7, metric=metric), brute(q, ids, v, 7, metric))


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_neighbours_closer_than_float32_can_tell(metric):
    """A large common offset and tiny differences: float32 arithmetic alone gets the order wrong."""
    rng = np.random.default_rng(2)
    v = (1000 + rng.normal(size=(5000, 24)) * 1e-2).astype(np.float32)
    q = (1000 + rng.normal(size=(4, 24)) * 1e-2).astype(np.float32)
    ids = np.arange(5000)
    agree(search(q, cut(ids, v, [2500]), 5, metric=metric), brute(q, ids, v, 5, metric))


def test_zero_vectors_and_absent_rows():
    q, ids, v = draw(3)
    q[0] = 0
    v[::3] = 0
    v[1::7] = np.nan
    v[2, 0] = np.inf
    found = search(q, [(ids, v)], 150)
    assert not np.isnan(found[1]).any()
    agree(found, brute(q, ids, v, 150))
    assert not np.isin(ids[1::7], found[0]).any()
    alone = search(q, [(ids[1::7], v[1::7])], 3)
    assert (alone[0] == -1).all()
    assert (alone[1] == -np.inf).all()


def test_extreme_norms_do_not_break_the_cosine():
    q, ids, v = draw(4, n=50)
    v[:10] *= np.float32(1e25)
    v[10:20] *= np.float32(1e-30)
    agree(search(q * np.float32(1e-30), [(ids, v)], 50), brute(q * np.float32(1e-30), ids, v, 50))
    with pytest.raises(InputError, match="use cosine"):
        search(q, [(ids, v)], 5, metric="ip")


def test_a_vector_finds_itself_first():
    _, ids, v = draw(5, dtype=np.float16)
    found = search(v, [(ids, v)], 1)
    np.testing.assert_array_equal(found[0][:, 0], ids)
    np.testing.assert_allclose(found[1], 1, atol=1e-6)


def test_fewer_rows_than_k_are_padded():
    q, ids, v = draw(6, n=3)
    found = search(q[0], [(ids, v), (ids[:0], v[:0])], 5)
    assert found[0].shape == (1, 5)
    assert (found[0][0, 3:] == -1).all()
    assert (found[1][0, 3:] == -np.inf).all()
    assert set(found[0][0, :3]) == set(ids)


@pytest.mark.parametrize("few", [0, 3, 1000])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("at", [[], [50, 90]])
def test_exclusion_comes_before_the_k_best(few, metric, at, monkeypatch):
    """Every way to say it, by both ways to do it (over-fetch, or a copy of the rest)."""
    monkeypatch.setattr(exact, "FEW", few)
    q, _, v = draw(7, n=120)
    ids = np.random.default_rng(0).permutation(120).astype(np.int64)
    slide_of_id = np.repeat(np.arange(4), 30)  # of ids
    own = np.array([0, 1, 2, 3, 3])
    out = slide_of_id[ids][None] == own[:, None]
    expected = brute(q, ids, v, 20, metric, out)
    table = slide_of_id[None] == own[:, None]
    ways = [
        lambda i: slide_of_id[i][None] == own[:, None],
        table,
        [set(np.flatnonzero(row).tolist()) for row in table],
        [np.flatnonzero(row) for row in table],
    ]
    for way in ways:
        found = search(q, cut(ids, v, at), 20, metric=metric, exclude=way)
        agree(found, expected)
        assert (found[0] >= 0).all()
    for way in (slide_of_id == 2, lambda i: slide_of_id[i] == 2):
        agree(
            search(q, cut(ids, v, at), 20, metric=metric, exclude=way),
            brute(q, ids, v, 20, metric, np.tile(slide_of_id[ids] == 2, (5, 1))),
        )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 8), st.integers(1, 30), st.floats(0, 1))
def test_exclusion_with_ties(seed, few, k, share):
    rng = np.random.default_rng(seed)
    v, q = rng.integers(-1, 2, size=(60, 3)).astype(np.float16), rng.integers(-1, 2, size=(4, 3))
    ids, out = rng.permutation(60), rng.random((4, 60)) < share
    table = np.zeros_like(out)
    table[:, ids] = out
    before = exact.FEW
    exact.FEW = few
    try:
        found = search(q, cut(ids, v, [25]), k, exclude=table)
    finally:
        exact.FEW = before
    agree(found, brute(q, ids, v, k, out=out))


@pytest.mark.parametrize("few", [0, 10_000])
def test_exclusion_among_twins(few, monkeypatch):
    monkeypatch.setattr(exact, "FEW", few)
    q, ids, v = draw(11, n=900, d=16)
    v[200:800] = v[200]
    q[:] = v[200]
    out = np.zeros((5, 900), dtype=bool)
    out[:3, 100:500] = True
    out[3, ids < np.median(ids)] = True
    given = [np.sort(ids[row]) for row in out]
    agree(search(q, cut(ids, v, [450]), 6, exclude=given), brute(q, ids, v, 6, out=out))


def test_everything_excluded_is_padded():
    q, ids, v = draw(8)
    for found in (
        search(q, [(ids, v)], 4, exclude=lambda i: np.ones(len(i), bool)),
        search(q, [(ids, v)], 4, exclude=[ids] * 5),
    ):
        assert (found[0] == -1).all()


@pytest.mark.parametrize("at", [[], [1, 2, 700, 3100], range(0, 5000, 100)])
def test_pieces_bound_memory_and_join_small_blocks(at, monkeypatch):
    monkeypatch.setattr(exact, "_SMALLEST", 1024)
    q, ids, v = draw(9, n=5000)
    pieces = list(exact.pieces(cut(ids, v, at), 12))
    assert [len(p) for p, _ in pieces] == [1024] * 4 + [904]
    np.testing.assert_array_equal(np.concatenate([p for p, _ in pieces]), ids)
    np.testing.assert_array_equal(np.concatenate([p for _, p in pieces]), v)
    agree(search(q, cut(ids, v, at), 9), brute(q, ids, v, 9))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"metric": "dot"}, "unknown metric"),
        ({"queries": np.full((1, 12), np.nan)}, "a query holds NaN"),
        ({"queries": np.ones((2, 2, 12))}, "queries have shape"),
        ({"queries": np.ones((2, 11))}, "11 dimensions"),
        ({"blocks": []}, "no vectors"),
        ({"blocks": [(np.zeros(0, int), np.zeros((0, 12)))]}, "no vectors"),
        ({"blocks": [(np.arange(3), np.ones((4, 12)))]}, "4 vectors but ids"),
        ({"blocks": [(np.ones(4), np.ones((4, 12)))]}, "4 vectors but ids"),
        ({"exclude": [[1]]}, "5 queries but 1 collections"),
        ({"exclude": lambda ids: np.zeros(3, bool)}, "exclude gave shape"),
        ({"exclude": lambda ids: np.zeros(len(ids))}, "exclude gave shape"),
        ({"exclude": np.zeros(3, bool)}, "make it wider"),
    ],
)
def test_bad_input(change, words):
    q, ids, v = draw(10)
    given = {"queries": q, "blocks": [(ids, v)], "k": 3} | change
    with pytest.raises(InputError, match=words):
        search(given.pop("queries"), given.pop("blocks"), given.pop("k"), **given)
