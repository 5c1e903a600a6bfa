from __future__ import annotations

import dataclasses
import json
import threading
import uuid
from collections.abc import Callable

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.store import mapped
from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.store.layout import Layout
from spared_fm.store.recipe import Recipe

MakeStore = Callable[..., Layout]
DIM = 4


PROFILES = ["local", "cloud"]
EXAMPLES = {"local": 15, "memory": 8, "s3": 2}


def plan(
    layout: Layout,
    recipe: Recipe,
    *,
    key: str = "enc",
    chunk_rows: int = 4,
    profile: str | None = None,
    **settings: object,
) -> EmbeddingArray:
    return EmbeddingArray.plan(
        layout, "s1", key, recipe=recipe, dim=DIM, chunk_rows=chunk_rows, profile=profile, settings=settings
    )


def fill(array: EmbeddingArray, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=array.shape).astype(np.float16)
    for k in range(array.n_chunks):
        array.write_chunk(k, values[array.rows(k)], device="cpu")
    return values


@pytest.mark.parametrize("profile", PROFILES)
def test_rows_are_those_of_plain_zarr(make_store: MakeStore, recipe: Recipe, kind: str, profile: str):
    """Both profiles in every kind of place: raw rows on an object store are mapped from a local copy."""

    @settings(max_examples=EXAMPLES[kind], deadline=None)
    @given(n=st.integers(1, 23), chunk_rows=st.integers(1, 9), data=st.data())
    def check(n: int, chunk_rows: int, data: st.DataObject) -> None:
        layout = make_store(n_spots=n, folder=uuid.uuid4().hex)
        array = plan(layout, recipe, chunk_rows=chunk_rows, profile=profile)
        values = fill(array)
        rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=12)), dtype=np.int64)
        np.testing.assert_array_equal(zarr.open_array(layout.zarr_store(array.node), mode="r")[:], values)
        np.testing.assert_array_equal(array.read(rows), values[rows])
        np.testing.assert_array_equal(array.read(), values)
        np.testing.assert_array_equal(np.concatenate([block for _, block in array.blocks()]), values)

    check()


def test_the_profile_fits_the_place(make_store: MakeStore, recipe: Recipe, kind: str):
    layout = make_store(n_spots=1500)
    array = EmbeddingArray.plan(layout, "s1", "enc", recipe=recipe, dim=DIM)
    codecs = [codec["name"] for codec in json.loads(layout.files.read(f"{array.node}/zarr.json"))["codecs"]]
    if kind == "local":
        assert (codecs, array.chunk_rows) == (["bytes"], 1024)
    else:
        assert (codecs, array.chunk_rows) == (["sharding_indexed"], 1536)  # six pieces of 256 rows hold the 1500
    with pytest.raises(InputError, match="'tape' is not one of local, cloud"):
        plan(layout, recipe, key="other", profile="tape")


def test_a_few_rows_of_a_large_object_are_fetched_by_range(make_store: MakeStore, recipe: Recipe):
    array = EmbeddingArray.plan(make_store(n_spots=2000), "s1", "e", recipe=recipe, dim=512, profile="cloud")
    values = fill(array)
    assert array.n_chunks == 1
    rows = np.array([1999, 3, 3, 700])
    np.testing.assert_array_equal(array.read(rows), values[rows])
    pieces = zarr.open_array(array.layout.zarr_store(array.node), mode="r")
    assert pieces.chunks == (256, 512)
    assert pieces.shards == (2048, 512)


def test_more_chunks_than_maps(make_store: MakeStore, recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mapped, "MAPPED_CHUNKS", 2)
    array = plan(make_store(n_spots=10), recipe, chunk_rows=1, profile="local")
    values = fill(array)
    np.testing.assert_array_equal(array.read(), values)


def test_a_chunk_file_is_raw_rows_at_zarrs_default_key(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe, profile="local")
    values = fill(array)
    files = array.layout.files
    assert files.read("data.zarr/slides/s1/obsm/enc/c/1/0") == values[4:8].tobytes()
    last = np.frombuffer(files.read("data.zarr/slides/s1/obsm/enc/c/2/0"), "<f2").reshape(4, DIM)
    np.testing.assert_array_equal(last[:2], values[8:])
    assert np.isnan(last[2:]).all()


