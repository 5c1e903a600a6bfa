from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study import join_features
from spared_fm.study.api import Study
from spared_fm.study.export import export
from spared_fm.study.import_features import import_features
from spared_fm.study.verify import verify
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"
DIM = 5
SIDE_UM = 112.0


@pytest.fixture
def fresh(copy: Callable[[], Study]) -> Study:
    return copy()


def mpp_of(study: Study, slide: str = SLIDE) -> float:
    record = study.layout.attributes(study.layout.slide(slide))
    assert record is not None
    return record["mpp"]


def vectors_of(study: Study, slide: str = SLIDE, seed: int = 0) -> np.ndarray:
    n = study.slide(slide).n_obs
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float16).astype(np.float32)


def corners_of(study: Study, slide: str = SLIDE, side_px: float | None = None) -> np.ndarray:
    """Top-left corners, as tools count pixels, of patches centred on the spots."""
    side = SIDE_UM / mpp_of(study, slide) if side_px is None else side_px
    return study.slide(slide).obsm["spatial"] + 0.5 - side / 2


def trident(path: Path, vectors: np.ndarray, corners: np.ndarray, mpp: float) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = vectors
        file.create_dataset("coords", data=np.rint(corners).astype(np.int64)).attrs.update(
            patch_size=224,
            patch_size_level0=round(SIDE_UM / mpp),
            level0_magnification=40,
            target_magnification=20,
            name="x",
        )
    return path


def in_order(study: Study, slide: str = SLIDE) -> np.ndarray:
    """A shuffle of the slide's spots, for files with another row order than ours."""
    return np.random.default_rng(7).permutation(study.slide(slide).n_obs)


def files_of(study: Study) -> dict[str, bytes]:
    root = study.layout.files.path("data.zarr")
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["trident", "clam", "stamp", "slide2vec", "hest"])
def test_every_kind_reaches_its_spots(fresh: Study, tmp_path: Path, kind: str):
    mpp, order = mpp_of(fresh), in_order(fresh)
    vectors, corners = vectors_of(fresh), corners_of(fresh)[order]
    path, options = tmp_path / f"{SLIDE}.h5", {}
    if kind == "trident":
        trident(path, vectors[order], corners, mpp)
    elif kind == "clam":
        with h5py.File(path, "w") as file:
            file["features"], file["coords"] = vectors[order][None], np.rint(corners).astype(np.int32)
        options["patch_level0"] = SIDE_UM / mpp
    elif kind == "stamp":
        with h5py.File(path, "w") as file:
            file["feats"], file["coords"] = vectors[order].astype(np.float16), corners * mpp
            file.attrs.update(extractor="uni", unit="um", tile_size_um=SIDE_UM, tile_size_px=224)
    elif kind == "slide2vec":
        path = tmp_path / f"{SLIDE}.pt"
        torch.save(torch.from_numpy(vectors[order]), path)
        x, y = np.rint(corners).astype(np.int64).T
        np.savez(tmp_path / f"{SLIDE}.coordinates.npz", x=x, y=y)
        meta = {"tile_size_lv0": SIDE_UM / mpp, "requested_tile_size_px": 224, "requested_spacing_um": 0.5}
        path.with_suffix(".meta.json").write_text(json.dumps(meta))
    else:
        barcodes = fresh.slide(SLIDE).obs_names[order]
        with h5py.File(path, "w") as file:
            file["embeddings"], file["coords"] = vectors[order], np.rint(corners)
            file.create_dataset("barcodes", data=[[name] for name in barcodes], dtype=h5py.string_dtype())
    [row] = import_features(fresh.layout, path, encoder="uni", **options)
    assert row["kind"] == {"clam": "trident"}.get(kind, kind)
    assert (row["slide"], row["status"], row["dim"]) == (SLIDE, "added", DIM)
    assert (row["spots"], row["matched"], row["absent"], row["unmatched"]) == (len(vectors), len(vectors), 0, 0)
    assert row["warnings"] == []
    if kind == "hest":
        assert row["median_um"] is None
    elif kind == "stamp":
        assert row["median_um"] == pytest.approx(0, abs=1e-3)
    else:  # rounding to pixels, half a pixel along each axis at most, and of the side
        assert 0 < row["median_um"] < mpp
    assert row["tolerance_um"] == pytest.approx(SIDE_UM / 4, rel=0.01)
    np.testing.assert_array_equal(fresh.features(SLIDE, row["key"]), vectors.astype(np.float16))

    array = EmbeddingArray(fresh.layout, SLIDE, row["key"])
    recipe = array.recipe
    assert row["key"] == f"uni@{recipe.id[:8]}"
    assert recipe.weights == "unverified"
    assert recipe.transform["unverified"] is True
    assert recipe.encoder == "uni"
    asked = (0.0, 0) if kind == "clam" else (SIDE_UM, 224)
    assert (recipe.patch_um, recipe.patch_px) == asked
    assert verify(fresh.layout) == []


