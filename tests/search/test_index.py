import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.search import exact
from spared_fm.search.files import MissingFileError
from spared_fm.search.index import Index
from spared_fm.search.keep import ranges_without
from tests.search.synthetic import BIT, DIM, HALF, LISTS, PLANS, ROWS, draw, opened, stored, write

METRICS = ["cosine", "ip", "l2"]


def asked(seed=5, count=20):
    return draw(seed)[1][:count].astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_all_lists_probed_is_an_exact_search_to_the_bit(plan, metric, tmp_path):
    index, ids, vectors, _ = opened(tmp_path, plan, metric=metric, cuts=(900, 2500))
    true = exact.search(asked(), [(ids, vectors)], 7, metric=metric)
    found = index.search(asked(), 7, probes=LISTS, candidates=ROWS, rerank=stored(ids, vectors))
    np.testing.assert_array_equal(found[0], true[0])
    np.testing.assert_array_equal(found[1], true[1])


@pytest.mark.parametrize("metric", METRICS)
def test_without_stored_vectors_similarities_are_estimates(metric, tmp_path):
    index, ids, vectors, _ = opened(tmp_path, metric=metric)
    true = exact.search(asked(), [(ids, vectors)], 5, metric=metric)
    found = index.search(asked(), 5, probes=LISTS)
    np.testing.assert_allclose(found[1], true[1], rtol=5e-3, atol=5e-3)
    assert (found[0] == true[0]).mean() > 0.9


@given(st.lists(st.integers(1, ROWS - 1), unique=True, max_size=5))
@settings(max_examples=8, deadline=None)
def test_how_rows_are_cut_into_segments_changes_nothing(cuts):
    import tempfile
    from pathlib import Path

    ids, vectors = draw()
    answers = []
    for some in ((), sorted(cuts)):
        with tempfile.TemporaryDirectory() as folder:
            card = write(Path(folder), BIT, ids, vectors, some)
            with Index.open(folder, card, threads=2) as index:
                answers.append(index.search(asked(), 6, rerank=stored(ids, vectors)))
                alone = index.search(asked()[0], 6, rerank=stored(ids, vectors))
        np.testing.assert_array_equal(alone[0][0], answers[-1][0][0])
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_removed_rows_are_not_found(tmp_path):
    gone = [[1 << 32, 2 << 32], [4 << 32, (4 << 32) + 10]]
    index, ids, vectors, _ = opened(tmp_path, cuts=(1200,), tombstones=gone)
    alive = (ids >> 32 != 1) & ~((ids >> 32 == 4) & (ids % (1 << 32) < 10))
    assert (index.rows, index.dead) == (ROWS - 510, 510)
    found = index.search(vectors[500:520], 5, probes=LISTS, rerank=stored(ids, vectors))
    true = exact.search(vectors[500:520], [(ids[alive], vectors[alive])], 5)
    np.testing.assert_array_equal(found[0], true[0])
    assert index.select(None).count == index.rows