def test_rows_without_a_receipt_are_never_served(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe)
    values = np.ones((4, DIM), np.float32)
    array.write_chunk(1, values, device="cpu")
    np.testing.assert_array_equal(array.read(np.arange(4, 8)), 1.0)
    for rows in (None, np.array([3]), np.array([8]), np.arange(3, 8)):
        with pytest.raises(IncompleteError, match="spared-fm encode"):
            array.read(rows)
    with pytest.raises(IncompleteError):
        next(array.blocks())
    assert array.missing() == [0, 2]
    # a chunk file whose receipt is gone is not data either
    array.layout.files.remove(f"{array.node}/receipts/1.json")
    fresh = EmbeddingArray(array.layout, "s1", "enc")
    with pytest.raises(IncompleteError):
        fresh.read(np.arange(4, 8))


def test_the_receipt_describes_the_chunk(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe)
    fill(array)
    data = array.layout.files.read(f"{array.node}/c/2/0")
    receipt = json.loads(array.layout.files.read(f"{array.node}/receipts/2.json"))
    assert receipt["rows"] == [8, 10]
    assert receipt["bytes"] == len(data)
    assert receipt["crc32c"] == f"{google_crc32c.value(data):08x}"
    assert receipt["embedding_id"] == array.attributes["embedding_id"]
    assert receipt["device"] == "cpu"


def test_writing_again_changes_nothing_and_keeps_the_first_receipt(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe)
    values = np.ones((4, DIM), np.float32)
    assert array.write_chunk(0, values, device="first")
    assert not array.write_chunk(0, values, device="second")
    assert EmbeddingArray(array.layout, "s1", "enc").receipt(0)["device"] == "first"


@pytest.mark.parametrize("profile", PROFILES)
def test_writers_of_one_chunk_at_once_leave_one_receipt(make_store: MakeStore, recipe: Recipe, profile: str):
    layout = make_store()
    plan(layout, recipe, profile=profile)
    values = np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float16)
    barrier, wins = threading.Barrier(8), []

    def write(i: int) -> None:
        array = EmbeddingArray(Layout(str(layout.root)), "s1", "enc")
        barrier.wait()
        if array.write_chunk(0, values, device=str(i)):
            wins.append(str(i))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    array = EmbeddingArray(layout, "s1", "enc")
    assert [array.receipt(0)["device"]] == wins
    np.testing.assert_array_equal(array.read(np.arange(4)), values)


def test_lost_and_damaged_objects_are_not_served(make_store: MakeStore, recipe: Recipe, kind: str):
    """Through zarr an object that is gone reads as NaN, and one with a flipped byte might read as anything."""
    array = plan(make_store(), recipe, profile="cloud")
    fill(array)
    files, key = array.layout.files, f"{array.node}/c/1/0"
    good = files.read(key)
    for position in range(0, len(good), 7 if kind == "s3" else 1):
        files.replace(key, good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(InputError, match=r"verify --repair"):
            EmbeddingArray(array.layout, "s1", "enc").read()
    files.replace(key, good[:-3])
    with pytest.raises(InputError, match=r"verify --repair"):
        EmbeddingArray(array.layout, "s1", "enc").read()
    files.remove(key)
    with pytest.raises(InputError, match=r"chunk 1 of 'enc' is gone.*verify --repair"):
        EmbeddingArray(array.layout, "s1", "enc").read()
    assert np.isfinite(EmbeddingArray(array.layout, "s1", "enc").read(np.arange(4))).all()


def test_a_compressed_chunk_has_the_same_bytes_each_time(make_local_store: MakeStore, recipe: Recipe):
    array = plan(make_local_store(n_spots=1000), recipe, chunk_rows=512, profile="cloud")
    fill(array)
    first = array.layout.files.read(f"{array.node}/c/1/0")
    fill(array)
    assert array.layout.files.read(f"{array.node}/c/1/0") == first


def test_only_whole_chunks_of_finite_values_are_taken(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe)
    with pytest.raises(InputError, match="takes"):
        array.write_chunk(0, np.ones((3, DIM)), device="cpu")
    with pytest.raises(InputError, match="takes"):
        array.write_chunk(2, np.ones((4, DIM)), device="cpu")
    bad = np.ones((4, DIM))
    bad[2, 1] = np.nan
    with pytest.raises(InputError, match="spot row 2"):
        array.write_chunk(0, bad, device="cpu")
    with pytest.raises(OverflowError, match="float16"):
        array.write_chunk(0, np.full((4, DIM), 1e5), device="cpu")
    assert array.missing() == [0, 1, 2]
    assert not array.layout.files.exists(f"{array.node}/c")


def test_absent_rows_are_nan_with_a_reason(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe)
    values = np.ones((4, DIM), np.float32)
    array.write_chunk(1, values, absent={5: "tile failed to decode"}, device="cpu")
    assert array.absent() == {5: "tile failed to decode"}
    found = array.read(np.arange(4, 8))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3]]).all()