def test_the_import_works_as_embeddings_do(fresh: Study, tmp_path: Path):
    paths = []
    for seed, slide in enumerate(fresh.slides):
        vectors = vectors_of(fresh, slide, seed)
        paths.append(trident(tmp_path / f"{slide}.h5", vectors, corners_of(fresh, slide), mpp_of(fresh, slide)))
    rows = import_features(fresh.layout, paths, encoder="uni")
    assert len({row["key"] for row in rows}) == 1  # one recipe, though the slides differ a little in scale
    found = fresh.search("uni", spots=[f"{SLIDE}/{fresh.slide(SLIDE).obs_names[0]}"], k=3)
    assert len(found) == 3
    assert set(found["slide"]) <= set(fresh.slides)
    table = fresh.benchmark("c", encoders=["uni"], heads=["ridge"])
    assert "uni" in set(table["encoder"])
    assert np.isfinite(table["pcc_gene"]).any()


def flip(node: Path) -> None:
    data = bytearray((node / "c/0/0").read_bytes())
    data[3] ^= 1
    (node / "c/0/0").write_bytes(data)


def lose(node: Path) -> None:
    (node / "c/0/0").unlink()


def swap_receipt(node: Path) -> None:
    """Give the chunk the receipt of another embedding with the same bytes."""
    path = node / "receipts/0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "embedding_id": "0" * 64}))


@pytest.mark.parametrize("damage", [flip, lose, swap_receipt])
def test_again_changes_nothing_and_mends_damage(fresh: Study, tmp_path: Path, damage: Callable[[Path], None]):
    path = trident(tmp_path / f"{SLIDE}.h5", vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
    [first] = import_features(fresh.layout, path, encoder="uni")
    before = files_of(fresh)
    [again] = import_features(fresh.layout, path, encoder="uni")
    assert (again["status"], again["key"]) == ("unchanged", first["key"])
    assert files_of(fresh) == before
    node = fresh.layout.files.path(fresh.layout.embedding(SLIDE, first["key"]))
    damage(node)
    assert len(verify(fresh.layout)) == 1
    [mended] = import_features(fresh.layout, path, encoder="uni")
    assert mended["status"] == "mended"
    assert verify(fresh.layout) == []
    np.testing.assert_array_equal(fresh.features(SLIDE, first["key"]), vectors_of(fresh).astype(np.float16))


def test_spots_without_a_patch_are_absent_and_patches_without_a_spot_left_out(fresh: Study, tmp_path: Path):
    vectors, corners = vectors_of(fresh), corners_of(fresh)
    n = len(vectors)
    vectors[5] = np.nan
    kept = np.r_[0:10, 15:n]
    extra = corners[:4] - np.array([0, 3000])
    path = trident(
        tmp_path / f"{SLIDE}.h5", np.concatenate([vectors[kept], np.ones((4, DIM))]),
        np.concatenate([corners[kept], extra]), mpp_of(fresh),
    )  # fmt: skip
    [row] = import_features(fresh.layout, path, encoder="uni")
    assert (row["matched"], row["absent"], row["unmatched"]) == (n - 6, 6, 4)
    array = EmbeddingArray(fresh.layout, SLIDE, row["key"])
    absent = array.absent()
    assert sorted(absent) == [5, 10, 11, 12, 13, 14]
    assert absent[5] == f"NaN or infinity in {SLIDE}.h5"
    assert absent[10] == f"no patch within {row['tolerance_um']:.4g} µm in {SLIDE}.h5"
    assert np.isnan(array.read(np.array(sorted(absent)))).all()
    assert {row["kind"] for row in verify(fresh.layout)} <= {"absent"}  # told, but no damage


def test_tolerance(fresh: Study, tmp_path: Path):
    off = 20.0 / mpp_of(fresh)
    path = trident(tmp_path / f"{SLIDE}.h5", vectors_of(fresh), corners_of(fresh) + np.array([off, 0]), mpp_of(fresh))
    with pytest.raises(
        InputError, match=r"has only 0 of \d+ spots of slide .*within 10 µm \(the nearest is (19|20|21)"
    ):
        import_features(fresh.layout, path, encoder="uni", tolerance_um=10)
    [row] = import_features(fresh.layout, path, encoder="uni")
    assert row["median_um"] == pytest.approx(20, abs=1)
    assert "not cut at the spots, they lie 20" in row["warnings"][0]
    with pytest.raises(InputError, match=r"imported from another file \(.*\) or with another tolerance"):
        import_features(fresh.layout, path, encoder="uni", tolerance_um=25)


def test_a_quarter_of_the_patch_keeps_patches_that_overlap_by_half_apart():
    side = 100.0
    stride = side / 2
    x = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2) * stride
    spots = np.random.default_rng(0).uniform(0, 5 * stride, (3000, 2))
    near = np.hypot(*(spots[:, None] - x[None]).transpose(2, 0, 1)) < join_features.TOLERANCE * side
    assert near.sum(axis=1).max() == 1
    # and what it shares with the spot's own patch, at the least favourable angle
    angle = np.linspace(0, np.pi / 2, 200)
    shared = (1 - join_features.TOLERANCE * np.cos(angle)) * (1 - join_features.TOLERANCE * np.sin(angle))
    assert shared.min() > 2 / 3