KEEPS = {
    "ids": lambda ids: ids[::40],
    "ids that are not there": lambda ids: np.concatenate([ids[:5], [7 << 32, 9 << 33]]),
    "ranges": lambda ids: np.array([[0, 100], [3 << 32, 5 << 32]]),
    "function": lambda ids: lambda some: some % 3 == 0,
    "nothing": lambda ids: ids[:0],
    "all": lambda ids: ids,
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("how", KEEPS)
def test_a_filter_keeps_what_it_says(how, plan, tmp_path):
    index, ids, vectors, _ = opened(tmp_path, plan, cuts=(1000,), tombstones=[[50, 60]])
    keep = KEEPS[how](ids)
    kept = keep(ids) if callable(keep) else np.isin(ids, keep)
    if how == "ranges":
        kept = (ids < 100) | ((ids >> 32 >= 3) & (ids >> 32 < 5))
    kept &= (ids < 50) | (ids >= 60)
    selection = index.select(keep)
    np.testing.assert_array_equal(index.kept_ids(selection), ids[kept])
    assert selection.count == kept.sum()
    found = index.search(asked(), 8, keep=keep, probes=LISTS, candidates=ROWS, rerank=stored(ids, vectors))
    again = index.search(asked(), 8, keep=selection, probes=LISTS, candidates=ROWS, rerank=stored(ids, vectors))
    np.testing.assert_array_equal(found[0], again[0])
    if kept.any():
        true = exact.search(asked(), [(ids[kept], vectors[kept])], 8)
        np.testing.assert_array_equal(found[0], true[0])
    else:
        assert (found[0] == -1).all()
        assert (found[1] == -np.inf).all()


def test_more_lists_are_visited_where_a_filter_leaves_few_rows(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    keep = ids[::100]
    found = index.search(asked(), 10, keep=keep, probes=1, rerank=stored(ids, vectors))
    true = exact.search(asked(), [(keep, vectors[::100])], 10)
    np.testing.assert_array_equal(found[0], true[0])


@pytest.mark.parametrize("removed", [False, True], ids=["filtered", "removed"])
def test_lists_are_visited_until_they_hold_rows_that_are_kept(removed, tmp_path):
    rng = np.random.default_rng(3)
    far = np.repeat(rng.normal(size=(2, DIM)) * 4, ROWS // 2, axis=0)  # two tissues, each of several patterns
    vectors = (far + rng.normal(size=(12, DIM))[np.arange(ROWS) % 12] + rng.normal(size=(ROWS, DIM)) / 4).astype("f2")
    ids = draw()[0]
    half = ROWS // 2
    card = write(tmp_path, HALF, ids, vectors, (800, 2000))
    tombstones, keep = ([[0, int(ids[half])]], None) if removed else ([], ids[half:])
    index = Index.open(tmp_path, card | {"tombstones": tombstones}, threads=1)
    queries = vectors[:half:100].astype(np.float32)
    found, _ = index.search(queries, 5, keep=keep, probes=1, rerank=stored(ids, vectors))
    true = exact.search(queries, [(ids[half:], vectors[half:])], 5)[0]
    assert np.mean([np.isin(some, good).mean() for some, good in zip(found, true, strict=True)]) > 0.8


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6))
def test_ranges_without_is_the_complement(pairs):
    ranges = [(a, b) for a, b in pairs if a <= b]
    numbers = np.arange(60)
    inside = np.zeros(60, bool)
    for a, b in ranges:
        inside[a:b] = True
    outside = np.zeros(60, bool)
    for a, b in ranges_without(np.array(ranges, dtype=np.int64).reshape(-1, 2)).tolist():
        outside[a : min(b, 60)] = True
    np.testing.assert_array_equal(outside, ~inside[numbers])


def test_range_search_finds_what_is_similar_enough(tmp_path):
    index, ids, vectors, _ = opened(tmp_path, cuts=(700,))
    every = exact.search(asked(), [(ids, vectors)], ROWS)
    least = float(np.median(every[1]))
    limits, found, similarity = index.range_search(asked(), least, probes=LISTS, rerank=stored(ids, vectors))
    for i in range(len(asked())):
        wanted = every[1][i] >= least
        np.testing.assert_array_equal(found[limits[i] : limits[i + 1]], every[0][i][wanted])
        np.testing.assert_array_equal(similarity[limits[i] : limits[i + 1]], every[1][i][wanted])
    limits, found, _ = index.range_search(asked(), least, limit=9, probes=LISTS, rerank=stored(ids, vectors))
    assert (np.diff(limits) == 9).all()
    np.testing.assert_array_equal(found.reshape(-1, 9), every[0][:, :9])
    limits, found, _ = index.range_search(asked(), 1.5, rerank=stored(ids, vectors))
    assert limits[-1] == len(found) == 0


def test_more_than_there_are_is_padded(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    found, similarity = index.search(asked(count=3), ROWS + 20, rerank=stored(ids, vectors))
    assert (np.sort(found[:, :ROWS], axis=1) == ids).all()
    assert (found[:, ROWS:] == -1).all()
    assert (similarity[:, ROWS:] == -np.inf).all()


def test_a_row_that_left_the_store_is_not_returned(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    blank = vectors.copy()
    blank[3] = np.nan
    found, _ = index.search(vectors[3], 5, rerank=stored(ids, blank))
    assert ids[3] not in found
    assert (found >= 0).all()
    found, similarity = index.search(vectors[3], ROWS, probes=LISTS, rerank=stored(ids, blank))
    assert set(found[0, :-1].tolist()) == set(ids.tolist()) - {ids[3]}
    assert (found[0, -1], similarity[0, -1]) == (-1, -np.inf)


def test_the_card_goes_through_json(tmp_path):
    *_, card = opened(tmp_path)
    with Index.open(str(tmp_path), json.loads(json.dumps(card))) as index:
        index.verify()
        assert index.rows == ROWS


@pytest.mark.parametrize(
    ("queries", "k", "says"),
    [
        (np.ones((1, DIM + 1)), 5, "dimensions"),
        (np.ones((1, DIM)), 0, "ask for 1"),
        (np.full((1, DIM), np.nan), 5, "no embedding"),
        (np.ones((1, 1, DIM)), 5, "shape"),
    ],
)
def test_bad_queries_are_refused(queries, k, says, tmp_path):
    index, *_ = opened(tmp_path)
    with pytest.raises(InputError, match=says):
        index.search(queries, k)


@pytest.mark.parametrize("keep", [np.array([3, 2]), np.array([1.5]), np.ones((2, 3), int), lambda ids: ids])
def test_bad_filters_are_refused(keep, tmp_path):
    index, *_ = opened(tmp_path)
    with pytest.raises(InputError, match="keep"):
        index.search(asked(), 3, keep=keep)


def test_stored_vectors_of_another_encoder_are_refused(tmp_path):
    index, *_ = opened(tmp_path)
    with pytest.raises(InputError, match="stored vectors"):
        index.search(asked(), 3, rerank=lambda wanted: np.ones((len(wanted), DIM + 1)))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("where", ["trained", "head", "codes", "ids"])
def test_a_flipped_bit_is_found(where, plan, tmp_path):
    *_, card = opened(tmp_path, plan)
    segment = card["segments"][0]
    name = "trained" if where == "trained" else segment["file"]
    at = {"trained": 900, "head": 60, "codes": segment["head_bytes"] + 77, "ids": segment["ids_at"] + 8}[where]
    content = bytearray((tmp_path / name).read_bytes())
    content[at] ^= 4
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        Index.open(tmp_path, card).verify()
    if where in ("trained", "head"):
        with pytest.raises(InputError, match=f"{name} is damaged"):
            Index.open(tmp_path, card)


@pytest.mark.parametrize("name", ["trained", "segment-0"])
def test_a_truncated_or_absent_file_is_said(name, tmp_path):
    *_, card = opened(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name} has"):
        Index.open(tmp_path, card)
    (tmp_path / name).unlink()
    with pytest.raises(MissingFileError, match=f"{name} is gone"):
        Index.open(tmp_path, card)


@pytest.mark.parametrize("file", ["../trained", "/etc/passwd", "", "..", "a\\b"])
def test_a_card_cannot_name_files_elsewhere(file, tmp_path):
    *_, card = opened(tmp_path)
    with pytest.raises(InputError, match="outside its folder"):
        Index.open(tmp_path, card | {"trained": card["trained"] | {"file": file}})


@pytest.mark.parametrize(
    "change",
    [
        {"segments": None},
        {"trained": {}},
        {"plan": {"kind": "other"}},
        {"plan": {"kind": "exact"}},
        {"metric": "pickle"},
        {"dim": DIM + 1},
        {"tombstones": [["x"]]},
    ],
)
def test_a_card_that_is_none_is_refused(change, tmp_path):
    *_, card = opened(tmp_path)
    with pytest.raises(InputError, match="index"):
        Index.open(tmp_path, card | change)


@pytest.mark.parametrize("change", [{"rows": 10}, {"rows": -1}, {"rows": 1 << 60}, {"ids_at": 0}, {"head_bytes": 8}])
def test_sizes_that_do_not_fit_are_refused(change, tmp_path):
    *_, card = opened(tmp_path)
    with pytest.raises(InputError, match="size of its"):
        Index.open(tmp_path, card | {"segments": [card["segments"][0] | change]})


def test_a_segment_of_another_training_is_refused(tmp_path):
    ids, vectors = draw()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    card = write(tmp_path / "a", HALF, ids, vectors)
    import dataclasses

    other = dataclasses.replace(HALF, lists=LISTS + 1, factory=f"IVF{LISTS + 1},SQfp16")
    segments = write(tmp_path / "b", other, ids, vectors)["segments"]
    (tmp_path / "b" / "segment-0").rename(tmp_path / "a" / "segment-0")
    with pytest.raises(InputError, match="was not written with trained"):
        Index.open(tmp_path / "a", card | {"segments": segments})


def test_what_is_no_index_is_refused_though_its_checksum_fits(tmp_path):
    from spared_fm.search.files import checksum

    *_, card = opened(tmp_path)
    size = card["trained"]["bytes"]
    (tmp_path / "trained").write_bytes(b"\x80\x04pickle" + bytes(size - 8))
    with pytest.raises(InputError, match="no index that FAISS"):
        Index.open(tmp_path, card | {"trained": card["trained"] | {"crc32c": checksum(tmp_path / "trained")}})


def test_an_open_index_outlives_its_files(tmp_path):
    index, ids, vectors, _ = opened(tmp_path)
    before = index.search(asked(), 5, rerank=stored(ids, vectors))
    for path in list(tmp_path.iterdir()):
        path.unlink()
    after = index.search(asked(), 5, rerank=stored(ids, vectors))
    np.testing.assert_array_equal(before[0], after[0])


def test_an_index_without_segments_finds_nothing(tmp_path):
    *_, card = opened(tmp_path)
    found, _ = Index.open(tmp_path, card | {"segments": []}).search(asked(), 3)
    assert (found == -1).all()