def test_an_absent_chunk_is_stored_too(make_store: MakeStore, recipe: Recipe):
    array = plan(make_store(), recipe)
    array.write_chunk(0, np.full((4, DIM), np.nan), absent=dict.fromkeys(range(4), "x"), device="cpu")
    assert np.isnan(array.read(np.arange(4))).all()


def test_planning_again_is_the_same_array_and_another_recipe_is_refused(make_store: MakeStore, recipe: Recipe):
    layout = make_store()
    first = plan(layout, recipe, batch_size=8)
    values = fill(first)
    again = plan(layout, recipe, batch_size=16, chunk_rows=5)
    assert again.attributes["batch_size"] == 8
    assert again.chunk_rows == 4
    np.testing.assert_array_equal(again.read(), values)
    other = dataclasses.replace(recipe, pooling="token", weights="sha256:9")
    with pytest.raises(InputError, match=rf"another recipe \(weights, pooling\).*enc@{other.id[:8]}"):
        plan(layout, other)


def test_another_image_or_other_spots_under_the_slide_are_noticed(make_store: MakeStore, recipe: Recipe):
    layout = make_store()
    array = plan(layout, recipe)
    fill(array)
    record = layout.attributes(layout.slide("s1"))
    assert record is not None
    for field in ("fingerprint", "spots_digest"):
        layout.update_attributes(layout.slide("s1"), lambda _, field=field: {**record, field: "other"})
        with pytest.raises(InputError, match="another image or other spots"):
            array.check_current()
        with pytest.raises(InputError, match="another image or other spots"):
            plan(layout, recipe)
    layout.update_attributes(layout.slide("s1"), lambda _: record)
    array.check_current()


def test_a_receipt_of_another_embedding_is_refused(make_store: MakeStore, recipe: Recipe):
    layout = make_store()
    array = plan(layout, recipe)
    other = plan(layout, dataclasses.replace(recipe, pooling="token"), key="other")
    fill(array)
    fill(other)
    layout.files.replace(f"{array.node}/receipts/0.json", layout.files.read(f"{other.node}/receipts/0.json"))
    with pytest.raises(InputError, match="another embedding"):
        EmbeddingArray(layout, "s1", "enc").read()
    layout.files.replace(f"{array.node}/receipts/0.json", b"{")
    with pytest.raises(InputError, match="damaged"):
        EmbeddingArray(layout, "s1", "enc").read()


def test_unknown_slide_and_key_say_what_there_is(make_store: MakeStore, recipe: Recipe):
    layout = make_store()
    plan(layout, recipe)
    with pytest.raises(InputError, match=r"no embeddings 'x' \(it has: enc\)"):
        EmbeddingArray(layout, "s1", "x")
    with pytest.raises(InputError, match=r"no slide 'nope'.*s1"):
        EmbeddingArray.plan(layout, "nope", "enc", recipe=recipe, dim=DIM)