def test_pixels_of_the_image_or_of_the_spots(fresh: Study, tmp_path: Path):
    node = fresh.layout.slide(SLIDE)
    record = fresh.layout.attributes(node)
    assert record is not None
    fresh.layout.update_attributes(
        node, lambda _: {**record, "image": {**record["image"], "kind": "hires", "scale": 0.25}}
    )
    vectors, side = vectors_of(fresh), SIDE_UM / record["mpp"]
    spots = fresh.slide(SLIDE).obsm["spatial"]
    (tmp_path / "image").mkdir()
    image = trident(tmp_path / "image" / f"{SLIDE}.h5", vectors, (spots + 0.5) * 0.25 - side / 8, record["mpp"] / 0.25)
    [row] = import_features(fresh.layout, image, encoder="uni")
    assert row["matched"] == len(vectors)
    assert row["median_um"] < record["mpp"] / 0.25
    (tmp_path / "spots").mkdir()
    full = trident(tmp_path / "spots" / f"{SLIDE}.h5", vectors, corners_of(fresh), record["mpp"])
    with pytest.raises(InputError, match=r"its patches are 112 µm wide, .* they would be 44\d.*--pixels"):
        import_features(fresh.layout, full, encoder="uni", key="uni@full")
    [row] = import_features(fresh.layout, full, encoder="uni", key="uni@full", pixels="spots")
    assert (row["key"], row["matched"]) == ("uni@full", len(vectors))


def test_micrometres_by_another_scale(fresh: Study, tmp_path: Path):
    path = tmp_path / f"{SLIDE}.h5"
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = (
            vectors_of(fresh),
            corners_of(fresh) * mpp_of(fresh) * 1.1,
        )  # made at a scale of its own
        file.attrs.update(tile_size_um=SIDE_UM * 1.1, tile_size_px=224)
    with pytest.raises(InputError, match="has only"):
        import_features(fresh.layout, path, encoder="uni")
    [row] = import_features(fresh.layout, path, encoder="uni", mpp=mpp_of(fresh) * 1.1)
    assert row["median_um"] == pytest.approx(0, abs=1e-3)


