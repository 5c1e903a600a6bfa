import numpy as np
import pytest

from spared_fm.search import exact, filtered
from tests.search.synthetic import LISTS, ROWS, draw, opened, stored


@pytest.fixture
def small_rule(monkeypatch):
    """Scale the rule to the small data of these tests."""
    monkeypatch.setattr(filtered, "FEW_ROWS", 100)
    monkeypatch.setattr(filtered, "_GATHER", 7)


def queries():
    return draw(9)[1][:15].astype(np.float32)


@pytest.mark.parametrize(
    ("every", "how"),
    [(1000, "exact"), (11, "exact"), (9, "probed"), (1, "probed")],
    ids=["few", "share", "many", "all"],
)
def test_few_rows_are_searched_exactly(every, how, small_rule, tmp_path):
    index, ids, vectors, _ = opened(tmp_path, cuts=(800,))
    gathered = []

    def rerank(wanted):
        gathered.extend(wanted.tolist())
        return stored(ids, vectors)(wanted)

    keep = ids[::every]
    found, similarity, was = filtered.search(index, queries(), 5, keep=keep, probes=1, rerank=rerank)
    true = exact.search(queries(), [(keep, vectors[::every])], 5)
    assert was == how
    assert np.isin(gathered, keep).all()
    if how == "exact":
        np.testing.assert_array_equal(found, true[0])
        np.testing.assert_array_equal(similarity, true[1])
    else:
        assert np.mean([np.isin(some, good).mean() for some, good in zip(found, true[0], strict=True)]) > 0.3


def test_the_rule_of_thumb(tmp_path):
    index, *_ = opened(tmp_path)
    assert filtered.is_few(index, index.select(None))  # 3,000 rows are always few
    index.rows = 10_000_000
    assert filtered.is_few(index, index.select(None))
    assert (filtered.FEW_ROWS, filtered.FEW_SHARE) == (50_000, 0.1)


def test_no_filter_is_probed_and_an_empty_one_finds_nothing(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    assert filtered.search(index, queries(), 5, rerank=stored(ids, vectors))[2] == "probed"
    found, _, how = filtered.search(index, queries(), 5, keep=ids[:0], rerank=stored(ids, vectors))
    assert how == "exact"
    assert (found == -1).all()


@pytest.mark.parametrize(("every", "how"), [(50, "exact"), (2, "probed")])
def test_range_search_follows_the_rule(every, how, small_rule, tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    keep = ids[::every]
    every_one = exact.search(queries(), [(keep, vectors[::every])], ROWS)
    least = float(every_one[1][:, 4].min())
    limits, found, _, was = filtered.range_search(
        index, queries(), least, keep=keep, probes=LISTS, rerank=stored(ids, vectors)
    )
    assert was == how
    for i in range(len(limits) - 1):
        np.testing.assert_array_equal(found[limits[i] : limits[i + 1]], every_one[0][i][every_one[1][i] >= least])
