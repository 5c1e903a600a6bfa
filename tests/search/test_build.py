import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.search import build, exact
from spared_fm.search.index import Index
from tests.search.synthetic import BIT, BYTE, DIM, HALF, ROWS, draw, stored, write


def test_a_sample_is_drawn_evenly_and_without_absent_rows():
    vectors = draw()[1].astype(np.float32)
    vectors[:, 0] = np.arange(ROWS)
    vectors[7] = np.nan
    blocks = [(np.arange(len(part)), part) for part in np.array_split(vectors, 7)]
    found = build.sample(blocks, ROWS, 1500, seed=1)
    assert found.dtype == np.float32
    assert 1490 <= len(np.unique(found[:, 0])) <= 1500
    assert found[:, 0].mean() == pytest.approx(ROWS / 2, rel=0.05)
    np.testing.assert_array_equal(found, build.sample([(np.arange(ROWS), vectors)], ROWS, 1500, seed=1))
    assert len(build.sample(blocks, ROWS, 2 * ROWS)) == ROWS - 1
    with pytest.raises(InputError, match="encode a slide"):
        build.sample([], 0, 10)


@pytest.mark.parametrize("plan", [HALF, BYTE], ids=["half", "byte"])  # PCA rounds by the size of a block
def test_small_and_large_blocks_give_the_same_bytes(plan, tmp_path, monkeypatch):
    ids, vectors = draw()
    card = write(tmp_path, plan, ids, vectors)
    monkeypatch.setattr(exact, "_SMALLEST", 40)
    monkeypatch.setattr(exact, "PIECE_BYTES", 8000)
    parts = np.array_split(np.arange(ROWS), 13)
    again = build.write_segment(
        tmp_path / "again",
        tmp_path / "trained",
        lambda: ((ids[part], vectors[part]) for part in parts),
        threads=1,
    )
    assert again | {"file": ""} == card["segments"][0] | {"file": ""}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "segment-0", "trained"]


def test_training_is_seeded(tmp_path):
    _, vectors = draw()
    sums = [build.train(tmp_path / "t", BIT, vectors, seed=seed, threads=1)["crc32c"] for seed in (0, 0, 1)]
    assert sums[0] == sums[1] != sums[2]


def test_absent_rows_are_not_in_the_index(tmp_path):
    ids, vectors = draw()
    complete = vectors.copy()
    vectors[::3] = np.nan
    build.train(tmp_path / "trained", HALF, vectors)
    entry = build.write_segment(tmp_path / "s", tmp_path / "trained", lambda: [(ids, vectors)])
    assert entry["rows"] == ROWS - ROWS // 3
    card = write(tmp_path, HALF, ids, complete) | {"segments": [entry]}
    with Index.open(tmp_path, card) as index:
        found, _ = index.search(complete[:9], 3, probes=HALF.lists, rerank=stored(ids, vectors))
    assert not np.isin(found, ids[::3]).any()
    assert (found[1::3, 0] == ids[1:9:3]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ids, vectors: (ids[::-1], vectors), "must ascend"),
        (lambda ids, vectors: (np.maximum(ids, 5), vectors), "must ascend"),
        (lambda ids, vectors: (ids - 1, vectors), "not be negative"),
        (lambda ids, vectors: (ids, vectors[:, :5]), "dimensions"),
        (lambda ids, vectors: (ids[:0], vectors[:0]), "no vectors"),
        (lambda ids, vectors: (ids, np.full_like(vectors, np.nan)), "no vectors"),
    ],
)
def test_what_cannot_be_a_segment_is_refused(change, says, tmp_path):
    ids, vectors = draw()
    build.train(tmp_path / "trained", HALF, vectors)
    with pytest.raises(InputError, match=says):
        build.write_segment(tmp_path / "s", tmp_path / "trained", lambda: [change(ids, vectors)])
    assert not list(tmp_path.glob("*s*.partial")) + list(tmp_path.glob("s"))


@pytest.mark.parametrize("second", [ROWS - 1, ROWS])
def test_vectors_that_change_meanwhile_are_noticed(second, tmp_path):
    ids, vectors = draw()
    build.train(tmp_path / "trained", HALF, vectors)
    reads = iter([(ids, vectors), (ids[:second] + (second == ROWS), vectors[:second])])
    with pytest.raises(InputError, match="changed while"):
        build.write_segment(tmp_path / "s", tmp_path / "trained", lambda: [next(reads)])


def test_values_beyond_half_precision_are_refused(tmp_path):
    ids, vectors = draw()
    large = vectors.astype(np.float32) * 1e5
    build.train(tmp_path / "trained", HALF, vectors, metric="l2")
    with pytest.raises(InputError, match="half precision"):
        build.write_segment(tmp_path / "s", tmp_path / "trained", lambda: [(ids, large)], metric="l2")


def test_too_small_a_sample_is_refused(tmp_path):
    _, vectors = draw()
    with pytest.raises(InputError, match="too few to train"):
        build.train(tmp_path / "t", HALF, vectors[:5])
    with pytest.raises(InputError, match=f"for {DIM} dimensions"):
        build.train(tmp_path / "t", HALF, vectors[:, :5])