def test_a_slide_without_an_image(fresh: Study, tmp_path: Path):
    node, mpp = fresh.layout.slide(SLIDE), mpp_of(fresh)
    path = trident(tmp_path / f"{SLIDE}.h5", vectors_of(fresh), corners_of(fresh), mpp)
    record = fresh.layout.attributes(node)
    assert record is not None
    fresh.layout.update_attributes(node, lambda _: {**record, "image": None, "mpp": None})
    with pytest.raises(InputError, match=r"no scale \(it has no image\): pass --mpp"):
        import_features(fresh.layout, path, encoder="uni")
    [row] = import_features(fresh.layout, path, encoder="uni", mpp=mpp)
    assert row["matched"] == row["spots"]
    assert 0 < row["median_um"] < mpp


def hest(path: Path, study: Study, names: list[str], shift: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["embeddings"], file["coords"] = vectors_of(study), corners_of(study) + shift
        file.create_dataset("barcodes", data=[[name] for name in names], dtype=h5py.string_dtype())
    return path


def test_the_same_barcodes_of_another_section(fresh: Study, tmp_path: Path):
    names = list(fresh.slide(SLIDE).obs_names)
    path = tmp_path / f"{SLIDE}.h5"
    for shift in (np.array([500.0, 0.0]), np.random.default_rng(0).normal(0, 100, (len(names), 2))):
        hest(path, fresh, names, shift)
        with pytest.raises(InputError, match=f"its coordinates are not those of slide {SLIDE} "):
            import_features(fresh.layout, path, encoder="uni")
    [row] = import_features(fresh.layout, path, encoder="uni", pixels="ignore")
    assert row["matched"] == len(names)


def test_other_barcodes(fresh: Study, tmp_path: Path):
    names = list(fresh.slide(SLIDE).obs_names)
    path = tmp_path / f"{SLIDE}.h5"
    hest(path, fresh, [f"x{name}" for name in names], np.zeros(2))
    with pytest.raises(InputError, match="none of its barcodes"):
        import_features(fresh.layout, path, encoder="uni")
    hest(path, fresh, [name if i % 3 == 0 else f"x{name}" for i, name in enumerate(names)], np.zeros(2))
    with pytest.raises(InputError, match=r"has only .* spots .*--min-matched"):
        import_features(fresh.layout, path, encoder="uni")
    [row] = import_features(fresh.layout, path, encoder="uni", min_matched=0.3)
    assert row["absent"] == row["unmatched"] > 0
    reasons = set(EmbeddingArray(fresh.layout, SLIDE, row["key"]).absent().values())
    assert reasons == {f"no such barcode in {SLIDE}.h5"}


def test_values_too_large_for_float16(fresh: Study, tmp_path: Path):
    paths = []
    for slide in fresh.slides[:2]:
        vectors = vectors_of(fresh, slide)
        if slide == SLIDE:
            vectors[2, 1] = 1e6
        paths.append(trident(tmp_path / f"{slide}.h5", vectors, corners_of(fresh, slide), mpp_of(fresh, slide)))
    rows = import_features(fresh.layout, paths, encoder="uni")
    assert len({row["key"] for row in rows}) == 1
    assert "float32" in rows[0]["warnings"][0]
    assert fresh.features(SLIDE, "uni").dtype == np.float32
    assert fresh.features(SLIDE, "uni")[2, 1] == 1e6


@pytest.mark.parametrize("key", ["uni", ENCODER, "uni@0123abcd", "uni@", "a@b@c", "tokens/uni@mine"])
def test_a_key_that_could_be_a_verified_recipes(fresh: Study, tmp_path: Path, key: str):
    path = trident(tmp_path / f"{SLIDE}.h5", vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
    before = files_of(fresh)
    with pytest.raises(InputError, match=r"could be that of a verified recipe; use <name>@<label>|may only use"):
        import_features(fresh.layout, path, encoder="uni", key=key)
    assert files_of(fresh) == before


def test_another_file_for_the_same_key(fresh: Study, tmp_path: Path):
    path = tmp_path / f"{SLIDE}.h5"
    trident(path, vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
    import_features(fresh.layout, path, encoder="uni")
    before = files_of(fresh)
    trident(path, vectors_of(fresh, seed=9), corners_of(fresh), mpp_of(fresh))
    with pytest.raises(InputError, match="were imported from another file"):
        import_features(fresh.layout, path, encoder="uni")
    assert files_of(fresh) == before
    [row] = import_features(fresh.layout, path, encoder="uni", key="uni@second")
    assert row["status"] == "added"


def test_a_bad_file_among_good_ones_writes_nothing(fresh: Study, tmp_path: Path):
    first, second = fresh.slides[:2]
    good = trident(tmp_path / f"{first}.h5", vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
    bad = trident(tmp_path / f"{second}.h5", vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
    bad.write_bytes(bad.read_bytes()[:-500])
    before = files_of(fresh)
    with pytest.raises(InputError, match=f"{second}.h5: not a readable file of features"):
        import_features(fresh.layout, [good, bad], encoder="uni")
    assert files_of(fresh) == before


def test_other_slides_coordinates(fresh: Study, tmp_path: Path):
    """A tiling that has nothing to do with the spots still meets some of them by chance."""
    side = SIDE_UM / mpp_of(fresh)
    spots = fresh.slide(SLIDE).obsm["spatial"]
    grid = np.stack(np.meshgrid(*(np.arange(0, spots.max() + side, side) for _ in "xy")), -1).reshape(-1, 2)
    vectors = np.ones((len(grid), DIM), np.float32)
    path = trident(tmp_path / f"{SLIDE}.h5", vectors, grid, mpp_of(fresh))
    with pytest.raises(InputError, match=f"spots of slide {SLIDE}, within .* another slide's file") as raised:
        import_features(fresh.layout, path, encoder="uni")
    assert "\n" not in str(raised.value)
    [row] = import_features(fresh.layout, path, encoder="uni", min_matched=0.01)
    assert 0 < row["matched"] < 0.5 * row["spots"]


def test_bad_calls(fresh: Study, tmp_path: Path):
    path = trident(tmp_path / "unknown.h5", vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
    for options, message in (
        ({}, r"unknown\.h5: .*no slide 'unknown' .*name the slide with --slide"),
        ({"slide": SLIDE, "pixels": "x"}, "--pixels 'x' is not one of"),
        ({"slide": SLIDE, "tolerance_um": -1.0}, "--tolerance-um -1: give a positive number"),
        ({"slide": SLIDE, "min_matched": 2.0}, "--min-matched 2"),
        ({"slide": SLIDE, "kind": "stamp"}, "looked for feats"),
    ):
        with pytest.raises(InputError, match=message):
            import_features(fresh.layout, path, encoder="uni", **options)
    with pytest.raises(InputError, match="--slide goes with one file, 2 are given"):
        import_features(fresh.layout, [path, path], encoder="uni", slide=SLIDE)
    with pytest.raises(InputError, match="no file to import"):
        import_features(fresh.layout, [], encoder="uni")
    (tmp_path / "b").mkdir()
    twins = [
        trident(folder / f"{SLIDE}.h5", vectors_of(fresh), corners_of(fresh), mpp_of(fresh))
        for folder in (tmp_path, tmp_path / "b")
    ]
    with pytest.raises(InputError, match=f"are both of slide {SLIDE}"):
        import_features(fresh.layout, twins, encoder="uni")
    with h5py.File(twins[0], "r+") as file:
        for name in ("patch_size", "patch_size_level0"):
            del file["coords"].attrs[name]
    with pytest.raises(InputError, match="doesn't say how large its patches are; pass --patch-level0"):
        import_features(fresh.layout, twins[0], encoder="uni")


def test_round_trip_through_a_trident_file(fresh: Study, tmp_path: Path):
    export(fresh.layout, encoder=ENCODER, to=tmp_path, form="trident")
    rows = import_features(fresh.layout, [tmp_path / f"{slide}.h5" for slide in fresh.slides], encoder=ENCODER)
    assert [row["slide"] for row in rows] == fresh.slides
    for row in rows:
        assert row["matched"] == row["spots"]
        assert row["median_um"] < mpp_of(fresh, row["slide"])
        assert row["key"] != ENCODER
        ours = fresh.features(row["slide"], ENCODER)
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(fresh.features(row["slide"], row["key"]), ours)
        recipe = EmbeddingArray(fresh.layout, row["slide"], row["key"]).recipe
        assert recipe.patch_um == pytest.approx(112)
        assert recipe.weights == "unverified"
