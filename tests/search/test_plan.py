import faiss
import pytest

from spared_fm.errors import InputError
from spared_fm.search.plan import Plan, choose


@pytest.mark.parametrize(
    ("rows", "kind", "codes"),
    [
        (0, "exact", ""),
        (100_000, "exact", ""),
        (100_001, "ivf-sq", "SQfp16"),
        (2_000_000, "ivf-sq", "SQfp16"),
        (2_000_001, "pca-ivf-rabitq", "RaBitQ"),
        (1_000_000_000, "pca-ivf-rabitq", "RaBitQ"),
    ],
)
def test_the_size_decides(rows, kind, codes):
    plan = choose(rows, 512)
    assert plan.kind == kind
    assert plan.factory.endswith(codes)


def test_four_lists_per_root():
    assert choose(1_000_000, 384).lists == 4000


@pytest.mark.parametrize("dim", [1, 100, 256, 257, 512, 1536])
@pytest.mark.parametrize("rows", [200_000, 5_000_000])
def test_faiss_reads_the_factory_string(rows, dim):
    plan = choose(rows, dim)
    index = faiss.index_factory(dim, plan.factory)
    assert index.d == dim
    assert faiss.extract_index_ivf(index).nlist == plan.lists
    assert choose(rows, dim, target_recall=0.99).probes > plan.probes


def test_memory_bounds_training_segments_and_codes():
    memory = 400 << 20
    plan = choose(1_000_000, 512, memory=memory)
    assert "RaBitQ" in plan.factory
    assert "SQ8" in choose(1_000_000, 512, memory=700 << 20).factory
    assert plan.train_rows * 512 * 4 <= memory / 2
    assert plan.train_rows >= 32 * plan.lists
    assert plan.segment_rows * (32 + 8 + 16) <= memory / 2
    assert plan.bytes <= memory
    assert choose(1_000_000, 512).train_rows <= 64 * choose(1_000_000, 512).lists


def test_an_object_store_takes_a_segment_in_one_piece():
    plan = choose(10**9, 384, memory=64 << 30)
    assert plan.segment_rows * plan.bytes / plan.rows < 5e9 <= plan.bytes


def test_the_size_on_disk_is_foreseen():
    plan = choose(1_000_000, 512)
    assert plan.bytes == pytest.approx(1_000_000 * (1024 + 16), rel=0.02)


def test_many_rows_are_spread():
    assert choose(50_000_000, 1024).shards == 1
    assert choose(1_000_000_000, 1024).shards == 20


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rows": 10, "dim": 0}, "dimensions"),
        ({"rows": 10, "dim": 8, "target_recall": 0}, "target recall"),
        ({"rows": 10, "dim": 8, "target_recall": 1.5}, "target recall"),
        ({"rows": 10**9, "dim": 1024, "memory": 1 << 30}, "give it that much memory"),
        ({"rows": 200_000, "dim": 60_000, "memory": 100 << 20}, "too few to train"),
    ],
)
def test_what_cannot_be_planned_is_said(given, says):
    with pytest.raises(InputError, match=says):
        choose(**given)


def test_a_plan_goes_through_json():
    import dataclasses
    import json

    plan = choose(300_000, 384)
    assert Plan(**json.loads(json.dumps(dataclasses.asdict(plan)))) == plan
