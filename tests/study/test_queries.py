from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study.api import Study
from spared_fm.study.queries import Maker, Region
from spared_fm.study.search_columns import Tables
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"


@pytest.fixture
def maker(study: Study) -> Maker:
    return Maker(Tables(study.layout), EmbeddingArray(study.layout, SLIDE, ENCODER), "cosine")


def names(study: Study, rows: list[int]) -> list[str]:
    return [f"{SLIDE}/{study.slide(SLIDE).obs_names[row]}" for row in rows]


def mpp(study: Study) -> float:
    return (study.layout.attributes(study.layout.slide(SLIDE)) or {})["mpp"]


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("s1:1200,3400", Region("s1", 1200, 3400)),
        ("a.b-c:1.5,2um", Region("a.b-c", 1.5, 2, "um")),
        ("s1:812,930µm,500um", Region("s1", 812, 930, "um", 500)),
        ("s1:812,930,500um", Region("s1", 812, 930, "px", 500)),
    ],
)
def test_regions_are_read(text: str, region: Region):
    assert Region.parse(text) == region
    assert Region.parse(str(region)) == region


@pytest.mark.parametrize("text", ["s1", "s1:1", "s1:1,2,3", "s1:1,2mm", ":1,2", "s1:1,2,-3um"])
def test_what_is_no_region(text: str):
    with pytest.raises(InputError, match="is not SLIDE:X,Y"):
        Region.parse(text)


def test_a_region_around_a_spot_is_that_spot(study: Study, maker: Maker):
    x, y = study.slide(SLIDE).obsm["spatial"][9]
    stored = study.features(SLIDE, ENCODER, np.array([9])).astype(np.float32)
    size = mpp(study)
    for asked in (
        f"{SLIDE}:{x},{y}",
        f"{SLIDE}:{x * size},{y * size}um",
        Region(SLIDE, x, y),
        f"{SLIDE}:{x},{y},112um",
    ):
        [query] = maker.regions([asked], None)
        np.testing.assert_allclose(query.vectors, stored, rtol=2e-3, atol=2e-3)
        assert query.slides == (SLIDE,)
        assert query.patches is not None
        assert query.patches.shape == (1, 224, 224, 3)


def test_a_large_region_is_tiled(study: Study, maker: Maker):
    x, y = study.slide(SLIDE).obsm["spatial"].mean(axis=0)
    step = 112 / mpp(study)
    tiles = [f"{SLIDE}:{x + dx * step},{y + dy * step}" for dy in (-0.5, 0.5) for dx in (-0.5, 0.5)]
    single = np.concatenate([query.vectors for query in maker.regions(tiles, None)])
    [every] = maker.regions([f"{SLIDE}:{x},{y},230um"], "any")
    np.testing.assert_allclose(every.vectors, single, rtol=2e-3, atol=2e-3)
    [mean] = maker.regions([f"{SLIDE}:{x},{y},230um"], None)
    unit = single / np.linalg.norm(single, axis=1, keepdims=True)
    np.testing.assert_allclose(mean.vectors[0], unit.mean(axis=0), rtol=2e-3, atol=2e-3)


def test_a_set_of_spots_is_one_query(study: Study, maker: Maker):
    rows = [2, 7, 30]
    vectors = study.features(SLIDE, ENCODER, np.array(rows)).astype(np.float64)
    [mean] = maker.spots(names(study, rows), "mean")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(mean.vectors, unit.mean(axis=0, keepdims=True), rtol=1e-5)
    assert mean.own == tuple((SLIDE, row) for row in rows)
    maker.metric = "l2"
    [mean] = maker.spots(names(study, rows), "mean")
    np.testing.assert_allclose(mean.vectors, vectors.mean(axis=0, keepdims=True), rtol=1e-5)
    [every] = maker.spots(names(study, rows), "any")
    np.testing.assert_array_equal(every.vectors, vectors)
    assert len(maker.spots(names(study, rows), None)) == 3


def test_vectors_from_files(maker: Maker, tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(2, 560))
    np.save(tmp_path / "two.npy", values)
    np.save(tmp_path / "one.npy", values[0].astype(np.float16))
    made = maker.vectors([tmp_path / "two.npy", str(tmp_path / "one.npy"), values[1]])
    assert [query.name for query in made] == [
        f"{tmp_path}/two.npy[0]",
        f"{tmp_path}/two.npy[1]",
        f"{tmp_path}/one.npy",
        "vector",
    ]
    np.testing.assert_array_equal(made[1].vectors, made[3].vectors)


def test_bad_queries_are_named(study: Study, maker: Maker, tmp_path: Path):
    np.save(tmp_path / "short.npy", np.ones(8))
    np.save(tmp_path / "nan.npy", np.full(560, np.nan))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    np.savez(tmp_path / "several.npz", np.ones(560))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 cut")
    for name, message in (
        ("short", "has 8 dimensions, embeddings 'stain-bank' have 560"),
        ("nan", "NaN"),
        ("text", "give numbers"),
        ("pickle", r"not a \.npy file of numbers"),
        ("broken", r"not a \.npy file of numbers"),
        ("several", "an archive of arrays"),
        ("zip", r"not a \.npy file of numbers"),
        ("none", "no such file"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.npy.*{message}"):
            maker.vectors([tmp_path / f"{name}.npy"])
    x, y = study.slide(SLIDE).obsm["spatial"][9]
    for region, message in (
        (f"{SLIDE}:{x},{y},60um", r"smaller than a patch \(112 µm\)"),
        (f"{SLIDE}:{x},99999", "y is outside the image"),
        (f"{SLIDE}:-1,{y}", "x is outside the image"),
        ("nope:1,2", "no slide 'nope'"),
    ):
        with pytest.raises(InputError, match=message):
            maker.regions([region], None)
