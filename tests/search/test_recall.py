import numpy as np
import pytest

from spared_fm.search import recall
from tests.search.synthetic import BIT, LISTS, draw, opened, stored


def held_out(ids, vectors, count=60, k=10):
    rows = np.random.default_rng(0).choice(len(ids), count, replace=False)
    queries, own = vectors[rows].astype(np.float32), ids[rows]
    return queries, own, recall.truth(queries, own, [(ids, vectors)], k)


def test_truth_leaves_the_query_itself_out():
    ids, vectors = draw()
    _, own, (found, _) = held_out(ids, vectors)
    assert not (found == own[:, None]).any()
    assert (found >= 0).all()


def test_recall_is_one_with_all_lists_and_falls_with_fewer(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    sample = held_out(ids, vectors)
    found = [recall.measure(index, *sample, probes=p, rerank=stored(ids, vectors)) for p in (1, 3, LISTS)]
    assert found[0] < found[1] < found[2] == 1.0
    by_hand = [
        len(set(some[some != own][:10]) & set(true)) / 10
        for some, own, true in zip(
            index.search(sample[0], 11, probes=1, rerank=stored(ids, vectors))[0], sample[1], sample[2][0], strict=True
        )
    ]
    assert found[0] == pytest.approx(np.mean(by_hand))


def test_rows_as_similar_as_the_last_count_as_found(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    same = np.broadcast_to(vectors[:1], vectors.shape)  # every row is as similar as any other
    true = recall.truth(vectors[:5], ids[:5], [(ids, same)], 10)
    assert recall.measure(index, vectors[:5], ids[:5], true, rerank=stored(ids, same)) == 1.0
    assert recall.measure(index, vectors[:5], np.full(5, -1), true, rerank=stored(ids, same)) == 1.0
    assert recall.measure(index, vectors[:5], ids[:5], true) < 1.0


def test_probes_are_raised_until_the_target_is_met(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    sample = held_out(ids, vectors)
    before = recall.measure(index, *sample, rerank=stored(ids, vectors))
    found = recall.tune(index, *sample, 1.0, rerank=stored(ids, vectors))
    assert before < 1.0
    assert found["met"]
    assert found["raised"]
    assert found["recall"] == 1.0
    assert (index.probes, index.candidates) == (found["probes"], found["candidates"])
    assert (found["k"], found["queries"], found["target"]) == (10, 60, 1.0)
    easy = recall.tune(index, *sample, 0.1, rerank=stored(ids, vectors))
    assert not easy["raised"]
    assert easy["probes"] == index.plan.probes


def test_candidates_are_raised_where_codes_are_coarse(tmp_path):
    import dataclasses

    index, ids, vectors, _ = opened(tmp_path, dataclasses.replace(BIT, candidates=1))
    found = recall.tune(index, *held_out(ids, vectors), 0.99, rerank=stored(ids, vectors))
    assert found["met"]
    assert found["candidates"] > 1


def test_a_target_out_of_reach_is_said(tmp_path):
    index, ids, vectors, _ = opened(tmp_path, BIT)
    found = recall.tune(index, *held_out(ids, vectors), 1.0)  # codes alone, nothing scored again
    assert not found["met"]
    assert found["probes"] == LISTS
    assert found["recall"] < 1.0
